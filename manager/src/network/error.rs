//! What can go wrong here, each with the thing it happened to and what to do about it.

use std::{
    fmt, io,
    net::{Ipv4Addr, Ipv6Addr},
};

#[derive(Debug, thiserror::Error)]
pub enum NetworkError {
    #[error("{what} {name:?} is not a usable link name: allowed are 1 to 15 characters without '/', ':' or blanks")]
    LinkName { what: &'static str, name: String },
    #[error("{ip}/{prefix_len} is not usable as a container's network: {why}")]
    Identity { ip: Ipv4Addr, prefix_len: u8, why: &'static str },
    #[error("{name} exists and is a {kind}, not a bridge; choose another name for `bridge` or remove the link")]
    NotABridge { name: String, kind: String },
    #[error(
        "bridge {name} runs the spanning tree protocol, under which a port cannot be closed for a checkpoint; turn it \
         off with `ip link set {name} type bridge stp_state 0`, or choose another bridge"
    )]
    SpanningTree { name: String },
    #[error("there is no bridge {name}; it is made when the manager starts, so something has removed it since")]
    NoBridge { name: String },
    #[error("the uplink {name} does not exist; `ip link` lists the links there are")]
    UplinkMissing { name: String },
    #[error(
        "the uplink {name} already belongs to another bridge or bond; take it out with `ip link set {name} nomaster`"
    )]
    UplinkTaken { name: String },
    #[error(
        "the uplink {name} has the address {address}, which would stop working in a bridge; give the same address to the \
         bridge (`address` in the configuration: it is then moved there), or use a link without addresses"
    )]
    UplinkAddressed { name: String, address: Ipv4Addr },
    #[error(
        "the uplink {name} has the address {address}, which would stop working in a bridge; make the node give it none (`sysctl \
         net.ipv6.conf.{name}.accept_ra=0`, then `ip -6 addr flush dev {name} scope global`), or use another link"
    )]
    UplinkAddressed6 { name: String, address: Ipv6Addr },
    #[error(
        "a route to {to} leaves by the uplink {name} and would be lost in a bridge; make the bridge part of the node's own \
         network configuration, or use another link"
    )]
    UplinkRouted { name: String, to: String },
    #[error("container {container} has no network on this node (no link {link}); it has to be built first")]
    NotBuilt { container: String, link: String },
    #[error("the link of container {container} is not in the bridge, so there is nothing to open or close")]
    NotAttached { container: String },
    #[error("{doing} failed{}", hint(.source))]
    Kernel { doing: String, source: io::Error },
    #[error("the connections in the snapshot cannot be read")]
    Images(#[source] super::ImagesError),
    #[error("{0}")]
    Incomplete(Failures),
}

impl NetworkError {
    /// For `map_err`: what was being done when the kernel refused.
    pub(super) fn kernel(doing: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let doing = doing.into();
        move |source| Self::Kernel { doing, source }
    }
}

/// The remedy that belongs to an error number, where there is one.
fn hint(source: &io::Error) -> &'static str {
    match source.raw_os_error() {
        Some(libc::EPERM | libc::EACCES) => {
            " (this needs root, or CAP_NET_ADMIN, CAP_NET_RAW and CAP_SYS_ADMIN over the node's network)"
        }
        Some(libc::EOPNOTSUPP) => " (the kernel was built without it, or its module is not loaded)",
        _ => "",
    }
}

/// Everything that failed in an operation that goes on after an error.
#[derive(Debug)]
pub struct Failures {
    /// What was to be done: `tearing down the network of redis`.
    pub doing: String,
    /// At least one.
    pub errors: Vec<NetworkError>,
}

impl Failures {
    /// `Ok` when nothing failed.
    pub(super) fn check(doing: impl Into<String>, errors: Vec<NetworkError>) -> Result<(), NetworkError> {
        if errors.is_empty() { Ok(()) } else { Err(NetworkError::Incomplete(Self { doing: doing.into(), errors })) }
    }
}

impl fmt::Display for Failures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} could not be finished:", self.doing)?;
        for (index, error) in self.errors.iter().enumerate() {
            write!(f, "{} {error}", if index == 0 { "" } else { ";" })?;
            // The list has no single source, so each entry brings its own.
            let mut source = std::error::Error::source(error);
            while let Some(inner) = source {
                write!(f, ": {inner}")?;
                source = inner.source();
            }
        }
        Ok(())
    }
}
