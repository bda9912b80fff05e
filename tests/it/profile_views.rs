//! The views of `go tool pprof` that compare, annotate and serve pages: what an operator looks at after `-top`.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

use crate::support::process::Process;
use crate::support::raw_profile::RawProfile;
use crate::support::sample::Sample;
use crate::support::shared::{eventually, run};

const BURNER: &str = "work::burn_cpu";
/// A line of [`BURNER`] that uses CPU time: found in its source, not in a name.
const HOT_LINE: &str = "state ^= state << 13;";

/// A CPU profile with lines, of a service that burns.
async fn burning(sample: &Sample, name: &str) -> Result<PathBuf> {
    let (burnt, kept) = tokio::join!(
        sample.post("/cpu?milliseconds=2500"),
        sample.keep("profile?seconds=2&lines=1", name)
    );
    burnt?;
    kept
}

async fn raw(sample: &Sample, arguments: &[&Path]) -> Result<RawProfile> {
    let ours = [Path::new("-raw"), Path::new("-symbolize=none")];
    RawProfile::of_go(&sample.go_tool_pprof(ours.iter().chain(arguments)).await?)
}

#[test]
fn peek_shows_who_calls_the_burner_and_list_shows_its_lines() {
    run(async {
        let sample = Sample::start().await?;
        let profile = burning(&sample, "cpu.pb.gz").await?;
        let view =
            async |view: String| sample.go_tool_pprof([Path::new(&view), profile.as_path()]).await;
        let peek = view(format!("-peek={BURNER}")).await?;
        // Callers stand above a function, indented by three, callees below.
        let contexts: Vec<_> =
            peek.lines().filter_map(|line| Some(line.split_once("| ")?.1)).collect();
        let burner = contexts.iter().position(|context| context.contains(BURNER));
        let burner = burner.with_context(|| format!("no burner: {peek}"))?;
        ensure!(!contexts[burner].starts_with(' '), "{peek}");
        let caller = contexts[..burner].last().with_context(|| format!("no caller: {peek}"))?;
        ensure!(caller.starts_with("  ") && caller.contains("service::work::"), "{peek}");
        // The source is read from where the profile says it is.
        let list = view(format!("-list={BURNER}")).await?;
        let hot = list.lines().find(|line| line.contains(HOT_LINE));
        let flat = hot.and_then(|line| line.split_whitespace().next());
        ensure!(flat.is_some_and(|flat| flat.ends_with("ms")), "{list}");
        Ok(())
    });
}

/// Takes `first` and `second` of one kind and looks at their difference as `-base` gives it: every column adds up to the
/// difference, and what ran in the second alone has all that it has there.
async fn check_difference(
    sample: &Sample,
    [first, second]: [&Path; 2],
    column: usize,
    only_first: &str,
    only_second: &str,
) -> Result<()> {
    let before = raw(sample, &[first]).await?;
    let after = raw(sample, &[second]).await?;
    let base = Path::new("-base");
    let difference = raw(sample, &[base, first, second]).await?;
    ensure!(difference.kinds == after.kinds && after.kinds == before.kinds);
    for column in 0..after.kinds.len() {
        let [was, is, differs] =
            [&before, &after, &difference].map(|profile| profile.sum(column, ""));
        ensure!(differs == is - was, "column {column}: {differs}, not {is} - {was}");
    }
    let [was, is, differs] =
        [&before, &after, &difference].map(|profile| profile.sum(column, only_second));
    ensure!(was == 0 && is > 0 && differs == is, "{only_second}: {differs} of {was} and {is}");
    if !only_first.is_empty() {
        let [was, is, differs] =
            [&before, &after, &difference].map(|profile| profile.sum(column, only_first));
        ensure!(is == 0 && was > 0 && differs == -was, "{only_first}: {differs} of {was} and {is}");
    }
    let top = sample.go_tool_pprof([Path::new("-top"), base, first, second]).await?;
    let row = top.lines().skip_while(|line| !line.contains("flat%")).nth(1);
    let row = row.with_context(|| format!("no rows: {top}"))?.trim();
    ensure!(!row.starts_with('-') && row.ends_with(only_second), "{top}");
    Ok(())
}

#[test]
fn a_cpu_profile_less_another_is_what_ran_only_in_it() {
    run(async {
        let sample = Sample::start().await?;
        let (allocated, first) = tokio::join!(
            sample.post("/allocate?bytes=40000000000"),
            sample.keep("profile?seconds=1", "first.pb.gz")
        );
        allocated?;
        let second = burning(&sample, "second.pb.gz").await?;
        check_difference(&sample, [&first?, &second], 1, "work::allocate", BURNER).await
    });
}

#[test]
fn a_heap_less_an_earlier_one_is_what_was_held_since() {
    run(async {
        let sample = Sample::start().await?;
        let first = sample.keep("heap", "first.pb.gz").await?;
        let before = sample.scrape("heap_allocated_bytes").await?;
        sample.post("/heap?bytes=67108864&seconds=60").await?;
        sample.until("heap_allocated_bytes", |bytes| bytes > before + 60_000_000.0).await?;
        let second = sample.keep("heap", "second.pb.gz").await?;
        let in_use = 3;
        check_difference(&sample, [&first, &second], in_use, "", "work::hold_heap").await
    });
}

/// `go tool pprof -http`, and where it serves.
async fn pages(sample: &Sample, profile: &Path) -> Result<(Process, String)> {
    let mut command = sample.go_tool_pprof_command();
    // Without a port it takes a free one, and prints it.
    command.args(["-no_browser", "-http=127.0.0.1:"]).arg(profile);
    let log = sample.home().join("pages.log");
    let process = Process::spawn(command, &log, Vec::new())?;
    let url = eventually(Duration::from_secs(60), "the address of its pages", async || {
        let text = std::fs::read_to_string(&log)?;
        let line = text.lines().find_map(|line| line.strip_prefix("Serving web UI on "));
        let url = line.map(str::to_owned);
        // Printed before it listens.
        Ok(match url {
            Some(url) => sample.client.get(&url).send().await.is_ok().then_some(url),
            None => None,
        })
    })
    .await?;
    Ok((process, url))
}

/// Two pages are left out: `graph` needs graphviz, and `source` looks for functions by the short names of DWARF where the
/// executable is at hand, so that it finds those of Go alone.
#[test]
fn the_pages_of_go_tool_pprof_show_the_burner() {
    run(async {
        let sample = Sample::start().await?;
        let profile = burning(&sample, "cpu.pb.gz").await?;
        let (_process, url) = pages(&sample, &profile).await?;
        for (page, shows) in [
            ("/ui/", format!("service::{BURNER}\"")),
            ("/ui/flamegraph", format!("service::{BURNER}\"")),
            ("/ui/top", format!("service::{BURNER}\",\"InlineLabel\":\"\",\"Flat\":")),
            ("/ui/peek?f=burn_cpu", format!("| headroom::command::demo::service::{BURNER} ")),
            // Go's own disassembler, with the lines of our debug information.
            ("/ui/disasm?f=burn_cpu", format!("service::{BURNER} work.rs:")),
        ] {
            let answer = sample.client.get(format!("{url}{page}")).send().await?;
            let (status, text) = (answer.status(), answer.text().await?);
            let named: Vec<_> = text.lines().filter(|line| line.contains("burn_cpu")).collect();
            ensure!(
                status.is_success() && text.contains(&shows),
                "{page}: {status}, {shows} is not in {named:?}"
            );
        }
        Ok(())
    });
}
