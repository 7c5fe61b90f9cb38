//! The laboratory itself: what it promises to the other tests.

use std::{
    fs,
    io::Read,
    net::{SocketAddr, TcpStream},
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use ha_lab::{
    census::Census,
    clients::{
        counter::{Counter, connect_patiently},
        rtsp::{Player, ask_about},
    },
    have, images,
    lab::{Lab, Node, NodeOptions, in_netns},
    plain::{self, Plain},
    skipped, why_no_nodes,
};

fn lab(test: &str) -> Option<Lab> {
    if let Some(why) = why_no_nodes() {
        skipped(test, &why);
        return None;
    }
    Some(Lab::new().unwrap())
}

fn wait_for(what: &str, mut condition: impl FnMut() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < Duration::from_secs(10), "waited 10 s for {what}");
        thread::sleep(Duration::from_millis(5));
    }
}

/// A closed port that says so is as good as an answer.
fn reaches(node: &Node, address: &str) -> bool {
    let target: SocketAddr = format!("{address}:9").parse().unwrap();
    let connect = move || match TcpStream::connect_timeout(&target, Duration::from_millis(500)) {
        Err(err) => Ok(err.kind() == std::io::ErrorKind::ConnectionRefused),
        Ok(_) => Ok(true),
    };
    in_netns(node.netns().unwrap(), connect).unwrap().join().unwrap().unwrap()
}

/// Processes of the machine whose control group belongs to `group`.
fn processes_of(group: &str) -> Vec<String> {
    Census::here().only("process").only(group).lines().map(str::to_owned).collect()
}

#[test]
fn a_power_cut_kills_everything_in_the_node_and_leaves_nothing_on_the_machine() {
    let Some(lab) = lab("a_power_cut_kills_everything") else { return };
    let before = Census::here().only(lab.id());
    let mut node = lab.node(1, NodeOptions::default()).unwrap();
    // One that ignores every signal it can, one in a session of its own, one in a cgroup of its own.
    let mut stubborn = node.command("sh").unwrap().args(["-c", "trap '' TERM INT HUP; sleep 1000"]).spawn().unwrap();
    let detached = "setsid sh -c 'mkdir /sys/fs/cgroup/*/own; sleep 1001' >/dev/null 2>&1 & echo started";
    ha_lab::run(node.command("sh").unwrap().args(["-c", detached])).unwrap();
    wait_for("both sleeps", || processes_of(node.group()).iter().filter(|p| p.contains("sleep 100")).count() >= 3);

    let cut = node.power_cut().unwrap();
    assert!(cut.instant.elapsed() < Duration::from_secs(5));
    stubborn.wait().unwrap();
    assert!(!node.is_on());
    assert!(node.exec("true").is_err(), "a node that is off ran a program");
    assert_eq!(processes_of(node.group()), Vec::<String>::new());
    assert_eq!(before.left_behind(&Census::here().only(lab.id())), Vec::<String>::new());
}

#[test]
fn a_power_cut_kills_what_is_frozen() {
    let Some(lab) = lab("a_power_cut_kills_what_is_frozen") else { return };
    let mut node = lab.node(1, NodeOptions::default()).unwrap();
    let freeze = "cd /sys/fs/cgroup/freezer 2>/dev/null || cd /sys/fs/cgroup; mkdir -p icy/own; sleep 1002 & \
                  echo $! >icy/own/cgroup.procs; \
                  if [ -e icy/freezer.state ]; then echo FROZEN >icy/freezer.state; else echo 1 >icy/cgroup.freeze; fi";
    let mut held = node.command("sh").unwrap().args(["-c", &format!("{freeze}; wait")]).spawn().unwrap();
    wait_for("the sleep", || processes_of(node.group()).iter().any(|p| p.contains("sleep 1002 ") && p.contains("icy")));
    node.power_cut().unwrap();
    held.wait().unwrap();
    assert_eq!(processes_of(node.group()), Vec::<String>::new());
}

#[test]
fn a_power_cut_says_no_goodbye() {
    let Some(lab) = lab("a_power_cut_says_no_goodbye") else { return };
    let mut node = lab.node(1, NodeOptions::default()).unwrap();
    let counter = images::cached("counter").unwrap().join("bin/counter");
    let mut server = node.command(&counter).unwrap().stdout(Stdio::null()).spawn().unwrap();
    let address = format!("{}:7000", node.address());
    let target = address.clone();
    let connect = move || {
        let start = Instant::now();
        loop {
            match TcpStream::connect(&target) {
                Ok(stream) => return Ok(stream),
                Err(err) if start.elapsed() > Duration::from_secs(10) => return Err(err.into()),
                Err(_) => thread::sleep(Duration::from_millis(5)),
            }
        }
    };
    let mut stream = lab.on_client(connect).unwrap().join().unwrap().unwrap();
    stream.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
    node.power_cut().unwrap();
    server.wait().unwrap();
    // Neither the end of the stream nor a reset: the client waits, as for a machine without power.
    let err = stream.read(&mut [0; 1]).unwrap_err();
    assert_eq!(err.kind(), std::io::ErrorKind::WouldBlock, "{err}");
}

#[test]
fn a_node_that_comes_back_has_its_disk_and_an_empty_run() {
    let Some(lab) = lab("a_node_that_comes_back") else { return };
    let mut one = lab.node(1, NodeOptions::default()).unwrap();
    let two = lab.node(2, NodeOptions::default()).unwrap();
    let disk = one.disk();
    one.exec(&format!("touch {}/kept /run/lost", disk.display())).unwrap();
    assert!(!two.output(&format!("ls {}", disk.display())).unwrap().status.success(), "a node sees its peer's disk");
    two.exec(&format!("touch {}/shared", lab.store().display())).unwrap();
    one.power_cut().unwrap();
    one.power_on().unwrap();
    assert_eq!(one.exec("hostname").unwrap().trim(), "n1");
    one.exec(&format!("ls {}/kept {}/shared", disk.display(), lab.store().display())).unwrap();
    assert!(!one.output("ls /run/lost").unwrap().status.success(), "/run outlived a power cut");
    assert!(reaches(&one, "10.77.0.2"));
}

#[test]
fn a_pulled_cable_cuts_a_node_off_and_nothing_else() {
    let Some(lab) = lab("a_pulled_cable") else { return };
    let (one, two) = (lab.node(1, NodeOptions::default()).unwrap(), lab.node(2, NodeOptions::default()).unwrap());
    assert!(reaches(&one, "10.77.0.2"));
    one.link_down().unwrap();
    assert!(!reaches(&one, "10.77.0.2"));
    assert!(reaches(&two, Lab::CLIENT));
    one.link_up().unwrap();
    wait_for("the cable", || reaches(&one, "10.77.0.2"));
}

#[test]
fn what_is_left_behind_in_a_node_is_found() {
    let Some(lab) = lab("what_is_left_behind_in_a_node_is_found") else { return };
    let node = lab.node(1, NodeOptions::default()).unwrap();
    let before = node.census().unwrap();
    assert_eq!(before.left_behind(&node.census().unwrap()), Vec::<String>::new(), "a census disturbs what it counts");
    let plant = "ip link add planted0 type veth peer name planted9; ip netns add planted1; mkdir /run/planted2; \
                 mount -t tmpfs planted /run/planted2; nft add table bridge planted3; \
                 cd /sys/fs/cgroup/memory 2>/dev/null || cd /sys/fs/cgroup; mkdir planted4; \
                 setsid sleep 10005 >/dev/null 2>&1 &";
    ha_lab::run(node.command("sh").unwrap().args(["-c", plant])).unwrap();
    let kinds =
        ["link planted0", "netns planted1", "mount /run/planted2 (tmpfs)", "planted3", "planted4", "sleep 10005"];
    for kind in kinds {
        let found = || before.left_behind(&node.census().unwrap());
        wait_for(kind, || found().iter().any(|line| line.contains(kind)));
    }
}

#[test]
fn nothing_outlives_a_laboratory_that_is_killed() {
    if let Some(why) = why_no_nodes() {
        return skipped("nothing_outlives_a_laboratory_that_is_killed", &why);
    }
    let mut killed = Command::new(env!("CARGO_BIN_EXE_ha-lab"))
        .args(["nodes", "2"])
        .stdout(Stdio::piped())
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    let mine = format!("{}{}-", ha_lab::lab::PREFIX, killed.id());
    wait_for("two nodes", || processes_of(&format!("{mine}0-n2")).iter().any(|line| line.contains("node-init")));
    killed.kill().unwrap();
    killed.wait().unwrap();
    wait_for("the wardens", || Census::here().only(&mine).lines().next().is_none());
    // The directory is swept by the next laboratory.
    let _next = Lab::new().unwrap();
    let left = fs::read_dir(std::env::temp_dir()).unwrap().flatten();
    assert!(!left.into_iter().any(|entry| entry.file_name().to_string_lossy().starts_with(&mine)));
}

/// Real runc and real CRIU: a container is dumped on one node and goes on at another, memory and connection kept.
#[test]
fn a_container_moves_from_a_node_to_its_peer_by_hand() {
    let Some(lab) = lab("a_container_moves_from_a_node_to_its_peer_by_hand") else { return };
    let mut one = lab.node(1, NodeOptions { bare_uplink: true }).unwrap();
    let two = lab.node(2, NodeOptions { bare_uplink: true }).unwrap();
    let image = images::cached("counter").unwrap();
    let counter = Plain::new("byhand", 50, &image, &["/bin/counter"]);
    plain::prepare(&one).unwrap();
    plain::prepare(&two).unwrap();
    counter.start(&one).unwrap();

    let address: SocketAddr = "10.77.0.50:7000".parse().unwrap();
    let connect = move || {
        let mut connection = connect_patiently(address, Duration::from_secs(10))?;
        let id = connection.id()?;
        for _ in 0..100 {
            connection.incr()?;
        }
        Ok((connection, id))
    };
    let (mut connection, id): (Counter, String) = lab.on_client(connect).unwrap().join().unwrap().unwrap();
    let images = lab.store().join("byhand");
    let pause = counter.checkpoint(&one, &images).unwrap();
    assert_eq!(connection.get().unwrap().value, 100, "the container did not go on after its checkpoint");
    connection.incr().unwrap();
    let kept = connection.incr().unwrap();
    let images_again = lab.store().join("byhand2");
    counter.checkpoint(&one, &images_again).unwrap();
    one.power_cut().unwrap();
    let restored = counter.restore(&two, &images_again).unwrap();

    let now = connection.get().unwrap();
    assert_eq!(now, kept);
    assert!(now.is_genuine());
    assert_eq!(connection.id().unwrap(), id, "this is another process, not the one that was checkpointed");
    connection.check().unwrap();
    assert_eq!(connection.incr().unwrap(), now.next());
    println!("checkpoint {:?}, restore {:?}", pause.wall, restored);
}

/// The player's session and its source survive; what it shows goes back to the checkpoint.
#[test]
fn a_stream_goes_on_at_the_peer_by_hand() {
    let name = "a_stream_goes_on_at_the_peer_by_hand";
    let Some(lab) = lab(name) else { return };
    if !have("vlc") || !have("ffmpeg") {
        return skipped(name, "vlc or ffmpeg not installed: run scripts/setup --demo");
    }
    let mut one = lab.node(1, NodeOptions { bare_uplink: true }).unwrap();
    let two = lab.node(2, NodeOptions { bare_uplink: true }).unwrap();
    let server = Plain::new("stream", 51, &images::cached("vlc").unwrap(), &images::vlc::COMMAND);
    plain::prepare(&one).unwrap();
    plain::prepare(&two).unwrap();
    server.start(&one).unwrap();

    let (player, run) = Player::new("10.77.0.51:8554".parse().unwrap(), "x", Duration::from_secs(20));
    let playing = lab.on_client(run).unwrap();
    wait_for("packets", || player.count() > 200 || playing.is_finished());
    player.ask_for_session();
    wait_for("an answer", || !player.seen().asked.is_empty() || playing.is_finished());
    let stranger = || Ok(ask_about("10.77.0.51:8554".parse()?, "x", "0123456789abcdef")?);
    assert!(!lab.on_client(stranger).unwrap().join().unwrap().unwrap(), "the server seems to know any session");
    let images = lab.store().join("stream");
    let pause = server.checkpoint(&one, &images).unwrap();
    let cut = one.power_cut().unwrap();
    let restored = server.restore(&two, &images).unwrap();
    let back = Instant::now();
    wait_for("the stream", || player.seen().first_after(back).is_some() || playing.is_finished());
    player.ask_for_session();
    wait_for("an answer", || player.seen().asked.len() > 1 || playing.is_finished());
    player.stop();
    playing.join().unwrap().unwrap();

    let seen = player.seen();
    assert_eq!(seen.sources().len(), 1, "another source took over");
    assert_eq!(seen.asked.iter().map(|(_, knows)| *knows).collect::<Vec<_>>(), [true, true]);
    assert!(seen.errors.is_empty(), "the connection was lost: {:?}", seen.errors);
    let gap = seen.first_after(cut.instant + Duration::from_millis(50)).unwrap().instant - cut.instant;
    println!("checkpoint {:?}, restore {restored:?}, gap {gap:?}", pause.wall);
}
