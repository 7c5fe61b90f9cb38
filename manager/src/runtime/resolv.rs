//! The name servers a container is told.
//!
//! systemd-resolved and dnsmasq write `nameserver 127.0.0.53` and the like into the node's `/etc/resolv.conf`: a server on
//! the node's own loopback, which in the container's network namespace is nobody. Those lines are left out. Where none other
//! remains, systemd-resolved's list of the servers it asks itself takes the file's place.

use std::{fs::File, io::Read, net::IpAddr, path::Path};

const NODE: &str = "/etc/resolv.conf";
/// What systemd-resolved asks itself.
const UPSTREAM: &str = "/run/systemd/resolve/resolv.conf";
/// More than any resolver reads.
const CAP: u64 = 64 << 10;

/// A container's `/etc/resolv.conf`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Resolv {
    pub text: String,
    /// The servers in it.
    pub servers: Vec<IpAddr>,
    /// The file it comes from.
    pub from: &'static str,
    /// Servers of the node that no container reaches.
    pub left_out: Vec<IpAddr>,
}

/// From this node's files; one that cannot be read names nobody.
pub fn resolv_conf() -> Resolv {
    let read = |path: &str| {
        let mut bytes = Vec::new();
        let read = File::open(Path::new(path)).and_then(|file| file.take(CAP).read_to_end(&mut bytes));
        read.map(|_| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default()
    };
    choose(&read(NODE), || read(UPSTREAM))
}

fn choose(node: &str, upstream: impl FnOnce() -> String) -> Resolv {
    let own = without_loopback(node, NODE);
    if !own.servers.is_empty() || own.left_out.is_empty() {
        return own;
    }
    let other = without_loopback(&upstream(), UPSTREAM);
    if other.servers.is_empty() { own } else { Resolv { left_out: own.left_out, ..other } }
}

fn without_loopback(text: &str, from: &'static str) -> Resolv {
    let mut resolv = Resolv { text: String::new(), servers: Vec::new(), from, left_out: Vec::new() };
    for line in text.lines() {
        match server(line) {
            Some(ip) if ip.to_canonical().is_loopback() => {
                resolv.left_out.push(ip);
                continue;
            }
            Some(ip) => resolv.servers.push(ip),
            None => {}
        }
        resolv.text.push_str(line);
        resolv.text.push('\n');
    }
    resolv
}

fn server(line: &str) -> Option<IpAddr> {
    let mut words = line.split_ascii_whitespace();
    if words.next()? != "nameserver" {
        return None;
    }
    // A link-local address has its link behind a percent sign.
    words.next()?.split('%').next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const STUB: &str = "# a comment\nnameserver 127.0.0.53\noptions edns0\nsearch example.org\n";

    fn ips(list: &[&str]) -> Vec<IpAddr> {
        list.iter().map(|ip| ip.parse().unwrap()).collect()
    }

    #[test]
    fn a_stub_on_the_nodes_loopback_is_replaced_by_what_it_asks() {
        let found = choose(STUB, || "nameserver 192.0.2.1\nsearch example.org\n".into());
        assert_eq!((found.from, found.servers), (UPSTREAM, ips(&["192.0.2.1"])));
        assert_eq!(
            (found.text.as_str(), found.left_out),
            ("nameserver 192.0.2.1\nsearch example.org\n", ips(&["127.0.0.53"]))
        );
    }

    #[test]
    fn without_another_list_nobody_is_better_than_a_server_that_is_not_there() {
        let found = choose(STUB, String::new);
        assert_eq!((found.from, found.servers), (NODE, vec![]));
        assert_eq!(found.text, "# a comment\noptions edns0\nsearch example.org\n");
        assert_eq!(choose(STUB, || STUB.into()).left_out, ips(&["127.0.0.53"]));
    }

    #[test]
    fn servers_a_container_reaches_stay_and_the_other_file_is_not_asked_for() {
        let text = "nameserver ::1\nnameserver 192.0.2.7\nnameserver fe80::1%eth0\nnameserver ::ffff:127.0.0.1\n";
        let found = choose(text, || panic!("asked for"));
        assert_eq!(found.servers, ips(&["192.0.2.7", "fe80::1"]));
        assert_eq!(found.text, "nameserver 192.0.2.7\nnameserver fe80::1%eth0\n");
        let none = choose("search example.org\n", || panic!("asked for"));
        assert_eq!((none.servers, none.left_out), (vec![], vec![]));
    }
}
