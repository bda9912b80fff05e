//! Replica counts over time, and the one check of what scaling must look like.
//!
//! In: a Deployment, watched once a second. Out: a [`Timeline`], kept as an artefact, and the faults
//! that [`Expectation::faults`] finds in it. Never: a verdict on anything but the recorded rows.

use std::fmt::Write as _;
use std::fs;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow};
use k8s_openapi::api::apps::v1::Deployment;
use kube::{Api, Client};
use parking_lot::Mutex;
use serde_json::Value;
use tokio::task::AbortHandle;
use tokio::time::{Instant, MissedTickBehavior, interval, timeout};

use super::programs;

/// How long a look waits for the served demand.
const PATIENCE: Duration = Duration::from_secs(2);
/// Without a row for longer, nothing can be said of the time between.
const MAX_GAP: Duration = Duration::from_secs(10);

/// What was seen of one workload.
#[derive(Clone, Debug, Default)]
pub(crate) struct Timeline {
    rows: Vec<Row>,
    marks: Vec<(Duration, String)>,
    load: Option<(Duration, Option<Duration>)>,
}

/// One look.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Row {
    /// Since the recording began.
    pub(crate) at: Duration,
    /// `spec.replicas`: what the HPA decided.
    pub(crate) wanted: i32,
    /// `status.readyReplicas`.
    pub(crate) ready: i32,
    /// What the API serves as `headroom_demand`, or why it does not.
    pub(crate) demand: Result<f64, String>,
}

/// A recording that goes on.
#[derive(Debug)]
pub(crate) struct Recorder {
    title: String,
    began: Instant,
    timeline: Arc<Mutex<Timeline>>,
    task: AbortHandle,
}

impl Recorder {
    /// Begins to look at the Deployment, and at the demand of the policy of the same name.
    pub(crate) fn start(client: Client, namespace: &str, name: &str) -> Self {
        let began = Instant::now();
        let timeline = Arc::new(Mutex::new(Timeline::default()));
        let task = tokio::spawn(record(
            client,
            namespace.to_owned(),
            name.to_owned(),
            began,
            Arc::clone(&timeline),
        ));
        Self { title: namespace.to_owned(), began, timeline, task: task.abort_handle() }
    }

    /// Names the artefact, which is otherwise named after the namespace.
    pub(crate) fn titled(mut self, title: String) -> Self {
        self.title = title;
        self
    }

    /// Notes that the load begins now.
    pub(crate) fn load_begins(&self) {
        let at = self.began.elapsed();
        self.timeline.lock().load = Some((at, None));
        self.mark("load begins");
    }

    /// Notes that the load ended now.
    pub(crate) fn load_ends(&self) {
        let at = self.began.elapsed();
        if let Some((_, end)) = &mut self.timeline.lock().load {
            *end = Some(at);
        }
        self.mark("load ends");
    }

    /// Notes anything else in the artefact.
    pub(crate) fn mark(&self, what: &str) {
        self.timeline.lock().marks.push((self.began.elapsed(), what.to_owned()));
    }

    /// The newest row.
    pub(crate) fn newest(&self) -> Option<Row> {
        self.timeline.lock().rows.last().cloned()
    }

    /// Ends the recording and stores it below `target/it-artifacts/`.
    ///
    /// # Errors
    /// The artefact cannot be written.
    pub(crate) fn finish(&self) -> Result<Timeline> {
        self.task.abort();
        let timeline = self.timeline.lock().clone();
        timeline.store(&self.title)?;
        Ok(timeline)
    }
}

impl Drop for Recorder {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn record(
    client: Client,
    namespace: String,
    name: String,
    began: Instant,
    timeline: Arc<Mutex<Timeline>>,
) {
    let deployments = Api::<Deployment>::namespaced(client.clone(), &namespace);
    let mut ticks = interval(Duration::from_secs(1));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let Ok(Some(deployment)) = deployments.get_opt(&name).await else { continue };
        let asked = timeout(PATIENCE, demand(&client, &namespace, &name)).await;
        let demand = asked.unwrap_or_else(|_| Err(anyhow!("no answer in {PATIENCE:?}")));
        let row = Row {
            at: began.elapsed(),
            wanted: deployment.spec.replicas.unwrap_or(0),
            ready: deployment.status.and_then(|status| status.ready_replicas).unwrap_or(0),
            demand: demand.map_err(|error| format!("{error:#}")),
        };
        timeline.lock().rows.push(row);
    }
}

/// What the HPA would be answered now.
///
/// # Errors
/// The API refuses, or answers with another number of items than one.
pub(crate) async fn demand(client: &Client, namespace: &str, policy: &str) -> Result<f64> {
    let path = format!(
        "/apis/external.metrics.k8s.io/v1beta1/namespaces/{namespace}/headroom_demand?labelSelector=policy%3D{policy}"
    );
    let list: Value = client.request(http::Request::get(path).body(Vec::new())?).await?;
    let items = list["items"].as_array().context("no items")?;
    anyhow::ensure!(items.len() == 1, "{} items", items.len());
    let text = items[0]["value"].as_str().context("no value")?;
    Ok(text.parse::<headroom::quantity::Quantity>()?.to_f64())
}

impl Timeline {
    /// The rows from `from` on.
    pub(crate) fn rows_from(&self, from: Duration) -> impl Iterator<Item = &Row> {
        self.rows.iter().filter(move |row| row.at >= from)
    }

    /// The times in which nobody looked: a check of such a timeline would pass unseen.
    pub(crate) fn gaps(&self) -> Vec<String> {
        let pairs = self.rows.windows(2).filter(|pair| pair[1].at > pair[0].at + MAX_GAP);
        pairs
            .map(|pair| format!("nothing seen from {:?} to {:?}", pair[0].at, pair[1].at))
            .collect()
    }

    fn store(&self, name: &str) -> Result<PathBuf> {
        let dir = programs::checkout().join("target/it-artifacts");
        fs::create_dir_all(&dir)?;
        let mut csv = String::from("seconds,replicas_wanted,replicas_ready,demand,event\n");
        let mut marks = self.marks.iter().peekable();
        for row in &self.rows {
            let mut events = Vec::new();
            while let Some((_, what)) = marks.next_if(|(at, _)| *at <= row.at) {
                events.push(what.as_str());
            }
            let (demand, error) = match &row.demand {
                Ok(demand) => (demand.to_string(), None),
                Err(error) => (String::new(), Some(error.as_str())),
            };
            events.extend(error);
            let events = events.join("; ").replace(['"', '\n'], " ");
            let seconds = row.at.as_secs_f64();
            writeln!(csv, "{seconds:.1},{},{},{demand},\"{events}\"", row.wanted, row.ready)?;
        }
        // A reason in the title may hold a path.
        let path = dir.join(format!("{}.csv", name.replace('/', "_")));
        fs::write(&path, csv)?;
        eprintln!("timeline: {}", path.display());
        Ok(path)
    }
}

/// What scaling under a load that begins and ends must look like.
#[derive(Clone, Debug)]
pub(crate) struct Expectation {
    /// `minReplicas`, which is what the idle workload has.
    pub(crate) min: i32,
    /// The right size under the load; one off is fine.
    pub(crate) right: i32,
    /// After the load begins, until then.
    pub(crate) up_within: Duration,
    /// After the load ends, until then; `None` where nobody looks at the way down.
    pub(crate) down_within: Option<Duration>,
}

impl Expectation {
    /// Every way in which the timeline is not as expected; empty is a pass.
    pub(crate) fn faults(&self, timeline: &Timeline) -> Vec<String> {
        let Some((began, Some(ended))) = timeline.load else {
            return vec!["no load was recorded".to_owned()];
        };
        let rows = &timeline.rows;
        let within = |from: Duration, to: Duration| {
            rows.iter().filter(move |row| row.at >= from && row.at < to)
        };
        let mut faults = timeline.gaps();
        let up_by = began + self.up_within;
        if ended < up_by {
            faults.push("the load ended too early to judge".to_owned());
        }
        match within(Duration::ZERO, began).next_back() {
            Some(row) if row.wanted == self.min => {}
            other => faults.push(format!("before the load: {other:?}, expected {}", self.min)),
        }
        let near = |row: &Row| (row.wanted - self.right).abs() <= 1;
        if !within(began, up_by).any(near) {
            let best = within(began, up_by).map(|row| row.wanted).max();
            faults.push(format!(
                "{:?} after the load began: at most {best:?}, expected {}",
                self.up_within, self.right
            ));
        }
        if let Some(row) = within(up_by, ended).find(|row| !near(row)) {
            faults.push(format!("under load: {row:?}, expected {}", self.right));
        }
        if let Some(row) = rows.iter().find(|row| row.wanted > self.right + 1) {
            faults.push(format!("overshot: {row:?}, expected {}", self.right));
        }
        let Some(down_within) = self.down_within else { return faults };
        match within(ended, ended + down_within).next_back() {
            Some(row) if row.wanted == self.min => {}
            other => faults
                .push(format!("{down_within:?} after the load: {other:?}, expected {}", self.min)),
        }
        faults
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A row every second: idle for 5 s, load for 20 s, then 20 s without.
    fn faults(replicas: impl Fn(u64) -> i32) -> Vec<String> {
        let row = |second| Row {
            at: Duration::from_secs(second),
            wanted: replicas(second),
            ready: 0,
            demand: Ok(0.0),
        };
        let timeline = Timeline {
            rows: (0..45).map(row).collect(),
            marks: Vec::new(),
            load: Some((Duration::from_secs(5), Some(Duration::from_secs(25)))),
        };
        let ten = Duration::from_secs(10);
        Expectation { min: 1, right: 6, up_within: ten, down_within: Some(ten) }.faults(&timeline)
    }

    fn check(replicas: impl Fn(u64) -> i32, fault: &str) {
        let faults = faults(replicas);
        assert!(faults.iter().any(|found| found.starts_with(fault)), "{fault:?} not in {faults:?}");
    }

    #[test]
    fn a_timeline_that_follows_the_load_has_no_faults() {
        assert_eq!(faults(|second| if (9..30).contains(&second) { 6 } else { 1 }), [""; 0]);
    }

    #[test]
    fn a_constant_is_faulted_whatever_it_is() {
        for constant in 0..12 {
            assert_ne!(faults(|_| constant), [""; 0], "{constant}");
        }
    }

    #[test]
    fn a_time_in_which_nobody_looked_is_a_fault() {
        let row =
            |second| Row { at: Duration::from_secs(second), wanted: 1, ready: 1, demand: Ok(0.0) };
        let seen = |rows: Vec<Row>| Timeline { rows, ..Timeline::default() }.gaps();
        assert_eq!(seen((0..30).map(row).collect()), [""; 0]);
        assert_eq!(seen(vec![row(0), row(1), row(40)]), ["nothing seen from 1s to 40s"]);
    }

    #[test]
    fn each_deviation_is_named() {
        check(|second| if (16..30).contains(&second) { 6 } else { 1 }, "10s after the load began");
        check(|second| if (9..20).contains(&second) { 6 } else { 1 }, "under load");
        check(|second| if second == 9 { 8 } else { 6 }, "overshot");
        check(|second| if second >= 9 { 6 } else { 1 }, "10s after the load:");
        check(|_| 6, "before the load");
    }
}
