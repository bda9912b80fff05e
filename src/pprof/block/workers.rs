//! Which thread runs which worker of a tokio runtime.
//!
//! In: what a thread says of itself when it polls a labelled future, or a task of ours. Out: threads to ask. Never: a
//! thread that has ended: its entry goes with it, so that nobody asks a stranger that got its id.
//!
//! tokio tells a worker its index (`worker_index`), and nobody else which thread that is. A runtime whose builder was ours
//! could note it when its threads start; the service's runtime is there before us.

use std::cell::Cell;
use std::collections::HashSet;

use parking_lot::Mutex;
use tokio::runtime::{Handle, Id};

use super::super::sampler::{thread_name, threads_of_process};
use super::super::sys;

/// tokio's name for its threads, unless the builder was given another. For a runtime of which no thread is known.
const DEFAULT_NAME: &str = "tokio-rt-worker";

#[derive(Clone, Copy, Debug)]
struct Known {
    runtime: Id,
    worker: usize,
    thread: i32,
}

/// The newest last: `block_in_place` moves a worker to another thread.
static KNOWN: Mutex<Vec<Known>> = Mutex::new(Vec::new());

/// The worker that this thread was seen as.
struct Here(Cell<Option<usize>>);

impl Drop for Here {
    fn drop(&mut self) {
        let thread = sys::this_thread();
        KNOWN.lock().retain(|known| known.thread != thread);
    }
}

thread_local! {
    static HERE: Here = const { Here(Cell::new(None)) };
}

/// Notes which worker the calling thread is. Some nanoseconds, but for the first time on each thread.
pub(in crate::pprof) fn note_this_thread() {
    let Some(worker) = tokio::runtime::worker_index() else {
        return;
    };
    let is_new = HERE.try_with(|here| here.0.replace(Some(worker)) != Some(worker));
    if is_new == Ok(true)
        && let Ok(runtime) = Handle::try_current()
    {
        let (runtime, thread) = (runtime.id(), sys::this_thread());
        let mut known = KNOWN.lock();
        known.retain(|known| known.thread != thread);
        known.push(Known { runtime, worker, thread });
    }
}

/// The thread that was last seen as that worker.
pub(super) fn thread_of(runtime: Id, worker: usize) -> Option<i32> {
    let known = KNOWN.lock();
    let is_it = |known: &&Known| known.runtime == runtime && known.worker == worker;
    known.iter().rev().find(is_it).map(|known| known.thread)
}

/// Forgets what turned out to be wrong.
pub(super) fn forget(thread: i32) {
    KNOWN.lock().retain(|known| known.thread != thread);
}

/// Threads that may be workers of the runtime and are not known as any: those with a name of its workers.
pub(super) fn candidates(runtime: Id) -> HashSet<i32> {
    let known = KNOWN.lock().clone();
    let of_runtime = known.iter().filter(|known| known.runtime == runtime);
    let mut names: HashSet<String> = of_runtime.map(|known| thread_name(known.thread)).collect();
    if names.is_empty() {
        names.insert(DEFAULT_NAME.to_owned());
    }
    threads_of_process()
        .filter(|thread| known.iter().all(|known| known.thread != *thread))
        .filter(|thread| names.contains(&thread_name(*thread)))
        .collect()
}
