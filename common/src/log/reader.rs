//! Readers of a log: any number, beside the one writer, of what is durable.

use std::fs::File;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::segment::{Verdict, read_frame};
use super::{Damage, LogError, SegmentInfo};
use crate::file::FileError;

/// Reads records by position. Cheap to clone; sees what was synced, and answers for what was removed.
#[derive(Clone, Debug)]
pub struct LogReader {
    shared: Arc<Shared>,
}

impl LogReader {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        Self { shared }
    }

    /// The record at a position; `None` when it is not durable yet.
    pub fn read(&self, position: u64) -> Result<Option<Vec<u8>>, LogError> {
        if position >= self.durable_position() {
            return Ok(None);
        }
        let place = self.shared.place(position)?;
        let mut payload = Vec::new();
        let damaged = |reason| LogError::Damaged {
            path: place.path.clone(),
            offset: place.offset,
            reason,
            resume_at: position + 1,
        };
        let verdict = read_frame(&*place.file, place.offset, self.shared.record_bytes_max, &mut payload)
            .map_err(FileError::at("read", &place.path))?;
        match verdict {
            Verdict::Sound(frame) if frame.position == position => Ok(Some(payload)),
            Verdict::Sound(_) => Err(damaged("a frame has another position")),
            Verdict::Broken(reason) => Err(damaged(reason)),
        }
    }

    /// One past the last durable position.
    pub fn durable_position(&self) -> u64 {
        self.shared.durable.load(Ordering::Acquire)
    }

    /// The first position that is still on disk; the durable position when there is none.
    pub fn first_position(&self) -> u64 {
        self.shared.first_position().unwrap_or_else(|| self.durable_position())
    }
}

/// Stands for a damaged record in place of its offset.
pub(super) const DAMAGED: u32 = u32::MAX;

/// One segment as readers know it.
#[derive(Debug)]
pub(super) struct Segment {
    pub(super) first_position: u64,
    pub(super) path: PathBuf,
    file: Arc<File>,
    pub(super) checkpoint: Vec<u8>,
    pub(super) bytes: u64,
    /// Where the frame of each record begins: 4 bytes a record, so that a long backlog costs little memory.
    pub(super) offsets: Vec<u32>,
    damaged: Vec<Damage>,
}

impl Segment {
    pub(super) fn new(first_position: u64, path: PathBuf, file: File, checkpoint: Vec<u8>) -> Self {
        let (offsets, damaged) = (Vec::new(), Vec::new());
        Self { first_position, path, file: Arc::new(file), checkpoint, bytes: 0, offsets, damaged }
    }

    pub(super) fn next_position(&self) -> u64 {
        self.first_position + self.offsets.len() as u64
    }

    /// Damage is added where its first position is the next one.
    pub(super) fn add_damage(&mut self, damage: Damage) {
        let count = damage.last_position - damage.first_position + 1;
        self.offsets.resize(self.offsets.len() + usize::try_from(count).unwrap_or(0), DAMAGED);
        self.damaged.push(damage);
    }

    /// Damage behind the last offset: as wide as the names of two files say, so it takes no place in `offsets`.
    pub(super) fn add_end_damage(&mut self, damage: Damage) {
        self.damaged.push(damage);
    }
}

/// Where a record is.
struct Place {
    file: Arc<File>,
    path: PathBuf,
    offset: u64,
}

/// What writer and readers share.
#[derive(Debug)]
pub(super) struct Shared {
    segments: Mutex<Vec<Segment>>,
    durable: AtomicU64,
    record_bytes_max: u32,
}

impl Shared {
    pub(super) fn new(record_bytes_max: u32) -> Self {
        Self { segments: Mutex::new(Vec::new()), durable: AtomicU64::new(1), record_bytes_max }
    }

    pub(super) fn replace(&self, segments: Vec<Segment>, next_position: u64) {
        *self.lock() = segments;
        self.publish(next_position);
    }

    pub(super) fn publish(&self, next_position: u64) {
        self.durable.store(next_position, Ordering::Release);
    }

    pub(super) fn push(&self, offset: u32, end: u64) {
        if let Some(segment) = self.lock().last_mut() {
            segment.offsets.push(offset);
            segment.bytes = end;
        }
    }

    /// A segment without records is replaced by one that begins at the same position.
    pub(super) fn add_segment(&self, segment: Segment) {
        let mut segments = self.lock();
        segments.retain(|old| old.first_position != segment.first_position);
        segments.push(segment);
    }

    pub(super) fn take_before(&self, position: u64) -> Vec<SegmentInfo> {
        let mut segments = self.lock();
        let sealed = segments.len().saturating_sub(1);
        let count =
            segments[..sealed].iter().take_while(|segment| segment.next_position() <= position).count();
        segments.drain(..count).map(|segment| info(&segment)).collect()
    }

    pub(super) fn take_sealed(&self, first_position: u64) -> Option<SegmentInfo> {
        let mut segments = self.lock();
        let sealed = segments.len().saturating_sub(1);
        let index = segments[..sealed].iter().position(|segment| segment.first_position == first_position)?;
        Some(info(&segments.remove(index)))
    }

    pub(super) fn first_position(&self) -> Option<u64> {
        self.lock().first().map(|segment| segment.first_position)
    }

    pub(super) fn segments(&self) -> Vec<SegmentInfo> {
        self.lock().iter().map(info).collect()
    }

    fn place(&self, position: u64) -> Result<Place, LogError> {
        let segments = self.lock();
        let after = segments.partition_point(|segment| segment.first_position <= position);
        let Some(segment) = after.checked_sub(1).and_then(|index| segments.get(index)) else {
            let first = segments.first().map_or(0, |segment| segment.first_position);
            return Err(LogError::Removed { position, first });
        };
        let index = usize::try_from(position - segment.first_position).unwrap_or(usize::MAX);
        match segment.offsets.get(index) {
            Some(&offset) if offset != DAMAGED => Ok(Place {
                file: Arc::clone(&segment.file),
                path: segment.path.clone(),
                offset: u64::from(offset),
            }),
            _ => Err(self.damage_at(&segments, segment, position)),
        }
    }

    fn damage_at(&self, segments: &[Segment], segment: &Segment, position: u64) -> LogError {
        let known = segment.damaged.iter().find(|d| (d.first_position..=d.last_position).contains(&position));
        if let Some(Damage { path, offset, reason, last_position, .. }) = known {
            return LogError::Damaged {
                path: path.clone(),
                offset: *offset,
                reason,
                resume_at: last_position + 1,
            };
        }
        // Between two segments: a file is gone.
        let next = segments.iter().map(|segment| segment.first_position).find(|first| *first > position);
        LogError::Damaged {
            path: segment.path.clone(),
            offset: segment.bytes,
            reason: "the records after this segment are missing",
            resume_at: next.unwrap_or_else(|| self.durable.load(Ordering::Acquire)),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Segment>> {
        // The data is sound after a panic elsewhere: every change is one push or drain.
        self.segments.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn info(segment: &Segment) -> SegmentInfo {
    SegmentInfo {
        first_position: segment.first_position,
        next_position: segment.next_position(),
        path: segment.path.clone(),
        bytes: segment.bytes,
    }
}
