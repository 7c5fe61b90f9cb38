//! Long commands show their steps: a spinner or a byte bar on a terminal, plain lines elsewhere.

use std::{
    io::{IsTerminal, stderr},
    time::Duration,
};

use ha_proto::control::Progress;
use indicatif::{ProgressBar, ProgressStyle};
use tonic::Streaming;

use super::client::CliError;

/// Follows a command to its end and returns its result (JSON).
pub async fn follow(mut stream: Streaming<Progress>) -> Result<String, CliError> {
    let bar = if stderr().is_terminal() { Some(spinner()) } else { None };
    let mut last = String::new();
    let outcome = loop {
        match stream.message().await {
            Ok(Some(progress)) if progress.done => break Ok(progress.result_json),
            Ok(Some(progress)) => {
                match &bar {
                    Some(bar) => show(bar, &progress),
                    None if progress.step != last => eprintln!("{}", progress.step),
                    None => {}
                }
                last = progress.step;
            }
            Ok(None) => break Err(CliError::Input("the manager ended the command without a result".into())),
            Err(status) => break Err(status.into()),
        }
    };
    if let Some(bar) = bar {
        bar.finish_and_clear();
    }
    outcome
}

/// Shows that something takes a while, until it is dropped.
pub fn working(what: &str) -> Working {
    if !stderr().is_terminal() {
        eprintln!("{what}");
        return Working(None);
    }
    let bar = spinner();
    bar.set_message(what.to_owned());
    Working(Some(bar))
}

/// As `working`, but only a terminal shows anything.
pub fn quiet() -> Working {
    Working(stderr().is_terminal().then(spinner))
}

pub struct Working(Option<ProgressBar>);

impl Working {
    /// What it is that takes a while, on a terminal.
    pub fn say(&self, what: &str) {
        if let Some(bar) = &self.0 {
            bar.set_message(what.to_owned());
        }
    }
}

impl Drop for Working {
    fn drop(&mut self) {
        if let Some(bar) = &self.0 {
            bar.finish_and_clear();
        }
    }
}

fn spinner() -> ProgressBar {
    let bar = ProgressBar::new_spinner();
    bar.enable_steady_tick(Duration::from_millis(100));
    bar
}

fn show(bar: &ProgressBar, progress: &Progress) {
    if progress.total_bytes > 0 {
        let style = ProgressStyle::with_template("{spinner} {msg} {wide_bar} {bytes}/{total_bytes} {eta}");
        bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
        bar.set_length(progress.total_bytes);
        bar.set_position(progress.done_bytes);
    } else {
        bar.set_style(ProgressStyle::default_spinner());
    }
    bar.set_message(progress.step.clone());
}
