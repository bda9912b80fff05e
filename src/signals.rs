//! The catalogue of signals, and the collectors that read them from this process and its host.
//!
//! In: the kernel's files, tokio, the allocator. Out: values under the names of [`CATALOGUE`]. Never: a clock, HTTP or
//! Kubernetes in the catalogue; an absent source is a reason, never a zero.

pub mod catalogue;

pub use catalogue::{CATALOGUE, Family, FamilyKind};
