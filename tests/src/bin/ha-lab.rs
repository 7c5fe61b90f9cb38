//! The laboratory's program: the demo, the benchmarks, the random faults, and the helpers that hold nodes up.

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use ha_lab::{
    census::Census,
    chaos::{self, Length},
    demo::Workload,
    lab::{
        Lab, NodeOptions,
        warden::{self, NodeArgs},
    },
};

#[derive(Parser)]
#[command(name = "ha-lab", about = "Nodes made of namespaces: demo, benchmarks, random faults, images", version)]
struct Cli {
    #[command(subcommand)]
    command: Cmd,
}

#[derive(Subcommand)]
enum Cmd {
    /// Checkpoint a container, cut its node's power, and show it going on at the other node.
    Demo {
        #[arg(long, value_enum, default_value = "vlc")]
        workload: Workload,
    },
    /// Measure the figures of the README into target/bench/results.json.
    Bench {
        /// Only the figure of this name.
        #[arg(long)]
        only: Option<String>,
        /// Failovers per program; checkpoints are taken four times as often.
        #[arg(long, default_value_t = 5)]
        samples: usize,
        /// Print the names and what they mean, and measure nothing.
        #[arg(long)]
        list: bool,
    },
    /// Random faults against three nodes, and the verdict over what became of their containers.
    Chaos {
        /// Faults that begin within so many minutes.
        #[arg(long, default_value_t = 5.0, conflicts_with = "faults")]
        minutes: f64,
        /// So many faults.
        #[arg(long)]
        faults: Option<usize>,
        /// Decides which faults come and when.
        #[arg(long, default_value_t = 1)]
        seed: u64,
        /// Print the faults and do nothing.
        #[arg(long)]
        plan: bool,
    },
    /// Build the root file system of a workload into a directory: counter, redis or vlc.
    Image { name: String, dir: std::path::PathBuf },
    /// Keep bare nodes running until standard input ends, and print how to enter them.
    ///
    /// Each has processes, mounts, /run and control groups of its own, a link `uplink` with the address 10.77.0.NUMBER/16 on
    /// one switch, and an empty disk, nodes/nNUMBER beside the store; the rest of the file system is this machine's. The store
    /// is an empty directory that all share. No manager runs in them and nothing is configured: start one in each, with a
    /// configuration of your own. Programs begin in /: name them by their whole path.
    ///
    /// A node's power is cut by two commands, in this order: `ip link set uplink down` in the node, and SIGKILL to the process
    /// whose number is printed. Without the first the dying programs say goodbye to their peers. It does not boot again.
    Nodes { count: u8 },
    /// Print what a program could leave behind here, as JSON.
    Census,
    #[command(hide = true)]
    NodeWarden(NodeArgs),
    #[command(hide = true)]
    NodeInit(NodeArgs),
    #[command(hide = true)]
    Hold,
    #[command(hide = true)]
    NodeExec {
        #[arg(long)]
        pid: i32,
        #[arg(long)]
        group: String,
        #[arg(trailing_var_arg = true, allow_hyphen_values = true, required = true)]
        argv: Vec<String>,
    },
}

fn nodes(count: u8) -> anyhow::Result<()> {
    let lab = Lab::new()?;
    let nodes =
        (1..=count).map(|number| lab.node(number, NodeOptions::default())).collect::<anyhow::Result<Vec<_>>>()?;
    for node in &nodes {
        let enter = format!("node-exec --pid={} --group={} -- bash", node.pid()?, node.group());
        println!("{} at {}: {} {enter}", node.name(), node.address(), ha_lab::lab_program()?.display());
    }
    println!("the store: {}; clients: nsenter --net={}", lab.store().display(), lab.client_netns().display());
    std::io::copy(&mut std::io::stdin(), &mut std::io::sink())?;
    Ok(())
}

/// The helpers need a process of one thread, so nothing here starts a runtime before the command is known.
fn run(command: Cmd) -> anyhow::Result<u8> {
    match command {
        Cmd::Image { name, dir } => ha_lab::images::build(&name, &dir)?,
        Cmd::Demo { workload } => ha_lab::demo::run(workload)?,
        Cmd::Bench { list: true, .. } => {
            ha_lab::bench::names().iter().for_each(|(name, meaning)| println!("{name:<48}{meaning}"));
        }
        Cmd::Bench { only, samples, .. } => ha_lab::bench::run(only.as_deref(), samples.max(1))?,
        Cmd::Chaos { minutes, faults, seed, plan } => {
            let length = faults.map_or(Length::Minutes(minutes), Length::Faults);
            if plan {
                chaos::print_plan(seed, length);
            } else {
                return Ok(u8::from(!chaos::run(seed, length)?));
            }
        }
        Cmd::Nodes { count } => nodes(count)?,
        Cmd::Census => println!("{}", serde_json::to_string(&Census::here())?),
        Cmd::NodeWarden(args) => warden::node_warden(&args)?,
        Cmd::NodeInit(args) => warden::node_init(&args)?,
        Cmd::Hold => warden::hold_netns()?,
        Cmd::NodeExec { pid, group, argv } => {
            return Ok(u8::try_from(warden::node_exec(pid, &group, &argv)?).unwrap_or(1));
        }
    }
    Ok(0)
}

fn main() -> ExitCode {
    match run(Cli::parse().command) {
        Ok(code) => ExitCode::from(code),
        Err(err) => {
            eprintln!("ha-lab: {err:#}");
            ExitCode::FAILURE
        }
    }
}
