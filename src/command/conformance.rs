//! `headroom conformance`: holds any metrics adapter against what an HPA relies on.
//!
//! In: flags, and the files that they name. Out: a report on standard output, and the exit code. Never: a change of the
//! cluster, and never a report of an adapter that could not be asked.

use std::io::{IsTerminal, Write};
use std::path::Path;
use std::process::ExitCode;

use anyhow::Context;

use crate::cli::{ConformanceArgs, ReportFormat};
use crate::conformance::{self, Case, ClientCertificate, Options, Report, Style, Text, Verdict};

/// A case failed.
const FAILED: u8 = 1;
/// The suite could not run.
const NOT_RUN: u8 = 2;

/// Runs the suite once; an error is that the report could not be written.
pub(super) fn run(args: ConformanceArgs) -> anyhow::Result<ExitCode> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    match runtime.block_on(held(args)) {
        Ok(report) if report.failed().is_empty() => Ok(ExitCode::SUCCESS),
        Ok(_) => Ok(ExitCode::from(FAILED)),
        Err(error) => {
            eprintln!("error: {error:#}");
            Ok(ExitCode::from(NOT_RUN))
        }
    }
}

async fn held(args: ConformanceArgs) -> anyhow::Result<Report> {
    let (output, cases) = (args.output, args.cases.clone());
    let options = options(args)?;
    let mut out = std::io::stdout();
    if output == ReportFormat::Json {
        let report = conformance::run(options, &cases, |_, _| ()).await?;
        writeln!(out, "{:#}", report.json())?;
        return Ok(report);
    }
    let coloured = out.is_terminal() && std::env::var_os("NO_COLOR").is_none();
    let mut text = Text::new(if coloured { Style::Coloured } else { Style::Plain });
    let mut title = Some(text.title(&options.url));
    let mut written = Ok(());
    let show = |case: &'static Case, verdict: &Verdict| {
        let lines = title.take().unwrap_or_default() + &text.case(case, verdict);
        if written.is_ok() {
            written = out.write_all(lines.as_bytes()).and_then(|()| out.flush());
        }
    };
    let report = conformance::run(options, &cases, show).await?;
    written.context("cannot write the report")?;
    out.write_all(text.summary(&report).as_bytes())?;
    Ok(report)
}

fn options(args: ConformanceArgs) -> anyhow::Result<Options> {
    let read = |path: &Path| {
        std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))
    };
    let front_proxy = match (&args.client_cert, &args.client_key) {
        (Some(certificate), Some(key)) => {
            Some(ClientCertificate { certificate_pem: read(certificate)?, key_pem: read(key)? })
        }
        _ => None,
    };
    let ca_pem = args.ca_file.as_deref().map(read).transpose()?;
    Ok(Options {
        through_apiserver: args.through_apiserver,
        ca_pem,
        accept_any_certificate: args.insecure_skip_tls_verify,
        server_name: args.server_name,
        front_proxy,
        requestheader_user: args.requestheader_user,
        token: args.token,
        unauthorized_token: args.unauthorized_token,
        unauthorized_user: args.unauthorized_user,
        namespace: args.namespace,
        external_metric: args.external_metric,
        custom_metrics: args.custom_metrics,
        pods_selector: args.pods_selector,
        control_url: args.control_url,
        ..Options::new(&args.url)
    })
}
