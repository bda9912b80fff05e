//! M/M/c: how busy a pod may be so that a quantile of the waiting time stays under a bound.
//!
//! In: servers, service time, quantile, the longest wait allowed. Out: a utilisation. Never: outside [`RHO_MIN`] to
//! [`RHO_MAX`]. Source: Erlang's C formula; the waiting time of M/M/c is exponential beyond its chance of no wait.

/// The least utilisation that a latency target asks for.
pub(super) const RHO_MIN: f64 = 0.3;
/// The largest: above, queues grow faster than pods start.
pub(super) const RHO_MAX: f64 = 0.85;

/// The chance that a request waits, at utilisation `rho` (0 to 1) of `servers`.
///
/// By the recursion of Erlang B over the servers, which stays finite for any number of them.
pub(super) fn erlang_c(servers: u32, rho: f64) -> f64 {
    let offered = rho * f64::from(servers);
    let mut blocked = 1.0;
    for server in 1..=servers {
        blocked = offered * blocked / (f64::from(server) + offered * blocked);
    }
    blocked / (1.0 - rho * (1.0 - blocked))
}

/// The quantile (0 to 1) of the waiting time, in units of the service time.
pub(super) fn wait_quantile(servers: u32, rho: f64, quantile: f64) -> f64 {
    let waits = erlang_c(servers, rho);
    let wait = (waits / (1.0 - quantile)).ln() / (f64::from(servers) * (1.0 - rho));
    wait.max(0.0)
}

/// The largest utilisation at which the wanted quantile of the wait is at most `allowed`, in units of the service time.
pub(super) fn target_utilisation(servers: u32, quantile: f64, allowed: f64) -> f64 {
    let (mut low, mut high) = (RHO_MIN, RHO_MAX);
    if wait_quantile(servers, high, quantile) <= allowed {
        return high;
    }
    for _ in 0..50 {
        let middle = f64::midpoint(low, high);
        if wait_quantile(servers, middle, quantile) <= allowed {
            low = middle;
        } else {
            high = middle;
        }
    }
    low
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(servers: u32, allowed: f64, expected: f64) {
        let got = target_utilisation(servers, 0.95, allowed);
        assert!(
            (got - expected).abs() < 5e-4,
            "{servers} servers, {allowed}: {got}, expected {expected}"
        );
    }

    #[test]
    fn a_longer_wait_allows_a_busier_pod_within_the_clamp() {
        check(8, 0.5, 0.652);
        check(8, 2.0, 0.848);
        check(8, 20.0, RHO_MAX);
        check(8, 0.0, 0.4836);
        check(1, 0.0, RHO_MIN);
        check(1, 0.1, RHO_MIN);
    }

    #[test]
    fn erlang_c_agrees_with_known_values() {
        // One server: the chance to wait is the utilisation. Two: 2 rho^2 / (1 + rho).
        for rho in [0.1_f64, 0.5, 0.9] {
            assert!((erlang_c(1, rho) - rho).abs() < 1e-12);
            assert!((erlang_c(2, rho) - 2.0 * rho * rho / (1.0 + rho)).abs() < 1e-12);
        }
        assert!(erlang_c(10_000, 0.8).is_finite());
    }
}
