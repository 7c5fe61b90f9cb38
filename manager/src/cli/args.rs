//! The command line's definition: help, shell completions and the man page come from it.

use std::{path::PathBuf, time::Duration};

use clap::{ArgGroup, Args, Parser, Subcommand};

use crate::{
    fence,
    spec::{NodeName, parse_duration},
};

/// Keeps containers going: checkpoints their memory, and restores it here or on another node, under the same address.
#[derive(Debug, Parser)]
#[command(name = "ha-manager", version, propagate_version = true, max_term_width = 100, after_help = EXIT_CODES)]
pub struct Cli {
    /// The manager's control socket.
    #[arg(long, global = true, value_name = "PATH", default_value = "/run/ha-manager/control.sock")]
    pub socket: PathBuf,
    #[command(subcommand)]
    pub command: Command,
}

const EXIT_CODES: &str = "Exit codes:
  0  done
  1  the command failed; the reason is on standard error
  2  the command line is wrong
  3  the manager cannot be reached at its socket, or went away during the command
  4  there is no such container, snapshot or node
  5  refused: the request does not fit the present state, or names something that cannot be";

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run the manager of this node in the foreground.
    Run(Run),
    /// Register the containers of a Compose file and start them.
    Apply(Apply),
    /// Show nodes and containers.
    Status(Status),
    /// Take a checkpoint of a container now and wait until it is committed.
    Checkpoint(Name),
    /// List a container's committed snapshots, newest first.
    Snapshots(Listing),
    /// Put a container back to a snapshot; what it was before is kept as another one.
    Restore(Restore),
    /// Move a container to another node without losing anything.
    Move(Move),
    /// Show what happened, on all nodes.
    Events(Events),
    /// Show a container's output.
    Logs(Logs),
    /// Stop containers and forget them: snapshots and volumes too.
    Rm(Rm),
    /// Have all nodes do without one that is gone for good: its name and addresses are free then.
    Retire(Retire),
    /// Say what this node can and cannot do, each with the remedy.
    Doctor(Doctor),
    /// Play a cluster that fails in one process, and check who runs what: one scenario, or many drawn from seeds.
    Simulate(Simulate),
    /// Make the certificates by which nodes know each other.
    #[command(subcommand)]
    Ca(Ca),
    /// Print the completions for a shell.
    Completions { shell: clap_complete::Shell },
    /// Print the manual page, of the program or of one of its commands.
    Man { command: Option<String> },
    /// Stop this node's containers when their time is over; the manager starts it.
    #[command(hide = true)]
    Watchdog(Watchdog),
}

#[derive(Debug, Args)]
pub struct Run {
    #[arg(long, value_name = "FILE", default_value = "/etc/ha-manager/node.toml")]
    pub config: PathBuf,
    /// What to log, e.g. `info` or `ha_manager=debug`; also from RUST_LOG.
    #[arg(long, value_name = "FILTER")]
    pub log: Option<String>,
    /// Log as JSON, one object a line.
    #[arg(long)]
    pub log_json: bool,
}

#[derive(Debug, Args)]
pub struct Apply {
    #[arg(short = 'f', long = "file", value_name = "FILE")]
    pub file: PathBuf,
    /// Replace containers whose change needs a new container; the state of a stateful one is lost.
    #[arg(long)]
    pub recreate: bool,
    /// Check the file and print what would be applied, as JSON, without asking the manager.
    #[arg(long)]
    pub dry_run: bool,
    /// Return only when every container of the file runs, is healthy and, if it is stateful, has a committed snapshot.
    #[arg(long, conflicts_with = "dry_run")]
    pub wait: bool,
    /// How long to wait, from when all are applied, e.g. `90s` or `5m`.
    #[arg(long, value_name = "TIME", default_value = "60s", value_parser = parse_duration, requires = "wait")]
    pub wait_timeout: Duration,
    /// Print a JSON object for each container, one a line.
    #[arg(long, conflicts_with = "dry_run")]
    pub json: bool,
}

#[derive(Debug, Args)]
pub struct Status {
    #[arg(long)]
    pub json: bool,
    /// Keep showing it, anew every second (with --json: one document a line).
    #[arg(long)]
    pub watch: bool,
}

#[derive(Debug, Args)]
pub struct Name {
    pub name: String,
}

#[derive(Debug, Args)]
pub struct Listing {
    pub name: String,
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Args)]
pub struct Restore {
    pub name: String,
    /// The snapshot, as `snapshots` lists it; the newest healthy one when not given.
    #[arg(long, value_name = "ID")]
    pub snapshot: Option<String>,
    /// Claim the container for this node when its owner is dead or its manager stopped: what it did since the snapshot is
    /// lost. Refused while anything answers at the container's address.
    #[arg(long)]
    pub force: bool,
    /// Do not checkpoint a container that works before it is put back: what it did since the snapshot is lost.
    #[arg(long)]
    pub discard: bool,
}

#[derive(Debug, Args)]
pub struct Move {
    pub name: String,
    #[arg(long, value_name = "NODE")]
    pub to: String,
}

#[derive(Debug, Args)]
pub struct Events {
    /// Only of this container.
    pub name: Option<String>,
    /// Go on as they happen.
    #[arg(long, short)]
    pub follow: bool,
    /// One JSON object a line.
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Args)]
pub struct Logs {
    pub name: String,
    /// Show each line with its time and stream (stdout, stderr, or agent for what ha-agent says).
    #[arg(long, short)]
    pub timestamps: bool,
    #[arg(long, short)]
    pub follow: bool,
}

#[derive(Debug, Args)]
pub struct Rm {
    #[arg(required = true)]
    pub names: Vec<String>,
}

#[derive(Debug, Args)]
pub struct Retire {
    /// The node's name. Refused while it lives (it is heard, or wrote to the store within `lease.long`) or owns containers.
    pub node: String,
}

#[derive(Debug, Args)]
pub struct Doctor {
    #[arg(long, value_name = "FILE", default_value = "/etc/ha-manager/node.toml")]
    pub config: PathBuf,
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Args)]
pub struct Watchdog {
    /// Where its socket and its lock are.
    #[arg(long, value_name = "DIR")]
    run_dir: PathBuf,
    /// The parent of all containers' control groups.
    #[arg(long, value_name = "PATH")]
    cgroup: PathBuf,
    /// How the names of the containers' links begin.
    #[arg(long, value_name = "PREFIX")]
    link_prefix: String,
    /// The hardware watchdog.
    #[arg(long, value_name = "PATH")]
    device: Option<PathBuf>,
}

impl From<Watchdog> for fence::Setting {
    fn from(args: Watchdog) -> Self {
        let Watchdog { run_dir, cgroup, link_prefix, device } = args;
        Self { cgroup, link_prefix, device, ..Self::new(run_dir) }
    }
}

#[derive(Debug, Args)]
#[command(group = ArgGroup::new("played").required(true).args(["file", "seed", "seeds"]))]
pub struct Simulate {
    /// A scenario's file.
    #[arg(value_name = "SCENARIO")]
    pub file: Option<PathBuf>,
    /// Replay the scenario of this seed.
    #[arg(long, value_name = "S")]
    pub seed: Option<u64>,
    /// Play so many seeds; the last line is JSON: seeds, violations, first_bad_seed.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub seeds: Option<u64>,
    /// The first of them.
    #[arg(long, value_name = "S", default_value_t = 0, requires = "seeds", conflicts_with_all = ["file", "seed"])]
    pub from: u64,
}

#[derive(Debug, Subcommand)]
pub enum Ca {
    /// Make the cluster's authority: a key that signs nodes' certificates.
    Init(CaInit),
    /// Make a node's key and certificate, signed by the authority.
    Issue(CaIssue),
}

#[derive(Debug, Args)]
pub struct CaInit {
    /// The cluster's name, as `cluster` in the configuration.
    #[arg(long, value_name = "NAME", default_value = "default")]
    pub cluster: NodeName,
    /// Where the authority is to be.
    #[arg(long, value_name = "DIR", default_value = CA_DIR)]
    pub dir: PathBuf,
    /// How long it is valid; certificates of nodes end with it at the latest.
    #[arg(long, default_value_t = 3650, value_parser = clap::value_parser!(u32).range(1..=36500))]
    pub days: u32,
    /// Replace an authority that is there: every node then needs a new certificate.
    #[arg(long)]
    pub force: bool,
}

#[derive(Debug, Args)]
pub struct CaIssue {
    /// The node's name, as `node` in its configuration.
    pub node: NodeName,
    /// Where the authority is.
    #[arg(long, value_name = "DIR", default_value = CA_DIR)]
    pub dir: PathBuf,
    /// Where the three files go; a directory named after the node beside the authority when not given.
    #[arg(long, value_name = "DIR")]
    pub out: Option<PathBuf>,
    /// How long it is valid.
    #[arg(long, default_value_t = 730, value_parser = clap::value_parser!(u32).range(1..=36500))]
    pub days: u32,
    /// Replace files that are there.
    #[arg(long)]
    pub force: bool,
}

const CA_DIR: &str = "/etc/ha-manager/ca";

#[cfg(test)]
mod tests {
    use clap::{CommandFactory, Parser};

    #[test]
    fn the_definition_is_sound() {
        super::Cli::command().debug_assert();
    }

    #[test]
    fn what_is_simulated_is_one_thing_and_said_when_it_is_missing() {
        let refused = |words: &[&str]| {
            let words = ["ha-manager", "simulate"].iter().chain(words);
            super::Cli::try_parse_from(words).err().map(|error| error.to_string())
        };
        let missing = refused(&[]).unwrap();
        assert!(
            missing.contains("SCENARIO") && missing.contains("--seed <S>") && missing.contains("--seeds <N>"),
            "{missing}"
        );
        for wrong in
            [&["a.toml", "--seed=1"][..], &["--seed=1", "--seeds=2"], &["--seeds=0"], &["--seed=1", "--from=1"]]
        {
            assert!(refused(wrong).is_some(), "{wrong:?}");
        }
        for right in [&["a.toml"][..], &["--seed=0"], &["--seeds=1"], &["--seeds=2", "--from=7"]] {
            assert_eq!(refused(right), None, "{right:?}");
        }
    }
}
