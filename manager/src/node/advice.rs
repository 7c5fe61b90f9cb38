//! What an operator is told of a container whose owner does not answer: what fits what this node knows.
//!
//! To claim it by force loses what it did, so that is not said where it would be refused, or where this node is the broken one.

use std::time::Instant;

use super::{Node, claim::Absence, life::sentence, retiring::RETIRED};
use crate::{
    ownership::{Owner, silence::Life},
    spec::{ContainerName, NodeName},
};

/// What speaks against taking the container, as far as this node knows.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Against {
    Nothing,
    /// This node itself is cut off: by what.
    CutOff(String),
    /// It is not to be taken over: why, in a word and in a sentence.
    Held(&'static str, String),
}

impl Node {
    /// What is the case, and what to do about it.
    pub fn advice(&self, name: &ContainerName, owner: &Owner, why: Absence) -> String {
        advice(name, &owner.node, why, self.against(name, &owner.node, why))
    }

    fn against(&self, name: &ContainerName, owner: &NodeName, why: Absence) -> Against {
        if let Some(cut) = self.uplink.cut_off(Instant::now()) {
            return Against::CutOff(cut);
        }
        if self.ctx.lease.is_frozen() {
            return Against::CutOff("it has not renewed its lease in the store".into());
        }
        if self.lives.is_retired() {
            return Against::Held("retired", RETIRED.into());
        }
        // Nothing is taken over from it, and it has written nothing since.
        if why == Absence::Left {
            return Against::Nothing;
        }
        if let Some((word, text)) = self.held_from(name, owner) {
            return Against::Held(word, text);
        }
        if let Some(life @ Life::Writes { .. }) = self.life(owner, None) {
            let (word, text) = sentence(owner, life);
            return Against::Held(word, text);
        }
        self.has_majority().map_or_else(|(word, text)| Against::Held(word, text), |()| Against::Nothing)
    }
}

fn advice(name: &ContainerName, node: &NodeName, why: Absence, against: Against) -> String {
    let case = match why {
        Absence::Dead => "which is dead",
        Absence::Left => "whose manager was stopped, so the container may still run there",
        Absence::Unheard => "which this node has not heard of",
    };
    match against {
        Against::CutOff(cut) => format!(
            "{name} belongs to node {node}, which does not answer, but it is this node that is cut off: {cut}; see to this node first"
        ),
        Against::Held(word, text) => {
            // Held for dead, but not without a doubt.
            let case = if why == Absence::Dead { "which is held for dead here" } else { case };
            let remedy = remedy(word, name, node).map(|remedy| format!("; {remedy}")).unwrap_or_default();
            format!("{name} belongs to node {node}, {case}, and is not taken over: {text}{remedy}")
        }
        Against::Nothing => {
            let first = match why {
                Absence::Dead => format!("start {node} again"),
                Absence::Left | Absence::Unheard => format!("start the manager of {node}"),
            };
            format!(
                "{name} belongs to node {node}, {case}: {first}, or claim it for this node with `ha-manager restore {name} --force`, \
                 which loses what it did since its last snapshot"
            )
        }
    }
}

/// What to do about the reason with this word, where its sentence does not say so itself.
fn remedy(word: &str, name: &ContainerName, node: &NodeName) -> Option<String> {
    match word {
        "answers" => Some(format!("see to the manager of {node} and to the way between the two nodes")),
        "writes" => {
            Some(format!("see to the way between the two nodes; if {node} was switched off, it is over by itself"))
        }
        "quorum" => Some(format!(
            "start more of the voters, or see to the way to them; if they are gone for good, `ha-manager restore {name} --force` \
             claims it all the same, and loses what it did since its last snapshot"
        )),
        "unknown" | "answered" => Some("ask again in some seconds".into()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(why: Absence, against: Against) -> String {
        advice(&"redis".parse().unwrap(), &"us2".parse().unwrap(), why, against)
    }

    #[test]
    fn to_claim_by_force_is_said_only_where_nothing_speaks_against_it() {
        for why in [Absence::Dead, Absence::Left, Absence::Unheard] {
            assert!(said(why, Against::Nothing).contains("`ha-manager restore redis --force`"));
            for word in ["answers", "writes", "unknown", "answered", "retired"] {
                let said = said(why, Against::Held(word, "a reason".into()));
                assert!(said.contains("not taken over: a reason") && !said.contains("--force"), "{said}");
            }
            let said = said(why, Against::CutOff("the uplink eth0 has no carrier".into()));
            assert!(said.contains("this node that is cut off: the uplink eth0"), "{said}");
            assert!(!said.contains("--force") && !said.contains("start us2"), "{said}");
        }
    }

    #[test]
    fn a_reason_without_a_remedy_of_its_own_gets_one() {
        let quorum = said(Absence::Dead, Against::Held("quorum", "this node sees 1 of 3 voters".into()));
        assert!(quorum.contains("1 of 3 voters; start more of the voters"), "{quorum}");
        // No majority is asked for where an operator gives their word.
        assert!(quorum.contains("`ha-manager restore redis --force`"), "{quorum}");
        let parked = said(Absence::Left, Against::Held("parked", "start it again, or power us2 off".into()));
        assert!(parked.ends_with("power us2 off"), "{parked}");
    }
}
