//! The gate against the real kernel: what passes, and what it costs.

use std::{
    io::{Read, Write},
    net::{TcpListener, TcpStream},
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use super::{
    testing::{Connection, attached, connect, exchange, hears, ip, isolated, name, reachable, run},
    *,
};

/// Longer than the kernel waits before it sends unanswered data again (200 ms).
const QUIET: Duration = Duration::from_millis(300);

#[test]
fn nothing_passes_a_closed_gate_and_connections_outlive_it() {
    let Some(node) = isolated("nothing_passes_a_closed_gate_and_connections_outlive_it") else { return };
    let network = node.network(None, None);
    let (server, client) = (attached(&network, "server", 2), attached(&network, "client", 3));
    let mut connection = connect(&client, &server, 7000);
    exchange(&mut connection.client, &mut connection.server).unwrap();
    let mut gate = network.gate(&name("server")).unwrap();

    gate.close().unwrap();
    gate.close().unwrap();
    connection.client.write_all(b"hello").unwrap();
    connection.server.write_all(b"hello").unwrap();
    assert!(!hears(&mut connection.server, QUIET), "a closed gate let something in");
    assert!(!hears(&mut connection.client, QUIET), "a closed gate let something out");
    assert!(!reachable(&client, ip(2)) && !reachable(&server, ip(3)));
    // A change of the link makes the kernel enable a disabled port. It must not open the gate.
    run(&format!("ip link set {} arp on", server.host_link));
    run(&format!("ip link set {} arp off", server.host_link));
    assert!(run("bridge link show").contains("state listening"), "the gate opened by itself");
    assert!(!hears(&mut connection.client, QUIET), "the gate opened by itself");

    gate.open().unwrap();
    assert!(hears(&mut connection.server, Duration::from_secs(5)), "nothing came in after opening");
    assert!(hears(&mut connection.client, Duration::from_secs(5)), "nothing came out after opening");
    for stream in [&mut connection.client, &mut connection.server] {
        stream.read_exact(&mut [0; 5]).unwrap();
    }
    exchange(&mut connection.client, &mut connection.server).unwrap();

    let (mut closing, mut opening) = (Vec::new(), Vec::new());
    for _ in 0..200 {
        let start = Instant::now();
        gate.close().unwrap();
        closing.push(start.elapsed());
        let start = Instant::now();
        gate.open().unwrap();
        opening.push(start.elapsed());
    }
    exchange(&mut connection.client, &mut connection.server).unwrap();
    for (what, times) in [("close", &mut closing), ("open", &mut opening)] {
        times.sort_unstable();
        println!("MEASURED gate {what}: median {:?}, p95 {:?}, worst {:?}", times[100], times[190], times[199]);
    }
    network.detach(&server).unwrap();
    assert!(matches!(gate.close(), Err(NetworkError::NotAttached { .. })));
    network.sweep_all();
    assert!(matches!(gate.open(), Err(NetworkError::NotAttached { .. })));
    assert!(matches!(network.gate(&name("server")), Err(NetworkError::NotBuilt { .. })));
}

#[test]
fn a_closed_gate_is_forgotten_with_its_link() {
    let Some(node) = isolated("a_closed_gate_is_forgotten_with_its_link") else { return };
    let network = node.network(None, None);
    let close = |network: &Network| {
        let built = attached(network, "closed", 2);
        network.gate(&built.container).unwrap().close().unwrap();
        assert_eq!(network.shut.all(), [built.host_index].into());
        built
    };
    let built = close(&network);
    network.build(&built.container, &built.identity).unwrap();
    assert!(network.shut.all().is_empty(), "built anew");
    network.teardown(&close(&network).container).unwrap();
    assert!(network.shut.all().is_empty(), "torn down");
    network.sweep(&[close(&network).container]).unwrap();
    assert!(network.shut.all().is_empty(), "swept");
}

/// The longest pause of a client that asks, waits for the answer and asks again, around `interrupt`. The server holds
/// the lock for each answer: who has it has frozen the server.
fn longest_pause(connection: Connection, interrupt: impl FnOnce(&Mutex<()>)) -> Duration {
    let (frozen, done) = (Mutex::new(()), AtomicBool::new(false));
    let Connection { mut client, mut server } = connection;
    thread::scope(|scope| {
        let (frozen, done) = (&frozen, &done);
        scope.spawn(move || {
            let mut byte = [0];
            while server.read_exact(&mut byte).is_ok() {
                let _answering = frozen.lock();
                server.write_all(&byte).unwrap();
            }
        });
        let asking = scope.spawn(move || {
            let mut worst = Duration::ZERO;
            while !done.load(Ordering::Relaxed) {
                let start = Instant::now();
                client.write_all(b"x").unwrap();
                client.read_exact(&mut [0]).unwrap();
                worst = worst.max(start.elapsed());
            }
            worst
        });
        thread::sleep(Duration::from_millis(50));
        interrupt(frozen);
        thread::sleep(Duration::from_millis(500)); // longer than a retransmission takes
        done.store(true, Ordering::Relaxed);
        asking.join().unwrap()
    })
}

#[test]
fn a_gate_inside_the_freeze_costs_a_waiting_client_no_retransmission() {
    let Some(node) = isolated("a_gate_inside_the_freeze_costs_a_waiting_client_no_retransmission") else { return };
    let network = node.network(None, None);
    let (server, client) = (attached(&network, "server", 2), attached(&network, "client", 3));
    let mut gate = network.gate(&name("server")).unwrap();
    let closed = Duration::from_millis(20);
    let inside = longest_pause(connect(&client, &server, 7000), |frozen| {
        let _frozen = frozen.lock().unwrap();
        thread::sleep(Duration::from_millis(2)); // the question on its way arrives
        gate.close().unwrap();
        thread::sleep(closed);
        gate.open().unwrap();
    });
    let outside = longest_pause(connect(&client, &server, 7001), |_| {
        gate.close().unwrap();
        thread::sleep(closed);
        gate.open().unwrap();
    });
    println!("MEASURED client's pause, gate closed for 20 ms: inside a freeze {inside:?}, without one {outside:?}");
    assert!(inside >= closed && inside < Duration::from_millis(150), "{inside:?}");
    network.sweep_all();
}

#[test]
fn the_node_hears_its_only_container_again_soon_after_the_gate_opens() {
    let Some(node) = isolated("the_node_hears_its_only_container_again_soon_after_the_gate_opens") else { return };
    let network = node.network(Some((ip(1), 24)), None);
    let server = attached(&network, "server", 2);
    let address = (ip(2), 7000);
    let listener = netns::enter(&server.netns, || TcpListener::bind(address)).unwrap();
    let mut client = TcpStream::connect(address).unwrap();
    let (mut server, _) = listener.accept().unwrap();
    exchange(&mut client, &mut server).unwrap();
    let mut gate = network.gate(&name("server")).unwrap();
    gate.close().unwrap();
    thread::sleep(Duration::from_millis(100));
    gate.open().unwrap();
    let opened = Instant::now();
    exchange(&mut client, &mut server).unwrap();
    println!("MEASURED the node and its only container exchange {:?} after opening", opened.elapsed());
    assert!(opened.elapsed() < Duration::from_secs(2));
    network.sweep_all();
}
