//! A stream, such as standard input, that ends when it is told to, also while nothing comes.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::AsFd;
use std::path::Path;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use tokio_util::sync::CancellationToken;

use super::file::STDIN;

/// How often it is looked whether to end.
const LOOK: Timespec = Timespec { tv_sec: 0, tv_nsec: 100_000_000 };

/// Something to be read once, until `stop` is cancelled.
pub(super) struct Stream {
    file: File,
    stop: CancellationToken,
}

impl Stream {
    /// Opens a pipe by its path, or standard input for `-`.
    pub(super) fn open(path: &Path, stop: CancellationToken) -> io::Result<Self> {
        let file = if path == Path::new(STDIN) {
            File::from(io::stdin().as_fd().try_clone_to_owned()?)
        } else {
            File::open(path)?
        };
        Ok(Self { file, stop })
    }
}

impl Read for Stream {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        loop {
            if self.stop.is_cancelled() {
                return Ok(0);
            }
            let mut fds = [PollFd::new(&self.file, PollFlags::IN)];
            match poll(&mut fds, Some(&LOOK)) {
                Ok(0) | Err(Errno::INTR) => {}
                Ok(_) => return self.file.read(into),
                Err(error) => return Err(error.into()),
            }
        }
    }
}
