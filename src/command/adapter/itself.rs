//! The adapter, watched as it watches others: its runtime, process and cgroup on its `/metrics`, its profiles on the API's port.
//!
//! In: this process, and the runtime that everything of it runs on. Out: the standard collectors in the adapter's registry,
//! and the routes under `/debug/pprof/`. Never: routes on a port without the gate, and never a sample taken by the runtime
//! that it is about: a worker that hangs must not keep that from being seen.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, anyhow};
use axum::Router;
use parking_lot::Mutex;
use prometheus::Registry;
use tokio::runtime::{Builder, Handle, Runtime};
use tokio::sync::oneshot;
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;

use crate::agent::Registered;
use crate::pprof;
use crate::signals::Collectors;
use crate::signals::allocator::Jemalloc;
use crate::time::Clock;

/// The adapter's name in its profiles and in `headroom_agent_info`.
pub(in crate::command) const SERVICE: &str = "headroom-adapter";
/// Between two samples of the workers.
const TICK: Duration = Duration::from_secs(1);

/// The profiles of this process, as the agent serves them. For [`crate::adapter::Server::extra`], where the gate is: reading
/// them needs the right to `get` the path as a non-resource URL.
pub(in crate::command) fn profiles() -> Router {
    let version = env!("CARGO_PKG_VERSION").to_owned();
    let service = pprof::Service { name: SERVICE.to_owned(), version };
    pprof::routes(&service, Some(Handle::current()))
}

/// Adds the signals of this process to `registry`. The future watches until `shutdown`.
///
/// # Errors
/// If the registry has one of the names already, or the system refuses a thread.
pub(super) fn observe(
    registry: &Registry,
    clock: Clock,
    shutdown: CancellationToken,
) -> anyhow::Result<impl Future<Output = anyhow::Result<()>> + Send + 'static> {
    let watched = Handle::current();
    let collectors = Arc::new(Mutex::new(Collectors::start(&watched, clock)));
    registry.register(Box::new(Registered::new(SERVICE, clock, collectors.clone())?))?;
    let runtime = Builder::new_current_thread().enable_time().build();
    let runtime = runtime.context("cannot start the runtime of the observer")?;
    let polls = pprof::block::Watcher::new(&watched, clock.now().monotonic);
    let (ended, end) = oneshot::channel();
    std::thread::Builder::new()
        .name("headroom-itself".to_owned())
        .spawn(move || {
            Jemalloc::set_this_thread_apart();
            watch(&runtime, &collectors, polls, clock, &shutdown);
            // Nobody waits for it while the program is being torn down.
            let _ = ended.send(());
        })
        .context("cannot start the thread of the observer")?;
    Ok(async { end.await.map_err(|_| anyhow!("the observer of the adapter panicked")) })
}

fn watch(
    runtime: &Runtime,
    collectors: &Mutex<Collectors>,
    mut polls: pprof::block::Watcher,
    clock: Clock,
    shutdown: &CancellationToken,
) {
    let tick = async {
        let mut ticks = tokio::time::interval(TICK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        // The first tick is immediate; the collectors have just been started.
        ticks.tick().await;
        loop {
            ticks.tick().await;
            collectors.lock().tick(clock.now(), false);
        }
    };
    let look = async {
        loop {
            tokio::time::sleep(polls.look(clock.now().monotonic)).await;
        }
    };
    runtime.block_on(async {
        tokio::select! {
            () = shutdown.cancelled() => {}
            () = tick => {}
            () = look => {}
        }
    });
}
