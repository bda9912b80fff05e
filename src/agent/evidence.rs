//! Evidence of the last minute, kept before anybody asks for it, so that the cause of an incident can be seen after it.
//!
//! In: one [`Slice`] per tick. Out: `/debug/headroom/capture`, where a window is pinned, listed and read. Never: memory or disk
//! without a bound, or work on the service's threads.
//!
//! A pin keeps what the ring holds at that moment and goes on collecting for some seconds. A rule pins by itself: a signal
//! that crosses its threshold, or memory that nears its limit. What is pinned is encoded at once and, where a directory is
//! given, written to it: that copy survives the kill for lack of memory which it was taken for.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::runtime::Handle;

use crate::pprof::{self, CpuSlice, CpuSubscription, Pace};
use crate::signals::{Family, Snapshot};
use crate::telemetry::error_chain;
use crate::time::{Clock, Now, Timestamp};

mod capture;
mod disk;
mod ring;
mod routes;
mod rules;
#[cfg(test)]
mod tests;

pub use ring::RingLimits;
pub use rules::PinRule;

use capture::Captures;
pub(super) use capture::File;
use disk::Directory;
use ring::EvidenceRing;
pub(super) use ring::{Slice, SliceValue};
pub(super) use routes::routes;
use rules::Rules;

/// How much is kept, and what pins by itself.
#[derive(Clone, Debug, PartialEq)]
#[must_use = "the agent's builder takes it"]
pub struct EvidenceOptions {
    /// The bounds of the ring.
    pub ring: RingLimits,
    /// Signals that pin when they cross a threshold.
    pub rules: Vec<PinRule>,
    /// Pins when the working set reaches this share of the cgroup's memory limit.
    pub memory_near_limit: f64,
    /// Where pinned captures are kept beside memory.
    pub directory: Option<PathBuf>,
}

impl EvidenceOptions {
    /// Keeps nothing of the past and takes no CPU samples: captures can be pinned, and hold the signals that come after, the
    /// heap and the tasks.
    pub fn off() -> Self {
        let ring = RingLimits { window: Duration::ZERO, bytes: 0 };
        Self { ring, ..Self::default() }
    }

    const fn is_off(&self) -> bool {
        self.ring.window.is_zero() || self.ring.bytes == 0
    }
}

impl Default for EvidenceOptions {
    fn default() -> Self {
        let ring = RingLimits::default();
        Self { ring, rules: Vec::new(), memory_near_limit: 0.9, directory: None }
    }
}

const HEAP: &str = "heap";
const TASKS: &str = "tasks";
const SIGNALS: &str = "signals.json";
/// Memory first: what is short of it may not be there for long.
const OWN_PROFILES: [&str; 3] = [HEAP, "profile", TASKS];

/// Spawn sites in the census of a slice: those with the most tasks.
const MAX_SITES: usize = 32;

/// The window of a pin around the moment it is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Window {
    before: Duration,
    after: Duration,
}

impl Default for Window {
    fn default() -> Self {
        Self { before: Duration::from_secs(30), after: Duration::from_secs(15) }
    }
}

/// The ring and what was pinned of it. Cheap to clone; every clone sees the same.
#[derive(Clone, Debug)]
pub(super) struct Evidence(Arc<Shared>);

/// Whose evidence is kept.
#[derive(Debug)]
pub(super) enum Subject {
    /// This process's: its CPU samples, its memory, and the tasks of that runtime.
    Itself(pprof::Service, Handle),
    /// That of a process beside this one, which serves profiles of its own, or none.
    #[cfg_attr(not(feature = "adapter"), expect(dead_code, reason = "only the sidecar has one"))]
    Neighbour(Arc<dyn NeighbourProfiles>),
}

/// The profiles of a process beside this one.
pub(super) trait NeighbourProfiles: std::fmt::Debug + Send + Sync {
    /// Asks for them, and says what there is not. Blocks for up to some seconds.
    fn fetch(&self) -> (Vec<File>, Vec<String>);
}

#[derive(Debug)]
struct Shared {
    subject: Subject,
    clock: Clock,
    state: Mutex<State>,
    /// `None` with the ring off, of a neighbour, or while another profiler has the signal.
    cpu: Mutex<Option<CpuSubscription>>,
    /// Why there are no CPU samples.
    no_cpu: Mutex<Option<String>>,
    is_off: bool,
    directory: Option<Directory>,
    /// Held while a capture is encoded and written: one at a time.
    encoding: Mutex<()>,
}

#[derive(Debug)]
struct State {
    ring: EvidenceRing,
    captures: Captures,
    rules: Rules,
    series: SeriesNames,
    former: Timestamp,
}

/// What a capture is encoded from.
#[derive(Clone, Debug)]
struct Work {
    id: u64,
    slices: Vec<Arc<Slice>>,
}

impl Evidence {
    pub(super) fn new(subject: Subject, clock: Clock, options: EvidenceOptions) -> Self {
        let is_off = options.is_off() || matches!(subject, Subject::Neighbour(_));
        let directory = options.directory.map(Directory::open);
        let state = State {
            ring: EvidenceRing::new(options.ring),
            captures: Captures::new(directory.as_ref().map_or(0, Directory::next_id)),
            rules: Rules::new(options.rules, options.memory_near_limit),
            series: SeriesNames::default(),
            former: clock.now().wall,
        };
        let (state, encoding) = (Mutex::new(state), Mutex::new(()));
        let cpu = Mutex::new(None);
        let no_cpu = Mutex::new(is_off.then(|| "the ring is off".to_owned()));
        Self(Arc::new(Shared { subject, clock, state, cpu, no_cpu, is_off, directory, encoding }))
    }

    /// Replaces what pins by itself.
    #[cfg(feature = "adapter")]
    pub(super) fn set_rules(&self, rules: Vec<PinRule>, memory_near_limit: f64) {
        self.0.state.lock().rules.replace(rules, memory_near_limit);
    }

    /// Takes what a tick saw: the signals, and `more` values as family, labels and number. Captures that are due are encoded on
    /// a thread of the runtime this is called in.
    pub(super) fn tick(
        &self,
        now: Now,
        snapshot: &Snapshot,
        more: &[(&'static str, &'static str, f64)],
    ) {
        let cpu = self.0.take_cpu();
        let mut work = Vec::new();
        {
            let mut state = self.0.state.lock();
            let mut values = state.series.values(snapshot);
            let value = |&(name, labels, value): &(&'static str, &str, f64)| SliceValue {
                name,
                labels: labels.into(),
                value,
            };
            values.extend(more.iter().map(value));
            if matches!(self.0.subject, Subject::Itself(..)) {
                values.extend(tasks_by_site());
            }
            let since = std::mem::replace(&mut state.former, now.wall);
            let slice = Arc::new(Slice::new(since, now, cpu, values));
            state.ring.push(slice.clone());
            work.extend(state.captures.add(&slice));
            for reason in state.rules.fired(&slice) {
                work.push(state.pin(reason, Window::default(), now).1);
            }
        }
        for work in work {
            self.encode_apart(work);
        }
    }

    /// Keeps a window around now; the id of the capture.
    fn pin(&self, reason: String, window: Window) -> u64 {
        let now = self.0.clock.now();
        let (id, work) = self.0.state.lock().pin(reason, window, now);
        self.encode_apart(work);
        id
    }

    /// On a thread for blocking work: symbols are looked up, and files may be written.
    fn encode_apart(&self, work: Work) {
        let shared = self.0.clone();
        drop(tokio::task::spawn_blocking(move || shared.encode(&work)));
    }
}

impl State {
    fn pin(&mut self, reason: String, window: Window, now: Now) -> (u64, Work) {
        let slices = self.ring.last(window.before, now);
        tracing::info!(reason, "a window is pinned");
        self.captures.open(reason, slices, now, window.after)
    }
}

impl Shared {
    /// What was sampled since the last tick. The sampler starts with the first, and is tried again while it does not.
    fn take_cpu(&self) -> CpuSlice {
        let mut cpu = self.cpu.lock();
        if cpu.is_none() && !self.is_off {
            let started = CpuSubscription::start(Pace::Background);
            *self.no_cpu.lock() = started.as_ref().err().map(|error| error_chain(error));
            *cpu = started.ok();
        }
        cpu.as_ref().map(CpuSubscription::take).unwrap_or_default()
    }

    /// Encodes what a capture has so far. Blocks for about 20 ms; for a neighbour, as long as its profiles take.
    fn encode(&self, work: &Work) {
        let _alone = self.encoding.lock();
        let (files, missing) = self.files(&work.slices);
        let put = self.state.lock().captures.put(work, files, missing);
        let Some(capture) = put else { return };
        if let Some(directory) = &self.directory
            && let Err(error) = directory.write(&capture)
        {
            let error = &error as &dyn std::error::Error;
            tracing::warn!(error, "a capture is kept in memory only");
            self.state.lock().captures.missed(work.id, "the directory does not take it");
        }
    }

    /// One file of the last `before` of the ring, without pinning it; `None` if there is none of that name. A neighbour is not
    /// asked for profiles here: its own endpoints are at hand.
    fn recent(&self, before: Duration, name: &str) -> Option<Result<File, String>> {
        let slices = self.state.lock().ring.last(before, self.clock.now());
        let _alone = self.encoding.lock();
        match &self.subject {
            _ if name == SIGNALS => Some(Ok(File::new(SIGNALS, signals(&slices)))),
            Subject::Itself(service, runtime) => {
                let name = OWN_PROFILES.into_iter().find(|known| *known == name)?;
                Some(self.own_profile(service, runtime, &slices, name))
            }
            Subject::Neighbour(_) => None,
        }
    }

    /// The files of a capture, and what it has to do without.
    fn files(&self, slices: &[Arc<Slice>]) -> (Vec<File>, Vec<String>) {
        let (mut files, mut missing) = (Vec::new(), Vec::new());
        match &self.subject {
            Subject::Itself(service, runtime) => {
                for name in OWN_PROFILES {
                    match self.own_profile(service, runtime, slices, name) {
                        Ok(file) => files.push(file),
                        Err(why) => missing.push(format!("{name}: {why}")),
                    }
                }
            }
            Subject::Neighbour(profiles) => (files, missing) = profiles.fetch(),
        }
        files.push(File::new(SIGNALS, signals(slices)));
        (files, missing)
    }

    fn own_profile(
        &self,
        service: &pprof::Service,
        runtime: &Handle,
        slices: &[Arc<Slice>],
        name: &'static str,
    ) -> Result<File, String> {
        let content = match name {
            HEAP => pprof::heap_profile(service).map_err(|error| error_chain(&error))?,
            TASKS => pprof::tasks_profile(service, runtime),
            _ => {
                if let Some(why) = &*self.no_cpu.lock() {
                    return Err(why.clone());
                }
                let (Some(first), Some(last)) = (slices.first(), slices.last()) else {
                    return Err("the ring is empty".to_owned());
                };
                let duration = last.until.wall.since(first.since);
                let samples = slices.iter().map(|slice| &slice.cpu);
                pprof::encode_cpu(service, samples, first.since, duration)
            }
        };
        Ok(File::new(name, content))
    }
}

/// The task census of a slice.
fn tasks_by_site() -> impl Iterator<Item = SliceValue> {
    pprof::tasks::largest_sites(MAX_SITES).into_iter().map(|(site, live)| SliceValue {
        name: "tasks_by_site",
        labels: format!("site={site:?}").into(),
        value: live as f64,
    })
}

/// `{"series": [{"name", "labels", "points": [[unix seconds, value], …]}]}`.
fn signals(slices: &[Arc<Slice>]) -> Vec<u8> {
    let mut series: Vec<(&'static str, &Arc<str>, Vec<serde_json::Value>)> = Vec::new();
    let mut places: HashMap<(&'static str, &str), usize> = HashMap::new();
    for slice in slices {
        let at = slice.until.wall.as_millis() as f64 / 1e3;
        for SliceValue { name, labels, value } in &slice.values {
            let place = *places.entry((name, labels)).or_insert_with(|| {
                series.push((name, labels, Vec::new()));
                series.len() - 1
            });
            series[place].2.push(serde_json::json!([at, value]));
        }
    }
    let series: Vec<_> = series
        .into_iter()
        .map(|(name, labels, points)| {
            serde_json::json!({"name": name, "labels": &**labels, "points": points})
        })
        .collect();
    serde_json::json!({"series": series}).to_string().into_bytes()
}

/// The labels of each reading as text, kept from one snapshot to the next: readings come in the same order.
#[derive(Debug, Default)]
struct SeriesNames(Vec<(&'static Family, Vec<String>, Arc<str>)>);

impl SeriesNames {
    fn values(&mut self, snapshot: &Snapshot) -> Vec<SliceValue> {
        let readings = snapshot.readings();
        self.0.truncate(readings.len());
        let mut values = Vec::with_capacity(readings.len());
        for (index, reading) in readings.iter().enumerate() {
            let known = self.0.get(index).filter(|(family, labels, _)| {
                std::ptr::eq(*family, reading.family) && labels.iter().eq(reading.labels())
            });
            let labels = if let Some((.., labels)) = known {
                labels.clone()
            } else {
                let text: Arc<str> = written(reading.family, reading.labels()).into();
                let values = reading.labels().iter().map(ToString::to_string).collect();
                let entry = (reading.family, values, text.clone());
                if index < self.0.len() {
                    self.0[index] = entry
                } else {
                    self.0.push(entry)
                }
                text
            };
            values.push(SliceValue { name: reading.family.name, labels, value: reading.value });
        }
        values
    }
}

/// `event="oom",kind="some"`.
fn written<S: AsRef<str>>(family: &Family, values: &[S]) -> String {
    let pair = |(name, value): (&&str, &S)| format!("{name}={:?}", value.as_ref());
    family.labels.iter().zip(values).map(pair).collect::<Vec<_>>().join(",")
}
