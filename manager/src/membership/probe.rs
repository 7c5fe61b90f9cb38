//! Probing: whom next, and through whom when the direct way fails.

// Pure: time comes in as an argument.
#![cfg_attr(not(test), deny(clippy::disallowed_methods))]

use std::time::Duration;

use super::{
    core::Core,
    message::{CallId, Gossip, Liveness, Output, Request, Time},
};
use crate::spec::NodeName;

/// Dead peers and unmet seeds tried in one round.
const REVIVALS: usize = 3;
/// A relay gets this share of the time we wait for it, so that its "no" is still in time. In percent.
const RELAY_SHARE: u32 = 80;

/// Why a call was made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Purpose {
    Direct,
    /// A relay's answer belongs to the probe whose direct call this is.
    Indirect(CallId),
    /// For the node that asked us, to be answered under this token.
    Relay {
        token: u64,
        asker: NodeName,
    },
    Seed(usize),
    Revive,
    /// Only to tell something.
    Word,
}

/// A call to be made.
pub(super) struct Dial {
    /// Who should answer; unknown for a seed.
    pub to: Option<NodeName>,
    pub address: String,
    pub purpose: Purpose,
    pub request: Request,
    pub timeout: Duration,
}

/// A call under way.
#[derive(Debug)]
pub(super) struct Pending {
    pub purpose: Purpose,
    pub to: Option<NodeName>,
    pub sent: Time,
    pub deadline: Time,
}

/// From the direct ping to the verdict.
#[derive(Debug)]
pub(super) struct Probe {
    target: NodeName,
    incarnation: u64,
    started: Time,
    /// Set once others are asked.
    indirect: Option<Indirect>,
}

#[derive(Debug)]
struct Indirect {
    deadline: Time,
    asked: usize,
    said_no: usize,
    silent: usize,
}

impl Probe {
    pub(super) fn indirect_deadline(&self) -> Option<Time> {
        self.indirect.as_ref().map(|indirect| indirect.deadline)
    }
}

impl Core {
    /// Begins the round's probes. A round does not span two shufflings, so everybody is probed once in `⌈(n−1)/f⌉`
    /// rounds and never more than `2⌈(n−1)/f⌉ − 1` rounds apart.
    pub(super) fn probe_round(&mut self, now: Time, out: &mut Vec<Output>) {
        let living =
            |core: &Self, name: &NodeName| core.peers.get(name).is_some_and(|p| p.liveness <= Liveness::Suspect);
        let mut rota = std::mem::take(&mut self.rota);
        rota.retain(|name| living(self, name));
        if rota.is_empty() {
            rota = self.peers.keys().filter(|name| living(self, name)).cloned().collect();
            self.rng.shuffle(&mut rota);
        }
        let chosen = rota.split_off(rota.len().saturating_sub(self.config.probes_per_interval));
        self.rota = rota;
        for target in chosen {
            let Some(incarnation) = self.peers.get(&target).map(|peer| peer.incarnation) else { continue };
            if let Some(id) = self.ping(&target, Purpose::Direct, now, out) {
                self.probes.insert(id, Probe { target, incarnation, started: now, indirect: None });
            }
        }
    }

    /// Slowly, so that they can come back: the dead, and the seeds where nobody we know lives.
    pub(super) fn revive_round(&mut self, now: Time, out: &mut Vec<Output>) {
        let mut dead: Vec<_> =
            self.peers.iter().filter(|(_, p)| p.liveness == Liveness::Dead).map(|(name, _)| name.clone()).collect();
        let from = self.revived.as_ref().map_or(0, |last| dead.partition_point(|name| name <= last));
        dead.rotate_left(from);
        dead.truncate(REVIVALS);
        for name in &dead {
            self.ping(name, Purpose::Revive, now, out);
        }
        self.revived = dead.pop().or(self.revived.take());

        let mut unmet: Vec<_> = (0..self.seeds.len()).filter(|i| self.seed_unmet(*i)).collect();
        self.rng.shuffle(&mut unmet);
        for index in unmet.into_iter().take(REVIVALS) {
            let (address, timeout) = (self.seeds[index].address.clone(), self.patience());
            let dial = Dial { to: None, address, purpose: Purpose::Seed(index), request: Request::Ping, timeout };
            let gossip = self.gossip(None, false, false, out);
            self.dial(dial, gossip, now, out);
        }
    }

    fn seed_unmet(&self, index: usize) -> bool {
        let seed = &self.seeds[index];
        if seed.name.as_ref() == Some(&self.me.name) {
            return false;
        }
        // A dead peer is probed at its address anyway; one that moved may be found again through its seed.
        !self.peers.iter().any(|(name, peer)| match peer.liveness {
            Liveness::Alive | Liveness::Suspect => seed.name.as_ref() == Some(name) || peer.address == seed.address,
            Liveness::Dead => peer.address == seed.address,
            Liveness::Left => false,
        })
    }

    pub(super) fn ping(&mut self, to: &NodeName, purpose: Purpose, now: Time, out: &mut Vec<Output>) -> Option<CallId> {
        let timeout = self.patience();
        self.ping_within(to, purpose, timeout, now, out)
    }

    pub(super) fn ping_within(
        &mut self,
        to: &NodeName,
        purpose: Purpose,
        timeout: Duration,
        now: Time,
        out: &mut Vec<Output>,
    ) -> Option<CallId> {
        let peer = self.peers.get(to)?;
        let (address, accused) = (peer.address.clone(), peer.liveness != Liveness::Alive);
        let gossip = self.gossip(Some(to), accused, false, out);
        let dial = Dial { to: Some(to.clone()), address, purpose, request: Request::Ping, timeout };
        Some(self.dial(dial, gossip, now, out))
    }

    pub(super) fn patience(&self) -> Duration {
        self.health.scale(self.config.probe_timeout)
    }

    fn dial(&mut self, dial: Dial, gossip: Gossip, now: Time, out: &mut Vec<Output>) -> CallId {
        let Dial { to, address, purpose, request, timeout } = dial;
        let id = CallId(self.next_call);
        self.next_call += 1;
        self.calls.insert(id, Pending { purpose, to, sent: now, deadline: now + timeout });
        out.push(Output::Call { id, to: address, request, gossip, timeout });
        id
    }

    /// The direct way failed: others are asked, or without others the verdict falls at once.
    pub(super) fn ask_others(&mut self, id: CallId, now: Time, out: &mut Vec<Output>) {
        let Some(target) = self.probes.get(&id).map(|probe| probe.target.clone()) else { return };
        let relays = self.sample(self.config.indirect_probes, Some(&target));
        let patience = self.patience();
        let indirect = Indirect { deadline: now + patience, asked: relays.len(), said_no: 0, silent: 0 };
        if let Some(probe) = self.probes.get_mut(&id) {
            probe.indirect = Some(indirect);
        }
        for relay in &relays {
            let Some(address) = self.peers.get(relay).map(|peer| peer.address.clone()) else { continue };
            let request = Request::PingIndirect { target: target.clone(), timeout: patience * RELAY_SHARE / 100 };
            let gossip = self.gossip(Some(relay), false, false, out);
            let dial =
                Dial { to: Some(relay.clone()), address, purpose: Purpose::Indirect(id), request, timeout: patience };
            self.dial(dial, gossip, now, out);
        }
        if relays.is_empty() {
            self.verdict(id, now, out);
        }
    }

    /// What a relay found; `None` when the relay itself did not answer.
    pub(super) fn relay_said(&mut self, id: CallId, found: Option<bool>, now: Time, out: &mut Vec<Output>) {
        let Some(probe) = self.probes.get_mut(&id) else { return };
        let Some(indirect) = &mut probe.indirect else { return };
        match found {
            Some(true) => {
                self.probes.remove(&id);
                return;
            }
            Some(false) => indirect.said_no += 1,
            None => indirect.silent += 1,
        }
        if indirect.said_no + indirect.silent >= indirect.asked {
            self.verdict(id, now, out);
        }
    }

    /// The probe has failed. It speaks against its target only if nothing was heard of it since, and against ourselves
    /// if those we asked did not answer either.
    pub(super) fn verdict(&mut self, id: CallId, now: Time, out: &mut Vec<Output>) {
        let Some(probe) = self.probes.remove(&id) else { return };
        if probe.indirect.is_some_and(|indirect| indirect.said_no < indirect.asked) {
            self.health.worse();
        }
        let Some(peer) = self.peers.get(&probe.target) else { return };
        let spoke_since = peer.heard.is_some_and(|heard| heard >= probe.started);
        if spoke_since || peer.incarnation != probe.incarnation || peer.liveness > Liveness::Suspect {
            return;
        }
        if let Some(claim) = self.claim(&probe.target, Liveness::Suspect) {
            self.believe(claim, now, out);
        }
    }
}
