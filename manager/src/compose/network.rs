//! `networks` of a service and of the file. There is one network, the bridge of the node's configuration: a file may
//! name it, and say which addresses its containers have there.

use std::net::Ipv4Addr;

use super::{
    cursor::Cursor,
    keys,
    report::{Pos, Report, quoted},
};
use crate::spec::{Mac, NetworkSpec};

/// A service's use of a network.
pub(super) struct Attachment {
    pub(super) network: String,
    pub(super) at: Pos,
    pub(super) path: String,
    ipv4: Option<Ipv4Addr>,
    mac: Option<Mac>,
}

/// `networks` of a service: a list of names, or a mapping from names to addresses.
pub(super) fn attachments(field: &Cursor<'_>, report: &mut Report) -> Vec<Attachment> {
    let mut found = Vec::new();
    if field.is_list() {
        for item in field.items(report) {
            if let Some(network) = item.word(report) {
                found.push(Attachment { network, at: item.at(), path: item.path.clone(), ipv4: None, mac: None });
            }
        }
    } else {
        for entry in field.entries(report) {
            found.push(attachment(&entry, report));
        }
    }
    if let Some(second) = found.get(1) {
        report.error(second.at, &second.path, "is a second network; a container is on one, the bridge of node.toml");
    }
    found
}

fn attachment(entry: &Cursor<'_>, report: &mut Report) -> Attachment {
    let (mut ipv4, mut mac) = (None, None);
    for field in entry.optional_fields(report) {
        match field.name() {
            "ipv4_address" => ipv4 = address(&field, report),
            "mac_address" => mac = field.parsed::<Mac>(report),
            key => match keys::instead_in_attachment(key) {
                Some(instead) => field.unsupported(report, instead),
                None => field.unknown(report, &["ipv4_address", "mac_address"]),
            },
        }
    }
    Attachment { network: entry.name().to_owned(), at: entry.key_at(), path: entry.path.clone(), ipv4, mac }
}

fn address(field: &Cursor<'_>, report: &mut Report) -> Option<Ipv4Addr> {
    let text = field.word(report)?;
    match text.parse::<Ipv4Addr>() {
        Ok(addr) if is_unicast(addr) => Some(addr),
        Ok(addr) => {
            field.error(report, format!("{addr} is not the address of a host"));
            None
        }
        Err(_) => {
            field.error(report, format!("{} is not an IPv4 address, e.g. 10.77.1.10", quoted(&text)));
            None
        }
    }
}

/// Whether a container may have `addr` anywhere; whether it is in the node's network is checked there.
fn is_unicast(addr: Ipv4Addr) -> bool {
    !addr.is_loopback() && !addr.is_link_local() && (1..224).contains(&addr.octets()[0])
}

/// What a service has in the end, from its network and its own `mac_address`.
pub(super) fn combine(attachments: &[Attachment], own: Option<(Mac, &Cursor<'_>)>, report: &mut Report) -> NetworkSpec {
    let first = attachments.first();
    let mac = first.and_then(|attachment| attachment.mac);
    if let (Some((own, field)), Some(mac)) = (own, mac)
        && own != mac
    {
        field.error(report, format!("is {own}, but {mac} in `networks`; leave one of them out"));
    }
    NetworkSpec { ipv4: first.and_then(|attachment| attachment.ipv4), mac: mac.or(own.map(|(mac, _)| mac)) }
}

/// `networks` of the file: the names that services may use.
pub(super) fn declared(field: &Cursor<'_>, report: &mut Report) -> Vec<String> {
    let mut names = Vec::new();
    for entry in field.entries(report) {
        names.push(entry.name().to_owned());
        for option in entry.optional_fields(report) {
            match option.name() {
                "driver" => {
                    if option.word(report).is_some_and(|driver| driver != "bridge") {
                        option.unsupported(report, "the only driver is `bridge`");
                    }
                }
                "ipam" => option.unsupported(report, "the address pool is `network.pool` in node.toml"),
                "name" | "external" | "internal" | "attachable" | "labels" | "enable_ipv4" | "enable_ipv6"
                | "driver_opts" => {
                    option.unsupported(report, "the network is the bridge of node.toml");
                }
                _ => option.unknown(report, &["driver"]),
            }
        }
    }
    names
}
