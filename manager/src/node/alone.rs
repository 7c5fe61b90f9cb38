//! A node that should have peers and knows none: why, as far as it can say.

use std::{
    collections::BTreeMap,
    sync::{Mutex, MutexGuard, PoisonError},
};

use super::Node;
use crate::spec::NodeName;

/// The nodes that are retired, with their addresses where they were peers of this manager.
#[derive(Debug, Default)]
pub(super) struct Gone(Mutex<BTreeMap<NodeName, Option<String>>>);

impl Gone {
    /// A peer that may be retired soon: its address is not known afterwards.
    pub fn about(&self, node: &NodeName, address: String) {
        self.lock().insert(node.clone(), Some(address));
    }

    /// Those that are retired by the store now.
    pub fn saw<'a>(&self, retired: impl Iterator<Item = &'a NodeName>, me: &NodeName) {
        let mut gone = self.lock();
        let mut address = |node: &NodeName| gone.remove(node).flatten();
        let now = retired.filter(|node| *node != me).map(|node| (node.clone(), address(node))).collect();
        *gone = now;
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<NodeName, Option<String>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Node {
    /// What to say when nobody would take over from this node for want of peers; `None`: it knows some, or is to have none.
    pub(super) fn alone(&self) -> Option<String> {
        let (membership, configured) = (&self.ctx.membership, &self.ctx.config.peers);
        if configured.is_empty() || !membership.peers().is_empty() {
            return None;
        }
        // Dead ones are forgotten as peers after a day.
        let heard = membership.known().iter().any(|node| membership.last_contact(node).is_some());
        Some(alone(configured, &self.lives.gone().lock(), heard))
    }
}

/// `heard`: one that is not retired was heard since the start, and is forgotten since.
fn alone(configured: &[String], gone: &BTreeMap<NodeName, Option<String>>, heard: bool) -> String {
    let retired_at = |address: &str| gone.iter().find(|(_, at)| at.as_deref() == Some(address)).map(|(node, _)| node);
    let rest: Vec<_> = configured.iter().map(String::as_str).filter(|address| retired_at(address).is_none()).collect();
    let placed = configured.iter().filter_map(|address| Some(format!("{} ({address})", retired_at(address)?)));
    if rest.is_empty() {
        let placed: Vec<_> = placed.collect();
        return format!(
            "all nodes in `peers` were retired: {}: nobody would take over; take them out of `peers` in node.toml, or put others in",
            placed.join(", ")
        );
    }
    // Where an earlier manager knew it, the address is not known.
    let names: Vec<_> = gone.keys().map(NodeName::as_str).collect();
    let retired = match names.is_empty() {
        true => String::new(),
        false => format!(
            "retired: {}, take them out of `peers` in node.toml if they are among them; else ",
            names.join(", ")
        ),
    };
    let since = if heard { "for a day" } else { "since this manager was started" };
    format!(
        "nobody in `peers` ({}) has been heard {since}: nobody would take over; {retired}look at the addresses, the certificates and \
         the log",
        rest.join(", ")
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: &str = "192.168.1.11:7420";
    const B: &str = "192.168.1.12:7420";

    fn gone(nodes: &[(&str, Option<&str>)]) -> BTreeMap<NodeName, Option<String>> {
        nodes.iter().map(|(node, at)| (node.parse().unwrap(), at.map(str::to_owned))).collect()
    }

    #[test]
    fn a_peer_that_is_retired_is_not_said_to_be_unheard() {
        let said = alone(&[A.into()], &gone(&[("us1", Some(A))]), false);
        assert!(said.contains("retired: us1 (192.168.1.11:7420)") && said.contains("take them out"), "{said}");
        assert!(!said.contains("heard") && !said.contains("certificates"), "{said}");
        let said = alone(&[A.into(), B.into()], &gone(&[("us1", Some(A))]), false);
        assert!(said.contains("nobody in `peers` (192.168.1.12:7420) has been heard since"), "{said}");
        assert!(said.contains("retired: us1"), "{said}");
    }

    #[test]
    fn after_a_restart_the_retired_are_named_without_their_addresses() {
        let said = alone(&[A.into()], &gone(&[("us1", None)]), false);
        assert!(said.contains("heard since this manager was started") && said.contains("retired: us1"), "{said}");
        let said = alone(&[A.into()], &gone(&[]), false);
        assert!(said.contains("would take over; look at the addresses"), "{said}");
        assert!(!alone(&[A.into()], &gone(&[]), true).contains("since this manager"));
    }

    #[test]
    fn an_address_is_kept_while_its_node_is_retired() {
        let known = Gone::default();
        let [us1, us2, me] = ["us1", "us2", "me"].map(|name| name.parse::<NodeName>().unwrap());
        known.about(&us1, A.into());
        known.saw([&us1, &us2, &me].into_iter(), &me);
        assert_eq!(*known.lock(), gone(&[("us1", Some(A)), ("us2", None)]));
        known.saw([&us2].into_iter(), &me);
        assert_eq!(*known.lock(), gone(&[("us2", None)]));
    }
}
