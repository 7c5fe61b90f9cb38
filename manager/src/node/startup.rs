//! Starting and stopping. Whatever would make the node unfit is found before anything is touched, and named.

use std::{
    fs,
    net::{SocketAddr, UdpSocket},
    os::unix::fs::PermissionsExt,
    path::Path,
    sync::{Arc, Mutex, atomic::AtomicU64},
};

use anyhow::{Context, bail};
use chrono::Utc;
use serde_json::json;
use tokio::signal::unix::{SignalKind, signal};

use super::{
    AgentBinary, Ctx, EventLog, Node,
    fencing::Fencing,
    heard::Heard,
    joined,
    keeper::{self, Keeper},
    life::{Lives, terms},
    lock::StateLock,
    retiring,
    settings::differences,
    stopping::Stopping,
    taking::Taking,
    trust,
    uplink::Uplink,
    watch,
};
use crate::{
    api,
    checkpoint::{Dumper, Swrk},
    config::NodeConfig,
    fence::{self, Guard},
    membership::{self, Acquaintances, Boot, Contacts, Me, Membership, OnKnown},
    network::{Network, NetworkConfig},
    recovery::{Command, Phase},
    runtime::Runc,
    snapshot::Versions,
    spec::ContainerName,
    store::{Newest, NodeRecord, Store, StoreError, addresses, beats::Heart, parked},
};

/// A start or restore that an earlier manager began may go on for so long.
const ORPHAN_PATIENCE: std::time::Duration = std::time::Duration::from_secs(15);

/// Runs the manager of this node until it is told to stop. Containers go on running afterwards.
pub async fn run(config: NodeConfig) -> anyhow::Result<()> {
    if !nix::unistd::geteuid().is_root() {
        bail!("the manager has to run as root: it builds network namespaces and dumps processes");
    }
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut hangup = signal(SignalKind::hangup())?;
    let security = trust::security(&config)?;
    trust::say_trouble(&security);
    for dir in [&config.state_dir, &config.run_dir, &config.scratch] {
        fs::create_dir_all(dir).with_context(|| format!("cannot make the directory {}", dir.display()))?;
    }
    fs::set_permissions(&config.state_dir, fs::Permissions::from_mode(0o700))?;
    let _lock = StateLock::acquire(&config.state_dir)?;
    let mut acquaintances = Acquaintances::open(config.state_dir.join("peers.json"), gossip(&config).max_contacts())?;
    // Before the store: the bridge takes over the uplink's address, or has the only one there is after a boot, and the
    // store may be reached by it; so may this node's own listening address.
    let network = Network::new(network_config(&config))?;
    let bridge = network.ensure_bridge()?;
    let listeners = api::bind(&config).await?;
    let store = open_store(&config).await?;
    let agent = AgentBinary::install(&config.agent, &config.state_dir)?;
    agent.publish(&store).await.context("cannot put the agent into the store")?;
    let versions = versions(&config)?;

    let boot = Boot::random();
    let advertise = advertise(&config)?;
    let machine = machine_nonce(&config.state_dir)?;
    if let Err(refused) = claim_name(&store, &config, &boot, &advertise, &machine).await {
        // It may be another's. A store that has not answered has refused nothing, and is perhaps reached by it.
        let away = refused.downcast_ref::<StoreError>().is_some_and(StoreError::is_retryable);
        if let Some(error) = (!away).then(|| network.take_back(bridge).err()).flatten() {
            tracing::warn!(error = crate::chain(&error), "the bridge keeps an address that it was given just now");
        }
        return Err(refused);
    }
    retiring::come_back(&store, &config.node, &machine, &mut acquaintances).await?;
    let others = store.node_records().await?.into_iter().map(|record| record.node).filter(|node| *node != config.node);
    acquaintances.begin_with(others)?;
    let events = Arc::new(EventLog::open(&config.state_dir, config.node.clone()).context("cannot open the event log")?);
    let runtime = Runc::new(&config.runtime, &config.runtime_root, &config.criu);
    runtime.settle_orphans(ORPHAN_PATIENCE);
    let dumper = Dumper::new(&config.criu);
    // Now, and not in the middle of a failover.
    if let Err(error) = dumper.cpuinfo(config.checkpoint.timeout) {
        tracing::warn!(error = crate::chain(&error), "this node's CPU cannot be described: it can take no checkpoints");
    }
    // From here on peers are answered for: nothing below may take long.
    let lease = Arc::new(lease(&config, &store, acquaintances.contacts()).await?);
    let keeper = Arc::clone(&lease);
    let on_known: OnKnown = Arc::new(move |node, now| keeper.know(node, now));
    let me = Me { name: config.node.clone(), address: advertise.clone(), boot };
    let (seeds, tls) = (config.peers.clone(), security.clone());
    let membership = Membership::start(gossip(&config), me, seeds, tls, acquaintances, on_known)?;
    let detail = json!({"version": env!("CARGO_PKG_VERSION"), "address": advertise, "criu": versions.criu});
    events.emit(None, "node.started", "the manager is running", detail);
    let ctx = Arc::new(Ctx {
        config,
        store,
        owners: Newest::default(),
        apps: Newest::default(),
        network,
        runtime,
        dumper,
        agent,
        events,
        membership,
        lease,
        security,
        versions,
        mounting: Default::default(),
    });
    let uplink = Uplink::new(ctx.config.network.uplink.as_deref());
    let (actors, problems, holds) = (Mutex::default(), Mutex::default(), Mutex::default());
    let (heard, stopping, looks) = (Heard::default(), Stopping::default(), AtomicU64::new(0));
    let lives = Lives::new(machine);
    let heart = tokio::sync::Mutex::new(Heart::new(ctx.store.clone(), ctx.config.node.clone()));
    let (taking, fencing) = (Taking::default(), Fencing::default());
    let node =
        Arc::new(Node { ctx, actors, problems, looks, uplink, heard, lives, heart, taking, fencing, holds, stopping });
    let keeping = tokio::spawn(keeper::keep(Arc::clone(&node)));

    // Before peers and operators are answered: what they want of a container must not meet its leftovers being judged.
    node.adopt().await;
    let servers = api::serve(Arc::clone(&node), listeners);
    let watching = watch::start(Arc::clone(&node));

    loop {
        tokio::select! {
            _ = terminate.recv() => break,
            _ = interrupt.recv() => break,
            _ = hangup.recv() => trust::renew(&node.ctx.security, &node.ctx.config),
            failure = servers.failed() => return failure.context("the manager's services ended"),
        }
    }
    tracing::info!("stopping; containers go on running");
    node.begin_to_stop().await;
    watching.stop();
    let down = node.let_go().await;
    let parked = node.park().await;
    keeping.abort();
    if down.is_empty() && parked {
        // Peers hold this node for left. Its containers run on, so nobody takes them for lost on that account.
        node.ctx.membership.leave().await;
    } else {
        // Peers will hold this node for dead, and take over what does not answer at its address.
        tracing::warn!(?down, "not up, and no peer has taken them over: peers are not told that this node has left");
    }
    let told = match (node.has_copies(), parked) {
        (true, true) => "the manager has stopped; its containers go on",
        (true, false) => "the manager has stopped; its containers go on until its lease ends",
        (false, _) => "the manager has stopped",
    };
    node.ctx.events.emit(None, "node.stopped", told, json!({"down": down}));
    servers.stop().await;
    Ok(())
}

async fn lease(config: &NodeConfig, store: &Store, contacts: &Contacts) -> anyhow::Result<Keeper> {
    let setting = fence::Setting { device: config.watchdog_device.clone(), ..fence::Setting::new(&config.run_dir) };
    let guard = Guard::start(setting).await.context("the watchdog of this node cannot be had")?;
    let marks = parked::marks(store, &config.node).await;
    let marks = marks.context("cannot read from the store whether this node is parked")?;
    Ok(Keeper::new(terms(config), contacts.known.clone(), guard, marks))
}

async fn open_store(config: &NodeConfig) -> anyhow::Result<Store> {
    let url = config.store.as_str();
    let store = Store::open(url).await.with_context(|| format!("cannot open the store {url}"))?;
    let info = joined::join(&store, config).await?;
    if info.created {
        tracing::info!(cluster = %config.cluster, "the store was empty: it is now this cluster's");
    }
    store.probe_create_only().await?;
    Ok(store)
}

fn gossip(config: &NodeConfig) -> membership::Config {
    let times = &config.membership;
    let default = membership::Config::new(config.cluster.clone());
    membership::Config {
        probe_interval: times.probe_interval,
        probe_timeout: times.probe_timeout,
        suspicion: times.suspicion,
        indirect_probes: times.indirect_probes as usize,
        // The dead are not to be probed more often than the living.
        revive_interval: default.revive_interval.max(times.probe_interval),
        ..default
    }
}

fn network_config(config: &NodeConfig) -> NetworkConfig {
    let network = &config.network;
    NetworkConfig {
        bridge: network.bridge.clone(),
        address: network.address.map(|cidr| (cidr.addr, cidr.prefix)),
        gateway: network.default_gateway(),
        prefix_len: network.subnet().prefix,
        uplink: network.uplink.clone(),
    }
}

fn versions(config: &NodeConfig) -> anyhow::Result<Versions> {
    let criu = Swrk::version(Path::new(&config.criu), std::time::Duration::from_secs(5))
        .with_context(|| format!("{} does not answer; `ha-manager doctor` says what is missing", config.criu))?;
    let runtime = std::process::Command::new(&config.runtime)
        .arg("--version")
        .output()
        .with_context(|| format!("{} cannot be run; `ha-manager doctor` says what is missing", config.runtime))?;
    let runtime = String::from_utf8_lossy(&runtime.stdout).lines().next().unwrap_or_default().to_owned();
    let kernel = nix::sys::utsname::uname()?.release().to_string_lossy().into_owned();
    Ok(Versions { runtime, criu: criu.to_string(), kernel })
}

/// What peers are told to connect to: the configured address, else the one this host uses towards its first peer.
fn advertise(config: &NodeConfig) -> anyhow::Result<String> {
    if let Some(advertise) = &config.advertise {
        return Ok(advertise.clone());
    }
    if !config.listen.ip().is_unspecified() {
        return Ok(config.listen.to_string());
    }
    let towards = config.peers.first().map_or("192.0.2.1:9", String::as_str);
    let local = UdpSocket::bind("0.0.0.0:0").and_then(|socket| {
        // Connecting a datagram socket sends nothing; it makes the kernel choose the route.
        socket.connect(towards)?;
        socket.local_addr()
    });
    let ip = match local {
        Ok(address) => address.ip(),
        Err(_) if config.peers.is_empty() => std::net::Ipv4Addr::LOCALHOST.into(),
        Err(err) => {
            return Err(err).with_context(|| {
                format!("cannot find this host's address towards peer {towards}; set `advertise` in the configuration")
            });
        }
    };
    Ok(SocketAddr::new(ip, config.listen.port()).to_string())
}

/// One running node per name.
async fn claim_name(
    store: &Store,
    config: &NodeConfig,
    boot: &Boot,
    address: &str,
    machine: &str,
) -> anyhow::Result<()> {
    let others = store.node_records().await?;
    for difference in differences(config, &others) {
        tracing::warn!("settings that have to be the same on every node are not: {difference}");
    }
    let terms = terms(config);
    let before = others.iter().find(|record| record.node == config.node).and_then(|record| record.own_lease_ms);
    let wanted = NodeRecord {
        node: config.node.clone(),
        nonce: machine.to_owned(),
        address: address.to_owned(),
        bridge: config.network.address.map(|cidr| cidr.addr),
        own_lease_ms: Some(terms.in_ms()),
        lease_ms: Some(before.map_or(terms, |before| terms.at_least(before)).in_ms()),
        at: Utc::now(),
    };
    // Before it is registered: a record of this would keep the other node out.
    let same = |other: &&NodeRecord| other.node != wanted.node && other.bridge == wanted.bridge;
    if let Some(other) = others.iter().filter(|_| wanted.bridge.is_some()).find(same) {
        bail!(
            "`[network] address` is also that of node {0} (at {1}): each node needs its own; or, if {0} is gone for good, \
             `ha-manager retire {0}` on another node",
            other.node,
            other.address
        );
    }
    let there = store.claim_node_name(&wanted).await?;
    // After it is registered: from here on no container gets it.
    if let Some(bridge) = wanted.bridge
        && let Some(container) = addresses::owner(store, bridge).await?
    {
        bail!(
            "the address {bridge} of this node's bridge {name} belongs to container {container}: give the node another \
             `[network] address` (and `ip address del {bridge}/{prefix} dev {name}`), or remove the container first",
            name = config.network.bridge,
            prefix = config.network.subnet().prefix,
        );
    }
    if there.nonce != wanted.nonce {
        bail!(
            "the node name {} is taken by the node at {} (since {}): give this node another `node` name, or, if that node is \
             gone for good, `ha-manager retire {}` on another node",
            config.node,
            there.address,
            there.at,
            config.node
        );
    }
    tracing::debug!(boot = ?boot, "node name confirmed");
    Ok(())
}

/// Tells this machine's state directory from another's that was given the same name; kept for good.
fn machine_nonce(state_dir: &Path) -> anyhow::Result<String> {
    let path = state_dir.join("node-id");
    match fs::read_to_string(&path) {
        Ok(text) if !text.trim().is_empty() => Ok(text.trim().to_owned()),
        Ok(_) | Err(_) => {
            let nonce = crate::store::record::nonce();
            fs::write(&path, &nonce).with_context(|| format!("cannot write {}", path.display()))?;
            Ok(nonce)
        }
    }
}

impl Node {
    /// Lets go of all containers and leaves them running. Returns those that are down and that no peer has taken over.
    async fn let_go(&self) -> Vec<ContainerName> {
        const PATIENCE: std::time::Duration = std::time::Duration::from_secs(20);
        let handles: Vec<_> = self.actors().drain().collect();
        // All at once: one that is busy must not cost the others their time.
        let ends = handles.into_iter().map(|(name, mut handle)| async move {
            let end = async {
                // An actor that has ended has let go already.
                let _ = handle.inbox.send(Command::Shutdown).await;
                (&mut handle.task).await
            };
            let down = tokio::time::timeout(PATIENCE, end).await.unwrap_or_else(|_| {
                tracing::warn!(container = %name, "its work did not end in {PATIENCE:?} and is given up");
                let phase = handle.view.get().phase;
                Ok(!matches!(phase, Phase::Running | Phase::Checkpointing | Phase::Stopped | Phase::Failed))
            });
            // Its task was lost: so is what it did.
            down.unwrap_or(true).then_some(name)
        });
        futures_util::future::join_all(ends).await.into_iter().flatten().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_documented_detection_times_are_the_bounds() {
        let documentation = include_str!("../../../docs/configuration.md");
        for pace in ["fast", "lan", "wan"] {
            let text = format!("node = \"a\"\nstore = \"file:///s\"\npace = \"{pace}\"\n[tls]\n");
            let config = NodeConfig::parse(&text, "node.toml", "/opt/ha-agent".into()).unwrap();
            gossip(&config).check().unwrap();
            let [two, three] = [2, 3].map(|nodes| humantime::format_duration(gossip(&config).detection_bound(nodes)));
            let row = documentation.lines().find(|line| line.starts_with(&format!("| `\"{pace}\"` |"))).unwrap();
            assert!(row.ends_with(&format!(" | {two} | {three} |")), "{row}: {two}, {three}");
        }
    }

    #[test]
    fn every_pace_that_the_configuration_allows_is_taken() {
        let ms = std::time::Duration::from_millis;
        for (probe_interval, probe_timeout, suspicion) in
            [(ms(20), ms(10), ms(21)), (ms(1001), ms(750), ms(3000)), (ms(60_000), ms(59_999), ms(600_000))]
        {
            let text = format!(
                "node = \"a\"\nstore = \"file:///s\"\n[membership]\nprobe_interval = \"{}ms\"\nprobe_timeout = \"{}ms\"\n\
                 suspicion = \"{}ms\"\n[tls]\n",
                probe_interval.as_millis(),
                probe_timeout.as_millis(),
                suspicion.as_millis()
            );
            let config = NodeConfig::parse(&text, "node.toml", "/opt/ha-agent".into()).unwrap();
            gossip(&config).check().unwrap();
        }
    }
}
