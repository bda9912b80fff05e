//! Small text files of the kernel.
//!
//! In: a path below /proc or /sys. Out: the text, or why not. Never: more than [`MAX_BYTES`].

use std::fs::File;
use std::io::{self, Read as _};
use std::path::Path;

use super::snapshot::Unavailable;

/// Twice the longest file that is read, `mountinfo` on a busy node.
const MAX_BYTES: u64 = 1 << 20;
/// These files say that they are empty, so the first guess is ours; one read is enough for nearly all of them.
const USUAL_BYTES: usize = 4_096;

pub(super) fn read(path: &Path) -> Result<String, Unavailable> {
    let text = || {
        let mut text = String::with_capacity(USUAL_BYTES);
        File::open(path)?.take(MAX_BYTES).read_to_string(&mut text)?;
        Ok(text)
    };
    text().map_err(|source: io::Error| Unavailable::Read { path: path.to_owned(), source })
}
