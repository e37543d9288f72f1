//! The journal: enriched columns in a segmented log, synced before anything is acknowledged.
//!
//! Owns recovery of the sequence state, group commit ([`writer`]), the tail in memory, and what sinks may still need.
//! Sinks and `observe` read by position through [`JournalReader`]; a sink says how far it is through [`SinkCursors`].
//!
//! Each segment opens with a checkpoint of all sequence state, and each record's header lists its batches; so the state
//! is the last checkpoint and the headers after it, whatever happened to older segments. One that can't be used is set
//! aside ([`aside`]).

mod aside;
pub mod cursors;
pub mod damage;
pub mod reader;
pub mod record;
pub mod writer;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use prost::Message;
use weir_common::file::{self, FileError};
use weir_common::log::{Log, LogError, LogOptions, Recovery};
use weir_proto::v1::{JournalCheckpoint, ShipperState};
use weir_schema::SCHEMA_VERSION;

use crate::accepted::Id;
use crate::ingest::sequence::{Bounds, Sequences};
use reader::Tail;

pub use cursors::{SinkCursors, SinkSpec, SinkStatus};
pub use reader::{JournalReader, ReadError};
pub use record::JournalRecord;

/// Tells a journal's segments from a spool's.
pub const LOG_KIND: [u8; 4] = *b"JRNL";

/// Where the journal is and how much it may hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JournalOptions {
    /// Its folder.
    pub dir: PathBuf,
    /// Bytes on disk beyond which ingestion waits for the required sinks.
    pub budget_bytes: u64,
    /// Bytes after which a segment is followed by another.
    pub segment_bytes: u64,
    /// Bytes of the latest records kept in memory.
    pub tail_bytes: usize,
    /// How much sequence state is kept.
    pub bounds: Bounds,
}

/// An open journal, before its writer runs.
pub struct Journal {
    pub(in crate::journal) log: Log,
    dir: PathBuf,
    pub(in crate::journal) id: Id,
    pub(in crate::journal) tail: Arc<Tail>,
    pub(in crate::journal) cursors: SinkCursors,
    pub(in crate::journal) budget_bytes: u64,
}

/// What opening found.
pub struct Opened {
    /// The journal.
    pub journal: Journal,
    /// Which numbers it holds.
    pub sequences: Sequences,
    /// What the log had to repair or give up.
    pub recovery: Recovery,
}

impl Journal {
    /// Opens or makes the journal and recovers its state. `cursors` has the sinks registered.
    pub fn open(options: &JournalOptions, cursors: SinkCursors, now_s: i64) -> Result<Opened, JournalError> {
        let log_options = LogOptions {
            segment_bytes: options.segment_bytes,
            record_bytes_max: RECORD_BYTES_MAX,
            ..LogOptions::new(LOG_KIND, SCHEMA_VERSION)
        };
        let dir = options.dir.as_path();
        let (mut log, recovery) = aside::open_log(dir, log_options).map_err(JournalError::at("open", dir))?;
        let asides = aside::list(dir).map_err(JournalError::file("open", dir))?;
        let checkpoint = match log.checkpoint() {
            Some(bytes) => JournalCheckpoint::decode(bytes)
                .map_err(|source| JournalError::Checkpoint { dir: options.dir.clone(), source })?,
            None => begin(&mut log, dir, &asides)?,
        };
        let id = Id::try_from(checkpoint.journal_id.as_slice())
            .map_err(|_| JournalError::NoId { dir: options.dir.clone() })?;
        remember_id(dir, id).map_err(JournalError::file("remember the id of", dir))?;
        let mut sequences = Sequences::restore(options.bounds, checkpoint.shippers);
        let state_from = checkpoint.next_position;
        recover(&log, &options.dir, &cursors, |position, header| {
            if position >= state_from {
                let seen_s = header.append_time_ns.div_euclid(1_000_000_000).min(now_s);
                header.ranges.iter().for_each(|range| sequences.replay(range, seen_s));
            }
        })?;
        let tail = Arc::new(Tail::new(log.next_position(), options.tail_bytes));
        let floor = aside::floor(&asides, log.next_position()).map_err(JournalError::file("open", dir))?;
        let mut journal =
            Self { log, dir: options.dir.clone(), id, tail, cursors, budget_bytes: options.budget_bytes };
        if floor > journal.next_position() {
            journal.advance_to(floor, sequences.checkpoint(FORGET_NOTHING))?;
        }
        Ok(Opened { journal, sequences, recovery })
    }

    /// Goes on at a position that a sink has reached, where the journal lost its end to damage after the sink had read it:
    /// otherwise the sink would take the next records for those that it has. `shippers` is the state of all sequences.
    pub fn advance_to(&mut self, position: u64, shippers: Vec<ShipperState>) -> Result<(), JournalError> {
        let next = self.next_position();
        if position <= next {
            return Ok(());
        }
        let checkpoint = checkpoint(self.id, position, shippers).encode_to_vec();
        self.log.advance_to(position, &checkpoint).map_err(JournalError::at("advance", &self.dir))?;
        (next..position).for_each(|_| self.cursors.push_record(0));
        self.tail = Arc::new(Tail::new(position, self.tail.bytes_max));
        Ok(())
    }

    /// 16 random bytes, made with the journal.
    pub fn id(&self) -> Id {
        self.id
    }

    /// A reader from any position.
    pub fn reader(&self) -> JournalReader {
        JournalReader::new(Arc::clone(&self.tail), self.log.reader())
    }

    /// Where sinks say how far they are.
    pub fn cursors(&self) -> &SinkCursors {
        &self.cursors
    }

    /// The first record that is on disk.
    pub fn first_position(&self) -> u64 {
        self.log.first_position()
    }

    /// The position of the next record.
    pub fn next_position(&self) -> u64 {
        self.log.next_position()
    }
}

/// The first checkpoint of a journal: of a new one, or of one whose segments are all set aside. That one keeps its id,
/// and as much of its state as can still be read.
fn begin(log: &mut Log, dir: &Path, asides: &[aside::Aside]) -> Result<JournalCheckpoint, JournalError> {
    let kept = aside::checkpoint(asides, RECORD_BYTES_MAX).map_err(JournalError::file("begin", dir))?;
    let (id, shippers) = match kept {
        Some(kept) => (Id::try_from(kept.journal_id.as_slice()).ok(), kept.shippers),
        None if asides.is_empty() => (None, Vec::new()),
        None => (std::fs::read(dir.join(ID_FILE)).ok().and_then(|id| Id::try_from(id).ok()), Vec::new()),
    };
    let position = asides.last().map_or(log.next_position(), |last| last.first_position);
    let checkpoint = checkpoint(id.unwrap_or_else(weir_common::id::random_id), position, shippers);
    log.advance_to(position, &checkpoint.encode_to_vec()).map_err(JournalError::at("begin", dir))?;
    Ok(checkpoint)
}

/// Keeps the id beside the segments, in case that their checkpoints are lost.
fn remember_id(dir: &Path, id: Id) -> Result<(), FileError> {
    let path = dir.join(ID_FILE);
    if std::fs::read(&path).is_ok_and(|known| known == id) {
        return Ok(());
    }
    match file::atomic_write(&path, &id) {
        // The next start will do.
        Err(error) if error.is_full() => Ok(()),
        other => other,
    }
}

/// Reads the header of every retained record: state after the last checkpoint, and each record's count of events.
fn recover(
    log: &Log,
    dir: &Path,
    cursors: &SinkCursors,
    mut state: impl FnMut(u64, &weir_proto::v1::JournalHeader),
) -> Result<(), JournalError> {
    let reader = log.reader();
    let (first, next) = (log.first_position(), log.next_position());
    cursors.start_at(first);
    for position in first..next {
        let events =
            match reader.read(position) {
                Ok(Some(payload)) => {
                    let (header, _) = record::decode_header(&payload)
                        .map_err(|source| JournalError::Header { dir: dir.to_owned(), position, source })?;
                    state(position, &header);
                    header.parts.iter().map(|part| part.rows).sum()
                }
                // How many events a damaged record held is not known; its loss row says so with a null count.
                Ok(None) | Err(LogError::Damaged { .. }) => 0,
                Err(source) => return Err(JournalError::at("read", dir)(source)),
            };
        cursors.push_record(events);
    }
    Ok(())
}

/// The first frame of a segment.
pub(in crate::journal) fn checkpoint(
    id: Id,
    next_position: u64,
    shippers: Vec<ShipperState>,
) -> JournalCheckpoint {
    JournalCheckpoint { journal_id: id.to_vec(), schema_version: SCHEMA_VERSION, next_position, shippers }
}

/// Why the journal can't be opened.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    /// The log can't do it.
    #[error("{action} journal {}", .dir.display())]
    Log {
        /// What was to be done.
        action: &'static str,
        /// The folder.
        dir: PathBuf,
        /// Why not.
        #[source]
        source: LogError,
    },
    /// The active segment's checkpoint is no checkpoint.
    #[error("decode the checkpoint of journal {}", .dir.display())]
    Checkpoint {
        /// The folder.
        dir: PathBuf,
        /// Why not.
        #[source]
        source: prost::DecodeError,
    },
    /// The checkpoint has no journal id.
    #[error("the checkpoint of journal {} has no id of 16 bytes", .dir.display())]
    NoId {
        /// The folder.
        dir: PathBuf,
    },
    /// A record that is intact can't be understood.
    #[error("read the header of record {position} of journal {}", .dir.display())]
    Header {
        /// The folder.
        dir: PathBuf,
        /// Which record.
        position: u64,
        /// Why not.
        #[source]
        source: record::DecodeError,
    },
}

impl JournalError {
    fn at(action: &'static str, dir: &Path) -> impl FnOnce(LogError) -> Self {
        let dir = dir.to_owned();
        move |source| Self::Log { action, dir, source }
    }

    fn file(action: &'static str, dir: &Path) -> impl FnOnce(FileError) -> Self {
        let at = Self::at(action, dir);
        move |source| at(source.into())
    }
}

/// No legal group reaches it, under any configuration: see `GroupOptions::record_bytes_max`, which is 953 MiB with all limits
/// at their greatest (64 MiB a batch, 1.5 Mi rows).
pub(crate) const RECORD_BYTES_MAX: u32 = 1 << 30;

/// For a checkpoint at a start, while no shipper is connected and the clock may be wrong.
pub const FORGET_NOTHING: i64 = i64::MIN;
/// Holds the 16 bytes of the journal's id.
const ID_FILE: &str = "journal-id";

#[cfg(test)]
mod tests;
