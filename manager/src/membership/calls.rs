//! Calls from the asking to the answer: what each kind of answer or failure means, and probing on behalf of others.

// Pure: time comes in as an argument.
#![cfg_attr(not(test), deny(clippy::disallowed_methods))]

use std::time::Duration;

use super::{
    core::Core,
    message::{CallId, Gossip, Liveness, Output, Time},
    probe::{Pending, Probe, Purpose},
};
use crate::spec::NodeName;

/// Relayed probes under way at once; more are answered with "no" straight away.
const MAX_RELAYS: usize = 64;

impl Core {
    pub(super) fn answered(&mut self, id: CallId, gossip: &Gossip, found: bool, now: Time, out: &mut Vec<Output>) {
        let before = self.incarnation;
        self.absorb(gossip, now, out);
        if self.incarnation != before {
            self.nudge(&gossip.from, now, out);
        }
        let Some(call) = self.calls.remove(&id) else { return };
        if let Purpose::Seed(index) = call.purpose {
            if let Some(seed) = self.seeds.get_mut(index) {
                seed.name = Some(gossip.from.clone());
            }
            return;
        }
        if call.to.as_ref() != Some(&gossip.from) {
            // Another node lives at that address now: the one we meant did not answer.
            return self.call_failed(id, call, now, out);
        }
        if let Some(peer) = self.peers.get_mut(&gossip.from) {
            peer.saw_us = peer.saw_us.max(Some(call.sent));
        }
        match call.purpose {
            Purpose::Direct => {
                if self.probes.remove(&id).is_some() {
                    self.health.better();
                }
            }
            Purpose::Indirect(probe) => self.relay_said(probe, Some(found), now, out),
            Purpose::Relay { token, asker } => self.relayed(token, &asker, true, now, out),
            Purpose::Seed(_) | Purpose::Revive | Purpose::Word => {}
        }
    }

    pub(super) fn failed(&mut self, id: CallId, now: Time, out: &mut Vec<Output>) {
        if let Some(call) = self.calls.remove(&id) {
            self.call_failed(id, call, now, out);
        }
    }

    pub(super) fn dropped(&mut self, id: CallId, now: Time, out: &mut Vec<Output>) {
        self.probes.remove(&id);
        self.failed(id, now, out);
    }

    fn call_failed(&mut self, id: CallId, call: Pending, now: Time, out: &mut Vec<Output>) {
        match call.purpose {
            Purpose::Direct => self.ask_others(id, now, out),
            Purpose::Indirect(probe) => self.relay_said(probe, None, now, out),
            Purpose::Relay { token, asker } => self.relayed(token, &asker, false, now, out),
            Purpose::Seed(_) | Purpose::Revive | Purpose::Word => {}
        }
    }

    /// Ends what is overdue, whether or not the shell reports it.
    pub(super) fn expire_calls(&mut self, now: Time, out: &mut Vec<Output>) {
        let overdue: Vec<_> = self.calls.iter().filter(|(_, c)| c.deadline <= now).map(|(id, _)| *id).collect();
        for id in overdue {
            self.failed(id, now, out);
        }
        let late = |probe: &Probe| probe.indirect_deadline().is_some_and(|deadline| deadline <= now);
        let overdue: Vec<_> = self.probes.iter().filter(|(_, p)| late(p)).map(|(id, _)| *id).collect();
        for id in overdue {
            self.verdict(id, now, out);
        }
    }

    /// Forgets all calls; those who asked us to probe get a "no".
    pub(super) fn drop_calls(&mut self, now: Time, out: &mut Vec<Output>) {
        self.probes.clear();
        for call in std::mem::take(&mut self.calls).into_values() {
            if let Purpose::Relay { token, asker } = call.purpose {
                self.relayed(token, &asker, false, now, out);
            }
        }
    }

    /// Probes `target` for `asker`. False when it will not be done.
    pub(super) fn relay(
        &mut self,
        token: u64,
        asker: NodeName,
        target: &NodeName,
        timeout: Duration,
        now: Time,
        out: &mut Vec<Output>,
    ) -> bool {
        let busy = self.calls.values().filter(|call| matches!(call.purpose, Purpose::Relay { .. })).count();
        // Only somebody we know, at the address we know: a caller cannot make us connect anywhere else.
        let known = self.peers.get(target).is_some_and(|peer| peer.liveness != Liveness::Left);
        if self.left || busy >= MAX_RELAYS || !known {
            return false;
        }
        let timeout = timeout.clamp(Duration::from_millis(1), self.patience());
        self.ping_within(target, Purpose::Relay { token, asker }, timeout, now, out).is_some()
    }

    fn relayed(&mut self, token: u64, asker: &NodeName, answered: bool, now: Time, out: &mut Vec<Output>) {
        let gossip = self.gossip(Some(asker), false, false, out);
        self.answer(token, asker, gossip, answered, now, out);
    }
}
