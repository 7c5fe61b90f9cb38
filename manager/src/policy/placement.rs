//! Which of the living nodes takes a dead node's container over.
//!
//! Every node computes the same order from what it knows, so that usually only the first one tries; the create-only epoch in
//! the store decides when they know different things.

use crate::spec::{ContainerName, NodeName};

/// A node that could run the container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Candidate {
    pub node: NodeName,
    /// How many containers it owns.
    pub containers: usize,
}

/// The candidates, best first: fewest containers, then by a hash of both names (rendezvous hashing), so that one dead node's
/// containers spread over its peers.
pub fn rank(container: &ContainerName, mut candidates: Vec<Candidate>) -> Vec<NodeName> {
    candidates.sort_by_cached_key(|candidate| {
        let mut hash = blake3::Hasher::new();
        hash.update(container.as_str().as_bytes()).update(&[0]).update(candidate.node.as_str().as_bytes());
        (candidate.containers, *hash.finalize().as_bytes())
    });
    candidates.into_iter().map(|candidate| candidate.node).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn candidates(load: &[usize]) -> Vec<Candidate> {
        load.iter()
            .enumerate()
            .map(|(i, &containers)| Candidate { node: format!("n{i}").parse().unwrap(), containers })
            .collect()
    }

    #[test]
    fn the_least_loaded_node_comes_first_and_the_order_in_does_not_matter() {
        let name: ContainerName = "web".parse().unwrap();
        assert_eq!(
            rank(&name, candidates(&[2, 0, 1])).iter().map(NodeName::as_str).collect::<Vec<_>>(),
            ["n1", "n2", "n0"]
        );
        let mut reversed = candidates(&[1, 1, 1, 1]);
        reversed.reverse();
        assert_eq!(rank(&name, candidates(&[1, 1, 1, 1])), rank(&name, reversed));
    }

    #[test]
    fn equal_nodes_share_the_containers_of_a_dead_one() {
        let mut first = [0; 3];
        for i in 0..300 {
            let name: ContainerName = format!("c{i}").parse().unwrap();
            let winner = rank(&name, candidates(&[1, 1, 1])).remove(0);
            first[winner.as_str()[1..].parse::<usize>().unwrap()] += 1;
        }
        assert!(first.iter().all(|&n| n > 60), "{first:?}");
    }
}
