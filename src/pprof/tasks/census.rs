//! What the profiles and texts say of the tasks: counted by site, state and endpoint, or listed one by one.
//!
//! In: the registry and tokio's own count. Out: [`Counts`] and texts. Never: a trace id in a profile: it would make each task
//! a group of its own.

use std::collections::HashMap;
use std::fmt::Write;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::runtime::Handle;

use super::super::counts::{Counts, Group};
use super::super::labels::Name;
use super::super::symbols::Function;
use super::leak::{self, Suspect};
use super::registry::{MAX_LISTED, REGISTRY};
use super::site::Site;
use super::{State, Task, elapsed};

/// Tasks shown one by one.
const MAX_SHOWN: usize = 10_000;
/// What is known of a task that tokio counts and the registry does not.
const FOREIGN: &str = "(tasks not spawned through headroom::spawn)";

/// How many tasks are alive: those of the registry, and others of that runtime.
pub(in super::super) fn alive(runtime: Option<&Handle>) -> usize {
    let tasks = REGISTRY.tasks();
    known() + foreign(runtime, &tasks)
}

/// Live tasks and the nanoseconds they spent in polls; those of ended tasks too, as groups of no tasks.
pub(in super::super) fn census(runtime: Option<&Handle>) -> Counts {
    let (tasks, now) = (REGISTRY.tasks(), elapsed());
    let mut counts = Counts::now();
    // Many tasks make few groups: their texts are made once.
    let mut sums: HashMap<(usize, State, Name), (&Site, [i64; 2])> = HashMap::new();
    let mut listed: HashMap<usize, i64> = HashMap::new();
    for task in &tasks {
        let key = (task.site.id(), task.state(), task.labels.endpoint);
        let (_, [number, busy]) = sums.entry(key).or_insert((task.site, [0, 0]));
        *number += 1;
        *busy = busy.saturating_add(whole(task.busy(now)));
        *listed.entry(task.site.id()).or_default() += 1;
    }
    for ((_, state, endpoint), (site, sum)) in sums {
        counts.add(group(site, state, endpoint.text()), &sum);
    }
    for site in REGISTRY.sites() {
        let ended = whole(site.ended_busy.load(Ordering::Relaxed));
        counts.add(group(site, State::Ended, String::new()), &[0, ended]);
        if tasks.len() >= MAX_LISTED {
            let live = whole(site.live.load(Ordering::Relaxed));
            let unlisted = live.saturating_sub(listed.get(&site.id()).copied().unwrap_or(0)).max(0);
            counts.add(group(site, State::Unlisted, String::new()), &[unlisted, 0]);
        }
    }
    let frame = Function {
        name: FOREIGN.to_owned(),
        system_name: FOREIGN.to_owned(),
        file: String::new(),
        line: 0,
    };
    let foreign = count(foreign(runtime, &tasks));
    counts.add(Group { frames: vec![frame], ..Group::default() }, &[foreign, 0]);
    counts
}

/// Live tasks of the sites that may leak.
pub(in super::super) fn suspected() -> Counts {
    let mut counts = Counts::now();
    for Suspect { site, live, confidence, .. } in suspects() {
        let group = Group {
            labels: vec![("confidence", confidence.text().to_owned())],
            ..group(site, State::Idle, String::new())
        };
        counts.add(group, &[whole(live)]);
    }
    counts
}

/// The sites that may leak, each with the reason, and the rule.
pub(in super::super) fn suspects_text() -> String {
    let suspects = suspects();
    let total: u64 = suspects.iter().map(|suspect| suspect.live).sum();
    let mut text = format!("taskleak profile: total {total}\n");
    for Suspect { site, live, confidence, reason } in &suspects {
        // Writing to a String does not fail.
        let _ = writeln!(text, "{live} @ {:#x}", site.address);
        let _ = writeln!(text, "# labels: {{\"confidence\":{:?}}}", confidence.text());
        let _ = writeln!(text, "# {reason}");
        let _ = writeln!(text, "#\t{:#x}\t{}\t{}\n", site.address, site.function, site.place());
    }
    if suspects.is_empty() {
        text.push_str("# no spawn site is suspected\n");
    }
    let _ = writeln!(
        text,
        "# suspected: sites whose least number of live tasks per {} s keeps rising (medium confidence; high with as many \
         tasks not polled for {} s as half the growth), or with many such tasks (low)",
        leak::INTERVAL.as_secs(),
        leak::STALE.as_secs()
    );
    text
}

/// The tasks one by one, oldest first, in the manner of Go's goroutine dump; only those of suspects if asked so.
pub(in super::super) fn listing(runtime: Option<&Handle>, suspects_only: bool) -> String {
    let (mut tasks, now) = (REGISTRY.tasks(), elapsed());
    let foreign = foreign(runtime, &tasks);
    if suspects_only {
        let suspects = suspects();
        tasks.retain(|task| suspects.iter().any(|suspect| suspect.site.id() == task.site.id()));
    }
    let mut text = String::new();
    for task in tasks.iter().take(MAX_SHOWN) {
        show(&mut text, task, now);
    }
    if tasks.len() > MAX_SHOWN {
        // Writing to a String does not fail.
        let _ = writeln!(text, "... and {} more\n", tasks.len() - MAX_SHOWN);
    }
    if !suspects_only && foreign > 0 {
        let _ = writeln!(text, "{foreign} more {FOREIGN}");
    }
    text
}

/// For example `task 7 [idle, 5 minutes]:`, the figures, the future, and where it was spawned.
fn show(text: &mut String, task: &Task, now: u64) {
    let unpolled = task.unpolled(now);
    let minutes = unpolled.as_secs() / 60;
    // Writing to a String does not fail, here and below.
    let _ = write!(text, "task {} [{}", task.id, task.state().text());
    if minutes > 0 {
        let _ = write!(text, ", {minutes} minutes");
    }
    let age = Duration::from_nanos(now.saturating_sub(task.created));
    let busy = Duration::from_nanos(task.busy(now));
    let polls = task.polls.load(Ordering::Relaxed);
    let _ = write!(
        text,
        "]:\n# age {:.3} s, since the last poll began or, unpolled, the spawn {:.3} s, {polls} polls, busy {:.6} s",
        age.as_secs_f64(),
        unpolled.as_secs_f64(),
        busy.as_secs_f64()
    );
    if let Some(name) = task.name.get() {
        let _ = write!(text, ", name {name:?}");
    }
    let endpoint = task.labels.endpoint.text();
    if !endpoint.is_empty() {
        let _ = write!(text, ", endpoint {endpoint:?}");
    }
    if task.labels.trace != 0 {
        let _ = write!(text, ", trace {:032x}", task.labels.trace);
    }
    let _ = writeln!(text, "\n{}(...)\ncreated at\n\t{}\n", task.site.function, task.site.place());
}

fn suspects() -> Vec<Suspect> {
    leak::suspects(&REGISTRY.sites(), &REGISTRY.tasks(), elapsed())
}

/// Tasks of the registry, listed or not.
fn known() -> usize {
    let live = REGISTRY.sites().iter().map(|site| site.live.load(Ordering::Relaxed)).sum::<u64>();
    usize::try_from(live).unwrap_or(usize::MAX)
}

/// Tasks that the runtime counts beyond those of the registry. Which runtime the unlisted ones are on is not known: they
/// count as this one's.
fn foreign(runtime: Option<&Handle>, tasks: &[Arc<Task>]) -> usize {
    let Some(runtime) = runtime else {
        return 0;
    };
    let id = Some(runtime.id());
    let own = tasks.iter().filter(|task| task.runtime == id).count();
    let unlisted = known().saturating_sub(tasks.len());
    runtime.metrics().num_alive_tasks().saturating_sub(own + unlisted)
}

fn group(site: &Site, state: State, endpoint: String) -> Group {
    let function = Function {
        name: site.function.clone(),
        system_name: site.function.clone(),
        file: String::new(),
        line: 0,
    };
    let place = site.place();
    let spawned = Function {
        name: place.clone(),
        system_name: place,
        file: site.file.clone(),
        line: site.line,
    };
    Group {
        frames: vec![function, spawned],
        labels: vec![("state", state.text().to_owned()), ("endpoint", endpoint)],
        address: u64::try_from(site.address).unwrap_or(u64::MAX),
    }
}

fn whole(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

fn count(number: usize) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}
