use std::sync::mpsc;

use super::super::labels::current;
use super::*;

/// One of its own: the tests run side by side.
fn registry() -> &'static Registry {
    Box::leak(Box::default())
}

fn listing() -> String {
    census::listing(None, false)
}

#[tokio::test]
async fn a_task_is_listed_from_its_spawn_to_its_end_with_where_it_was_spawned() {
    let (end, ended) = tokio::sync::oneshot::channel::<()>();
    let line = line!() + 1;
    let task = tokio::spawn(instrument(ended).named("a task to find"));
    let found = |state: &str| {
        listing().split("\n\n").any(|block| {
            block.contains("name \"a task to find\"")
                && block.contains(&format!("[{state}]"))
                && block.contains(&format!("src/pprof/tasks/tests.rs:{line}"))
        })
    };
    assert!(found("new"), "{}", listing());
    tokio::task::yield_now().await;
    assert!(found("idle"), "{}", listing());
    end.send(()).expect("the task waits");
    task.await.expect("it does not panic").expect("a value was sent");
    assert!(!listing().contains("a task to find"));
}

#[tokio::test]
async fn an_aborted_and_a_panicking_task_leave_the_list() {
    let aborted = tokio::spawn(instrument(std::future::pending::<()>()).named("to be aborted"));
    let panicked =
        tokio::spawn(instrument(async { panic!("on purpose") }).named("a task that panics"));
    assert!(listing().contains("to be aborted"));
    aborted.abort();
    assert!(aborted.await.expect_err("aborted").is_cancelled());
    let error: tokio::task::JoinError = match panicked.await {
        Ok(()) => panic!("it panics"),
        Err(error) => error,
    };
    assert!(error.is_panic());
    let listing = listing();
    assert!(!listing.contains("to be aborted") && !listing.contains("a task that panics"));
}

#[tokio::test]
async fn a_poll_carries_its_site_and_the_endpoint_it_was_spawned_for() {
    let endpoint = Name::of("GET /tasks");
    let request = Labelled::enter(|labels| Labels { endpoint, trace: 7, ..labels });
    let line = line!() + 1;
    let task = spawn(async { current() });
    drop(request);
    let labels = task.await.expect("it does not panic");
    assert_eq!((labels.endpoint, labels.trace), (endpoint, 7));
    assert_eq!(labels.task.text(), format!("src/pprof/tasks/tests.rs:{line}"));
    assert_eq!(current(), Labels::NONE);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_task_inside_its_poll_is_running_and_its_time_counts_while_it_lasts() {
    let (release, wait) = mpsc::channel::<()>();
    let (started, start) = mpsc::channel();
    let blocked = instrument(async move {
        started.send(()).expect("the test waits");
        wait.recv().expect("the test releases it");
    })
    .named("inside its poll");
    let task = blocked.task.task.clone();
    let handle = tokio::spawn(blocked);
    start.recv().expect("it starts");
    assert_eq!(task.state(), State::Running);
    let since = task.polled.load(Ordering::Relaxed);
    assert_eq!(task.busy(since + 5), 5);
    assert_eq!(task.unpolled(since + 5), Duration::ZERO);
    release.send(()).expect("it waits");
    handle.await.expect("it does not panic");
    assert_eq!(task.polls.load(Ordering::Relaxed), 1);
    assert_eq!(task.busy(0), task.busy.load(Ordering::Relaxed));
}

#[test]
fn tasks_that_tokio_knows_and_the_registry_does_not_are_counted() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).build();
    let runtime = runtime.expect("a runtime");
    let parked: Vec<_> = (0..3).map(|_| runtime.spawn(std::future::pending::<()>())).collect();
    let own = {
        let _inside = runtime.enter();
        spawn(std::future::pending::<()>())
    };
    let text = census(Some(runtime.handle())).text("tasks");
    let foreign = text.split("\n\n").find(|group| group.contains("not spawned through"));
    assert!(foreign.is_some_and(|group| group.contains("3 @\n")), "{text}");
    assert!(alive(Some(runtime.handle())) >= 4);
    drop((parked, own));
}

/// Spawns and ends tasks of one site over a quarter of an hour; `alive` says how many there are after each half minute.
fn confidence(place: &'static str, alive: impl Fn(u64) -> usize) -> Option<leak::Confidence> {
    let registry = registry();
    let site = registry.site(Location::caller(), place);
    let mut tasks = Vec::new();
    let interval = u64::try_from(leak::INTERVAL.as_nanos()).expect("small");
    for index in 0..30 {
        let wanted = alive(index);
        tasks.truncate(wanted);
        while tasks.len() < wanted {
            tasks.push(registry.register(site, None, Labels::NONE, index * interval + 1));
        }
    }
    let suspects = leak::suspects(&registry.sites(), &registry.tasks(), 30 * interval);
    suspects.first().map(|suspect| suspect.confidence)
}

#[test]
fn a_site_whose_tasks_never_end_is_suspected_and_a_steady_one_is_not() {
    use leak::Confidence::{High, Low};
    let count = |number: u64| usize::try_from(number).expect("small");
    assert_eq!(confidence("leaks", |index| count(3 * index + 1)), Some(High));
    // Each task is replaced in the next half minute.
    assert_eq!(confidence("replaced", |index| if index % 2 == 0 { 40 } else { 0 }), None);
    assert_eq!(confidence("few and old", |_| 4), None);
    assert_eq!(confidence("many and old", |_| 40), Some(Low));
}

#[test]
fn sites_differ_by_line_and_future() {
    let registry = registry();
    let (here, there) = (Location::caller(), Location::caller());
    let id = |location, future| registry.site(location, future).id();
    assert_eq!(id(here, "one"), id(here, "one"));
    assert_ne!(id(here, "one"), id(here, "two"));
    assert_ne!(id(here, "one"), id(there, "one"));
}

#[test]
fn a_full_list_lets_tasks_run_and_says_how_many_it_leaves_out() {
    let registry = registry();
    let site = registry.site(Location::caller(), "many");
    let tasks: Vec<_> = (0..=registry::MAX_LISTED)
        .map(|_| registry.register(site, None, Labels::NONE, 0))
        .collect();
    let listed = registry.tasks().len();
    assert_eq!(listed, registry::MAX_LISTED);
    assert_eq!(site.live.load(Ordering::Relaxed), u64::try_from(listed).expect("small") + 1);
    drop(tasks);
    assert!(registry.tasks().is_empty());
}

#[test]
#[ignore = "measures"]
fn cost() {
    use std::hint::black_box;
    let waker = std::task::Waker::noop();
    let mut context = Context::from_waker(waker);
    let polls = 1_000_000_u32;
    let mut measure = |name: &str, future: Pin<&mut dyn Future<Output = ()>>| {
        let mut future = future;
        for round in 0..3 {
            let start = Instant::now();
            for _ in 0..polls {
                let _ = black_box(future.as_mut().poll(&mut context));
            }
            println!(
                "{name} {round}: {:.1} ns",
                start.elapsed().as_nanos() as f64 / f64::from(polls)
            );
        }
    };
    measure("plain", std::pin::pin!(std::future::poll_fn(|_| Poll::Pending)));
    measure("instrumented", std::pin::pin!(instrument(std::future::poll_fn(|_| Poll::Pending))));
    let clock = Instant::now();
    for _ in 0..polls {
        black_box(elapsed());
    }
    println!("clock {:.1} ns", clock.elapsed().as_nanos() as f64 / f64::from(polls));
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
    for _ in 0..3 {
        runtime.block_on(async {
            let start = Instant::now();
            for _ in 0..100_000 {
                tokio::spawn(async {}).await.expect("ends");
            }
            let plain = start.elapsed();
            let start = Instant::now();
            for _ in 0..100_000 {
                spawn(async {}).await.expect("ends");
            }
            println!(
                "spawn+await plain {} ns, ours {} ns",
                plain.as_nanos() / 100_000,
                start.elapsed().as_nanos() / 100_000
            );
        });
    }
}
