//! What does not go together.
//!
//! In: settings, of which any may be unknown. Out: every contradiction. Never: one that rests on a value that is not known.

use std::net::SocketAddr;

use super::build::Values;
use super::layers::Setting;
use super::problem::{Place, Problem};

/// All of them.
pub(super) fn contradictions(settings: &[Setting]) -> Vec<Problem> {
    let values = Values(settings);
    let mut problems = asks_itself(&values);
    problems.extend(lends_its_token(&values));
    if values.whole::<u64>("agent.target.pid").is_some() {
        let other = values.text("agent.target.process").map(|_| "agent.target.process");
        problems.extend(other.map(|other| excludes("agent.target.pid", other)));
    }
    if values.file("agent.debug.tokenFile").is_some()
        && values.switch("agent.debug.tokenReview") == Some(true)
    {
        problems.push(excludes("agent.debug.tokenFile", "agent.debug.tokenReview"));
    }
    problems
}

fn problem(path: &str, message: String) -> Problem {
    Problem { place: Place::Together, path: path.to_owned(), message }
}

fn excludes(path: &str, other: &str) -> Problem {
    problem(path, format!("excludes {other}; set one of them"))
}

/// A sidecar that asks itself would ask again for each question.
fn asks_itself(values: &Values<'_>) -> Vec<Problem> {
    let mut problems = Vec::new();
    for path in ["agent.target.metrics", "agent.target.pprof"] {
        let Some(url) = values.url(path).filter(|url| url.is_local()) else { continue };
        for own in ["agent.bind", "agent.debug.bind"] {
            let port = values.address(own).map(|address| address.port());
            if let Some(port) = port.filter(|port| *port == url.port()) {
                problems.push(problem(path, format!("port {port} is the sidecar's own ({own})")));
            }
        }
    }
    problems
}

/// The sidecar shows its token to the service for whoever asks it for a profile.
fn lends_its_token(values: &Values<'_>) -> Option<Problem> {
    let path = "agent.target.bearerTokenFile";
    let sent = values.file(path).is_some() && values.url("agent.target.pprof").is_some();
    let open = values.file("agent.debug.tokenFile").is_none()
        && values.switch("agent.debug.tokenReview") == Some(false);
    let reachable = |address: &SocketAddr| !address.ip().to_canonical().is_loopback();
    let served = values.address("agent.debug.bind").or(values.address("agent.bind"));
    let address = served.filter(reachable).filter(|_| sent && open)?;
    Some(problem(
        path,
        format!(
            "without a token whoever reaches {address} would read the profiles that the service protects (agent.target.pprof): \
             set agent.debug.tokenFile or agent.debug.tokenReview, or agent.debug.bind to a loopback address"
        ),
    ))
}
