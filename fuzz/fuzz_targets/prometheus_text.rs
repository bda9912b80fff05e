#![no_main]

use headroom::sample::MetricName;
use headroom::sources::{Limits, Wanted, parse};
use headroom::time::Timestamp;
use libfuzzer_sys::fuzz_target;

// What is kept of an answer is finite, not negative, wanted, and each series once; within the limits.
fuzz_target!(|body: &[u8]| {
    let wanted: Wanted = ["a", "a_total", "h_bucket", "h_sum"].map(MetricName::new).into_iter().collect();
    let limits = Limits {
        body_bytes: 4_000,
        series_per_pod: 16,
        labels_per_series: 4,
        label_bytes_per_series: 64,
    };
    let Ok(parsed) = parse(body, &wanted, &limits, Timestamp::from_millis(7)) else { return };
    assert!(body.len() <= limits.body_bytes && parsed.samples.len() <= limits.series_per_pod);
    for (index, sample) in parsed.samples.iter().enumerate() {
        assert!(sample.value.is_finite() && sample.value.is_sign_positive(), "{sample:?}");
        assert!(wanted.get(sample.series.name.as_str()).is_some(), "{sample:?}");
        assert!(sample.series.labels.iter().count() <= limits.labels_per_series, "{sample:?}");
        assert!(parsed.samples[..index].iter().all(|other| other.series != sample.series));
    }
    assert!(parsed.dropped.iter().all(|dropped| dropped.samples > 0));
});
