//! With a watchdog that has nothing to freeze.

use super::*;
use crate::fence::testing::{Fake, Manner};

const PATIENCE: Duration = Duration::from_secs(60);
const TERMS: Terms = Terms { short: Duration::from_secs(600), long: Duration::from_secs(3600) };

impl Keeper {
    pub fn guard(&self) -> &Guard {
        &self.guard
    }

    pub async fn renewing(&self) -> tokio::sync::MutexGuard<'_, ()> {
        self.renewing.lock().await
    }
}

fn n2() -> NodeName {
    "n2".parse().unwrap()
}

/// The lease of a node that knows another and has just renewed, and the watchdog knows until when.
pub async fn held(watchdog: &Fake) -> Keeper {
    let keeper = Keeper::new(TERMS, [n2()], watchdog.guard().await, Vec::new());
    let now = Instant::now();
    assert!(keeper.lease().renewed(now, now) && keeper.look(now) && keeper.may_run());
    keeper
}

/// The deadline comes.
pub async fn frozen(keeper: &Keeper, watchdog: &Fake) {
    keeper.guard.fence_now();
    let mut state = keeper.guard.state();
    tokio::time::timeout(PATIENCE, state.wait_for(|state| state.fired)).await.unwrap().unwrap();
    assert!(watchdog.fired());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_frozen_is_said_with_what_it_waits_for() {
    let watchdog = Fake::start();
    let keeper = held(&watchdog).await;
    assert!(!keeper.is_frozen() && keeper.problem(true).is_none() && keeper.problem(false).is_none());
    frozen(&keeper, &watchdog).await;
    let said = |carrier| keeper.problem(carrier).unwrap();
    assert!(keeper.is_frozen() && said(true).ends_with("until it reaches the store"), "{}", said(true));
    assert!(said(false).contains("until its uplink has a carrier"), "{}", said(false));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_release_without_an_answer_is_a_disturbance() {
    let watchdog = Fake::start();
    let keeper = held(&watchdog).await;
    let moment = keeper.moment();
    frozen(&keeper, &watchdog).await;
    watchdog.is(Manner::Losing);
    let error = keeper.let_go_on(Deadline::Never).await.unwrap_err();
    assert!(matches!(error, FenceError::Lost), "{error}");
    // It was done all the same, and is heard of from the next connection.
    let mut state = keeper.guard.state();
    tokio::time::timeout(PATIENCE, state.wait_for(|state| !state.fired)).await.unwrap().unwrap();
    assert!(keeper.may_run() && !keeper.undisturbed_since(moment));
    assert!(keeper.undisturbed_since(keeper.moment()));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_begins_during_a_release_is_disturbed_by_it() {
    let watchdog = Fake::start();
    let keeper = Arc::new(held(&watchdog).await);
    frozen(&keeper, &watchdog).await;
    watchdog.is(Manner::Deaf);
    let (before, releasing) = (keeper.moment(), Arc::clone(&keeper));
    let releasing = tokio::spawn(async move { releasing.let_go_on(Deadline::Never).await });
    let began = Instant::now();
    while keeper.moment() == before {
        assert!(began.elapsed() < PATIENCE);
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let moment = keeper.moment();
    watchdog.is(Manner::Well);
    releasing.await.unwrap().unwrap();
    assert_ne!(keeper.moment(), moment);
}

#[tokio::test(flavor = "multi_thread")]
async fn who_comes_back_while_it_is_forgotten_counts() {
    let watchdog = Fake::start();
    let keeper = held(&watchdog).await;
    let counts = || keeper.lease().end(Instant::now()) != End::Never;
    // It is heard after the membership has forgotten it.
    keeper.forgotten(&n2(), || {
        keeper.know(&n2(), Instant::now());
        true
    });
    assert!(counts());
    // Before the lease has, too.
    keeper.know(&n2(), Instant::now());
    keeper.forgotten(&n2(), || true);
    assert!(counts());
    keeper.forgotten(&n2(), || false);
    assert!(!counts());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mark_does_not_go_before_the_watchdog_knows_the_end_of_the_lease() {
    let watchdog = Fake::start();
    let keeper = held(&watchdog).await;
    assert!(keeper.replaces_mark(true) && !keeper.replaces_mark(false));
    watchdog.is(Manner::Deaf);
    let began = Instant::now();
    // Its queue is full at last.
    for more in 1.. {
        assert!(began.elapsed() < PATIENCE);
        if !keeper.guard.hold(Deadline::At(began + Duration::from_secs(1_000_000 + more))) {
            break;
        }
    }
    assert!(!keeper.replaces_mark(true));
    watchdog.is(Manner::Well);
    while !keeper.replaces_mark(true) {
        assert!(began.elapsed() < PATIENCE);
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}
