//! Which thread runs which worker of a tokio runtime.
//!
//! In: what a thread says of itself: in a poll of ours, or when it polls a labelled future. Out: the thread of a worker, and
//! whether tokio has run on the calling thread. Never: a guess by a thread's name (a thread that a worker starts inherits
//! it), nor a thread that has ended: its seat goes with it, so that nobody asks a stranger that got its id.
//!
//! tokio tells a worker its index (`worker_index`), and nobody else which thread that is.

use std::cell::Cell;

use parking_lot::Mutex;
use tokio::runtime::{Handle, Id};

use super::sys;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Seat {
    runtime: Id,
    worker: usize,
    thread: u32,
    /// Noted since the runtime's workers were last to be looked for again.
    recent: bool,
}

/// Of each thread at most one, the newest last: `block_in_place` moves a worker to another thread.
static SEATS: Mutex<Vec<Seat>> = Mutex::new(Vec::new());

/// The worker that this thread was last seen as.
struct Here(Cell<Option<usize>>);

impl Drop for Here {
    fn drop(&mut self) {
        forget(sys::thread_id());
    }
}

thread_local! {
    static HERE: Here = const { Here(Cell::new(None)) };
    // Without a destructor or lazy start, so that reading it in a signal handler is a plain load.
    static TOKIO_RAN: Cell<bool> = const { Cell::new(false) };
}

/// Whether this thread was noted as a worker, so that tokio's thread-locals are set up here: their first use registers a
/// destructor, which allocates. For signal handlers.
pub(crate) fn tokio_ran_here() -> bool {
    TOKIO_RAN.get()
}

/// Notes which worker the calling thread is. Takes a lock.
pub(crate) fn note() {
    if let Some(worker) = worker_here() {
        note_as(worker);
    }
}

/// The same where it may be known already. Some nanoseconds, but for the first time on each thread.
pub(crate) fn note_if_new() {
    if let Some(worker) = worker_here()
        && HERE.try_with(|here| here.0.get() != Some(worker)) == Ok(true)
    {
        note_as(worker);
    }
}

fn worker_here() -> Option<usize> {
    let worker = tokio::runtime::worker_index()?;
    // After tokio's own: the answer above has set it up.
    TOKIO_RAN.set(true);
    Some(worker)
}

fn note_as(worker: usize) {
    // A thread that is ending would leave its seat behind.
    if HERE.try_with(|here| here.0.set(Some(worker))).is_ok()
        && let Ok(runtime) = Handle::try_current()
    {
        let seat = Seat { runtime: runtime.id(), worker, thread: sys::thread_id(), recent: true };
        let mut seats = SEATS.lock();
        if let Some(known) = seats.last_mut().filter(|known| known.thread == seat.thread) {
            *known = seat;
        } else {
            seats.retain(|known| known.thread != seat.thread);
            seats.push(seat);
        }
    }
}

/// The thread that was last seen as that worker.
pub(crate) fn thread_of(runtime: Id, worker: usize) -> Option<u32> {
    find(runtime, worker).map(|seat| seat.thread)
}

/// Whether that worker has been seen since the last [`look_again`].
pub(super) fn is_recent(runtime: Id, worker: usize) -> bool {
    find(runtime, worker).is_some_and(|seat| seat.recent)
}

/// The workers of that runtime are to be looked for again; until they are found they keep their seats.
pub(super) fn look_again(runtime: Id) {
    let mut seats = SEATS.lock();
    seats.iter_mut().filter(|seat| seat.runtime == runtime).for_each(|seat| seat.recent = false);
}

/// Forgets what turned out to be wrong.
pub(crate) fn forget(thread: u32) {
    SEATS.lock().retain(|seat| seat.thread != thread);
}

fn find(runtime: Id, worker: usize) -> Option<Seat> {
    let seats = SEATS.lock();
    let is_it = |seat: &&Seat| seat.runtime == runtime && seat.worker == worker;
    seats.iter().rev().find(is_it).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(flavor = "multi_thread", worker_threads = 1)]
    async fn a_worker_has_a_seat_from_its_first_note_until_its_thread_ends() {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .build()
            .expect("a runtime");
        let id = runtime.handle().id();
        assert_eq!(thread_of(id, 0), None);
        let before_and_after = runtime.spawn(async {
            let before = tokio_ran_here();
            note_if_new();
            (before, tokio_ran_here(), sys::thread_id())
        });
        let (before, after, thread) = before_and_after.await.expect("it ends");
        assert_eq!((before, after, thread_of(id, 0)), (false, true, Some(thread)));
        assert!(is_recent(id, 0));

        look_again(id);
        runtime.spawn(async { note_if_new() }).await.expect("it ends");
        assert_eq!((is_recent(id, 0), thread_of(id, 0)), (false, Some(thread)));
        runtime.spawn(async { note() }).await.expect("it ends");
        assert!(is_recent(id, 0));

        let ended = tokio::task::spawn_blocking(move || drop(runtime));
        ended.await.expect("it ends");
        assert_eq!(thread_of(id, 0), None);
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 1)]
    async fn a_thread_that_a_worker_started_has_its_name_and_no_seat() {
        let (name, seen) = tokio::spawn(async {
            note();
            let stranger = std::thread::spawn(|| {
                let name = std::fs::read_to_string("/proc/thread-self/comm").expect("procfs");
                note();
                (name, tokio_ran_here())
            });
            stranger.join().expect("it ends")
        })
        .await
        .expect("it ends");
        assert_eq!((name.trim_end(), seen), ("tokio-rt-worker", false));
    }
}
