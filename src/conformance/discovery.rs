//! Cases 1 to 10: what the API server asks an adapter about itself.

use reqwest::header::{ETAG, IF_NONE_MATCH};
use serde_json::Value;

use super::authentication::believing;
use super::authorities::PROXY_NAME;
use super::case::{Case, Check, Outcome, Passed, Stop, expect};
use super::fixture::Backend;
use super::suite::{QUEUES, Suite};
use super::wire::{AGGREGATOR, Answer, Credentials};

const EXTERNAL: &str = "/apis/external.metrics.k8s.io/v1beta1";
const AGGREGATED: &str = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList";
const ADMIN: &[&str] = &["system:masters"];

pub(super) const CASES: [Case; 10] = [
    Case {
        number: 1,
        name: "five discovery requests at once are all answered",
        what: "Five times `GET /apis/external.metrics.k8s.io/v1beta1` at once: each 200 with an `APIResourceList` within 5 s.",
        consequence_for_hpa: "the APIService turns FailedDiscoveryCheck: all reads are 503",
        check: Check::OnTheWire(|suite| Box::pin(five_at_once(suite))),
    },
    Case {
        number: 2,
        name: "aggregated discovery is answered in version 2",
        what: "`GET /apis` with the `Accept` of the aggregator: an `APIGroupDiscoveryList` whose Content-Type carries `g`, `v` and `as`, with an ETag.",
        consequence_for_hpa: "none where the aggregator falls back; else metrics are hidden",
        check: Check::OnTheWire(|suite| Box::pin(aggregated(suite))),
    },
    Case {
        number: 3,
        name: "a known ETag of discovery is answered with 304",
        what: "The same with `If-None-Match`: 304 without a body.",
        consequence_for_hpa: "none; the API server reads the whole list again every minute",
        check: Check::OnTheWire(|suite| Box::pin(not_modified(suite))),
    },
    Case {
        number: 4,
        name: "discovery in plain JSON is the legacy list",
        what: "`GET /apis` with `Accept: application/json`: an `APIGroupList`, without the Content-Type of version 2.",
        consequence_for_hpa: "none; direct clients find no groups, or misread the list",
        check: Check::OnTheWire(|suite| Box::pin(legacy(suite))),
    },
    Case {
        number: 5,
        name: "discovery is answered while the backend is not",
        what: "With the backend down: `GET /apis` and the resource list are answered as ever, never with a 5xx.",
        consequence_for_hpa: "the group is Stale: `no known available metric versions found`",
        check: Check::OnTheWire(|suite| Box::pin(without_backend(suite))),
    },
    Case {
        number: 6,
        name: "discovery asks for no group of the aggregator's user",
        what: "The resource list for user `system:kube-aggregator` without groups: 200.",
        consequence_for_hpa: "the group turns Stale on API servers that use the legacy list",
        check: Check::OnTheWire(|suite| Box::pin(without_groups(suite))),
    },
    Case {
        number: 7,
        name: "custom metrics are a group that prefers v1beta2",
        what: "`GET /apis/custom.metrics.k8s.io`: an `APIGroup` with `preferredVersion` v1beta2.",
        consequence_for_hpa: "it reads v1beta1, or finds no version that it knows",
        check: Check::OnTheWire(|suite| Box::pin(custom_group(suite))),
    },
    Case {
        number: 8,
        name: "OpenAPI documents are served with an ETag, or are 404",
        what: "`GET /openapi/v2` and `/openapi/v3`: a document with an ETag, 304 when it is known; or 404.",
        consequence_for_hpa: "none; the API server asks again and logs errors",
        check: Check::OnTheWire(|suite| Box::pin(openapi(suite))),
    },
    Case {
        number: 9,
        name: "resources are listed with the verb get alone",
        what: "The resource list: `verbs` is `[\"get\"]` for each.",
        consequence_for_hpa: "none; deleting a namespace lists and deletes metrics, or hangs",
        check: Check::OnTheWire(|suite| Box::pin(verbs(suite))),
    },
    Case {
        number: 10,
        name: "a stopped adapter leaves the replicas as they are",
        what: "With the adapter stopped, the HPA's event says `the server is currently unable to handle the request`; the replicas stay.",
        consequence_for_hpa: "it scales without a number",
        check: Check::InCluster,
    },
];

async fn five_at_once(suite: &Suite) -> Outcome {
    let ask = || suite.get(EXTERNAL).by_aggregator(ADMIN).send();
    let (a, b, c, d, e) = tokio::join!(ask(), ask(), ask(), ask(), ask());
    for answer in [a?, b?, c?, d?, e?] {
        answer.kind("APIResourceList")?;
    }
    Ok(Passed::Wholly)
}

/// The answer to aggregated discovery, or a skip where an adapter legally does not speak it.
async fn ask_aggregated(suite: &Suite) -> Result<Answer, Stop> {
    suite.must_be_direct()?;
    let answer = suite.get("/apis").by_aggregator(ADMIN).accept(AGGREGATED).send().await?;
    if [404, 406].contains(&answer.status) {
        let reason = "the adapter has no aggregated discovery; the API server falls back";
        return Err(Stop::skip(reason));
    }
    Ok(answer)
}

fn is_aggregated(answer: &Answer) -> bool {
    let parts: Vec<&str> = answer.content_type().split(';').map(str::trim).collect();
    AGGREGATED.split(';').all(|part| parts.contains(&part))
}

async fn aggregated(suite: &Suite) -> Outcome {
    let answer = ask_aggregated(suite).await?;
    let list = answer.kind("APIGroupDiscoveryList")?;
    expect(is_aggregated(&answer), format!("Content-Type: {AGGREGATED}"), &answer)?;
    expect(answer.headers.contains_key(ETAG), "an ETag", &answer)?;
    let names = list["items"].as_array().into_iter().flatten();
    let known = names.filter_map(|item| item["metadata"]["name"].as_str()).any(is_metrics);
    expect(known, "a metrics group among its items", &answer)?;
    Ok(Passed::Wholly)
}

fn is_metrics(group: &str) -> bool {
    group.ends_with(".metrics.k8s.io")
}

/// Asks again with the ETag of an answer.
async fn again(suite: &Suite, path: &str, accept: &str, answer: &Answer) -> Result<(), Stop> {
    let tag = answer.header(ETAG.as_str()).ok_or_else(|| Stop::fail("an ETag", answer))?;
    let ask = suite.get(path).by_aggregator(ADMIN).accept(accept);
    let again = ask.header(IF_NONE_MATCH.as_str(), tag).send().await?;
    let right = again.status == 304 && again.body.is_empty();
    expect(right, format!("304 without a body for If-None-Match: {tag}"), &again)
}

async fn not_modified(suite: &Suite) -> Outcome {
    let answer = ask_aggregated(suite).await?;
    again(suite, "/apis", AGGREGATED, &answer).await?;
    Ok(Passed::Wholly)
}

async fn legacy(suite: &Suite) -> Outcome {
    suite.must_be_direct()?;
    let answer = suite.get("/apis").by_aggregator(&[]).accept("application/json").send().await?;
    if [404, 406].contains(&answer.status) {
        return Err(Stop::skip("the adapter lists no groups; the API server asks each by name"));
    }
    expect(!is_aggregated(&answer), "no Content-Type of version 2", &answer)?;
    let list = answer.kind("APIGroupList")?;
    let groups = list["groups"].as_array().into_iter().flatten();
    let known = groups.filter_map(|group| group["name"].as_str()).any(is_metrics);
    expect(known, "a metrics group among its groups", &answer)?;
    Ok(Passed::Wholly)
}

async fn without_backend(suite: &Suite) -> Outcome {
    let queues = suite.fixture().external(suite.queue(), &[], QUEUES[0].1).last(60, &[]);
    suite.stage(&queues.backend(Backend::Down)).await?;
    suite.get(EXTERNAL).by_aggregator(ADMIN).send().await?.kind("APIResourceList")?;
    match ask_aggregated(suite).await {
        Ok(answer) => {
            answer.kind("APIGroupDiscoveryList")?;
            Ok(Passed::Wholly)
        }
        Err(Stop::Skip(_)) => Ok(Passed::Wholly),
        Err(stop) => Err(stop),
    }
}

async fn without_groups(suite: &Suite) -> Outcome {
    suite.must_be_direct()?;
    let ask = suite.get(EXTERNAL).accept("application/json");
    if suite.options.front_proxy.is_some() {
        ask.by_aggregator(&[]).send().await?.kind("APIResourceList")?;
        return Ok(Passed::Wholly);
    }
    match suite.stage(&believing(suite, &suite.front_proxy.pem)).await {
        Err(Stop::Skip(_)) => {
            ask.send().await?.kind("APIResourceList")?;
            Ok(Passed::Without("the aggregator's own user: needs --client-cert"))
        }
        staged => {
            staged?;
            let proxy = Suite::certificate(&suite.front_proxy, PROXY_NAME)?;
            let ask = ask.by(Credentials::Certificate(proxy)).speaking_for(AGGREGATOR, &[]);
            ask.send().await?.kind("APIResourceList")?;
            Ok(Passed::Wholly)
        }
    }
}

async fn custom_group(suite: &Suite) -> Outcome {
    let answer = suite.get("/apis/custom.metrics.k8s.io").by_aggregator(&[]).send().await?;
    let custom = suite.has_control() || !suite.options.custom_metrics.is_empty();
    if answer.status == 404 && !custom {
        return Err(Stop::skip("no custom metrics are served here; needs --custom-metric"));
    }
    let group = answer.kind("APIGroup")?;
    let preferred = &group["preferredVersion"]["version"];
    expect(preferred == "v1beta2", "preferredVersion v1beta2", &answer)?;
    Ok(Passed::Wholly)
}

async fn openapi(suite: &Suite) -> Outcome {
    suite.must_be_direct()?;
    for (path, field) in [("/openapi/v2", "swagger"), ("/openapi/v3", "paths")] {
        let ask = suite.get(path).by_aggregator(&[]).accept("application/json");
        let answer = ask.send().await?;
        if answer.status == 404 {
            continue;
        }
        let document = answer.json()?;
        expect(document.get(field).is_some(), format!("a document with {field:?}"), &answer)?;
        if path == "/openapi/v2" {
            again(suite, path, "application/json", &answer).await?;
        }
    }
    Ok(Passed::Wholly)
}

async fn verbs(suite: &Suite) -> Outcome {
    let answer = suite.get(EXTERNAL).by_aggregator(ADMIN).send().await?;
    let list = answer.kind("APIResourceList")?;
    let resources: Vec<&Value> = list["resources"].as_array().into_iter().flatten().collect();
    expect(!resources.is_empty(), "at least one resource", &answer)?;
    let only_get = |resource: &&Value| resource["verbs"] == serde_json::json!(["get"]);
    expect(resources.iter().all(only_get), "verbs [\"get\"] of each resource", &answer)?;
    Ok(Passed::Wholly)
}
