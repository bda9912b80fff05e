//! The parsers that are private, for `fuzz/`. It exists only in a build that `cargo fuzz` makes.
//!
//! In: what an attacker, a kernel or a broken peer could send. Out: nothing, or a panic where a property of the parser does not
//! hold. Never: anything that the program itself calls.

pub use crate::agent::fuzzing::{read_any_accept, read_any_target, read_any_traceparent};
pub use crate::pprof::fuzzing::{read_any_dump, read_any_elf, read_any_symbol_list};
pub use crate::signals::read_any_text;
