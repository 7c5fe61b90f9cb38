//! The keys Compose has: those we do, and for the others what to do instead.

pub(super) const TOP: [&str; 5] = ["name", "services", "volumes", "networks", "version"];

pub(super) const SERVICE: [&str; 17] = [
    "annotations",
    "command",
    "container_name",
    "depends_on",
    "entrypoint",
    "environment",
    "healthcheck",
    "hostname",
    "image",
    "mac_address",
    "networks",
    "restart",
    "tmpfs",
    "ulimits",
    "user",
    "volumes",
    "working_dir",
];

const ALWAYS_SO: &str = "it is so already";
const NOT_DUMPED: &str = "CRIU cannot checkpoint it";
const NO_CAPS: &str = "every container has the runtime's default set of capabilities";
const NO_LIMITS: &str = "cgroup limits are not set; `ulimits` are";
const ADDRESS: &str = "each container has an address of its own (`networks.*.ipv4_address`), at which clients reach it";
const SHARED: &str = "containers share no namespace, so that each can move alone";
const NO_DNS: &str = "there is no name service; give the other service an `ipv4_address` and use that";
const SECRETS: &str = "mount a host directory (`volumes`) that is on every node";

/// What to use instead of a key of a service that Compose has and we do not.
pub(super) fn instead_in_service(key: &str) -> Option<&'static str> {
    Some(match key {
        "build" | "pull_policy" | "platform" => {
            "build or fetch the image before; `image` takes a directory, an OCI layout or archive, or a registry reference"
        }
        "ports" | "expose" => ADDRESS,
        "deploy" | "scale" | "provider" => {
            "one service is one container; recovery is set by `io.ha-manager.*` annotations"
        }
        "env_file" => "write the variables into `environment`; a name without a value takes that of your shell",
        "labels" | "label_file" => "use `annotations`",
        "links" | "external_links" | "extra_hosts" | "dns" | "dns_search" | "dns_opt" => NO_DNS,
        "network_mode" => "every container is on the bridge of node.toml",
        "pid" | "ipc" | "uts" | "userns_mode" | "cgroup" | "cgroup_parent" => SHARED,
        "volumes_from" => "a volume belongs to one container, so that it can move with it",
        "tty" | "stdin_open" | "attach" => "a container has no terminal, which could not be restored on another node",
        "devices" | "gpus" | "device_cgroup_rules" => NOT_DUMPED,
        "privileged" | "cap_add" | "cap_drop" | "security_opt" | "group_add" | "credential_spec" | "isolation" => {
            NO_CAPS
        }
        "secrets" | "configs" => SECRETS,
        "init" => ALWAYS_SO,
        "logging" => "output is kept by the node; see [logs] in node.toml",
        "shm_size" => "mount a tmpfs: `tmpfs: [\"/dev/shm:size=64m\"]`",
        "stop_signal" | "stop_grace_period" => {
            "a container is sent its image's stop signal (else SIGTERM) and, after 10 s, killed"
        }
        "extends" | "profiles" | "develop" => "write the service out; YAML anchors and merges work",
        "mem_limit" | "mem_reservation" | "memswap_limit" | "mem_swappiness" | "cpus" | "cpu_count" | "cpu_percent"
        | "cpu_shares" | "cpu_period" | "cpu_quota" | "cpu_rt_runtime" | "cpu_rt_period" | "cpuset" | "pids_limit"
        | "blkio_config" | "oom_kill_disable" | "oom_score_adj" | "storage_opt" => NO_LIMITS,
        "sysctls" | "domainname" | "read_only" | "runtime" | "models" | "use_api_socket" | "post_start"
        | "pre_stop" => "there is nothing to use instead",
        _ => return None,
    })
}

/// The same for the top of the file.
pub(super) fn instead_at_top(key: &str) -> Option<&'static str> {
    Some(match key {
        "secrets" | "configs" => SECRETS,
        "include" => "write the services into one file",
        "models" => "there is nothing to use instead",
        _ => return None,
    })
}

/// The same for a network's entry in a service.
pub(super) fn instead_in_attachment(key: &str) -> Option<&'static str> {
    Some(match key {
        "aliases" => NO_DNS,
        "ipv6_address" | "link_local_ips" => "addresses are IPv4, one per container",
        "interface_name" => "the interface is called eth0",
        "driver_opts" | "gw_priority" | "priority" => "a container is on one network",
        _ => return None,
    })
}
