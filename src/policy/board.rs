//! The board: the newest decision of every policy, readable without waiting for a writer.
//!
//! The pipeline writes; the adapter and the status writer read. A read is two atomic loads and two lookups, whatever the
//! number of policies.

use std::any::Any;
use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::sync::{Arc, OnceLock};

use arc_swap::ArcSwap;

use super::{Decision, Policy, PolicyId, Unserved};

/// All policies and their newest decisions.
#[derive(Debug, Default)]
pub struct Board {
    namespaces: ArcSwap<HashMap<Arc<str>, Arc<Namespace>>>,
}

/// The policies of one namespace, by name.
#[derive(Clone, Debug, Default)]
pub struct Namespace {
    entries: BTreeMap<Arc<str>, Arc<Entry>>,
}

/// One policy on the board.
#[derive(Debug)]
pub struct Entry {
    /// Whose.
    pub id: PolicyId,
    standing: ArcSwap<Standing>,
}

/// What is known of a policy, and what its reader made of it.
pub struct Standing {
    state: EntryState,
    made: OnceLock<Box<dyn Any + Send + Sync>>,
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
    fn new(id: PolicyId, state: EntryState) -> Self {
        Self { id, standing: ArcSwap::from_pointee(Standing::new(state)) }
    }

    /// What is known now.
    #[must_use]
    pub fn load(&self) -> Arc<Standing> {
        self.standing.load_full()
    }
}

impl Standing {
    const fn new(state: EntryState) -> Self {
        Self { state, made: OnceLock::new() }
    }

    /// What is known.
    #[must_use]
    pub const fn state(&self) -> &EntryState {
        &self.state
    }

    /// What the reader makes of the state (its answers, encoded), made when first asked for and kept as long as the state
    /// stands. The board has one such reader; a second one with another `T` gets what it makes, which is not kept.
    pub fn made<T: Any + Send + Sync + Default, R>(&self, read: impl FnOnce(&T) -> R) -> R {
        let made = self.made.get_or_init(|| Box::new(T::default()));
        match made.downcast_ref() {
            Some(made) => read(made),
            None => read(&T::default()),
        }
    }
}

impl fmt::Debug for Standing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.state.fmt(f)
    }
}

impl Namespace {
    /// The policy of that name.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&Arc<Entry>> {
        self.entries.get(name)
    }

    /// All policies, by name.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<Entry>> {
        self.entries.values()
    }
}

impl Board {
    /// The policies of a namespace; `None` where there is none.
    #[must_use]
    pub fn namespace(&self, namespace: &str) -> Option<Arc<Namespace>> {
        self.namespaces.load().get(namespace).cloned()
    }

    /// The policies of a namespace by name; of all namespaces, in no order, for an empty name.
    #[must_use]
    pub fn entries(&self, namespace: &str) -> Vec<Arc<Entry>> {
        let namespaces = self.namespaces.load();
        let of = |namespace: &Arc<Namespace>| namespace.iter().cloned().collect::<Vec<_>>();
        match namespace {
            "" => namespaces.values().flat_map(of).collect(),
            named => namespaces.get(named).map(of).unwrap_or_default(),
        }
    }

    /// What is known of the policy, if the policy is.
    #[must_use]
    pub fn get(&self, id: &PolicyId) -> Option<Arc<Standing>> {
        let namespaces = self.namespaces.load();
        Some(namespaces.get(&id.namespace)?.get(&id.name)?.load())
    }

    /// All policies.
    #[must_use]
    pub fn all(&self) -> Vec<(PolicyId, Arc<Standing>)> {
        let namespaces = self.namespaces.load();
        let entries = namespaces.values().flat_map(|namespace| namespace.iter());
        entries.map(|entry| (entry.id.clone(), entry.load())).collect()
    }

    /// Replaces the state of one policy, adding the policy if it is new. One writer at a time: the pipeline.
    pub fn publish(&self, id: &PolicyId, state: EntryState) {
        self.publish_all([(id.clone(), state)]);
    }

    /// The same for many; whatever their number, the index of the policies is copied at most once.
    pub fn publish_all(&self, states: impl IntoIterator<Item = (PolicyId, EntryState)>) {
        let namespaces = self.namespaces.load();
        let mut new: HashMap<Arc<str>, Vec<Entry>> = HashMap::new();
        for (id, state) in states {
            match namespaces.get(&id.namespace).and_then(|namespace| namespace.get(&id.name)) {
                Some(entry) => entry.standing.store(Arc::new(Standing::new(state))),
                None => new.entry(id.namespace.clone()).or_default().push(Entry::new(id, state)),
            }
        }
        if new.is_empty() {
            return;
        }
        let mut namespaces = HashMap::clone(&namespaces);
        for (name, entries) in new {
            let namespace = Arc::make_mut(namespaces.entry(name).or_default());
            let named = entries.into_iter().map(|entry| (entry.id.name.clone(), Arc::new(entry)));
            namespace.entries.extend(named);
        }
        self.namespaces.store(Arc::new(namespaces));
    }

    /// Forgets every policy that `keep` refuses.
    pub fn retain(&self, keep: impl Fn(&PolicyId) -> bool) {
        let namespaces = self.namespaces.load();
        if namespaces.values().flat_map(|namespace| namespace.iter()).all(|entry| keep(&entry.id)) {
            return;
        }
        let mut kept = HashMap::clone(&namespaces);
        for namespace in kept.values_mut() {
            Arc::make_mut(namespace).entries.retain(|_, entry| keep(&entry.id));
        }
        kept.retain(|_, namespace| !namespace.entries.is_empty());
        self.namespaces.store(Arc::new(kept));
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    fn id(namespace: &str, name: &str) -> PolicyId {
        PolicyId { namespace: namespace.into(), name: name.into() }
    }

    fn state(message: &str) -> EntryState {
        EntryState::Unserved(Unserved { reason: "NoSamplesYet", message: message.to_owned() })
    }

    fn names(board: &Board, namespace: &str) -> Vec<String> {
        let namespace = board.namespace(namespace);
        let entries = namespace.iter().flat_map(|namespace| namespace.iter());
        entries.map(|entry| entry.id.name.to_string()).collect()
    }

    #[test]
    fn a_namespace_lists_its_own_policies_by_name() {
        let board = Board::default();
        board.publish_all(["b", "a"].map(|name| (id("shop", name), state(name))));
        board.publish(&id("bank", "c"), state("c"));
        assert_eq!(names(&board, "shop"), ["a", "b"]);
        assert_eq!(names(&board, "bank"), ["c"]);
        board.retain(|id| &*id.name == "a");
        assert_eq!(names(&board, "shop"), ["a"]);
        assert!(board.namespace("bank").is_none());
    }

    #[test]
    fn what_a_reader_made_lasts_as_long_as_the_state() {
        #[derive(Default)]
        struct Made(AtomicUsize);

        let board = Board::default();
        let count = || {
            let standing = board.get(&id("shop", "a")).expect("it was published");
            standing.made(|made: &Made| made.0.fetch_add(1, Ordering::Relaxed))
        };
        board.publish(&id("shop", "a"), state("one"));
        assert_eq!((count(), count()), (0, 1));
        board.publish(&id("shop", "a"), state("two"));
        assert_eq!(count(), 0);
    }
}
