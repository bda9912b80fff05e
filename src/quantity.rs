//! Kubernetes `resource.Quantity`: exact parse, canonical print.
//!
//! In: text such as `800m`, `2Gi`, `1e3`. Out: a [`Quantity`] in whole nano units. Never: NaN or an infinity, and never a value that
//! an HPA would read as overflow ([`Quantity::from_served`] clamps). Source: apimachinery `pkg/api/resource/quantity.go`.

use std::fmt;
use std::str::FromStr;

/// The largest value an HPA reads without a silent overflow of its milli value (`AsScaledInt64`).
pub const MAX_SERVED: f64 = 9.2e15;

const NANOS_PER_UNIT: i128 = 1_000_000_000;
const NANOS_PER_MILLI: i128 = 1_000_000;

/// A fixed-point number, exact to a nano unit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Quantity {
    nanos: i128,
}

/// Why a text is not a quantity.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum QuantityError {
    /// Neither digits nor a known suffix.
    #[error("{0:?} is not a quantity such as 800m, 2Gi or 1e3")]
    Malformed(String),
    /// Larger than a quantity can hold.
    #[error("{0:?} is too large for a quantity")]
    TooLarge(String),
}

impl Quantity {
    /// From whole milli units.
    #[must_use]
    pub const fn from_milli(milli: i64) -> Self {
        Self { nanos: milli as i128 * NANOS_PER_MILLI }
    }

    /// A value as it is served to an HPA: rounded to the nearest milli, clamped to 0 and [`MAX_SERVED`].
    /// `None` for NaN and the infinities, which have no place on the wire: an HPA would take a clamped infinity for a load.
    #[must_use]
    #[expect(
        clippy::cast_possible_truncation,
        reason = "clamped to 9.2e18 milli, which an i64 holds"
    )]
    pub fn from_served(value: f64) -> Option<Self> {
        if !value.is_finite() {
            return None;
        }
        Some(Self::from_milli((value.clamp(0.0, MAX_SERVED) * 1000.0).round() as i64))
    }

    /// The nearest floating point number.
    #[must_use]
    #[expect(clippy::cast_precision_loss, reason = "a threshold needs no more than 53 bits")]
    pub fn to_f64(self) -> f64 {
        self.nanos as f64 / NANOS_PER_UNIT as f64
    }

    /// Milli units, rounded up as the HPA's `MilliValue` does.
    #[must_use]
    pub fn milli_ceil(self) -> i128 {
        self.nanos.div_euclid(NANOS_PER_MILLI)
            + i128::from(self.nanos.rem_euclid(NANOS_PER_MILLI) != 0)
    }
}

/// The sum; at the limits of what a quantity holds it stays there.
impl std::iter::Sum for Quantity {
    fn sum<I: Iterator<Item = Self>>(quantities: I) -> Self {
        let nanos = quantities.fold(0_i128, |sum, quantity| sum.saturating_add(quantity.nanos));
        Self { nanos }
    }
}

impl FromStr for Quantity {
    type Err = QuantityError;

    /// Fractions below a nano unit are rounded up, as upstream does.
    fn from_str(text: &str) -> Result<Self, QuantityError> {
        let malformed = || QuantityError::Malformed(text.to_owned());
        let (negative, unsigned) = match text.as_bytes().first() {
            Some(b'-') => (true, &text[1..]),
            Some(b'+') => (false, &text[1..]),
            _ => (false, text),
        };
        let digits_end =
            unsigned.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(unsigned.len());
        let (digits, suffix) = unsigned.split_at(digits_end);
        let (whole, fraction) = digits.split_once('.').unwrap_or((digits, ""));
        if (whole.is_empty() && fraction.is_empty()) || fraction.contains('.') {
            return Err(malformed());
        }
        let too_large = || QuantityError::TooLarge(text.to_owned());
        let scale = Scale::of(suffix).ok_or_else(malformed)?;
        let mantissa: i128 = format!("0{whole}{fraction}").parse().map_err(|_| too_large())?;
        let fraction_digits = i32::try_from(fraction.len()).map_err(|_| too_large())?;
        let nanos = scale.nanos(mantissa, fraction_digits).ok_or_else(too_large)?;
        Ok(Self { nanos: if negative { -nanos } else { nanos } })
    }
}

/// What a suffix multiplies by.
enum Scale {
    Decimal { exponent: i32 },
    Binary { shift: u32 },
}

impl Scale {
    fn of(suffix: &str) -> Option<Self> {
        Some(match suffix {
            "n" => Self::Decimal { exponent: -9 },
            "u" => Self::Decimal { exponent: -6 },
            "m" => Self::Decimal { exponent: -3 },
            "" => Self::Decimal { exponent: 0 },
            "k" => Self::Decimal { exponent: 3 },
            "M" => Self::Decimal { exponent: 6 },
            "G" => Self::Decimal { exponent: 9 },
            "T" => Self::Decimal { exponent: 12 },
            "P" => Self::Decimal { exponent: 15 },
            "E" => Self::Decimal { exponent: 18 },
            "Ki" => Self::Binary { shift: 10 },
            "Mi" => Self::Binary { shift: 20 },
            "Gi" => Self::Binary { shift: 30 },
            "Ti" => Self::Binary { shift: 40 },
            "Pi" => Self::Binary { shift: 50 },
            "Ei" => Self::Binary { shift: 60 },
            _ => {
                let exponent = suffix.strip_prefix(['e', 'E'])?;
                Self::Decimal { exponent: exponent.parse().ok()? }
            }
        })
    }

    fn nanos(&self, mantissa: i128, fraction_digits: i32) -> Option<i128> {
        let (mantissa, exponent) = match *self {
            Self::Decimal { exponent } => (mantissa, exponent.checked_add(9)?),
            Self::Binary { shift } => (mantissa.checked_mul(1 << shift)?, 9),
        };
        let exponent = exponent.checked_sub(fraction_digits)?;
        let power = 10_i128.checked_pow(exponent.unsigned_abs());
        match (exponent >= 0, power) {
            _ if mantissa == 0 => Some(0),
            (true, power) => mantissa.checked_mul(power?),
            // So small that even the rounding up is one nano.
            (false, None) => Some(1),
            (false, Some(power)) => Some(mantissa / power + i128::from(mantissa % power != 0)),
        }
    }
}

/// Canonical decimal form: no fraction digits, the largest suffix that leaves a whole number.
impl fmt::Display for Quantity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const SUFFIXES: [&str; 10] = ["n", "u", "m", "", "k", "M", "G", "T", "P", "E"];
        if self.nanos == 0 {
            return f.write_str("0");
        }
        let mut mantissa = self.nanos;
        let mut suffix = 0;
        while mantissa % 1000 == 0 && suffix + 1 < SUFFIXES.len() {
            mantissa /= 1000;
            suffix += 1;
        }
        write!(f, "{mantissa}{}", SUFFIXES[suffix])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str, canonical: &str) {
        let parsed: Quantity = text.parse().unwrap_or_else(|error| panic!("{text}: {error}"));
        assert_eq!(parsed.to_string(), canonical, "{text}");
    }

    #[test]
    fn a_quantity_prints_in_the_canonical_form_of_kubernetes() {
        check("1.5", "1500m");
        check("0.1", "100m");
        check("1000", "1k");
        check("1500", "1500");
        check("1234567", "1234567");
        check("0", "0");
        check("1e6", "1M");
        check("1E3", "1k");
        check("800m", "800m");
        check("2Gi", "2147483648");
        check("0.5Ki", "512");
        check("-5", "-5");
        check("200M", "200M");
        check("1e-12", "1n");
        check("1E", "1E");
    }

    #[test]
    fn what_is_no_quantity_is_refused() {
        for text in ["", "NaN", "Inf", "1.2.3", "5X", "m", "1e", "--1", "1e999999999999", "1e60"] {
            assert!(text.parse::<Quantity>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_served_value_is_rounded_to_the_nearest_milli_and_clamped() {
        let served = |value| Quantity::from_served(value).map(|q| q.to_string());
        assert_eq!(served(2.000_000_000_000_000_4).as_deref(), Some("2"));
        assert_eq!(served(0.000_6).as_deref(), Some("1m"));
        assert_eq!(served(-1.0).as_deref(), Some("0"));
        assert_eq!(served(1e17).as_deref(), Some("9200T"));
        for value in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
            assert_eq!(served(value), None, "{value}");
        }
    }

    #[test]
    fn milli_is_rounded_up_as_the_hpa_does() {
        assert_eq!("100u".parse::<Quantity>().map(Quantity::milli_ceil), Ok(1));
        assert_eq!("2.15".parse::<Quantity>().map(Quantity::milli_ceil), Ok(2150));
    }
}
