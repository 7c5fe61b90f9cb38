//! What a session leaves behind: on the nodes once the containers are removed, on the machine once the nodes are off.

use std::{
    thread,
    time::{Duration, Instant},
};

use super::{containers, hands::ask};
use crate::{
    census::Census,
    cluster::{Cluster, Member},
};

/// For a removal, and for what it leaves to go.
const PATIENCE: Duration = Duration::from_secs(30);

/// What the nodes had before the first container.
#[derive(Debug)]
pub struct Before(Vec<Census>);

impl Before {
    /// # Errors
    /// When a node is off.
    pub fn of(cluster: &Cluster) -> anyhow::Result<Self> {
        Ok(Self(cluster.members.iter().map(|member| member.node.census()).collect::<anyhow::Result<_>>()?))
    }

    /// Removes the containers and returns what is left of them, a line each, when it does not go.
    pub fn after_removal(&self, cluster: &Cluster) -> Vec<String> {
        let mut left: Vec<String> =
            containers::ALL.iter().filter_map(|container| remove(cluster, container.name)).collect();
        let start = Instant::now();
        loop {
            let remains = self.remains(cluster);
            if remains.is_empty() || start.elapsed() > PATIENCE {
                left.extend(remains);
                return left;
            }
            thread::sleep(Duration::from_millis(100));
        }
    }

    fn remains(&self, cluster: &Cluster) -> Vec<String> {
        let all = cluster.members.iter().zip(&self.0);
        all.flat_map(|(member, before)| of_node(member, before)).collect()
    }
}

/// Why the container could not be removed, if it could not.
fn remove(cluster: &Cluster, name: &str) -> Option<String> {
    let start = Instant::now();
    loop {
        let tried: Vec<String> = cluster
            .members
            .iter()
            .map_while(|member| ask(member, &["rm", name]).err().map(|err| format!("{}: {err:#}", member.node.name())))
            .collect();
        if tried.len() < cluster.members.len() {
            return None;
        }
        if start.elapsed() > PATIENCE {
            return Some(format!("{name} cannot be removed: {}", tried.join("; ")));
        }
        thread::sleep(Duration::from_millis(500));
    }
}

fn of_node(member: &Member, before: &Census) -> Vec<String> {
    let name = member.node.name();
    let now = match member.node.census() {
        Ok(now) => now,
        Err(err) => return vec![format!("{name}: {err:#}")],
    };
    let mut left: Vec<String> = before.left_behind(&now).into_iter().filter(|line| is_of_a_container(line)).collect();
    for container in containers::ALL {
        let files = member.node.disk().join("state/containers").join(container.name);
        left.extend(files.exists().then(|| format!("directory {}", files.display())));
        // A node's /run is seen through its first process.
        let images = member.node.pid().map(|pid| format!("/proc/{pid}/root/run/ha-manager/images/{}", container.name));
        left.extend(images.ok().filter(|dir| std::path::Path::new(dir).exists()));
    }
    left.into_iter().map(|line| format!("{name}: {line}")).collect()
}

fn is_of_a_container(line: &str) -> bool {
    let Some((kind, rest)) = line.split_once(' ') else { return false };
    match kind {
        // The directory that network namespaces are bound in becomes a mount of its own with the first of them.
        "mount" => !rest.starts_with("/run/netns ("),
        "link" | "netns" | "nft" | "iptables" => true,
        "cgroup" => containers::ALL.iter().any(|container| rest.ends_with(&format!("/{}", container.name))),
        "process" => ["/bin/counter", "ha-agent", "runc ", "criu "].iter().any(|program| rest.contains(program)),
        _ => false,
    }
}

/// What a laboratory that is gone has left on the machine.
pub fn on_the_machine(lab: &str) -> Vec<String> {
    let start = Instant::now();
    loop {
        let left: Vec<String> = Census::here().only(lab).lines().map(str::to_owned).collect();
        if left.is_empty() || start.elapsed() > Duration::from_secs(10) {
            return left;
        }
        thread::sleep(Duration::from_millis(50));
    }
}
