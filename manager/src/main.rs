//! `ha-manager`: the daemon (`run`) and the command line that speaks with it.

use std::{io::IsTerminal, process::ExitCode, time::Duration};

use clap::Parser;
use ha_manager::{
    cli::{self, Cli, Command},
    config::NodeConfig,
    fence, node, priority,
};
use tracing_subscriber::EnvFilter;

/// Work that cannot be interrupted is waited for this long at the end.
const END_PATIENCE: Duration = Duration::from_secs(3);

fn main() -> ExitCode {
    let cli = match Cli::parse() {
        // A process of one thread.
        Cli { command: Command::Watchdog(args), .. } => return watch(&args.into()),
        cli => cli,
    };
    let mut runtime = tokio::runtime::Builder::new_multi_thread();
    if matches!(cli.command, Command::Run(_)) {
        runtime.on_thread_start(priority::workers_go_first);
    }
    let runtime = runtime.worker_threads(priority::WORKERS).enable_all().build();
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
            // What still hangs in a call to the kernel (a store whose server is away) must not keep the manager from ending.
            runtime.shutdown_timeout(END_PATIENCE);
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

fn watch(setting: &fence::Setting) -> ExitCode {
    match fence::watchdog(setting) {
        Ok(()) => ExitCode::SUCCESS,
        Err(err) => {
            eprintln!("ha-manager: {}", ha_manager::chain(&err));
            ExitCode::FAILURE
        }
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
