//! Which labels sampled objects were allocated under. jemalloc's dump does not say; its hooks tell of each sampled object.
//!
//! In: sampled allocations and frees, told from inside `malloc`. Out: the labelled part of each stack. Never: an allocation,
//! a panic or a wait for a lock, for the allocator waits; never more than a fixed table. What finds no room, or the table in
//! use, is counted; its memory stays in the profile without labels.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError, TryLockError};

use super::super::labels::{self, Labels};

/// Live objects known, and groups of equal stack, labels and size. Powers of two.
const OBJECTS: usize = 1 << 14;
const GROUPS: usize = 1 << 12;
/// Places looked at for one entry.
const WINDOW: usize = 16;

/// Taken once per sample, so about once per 512 KiB allocated.
static TABLE: Mutex<Table> = Mutex::new(Table::EMPTY);
/// Samples and frees that found the table in use.
static MISSED: AtomicU64 = AtomicU64::new(0);
/// Tries of a hook to find the table free; another hook has it for less than a microsecond.
const TRIES: u32 = 100;
/// Whether the table ever had an entry: without labels, frees do not look at it.
static USED: AtomicBool = AtomicBool::new(false);

/// Objects of one stack, one size and the same labels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Group {
    /// [`stack_hash`].
    pub stack: u64,
    pub labels: Labels,
    /// Of one object; 0 for no group.
    pub bytes: u64,
    /// Sampled and not freed.
    pub live: u64,
    /// Sampled since the start.
    pub all: u64,
}

#[derive(Clone, Copy, Debug)]
struct Object {
    /// 0 for none.
    address: usize,
    group: usize,
}

#[derive(Debug)]
struct Table {
    objects: [Object; OBJECTS],
    groups: [Group; GROUPS],
    lost: u64,
}

const NO_OBJECT: Object = Object { address: 0, group: 0 };
const NO_GROUP: Group = Group { stack: 0, labels: Labels::NONE, bytes: 0, live: 0, all: 0 };

/// What the table held at one time.
#[derive(Clone, Debug, Default)]
pub(super) struct Known {
    pub groups: Vec<Group>,
    /// Objects that found no room, and what was missed while the table was in use.
    pub lost: u64,
}

/// An object was sampled. Called inside `malloc`; `frames` are its return addresses, leaf first.
pub(super) fn sampled(address: usize, bytes: usize, frames: &[usize]) {
    // A trace is one request: its memory is that of its endpoint.
    let labels = Labels { trace: 0, ..labels::current() };
    if labels == Labels::NONE {
        return;
    }
    USED.store(true, Ordering::Relaxed);
    let bytes = u64::try_from(bytes).unwrap_or(u64::MAX);
    let stack = stack_hash(frames.iter().map(|frame| u64::try_from(*frame).unwrap_or(0)));
    in_a_hook(&TABLE, &MISSED, |table| {
        table.sampled(address, Group { stack, labels, bytes, live: 0, all: 0 });
    });
}

/// A sampled object is about to be freed. Called inside `free`.
pub(super) fn freed(address: usize) {
    if USED.load(Ordering::Relaxed) {
        in_a_hook(&TABLE, &MISSED, |table| table.freed(address));
    }
}

/// Tells the table, or counts that it was in use: who has it may wait for this very thread's allocation.
fn in_a_hook(table: &Mutex<Table>, missed: &AtomicU64, tell: impl FnOnce(&mut Table)) {
    for _ in 0..TRIES {
        match table.try_lock() {
            Ok(mut table) => return tell(&mut table),
            Err(TryLockError::Poisoned(table)) => return tell(&mut table.into_inner()),
            Err(TryLockError::WouldBlock) => std::hint::spin_loop(),
        }
    }
    missed.fetch_add(1, Ordering::Relaxed);
}

/// All that is known.
pub(super) fn known() -> Known {
    // The room is taken before the lock: an allocation under it could be sampled, and wait for itself.
    let mut groups = Vec::with_capacity(GROUPS);
    let table = table();
    groups.extend(table.groups.iter().filter(|group| group.bytes != 0));
    Known { lost: table.lost.saturating_add(MISSED.load(Ordering::Relaxed)), groups }
}

/// Forgets everything, as jemalloc does when its interval changes.
pub(super) fn forget() {
    let mut table = table();
    // In place: a table is larger than a thread's stack should hold.
    table.objects.fill(NO_OBJECT);
    table.groups.fill(NO_GROUP);
    table.lost = 0;
    MISSED.store(0, Ordering::Relaxed);
}

/// Of the addresses as the dump has them, leaf first.
pub(super) fn stack_hash(frames: impl Iterator<Item = u64>) -> u64 {
    frames.fold(0xcbf2_9ce4_8422_2325, mix)
}

/// FNV-1a over words, with a rotation so that high bits count too.
fn mix(hash: u64, word: u64) -> u64 {
    (hash ^ word).wrapping_mul(0x0100_0000_01b3).rotate_left(23)
}

fn table() -> MutexGuard<'static, Table> {
    TABLE.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Table {
    const EMPTY: Self = Self { objects: [NO_OBJECT; OBJECTS], groups: [NO_GROUP; GROUPS], lost: 0 };

    fn sampled(&mut self, address: usize, new: Group) {
        let of_object = window(u64::try_from(address).unwrap_or(0), OBJECTS);
        // The same address again: its free was not told.
        let place = of_object
            .clone()
            .find(|place| self.objects[*place].address == address)
            .inspect(|place| Self::leave(&mut self.groups, self.objects[*place].group))
            .or_else(|| of_object.clone().find(|place| self.objects[*place].address == 0));
        let same = |group: &Group| {
            (group.stack, group.labels, group.bytes) == (new.stack, new.labels, new.bytes)
        };
        let group = window(mix(new.stack, new.bytes), GROUPS)
            .find(|place| same(&self.groups[*place]) || self.groups[*place].bytes == 0);
        let (Some(place), Some(group)) = (place, group) else {
            if let Some(place) = place {
                self.objects[place].address = 0;
            }
            self.lost = self.lost.saturating_add(1);
            return;
        };
        if self.groups[group].bytes == 0 {
            self.groups[group] = new;
        }
        self.groups[group].live = self.groups[group].live.saturating_add(1);
        self.groups[group].all = self.groups[group].all.saturating_add(1);
        self.objects[place] = Object { address, group };
    }

    fn freed(&mut self, address: usize) {
        let found = window(u64::try_from(address).unwrap_or(0), OBJECTS)
            .find(|place| self.objects[*place].address == address);
        if let Some(place) = found {
            self.objects[place].address = 0;
            Self::leave(&mut self.groups, self.objects[place].group);
        }
    }

    fn leave(groups: &mut [Group; GROUPS], group: usize) {
        groups[group].live = groups[group].live.saturating_sub(1);
    }
}

/// The places for a key in a table of `size`, a power of two.
fn window(key: u64, size: usize) -> impl Iterator<Item = usize> + Clone {
    // Fibonacci hashing: the high bits of this product differ also for addresses that are multiples of a page.
    let hash = key.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let start = usize::try_from(hash >> 40).unwrap_or(0) >> (24 - size.trailing_zeros());
    (0..WINDOW).map(move |step| start.wrapping_add(step) & (size - 1))
}

#[cfg(test)]
mod tests {
    use super::super::super::labels::Name;
    use super::*;

    fn group(stack: u64, task: &str, bytes: u64) -> Group {
        let labels = Labels { task: Name::of(task), ..Labels::NONE };
        Group { stack, labels, bytes, live: 0, all: 0 }
    }

    fn table() -> Box<Table> {
        Box::new(Table::EMPTY)
    }

    fn live(table: &Table, of: Group) -> Option<(u64, u64)> {
        let same = |group: &&Group| {
            (group.stack, group.labels, group.bytes) == (of.stack, of.labels, of.bytes)
        };
        table.groups.iter().find(same).map(|group| (group.live, group.all))
    }

    #[test]
    fn objects_count_under_their_labels_until_they_are_freed() {
        let mut table = table();
        let (one, two) = (group(1, "a.rs:1", 64), group(1, "a.rs:2", 64));
        for address in 1..=10 {
            table.sampled(address * 4096, if address <= 4 { one } else { two });
        }
        table.freed(4096);
        table.freed(4096);
        table.freed(7);
        assert_eq!((live(&table, one), live(&table, two)), (Some((3, 4)), Some((6, 6))));
        // An address that comes again without a free was freed unseen.
        table.sampled(2 * 4096, two);
        assert_eq!((live(&table, one), live(&table, two)), (Some((2, 4)), Some((7, 7))));
    }

    #[test]
    fn a_hook_does_not_wait_for_the_table_but_counts_what_it_missed() {
        static TABLE: Mutex<Table> = Mutex::new(Table::EMPTY);
        let missed = AtomicU64::new(0);
        let one = group(1, "a.rs:1", 64);
        let in_use = TABLE.lock().expect("not poisoned");
        in_a_hook(&TABLE, &missed, |table| table.sampled(4096, one));
        in_a_hook(&TABLE, &missed, |table| table.freed(4096));
        drop(in_use);
        in_a_hook(&TABLE, &missed, |table| table.sampled(8192, one));
        let live = live(&TABLE.lock().expect("not poisoned"), one);
        assert_eq!((live, missed.into_inner()), (Some((1, 1)), 2));
    }

    #[test]
    fn what_finds_no_room_is_counted_and_room_comes_back() {
        let mut table = table();
        let same = group(1, "a.rs:1", 64);
        for address in 1..=2 * OBJECTS {
            table.sampled(address * 4096, same);
        }
        let (kept, _) = live(&table, same).expect("some have room");
        let all = u64::try_from(2 * OBJECTS).expect("small");
        assert_eq!(kept + table.lost, all);
        assert!(kept > all / 4, "{kept}");
        for address in 1..=2 * OBJECTS {
            table.freed(address * 4096);
        }
        assert_eq!(live(&table, same).map(|(live, _)| live), Some(0));
        for stack in 0..all {
            table.sampled(8, group(stack, "a.rs:1", 64));
        }
        assert!(table.lost > all - kept, "groups are bounded too");
    }
}
