//! Names of addresses, from the symbols and, if asked for, the line tables of this executable.
//!
//! In: an address in this process. Out: the functions there, innermost inlined one first. Never: a cache that outlives
//! one profile, nor two look-ups at a time.
//!
//! Line tables are not read unasked: an executable with 18 MB of debug information took 70 MB more memory for one
//! profile, and 120 MB of allocation that the service's own signals then show; its symbols take under 10. Where the
//! executable is at hand, `go tool pprof -symbolize=local:force` reads the lines on the reader's machine.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use backtrace::SymbolName;
use parking_lot::{Mutex, MutexGuard};

use super::elf::ElfFile;
use super::mappings::{self, CodeMapping};

/// How much is looked up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Detail {
    /// The compiled function.
    #[default]
    Functions,
    /// Also the functions inlined there, files and lines.
    Lines,
}

/// One function at an address.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Function {
    /// Demangled, without the compiler's hash. That of an inlined one lacks its path.
    pub name: String,
    /// As the linker knows it.
    pub system_name: String,
    /// Source file; empty if unknown.
    pub file: String,
    /// Line in that file; 0 if unknown.
    pub line: u32,
}

/// Held by the one who looks symbols up: what that takes in memory is never needed twice at a time.
static TURN: Mutex<()> = Mutex::new(());

/// Resolves addresses for one profile, after all who do so already. Dropping it gives back the memory of the debug information.
#[derive(Debug)]
pub(super) struct Symbolizer {
    mappings: Vec<CodeMapping>,
    detail: Detail,
    files: HashMap<PathBuf, ElfFile>,
    known: HashMap<u64, Rc<[Function]>>,
    _turn: MutexGuard<'static, ()>,
}

impl Symbolizer {
    /// For the code that is mapped now. Waits for its turn; a thread that has one must not ask for another.
    pub(super) fn new(detail: Detail) -> Self {
        let turn = TURN.lock();
        let mappings = mappings::of_this_process();
        Self { mappings, detail, files: HashMap::new(), known: HashMap::new(), _turn: turn }
    }

    /// What it resolves.
    pub(super) fn mappings(&self) -> &[CodeMapping] {
        &self.mappings
    }

    /// The functions whose code holds `address`, innermost first; none if no symbol is known.
    pub(super) fn resolve(&mut self, address: u64) -> Rc<[Function]> {
        if let Some(functions) = self.known.get(&address) {
            return functions.clone();
        }
        let mut functions = match self.detail {
            Detail::Functions => Vec::new(),
            Detail::Lines => lines(address),
        };
        // Line tables name a function without its path; the linker's symbol has it.
        if let Some((name, system_name)) = self.compiled_function(address) {
            match functions.last_mut() {
                Some(outermost) => (outermost.name, outermost.system_name) = (name, system_name),
                None => {
                    functions.push(Function { name, system_name, file: String::new(), line: 0 });
                }
            }
        }
        let functions: Rc<[Function]> = functions.into();
        self.known.insert(address, functions.clone());
        functions
    }

    /// The demangled name and the linker's name of the function that was compiled to the code at `address`. Reads no
    /// debug information.
    pub(super) fn compiled_function(&mut self, address: u64) -> Option<(String, String)> {
        let mapping =
            self.mappings.iter().find(|mapping| mapping.file_offset(address).is_some())?;
        let offset = mapping.file_offset(address)?;
        let file = match self.files.get(&mapping.file) {
            Some(file) => file,
            None => self
                .files
                .entry(mapping.file.clone())
                .or_insert_with_key(|path| ElfFile::read(path)),
        };
        let symbol = file.symbol_at(offset)?;
        Some((
            format!("{:#}", SymbolName::new(symbol)),
            String::from_utf8_lossy(symbol).into_owned(),
        ))
    }
}

impl Drop for Symbolizer {
    fn drop(&mut self) {
        if self.detail == Detail::Lines {
            backtrace::clear_symbol_cache();
        }
    }
}

fn lines(address: u64) -> Vec<Function> {
    let mut functions = Vec::new();
    // `resolve` takes return addresses and looks one byte before them.
    let Some(address) = address.checked_add(1).and_then(|next| usize::try_from(next).ok()) else {
        return functions;
    };
    backtrace::resolve(std::ptr::without_provenance_mut(address), |symbol| {
        if let Some(name) = symbol.name() {
            functions.push(Function {
                name: format!("{name:#}"),
                system_name: name.as_str().unwrap_or_default().to_owned(),
                file: symbol.filename().map(Path::to_string_lossy).unwrap_or_default().into_owned(),
                line: symbol.lineno().unwrap_or(0),
            });
        }
    });
    functions
}

#[cfg(test)]
mod tests {
    use super::*;

    #[inline(never)]
    fn a_function_to_find() -> u64 {
        std::hint::black_box(7)
    }

    #[test]
    fn an_address_of_a_function_resolves_to_its_path_and_line() {
        assert_eq!(a_function_to_find(), 7);
        let address = u64::try_from(a_function_to_find as fn() -> u64 as usize).expect("64 bits");
        let functions = Symbolizer::new(Detail::Lines).resolve(address);
        let outermost = functions.last().expect("this executable has symbols");
        assert!(
            outermost.name.ends_with("pprof::symbols::tests::a_function_to_find"),
            "{outermost:?}"
        );
        assert!(
            outermost.file.ends_with("src/pprof/symbols.rs") && outermost.line > 0,
            "{outermost:?}"
        );
    }

    #[test]
    fn two_threads_do_not_look_symbols_up_at_one_time() {
        let one = Symbolizer::new(Detail::Functions);
        let (has, had) = std::sync::mpsc::channel();
        let other = std::thread::spawn(move || {
            let _other = Symbolizer::new(Detail::Functions);
            has.send(()).expect("the test waits");
        });
        std::thread::sleep(std::time::Duration::from_millis(50));
        assert!(had.try_recv().is_err(), "both look up");
        drop(one);
        had.recv().expect("its turn comes");
        other.join().expect("it ends");
    }

    #[test]
    fn an_address_without_code_has_no_name() {
        assert!(Symbolizer::new(Detail::Lines).resolve(0).is_empty());
        assert!(Symbolizer::new(Detail::Lines).resolve(u64::MAX).is_empty());
    }
}
