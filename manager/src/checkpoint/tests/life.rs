//! A container's state across dumps and restores.

use super::lab::{Lab, alone, skipped};

#[test]
fn a_dump_leaves_the_container_running_and_a_restore_brings_its_state_back() {
    if skipped("a_dump_leaves_the_container_running_and_a_restore_brings_its_state_back") {
        return;
    }
    let _alone = alone();
    let lab = Lab::new();
    let mut here = lab.place();
    let pid = here.start();
    let mut client = lab.client();
    for _ in 0..41 {
        client.ask("incr");
    }
    assert_eq!(client.ask("incr"), "42");
    let (images, report) = here.dump(pid);
    println!("{report:?}");
    assert_eq!(client.ask("incr"), "43", "the container goes on, on the same connection");
    assert!(report.pages_written > 10);
    here.destroy();

    let mut there = lab.place();
    there.restore(&images);
    let mut client = lab.client();
    assert_eq!(client.ask("get"), "42");
}

#[test]
fn three_generations_keep_memory_files_and_mappings_in_step() {
    if skipped("three_generations_keep_memory_files_and_mappings_in_step") {
        return;
    }
    let _alone = alone();
    let lab = Lab::new();
    let mut place = lab.place();
    let mut pid = place.start();
    let mut client = lab.client();
    client.ask("writer");
    for generation in 1..=3 {
        // Two dumps of each: the first must leave nothing behind that disturbs the second.
        place.dump(pid);
        client.ask("incr");
        let (mismatches, rounds) = client.agree();
        let (images, report) = place.dump(pid);
        println!("generation {generation}: {report:?}");
        assert_eq!(mismatches, 0);
        place.destroy();
        place = lab.place();
        pid = place.restore(&images);
        client = lab.client();
        assert_eq!(client.ask("get"), generation.to_string());
        let (mismatches, later) = client.agree();
        assert_eq!(mismatches, 0, "memory, file and mapping agreed in each of {later} rounds");
        assert!(later >= rounds, "{later} rounds after the restore, {rounds} before the dump");
        let deadline = std::time::Instant::now() + super::lab::LONG;
        while client.agree().1 == later {
            assert!(std::time::Instant::now() < deadline, "the writer goes on");
        }
        assert_eq!(client.agree().0, 0);
    }
}
