//! Each deliberate mistake is caught by an invariant: under some seed of the scenarios that lead to where it matters.

use std::time::Duration;

use super::{
    Micros,
    mutation::Mutation,
    run,
    scenario::{Fault, Scenario},
    store::Quality,
};
use crate::{membership::Rng, ownership::lease::Terms};

/// A random scenario, made such that what is wrong for a moment only shows: copies begin at once, clocks are as far apart as they
/// may be, and listings are slow.
fn hostile(seed: u64) -> Scenario {
    let mut scenario = Scenario::random(seed);
    at_once(&mut scenario, seed);
    scenario.store.listing = [(500, 5000), (10_000, 1_000_000)][usize::from(!seed.is_multiple_of(3))];
    scenario
}

fn at_once(scenario: &mut Scenario, seed: u64) {
    scenario.containers.iter_mut().for_each(|container| container.restore = (0, 10_000));
    let drift = |node: usize| if (node as u64 + seed).is_multiple_of(2) { 10_000 } else { -10_000 };
    scenario.drifts = (0..scenario.nodes).map(drift).collect();
}

/// Two nodes, a container on the first, and what befalls them; times in milliseconds.
fn staged(seed: u64, terms: (u64, u64), faults: Vec<(u64, Fault)>) -> Scenario {
    let terms = Terms { short: Duration::from_millis(terms.0), long: Duration::from_millis(terms.1) };
    let mut scenario = Scenario::random(seed);
    scenario.containers.truncate(1);
    scenario.containers[0].owner = 0;
    scenario.containers[0].failover = true;
    let mut timeline: Vec<(Micros, Fault)> = faults.into_iter().map(|(at, fault)| (at * 1000, fault)).collect();
    timeline.sort_by_key(|(at, _)| *at);
    let quiet = timeline.last().map_or(0, |(at, _)| *at) + 20_000_000;
    let end = quiet + Scenario::patience(terms);
    let mut scenario = Scenario {
        nodes: 2,
        terms,
        delay: (100, 2000),
        loss: 0,
        duplicates: 0,
        store: Quality::good(),
        met: true,
        timeline,
        quiet,
        end,
        ..scenario
    };
    at_once(&mut scenario, seed);
    scenario
}

fn apart(at: u64) -> [(u64, Fault); 2] {
    [(at, Fault::CutOneWay(0, 1)), (at, Fault::CutOneWay(1, 0))]
}

fn slow() -> Quality {
    Quality { latency: (1000, 1_200_000), ..Quality::good() }
}

/// The owner is cut off from its peer, and some time later from the store.
fn cut_off(seed: u64, terms: (u64, u64), quality: Quality) -> Scenario {
    let mut rng = Rng::new(seed);
    let mut faults = apart(10_000).to_vec();
    faults.push((10_000 + rng.below(6000) as u64, Fault::StoreDown(Some(0))));
    faults.push((9000, Fault::StoreQuality(quality)));
    staged(seed, terms, faults)
}

/// At once from the peer and the store; the taker's manager starts anew.
fn cut_off_and_started(seed: u64) -> Scenario {
    let mut faults = apart(10_000).to_vec();
    faults.extend([(10_000, Fault::StoreDown(Some(0))), (10_050, Fault::KillManager(1)), (10_100, Fault::Start(1))]);
    staged(seed, (8000, 20_000), faults)
}

/// Cut off from peer and store, and back in the store about when the taker claims; then its manager gets no time for a while.
fn back_at_the_claim(seed: u64) -> Scenario {
    let mut rng = Rng::new(seed);
    let mut any = |most: usize| rng.below(most) as u64;
    let mut faults = apart(10_000).to_vec();
    let back = 10_800 + any(5000);
    faults.extend([(9000, Fault::StoreQuality(slow())), (10_000, Fault::StoreDown(Some(0)))]);
    faults.extend([(back, Fault::StoreUp(Some(0))), (back + any(7000), Fault::Slow(0, 1_500_000))]);
    staged(seed, (1000, 15_000), faults)
}

/// As there, with listings that take long, and stopped in the second renewal after that.
fn stopped_in_a_renewal(seed: u64) -> Scenario {
    let mut rng = Rng::new(seed);
    let mut any = |most: usize| rng.below(most) as u64;
    let quality = Quality { latency: (50_000, 200_000), listing: (600_000, 1_200_000), ..Quality::good() };
    let mut faults = apart(10_000).to_vec();
    let back = 13_800 + any(2500);
    faults.extend([(9000, Fault::StoreQuality(quality)), (10_000, Fault::StoreDown(Some(0)))]);
    faults.extend([(back, Fault::StoreUp(Some(0))), (back + 2000 + any(900), Fault::Slow(0, 8_000_000))]);
    staged(seed, (1000, 15_000), faults)
}

/// Apart; the manager gets no time while a beat of its own is written, and soon after it loses the store.
fn stopped_in_a_write(seed: u64) -> Scenario {
    let mut rng = Rng::new(seed);
    let quality = Quality { latency: (100_000, 300_000), ..Quality::good() };
    let stop = 11_000 + rng.below(4000) as u64;
    let mut faults = apart(10_000).to_vec();
    faults.extend([(9000, Fault::StoreQuality(quality)), (stop, Fault::Slow(0, 8_000_000))]);
    faults.push((stop + 8900, Fault::StoreDown(Some(0))));
    staged(seed, (1000, 15_000), faults)
}

/// A short cut, and the owner's manager is killed when everybody answers again.
fn killed_at_rest(seed: u64) -> Scenario {
    let mut rng = Rng::new(seed);
    let mut faults = apart(10_000).to_vec();
    faults.push((10_700, Fault::Heal));
    faults.push((10_700 + rng.below(800) as u64, Fault::KillManager(0)));
    staged(seed, (1000, 5000), faults)
}

/// The taker sees a beat, then not the store; the owner's next manager writes beats of its own.
fn beats_of_two_managers(seed: u64) -> Scenario {
    let mut rng = Rng::new(seed);
    let mut any = |most: usize| rng.below(most) as u64;
    let mut faults = apart(10_000).to_vec();
    faults.push((12_000 + any(2000), Fault::StoreDown(Some(1))));
    faults.push((14_500, Fault::Heal));
    faults.extend([(17_000, Fault::KillManager(0)), (17_100, Fault::Start(0))]);
    faults.extend(apart(18_500 + any(1000)));
    faults.push((19_000 + any(3000), Fault::StoreUp(Some(1))));
    staged(seed, (1000, 5000), faults)
}

/// Parked, started and parked again while the store carries out much of what it is asked long after.
fn parked_twice(seed: u64) -> Scenario {
    let late = Quality { late: 250, ..Quality::good() };
    let faults = vec![
        (9000, Fault::StoreQuality(late)),
        (10_000, Fault::Terminate(0)),
        (16_000, Fault::Start(0)),
        (18_000, Fault::Terminate(0)),
        (30_000, Fault::StoreQuality(Quality::good())),
    ];
    staged(seed, (1000, 5000), faults)
}

/// Answers are long on their way when the owner is cut off.
fn late_answers(seed: u64) -> Scenario {
    let mut faults = vec![(9000, Fault::Delay(10_000, 700_000)), (10_000, Fault::CutOneWay(0, 1))];
    faults.push((10_000, Fault::StoreDown(Some(0))));
    staged(seed, (1000, 5000), faults)
}

/// The first seed under which the mistake is caught, and by which invariant.
fn caught(mutation: Mutation, from: u64, scenario: impl Fn(u64) -> Scenario) -> Option<(u64, &'static str)> {
    (from..from + 400).find_map(|seed| {
        let scenario = Scenario { mutation: Some(mutation), ..scenario(seed) };
        run(&scenario).violation.map(|violation| (seed, violation.law))
    })
}

#[test]
fn without_a_mistake_the_same_scenarios_hold() {
    let kinds: [fn(u64) -> Scenario; 11] = [
        hostile,
        |seed| cut_off(seed, (1000, 5000), slow()),
        |seed| cut_off(seed, (8000, 20_000), Quality::good()),
        cut_off_and_started,
        back_at_the_claim,
        stopped_in_a_renewal,
        stopped_in_a_write,
        killed_at_rest,
        beats_of_two_managers,
        parked_twice,
        late_answers,
    ];
    for (kind, scenario) in kinds.iter().enumerate() {
        for seed in 0..20 {
            let outcome = run(&scenario(seed));
            assert_eq!(outcome.violation, None, "kind {kind}, seed {seed}\n{}", outcome.table());
        }
    }
}

/// The seed is where the search begins: it is known to be found soon after it.
macro_rules! caught {
    ($($name:ident: $mutation:ident from $from:literal in $scenario:expr;)*) => {
        $(
            #[test]
            fn $name() {
                match caught(Mutation::$mutation, $from, $scenario) {
                    Some((seed, law)) => println!("{}: {law} under seed {seed}", stringify!($mutation)),
                    None => panic!("no seed shows the mistake"),
                }
            }
        )*
    };
}

caught! {
    a_renewal_that_reads_no_epochs_is_caught: EpochsNotRead from 0 in hostile;
    a_renewal_that_reads_the_epochs_first_is_caught: EpochsReadBeforeBeat from 220 in
        back_at_the_claim;
    a_lease_counted_from_after_the_write_is_caught: CountedFromAfterTheWrite from 0 in stopped_in_a_write;
    an_answer_counted_from_its_arrival_is_caught: CountedFromTheArrival from 0 in late_answers;
    a_lease_revived_by_answers_is_caught: RevivedByAnswers from 200 in hostile;
    a_commit_that_does_not_look_is_caught: CommitDoesNotLook from 0 in hostile;
    a_taker_that_does_not_wait_for_short_is_caught: NoWaitForShort from 0 in
        |seed| cut_off(seed, (8000, 20_000), Quality::good());
    a_taker_that_does_not_wait_for_long_is_caught: NoWaitForLong from 0 in hostile;
    a_start_that_forgets_its_answers_is_caught: StartForgotten from 0 in cut_off_and_started;
    a_taker_that_does_not_look_after_its_claim_is_caught: NoLookAfterClaim from 0 in
        back_at_the_claim;
    an_undecided_epoch_left_to_itself_is_caught: UndecidedLeftToItself from 0 in
        |seed| cut_off(seed, (1000, 5000), slow());
    beats_removed_early_are_caught: BeatsRemovedEarly from 1250 in
        stopped_in_a_renewal;
    beats_removed_before_the_watchdog_knows_are_caught: RestNotTold from 0 in killed_at_rest;
    beats_numbered_again_are_caught: BeatNumbersReused from 0 in beats_of_two_managers;
    parks_of_one_name_are_caught: OneNameForParks from 70 in parked_twice;
    a_stopped_manager_without_watchdog_is_caught: NoWatchdog from 0 in hostile;
}
