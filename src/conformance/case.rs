//! The words of the suite: a case, what is found of it, and why a check ends early.
//!
//! In: nothing. Out: types. Never: a request.

use std::fmt;

use futures::future::BoxFuture;

use super::GROUPS;
use super::suite::Suite;

/// Cases about one thing.
#[derive(Debug)]
pub struct Group {
    /// The heading.
    pub title: &'static str,
    /// In the order of their numbers.
    pub cases: &'static [Case],
}

/// One fact that an HPA, or the API server between, relies on.
pub struct Case {
    /// From 1, without gaps over all groups. It is a contract: reports of other people name it.
    pub number: u8,
    /// The fact, as it holds of a conforming adapter; fits a line of 80 columns with verdict and number.
    pub name: &'static str,
    /// What is asked, and what must come back.
    pub what: &'static str,
    /// What users see where it does not hold.
    pub consequence_for_hpa: &'static str,
    /// How it is decided.
    pub check: Check,
}

/// How a case is decided.
#[derive(Clone, Copy)]
pub enum Check {
    /// By requests to the adapter.
    OnTheWire(OnTheWire),
    /// By watching a controller at work in a cluster, which this suite does not start.
    InCluster,
}

/// A check as the table holds it.
pub(super) type OnTheWire = for<'a> fn(&'a Suite) -> BoxFuture<'a, Outcome>;

impl fmt::Debug for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "case {}: {}", self.number, self.name)
    }
}

/// The case of a number.
#[must_use]
pub fn find(number: u8) -> Option<&'static Case> {
    GROUPS.iter().flat_map(|group| group.cases).find(|case| case.number == number)
}

/// What was found of a case.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It holds.
    Pass,
    /// What could be asked holds.
    PassInPart {
        /// What could not be asked, and what that needs.
        unasked: String,
    },
    /// It does not hold.
    Fail {
        /// What a conforming adapter does.
        expected: String,
        /// What this one did.
        got: String,
    },
    /// It was not asked.
    Skipped {
        /// The option or fixture that it needs.
        reason: String,
    },
}

/// How much of a case was asked, if nothing spoke against it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Passed {
    /// All of it.
    Wholly,
    /// Not this.
    Without(&'static str),
}

/// Why a check ended before it passed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Stop {
    /// The case does not hold.
    Fail {
        /// What a conforming adapter does.
        expected: String,
        /// What this one did.
        got: String,
    },
    /// The case cannot be asked.
    Skip(String),
}

/// What a check returns.
pub(super) type Outcome = Result<Passed, Stop>;

impl Stop {
    pub(super) fn fail(expected: impl Into<String>, got: impl fmt::Display) -> Self {
        Self::Fail { expected: expected.into(), got: got.to_string() }
    }

    pub(super) fn skip(reason: impl Into<String>) -> Self {
        Self::Skip(reason.into())
    }
}

/// Nothing if it holds, else a failure of the case.
pub(super) fn expect(
    holds: bool,
    expected: impl Into<String>,
    got: impl fmt::Display,
) -> Result<(), Stop> {
    if holds { Ok(()) } else { Err(Stop::fail(expected, got)) }
}

impl From<Outcome> for Verdict {
    fn from(outcome: Outcome) -> Self {
        match outcome {
            Ok(Passed::Wholly) => Self::Pass,
            Ok(Passed::Without(unasked)) => Self::PassInPart { unasked: unasked.to_owned() },
            Err(Stop::Fail { expected, got }) => Self::Fail { expected, got },
            Err(Stop::Skip(reason)) => Self::Skipped { reason },
        }
    }
}
