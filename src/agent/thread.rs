//! The agent's thread: a current-thread runtime that samples once per second and serves.
//!
//! In: a bound listener and the collectors. Out: nothing but answers. Never: a call into the service's runtime that waits.

use std::io;
use std::net::TcpListener;
use std::sync::Arc;
use std::sync::mpsc::SyncSender;
use std::time::Duration;

use parking_lot::Mutex;
use prometheus::Registry;
use tokio::runtime::{Builder, Handle, Runtime};
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;

use super::server::{self, ServerMetrics};
use crate::pprof;
use crate::probes::{Beat, Progress};
use crate::signals::Collectors;
use crate::signals::allocator::Jemalloc;
use crate::time::Clock;

/// Between two samples of the workers.
const TICK: Duration = Duration::from_secs(1);
/// The agent's own loop counts as stuck after this: a throttled pod may come round late.
const MAX_SILENCE: Duration = Duration::from_secs(30);
/// For blocking work of routes when the thread ends.
const BLOCKING_GRACE: Duration = Duration::from_millis(500);

/// Everything the thread owns.
pub(super) struct AgentThread {
    pub(super) listener: TcpListener,
    pub(super) registry: Registry,
    pub(super) server_metrics: ServerMetrics,
    pub(super) collectors: Arc<Mutex<Collectors>>,
    pub(super) clock: Clock,
    pub(super) progress: Progress,
    pub(super) service: pprof::Service,
    pub(super) service_runtime: Handle,
    pub(super) stop: CancellationToken,
}

impl AgentThread {
    /// Serves until told to stop. Says through `started` whether it could begin.
    pub(super) fn run(self, started: &SyncSender<io::Result<()>>) {
        Jemalloc::leave_this_thread_uncounted();
        let runtime = Builder::new_current_thread()
            .enable_all()
            .on_thread_start(Jemalloc::leave_this_thread_uncounted)
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
        let beat = self.progress.add_loop("agent", MAX_SILENCE);
        let router =
            server::routes(self.registry, &self.progress, &self.service, self.service_runtime);
        runtime.block_on(async {
            let listener = match tokio::net::TcpListener::from_std(self.listener) {
                Ok(listener) => listener,
                Err(error) => {
                    let _ = started.send(Err(error));
                    return;
                }
            };
            let _ = started.send(Ok(()));
            tokio::select! {
                () = tick(self.collectors, self.clock, beat) => {}
                () = server::serve(listener, router, self.server_metrics, self.stop) => {}
            }
        });
    }
}

async fn tick(collectors: Arc<Mutex<Collectors>>, clock: Clock, beat: Beat) {
    let mut ticks = tokio::time::interval(TICK);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    // The first tick is immediate; the collectors have just been started.
    ticks.tick().await;
    loop {
        ticks.tick().await;
        collectors.lock().tick(clock.now());
        beat.beat();
    }
}
