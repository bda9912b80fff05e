//! The HPA's side of the wire: a suite of cases that any adapter of the metrics APIs can be held against.
//!
//! In: where an adapter listens, and what it is known to serve ([`Options`]). Out: a [`Verdict`] for each [`Case`], with what
//! an HPA would do where one fails. Never: knowledge of how the adapter is made, and never a pass for what was not asked.
//!
//! Cases have the numbers of their table ([`GROUPS`]), which docs/conformance.md shows. A case that must control what the
//! adapter knows does so through the [`fixture`] contract, which an adapter's test build can offer; without it the case is
//! skipped and says so. What only a running controller can show is in the table too, as [`Check::InCluster`].
//!
//! Reading order: `case` has the words, the files named for groups have the cases, `suite` runs them, `wire` asks, `reading`
//! decodes an answer as an HPA does, `report` writes it down.

mod authentication;
mod authorities;
mod case;
mod discovery;
mod encoding;
pub mod fixture;
mod handshake;
mod options;
mod outcome;
mod protobuf;
mod quality;
mod reading;
mod report;
mod routing;
mod suite;
mod wire;

#[cfg(test)]
mod docs;
#[cfg(test)]
mod tests;

pub use case::{Case, Check, Group, Verdict, find};
pub use options::{
    ClientCertificate, ExternalMetric, HPA_USER, NOBODY, ObjectMetric, Options, OptionsError,
};
pub use report::{Report, Style, Text};
pub use suite::{ConformanceError, run};

/// Every case, in the order of its number.
pub const GROUPS: [Group; 6] = [
    Group { title: "Discovery and aggregation", cases: &discovery::CASES },
    Group { title: "Authentication and authorization", cases: &authentication::CASES },
    Group { title: "Routing", cases: &routing::CASES },
    Group { title: "Encoding", cases: &encoding::CASES },
    Group { title: "Data quality", cases: &quality::CASES },
    Group { title: "What the HPA makes of it", cases: &outcome::CASES },
];
