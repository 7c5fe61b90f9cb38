//! What a message makes us believe: the lattice of claims, and our answer to claims about ourselves.

// Pure: time comes in as an argument.
#![cfg_attr(not(test), deny(clippy::disallowed_methods))]

use super::{
    core::{Core, Peer},
    message::{Event, Gossip, Liveness, MAX_ADDRESS, MAX_INCARNATION, MAX_RUMOURS, Output, Rumour, Time, Touch},
    probe::Purpose,
    suspicion::Suspicion,
};
use crate::spec::NodeName;

/// So many returns of a replaced boot prove that both run: one may be an old rumour from behind a partition.
const RETURNS: u8 = 2;

impl Core {
    /// Takes in a message. True when its sender was not known, or was known by an earlier boot.
    pub(super) fn absorb(&mut self, gossip: &Gossip, now: Time, out: &mut Vec<Output>) -> bool {
        if gossip.from == self.me.name {
            if gossip.boot != self.me.boot && gossip.address != self.me.address {
                self.own_conflict(&gossip.address, out);
            }
            return false;
        }
        // One that meant somebody else, or anybody, does not know us yet.
        if gossip.to.as_ref() == Some(&self.me.name) {
            self.touch(&gossip.from, Touch::Met, out);
        }
        let newcomer = self.peers.get(&gossip.from).is_none_or(|peer| peer.boot != gossip.boot);
        let direct = Rumour {
            node: gossip.from.clone(),
            address: gossip.address.clone(),
            boot: gossip.boot,
            incarnation: gossip.incarnation,
            liveness: Liveness::Alive,
            accuser: None,
        };
        self.believe(direct, now, out);
        if let Some(peer) = self.peers.get_mut(&gossip.from).filter(|peer| peer.boot == gossip.boot) {
            peer.heard = Some(now);
        }
        for rumour in gossip.rumours.iter().take(MAX_RUMOURS) {
            if rumour.node == self.me.name {
                self.about_me(rumour, out);
            } else {
                self.believe(rumour.clone(), now, out);
            }
        }
        newcomer
    }

    /// Joins one claim about another node into the table.
    pub(super) fn believe(&mut self, rumour: Rumour, now: Time, out: &mut Vec<Output>) {
        if rumour.address.len() > MAX_ADDRESS || rumour.incarnation > MAX_INCARNATION {
            return;
        }
        let Some(peer) = self.peers.get(&rumour.node) else {
            return self.meet(rumour, now, out);
        };
        let held = (peer.incarnation, peer.liveness);
        if rumour.precedence() > held {
            self.replace(rumour, now, out);
        } else if rumour.precedence() == held && rumour.liveness == Liveness::Suspect {
            self.confirm(rumour, out);
        }
    }

    /// A node not known before. The dead we never met are not our business.
    fn meet(&mut self, rumour: Rumour, now: Time, out: &mut Vec<Output>) {
        if rumour.liveness >= Liveness::Dead || !self.make_room(&rumour.node, out) {
            return;
        }
        let name = rumour.node.clone();
        let peer = Peer {
            address: rumour.address.clone(),
            boot: rumour.boot,
            incarnation: rumour.incarnation,
            liveness: rumour.liveness,
            since: now,
            heard: None,
            saw_us: None,
            before: None,
            returns: 0,
        };
        self.peers.insert(name.clone(), peer);
        // Anywhere in what is left of this round, so that joiners are not all probed by everybody in the same order.
        let at = self.rng.below(self.rota.len() + 1);
        self.rota.insert(at, name.clone());
        out.push(up(&rumour, false));
        if rumour.liveness == Liveness::Suspect {
            self.suspect(&rumour, now, out);
        }
        self.rumours.push(rumour);
    }

    fn replace(&mut self, rumour: Rumour, now: Time, out: &mut Vec<Output>) {
        let Some(peer) = self.peers.get_mut(&rumour.node) else { return };
        let was = peer.liveness;
        let restarted = peer.boot != rumour.boot;
        let mut conflict = None;
        if restarted {
            match &peer.before {
                Some((boot, address)) if *boot == rumour.boot && *address != peer.address => {
                    peer.returns = peer.returns.saturating_add(1);
                    if peer.returns == RETURNS {
                        conflict = Some(peer.address.clone());
                    }
                }
                Some((boot, _)) if *boot == rumour.boot => {}
                _ => peer.returns = 0,
            }
            peer.before = Some((peer.boot, std::mem::take(&mut peer.address)));
        }
        peer.boot = rumour.boot;
        peer.address.clone_from(&rumour.address);
        peer.incarnation = rumour.incarnation;
        peer.liveness = rumour.liveness;
        if was != rumour.liveness || restarted {
            peer.since = now;
        }
        let node = rumour.node.clone();
        if let Some(other_address) = conflict {
            let address = rumour.address.clone();
            out.push(Output::Event(Event::NameConflict { node: node.clone(), address, other_address }));
        }
        let revived = was >= Liveness::Dead && rumour.liveness <= Liveness::Suspect;
        if revived || (restarted && rumour.liveness <= Liveness::Suspect) {
            self.suspicions.remove(&node);
            out.push(up(&rumour, restarted));
        }
        match rumour.liveness {
            Liveness::Alive => {
                if self.suspicions.remove(&node).is_some() {
                    out.push(Output::Event(Event::Refuted { node }));
                }
            }
            // A new accusation, at a higher incarnation than the last one: its time begins anew.
            Liveness::Suspect => self.suspect(&rumour, now, out),
            Liveness::Dead => {
                self.suspicions.remove(&node);
                out.push(Output::Event(Event::Dead { node }));
            }
            Liveness::Left => {
                self.suspicions.remove(&node);
                out.push(Output::Event(Event::Left { node }));
            }
        }
        self.rumours.push(rumour);
    }

    fn suspect(&mut self, rumour: &Rumour, now: Time, out: &mut Vec<Output>) {
        let accuser = rumour.accuser.clone().unwrap_or_else(|| rumour.node.clone());
        let suspicion = Suspicion::new(accuser.clone(), now);
        if self.suspicions.insert(rumour.node.clone(), suspicion).is_none() {
            out.push(Output::Event(Event::Suspect { node: rumour.node.clone(), accuser }));
        }
    }

    fn confirm(&mut self, rumour: Rumour, out: &mut Vec<Output>) {
        let Some(accuser) = rumour.accuser.clone() else { return };
        let wanted = self.config.confirmations;
        // Only a node we know can confirm: otherwise one liar could invent as many witnesses as it needs.
        let known = accuser == self.me.name || self.peers.contains_key(&accuser);
        let news = known && self.suspicions.get_mut(&rumour.node).is_some_and(|s| s.confirm(&accuser, wanted));
        if news {
            out.push(Output::Event(Event::ConfirmedByPeer { node: rumour.node.clone(), accuser }));
            self.rumours.push(rumour);
        }
    }

    /// Others speak of us. Whatever is not "alive, as you are now" is outbid by a higher incarnation.
    fn about_me(&mut self, rumour: &Rumour, out: &mut Vec<Output>) {
        if self.left || rumour.incarnation >= MAX_INCARNATION {
            return;
        }
        if rumour.boot == self.me.boot {
            if rumour.precedence() <= (self.incarnation, Liveness::Alive) {
                return;
            }
            self.health.worse();
            let (liveness, accuser) = (rumour.liveness, rumour.accuser.clone());
            out.push(Output::Event(Event::RefutedSelf { liveness, accuser }));
        } else {
            if rumour.incarnation < self.incarnation {
                return;
            }
            match &mut self.outbid {
                Some((boot, returns)) if *boot == rumour.boot => {
                    *returns = returns.saturating_add(1);
                    if *returns >= RETURNS && rumour.address != self.me.address {
                        self.own_conflict(&rumour.address, out);
                    }
                }
                outbid => *outbid = Some((rumour.boot, 0)),
            }
        }
        self.incarnation = rumour.incarnation + 1;
        let own = self.own_rumour();
        self.rumours.push(own);
    }

    fn own_conflict(&mut self, other: &str, out: &mut Vec<Output>) {
        if !std::mem::replace(&mut self.conflict_told, true) {
            let (node, address) = (self.me.name.clone(), self.me.address.clone());
            out.push(Output::Event(Event::NameConflict { node, address, other_address: other.to_owned() }));
        }
    }

    /// Room for one more peer, by forgetting the one dead longest if need be.
    fn make_room(&mut self, newcomer: &NodeName, out: &mut Vec<Output>) -> bool {
        if self.peers.len() < self.config.max_peers {
            return true;
        }
        let dead = self.peers.iter().filter(|(_, p)| p.liveness >= Liveness::Dead);
        if let Some(name) = dead.min_by_key(|(_, p)| p.since).map(|(name, _)| name.clone()) {
            self.drop_peer(&name);
            return true;
        }
        if !std::mem::replace(&mut self.crowd_told, true) {
            out.push(Output::Event(Event::TooManyPeers { refused: newcomer.clone() }));
        }
        false
    }

    /// After a reply that accused us: our answer goes back at once instead of with the next probe.
    pub(super) fn nudge(&mut self, name: &NodeName, now: Time, out: &mut Vec<Output>) {
        let rested = self.last_nudge.is_none_or(|last| now - last >= self.config.probe_interval);
        if rested && !self.left && self.peers.contains_key(name) {
            self.last_nudge = Some(now);
            self.ping(name, Purpose::Word, now, out);
        }
    }
}

fn up(rumour: &Rumour, restarted: bool) -> Output {
    let Rumour { node, address, boot, .. } = rumour.clone();
    Output::Event(Event::Up { node, address, boot, restarted })
}
