//! Where the picture goes: redrawn in place on a terminal, a line every five frames elsewhere.

use std::io::Write;

use crossterm::terminal::{Clear, ClearType, EnterAlternateScreen, LeaveAlternateScreen, size};
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
            return redraw(&fitting(view::picture(frame), size()?));
        }
        if self.frames == 0 {
            for (what, commands) in &frame.commands {
                print(&[format!("{what}:")])?;
                print(commands)?;
            }
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

/// As many of the first lines as the terminal shows: the table stays where the commands have no room.
fn fitting(mut lines: Vec<String>, (columns, rows): (u16, u16)) -> Vec<String> {
    let mut left = usize::from(rows).saturating_sub(1);
    let columns = usize::from(columns).max(1);
    let mut shown = 0;
    for line in &lines {
        let needed = visible_width(line).div_ceil(columns).max(1);
        let Some(rest) = left.checked_sub(needed) else { break };
        left = rest;
        shown += 1;
    }
    lines.truncate(shown);
    lines
}

/// Characters without the escapes that colour them.
fn visible_width(line: &str) -> usize {
    let mut escaped = false;
    let visible = line.chars().filter(|&character| {
        let shown = !escaped && character != '\u{1b}';
        escaped = if escaped { character != 'm' } else { character == '\u{1b}' };
        shown
    });
    visible.count()
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_picture_is_cut_at_the_bottom_where_the_terminal_is_too_small() {
        let lines = || {
            ["\u{1b}[1mtitle\u{1b}[0m", "0123456789abc", "table", "command"]
                .map(str::to_owned)
                .to_vec()
        };
        assert_eq!(fitting(lines(), (80, 24)).len(), 4);
        assert_eq!(
            fitting(lines(), (10, 5)),
            lines()[..3],
            "the second line takes two rows of ten columns"
        );
        assert_eq!(visible_width("\u{1b}[1mtitle\u{1b}[0m"), 5);
    }
}
