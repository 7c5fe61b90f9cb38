//! Who has to agree before a node takes over.

use std::collections::BTreeSet;

use serde::Serialize;

use super::{
    read::Reader,
    values::{list_of_text, one_of},
};
use crate::spec::NodeName;

/// The least number of voters of which one may be lost.
const LEAST_VOTERS: usize = 3;

/// `quorum`
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Quorum {
    /// The store alone.
    #[default]
    Store,
    /// The store, and a majority of `voters` that answer the node that takes over, itself included.
    Majority,
}

impl Quorum {
    pub(super) const NAMES: &[(&'static str, Self)] = &[("store", Self::Store), ("majority", Self::Majority)];
}

/// `quorum` and `voters`, which belong together.
pub(super) fn read(r: &mut Reader<'_>) -> (Quorum, BTreeSet<NodeName>) {
    let quorum = r.take("", "quorum", |value| one_of(value, Quorum::NAMES)).unwrap_or_default();
    let given = r.is_set("", "voters");
    let voters = r.take("", "voters", |value| {
        let mut voters = BTreeSet::new();
        for text in list_of_text(value)? {
            let voter: NodeName = text.parse().map_err(|error: crate::spec::NameError| error.to_string())?;
            if let Some(twice) = voters.replace(voter) {
                return Err(format!("{twice} is named twice"));
            }
        }
        Ok(voters)
    });
    match (quorum, &voters) {
        (Quorum::Store, _) if given => {
            let place = r.place("", "voters");
            r.problem(place, "`voters`: are asked only with quorum = \"majority\"; add that, or leave `voters` out");
        }
        (Quorum::Majority, None) if !given => {
            let place = r.place("", "quorum");
            r.problem(
                place,
                "`quorum`: a majority of whom? Add e.g. voters = [\"ha1\", \"ha2\", \"ha3\"], the same on each node",
            );
        }
        (Quorum::Majority, Some(voters)) if voters.len() < LEAST_VOTERS => {
            let place = r.place("", "voters");
            let message = format!(
                "`voters`: {} of at least {LEAST_VOTERS}; of fewer no majority is left when one is lost",
                voters.len()
            );
            r.problem(place, message);
        }
        _ => {}
    }
    (quorum, voters.unwrap_or_default())
}
