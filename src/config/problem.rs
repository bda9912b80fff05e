//! What is wrong with a configuration.
//!
//! In: problems, each with its place. Out: one error that lists them. Never: the first of several alone.

use std::fmt;
use std::path::PathBuf;

/// Everything that is wrong. Never empty.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigError(pub Vec<Problem>);

/// One thing that is wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// Where it was said.
    pub place: Place,
    /// The key it is about; empty if it is about the whole file.
    pub path: String,
    /// What is wrong with it.
    pub message: String,
}

/// Where a value was said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// A file, with the line where it is known.
    File {
        /// Its path as configured.
        path: PathBuf,
        /// Counted from 1.
        line: Option<u64>,
    },
    /// An environment variable.
    Environment(String),
    /// A flag of the command line.
    Flag,
    /// Several places together.
    Together,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.place {
            Place::File { path, line: Some(line) } => write!(f, "{}:{line}: ", path.display())?,
            Place::File { path, line: None } => write!(f, "{}: ", path.display())?,
            Place::Environment(name) => write!(f, "{name}: ")?,
            Place::Flag => f.write_str("flag: ")?,
            Place::Together => {}
        }
        if !self.path.is_empty() {
            write!(f, "{}: ", self.path)?;
        }
        f.write_str(&self.message)
    }
}

/// One problem is one line; several are a list.
impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.as_slice() {
            [problem] => write!(f, "bad configuration: {problem}"),
            problems => {
                write!(f, "{} problems in the configuration", problems.len())?;
                problems.iter().try_for_each(|problem| write!(f, "\n  {problem}"))
            }
        }
    }
}

impl std::error::Error for ConfigError {}
