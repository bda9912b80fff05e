//! Paths for inlined functions. Line tables name them `{closure#0}` or `new`, which says nothing in a profile.
//!
//! In: functions whose path the linker's symbols tell, with their source files. Out: the module that another function of
//! the same files or packages is in, after Cargo's layout. Never: certain; a wrong directory name gives a wrong crate.

use std::collections::HashMap;

/// What is known of source files and packages.
#[derive(Debug, Default)]
pub(super) struct Paths {
    /// Crate names by package directory.
    crates: HashMap<String, String>,
    /// Modules by source file.
    modules: HashMap<String, String>,
}

impl Paths {
    /// Takes note of a function with its whole path, such as `shop::basket::add`.
    pub(super) fn learn(&mut self, name: &str, file: &str) {
        let Some((module, _)) =
            name.rsplit_once("::").filter(|(module, _)| !module.contains(['<', '{']))
        else {
            return;
        };
        if let (Some((package, _)), Some(krate)) = (package(file), module.split("::").next()) {
            self.crates.entry(package.to_owned()).or_insert_with(|| krate.to_owned());
        }
        // A method's path ends in its type; the shortest path is the most likely module.
        let known = self.modules.entry(file.to_owned()).or_insert_with(|| module.to_owned());
        if module.len() < known.len() {
            module.clone_into(known);
        }
    }

    /// The name with its module and without generic arguments.
    pub(super) fn complete(&self, name: &str, file: &str) -> String {
        let base = match name.split('<').next() {
            Some(base) if !base.is_empty() => base,
            _ => return name.to_owned(),
        };
        if base.contains("::") {
            return base.trim_end_matches("::").to_owned();
        }
        match self.module(file) {
            Some(module) => format!("{module}::{base}"),
            None => base.to_owned(),
        }
    }

    fn module(&self, file: &str) -> Option<String> {
        let Some((package, module)) = package(file) else {
            return self.modules.get(file).cloned();
        };
        let krate = match self.crates.get(package) {
            Some(krate) => krate.clone(),
            None => without_version(package.rsplit('/').next()?).replace('-', "_"),
        };
        let modules = module.split('/').filter(|module| !matches!(*module, "lib" | "main" | "mod"));
        Some(std::iter::once(krate.as_str()).chain(modules).collect::<Vec<_>>().join("::"))
    }
}

/// `(/home/shop, basket)` of `/home/shop/src/basket.rs`.
fn package(file: &str) -> Option<(&str, &str)> {
    file.strip_suffix(".rs")?.rsplit_once("/src/")
}

/// `tokio` of `tokio-1.54.1`, as Cargo names the directories of dependencies.
fn without_version(directory: &str) -> &str {
    match directory.rsplit_once('-') {
        Some((name, version)) if version.starts_with(|first: char| first.is_ascii_digit()) => name,
        _ => directory,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_inlined_function_gets_the_path_of_its_source() {
        let mut paths = Paths::default();
        paths.learn("shop::basket::Basket::hold", "/build/shop-service/src/basket.rs");
        paths.learn("tour::main::run", "/build/shop-service/examples/tour.rs");
        paths.learn("tour::main", "/build/shop-service/examples/tour.rs");
        paths.learn("<shop::A as shop::B>::c", "/build/other/src/a.rs");
        for (name, file, expected) in [
            ("{closure#0}", "/build/shop-service/src/basket.rs", "shop::basket::{closure#0}"),
            ("add<u8, Vec<u8>>", "/build/shop-service/src/price/mod.rs", "shop::price::add"),
            ("{closure#1}", "/build/shop-service/examples/tour.rs", "tour::{closure#1}"),
            ("wrapping_add", "/rustc/0/library/core/src/num/mod.rs", "core::num::wrapping_add"),
            ("poll", "/cargo/tokio-util-0.7.20/src/task/join.rs", "tokio_util::task::join::poll"),
            ("core::mem::swap<u8>", "/rustc/0/library/core/src/mem/mod.rs", "core::mem::swap"),
            ("<A as B>::c", "/build/other/src/a.rs", "<A as B>::c"),
            ("malloc", "/build/jemalloc/src/jemalloc.c", "malloc"),
            ("unknown", "", "unknown"),
        ] {
            assert_eq!(paths.complete(name, file), expected);
        }
    }
}
