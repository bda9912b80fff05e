//! `headroom rules`: the recording rules and alerts, as Prometheus or as the Prometheus Operator takes them.
//!
//! In: `dashboards/rules/headroom.rules.yaml`, which is in the program. Out: that text, or a PrometheusRule with the same
//! groups. Never: a rule that is not in the file.

use std::io::Write as _;

use anyhow::Result;

use crate::cli::{RulesArgs, RulesFormat};

/// The single source of the rules.
const RULES: &str = include_str!("../../dashboards/rules/headroom.rules.yaml");

const PROMETHEUS_RULE: &str = "\
# Made from dashboards/rules/headroom.rules.yaml by `headroom rules --output kubernetes`.
apiVersion: monitoring.coreos.com/v1
kind: PrometheusRule
metadata:
  name: headroom
  namespace: headroom-system
spec:
";

/// Prints the rules.
///
/// # Errors
/// Standard output cannot be written.
pub(super) fn print(args: RulesArgs) -> Result<()> {
    let text = match args.output {
        RulesFormat::Prometheus => RULES.to_owned(),
        RulesFormat::Kubernetes => prometheus_rule(),
    };
    std::io::stdout().write_all(text.as_bytes())?;
    Ok(())
}

/// The groups under `spec`, by indentation: a rule is text for Prometheus and stays as it was written.
fn prometheus_rule() -> String {
    let mut text = PROMETHEUS_RULE.to_owned();
    for line in RULES.lines().skip_while(|line| *line != "groups:") {
        if !line.is_empty() {
            text.push_str("  ");
            text.push_str(line);
        }
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use serde_json::Value;

    use super::*;
    use crate::command::asked_metrics;
    use crate::held_docs;

    fn parsed(yaml: &str) -> Value {
        serde_saphyr::from_str(yaml).expect("the rules are YAML")
    }

    fn rules() -> Vec<Value> {
        let file = parsed(RULES);
        let groups = file["groups"].as_array().expect("groups").clone();
        groups.iter().flat_map(|group| group["rules"].as_array().expect("rules").clone()).collect()
    }

    fn alerts() -> Vec<(String, Value)> {
        let named = |rule: Value| Some((rule["alert"].as_str()?.to_owned(), rule));
        rules().into_iter().filter_map(named).collect()
    }

    #[test]
    fn the_operators_object_holds_the_same_groups() {
        let object = prometheus_rule();
        assert_eq!(parsed(&object)["spec"]["groups"], parsed(RULES)["groups"]);
        held_docs::hold("manifests/components/prometheus/prometheusrule.yaml", &object, "rules");
    }

    #[test]
    fn every_metric_in_the_rules_is_in_a_catalogue_or_recorded() {
        let recorded: BTreeSet<String> =
            rules().iter().filter_map(|rule| Some(rule["record"].as_str()?.to_owned())).collect();
        let mut seen = 0;
        for rule in rules() {
            // Annotations ask as well.
            let texts = [&rule["expr"], &rule["annotations"]["description"]];
            for text in texts.iter().filter_map(|text| text.as_str()) {
                for word in asked_metrics::in_text(text) {
                    seen += 1;
                    let known = recorded.contains(word) || asked_metrics::is_known(word);
                    assert!(known, "no metric is named {word}, which a rule reads: {rule}");
                }
            }
        }
        assert!(seen > 40, "only {seen} names were found");
    }

    #[test]
    fn every_alert_waits_has_a_severity_and_says_what_and_where() {
        for (name, rule) in alerts() {
            assert!(rule["for"].is_string(), "{name} has no `for`");
            let severity = rule["labels"]["severity"].as_str().unwrap_or_default();
            assert!(["critical", "warning"].contains(&severity), "{name}: severity {severity:?}");
            for annotation in ["summary", "description"] {
                assert!(rule["annotations"][annotation].is_string(), "{name} has no {annotation}");
            }
            let page = concat!(env!("CARGO_PKG_REPOSITORY"), "/blob/main/docs/runbook.md#");
            let url = format!("{page}{}", name.to_ascii_lowercase());
            assert_eq!(rule["annotations"]["runbook_url"], url, "{name}");
        }
    }

    #[test]
    fn the_runbook_has_the_alerts_and_no_others() {
        let runbook = held_docs::read("docs/runbook.md");
        let sections: Vec<_> =
            runbook.lines().filter_map(|line| line.strip_prefix("## Headroom")).collect();
        let named: Vec<_> = alerts()
            .into_iter()
            .map(|(name, _)| name.trim_start_matches("Headroom").to_owned())
            .collect();
        assert_eq!(sections, named, "in the order of the rules");
    }
}
