//! What this thread works on right now, for samplers to read: the endpoint, the task and the trace of the request.
//!
//! In: the layer and the futures that poll a request or a task. Out: labels of CPU and heap samples, which `go tool pprof`
//! shows as tags. Never: a lock or an allocation when they are read, nor when they are set but for the first time on a
//! thread. They may be read in a signal handler that interrupts their being set: such a sample has no labels instead of
//! mixed ones.

use std::cell::Cell;
use std::sync::atomic::{Ordering, compiler_fence};

use parking_lot::Mutex;

use crate::signals::seats;

/// A label's value, kept for the life of the program. There are few: endpoints are bounded, spawn sites stand in the code.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Name(u32);

/// Names kept; those after it are `other`.
const MAX_NAMES: usize = 4_096;

/// The first is no name, the second that of all that find no room.
static NAMES: Mutex<Vec<Box<str>>> = Mutex::new(Vec::new());

impl Name {
    /// No label.
    pub const NONE: Self = Self(0);
    const OTHER: Self = Self(1);

    /// For a place that holds only numbers.
    pub(super) const fn index(self) -> u32 {
        self.0
    }

    /// The name that [`Self::index`] told.
    pub(super) const fn from_index(index: u32) -> Self {
        Self(index)
    }

    /// The name of that text, a new one if there is none. Takes a lock and looks through all names: for set-up.
    #[must_use]
    pub fn of(text: &str) -> Self {
        if text.is_empty() {
            return Self::NONE;
        }
        let mut names = NAMES.lock();
        if names.is_empty() {
            names.extend([Box::from(""), Box::from("other")]);
        }
        let index = names.iter().position(|name| **name == *text).or_else(|| {
            (names.len() < MAX_NAMES).then(|| {
                names.push(text.into());
                names.len() - 1
            })
        });
        index.and_then(|index| u32::try_from(index).ok()).map_or(Self::OTHER, Self)
    }

    /// Its text; empty for no label.
    #[must_use]
    pub fn text(self) -> String {
        let index = usize::try_from(self.0).unwrap_or(usize::MAX);
        NAMES.lock().get(index).map(ToString::to_string).unwrap_or_default()
    }
}

/// The labels of what a thread does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Labels {
    /// Method and path of the request, as the latency series have it.
    pub endpoint: Name,
    /// Where the task was spawned, as `file:line`.
    pub task: Name,
    /// The W3C trace id of the request; 0 for none.
    pub trace: u128,
}

impl Labels {
    /// Labels nothing.
    pub const NONE: Self = Self { endpoint: Name::NONE, task: Name::NONE, trace: 0 };

    /// Endpoint, task and trace id as tags have them: the last in hex, as W3C writes it; empty for none.
    pub(super) fn texts(&self) -> (String, String, String) {
        let trace = if self.trace == 0 { String::new() } else { format!("{:032x}", self.trace) };
        (self.endpoint.text(), self.task.text(), trace)
    }
}

struct Slot {
    labels: Cell<Labels>,
    changing: Cell<bool>,
    /// [`Labelled`] values alive, so that one inside another is told from the next.
    depth: Cell<u32>,
    /// Outermost ones so far.
    polls: Cell<u32>,
}

thread_local! {
    // Without a destructor or lazy start, so that reading it in a signal handler is a plain load.
    static SLOT: Slot = const {
        Slot {
            labels: Cell::new(Labels::NONE),
            changing: Cell::new(false),
            depth: Cell::new(0),
            polls: Cell::new(0),
        }
    };
}

/// Puts the former labels back when dropped.
#[derive(Debug)]
#[must_use = "the labels end with this value"]
pub struct Labelled {
    former: Labels,
    /// It belongs to this thread's slot.
    not_send: std::marker::PhantomData<*const ()>,
}

impl Labelled {
    /// Changes this thread's labels: `change` gets the present ones, so that a request keeps its task's label.
    pub fn enter(change: impl FnOnce(Labels) -> Labels) -> Self {
        // Whoever polls with labels runs on a worker: the profile `block` wants to know which.
        seats::note_if_new();
        let former = SLOT.with(|slot| {
            if slot.depth.get() == 0 {
                slot.polls.set(slot.polls.get().wrapping_add(1));
            }
            slot.depth.set(slot.depth.get() + 1);
            slot.labels.get()
        });
        set(change(former));
        Self { former, not_send: std::marker::PhantomData }
    }
}

impl Drop for Labelled {
    fn drop(&mut self) {
        set(self.former);
        SLOT.with(|slot| slot.depth.set(slot.depth.get().saturating_sub(1)));
    }
}

fn set(labels: Labels) {
    SLOT.with(|slot| {
        slot.changing.set(true);
        // The handler runs on this very thread: only the compiler could reorder.
        compiler_fence(Ordering::SeqCst);
        slot.labels.set(labels);
        compiler_fence(Ordering::SeqCst);
        slot.changing.set(false);
    });
}

/// The labels of the calling thread, also from inside a signal handler.
pub(super) fn current() -> Labels {
    SLOT.with(|slot| {
        if slot.changing.get() {
            return Labels::NONE;
        }
        compiler_fence(Ordering::SeqCst);
        slot.labels.get()
    })
}

/// Tells the labelled polls of the calling thread apart, also from inside a signal handler; 0 while there is none.
pub(super) fn current_poll() -> u32 {
    SLOT.with(|slot| if slot.depth.get() == 0 { 0 } else { slot.polls.get() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_nest_and_are_the_threads_own() {
        let task = Name::of("src/main.rs:7");
        let outer = Labelled::enter(|labels| Labels { task, ..labels });
        let inner = Labelled::enter(|labels| Labels { trace: 9, ..labels });
        assert_eq!(current(), Labels { task, trace: 9, ..Labels::NONE });
        let other_thread = std::thread::spawn(current).join().expect("reading does not panic");
        assert_eq!(other_thread, Labels::NONE);
        drop(inner);
        assert_eq!(current(), Labels { task, ..Labels::NONE });
        drop(outer);
        assert_eq!(current(), Labels::NONE);
    }

    #[test]
    fn each_outermost_poll_has_a_number_of_its_own() {
        let poll = |inner: usize| {
            let _outer = Labelled::enter(|labels| labels);
            let numbers: Vec<u32> = (0..=inner)
                .map(|_| {
                    let _inner = Labelled::enter(|labels| labels);
                    current_poll()
                })
                .collect();
            assert!(numbers.iter().all(|number| *number == current_poll()), "{numbers:?}");
            current_poll()
        };
        let (first, second) = (poll(3), poll(0));
        assert!(first != second && first != 0 && second != 0, "{first} {second}");
        assert_eq!(current_poll(), 0);
    }

    #[test]
    fn one_text_is_one_name_and_none_is_empty() {
        let name = Name::of("GET /names");
        assert_eq!((name, Name::of("GET /names")), (Name::of("GET /names"), name));
        assert_ne!(name, Name::of("GET /others"));
        assert_eq!((name.text().as_str(), Name::NONE.text().as_str()), ("GET /names", ""));
        assert_eq!(Name::of(""), Name::NONE);
    }

    #[test]
    fn labels_that_are_being_changed_are_not_read() {
        SLOT.with(|slot| slot.changing.set(true));
        assert_eq!(current(), Labels::NONE);
        SLOT.with(|slot| slot.changing.set(false));
    }
}
