//! Every parser behind one kind of function, with what must hold of any input. `fuzz/` drives them; the tests replay its seeds.
//!
//! In: what an attacker, a kernel or a broken peer could send. Out: nothing, or a panic where a property does not hold. Never:
//! part of a program: it exists only in a build that `cargo fuzz` makes, and in tests.

use std::str::from_utf8;

use http::{Method, Uri};

use crate::adapter::RequestInfo;
use crate::config::{AdapterConfig, AgentConfig, Inputs, KEYS, load};
use crate::quantity::Quantity;
use crate::sample::{Labels, MetricName, Selector};
use crate::sources::{Limits, Wanted, parse};
use crate::time::Timestamp;
use crate::{agent, pprof, signals};

/// Reads one input.
pub type Reader = fn(&[u8]);

/// By the names of the folders in `fuzz/seeds`.
pub const READERS: [(&str, Reader); 9] = [
    ("configuration", configuration),
    ("elf", elf),
    ("heap_dump", heap_dump),
    ("http_request", http_request),
    ("kernel_files", kernel_files),
    ("prometheus_text", prometheus_text),
    ("quantity", quantity),
    ("selector", selector),
    ("sidecar_target", sidecar_target),
];

/// A scraped answer. What is kept of it is wanted, finite, not negative, each series once, and within the limits.
pub fn prometheus_text(body: &[u8]) {
    let names = ["a", "a_total", "h_bucket", "h_sum"];
    let wanted: Wanted = names.into_iter().map(MetricName::new).collect();
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
}

/// A label selector. Space around it changes nothing, a fault lies inside the text, and what matches could have matched.
pub fn selector(input: &[u8]) {
    let Ok(text) = from_utf8(input) else { return };
    match Selector::parse(text) {
        Ok(selector) => {
            assert_eq!(Selector::parse(&format!(" {text}\t")).as_ref(), Ok(&selector));
            let known: Labels = [("a", "b"), ("n", "7"), ("x.y/z", "")].into_iter().collect();
            let matches = selector.matches(&known);
            assert_eq!(selector.may_match(&known, &[]), matches);
            assert!(!matches || selector.may_match(&known, &["a", "n"]));
            if let (true, Some(only)) = (matches, selector.only_value("a")) {
                assert_eq!(only, "b");
            }
        }
        Err(error) => assert!(error.position <= text.chars().count(), "{error}"),
    }
}

/// A quantity that is printed reads as the same again.
pub fn quantity(input: &[u8]) {
    let Ok(text) = from_utf8(input) else { return };
    if let Ok(quantity) = text.parse::<Quantity>() {
        assert_eq!(quantity.to_string().parse(), Ok(quantity), "{text:?}");
    }
}

/// A configuration file and, after a NUL, one variable of the environment: the first byte tells which.
pub fn configuration(input: &[u8]) {
    let Some((choice, rest)) = input.split_first() else { return };
    let Ok(text) = from_utf8(rest) else { return };
    let (file, value) = text.split_once('\0').unwrap_or((text, ""));
    let mut inputs = Inputs::default();
    if let Some(variable) = KEYS[usize::from(*choice) % KEYS.len()].env.first() {
        inputs.environment.insert((*variable).to_owned(), value.to_owned());
    }
    for (error, section) in [
        (load::<AgentConfig>(&inputs, Some(file)).err(), "agent"),
        (load::<AdapterConfig>(&inputs, Some(file)).err(), "adapter"),
    ] {
        // Whoever is refused is told why.
        assert!(error.is_none_or(|error| !error.to_string().is_empty()), "{section}");
    }
}

/// What clients send: path and query of the API, `Accept`, `traceparent`, a list of addresses.
pub fn http_request(input: &[u8]) {
    agent::fuzzing::read_any_traceparent(input);
    let Ok(text) = from_utf8(input) else { return };
    agent::fuzzing::read_any_accept(text);
    pprof::fuzzing::read_any_symbol_list(text);
    let Ok(uri) = text.parse::<Uri>() else { return };
    for method in [Method::GET, Method::POST, Method::DELETE, Method::OPTIONS] {
        let info = RequestInfo::of(&method, &uri);
        // Nothing is authorized as a resource that is not below /apis/GROUP/VERSION/.
        if info.resource.is_some() {
            assert!(info.path.matches('/').count() >= 3, "{uri}");
            assert!(info.path.trim_start_matches('/').starts_with("apis/"), "{uri}");
        }
    }
}

/// The metrics of the service beside a sidecar. What the sidecar passes on, the adapter reads: or it would lose all signals of
/// the pod.
pub fn sidecar_target(body: &[u8]) {
    let Some(text) = agent::fuzzing::read_any_target(body) else { return };
    let wanted = ["a", "go_memstats_heap_inuse_bytes"].into_iter().map(MetricName::new).collect();
    let read = parse(text.as_bytes(), &wanted, &Limits::default(), Timestamp::from_millis(7));
    assert!(read.is_ok(), "{read:?} for {text:?}");
}

/// The files of /proc and /sys.
pub fn kernel_files(input: &[u8]) {
    if let Ok(text) = from_utf8(input) {
        signals::read_any_text(text);
    }
}

/// The text that jemalloc dumps.
pub fn heap_dump(input: &[u8]) {
    if let Ok(text) = from_utf8(input) {
        pprof::fuzzing::read_any_dump(text);
    }
}

/// A file of code, after an offset into it.
pub fn elf(input: &[u8]) {
    if let Some((offset, file)) = input.split_first_chunk() {
        pprof::fuzzing::read_any_elf(file, u64::from(u16::from_le_bytes(*offset)));
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn every_seed_is_read_and_every_prefix_of_it() {
        let seeds = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/seeds");
        for (name, read) in READERS {
            let folder = std::fs::read_dir(seeds.join(name)).expect("each reader has seeds");
            let mut inputs = 0;
            for seed in folder {
                let seed = seed.expect("a folder can be listed").path();
                let input = std::fs::read(&seed).expect("a seed can be read");
                (0..=input.len()).for_each(|end| read(&input[..end]));
                inputs += 1;
            }
            assert!(inputs > 0, "{name}");
        }
    }

    #[test]
    fn every_reader_has_a_target() {
        let targets = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/fuzz_targets");
        for (name, _) in READERS {
            let target = targets.join(format!("{name}.rs"));
            let text = std::fs::read_to_string(&target).expect("each reader has a target");
            assert!(text.contains(&format!("headroom::fuzzing::{name}(")), "{name}");
        }
        let count = std::fs::read_dir(targets).expect("there are targets").count();
        assert_eq!(count, READERS.len());
    }
}
