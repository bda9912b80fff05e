//! What silent pods count for, in pods' worth.
//!
//! In: the reported demand and one reading per pod. Out: the demand with the silent pods filled in. Never: across
//! `status.replicas`: a guess neither starts a scale-up nor turns a scale-down around.

use super::observe::Reading;

/// The demand with what was filled in.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Imputed {
    /// Pods' worth demanded.
    pub(super) demand: f64,
    /// What was added to the newest totals for pods that did not report.
    pub(super) filled: f64,
}

/// Fills in silent pods.
///
/// `short` is the demand of the newest totals, `long` that of the window's mean, `shares` each pod's part of `short`.
/// Up, a silent pod counts as the mean of the reporting and any other as 0; down, a silent pod counts as the larger of its
/// threshold and its last value and any other as its threshold.
pub(super) fn impute(
    short: f64,
    long: f64,
    shares: &[Reading<f64>],
    status_replicas: u32,
) -> Imputed {
    let reported = short.max(long);
    let replicas = f64::from(status_replicas);
    let up = reported >= replicas;
    let reporting = shares.iter().filter(|share| share.fresh().is_some()).count();
    let mean = if reporting > 0 { short / count(reporting) } else { 0.0 };
    let fill: f64 =
        shares.iter().map(|share| if up { fill_up(share, mean) } else { fill_down(share) }).sum();
    let filled = if up { short + fill } else { (short + fill).min(replicas) };
    Imputed { demand: filled.max(reported), filled: filled - short }
}

fn fill_up(share: &Reading<f64>, mean: f64) -> f64 {
    match share {
        Reading::Silent(_) => mean,
        _ => 0.0,
    }
}

fn fill_down(share: &Reading<f64>) -> f64 {
    match share {
        Reading::Fresh(_) => 0.0,
        Reading::Silent(last) => last.unwrap_or(0.0).max(1.0),
        _ => 1.0,
    }
}

fn count(pods: usize) -> f64 {
    f64::from(u32::try_from(pods).unwrap_or(u32::MAX))
}

#[cfg(test)]
mod tests {
    use super::Reading::{Awaiting, Fresh, Missing, Silent, Unheard};
    use super::*;

    fn check(shares: &[Reading<f64>], long: f64, status_replicas: u32, expected: f64) {
        let short = shares.iter().filter_map(Reading::fresh).sum();
        let got = impute(short, long, shares, status_replicas).demand;
        assert!(
            (got - expected).abs() < 1e-9,
            "{shares:?} of {status_replicas}: {got}, expected {expected}"
        );
    }

    fn with(reporting: usize, share: f64, others: &[Reading<f64>]) -> Vec<Reading<f64>> {
        let mut shares = vec![Fresh(share); reporting];
        shares.extend_from_slice(others);
        shares
    }

    #[test]
    fn on_the_way_up_a_silent_pod_counts_as_the_mean_and_any_other_as_nothing() {
        check(&with(8, 1.6, &[Silent(Some(9.0)), Silent(None)]), 0.0, 10, 16.0);
        check(&with(8, 1.6, &[Unheard, Awaiting, Missing]), 0.0, 10, 12.8);
    }

    #[test]
    fn on_the_way_down_a_silent_pod_counts_as_at_least_its_threshold() {
        check(
            &with(7, 0.5, &[Silent(Some(0.2)), Silent(None), Silent(Some(1.5))]),
            0.0,
            10,
            3.5 + 3.5,
        );
        check(&with(7, 0.5, &[Unheard, Awaiting, Missing]), 0.0, 10, 6.5);
    }

    #[test]
    fn a_guess_never_crosses_the_replicas() {
        check(&with(8, 1.1, &[Silent(Some(5.0)), Silent(Some(5.0))]), 0.0, 10, 10.0);
        check(&with(1, 5.6, &[Unheard, Unheard, Unheard, Unheard, Unheard]), 0.0, 6, 6.0);
    }

    #[test]
    fn the_long_window_is_not_filled_twice() {
        check(&with(8, 1.5, &[Silent(None), Silent(None)]), 15.0, 10, 15.0);
        check(&with(8, 0.5, &[Silent(None), Silent(None)]), 8.0, 10, 8.0);
    }
}
