//! The board: the newest decision of every policy, readable without waiting for a writer.
//!
//! The pipeline writes, the adapter and the status writer read. A read is two atomic loads.

use std::collections::HashMap;
use std::sync::Arc;

use arc_swap::ArcSwap;

use super::{Decision, Policy, PolicyId, Unserved};

/// All policies and their newest decisions.
#[derive(Debug, Default)]
pub struct Board {
    entries: ArcSwap<HashMap<PolicyId, Arc<Entry>>>,
}

/// One policy on the board.
#[derive(Debug)]
pub struct Entry {
    state: ArcSwap<EntryState>,
}

/// What is known of a policy.
#[derive(Clone, Debug)]
pub enum EntryState {
    /// Decided at least once.
    Decided {
        /// The policy decided about.
        policy: Arc<Policy>,
        /// The newest decision.
        decision: Arc<Decision>,
    },
    /// Not decided, or not to be served; a reader is told why.
    Unserved(Unserved),
}

impl Entry {
    /// The state now.
    #[must_use]
    pub fn load(&self) -> Arc<EntryState> {
        self.state.load_full()
    }
}

impl Board {
    /// The policy's state, if the policy is known.
    #[must_use]
    pub fn get(&self, id: &PolicyId) -> Option<Arc<EntryState>> {
        self.entries.load().get(id).map(|entry| entry.load())
    }

    /// All policies of a namespace, by name.
    #[must_use]
    pub fn in_namespace(&self, namespace: &str) -> Vec<(PolicyId, Arc<EntryState>)> {
        let entries = self.entries.load();
        let mut found: Vec<_> = entries
            .iter()
            .filter(|(id, _)| &*id.namespace == namespace)
            .map(|(id, entry)| (id.clone(), entry.load()))
            .collect();
        found.sort_by(|(a, _), (b, _)| a.cmp(b));
        found
    }

    /// All policies.
    #[must_use]
    pub fn all(&self) -> Vec<(PolicyId, Arc<EntryState>)> {
        self.entries.load().iter().map(|(id, entry)| (id.clone(), entry.load())).collect()
    }

    /// Replaces the state of one policy, adding the policy if it is new. One writer at a time: the pipeline.
    pub fn publish(&self, id: &PolicyId, state: EntryState) {
        if let Some(entry) = self.entries.load().get(id) {
            entry.state.store(Arc::new(state));
            return;
        }
        let mut entries = HashMap::clone(&self.entries.load());
        entries.insert(id.clone(), Arc::new(Entry { state: ArcSwap::from_pointee(state) }));
        self.entries.store(Arc::new(entries));
    }

    /// Forgets every policy that `keep` refuses.
    pub fn retain(&self, keep: impl Fn(&PolicyId) -> bool) {
        let entries = self.entries.load();
        if entries.keys().all(&keep) {
            return;
        }
        let kept = entries.iter().filter(|(id, _)| keep(id)).map(|(id, e)| (id.clone(), e.clone()));
        self.entries.store(Arc::new(kept.collect()));
    }
}
