//! Collect, store, decide, publish.
