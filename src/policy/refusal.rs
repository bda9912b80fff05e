//! The closed set of reasons for not serving a number, with their sentences, and how numbers are written in them.
//!
//! In: what is missing. Out: [`Unserved`] and [`Finding`]. Never: a sentence without the cause.

use std::fmt;
use std::sync::Arc;

use super::coverage::Counts;
use super::observe::View;
use super::reason::AWAITING_SECOND_SAMPLE;
use super::{Coverage, DEMAND_METRIC, Finding, LeftOut, LeftOutReason, Signal, Unserved};
use crate::units::{Measure, Ratio};

/// Pods that an error names before it says "and N more".
const PODS_NAMED: usize = 3;

/// A number as people read it: at most three digits after the point, none for large ones.
pub(super) fn number(value: f64) -> String {
    let digits = if value.abs() >= 1000.0 { 0 } else { 3 };
    let text = format!("{value:.digits$}");
    match text.contains('.') {
        true => text.trim_end_matches('0').trim_end_matches('.').to_owned(),
        false => text,
    }
}

/// At zero replicas no pod can say anything.
pub(super) fn scaled_to_zero() -> Unserved {
    let message =
        "the workload has no replicas, and signals of pods say nothing without pods".to_owned();
    Unserved { reason: "ScaledToZero", message }
}

/// 0/0: pods may exist, but none has to report yet.
pub(super) fn no_pods(view: &View<'_>) -> Unserved {
    let message = match view.pods.len() {
        0 => "the workload has no pods yet".to_owned(),
        young => format!("none of {young} young pods has reported yet{}", first_cause(view)),
    };
    Unserved { reason: "NoPods", message }
}

/// Nothing reports the signal.
pub(super) fn not_reported(
    view: &View<'_>,
    signal: &Signal,
    families: &str,
    counts: Counts,
) -> Unserved {
    let Signal { name: signal, kind, .. } = signal;
    if counts.missing > 0 {
        let mut partial = view.pods.iter().filter(|pod| pod.fresh);
        if let Some((pod, family)) =
            partial.find_map(|pod| Some((&pod.pod.name, pod.partial_family(kind)?)))
        {
            let message = format!(
                "signal {signal}: samples of {family} were not kept of {pod} (over the limit of series, twice in the \
                 answer, not finite or negative), and a part of them is no value"
            );
            return Unserved { reason: "MetricIncomplete", message };
        }
        let message = format!("signal {signal}: no pod serves {families}");
        return Unserved { reason: "MetricNotServed", message };
    }
    if counts.awaiting > 0 {
        return second_sample(signal);
    }
    let since = match view.newest_report() {
        Some(at) => {
            format!("the newest sample is of {at}, {} s ago", view.now.wall.since(at).as_secs())
        }
        None => "none ever did".to_owned(),
    };
    let message = format!(
        "signal {signal}: none of {} pods reports, {since}{}",
        counts.expected,
        first_cause(view)
    );
    Unserved { reason: "PodsSilent", message }
}

/// After a restart.
pub(super) fn second_sample(signal: &str) -> Unserved {
    let message = format!("signal {signal}: waiting for its second sample");
    Unserved { reason: AWAITING_SECOND_SAMPLE, message }
}

/// Too few pods report to infer the rest, and what they report alone would lower the replicas.
pub(super) fn coverage_too_low(
    view: &View<'_>,
    signal: &str,
    counts: Counts,
    floor: Ratio,
    reported: f64,
) -> Unserved {
    let message = format!(
        "signal {signal}: {} of {} pods report, under the coverage floor of {}, and their demand of {} is less than {} replicas{}",
        counts.reporting,
        counts.expected,
        number(floor.get()),
        number(reported),
        view.workload.spec_replicas,
        first_cause(view),
    );
    Unserved { reason: "CoverageTooLow", message }
}

/// One or more of several signals are missing, and the others would lower the replicas.
pub(super) fn signal_missing(
    missing: &[(&Arc<str>, &Unserved)],
    rest: f64,
    replicas: u32,
) -> Unserved {
    let reasons: Vec<String> =
        missing.iter().map(|(name, why)| format!("{name} ({})", why.reason)).collect();
    let message = format!(
        "missing {}: {}; the other signals demand {}, less than {replicas} replicas",
        reasons.join(", "),
        missing.first().map_or("", |(_, why)| &why.message),
        number(rest),
    );
    Unserved { reason: "SignalMissing", message }
}

/// A condition that also leaves the signal without a number.
pub(super) fn finding_and_refusal(reason: &'static str, message: String) -> (Finding, Unserved) {
    (Finding { reason, message: message.clone() }, Unserved { reason, message })
}

/// `base` must leave room under the threshold.
pub(super) fn base_not_below_threshold(
    signal: &str,
    base: f64,
    threshold: f64,
) -> (Finding, Unserved) {
    finding_and_refusal(
        "BaseNotBelowThreshold",
        format!(
            "signal {signal}: an idle pod shows {}, not less than the threshold of {}",
            number(base),
            number(threshold)
        ),
    )
}

/// A part of a total is none: an HPA would scale down on it. Says which pods are lacking and why, young ones last: those
/// may not be expected to report yet.
pub(super) fn whole(
    left_out: &[LeftOut],
    signal: &str,
    coverage: Coverage,
) -> Result<(), Unserved> {
    let Coverage { reporting, expected, .. } = coverage;
    if reporting > 0 && reporting >= expected {
        return Ok(());
    }
    let concerns = |reason: &LeftOutReason| match reason {
        LeftOutReason::MissingFamily { signal: of }
        | LeftOutReason::PartialFamily { signal: of, .. } => &**of == signal,
        _ => true,
    };
    let mut lacking: Vec<&LeftOut> = left_out.iter().filter(|pod| concerns(&pod.reason)).collect();
    lacking.sort_by_key(|pod| pod.reason == LeftOutReason::NotYetReported);
    let missing = usize::try_from(expected - reporting.min(expected)).unwrap_or(usize::MAX);
    lacking.truncate(missing.min(PODS_NAMED));
    let named: String = lacking.iter().map(|pod| format!("; {pod}")).collect();
    let more = match missing.saturating_sub(lacking.len()) {
        more if more > 0 && !lacking.is_empty() => format!("; and {more} more"),
        _ => String::new(),
    };
    Err(Unserved {
        reason: "PodsMissing",
        message: format!(
            "{reporting} of {expected} pods report signal {signal}, and a part is no total, while {DEMAND_METRIC} fills the gap{named}{more}"
        ),
    })
}

/// What a metric describes is not looked up yet.
pub(super) fn described_kind_pending(signal: &str, kind: &str) -> Unserved {
    let message = format!("signal {signal}: kind {kind} has not been looked up yet");
    Unserved { reason: "DescribedKindPending", message }
}

fn first_cause(view: &View<'_>) -> String {
    view.silent()
        .first()
        .map_or(String::new(), |left_out| format!("; {}: {}", left_out.name, left_out.reason))
}

impl fmt::Display for LeftOutReason {
    fn fmt(&self, text: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Failed(failure) => failure.fmt(text),
            Self::NotYetReported => text.write_str("has not reported yet"),
            Self::Stale => text.write_str("answers, but its samples no longer change their time"),
            Self::NoEndpoint => text.write_str("has no address or no such port"),
            Self::PartialFamily { signal, family } => {
                write!(text, "did not keep all of {family}, which signal {signal} reads")
            }
            Self::MissingFamily { signal } => {
                write!(text, "does not serve what signal {signal} reads")
            }
        }
    }
}

/// The pod, why it is left out, and for how long it has been silent.
impl fmt::Display for LeftOut {
    fn fmt(&self, text: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(text, "{}: {}", self.name, self.reason)?;
        let answers = matches!(
            self.reason,
            LeftOutReason::MissingFamily { .. } | LeftOutReason::PartialFamily { .. }
        );
        match self.silent_for.filter(|_| !answers) {
            Some(silent) => write!(text, " (newest sample {} s ago)", silent.as_secs()),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_short() {
        for (value, text) in
            [(5.0, "5"), (5.5789, "5.579"), (0.05, "0.05"), (104_857_600.0, "104857600")]
        {
            assert_eq!(number(value), text);
        }
    }
}
