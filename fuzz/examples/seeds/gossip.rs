//! What real cores say to one of them, written down as it arrives there.

use std::time::Duration;

use ha_manager::{
    fuzzing::write_gossip,
    membership::{Boot, Config, Contacts, Core, Gossip, Input, Me, Output, Request, Time},
};
use ha_proto::peer as pb;
use prost::Message;

const ROUND: Duration = Duration::from_millis(200);
/// In the target's table of waits.
const A_ROUND: u8 = 5;

pub fn seeds() -> Vec<Vec<u8>> {
    vec![
        // Three that are well; one that goes silent; one that leaves; more than the table holds; a crowd with a silent one.
        talk(2, 6, None, false),
        talk(2, 14, Some(1), false),
        talk(1, 5, None, true),
        talk(6, 4, None, false),
        talk(6, 14, Some(2), false),
    ]
}

struct Talk {
    cores: Vec<Core>,
    now: Time,
    silent: Option<usize>,
    /// What node 0 took in.
    steps: Vec<u8>,
}

/// Node 0 and `others` of them, for some rounds; from the fourth on `silent` says nothing, and at the end node 1 may leave.
fn talk(others: usize, rounds: usize, silent: Option<usize>, leave: bool) -> Vec<u8> {
    let names = ["me", "a", "b", "c", "d", "e", "f"];
    let core = |index: usize| {
        let config = Config { max_peers: if index == 0 { 4 } else { 64 }, ..Config::new("c") };
        let (name, address) = (names[index].parse().unwrap(), format!("{}:1", names[index]));
        let me = Me { name, address, boot: Boot([9 - index as u8; 16]) };
        Core::new(config, me, vec!["me:1".to_owned()], Contacts::default(), index as u64, Time::ZERO).unwrap()
    };
    let mut talk = Talk { cores: (0..=others).map(core).collect(), now: Time::ZERO, silent: None, steps: Vec::new() };
    for round in 0..rounds {
        talk.silent = silent.filter(|_| round >= 3);
        for index in 0..=others {
            talk.take(index, Input::Tick);
        }
        if leave && round + 1 == rounds {
            talk.take(1, Input::Leave);
        }
        talk.steps.extend([7, A_ROUND]);
        talk.now += ROUND;
    }
    talk.steps
}

impl Talk {
    /// Every message arrives at once, and so does its answer.
    fn take(&mut self, index: usize, input: Input) -> Option<(Gossip, bool)> {
        if self.silent == Some(index) {
            return None;
        }
        let mut out = Vec::new();
        self.cores[index].handle(input, self.now, &mut out);
        let mut replied = None;
        for output in out {
            match output {
                Output::Reply { gossip, answered, .. } => replied = Some((gossip, answered)),
                Output::Call { id, to, request, gossip, .. } => {
                    let answer = self.cores.iter().position(|core| core.me().address == to).and_then(|callee| {
                        self.write_down(callee, &request, &gossip);
                        self.take(callee, Input::Asked { token: id.0, gossip, request })
                    });
                    match answer {
                        Some((gossip, answered)) => {
                            if index == 0 {
                                let envelope = Some(write_gossip("c", gossip.clone()));
                                let reply = pb::PingIndirectReply { envelope, seq: id.0, answered };
                                self.message(&[3, 0, 1], &reply.encode_to_vec());
                            }
                            self.take(index, Input::Answered { call: id, gossip, answered });
                        }
                        None => drop(self.take(index, Input::Failed { call: id })),
                    }
                }
                Output::Event(_) | Output::Touch { .. } => {}
            }
        }
        replied
    }

    fn write_down(&mut self, callee: usize, request: &Request, gossip: &Gossip) {
        if callee != 0 {
            return;
        }
        let envelope = Some(write_gossip("c", gossip.clone()));
        match request {
            Request::Ping => self.message(&[0, 0], &pb::PingRequest { envelope, seq: 1 }.encode_to_vec()),
            Request::PingIndirect { target, timeout } => {
                let (target, timeout_ms) = (target.to_string(), timeout.as_millis() as u32);
                let request = pb::PingIndirectRequest { envelope, seq: 1, target, timeout_ms };
                self.message(&[2, 0], &request.encode_to_vec());
            }
        }
    }

    fn message(&mut self, head: &[u8], bytes: &[u8]) {
        self.steps.extend_from_slice(head);
        self.steps.extend_from_slice(&(bytes.len() as u16).to_le_bytes());
        self.steps.extend_from_slice(bytes);
    }
}
