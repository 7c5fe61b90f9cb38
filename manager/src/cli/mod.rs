//! The command line: what a person types, sent to the manager over its control socket.

mod apply;
mod args;
mod ca;
mod client;
mod examine;
mod progress;
mod variables;
mod view;
mod wait;

use std::{
    io::{IsTerminal, Write, stdout},
    path::Path,
    time::Duration,
};

pub use args::{Cli, Command};
use clap::CommandFactory;
pub use client::CliError;
use ha_proto::control::{
    CheckpointRequest, Event, EventsRequest, LogsRequest, MoveRequest, RemoveRequest, RestoreRequest, RetireRequest,
    SnapshotsRequest, StatusRequest,
};
use serde::Serialize;

use crate::sim;

/// Carries out every command but `run` and `watchdog`.
pub async fn execute(cli: Cli) -> Result<(), CliError> {
    let socket = cli.socket.as_path();
    match cli.command {
        Command::Run(_) | Command::Watchdog(_) => Err(CliError::Input("this is not a client command".into())),
        Command::Apply(args) => apply::apply(socket, args).await,
        Command::Status(args) => status(socket, args).await,
        Command::Checkpoint(args) => {
            let stream = client::connect(socket).await?.checkpoint(CheckpointRequest { name: args.name }).await?;
            finish(progress::follow(stream.into_inner()).await?)
        }
        Command::Snapshots(args) => snapshots(socket, args).await,
        Command::Restore(args) => {
            let args::Restore { name, snapshot, force, discard } = args;
            let request = RestoreRequest { name, snapshot: snapshot.unwrap_or_default(), force, discard };
            let stream = client::connect(socket).await?.restore(request).await?;
            finish(progress::follow(stream.into_inner()).await?)
        }
        Command::Move(args) => {
            let request = MoveRequest { name: args.name, to: args.to };
            let stream = client::connect(socket).await?.r#move(request).await?;
            finish(progress::follow(stream.into_inner()).await?)
        }
        Command::Events(args) => events(socket, args).await,
        Command::Logs(args) => logs(socket, args).await,
        Command::Rm(args) => {
            let mut manager = client::connect(socket).await?;
            for name in args.names {
                let stream = manager.remove(RemoveRequest { name }).await?;
                finish(progress::follow(stream.into_inner()).await?)?;
            }
            Ok(())
        }
        Command::Retire(args) => {
            let stream = client::connect(socket).await?.retire(RetireRequest { node: args.node }).await?;
            finish(progress::follow(stream.into_inner()).await?)
        }
        Command::Doctor(args) => examine::examine(args).await,
        Command::Simulate(args) => simulate(&args),
        Command::Ca(command) => ca::run(command),
        Command::Completions { shell } => {
            // Into memory first: the generator takes a closed pipe for impossible.
            let mut text = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "ha-manager", &mut text);
            print(String::from_utf8_lossy(&text).trim_end())
        }
        Command::Man { command } => manual(command.as_deref()),
    }
}

fn simulate(args: &args::Simulate) -> Result<(), CliError> {
    let out = &mut stdout().lock();
    let played = match (&args.file, args.seed, args.seeds) {
        (Some(file), ..) => sim::command::file(file, out),
        (_, Some(seed), _) => sim::command::one(&sim::Scenario::random(seed), out),
        (.., seeds) => sim::command::many(args.from, seeds.unwrap_or_default(), out),
    };
    played.map_err(|error| CliError::Input(error.to_string()))
}

/// The page of the program, or of one command.
fn manual(command: Option<&str>) -> Result<(), CliError> {
    let mut program = Cli::command();
    program.build();
    let described = match command {
        None => program,
        Some(name) => program
            .find_subcommand(name)
            .cloned()
            .ok_or_else(|| CliError::Usage(format!("there is no command {name}; `ha-manager --help` lists them")))?,
    };
    let mut page = Vec::new();
    let rendered = clap_mangen::Man::new(described).render(&mut page);
    rendered.map_err(|source| CliError::Io { what: "cannot write the manual page".into(), source })?;
    print(String::from_utf8_lossy(&page).trim_end())
}

/// Prints a command's result.
fn finish(result_json: String) -> Result<(), CliError> {
    print(sentence(&serde_json::from_str(&result_json).unwrap_or_default()))
}

/// Of a command's result, a JSON object, the sentence for people.
fn sentence(result: &serde_json::Value) -> &str {
    result.get("message").and_then(|message| message.as_str()).unwrap_or("done")
}

fn print(text: &str) -> Result<(), CliError> {
    write_out(format!("{text}\n").as_bytes())
}

/// A closed pipe (`ha-manager events | head`) ends a command in order.
fn write_out(text: &[u8]) -> Result<(), CliError> {
    let mut out = stdout().lock();
    match out.write_all(text).and_then(|()| out.flush()) {
        Err(err) if err.kind() == std::io::ErrorKind::BrokenPipe => std::process::exit(0),
        other => other.map_err(|source| CliError::Io { what: "cannot write to standard output".into(), source }),
    }
}

fn print_json<T: Serialize>(value: &T) -> Result<(), CliError> {
    let text = serde_json::to_string(value).map_err(|err| CliError::Input(format!("cannot write JSON: {err}")))?;
    print(&text)
}

async fn status(socket: &Path, args: args::Status) -> Result<(), CliError> {
    let mut manager = client::connect(socket).await?;
    let mut lost = false;
    loop {
        let reply = match manager.status(StatusRequest { local: false }).await.map_err(CliError::from) {
            Ok(reply) => reply.into_inner(),
            // The channel connects anew with the next call.
            Err(CliError::Lost(why)) if args.watch => {
                if !lost {
                    eprintln!("ha-manager: the manager is away ({why}); this goes on when it is back");
                }
                lost = true;
                tokio::time::sleep(Duration::from_secs(1)).await;
                continue;
            }
            Err(error) => return Err(error),
        };
        lost = false;
        if args.json {
            print_json(&reply)?;
        } else {
            let clear = if args.watch && stdout().is_terminal() { "\x1b[H\x1b[2J" } else { "" };
            print(format!("{clear}{}", view::status(&reply)).trim_end())?;
        }
        if !args.watch {
            return Ok(());
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}

async fn snapshots(socket: &Path, args: args::Listing) -> Result<(), CliError> {
    let request = SnapshotsRequest { name: args.name };
    let reply = client::connect(socket).await?.snapshots(request).await?.into_inner();
    if args.json { print_json(&reply.snapshots) } else { print(view::snapshots(&reply.snapshots).trim_end()) }
}

async fn events(socket: &Path, args: args::Events) -> Result<(), CliError> {
    let request = EventsRequest { follow: args.follow, name: args.name.unwrap_or_default(), local: false };
    let mut stream = client::connect(socket).await?.events(request).await?.into_inner();
    while let Some(event) = stream.message().await? {
        if args.json { print_json(&EventJson::from(event))? } else { print(&view::event(&event))? }
    }
    Ok(())
}

/// An event with its facts as an object rather than as text in text.
#[derive(Serialize)]
struct EventJson {
    at: String,
    node: String,
    container: String,
    kind: String,
    message: String,
    detail: serde_json::Value,
}

impl From<Event> for EventJson {
    fn from(event: Event) -> Self {
        let detail = serde_json::from_str(&event.detail_json).unwrap_or_default();
        let Event { at, node, container, kind, message, .. } = event;
        Self { at, node, container, kind, message, detail }
    }
}

async fn logs(socket: &Path, args: args::Logs) -> Result<(), CliError> {
    let request = LogsRequest { name: args.name, follow: args.follow, ..LogsRequest::default() };
    let mut stream = client::connect(socket).await?.logs(request).await?.into_inner();
    let mut plain = view::PlainLog::default();
    while let Some(chunk) = stream.message().await? {
        write_out(&if args.timestamps { chunk.data } else { plain.text(&chunk.data) })?;
    }
    Ok(())
}
