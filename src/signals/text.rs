//! The words of the kernel's files.
//!
//! In: the text of one file. Out: its numbers, in the file's own unit. Never: a file, a panic, or a number for a text that is
//! not understood: that is `None`.
//!
//! Formats: Documentation/accounting/psi.rst, admin-guide/cgroup-v2.rst, scheduler/sched-bwc.rst and sched-stats.rst of the
//! kernel. Kernels add keys and lines; what is not known is skipped.

/// A file of `key value` lines, as `cpu.stat`, `memory.stat` and `memory.events` are.
#[derive(Clone, Copy, Debug)]
pub struct Keyed<'a>(&'a str);

impl<'a> Keyed<'a> {
    /// Looks at nothing yet.
    #[must_use]
    pub const fn new(text: &'a str) -> Self {
        Self(text)
    }

    /// The number behind `key`; a key that is not there, or has no number, has none.
    #[must_use]
    pub fn get(&self, key: &str) -> Option<u64> {
        let pair = |line: &str| {
            let (name, value) = line.split_once(' ')?;
            (name == key).then_some(value)?.trim_end().parse().ok()
        };
        self.0.lines().find_map(pair)
    }
}

/// A limit, where one may be set.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Limit<T> {
    /// Nothing is limited here.
    None,
    /// This much.
    At(T),
}

impl<T> Limit<T> {
    /// The limit, if there is one.
    #[must_use]
    pub fn get(self) -> Option<T> {
        match self {
            Self::None => None,
            Self::At(limit) => Some(limit),
        }
    }
}

/// `cpu.max`: `$MAX $PERIOD` in microseconds, or `max $PERIOD`. In cores.
#[must_use]
pub fn cpu_max(text: &str) -> Option<Limit<f64>> {
    let (quota, period) = text.trim_end().split_once(' ')?;
    if quota == "max" { Some(Limit::None) } else { cores(number(quota)?, number(period)?) }
}

/// `cpu.cfs_quota_us` (-1: none) over the number in `cpu.cfs_period_us`. In cores.
#[must_use]
pub fn cfs_quota(quota: &str, period_micros: u64) -> Option<Limit<f64>> {
    if quota.trim_end() == "-1" { Some(Limit::None) } else { cores(number(quota)?, period_micros) }
}

fn cores(quota_micros: u64, period_micros: u64) -> Option<Limit<f64>> {
    (period_micros > 0).then(|| Limit::At(quota_micros as f64 / period_micros as f64))
}

/// `memory.max`: bytes, or `max` for no limit.
#[must_use]
pub fn memory_max(text: &str) -> Option<Limit<u64>> {
    if text.trim_end() == "max" { Some(Limit::None) } else { number(text).map(Limit::At) }
}

/// A file that holds one number.
#[must_use]
pub fn number(text: &str) -> Option<u64> {
    text.trim_end().parse().ok()
}

/// What the scheduler counted for one thread.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Schedstat {
    /// Nanoseconds on a core.
    pub on_cpu_nanos: u64,
    /// Nanoseconds ready to run, without a core.
    pub waiting_nanos: u64,
}

/// `/proc/<pid>/task/<tid>/schedstat`: time on a core, time on a run queue, timeslices.
#[must_use]
pub fn schedstat(text: &str) -> Option<Schedstat> {
    let mut fields = text.split_ascii_whitespace();
    let on_cpu_nanos = fields.next()?.parse().ok()?;
    let waiting_nanos = fields.next()?.parse().ok()?;
    Some(Schedstat { on_cpu_nanos, waiting_nanos })
}

/// The totals of a pressure file, in microseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stalls {
    /// At least one task waited.
    pub some: Option<u64>,
    /// All did. Older kernels do not tell it of the CPU.
    pub full: Option<u64>,
}

/// The `total` of each line of a pressure file; `None` if a line has none.
#[must_use]
pub fn stalls(text: &str) -> Option<Stalls> {
    let mut stalls = Stalls::default();
    for line in text.lines() {
        let mut fields = line.split_ascii_whitespace();
        let total = match fields.next()? {
            "some" => &mut stalls.some,
            "full" => &mut stalls.full,
            _ => return None,
        };
        let field = fields.find_map(|field| field.strip_prefix("total="))?;
        *total = Some(field.parse().ok()?);
    }
    Some(stalls)
}

/// The bytes that `/proc/meminfo` calls available. They are told in KiB, which the file writes as `kB`.
#[must_use]
pub fn available_memory(text: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    line.trim().strip_suffix(" kB")?.parse::<u64>().ok()?.checked_mul(1_024)
}

/// What `/proc/<pid>/stat` says of a process's size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProcessStat {
    /// Threads.
    pub threads: u64,
    /// Bytes of address space.
    pub virtual_bytes: u64,
    /// Pages in memory.
    pub resident_pages: u64,
}

/// `/proc/<pid>/stat`: fields 20, 23 and 24 of proc(5). The name, field 2, is in parentheses and may hold any character.
#[must_use]
pub fn process_stat(text: &str) -> Option<ProcessStat> {
    let (_, fields) = text.rsplit_once(") ")?;
    // The first of them is field 3.
    let mut fields = fields.split_ascii_whitespace().skip(17);
    let threads = fields.next()?.parse().ok()?;
    let virtual_bytes = fields.nth(2)?.parse().ok()?;
    let resident_pages = fields.next()?.parse().ok()?;
    Some(ProcessStat { threads, virtual_bytes, resident_pages })
}

/// The soft limit that `/proc/<pid>/limits` has under that name.
#[must_use]
pub fn soft_limit(text: &str, name: &str) -> Option<Limit<u64>> {
    let limits = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '))?;
    match limits.split_ascii_whitespace().next()? {
        "unlimited" => Some(Limit::None),
        soft => soft.parse().ok().map(Limit::At),
    }
}

#[cfg(test)]
mod tests {
    use rand::rngs::StdRng;
    use rand::{Rng as _, SeedableRng as _};

    use super::*;

    #[test]
    fn a_cpu_limit_is_a_quotient_or_none_or_not_understood() {
        let check = |text: &str, expected| assert_eq!(cpu_max(text), expected, "{text:?}");
        check("max 100000\n", Some(Limit::None));
        check("150000 100000\n", Some(Limit::At(1.5)));
        for malformed in ["", "max\n", "x 100000\n", "1 0\n", "-5 100000\n"] {
            check(malformed, None);
        }
        assert_eq!(cfs_quota("-1\n", 100_000), Some(Limit::None));
        assert_eq!(cfs_quota("5000\n", 100_000), Some(Limit::At(0.05)));
        assert_eq!(cfs_quota("5000\n", 0), None);
    }

    #[test]
    fn a_memory_limit_of_max_means_no_limit() {
        assert_eq!(memory_max("max\n"), Some(Limit::None));
        assert_eq!(memory_max("268435456\n"), Some(Limit::At(268_435_456)));
        assert_eq!(memory_max("a lot\n"), None);
    }

    #[test]
    fn a_key_is_matched_whole() {
        let stat = Keyed::new("inactive_anon 7\ninactive_file 9\nfile x\n");
        assert_eq!(stat.get("inactive_file"), Some(9));
        assert_eq!(stat.get("inactive"), None);
        assert_eq!(stat.get("file"), None);
    }

    #[test]
    fn totals_are_read_with_and_without_a_full_line() {
        let check = |text: &str, expected: Option<(Option<u64>, Option<u64>)>| {
            let expected = expected.map(|(some, full)| Stalls { some, full });
            assert_eq!(stalls(text), expected, "{text:?}");
        };
        // Linux 6.18, /proc/pressure/cpu.
        let both = "some avg10=12.26 avg60=8.26 avg300=38.18 total=599309266\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=0\n";
        check(both, Some((Some(599_309_266), Some(0))));
        check("some avg10=0.00 avg60=0.00 avg300=0.00 total=7\n", Some((Some(7), None)));
        check("some avg10=0.00\n", None);
    }

    #[test]
    fn schedstat_is_time_on_a_core_then_time_waiting() {
        let read = Schedstat { on_cpu_nanos: 256_862, waiting_nanos: 35_342 };
        assert_eq!(schedstat("256862 35342 2\n"), Some(read));
        assert_eq!(schedstat("256862\n"), None);
        assert_eq!(schedstat("-1 2 3\n"), None);
    }

    #[test]
    fn a_process_s_size_is_behind_its_name_whatever_that_is() {
        // Linux 6.18, proc(5); the name is one that a program may give itself.
        let stat = "4242 (a) b) (c) S 1 4242 4242 0 -1 4194560 3402 0 7 0 3 2 0 0 20 0 5 0 5000 79691776 2048 184 1 1\n";
        let size = ProcessStat { threads: 5, virtual_bytes: 79_691_776, resident_pages: 2_048 };
        assert_eq!(process_stat(stat), Some(size));
        assert_eq!(process_stat("4242 (cat) S 1 4242\n"), None);
        assert_eq!(process_stat("4242 (cat\n"), None);
    }

    #[test]
    fn available_memory_is_told_in_kibibytes() {
        let text = "MemTotal:        8146784 kB\nMemFree:          501260 kB\nMemAvailable:    5822020 kB\n";
        assert_eq!(available_memory(text), Some(5_822_020 * 1_024));
        assert_eq!(available_memory("MemAvailable:    5822020\n"), None);
        assert_eq!(available_memory("MemFree:          501260 kB\n"), None);
    }

    #[test]
    fn a_soft_limit_is_a_number_or_none_or_not_there() {
        let limits = "Limit                     Soft Limit           Hard Limit           Units     \n\
                      Max open files            1024                 524288               files     \n\
                      Max address space         unlimited            unlimited            bytes     \n";
        assert_eq!(soft_limit(limits, "Max open files"), Some(Limit::At(1_024)));
        assert_eq!(soft_limit(limits, "Max address space"), Some(Limit::None));
        assert_eq!(soft_limit(limits, "Max open"), None);
        assert_eq!(soft_limit(limits, "Max cpu time"), None);
    }

    /// Words that appear in the files, so that random texts get past the first comparison.
    const WORDS: [&str; 20] = [
        "max",
        "some",
        "full",
        "total=",
        "total=18446744073709551616",
        "avg10=",
        " ",
        "\n",
        "0",
        "-1",
        "100000",
        "18446744073709551615",
        "usage_usec",
        "0::/",
        ":",
        ",",
        " - ",
        "cgroup2",
        "/..",
        "\u{fe0f}",
    ];

    #[test]
    fn no_text_makes_a_reader_panic() {
        let mut random = StdRng::seed_from_u64(42);
        for _ in 0..20_000 {
            let mut text = String::new();
            for _ in 0..random.random_range(0..24) {
                if random.random_bool(0.8) {
                    text.push_str(WORDS[random.random_range(0..WORDS.len())]);
                } else {
                    text.push(char::from(random.random::<u8>()));
                }
            }
            crate::signals::read_any_text(&text);
        }
    }
}
