//! The system calls behind a child that ends with the test.
//!
//! In: process ids of our own children. Out: signals sent, ends noticed. Never: an id that was reaped.

use std::fs::File;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::AsRawFd as _;
use std::os::unix::process::CommandExt as _;
use std::process::Command;

/// The signals that the tests send.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Signal {
    /// `SIGTERM`
    Terminate,
    /// `SIGKILL`
    Kill,
    /// `SIGSTOP`: the process keeps its sockets and answers nothing.
    Stop,
}

/// Gives the command its own process group, joins it to the cgroups, and has the kernel kill it when
/// the thread that starts it ends.
#[expect(unsafe_code, reason = "the only place between fork and exec")]
pub(super) fn isolate(command: &mut Command, cgroups: Vec<File>) {
    let joins = move || {
        // SAFETY: prctl and write are async-signal-safe; the files are open and owned by the closure.
        unsafe {
            if libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) != 0 {
                return Err(io::Error::last_os_error());
            }
            for procs in &cgroups {
                // "0" is the writing process itself.
                if libc::write(procs.as_raw_fd(), c"0".as_ptr().cast(), 1) != 1 {
                    return Err(io::Error::last_os_error());
                }
            }
        }
        Ok(())
    };
    command.process_group(0);
    // SAFETY: the closure allocates nothing and calls async-signal-safe functions only.
    unsafe { command.pre_exec(joins) };
}

/// Whether our child has ended; it is not reaped by asking.
#[expect(
    unsafe_code,
    reason = "std's try_wait reaps, and frees the id before the group is signalled"
)]
pub(super) fn has_exited(child: u32) -> bool {
    let mut info = MaybeUninit::<libc::siginfo_t>::zeroed();
    let flags = libc::WEXITED | libc::WNOHANG | libc::WNOWAIT;
    // SAFETY: info is valid for writes, and zeroed is a valid siginfo_t.
    unsafe {
        libc::waitid(libc::P_PID, child, info.as_mut_ptr(), flags) == 0
            && info.assume_init().si_pid() != 0
    }
}

/// Signals the process group that our child leads. An empty group is not an error.
#[expect(unsafe_code, reason = "std cannot signal a group")]
pub(super) fn signal_group(leader: u32, signal: Signal) {
    let number = match signal {
        Signal::Terminate => libc::SIGTERM,
        Signal::Kill => libc::SIGKILL,
        Signal::Stop => libc::SIGSTOP,
    };
    let Ok(group) = libc::pid_t::try_from(leader) else { return };
    // SAFETY: plain system call.
    unsafe { libc::killpg(group, number) };
}
