//! `headroom dashboards`: the Grafana dashboards, to import or to provision.
//!
//! In: `dashboards/*.json`, which are in the program. Out: their names, one of them, or a ConfigMap for each, with the label by
//! which Grafana's sidecar finds it. Never: a dashboard that is not in a file.

use std::io::Write as _;

use anyhow::Result;
use clap::ValueEnum as _;
use serde_json::json;

use crate::cli::{Dashboard, DashboardsArgs};

impl Dashboard {
    /// As it is asked for: its file's name, without the ending.
    fn name(self) -> String {
        self.to_possible_value().expect("no dashboard is hidden").get_name().to_owned()
    }

    const fn text(self) -> &'static str {
        match self {
            Self::ServiceRuntime => include_str!("../../dashboards/service-runtime.json"),
            Self::Scaling => include_str!("../../dashboards/scaling.json"),
            Self::Adapter => include_str!("../../dashboards/adapter.json"),
        }
    }
}

/// Prints what was asked for.
///
/// # Errors
/// Standard output cannot be written.
pub(super) fn print(args: &DashboardsArgs) -> Result<()> {
    let text = match (args.name, args.namespace.as_deref()) {
        (chosen, Some(namespace)) => config_maps(chosen, namespace)?,
        (Some(chosen), None) => chosen.text().to_owned(),
        (None, None) => all().map(|board| board.name() + "\n").collect(),
    };
    std::io::stdout().write_all(text.as_bytes())?;
    Ok(())
}

fn all() -> impl Iterator<Item = Dashboard> {
    Dashboard::value_variants().iter().copied()
}

/// A list of ConfigMaps as JSON, which `kubectl apply -f -` takes: of one dashboard, else of all.
fn config_maps(chosen: Option<Dashboard>, namespace: &str) -> Result<String> {
    let of = |board: Dashboard| {
        json!({
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {
                "name": format!("headroom-dashboard-{}", board.name()),
                "namespace": namespace,
                "labels": {"app.kubernetes.io/name": "headroom", "grafana_dashboard": "1"},
                "annotations": {"grafana_folder": "Headroom"},
            },
            "data": {format!("headroom-{}.json", board.name()): board.text()},
        })
    };
    let items: Vec<_> = match chosen {
        Some(board) => vec![of(board)],
        None => all().map(of).collect(),
    };
    let list = json!({"apiVersion": "v1", "kind": "List", "items": items});
    Ok(serde_json::to_string_pretty(&list)? + "\n")
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use serde_json::Value;

    use super::*;
    use crate::command::asked_metrics;

    fn boards() -> Vec<(String, Value)> {
        let parsed = |board: Dashboard| {
            (board.name(), serde_json::from_str(board.text()).expect("a dashboard is JSON"))
        };
        all().map(parsed).collect()
    }

    /// Name of the board, and the panel.
    fn panels() -> Vec<(String, Value)> {
        let of = |(name, board): (String, Value)| {
            let panels = board["panels"].as_array().expect("panels").clone();
            panels.into_iter().map(move |panel| (name.clone(), panel))
        };
        boards().into_iter().flat_map(of).collect()
    }

    fn is_row(panel: &Value) -> bool {
        panel["type"] == "row"
    }

    /// Every query: of panels, of annotations, of variables.
    fn queries() -> Vec<(String, String)> {
        let mut found = Vec::new();
        for (name, board) in boards() {
            let panels = board["panels"].as_array().into_iter().flatten();
            let targets = panels.flat_map(|panel| panel["targets"].as_array()).flatten();
            let annotations = board["annotations"]["list"].as_array().into_iter().flatten();
            let variables = board["templating"]["list"].as_array().into_iter().flatten();
            let texts = targets
                .chain(annotations)
                .map(|query| &query["expr"])
                .chain(variables.map(|variable| &variable["query"]["query"]));
            found.extend(
                texts.filter_map(Value::as_str).map(|text| (name.to_owned(), text.to_owned())),
            );
        }
        found
    }

    #[test]
    fn every_metric_in_the_dashboards_is_in_a_catalogue() {
        let mut seen = BTreeSet::new();
        for (board, query) in queries() {
            for word in asked_metrics::in_text(&query) {
                let known = asked_metrics::is_known(word) || asked_metrics::is_of_a_histogram(word);
                assert!(known, "no metric is named {word}, which {board} reads: {query}");
                seen.insert(word.to_owned());
            }
        }
        assert!(seen.len() > 40, "only {seen:?} were found");
    }

    #[test]
    fn every_panel_says_what_it_shows_and_in_which_unit() {
        for (board, panel) in panels().iter().filter(|(_, panel)| !is_row(panel)) {
            let title = panel["title"].as_str().expect("a title");
            let description = panel["description"].as_str().unwrap_or_default();
            assert!(description.len() > 20, "{board}: {title} has no description");
            assert_eq!(panel["datasource"]["uid"], "${datasource}", "{board}: {title}");
            if ["timeseries", "stat"].contains(&panel["type"].as_str().unwrap_or_default()) {
                assert!(panel["fieldConfig"]["defaults"]["unit"].is_string(), "{board}: {title}");
                let targets = panel["targets"].as_array().expect("targets");
                assert!(targets.iter().all(|target| target["legendFormat"] != ""), "{title}");
            }
        }
    }

    #[test]
    fn panels_have_ids_of_their_own_and_do_not_lie_on_one_another() {
        for (board, content) in boards() {
            let panels = content["panels"].as_array().expect("panels");
            let ids: BTreeSet<_> = panels.iter().map(|panel| panel["id"].as_u64()).collect();
            assert_eq!(ids.len(), panels.len(), "{board}");
            let mut taken = BTreeSet::new();
            for panel in panels {
                let place = |key: &str| panel["gridPos"][key].as_u64().expect("a place");
                assert!(place("x") + place("w") <= 24, "{board}: {}", panel["title"]);
                for x in place("x")..place("x") + place("w") {
                    for y in place("y")..place("y") + place("h") {
                        assert!(taken.insert((x, y)), "{board}: {} covers another", panel["title"]);
                    }
                }
            }
        }
    }

    #[test]
    fn a_config_map_holds_the_file_as_it_is_under_the_label_of_grafanas_sidecar() {
        let list = config_maps(None, "monitoring").expect("JSON");
        let list: Value = serde_json::from_str(&list).expect("JSON");
        let items = list["items"].as_array().expect("items");
        assert_eq!(items.len(), 3);
        for (item, board) in items.iter().zip(all()) {
            assert_eq!(item["metadata"]["labels"]["grafana_dashboard"], "1");
            assert_eq!(item["metadata"]["namespace"], "monitoring");
            assert_eq!(item["data"][format!("headroom-{}.json", board.name())], board.text());
        }
        let one = config_maps(Some(Dashboard::Scaling), "a").expect("JSON");
        assert!(one.contains("headroom-dashboard-scaling") && !one.contains("service-runtime"));
    }
}
