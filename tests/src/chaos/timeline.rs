//! One clock for all that is written down in a session, and the readable account of it on standard error.

use std::{
    sync::{Mutex, PoisonError},
    time::{Duration, Instant, SystemTime},
};

/// Times are since the beginning of the session.
#[derive(Debug)]
pub struct Timeline {
    start: Instant,
    wall: SystemTime,
    lines: Mutex<Vec<String>>,
}

impl Timeline {
    pub fn new() -> Self {
        Self { start: Instant::now(), wall: SystemTime::now(), lines: Mutex::default() }
    }

    pub fn now(&self) -> Duration {
        self.start.elapsed()
    }

    /// Where a moment of the machine's wall clock is; nodes made of namespaces have the same. Zero for what was before.
    pub fn of_wall(&self, at: SystemTime) -> Duration {
        at.duration_since(self.wall).unwrap_or_default()
    }

    pub fn say(&self, who: &str, what: &str) {
        let line = format!("{:>8.2} s  {who:<8} {what}", self.now().as_secs_f64());
        eprintln!("{line}");
        self.lines.lock().unwrap_or_else(PoisonError::into_inner).push(line);
    }

    /// Everything that was said.
    pub fn text(&self) -> String {
        self.lines.lock().unwrap_or_else(PoisonError::into_inner).join("\n") + "\n"
    }
}

impl Default for Timeline {
    fn default() -> Self {
        Self::new()
    }
}
