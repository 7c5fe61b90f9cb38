use proptest::prelude::*;

use super::*;

fn node(name: &str) -> NodeName {
    name.parse().unwrap()
}

fn beats(of: &str, numbers: &[u64]) -> Traces {
    Traces::from([(node(of), numbers.iter().copied().map(Sign::Beat).collect())])
}

fn after(start: Instant, seconds: u64) -> Instant {
    start + Duration::from_secs(seconds)
}

#[test]
fn a_node_without_a_new_sign_is_dead_at_once_whatever_it_wrote_before() {
    let (start, n2) = (Instant::now(), node("n2"));
    let mut signs = Signs::default();
    signs.accuse(&n2);
    assert_eq!(signs.life(&n2), Some(Life::Unknown), "nobody has looked yet");
    signs.looked(start, &beats("n2", &[7]));
    assert_eq!(signs.life(&n2), None);
    signs.looked(after(start, 2), &beats("n2", &[7]));
    assert_eq!(signs.life(&n2), None);
    // What it removed is no sign either.
    signs.looked(after(start, 4), &Traces::new());
    assert_eq!(signs.life(&n2), None);
}

#[test]
fn a_claim_is_a_sign_and_silence_has_to_be_seen_in_full() {
    let (start, n2) = (Instant::now(), node("n2"));
    let claim = Sign::Claim("redis".parse().unwrap(), Epoch(2));
    let traces = Traces::from([(n2.clone(), BTreeSet::from([claim]))]);
    let mut signs = Signs::default();
    signs.accuse(&n2);
    signs.looked(start, &Traces::new());
    signs.looked(after(start, 1), &traces);
    assert_eq!(signs.life(&n2), Some(Life::Writes));
    signs.looked(after(start, 10), &traces);
    assert_eq!(signs.life(&n2), Some(Life::Writes), "nine seconds");
    signs.failed();
    // A minute passed, but nobody could see what it wrote in it.
    signs.looked(after(start, 70), &traces);
    assert_eq!(signs.life(&n2), Some(Life::Writes));
    signs.looked(after(start, 80), &traces);
    assert_eq!(signs.life(&n2), None);
    signs.looked(after(start, 82), &beats("n2", &[1]));
    assert_eq!(signs.life(&n2), Some(Life::Writes), "it was only away for long");
}

#[test]
fn a_new_suspicion_begins_anew_and_a_node_that_is_heard_is_forgotten() {
    let (start, n2) = (Instant::now(), node("n2"));
    let mut signs = Signs::default();
    signs.accuse(&n2);
    signs.looked(start, &beats("n2", &[1]));
    signs.looked(start, &beats("n2", &[2]));
    assert_eq!(signs.life(&n2), Some(Life::Writes));
    signs.watch(&n2);
    assert_eq!(signs.life(&n2), Some(Life::Writes), "watched already");
    signs.accuse(&n2);
    signs.looked(start, &beats("n2", &[3]));
    assert_eq!(signs.life(&n2), None);
    signs.retain(|_| false);
    assert!(signs.is_empty());
    signs.looked(start, &beats("n2", &[4]));
    assert_eq!(signs.life(&n2), None);
}

/// What a look of the property below meets.
#[derive(Debug, Clone, Copy)]
enum Met {
    Nothing,
    New,
    Failure,
}

proptest! {
    /// Held if and only if something new was found, or a look failed, and no unbroken silence of `HUSH` was seen since.
    #[test]
    fn held_from_the_last_doubt_to_the_end_of_a_whole_silence(
        looks in prop::collection::vec(
            (1u64..6000, prop_oneof![4 => Just(Met::Nothing), 1 => Just(Met::New), 1 => Just(Met::Failure)]), 1..60),
    ) {
        let (start, n2) = (Instant::now(), node("n2"));
        let (mut signs, mut at, mut number) = (Signs::default(), start, 0);
        signs.accuse(&n2);
        signs.looked(at, &beats("n2", &[0]));
        let mut history: Vec<(Instant, Met)> = Vec::new();
        for (pause, met) in looks {
            at += Duration::from_millis(pause);
            number += u64::from(matches!(met, Met::New));
            match met {
                Met::Failure => signs.failed(),
                Met::New | Met::Nothing => signs.looked(at, &beats("n2", &[number])),
            }
            history.push((at, met));
            let last_doubt = history.iter().rposition(|(_, met)| !matches!(met, Met::Nothing));
            let expected = last_doubt.is_some_and(|doubt| {
                // A new sign begins the silence; after a failure the first look does.
                let begin = if matches!(history[doubt].1, Met::New) { doubt } else { doubt + 1 };
                history.get(begin).is_none_or(|(since, _)| at - *since < HUSH)
            });
            prop_assert_eq!(signs.life(&n2).is_some(), expected, "{:?}", history);
        }
    }
}

/// Two living nodes that cannot hear each other, and a store that each reaches but for a while now and then. Each has a
/// container. Times are milliseconds from the cut.
mod cut {
    use super::*;

    const DEAD_AFTER: u64 = 600;
    const LOOK_EVERY: u64 = 2000;

    #[derive(Debug, Clone)]
    pub struct Side {
        /// Of the suspicion, and of its regular looks.
        suspects_at: u64,
        look_phase: u64,
        /// The store does not answer it in this time.
        away: (u64, u64),
    }

    pub fn side() -> impl Strategy<Value = Side> {
        // As long as it may be away without being held for dead for it: a beat every 2 s, and one look to see it.
        (150u64..350, 0..LOOK_EVERY, 0u64..40_000, 0u64..5000).prop_map(|(suspects_at, look_phase, from, long)| Side {
            suspects_at,
            look_phase,
            away: (from, from + long),
        })
    }

    struct State {
        side: Side,
        name: NodeName,
        other: NodeName,
        signs: Signs,
        beat: u64,
    }

    impl State {
        fn reaches(&self, ms: u64) -> bool {
            !(self.side.away.0..self.side.away.1).contains(&ms)
        }
    }

    /// Runs a minute and returns every claim.
    pub fn play(sides: [Side; 2]) -> Vec<(u64, NodeName, ContainerName)> {
        let names = [node("n1"), node("n2")];
        let containers: [ContainerName; 2] = ["c1".parse().unwrap(), "c2".parse().unwrap()];
        let mut owners: BTreeMap<ContainerName, (NodeName, Epoch)> =
            containers.iter().cloned().zip(names.iter().map(|name| (name.clone(), Epoch(1)))).collect();
        let mut there = Traces::new();
        let mut claims = Vec::new();
        let start = Instant::now();
        let mut nodes: Vec<State> = sides
            .into_iter()
            .enumerate()
            .map(|(i, side)| State {
                side,
                name: names[i].clone(),
                other: names[1 - i].clone(),
                signs: Signs::default(),
                beat: 0,
            })
            .collect();
        for ms in 0..60_000_u64 {
            for state in &mut nodes {
                let Some(since) = ms.checked_sub(state.side.suspects_at) else { continue };
                let now = start + Duration::from_millis(ms);
                let beats = if since < DEAD_AFTER {
                    since.is_multiple_of(250)
                } else {
                    (since - DEAD_AFTER).is_multiple_of(2000)
                };
                if beats && state.reaches(ms) {
                    state.beat += 1;
                    there.insert(state.name.clone(), BTreeSet::from([Sign::Beat(state.beat)]));
                }
                if since == 0 {
                    state.signs.accuse(&state.other);
                }
                let dead = since >= DEAD_AFTER;
                let regular = ms % LOOK_EVERY == state.side.look_phase;
                if !(since == 0 || since == DEAD_AFTER || regular) {
                    continue;
                }
                if !state.reaches(ms) {
                    state.signs.failed();
                    continue;
                }
                let mut traces = there.clone();
                for (container, (owner, epoch)) in &owners {
                    traces.entry(owner.clone()).or_default().insert(Sign::Claim(container.clone(), *epoch));
                }
                state.signs.looked(now, &traces);
                if dead && state.signs.life(&state.other).is_none() {
                    for (container, (owner, epoch)) in owners.iter_mut().filter(|(_, (owner, _))| *owner == state.other)
                    {
                        (*owner, *epoch) = (state.name.clone(), epoch.next());
                        claims.push((ms, state.name.clone(), container.clone()));
                    }
                }
            }
        }
        claims
    }
}

proptest! {
    #[test]
    fn two_living_nodes_that_cannot_hear_each_other_take_nothing_from_each_other(
        a in cut::side(), b in cut::side(),
    ) {
        let claims = cut::play([a, b]);
        // Each container is claimed once at most, and not again in the minute after; and that only when the owner could not
        // write between the suspicion and the death.
        for container in ["c1", "c2"] {
            let of: Vec<_> = claims.iter().filter(|(.., name)| name.as_str() == container).collect();
            prop_assert!(of.len() <= 1, "{:?}", claims);
        }
        prop_assert!(claims.iter().all(|(ms, ..)| *ms < 1000), "{:?}", claims);
    }
}
