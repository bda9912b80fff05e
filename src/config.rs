//! The configuration of both programs: a flag wins over the environment, that over the file, that over the default.
//!
//! In: flags, environment variables and a YAML file (a mounted ConfigMap). Out: an immutable, validated [`AgentConfig`] or
//! [`AdapterConfig`], and a new one whenever the file changes. Never: a half-read file, an unknown key that passes, or a bad
//! file that replaces a good one.
//!
//! Every key is one row of [`KEYS`]: strict reading, the environment's names, `docs/configuration.md` and the page
//! [`PAGE_PATH`] are driven by it. All problems of all sources are reported at once.
//!
//! The types build with either feature alone; reading them belongs to the program, which has both.

mod sections;

#[cfg(all(feature = "agent", feature = "adapter"))]
mod build;
#[cfg(all(feature = "agent", feature = "adapter"))]
mod contradictions;
#[cfg(all(feature = "agent", feature = "adapter"))]
mod file;
#[cfg(all(feature = "agent", feature = "adapter"))]
mod keys;
#[cfg(all(feature = "agent", feature = "adapter"))]
mod layers;
#[cfg(all(feature = "agent", feature = "adapter"))]
mod live;
#[cfg(all(feature = "agent", feature = "adapter"))]
mod markdown;
#[cfg(all(feature = "agent", feature = "adapter"))]
mod page;
#[cfg(all(feature = "agent", feature = "adapter"))]
mod problem;
#[cfg(all(test, feature = "agent", feature = "adapter"))]
mod tests;
#[cfg(all(feature = "agent", feature = "adapter"))]
mod value;

pub use sections::{
    AdapterConfig, AgentConfig, AuditLevel, CaptureConfig, CaptureRule, Credential, DebugConfig,
    HttpUrl, HttpUrlError, ProcessChoice, RingConfig, ScrapeConfig, TargetConfig,
};

#[cfg(all(feature = "agent", feature = "adapter"))]
pub use self::{
    build::Section,
    keys::{Change, KEYS, Key, Kind, Program, RULE_SIGNALS},
    layers::{Inputs, Loaded, Origin, Setting, load},
    live::{Live, StartError},
    markdown::markdown,
    page::PAGE_PATH,
    problem::{ConfigError, Place, Problem},
};
