//! Compiles the schemas without protoc: protox is a compiler in Rust.
use std::{env, error::Error, path::PathBuf};

const SERVICES: &[&str] = &["ha/peer/v1/peer.proto", "ha/control/v1/control.proto"];
const MESSAGES: &[&str] = &["ha/agent/v1/agent.proto"];

fn main() -> Result<(), Box<dyn Error>> {
    for file in SERVICES.iter().chain(MESSAGES) {
        println!("cargo:rerun-if-changed={file}");
    }
    let root = PathBuf::from(env::var("CARGO_MANIFEST_DIR")?);
    prost_build::Config::new().compile_fds(protox::compile(MESSAGES, [&root])?)?;
    if env::var_os("CARGO_FEATURE_GRPC").is_some() {
        tonic_prost_build::configure()
            // What `--json` prints is these messages, field for field.
            .type_attribute(".ha.control.v1", "#[derive(serde::Serialize)]")
            .compile_fds(protox::compile(SERVICES, [&root])?)?;
    }
    Ok(())
}
