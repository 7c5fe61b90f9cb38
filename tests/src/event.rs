//! What managers report, as the tests read it.

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// What a manager reports; `ha-manager events --json` prints one a line.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Event {
    pub at: DateTime<Utc>,
    pub node: String,
    pub container: String,
    pub kind: String,
    pub message: String,
    pub detail: Value,
}

impl Event {
    /// A number of the detail.
    pub fn number(&self, key: &str) -> Option<f64> {
        self.detail.get(key)?.as_f64()
    }

    /// A text of the detail.
    pub fn text(&self, key: &str) -> Option<&str> {
        self.detail.get(key)?.as_str()
    }
}
