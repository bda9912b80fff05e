//! The units that cross module borders. No bare number does.
//!
//! In: checked numbers. Out: newtypes with [`Measure::get`] in the base unit. Never: NaN, infinity or a negative value.

use std::fmt;

/// A number that a unit refuses: NaN, infinite or negative.
#[derive(Debug, Clone, Copy, PartialEq, thiserror::Error)]
#[error("{0} is not a finite number of zero or more")]
pub struct UnitError(pub f64);

/// What every unit offers, so that thresholds can be generic over it.
pub trait Measure: Copy + PartialOrd + fmt::Debug {
    /// The suffix of metric and field names in this unit, such as `bytes`.
    const UNIT: &'static str;

    /// Takes a number in the base unit.
    ///
    /// # Errors
    /// [`UnitError`] for NaN, infinite and negative numbers.
    fn new(value: f64) -> Result<Self, UnitError>;

    /// The number in the base unit: finite, zero or more.
    fn get(self) -> f64;
}

macro_rules! measure {
    ($(#[$doc:meta])* $name:ident, $unit:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, PartialOrd)]
        pub struct $name(f64);

        impl Measure for $name {
            const UNIT: &'static str = $unit;

            fn new(value: f64) -> Result<Self, UnitError> {
                if value.is_finite() && value >= 0.0 { Ok(Self(value)) } else { Err(UnitError(value)) }
            }

            fn get(self) -> f64 {
                self.0
            }
        }
    };
}

measure!(
    /// Bytes.
    ByteCount, "bytes"
);
measure!(
    /// Bytes per second.
    BytesPerSecond, "bytes_per_second"
);
measure!(
    /// A share of a limit: 0.0 is idle, 1.0 is at the limit, more is over it.
    Ratio, "ratio"
);
measure!(
    /// CPU cores: seconds of CPU time per second of wall time.
    CpuCores, "cores"
);
measure!(
    /// Live tasks of a runtime (goroutines, threads and handles where a runtime counts those).
    TaskCount, "tasks"
);
measure!(
    /// A duration in seconds, as metrics carry it.
    Seconds, "seconds"
);
measure!(
    /// A number whose unit only its metric knows, such as a queue depth.
    Plain, "value"
);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_unit_refuses_what_is_not_a_quantity() {
        for bad in [f64::NAN, f64::INFINITY, -1.0] {
            assert!(ByteCount::new(bad).is_err(), "{bad}");
        }
        assert_eq!(CpuCores::new(0.5).map(Measure::get), Ok(0.5));
    }
}
