//! A typed threshold: what one pod should carry of a signal.

use crate::units::{Measure, Ratio, UnitError};

/// More than zero, in the unit `T`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Threshold<T>(T);

impl<T: Measure> Threshold<T> {
    /// Takes the amount one pod should carry.
    ///
    /// # Errors
    /// [`UnitError`] for zero and for what the unit refuses.
    pub fn new(value: f64) -> Result<Self, UnitError> {
        if value > 0.0 { T::new(value).map(Self) } else { Err(UnitError(value)) }
    }

    /// The amount one pod should carry.
    #[must_use]
    pub fn threshold(&self) -> T {
        self.0
    }

    /// How many pods' worth `current` is: its share of the threshold.
    #[must_use]
    pub fn evaluate(&self, current: T) -> Ratio {
        Ratio::new(current.get() / self.0.get()).unwrap_or_default()
    }
}
