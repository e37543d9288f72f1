//! The spool: what was captured, on disk, until an aggregator has it in its journal.
//!
//! Owns the writing side: one log record an interval, synced before the capture may forget the interval; the disk
//! budget; the removal of what was acknowledged. Called by the source loop. What is sent and acknowledged goes through
//! [`Outbox`]; neither side waits for the other.
//!
//! # Rules
//! 1. One interval is one record, so it is in the spool whole or not at all; its [`CaptureKey`] tells a restart which.
//! 2. Numbers are contiguous from 1 in an epoch. A new epoch begins when the end of the log was cut or is missing: a
//!    number that may have been used is never given out again.
//! 3. A number is marked as sent, synced, before it is sent. What is so marked may have arrived: it belongs to that
//!    aggregator's journal, and no budget drops it. An epoch goes to one journal; what was never sent of it can be
//!    given to a new epoch, and so to another aggregator.
//! 4. When a record would pass the budget: first go the segments that hold nothing that waits; then, oldest first,
//!    sealed segments with nothing but records that were never sent; if there is none left, the new interval itself
//!    is dropped. What is dropped is noted, synced, before it goes, and sent as a skip with its exact count. So the
//!    kernel's maps are always drained, and `dropped + delivered = captured`.
//! 5. Numbers that damage took are found as holes between the others and declared likewise, with an unknown count.
//! 6. A full disk is not a loss: the append is undone and tried again while the capture still holds the interval.
//!
//! # Files
//! `<20 digits>.log` and `lock` ([`weir_common::log`]), and `state`: see the submodule of that name.

mod epoch;
mod image;
mod ledger;
mod outbox;
mod record;
mod recovery;
mod state;
mod takeover;

use std::ops::Range;
use std::path::PathBuf;

use prost::Message;
use weir_common::crash;
use weir_common::log::{Log, LogError, SegmentInfo};
use weir_schema::values::{LossReason, LossStage};

pub use epoch::{Amount, Tombstone};
pub use ledger::BeyondLast;
pub use outbox::{Head, Outbox, OutboxError, Outgoing, OutgoingBatch, Role, Waiting, Welcomed};
pub use record::{CaptureKey, Id, RecordError};
pub use state::StateError;
pub use takeover::Released;

use crate::batch::EncodedBatch;
use epoch::{BatchSize, Entry};
use image::Dropped;
use record::{Checkpoint, SpoolRecord};

/// Crash points on the way of an interval through the spool, in their order.
pub const CRASH_POINTS: &[&str] =
    &["spool.before_append", "spool.appended", "spool.synced", "spool.tombstoned", "spool.released"];

/// The largest record: one interval. A larger one is dropped, counted.
pub const RECORD_BYTES_MAX: u32 = 256 << 20;
/// Name of the aggregator when only one is known.
pub const ONLY_AGGREGATOR: &str = "default";
/// What a frame and a new segment's head add to a record, at most.
const OVERHEAD_BYTES: u64 = 1024;

/// Where the spool is and what it may use.
#[derive(Clone, Debug)]
pub struct SpoolOptions {
    /// The folder; made if missing.
    pub dir: PathBuf,
    /// Bytes that it may use on disk.
    pub bytes_max: u64,
    /// Bytes of a segment: what is freed or dropped at once. At most a quarter of the budget is used.
    pub segment_bytes: u64,
}

/// What became of an interval.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Appended {
    /// Synced.
    Stored,
    /// There was no room that could be made: noted as lost, synced.
    Dropped,
}

/// The spool could not do what it was asked; the interval is not in it.
#[derive(Debug, thiserror::Error)]
pub enum SpoolError {
    /// The log.
    #[error(transparent)]
    Log(#[from] LogError),
    /// The state file.
    #[error(transparent)]
    State(#[from] StateError),
}

impl SpoolError {
    /// Whether there is no room now: nothing was changed, and trying again later may do.
    pub fn is_full(&self) -> bool {
        match self {
            Self::Log(error) => error.is_full(),
            Self::State(StateError::File(error)) => error.is_full(),
            Self::State(StateError::TooLarge { .. }) => true,
            Self::State(StateError::Record { .. }) => false,
        }
    }
}

/// The writing side. Dropping it releases the folder.
#[derive(Debug)]
pub struct Spool {
    log: Log,
    outbox: Outbox,
    options: SpoolOptions,
    last_key: Option<CaptureKey>,
    last_time_ns: Option<i64>,
}

impl Spool {
    /// The reading side.
    pub fn outbox(&self) -> Outbox {
        self.outbox.clone()
    }

    /// Its folder.
    pub fn dir(&self) -> &std::path::Path {
        &self.options.dir
    }

    /// The newest interval that is here or was dropped here.
    pub fn last_key(&self) -> Option<CaptureKey> {
        self.last_key
    }

    /// The latest time in the newest record that held any, Unix nanoseconds.
    pub fn last_time_ns(&self) -> Option<i64> {
        self.last_time_ns
    }

    /// Whether an interval was taken in already.
    pub fn holds(&self, key: CaptureKey) -> bool {
        self.last_key.is_some_and(|last| last.source == key.source && last.interval >= key.interval)
    }

    /// Takes in one interval. After `Ok` the capture may forget it; after `Err` it may not.
    pub fn append(&mut self, key: CaptureKey, batches: &[EncodedBatch]) -> Result<Appended, SpoolError> {
        let (epoch, first_number) = {
            let mut inner = self.outbox.lock();
            let current = inner.ledger.current();
            (current.id, current.next)
        };
        let record = SpoolRecord::new(epoch, first_number, key, batches).encode_to_vec();
        let fits = record.len() <= RECORD_BYTES_MAX as usize && self.make_room(record.len() as u64)?;
        if !fits && !batches.is_empty() {
            self.drop_new(key, batches)?;
            return Ok(Appended::Dropped);
        }
        if self.log.roll_due() {
            self.roll()?;
        }
        crash::point("spool.before_append");
        let position = self.log.append(&record)?;
        crash::point("spool.appended");
        if !batches.is_empty() {
            // An empty interval is there only so that a gap between intervals can be seen: it needs no sync.
            self.log.sync()?;
            self.note(position, epoch, first_number, batches);
        }
        crash::point("spool.synced");
        self.last_key = Some(key);
        self.outbox.metrics().spool_bytes.set(self.log.bytes());
        Ok(Appended::Stored)
    }

    /// Notes, synced, that a source was ended by request and is gone, and that everything it counted is here. What
    /// comes from another source later follows it without a gap.
    pub fn end_source(&mut self, source: Id) -> Result<(), SpoolError> {
        self.append(CaptureKey { source, interval: CaptureKey::ENDED }, &[])?;
        Ok(self.log.sync()?)
    }

    /// Removes what was acknowledged. Called now and then; `append` does it too.
    pub fn free(&mut self) -> Result<(), SpoolError> {
        let idle = |segment: &SegmentInfo| !self.outbox.lock().ledger.needs(&positions(segment));
        let segments = self.sealed();
        let idle: Vec<_> = segments.into_iter().filter(idle).collect();
        if idle.is_empty() {
            return Ok(());
        }
        // What was acknowledged should be known before its records are gone, else they look like holes; the Welcome
        // puts that right too, so a full disk does not keep the spool from being emptied.
        match self.outbox.lock().save() {
            Err(StateError::File(error)) if error.is_full() => {}
            other => other?,
        }
        for segment in idle {
            self.log.remove_segment(segment.first_position)?;
        }
        self.outbox.metrics().spool_bytes.set(self.log.bytes());
        Ok(())
    }

    /// Ends the spool's work: removes what was acknowledged, and notes durably what is. A next start then asks no journal
    /// about it, and does not send it again to one that lost its end. A full disk is no error: the note is a comfort.
    pub fn close(mut self) -> Result<(), SpoolError> {
        self.free()?;
        match self.outbox.lock().save() {
            Err(StateError::File(error)) if error.is_full() => Ok(()),
            other => Ok(other?),
        }
    }

    /// Whether batches of so many bytes fit, so that nothing would have to be dropped for them.
    pub fn has_room(&mut self, payload_bytes: u64) -> Result<bool, SpoolError> {
        self.free()?;
        // A record holds little beside its payloads.
        let needed = payload_bytes + payload_bytes / 8 + OVERHEAD_BYTES;
        Ok(self.log.bytes() + needed <= self.options.bytes_max)
    }

    fn note(&mut self, position: u64, epoch: Id, first: u64, batches: &[EncodedBatch]) {
        let sizes = batches.iter().map(size_of);
        let (first_ns, last_ns) = span(batches);
        self.last_time_ns = Some(last_ns);
        let entry = Entry { position, first, offset: 0, batches: sizes.collect(), first_ns, last_ns };
        let metrics = self.outbox.metrics();
        metrics.spooled_batches.inc_by(batches.len() as u64);
        metrics.spooled_bytes.inc_by(epoch::amount(&entry.batches).bytes);
        let mut inner = self.outbox.lock();
        inner.ledger.push(epoch, entry);
        self.outbox.changed(&inner);
    }

    /// Whether a record of this size fits, now that everything was dropped that may be.
    fn make_room(&mut self, record_bytes: u64) -> Result<bool, SpoolError> {
        self.free()?;
        let needed = record_bytes + OVERHEAD_BYTES;
        while self.log.bytes() + needed > self.options.bytes_max {
            if needed > self.options.bytes_max || !self.drop_oldest()? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Drops the oldest sealed segment that holds nothing but records that were never sent.
    fn drop_oldest(&mut self) -> Result<bool, SpoolError> {
        let segments = self.sealed();
        let mut inner = self.outbox.lock();
        let Some(victim) = segments.iter().find(|segment| inner.ledger.never_sent(&positions(segment)))
        else {
            return Ok(false);
        };
        let before = inner.ledger.clone();
        let lost = inner.ledger.lose(&positions(victim), LossStage::Spool, LossReason::Budget);
        if let Err(error) = inner.save() {
            inner.ledger = before;
            return Err(error.into());
        }
        crash::point("spool.tombstoned");
        self.count_drop(lost, "the oldest batches that were never sent");
        self.outbox.changed(&inner);
        drop(inner);
        self.log.remove_segment(victim.first_position)?;
        Ok(true)
    }

    fn drop_new(&mut self, key: CaptureKey, batches: &[EncodedBatch]) -> Result<(), SpoolError> {
        let lost = epoch::amount(&batches.iter().map(size_of).collect::<Vec<_>>());
        let (first_ns, last_ns) = span(batches);
        let tombstone = Tombstone {
            from: 0,
            to: 0,
            stage: LossStage::Spool,
            reason: LossReason::Budget,
            events: Some(lost.events),
            bytes: Some(lost.bytes),
            first_ns,
            last_ns,
        };
        let mut inner = self.outbox.lock();
        let before = (inner.ledger.clone(), inner.dropped);
        inner.ledger.lose_new(tombstone, batches.len() as u64);
        inner.dropped = Some(Dropped { key, position: self.log.next_position() });
        if let Err(error) = inner.save() {
            (inner.ledger, inner.dropped) = before;
            return Err(error.into());
        }
        crash::point("spool.tombstoned");
        self.last_key = Some(key);
        self.count_drop(lost, "the new interval: everything older may have been sent");
        self.outbox.changed(&inner);
        Ok(())
    }

    fn count_drop(&self, lost: Amount, what: &str) {
        tracing::error!(
            events = lost.events,
            batches = lost.batches,
            bytes = lost.bytes,
            budget_bytes = self.options.bytes_max,
            dir = %self.options.dir.display(),
            what,
            "the spool's budget is spent: events are dropped"
        );
        self.outbox.metrics().dropped(LossReason::Budget, lost);
    }

    fn roll(&mut self) -> Result<(), SpoolError> {
        let checkpoint = {
            let mut inner = self.outbox.lock();
            let shipper = inner.shipper;
            let current = inner.ledger.current();
            Checkpoint::new(shipper, current.id, current.next, self.last_key)
        };
        Ok(self.log.roll(&checkpoint.encode_to_vec())?)
    }

    fn sealed(&self) -> Vec<SegmentInfo> {
        let mut segments = self.log.segments();
        segments.pop();
        segments
    }
}

fn positions(segment: &SegmentInfo) -> Range<u64> {
    segment.first_position..segment.next_position
}

fn size_of(batch: &EncodedBatch) -> BatchSize {
    BatchSize { events: batch.events, bytes: u32::try_from(batch.payload.len()).unwrap_or(u32::MAX) }
}

fn span(batches: &[EncodedBatch]) -> (i64, i64) {
    let first = batches.iter().map(|batch| batch.first_ns).min();
    let last = batches.iter().map(|batch| batch.last_ns).max();
    (first.unwrap_or_default(), last.unwrap_or_default())
}

#[cfg(test)]
mod takeover_tests;
#[cfg(test)]
mod tests;
