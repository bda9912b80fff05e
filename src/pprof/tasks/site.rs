//! Where tasks are spawned: a line of the service's code together with the future it spawns.
//!
//! In: the tasks' comings and goings. Out: counts per site. Never: more than [`MAX_SITES`] sites; those after them are one.

use std::collections::HashMap;
use std::panic::Location;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::RwLock;

use super::super::labels::Name;
use super::leak::Growth;

/// Sites kept. They are as many as the code has, so this is only for code that is generated.
const MAX_SITES: usize = 4096;
/// Addresses remembered: the compiler may make a few for one site.
const MAX_ADDRESSES: usize = 4 * MAX_SITES;
/// Longer names of futures are cut.
const MAX_NAME_BYTES: usize = 256;

/// A site. Lives as long as the program.
#[derive(Debug)]
pub(super) struct Site {
    /// Where the compiler put the location, for texts that want an address.
    pub(super) address: usize,
    /// The file as the compiler was given it, a package's directory at the most.
    pub(super) file: String,
    pub(super) line: u32,
    column: u32,
    /// The path of the function whose future is spawned; of an async block, the function around it.
    pub(super) function: String,
    /// `file:line`, as samples carry it.
    pub(super) label: Name,
    /// Tasks alive.
    pub(super) live: AtomicU64,
    /// Nanoseconds in polls of tasks that are gone.
    pub(super) ended_busy: AtomicU64,
    pub(super) growth: Growth,
}

impl Site {
    fn new(address: usize, location: &Location<'_>, future: &str) -> Self {
        let file = short(location.file());
        Self {
            address,
            label: Name::of(&format!("{file}:{}", location.line())),
            file: file.to_owned(),
            line: location.line(),
            column: location.column(),
            function: function(future),
            live: AtomicU64::new(0),
            ended_busy: AtomicU64::new(0),
            growth: Growth::default(),
        }
    }

    /// Tells it from every other site: each exists once and stays where it is.
    pub(super) fn id(&self) -> usize {
        std::ptr::from_ref(self).addr()
    }

    /// `file:line`.
    pub(super) fn place(&self) -> String {
        format!("{}:{}", self.file, self.line)
    }

    /// A task begins.
    pub(super) fn joined(&self, now: u64) {
        self.growth.roll(self.live.load(Ordering::Relaxed), now);
        self.live.fetch_add(1, Ordering::Relaxed);
    }

    /// A task is gone, after so many nanoseconds in polls.
    pub(super) fn left(&self, busy: u64) {
        let before = self.live.fetch_sub(1, Ordering::Relaxed);
        self.growth.fell_to(before.saturating_sub(1));
        self.ended_busy.fetch_add(busy, Ordering::Relaxed);
    }
}

/// All sites, found by the addresses of their location and type name.
#[derive(Debug, Default)]
pub(super) struct Sites {
    by_address: RwLock<HashMap<(usize, usize), &'static Site>>,
    all: RwLock<Vec<&'static Site>>,
}

impl Sites {
    /// The site of that location and future.
    pub(super) fn of(
        &self,
        location: &'static Location<'static>,
        future: &'static str,
    ) -> &'static Site {
        let key = (std::ptr::from_ref(location).addr(), future.as_ptr().addr());
        if let Some(site) = self.by_address.read().get(&key) {
            return site;
        }
        let site = self.by_content(location, future, key.0);
        let mut by_address = self.by_address.write();
        if by_address.len() < MAX_ADDRESSES {
            by_address.insert(key, site);
        }
        site
    }

    /// Every site that had a task.
    pub(super) fn all(&self) -> Vec<&'static Site> {
        self.all.read().clone()
    }

    fn by_content(&self, location: &Location<'_>, future: &str, address: usize) -> &'static Site {
        let function = function(future);
        let same = |site: &&&'static Site| {
            (site.line, site.column) == (location.line(), location.column())
                && site.file == short(location.file())
                && site.function == function
        };
        let mut all = self.all.write();
        if let Some(site) = all.iter().find(same) {
            return site;
        }
        if all.len() >= MAX_SITES {
            return all.last().expect("there are MAX_SITES of them");
        }
        // The last place is for all that find no room.
        let site = match all.len() + 1 == MAX_SITES {
            false => Site::new(address, location, future),
            true => Site { function: "other".to_owned(), ..Site::new(address, location, "") },
        };
        // A site is never given back: tasks and samples refer to it.
        let site: &'static Site = Box::leak(Box::new(site));
        all.push(site);
        site
    }
}

/// `shop::basket::fill` of `shop::basket::fill<u8>::{{closure}}`, which is how the compiler names its future.
fn function(future: &str) -> String {
    let mut name = String::new();
    let mut depth = 0_usize;
    for letter in future.chars() {
        match letter {
            '<' if !name.is_empty() => depth += 1,
            '>' if depth > 0 => depth -= 1,
            _ if depth == 0 && name.len() < MAX_NAME_BYTES => name.push(letter),
            _ => {}
        }
    }
    name.trim_end_matches("::{{closure}}").to_owned()
}

/// From the package's directory on: the rest of an absolute path says only where it was built.
fn short(file: &str) -> &str {
    let Some(package) = file.rfind("/src/").filter(|_| file.starts_with('/')) else {
        return file;
    };
    file[..package].rfind('/').map_or(file, |before| &file[before + 1..])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_future_is_named_after_its_function() {
        for (future, expected) in [
            ("shop::basket::fill::{{closure}}", "shop::basket::fill"),
            ("shop::fill<alloc::vec::Vec<u8>>::{{closure}}::{{closure}}", "shop::fill"),
            ("core::future::pending::Pending<()>", "core::future::pending::Pending"),
        ] {
            assert_eq!(function(future), expected);
        }
    }

    #[test]
    fn a_file_is_named_from_its_package_on() {
        for (file, expected) in [
            ("src/main.rs", "src/main.rs"),
            ("/build/registry/hyper-1.9.0/src/rt.rs", "hyper-1.9.0/src/rt.rs"),
            ("/generated.rs", "/generated.rs"),
        ] {
            assert_eq!(short(file), expected);
        }
    }
}
