//! Signals as families of the `prometheus` crate, for a sidecar and for a registry.
//!
//! In: series, those of one family one after the other. Out: families that can be compared with those of the service by name.
//! Never: two families of one name.

use prometheus::proto::{Counter, Gauge, LabelPair, Metric, MetricFamily, MetricType};

use super::Sink;
use crate::signals::{Family, FamilyKind};
use crate::time::Timestamp;

/// Metric families under construction.
#[derive(Debug, Default)]
pub(in crate::agent) struct FamilySet(pub(in crate::agent) Vec<MetricFamily>);

impl Sink for FamilySet {
    fn number(
        &mut self,
        family: &'static Family,
        labels: &[&str],
        value: f64,
        at: Option<Timestamp>,
    ) {
        let mut metric = Metric::from_label(label_pairs(family, labels));
        match family.kind {
            FamilyKind::Counter => {
                let mut counter = Counter::default();
                counter.set_value(value);
                metric.set_counter(counter);
            }
            FamilyKind::Gauge | FamilyKind::Histogram => {
                let mut gauge = Gauge::default();
                gauge.set_value(value);
                metric.set_gauge(gauge);
            }
        }
        if let Some(at) = at {
            metric.set_timestamp_ms(at.as_millis());
        }
        match self.0.last_mut() {
            Some(last) if last.name() == family.name => last.mut_metric().push(metric),
            _ => self.0.push(family_of(family, metric)),
        }
    }
}

fn family_of(family: &Family, metric: Metric) -> MetricFamily {
    let mut started = MetricFamily::default();
    started.set_name(family.name.to_owned());
    started.set_help(family.help.to_owned());
    started.set_field_type(match family.kind {
        FamilyKind::Counter => MetricType::COUNTER,
        FamilyKind::Gauge | FamilyKind::Histogram => MetricType::GAUGE,
    });
    started.set_metric(vec![metric]);
    started
}

fn label_pairs(family: &Family, values: &[&str]) -> Vec<LabelPair> {
    let pair = |(name, value): (&&str, &&str)| {
        let mut pair = LabelPair::default();
        pair.set_name((*name).to_owned());
        pair.set_value((*value).to_owned());
        pair
    };
    family.labels.iter().zip(values).map(pair).collect()
}
