//! The switch between the nodes, made to drop packets.

use std::{
    io::Write,
    process::{Command, Stdio},
};

use anyhow::Context;

use super::fault::{Block, Place};

/// The packets that the switch drops.
#[derive(Debug)]
pub struct Switch {
    pid: u32,
    blocks: Vec<Block>,
}

impl Switch {
    /// `pid`: the process that holds the switch's namespace.
    pub fn new(pid: u32) -> Self {
        Self { pid, blocks: Vec::new() }
    }

    /// # Errors
    /// When `nft` does not take the rules.
    pub fn block(&mut self, block: Block) -> anyhow::Result<()> {
        self.blocks.push(block);
        self.load()
    }

    /// # Errors
    /// As `block`.
    pub fn unblock(&mut self, block: Block) -> anyhow::Result<()> {
        if let Some(place) = self.blocks.iter().position(|other| *other == block) {
            self.blocks.swap_remove(place);
        }
        self.load()
    }

    /// All rules at once, in place of those before.
    fn load(&self) -> anyhow::Result<()> {
        let rules = self.blocks.iter().flat_map(rules).collect::<String>();
        let table = format!(
            "table bridge chaos {{}}\ndelete table bridge chaos\n\
             table bridge chaos {{ chain forward {{ type filter hook forward priority 0;\n{rules}}}\n}}\n"
        );
        let mut nft = Command::new("nsenter");
        nft.arg(format!("--net=/proc/{}/ns/net", self.pid)).args(["nft", "-f", "-"]);
        let mut child = nft.stdin(Stdio::piped()).stderr(Stdio::piped()).spawn().context("cannot start nsenter")?;
        child.stdin.take().context("nft has no standard input")?.write_all(table.as_bytes())?;
        let output = child.wait_with_output()?;
        anyhow::ensure!(output.status.success(), "nft: {}\n{table}", String::from_utf8_lossy(&output.stderr).trim());
        Ok(())
    }
}

fn rules(block: &Block) -> Vec<String> {
    let port = |node: &Place| format!("p-{node}");
    match block {
        Block::From(node) => vec![format!("iifname \"{}\" drop\n", port(node))],
        Block::To(node) => vec![format!("oifname \"{}\" drop\n", port(node))],
        Block::Between(a, b) => {
            let one_way = |from, to| format!("iifname \"{}\" oifname \"{}\" drop\n", port(from), port(to));
            vec![one_way(a, b), one_way(b, a)]
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{net::UdpSocket, time::Duration};

    use super::*;
    use crate::lab::{Lab, NodeOptions, in_netns};

    /// Datagrams, for each is a way of its own: a connection needs both.
    #[test]
    fn each_block_drops_its_own_way_and_no_other() {
        if let Some(why) = crate::why_no_nodes() {
            return crate::skipped("each_block_drops_its_own_way_and_no_other", &why);
        }
        let lab = Lab::new().unwrap();
        let nodes = [1, 2, 3].map(|number| lab.node(number, NodeOptions::default()).unwrap());
        let mut switch = Switch::new(nodes[0].switch_pid());
        let sockets = nodes.each_ref().map(|node| {
            let address = format!("{}:7000", node.address());
            let bind = move || {
                let socket = UdpSocket::bind(address)?;
                socket.set_read_timeout(Some(Duration::from_millis(300)))?;
                Ok(socket)
            };
            in_netns(node.netns().unwrap(), bind).unwrap().join().unwrap().unwrap()
        });
        let mut sent = 0u64;
        let mut arrives = |from: usize, to: usize| {
            sent += 1;
            sockets[from].send_to(&sent.to_le_bytes(), format!("{}:7000", nodes[to].address())).unwrap();
            let mut got = [0; 8];
            loop {
                match sockets[to].recv(&mut got) {
                    Ok(_) if got == sent.to_le_bytes() => return true,
                    // What was late for the question before.
                    Ok(_) => {}
                    Err(_) => return false,
                }
            }
        };
        let ways = [(0, 1), (1, 0), (0, 2), (2, 0), (1, 2), (2, 1)];
        // Neighbours are found before the first cut: a node that is mute cannot be asked for its address.
        assert!(ways.iter().all(|(from, to)| (0..10).any(|_| arrives(*from, *to))));
        let [one, two] = [0, 1].map(Place);
        type Case<'a> = (&'a [Block], &'a [(usize, usize)]);
        let cases: [Case; 4] = [
            (&[Block::From(one)], &[(0, 1), (0, 2)]),
            (&[Block::To(one)], &[(1, 0), (2, 0)]),
            (&[Block::Between(one, two)], &[(0, 1), (1, 0)]),
            (&[Block::From(one), Block::To(one)], &[(0, 1), (1, 0), (0, 2), (2, 0)]),
        ];
        for (blocks, lost) in cases {
            blocks.iter().for_each(|block| switch.block(*block).unwrap());
            for way in ways {
                assert_eq!(arrives(way.0, way.1), !lost.contains(&way), "{way:?} with {blocks:?}");
            }
            blocks.iter().for_each(|block| switch.unblock(*block).unwrap());
            assert!(ways.iter().all(|(from, to)| (0..10).any(|_| arrives(*from, *to))), "after {blocks:?}");
        }
    }
}
