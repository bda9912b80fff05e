//! What kube-apiserver and kubectl make of our discovery and OpenAPI documents.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use crate::support::shared::{Cluster, eventually, run, share};

/// Name, group and version, scope, kind and verbs, as `kubectl api-resources` shows them.
const LISTED: [[&str; 5]; 2] = [
    ["custommetrics", "custom.metrics.k8s.io/v1beta2", "true", "MetricValueList", "get"],
    [
        "externalmetrics",
        "external.metrics.k8s.io/v1beta1",
        "true",
        "ExternalMetricValueList",
        "get",
    ],
];

/// kube-apiserver fetches documents again at least every minute.
const FETCHED: Duration = Duration::from_secs(120);

fn raw(cluster: &Cluster, path: &str) -> Result<Value> {
    let text = cluster.plane.kubectl(&["get", "--raw", path])?;
    serde_json::from_str(&text).with_context(|| format!("{path}: {text}"))
}

#[test]
fn kubectl_lists_the_groups_that_are_served_and_each_in_the_preferred_version() {
    run(async {
        let cluster = share().await?;
        drop(cluster.adapter().await?);
        let listed = eventually(FETCHED, "the resources in discovery", async || {
            let table = cluster.plane.kubectl(&["api-resources", "-o", "wide"])?;
            let rows = table.lines().map(|row| row.split_whitespace().collect::<Vec<_>>());
            let ours: Vec<Vec<String>> = rows
                .filter(|row| row.iter().any(|word| word.contains("metrics.k8s.io/")))
                .map(|row| row.into_iter().map(str::to_owned).collect())
                .collect();
            Ok((ours.len() >= LISTED.len()).then_some(ours))
        })
        .await?;
        ensure!(listed == LISTED, "{listed:?}");
        let versions = cluster.plane.kubectl(&["api-versions"])?;
        let ours = versions.lines().filter(|version| version.contains("metrics.k8s.io"));
        let expected = [
            "custom.metrics.k8s.io/v1beta1",
            "custom.metrics.k8s.io/v1beta2",
            "external.metrics.k8s.io/v1beta1",
        ];
        ensure!(ours.eq(expected), "{versions}");
        let group = raw(&cluster, "/apis/custom.metrics.k8s.io")?;
        ensure!(group["preferredVersion"]["version"] == "v1beta2", "{group}");
        Ok(())
    });
}

#[test]
fn kubectl_explains_what_a_metric_looks_like() {
    run(async {
        let cluster = share().await?;
        drop(cluster.adapter().await?);
        for (version, field, expected) in [
            (
                "external.metrics.k8s.io/v1beta1",
                "externalmetrics",
                "items\t<[]ExternalMetricValue>",
            ),
            (
                "external.metrics.k8s.io/v1beta1",
                "externalmetrics.items",
                "metricLabels\t<map[string]string>",
            ),
            (
                "external.metrics.k8s.io/v1beta1",
                "externalmetrics.items.window",
                "Over how many seconds",
            ),
            ("custom.metrics.k8s.io/v1beta2", "custommetrics.items.metric", "selector\t<Object>"),
            ("custom.metrics.k8s.io/v1beta2", "custommetrics.items", "windowSeconds\t<integer>"),
            ("custom.metrics.k8s.io/v1beta1", "custommetrics.items", "metricName\t<string>"),
        ] {
            let flag = format!("--api-version={version}");
            let mut last = String::new();
            let said = eventually(FETCHED, &format!("{version} {field}"), async || {
                let said = cluster.plane.kubectl(&["explain", field, &flag]);
                last = said.unwrap_or_else(|error| error.to_string());
                Ok(last.contains(expected).then_some(()))
            })
            .await;
            said.with_context(|| format!("expected {expected:?} in: {last}"))?;
        }
        Ok(())
    });
}

#[test]
fn kube_apiserver_takes_our_schemas_in_under_their_own_names() {
    run(async {
        let cluster = share().await?;
        drop(cluster.adapter().await?);
        let name = |rest: &str| format!("io.k8s.metrics.pkg.apis.{rest}");
        let wanted = [
            name("custom_metrics.v1beta1.MetricValueList"),
            name("custom_metrics.v1beta2.MetricValueList"),
            name("external_metrics.v1beta1.ExternalMetricValueList"),
        ];
        let v2 = eventually(FETCHED, "our schemas in /openapi/v2", async || {
            let v2 = raw(&cluster, "/openapi/v2")?;
            Ok(wanted.iter().all(|name| v2["definitions"][name].is_object()).then_some(v2))
        })
        .await?;
        let paths = v2["paths"].as_object().context("no paths")?;
        let external = "/apis/external.metrics.k8s.io/v1beta1/namespaces/{namespace}/{metric}";
        let answers = &paths[external]["get"]["responses"]["200"]["schema"]["$ref"];
        ensure!(answers == &json!(format!("#/definitions/{}", wanted[2])), "{answers}");
        let definitions = v2["definitions"].as_object().context("no definitions")?;
        // What kube-apiserver calls a schema whose name another document has with other content.
        let renamed: Vec<&String> = definitions
            .keys()
            .filter(|name| name.rsplit_once("_v").is_some_and(is_number))
            .collect();
        ensure!(renamed.is_empty(), "{renamed:?}");
        for (version, list) in [
            ("external.metrics.k8s.io/v1beta1", &wanted[2]),
            ("custom.metrics.k8s.io/v1beta1", &wanted[0]),
            ("custom.metrics.k8s.io/v1beta2", &wanted[1]),
        ] {
            // It is another loop of kube-apiserver that fetches these.
            eventually(FETCHED, &format!("our schemas of {version}"), async || {
                let v3 = raw(&cluster, &format!("/openapi/v3/apis/{version}")).ok();
                Ok(v3.filter(|v3| v3["components"]["schemas"][list].is_object()))
            })
            .await?;
        }
        Ok(())
    });
}

fn is_number((_, text): (&str, &str)) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit())
}

#[test]
fn a_resource_that_only_stands_for_metrics_says_which_there_are() {
    run(async {
        let cluster = share().await?;
        drop(cluster.adapter().await?);
        let path = "/apis/external.metrics.k8s.io/v1beta1/namespaces/default/externalmetrics";
        let said =
            cluster.plane.kubectl(&["get", "--raw", path]).err().context("it is no metric")?;
        ensure!(format!("{said:#}").contains("there are: headroom_demand, "), "{said:#}");
        Ok(())
    });
}
