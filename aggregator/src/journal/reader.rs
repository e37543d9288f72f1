//! Reading the journal by position: from the tail in memory, else from disk.
//!
//! Sinks and `observe` each hold a [`JournalReader`] of their own. Readers never hold up the writer: the tail is a
//! bounded list of shared records, and what fell out of it is read from the log.

use std::collections::VecDeque;
use std::path::PathBuf;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::watch;
use weir_common::log::{LogError, LogReader};

use super::damage::LossReporter;
use super::record::{self, DecodeError, JournalRecord};

/// Reads records by position; cheap to clone.
#[derive(Clone)]
pub struct JournalReader {
    tail: Arc<Tail>,
    log: LogReader,
    durable: watch::Receiver<u64>,
    /// Told of damage, when reading is for a sink.
    reporter: Option<LossReporter>,
}

impl JournalReader {
    pub(super) fn new(tail: Arc<Tail>, log: LogReader) -> Self {
        let durable = tail.durable.subscribe();
        Self { tail, log, durable, reporter: None }
    }

    /// The same for a sink: damage that it meets becomes a row of kind=loss, once.
    pub fn reporting_to(self, reporter: LossReporter) -> Self {
        Self { reporter: Some(reporter), ..self }
    }

    /// The position after the last durable record.
    pub fn durable_position(&self) -> u64 {
        *self.durable.borrow()
    }

    /// The record at `position` if it is durable; `None` at the end. May read from disk: not for an async task.
    pub fn try_next(&self, position: u64) -> Result<Option<Arc<JournalRecord>>, ReadError> {
        if position >= self.durable_position() {
            return Ok(None);
        }
        if let Some(record) = self.tail.record(position) {
            return Ok(Some(record));
        }
        let result = self.read_from_disk(position);
        // Records that were removed may be none that the sink was to have.
        if let Err(error @ ReadError::Damaged { .. }) = &result {
            self.report(error);
        }
        result.map(|record| Some(Arc::new(record)))
    }

    /// Reports records that a sink needed and that are damaged or gone: a row of kind=loss, once.
    pub fn report(&self, error: &ReadError) {
        if let Some(reporter) = &self.reporter {
            reporter.damaged(error);
        }
    }

    /// As `try_next`, but waits up to `timeout` for the record. For threads.
    pub fn next_blocking(
        &self,
        position: u64,
        timeout: Duration,
    ) -> Result<Option<Arc<JournalRecord>>, ReadError> {
        self.tail.wait_durable(position, timeout);
        self.try_next(position)
    }

    /// Waits for the record at `position`; `None` once the journal is closed and holds no such record. Dropping the
    /// future loses nothing.
    pub async fn next(&mut self, position: u64) -> Result<Option<Arc<JournalRecord>>, ReadError> {
        while position >= *self.durable.borrow_and_update() {
            if self.durable.changed().await.is_err() {
                return Ok(None);
            }
        }
        if let Some(record) = self.tail.record(position) {
            return Ok(Some(record));
        }
        let reader = self.clone();
        match tokio::task::spawn_blocking(move || reader.try_next(position)).await {
            Ok(result) => result,
            // The runtime is shutting down.
            Err(_) => Ok(None),
        }
    }

    fn read_from_disk(&self, position: u64) -> Result<JournalRecord, ReadError> {
        match self.log.read(position) {
            Ok(Some(payload)) => {
                record::decode(position, &payload).map_err(|source| ReadError::Decode { position, source })
            }
            Ok(None) => Err(ReadError::Misplaced { position }),
            Err(LogError::Damaged { path, offset, reason, resume_at }) => {
                Err(ReadError::Damaged { position, resume_at, path, offset, reason })
            }
            Err(LogError::Removed { first, .. }) => Err(ReadError::Removed { position, first }),
            Err(source) => Err(ReadError::Log { position, source }),
        }
    }
}

/// The last records, kept in memory while they fit `bytes_max`.
pub(super) struct Tail {
    records: Mutex<Records>,
    arrived: Condvar,
    /// The position after the last durable record.
    durable: watch::Sender<u64>,
    pub(super) bytes_max: usize,
}

#[derive(Default)]
struct Records {
    list: VecDeque<Arc<JournalRecord>>,
    bytes: usize,
}

impl Tail {
    pub(super) fn new(durable_position: u64, bytes_max: usize) -> Self {
        Self {
            records: Mutex::default(),
            arrived: Condvar::new(),
            durable: watch::Sender::new(durable_position),
            bytes_max,
        }
    }

    /// Adds the record after the last one, which is durable by now, and wakes those who wait for it.
    pub(super) fn push(&self, record: Arc<JournalRecord>) {
        let next = record.position + 1;
        let mut records = self.lock();
        records.bytes += record.memory_bytes();
        records.list.push_back(record);
        while records.bytes > self.bytes_max && records.list.len() > 1 {
            if let Some(oldest) = records.list.pop_front() {
                records.bytes -= oldest.memory_bytes();
            }
        }
        self.durable.send_replace(next);
        drop(records);
        self.arrived.notify_all();
    }

    fn record(&self, position: u64) -> Option<Arc<JournalRecord>> {
        let records = self.lock();
        let first = records.list.front()?.position;
        let index = usize::try_from(position.checked_sub(first)?).ok()?;
        records.list.get(index).cloned()
    }

    fn wait_durable(&self, position: u64, timeout: Duration) {
        let deadline = Instant::now() + timeout;
        let mut records = self.lock();
        while position >= *self.durable.borrow() {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            records = self.arrived.wait_timeout(records, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    pub(super) fn bytes(&self) -> usize {
        self.lock().bytes
    }

    fn lock(&self) -> MutexGuard<'_, Records> {
        // No code panics while it holds the lock; a poisoned list is still a list.
        self.records.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Why a record can't be had.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// Its bytes, and those up to `resume_at`, are damaged on disk: go on there and record the loss.
    #[error("journal records {position}..{resume_at} are damaged in {} at offset {offset}: {reason}", .path.display())]
    Damaged {
        /// The record asked for.
        position: u64,
        /// The next one that can be read, or will be written.
        resume_at: u64,
        /// The segment.
        path: PathBuf,
        /// Byte offset of the damage in it.
        offset: u64,
        /// What is wrong there.
        reason: &'static str,
    },
    /// Its segment was removed.
    #[error("journal record {position} was removed, the first one left is {first}")]
    Removed {
        /// The record asked for.
        position: u64,
        /// The first one left.
        first: u64,
    },
    /// Its bytes are what was written, but not what this version reads.
    #[error("decode journal record {position}")]
    Decode {
        /// The record asked for.
        position: u64,
        /// Why not.
        #[source]
        source: DecodeError,
    },
    /// The log does not have it yet, though it was announced.
    #[error("journal record {position} is announced but not in the log")]
    Misplaced {
        /// The record asked for.
        position: u64,
    },
    /// Reading failed.
    #[error("read journal record {position}")]
    Log {
        /// The record asked for.
        position: u64,
        /// Why.
        #[source]
        source: LogError,
    },
}
