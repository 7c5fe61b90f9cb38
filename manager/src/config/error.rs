use std::{fmt, io, path::PathBuf};

/// Why a configuration was not taken.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("cannot read the configuration {path:?}; name another file with --config")]
    Read { path: PathBuf, source: io::Error },
    #[error("the configuration {path:?} is larger than {max} bytes; it is not a node configuration")]
    TooLarge { path: PathBuf, max: u64 },
    /// Everything that is wrong in the file, in the order of the file.
    #[error("{}", joined(.0))]
    Invalid(Vec<Problem>),
}

/// One thing that is wrong in a configuration file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    pub file: String,
    /// Counted from 1.
    pub line: usize,
    /// Counted from 1, in characters.
    pub column: usize,
    /// What is wrong and what is allowed.
    pub message: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:{}: {}", self.file, self.line, self.column, self.message)
    }
}

fn joined(problems: &[Problem]) -> String {
    problems.iter().map(Problem::to_string).collect::<Vec<_>>().join("\n")
}
