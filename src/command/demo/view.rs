//! The picture of the demo: one frame from what was observed, as text.
//!
//! In: a [`Frame`]. Out: lines, with colours for a terminal or plain. Never: a read, a clock.

use std::collections::VecDeque;
use std::fmt::Write as _;

use crossterm::style::Stylize;

/// Everything one picture shows.
pub(super) struct Frame<'a> {
    pub rows: Vec<Row<'a>>,
    /// `headroom_demand`, or why there is none.
    pub demand: Result<f64, String>,
    /// Demand over the last minute, oldest first; `None` where there was no answer.
    pub history: &'a VecDeque<Option<f64>>,
    pub replicas: Replicas,
    /// Why `/metrics` did not answer, if it did not.
    pub metrics_error: Option<String>,
    /// Seconds since the last demand; `None` before the first.
    pub unknown_seconds: Option<u64>,
    /// Processes of the demo that have ended, and how.
    pub ended: Vec<String>,
    /// The commands to copy, by what they are for.
    pub commands: Vec<(String, Vec<String>)>,
}

/// One signal.
pub(super) struct Row<'a> {
    pub name: &'a str,
    /// The raw value as people read it, e.g. `412 tasks`; `-` while unknown.
    pub now: String,
    /// What one pod should carry, in the same form.
    pub per_pod: &'a str,
    /// Pods' worth.
    pub demand: Option<f64>,
}

/// What an HPA would do.
#[derive(Clone, Copy)]
pub(super) struct Replicas {
    pub now: u32,
    pub min: u32,
    pub max: u32,
    /// Until its next look.
    pub next_look_seconds: u64,
}

const BARS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
const METER_WIDTH: usize = 20;

/// The whole picture for a terminal.
pub(super) fn picture(frame: &Frame<'_>) -> Vec<String> {
    let mut lines = vec![
        format!(
            "{}  a sample service under a load that rises and falls; Ctrl-C ends it",
            "Headroom".bold()
        ),
        String::new(),
        format!("  {:<9}{:>14}{:>14}{:>9}", "SIGNAL", "NOW", "PER POD", "DEMAND").dim().to_string(),
    ];
    let driver = driver(frame);
    lines.extend(frame.rows.iter().map(|row| row_line(row, driver == Some(row.name))));
    lines.push(String::new());
    lines.extend(demand_lines(frame));
    lines.extend(frame.ended.iter().map(|ended| format!("  {}", ended.as_str().red())));
    if let Some(error) = &frame.metrics_error {
        lines.push(format!("  {}", format!("/metrics does not answer: {error}").red()));
    }
    lines.push(String::new());
    for (what, commands) in &frame.commands {
        lines.push(format!("  {}", what.as_str().dim()));
        lines.extend(commands.iter().map(|command| format!("    {command}")));
    }
    lines
}

/// One line for a log.
pub(super) fn plain(frame: &Frame<'_>) -> String {
    let mut line = match &frame.demand {
        Ok(demand) => format!("demand {demand:.3}"),
        Err(why) => match frame.unknown_seconds {
            Some(seconds) => format!("demand unknown for {seconds} s ({why})"),
            None => format!("demand not yet known ({why})"),
        },
    };
    for ended in &frame.ended {
        let _ = write!(line, "  {ended}");
    }
    let _ = write!(line, "  replicas {}", frame.replicas.now);
    for row in &frame.rows {
        let demand = row.demand.map_or_else(|| "-".to_owned(), |demand| format!("{demand:.2}"));
        let _ = write!(line, "  {} {} of {} = {demand}", row.name, row.now, row.per_pod);
    }
    line
}

fn driver<'a>(frame: &Frame<'a>) -> Option<&'a str> {
    let known = frame.rows.iter().filter_map(|row| Some((row.name, row.demand?)));
    known.max_by(|(_, a), (_, b)| a.total_cmp(b)).map(|(name, _)| name)
}

fn row_line(row: &Row<'_>, drives: bool) -> String {
    let demand = row.demand.map_or_else(|| "-".to_owned(), |demand| format!("{demand:.2}"));
    let text = format!("  {:<9}{:>14}{:>14}{demand:>9}  ", row.name, row.now, row.per_pod);
    let meter = meter(row.demand.unwrap_or(0.0));
    if drives {
        format!("{}{} {}", text.bold(), meter.green(), "drives".green())
    } else {
        format!("{text}{}", meter.dim())
    }
}

/// One character is a quarter of a pod.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "clamped to the width of the meter"
)]
fn meter(demand: f64) -> String {
    let cells = (demand * 4.0).round().clamp(0.0, METER_WIDTH as f64) as usize;
    "■".repeat(cells)
}

fn demand_lines(frame: &Frame<'_>) -> Vec<String> {
    let Replicas { now, min, max, next_look_seconds } = frame.replicas;
    let replicas = format!("{now} replica{}", if now == 1 { "" } else { "s" }).bold();
    let top = match &frame.demand {
        Ok(demand) => {
            vec![format!("  demand    {:.2} pods   {}", demand, sparkline(frame.history).cyan())]
        }
        Err(why) => match frame.unknown_seconds {
            Some(seconds) => vec![
                format!("  demand    {}", "unknown".red().bold()),
                format!("  {}", format!("no demand for {seconds} s: {why}").red()),
            ],
            None => vec![format!("  demand    not yet known: {why}")],
        },
    };
    let next = if frame.demand.is_ok() {
        format!("(min {min}, max {max}; it looks again in {next_look_seconds} s)").dim().to_string()
    } else {
        "held: without a number an HPA changes nothing".to_owned()
    };
    let mut lines = top;
    lines.push(format!("  an HPA    {replicas} {next}"));
    lines
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a share of the highest bar"
)]
fn sparkline(history: &VecDeque<Option<f64>>) -> String {
    let highest = history.iter().flatten().fold(1.0_f64, |a, b| a.max(*b));
    let bar = |value: &Option<f64>| match value {
        Some(value) => BARS[((value / highest * 7.0).round() as usize).min(7)],
        None => '·',
    };
    history.iter().map(bar).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(history: &VecDeque<Option<f64>>, demand: Result<f64, String>) -> Frame<'_> {
        Frame {
            rows: vec![
                Row {
                    name: "tasks",
                    now: "412 tasks".into(),
                    per_pod: "200 tasks",
                    demand: Some(2.06),
                },
                Row { name: "cpu", now: "-".into(), per_pod: "400m", demand: None },
            ],
            demand,
            history,
            replicas: Replicas { now: 3, min: 1, max: 10, next_look_seconds: 7 },
            metrics_error: None,
            unknown_seconds: Some(9),
            ended: vec!["the adapter (process 7) has ended: signal: 9".into()],
            commands: Vec::new(),
        }
    }

    #[test]
    fn the_signal_with_the_largest_demand_is_marked_as_the_driver() {
        let history = VecDeque::from([Some(1.0), None, Some(2.0)]);
        let lines = picture(&frame(&history, Ok(2.06)));
        let marked: Vec<_> = lines.iter().filter(|line| line.contains("drives")).collect();
        assert!(marked.len() == 1 && marked[0].contains("tasks"), "{lines:#?}");
    }

    #[test]
    fn a_dead_adapter_is_said_and_the_replicas_are_held() {
        let history = VecDeque::new();
        let text = picture(&frame(&history, Err("connection refused".into()))).join("\n");
        assert!(text.contains("connection refused") && text.contains("held"), "{text}");
        assert!(text.contains("the adapter (process 7) has ended"), "{text}");
        assert!(plain(&frame(&history, Err("connection refused".into()))).contains("unknown"));
    }
}
