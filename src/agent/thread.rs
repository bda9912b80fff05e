//! The agent's thread: a current-thread runtime that samples once per second and serves.
//!
//! In: a bound listener and the collectors. Out: nothing but answers. Never: a call into the service's runtime that waits.

use std::io;
use std::net::TcpListener;
use std::sync::Arc;
use std::sync::mpsc::SyncSender;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::runtime::{Builder, Runtime};
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;

use super::evidence::Evidence;
use super::http_layer::HttpLayer;
use super::server::{self, Evicted, Routes};
use crate::pprof;
use crate::probes::Beat;
use crate::signals::allocator::Jemalloc;
use crate::signals::{Collectors, Snapshot, process_cpu_time};
use crate::time::Clock;

/// Between two samples of the workers.
const TICK: Duration = Duration::from_secs(1);
/// Of a process that uses under a hundredth of a core every so many seconds are one slice of the ring: reading everything costs
/// more than the service does.
const IDLE_TICKS_PER_SLICE: u32 = 5;
/// The agent's own loop counts as stuck after this: a throttled pod may come round late.
const MAX_SILENCE: Duration = Duration::from_secs(30);
/// For blocking work of routes when the thread ends.
const BLOCKING_GRACE: Duration = Duration::from_millis(500);

/// Everything the thread owns.
pub(super) struct AgentThread {
    pub(super) listener: TcpListener,
    /// For `/debug/` alone.
    pub(super) debug_listener: Option<TcpListener>,
    pub(super) routes: Routes,
    pub(super) http_layer: HttpLayer,
    pub(super) evicted: Evicted,
    pub(super) collectors: Arc<Mutex<Collectors>>,
    pub(super) polls: pprof::block::Watcher,
    pub(super) clock: Clock,
    pub(super) stop: CancellationToken,
}

impl AgentThread {
    /// Serves until told to stop. Says through `started` whether it could begin.
    pub(super) fn run(self, started: &SyncSender<io::Result<()>>) {
        Jemalloc::open_arena();
        Jemalloc::set_this_thread_apart();
        let runtime = Builder::new_current_thread()
            .enable_all()
            .on_thread_start(Jemalloc::set_passing_thread_apart)
            .build();
        let runtime = match runtime {
            Ok(runtime) => runtime,
            Err(error) => {
                // The builder waits for this, unless it is gone.
                let _ = started.send(Err(error));
                return;
            }
        };
        self.serve(&runtime, started);
        runtime.shutdown_timeout(BLOCKING_GRACE);
    }

    fn serve(self, runtime: &Runtime, started: &SyncSender<io::Result<()>>) {
        let beat = self.routes.progress.add_loop("agent", MAX_SILENCE);
        let evidence = self.routes.evidence.clone();
        runtime.block_on(async {
            let listeners = self.debug_listener.map(tokio::net::TcpListener::from_std).transpose();
            let listeners = tokio::net::TcpListener::from_std(self.listener)
                .and_then(|main| Ok((main, listeners?)));
            let (listener, debug_listener) = match listeners {
                Ok(listeners) => listeners,
                Err(error) => {
                    let _ = started.send(Err(error));
                    return;
                }
            };
            let _ = started.send(Ok(()));
            let serve = async {
                let serve = |listener, router| {
                    server::serve(listener, router, self.evicted.clone(), self.stop.clone())
                };
                match debug_listener {
                    None => serve(listener, self.routes.public().merge(self.routes.debug())).await,
                    Some(debug) => {
                        let apart = serve(debug, self.routes.debug());
                        tokio::join!(serve(listener, self.routes.public()), apart);
                    }
                }
            };
            tokio::select! {
                () = tick(self.collectors, self.http_layer, self.clock, beat, evidence) => {}
                () = watch_polls(self.polls, self.clock) => {}
                () = serve => {}
            }
        });
    }
}

async fn tick(
    collectors: Arc<Mutex<Collectors>>,
    http_layer: HttpLayer,
    clock: Clock,
    beat: Beat,
    evidence: Evidence,
) {
    let mut ticks = tokio::time::interval(TICK);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    // The first tick is immediate; the collectors have just been started.
    ticks.tick().await;
    let mut idle_ticks = 0_u32;
    let mut snapshot = Snapshot::default();
    let mut cpu = process_cpu_time().unwrap_or_default();
    loop {
        ticks.tick().await;
        beat.beat();
        let now = clock.now();
        http_layer.tick(now.monotonic);
        Jemalloc::give_back();
        let former_cpu = std::mem::replace(&mut cpu, process_cpu_time().unwrap_or_default());
        let is_idle = cpu.saturating_sub(former_cpu) < TICK / 100;
        // Whoever scrapes may hold them for as long as the kernel's files take.
        let ticked = collectors.try_lock().map(|mut collectors| collectors.tick(now, is_idle));
        idle_ticks = if is_idle { idle_ticks.wrapping_add(1) } else { 0 };
        if !idle_ticks.is_multiple_of(IDLE_TICKS_PER_SLICE) {
            continue;
        }
        let (watched, mut read_into) = (collectors.clone(), std::mem::take(&mut snapshot));
        // Reads files of the kernel: not on the thread that answers probes.
        let read = tokio::task::spawn_blocking(move || {
            let mut collectors = watched.lock();
            if ticked.is_none() {
                collectors.tick(now, is_idle);
            }
            collectors.collect(now, &mut read_into);
            read_into
        });
        match read.await {
            Ok(read) => {
                evidence.tick(now, &read, &http_layer.totals());
                snapshot = read;
            }
            Err(error) => {
                let error = &error as &dyn std::error::Error;
                tracing::error!(error, "reading the signals panicked");
            }
        }
    }
}

/// Looks for polls that hold a worker, for the profile `block`.
async fn watch_polls(mut polls: pprof::block::Watcher, clock: Clock) {
    loop {
        let next = polls.look(clock.now().monotonic);
        tokio::time::sleep(next).await;
    }
}
