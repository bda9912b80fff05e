//! The two times of the program, and the only place that reads a clock for the pure rooms.
//!
//! In: the system's clocks. Out: [`Now`], which pure code takes as an argument. Ages and deadlines are measured on
//! [`Moment`], which never jumps; [`Timestamp`] is for what people and other machines read.

use std::fmt;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Monotonic time since the program started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Moment(Duration);

impl Moment {
    /// A moment so long after the start of the program.
    #[must_use]
    pub const fn after_start(elapsed: Duration) -> Self {
        Self(elapsed)
    }

    /// How long ago `earlier` was; zero if it is later.
    #[must_use]
    pub fn since(self, earlier: Self) -> Duration {
        self.0.saturating_sub(earlier.0)
    }
}

impl std::ops::Add<Duration> for Moment {
    type Output = Self;

    fn add(self, rhs: Duration) -> Self {
        Self(self.0.saturating_add(rhs))
    }
}

/// Wall time in milliseconds since the Unix epoch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timestamp(i64);

impl Timestamp {
    /// From milliseconds since the Unix epoch.
    #[must_use]
    pub const fn from_millis(millis: i64) -> Self {
        Self(millis)
    }

    /// Milliseconds since the Unix epoch.
    #[must_use]
    pub const fn as_millis(self) -> i64 {
        self.0
    }

    /// How long ago `earlier` was; zero if it is later.
    #[must_use]
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_millis(u64::try_from(self.0.saturating_sub(earlier.0)).unwrap_or(0))
    }
}

impl std::ops::Add<Duration> for Timestamp {
    type Output = Self;

    fn add(self, rhs: Duration) -> Self {
        Self(self.0.saturating_add(i64::try_from(rhs.as_millis()).unwrap_or(i64::MAX)))
    }
}

/// RFC 3339, UTC, whole seconds: the form of Kubernetes' `metav1.Time`.
impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match jiff::Timestamp::from_second(self.0.div_euclid(1000)) {
            Ok(time) => write!(f, "{time}"),
            Err(_) => write!(f, "@{}ms", self.0),
        }
    }
}

/// Both times, read together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Now {
    /// For ages, windows and deadlines.
    pub monotonic: Moment,
    /// For what is shown, and for comparing with times that other machines wrote.
    pub wall: Timestamp,
}

impl std::ops::Add<Duration> for Now {
    type Output = Self;

    fn add(self, rhs: Duration) -> Self {
        Self { monotonic: self.monotonic + rhs, wall: self.wall + rhs }
    }
}

/// Reads both clocks. Cheap to copy; every copy shares the origin of its [`Moment`]s.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    origin: tokio::time::Instant,
}

impl Clock {
    /// A clock whose moments count from this call.
    #[must_use]
    pub fn start() -> Self {
        Self { origin: tokio::time::Instant::now() }
    }

    /// A clock that was started so long ago: what a test has of that time is old.
    #[cfg(test)]
    pub(crate) fn started_ago(elapsed: Duration) -> Self {
        let origin = tokio::time::Instant::now().checked_sub(elapsed);
        Self { origin: origin.expect("the machine has been up for longer") }
    }

    /// Both times now.
    #[must_use]
    pub fn now(&self) -> Now {
        Now { monotonic: Moment(self.origin.elapsed()), wall: wall_now() }
    }
}

/// The wall clock. A clock before 1970 reads as 1970.
#[must_use]
pub fn wall_now() -> Timestamp {
    let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Timestamp(i64::try_from(since_epoch.as_millis()).unwrap_or(i64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_timestamp_prints_as_kubernetes_prints_time() {
        assert_eq!(Timestamp::from_millis(1_790_000_000_999).to_string(), "2026-09-21T14:13:20Z");
    }

    #[test]
    fn an_age_is_never_negative() {
        assert_eq!(Timestamp::from_millis(5).since(Timestamp::from_millis(9)), Duration::ZERO);
        assert_eq!(
            Moment::default().since(Moment::after_start(Duration::from_secs(1))),
            Duration::ZERO
        );
    }
}
