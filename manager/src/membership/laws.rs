//! What holds whatever arrives.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::{
    contacts::Contacts,
    core::{Core, Me},
    message::{
        Boot, CallId, Event, Gossip, Input, Liveness, MAX_INCARNATION, MAX_RUMOURS, Output, Request, Rumour, Time,
        Touch,
    },
    sim::ms,
};
use crate::{membership::Config, spec::NodeName};

const ME: &str = "me";
const SEED: &str = "seed:1";
/// Known and met in an earlier start.
const REMEMBERED: &str = "b";
const MAX_PEERS: usize = 4;

fn name(text: &str) -> NodeName {
    text.parse().unwrap()
}

fn core() -> Core {
    let config = Config { max_peers: MAX_PEERS, ..Config::new("c") };
    let me = Me { name: name(ME), address: "me:1".into(), boot: Boot([9; 16]) };
    let contacts = Contacts { known: [name(REMEMBERED)].into(), met: [name(REMEMBERED)].into() };
    Core::new(config, me, vec![SEED.into()], contacts, 1, Time::ZERO).unwrap()
}

fn names() -> impl Strategy<Value = NodeName> {
    prop::sample::select(vec![ME, "a", "b", "c", "d", "e", "f"]).prop_map(name)
}

fn liveness() -> impl Strategy<Value = Liveness> {
    prop::sample::select(vec![Liveness::Alive, Liveness::Suspect, Liveness::Dead, Liveness::Left])
}

fn incarnations() -> impl Strategy<Value = u64> {
    prop_oneof![20 => 0..6u64, 1 => MAX_INCARNATION - 2..=MAX_INCARNATION, 1 => Just(u64::MAX)]
}

fn boots() -> impl Strategy<Value = Boot> {
    prop::sample::select(vec![1, 2, 9]).prop_map(|b| Boot([b; 16]))
}

fn addresses() -> impl Strategy<Value = String> {
    prop::sample::select(vec!["me:1", "x:1", "y:1", ""]).prop_map(str::to_owned)
}

prop_compose! {
    fn rumours()(node in names(), address in addresses(), boot in boots(), incarnation in incarnations(),
                 liveness in liveness(), accuser in prop::option::of(names())) -> Rumour {
        Rumour { node, address, boot, incarnation, liveness, accuser }
    }
}

prop_compose! {
    fn gossips()(from in names(), to in prop::option::of(names()), address in addresses(), boot in boots(), incarnation in incarnations(),
                 rumours in prop::collection::vec(rumours(), 0..6)) -> Gossip {
        Gossip { from, to, address, boot, incarnation, rumours }
    }
}

#[derive(Debug, Clone)]
enum Step {
    Wait(u64),
    Ask(Gossip, Option<(NodeName, u64)>),
    Answer(u64, Gossip, bool),
    Fail(u64),
    Drop(u64),
    Leave,
}

fn steps() -> impl Strategy<Value = Step> {
    prop_oneof![
        30 => (0..400u64).prop_map(Step::Wait),
        20 => (gossips(), prop::option::of((names(), 0..5000u64))).prop_map(|(g, t)| Step::Ask(g, t)),
        20 => (0..40u64, gossips(), any::<bool>()).prop_map(|(c, g, a)| Step::Answer(c, g, a)),
        10 => (0..40u64).prop_map(Step::Fail),
        5 => (0..40u64).prop_map(Step::Drop),
        1 => Just(Step::Leave),
    ]
}

/// Feeds a core and keeps the books that the laws are checked against.
struct Bench {
    core: Core,
    now: Time,
    open: BTreeSet<u64>,
    asked: u64,
    /// Whom the core has announced, of either kind, and whom it may have been sent a message by.
    touched: BTreeSet<(NodeName, Touch)>,
    heard: BTreeSet<NodeName>,
    answered: BTreeMap<NodeName, Time>,
}

impl Bench {
    fn new(now: Time) -> Self {
        Self {
            core: core(),
            now,
            open: BTreeSet::new(),
            asked: 0,
            touched: [Touch::Known, Touch::Met].map(|kind| (name(REMEMBERED), kind)).into(),
            heard: BTreeSet::new(),
            answered: BTreeMap::new(),
        }
    }

    /// Nobody is sent anything before it was announced, but by way of a seed; each is announced once.
    fn check_contact(&mut self, output: &Output) {
        match output {
            Output::Touch { node, kind } => {
                assert!(self.touched.insert((node.clone(), *kind)), "{node} is announced twice as {kind:?}");
                assert!(*kind == Touch::Known || self.heard.contains(node), "{node} was never heard");
                assert_ne!(node.as_str(), ME);
            }
            Output::Call { gossip: Gossip { to: None, .. }, to, .. } => assert_eq!(to, SEED),
            // Only to another node of this name.
            Output::Reply { gossip: Gossip { to: None, .. }, .. } => {}
            Output::Call { gossip: Gossip { to: Some(to), .. }, .. }
            | Output::Reply { gossip: Gossip { to: Some(to), .. }, .. } => {
                assert!(self.touched.contains(&(to.clone(), Touch::Known)), "{to} is not known");
                if matches!(output, Output::Reply { .. }) {
                    self.answered.insert(to.clone(), self.now);
                }
            }
            Output::Event(_) => {}
        }
    }

    fn take(&mut self, input: Input) -> Vec<Output> {
        let mut out = Vec::new();
        if let Input::Asked { token, .. } = &input {
            self.open.insert(*token);
        }
        if let Input::Asked { gossip, .. } | Input::Answered { gossip, .. } = &input
            && gossip.to.as_ref().is_some_and(|to| to.as_str() == ME)
        {
            self.heard.insert(gossip.from.clone());
        }
        self.core.handle(input, self.now, &mut out);
        for output in &out {
            self.check_contact(output);
            let gossip = match output {
                Output::Reply { token, gossip, .. } => {
                    assert!(self.open.remove(token), "answered twice, or never asked");
                    gossip
                }
                Output::Call { gossip, timeout, .. } => {
                    assert!(*timeout > Time::ZERO);
                    gossip
                }
                Output::Touch { .. } | Output::Event(_) => continue,
            };
            assert!(gossip.rumours.len() <= MAX_RUMOURS);
            assert!(gossip.from.as_str() == ME && gossip.incarnation <= MAX_INCARNATION);
        }
        for peer in self.core.peers() {
            assert_eq!(peer.answered, self.answered.get(&peer.name).copied(), "{}", peer.name);
        }
        assert!(self.core.peers().count() <= MAX_PEERS);
        assert!(self.core.probes_pending() <= self.core.peers().count(), "{} turns", self.core.probes_pending());
        assert!(self.core.rumours_pending() <= 1 + MAX_PEERS * 3, "{}", self.core.rumours_pending());
        assert!(self.core.calls_pending() < 200, "{}", self.core.calls_pending());
        assert!(self.core.deadline() > self.now, "a busy loop: due at {:?} at {:?}", self.core.deadline(), self.now);
        out
    }

    fn step(&mut self, step: Step) {
        match step {
            Step::Wait(time) => {
                let end = self.now + ms(time);
                while self.core.deadline() <= end && time < 300 {
                    self.now = self.core.deadline();
                    self.take(Input::Tick);
                }
                // A long wait is a stall: nothing ticks meanwhile.
                self.now = end;
                self.take(Input::Tick);
            }
            Step::Ask(gossip, target) => {
                self.asked += 1;
                let request = match target {
                    Some((target, timeout)) => Request::PingIndirect { target, timeout: ms(timeout) },
                    None => Request::Ping,
                };
                self.take(Input::Asked { token: self.asked, gossip, request });
            }
            Step::Answer(call, gossip, answered) => {
                self.take(Input::Answered { call: CallId(call), gossip, answered });
            }
            Step::Fail(call) => {
                self.take(Input::Failed { call: CallId(call) });
            }
            Step::Drop(call) => {
                self.take(Input::Dropped { call: CallId(call) });
            }
            Step::Leave => {
                self.take(Input::Leave);
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn nothing_panics_state_stays_bounded_and_every_question_is_answered_once(steps in prop::collection::vec(steps(), 1..120)) {
        let mut bench = Bench::new(Time::ZERO);
        for step in steps {
            bench.step(step);
        }
        bench.step(Step::Wait(299));
        bench.now += ms(2_000);
        bench.take(Input::Tick);
        prop_assert!(bench.open.is_empty(), "not answered: {:?}", bench.open);
    }

    #[test]
    fn claims_join_to_the_same_belief_in_any_order(
        claims in prop::collection::vec((0..4u64, liveness()), 1..8).prop_shuffle(),
        order in any::<u64>(),
    ) {
        let belief = |claims: &[(u64, Liveness)]| {
            let mut core = core();
            let first = [(0, Liveness::Alive)];
            for (incarnation, liveness) in first.iter().chain(claims) {
                let rumour = Rumour {
                    node: name("b"), address: "b:1".into(), boot: Boot([1; 16]),
                    incarnation: *incarnation, liveness: *liveness, accuser: Some(name("a")),
                };
                core.believe(rumour, ms(1), &mut Vec::new());
            }
            let peer = core.peers().next().unwrap();
            (peer.incarnation, peer.liveness)
        };
        let mut other = claims.clone();
        super::rng::Rng::new(order).shuffle(&mut other);
        prop_assert_eq!(belief(&claims), belief(&other));
        prop_assert_eq!(belief(&claims), *claims.iter().max().unwrap().max(&(0, Liveness::Alive)));
    }

    #[test]
    fn incarnations_never_fall_and_every_accusation_is_refuted(gossips in prop::collection::vec(gossips(), 1..40)) {
        let mut bench = Bench::new(ms(1));
        let mut held: BTreeMap<NodeName, u64> = BTreeMap::new();
        for gossip in gossips {
            let before = bench.core.incarnation();
            let accused = gossip.rumours.iter()
                .filter(|r| r.node.as_str() == ME && r.liveness > Liveness::Alive && r.incarnation < MAX_INCARNATION)
                .map(|r| r.incarnation).max()
                .filter(|_| gossip.from.as_str() != ME);
            bench.asked += 1;
            let token = bench.asked;
            let out = bench.take(Input::Asked { token, gossip, request: Request::Ping });
            prop_assert!(bench.core.incarnation() >= before);
            if let Some(accused) = accused {
                prop_assert!(bench.core.incarnation() > accused, "accused at {accused}, still {}", bench.core.incarnation());
            }
            // The answer itself is the refutation.
            let said = out.iter().find_map(|o| match o { Output::Reply { gossip, .. } => Some(gossip.incarnation), _ => None });
            prop_assert_eq!(said, Some(bench.core.incarnation()));
            let now_held: BTreeMap<_, _> = bench.core.peers().map(|p| (p.name, p.incarnation)).collect();
            // A peer that was forgotten to make room may come back lower, even within one message; full stays full.
            let full = now_held.len() == MAX_PEERS;
            for (name, incarnation) in &now_held {
                if let Some(was) = held.get(name) {
                    prop_assert!(incarnation >= was || full);
                }
            }
            held = now_held;
        }
    }
}

#[test]
fn a_peer_that_names_a_million_nodes_is_capped_and_reported_once() {
    let config = Config { max_peers: 64, ..Config::new("c") };
    let me = Me { name: name(ME), address: "me:1".into(), boot: Boot([9; 16]) };
    let mut core = Core::new(config, me, vec![], Contacts::default(), 1, Time::ZERO).unwrap();
    let mut told = 0;
    let mut out = Vec::new();
    for message in 0..1_000_000 / MAX_RUMOURS {
        let rumour = |i: usize| Rumour {
            node: name(&format!("x{}", message * MAX_RUMOURS + i)),
            address: "10.77.0.9:1".into(),
            boot: Boot([1; 16]),
            incarnation: 0,
            liveness: Liveness::Alive,
            accuser: None,
        };
        let gossip = Gossip {
            from: name("liar"),
            to: Some(name(ME)),
            address: "10.77.0.8:1".into(),
            boot: Boot([2; 16]),
            incarnation: 0,
            rumours: (0..MAX_RUMOURS).map(rumour).collect(),
        };
        let now = Time::from_micros(message as u64);
        core.handle(Input::Asked { token: message as u64, gossip, request: Request::Ping }, now, &mut out);
        told += out.drain(..).filter(|o| matches!(o, Output::Event(Event::TooManyPeers { .. }))).count();
    }
    assert_eq!((core.peers().count(), told), (64, 1));
    assert!(core.rumours_pending() <= 64 * 3);
}

#[test]
fn one_liar_cannot_invent_the_witnesses_that_confirm_a_suspicion() {
    let mut core = core();
    let mut out = Vec::new();
    let say = |core: &mut Core, accuser: &str, out: &mut Vec<Output>| {
        let rumour = Rumour {
            node: name("b"),
            address: "b:1".into(),
            boot: Boot([1; 16]),
            incarnation: 0,
            liveness: Liveness::Suspect,
            accuser: Some(name(accuser)),
        };
        core.believe(rumour, ms(1), out);
    };
    for accuser in ["a", "ghost1", "ghost2"] {
        say(&mut core, accuser, &mut out);
    }
    let confirmed = out.iter().filter(|o| matches!(o, Output::Event(Event::ConfirmedByPeer { .. }))).count();
    assert_eq!(confirmed, 0);
}

#[test]
fn names_that_ask_without_end_are_refused_by_the_shell_and_not_kept() {
    let config = Config { max_peers: 2, ..Config::new("c") };
    let me = Me { name: name(ME), address: "me:1".into(), boot: Boot([9; 16]) };
    let mut core = Core::new(config, me, vec![], Contacts::default(), 1, Time::ZERO).unwrap();
    let mut ask = |from: &str| {
        let mut out = Vec::new();
        let gossip = Gossip {
            from: name(from),
            to: Some(name(ME)),
            address: "x:1".into(),
            boot: Boot([2; 16]),
            incarnation: 0,
            rumours: vec![],
        };
        core.handle(Input::Asked { token: 0, gossip, request: Request::Ping }, ms(1), &mut out);
        let touches = out.iter().filter(|o| matches!(o, Output::Touch { kind: Touch::Known, .. })).count();
        (touches, core.answered_at(&name(from)))
    };
    for i in 0..4 {
        assert_eq!(ask(&format!("x{i}")), (1, Some(ms(1))));
    }
    assert_eq!(ask("x0"), (0, Some(ms(1))));
    for _ in 0..2 {
        assert_eq!(ask("x4"), (1, None), "announced again each time, and nothing of it kept");
    }
}

#[test]
fn a_contact_that_could_not_be_remembered_is_announced_again() {
    let mut bench = Bench::new(ms(1));
    let gossip = Gossip {
        from: name("a"),
        to: Some(name(ME)),
        address: "a:1".into(),
        boot: Boot([1; 16]),
        incarnation: 0,
        rumours: vec![],
    };
    let ask = |bench: &mut Bench| {
        bench.asked += 1;
        let (token, gossip) = (bench.asked, gossip.clone());
        bench.take(Input::Asked { token, gossip, request: Request::Ping })
    };
    let touches = |out: &[Output]| out.iter().filter(|o| matches!(o, Output::Touch { .. })).count();
    assert_eq!(touches(&ask(&mut bench)), 2);
    assert_eq!(touches(&ask(&mut bench)), 0);
    for kind in [Touch::Known, Touch::Met] {
        bench.core.touch_failed(&name("a"), kind);
        bench.touched.remove(&(name("a"), kind));
    }
    bench.answered.clear();
    assert_eq!(touches(&ask(&mut bench)), 2);
}

#[test]
fn one_that_is_forgotten_is_new_when_it_comes_back() {
    let mut bench = Bench::new(ms(1));
    let gossip = |liveness| Gossip {
        from: name("a"),
        to: Some(name(ME)),
        address: "a:1".into(),
        boot: Boot([1; 16]),
        incarnation: 0,
        rumours: vec![Rumour {
            node: name(REMEMBERED),
            address: "b:1".into(),
            boot: Boot([1; 16]),
            incarnation: 0,
            liveness,
            accuser: None,
        }],
    };
    let ask = |bench: &mut Bench, liveness| {
        bench.asked += 1;
        let token = bench.asked;
        bench.take(Input::Asked { token, gossip: gossip(liveness), request: Request::Ping });
    };
    ask(&mut bench, Liveness::Alive);
    assert!(bench.core.lives(&name(REMEMBERED)));
    ask(&mut bench, Liveness::Left);
    assert!(!bench.core.lives(&name(REMEMBERED)));
    bench.core.forget(&name(REMEMBERED));
    assert!(bench.core.peers().all(|peer| peer.name.as_str() != REMEMBERED));
    bench.touched.retain(|(node, _)| node.as_str() != REMEMBERED);
    ask(&mut bench, Liveness::Left);
    assert!(bench.core.peers().all(|peer| peer.name.as_str() != REMEMBERED), "a rumour of its end brings it back");
    let from_it = Gossip { from: name(REMEMBERED), address: "b:1".into(), ..gossip(Liveness::Alive) };
    let from_it = Gossip { rumours: vec![], ..from_it };
    bench.asked += 1;
    let out = bench.take(Input::Asked { token: bench.asked, gossip: from_it, request: Request::Ping });
    assert_eq!(out.iter().filter(|o| matches!(o, Output::Touch { .. })).count(), 2);
}

#[test]
fn names_that_come_and_go_take_no_turns_of_the_others() {
    let mut core = core();
    let mut out = Vec::new();
    let rumour = |node: &str, incarnation, liveness| Rumour {
        node: name(node),
        address: "x:1".into(),
        boot: Boot([1; 16]),
        incarnation,
        liveness,
        accuser: None,
    };
    // The table is full, and a liar has two names take turns in its last place.
    for node in ["a", "b", "c"] {
        core.believe(rumour(node, 0, Liveness::Alive), ms(1), &mut out);
    }
    for incarnation in 0..1000 {
        for node in ["d", "e"] {
            core.believe(rumour(node, incarnation, Liveness::Alive), ms(1), &mut out);
            core.believe(rumour(node, incarnation, Liveness::Dead), ms(1), &mut out);
        }
    }
    core.believe(rumour("d", 1000, Liveness::Alive), ms(1), &mut out);
    assert_eq!((core.peers().count(), core.probes_pending()), (4, 4));
}
