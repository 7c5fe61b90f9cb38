//! `apply`: the containers of a Compose file, one after the other, and the wait until they are what the file asks for.

use std::path::{Path, PathBuf};

use ha_proto::control::{ApplyRequest, ContainerStatus, StatusRequest, control_client::ControlClient};
use serde::Serialize;
use serde_json::Value;
use tonic::transport::Channel;

use super::{args, client, client::CliError, print, print_json, progress, sentence, variables, wait};
use crate::{
    compose,
    spec::{ContainerSpec, MountSource},
};

/// What became of a container, for programs.
#[derive(Serialize)]
struct Applied {
    name: String,
    changed: bool,
    message: String,
    /// As `status` has it, at the end.
    container: Option<ContainerStatus>,
}

pub(super) async fn apply(socket: &Path, args: args::Apply) -> Result<(), CliError> {
    let shown = args.file.display().to_string();
    let io = |what: String| move |source| CliError::Io { what, source };
    let text = std::fs::read_to_string(&args.file).map_err(io(format!("cannot read {shown}")))?;
    let base = args.file.canonicalize().map_err(io(format!("cannot find {shown}")))?;
    let base: PathBuf = base.parent().unwrap_or(Path::new("/")).to_owned();
    let variables = variables::Variables::read(&base)?;
    let file = compose::parse(&text, &shown, &|name| variables.get(name));
    variables.check()?;
    let file = file.map_err(|errors| CliError::Input(errors.to_string()))?;
    for warning in &file.warnings {
        eprintln!("warning: {warning}");
    }
    if args.dry_run {
        return print_json(&file.containers);
    }
    warn_of_binds(&file.containers);
    let mut manager = client::connect(socket).await?;
    let mut applied = Vec::new();
    let mut outcome = Ok(());
    for (index, spec) in file.containers.iter().enumerate() {
        match apply_one(&mut manager, spec, &base, args.recreate).await {
            Ok(one) if args.json => applied.push(one),
            Ok(one) => print(&one.message)?,
            Err(error) => {
                say_where_it_ended(&file.containers, index);
                outcome = Err(error);
                break;
            }
        }
    }
    if outcome.is_ok() && args.wait {
        outcome = wait::until_ready(&mut manager, &file.containers, args.wait_timeout).await;
    }
    if args.json {
        // Also after an error: what was applied stays.
        if let Err(error) = report(&mut manager, applied).await {
            outcome = outcome.and(Err(error));
        }
    }
    outcome
}

async fn apply_one(
    manager: &mut ControlClient<Channel>,
    spec: &ContainerSpec,
    base: &Path,
    recreate: bool,
) -> Result<Applied, CliError> {
    let spec_json = serde_json::to_string(spec).map_err(|err| CliError::Input(err.to_string()))?;
    let request = ApplyRequest { spec_json, base_dir: base.display().to_string(), recreate };
    let result = progress::follow(manager.apply(request).await?.into_inner()).await?;
    let result: Value = serde_json::from_str(&result).unwrap_or_default();
    let changed = result.get("changed").and_then(Value::as_bool).unwrap_or(true);
    Ok(Applied { name: spec.name.to_string(), changed, message: sentence(&result).to_owned(), container: None })
}

/// One object a line.
async fn report(manager: &mut ControlClient<Channel>, applied: Vec<Applied>) -> Result<(), CliError> {
    let mut status = manager.status(StatusRequest { local: false }).await?.into_inner().containers;
    for mut one in applied {
        let at = status.iter().position(|container| container.name == one.name);
        one.container = at.map(|at| status.swap_remove(at));
        print_json(&one)?;
    }
    Ok(())
}

fn warn_of_binds(containers: &[ContainerSpec]) {
    for spec in containers {
        for mount in &spec.mounts {
            if let MountSource::HostBind { path } = &mount.source {
                eprintln!(
                    "warning: {}: {} is a host bind: it is not in snapshots, a peer needs it too",
                    spec.name,
                    path.display()
                );
            }
        }
    }
}

/// What came before stays as it is; what comes after was not looked at.
fn say_where_it_ended(containers: &[ContainerSpec], failed: usize) {
    let names = |specs: &[ContainerSpec]| specs.iter().map(|spec| spec.name.as_str()).collect::<Vec<_>>().join(", ");
    if failed > 0 {
        eprintln!("applied before that, and staying: {}", names(&containers[..failed]));
    }
    if failed + 1 < containers.len() {
        eprintln!("not applied: {}", names(&containers[failed + 1..]));
    }
}
