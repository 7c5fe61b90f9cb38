//! The manager is killed, stopped, started twice or told nonsense: containers do not suffer.

mod common;

use std::{
    fs,
    path::{Path, PathBuf},
    process::Stdio,
    time::{Duration, Instant, SystemTime},
};

use common::{
    Before, PATIENCE, cannot_run, checkpoint, copies, count, epochs, events_since, files, kill_counter, run_of, scene,
    state, wait_until_serving,
};
use ha_lab::{
    clients::counter::Poller,
    cluster::{Cluster, Event},
    demo::{ADDRESS, Workload},
};
use nix::sys::signal::Signal;

/// A client that keeps one connection and uses it all the time. It comes after the first checkpoint: held up by that, it would
/// count its own connecting as a failure, and a manager killed in the middle of that would leave the container cut off.
fn poll(cluster: &Cluster) -> Poller {
    let committed = |cluster: &Cluster| !cluster.of_kind("checkpoint.committed").is_empty();
    cluster.wait("the first checkpoint", PATIENCE, committed).unwrap();
    let address = format!("{ADDRESS}:7000").parse().unwrap();
    let (poller, run) = Poller::new(address, Duration::from_millis(5), PATIENCE);
    cluster.lab.on_client(run).unwrap();
    cluster.wait("the client to be served", PATIENCE, |_| poller.last().is_some()).unwrap();
    poller
}

/// The connection was never lost and never answered wrongly, and it is answered now.
fn unharmed(cluster: &Cluster, poller: &Poller, what: &str) {
    let asked = Instant::now();
    let answered = |_: &Cluster| poller.last().is_some_and(|answer| answer.instant > asked);
    cluster.wait(&format!("an answer, {what}"), PATIENCE, answered).unwrap();
    let seen = poller.seen();
    assert_eq!(seen.wrong, Vec::<String>::new(), "{what}");
    assert!(seen.errors.is_empty(), "{what}: {:?}", seen.errors);
}

/// Kills the manager as soon as `moment` holds; false when it did not hold before `end` did.
fn kill_at(cluster: &mut Cluster, moment: impl Fn(&Cluster) -> bool, end: impl Fn(&Cluster) -> bool) -> bool {
    let start = Instant::now();
    let mut met = false;
    while !met && !end(cluster) {
        met = moment(cluster);
        assert!(start.elapsed() < PATIENCE, "neither the moment nor the end came");
    }
    cluster.members[0].stop_manager(Signal::SIGKILL).unwrap();
    met
}

fn adopted(cluster: &Cluster, since: SystemTime) -> Event {
    cluster.wait_for_event("container.adopted", since, 1, PATIENCE).unwrap()
}

fn state_of(cluster: &Cluster) -> PathBuf {
    cluster.members[0].node.disk().join("state/containers/counter")
}

fn has_file(dir: &Path, begin: &str) -> bool {
    files(dir).iter().any(|sub| files(&dir.join(sub)).iter().any(|name| name.starts_with(begin)))
}

#[test]
fn a_manager_killed_in_the_middle_of_a_checkpoint_leaves_the_container_untouched() {
    let name = "a_manager_killed_in_the_middle_of_a_checkpoint_leaves_the_container_untouched";
    if cannot_run(name) {
        return;
    }
    let mut cluster = Cluster::start(1, "").unwrap();
    let before = Before::of(&cluster);
    let command = ["/bin/counter", "--ballast-mb", "96"].map(str::to_owned);
    cluster.members[0].apply(&Workload::Counter.compose_with(&command, Some(common::NEVER)).unwrap()).unwrap();
    let (_, id) = state(&cluster);
    let poller = poll(&cluster);
    let (images, at) = (run_of(&cluster, "n1").join("images/counter"), state_of(&cluster));
    type Moment<'a> = (&'a str, Box<dyn Fn(&Cluster) -> bool + 'a>);
    let moments: [Moment<'_>; 4] = [
        ("as it begins", Box::new(|_| !files(&images).is_empty())),
        ("while pages are dumped", Box::new(|_| has_file(&images, "pages-"))),
        ("while it is packed", Box::new(|_| files(&at.join("queue")).iter().any(|name| name.ends_with(".partial")))),
        ("while it is uploaded", Box::new(|_| files(&at.join("queue")).iter().any(|name| !name.contains('.')))),
    ];
    for (what, moment) in &moments {
        cluster.wait("the last checkpoint's end", PATIENCE, |_| files(&at.join("queue")).is_empty()).unwrap();
        let running = cluster.members[0].node.processes("/bin/counter");
        let mut asked = cluster.members[0].cli_command().unwrap();
        let asked = asked.args(["checkpoint", "counter"]).stderr(Stdio::null()).stdout(Stdio::null());
        let asked = std::sync::Mutex::new(asked.spawn().unwrap());
        let over = |_: &Cluster| asked.lock().unwrap().try_wait().unwrap().is_some();
        assert!(kill_at(&mut cluster, moment, over), "the moment {what:?} was missed");
        asked.lock().unwrap().wait().unwrap();
        let since = SystemTime::now();
        cluster.members[0].start_manager().unwrap();
        adopted(&cluster, since);
        unharmed(&cluster, &poller, what);
        assert_eq!(cluster.members[0].node.processes("/bin/counter"), running, "{what}: another process");
        let tidy = |cluster: &Cluster| {
            files(&images).is_empty()
                && files(&at.join("staging")).is_empty()
                && cluster.members[0].node.processes("criu").is_empty()
        };
        cluster.wait(&format!("what the dump left to be cleared away, killed {what}"), PATIENCE, tidy).unwrap();
        checkpoint(&cluster);
        unharmed(&cluster, &poller, what);
    }
    poller.stop();
    assert_eq!(state(&cluster).1, id);
    before.check_after_removal(&cluster);
}

#[test]
fn a_restore_whose_manager_was_killed_is_done_again() {
    let name = "a_restore_whose_manager_was_killed_is_done_again";
    let Some((mut cluster, before)) = scene(name, 1, "", common::NEVER) else { return };
    let id = state(&cluster).1;
    let images = run_of(&cluster, "n1").join("images/counter");
    type Moment<'a> = (&'a str, Box<dyn Fn(&Cluster) -> bool + 'a>);
    let moments: [Moment<'_>; 3] = [
        ("as images are fetched", Box::new(|_| files(&images).contains(&"restore".to_owned()))),
        ("as the runtime begins", Box::new(|cluster| !cluster.members[0].node.processes("runc").is_empty())),
        ("as CRIU works", Box::new(|cluster| !cluster.members[0].node.processes("criu").is_empty())),
    ];
    for (what, moment) in &moments {
        let told = count(&cluster, 5);
        checkpoint(&cluster);
        cluster.wait("the images to go", PATIENCE, |_| files(&images).is_empty()).unwrap();
        let since = SystemTime::now();
        kill_counter(&cluster, 0);
        let lost = |cluster: &Cluster| !events_since(cluster, "recovery.started", since).is_empty();
        cluster.wait("the recovery to begin", PATIENCE, lost).unwrap();
        let over = |cluster: &Cluster| !events_since(cluster, "recovery.serving", since).is_empty();
        assert!(kill_at(&mut cluster, moment, over), "the moment {what:?} was missed");
        let again = SystemTime::now();
        cluster.members[0].start_manager().unwrap();
        wait_until_serving(&cluster, again);
        assert_eq!(state(&cluster), (told, id.clone()), "{what}");
        assert_eq!(copies(&cluster), 1, "{what}");
        assert_eq!(epochs(&cluster), [1], "{what}");
        let failed = events_since(&cluster, "recovery.failed", again);
        assert!(failed.is_empty(), "{what}: {failed:?}");
    }
    before.check_after_removal(&cluster);
}

#[test]
fn containers_outlive_a_stopped_manager_peers_leave_them_alone_and_the_next_manager_adopts_them() {
    let name = "containers_outlive_a_stopped_manager";
    let Some((mut cluster, before)) = scene(name, 2, "", common::NEVER) else { return };
    let poller = poll(&cluster);
    let running = cluster.members[0].node.processes("/bin/counter");
    let since = SystemTime::now();
    cluster.members[0].stop_manager(Signal::SIGTERM).unwrap();
    cluster.wait_for_event("peer.left", since, 1, PATIENCE).unwrap();
    // Long enough for a failover: it would be begun by a look through the store.
    cluster.wait_for_looks(3, PATIENCE).unwrap();
    assert_eq!((epochs(&cluster), copies(&cluster)), (vec![1], 1), "a peer took over what runs");
    unharmed(&cluster, &poller, "without a manager");
    cluster.members[0].start_manager().unwrap();
    adopted(&cluster, since);
    checkpoint(&cluster);
    unharmed(&cluster, &poller, "with the next manager");
    assert_eq!(cluster.members[0].node.processes("/bin/counter"), running);
    assert_eq!(epochs(&cluster), [1]);
    poller.stop();
    before.check_after_removal(&cluster);
}

/// A manager that starts while the store is away is refused; what it left running must not suffer from that.
#[test]
fn a_manager_that_cannot_reach_the_store_is_refused_and_its_containers_run_on() {
    let name = "a_manager_that_cannot_reach_the_store_is_refused_and_its_containers_run_on";
    let Some((mut cluster, before)) = scene(name, 1, "", common::NEVER) else { return };
    let poller = poll(&cluster);
    let store = cluster.lab.store().display().to_string();
    cluster.members[0].stop_manager(Signal::SIGKILL).unwrap();
    cluster.members[0].node.exec(&format!("mount -t tmpfs -o ro cover {store}")).unwrap();
    let said = refused(&cluster, &cluster.members[0].node.disk().join("node.toml"));
    assert!(said.contains(&store), "{said}");
    cluster.members[0].node.exec(&format!("umount -l {store}")).unwrap();
    let since = SystemTime::now();
    cluster.members[0].start_manager().unwrap();
    adopted(&cluster, since);
    unharmed(&cluster, &poller, "after the refusal");
    poller.stop();
    before.check_after_removal(&cluster);
}

/// The store's directory without the store in it looks like a store where nobody owns anything.
#[test]
fn a_manager_before_an_empty_or_another_store_touches_no_container() {
    let name = "a_manager_before_an_empty_or_another_store_touches_no_container";
    let Some((mut cluster, before)) = scene(name, 1, "", common::NEVER) else { return };
    let poller = poll(&cluster);
    let disk = cluster.members[0].node.disk().to_owned();
    let store = cluster.lab.store().display().to_string();
    let elsewhere = |to: &str| {
        let text = fs::read_to_string(disk.join("node.toml")).unwrap();
        fs::create_dir_all(disk.join(to)).unwrap();
        let config = disk.join(format!("{to}.toml"));
        let url = format!("file://{}", disk.join(to).display());
        fs::write(&config, text.replace(&format!("file://{store}"), &url)).unwrap();
        config
    };
    cluster.members[0].stop_manager(Signal::SIGKILL).unwrap();
    let said = refused(&cluster, &elsewhere("empty"));
    assert!(said.contains("is empty") && said.contains("store-id"), "{said}");
    assert_eq!(files(&disk.join("empty")), Vec::<String>::new());
    let config = elsewhere("other");
    let text = fs::read_to_string(Path::new(&store).join("cluster")).unwrap();
    let id = text.split("\"id\":\"").nth(1).unwrap().split('"').next().unwrap();
    fs::write(disk.join("other/cluster"), text.replace(id, "00000000-0000-0000-0000-000000000000")).unwrap();
    let said = refused(&cluster, &config);
    assert!(said.contains("not the one this node was in") && said.contains("store-id"), "{said}");

    // Even where nobody knows better, a container that the store has never heard of is left alone.
    let (owners, away) = (Path::new(&store).join("owners"), Path::new(&store).join("owners-away"));
    fs::rename(&owners, &away).unwrap();
    fs::remove_file(disk.join("state/store-id")).unwrap();
    let since = SystemTime::now();
    cluster.members[0].start_manager().unwrap();
    cluster.wait_for_event("adopt.failed", since, 1, PATIENCE).unwrap();
    unharmed(&cluster, &poller, "before the strange store");
    fs::rename(&away, &owners).unwrap();
    adopted(&cluster, since);
    unharmed(&cluster, &poller, "with its store again");
    poller.stop();
    before.check_after_removal(&cluster);
}

/// Starts a manager on the first node that has to be refused, and returns what it says.
fn refused(cluster: &Cluster, config: &Path) -> String {
    let mut command = cluster.members[0].cli_command().unwrap();
    let output = command.arg("run").arg("--config").arg(config).output().unwrap();
    assert!(!output.status.success(), "it ran");
    String::from_utf8(output.stderr).unwrap()
}

#[test]
fn a_second_manager_a_taken_name_and_a_wrong_configuration_are_refused_with_the_reason() {
    let name = "a_second_manager_a_taken_name_and_a_wrong_configuration_are_refused_with_the_reason";
    let Some((cluster, before)) = scene(name, 1, "", common::NEVER) else { return };
    let (member, poller) = (&cluster.members[0], poll(&cluster));
    let config = member.node.disk().join("node.toml");
    let said = refused(&cluster, &config);
    let first = fs::read_to_string(format!("/proc/{}/status", member.manager_pid().unwrap())).unwrap();
    let pid = first.lines().find_map(|line| line.strip_prefix("NSpid:")?.split_whitespace().last()).unwrap();
    assert!(said.contains(&format!("pid {pid}")) && said.contains("state_dir"), "{said}");

    // Another machine that was given the same name: it has another disk.
    let text = fs::read_to_string(&config).unwrap();
    let other = member.node.disk().join("other.toml");
    let elsewhere = text.replace("/state\"", "/state2\"\nrun_dir = \"/run/other\"").replace(":7420", ":7421");
    fs::write(&other, &elsewhere).unwrap();
    let said = refused(&cluster, &other);
    assert!(said.contains("n1") && said.contains("taken"), "{said}");

    // A copied configuration in which only the name was changed.
    let lines = elsewhere.lines().filter(|line| !line.starts_with("tls."));
    let twin = lines.map(|line| if line.starts_with("node = ") { "tls.insecure = true\nnode = \"n9\"" } else { line });
    fs::write(&other, twin.collect::<Vec<_>>().join("\n")).unwrap();
    let said = refused(&cluster, &other);
    assert!(said.contains("`[network] address` is also that of node n1"), "{said}");

    let line = |of: &str| 1 + elsewhere.lines().position(|line| line.starts_with(of)).unwrap();
    for (wrong, at, word) in [
        (elsewhere.replace("cluster = ", "klaster = "), line("cluster"), "klaster"),
        (elsewhere.replace("listen = \"0.0.0.0:7421\"", "listen = \"here\""), line("listen"), "listen"),
        (elsewhere.replace("[network]", "[checkpoint]\ntimeout = \"soon\"\n[network]"), line("[network]") + 1, "soon"),
    ] {
        fs::write(&other, wrong).unwrap();
        let said = refused(&cluster, &other);
        assert!(
            said.contains(&format!("{}:{at}", other.display())) && said.contains(word),
            "line {at}, {word}: {said}"
        );
    }
    unharmed(&cluster, &poller, "after all the refusals");
    poller.stop();
    before.check_after_removal(&cluster);
}

#[test]
fn a_port_in_use_is_found_before_anything_is_touched() {
    let name = "a_port_in_use_is_found_before_anything_is_touched";
    let Some((mut cluster, before)) = scene(name, 1, "", common::NEVER) else { return };
    let poller = poll(&cluster);
    cluster.members[0].stop_manager(Signal::SIGKILL).unwrap();
    let mut listen = cluster.members[0].node.command("perl").unwrap();
    let script = "my $s = IO::Socket::INET->new(LocalPort => 7420, Listen => 1) or die; $| = 1; print \"listening\\n\"; sleep 600";
    let mut other = match listen.args(["-MIO::Socket::INET", "-e", script]).stdout(Stdio::piped()).spawn() {
        Ok(other) => other,
        Err(error) => return ha_lab::skipped(name, &format!("perl: {error}")),
    };
    let mut said = [0; 10];
    std::io::Read::read_exact(other.stdout.as_mut().unwrap(), &mut said).unwrap();
    let since = SystemTime::now();
    let said = refused(&cluster, &cluster.members[0].node.disk().join("node.toml"));
    assert!(said.contains("7420") && said.contains("`listen`"), "{said}");
    let events = fs::read_to_string(cluster.members[0].node.disk().join("state/events.jsonl")).unwrap();
    assert_eq!(events.matches("node.started").count(), 1, "it had begun: {events}");
    // The stand-in's end is the listener's.
    other.kill().unwrap();
    other.wait().unwrap();
    cluster.members[0].start_manager().unwrap();
    adopted(&cluster, since);
    unharmed(&cluster, &poller, "after the refusal");
    poller.stop();
    before.check_after_removal(&cluster);
}
