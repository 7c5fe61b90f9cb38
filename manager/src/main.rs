//! `ha-manager`: the daemon (`run`) and the command line that speaks with it.

use std::{io::IsTerminal, process::ExitCode, time::Duration};

use clap::Parser;
use ha_manager::{
    cli::{self, Cli, Command},
    config::NodeConfig,
    node,
};
use tracing_subscriber::EnvFilter;

/// What is under way in the kernel when the manager ends is waited for this long.
const LAST_CALLS: Duration = Duration::from_secs(2);

fn main() -> ExitCode {
    let cli = Cli::parse();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    let runtime = match runtime {
        Ok(runtime) => runtime,
        Err(err) => {
            eprintln!("ha-manager: cannot start the runtime: {err}");
            return ExitCode::FAILURE;
        }
    };
    match cli.command {
        Command::Run(args) => {
            start_log(args.log.as_deref(), args.log_json);
            let outcome = NodeConfig::load(&args.config).map_err(anyhow::Error::from);
            let outcome = outcome.and_then(|config| runtime.block_on(node::run(config)));
            // A call to a store that hangs would be waited for without end.
            runtime.shutdown_timeout(LAST_CALLS);
            match outcome {
                Ok(()) => ExitCode::SUCCESS,
                Err(err) => {
                    eprintln!("ha-manager: {err:#}");
                    ExitCode::FAILURE
                }
            }
        }
        _ => match runtime.block_on(cli::execute(cli)) {
            Ok(()) => ExitCode::SUCCESS,
            Err(err) => {
                eprintln!("ha-manager: {err}");
                ExitCode::from(err.exit_code())
            }
        },
    }
}

fn start_log(filter: Option<&str>, json: bool) {
    let filter = match filter {
        Some(filter) => EnvFilter::new(filter),
        None => EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info")),
    };
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    if json {
        log.json().init();
    } else {
        log.with_ansi(std::io::stderr().is_terminal()).init();
    }
}
