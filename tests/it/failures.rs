//! What is lost must not lower replicas: the adapter, some pods, one of several signals.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use k8s_openapi::api::autoscaling::v2::HorizontalPodAutoscaler;
use k8s_openapi::api::core::v1::Pod;
use kube::Api;
use kube::api::ListParams;
use serde_json::json;
use tokio::time::{Instant, sleep};

use crate::support::direct;
use crate::support::exporter::Exporter;
use crate::support::load::{Load, LoadDriver};
use crate::support::process::Signal;
use crate::support::shared::{Cluster, alone, eventually, run, share};
use crate::support::timeline::{Recorder, demand};
use crate::support::workload::{PolicyOptions, SampleOptions, create, policy, sample_deployment};

const NAME: &str = "sample";
const MINUTE: Duration = Duration::from_secs(60);
/// After the adapter itself answers, until it does so through kube-apiserver.
const AGGREGATED: Duration = Duration::from_secs(30);

fn tasks(total: f64) -> Load {
    Load::held("/tasks", "count", total, Duration::from_secs(5))
}

async fn wanted(recorder: &Recorder, what: &str, is: impl Fn(i32) -> bool) -> Result<i32> {
    let ask = async || Ok(recorder.newest().map(|row| row.wanted).filter(|wanted| is(*wanted)));
    eventually(MINUTE, what, ask).await
}

/// The reason of the HPA's condition ScalingActive, with its status.
async fn scaling_active(cluster: &Cluster, namespace: &str) -> Result<Option<(String, String)>> {
    let hpas = Api::<HorizontalPodAutoscaler>::namespaced(cluster.plane.client(), namespace);
    let status = hpas.get(NAME).await?.status;
    let conditions = status.and_then(|status| status.conditions).unwrap_or_default();
    let active = conditions.into_iter().find(|condition| condition.type_ == "ScalingActive");
    Ok(active.map(|active| (active.status, active.reason.unwrap_or_default())))
}

#[test]
fn a_killed_adapter_changes_no_replicas_and_answers_soon_after_its_return() {
    run(async {
        let cluster = alone().await?;
        drop(cluster.adapter().await?);
        let (namespace, client) = ("fails-adapter", cluster.plane.client());
        cluster.namespace(namespace).await?;
        let sample = sample_deployment(NAME, &SampleOptions::default());
        create(client.clone(), namespace, sample).await?;
        let signals = json!([{"name": "tasks", "tasks": {"threshold": "100"}}]);
        let options = PolicyOptions::default();
        create(client.clone(), namespace, policy(NAME, &signals, &options)).await?;
        let recorder = Recorder::start(client.clone(), namespace, NAME);
        let _load = LoadDriver::start(client, namespace, NAME, tasks(280.0))?;
        let before = wanted(&recorder, "three replicas", |wanted| wanted == 3).await?;

        cluster.adapter().await?.kill();
        let killed = Instant::now();
        recorder.mark("adapter killed");
        let failed = ("False".to_owned(), "FailedGetExternalMetric".to_owned());
        eventually(MINUTE, "FailedGetExternalMetric", async || {
            Ok(scaling_active(&cluster, namespace).await?.filter(|active| *active == failed))
        })
        .await?;
        // Longer than the window and the stabilisation together.
        sleep(Duration::from_secs(35)).await;

        let mut adapter = cluster.adapter().await?;
        adapter.start_again()?;
        let returned = Instant::now();
        recorder.mark("adapter started");
        let client = direct::hpa_client(&cluster.plane, &adapter.url()).await?;
        eventually(MINUTE, "an answer", async || Ok(client.demand(namespace, NAME).await.ok()))
            .await?;
        let took = returned.elapsed();
        recorder.mark(&format!("asked directly it answers after {took:.1?}"));
        let limit = 2 * options.interval + Duration::from_secs(2);
        let plane = cluster.plane.client();
        eventually(MINUTE, "an answer through kube-apiserver", async || {
            Ok(demand(&plane, namespace, NAME).await.ok())
        })
        .await?;
        let aggregated = returned.elapsed().saturating_sub(took);
        recorder.mark(&format!("through kube-apiserver it answers {aggregated:.1?} later"));
        adapter.wait_available(&cluster.plane).await?;
        drop(adapter);
        recorder.mark("available");
        sleep(Duration::from_secs(35)).await;
        let timeline = recorder.finish()?;
        cluster.delete_namespace(namespace).await?;
        ensure!(timeline.gaps().is_empty(), "{:?}", timeline.gaps());
        ensure!(took <= limit, "asked directly it answers after {took:?}, more than {limit:?}");
        ensure!(
            aggregated <= AGGREGATED,
            "through kube-apiserver it answers {aggregated:?} later, more than {AGGREGATED:?}"
        );
        let gone = killed.elapsed();
        let lower = timeline.rows_from(Duration::ZERO).skip_while(|row| row.wanted < before);
        let lower: Vec<_> = lower.filter(|row| row.wanted != before).collect();
        ensure!(lower.is_empty(), "in {gone:?} replicas were not kept at {before}: {lower:?}");
        Ok(())
    });
}

/// Pods that hang, and the tasks of all pods together before and after the load grows.
struct Hang {
    namespace: &'static str,
    replicas: i32,
    hung: usize,
    tasks_before: f64,
    tasks_after: f64,
    /// Pods' worth of the tasks after the load grew.
    right: i32,
}

/// Some pods accept connections and never answer; then the load grows.
async fn check_hung(hang: Hang) -> Result<()> {
    let Hang { namespace, replicas, hung, tasks_before, tasks_after, right } = hang;
    let cluster = share().await?;
    drop(cluster.adapter().await?);
    let client = cluster.plane.client();
    cluster.namespace(namespace).await?;
    let options = SampleOptions { replicas, ..SampleOptions::default() };
    create(client.clone(), namespace, sample_deployment(NAME, &options)).await?;
    let recorder = Recorder::start(client.clone(), namespace, NAME);
    eventually(MINUTE, "ready pods", async || {
        Ok(recorder.newest().filter(|row| row.ready == replicas))
    })
    .await?;
    let first = LoadDriver::start(client.clone(), namespace, NAME, tasks(tasks_before))?;
    sleep(Duration::from_secs(8)).await;
    let signals = json!([{"name": "tasks", "base": "0", "tasks": {"threshold": "100"}}]);
    create(client.clone(), namespace, policy(NAME, &signals, &PolicyOptions::default())).await?;
    wait_for_active_hpa(&cluster, namespace).await?;
    stop_pods(&cluster, namespace, hung).await?;
    recorder.mark(&format!("{hung} of {replicas} pods hang"));
    // Past staleAfter: until then the last sample of a hung pod counts beside the load that left it.
    sleep(Duration::from_secs(50)).await;
    let settled = recorder.newest().context("a row")?.wanted;
    let _second = LoadDriver::start(client, namespace, NAME, tasks(tasks_after - tasks_before))?;
    recorder.mark("load grows");
    let grown = wanted(&recorder, "the right size", |wanted| wanted >= right).await;
    recorder.mark(&first.outcome());
    let timeline = recorder.finish()?;
    cluster.delete_namespace(namespace).await?;
    let fallen: Vec<_> =
        timeline.rows_from(Duration::ZERO).filter(|row| row.wanted < replicas).collect();
    ensure!(timeline.gaps().is_empty(), "{:?}", timeline.gaps());
    ensure!(fallen.is_empty(), "scaled down: {fallen:?}");
    ensure!(settled < right, "{settled} replicas before the load grew: nothing was left to show");
    grown?;
    Ok(())
}

async fn wait_for_active_hpa(cluster: &Cluster, namespace: &str) -> Result<()> {
    let hpas = Api::<HorizontalPodAutoscaler>::namespaced(cluster.plane.client(), namespace);
    eventually(MINUTE, "an active HPA", async || {
        if hpas.get_opt(NAME).await?.is_none() {
            return Ok(None);
        }
        let active = scaling_active(cluster, namespace).await?;
        Ok(active.filter(|(status, _)| status == "True").map(drop))
    })
    .await
}

async fn stop_pods(cluster: &Cluster, namespace: &str, count: usize) -> Result<()> {
    let pods = Api::<Pod>::namespaced(cluster.plane.client(), namespace);
    let listed = pods.list(&ListParams::default()).await?.items;
    let names = listed.iter().filter_map(|pod| pod.metadata.name.as_deref());
    for pod in names.take(count) {
        ensure!(cluster.kubelet.signal(namespace, pod, Signal::Stop), "{pod} has no process");
    }
    Ok(())
}

#[test]
fn one_hung_pod_of_two_lowers_nothing_and_stops_no_scale_up() {
    run(check_hung(Hang {
        namespace: "hangs-one-of-two",
        replicas: 2,
        hung: 1,
        tasks_before: 180.0,
        tasks_after: 480.0,
        right: 5,
    }));
}

#[test]
fn three_hung_pods_of_ten_lower_nothing_and_stop_no_scale_up() {
    run(check_hung(Hang {
        namespace: "hangs-three-of-ten",
        replicas: 10,
        hung: 3,
        tasks_before: 950.0,
        tasks_after: 1780.0,
        right: 18,
    }));
}

#[test]
fn losing_the_driving_signal_keeps_the_replicas() {
    run(async {
        let cluster = share().await?;
        drop(cluster.adapter().await?);
        let (namespace, client) = ("fails-signal", cluster.plane.client());
        cluster.namespace(namespace).await?;
        let both = |queue: u32| {
            format!(
                "# TYPE tokio_alive_tasks gauge\ntokio_alive_tasks 20\n\
                 # TYPE queue_depth gauge\nqueue_depth {queue}\n"
            )
        };
        let exporter = Exporter::new(&cluster.plane, namespace, &both(45))?;
        create(client.clone(), namespace, exporter.deployment(NAME, 1)).await?;
        let signals = json!([
            {"name": "tasks", "base": "0", "tasks": {"threshold": "100"}},
            {"name": "queue", "metric": {"name": "queue_depth", "aggregate": "Max", "threshold": "10"}},
        ]);
        let policy = policy(NAME, &signals, &PolicyOptions::default());
        create(client.clone(), namespace, policy).await?;
        let recorder = Recorder::start(client.clone(), namespace, NAME);
        wanted(&recorder, "five replicas", |wanted| wanted == 5).await?;

        exporter.show("# TYPE tokio_alive_tasks gauge\ntokio_alive_tasks 20\n")?;
        recorder.mark("queue_depth lost");
        let refusal = eventually(MINUTE, "an error", async || {
            Ok(demand(&client, namespace, NAME).await.err().map(|error| format!("{error:#}")))
        })
        .await?;
        sleep(Duration::from_secs(50)).await;
        let kept = recorder.newest().context("a row")?.wanted;
        exporter.show(&both(15))?;
        recorder.mark("queue_depth back");
        let after = wanted(&recorder, "two replicas", |wanted| wanted == 2).await;
        let timeline = recorder.finish()?;
        cluster.delete_namespace(namespace).await?;
        ensure!(timeline.gaps().is_empty(), "{:?}", timeline.gaps());
        ensure!(refusal.contains("queue"), "the error does not name the signal: {refusal}");
        ensure!(kept == 5, "{kept} replicas, 5 before");
        after?;
        Ok(())
    });
}
