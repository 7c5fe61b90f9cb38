use std::{fmt, net::Ipv4Addr, str::FromStr};

use serde::{Serialize, Serializer};

/// An IPv4 address with its prefix length: `10.77.0.1/16`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cidr {
    pub addr: Ipv4Addr,
    /// 0 to 32.
    pub prefix: u8,
}

impl Cidr {
    fn mask(self) -> u32 {
        u32::MAX.checked_shl(32 - u32::from(self.prefix)).unwrap_or(0)
    }

    /// The first address: every host bit 0.
    pub fn network(self) -> Ipv4Addr {
        Ipv4Addr::from_bits(self.addr.to_bits() & self.mask())
    }

    /// The last address: every host bit 1.
    pub fn broadcast(self) -> Ipv4Addr {
        Ipv4Addr::from_bits(self.addr.to_bits() | !self.mask())
    }

    pub fn contains(self, addr: Ipv4Addr) -> bool {
        addr.to_bits() & self.mask() == self.network().to_bits()
    }

    /// Whether every address of `other` is one of this network's.
    pub fn covers(self, other: Cidr) -> bool {
        self.prefix <= other.prefix && self.contains(other.addr)
    }

    /// Whether `addr` is inside and neither the network's nor the broadcast address.
    pub fn is_host(self, addr: Ipv4Addr) -> bool {
        self.contains(addr) && addr != self.network() && addr != self.broadcast()
    }
}

impl fmt::Display for Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.addr, self.prefix)
    }
}

impl Serialize for Cidr {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not an IPv4 address with a prefix length, e.g. \"10.77.0.1/16\"")]
pub struct CidrError(String);

impl FromStr for Cidr {
    type Err = CidrError;

    fn from_str(text: &str) -> Result<Self, CidrError> {
        let malformed = || CidrError(text.chars().take(80).collect());
        let (addr, prefix) = text.split_once('/').ok_or_else(malformed)?;
        // `u8::from_str` takes "+8" and "008"; a prefix has one spelling.
        if prefix.is_empty() || prefix.len() > 2 || !prefix.bytes().all(|b| b.is_ascii_digit()) {
            return Err(malformed());
        }
        let addr = addr.parse().map_err(|_| malformed())?;
        let prefix = prefix.parse().ok().filter(|p| *p <= 32).ok_or_else(malformed)?;
        Ok(Self { addr, prefix })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cidr(text: &str) -> Cidr {
        text.parse().unwrap()
    }

    #[test]
    fn the_ends_of_a_network_are_not_hosts() {
        let net = cidr("10.77.1.7/24");
        assert_eq!((net.network(), net.broadcast()), ([10, 77, 1, 0].into(), [10, 77, 1, 255].into()));
        assert!(net.is_host([10, 77, 1, 1].into()) && net.is_host([10, 77, 1, 254].into()));
        assert!(!net.is_host(net.network()) && !net.is_host(net.broadcast()) && !net.is_host([10, 77, 2, 1].into()));
    }

    #[test]
    fn covering_looks_at_both_prefixes() {
        assert!(cidr("10.77.0.1/16").covers(cidr("10.77.1.0/24")));
        assert!(!cidr("10.77.1.0/24").covers(cidr("10.77.0.0/16")));
        assert!(!cidr("10.77.0.0/16").covers(cidr("10.78.1.0/24")));
        assert!(cidr("0.0.0.0/0").covers(cidr("10.78.1.0/24")));
        assert!(cidr("1.2.3.4/32").contains([1, 2, 3, 4].into()));
    }

    #[test]
    fn other_spellings_are_refused() {
        for bad in ["", "10.0.0.1", "10.0.0.1/", "10.0.0.1/33", "10.0.0.1/+8", "10.0.0/8", "::1/8", "10.0.0.1/008"] {
            assert!(bad.parse::<Cidr>().is_err(), "{bad:?} was accepted");
        }
    }
}
