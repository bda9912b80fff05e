//! The work form: demand from the work that arrives and the backlog that is left, not from what saturated pods manage.
//!
//! In: the workload's [`Totals`] and what one pod can do. Out: pods' worth. Never: the queue itself as demand.

use super::window::Totals;

/// The time in which a backlog should be gone, in seconds.
pub(super) const DRAIN_SECONDS: f64 = 60.0;

/// What one pod should and can do, in the unit of the work (cores, or busy workers).
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct WorkForm {
    /// Work of one request, in unit-seconds; `None` while unknown.
    pub(super) cost: Option<f64>,
    /// What one pod should carry.
    pub(super) threshold: f64,
    /// What an idle pod uses.
    pub(super) base: f64,
    /// What one pod can do at most.
    pub(super) full: f64,
}

impl WorkForm {
    /// Work that arrives: the larger of what is used without draining a backlog, and arrivals times cost.
    ///
    /// While requests in flight fall, pods work on old arrivals; counting that as steady work would add pods because the
    /// existing ones are busy getting done.
    pub(super) fn steady(&self, totals: &Totals) -> f64 {
        let Some(cost) = self.cost else { return totals.work.max(0.0) };
        let arrivals = (totals.completed + totals.change).max(0.0);
        let drained = (-totals.change).max(0.0);
        (totals.work - drained * cost).max(arrivals * cost).max(0.0)
    }

    /// What of [`Self::steady`] falls to each pod: the parts add up to it. What leads for all, usage or arrivals, is
    /// counted of every pod, or their maxima would add up to more.
    pub(super) fn parts(&self, pods: &[Totals]) -> Vec<f64> {
        let totals: Totals = pods.iter().copied().sum();
        let (steady, cost) = (self.steady(&totals), self.cost.unwrap_or(0.0));
        let used =
            |pod: &Totals| pod.work + if totals.change < 0.0 { pod.change * cost } else { 0.0 };
        let arrived = |pod: &Totals| (pod.completed + pod.change) * cost;
        let by_usage = used(&totals) >= arrived(&totals);
        let part = |pod: &Totals| if by_usage { used(pod) } else { arrived(pod) };
        let parts: Vec<f64> = pods.iter().map(|pod| part(pod).max(0.0)).collect();
        // A part under zero counts as none, and the others make up for it.
        let sum: f64 = parts.iter().sum();
        let scale = if sum > 0.0 { steady / sum } else { 0.0 };
        parts.into_iter().map(|part| part * scale).collect()
    }

    /// The same, with the backlog spread over [`DRAIN_SECONDS`].
    pub(super) fn draining(&self, totals: &Totals) -> f64 {
        self.steady(totals) + totals.in_flight * self.cost.unwrap_or(0.0) / DRAIN_SECONDS
    }

    /// Pods' worth. The headroom between threshold and full drains the backlog first.
    pub(super) fn demand(&self, totals: &Totals) -> f64 {
        let steady = self.steady(totals) / (self.threshold - self.base);
        if self.full > self.base {
            steady.max(self.draining(totals) / (self.full - self.base))
        } else {
            steady
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Case {
        cost: Option<f64>,
        totals: Totals,
        demand: f64,
    }

    /// A pod that should carry 5.6 of 8 workers.
    fn check(case: &Case) {
        let form = WorkForm { cost: case.cost, threshold: 5.6, base: 0.0, full: 8.0 };
        let got = form.demand(&case.totals);
        assert!(
            (got - case.demand).abs() < 1e-9,
            "{:?}: {got}, expected {}",
            case.totals,
            case.demand
        );
    }

    #[test]
    fn arrivals_count_even_where_saturated_pods_cannot_serve_them() {
        let totals = Totals { work: 80.0, completed: 80.0, change: 32.0, in_flight: 0.0 };
        check(&Case { cost: Some(1.0), totals, demand: 112.0 / 5.6 });
        check(&Case { cost: None, totals, demand: 80.0 / 5.6 });
    }

    /// Pods as (work, completed, change), at one core-second per request.
    fn check_parts(pods: &[(f64, f64, f64)], expected: &[f64]) {
        let form = WorkForm { cost: Some(1.0), threshold: 5.6, base: 0.0, full: 8.0 };
        let totals = |&(work, completed, change): &(f64, f64, f64)| Totals {
            work,
            completed,
            change,
            in_flight: 0.0,
        };
        let pods: Vec<Totals> = pods.iter().map(totals).collect();
        let parts = form.parts(&pods);
        let close = |(a, b): (&f64, &f64)| (a - b).abs() < 1e-9;
        assert!(
            parts.len() == expected.len() && parts.iter().zip(expected).all(close),
            "{pods:?}: {parts:?}, expected {expected:?}"
        );
        let whole = form.steady(&pods.iter().copied().sum());
        assert!((parts.iter().sum::<f64>() - whole).abs() < 1e-9, "{pods:?}: not {whole}");
    }

    #[test]
    fn the_parts_of_pods_add_up_to_the_whole() {
        check_parts(&[(4.0, 1.0, 0.0), (2.0, 3.0, 0.0)], &[4.0, 2.0]);
        check_parts(&[(4.0, 6.0, 1.0), (4.0, 2.0, 0.0)], &[7.0, 2.0]);
        check_parts(&[(8.0, 8.0, -3.0), (8.0, 8.0, 1.0)], &[5.0, 9.0]);
        check_parts(&[(1.0, 1.0, -3.0), (1.0, 5.0, 0.0)], &[0.0, 3.0]);
        check_parts(&[(0.0, 0.0, 0.0), (0.0, 0.0, 0.0)], &[0.0, 0.0]);
        check_parts(&[], &[]);
    }

    #[test]
    fn work_that_no_request_explains_counts_as_used() {
        let totals = Totals { work: 20.0, completed: 5.0, ..Totals::default() };
        check(&Case { cost: Some(1.0), totals, demand: 20.0 / 5.6 });
    }

    #[test]
    fn a_backlog_adds_pods_only_when_the_headroom_cannot_drain_it() {
        let backlog = |in_flight| Totals { work: 112.0, completed: 112.0, change: 0.0, in_flight };
        check(&Case { cost: Some(1.0), totals: backlog(1216.0), demand: 20.0 });
        check(&Case { cost: Some(1.0), totals: backlog(6000.0), demand: (112.0 + 100.0) / 8.0 });
    }

    #[test]
    fn pods_that_drain_a_backlog_are_not_steady_work() {
        let totals = Totals { work: 160.0, completed: 160.0, change: -48.0, in_flight: 600.0 };
        check(&Case { cost: Some(1.0), totals, demand: 20.0 });
    }
}
