//! A segmented log: an append-only sequence of records in files of bounded size. The shipper's spool and the
//! aggregator's journal are both one of these.
//!
//! It owns a folder, by an exclusive lock. It promises: a record is readable once [`Log::sync`] returned, and after a
//! crash every record is whole or absent; a torn tail is cut, and reported; damage elsewhere is found by checksums,
//! reported with file and offset, and the records around it stay readable. It does not know what a record means, never
//! removes anything on its own, and never reads further than a record's stated length.
//!
//! # Format
//! A segment is named `<position of its first record, 20 digits>.log`. It begins with a 64-byte header
//! ([`segment`]), then a checkpoint frame (the state before the segment, written by its owner), then one frame a
//! record. A frame is 24 bytes (magic, length, position, CRC32C of the payload, CRC32C of those fields) and the
//! payload; all integers are little-endian. Positions count from 1 without gaps over all segments.

mod reader;
pub mod segment;
mod writer;

use std::path::{Path, PathBuf};

pub use reader::LogReader;
pub use writer::Log;

use crate::file::{FileError, is_full};

/// How a log is laid out.
#[derive(Clone, Copy, Debug)]
pub struct LogOptions {
    /// A segment of this many bytes is due to be followed by another.
    pub segment_bytes: u64,
    /// The largest record that can be appended or is believed when read.
    pub record_bytes_max: u32,
    /// Tells apart the logs of different owners.
    pub kind: [u8; 4],
    /// Version of what the records hold; a segment of a newer one is refused.
    pub schema_version: u32,
}

impl LogOptions {
    /// Segments of 64 MiB, records of up to 64 MiB.
    pub fn new(kind: [u8; 4], schema_version: u32) -> Self {
        Self { segment_bytes: 64 << 20, record_bytes_max: 64 << 20, kind, schema_version }
    }
}

/// What [`Log::open`] found and did.
#[derive(Debug, Default)]
pub struct Recovery {
    /// The torn tail that was cut from the last segment.
    pub cut: Option<Cut>,
    /// Damage in front of readable records; the records concerned answer [`LogError::Damaged`].
    pub damaged: Vec<Damage>,
}

/// A torn tail: bytes after the last whole record, which a crash during an append leaves behind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cut {
    /// The segment.
    pub path: PathBuf,
    /// Where it now ends.
    pub offset: u64,
    /// How many bytes were cut off.
    pub bytes_lost: u64,
    /// What was wrong with them.
    pub reason: &'static str,
}

/// Records that can't be read back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Damage {
    /// The segment.
    pub path: PathBuf,
    /// Where the first damaged frame begins.
    pub offset: u64,
    /// The first record concerned.
    pub first_position: u64,
    /// The last record concerned.
    pub last_position: u64,
    /// What was wrong.
    pub reason: &'static str,
}

/// One file of the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SegmentInfo {
    /// Position of its first record.
    pub first_position: u64,
    /// One past its last record.
    pub next_position: u64,
    /// The file.
    pub path: PathBuf,
    /// Its size.
    pub bytes: u64,
}

/// Why a log operation failed.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// The file system refused. After a failed sync the log is poisoned.
    #[error(transparent)]
    File(#[from] FileError),
    /// The record could not be written; nothing of it was left behind.
    #[error("append to {path} at offset {offset}")]
    Append {
        /// The segment.
        path: PathBuf,
        /// Where the record would have begun.
        offset: u64,
        /// The system's words.
        source: std::io::Error,
    },
    /// Another process has the folder.
    #[error("log {path} is in use by another process")]
    Locked {
        /// The folder.
        path: PathBuf,
    },
    /// A segment's header or checkpoint can't be trusted.
    #[error("segment {path} is not usable: {reason}")]
    BadSegment {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
        /// Whether its bytes are damaged: its owner may set the file aside and open the log again. Otherwise it belongs
        /// to another log or to a newer program.
        damaged: bool,
    },
    /// The record is larger than the log takes.
    #[error("record of {bytes} bytes is larger than the limit of {limit}")]
    TooLarge {
        /// Its size.
        bytes: u64,
        /// The log's limit.
        limit: u32,
    },
    /// Nothing can be appended before the first checkpoint.
    #[error("log {path} has no segment yet: a checkpoint comes first")]
    NoSegment {
        /// The folder.
        path: PathBuf,
    },
    /// An earlier sync or cut failed: what is on disk is not known, so nothing more may be promised.
    #[error("log {path} stopped after an earlier error")]
    Poisoned {
        /// The folder.
        path: PathBuf,
    },
    /// The record was damaged on disk.
    #[error("{path} is damaged at offset {offset}: {reason}")]
    Damaged {
        /// The segment.
        path: PathBuf,
        /// Where the damaged frame begins.
        offset: u64,
        /// What is wrong.
        reason: &'static str,
        /// The next position that may be readable.
        resume_at: u64,
    },
    /// The record was removed.
    #[error("record {position} was removed: the log begins at {first}")]
    Removed {
        /// Asked for.
        position: u64,
        /// The first that is left.
        first: u64,
    },
}

impl LogError {
    /// Whether there was no room: nothing was appended, and trying again later may do.
    pub fn is_full(&self) -> bool {
        match self {
            Self::File(error) => error.is_full(),
            Self::Append { source, .. } => is_full(source),
            _ => false,
        }
    }
}

fn segment_path(dir: &Path, first_position: u64) -> PathBuf {
    dir.join(format!("{first_position:020}.log"))
}
