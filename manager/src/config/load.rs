//! From a file to a checked [`NodeConfig`].

use std::{
    fs::File,
    io::{self, Read},
    net::Ipv4Addr,
    path::{Path, PathBuf},
};

use super::{
    CheckpointConfig, Cidr, ConfigError, LogsConfig, NetworkConfig, NodeConfig, TlsConfig, fence, pace, quorum,
    read::Reader,
    values::{
        absolute, boolean, duration, host_port, ipv4, link_name, list_of_text, listen, parsed, pool, program, size,
        store_url, text, whole_number,
    },
};
use crate::spec::NodeName;

const MAX_BYTES: u64 = 1 << 20;
const INSTALLED_AGENT: &str = "/usr/local/lib/ha-manager/ha-agent";
/// `sun_path` of a unix socket, less its final NUL.
const MAX_SOCKET_PATH: usize = 107;

impl NodeConfig {
    /// Reads and checks the configuration in `path`.
    ///
    /// # Errors
    /// The file cannot be read, or something in it is wrong; then every problem is listed with its line.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let text = read_text(path)?;
        let beside = std::env::current_exe().ok().and_then(|exe| Some(exe.parent()?.join("ha-agent")));
        let agent = beside.filter(|path| path.is_file()).unwrap_or_else(|| INSTALLED_AGENT.into());
        Self::parse(&text, &path.display().to_string(), agent)
    }

    /// As [`load`](Self::load), from text. `file` is the name in messages, `agent` the default of the key `agent`.
    ///
    /// # Errors
    /// [`ConfigError::Invalid`] with every problem of the text.
    pub fn parse(text: &str, file: &str, agent: PathBuf) -> Result<Self, ConfigError> {
        let mut reader = Reader::new(text);
        let config = read(&mut reader, agent);
        let problems = reader.finish(file);
        match config {
            Some(config) if problems.is_empty() => Ok(config),
            _ => Err(ConfigError::Invalid(problems)),
        }
    }
}

impl ConfigError {
    /// A value of `path` that was well-formed and turned out wrong when it was used: a store that does not answer, a
    /// name that is taken. `section` is empty at the top of the file. The message names the key itself.
    pub fn refused(path: &Path, section: &str, key: &str, message: impl Into<String>) -> Self {
        // A file that cannot be read any more has no places left to name, and the message still stands.
        let text = read_text(path).unwrap_or_default();
        let mut reader = Reader::new(&text);
        let place = reader.place(section, key);
        reader.problem(place, format!("`{key}`: {}", message.into()));
        Self::Invalid(reader.finish(&path.display().to_string()))
    }
}

fn read_text(path: &Path) -> Result<String, ConfigError> {
    let read = |source| ConfigError::Read { path: path.to_owned(), source };
    let mut bytes = Vec::new();
    File::open(path).map_err(read)?.take(MAX_BYTES + 1).read_to_end(&mut bytes).map_err(read)?;
    if bytes.len() as u64 > MAX_BYTES {
        return Err(ConfigError::TooLarge { path: path.to_owned(), max: MAX_BYTES });
    }
    String::from_utf8(bytes).map_err(|error| read(io::Error::new(io::ErrorKind::InvalidData, error.utf8_error())))
}

/// `None` only when a required key is missing or wrong, which is then among the reader's problems.
fn read(r: &mut Reader<'_>, default_agent: PathBuf) -> Option<NodeConfig> {
    for (key, example) in [("node", "node = \"ha1\""), ("store", "store = \"file:///srv/ha-store\"")] {
        if !r.is_set("", key) {
            r.problem(0, format!("`{key}` is missing; add e.g. {example} at the top"));
        }
    }
    let node = r.take("", "node", parsed::<NodeName>);
    let store = r.take("", "store", store_url);
    // A cluster's name follows the rule of a node's.
    let cluster = r.take("", "cluster", |value| {
        parsed::<NodeName>(value).map(String::from).map_err(|error| error.replace("node name", "cluster name"))
    });
    let run_dir = r.take("", "run_dir", absolute).unwrap_or_else(|| "/run/ha-manager".into());
    let tls = tls(r);
    let network = network(r);
    let pace = pace::pace(r);
    let membership = pace::membership(r, pace);
    let lease = pace::lease(r, pace, &membership);
    let (quorum, voters) = quorum::read(r);
    let fence = fence::read(r);
    let checkpoint = checkpoint(r);
    let config = NodeConfig {
        cluster: cluster.unwrap_or_else(|| "default".into()),
        listen: r.take("", "listen", listen).unwrap_or_else(|| (Ipv4Addr::UNSPECIFIED, 7420).into()),
        advertise: r.take("", "advertise", |value| host_port(text(value)?)),
        peers: r
            .take("", "peers", |value| list_of_text(value)?.into_iter().map(host_port).collect())
            .unwrap_or_default(),
        state_dir: r.take("", "state_dir", absolute).unwrap_or_else(|| "/var/lib/ha-manager".into()),
        scratch: r.take("", "scratch", absolute).unwrap_or_else(|| run_dir.clone()),
        runtime: r.take("", "runtime", program).unwrap_or_else(|| "runc".into()),
        runtime_root: r.take("", "runtime_root", absolute).unwrap_or_else(|| run_dir.join("runc")),
        criu: r.take("", "criu", program).unwrap_or_else(|| "criu".into()),
        agent: r.take("", "agent", absolute).unwrap_or(default_agent),
        run_dir,
        pace,
        quorum,
        voters,
        watchdog_device: r.take("", "watchdog_device", absolute),
        tls,
        network,
        membership,
        lease,
        fence,
        checkpoint,
        logs: LogsConfig { max_bytes: r.take("logs", "max_bytes", size).unwrap_or(LogsConfig::default().max_bytes) },
        // Last, so that the other keys have been looked at when one of these is missing.
        node: node?,
        store: store?,
    };
    check_directories(r, &config);
    Some(config)
}

fn tls(r: &mut Reader<'_>) -> TlsConfig {
    if !r.has_section("tls") {
        r.problem(
            0,
            "`[tls]` is missing: nodes know each other by certificates. Make them with `ha-manager ca init` and `ha-manager \
             ca issue NODE`, put them into /etc/ha-manager/tls and add a line [tls] at the end of this file; or, on a network \
             that nobody but the nodes can reach, add [tls] and below it insecure = true",
        );
    }
    let default = TlsConfig::default();
    let config = TlsConfig {
        dir: r.take("tls", "dir", absolute).unwrap_or(default.dir),
        insecure: r.take("tls", "insecure", boolean).unwrap_or(default.insecure),
    };
    if config.insecure && r.is_set("tls", "dir") {
        let place = r.place("tls", "insecure");
        r.problem(place, "`insecure`: true, and yet `dir` names certificates; leave one of the two out");
    }
    config
}

fn network(r: &mut Reader<'_>) -> NetworkConfig {
    let default = NetworkConfig::default();
    let config = NetworkConfig {
        bridge: r.take("network", "bridge", link_name).unwrap_or(default.bridge),
        address: r.take("network", "address", parsed),
        pool: r.take("network", "pool", pool).unwrap_or(default.pool),
        gateway: r.take("network", "gateway", ipv4),
        uplink: r.take("network", "uplink", link_name),
        probe_timeout: r.take("network", "probe_timeout", duration).unwrap_or(default.probe_timeout),
    };
    let mut refuse = |key: &str, message: String| {
        let place = r.place("network", key);
        r.problem(place, message);
    };
    if let Some(address) = config.address {
        if !address.is_host(address.addr) {
            refuse("address", format!("`address`: {address} is not the address of a host in its network"));
        } else if !address.covers(config.pool) {
            let network = Cidr { addr: address.network(), ..address };
            refuse(
                "pool",
                format!("`pool`: {} is outside {network}, the network of `address`; choose a pool in it", config.pool),
            );
        }
    }
    if let Some(gateway) = config.gateway
        && !config.subnet().is_host(gateway)
    {
        let subnet = Cidr { addr: config.subnet().network(), ..config.subnet() };
        refuse(
            "gateway",
            format!("`gateway`: {gateway} is not a host address of {subnet}; containers could not reach it"),
        );
    }
    if config.uplink.as_ref() == Some(&config.bridge) {
        refuse("uplink", "`uplink`: is the bridge itself; name the link that leads to the other nodes".into());
    }
    config
}

fn checkpoint(r: &mut Reader<'_>) -> CheckpointConfig {
    let default = CheckpointConfig::default();
    let config = CheckpointConfig {
        min_interval: r.take("checkpoint", "min_interval", duration).unwrap_or(default.min_interval),
        timeout: r.take("checkpoint", "timeout", duration).unwrap_or(default.timeout),
        compression_level: r
            .take("checkpoint", "compression_level", |value| whole_number(value, 1..20))
            .map_or(default.compression_level, |level| level as i32),
        queue_max_bytes: r.take("checkpoint", "queue_max_bytes", size).unwrap_or(default.queue_max_bytes),
    };
    if config.timeout <= config.min_interval {
        let place = r.place("checkpoint", "timeout");
        r.problem(place, "`timeout`: is not above `min_interval`; every slow dump would be ended".to_owned());
    }
    config
}

fn check_directories(r: &mut Reader<'_>, config: &NodeConfig) {
    if config.state_dir.starts_with(&config.run_dir) {
        let place = r.place("", "state_dir");
        r.problem(place, "`state_dir`: lies in `run_dir`, which is emptied by a reboot; choose another directory");
    }
    // The layers of an overlay are separated by the one, the options of a mount by the other.
    if config.state_dir.to_string_lossy().contains([':', ',', '\\']) {
        let place = r.place("", "state_dir");
        r.problem(place, "`state_dir`: an overlay cannot be mounted in a directory with `:`, `,` or `\\` in its name");
    }
    if config.control_socket().as_os_str().len() > MAX_SOCKET_PATH {
        let place = r.place("", "run_dir");
        let message =
            format!("`run_dir`: too long for the path of a socket in it; at most {} characters", MAX_SOCKET_PATH - 13);
        r.problem(place, message);
    }
}
