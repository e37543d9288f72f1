//! Opening a spool: what the log and the state file say after any end, and what is declared as lost.
//!
//! The state file is the authority on epochs, acknowledgements and losses; the records are read, all of them, to know
//! what waits. A record of an epoch that the state does not list is done with. Without a usable state everything found
//! counts as waiting and as possibly sent, under its old numbers: the aggregator knows what it has.

use std::path::Path;

use weir_common::clock::now_ns;
use weir_common::file::FileError;
use weir_common::id::{hex, random_id};
use weir_common::log::{Log, LogError, LogOptions, LogReader, Recovery};
use weir_schema::values::{LossReason, LossStage};

use super::epoch::{BatchSize, Entry, Epoch, Tombstone};
use super::image::{self, Dropped, Image};
use super::ledger::{Ledger, Part};
use super::outbox::{self, Inner, Outbox};
use super::record::{CaptureKey, Checkpoint, Id, SpoolRecord};
use super::state::{Loaded, StateError, StateFile};
use super::{ONLY_AGGREGATOR, OVERHEAD_BYTES, RECORD_BYTES_MAX, Spool, SpoolError, SpoolOptions};
use crate::metrics::Metrics;

/// Version of the log's records.
const LOG_VERSION: u32 = 1;

impl Spool {
    /// Opens or makes a spool for one aggregator; one process at a time. Reads all of it once.
    pub fn open(options: SpoolOptions, metrics: Metrics) -> Result<Self, SpoolError> {
        Self::open_for(options, &[ONLY_AGGREGATOR.to_owned()], metrics)
    }

    /// The same for these aggregators; the spool's own outbox is that of the first.
    pub fn open_for(
        mut options: SpoolOptions,
        aggregators: &[String],
        metrics: Metrics,
    ) -> Result<Self, SpoolError> {
        let first = aggregators.first().map_or(ONLY_AGGREGATOR, String::as_str);
        options.segment_bytes = options.segment_bytes.min(options.bytes_max / 4).max(OVERHEAD_BYTES);
        let log_options = LogOptions {
            segment_bytes: options.segment_bytes,
            record_bytes_max: RECORD_BYTES_MAX,
            ..LogOptions::new(*b"SPOL", LOG_VERSION)
        };
        let (log, found, set_aside) = open_log(&options.dir, log_options)?;
        let (state, loaded) = StateFile::open(&options.dir.join("state"))?;
        let checkpoint = checkpoint(&log);
        let image = image(loaded, state.path(), checkpoint.is_some(), first)?;
        let known = image.is_some();
        let Image { shipper, mut ledger, dropped } = image.unwrap_or_else(|| unknown(checkpoint.as_ref()));

        let mut last_key = checkpoint.as_ref().and_then(|checkpoint| checkpoint.key().ok().flatten());
        // The checkpoint knows of intervals that were dropped since the records before it.
        let active =
            log.segments().last().filter(|_| last_key.is_some()).map_or(0, |last| last.first_position);
        let mut last_time_ns = None;
        let mut waiting = Waiting { ledger: &mut ledger, known };
        for_each_record(&log.reader(), log.first_position(), log.next_position(), |position, record| {
            if position >= active {
                last_key = record.key().ok().or(last_key);
            }
            last_time_ns = record.batches.iter().map(|batch| batch.last_ns).max().or(last_time_ns);
            waiting.take(position, &record);
        })?;
        if let Some(checkpoint) = &checkpoint {
            waiting.reach(checkpoint.epoch(), checkpoint.next_number);
        }
        last_key = newest(last_key, dropped, log.next_position());

        let lost_tail = bury_holes(&mut ledger, known, now_ns());
        report(&found);
        let reason = match (found.cut.is_some() || set_aside, lost_tail, known) {
            (true, ..) => Some("cut"),
            (_, true, _) => Some("lost_tail"),
            (.., false) if checkpoint.is_some() => Some("lost_state"),
            _ => None,
        };
        if let Some(reason) = reason {
            let new = random_id();
            ledger.begin(new);
            tracing::warn!(new = hex(&new), reason, "new epoch");
            metrics.epochs.get_or_create(&[("reason", reason)]).inc();
        }
        if !known && checkpoint.is_some() && aggregators.len() > 1 {
            tracing::error!(
                "with the state it is lost which batches went to which aggregator: some may be doubled"
            );
            ledger.lose_new(outbox::perhaps_doubled(), 1);
        }
        metrics.recovered_events.inc_by(ledger.pending.events);
        metrics.spool_budget_bytes.set(options.bytes_max);
        let mut inner = Inner { shipper, ledger, dropped, state };
        match inner.save() {
            // The next save will do; until then a second start finds the same as this one.
            Err(StateError::File(error)) if error.is_full() => {}
            other => other?,
        }
        let outbox = Outbox::new(inner, log.reader(), metrics, aggregators);
        let mut spool = Self { log, outbox, options, last_key, last_time_ns };
        if spool.log.checkpoint().is_none() {
            spool.roll()?;
        }
        spool.outbox.metrics().spool_bytes.set(spool.log.bytes());
        Ok(spool)
    }
}

/// Opens the log without the segments that cannot be used at all; those are renamed and kept for a person to look at.
/// What was in them is missing then, and declared like any other hole. Returns whether there was one.
fn open_log(dir: &Path, options: LogOptions) -> Result<(Log, Recovery, bool), SpoolError> {
    let mut set_aside = false;
    loop {
        match Log::open(dir, options) {
            Ok((log, found)) => return Ok((log, found, set_aside)),
            Err(LogError::BadSegment { path, reason, damaged: true }) => {
                let to = path.with_extension("log.damaged");
                tracing::error!(
                    path = %path.display(), offset = 0, reason, kept_as = %to.display(),
                    "a segment of the spool cannot be used and is set aside"
                );
                std::fs::rename(&path, &to)
                    .map_err(|source| LogError::File(FileError { operation: "set aside", path, source }))?;
                set_aside = true;
            }
            Err(error) => return Err(error.into()),
        }
    }
}

fn checkpoint(log: &Log) -> Option<Checkpoint> {
    match Checkpoint::parse(log.checkpoint()?) {
        Ok(checkpoint) => Some(checkpoint),
        Err(error) => {
            tracing::error!(%error, "spool checkpoint makes no sense");
            None
        }
    }
}

fn image(loaded: Loaded, path: &Path, has_log: bool, first: &str) -> Result<Option<Image>, SpoolError> {
    match loaded {
        Loaded::Found { state, torn } => {
            if torn {
                tracing::warn!(path = %path.display(), "a write of the state did not end: the one before it counts");
            }
            let image = image::load(&state, first);
            Ok(Some(image.map_err(|source| StateError::Record { path: path.to_owned(), source })?))
        }
        Loaded::Fresh if !has_log => Ok(None),
        Loaded::Fresh | Loaded::Damaged => {
            tracing::error!(
                path = %path.display(),
                "spool state is missing or damaged: all records found are sent again, the aggregator leaves out what it has"
            );
            Ok(None)
        }
    }
}

/// The start of a new spool, or of one whose state is lost.
fn unknown(checkpoint: Option<&Checkpoint>) -> Image {
    let shipper = checkpoint.map_or_else(random_id, Checkpoint::shipper);
    let mut ledger = Ledger::new(random_id());
    if checkpoint.is_some() {
        // Filled from the records, in their order.
        ledger.epochs.clear();
    }
    Image { shipper, ledger, dropped: None }
}

fn for_each_record(
    reader: &LogReader,
    first: u64,
    next: u64,
    mut take: impl FnMut(u64, SpoolRecord),
) -> Result<(), SpoolError> {
    let mut position = first;
    while position < next {
        match reader.read(position) {
            Ok(Some(frame)) => match SpoolRecord::parse(frame) {
                Ok(record) => take(position, record),
                Err(error) => tracing::error!(position, %error, "spool record makes no sense"),
            },
            Ok(None) => break,
            Err(LogError::Damaged { resume_at, .. }) if resume_at > position => {
                position = resume_at;
                continue;
            }
            Err(error) => return Err(error.into()),
        }
        position += 1;
    }
    Ok(())
}

/// Puts records into the ledger.
struct Waiting<'a> {
    ledger: &'a mut Ledger,
    known: bool,
}

impl Waiting<'_> {
    fn take(&mut self, position: u64, record: &SpoolRecord) {
        for part in self.ledger.parts(record.epoch(), record.first_number, record.batches.len()) {
            self.take_part(position, record, part);
        }
    }

    fn take_part(&mut self, position: u64, record: &SpoolRecord, part: Part) {
        let Part { epoch: id, first, offset, mut count } = part;
        self.reach(id, first);
        let grows = self.ledger.epochs.back().is_some_and(|last| last.id == id);
        if let Some(closed) = self.ledger.epoch(&id).filter(|_| self.known && !grows) {
            // What follows went to another epoch and was acknowledged there, so that no alias leads to it any more.
            count = count.min(closed.next.saturating_sub(first) as usize);
        }
        if count == 0 {
            return;
        }
        let last = first + count as u64 - 1;
        let Some(epoch) = self.ledger.epochs.iter_mut().find(|epoch| epoch.id == id) else { return };
        if epoch.entries.back().is_some_and(|before| before.last() >= first) {
            tracing::error!(position, first, "spool record repeats a number");
            return;
        }
        epoch.next = epoch.next.max(last + 1);
        if !self.known {
            epoch.sent = last;
        }
        let rest = &record.batches[offset..offset + count];
        let waits = |number: u64| number > epoch.acked && !epoch.is_dropped(number);
        let sizes: Vec<_> = rest
            .iter()
            .map(|batch| BatchSize {
                events: batch.events,
                bytes: u32::try_from(batch.payload.len()).unwrap_or(u32::MAX),
            })
            .collect();
        let live: Vec<_> =
            (first..).zip(&sizes).filter(|(number, _)| waits(*number)).map(|(_, size)| *size).collect();
        if live.is_empty() {
            return;
        }
        let entry = Entry {
            position,
            first,
            offset,
            batches: sizes.into(),
            first_ns: rest.iter().map(|batch| batch.first_ns).min().unwrap_or_default(),
            last_ns: rest.iter().map(|batch| batch.last_ns).max().unwrap_or_default(),
        };
        epoch.entries.push_back(entry);
        self.ledger.pending.add(super::epoch::amount(&live));
    }

    /// Without a known state, an epoch is met with its first record; what is before that was acknowledged.
    fn reach(&mut self, id: Id, next: u64) {
        let (id, before) = self.ledger.resolve(id, next.saturating_sub(1));
        let next = before + 1;
        if self.known {
            // Others are closed, and the state knows their end.
            if let Some(epoch) = self.ledger.epochs.back_mut().filter(|last| last.id == id) {
                epoch.next = epoch.next.max(next);
            }
        } else if self.ledger.epoch(&id).is_none() {
            let acked = next.saturating_sub(1);
            self.ledger.epochs.push_back(Epoch { acked, sent: acked, next: acked + 1, ..Epoch::new(id) });
        }
    }
}

/// Declares the numbers that are nowhere, as lost now: of when they were, nothing is known. Returns whether the current epoch lost its end.
fn bury_holes(ledger: &mut Ledger, known: bool, now_ns: i64) -> bool {
    let mut lost_tail = false;
    let count = ledger.epochs.len();
    for (index, epoch) in ledger.epochs.iter_mut().enumerate() {
        let end = epoch.next.max(epoch.sent + 1);
        let mut holes = Vec::new();
        let mut number = epoch.acked + 1;
        let mut entries = epoch.entries.iter().peekable();
        while number < end {
            while entries.peek().is_some_and(|entry| entry.last() < number) {
                entries.next();
            }
            let held = entries.peek().filter(|entry| entry.first <= number).map(|entry| entry.last());
            let dropped = epoch.tombstone_at(number).map(|tombstone| tombstone.to);
            if let Some(to) = held.or(dropped) {
                number = to + 1;
                continue;
            }
            let entry = entries.peek().map_or(end, |entry| entry.first);
            let tombstone =
                epoch.tombstones.iter().map(|t| t.from).find(|from| *from > number).unwrap_or(end);
            let after = entry.min(tombstone);
            holes.push((number, after - 1));
            number = after;
        }
        for (from, to) in holes {
            if known || to < epoch.next {
                tracing::error!(
                    epoch = hex(&epoch.id),
                    from,
                    to,
                    "batches are missing from the spool: they are declared as lost"
                );
            }
            lost_tail |= index + 1 == count && to + 1 == end;
            epoch.next = epoch.next.max(to + 1);
            epoch.bury(Tombstone {
                from,
                to,
                stage: LossStage::Spool,
                reason: LossReason::Corrupt,
                events: None,
                bytes: None,
                first_ns: now_ns,
                last_ns: now_ns,
            });
        }
    }
    lost_tail
}

/// The newest interval: of the log, or the one that was dropped after it.
fn newest(logged: Option<CaptureKey>, dropped: Option<Dropped>, next_position: u64) -> Option<CaptureKey> {
    match dropped {
        Some(Dropped { key, position }) if position >= next_position => Some(key),
        _ => logged,
    }
}

fn report(found: &Recovery) {
    if let Some(cut) = &found.cut {
        tracing::warn!(
            path = %cut.path.display(), offset = cut.offset, bytes = cut.bytes_lost, reason = cut.reason,
            "the spool's torn end was cut; the capture still has an interval that was not synced"
        );
    }
    for damage in &found.damaged {
        // A segment that was dropped leaves a gap as well: whether numbers are missing is said by the holes.
        tracing::warn!(
            path = %damage.path.display(), offset = damage.offset, first = damage.first_position,
            last = damage.last_position, reason = damage.reason, "spool records cannot be read"
        );
    }
}
