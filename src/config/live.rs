//! A configuration that follows its file.
//!
//! In: the inputs, and the file read every second. Out: the value in effect, subscriptions, metrics and a page. Never: a file
//! read while it was being written (two readings in a row must agree), a bad file in effect, or a reader that waits for a read.
//!
//! Polled, not watched: reading one small file a second costs microseconds, and sees the swap of a ConfigMap's `..data` link,
//! edits in place and network file systems alike, where inotify loses its watch with each swapped directory.

use std::fmt::Write as _;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::routing::get;
use parking_lot::Mutex;
use prometheus::{Gauge, IntCounterVec, IntGauge, Opts, Registry};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::build::Section;
use super::keys::Change;
use super::layers::{self, Inputs, Loaded, Setting};
use super::page::{PAGE_PATH, Page};
use super::problem::{ConfigError, Place, Problem};
use crate::time::wall_now;

/// Between two readings of the file.
const PERIOD: Duration = Duration::from_secs(1);
/// The longest file: what a ConfigMap may hold.
const MAX_BYTES: u64 = 1 << 20;

/// Why a configuration does not come up.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The file cannot be read.
    #[error("cannot read the configuration {}", .path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// What it says is wrong.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// Its metrics cannot be registered.
    #[error("cannot register the metrics of the configuration")]
    Metrics(#[from] prometheus::Error),
}

/// A configuration and its file. Cheap to clone; every clone sees the same.
#[derive(Clone, Debug)]
pub struct Live<T: Section>(Arc<Shared<T>>);

#[derive(Debug)]
struct Shared<T> {
    inputs: Inputs,
    current: watch::Sender<Arc<Loaded<T>>>,
    state: Mutex<FileState>,
    metrics: Metrics,
}

/// What is known of the file.
#[derive(Debug, Default)]
struct FileState {
    /// The content that was last taken over or refused.
    decided: Option<Content>,
    /// What the reading before found.
    seen: Option<Content>,
    problem: Option<String>,
    waiting: Vec<(&'static str, String)>,
}

/// The text, or why there is none.
type Content = Result<String, String>;

impl<T: Section> Live<T> {
    /// Reads everything once.
    ///
    /// # Errors
    /// [`StartError`]: a program does not start with a configuration that has a problem.
    pub fn start(inputs: Inputs, registry: &Registry) -> Result<Self, StartError> {
        let text = match &inputs.file {
            None => None,
            Some(path) => {
                Some(read(path).map_err(|source| StartError::Read { path: path.clone(), source })?)
            }
        };
        let loaded = layers::load(&inputs, text.as_deref())?;
        let metrics = Metrics::register(registry)?;
        metrics.in_effect();
        let state = FileState { decided: text.map(Ok), ..FileState::default() };
        let (current, _) = watch::channel(Arc::new(loaded));
        Ok(Self(Arc::new(Shared { inputs, current, state: Mutex::new(state), metrics })))
    }

    /// What is in effect now.
    #[must_use]
    pub fn current(&self) -> Arc<Loaded<T>> {
        self.0.current.borrow().clone()
    }

    /// What is in effect, and a wake-up at each change.
    #[must_use]
    pub fn subscribe(&self) -> watch::Receiver<Arc<Loaded<T>>> {
        self.0.current.subscribe()
    }

    /// Follows the file until `stop`. Without a file it only waits.
    pub async fn follow(&self, stop: CancellationToken) {
        if self.0.inputs.file.is_none() {
            return stop.cancelled().await;
        }
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(PERIOD) => {}
            }
            // A network file system may hang; the program must not.
            let live = self.clone();
            if tokio::task::spawn_blocking(move || live.look()).await.is_err() {
                tracing::error!("reading the configuration panicked");
            }
        }
    }

    /// Reads the file once.
    pub(super) fn look(&self) {
        if let Some(path) = &self.0.inputs.file {
            self.seen(read(path).map_err(|error| error.to_string()));
        }
    }

    /// The page of the configuration.
    pub fn routes<S: Clone + Send + Sync + 'static>(&self) -> Router<S> {
        let page = get(|State(live): State<Self>| async move { live.page() });
        Router::new().route(PAGE_PATH, page).with_state(self.clone())
    }

    pub(super) fn page(&self) -> String {
        let current = self.current();
        let state = self.0.state.lock();
        let page = Page {
            settings: &current.settings,
            file: self.0.inputs.file.as_ref().map(|path| path.display().to_string()),
            problem: state.problem.clone(),
            waiting: &state.waiting,
        };
        page.text()
    }

    /// One reading of the file.
    pub(super) fn seen(&self, content: Content) {
        let mut state = self.0.state.lock();
        let stable = state.seen.as_ref() == Some(&content);
        if !stable {
            state.seen = Some(content);
            return;
        }
        if state.decided.as_ref() == Some(&content) {
            return;
        }
        state.decided = Some(content.clone());
        match self.decide(content) {
            Ok(waiting) => {
                tracing::info!("the configuration was read again");
                for (key, value) in &waiting {
                    tracing::warn!(key, value, "takes effect at the next start");
                }
                (state.problem, state.waiting) = (None, waiting);
                self.0.metrics.in_effect();
                self.0.metrics.reloads.with_label_values(&["applied"]).inc();
            }
            Err(problem) => {
                let error = problem.to_string();
                tracing::error!(
                    error,
                    "the changed configuration is refused; the last good one stays"
                );
                state.problem = Some(error);
                self.0.metrics.success.set(0);
                self.0.metrics.reloads.with_label_values(&["refused"]).inc();
            }
        }
    }

    /// Takes a changed file over. Returns the keys that wait for a start.
    fn decide(&self, content: Content) -> Result<Vec<(&'static str, String)>, ConfigError> {
        let unreadable = |message| {
            let path = self.0.inputs.file.clone().unwrap_or_default();
            let place = Place::File { path, line: None };
            ConfigError(vec![Problem { place, path: String::new(), message }])
        };
        let text = content.map_err(unreadable)?;
        // What waits for a start must be right all the same, or that start would fail; and so must what is in effect till then.
        let settings = layers::settings(T::PROGRAM, &self.0.inputs, Some(&text))?;
        let running = self.current();
        let (settings, waiting) = keep_running(settings, &running.settings);
        let loaded =
            layers::loaded::<T>(settings).map_err(|error| until_a_start(error, &waiting))?;
        self.0.current.send_if_modified(|current| {
            let changed = current.config != loaded.config;
            *current = Arc::new(loaded);
            changed
        });
        Ok(waiting)
    }
}

/// Why a file that is right by itself is refused all the same.
fn until_a_start(mut error: ConfigError, waiting: &[(&'static str, String)]) -> ConfigError {
    let keys: Vec<_> = waiting.iter().map(|(key, _)| *key).collect();
    for problem in &mut error.0 {
        // Writing to a String cannot fail.
        let _ = write!(problem.message, " (a start is needed for {})", keys.join(", "));
    }
    error
}

/// Gives keys that need a start the value that is running.
fn keep_running(
    new: Vec<Setting>,
    running: &[Setting],
) -> (Vec<Setting>, Vec<(&'static str, String)>) {
    let mut waiting = Vec::new();
    let kept = new.into_iter().map(|setting| {
        let was = running.iter().find(|was| was.key.path == setting.key.path);
        match was {
            Some(was) if setting.key.change == Change::Restart && was.value != setting.value => {
                let value = setting.text.unwrap_or_else(|| "(not set)".to_owned());
                waiting.push((setting.key.path, value));
                was.clone()
            }
            _ => setting,
        }
    });
    let kept = kept.collect();
    (kept, waiting)
}

fn read(path: &Path) -> io::Result<String> {
    let mut text = String::new();
    let length = std::fs::File::open(path)?.take(MAX_BYTES + 1).read_to_string(&mut text)?;
    if u64::try_from(length).is_ok_and(|length| length <= MAX_BYTES) {
        Ok(text)
    } else {
        Err(io::Error::other("longer than 1 MiB"))
    }
}

#[derive(Debug)]
struct Metrics {
    success: IntGauge,
    last_success: Gauge,
    reloads: IntCounterVec,
}

impl Metrics {
    fn register(registry: &Registry) -> Result<Self, prometheus::Error> {
        let success = IntGauge::new(
            "headroom_config_reload_success",
            "1 if the configuration file as it is now is in effect, 0 if it has a problem",
        )?;
        let last_success = Gauge::new(
            "headroom_config_last_reload_success_timestamp_seconds",
            "When a configuration was last taken over, in seconds since the Unix epoch",
        )?;
        let options = Opts::new(
            "headroom_config_reloads_total",
            "Changes of the configuration file by what became of them",
        );
        let reloads = IntCounterVec::new(options, &["outcome"])?;
        for outcome in ["applied", "refused"] {
            reloads.with_label_values(&[outcome]);
        }
        registry.register(Box::new(success.clone()))?;
        registry.register(Box::new(last_success.clone()))?;
        registry.register(Box::new(reloads.clone()))?;
        Ok(Self { success, last_success, reloads })
    }

    fn in_effect(&self) {
        self.success.set(1);
        self.last_success.set(wall_now().as_millis() as f64 / 1000.0);
    }
}
