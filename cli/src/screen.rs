//! Standard output as a stream of lines with a footer: redrawn in place on a terminal, left out elsewhere.

use std::io::{self, IsTerminal, StdoutLock, Write};

use crate::line::Style;

/// One owner writes to standard output, through this.
pub(crate) struct Screen {
    out: StdoutLock<'static>,
    terminal: bool,
    footer: String,
}

impl Screen {
    pub(crate) fn new() -> Self {
        let out = io::stdout().lock();
        let terminal = out.is_terminal() && std::env::var_os("TERM").is_none_or(|term| term != "dumb");
        Self { out, terminal, footer: String::new() }
    }

    /// Whether a footer can be redrawn in place.
    pub(crate) fn is_terminal(&self) -> bool {
        self.terminal
    }

    /// Colours on a terminal, unless `NO_COLOR` is set and not empty (no-color.org).
    pub(crate) fn style(&self) -> Style {
        Style { color: self.terminal && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty()) }
    }

    /// Writes lines above the footer.
    pub(crate) fn lines<'a>(&mut self, lines: impl IntoIterator<Item = &'a str>) -> io::Result<()> {
        self.erase()?;
        for line in lines {
            self.out.write_all(line.as_bytes())?;
            self.out.write_all(b"\n")?;
        }
        self.draw()
    }

    /// One line above the footer.
    pub(crate) fn line(&mut self, line: &str) -> io::Result<()> {
        self.lines([line])
    }

    /// Replaces the footer; nothing happens where there is no terminal.
    pub(crate) fn footer(&mut self, footer: &str) -> io::Result<()> {
        if !self.terminal {
            return Ok(());
        }
        self.erase()?;
        footer.clone_into(&mut self.footer);
        self.draw()
    }

    fn erase(&mut self) -> io::Result<()> {
        if self.terminal && !self.footer.is_empty() {
            self.out.write_all(b"\r\x1b[2K")?;
        }
        Ok(())
    }

    fn draw(&mut self) -> io::Result<()> {
        if self.terminal && !self.footer.is_empty() {
            // A footer that wraps could not be erased.
            let columns = match rustix::termios::tcgetwinsize(&self.out) {
                Ok(size) if size.ws_col > 0 => usize::from(size.ws_col),
                _ => 80,
            };
            let footer: String = self.footer.chars().take(columns - 1).collect();
            let style = self.style();
            let (on, off) = if style.color { ("\x1b[7m", "\x1b[0m") } else { ("", "") };
            write!(self.out, "{on}{footer}{off}")?;
        }
        self.out.flush()
    }
}

/// Whether the reader of our output went away, as `head` does: then there is nobody left to tell.
pub(crate) fn is_closed(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::BrokenPipe
}
