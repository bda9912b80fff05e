//! The service's own profiles, for a capture.
//!
//! In: the configuration as it is when a capture is made. Out: what the service serves of memory, goroutines and CPU time.
//! Never: a body past its limit, or a wait past the deadlines.

use std::time::Duration;

use tokio::runtime::Handle;

use super::target_client::{TargetClient, authorization};
use crate::agent::evidence::{File, NeighbourProfiles};
use crate::config::{AgentConfig, Live};
use crate::telemetry::error_chain;

/// The longest profile that is kept.
const MAX_BYTES: usize = 4 << 20;

/// Memory first: what is short of it may not be there for long. The file's name, what is asked for, and for how long.
const PROFILES: [(&str, &str, Duration); 3] = [
    ("heap", "heap", Duration::from_secs(5)),
    ("goroutine", "goroutine", Duration::from_secs(5)),
    ("profile", "profile?seconds=5", Duration::from_secs(15)),
];

/// Asks the service beside this one.
#[derive(Debug)]
pub(super) struct TargetProfiles {
    pub(super) client: TargetClient,
    pub(super) live: Live<AgentConfig>,
    /// Drives the requests of the thread that waits for them.
    pub(super) runtime: Handle,
}

impl TargetProfiles {
    async fn fetch_one(&self, path: &str, deadline: Duration) -> Result<Vec<u8>, String> {
        let config = self.live.current().config.clone();
        let base = config.target.pprof.as_ref().ok_or("agent.target.pprof is not set")?.to_string();
        let url = format!("{}/{path}", base.trim_end_matches('/'));
        let headers = authorization(&config.target).map_err(|error| error_chain(&error))?;
        let get = reqwest::Method::GET;
        let sent = self.client.forward(get, &url, headers, reqwest::Body::default(), deadline);
        let answer = sent.await.and_then(reqwest::Response::error_for_status);
        let mut answer = answer.map_err(|error| error_chain(&error.without_url()))?;
        let mut body = Vec::new();
        while let Some(chunk) = answer.chunk().await.map_err(|error| error_chain(&error))? {
            if body.len() + chunk.len() > MAX_BYTES {
                return Err(format!("more than {MAX_BYTES} bytes"));
            }
            body.extend_from_slice(&chunk);
        }
        Ok(body)
    }
}

impl NeighbourProfiles for TargetProfiles {
    fn fetch(&self) -> (Vec<File>, Vec<String>) {
        let (mut files, mut missing) = (Vec::new(), Vec::new());
        for (name, path, deadline) in PROFILES {
            match self.runtime.block_on(self.fetch_one(path, deadline)) {
                Ok(content) => files.push(File::new(name, content)),
                Err(why) => missing.push(format!("{name}: {why}")),
            }
        }
        (files, missing)
    }
}
