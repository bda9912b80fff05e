//! The shipped rules, held by Prometheus' own tool: they parse, nothing is amiss with them, and each alert does what it says.

use std::process::Command;

use anyhow::{Result, ensure};

use crate::support::programs::{checkout, monitoring};
use crate::support::prometheus::{quick, rules_file};
use crate::support::shared::run;

fn promtool(arguments: &[&str]) -> Result<String> {
    let output = Command::new(monitoring("promtool")?)
        .args(arguments)
        .current_dir(checkout().join("dashboards/rules"))
        .output()?;
    let said = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "promtool {arguments:?}: {said}");
    Ok(said.into_owned())
}

#[test]
fn promtool_finds_nothing_amiss_with_the_rules() {
    run(async {
        promtool(&["check", "rules", "--lint=all", "--lint-fatal", "headroom.rules.yaml"]).map(drop)
    });
}

#[test]
fn each_alert_fires_by_its_fault_alone_and_resolves() {
    run(async { promtool(&["test", "rules", "headroom.rules.test.yaml"]).map(drop) });
}

#[test]
fn each_alert_has_a_test_in_which_it_fires() -> Result<()> {
    let tests =
        std::fs::read_to_string(checkout().join("dashboards/rules/headroom.rules.test.yaml"))?;
    let rules = std::fs::read_to_string(rules_file())?;
    let alerts: Vec<_> =
        rules.lines().filter_map(|line| line.trim().strip_prefix("- alert: ")).collect();
    ensure!(alerts.len() > 20, "{} alerts", alerts.len());
    for alert in alerts {
        let fires = format!("alertname: {alert}\n    exp_alerts:\n    - exp_labels:");
        let quiet = format!("alertname: {alert}\n    exp_alerts: []");
        ensure!(tests.contains(&fires), "{alert} never fires");
        ensure!(tests.contains(&quiet), "{alert} is never quiet");
    }
    Ok(())
}

#[test]
fn the_rules_of_the_live_test_differ_in_times_alone_and_wait_seconds() -> Result<()> {
    let rules = std::fs::read_to_string(rules_file())?;
    let quick = quick(&rules);
    ensure!(quick != rules && quick.lines().count() == rules.lines().count(), "{quick}");
    let expression =
        |line: &&str| !line.trim_start().starts_with('#') && !line.contains("description:");
    let slow =
        |line: &&str| ["m]", "h]", "offset 1m", "offset 3h"].iter().any(|time| line.contains(time));
    let left: Vec<_> = quick.lines().filter(expression).filter(slow).collect();
    ensure!(left.is_empty(), "{left:?}");
    for (shipped, quick) in
        rules.lines().zip(quick.lines()).filter(|(shipped, quick)| shipped != quick)
    {
        let timed = ["for: ", "[", "offset "].iter().any(|time| shipped.contains(time));
        ensure!(timed, "{shipped:?} became {quick:?}");
    }
    Ok(())
}
