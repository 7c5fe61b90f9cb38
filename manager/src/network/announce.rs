//! Telling the network where an address is now: ARP announcements (RFC 5227 §2.3) from inside the container.
//!
//! Address and MAC are the same as before a failover, so neighbours' tables need no change; the switches do: the frames
//! move the MAC to this node's port in every bridge on the way.

use std::{io, net::Ipv4Addr, path::Path, sync::mpsc, thread, time::Duration};

use super::{
    arp::Arp,
    netlink::Rtnl,
    netns,
    packet::PacketSocket,
    veth::{ATTACHED, SETTLED, arp_retry, inner_end},
};
use crate::spec::Mac;

/// After the first, which leaves before the caller goes on. Frames are lost most easily just after a change of links.
const REPEATS: [Duration; 4] =
    [Duration::from_millis(50), Duration::from_millis(150), Duration::from_millis(300), Duration::from_millis(500)];

/// Returns when the first announcements are out; the others follow within about a second. Also ends the container's
/// hurried asking from before.
pub(super) fn start(namespace: &Path, ip: Ipv4Addr, mac: Mac) -> io::Result<()> {
    let (socket, mut rtnl, index) = netns::enter(namespace, || {
        let mut rtnl = Rtnl::open()?;
        let (socket, index) = inner_end(&mut rtnl)?;
        rtnl.request(arp_retry(index, &ATTACHED), 0)?;
        Ok((socket, rtnl, index))
    })?;
    let (first, sent) = mpsc::sync_channel(1);
    thread::Builder::new().name("ha-announce".into()).spawn(move || {
        // The receiver may be gone only if its thread was.
        let _ = first.send(announce(&socket, ip, mac));
        for pause in REPEATS {
            thread::sleep(pause);
            // The link went away: the container is being torn down, and there is nothing left to announce.
            if announce(&socket, ip, mac).is_err() {
                return;
            }
        }
        if let Err(error) = rtnl.request(arp_retry(index, &SETTLED), 0) {
            tracing::debug!(%ip, %error, "the ARP retry time stays short");
        }
    })?;
    sent.recv().unwrap_or_else(|_| Err(io::Error::other("the announcing thread ended early")))
}

fn announce(socket: &PacketSocket, ip: Ipv4Addr, mac: Mac) -> io::Result<()> {
    let request = Arp::announcement(ip, mac).frame();
    socket.send(&request)?;
    socket.send(&request)?;
    socket.send(&Arp::unasked_reply(ip, mac).frame())
}
