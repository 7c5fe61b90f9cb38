//! What a user asked for, after validation, and the image it runs. Both are stored (JSON) so that any node can run it.

use std::{collections::BTreeMap, net::Ipv4Addr, path::PathBuf, time::Duration};

use serde::{Deserialize, Serialize};

use super::{ContainerName, Mac};

/// One container, as applied. Compose's own words where it has them; `io.ha-manager.*` annotations for the rest.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ContainerSpec {
    pub name: ContainerName,
    /// The image as written: a directory, an OCI layout or archive, or a registry reference.
    pub image: String,
    /// Replaces the image's entry point. `Some(vec![])` clears it.
    pub entrypoint: Option<Vec<String>>,
    /// Replaces the image's command.
    pub command: Option<Vec<String>>,
    #[serde(default)]
    pub environment: BTreeMap<String, String>,
    pub working_dir: Option<String>,
    /// `uid[:gid]` or a name of the image's /etc/passwd.
    pub user: Option<String>,
    pub hostname: Option<String>,
    #[serde(default)]
    pub mounts: Vec<Mount>,
    #[serde(default)]
    pub network: NetworkSpec,
    pub healthcheck: Option<Healthcheck>,
    /// Containers that come before this one starts.
    #[serde(default)]
    pub depends_on: Vec<Dependency>,
    pub restart: RestartPolicy,
    #[serde(default)]
    pub rlimits: Vec<Rlimit>,
    pub state: StateKind,
    /// How many committed snapshots are kept; at least 1. Those that a person asked for are not among them.
    pub keep: u32,
    /// How many of those that a person asked for; at least 1.
    #[serde(default = "default_keep_manual")]
    pub keep_manual: u32,
    pub recovery: RecoveryPolicy,
    /// Annotations outside `io.ha-manager.`, handed to the runtime unchanged.
    #[serde(default)]
    pub annotations: BTreeMap<String, String>,
}

/// Of a container that does not say, and of descriptions that were written before there was a word for it.
pub fn default_keep_manual() -> u32 {
    3
}

/// Whether the container's memory is worth keeping (Li et al. 2015, §III).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum StateKind {
    /// Checkpointed. `sensitivity` is the longest loss of state its user accepts.
    Stateful {
        #[serde(with = "humantime_serde")]
        sensitivity: Duration,
    },
    /// Never checkpointed; its processes are restarted inside the container.
    Stateless,
}

/// Compose's `restart`: what happens when the main process ends by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RestartPolicy {
    No,
    Always,
    /// Only after a failure (exit code other than 0, or a signal). `max` bounds restarts in a row inside the container, which
    /// only stateless ones have; without it the agent's own bound holds, as with `Always`. Then recovery's steps follow.
    OnFailure {
        max: Option<u32>,
    },
    /// As `Always`, but a container its operator stopped stays stopped.
    UnlessStopped,
}

/// In which order recovery is tried, and how often each step.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RecoveryPolicy {
    pub steps: Vec<RecoveryStep>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RecoveryStep {
    /// On the same node, from the newest healthy snapshot (stateless: from the image). At most `max` times in ten minutes.
    Restart { max: u32 },
    /// On a peer, from the newest healthy snapshot.
    Failover,
    /// From an earlier snapshot, at most `max` further back and at most `max` times in ten minutes.
    OlderSnapshot { max: u32 },
    /// From the image: the state is lost, and an event says so. At most once in ten minutes when there is a state.
    ColdStart,
}

impl RecoveryPolicy {
    /// The paper's Fig. 6, then older snapshots. A cold start loses the state, so it has to be asked for.
    pub fn stateful_default() -> Self {
        use RecoveryStep::{Failover, OlderSnapshot, Restart};
        Self { steps: vec![Restart { max: 3 }, Failover, OlderSnapshot { max: 2 }] }
    }

    pub fn stateless_default() -> Self {
        use RecoveryStep::{ColdStart, Failover};
        Self { steps: vec![RecoveryStep::Restart { max: 3 }, Failover, ColdStart] }
    }
}

/// A mount of the container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mount {
    pub source: MountSource,
    /// Absolute path inside the container, without `..`.
    pub target: PathBuf,
    pub read_only: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum MountSource {
    /// Belongs to the container and to its snapshots.
    Volume { name: String },
    /// A path of the node. Not in snapshots: the peer has to have it too.
    HostBind { path: PathBuf },
    /// Memory; in the snapshot with the processes.
    Tmpfs { size_bytes: Option<u64> },
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkSpec {
    /// From the pool when not given.
    pub ipv4: Option<Ipv4Addr>,
    /// Derived from the address when not given.
    pub mac: Option<Mac>,
}

/// Compose's `depends_on`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Dependency {
    pub name: ContainerName,
    pub condition: Condition,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Condition {
    /// Its main process runs.
    Started,
    /// Its healthcheck passes.
    Healthy,
}

/// Compose's `healthcheck`, run by the agent inside the container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Healthcheck {
    /// The program and its arguments; `CMD-SHELL` has become `/bin/sh -c …`. Exit code 0 is healthy.
    pub argv: Vec<String>,
    #[serde(with = "humantime_serde")]
    pub interval: Duration,
    #[serde(with = "humantime_serde")]
    pub timeout: Duration,
    /// Failures in this first time do not count.
    #[serde(with = "humantime_serde")]
    pub start_period: Duration,
    /// The interval within the start period; `interval`, but from 10 ms to 500 ms, when not given.
    #[serde(default, with = "humantime_serde")]
    pub start_interval: Option<Duration>,
    /// Failures in a row until the container is unhealthy.
    pub retries: u32,
}

/// Compose's `ulimits`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rlimit {
    /// Without `RLIMIT_`, lower case: `nofile`.
    pub name: String,
    pub soft: u64,
    pub hard: u64,
}

/// What an image resolved to when it was applied; with it a node needs the store only, not the image's source.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageRecord {
    /// The reference it came from, for people.
    pub reference: String,
    pub config: ImageConfig,
    /// Bottom first.
    pub layers: Vec<Layer>,
}

/// One layer in the store: a zstd-compressed tar in the overlay's own form (whiteouts as 0/0 character devices).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Layer {
    /// blake3 of the stored object, 64 hex digits; also its name, `blobs/<digest>`.
    pub digest: String,
    pub size_bytes: u64,
}

/// The parts of an OCI image configuration that a run needs.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageConfig {
    #[serde(default)]
    pub entrypoint: Vec<String>,
    #[serde(default)]
    pub cmd: Vec<String>,
    /// `NAME=value`.
    #[serde(default)]
    pub env: Vec<String>,
    pub working_dir: Option<String>,
    pub user: Option<String>,
    /// By number; SIGTERM when the image names none.
    pub stop_signal: Option<i32>,
}
