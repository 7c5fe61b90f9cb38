//! Whether the node's packet filter drops what goes from port to port of the bridge, as Docker makes it.

use std::{fs, time::Duration};

use super::{
    Check,
    tool::{self, chain},
};

const ID: (&str, &str) = ("network.forward", "frames within the bridge");
const SWITCH: &str = "/proc/sys/net/bridge/bridge-nf-call-iptables";
const TIMEOUT: Duration = Duration::from_secs(10);

pub(super) fn check(bridge: &str) -> Check {
    if !fs::read_to_string(SWITCH).is_ok_and(|value| value.trim() == "1") {
        return Check::ok(ID.0, ID.1, "no packet filter sees them (bridge-nf-call-iptables is off)");
    }
    match tool::run("iptables", &["-w", "5", "-S", "FORWARD"], TIMEOUT) {
        Ok(output) if output.ok() && !drops(&output.text, bridge) => {
            Check::ok(ID.0, ID.1, "iptables sees them and lets them pass")
        }
        Ok(output) if output.ok() => Check::warn(
            ID.0,
            ID.1,
            "bridge-nf-call-iptables is 1 and the chain FORWARD drops what it has no rule for: containers of two nodes do \
             not reach each other",
            format!("iptables -I FORWARD -i {bridge} -o {bridge} -j ACCEPT, and again at every boot"),
        ),
        Ok(output) => unknown(&output.last_line()),
        Err(error) => unknown(&chain(&error)),
    }
}

fn unknown(why: &str) -> Check {
    let found = format!("bridge-nf-call-iptables is 1, and the chain FORWARD cannot be looked at: {why}");
    Check::warn(ID.0, ID.1, found, "sysctl net.bridge.bridge-nf-call-iptables=0, unless another program needs it")
}

/// From what `iptables -S FORWARD` prints: the policy drops, and no rule accepts all that stays within the bridge.
fn drops(rules: &str, bridge: &str) -> bool {
    let accepted = |line: &str| {
        let words: Vec<&str> = line.split_ascii_whitespace().collect();
        let pair = |key, value| words.windows(2).any(|pair| pair == [key, value]);
        // With any further condition it is not all.
        words.len() == 8 && pair("-i", bridge) && pair("-o", bridge) && pair("-j", "ACCEPT")
    };
    rules.lines().any(|line| line.trim() == "-P FORWARD DROP") && !rules.lines().any(accepted)
}

#[cfg(test)]
mod tests {
    use super::drops;

    #[test]
    fn a_dropping_policy_without_a_rule_for_the_bridge_is_found() {
        let docker = "-P FORWARD DROP\n-A FORWARD -j DOCKER-USER\n-A FORWARD -i docker0 -o docker0 -j ACCEPT\n";
        assert!(drops(docker, "ha0"));
        assert!(!drops(docker, "docker0"));
        assert!(drops(&format!("{docker}-A FORWARD -i ha0 -o ha0 -p tcp -j ACCEPT\n"), "ha0"), "only TCP passes");
        assert!(!drops(&format!("{docker}-A FORWARD -i ha0 -o ha0 -j ACCEPT\n"), "ha0"));
        assert!(!drops("-P FORWARD ACCEPT\n", "ha0"));
    }
}
