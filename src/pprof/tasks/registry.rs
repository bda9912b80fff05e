//! The list of live tasks, in shards so that spawning threads rarely meet.
//!
//! In: tasks that begin and end. Out: who is alive. Never: more than [`MAX_LISTED`] tasks.

use std::panic::Location;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, LazyLock, OnceLock};

use parking_lot::Mutex;
use tokio::runtime;

use super::super::labels::Labels;
use super::site::{Site, Sites};
use super::{NEVER, Registered, Task};

const SHARDS: usize = 32;
/// Tasks listed one by one, about 20 MiB of them.
pub(super) const MAX_LISTED: usize = 1 << 17;

/// The tasks of this process.
pub(super) static REGISTRY: LazyLock<Registry> = LazyLock::new(Registry::default);

#[derive(Debug, Default)]
pub(super) struct Registry {
    shards: [Mutex<Shard>; SHARDS],
    next: AtomicU64,
    sites: Sites,
}

#[derive(Debug, Default)]
struct Shard {
    tasks: Vec<Option<Arc<Task>>>,
    free: Vec<usize>,
}

/// A task's place in the list.
#[derive(Clone, Copy, Debug)]
pub(super) struct Slot {
    shard: usize,
    index: usize,
}

impl Registry {
    pub(super) fn site(
        &self,
        location: &'static Location<'static>,
        future: &'static str,
    ) -> &'static Site {
        self.sites.of(location, future)
    }

    pub(super) fn sites(&self) -> Vec<&'static Site> {
        self.sites.all()
    }

    pub(super) fn register(
        &'static self,
        site: &'static Site,
        runtime: Option<runtime::Id>,
        labels: Labels,
        now: u64,
    ) -> Registered {
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        site.joined(now);
        let task = Arc::new(Task {
            id: id + 1,
            site,
            runtime,
            name: OnceLock::new(),
            labels,
            created: now,
            polled: AtomicU64::new(NEVER),
            running: AtomicBool::new(false),
            polls: AtomicU64::new(0),
            busy: AtomicU64::new(0),
        });
        let shard = usize::try_from(id).unwrap_or_default() % SHARDS;
        let index = self.shards[shard].lock().insert(task.clone());
        Registered { registry: self, task, slot: index.map(|index| Slot { shard, index }) }
    }

    pub(super) fn remove(&self, slot: Slot) {
        let removed = self.shards[slot.shard].lock().remove(slot.index);
        // The last owner may drop it: not under the lock.
        drop(removed);
    }

    /// All listed tasks, in the order of their spawning.
    pub(super) fn tasks(&self) -> Vec<Arc<Task>> {
        let mut tasks = Vec::new();
        for shard in &self.shards {
            tasks.extend(shard.lock().tasks.iter().flatten().cloned());
        }
        tasks.sort_unstable_by_key(|task| task.id);
        tasks
    }
}

impl Shard {
    fn insert(&mut self, task: Arc<Task>) -> Option<usize> {
        if let Some(index) = self.free.pop() {
            self.tasks[index] = Some(task);
            return Some(index);
        }
        if self.tasks.len() >= MAX_LISTED / SHARDS {
            return None;
        }
        self.tasks.push(Some(task));
        Some(self.tasks.len() - 1)
    }

    fn remove(&mut self, index: usize) -> Option<Arc<Task>> {
        self.free.push(index);
        self.tasks[index].take()
    }
}
