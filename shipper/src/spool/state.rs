//! The spool's state file: which journal its batches belong to, how far they were sent and acknowledged, what was
//! dropped. Small, synced, and never in need of new disk space.
//!
//! Two slots of fixed size are written in turn, in place, each with a sequence and a CRC; the valid one with the higher
//! sequence counts. So a write that is torn leaves the state before it, and a full disk cannot keep the spool from
//! being emptied: the file is allocated whole when it is made. Owned by the ledger's lock, one writer.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use prost::Message;
use weir_common::file::{FileError, parent, sync_dir};

use super::record::{RecordError, SavedKey};

/// Size of one slot; a state that does not fit is refused.
const SLOT_BYTES: u64 = 256 * 1024;
/// Magic, sequence, length and CRC32C of sequence and body.
const HEADER_BYTES: usize = 8 + 8 + 4 + 4;
/// Version 2: an epoch has a journal of its own, and there may be several aggregators.
const MAGIC: &[u8; 8] = b"WEIRSPS2";
/// Version 1: one journal for the whole spool. Read, not written.
const MAGIC_1: &[u8; 8] = b"WEIRSPS1";

/// Everything that is known about the spool beside its records.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct State {
    #[prost(bytes = "bytes", tag = "1")]
    pub shipper: Bytes,
    /// Version 1 only: the journal that batches were sent to; empty before the first.
    #[prost(bytes = "bytes", tag = "2")]
    pub journal: Bytes,
    /// Oldest first; the last is the current one.
    #[prost(message, repeated, tag = "3")]
    pub epochs: Vec<SavedEpoch>,
    #[prost(message, repeated, tag = "4")]
    pub tombstones: Vec<SavedTombstone>,
    #[prost(message, repeated, tag = "5")]
    pub aliases: Vec<SavedAlias>,
    /// The last interval that was dropped instead of appended.
    #[prost(message, optional, tag = "6")]
    pub dropped_key: Option<SavedKey>,
    /// The log's next position at that time: once it is passed, a record has a newer interval.
    #[prost(uint64, tag = "7")]
    pub dropped_position: u64,
    /// The aggregators that were met.
    #[prost(message, repeated, tag = "8")]
    pub aggregators: Vec<SavedAggregator>,
}

/// An aggregator and its journal.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct SavedAggregator {
    #[prost(string, tag = "1")]
    pub name: String,
    #[prost(bytes = "bytes", tag = "2")]
    pub journal: Bytes,
}

/// One epoch's marks.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct SavedEpoch {
    #[prost(bytes = "bytes", tag = "1")]
    pub epoch: Bytes,
    /// All numbers up to this one are journaled.
    #[prost(uint64, tag = "2")]
    pub acked: u64,
    /// Numbers up to this one may have arrived.
    #[prost(uint64, tag = "3")]
    pub sent: u64,
    /// At least this is the next number.
    #[prost(uint64, tag = "4")]
    pub next: u64,
    /// The journal that it belongs to; empty before anything was sent.
    #[prost(bytes = "bytes", tag = "5")]
    pub journal: Bytes,
}

/// Numbers that will never be sent.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct SavedTombstone {
    #[prost(bytes = "bytes", tag = "1")]
    pub epoch: Bytes,
    #[prost(uint64, tag = "2")]
    pub from: u64,
    #[prost(uint64, tag = "3")]
    pub to: u64,
    #[prost(uint32, tag = "4")]
    pub stage: u32,
    #[prost(uint32, tag = "5")]
    pub reason: u32,
    #[prost(uint64, optional, tag = "6")]
    pub events: Option<u64>,
    #[prost(uint64, optional, tag = "7")]
    pub bytes: Option<u64>,
    #[prost(sint64, tag = "8")]
    pub first_ns: i64,
    #[prost(sint64, tag = "9")]
    pub last_ns: i64,
}

/// Numbers of `from` above `base`, up to `end`, are numbers of `to`, less `base`.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct SavedAlias {
    #[prost(bytes = "bytes", tag = "1")]
    pub from: Bytes,
    #[prost(uint64, tag = "2")]
    pub base: u64,
    #[prost(bytes = "bytes", tag = "3")]
    pub to: Bytes,
    /// 0 is no end.
    #[prost(uint64, tag = "4")]
    pub end: u64,
}

/// Why the state file could not be used.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// The system refused.
    #[error(transparent)]
    File(#[from] FileError),
    /// Too many losses at once to be noted.
    #[error("state of {bytes} bytes does not fit {path}, which takes {SLOT_BYTES}")]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// Size of the state.
        bytes: usize,
    },
    /// Written by something else.
    #[error("read {path}")]
    Record {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        source: RecordError,
    },
}

/// The open file.
#[derive(Debug)]
pub(crate) struct StateFile {
    file: File,
    path: PathBuf,
    sequence: u64,
}

/// What was found.
#[derive(Debug)]
pub(crate) enum Loaded {
    /// There was no file: a new spool.
    Fresh,
    /// The newest valid state. `torn` says that the other slot holds a write that did not end.
    Found { state: Box<State>, torn: bool },
    /// Both slots are damaged.
    Damaged,
}

impl StateFile {
    /// Opens or makes the file, allocating both slots.
    pub(crate) fn open(path: &Path) -> Result<(Self, Loaded), StateError> {
        let fresh = !path.exists();
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(path)
            .map_err(FileError::at("open", path))?;
        let length = file.metadata().map_err(FileError::at("query", path))?.len();
        if length < 2 * SLOT_BYTES {
            // Zeroes are written, not only allocated: an unwritten extent may still need metadata when it is filled.
            let zeroes = vec![0; (2 * SLOT_BYTES - length) as usize];
            file.write_all_at(&zeroes, length).map_err(FileError::at("allocate", path))?;
            file.sync_all().map_err(FileError::at("sync", path))?;
            sync_dir(parent(path))?;
        }
        let slots = [0, 1].map(|slot| read_slot(&file, slot));
        let mut newest: Option<(u64, Box<State>)> = None;
        let mut torn = false;
        for slot in slots {
            match slot.map_err(FileError::at("read", path))? {
                Slot::Blank => {}
                Slot::Damaged => torn = true,
                Slot::Valid(sequence, state) => {
                    if newest.as_ref().is_none_or(|(best, _)| sequence > *best) {
                        newest = Some((sequence, state));
                    }
                }
            }
        }
        let (sequence, loaded) = match newest {
            Some((sequence, state)) => (sequence, Loaded::Found { state, torn }),
            None if fresh || !torn => (0, Loaded::Fresh),
            None => (0, Loaded::Damaged),
        };
        Ok((Self { file, path: path.to_owned(), sequence }, loaded))
    }

    /// Writes and syncs a new state.
    pub(crate) fn save(&mut self, state: &State) -> Result<(), StateError> {
        let body = state.encode_to_vec();
        if body.len() + HEADER_BYTES > SLOT_BYTES as usize {
            return Err(StateError::TooLarge { path: self.path.clone(), bytes: body.len() });
        }
        let sequence = self.sequence + 1;
        let mut slot = Vec::with_capacity(HEADER_BYTES + body.len());
        slot.extend_from_slice(MAGIC);
        slot.extend_from_slice(&sequence.to_le_bytes());
        slot.extend_from_slice(&(body.len() as u32).to_le_bytes());
        slot.extend_from_slice(&checksum(sequence, &body).to_le_bytes());
        slot.extend_from_slice(&body);
        self.file
            .write_all_at(&slot, sequence % 2 * SLOT_BYTES)
            .map_err(FileError::at("write", &self.path))?;
        self.file.sync_data().map_err(FileError::at("sync", &self.path))?;
        self.sequence = sequence;
        Ok(())
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }
}

enum Slot {
    Blank,
    Damaged,
    Valid(u64, Box<State>),
}

fn read_slot(file: &File, slot: u64) -> io::Result<Slot> {
    let mut bytes = vec![0; SLOT_BYTES as usize];
    file.read_exact_at(&mut bytes, slot * SLOT_BYTES)?;
    let (header, rest) = bytes.split_at(HEADER_BYTES);
    if header.iter().all(|byte| *byte == 0) {
        return Ok(Slot::Blank);
    }
    let number = |range: std::ops::Range<usize>| {
        header[range].iter().rev().fold(0u64, |value, byte| value << 8 | u64::from(*byte))
    };
    let (sequence, length, crc) = (number(8..16), number(16..20) as usize, number(20..24) as u32);
    let known = &header[..8] == MAGIC || &header[..8] == MAGIC_1;
    let valid = known.then(|| rest.get(..length)).flatten();
    let valid = valid.filter(|body| checksum(sequence, body) == crc);
    Ok(valid
        .and_then(|body| State::decode(body).ok())
        .map_or(Slot::Damaged, |state| Slot::Valid(sequence, Box::new(state))))
}

fn checksum(sequence: u64, body: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(&sequence.to_le_bytes()), body)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state(acked: u64) -> State {
        let epoch = SavedEpoch {
            epoch: Bytes::from_static(&[1; 16]),
            acked,
            sent: acked + 1,
            next: acked + 2,
            journal: Bytes::new(),
        };
        State { epochs: vec![epoch], ..State::default() }
    }

    #[test]
    fn the_newest_valid_slot_counts() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state");
        let (mut file, loaded) = StateFile::open(&path).unwrap();
        assert!(matches!(loaded, Loaded::Fresh));
        for acked in 1..=3 {
            file.save(&state(acked)).unwrap();
        }
        drop(file);
        let found = |path: &Path| match StateFile::open(path).unwrap().1 {
            Loaded::Found { state, torn } => Some((state.epochs[0].acked, torn)),
            Loaded::Damaged => None,
            Loaded::Fresh => panic!("fresh"),
        };
        assert_eq!(found(&path), Some((3, false)));
        // State 3 is in slot 1: a flipped byte there leaves state 2, said to be torn.
        let raw = OpenOptions::new().write(true).open(&path).unwrap();
        raw.write_all_at(b"\xff", SLOT_BYTES + HEADER_BYTES as u64 + 1).unwrap();
        assert_eq!(found(&path), Some((2, true)));
        raw.write_all_at(b"\xff", 3).unwrap();
        assert_eq!(found(&path), None);
    }

    #[test]
    fn a_state_that_does_not_fit_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let (mut file, _) = StateFile::open(&dir.path().join("state")).unwrap();
        let state =
            State { tombstones: vec![SavedTombstone::default(); SLOT_BYTES as usize], ..State::default() };
        assert!(matches!(file.save(&state), Err(StateError::TooLarge { .. })));
    }
}
