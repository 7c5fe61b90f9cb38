//! Nothing of a container may stay on any node once it is removed, whatever happened to it before.

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use ha_lab::{census::Census, cluster::Cluster};

/// What the nodes had before the container.
pub struct Before(Vec<Census>);

impl Before {
    /// To be taken with the managers running and no container there yet.
    pub fn of(cluster: &Cluster) -> Self {
        Self(cluster.members.iter().map(|member| member.node.census().unwrap()).collect())
    }

    /// Removes the container and waits until nothing is left of it on any node that is on.
    pub fn check_after_removal(&self, cluster: &Cluster) {
        let member = cluster.members.iter().find(|member| member.node.is_on()).expect("every node is off");
        member.cli(&["rm", "counter"]).unwrap();
        let mut left = Vec::new();
        let waited = cluster.wait("nothing to be left of the container", Duration::from_secs(30), |cluster| {
            left = self.left(cluster);
            left.is_empty()
        });
        assert!(waited.is_ok(), "left behind: {left:#?}\n{:#}", waited.unwrap_err());
    }

    fn left(&self, cluster: &Cluster) -> Vec<String> {
        let mut left = Vec::new();
        for (member, before) in cluster.members.iter().zip(&self.0).filter(|(member, _)| member.node.is_on()) {
            let name = member.node.name();
            let now = member.node.census().unwrap();
            let ours = before.left_behind(&now).into_iter().filter(|line| is_of_a_container(line));
            left.extend(ours.map(|line| format!("{name}: {line}")));
            let root = run_of(cluster, name);
            for dir in [member.node.disk().join("state/containers/counter"), root.join("images/counter")] {
                left.extend(dir.exists().then(|| format!("{name}: {}: {:?}", dir.display(), files(&dir))));
            }
        }
        left
    }
}

/// A node's /run/ha-manager as it is seen from here.
pub fn run_of(cluster: &Cluster, node: &str) -> PathBuf {
    let member = cluster.members.iter().find(|member| member.node.name() == node).expect("no such node");
    PathBuf::from(format!("/proc/{}/root/run/ha-manager", member.node.pid().unwrap()))
}

/// The names in a directory; none when it is not there.
pub fn files(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    let mut names: Vec<String> = entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

fn is_of_a_container(line: &str) -> bool {
    let Some((kind, rest)) = line.split_once(' ') else { return false };
    // The directory that network namespaces are bound in becomes a mount of its own with the first of them.
    if rest.starts_with("/run/netns (") {
        return false;
    }
    match kind {
        "link" | "netns" | "nft" | "iptables" | "mount" => true,
        "cgroup" => rest.contains("counter"),
        "process" => ["/bin/counter", "ha-agent", "runc ", "criu "].iter().any(|program| rest.contains(program)),
        _ => false,
    }
}
