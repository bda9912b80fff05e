//! The demo's two processes: the same program again, as the sample service and as the adapter.
//!
//! Each holds the reading end of a pipe to this process and ends when it closes, so none outlives a killed demo.

use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::Context;

/// How long a process may take to end by itself.
const PATIENCE: Duration = Duration::from_secs(3);

/// A process that ends with this value.
#[derive(Debug)]
pub(super) struct Process {
    name: &'static str,
    child: Child,
}

impl Process {
    /// Starts this program with other arguments. Its logs go where this one's go.
    pub(super) fn start(
        name: &'static str,
        arguments: &[String],
        environment: &[(&str, &str)],
    ) -> anyhow::Result<Self> {
        let program = std::env::current_exe().context("cannot find the program itself")?;
        let child = Command::new(program)
            .args(arguments)
            .arg("--until-stdin-closes")
            .envs(environment.iter().copied())
            .stdin(Stdio::piped())
            .spawn()
            .context("cannot start a process of the demo")?;
        Ok(Self { name, child })
    }

    /// Its name, and how people kill it, as long as it runs.
    pub(super) fn kill_command(&mut self) -> Option<(&'static str, String)> {
        (!self.ended()).then(|| (self.name, format!("kill {}", self.child.id())))
    }

    /// That it has ended and how, if it has.
    pub(super) fn end(&mut self) -> Option<String> {
        let status = self.child.try_wait().ok().flatten()?;
        Some(format!("the {} (process {}) has ended: {status}", self.name, self.child.id()))
    }

    fn ended(&mut self) -> bool {
        !matches!(self.child.try_wait(), Ok(None))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        drop(self.child.stdin.take());
        let step = Duration::from_millis(20);
        let mut waited = Duration::ZERO;
        while !self.ended() && waited < PATIENCE {
            std::thread::sleep(step);
            waited += step;
        }
        if !self.ended() {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}
