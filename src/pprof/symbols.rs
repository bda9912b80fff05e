//! Names of addresses, from the symbols and line tables of this executable.
//!
//! In: an address in this process. Out: the functions there, innermost inlined one first. Never: a cache that outlives
//! one profile: the parsed debug information takes tens of megabytes.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use backtrace::SymbolName;

use super::elf::ElfFile;
use super::mappings::{self, CodeMapping};

/// One function at an address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Function {
    /// Demangled, without the compiler's hash. The path of an inlined one may be that of its source file.
    pub name: String,
    /// As the linker knows it.
    pub system_name: String,
    /// Source file; empty if unknown.
    pub file: String,
    /// Line in that file; 0 if unknown.
    pub line: u32,
}

/// Resolves addresses for one profile. Dropping it gives back the memory of the debug information.
#[derive(Debug)]
pub(super) struct Symbolizer {
    mappings: Vec<CodeMapping>,
    files: HashMap<PathBuf, ElfFile>,
    known: HashMap<u64, Rc<[Function]>>,
}

impl Symbolizer {
    /// For the code that is mapped now.
    pub(super) fn new() -> Self {
        Self { mappings: mappings::of_this_process(), files: HashMap::new(), known: HashMap::new() }
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
        let mut functions = lines(address);
        // Line tables name a function without its path; the linker's symbol has it.
        if let Some((name, system_name)) = self.compiled_function(address) {
            match functions.last_mut() {
                Some(outermost) => (outermost.name, outermost.system_name) = (name, system_name),
                None => {
                    functions.push(Function { name, system_name, file: String::new(), line: 0 });
                }
            }
        }
        add_paths(&mut functions);
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
        backtrace::clear_symbol_cache();
    }
}

/// Gives inlined functions a path. Line tables name them `{closure#0}` or `new`, which says nothing in a profile.
fn add_paths(functions: &mut [Function]) {
    let Some((outermost, inlined)) = functions.split_last_mut() else {
        return;
    };
    for function in inlined {
        let base = function.name.split('<').next().unwrap_or_default();
        if base.is_empty() || base.contains("::") {
            continue;
        }
        if let Some(path) = module_path(&function.file, outermost) {
            function.name = format!("{path}::{}", function.name);
        }
    }
}

/// The module that a source file holds, after Cargo's layout; `outermost` is a function it was inlined into.
fn module_path(file: &str, outermost: &Function) -> Option<String> {
    let outer_module = outermost.name.rsplit_once("::").map(|(module, _)| module);
    let outer_module = outer_module.filter(|module| !module.contains(['<', '{']));
    if file == outermost.file {
        return outer_module.map(str::to_owned);
    }
    let (package, modules) = file.strip_suffix(".rs")?.rsplit_once("/src/")?;
    let same_package =
        outermost.file.rsplit_once("/src/").is_some_and(|(outer, _)| outer == package);
    let krate = match outer_module.and_then(|module| module.split("::").next()) {
        Some(outer_crate) if same_package => outer_crate.to_owned(),
        _ => without_version(package.rsplit('/').next()?).replace('-', "_"),
    };
    let modules = modules.split('/').filter(|module| !matches!(*module, "lib" | "main" | "mod"));
    Some(std::iter::once(krate.as_str()).chain(modules).collect::<Vec<_>>().join("::"))
}

/// `tokio` of `tokio-1.54.1`, as Cargo names the directories of dependencies.
fn without_version(directory: &str) -> &str {
    match directory.rsplit_once('-') {
        Some((name, version)) if version.starts_with(|first: char| first.is_ascii_digit()) => name,
        _ => directory,
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
        let functions = Symbolizer::new().resolve(address);
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
    fn an_inlined_function_gets_the_path_of_its_source() {
        let outermost = ("shop::basket::hold", "/build/shop-service/src/basket.rs");
        for (name, file, expected) in [
            ("{closure#0}", "/build/shop-service/src/basket.rs", "shop::basket::{closure#0}"),
            ("add<u8>", "/build/shop-service/src/price/mod.rs", "shop::price::add<u8>"),
            ("wrapping_add", "/rustc/0/library/core/src/num/mod.rs", "core::num::wrapping_add"),
            ("poll", "/cargo/tokio-util-0.7.20/src/task/join.rs", "tokio_util::task::join::poll"),
            ("core::mem::swap", "/rustc/0/library/core/src/mem/mod.rs", "core::mem::swap"),
            ("malloc", "/build/jemalloc/src/jemalloc.c", "malloc"),
            ("unknown", "", "unknown"),
        ] {
            let function = |name: &str, file: &str| Function {
                name: name.to_owned(),
                system_name: String::new(),
                file: file.to_owned(),
                line: 1,
            };
            let mut functions = [function(name, file), function(outermost.0, outermost.1)];
            add_paths(&mut functions);
            assert_eq!(functions[0].name, expected);
            assert_eq!(functions[1].name, outermost.0);
        }
    }

    #[test]
    fn an_address_without_code_has_no_name() {
        assert!(Symbolizer::new().resolve(0).is_empty());
        assert!(Symbolizer::new().resolve(u64::MAX).is_empty());
    }
}
