//! Group commit: the one thread that writes the journal.
//!
//! It takes what is queued, builds one record, appends and syncs it, and only then lets the registry acknowledge. A
//! failed append or sync is fatal, because nothing more may be promised; a full disk and a spent budget make it wait
//! instead, since nothing was acknowledged: the queue, the memory for undecided units and the shippers' windows fill.

use std::error::Error as _;
use std::sync::Arc;
use std::time::{Duration, Instant};

use arrow::error::ArrowError;
use prost::Message;
use tokio::runtime::Handle;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use weir_common::admin::Health;
use weir_common::log::LogError;
use weir_common::{clock, crash};

use super::damage::LossReporter;
use super::record::{self, Encoded, JournalRecord};
use super::{Journal, checkpoint};
use crate::accepted::Accepted;
use crate::columns::{self, OwnLoss};
use crate::enrich::Enricher;
use crate::ingest::limits::Limits;
use crate::ingest::registry::Registry;
use crate::metrics::Metrics;

/// How groups are formed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GroupOptions {
    /// A group is closed once it has this many rows.
    pub rows: u64,
    /// Decoded bytes of a group of more than one unit, at most.
    pub bytes: u64,
    /// How long a group waits for more.
    pub linger: Duration,
}

/// The writer, to be run on a thread of its own.
pub struct Writer {
    /// The journal; nobody else appends.
    pub journal: Journal,
    /// Accepted units, in the order of their acceptance.
    pub queue: mpsc::Receiver<Accepted>,
    /// Losses that the aggregator itself found.
    pub own: mpsc::UnboundedReceiver<OwnLoss>,
    /// Remembers which of those were journaled.
    pub reporter: LossReporter,
    /// Who acknowledges.
    pub registry: Arc<Registry>,
    /// What enrichment knows.
    pub enricher: Enricher,
    /// How groups are formed.
    pub group: GroupOptions,
    /// Counters.
    pub metrics: Metrics,
    /// Where a pause is told.
    pub health: Health,
    /// No stream offers any more, though somebody may still hold a sender of `queue`: the writer ends with what is in it.
    pub streams_ended: CancellationToken,
    /// Draining has waited long enough: a paused writer gives up what is not acknowledged.
    pub give_up: CancellationToken,
}

#[derive(Default)]
struct Group {
    units: Vec<Accepted>,
    own: Vec<OwnLoss>,
    rows: u64,
    bytes: u64,
}

enum Pause {
    Budget,
    DiskFull(LogError),
}

impl Writer {
    /// Writes until the queue is closed and empty. On an error the process must end.
    pub fn run(mut self, runtime: &Handle) -> Result<(), WriterError> {
        let result = self.write_all(runtime);
        // Nothing more will be journaled: no stream may wait for it.
        self.queue.close();
        self.registry.close();
        result
    }

    fn write_all(&mut self, runtime: &Handle) -> Result<(), WriterError> {
        self.update_gauges();
        // The unit that was too much for the last group and begins the next.
        let mut held = None;
        while let Some(group) = runtime.block_on(self.next_group(&mut held)) {
            if !self.write(group)? {
                tracing::warn!(
                    "journal can't take the last units; they stay unacknowledged with their shippers"
                );
                break;
            }
        }
        Ok(())
    }

    async fn next_group(&mut self, held: &mut Option<Accepted>) -> Option<Group> {
        let mut group = Group::default();
        if let Some(unit) = held.take() {
            group.push(unit);
        } else {
            let mut closed = false;
            loop {
                tokio::select! {
                    biased;
                    unit = self.queue.recv() => group.push(unit?),
                    Some(own) = self.own.recv() => group.own.push(own),
                    () = self.streams_ended.cancelled(), if !closed => {
                        self.queue.close();
                        closed = true;
                        continue;
                    }
                }
                break;
            }
        }
        let deadline = tokio::time::Instant::now() + self.group.linger;
        while group.rows < self.group.rows {
            match tokio::time::timeout_at(deadline, self.queue.recv()).await {
                Ok(Some(unit)) if group.takes(&unit, self.group.bytes) => group.push(unit),
                Ok(Some(unit)) => {
                    *held = Some(unit);
                    break;
                }
                Ok(None) | Err(_) => break,
            }
        }
        while let Ok(own) = self.own.try_recv() {
            group.own.push(own);
        }
        Some(group)
    }

    /// Journals a group and has it acknowledged; `false` when it was given up because the process ends.
    fn write(&mut self, group: Group) -> Result<bool, WriterError> {
        let Group { mut units, own, rows, bytes: _ } = group;
        let append_time_ns = clock::now_ns();
        let batches = columns::build(&units, &own, &self.enricher.load(), append_time_ns)
            .map_err(WriterError::Columns)?;
        let ranges = units.iter().map(Accepted::range).collect();
        let encoded = record::encode(ranges, append_time_ns, &batches).map_err(WriterError::Encode)?;
        crash::point("journal.built");
        let Some(position) = self.append(&encoded)? else { return Ok(false) };
        crash::point("journal.appended");
        let started = Instant::now();
        self.journal.log.sync().map_err(WriterError::log("sync"))?;
        self.metrics.journal_sync_seconds.observe(started.elapsed().as_secs_f64());
        crash::point("journal.synced");

        let record = Arc::new(JournalRecord { position, append_time_ns, batches });
        self.metrics.journaled(&units, &record, encoded.len());
        self.journal.cursors.push_record(record.events());
        self.journal.tail.push(record);
        // Their memory is free before a shipper hears of it.
        units.iter_mut().for_each(|unit| unit.share = None);
        self.registry.journaled(&units);
        crash::point("journal.acknowledged");
        self.reporter.journaled(&own).map_err(WriterError::Reported)?;
        self.metrics.group_events.observe(rows as f64);
        if self.journal.log.roll_due() {
            self.roll()?;
        }
        self.update_gauges();
        Ok(true)
    }

    /// Appends a record, waiting while there is no room, also while draining: a sink may yet make some. `None` when it
    /// was given up.
    fn append(&mut self, encoded: &Encoded) -> Result<Option<u64>, WriterError> {
        let mut paused = false;
        loop {
            let pause = if self.make_room(encoded.len() as u64)? {
                match self.journal.log.append_vectored(&encoded.parts()) {
                    Ok(position) => {
                        if paused {
                            self.resume();
                        }
                        return Ok(Some(position));
                    }
                    Err(error) if error.is_full() => {
                        self.free_delivered()?;
                        Pause::DiskFull(error)
                    }
                    Err(error) => return Err(WriterError::log("append to")(error)),
                }
            } else {
                Pause::Budget
            };
            if !paused {
                self.pause(&pause);
                paused = true;
            }
            if self.give_up.is_cancelled() {
                return Ok(None);
            }
            self.journal.cursors.wait_moved(PAUSE_CHECK);
        }
    }

    /// Whether `bytes` more stay within the budget, after removing what no sink needs.
    fn make_room(&mut self, bytes: u64) -> Result<bool, WriterError> {
        let fits = |journal: &Journal| journal.log.bytes().saturating_add(bytes) <= journal.budget_bytes;
        if !fits(&self.journal) {
            self.free_delivered()?;
        }
        Ok(fits(&self.journal))
    }

    /// Removes all that no sink needs.
    fn free_delivered(&mut self) -> Result<(), WriterError> {
        self.remove_delivered()?;
        // The active segment can't be removed; once all of it is delivered, a new one frees it.
        let delivered = self.journal.cursors.slowest() == Some(self.journal.next_position());
        if delivered && self.journal.log.segments().last().is_some_and(|s| s.next_position > s.first_position)
        {
            self.roll()?;
        }
        Ok(())
    }

    /// A new segment, opened by a checkpoint of all sequence state; a full disk puts it off.
    fn roll(&mut self) -> Result<(), WriterError> {
        let states = self.registry.checkpoint(clock::now_ns().div_euclid(1_000_000_000));
        let checkpoint = checkpoint(self.journal.id, self.journal.next_position(), states);
        match self.journal.log.roll(&checkpoint.encode_to_vec()) {
            Ok(()) => {}
            Err(error) if error.is_full() => {
                tracing::warn!(%error, "no room for a new journal segment, the old one goes on");
            }
            Err(error) => return Err(WriterError::log("roll")(error)),
        }
        crash::point("journal.rolled");
        self.remove_delivered()
    }

    fn remove_delivered(&mut self) -> Result<(), WriterError> {
        // Nothing but a sink's cursor, or no sink at all, lets records go.
        let cursors = &self.journal.cursors;
        let needed = if cursors.is_empty() { Some(self.journal.next_position()) } else { cursors.slowest() };
        if let Some(needed) = needed {
            self.journal.log.remove_before(needed).map_err(WriterError::log("remove segments of"))?;
            self.journal.cursors.removed_before(self.journal.first_position());
        }
        Ok(())
    }

    fn pause(&self, pause: &Pause) {
        let (budget, full) = match pause {
            Pause::Budget => (1, 0),
            Pause::DiskFull(_) => (0, 1),
        };
        self.metrics.paused_budget.set(budget);
        self.metrics.paused_disk_full.set(full);
        let why = match pause {
            Pause::Budget => format!(
                "journal.budget of {} bytes is spent and a required sink is behind: ingestion waits for it",
                self.journal.budget_bytes
            ),
            Pause::DiskFull(error) => {
                let words = error.source().map(ToString::to_string).unwrap_or_default();
                format!("{error}: {words}: ingestion waits for room")
            }
        };
        tracing::warn!(reason = why, "journal paused");
        self.health.unready("journal", why);
    }

    fn resume(&self) {
        self.metrics.paused_budget.set(0);
        self.metrics.paused_disk_full.set(0);
        self.health.ready("journal");
        tracing::info!("journal goes on");
    }

    fn update_gauges(&self) {
        let segments = self.journal.log.segments();
        let bytes: u64 = segments.iter().map(|segment| segment.bytes).sum();
        self.metrics.journal_bytes.set(i64::try_from(bytes).unwrap_or(i64::MAX));
        self.metrics.journal_segments.set(i64::try_from(segments.len()).unwrap_or(i64::MAX));
        self.metrics.journal_tail_bytes.set(i64::try_from(self.journal.tail.bytes()).unwrap_or(i64::MAX));
    }
}

impl GroupOptions {
    /// The bytes of a group, from the largest batch: no more than that, so that a group is no larger on disk than a batch
    /// can be.
    pub fn bytes(limits: &Limits) -> u64 {
        limits.decoded_bytes_max.min(GROUP_BYTES_MAX)
    }

    /// Bytes of the largest journal record. One text may stand in the dictionaries of [`TEXT_COLUMNS`] columns, and a
    /// group that lacks one row may be joined by the largest batch.
    pub fn record_bytes_max(&self, limits: &Limits) -> u64 {
        let texts = self.bytes.max(limits.decoded_bytes_max).saturating_mul(TEXT_COLUMNS);
        let rows = self.rows.saturating_add(limits.rows_max).saturating_mul(ROW_BYTES_MAX);
        let ranges = self.rows.saturating_mul(RANGE_BYTES_MAX);
        texts.saturating_add(rows).saturating_add(ranges).saturating_add(STREAMS_BYTES_MAX)
    }
}

impl Group {
    /// Whether a unit may join: one alone always may.
    fn takes(&self, unit: &Accepted, bytes_max: u64) -> bool {
        self.units.is_empty() || self.bytes.saturating_add(unit.decoded_bytes()) <= bytes_max
    }

    fn push(&mut self, unit: Accepted) {
        self.rows += unit.events();
        self.bytes += unit.decoded_bytes();
        self.units.push(unit);
    }
}

/// Why the journal can't go on. Nothing unsynced was acknowledged; the shippers send it again.
#[derive(Debug, thiserror::Error)]
pub enum WriterError {
    /// Checked units did not give columns: a defect.
    #[error("build the columns of a group")]
    Columns(#[source] ArrowError),
    /// The columns could not be encoded: a defect.
    #[error("encode a journal record")]
    Encode(#[source] ArrowError),
    /// The log refused.
    #[error("{action} the journal")]
    Log {
        /// What was to be done.
        action: &'static str,
        /// Why not.
        #[source]
        source: LogError,
    },
    /// The file of reported damage can't be written.
    #[error("remember reported damage")]
    Reported(#[source] weir_common::file::FileError),
}

impl WriterError {
    fn log(action: &'static str) -> impl FnOnce(LogError) -> Self {
        move |source| Self::Log { action, source }
    }
}

/// How often a paused writer looks whether there is room.
const PAUSE_CHECK: Duration = Duration::from_millis(100);
/// Decoded bytes of a group of more than one unit, at most, under any configuration: a record must stay below the log's
/// limit.
const GROUP_BYTES_MAX: u64 = 16 << 20;
/// Process, cgroup, container and pod uid, of either side.
const TEXT_COLUMNS: u64 = 8;
/// A row in all columns that hold no texts of their own, and its indices into those that do.
const ROW_BYTES_MAX: u64 = 208;
/// What a record's header says of one unit.
const RANGE_BYTES_MAX: u64 = 128;
/// Schemas, and the ends of four IPC streams.
const STREAMS_BYTES_MAX: u64 = 1 << 20;
