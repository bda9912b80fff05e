//! The four layers and which of them speaks for each key.
//!
//! In: flags, variables, the text of the file. Out: every key's value and where it came from, or all problems of all layers.
//! Never: the section of the other program, except that what the file says of it must be right too: the file is read as a
//! whole.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::build::Section;
use super::contradictions::contradictions;
use super::file;
use super::keys::{KEYS, Key, Kind, Program};
use super::problem::{ConfigError, Place, Problem};
use super::value::{self, Value};

/// Everything a configuration is read from, except the text of the file.
#[derive(Clone, Debug, Default)]
pub struct Inputs {
    /// Paths of keys with the value of their flag.
    pub flags: Vec<(&'static str, String)>,
    /// Of the environment what begins with `HEADROOM_` or is named by a key; the rest may be secrets of others.
    pub environment: BTreeMap<String, String>,
    /// The file, if one is configured.
    pub file: Option<PathBuf>,
}

impl Inputs {
    /// The variables of this process that are text and may be ours.
    #[must_use]
    pub fn from_process(flags: Vec<(&'static str, String)>, file: Option<PathBuf>) -> Self {
        let text = |(name, value): (std::ffi::OsString, std::ffi::OsString)| {
            let name = name.into_string().ok()?;
            let ours = name.starts_with("HEADROOM_") || is_of_a_key(&name);
            Some((name, value.into_string().ok().filter(|_| ours)?))
        };
        Self { flags, environment: std::env::vars_os().filter_map(text).collect(), file }
    }

    /// Variables that look like ours and are no key, with the one that may be meant. They change nothing.
    #[must_use]
    pub fn unknown_variables(&self, program: Program) -> Vec<String> {
        let prefix = format!("HEADROOM_{}_", program.section().to_uppercase());
        let ours = self.environment.keys().filter(|name| name.starts_with(&prefix));
        ours.filter(|name| !is_of_a_key(name) && !is_service_link(name)).cloned().collect()
    }
}

fn is_of_a_key(name: &str) -> bool {
    KEYS.iter().any(|key| key.env.contains(&name))
}

/// Whether Kubernetes sets a variable of this name for a Service: `NAME_SERVICE_HOST`, `NAME_SERVICE_PORT…`, `NAME_PORT` and
/// `NAME_PORT_443_TCP…`.
fn is_service_link(name: &str) -> bool {
    let numbered = |rest: &str| {
        let digit = rest.strip_prefix('_').and_then(|rest| rest.chars().next());
        rest.is_empty() || digit.is_some_and(|digit| digit.is_ascii_digit())
    };
    name.ends_with("_SERVICE_HOST")
        || name.contains("_SERVICE_PORT")
        || name.match_indices("_PORT").any(|(at, port)| numbered(&name[at + port.len()..]))
}

/// Which layer spoke for a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// Nobody; the table's default.
    Default,
    /// The file, at this line.
    File {
        /// Counted from 1.
        line: u64,
    },
    /// This variable.
    Environment(&'static str),
    /// A flag.
    Flag,
}

/// One key as it is in effect.
#[derive(Clone, Debug, PartialEq)]
pub struct Setting {
    /// The row of the table.
    pub key: &'static Key,
    /// As it was written; `None` if it is not set.
    pub text: Option<String>,
    /// Who said so.
    pub origin: Origin,
    pub(super) value: Option<Value>,
}

/// A whole configuration.
#[derive(Clone, Debug)]
pub struct Loaded<T> {
    /// What the program uses.
    pub config: T,
    /// Every key of the program, in the order of the table.
    pub settings: Vec<Setting>,
}

/// Reads all layers. `file` is the text of the file, if there is one.
///
/// # Errors
/// All problems of all layers.
pub fn load<T: Section>(inputs: &Inputs, file: Option<&str>) -> Result<Loaded<T>, ConfigError> {
    let settings = settings(T::PROGRAM, inputs, file)?;
    loaded(settings)
}

pub(super) fn loaded<T: Section>(settings: Vec<Setting>) -> Result<Loaded<T>, ConfigError> {
    let problems = contradictions(&settings);
    if !problems.is_empty() {
        return Err(ConfigError(problems));
    }
    let config = T::build(&settings);
    Ok(Loaded { config, settings })
}

/// Of the program all keys. Those of the other are judged by what the file says: its flags and variables are elsewhere.
pub(super) fn settings(
    program: Program,
    inputs: &Inputs,
    text: Option<&str>,
) -> Result<Vec<Setting>, ConfigError> {
    let mut problems = Vec::new();
    let path = inputs.file.as_deref().unwrap_or(Path::new("configuration"));
    let (entries, faults) = text.map(file::read).unwrap_or_default();
    problems.extend(faults.into_iter().map(|fault| Problem {
        place: Place::File { path: path.to_owned(), line: fault.line },
        path: fault.path,
        message: fault.message,
    }));
    let mut settings = Vec::new();
    for key in KEYS {
        let is_ours = key.program() == program;
        let mut setting = by_default(key);
        if !is_ours || problems.iter().any(|problem| problem.path == key.path) {
            setting.value = None;
        }
        if let Some(entry) = entries.iter().find(|entry| entry.key.path == key.path) {
            setting.text = Some(entry.text.clone());
            setting.value = Some(entry.value.clone());
            setting.origin = Origin::File { line: entry.line };
        }
        let said = [from_environment(key, inputs), from_flag(key, inputs)];
        for (origin, text) in said.into_iter().flatten().filter(|_| is_ours) {
            match parse(key, text) {
                Ok(value) => {
                    setting =
                        Setting { key, text: Some(text.to_owned()), origin, value: Some(value) };
                }
                Err(message) => {
                    problems.push(refused(key, &origin, message));
                    setting.value = None;
                }
            }
        }
        settings.push(setting);
    }
    problems.extend(contradictions(&settings));
    settings.retain(|setting| setting.key.program() == program);
    if problems.is_empty() { Ok(settings) } else { Err(ConfigError(problems)) }
}

fn by_default(key: &'static Key) -> Setting {
    let value =
        key.default.map(|text| parse(key, text).expect("a test reads every default of the table"));
    Setting { key, text: key.default.map(str::to_owned), origin: Origin::Default, value }
}

fn from_environment<'a>(key: &Key, inputs: &'a Inputs) -> Option<(Origin, &'a str)> {
    let set = |name: &&'static str| {
        let text = inputs.environment.get(*name).filter(|text| !text.is_empty())?;
        Some((Origin::Environment(name), text.as_str()))
    };
    key.env.iter().find_map(set)
}

fn from_flag<'a>(key: &Key, inputs: &'a Inputs) -> Option<(Origin, &'a str)> {
    let (_, text) = inputs.flags.iter().find(|(path, _)| *path == key.path)?;
    Some((Origin::Flag, text))
}

fn parse(key: &Key, text: &str) -> Result<Value, String> {
    match key.kind {
        Kind::Rules => file::read_rules(text).map(Value::Rules),
        kind => value::parse(kind, text),
    }
}

fn refused(key: &Key, origin: &Origin, message: String) -> Problem {
    let place = match origin {
        Origin::Environment(name) => Place::Environment((*name).to_owned()),
        _ => Place::Flag,
    };
    Problem { place, path: key.path.to_owned(), message }
}
