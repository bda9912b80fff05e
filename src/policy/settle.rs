//! From a signal's readings to its demand: enough pods, two samples, both windows, silent pods.
//!
//! In: each pod's share and the totals. Out: [`Settled`], or why there is no number. Never: a demand inferred from too few
//! pods that would lower the replicas.

use super::Unserved;
use super::coverage::Counts;
use super::imputation::impute;
use super::memory::Memory;
use super::observe::{Reading, View};
use super::refusal::{self, number};
use super::window::Totals;
use crate::store::PodWindow;

/// What a signal measured.
pub(super) struct Measured<'m> {
    /// Each pod's part, in pods' worth.
    pub(super) shares: &'m [Reading<f64>],
    /// The totals over the reporting pods.
    pub(super) totals: Totals,
    /// Pods' worth of totals.
    pub(super) demand: &'m dyn Fn(&Totals) -> f64,
    /// The families it reads, as an error names them.
    pub(super) families: &'m str,
}

/// A demand and how it came about.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Settled {
    pub(super) demand: f64,
    /// Of the newest totals.
    pub(super) short: f64,
    /// Of the mean over the window.
    pub(super) long: f64,
    /// What was added to `short` for pods that did not report.
    pub(super) filled: f64,
    pub(super) counts: Counts,
}

/// The least whole number of pods for a demand, as an HPA with target 1 reads it: rounded to the nearest milli first.
pub(super) fn pods_needed(demand: f64) -> f64 {
    ((demand * 1000.0).round() / 1000.0).ceil()
}

/// For values that add up over pods.
pub(super) fn settle(
    view: &View<'_>,
    memory: &mut Memory,
    measured: &Measured<'_>,
) -> Result<Settled, Unserved> {
    let name = memory.signal.name.clone();
    let counts = standing(view, memory, measured)?;
    let floor = view.policy.coverage_floor;
    let covered = counts.reaches(floor);
    let (short, long) = both_windows(view, memory, measured, covered);
    let reported = short.max(long);
    if covered {
        let imputed = impute(short, long, measured.shares, view.workload.status_replicas);
        return Ok(Settled { demand: imputed.demand, short, long, filled: imputed.filled, counts });
    }
    if pods_needed(reported) >= f64::from(view.workload.spec_replicas) {
        return Ok(Settled { demand: reported, short, long, filled: 0.0, counts });
    }
    Err(refusal::coverage_too_low(view, &name, counts, floor, reported))
}

/// For one shared value that every pod reports: any pod will do.
pub(super) fn settle_shared(
    view: &View<'_>,
    memory: &mut Memory,
    measured: &Measured<'_>,
) -> Result<Settled, Unserved> {
    let counts = standing(view, memory, measured)?;
    let (short, long) = both_windows(view, memory, measured, true);
    Ok(Settled { demand: short.max(long), short, long, filled: 0.0, counts })
}

/// Counts the pods; an error where there are none, none reports, or none has reported twice since the start.
fn standing(
    view: &View<'_>,
    memory: &mut Memory,
    measured: &Measured<'_>,
) -> Result<Counts, Unserved> {
    let name = memory.signal.name.clone();
    let counts = Counts::of(measured.shares, &view.pods);
    if counts.reporting == 0 {
        return Err(match (view.workload.spec_replicas, counts.expected) {
            (0, 0) => refusal::scaled_to_zero(),
            (_, 0) if counts.awaiting > 0 => refusal::second_sample(&name),
            (_, 0) => refusal::no_pods(view),
            _ => refusal::not_reported(view, &memory.signal, measured.families, counts),
        });
    }
    let twice = |window: &PodWindow| window.fresh_batches() >= 2;
    let reporting =
        measured.shares.iter().zip(&view.pods).filter(|(share, _)| share.fresh().is_some());
    memory.warm |= reporting.filter_map(|(_, pod)| pod.window).any(twice);
    if memory.warm { Ok(counts) } else { Err(refusal::second_sample(&name)) }
}

fn both_windows(
    view: &View<'_>,
    memory: &mut Memory,
    measured: &Measured<'_>,
    record: bool,
) -> (f64, f64) {
    let now = view.now.monotonic;
    if record {
        memory.long.record(now, measured.totals);
    }
    let short = (measured.demand)(&measured.totals).max(0.0);
    let long = memory.long.mean(now).map_or(short, |mean| (measured.demand)(&mean).max(0.0));
    (short, long)
}

impl Settled {
    /// The end of a formula line.
    pub(super) fn explain(&self, view: &View<'_>) -> String {
        let mut text = format!(
            "{} now, {} over {} s",
            number(self.short),
            number(self.long),
            number(view.policy.window.as_secs_f64())
        );
        let silent = self.counts.expected - self.counts.reporting.min(self.counts.expected);
        if self.filled > 0.0 {
            text += &format!(
                "; {silent} expected pods do not report, {} filled in",
                number(self.filled)
            );
        } else if silent > 0 {
            text += &format!("; {silent} expected pods do not report, nothing filled in");
        }
        text + &format!("; demand {}", number(self.demand))
    }
}
