//! Where the picture goes: redrawn in place on a terminal, a line every five frames elsewhere.

use std::io::Write;

use crossterm::terminal::{Clear, ClearType, EnterAlternateScreen, LeaveAlternateScreen};
use crossterm::{cursor, queue};

use super::{print, view};

/// Frames from one plain line to the next.
const PLAIN_EVERY: u32 = 5;

pub(super) struct Screen {
    terminal: bool,
    frames: u32,
}

impl Screen {
    /// Takes over the terminal, if it is one.
    pub(super) fn open(terminal: bool) -> std::io::Result<Self> {
        if terminal {
            let mut out = std::io::stdout();
            queue!(out, EnterAlternateScreen, cursor::Hide)?;
            out.flush()?;
        }
        Ok(Self { terminal, frames: 0 })
    }

    /// Draws one frame.
    pub(super) fn show(&mut self, frame: &view::Frame<'_>) -> std::io::Result<()> {
        if self.terminal {
            return redraw(&view::picture(frame));
        }
        if self.frames == 0 {
            let commands =
                frame.commands.iter().map(|(what, command)| format!("{what}: {command}"));
            print(&commands.collect::<Vec<_>>())?;
        }
        if self.frames.is_multiple_of(PLAIN_EVERY) {
            print(&[view::plain(frame)])?;
        }
        self.frames += 1;
        Ok(())
    }

    /// Gives the terminal back and says that the demo has ended.
    pub(super) fn close(mut self) -> anyhow::Result<()> {
        self.restore()?;
        print(&["The demo has ended; its processes and certificates are gone.".to_owned()])?;
        Ok(())
    }

    fn restore(&mut self) -> std::io::Result<()> {
        if std::mem::take(&mut self.terminal) {
            let mut out = std::io::stdout();
            queue!(out, LeaveAlternateScreen, cursor::Show)?;
            out.flush()?;
        }
        Ok(())
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        // On the way out of an error; a terminal that is gone needs no restoring.
        let _ = self.restore();
    }
}

/// Overwrites the last picture line by line, so that nothing flickers.
fn redraw(lines: &[String]) -> std::io::Result<()> {
    let mut out = std::io::stdout().lock();
    queue!(out, cursor::MoveTo(0, 0))?;
    for line in lines {
        write!(out, "{line}")?;
        queue!(out, Clear(ClearType::UntilNewLine))?;
        write!(out, "\r\n")?;
    }
    queue!(out, Clear(ClearType::FromCursorDown))?;
    out.flush()
}
