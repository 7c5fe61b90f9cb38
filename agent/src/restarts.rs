//! What follows when the main process ends by itself.
//!
//! ```text
//!            start                 ended, rule says no more
//!   (new) ───────────► Running ───────────────────────────────► the agent exits with the code
//!                        ▲  │  stateful: failed, or to be restarted
//!            delay over  │  ├──────────────────────────────────► Ended    (the manager decides)
//!                        │  │  stateless: to be restarted
//!                   BackingOff ◄─┤
//!                           │  too often in a row
//!                           └──────────────────────────────────► GaveUp   (the manager decides)
//! ```
//!
//! A stop, asked for by the manager or by SIGTERM, ends in the agent's exit from every state.

use std::time::Duration;

use ha_proto::agent::{RestartConfig, RestartRule, State};

/// The next step.
#[derive(Debug, PartialEq, Eq)]
pub enum Next {
    /// The container has done its work: the agent exits with the main process's code.
    Exit,
    /// Stay, so that the manager can see what happened and decide.
    Wait,
    Restart {
        /// From 1.
        attempt: u32,
        delay: Duration,
    },
    GiveUp {
        attempts: u32,
    },
}

/// Counts the attempts.
#[derive(Debug)]
pub struct Restarts {
    state: State,
    config: RestartConfig,
    in_a_row: u32,
    total: u32,
}

impl Restarts {
    pub fn new(state: State, config: RestartConfig) -> Self {
        Self { state, config, in_a_row: 0, total: 0 }
    }

    /// Since the agent's start.
    pub fn total(&self) -> u32 {
        self.total
    }

    /// The main process ended with `code` (128 + signal for a signal) after `ran`.
    pub fn ended(&mut self, code: i32, ran: Duration) -> Next {
        let again = match self.config.rule {
            RestartRule::No => false,
            RestartRule::OnFailure => code != 0,
            RestartRule::Always => true,
        };
        if self.state == State::Stateful {
            return if again || code != 0 { Next::Wait } else { Next::Exit };
        }
        if !again {
            return Next::Exit;
        }
        if ran >= Duration::from_millis(self.config.reset_after_ms) {
            self.in_a_row = 0;
        }
        if self.in_a_row >= self.config.max_attempts {
            return Next::GiveUp { attempts: self.in_a_row };
        }
        let factor = 1u64.checked_shl(self.in_a_row).unwrap_or(u64::MAX);
        let delay = self.config.first_delay_ms.saturating_mul(factor).min(self.config.max_delay_ms);
        self.in_a_row += 1;
        self.total = self.total.saturating_add(1);
        Next::Restart { attempt: self.in_a_row, delay: Duration::from_millis(delay) }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn restarts(state: State, rule: RestartRule) -> Restarts {
        Restarts::new(state, RestartConfig { rule, ..RestartConfig::default() })
    }

    const SHORT: Duration = Duration::from_millis(5);

    #[test]
    fn the_delay_doubles_to_its_bound_and_then_the_agent_gives_up() {
        let mut restarts = restarts(State::Stateless, RestartRule::Always);
        for (attempt, delay) in [100, 200, 400, 800, 1600, 3200, 6400, 10_000, 10_000, 10_000].into_iter().enumerate() {
            assert_eq!(
                restarts.ended(0, SHORT),
                Next::Restart { attempt: attempt as u32 + 1, delay: Duration::from_millis(delay) }
            );
        }
        assert_eq!(restarts.ended(1, SHORT), Next::GiveUp { attempts: 10 });
        assert_eq!(restarts.total(), 10);
    }

    #[test]
    fn ten_seconds_of_running_start_the_count_again() {
        let mut restarts = restarts(State::Stateless, RestartRule::OnFailure);
        restarts.ended(1, SHORT);
        restarts.ended(1, SHORT);
        assert_eq!(
            restarts.ended(1, Duration::from_secs(10)),
            Next::Restart { attempt: 1, delay: Duration::from_millis(100) }
        );
        assert_eq!(restarts.total(), 3);
    }

    #[test]
    fn who_decides_depends_on_state_rule_and_code() {
        use RestartRule::{Always, No, OnFailure};
        for (state, rule, code, wanted) in [
            (State::Stateful, No, 0, "exit"),
            (State::Stateful, OnFailure, 0, "exit"),
            (State::Stateful, Always, 0, "wait"),
            (State::Stateful, No, 1, "wait"),
            (State::Stateful, OnFailure, 137, "wait"),
            (State::Stateless, No, 0, "exit"),
            (State::Stateless, No, 1, "exit"),
            (State::Stateless, OnFailure, 0, "exit"),
            (State::Stateless, OnFailure, 1, "restart"),
            (State::Stateless, Always, 0, "restart"),
        ] {
            let got = match restarts(state, rule).ended(code, SHORT) {
                Next::Exit => "exit",
                Next::Wait => "wait",
                Next::Restart { .. } => "restart",
                Next::GiveUp { .. } => "give up",
            };
            assert_eq!(got, wanted, "{state:?} {rule:?} {code}");
        }
    }

    proptest! {
        #[test]
        fn delays_stay_within_their_bounds_whatever_the_configuration(
            first in 1u64.., max in 1u64.., attempts in 0u32..200, ends in 1usize..300
        ) {
            let max = max.max(first);
            let config = RestartConfig {
                rule: RestartRule::Always, max_attempts: attempts, first_delay_ms: first, max_delay_ms: max,
                reset_after_ms: 10_000,
            };
            let mut restarts = Restarts::new(State::Stateless, config);
            let mut before = Duration::ZERO;
            for end in 0..ends {
                match restarts.ended(1, Duration::ZERO) {
                    Next::Restart { attempt, delay } => {
                        prop_assert!(delay >= before.max(Duration::from_millis(first)) && delay <= Duration::from_millis(max));
                        prop_assert!(attempt <= attempts && attempt as usize == end + 1);
                        before = delay;
                    }
                    next => {
                        prop_assert_eq!(next, Next::GiveUp { attempts });
                        prop_assert!(end >= attempts as usize);
                    }
                }
            }
        }
    }
}
