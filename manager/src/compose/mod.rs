//! `app.yaml`: a Compose file, read into the containers it asks for.
//!
//! Compose's own words are used where it has them and mean what they mean there. What we cannot do is refused, not
//! ignored: a container that comes up at a failover without something its file asked for is worse than one that was
//! never accepted. Every problem of a file is reported at once, with line, column and path.
//!
//! ```text
//!  text ─► tree ───────────────► service ───────────► file ────────────────► ComposeFile
//!          positions, aliases,   one container,       names, volumes,        in the order of
//!          merges, variables     key by key           networks, depends_on   depends_on
//!                        └──────────────┴──── report ────┴─────────────────► ComposeErrors
//! ```
//!
//! `docs/compose.md` describes every key.

mod annotations;
mod cursor;
pub mod dotenv;
mod file;
mod health;
mod interpolate;
mod keys;
mod mounts;
mod network;
#[cfg(any(test, feature = "fuzzing"))]
mod render;
mod report;
mod service;
mod shell;
mod tree;

#[cfg(feature = "fuzzing")]
pub(crate) use render::file as render;
pub use report::{ComposeErrors, Finding, Pos};

use crate::spec::ContainerSpec;

/// The containers a Compose file asks for.
#[derive(Debug, Clone, PartialEq)]
pub struct ComposeFile {
    /// The top-level `name`. Containers are not prefixed with it.
    pub project: Option<String>,
    /// Each after those it depends on, otherwise in the order of the file.
    pub containers: Vec<ContainerSpec>,
    /// What the user should know, although nothing is wrong: variables that are not set, volumes nobody uses.
    pub warnings: Vec<Finding>,
}

/// Reads the Compose file `text`. `file` is its name in messages; `lookup` answers for the variables in it. Pure: it
/// reads nothing else, and takes any text whatever.
///
/// # Errors
/// Everything that is wrong with the file.
pub fn parse(text: &str, file: &str, lookup: &dyn Fn(&str) -> Option<String>) -> Result<ComposeFile, ComposeErrors> {
    let mut report = report::Report::new(file);
    let read = match tree::read(text, lookup, &mut report) {
        Ok(Some(root)) => file::read(&root, lookup, &mut report),
        Ok(None) => {
            report.error(Pos { line: 1, column: 1 }, "", "is empty; a Compose file has at least `services`");
            None
        }
        Err(tree::Stop) => None,
    };
    let warnings = report.finish()?;
    // Without an error the file was read; an empty one cannot be told from it otherwise.
    let file = read.unwrap_or(ComposeFile { project: None, containers: Vec::new(), warnings: Vec::new() });
    Ok(ComposeFile { warnings, ..file })
}

#[cfg(test)]
mod tests;
