//! The gate that holds, against the real kernel: what comes meanwhile is there afterwards, and nothing else.

use std::{
    io::{self, Read, Write},
    net::{SocketAddr, TcpListener, TcpStream, UdpSocket},
    sync::atomic::{AtomicBool, AtomicUsize, Ordering},
    thread,
    time::{Duration, Instant},
};

use super::{
    packet::{Direction, PacketSocket},
    testing::{attached, connect, exchange, ip, isolated, name, run, run_in},
    *,
};

/// Longer than the kernel waits before it sends unanswered data again (200 ms).
const QUIET: Duration = Duration::from_millis(300);
const PATIENCE: Duration = Duration::from_secs(20);
/// A SYN that is lost is sent again after 1 s.
const SYN_AGAIN: Duration = Duration::from_millis(950);

fn holding(network: &Network, container: &Attachment) -> Gate {
    network.holding_gate(&container.container, container.identity.mac).unwrap()
}

/// A datagram socket of the container, bound to `port` of its address.
fn datagrams(of: &Attachment, port: u16) -> UdpSocket {
    let socket = netns::enter(&of.netns, || UdpSocket::bind((of.identity.ip, port))).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    socket
}

fn numbers(socket: &UdpSocket, count: usize) -> Vec<u32> {
    let mut bytes = [0; 4];
    (0..count).map(|_| socket.recv(&mut bytes).map(|_| u32::from_be_bytes(bytes)).unwrap()).collect()
}

/// Whatever is still there.
fn rest(socket: &UdpSocket) -> Vec<u32> {
    socket.set_read_timeout(Some(QUIET)).unwrap();
    let mut bytes = [0; 4];
    let rest = std::iter::from_fn(|| socket.recv(&mut bytes).ok().map(|_| u32::from_be_bytes(bytes))).collect();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    rest
}

fn send(from: &UdpSocket, to: &Attachment, numbers: impl IntoIterator<Item = u32>) {
    for number in numbers {
        from.send_to(&number.to_be_bytes(), (to.identity.ip, 7000)).unwrap();
    }
}

/// SYNs that a container's kernel has had to send again.
fn repeated_syns(of: &Attachment) -> String {
    let counters = run_in(&of.netns, "cat /proc/self/net/netstat");
    let line = |nth| counters.lines().filter(|line| line.starts_with("TcpExt:")).nth(nth).unwrap().split(' ');
    let (_, value) = line(0).zip(line(1)).find(|(name, _)| *name == "TCPSynRetrans").unwrap();
    value.to_owned()
}

#[test]
fn what_comes_while_the_gate_is_closed_is_there_after_it_once_and_in_order() {
    let test = "what_comes_while_the_gate_is_closed_is_there_after_it_once_and_in_order";
    let Some(node) = isolated(test) else { return };
    run("ip link add up0 type veth peer name wire0");
    run("ip link set wire0 up");
    let network = node.network(Some((ip(1), 24)), Some("up0"));
    let (server, client) = (attached(&network, "server", 2), attached(&network, "client", 3));
    // Three ways in: another container, the node itself, and the uplink.
    run("ip netns add ha-wire");
    run("ip link set wire0 netns ha-wire");
    for command in ["link set wire0 address 02:00:00:00:00:07", "addr add 10.77.0.7/24 dev wire0", "link set wire0 up"]
    {
        run(&format!("ip -n ha-wire {command}"));
    }
    let outside =
        Attachment { netns: "/run/netns/ha-wire".into(), identity: network.identity(ip(7), None), ..client.clone() };
    let node_itself = UdpSocket::bind((ip(1), 0)).unwrap();
    let heard = datagrams(&server, 7000);
    let mut gate = holding(&network, &server);
    for round in 0..2 {
        for from in [&datagrams(&client, 0), &datagrams(&outside, 0), &node_itself] {
            send(from, &server, [0]);
            assert_eq!(numbers(&heard, 1), [0], "before the gate closes");
            gate.close().unwrap();
            gate.close().unwrap();
            // As many as a socket keeps that nobody reads from.
            send(from, &server, 1..60);
            gate.open().unwrap();
            send(from, &server, 60..80);
            gate.open().unwrap();
            assert_eq!(numbers(&heard, 79), (1..80).collect::<Vec<_>>(), "round {round}");
            assert!(rest(&heard).is_empty(), "something came twice");
        }
    }
    drop(gate);
    run("ip netns del ha-wire");
    network.sweep_all();
}

#[test]
fn a_question_for_the_address_is_held_and_asked_once_and_not_one_of_another_network() {
    let test = "a_question_for_the_address_is_held_and_asked_once_and_not_one_of_another_network";
    let Some(node) = isolated(test) else { return };
    let network = node.network(Some((ip(1), 24)), None);
    let (server, client) = (attached(&network, "server", 2), attached(&network, "client", 3));
    let packets = |of: &Attachment, protocol| {
        let open = || PacketSocket::open(Rtnl::open()?.link("eth0")?.unwrap().header.index, protocol);
        netns::enter(&of.netns, open).unwrap()
    };
    let (asking, asked) = (packets(&client, 0), packets(&server, arp::ETHERTYPE));
    let question = arp::Arp::request(ip(9), client.identity.mac, ip(2)).frame();
    // A link of the node that is not in the bridge, as the one below a bond.
    run("ip link add apart0 type veth peer name apart1");
    run("ip link set apart0 up");
    run("ip link set apart1 up");
    let apart = network.rtnl().link("apart1").unwrap().unwrap().header.index;
    let elsewhere = arp::Arp::request(ip(10), client.identity.mac, ip(2)).frame();
    let mut gate = holding(&network, &server);
    gate.close().unwrap();
    asking.send(&question).unwrap();
    PacketSocket::open(apart, 0).unwrap().send(&elsewhere).unwrap();
    gate.open().unwrap();
    let (mut times, mut strange, mut buffer) = (0, 0, [0; 128]);
    let deadline = Instant::now() + QUIET;
    // Announcements of the containers are seen, too.
    while let Some((frame, direction)) = asked.receive(&mut buffer, deadline).unwrap() {
        times += usize::from(direction == Direction::In && frame.starts_with(&question));
        strange += usize::from(frame.starts_with(&elsewhere));
    }
    assert_eq!(times, 1);
    assert_eq!(strange, 0, "it was asked in another network");
    drop(gate);
    network.sweep_all();
}

#[test]
fn a_new_connection_and_segments_behind_a_closed_gate_need_no_retransmission() {
    let test = "a_new_connection_and_segments_behind_a_closed_gate_need_no_retransmission";
    let Some(node) = isolated(test) else { return };
    let network = node.network(None, None);
    let (server, client) = (attached(&network, "server", 2), attached(&network, "client", 3));
    // What is lost is sent again after longer than anybody waits here.
    run_in(&client.netns, "ip route change 10.77.0.0/24 dev eth0 rto_min 120s");
    testing::eventually("the end of the announcements", || {
        run_in(&client.netns, "ip ntable show dev eth0").contains("retrans 200")
    });
    run_in(&client.netns, "ip ntable change name arp_cache dev eth0 retrans 60000");
    let mut connection = connect(&client, &server, 7001);
    exchange(&mut connection.client, &mut connection.server).unwrap();
    let address = SocketAddr::from((ip(2), 7000));
    let listener = netns::enter(&server.netns, || TcpListener::bind(address)).unwrap();
    let mut gate = holding(&network, &server);
    for forget in [false, true] {
        if forget {
            // It then has to ask for the address first, through the closed gate.
            run_in(&client.netns, "ip neigh flush dev eth0");
        }
        let before = repeated_syns(&client);
        gate.close().unwrap();
        let connecting = {
            let netns = client.netns.clone();
            thread::spawn(move || netns::enter(&netns, || TcpStream::connect_timeout(&address, PATIENCE)).unwrap())
        };
        let state = || run_in(&client.netns, "ss -Htn state syn-sent");
        testing::eventually("a SYN", || !state().is_empty());
        // Large enough to leave as segments that are still to be cut, with checksums still to be filled in.
        let data: Vec<u8> = (0..12_000_u32).map(|i| (i % 251) as u8).collect();
        connection.client.write_all(&data).unwrap();
        gate.open().unwrap();
        let mut arrived = vec![0; data.len()];
        connection.server.set_read_timeout(Some(PATIENCE)).unwrap();
        connection.server.read_exact(&mut arrived).unwrap();
        assert!(arrived == data, "the segments were changed");
        let mut new = connecting.join().unwrap();
        let (mut accepted, _) = listener.accept().unwrap();
        exchange(&mut new, &mut accepted).unwrap();
        assert_eq!(repeated_syns(&client), before, "a SYN was lost (address forgotten: {forget})");
    }
    drop(gate);
    network.sweep_all();
}

#[test]
fn a_connection_that_is_begun_while_the_gate_closes_needs_no_retransmission() {
    let test = "a_connection_that_is_begun_while_the_gate_closes_needs_no_retransmission";
    let Some(node) = isolated(test) else { return };
    let network = node.network(None, None);
    let (server, client) = (attached(&network, "server", 2), attached(&network, "client", 3));
    let address = SocketAddr::from((ip(2), 7000));
    let listener = netns::enter(&server.netns, || TcpListener::bind(address)).unwrap();
    let (done, begun, slow) = (AtomicBool::new(false), AtomicUsize::new(0), AtomicUsize::new(0));
    let come_and_go = || {
        let start = Instant::now();
        let mut new = TcpStream::connect_timeout(&address, PATIENCE)?;
        slow.fetch_add(usize::from(start.elapsed() >= SYN_AGAIN), Ordering::Relaxed);
        // Until it was accepted: a queue that is full drops SYNs, too.
        new.read_to_end(&mut Vec::new())?;
        // Reset at its end: nothing of it may meet a later one with the same port.
        let linger = libc::linger { l_onoff: 1, l_linger: 0 };
        nix::sys::socket::setsockopt(&new, nix::sys::socket::sockopt::Linger, &linger)?;
        begun.fetch_add(1, Ordering::Relaxed);
        io::Result::Ok(())
    };
    let before = repeated_syns(&client);
    thread::scope(|scope| {
        scope.spawn(|| listener.incoming().take_while(|_| !done.load(Ordering::Relaxed)).for_each(drop));
        scope.spawn(|| {
            netns::enter(&client.netns, || {
                while !done.load(Ordering::Relaxed) {
                    come_and_go()?;
                }
                // One more, for whoever accepts may be waiting for it.
                let _ = TcpStream::connect_timeout(&address, PATIENCE);
                io::Result::Ok(())
            })
            .unwrap();
        });
        let mut gate = holding(&network, &server);
        for _ in 0..400 {
            let so_far = begun.load(Ordering::Relaxed);
            testing::eventually("a connection", || begun.load(Ordering::Relaxed) > so_far);
            gate.close().unwrap();
            thread::sleep(Duration::from_micros(500));
            gate.open().unwrap();
        }
        done.store(true, Ordering::Relaxed);
    });
    // A machine that stood still for so long lost nothing.
    if repeated_syns(&client) != before {
        assert_eq!(slow.into_inner(), 0, "of {} connections so many were begun twice", begun.into_inner());
    }
    network.sweep_all();
}

#[test]
fn a_gate_that_stays_closed_delivers_nothing_and_one_that_does_not_close_holds_nothing() {
    let test = "a_gate_that_stays_closed_delivers_nothing_and_one_that_does_not_close_holds_nothing";
    let Some(node) = isolated(test) else { return };
    let network = node.network(None, None);
    let (server, client) = (attached(&network, "server", 2), attached(&network, "client", 3));
    let (from, heard) = (datagrams(&client, 0), datagrams(&server, 7000));
    send(&from, &server, [0]);
    assert_eq!(numbers(&heard, 1), [0]);
    let mut gate = holding(&network, &server);
    gate.close().unwrap();
    send(&from, &server, 1..20);
    drop(gate);
    assert!(rest(&heard).is_empty());
    network.gate(&name("server")).unwrap().open().unwrap();
    send(&from, &server, [20]);
    assert_eq!(numbers(&heard, 1), [20]);
    assert!(rest(&heard).is_empty());

    let mut gate = holding(&network, &server);
    network.detach(&server).unwrap();
    assert!(matches!(gate.close(), Err(NetworkError::NotAttached { .. })));
    send(&from, &server, 21..30);
    network.attach(&server).unwrap();
    gate.open().unwrap();
    send(&from, &server, [30]);
    assert_eq!(numbers(&heard, 1), [30]);
    assert!(rest(&heard).is_empty());
    drop(gate);
    network.sweep_all();
}

#[test]
fn a_gate_that_cannot_hold_drops() {
    let Some(node) = isolated("a_gate_that_cannot_hold_drops") else { return };
    let network = node.network(None, None);
    let (server, client) = (attached(&network, "server", 2), attached(&network, "client", 3));
    let (from, heard) = (datagrams(&client, 0), datagrams(&server, 7000));
    send(&from, &server, [0]);
    assert_eq!(numbers(&heard, 1), [0]);
    let refused = Err(io::Error::from_raw_os_error(libc::EPERM));
    let mut gate = network.gate(&name("server")).unwrap().holding(refused);
    gate.close().unwrap();
    send(&from, &server, 1..5);
    gate.open().unwrap();
    send(&from, &server, [5]);
    assert_eq!(numbers(&heard, 1), [5]);
    assert!(rest(&heard).is_empty());
    network.sweep_all();
}

#[test]
fn what_comes_out_of_another_closed_gate_is_not_delivered() {
    let Some(node) = isolated("what_comes_out_of_another_closed_gate_is_not_delivered") else { return };
    let network = node.network(None, None);
    let (server, client) = (attached(&network, "server", 2), attached(&network, "client", 3));
    let (from, heard) = (datagrams(&client, 0), datagrams(&server, 7000));
    send(&from, &server, [0]);
    assert_eq!(numbers(&heard, 1), [0]);
    let (mut gate, mut other) = (holding(&network, &server), network.gate(&name("client")).unwrap());
    gate.close().unwrap();
    other.close().unwrap();
    send(&from, &server, 1..20);
    gate.open().unwrap();
    assert!(rest(&heard).is_empty());
    other.open().unwrap();
    gate.close().unwrap();
    send(&from, &server, [20]);
    gate.open().unwrap();
    assert_eq!(numbers(&heard, 1), [20]);
    drop(gate);
    network.sweep_all();
}

/// Numbered datagrams to `to`, one after the other, while the gate closes and opens: how many, and those that arrived.
fn stream(from: &UdpSocket, to: &Attachment, gate: &mut Gate) -> (u32, Vec<u32>) {
    let heard = datagrams(to, 7000);
    // What a busy machine's receiver is late for is not to be taken for lost at the gate.
    nix::sys::socket::setsockopt(&heard, nix::sys::socket::sockopt::RcvBufForce, &(32 << 20)).unwrap();
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        let sending = scope.spawn(|| {
            let mut sent = 0;
            while !done.load(Ordering::Relaxed) {
                send(from, to, [sent]);
                sent += 1;
                thread::sleep(Duration::from_micros(20));
            }
            sent
        });
        let receiving = scope.spawn(|| {
            let mut all = Vec::new();
            let mut bytes = [0; 4];
            heard.set_read_timeout(Some(Duration::from_secs(1))).unwrap();
            while heard.recv(&mut bytes).is_ok() {
                all.push(u32::from_be_bytes(bytes));
            }
            all
        });
        for _ in 0..300 {
            gate.close().unwrap();
            thread::sleep(Duration::from_millis(1));
            gate.open().unwrap();
            thread::sleep(Duration::from_millis(1));
        }
        done.store(true, Ordering::Relaxed);
        let arrived = receiving.join().unwrap();
        (sending.join().unwrap(), arrived)
    })
}

#[test]
fn a_stream_of_datagrams_through_a_gate_that_closes_and_opens_arrives_whole_and_nothing_twice() {
    let test = "a_stream_of_datagrams_through_a_gate_that_closes_and_opens_arrives_whole_and_nothing_twice";
    let Some(node) = isolated(test) else { return };
    let network = node.network(None, None);
    let (server, client) = (attached(&network, "server", 2), attached(&network, "client", 3));
    let mut gate = holding(&network, &server);
    let (sent, mut arrived) = stream(&datagrams(&client, 0), &server, &mut gate);
    let overtaken = arrived.windows(2).filter(|pair| pair[0] > pair[1]).count();
    let count = arrived.len();
    arrived.sort_unstable();
    arrived.dedup();
    println!(
        "MEASURED {sent} datagrams, gate closed 300 times: {} twice, {} lost, {overtaken} overtaken",
        count - arrived.len(),
        sent as usize - arrived.len()
    );
    assert_eq!(count, arrived.len(), "something came twice");
    assert_eq!(arrived.len(), sent as usize, "something was lost");
    drop(gate);
    network.sweep_all();
}

#[test]
fn what_a_program_sends_into_a_closed_gate_is_not_kept_and_nothing_of_it_goes_out_twice() {
    let test = "what_a_program_sends_into_a_closed_gate_is_not_kept_and_nothing_of_it_goes_out_twice";
    let Some(node) = isolated(test) else { return };
    let network = node.network(None, None);
    let (server, client) = (attached(&network, "server", 2), attached(&network, "client", 3));
    let mut gate = holding(&network, &server);
    let (sent, mut arrived) = stream(&datagrams(&server, 0), &client, &mut gate);
    let count = arrived.len();
    arrived.sort_unstable();
    arrived.dedup();
    assert_eq!(count, arrived.len(), "something went out twice");
    // Some ten are sent each time that it is closed.
    assert!(sent as usize - count > 300, "{count} of {sent} went out");
    drop(gate);
    network.sweep_all();
}

#[test]
fn holding_adds_microseconds_to_closing() {
    let Some(node) = isolated("holding_adds_microseconds_to_closing") else { return };
    let network = node.network(None, None);
    let server = attached(&network, "server", 2);
    let (mut first, mut again, mut making, mut dropping) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for _ in 0..30 {
        let start = Instant::now();
        let mut gate = holding(&network, &server);
        making.push(start.elapsed());
        for times in [&mut first, &mut again] {
            let start = Instant::now();
            gate.close().unwrap();
            times.push(start.elapsed());
            gate.open().unwrap();
        }
        let start = Instant::now();
        drop(gate);
        dropping.push(start.elapsed());
    }
    for (what, times) in
        [("first close", &mut first), ("later close", &mut again), ("making", &mut making), ("dropping", &mut dropping)]
    {
        times.sort_unstable();
        println!("MEASURED holding gate, {what}: median {:?}, p90 {:?}, worst {:?}", times[15], times[27], times[29]);
    }
    network.sweep_all();
}
