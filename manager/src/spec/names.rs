//! Names and numbers that travel: container, node, epoch, snapshot, MAC address.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

/// Why a name was refused. The message says what is allowed.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum NameError {
    #[error(
        "{what} {value:?} is not usable: allowed are 1 to {max} characters of a-z, 0-9, '-', '_' and '.', \
         the first a letter or digit"
    )]
    Charset { what: &'static str, value: String, max: usize },
    #[error("{value:?} is not a MAC address of the form 02:00:5e:10:00:01")]
    MacForm { value: String },
    #[error("{value:?} is a multicast MAC address; a container needs a unicast one (even first octet)")]
    MacMulticast { value: String },
    #[error("{value:?} is not a snapshot ID of the form e3-17")]
    SnapshotForm { value: String },
}

fn check_name(what: &'static str, value: &str, max: usize) -> Result<(), NameError> {
    let ok = !value.is_empty()
        && value.len() <= max
        && value.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'-' | b'_' | b'.'))
        && value.as_bytes()[0].is_ascii_alphanumeric();
    if ok { Ok(()) } else { Err(NameError::Charset { what, value: value.chars().take(80).collect(), max }) }
}

macro_rules! name_type {
    ($(#[$doc:meta])* $name:ident, $what:literal, $max:literal) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(String);

        impl $name {
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $name {
            type Err = NameError;

            fn from_str(value: &str) -> Result<Self, NameError> {
                check_name($what, value, $max)?;
                Ok(Self(value.to_owned()))
            }
        }

        impl TryFrom<String> for $name {
            type Error = NameError;

            fn try_from(value: String) -> Result<Self, NameError> {
                value.parse()
            }
        }

        impl From<$name> for String {
            fn from(value: $name) -> String {
                value.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

name_type!(
    /// A container's name, unique in the cluster. It is part of paths, object names and host names.
    ContainerName, "container name", 48
);
name_type!(
    /// A node's name, unique in the cluster.
    NodeName, "node name", 48
);

/// The count of owners a container has had. Whoever created `owners/<container>/<epoch>` first owns it under that epoch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Epoch(pub u64);

impl Epoch {
    pub fn next(self) -> Epoch {
        Epoch(self.0 + 1)
    }
}

impl fmt::Display for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A snapshot's name: the epoch it was written under and its number in that epoch. Written `e3-17`; newer compares greater.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct SnapshotId {
    pub epoch: Epoch,
    pub seq: u64,
}

impl fmt::Display for SnapshotId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "e{}-{}", self.epoch, self.seq)
    }
}

impl FromStr for SnapshotId {
    type Err = NameError;

    fn from_str(value: &str) -> Result<Self, NameError> {
        let err = || NameError::SnapshotForm { value: value.chars().take(80).collect() };
        let (epoch, seq) = value.strip_prefix('e').and_then(|v| v.split_once('-')).ok_or_else(err)?;
        let number = |digits: &str| {
            // `u64::from_str` takes a leading '+'; an ID has one spelling only.
            if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_digit()) { None } else { digits.parse().ok() }
        };
        Ok(SnapshotId { epoch: Epoch(number(epoch).ok_or_else(err)?), seq: number(seq).ok_or_else(err)? })
    }
}

impl TryFrom<String> for SnapshotId {
    type Error = NameError;

    fn try_from(value: String) -> Result<Self, NameError> {
        value.parse()
    }
}

impl From<SnapshotId> for String {
    fn from(value: SnapshotId) -> String {
        value.to_string()
    }
}

/// A unicast MAC address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Mac(pub [u8; 6]);

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl FromStr for Mac {
    type Err = NameError;

    fn from_str(value: &str) -> Result<Self, NameError> {
        let err = || NameError::MacForm { value: value.chars().take(80).collect() };
        let mut octets = [0; 6];
        let mut parts = value.split(':');
        for octet in &mut octets {
            let part = parts.next().filter(|p| p.len() == 2).ok_or_else(err)?;
            *octet = u8::from_str_radix(part, 16).map_err(|_| err())?;
        }
        if parts.next().is_some() {
            return Err(err());
        }
        if octets[0] & 1 == 1 {
            return Err(NameError::MacMulticast { value: value.to_owned() });
        }
        Ok(Mac(octets))
    }
}

impl TryFrom<String> for Mac {
    type Error = NameError;

    fn try_from(value: String) -> Result<Self, NameError> {
        value.parse()
    }
}

impl From<Mac> for String {
    fn from(value: Mac) -> String {
        value.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_would_escape_a_path_are_refused() {
        for bad in ["", ".", "..", "../x", "a/b", "-a", "A", "a b", &"x".repeat(49)] {
            assert!(bad.parse::<ContainerName>().is_err(), "{bad:?} was accepted");
        }
        for good in ["a", "redis", "web-1", "db_2.main", "0x"] {
            assert_eq!(good.parse::<ContainerName>().unwrap().as_str(), good);
        }
    }

    #[test]
    fn snapshot_ids_sort_by_epoch_then_number_and_have_one_spelling() {
        let id = |text: &str| text.parse::<SnapshotId>().unwrap();
        assert!(id("e2-1") > id("e1-900"));
        assert!(id("e1-10") > id("e1-9"));
        assert_eq!(id("e12-34").to_string(), "e12-34");
        for bad in ["", "e", "e1", "1-2", "e1-", "e-1", "e+1-2", "e1-2x", "e1-99999999999999999999"] {
            assert!(bad.parse::<SnapshotId>().is_err(), "{bad:?} was accepted");
        }
    }

    #[test]
    fn mac_addresses_round_trip_and_multicast_is_refused() {
        assert_eq!("02:00:5e:10:00:0a".parse::<Mac>().unwrap().to_string(), "02:00:5e:10:00:0a");
        assert!(matches!("03:00:00:00:00:00".parse::<Mac>(), Err(NameError::MacMulticast { .. })));
        for bad in ["", "02:00:5e:10:00", "02:00:5e:10:00:0a:0b", "2:0:5e:10:0:a", "02-00-5e-10-00-0a"] {
            assert!(bad.parse::<Mac>().is_err(), "{bad:?} was accepted");
        }
    }
}
