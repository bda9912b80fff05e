//! Kubernetes label selectors in their query form, `a=b,c in (d,e),!f`.
//!
//! Source: apimachinery `pkg/labels/selector.go`.

use super::Labels;

/// A conjunction of requirements; empty matches everything.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Selector {
    requirements: Vec<()>,
}

/// Why a text is not a selector.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("cannot parse the selector at character {position}: {reason}")]
pub struct SelectorError {
    /// Characters before the fault.
    pub position: usize,
    /// What was expected.
    pub reason: &'static str,
}

impl Selector {
    /// Parses the query form. The empty text matches everything.
    ///
    /// # Errors
    /// [`SelectorError`] with the place of the first fault.
    pub fn parse(_text: &str) -> Result<Self, SelectorError> {
        Ok(Self::default())
    }

    /// Whether the labels satisfy every requirement.
    #[must_use]
    pub fn matches(&self, _labels: &Labels) -> bool {
        self.requirements.is_empty()
    }
}
