//! Child processes that cannot outlive the test.
//!
//! In: a [`Command`]. Out: a [`Process`] with its own process group, killed when dropped, and by the
//! kernel when the test process ends for whatever reason. Never: a signal to a process not started here.

use std::fs::{File, OpenOptions};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{OnceLock, mpsc};
use std::{io, thread};

use anyhow::{Context as _, Result};

mod sys;

pub(crate) use sys::Signal;

/// One running child and everything it started.
#[derive(Debug)]
pub(crate) struct Process {
    child: Child,
    /// Set once the child was waited for: its id may then belong to somebody else.
    status: Option<ExitStatus>,
    log: PathBuf,
}

/// A request to the spawner thread.
type Spawn = (Command, mpsc::Sender<io::Result<Child>>);

impl Process {
    /// Starts `command` with stdout and stderr appended to `log`, inside the cgroups whose open
    /// `cgroup.procs` files are given.
    ///
    /// # Errors
    /// The log cannot be opened or the program cannot be started.
    pub(crate) fn spawn(mut command: Command, log: &Path, cgroups: Vec<File>) -> Result<Self> {
        let name = command.get_program().to_string_lossy().into_owned();
        let output = OpenOptions::new()
            .create(true)
            .append(true)
            .open(log)
            .with_context(|| format!("cannot open {}", log.display()))?;
        command.stdin(Stdio::null()).stdout(output.try_clone()?).stderr(output);
        sys::isolate(&mut command, cgroups);
        let child = spawn_on_lasting_thread(command)
            .with_context(|| format!("cannot start {name}, see {}", log.display()))?;
        Ok(Self { child, status: None, log: log.to_path_buf() })
    }

    /// The process id, which is also the id of its process group.
    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    /// Where its output goes.
    pub(crate) fn log(&self) -> &Path {
        &self.log
    }

    /// How it ended, if it did. What it started itself is killed with it.
    pub(crate) fn exited(&mut self) -> Option<ExitStatus> {
        if self.status.is_none() && sys::has_exited(self.child.id()) {
            // The zombie still holds the id, so the group can only be ours.
            sys::signal_group(self.child.id(), Signal::Kill);
            self.status = self.child.wait().ok();
        }
        self.status
    }

    /// Signals the whole group; nothing once it has ended.
    pub(crate) fn signal(&mut self, signal: Signal) {
        if self.exited().is_none() {
            sys::signal_group(self.child.id(), signal);
        }
    }

    /// Kills the group and waits for the child.
    pub(crate) fn kill(&mut self) {
        if self.status.is_none() {
            sys::signal_group(self.child.id(), Signal::Kill);
            self.status = self.child.wait().ok();
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Starts the command on a thread that lives as long as this process: the kernel's parent-death
/// signal follows the *thread* that forked, and test threads and pool threads end early.
fn spawn_on_lasting_thread(command: Command) -> io::Result<Child> {
    static SPAWNER: OnceLock<mpsc::Sender<Spawn>> = OnceLock::new();
    let spawner = SPAWNER.get_or_init(|| {
        let (sender, requests) = mpsc::channel::<Spawn>();
        thread::spawn(move || {
            for (mut command, reply) in requests {
                // A caller that gave up drops the reply, and with it nothing of ours is left to tell.
                let _given_up = reply.send(command.spawn());
            }
        });
        sender
    });
    let (reply, child) = mpsc::channel();
    spawner.send((command, reply)).map_err(io::Error::other)?;
    child.recv().map_err(io::Error::other)?
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn sleeper(dir: &Path) -> Process {
        let mut command = Command::new("sh");
        command.args(["-c", "sleep 1000 & echo $!; wait"]);
        Process::spawn(command, &dir.join("log"), Vec::new()).expect("sh is everywhere")
    }

    #[test]
    fn dropping_a_process_ends_what_it_started_too() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let process = sleeper(dir.path());
        let grandchild = loop {
            let log = std::fs::read_to_string(process.log()).expect("the log exists");
            if let Ok(id) = log.trim().parse::<u32>() {
                break id;
            }
            thread::yield_now();
        };
        assert!(Path::new(&format!("/proc/{grandchild}")).exists());
        drop(process);
        // A kill is on its way when it was sent; what is left of it then runs nothing more.
        let runs = || {
            let stat = std::fs::read_to_string(format!("/proc/{grandchild}/stat"));
            stat.is_ok_and(|stat| !stat.contains(") Z ") && !stat.contains(") X "))
        };
        let tries = std::iter::repeat_with(|| thread::sleep(Duration::from_millis(10))).take(500);
        assert!(tries.map(|()| runs()).any(|runs| !runs), "{grandchild} still runs");
    }

    #[test]
    fn an_ended_process_tells_its_status() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let mut command = Command::new("sh");
        command.args(["-c", "exit 7"]);
        let mut process = Process::spawn(command, &dir.path().join("log"), Vec::new()).expect("sh");
        let status = loop {
            match process.exited() {
                Some(status) => break status,
                None => thread::yield_now(),
            }
        };
        assert_eq!(status.code(), Some(7));
    }
}
