//! `ha-agent`: PID 1 of every container.
//!
//! It starts the main process, reaps, forwards signals, runs the healthcheck, writes the log and answers the manager. It
//! is dumped and restored with its container, so it holds nothing that CRIU could not take along: a signalfd, pipes and
//! one listening socket, all of them the container's own. No host file stays open, no connection outlives its request,
//! and time is counted so that a jump of the clock over a restore expires nothing.
//!
//! ```text
//!  frame ─► log, tail  the main process's output, line by line, and its last lines
//!  restarts            what follows when the main process ends      (pure)
//!  health              when to check, and what a result means      (pure)
//!  wire, server        requests of the manager, never blocking
//!  events              what the manager is told unasked
//!  supervisor          one loop that joins them
//! ```

pub mod clock;
pub mod events;
pub mod frame;
pub mod health;
pub mod log;
pub mod restarts;
pub mod server;
pub mod spawn;
pub mod supervisor;
pub mod tail;
pub mod wire;

/// Names within the channel directory.
pub mod names {
    /// Where the channel directory is inside a container.
    pub const CHANNEL: &str = "/.ha-manager/channel";
    pub const CONFIG: &str = "agent.json";
    pub const AGENT_SOCKET: &str = "agent.sock";
    pub const MANAGER_SOCKET: &str = "manager.sock";
    pub const LOG: &str = "log";
    pub const OLD_LOG: &str = "log.1";
}
