//! For tests: documents that the code writes, and that must be what the code would write.
//!
//! In: a document's path and its text as the code has it. Out: a failed test if the file has another. Never: a file written
//! unless it is asked for.

use std::fs;
use std::path::{Path, PathBuf};

/// Set to write the documents instead of comparing them.
const UPDATE: &str = "HEADROOM_UPDATE_DOCS";

/// Holds that `file`, below the package's folder, is `text`; `filter` is what finds the test.
pub(crate) fn hold(file: &str, text: &str, filter: &str) {
    if std::env::var_os(UPDATE).is_some() {
        fs::write(path(file), text).expect("the document can be written");
    }
    assert!(read(file) == text, "{file} is old; {UPDATE}=1 cargo test --lib {filter}");
}

/// The document as it is.
pub(crate) fn read(file: &str) -> String {
    fs::read_to_string(path(file)).expect("the document is there")
}

fn path(file: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(file)
}
