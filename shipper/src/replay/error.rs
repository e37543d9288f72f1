//! What can be wrong with a capture file.

use std::io;
use std::path::PathBuf;

/// A capture file could not be read, or not to its end. What stood before the place is kept.
///
/// Offsets are bytes from the file's beginning; of a compressed file, bytes after decompression.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// It can't be opened.
    #[error("open the capture file {path}")]
    Open {
        /// The file.
        path: PathBuf,
        /// The system's words.
        source: io::Error,
    },
    /// Its first bytes are no capture's.
    #[error(
        "{path} is not a capture file: it begins with {magic}; expected pcap or pcapng, perhaps compressed by gzip or zstd"
    )]
    Format {
        /// The file.
        path: PathBuf,
        /// The first bytes, hexadecimal.
        magic: String,
    },
    /// It breaks off.
    #[error("{path} is cut off at byte {offset}: {what} begins there and has {found} of {expected} bytes")]
    Cut {
        /// The file.
        path: PathBuf,
        /// Where what is cut begins.
        offset: u64,
        /// What it is.
        what: &'static str,
        /// Bytes that are there.
        found: u64,
        /// Bytes that it should have.
        expected: u64,
    },
    /// It holds what no capture file holds.
    #[error("{path} is damaged at byte {offset}: {what} ({value})")]
    Damaged {
        /// The file.
        path: PathBuf,
        /// Where that is.
        offset: u64,
        /// What is wrong.
        what: &'static str,
        /// The value that is wrong.
        value: u64,
    },
    /// It has packets of an interface of a kind that is not known. They are counted, and in no record.
    #[error(
        "{path} has packets of the link type {link}, which is not one of Ethernet, raw IP, Linux cooked or loopback"
    )]
    LinkType {
        /// The file.
        path: PathBuf,
        /// LINKTYPE_ value (tcpdump.org/linktypes.html).
        link: u32,
    },
    /// It can't be decompressed further.
    #[error("decompress {path} after byte {offset}")]
    Decompress {
        /// The file.
        path: PathBuf,
        /// Bytes that came out before.
        offset: u64,
        /// The decompressor's words.
        source: io::Error,
    },
    /// The system can't read it.
    #[error("read {path} after byte {offset}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Bytes that were read before.
        offset: u64,
        /// The system's words.
        source: io::Error,
    },
}

impl FileError {
    /// Whether it is the file's content that is wrong, so that trying again gives the same.
    pub fn is_of_content(&self) -> bool {
        match self {
            Self::Format { .. }
            | Self::Cut { .. }
            | Self::Damaged { .. }
            | Self::LinkType { .. }
            | Self::Decompress { .. } => true,
            Self::Open { .. } | Self::Read { .. } => false,
        }
    }
}
