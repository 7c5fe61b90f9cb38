//! Between the core's messages and `ha.peer.v1`. What comes in is checked here, before the core sees it.

use std::time::Duration;

use ha_proto::peer as pb;
use tonic::Code;

use super::message::{Boot, Gossip, Liveness, MAX_ADDRESS, MAX_INCARNATION, MAX_RUMOURS, Request, Rumour};
use crate::spec::{NameError, NodeName};

/// Why a message of a peer was refused.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum WireError {
    #[error("the message was refused unread: {}", unread(*code))]
    Unread { code: Code },
    #[error("the message has no envelope: is the caller a manager of this release?")]
    NoEnvelope,
    #[error(
        "this node is of cluster {ours:?}, the caller of {theirs:?}: correct `cluster` or `peers` in one of the configurations"
    )]
    Cluster { ours: String, theirs: String },
    #[error("the message is in the name of {claimed}, the certificate of the connection is {certified}'s")]
    Impostor { claimed: NodeName, certified: NodeName },
    #[error("{field}: {source}")]
    Name { field: &'static str, source: NameError },
    #[error("{field} is {len} bytes long, a boot nonce has 16")]
    Boot { field: &'static str, len: usize },
    #[error("{field} {value:?} is not host:port")]
    Address { field: &'static str, value: String },
    #[error("incarnation {value} is beyond {MAX_INCARNATION}")]
    Incarnation { value: u64 },
    #[error("{count} rumours in one message, at most {MAX_RUMOURS} are allowed")]
    Rumours { count: usize },
}

impl WireError {
    /// The word under which it is said once only.
    pub(super) fn kind(&self) -> &'static str {
        match self {
            Self::Unread { code } => unread(*code),
            Self::NoEnvelope => "envelope",
            Self::Cluster { .. } => "cluster",
            Self::Impostor { .. } => "impostor",
            Self::Name { field, .. } | Self::Boot { field, .. } | Self::Address { field, .. } => field,
            Self::Incarnation { .. } => "incarnation",
            Self::Rumours { .. } => "rumours",
        }
    }
}

fn unread(code: Code) -> &'static str {
    match code {
        Code::OutOfRange => "it is larger than any that a manager sends",
        Code::Unimplemented => "it is for a service or a method that there is not here",
        _ => "it cannot be decoded",
    }
}

/// Checks `host:port`: an IPv4 address or a host name, or an IPv6 address in brackets, and a port other than 0.
pub fn check_address(field: &'static str, value: &str) -> Result<(), WireError> {
    let ok = value.len() <= MAX_ADDRESS
        && value.rsplit_once(':').is_some_and(|(host, port)| {
            let port_ok = port.bytes().all(|b| b.is_ascii_digit()) && port.parse::<u16>().is_ok_and(|p| p != 0);
            let host_ok = match host.strip_prefix('[').and_then(|h| h.strip_suffix(']')) {
                Some(v6) => v6.parse::<std::net::Ipv6Addr>().is_ok(),
                None => {
                    let name = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_');
                    !host.is_empty() && host.bytes().all(name)
                }
            };
            port_ok && host_ok
        });
    if ok { Ok(()) } else { Err(WireError::Address { field, value: value.chars().take(80).collect() }) }
}

pub(crate) fn envelope(cluster: &str, gossip: Gossip) -> pb::Envelope {
    pb::Envelope {
        cluster: cluster.to_owned(),
        from: gossip.from.into(),
        to: gossip.to.map(String::from).unwrap_or_default(),
        incarnation: gossip.incarnation,
        rumours: gossip.rumours.into_iter().map(rumour).collect(),
        boot: gossip.boot.0.to_vec(),
        address: gossip.address,
    }
}

fn rumour(rumour: Rumour) -> pb::Rumour {
    let liveness = match rumour.liveness {
        Liveness::Alive => pb::Liveness::Alive,
        Liveness::Suspect => pb::Liveness::Suspect,
        Liveness::Dead => pb::Liveness::Dead,
        Liveness::Left => pb::Liveness::Left,
    };
    pb::Rumour {
        node: rumour.node.into(),
        address: rumour.address,
        incarnation: rumour.incarnation,
        liveness: liveness.into(),
        accuser: rumour.accuser.map(String::from).unwrap_or_default(),
        boot: rumour.boot.0.to_vec(),
    }
}

/// Reads an envelope of our cluster. `certified`: whose certificate the connection has, where certificates are asked for.
pub(crate) fn gossip(
    cluster: &str,
    certified: Option<&NodeName>,
    envelope: Option<pb::Envelope>,
) -> Result<Gossip, WireError> {
    let envelope = envelope.ok_or(WireError::NoEnvelope)?;
    if envelope.cluster != cluster {
        let theirs = envelope.cluster.chars().take(64).collect();
        return Err(WireError::Cluster { ours: cluster.to_owned(), theirs });
    }
    if envelope.rumours.len() > MAX_RUMOURS {
        return Err(WireError::Rumours { count: envelope.rumours.len() });
    }
    let from = name("envelope.from", envelope.from)?;
    if let Some(certified) = certified.filter(|certified| **certified != from) {
        return Err(WireError::Impostor { claimed: from, certified: certified.clone() });
    }
    check_address("envelope.address", &envelope.address)?;
    let mut rumours = Vec::with_capacity(envelope.rumours.len());
    for entry in envelope.rumours {
        // A liveness of a later release is not for us; the rest of the message is.
        if let Some(entry) = read_rumour(entry)? {
            rumours.push(entry);
        }
    }
    let to = if envelope.to.is_empty() { None } else { Some(name("envelope.to", envelope.to)?) };
    Ok(Gossip {
        from,
        to,
        address: envelope.address,
        boot: boot("envelope.boot", &envelope.boot)?,
        incarnation: incarnation(envelope.incarnation)?,
        rumours,
    })
}

fn read_rumour(entry: pb::Rumour) -> Result<Option<Rumour>, WireError> {
    let liveness = match entry.liveness() {
        pb::Liveness::Unspecified => return Ok(None),
        pb::Liveness::Alive => Liveness::Alive,
        pb::Liveness::Suspect => Liveness::Suspect,
        pb::Liveness::Dead => Liveness::Dead,
        pb::Liveness::Left => Liveness::Left,
    };
    check_address("rumour.address", &entry.address)?;
    let accuser = if entry.accuser.is_empty() { None } else { Some(name("rumour.accuser", entry.accuser)?) };
    Ok(Some(Rumour {
        node: name("rumour.node", entry.node)?,
        address: entry.address,
        boot: boot("rumour.boot", &entry.boot)?,
        incarnation: incarnation(entry.incarnation)?,
        liveness,
        accuser,
    }))
}

pub(crate) fn indirect(target: String, timeout_ms: u32) -> Result<Request, WireError> {
    let timeout = Duration::from_millis(timeout_ms.into());
    Ok(Request::PingIndirect { target: name("target", target)?, timeout })
}

fn name(field: &'static str, value: String) -> Result<NodeName, WireError> {
    value.try_into().map_err(|source| WireError::Name { field, source })
}

fn boot(field: &'static str, bytes: &[u8]) -> Result<Boot, WireError> {
    bytes.try_into().map(Boot).map_err(|_| WireError::Boot { field, len: bytes.len() })
}

fn incarnation(value: u64) -> Result<u64, WireError> {
    if value <= MAX_INCARNATION { Ok(value) } else { Err(WireError::Incarnation { value }) }
}

#[cfg(test)]
mod tests {
    use prost::Message;

    use super::*;

    fn gossip_of(rumours: usize) -> Gossip {
        let rumour = |i: usize| Rumour {
            node: format!("{i:048}").parse().unwrap(),
            address: format!("{}:65535", "h".repeat(249)),
            boot: Boot([7; 16]),
            incarnation: MAX_INCARNATION,
            liveness: Liveness::Left,
            accuser: Some("b".repeat(48).parse().unwrap()),
        };
        Gossip {
            from: "a".repeat(48).parse().unwrap(),
            to: Some("t".repeat(48).parse().unwrap()),
            address: "[fe80::1]:1".into(),
            boot: Boot([1; 16]),
            incarnation: 3,
            rumours: (0..rumours).map(rumour).collect(),
        }
    }

    #[test]
    fn the_largest_message_fits_the_cap_and_comes_back_as_it_was() {
        let sent = gossip_of(MAX_RUMOURS);
        let wire = envelope(&"c".repeat(64), sent.clone());
        assert!(wire.encoded_len() + 64 < ha_proto::peer::MAX_MESSAGE, "{}", wire.encoded_len());
        assert_eq!(gossip(&"c".repeat(64), None, Some(wire)).unwrap(), sent);
    }

    #[test]
    fn what_does_not_belong_is_refused_with_its_field() {
        let good = || envelope("c", gossip_of(1));
        let refused = |change: fn(&mut pb::Envelope)| {
            let mut wire = good();
            change(&mut wire);
            gossip("c", None, Some(wire)).unwrap_err().to_string()
        };
        assert_eq!(gossip("c", None, None), Err(WireError::NoEnvelope));
        for (text, word) in [
            (refused(|w| w.cluster = "d".into()), "cluster \"c\", the caller of \"d\""),
            (refused(|w| w.from = "../x".into()), "envelope.from"),
            (refused(|w| w.to = "../x".into()), "envelope.to"),
            (refused(|w| w.boot = vec![1]), "envelope.boot is 1 bytes"),
            (refused(|w| w.incarnation = u64::MAX), "incarnation 18446744073709551615"),
            (refused(|w| w.rumours = vec![w.rumours[0].clone(); 65]), "65 rumours"),
            (refused(|w| w.rumours[0].node.clear()), "rumour.node"),
            (refused(|w| w.rumours[0].address = "x".into()), "rumour.address"),
        ] {
            assert!(text.contains(word), "{text}");
        }
        let mut introduction = good();
        introduction.to.clear();
        assert_eq!(gossip("c", None, Some(introduction)).unwrap().to, None);
        let mut later = good();
        later.rumours[0].liveness = 99;
        assert!(gossip("c", None, Some(later)).unwrap().rumours.is_empty(), "an unknown liveness is passed over");
    }

    #[test]
    fn a_node_speaks_for_itself_only() {
        let (sender, other) = ("a".repeat(48).parse().unwrap(), "b".parse().unwrap());
        let wire = || Some(envelope("c", gossip_of(1)));
        gossip("c", Some(&sender), wire()).unwrap();
        let refused = gossip("c", Some(&other), wire()).unwrap_err();
        assert_eq!(refused, WireError::Impostor { claimed: sender, certified: other });
    }

    #[test]
    fn addresses_that_are_more_than_host_and_port_are_refused() {
        for good in ["10.77.0.1:7000", "node-1.example:1", "[::1]:65535"] {
            check_address("a", good).unwrap();
        }
        for bad in ["", ":1", "h:", "h:0", "h:65536", "u@h:1", "h/p:1", "::1:1", "[x]:1", "h:+1", "h:1/x", "h h:1"] {
            assert!(check_address("a", bad).is_err(), "{bad:?} was accepted");
        }
    }
}
