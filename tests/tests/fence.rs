//! The watchdog's process and what it does to processes and links, with its manager well, killed and stopped.
//!
//! The manager here is a copy of this test program ([`manager`]) that has a guard and does what it is told, line by line.

mod fencing;

use std::{fs, thread, time::Duration};

use fencing::{Place, manager_if_asked, uptime};
use nix::sys::signal::Signal;

/// From the deadline to the last sign of life. Generous: real-time priority does not help against a machine that is stopped.
const BOUND: f64 = 2.0;

#[test]
fn manager() {
    manager_if_asked();
}

#[test]
fn fence_deadlines_that_are_put_off_let_everything_go_on() {
    let Some(place) = Place::new("fence_deadlines_that_are_put_off_let_everything_go_on") else { return };
    let mut manager = place.manager();
    assert_eq!(manager.ask("inherited"), "never thawed");
    let counter = place.counter("a");
    let start = uptime();
    while uptime() < start + 3.0 {
        assert_eq!(manager.ask("hold 2000"), "held");
        thread::sleep(Duration::from_millis(50));
    }
    assert_eq!(manager.ask("state"), "thawed none 0");
    counter.goes_on();
    assert!(place.links_are_up());
    // Nothing comes of one that was taken back.
    manager.ask("hold 300");
    manager.ask("hold never");
    thread::sleep(Duration::from_millis(400));
    assert_eq!(manager.ask("state"), "thawed none 0");
}

#[test]
fn fence_reaches_what_a_killed_manager_left_behind() {
    let Some(place) = Place::new("fence_reaches_what_a_killed_manager_left_behind") else { return };
    let mut manager = place.manager();
    let counter = place.counter("a");
    manager.ask("hold 700");
    let deadline = uptime() + 0.7;
    manager.signal(Signal::SIGKILL);
    drop(manager);
    let last = counter.stops();
    println!("stopped {:.0} ms after the deadline (±10)", (last - deadline).max(0.0) * 1000.0);
    assert!(last < deadline + BOUND, "it ran for {:.2} s after its deadline", last - deadline);
    place.wait("the links are down", || place.links_are_down());
    assert!(place.is_up("other"), "a link that is none of its business is down");

    let mut next = place.manager();
    assert!(next.ask("inherited").ends_with(" frozen"));
    next.ask("hold never");
    assert!(next.ask("state").starts_with("frozen none"));
    counter.stands();
    place.run("ip link del hvf1");
    assert_eq!(next.ask("release never"), "released");
    counter.goes_on();
    assert!(place.is_up("hvf2") && !place.is_up("hvdown"), "up is what was up, down what was down");
    assert_eq!(next.ask("state"), "thawed none 0");
}

#[test]
fn fence_reaches_what_a_stopped_manager_holds() {
    let Some(place) = Place::new("fence_reaches_what_a_stopped_manager_holds") else { return };
    let mut manager = place.manager();
    let counter = place.counter("a");
    manager.ask("hold 700");
    let deadline = uptime() + 0.7;
    manager.signal(Signal::SIGSTOP);
    let last = counter.stops();
    println!("stopped {:.0} ms after the deadline (±10)", (last - deadline).max(0.0) * 1000.0);
    assert!(last < deadline + BOUND, "it ran for {:.2} s after its deadline", last - deadline);
    place.wait("the links are down", || place.links_are_down());

    manager.signal(Signal::SIGCONT);
    assert_eq!(manager.ask("fired"), "fired");
    // What it had still to say does not revive.
    manager.ask("hold 60000");
    counter.stands();
    assert!(manager.ask("release 0").contains("past"));
    counter.stands();
    assert_eq!(manager.ask("release 60000"), "released");
    counter.goes_on();
    assert!(place.links_are_up());
    // And the new deadline counts.
    manager.ask("hold 100");
    counter.stops();
    assert_eq!(manager.ask("fired"), "fired");
}

#[test]
fn fence_at_once_stops_what_begins_later_too() {
    let Some(place) = Place::new("fence_at_once_stops_what_begins_later_too") else { return };
    let mut manager = place.manager();
    assert!(!place.group().exists());
    manager.ask("now");
    assert_eq!(manager.ask("fired"), "fired");
    let late = place.begin("late");
    place.wait("it is in the group", || place.has(&late));
    late.has_not_begun();
    place.run("ip link add hvlate type veth peer name hvlatepeer");
    place.run("ip link set hvlate up");
    place.wait("a later link goes down", || !place.is_up("hvlate"));
    late.has_not_begun();
    assert_eq!(manager.ask("release never"), "released");
    late.goes_on();
    assert!(place.is_up("hvlate"));
}

#[test]
fn fence_there_is_one_watchdog_and_the_next_manager_inherits_it() {
    let Some(place) = Place::new("fence_there_is_one_watchdog_and_the_next_manager_inherits_it") else { return };
    let mut manager = place.manager();
    let watchdog = place.watchdog();
    let second = place.second_watchdog();
    let said = String::from_utf8_lossy(&second.stderr);
    assert!(!second.status.success() && said.contains(&format!("pid {watchdog}")), "{said}");
    manager.ask("hold 60000");
    manager.signal(Signal::SIGKILL);
    drop(manager);
    let mut next = place.manager();
    let inherited = next.ask("inherited");
    let (left, state) = inherited.split_once(' ').unwrap();
    let left: u64 = left.parse().unwrap();
    assert!(state == "thawed" && left > 0 && left <= 60_000, "{inherited}");
    assert_eq!(place.watchdog(), watchdog);
    // A third takes its place, as after a manager that hangs: the second one is not heard any more.
    let mut third = place.manager();
    assert!(third.ask("inherited").ends_with(" thawed"));
    assert_eq!(place.watchdog(), watchdog);
}

#[test]
fn fence_a_watchdog_that_dies_has_a_successor_that_knows_the_deadline() {
    let Some(place) = Place::new("fence_a_watchdog_that_dies_has_a_successor_that_knows_the_deadline") else { return };
    let mut manager = place.manager();
    let counter = place.counter("a");
    manager.ask("hold 3000");
    let first = place.watchdog();
    place.kill_watchdog();
    manager.wait_for("state", "thawed none 1");
    assert_ne!(place.watchdog(), first);
    // Nothing more is said: the deadline is the one from before.
    counter.stops();
    assert_eq!(manager.ask("fired"), "fired");
    place.wait("the links are down", || place.links_are_down());
    // The next one finds what this one did.
    place.kill_watchdog();
    manager.wait_for("state", "frozen none 2");
    counter.stands();
    assert_eq!(manager.ask("release never"), "released");
    counter.goes_on();
    assert!(place.links_are_up());
}

#[test]
fn fence_a_watchdog_that_is_stopped_is_noticed() {
    let Some(place) = Place::new("fence_a_watchdog_that_is_stopped_is_noticed") else { return };
    let mut manager = place.manager();
    place.signal_watchdog(Signal::SIGSTOP);
    place.wait("the guard says so", || {
        manager.ask("hold 60000");
        manager.ask("state").contains("does not answer")
    });
    place.signal_watchdog(Signal::SIGCONT);
    manager.wait_for("state", "thawed none 1");
}

#[test]
fn fence_the_hardware_watchdog_is_petted_and_other_options_make_another_watchdog() {
    let Some(place) = Place::new("fence_the_hardware_watchdog_is_petted_and_other_options_make_another_watchdog")
    else {
        return;
    };
    let mut device = place.device();
    let manager = place.manager_with(&[("FENCE_DEVICE", place.device_path())]);
    let first = place.watchdog();
    let mut heard = Vec::new();
    place.wait("it is petted", || {
        heard.extend(fencing::drain(&mut device));
        heard.contains(&0)
    });
    assert!(!heard.contains(&b'V'));
    drop(manager);
    // Without a deadline it is replaced, and says farewell to the device.
    let mut next = place.manager();
    assert_ne!(place.watchdog(), first);
    place.wait("it is disarmed", || {
        heard.extend(fencing::drain(&mut device));
        heard.last() == Some(&b'V')
    });
    // With one it stays what it is, and it is said.
    next.ask("hold 60000");
    drop(next);
    let mut third = place.manager_with(&[("FENCE_DEVICE", place.device_path())]);
    let state = third.ask("state");
    assert!(state.contains("other options"), "{state}");
    assert!(fs::metadata(place.device_path()).is_ok());
}
