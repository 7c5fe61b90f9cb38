//! What the manager tells an agent before it starts: `agent.json` in the channel directory.
//!
//! Both sides use this type, so the file has one definition. The agent reads it once; a change needs a new container.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// The largest `agent.json` that is read, in bytes.
pub const MAX_CONFIG: usize = 1024 * 1024;

/// The longest a quiesce waits for a running healthcheck, in milliseconds; one that takes longer has failed.
pub const QUIESCE_WAIT_MS: u64 = 30_000;

/// The format this release writes and reads.
const VERSION: u32 = 1;

/// Everything an agent knows about its container. Times are milliseconds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The file's format; [`Config::new`] sets it.
    pub version: u32,
    /// The main process and its arguments. The first is searched in the `PATH` of `env` unless it has a slash.
    pub argv: Vec<String>,
    /// `NAME=value`; nothing else is inherited.
    #[serde(default)]
    pub env: Vec<String>,
    /// Absolute. The main process and the healthcheck start here.
    pub cwd: PathBuf,
    /// Whom the main process and the healthcheck run as. The agent itself stays root.
    #[serde(default)]
    pub user: User,
    pub state: State,
    pub restart: RestartConfig,
    #[serde(default)]
    pub healthcheck: Option<HealthcheckConfig>,
    /// The signal that asks the main process to end, by number (15 is SIGTERM).
    pub stop_signal: i32,
    /// From the stop signal to SIGKILL when the agent itself receives SIGTERM. A `Stop` request brings its own.
    pub stop_grace_ms: u64,
    /// `log` and `log.1` together stay below this; at least 64 KiB.
    pub log_max_bytes: u64,
}

/// Numeric IDs: the manager has resolved names in the image's /etc/passwd.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct User {
    pub uid: u32,
    pub gid: u32,
    /// Supplementary groups.
    #[serde(default)]
    pub groups: Vec<u32>,
}

/// Who acts when the main process fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum State {
    /// The manager: a restart inside would throw the state away.
    Stateful,
    /// The agent: it starts the process again.
    Stateless,
}

/// When the main process is started again, and how patiently.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RestartConfig {
    pub rule: RestartRule,
    /// Restarts in a row, without `reset_after_ms` of running in between, until the agent gives up.
    pub max_attempts: u32,
    /// The first delay; each further one is twice as long.
    pub first_delay_ms: u64,
    /// The longest delay.
    pub max_delay_ms: u64,
    /// A main process that ran this long has recovered: attempts and delay start again.
    pub reset_after_ms: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RestartRule {
    No,
    /// After an exit code other than 0, or a signal.
    OnFailure,
    Always,
}

impl Default for RestartConfig {
    /// On failure: 100 ms doubling to 10 s, ten times in a row.
    fn default() -> Self {
        Self {
            rule: RestartRule::OnFailure,
            max_attempts: 10,
            first_delay_ms: 100,
            max_delay_ms: 10_000,
            reset_after_ms: 10_000,
        }
    }
}

/// Compose's `healthcheck`. Exit code 0 is healthy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HealthcheckConfig {
    pub argv: Vec<String>,
    /// From the end of one check to the beginning of the next; at least 10.
    pub interval_ms: u64,
    /// A check that takes longer is killed and has failed.
    pub timeout_ms: u64,
    /// Until this long after the start of the main process, or until the first success, failures do not count.
    pub start_period_ms: u64,
    /// The interval within the start period; at least 10.
    pub start_interval_ms: u64,
    /// Failures in a row until the container is unhealthy; at least 1.
    pub retries: u32,
}

/// Why a configuration was refused.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("the agent's configuration is larger than {MAX_CONFIG} bytes; shorten its environment or arguments")]
    TooLarge,
    #[error("the agent's configuration is not the JSON this release knows; write it with the same release's manager")]
    Json(#[source] serde_json::Error),
    #[error("the agent's configuration: {field} {problem}")]
    Value { field: &'static str, problem: String },
}

impl Config {
    /// A root process in `/` with the default policy; the caller changes what differs.
    pub fn new(argv: Vec<String>, state: State) -> Self {
        Self {
            version: VERSION,
            argv,
            env: Vec::new(),
            cwd: PathBuf::from("/"),
            user: User::default(),
            state,
            restart: RestartConfig::default(),
            healthcheck: None,
            stop_signal: 15,
            stop_grace_ms: 10_000,
            log_max_bytes: 16 * 1024 * 1024,
        }
    }

    /// # Errors
    /// [`ConfigError`] when the text is too large, not this format, or holds a value that cannot work.
    pub fn from_json(text: &[u8]) -> Result<Self, ConfigError> {
        if text.len() > MAX_CONFIG {
            return Err(ConfigError::TooLarge);
        }
        let config: Self = serde_json::from_slice(text).map_err(ConfigError::Json)?;
        config.validate()?;
        Ok(config)
    }

    /// # Errors
    /// As [`Config::from_json`]: what this writes, that reads.
    pub fn to_json(&self) -> Result<Vec<u8>, ConfigError> {
        self.validate()?;
        let text = serde_json::to_vec_pretty(self).map_err(ConfigError::Json)?;
        if text.len() > MAX_CONFIG { Err(ConfigError::TooLarge) } else { Ok(text) }
    }

    /// # Errors
    /// [`ConfigError::Value`], naming the field.
    pub fn validate(&self) -> Result<(), ConfigError> {
        let check = |ok: bool, field: &'static str, problem: &str| {
            if ok { Ok(()) } else { Err(ConfigError::Value { field, problem: problem.to_owned() }) }
        };
        let command = |argv: &[String]| argv.first().is_some_and(|a| !a.is_empty());
        let clean = |text: &str| !text.contains('\0');
        check(self.version == VERSION, "version", "is not 1; manager and agent are of different releases")?;
        check(command(&self.argv), "argv", "has no program; give the image an entry point or a command")?;
        check(self.argv.iter().all(|a| clean(a)), "argv", "contains a NUL character")?;
        check(
            self.env.iter().all(|e| clean(e) && e.find('=').is_some_and(|at| at > 0)),
            "env",
            "has an entry that is not NAME=value",
        )?;
        check(self.cwd.is_absolute(), "cwd", "is not an absolute path")?;
        check(self.user.groups.len() <= 65_536, "user.groups", "has more than 65536 entries")?;
        check((1..=64).contains(&self.stop_signal), "stop_signal", "is not a signal number from 1 to 64")?;
        check(self.log_max_bytes >= 64 * 1024, "log_max_bytes", "is below 65536")?;
        let restart = &self.restart;
        check(restart.first_delay_ms >= 1, "restart.first_delay_ms", "is 0")?;
        check(
            restart.max_delay_ms >= restart.first_delay_ms,
            "restart.max_delay_ms",
            "is shorter than restart.first_delay_ms",
        )?;
        if let Some(health) = &self.healthcheck {
            check(command(&health.argv), "healthcheck.argv", "has no program")?;
            check(health.argv.iter().all(|a| clean(a)), "healthcheck.argv", "contains a NUL character")?;
            check(health.interval_ms >= 10, "healthcheck.interval_ms", "is below 10")?;
            check(health.start_interval_ms >= 10, "healthcheck.start_interval_ms", "is below 10")?;
            check(health.timeout_ms >= 1, "healthcheck.timeout_ms", "is 0")?;
            check(health.retries >= 1, "healthcheck.retries", "is 0")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config() -> Config {
        let mut config = Config::new(vec!["/bin/sh".into()], State::Stateful);
        config.env = vec!["PATH=/bin".into(), "EMPTY=".into()];
        config.healthcheck = Some(HealthcheckConfig {
            argv: vec!["true".into()],
            interval_ms: 1000,
            timeout_ms: 500,
            start_period_ms: 0,
            start_interval_ms: 100,
            retries: 3,
        });
        config
    }

    #[test]
    fn what_is_written_is_read() {
        let config = config();
        assert_eq!(Config::from_json(&config.to_json().unwrap()).unwrap(), config);
    }

    #[test]
    fn values_that_cannot_work_are_named() {
        type Spoil = fn(&mut Config);
        let spoil: &[(&str, Spoil)] = &[
            ("version", |c| c.version = 2),
            ("argv", |c| c.argv.clear()),
            ("argv", |c| c.argv.push("a\0b".into())),
            ("env", |c| c.env.push("=x".into())),
            ("cwd", |c| c.cwd = "tmp".into()),
            ("stop_signal", |c| c.stop_signal = 0),
            ("log_max_bytes", |c| c.log_max_bytes = 1),
            ("restart.max_delay_ms", |c| c.restart.max_delay_ms = 1),
            ("healthcheck.retries", |c| c.healthcheck.as_mut().unwrap().retries = 0),
        ];
        for (field, change) in spoil {
            let mut config = config();
            change(&mut config);
            let error = config.to_json().unwrap_err().to_string();
            assert!(error.contains(field), "{field}: {error}");
        }
    }

    #[test]
    fn an_unknown_key_is_refused() {
        let mut value: serde_json::Value = serde_json::from_slice(&config().to_json().unwrap()).unwrap();
        value["surprise"] = 1.into();
        assert!(matches!(Config::from_json(value.to_string().as_bytes()), Err(ConfigError::Json(_))));
    }
}
