//! Where a signal handler leaves stacks for a collector.
//!
//! In: stacks from any thread, also from inside a signal handler. Out: the same stacks, once each. Never: a lock, an
//! allocation or a wait in [`Ring::put`]; a stack that finds no room is counted as dropped. It knows no signal and no
//! clock: any threads can drive it.

#[cfg(loom)]
use loom::sync::atomic::{AtomicI32, AtomicU32, AtomicU64, AtomicUsize, Ordering};
#[cfg(not(loom))]
use std::sync::atomic::{AtomicI32, AtomicU32, AtomicU64, AtomicUsize, Ordering};

use super::labels::{Labels, Name};

/// Frames kept of one stack; deeper ones lose their root.
pub(super) const MAX_FRAMES: usize = if cfg!(loom) { 2 } else { 96 };

const FREE: u32 = 0;
const WRITING: u32 = 1;
const FULL: u32 = 2;

/// No worker of tokio.
const NO_WORKER: u32 = u32::MAX;

/// A fixed number of slots, each with an owner at any time: the ring, one handler, or the collector.
#[derive(Debug)]
pub(super) struct Ring {
    slots: Box<[Slot]>,
    next: AtomicUsize,
    dropped: AtomicU64,
}

/// What a sample says beside its frames.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Head {
    /// The kernel's thread id.
    pub thread: i32,
    /// How many expiries of the thread's timer it stands for.
    pub weight: u32,
    /// What the thread works on.
    pub labels: Labels,
    /// What tokio's worker polls there, if that was asked for.
    pub poll: Option<Poll>,
}

/// A poll of a task, as its worker knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Poll {
    /// The index of the worker in its runtime.
    pub worker: u32,
    /// Tells tasks apart; 0 is the future of `block_on`, or none at all.
    pub task: u64,
    /// Tells the labelled polls of one thread apart; 0 while there is none.
    pub part: u32,
}

#[derive(Debug)]
struct Slot {
    state: AtomicU32,
    thread: AtomicI32,
    weight: AtomicU32,
    endpoint: AtomicU32,
    task_name: AtomicU32,
    trace: [AtomicU64; 2],
    worker: AtomicU32,
    task: AtomicU64,
    part: AtomicU32,
    depth: AtomicUsize,
    frames: [AtomicUsize; MAX_FRAMES],
}

impl Ring {
    /// So many slots, at least one, all free.
    pub(super) fn new(slots: usize) -> Self {
        let slots = (0..slots.max(1)).map(|_| Slot::free()).collect();
        Self { slots, next: AtomicUsize::new(0), dropped: AtomicU64::new(0) }
    }

    /// Stores the frames that `walk` hands to its argument until that returns false.
    pub(super) fn put(&self, head: &Head, walk: impl FnOnce(&mut dyn FnMut(usize) -> bool)) {
        let index = self.next.fetch_add(1, Ordering::Relaxed) % self.slots.len();
        let slot = &self.slots[index];
        if slot.state.compare_exchange(FREE, WRITING, Ordering::Acquire, Ordering::Relaxed).is_err()
        {
            self.dropped.fetch_add(head.weight.into(), Ordering::Relaxed);
            return;
        }
        let mut depth = 0;
        walk(&mut |frame| {
            slot.frames[depth].store(frame, Ordering::Relaxed);
            depth += 1;
            depth < MAX_FRAMES
        });
        slot.depth.store(depth, Ordering::Relaxed);
        slot.store(head);
        slot.state.store(FULL, Ordering::Release);
    }

    /// Takes every finished stack: its head, and its frames: the interrupted instruction, then return addresses.
    pub(super) fn take(&self, mut collect: impl FnMut(Head, &[usize])) {
        let mut frames = [0; MAX_FRAMES];
        for slot in &self.slots {
            if slot.state.load(Ordering::Acquire) == FULL {
                let depth = slot.depth.load(Ordering::Relaxed);
                for (frame, stored) in frames.iter_mut().zip(&slot.frames[..depth]) {
                    *frame = stored.load(Ordering::Relaxed);
                }
                let head = slot.load();
                slot.state.store(FREE, Ordering::Release);
                collect(head, &frames[..depth]);
            }
        }
    }

    /// The weight of the stacks that found no room since the last call.
    pub(super) fn take_dropped(&self) -> u64 {
        self.dropped.swap(0, Ordering::Relaxed)
    }
}

impl Slot {
    fn free() -> Self {
        Self {
            state: AtomicU32::new(FREE),
            thread: AtomicI32::new(0),
            weight: AtomicU32::new(0),
            endpoint: AtomicU32::new(0),
            task_name: AtomicU32::new(0),
            trace: [AtomicU64::new(0), AtomicU64::new(0)],
            worker: AtomicU32::new(NO_WORKER),
            task: AtomicU64::new(0),
            part: AtomicU32::new(0),
            depth: AtomicUsize::new(0),
            frames: std::array::from_fn(|_| AtomicUsize::new(0)),
        }
    }

    fn store(&self, head: &Head) {
        let Head { thread, weight, labels, poll } = *head;
        self.thread.store(thread, Ordering::Relaxed);
        self.weight.store(weight, Ordering::Relaxed);
        self.endpoint.store(labels.endpoint.index(), Ordering::Relaxed);
        self.task_name.store(labels.task.index(), Ordering::Relaxed);
        for (half, stored) in halves(labels.trace).into_iter().zip(&self.trace) {
            stored.store(half, Ordering::Relaxed);
        }
        self.worker.store(poll.map_or(NO_WORKER, |poll| poll.worker), Ordering::Relaxed);
        self.task.store(poll.map_or(0, |poll| poll.task), Ordering::Relaxed);
        self.part.store(poll.map_or(0, |poll| poll.part), Ordering::Relaxed);
    }

    fn load(&self) -> Head {
        let [high, low] = [0, 1].map(|half| u128::from(self.trace[half].load(Ordering::Relaxed)));
        let worker = self.worker.load(Ordering::Relaxed);
        let task = self.task.load(Ordering::Relaxed);
        let part = self.part.load(Ordering::Relaxed);
        Head {
            thread: self.thread.load(Ordering::Relaxed),
            weight: self.weight.load(Ordering::Relaxed),
            labels: Labels {
                endpoint: Name::from_index(self.endpoint.load(Ordering::Relaxed)),
                task: Name::from_index(self.task_name.load(Ordering::Relaxed)),
                trace: high << 64 | low,
            },
            poll: (worker != NO_WORKER).then_some(Poll { worker, task, part }),
        }
    }
}

/// High half first.
fn halves(trace: u128) -> [u64; 2] {
    let bytes = trace.to_be_bytes();
    let half = |start: usize| {
        u64::from_be_bytes(bytes[start..start + 8].try_into().expect("eight of sixteen bytes"))
    };
    [half(0), half(8)]
}

#[cfg(test)]
mod tests {
    use super::*;

    const SLOTS: usize = 8;

    fn head() -> Head {
        let labels =
            Labels { endpoint: Name::from_index(3), task: Name::from_index(4), trace: 5 << 64 | 6 };
        Head { thread: 7, weight: 2, labels, poll: Some(Poll { worker: 1, task: 9, part: 8 }) }
    }

    fn put(ring: &Ring, frames: usize) {
        ring.put(&head(), |store| {
            for frame in 1..=frames {
                if !store(frame) {
                    break;
                }
            }
        });
    }

    fn take(ring: &Ring) -> Vec<(Head, Vec<usize>)> {
        let mut stacks = Vec::new();
        ring.take(|head, frames| stacks.push((head, frames.to_vec())));
        stacks
    }

    #[test]
    fn a_stack_is_taken_once_with_all_that_was_said_of_it() {
        let ring = Ring::new(SLOTS);
        put(&ring, 2);
        assert_eq!(take(&ring), [(head(), vec![1, 2])]);
        assert_eq!(take(&ring), []);
    }

    #[test]
    fn a_deep_stack_keeps_its_leaf() {
        let ring = Ring::new(SLOTS);
        put(&ring, MAX_FRAMES + 5);
        assert_eq!(take(&ring)[0].1, (1..=MAX_FRAMES).collect::<Vec<_>>());
    }

    #[test]
    fn what_finds_no_room_is_counted_by_weight_and_room_comes_back() {
        let ring = Ring::new(SLOTS);
        for _ in 0..SLOTS + 3 {
            put(&ring, 1);
        }
        assert_eq!((take(&ring).len(), ring.take_dropped(), ring.take_dropped()), (SLOTS, 6, 0));
        put(&ring, 1);
        assert_eq!(take(&ring).len(), 1);
    }
}
