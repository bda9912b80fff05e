//! The profiles that are snapshots: what each is called, holds and counts. A new one gets its place here.
//!
//! In: a name. Out: its snapshot, encoded alone or against an earlier one, or as text. Never: `profile`, which takes time to
//! record.

use tokio::runtime::Handle;

use super::super::block::{self, BlockSnapshot};
use super::super::counts::Counts;
use super::super::heap::{self, HeapSnapshot, HeapView};
use super::super::profile::Meaning;
use super::super::symbols::Detail;
use super::super::{CaptureError, Service, tasks, threads};

/// A profile with a snapshot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// Allocations since the start.
    Allocs,
    /// Polls that held a worker.
    Block,
    /// [`Self::Tasks`] as Go's tools know them.
    Goroutine,
    /// Live memory.
    Heap,
    /// Tasks of sites that may leak.
    TaskLeak,
    /// Live tasks.
    Tasks,
    /// Live threads.
    ThreadCreate,
}

/// What was seen at one time.
pub(super) enum Snapshot {
    Heap(HeapSnapshot),
    Block(BlockSnapshot),
    Counts(Counts),
}

const GOROUTINE: Meaning = Meaning {
    samples: &[("goroutine", "count")],
    period_type: ("goroutine", "count"),
    period: 1,
    default_sample: "",
};
const TASKS: Meaning = Meaning {
    samples: &[("tasks", "count"), ("busy", "nanoseconds")],
    period_type: ("tasks", "count"),
    period: 1,
    default_sample: "tasks",
};
const TASK_LEAK: Meaning = Meaning {
    samples: &[("taskleak", "count")],
    period_type: ("taskleak", "count"),
    period: 1,
    default_sample: "",
};

impl Kind {
    pub(super) const ALL: [Self; 7] = [
        Self::Allocs,
        Self::Block,
        Self::Goroutine,
        Self::Heap,
        Self::TaskLeak,
        Self::Tasks,
        Self::ThreadCreate,
    ];

    pub(super) fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.name() == name)
    }

    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Allocs => "allocs",
            Self::Block => "block",
            Self::Goroutine => "goroutine",
            Self::Heap => "heap",
            Self::TaskLeak => "taskleak",
            Self::Tasks => "tasks",
            Self::ThreadCreate => "threadcreate",
        }
    }

    /// For the index.
    pub(super) const fn description(self) -> &'static str {
        match self {
            Self::Allocs => "All allocations since the start, sampled.",
            Self::Block => "Polls that held a worker of the runtime for over 100 ms.",
            Self::Goroutine => "The tasks, under the name and in the units that Go's tools expect.",
            Self::Heap => {
                "Memory in use, sampled. There is no garbage to collect first: gc is accepted and changes nothing."
            }
            Self::TaskLeak => {
                "Tasks of spawn sites that may leak; debug=1 says why, and by which rule."
            }
            Self::Tasks => {
                "Live tasks by spawn site, state and endpoint, and the time they spent in polls. debug=2 lists them one \
                 by one."
            }
            Self::ThreadCreate => "Live OS threads by name.",
        }
    }

    /// Blocks for about a millisecond.
    pub(super) fn snapshot(self, runtime: Option<&Handle>) -> Result<Snapshot, CaptureError> {
        Ok(match self {
            Self::Allocs => Snapshot::Heap(heap::snapshot(HeapView::Allocated)?),
            Self::Heap => Snapshot::Heap(heap::snapshot(HeapView::InUse)?),
            Self::Block => Snapshot::Block(block::snapshot()),
            Self::Goroutine | Self::Tasks => Snapshot::Counts(tasks::census(runtime)),
            Self::TaskLeak => Snapshot::Counts(tasks::suspected()),
            Self::ThreadCreate => Snapshot::Counts(threads::counts()),
        })
    }

    /// The profile of `now` or, with `before`, of what changed. Blocks while it looks up symbols.
    pub(super) fn encode(
        self,
        service: &Service,
        detail: Detail,
        now: Snapshot,
        before: Option<Snapshot>,
    ) -> Vec<u8> {
        match now {
            Snapshot::Heap(now) => {
                let view = match self {
                    Self::Allocs => HeapView::Allocated,
                    _ => HeapView::InUse,
                };
                heap::encode(service, view, detail, now, before.and_then(Snapshot::heap))
            }
            Snapshot::Block(now) => {
                block::encode(service, detail, now, before.and_then(Snapshot::block))
            }
            Snapshot::Counts(now) => {
                let meaning = match self {
                    Self::Goroutine => GOROUTINE,
                    Self::TaskLeak => TASK_LEAK,
                    Self::ThreadCreate => threads::MEANING,
                    _ => TASKS,
                };
                now.encode(service, &meaning, before.and_then(Snapshot::counts))
            }
        }
    }

    /// What `debug=1` shows; for tasks, `debug=2` lists them.
    pub(super) fn text(self, debug: i64, runtime: Option<&Handle>) -> Result<String, CaptureError> {
        Ok(match self {
            Self::Allocs => heap::snapshot(HeapView::Allocated)?.text(),
            Self::Heap => heap::snapshot(HeapView::InUse)?.text(),
            Self::Block => block::text(&block::snapshot()),
            Self::Goroutine | Self::Tasks if debug >= 2 => tasks::listing(runtime, false),
            Self::TaskLeak if debug >= 2 => tasks::listing(runtime, true),
            Self::Goroutine | Self::Tasks => tasks::census(runtime).text(self.name()),
            Self::TaskLeak => tasks::suspects_text(),
            Self::ThreadCreate => threads::counts().text(self.name()),
        })
    }

    /// For the index: tasks, threads, or stacks of the heap. 0 where there is no such profile.
    pub(super) fn count(self, runtime: Option<&Handle>) -> i64 {
        match self {
            Self::Goroutine | Self::Tasks => {
                i64::try_from(tasks::alive(runtime)).unwrap_or(i64::MAX)
            }
            _ => match self.snapshot(runtime) {
                Ok(Snapshot::Heap(snapshot)) => snapshot.stacks(),
                Ok(Snapshot::Block(holds)) => i64::try_from(holds.count()).unwrap_or(i64::MAX),
                Ok(Snapshot::Counts(counts)) => counts.total(),
                Err(_) => 0,
            },
        }
    }
}

impl Snapshot {
    fn heap(self) -> Option<HeapSnapshot> {
        match self {
            Self::Heap(snapshot) => Some(snapshot),
            Self::Block(_) | Self::Counts(_) => None,
        }
    }

    fn block(self) -> Option<BlockSnapshot> {
        match self {
            Self::Block(holds) => Some(holds),
            Self::Heap(_) | Self::Counts(_) => None,
        }
    }

    fn counts(self) -> Option<Counts> {
        match self {
            Self::Counts(counts) => Some(counts),
            Self::Heap(_) | Self::Block(_) => None,
        }
    }
}
