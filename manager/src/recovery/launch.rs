//! What a cold start and a restore share: root file system, bundle, agent, network.

use std::{io, path::PathBuf, sync::Arc};

use ha_proto::agent as agent_config;
use nix::errno::Errno;

use super::{
    ending,
    live::{Live, ProbeError},
    place::{Place, Volumes},
    teardown::TeardownError,
};
use crate::{
    agentlink::{self, AgentLink, ChannelDir},
    checkpoint::{CpuError, RestoreError},
    image::{self, ImageError},
    network::{self, Attachment, Conflict, NetworkError},
    node::Ctx,
    ownership::{Owner, OwnershipError},
    runtime::{self, BundleError, BundleSpec, Runtime, RuntimeError},
    snapshot::SnapshotError,
    spec::{ContainerName, ContainerSpec, ImageConfig, Mount, MountSource, RestartPolicy, SnapshotId, StateKind},
    store::{StoreError, apps::AppContent},
};

/// What a node's kernel answers when it has no room or its hardware fails, whatever was asked of it.
const OF_THIS_NODE: [Errno; 8] = [
    Errno::ENOSPC,
    Errno::EDQUOT,
    Errno::EROFS,
    Errno::EIO,
    Errno::ENOMEM,
    Errno::EMFILE,
    Errno::ENFILE,
    Errno::EAGAIN,
];

/// Why nothing is begun.
pub(super) const FENCED: &str = "this node cannot prove now that nobody else runs its containers, and begins none: it hears too few \
                                 of its peers and does not reach the store";

/// Why a container could not be brought up here.
#[derive(Debug, thiserror::Error)]
pub enum LaunchError {
    #[error(transparent)]
    Teardown(#[from] TeardownError),
    #[error("{FENCED}")]
    Fenced,
    #[error("it is not known whether this node still owns it")]
    Ownership(#[source] OwnershipError),
    #[error("the image {reference} cannot be made ready")]
    Image { reference: String, source: ImageError },
    #[error("the agent {digest} cannot be made ready")]
    Agent { digest: String, source: StoreError },
    #[error("snapshot {snapshot} cannot be read")]
    Snapshot { snapshot: SnapshotId, source: SnapshotError },
    #[error("the bundle cannot be written")]
    Bundle(#[from] BundleError),
    #[error("the network cannot be built")]
    Network(#[from] NetworkError),
    #[error("address conflict: {address} is in use by {}; the container stays off the network until it is free", .conflict.mac)]
    Conflict { address: std::net::Ipv4Addr, conflict: Conflict },
    #[error("the container cannot be started")]
    Start(#[from] RuntimeError),
    #[error("snapshot {snapshot} cannot be restored")]
    Restore { snapshot: SnapshotId, source: Box<RestoreError> },
    /// Of this node, not of the snapshot.
    #[error("snapshot {snapshot} cannot be restored on this node")]
    Cpu { snapshot: SnapshotId, source: CpuError },
    #[error("the container came up but does not work")]
    Probe(#[from] ProbeError),
    /// The sentence names the program and why.
    #[error("{0}")]
    NotExecuted(String),
    #[error("the channel to the agent cannot be opened")]
    Link(#[from] agentlink::Error),
    #[error("cannot {doing}")]
    Io { doing: String, source: io::Error },
}

impl LaunchError {
    /// True when trying the same again later may help and no other state would do better: the store is away, the address is
    /// taken for now, the old copy is still there.
    pub fn is_transient(&self) -> bool {
        match self {
            LaunchError::Conflict { .. } | LaunchError::Teardown(_) | LaunchError::Fenced => true,
            LaunchError::Ownership(_) => self.deposed_by().is_none(),
            LaunchError::Agent { source, .. } => source.is_retryable(),
            LaunchError::Snapshot { source, .. } => source.is_retryable(),
            LaunchError::Image { source, .. } => source.is_retryable(),
            _ => false,
        }
    }

    /// The later owner, if there is one.
    pub fn deposed_by(&self) -> Option<&Owner> {
        match self {
            LaunchError::Ownership(OwnershipError::Deposed { by, .. }) => Some(by),
            _ => None,
        }
    }

    /// True when it is this node that cannot: its disk is full or fails, it is out of memory or descriptors. Another snapshot
    /// would do no better here; the same one may on another node, or here later.
    pub fn is_of_this_node(&self) -> bool {
        if matches!(self, LaunchError::Snapshot { source: SnapshotError::Worker { .. }, .. }) {
            return true;
        }
        let mut next: Option<&(dyn std::error::Error + 'static)> = Some(self);
        while let Some(error) = next {
            next = error.source();
            let Some(io) = error.downcast_ref::<io::Error>() else { continue };
            match (io.raw_os_error().map(Errno::from_raw), io.get_ref()) {
                (Some(errno), _) => return OF_THIS_NODE.contains(&errno),
                (None, Some(inner)) => next = Some(inner),
                (None, None) => {}
            }
        }
        false
    }

    pub(super) fn io(doing: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        move |source| LaunchError::Io { doing: doing.into(), source }
    }
}

/// The container's root: image layers below, its own files above.
pub async fn mount_root(ctx: &Ctx, place: &Place, app: &AppContent) -> Result<Vec<PathBuf>, LaunchError> {
    let image = |source| LaunchError::Image { reference: app.image.reference.clone(), source };
    let _mounting = ctx.mounting.read().await;
    let layers = image::ensure(&app.image, &ctx.store, &ctx.layers_dir(), &image::Limits::default(), &image::silent())
        .await
        .map_err(image)?;
    let (lower, upper, work, merged) = (layers.clone(), place.upper(), place.work(), place.merged());
    blocking(move || image::mount_overlay(&lower, &upper, &work, &merged)).await.map_err(image)?;
    Ok(layers)
}

/// What the agent and the runtime are told, on disk; everything it refers to exists.
pub async fn write_down(
    ctx: &Arc<Ctx>,
    place: &Place,
    app: &AppContent,
    layers: Vec<PathBuf>,
    attachment: &Attachment,
    agent_dir: PathBuf,
) -> Result<(), LaunchError> {
    let (ctx, place, app, attachment) = (Arc::clone(ctx), place.clone(), app.clone(), attachment.clone());
    blocking(move || {
        ChannelDir::open(&place.channel())?.write_config(&agent_config(&ctx, &app, &layers)?)?;
        write_bundle(&place, &app, &attachment, agent_dir)
    })
    .await
}

fn write_bundle(
    place: &Place,
    app: &AppContent,
    attachment: &Attachment,
    agent_dir: PathBuf,
) -> Result<(), LaunchError> {
    let spec = &app.spec;
    let hostname = spec.hostname.clone().unwrap_or_else(|| spec.name.to_string());
    let mut binds = Vec::new();
    let mut tmpfs = Vec::new();
    for mount in &spec.mounts {
        let bind = |source: PathBuf| runtime::Bind { source, target: mount.target.clone(), read_only: mount.read_only };
        match &mount.source {
            MountSource::Volume { name } => binds.push(bind(place.volume(name))),
            MountSource::HostBind { path } => binds.push(bind(path.clone())),
            MountSource::Tmpfs { size_bytes } => tmpfs.push(runtime::Tmpfs {
                target: mount.target.clone(),
                size_bytes: *size_bytes,
                read_only: mount.read_only,
            }),
        }
    }
    let resolv = runtime::resolv_conf();
    if resolv.servers.is_empty() && !resolv.left_out.is_empty() {
        tracing::warn!(
            container = %spec.name,
            left_out = ?resolv.left_out,
            "no name server of this node can be reached from a container; `ha-manager doctor` has the remedy"
        );
    }
    runtime::write_bundle(&BundleSpec {
        dir: place.bundle(),
        rootfs: place.merged(),
        process: runtime::Process {
            argv: vec![format!("{}/ha-agent", runtime::AGENT_BIN_DIR)],
            env: vec!["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin".into()],
            ..runtime::Process::default()
        },
        hosts: format!("127.0.0.1\tlocalhost\n{}\t{hostname}\n", attachment.identity.ip),
        hostname,
        netns: attachment.netns.clone(),
        cgroups_path: format!("/ha-manager/{}", spec.name),
        agent_bin_dir: Some(agent_dir),
        channel_dir: Some(place.channel()),
        binds,
        tmpfs,
        resolv_conf: resolv.text,
        rlimits: spec.rlimits.clone(),
        annotations: spec.annotations.clone(),
    })?;
    Ok(())
}

/// What the agent is told. A container that replaces its image's user or command has said so in its specification.
fn agent_config(ctx: &Ctx, app: &AppContent, layers: &[PathBuf]) -> Result<agent_config::Config, LaunchError> {
    let image_error = |source| LaunchError::Image { reference: app.image.reference.clone(), source };
    let mut config = described(&app.spec, &app.image.config).map_err(image_error)?;
    let user = app.spec.user.clone().or(app.image.config.user.clone()).unwrap_or_default();
    if !user.is_empty() {
        let ids = image::resolve_user(layers, &user).map_err(image_error)?;
        config.user = agent_config::User { uid: ids.uid, gid: ids.gid, groups: ids.groups };
    }
    config.log_max_bytes = ctx.config.logs.file_max_bytes();
    Ok(config)
}

/// What of it follows from the specification and its image alone.
pub(crate) fn described(spec: &ContainerSpec, image: &ImageConfig) -> Result<agent_config::Config, ImageError> {
    let argv = image::argv(spec, image)?;
    let state = match spec.state {
        StateKind::Stateful { .. } => agent_config::State::Stateful,
        StateKind::Stateless => agent_config::State::Stateless,
    };
    let mut config = agent_config::Config::new(argv, state);
    config.env = environment(spec, &image.env);
    config.cwd = spec.working_dir.clone().or(image.working_dir.clone()).unwrap_or_else(|| "/".into()).into();
    config.restart.rule = match spec.restart {
        RestartPolicy::No => agent_config::RestartRule::No,
        RestartPolicy::OnFailure { .. } => agent_config::RestartRule::OnFailure,
        RestartPolicy::Always | RestartPolicy::UnlessStopped => agent_config::RestartRule::Always,
    };
    if let RestartPolicy::OnFailure { max: Some(max) } = spec.restart {
        config.restart.max_attempts = max;
    }
    let ms = |d: std::time::Duration| u64::try_from(d.as_millis()).unwrap_or(u64::MAX);
    config.healthcheck = spec.healthcheck.as_ref().map(|check| agent_config::HealthcheckConfig {
        argv: check.argv.clone(),
        interval_ms: ms(check.interval).max(10),
        timeout_ms: ms(check.timeout).max(1),
        start_period_ms: ms(check.start_period),
        // Without a word, the first success is looked for often, so that dependants need not wait.
        start_interval_ms: check.start_interval.map_or(ms(check.interval).clamp(10, 500), ms).max(10),
        retries: check.retries.max(1),
    });
    config.stop_signal = image.stop_signal.unwrap_or(config.stop_signal);
    Ok(config)
}

/// The image's environment with the specification's on top.
fn environment(spec: &ContainerSpec, image: &[String]) -> Vec<String> {
    let mut env: std::collections::BTreeMap<String, String> = std::collections::BTreeMap::new();
    env.insert("PATH".into(), "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin".into());
    env.insert("HOSTNAME".into(), spec.hostname.clone().unwrap_or_else(|| spec.name.to_string()));
    let split = image.iter().filter_map(|entry| entry.split_once('='));
    env.extend(split.map(|(name, value)| (name.to_owned(), value.to_owned())));
    env.extend(spec.environment.clone());
    env.into_iter().map(|(name, value)| format!("{name}={value}")).collect()
}

/// The network, and beside it the question whether somebody else has the address.
pub async fn build_network(
    ctx: &Arc<Ctx>,
    container: &ContainerName,
    identity: &network::NetIdentity,
) -> Result<Attachment, LaunchError> {
    let (ctx, container, identity) = (Arc::clone(ctx), container.clone(), identity.clone());
    Ok(blocking(move || ctx.network.build(&container, &identity)).await?)
}

/// Starts asking; the answer is waited for just before the container is let onto the network.
pub fn probe_address(ctx: &Ctx, identity: &network::NetIdentity) -> tokio::task::JoinHandle<Result<(), LaunchError>> {
    let (bridge, timeout) = (ctx.config.network.bridge.clone(), ctx.config.network.probe_timeout);
    let (address, mac) = (identity.ip, identity.mac);
    tokio::task::spawn_blocking(move || match network::probe(address, &bridge, timeout, mac)? {
        Some(conflict) => Err(LaunchError::Conflict { address, conflict }),
        None => Ok(()),
    })
}

/// Starts the container from its image: its processes begin anew, with or without what its volumes hold here.
pub async fn cold_start(
    ctx: &Arc<Ctx>,
    place: &Place,
    app: &AppContent,
    identity: &network::NetIdentity,
    volumes: Volumes,
) -> Result<Live, LaunchError> {
    let container = &app.spec.name;
    {
        let (place, mounts) = (place.clone(), app.spec.mounts.clone());
        blocking(move || make_directories(&place, &mounts, volumes)).await?;
    }
    let asked = probe_address(ctx, identity);
    // Both are waited for when one fails: what is still being made would outlive the clearing away.
    let (layers, attachment) = tokio::join!(mount_root(ctx, place, app), build_network(ctx, container, identity));
    let (layers, attachment) = (layers?, attachment?);
    write_down(ctx, place, app, layers, &attachment, ctx.agent.dir()).await?;
    let link = AgentLink::open(&place.channel(), container.clone())?;
    let pid = {
        let (ctx, id, bundle) = (Arc::clone(ctx), ctx.runtime_id(container), place.bundle());
        blocking(move || ctx.runtime.start(&id, &bundle, ctx.config.checkpoint.timeout)).await?
    };
    flatten(asked.await)?;
    let status = super::live::first_answer(&link).await?;
    if let Some(end) = status.last_end.as_ref().filter(|end| !end.not_started.is_empty()) {
        return Err(LaunchError::NotExecuted(ending::sentence(end)));
    }
    attach(ctx, &attachment).await?;
    Live::begun(pid, link, status.incarnation).map_err(LaunchError::io("watch the container"))
}

fn make_directories(place: &Place, mounts: &[Mount], volumes: Volumes) -> Result<(), LaunchError> {
    place.recreate(volumes).map_err(LaunchError::io("make the container's directories"))?;
    for mount in mounts {
        if let MountSource::Volume { name } = &mount.source {
            std::fs::create_dir_all(place.volume(name)).map_err(LaunchError::io(format!("make volume {name}")))?;
        }
    }
    Ok(())
}

/// Onto the network: from here on the container is heard.
///
/// # Errors
/// This node may not run it any more: fetching and restoring may have taken longer than its lease.
pub async fn attach(ctx: &Arc<Ctx>, attachment: &Attachment) -> Result<(), LaunchError> {
    if !ctx.lease.may_run() {
        return Err(LaunchError::Fenced);
    }
    let (ctx, attachment) = (Arc::clone(ctx), attachment.clone());
    Ok(blocking(move || ctx.network.attach(&attachment)).await?)
}

pub fn flatten(joined: Result<Result<(), LaunchError>, tokio::task::JoinError>) -> Result<(), LaunchError> {
    joined.unwrap_or_else(|err| Err(LaunchError::io("ask for the address")(io::Error::other(err))))
}

/// Runs kernel work where it may block. A panic there is a panic here.
pub async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    match tokio::task::spawn_blocking(work).await.map_err(tokio::task::JoinError::try_into_panic) {
        Ok(value) => value,
        Err(Ok(panic)) => std::panic::resume_unwind(panic),
        // Cancelled: the runtime is shutting down, and nobody waits for this any more.
        Err(Err(_)) => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn snapshot(source: SnapshotError) -> LaunchError {
        LaunchError::Snapshot { snapshot: "e1-1".parse().unwrap(), source }
    }

    #[test]
    fn a_full_or_failing_node_is_told_from_a_bad_snapshot() {
        let io = |errno: Errno| io::Error::from_raw_os_error(errno as i32);
        let fetched = |source| snapshot(SnapshotError::Io { op: "write", path: "/x".into(), source });
        for errno in OF_THIS_NODE {
            assert!(fetched(io(errno)).is_of_this_node(), "{errno}");
            assert!(LaunchError::io("make room")(io(errno)).is_of_this_node(), "{errno}");
            assert!(fetched(io::Error::other(io(errno))).is_of_this_node(), "{errno}, wrapped");
        }
        for errno in [Errno::ENAMETOOLONG, Errno::EINVAL, Errno::EEXIST] {
            assert!(!fetched(io(errno)).is_of_this_node(), "{errno}");
        }
        assert!(snapshot(SnapshotError::Worker { op: "fetch" }).is_of_this_node());
        let damaged = SnapshotError::Damaged { object: "o".into(), what: "w".into() };
        assert!(!snapshot(damaged).is_of_this_node());
    }
}
