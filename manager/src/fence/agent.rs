//! What a ClusterLabs fence agent is told on its standard input, and what of that nobody else may read.

use std::{collections::BTreeMap, fmt};

/// An agent reads its options to the end of a small pipe.
const MAX_INPUT: usize = 16 * 1024;
/// Shorter ones occur in any text: hiding them would show nothing any more and hide nothing.
const MIN_SECRET: usize = 4;
/// Options whose values help who reads an error and nobody else. All others may be secrets.
const PUBLIC: [&str; 10] =
    ["ip", "ipaddr", "ipport", "port", "plug", "username", "login", "method", "power_wait", "ssl_insecure"];

/// What the agent is to do with the node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum AgentAction {
    #[default]
    Off,
    Reboot,
}

impl AgentAction {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Off => "off",
            Self::Reboot => "reboot",
        }
    }
}

/// For a program that takes `key=value` lines, as the `fence_…` programs do. Its `Debug` shows no values.
#[derive(Clone, PartialEq, Eq, Default)]
pub struct AgentOptions {
    pub action: AgentAction,
    pub options: BTreeMap<String, String>,
}

impl fmt::Debug for AgentOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let keys: Vec<&String> = self.options.keys().collect();
        f.debug_struct("AgentOptions").field("action", &self.action).field("options", &keys).finish_non_exhaustive()
    }
}

impl AgentOptions {
    /// The action first, then the options.
    ///
    /// # Errors
    /// The option that cannot be told in a line, or would be taken for the action.
    pub(super) fn input(&self) -> Result<String, String> {
        let mut text = format!("action={}\n", self.action.as_str());
        for (key, value) in &self.options {
            let plain = !key.is_empty() && key.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-');
            if !plain {
                return Err(format!("{key:?} is not an option's name: those have letters, digits, '_' and '-'"));
            }
            if matches!(key.as_str(), "action" | "option") {
                return Err(format!("the option {key:?} is set with `action`"));
            }
            if value.contains(['\n', '\r', '\0']) {
                return Err(format!("the value of the option {key:?} is more than one line"));
            }
            text.push_str(&format!("{key}={value}\n"));
        }
        if text.len() > MAX_INPUT {
            return Err(format!("the options are longer than {MAX_INPUT} bytes"));
        }
        Ok(text)
    }

    /// The text without the values that are nobody's business.
    pub(super) fn redact(&self, mut text: String) -> String {
        let secret = |(key, value): &(&String, &String)| !PUBLIC.contains(&key.as_str()) && value.len() >= MIN_SECRET;
        let mut secrets: Vec<&String> = self.options.iter().filter(secret).map(|(_, value)| value).collect();
        // One may be part of another.
        secrets.sort_by_key(|value| std::cmp::Reverse(value.len()));
        for value in secrets {
            text = text.replace(value.as_str(), "***");
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(pairs: &[(&str, &str)]) -> AgentOptions {
        let options = pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        AgentOptions { action: AgentAction::Off, options }
    }

    #[test]
    fn the_action_comes_first() {
        let mut agent = options(&[("ip", "10.0.0.9"), ("password", "a=b c")]);
        assert_eq!(agent.input().unwrap(), "action=off\nip=10.0.0.9\npassword=a=b c\n");
        agent.action = AgentAction::Reboot;
        assert!(agent.input().unwrap().starts_with("action=reboot\n"));
    }

    #[test]
    fn nothing_gets_a_line_of_its_own_unseen() {
        for (key, value) in
            [("ip", "x\naction=on"), ("ip", "x\r"), ("a b", "x"), ("", "x"), ("action", "on"), ("x=y", "z")]
        {
            assert!(options(&[(key, value)]).input().is_err(), "{key:?} {value:?}");
        }
        assert!(options(&[("ip", &"x".repeat(MAX_INPUT))]).input().unwrap_err().contains("longer"));
    }

    #[test]
    fn values_are_not_shown() {
        let agent =
            options(&[("password", "s3cret"), ("passwd_long", "s3cret-more"), ("ip", "10.0.0.9"), ("ssl", "1")]);
        let shown = format!("{agent:?}");
        assert!(shown.contains("password") && !shown.contains("s3cret"), "{shown}");
        let text = agent.redact("10.0.0.9 refused s3cret and s3cret-more 1 time".into());
        assert_eq!(text, "10.0.0.9 refused *** and *** 1 time");
    }
}
