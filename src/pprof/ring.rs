//! Where a signal handler leaves stacks for the capture to collect.
//!
//! In: stacks from any thread, also from inside a signal handler. Out: the same stacks, once each. Never: a lock, an
//! allocation or a wait in [`Ring::put`]; a stack that finds no room is counted as dropped.

use std::sync::atomic::{AtomicI32, AtomicU32, AtomicU64, AtomicUsize, Ordering};

/// Frames kept of one stack; deeper ones lose their root.
pub(super) const MAX_FRAMES: usize = 96;

/// The capture collects ten times a second: room for 200 busy threads at 99 Hz.
const SLOTS: usize = 2048;

const FREE: u32 = 0;
const WRITING: u32 = 1;
const FULL: u32 = 2;

/// A fixed number of slots, each with an owner at any time: the ring, one handler, or the collector.
#[derive(Debug)]
pub(super) struct Ring {
    slots: Box<[Slot]>,
    next: AtomicUsize,
    dropped: AtomicU64,
}

#[derive(Debug)]
struct Slot {
    state: AtomicU32,
    thread: AtomicI32,
    weight: AtomicU32,
    depth: AtomicUsize,
    frames: [AtomicUsize; MAX_FRAMES],
}

/// A stack that was taken from the ring.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Stack {
    /// The kernel's thread id.
    pub thread: i32,
    /// How many expiries of the thread's timer it stands for.
    pub weight: u32,
    /// The interrupted instruction, then return addresses.
    pub frames: Vec<usize>,
}

impl Ring {
    /// All slots free.
    pub(super) fn new() -> Self {
        let slots = (0..SLOTS).map(|_| Slot::free()).collect();
        Self { slots, next: AtomicUsize::new(0), dropped: AtomicU64::new(0) }
    }

    /// Stores the frames that `walk` hands to its argument until that returns false.
    pub(super) fn put(
        &self,
        thread: i32,
        weight: u32,
        walk: impl FnOnce(&mut dyn FnMut(usize) -> bool),
    ) {
        let index = self.next.fetch_add(1, Ordering::Relaxed) % SLOTS;
        let slot = &self.slots[index];
        if slot.state.compare_exchange(FREE, WRITING, Ordering::Acquire, Ordering::Relaxed).is_err()
        {
            self.dropped.fetch_add(1, Ordering::Relaxed);
            return;
        }
        let mut depth = 0;
        walk(&mut |frame| {
            slot.frames[depth].store(frame, Ordering::Relaxed);
            depth += 1;
            depth < MAX_FRAMES
        });
        slot.thread.store(thread, Ordering::Relaxed);
        slot.weight.store(weight, Ordering::Relaxed);
        slot.depth.store(depth, Ordering::Relaxed);
        slot.state.store(FULL, Ordering::Release);
    }

    /// Takes every finished stack.
    pub(super) fn take(&self, mut collect: impl FnMut(Stack)) {
        for slot in &self.slots {
            if slot.state.load(Ordering::Acquire) == FULL {
                let frames = slot.frames[..slot.depth.load(Ordering::Relaxed)].iter();
                collect(Stack {
                    thread: slot.thread.load(Ordering::Relaxed),
                    weight: slot.weight.load(Ordering::Relaxed),
                    frames: frames.map(|frame| frame.load(Ordering::Relaxed)).collect(),
                });
                slot.state.store(FREE, Ordering::Release);
            }
        }
    }

    /// How many stacks found no room since the last call.
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
            depth: AtomicUsize::new(0),
            frames: [const { AtomicUsize::new(0) }; MAX_FRAMES],
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put(ring: &Ring, frames: usize) {
        ring.put(7, 1, |store| {
            for frame in 1..=frames {
                if !store(frame) {
                    break;
                }
            }
        });
    }

    fn take(ring: &Ring) -> Vec<Stack> {
        let mut stacks = Vec::new();
        ring.take(|stack| stacks.push(stack));
        stacks
    }

    #[test]
    fn a_stack_is_taken_once() {
        let ring = Ring::new();
        put(&ring, 2);
        assert_eq!(take(&ring), [Stack { thread: 7, weight: 1, frames: vec![1, 2] }]);
        assert_eq!(take(&ring), []);
    }

    #[test]
    fn a_deep_stack_keeps_its_leaf() {
        let ring = Ring::new();
        put(&ring, MAX_FRAMES + 5);
        assert_eq!(take(&ring)[0].frames, (1..=MAX_FRAMES).collect::<Vec<_>>());
    }

    #[test]
    fn what_finds_no_room_is_counted_and_room_comes_back() {
        let ring = Ring::new();
        for _ in 0..SLOTS + 3 {
            put(&ring, 1);
        }
        assert_eq!((take(&ring).len(), ring.take_dropped(), ring.take_dropped()), (SLOTS, 3, 0));
        put(&ring, 1);
        assert_eq!(take(&ring).len(), 1);
    }
}
