//! The room against the real kernel, in namespaces of its own. What measures prints what it measured.

use std::{
    fs,
    os::unix::fs::MetadataExt,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use super::{
    arp::{Arp, ETHERTYPE},
    packet::PacketSocket,
    testing::{attached, eventually, ip, is_bridge_port, isolated, name, reachable, run, run_in},
    *,
};

#[test]
fn a_container_is_built_mute_and_speaks_when_attached() {
    let Some(node) = isolated("a_container_is_built_mute_and_speaks_when_attached") else { return };
    let network = node.network(Some((ip(1), 24)), None);
    let peer = attached(&network, "peer", 3);
    let identity = NetIdentity { gateway: Some(ip(1)), ..network.identity(ip(2), None) };
    let attachment = network.build(&name("c1"), &identity).unwrap();
    let inside = run_in(&attachment.netns, "ip -o addr") + &run_in(&attachment.netns, "ip -o link");
    for expected in ["inet 10.77.0.2/24", "inet 127.0.0.1/8", "02:68:0a:4d:00:02", ",UP"] {
        assert!(inside.contains(expected), "{expected:?} is not in {inside}");
    }
    assert!(!inside.contains("inet6 fe80"), "{inside}");
    assert!(run_in(&attachment.netns, "ip route").contains("default via 10.77.0.1 dev eth0"));
    assert!(!is_bridge_port(&attachment.host_link));
    assert!(!reachable(&attachment, ip(3)), "it spoke before it was attached");
    assert!(!reachable(&attachment, ip(1)), "the node answered for itself on the host end");

    network.attach(&attachment).unwrap();
    assert!(is_bridge_port(&attachment.host_link));
    for (from, to) in [(&attachment, ip(3)), (&attachment, ip(1)), (&peer, ip(2))] {
        assert!(reachable(from, to), "{} does not reach {to}: {}", from.container, run_in(&from.netns, "ip -s neigh"));
    }
    assert_eq!(network.find(&name("c1"), &identity).unwrap().as_ref(), Some(&attachment));
    network.detach(&attachment).unwrap();
    assert!(!reachable(&peer, ip(2)));
    network.attach(&attachment).unwrap();
    assert!(reachable(&peer, ip(2)));

    network.teardown(&name("c1")).unwrap();
    network.teardown(&name("c1")).unwrap();
    assert_eq!(network.find(&name("c1"), &identity).unwrap(), None);
    assert!(matches!(network.attach(&attachment), Err(NetworkError::NotBuilt { .. })));
    assert!(matches!(network.detach(&attachment), Err(NetworkError::NotBuilt { .. })));
    network.teardown(&name("peer")).unwrap();
}

#[test]
fn a_question_asked_while_mute_is_answered_soon_after_attaching() {
    let Some(node) = isolated("a_question_asked_while_mute_is_answered_soon_after_attaching") else { return };
    let network = node.network(None, None);
    attached(&network, "peer", 3);
    let attachment = network.build(&name("c1"), &network.identity(ip(2), None)).unwrap();
    let socket = netns::enter(&attachment.netns, || {
        let socket = std::net::UdpSocket::bind((ip(2), 0))?;
        socket.connect((ip(3), 9))?;
        socket.set_read_timeout(Some(Duration::from_secs(5)))?;
        socket.send(b"x")?;
        Ok(socket)
    })
    .unwrap();
    thread::sleep(Duration::from_millis(400)); // more questions than will be asked later
    network.attach(&attachment).unwrap();
    let start = Instant::now();
    assert_eq!(socket.recv(&mut [0; 1]).unwrap_err().kind(), io::ErrorKind::ConnectionRefused);
    let waited = start.elapsed();
    println!("MEASURED first packet held back by ARP: answered {waited:?} after attaching");
    eventually("the retry time's return to normal", || {
        run_in(&attachment.netns, "ip ntable show dev eth0").contains("retrans 200")
    });
    assert!(waited < Duration::from_millis(500), "{waited:?}: the kernel's default retry is 1 s");
    network.sweep_all();
}

#[test]
fn every_build_is_fresh_and_quick() {
    let Some(node) = isolated("every_build_is_fresh_and_quick") else { return };
    let network = node.network(None, None);
    let mut times = Vec::new();
    let (mut attach_times, mut teardown_times) = (Vec::new(), Vec::new());
    let mut namespaces = Vec::new();
    for _ in 0..10 {
        let start = Instant::now();
        network.teardown(&name("c1")).unwrap();
        teardown_times.push(start.elapsed());
        let start = Instant::now();
        let attachment = network.build(&name("c1"), &network.identity(ip(2), None)).unwrap();
        times.push(start.elapsed());
        let start = Instant::now();
        network.attach(&attachment).unwrap();
        attach_times.push(start.elapsed());
        // Kept open, so that the kernel cannot hand the same number out again.
        namespaces.push(fs::File::open(&attachment.netns).unwrap());
    }
    // Over a leftover, too.
    let again = network.build(&name("c1"), &network.identity(ip(2), None)).unwrap();
    namespaces.push(fs::File::open(&again.netns).unwrap());
    let mut inodes: Vec<_> = namespaces.iter().map(|file| file.metadata().unwrap().ino()).collect();
    inodes.sort_unstable();
    inodes.dedup();
    assert_eq!(inodes.len(), 11, "a namespace was used twice");
    times.sort_unstable();
    attach_times.sort_unstable();
    println!("MEASURED build: median {:?}, worst {:?}", times[5], times[9]);
    teardown_times.sort_unstable();
    println!("MEASURED teardown: median {:?}, worst {:?}", teardown_times[5], teardown_times[9]);
    println!("MEASURED attach: median {:?}, worst {:?}", attach_times[5], attach_times[9]);
    network.teardown(&name("c1")).unwrap();
}

#[test]
fn the_first_namespace_of_a_node_prepares_the_directory() {
    let Some(node) = isolated("the_first_namespace_of_a_node_prepares_the_directory") else { return };
    nix::mount::umount(netns::DIRECTORY).unwrap();
    run("mount -t tmpfs tmpfs /run");
    run("mount --make-private /run");
    let network = node.network(None, None);
    network.build(&name("c1"), &network.identity(ip(2), None)).unwrap();
    network.build(&name("c2"), &network.identity(ip(3), None)).unwrap();
    // The one on top comes last.
    assert_eq!(run("findmnt -n -o PROPAGATION /run/netns").lines().last(), Some("shared"));
    assert_eq!(run("ip netns list").lines().count(), 2, "`ip netns` does not see them");
    assert_eq!(network.sweep_all().len(), 4);
}

#[test]
fn a_failed_build_leaves_nothing() {
    let Some(node) = isolated("a_failed_build_leaves_nothing") else { return };
    let network = node.network(None, None);
    // The kernel refuses a broadcast address as gateway, as the last step of all.
    let identity = NetIdentity { gateway: Some(ip(255)), ..network.identity(ip(2), None) };
    let error = network.build(&name("c1"), &identity).unwrap_err();
    assert!(matches!(&error, NetworkError::Kernel { doing, .. } if doing.contains("default route")), "{error}");
    assert!(!netns_path(&name("c1")).exists());
    for (identity, why) in [
        (NetIdentity { gateway: Some(ip(2)), ..network.identity(ip(2), None) }, "its own gateway"),
        (NetIdentity { gateway: Some([10, 78, 0, 1].into()), ..network.identity(ip(2), None) }, "not in the"),
        (NetIdentity { prefix_len: 33, ..network.identity(ip(2), None) }, "prefix length"),
        (NetIdentity { prefix_len: 0, ..network.identity(ip(2), None) }, "prefix length"),
        (network.identity(Ipv4Addr::UNSPECIFIED, None), "not a host's"),
        (network.identity(ip(2), Some(Mac([1, 0, 0, 0, 0, 1]))), "unicast"),
    ] {
        let error = network.build(&name("c1"), &identity).unwrap_err().to_string();
        assert!(error.contains(why), "{error}");
    }
    run("ip link del ha0");
    assert!(matches!(network.build(&name("c1"), &network.identity(ip(2), None)), Err(NetworkError::NoBridge { .. })));
}

#[test]
fn a_teardown_goes_on_after_an_error_and_reports_it() {
    let Some(node) = isolated("a_teardown_goes_on_after_an_error_and_reports_it") else { return };
    let network = node.network(None, None);
    let attachment = attached(&network, "c1", 2);
    netns::remove(&attachment.netns).unwrap();
    fs::create_dir(&attachment.netns).unwrap(); // cannot be removed as a file
    let error = network.teardown(&name("c1")).unwrap_err();
    let NetworkError::Incomplete(failures) = &error else { panic!("{error}") };
    assert_eq!(failures.errors.len(), 1);
    assert!(error.to_string().contains("ha-c1 failed: Is a directory"), "{error}");
    fs::remove_dir(&attachment.netns).unwrap();
}

#[test]
fn a_sweep_takes_what_is_named_and_nothing_that_looks_like_it() {
    let Some(node) = isolated("a_sweep_takes_what_is_named_and_nothing_that_looks_like_it") else { return };
    let network = node.network(None, None);
    for (container, last) in [("keep", 2), ("lost", 3), ("half", 4)] {
        attached(&network, container, last);
    }
    netns::remove(&netns_path(&name("half"))).unwrap();
    // A network of somebody's whose program is called proxy, and of a second manager.
    run("ip netns add ha-proxy");
    run("ip link add hv0123456789 type veth peer name theirs");
    let gone = [name("lost"), name("half"), name("never")];
    let removed = network.sweep(&gone).unwrap();
    let lost = "/run/netns/ha-lost".to_owned();
    assert_eq!(removed, [host_link_name(&name("lost")), lost, host_link_name(&name("half"))]);
    assert!(network.sweep(&gone).unwrap().is_empty());
    assert!(netns_path(&name("proxy")).exists() && netns_path(&name("keep")).exists());
    let links = run("ip -o link");
    assert!(links.contains("hv0123456789") && links.contains(&host_link_name(&name("keep"))), "{links}");
    run("ip netns del ha-proxy");
    run("ip link del hv0123456789");
    network.sweep_all();
}

#[test]
fn announcements_are_seen_in_both_forms_and_repeated() {
    let Some(node) = isolated("announcements_are_seen_in_both_forms_and_repeated") else { return };
    let network = node.network(None, None);
    let (bridge, _) = bridge::find(&mut network.rtnl(), "ha0").unwrap();
    let watch = PacketSocket::open(bridge, ETHERTYPE).unwrap();
    let attachment = network.build(&name("c1"), &network.identity(ip(2), None)).unwrap();
    let start = Instant::now();
    network.attach(&attachment).unwrap();
    let (mut requests, mut replies, mut at) = (0, 0, Vec::new());
    let mut buffer = [0; 128];
    while let Some((frame, _)) = watch.receive(&mut buffer, start + Duration::from_millis(1500)).unwrap() {
        let arp = Arp::parse(frame).unwrap();
        assert_eq!((arp.sender_mac, arp.sender_ip), (attachment.identity.mac.0, ip(2)));
        if arp == Arp::announcement(ip(2), attachment.identity.mac) {
            requests += 1
        } else {
            replies += 1
        }
        at.push(start.elapsed().as_millis());
    }
    println!("MEASURED announcements at {at:?} ms after attaching");
    assert_eq!((requests, replies), (10, 5));
    assert!(*at.last().unwrap() > 500);
    network.teardown(&name("c1")).unwrap();
}

#[test]
fn a_probe_finds_who_has_the_address() {
    let Some(node) = isolated("a_probe_finds_who_has_the_address") else { return };
    for address in [None, Some((ip(1), 24))] {
        let network = node.network(address, None);
        let other = attached(&network, "other", 5);
        let ours = network.identity(ip(6), None).mac;
        let start = Instant::now();
        let found = probe(ip(5), "ha0", PROBE_TIMEOUT, ours).unwrap();
        println!("MEASURED conflict found after {:?} (bridge address {address:?})", start.elapsed());
        assert_eq!(found, Some(Conflict { mac: other.identity.mac, kind: ConflictKind::InUse }));
        let found = probe(ip(5), "ha0", PROBE_TIMEOUT, other.identity.mac).unwrap();
        assert_eq!(found.unwrap().kind, ConflictKind::StillRunning);

        let start = Instant::now();
        assert_eq!(probe(ip(6), "ha0", PROBE_TIMEOUT, ours).unwrap(), None);
        assert!(start.elapsed() >= PROBE_TIMEOUT);
        network.sweep_all();
    }
    assert!(matches!(probe(ip(5), "none0", PROBE_TIMEOUT, Mac([2; 6])), Err(NetworkError::NoBridge { .. })));
}

#[test]
fn a_probe_finds_another_prober_and_a_flood_does_not_hold_it() {
    let Some(node) = isolated("a_probe_finds_another_prober_and_a_flood_does_not_hold_it") else { return };
    let network = node.network(None, None);
    let other = attached(&network, "other", 5);
    let socket = netns::enter(&other.netns, || {
        let index = Rtnl::open()?.link("eth0")?.unwrap().header.index;
        PacketSocket::open(index, 0)
    })
    .unwrap();
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        // Broken frames and other people's questions, as many as go.
        scope.spawn(|| {
            let question = Arp::request(ip(5), other.identity.mac, ip(9)).frame();
            let mut broken = question;
            broken[18] = 255;
            while !stop.load(Ordering::Relaxed) {
                let _ = socket.send(&question);
                let _ = socket.send(&broken);
                let _ = socket.send(&question[..20]);
            }
        });
        let start = Instant::now();
        assert_eq!(probe(ip(6), "ha0", PROBE_TIMEOUT, Mac([2; 6])).unwrap(), None);
        let took = start.elapsed();
        stop.store(true, Ordering::Relaxed);
        assert!(took < PROBE_TIMEOUT * 3, "{took:?}");
    });
    let prober = Mac([2, 9, 9, 9, 9, 9]);
    thread::scope(|scope| {
        scope.spawn(|| {
            for _ in 0..10 {
                thread::sleep(Duration::from_millis(10));
                socket.send(&Arp::probe(ip(6), prober).frame()).unwrap();
            }
        });
        let found = probe(ip(6), "ha0", PROBE_TIMEOUT, Mac([2; 6])).unwrap();
        assert_eq!(found, Some(Conflict { mac: prober, kind: ConflictKind::Probing }));
    });
    network.sweep_all();
}
