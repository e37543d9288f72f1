//! A bounded window onto a stream of bytes, which knows how far into the stream it is.
//!
//! Used by the readers of capture files. What does not fit into the caller's own limit is never asked for.

use std::io::{self, ErrorKind, Read};

/// Read at once, where the reader gives so much.
const CHUNK_BYTES: usize = 256 << 10;

/// Bytes that were read and are not taken yet.
pub(super) struct Window<R> {
    reader: R,
    buffer: Vec<u8>,
    start: usize,
    end: usize,
    offset: u64,
}

impl<R: Read> Window<R> {
    pub(super) fn new(reader: R) -> Self {
        Self { reader, buffer: vec![0; CHUNK_BYTES], start: 0, end: 0, offset: 0 }
    }

    /// Where in the stream the window begins.
    pub(super) fn offset(&self) -> u64 {
        self.offset
    }

    /// What is in the window.
    pub(super) fn data(&self) -> &[u8] {
        &self.buffer[self.start..self.end]
    }

    /// Reads until the window holds `bytes`, or the stream ends: then it holds all that is left. Gives how many there
    /// are, `bytes` at most.
    pub(super) fn need(&mut self, bytes: usize) -> io::Result<usize> {
        if self.end - self.start >= bytes {
            return Ok(bytes);
        }
        self.fill(bytes)
    }

    #[cold]
    fn fill(&mut self, bytes: usize) -> io::Result<usize> {
        self.buffer.copy_within(self.start..self.end, 0);
        (self.start, self.end) = (0, self.end - self.start);
        if self.buffer.len() < bytes {
            self.buffer.resize(bytes, 0);
        }
        while self.end < bytes {
            match self.reader.read(&mut self.buffer[self.end..]) {
                Ok(0) => break,
                Ok(read) => self.end += read,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(self.end.min(bytes))
    }

    /// Takes bytes out that the window holds.
    pub(super) fn take(&mut self, bytes: usize) {
        debug_assert!(bytes <= self.end - self.start);
        self.start += bytes;
        self.offset += bytes as u64;
    }

    /// Passes over bytes, however many; false when the stream ends before.
    pub(super) fn skip(&mut self, mut bytes: u64) -> io::Result<bool> {
        while bytes > 0 {
            let wanted = usize::try_from(bytes).unwrap_or(usize::MAX).min(CHUNK_BYTES);
            let there = self.need(wanted)?;
            self.take(there);
            if there < wanted {
                return Ok(false);
            }
            bytes -= there as u64;
        }
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Gives one byte at a time, as a slow pipe may.
    struct Drops<'a>(&'a [u8]);

    impl Read for Drops<'_> {
        fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
            let (Some((first, rest)), Some(place)) = (self.0.split_first(), into.first_mut()) else {
                return Ok(0);
            };
            *place = *first;
            self.0 = rest;
            Ok(1)
        }
    }

    #[test]
    fn a_window_moves_over_a_stream() {
        let bytes: Vec<u8> = (0..=255).collect();
        let mut window = Window::new(Drops(&bytes));
        assert_eq!(window.need(10).unwrap(), 10);
        assert_eq!(window.data(), &bytes[..10]);
        window.take(4);
        assert_eq!((window.need(100).unwrap(), window.offset()), (100, 4));
        assert_eq!(window.data(), &bytes[4..104]);
        assert!(window.skip(200).unwrap());
        assert_eq!((window.need(100).unwrap(), window.offset()), (52, 204));
        assert_eq!(window.data(), &bytes[204..]);
        assert!(!window.skip(53).unwrap());
    }
}
