//! The walk along frame pointers, from inside a signal handler.
//!
//! In: the registers of the interrupted code. Out: the interrupted instruction, then return addresses. Never: a load that
//! can fault: the kernel reads the stack, so that a wrong frame pointer ends a walk instead of the process.

/// Where an interrupted thread was.
#[derive(Clone, Copy, Debug)]
pub(super) struct Registers {
    instruction: usize,
    frame: usize,
    stack: usize,
}

#[cfg(target_arch = "x86_64")]
pub(super) fn registers(context: &libc::ucontext_t) -> Registers {
    let get = |register: libc::c_int| {
        let index = usize::try_from(register).unwrap_or_default();
        usize::from_ne_bytes(context.uc_mcontext.gregs[index].to_ne_bytes())
    };
    Registers {
        instruction: get(libc::REG_RIP),
        frame: get(libc::REG_RBP),
        stack: get(libc::REG_RSP),
    }
}

#[cfg(target_arch = "aarch64")]
pub(super) fn registers(context: &libc::ucontext_t) -> Registers {
    let get = |value: u64| usize::from_ne_bytes(value.to_ne_bytes());
    let machine = &context.uc_mcontext;
    Registers { instruction: get(machine.pc), frame: get(machine.regs[29]), stack: get(machine.sp) }
}

/// A frame larger than this ends the walk: the register held something else.
const MAX_FRAME_BYTES: usize = 256 << 10;
const WORD: usize = size_of::<usize>();
const WINDOW_WORDS: usize = 256;
/// The least page size, across which one read may fail as a whole.
const PAGE: usize = 4096;

/// Follows the frame pointers of the calling thread: each points to the caller's, beside the return address.
pub(super) fn walk(thread: i32, registers: Registers, store: &mut dyn FnMut(usize) -> bool) {
    if !store(registers.instruction) {
        return;
    }
    let mut window = Window::of(thread);
    let (mut lowest, mut frame) = (registers.stack, registers.frame);
    while frame % WORD == 0 && frame >= lowest && frame - lowest <= MAX_FRAME_BYTES {
        let Some([caller_frame, return_address]) = window.pair(frame) else {
            return;
        };
        if return_address < PAGE || !store(return_address) {
            return;
        }
        (lowest, frame) = (frame + 2 * WORD, caller_frame);
    }
}

/// A copy of a piece of the stack, read by the kernel: an address that is not mapped is an error there, not a crash.
struct Window {
    thread: i32,
    start: usize,
    words: [usize; WINDOW_WORDS],
    len: usize,
}

impl Window {
    /// Nothing yet of the process of that thread.
    const fn of(thread: i32) -> Self {
        Self { thread, start: 0, words: [0; WINDOW_WORDS], len: 0 }
    }

    /// The two words at `address`.
    fn pair(&mut self, address: usize) -> Option<[usize; 2]> {
        let inside = address.checked_sub(self.start).map(|offset| offset / WORD);
        let index = match inside.filter(|index| index + 2 <= self.len) {
            Some(index) => index,
            None => {
                self.read(address)?;
                0
            }
        };
        Some([self.words[index], self.words[index + 1]])
    }

    fn read(&mut self, address: usize) -> Option<()> {
        let to_page_end = (PAGE - address % PAGE) / WORD;
        let words = to_page_end.clamp(2, WINDOW_WORDS);
        let local = libc::iovec { iov_base: self.words.as_mut_ptr().cast(), iov_len: words * WORD };
        let remote = libc::iovec {
            iov_base: std::ptr::without_provenance_mut(address),
            iov_len: words * WORD,
        };
        // SAFETY: the kernel writes at most `words` words to `local`, which has room for them, and checks `remote`.
        let read = unsafe {
            libc::process_vm_readv(self.thread, &raw const local, 1, &raw const remote, 1, 0)
        };
        self.start = address;
        self.len = usize::try_from(read).unwrap_or(0) / WORD;
        (self.len >= 2).then_some(())
    }
}

/// Whether the kernel reads this process's memory for it; some sandboxes refuse that.
pub(in crate::pprof) fn stack_is_readable() -> bool {
    let here = [1_usize, 2];
    let mut window = Window::of(super::this_thread());
    window.pair(here.as_ptr().addr()) == Some(here)
}
