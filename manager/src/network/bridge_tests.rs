//! The bridge and the uplink against the real kernel.

use std::path::Path;

use super::{
    BridgeAddress, Network, NetworkConfig, NetworkError, bridge,
    testing::{config, ip, is_bridge_port, isolated, run},
};

#[test]
fn the_bridge_is_made_once_and_as_it_should_be() {
    let Some(node) = isolated("the_bridge_is_made_once_and_as_it_should_be") else { return };
    run("ip link add up0 type veth peer name wire0");
    let network = node.network(Some((ip(1), 24)), Some("up0"));
    let made = run("ip -d link show ha0");
    for setting in ["forward_delay 0 ", "ageing_time 30000 ", "stp_state 0 ", "mcast_snooping 0 ", ",UP"] {
        assert!(made.contains(setting), "{setting:?} is not in {made}");
    }
    assert!(run("ip -4 -o addr show ha0").contains("10.77.0.1/24 brd 10.77.0.255"));
    assert!(is_bridge_port("up0"));
    let mac = |link| bridge::mac(&network.rtnl().link(link).unwrap().unwrap()).unwrap();
    assert_eq!(mac("ha0"), mac("up0"), "switches that check senders know the uplink's address only");
    assert_eq!(network.ensure_bridge().unwrap(), BridgeAddress::Kept);
    network.take_back(BridgeAddress::Kept).unwrap();
    assert!(run("ip -4 -o addr show ha0").contains("10.77.0.1/24"));
    let other = Network::new(config(Some((ip(2), 24)), Some("up0"))).unwrap();
    let given = other.ensure_bridge().unwrap();
    assert!(given == BridgeAddress::New && run("ip -4 -o addr show ha0").contains("10.77.0.2/24"));
    other.take_back(given).unwrap();
    let left = run("ip -4 -o addr show ha0");
    assert!(left.contains("10.77.0.1/24") && !left.contains("10.77.0.2/24"), "{left}");
    let settings = |text: &str| text.split_whitespace().filter(|w| !w.contains('.')).collect::<Vec<_>>().join(" ");
    assert_eq!(settings(&run("ip -d link show ha0")), settings(&made));
}

#[test]
fn what_cannot_be_the_bridge_or_the_uplink_is_refused_and_left_alone() {
    let Some(_node) = isolated("what_cannot_be_the_bridge_or_the_uplink_is_refused_and_left_alone") else { return };
    let ensure = |address, uplink| Network::new(config(address, uplink)).unwrap().ensure_bridge().unwrap_err();
    assert!(matches!(ensure(None, Some("none0")), NetworkError::UplinkMissing { .. }));
    assert!(!run("ip -o link").contains("ha0"), "a refused uplink still made a bridge");

    run("ip link add ha0 type veth peer name other0");
    let error = ensure(None, None);
    assert!(matches!(error, NetworkError::NotABridge { .. }), "{error}");
    assert!(error.to_string().contains("ha0 exists and is a veth link"), "{error}");
    run("ip link del ha0");

    run("ip link add ha0 type bridge stp_state 1");
    assert!(matches!(ensure(None, None), NetworkError::SpanningTree { .. }));
    run("ip link del ha0");

    run("ip link add up0 type veth peer name wire0");
    run("ip link add br7 type bridge");
    run("ip link set up0 master br7");
    assert!(matches!(ensure(None, Some("up0")), NetworkError::UplinkTaken { .. }));
    run("ip link set up0 nomaster up");
    run("ip link set wire0 up");
    run("ip addr add 10.77.0.9/24 dev up0");
    assert!(matches!(ensure(None, Some("up0")), NetworkError::UplinkAddressed { .. }));
    assert!(matches!(ensure(Some((ip(8), 24)), Some("up0")), NetworkError::UplinkAddressed { .. }));
    run("ip route add default via 10.77.0.254 dev up0");
    assert!(matches!(ensure(Some((ip(9), 24)), Some("up0")), NetworkError::UplinkRouted { .. }));
    run("ip route del default");
    // Every other way a route can leave by it.
    run("ip link add wire1 type veth peer name up1");
    run("ip link set up1 up");
    run("ip link set wire1 up");
    run("ip addr add 10.79.0.1/24 dev up1");
    for route in ["10.80.0.0/16 dev up0", "10.81.0.0/16 nexthop via 10.77.0.254 dev up0 nexthop via 10.79.0.2 dev up1"]
    {
        run(&format!("ip route add {route}"));
        let error = ensure(Some((ip(9), 24)), Some("up0"));
        assert!(matches!(&error, NetworkError::UplinkRouted { to, .. } if route.starts_with(to)), "{route}: {error}");
        run(&format!("ip route del {route}"));
    }
    run("ip nexthop add id 7 via 10.77.0.254 dev up0");
    run("ip route add 10.82.0.0/16 nhid 7");
    assert!(matches!(ensure(Some((ip(9), 24)), Some("up0")), NetworkError::UplinkRouted { .. }));
    run("ip route del 10.82.0.0/16");
    run("ip nexthop del id 7");
    if Path::new("/proc/sys/net/ipv6").exists() {
        run("ip -6 addr add fd00::9/64 dev up0 nodad");
        let error = ensure(Some((ip(9), 24)), Some("up0"));
        assert!(matches!(error, NetworkError::UplinkAddressed6 { .. }), "{error}");
        run("ip -6 addr del fd00::9/64 dev up0");
        run("ip -6 route add fd01::/64 via fe80::1 dev up0");
        let error = ensure(Some((ip(9), 24)), Some("up0"));
        assert!(matches!(&error, NetworkError::UplinkRouted { to, .. } if to == "fd01::/64"), "{error}");
        run("ip -6 route del fd01::/64");
    }

    Network::new(config(Some((ip(9), 24)), Some("up0"))).unwrap().ensure_bridge().unwrap();
    assert!(!run("ip -4 -o addr show up0").contains("10.77.0.9"), "the address was to move to the bridge");
    assert!(run("ip -4 -o addr show ha0").contains("10.77.0.9/24"));
    for bad in ["", "a/b", "a b", "sixteen-letters-", "."] {
        let bad = NetworkConfig { bridge: bad.to_owned(), ..config(None, None) };
        assert!(matches!(Network::new(bad), Err(NetworkError::LinkName { .. })));
    }
}
