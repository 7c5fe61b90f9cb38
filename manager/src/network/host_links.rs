//! All containers' links at once: off the wire and back, whatever else is known of them.
//!
//! For whoever has to silence a node without its manager (`fence`). Only *up* and *down* are changed: a container's end loses
//! its carrier and keeps its addresses, routes and connections.

use std::io;

use netlink_packet_route::{
    RouteNetlinkMessage,
    link::{LinkAttribute, LinkFlags, LinkMessage},
};

use super::{bridge::link_message, netlink::Rtnl};

/// The links whose name begins with a prefix, in the network namespace of the thread that made this.
pub struct HostLinks {
    rtnl: Rtnl,
    prefix: String,
}

impl HostLinks {
    /// # Errors
    /// No netlink.
    pub fn open(prefix: &str) -> io::Result<Self> {
        Ok(Self { rtnl: Rtnl::open()?, prefix: prefix.to_owned() })
    }

    /// The indices of those that are down.
    ///
    /// # Errors
    /// The kernel's.
    pub fn down(&mut self) -> io::Result<Vec<u32>> {
        let all = self.all()?;
        Ok(all.iter().filter(|link| !is_up(link)).map(|link| link.header.index).collect())
    }

    /// Takes down all that are up, and says which did go down, with the first of the kernel's errors after all were tried.
    pub fn lower(&mut self) -> (Vec<u32>, io::Result<()>) {
        let all = match self.all() {
            Ok(all) => all,
            Err(error) => return (Vec::new(), Err(error)),
        };
        let (mut lowered, mut outcome) = (Vec::new(), Ok(()));
        for index in all.iter().filter(|link| is_up(link)).map(|link| link.header.index) {
            match self.set(index, false) {
                Ok(true) => lowered.push(index),
                Ok(false) => {}
                Err(error) => outcome = outcome.and(Err(error)),
            }
        }
        (lowered, outcome)
    }

    /// Brings up those of `indices` that still exist under a name of ours.
    ///
    /// # Errors
    /// The first of the kernel's, after all were tried.
    pub fn raise(&mut self, indices: &[u32]) -> io::Result<()> {
        let mut outcome = Ok(());
        for index in self.all()?.iter().map(|link| link.header.index).filter(|index| indices.contains(index)) {
            if let Err(error) = self.set(index, true) {
                outcome = outcome.and(Err(error));
            }
        }
        outcome
    }

    /// False when it is gone.
    fn set(&mut self, index: u32, up: bool) -> io::Result<bool> {
        let mut message = link_message(index, LinkFlags::Up);
        if !up {
            message.header.flags = LinkFlags::empty();
        }
        match self.rtnl.request(RouteNetlinkMessage::SetLink(message), 0) {
            Err(error) if error.raw_os_error() == Some(libc::ENODEV) => Ok(false),
            other => other.map(|()| true),
        }
    }

    fn all(&mut self) -> io::Result<Vec<LinkMessage>> {
        let answers = self.rtnl.dump(RouteNetlinkMessage::GetLink(LinkMessage::default()))?;
        let links = answers.into_iter().filter_map(|answer| match answer {
            RouteNetlinkMessage::NewLink(link) => Some(link),
            _ => None,
        });
        let ours = |link: &LinkMessage| {
            let name = |attribute: &LinkAttribute| match attribute {
                LinkAttribute::IfName(name) => name.starts_with(&self.prefix),
                _ => false,
            };
            link.attributes.iter().any(name)
        };
        Ok(links.filter(ours).collect())
    }
}

fn is_up(link: &LinkMessage) -> bool {
    link.header.flags.contains(LinkFlags::Up)
}

#[cfg(test)]
mod tests {
    use super::{
        super::testing::{attached, eventually, ip, isolated, name, reachable, run},
        *,
    };

    fn flags(link: &str) -> bool {
        run(&format!("ip -o link show dev {link}")).contains(",UP")
    }

    #[test]
    fn all_links_go_down_and_those_that_were_up_come_back() {
        let Some(node) = isolated("all_links_go_down_and_those_that_were_up_come_back") else { return };
        let network = node.network(None, None);
        let [one, two, three] = [("c1", 2), ("c2", 3), ("c3", 4)].map(|(name, last)| attached(&network, name, last));
        run("ip link add other type veth peer name others");
        run("ip link set other up");
        run(&format!("ip link set {} down", three.host_link));
        eventually("they reach each other", || reachable(&one, ip(3)));

        let mut links = HostLinks::open("hv").unwrap();
        assert_eq!(links.down().unwrap(), [three.host_index]);
        let (mut lowered, outcome) = links.lower();
        outcome.unwrap();
        lowered.sort_unstable();
        assert_eq!(lowered, [one.host_index, two.host_index]);
        assert!(!reachable(&one, ip(3)) && !flags(&one.host_link) && flags("other") && flags("ha0"));
        assert!(links.lower().0.is_empty(), "they are down already");

        network.teardown(&name("c2")).unwrap();
        links.raise(&lowered).unwrap();
        assert!(flags(&one.host_link) && !flags(&three.host_link));
        let again = attached(&network, "c2", 3);
        eventually("they reach each other again", || reachable(&one, ip(3)));
        assert!(flags(&again.host_link));
        run("ip link del other");
        network.sweep_all();
    }
}
