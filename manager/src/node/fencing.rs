//! Having a silent node switched off by its fencing command, once for all its containers.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use serde_json::json;

use super::Node;
use crate::{
    config::{FenceAction, FenceConfig, FenceMethod},
    fence::{AgentAction, AgentOptions, FenceCommand},
    spec::NodeName,
};

/// What came of a command holds for so long; then it is run again.
const AGAIN: Duration = Duration::from_secs(10);

/// What became of the last command for a node.
#[derive(Debug, Clone, Copy)]
struct Last {
    /// From before it ran: what was heard while it ran is later, and it is run again.
    at: Instant,
    done: Instant,
    off: bool,
}

/// One command at a time for each node.
#[derive(Debug, Default)]
pub(super) struct Fencing(Mutex<BTreeMap<NodeName, Arc<tokio::sync::Mutex<Option<Last>>>>>);

impl Fencing {
    fn of(&self, node: &NodeName) -> Arc<tokio::sync::Mutex<Option<Last>>> {
        Arc::clone(self.0.lock().unwrap_or_else(PoisonError::into_inner).entry(node.clone()).or_default())
    }
}

impl Node {
    /// Has `victim`, for which there is a fencing command, switched off by it, if that has not been done since it was last heard.
    /// From when on it was off, at the latest when this returns: before the command ran.
    pub(super) async fn switched_off(&self, victim: &NodeName, config: &FenceConfig) -> Option<Instant> {
        let state = self.fencing.of(victim);
        let mut last = state.lock().await;
        let heard = self.ctx.membership.last_contact(victim);
        match *last {
            // Somebody may have switched it on again since, and nobody here heard of it.
            Some(last) if last.off && last.done.elapsed() < AGAIN && heard.is_none_or(|heard| heard < last.at) => {
                return Some(last.at);
            }
            Some(last) if !last.off && last.done.elapsed() < AGAIN => return None,
            _ => {}
        }
        self.events().emit(None, "fence.started", &format!("having {victim} switched off"), json!({"node": victim}));
        let began = Instant::now();
        let outcome = command(config).run(victim).await;
        let ms = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX);
        match &outcome {
            Ok(()) => {
                let text = format!("{victim} is off: its leases are not waited for");
                self.events().emit(None, "fence.done", &text, json!({"node": victim, "ms": ms}));
            }
            Err(error) => {
                let text = format!("{}; what {victim} may still run is waited for", crate::chain(error));
                self.events().emit(None, "fence.failed", &text, json!({"node": victim, "ms": ms}));
            }
        }
        *last = Some(Last { at: began, done: Instant::now(), off: outcome.is_ok() });
        outcome.is_ok().then_some(began)
    }
}

fn command(config: &FenceConfig) -> FenceCommand {
    match &config.method {
        FenceMethod::Command { command } => {
            FenceCommand { argv: command.clone(), timeout: config.timeout, agent: None }
        }
        FenceMethod::Agent { agent, options, action } => FenceCommand {
            argv: vec![agent.display().to_string()],
            timeout: config.timeout,
            agent: Some(AgentOptions {
                action: match action {
                    FenceAction::Off => AgentAction::Off,
                    FenceAction::Reboot => AgentAction::Reboot,
                },
                options: options.0.clone(),
            }),
        },
    }
}
