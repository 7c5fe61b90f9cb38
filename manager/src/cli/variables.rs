//! Values for the variables of a Compose file: the shell's, then those of `.env` beside the file.

use std::{
    cell::RefCell,
    collections::{BTreeMap, BTreeSet},
    env::{self, VarError},
    fs,
    io::ErrorKind,
    path::Path,
};

use super::CliError;
use crate::compose;

const MAX_BYTES: usize = 1 << 20;

pub struct Variables {
    of_file: BTreeMap<String, String>,
    /// Asked for, and no text: a value that is there must not count as unset.
    unreadable: RefCell<BTreeSet<String>>,
}

impl Variables {
    /// Reads `.env` in `dir`, where there is one, and prints its warnings.
    pub fn read(dir: &Path) -> Result<Self, CliError> {
        let mut variables = Self { of_file: BTreeMap::new(), unreadable: RefCell::default() };
        let path = dir.join(".env");
        let shown = path.display().to_string();
        let text = match fs::read_to_string(&path) {
            Ok(text) => text,
            // Also a directory of that name: it is somebody else's.
            Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::IsADirectory) => {
                return Ok(variables);
            }
            Err(source) => return Err(CliError::Io { what: format!("cannot read {shown}"), source }),
        };
        if text.len() > MAX_BYTES {
            return Err(CliError::Input(format!("{shown} is larger than 1 MiB; it should hold variables only")));
        }
        let parsed = compose::dotenv::parse(&text, &shown, &|name| variables.of_shell(name));
        let (of_file, warnings) = parsed.map_err(|errors| CliError::Input(errors.to_string()))?;
        for warning in warnings {
            eprintln!("warning: {warning}");
        }
        variables.of_file = of_file;
        Ok(variables)
    }

    pub fn get(&self, name: &str) -> Option<String> {
        self.of_shell(name).or_else(|| self.of_file.get(name).cloned())
    }

    /// After the file was read.
    pub fn check(&self) -> Result<(), CliError> {
        match self.unreadable.borrow().first() {
            None => Ok(()),
            Some(name) => {
                Err(CliError::Input(format!("the variable {name} of your shell is not UTF-8 text; set it anew")))
            }
        }
    }

    fn of_shell(&self, name: &str) -> Option<String> {
        env::var(name)
            .inspect_err(|error| {
                if matches!(error, VarError::NotUnicode(_)) {
                    self.unreadable.borrow_mut().insert(name.to_owned());
                }
            })
            .ok()
    }
}
