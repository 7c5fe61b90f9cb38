//! Whose copies of a container there may be, by its records in the store.
//!
//! The owner of an epoch writes its base before it begins anything. So an epoch without a base, or with one that a later owner
//! settled in its place, never began a copy; and who began one made sure before that the copies of the epochs before were gone.
//! What may run is therefore of the newest epoch that has a base of its owner's own.

#![cfg_attr(not(test), deny(clippy::disallowed_methods))]

use crate::spec::NodeName;

/// What an epoch's records say of a copy begun under it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Begun {
    /// Its owner settled the base: it has begun a copy, or may do so at any time.
    ByOwner(NodeName),
    /// No base yet: its owner has begun nothing, and may. A later owner that settles the base keeps it from that.
    NotYet,
    /// Somebody else settled the base.
    Never,
    /// The container was removed; what ran was ended before.
    Released,
}

/// The node that may run a copy, from what the epochs say, newest first. `None`: nobody.
pub fn holder(epochs: impl IntoIterator<Item = Begun>) -> Option<NodeName> {
    for begun in epochs {
        match begun {
            Begun::ByOwner(node) => return Some(node),
            Begun::Released => return None,
            Begun::NotYet | Begun::Never => {}
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_that_began_counts_and_nothing_from_before_a_removal() {
        let by = |name: &str| Begun::ByOwner(name.parse().unwrap());
        let n1 = || Some("n1".parse().unwrap());
        assert_eq!(holder([]), None);
        assert_eq!(holder([by("n1"), by("n2")]), n1());
        assert_eq!(holder([Begun::NotYet, Begun::Never, by("n1"), by("n2")]), n1());
        assert_eq!(holder([Begun::NotYet, Begun::Released, by("n1")]), None);
    }
}
