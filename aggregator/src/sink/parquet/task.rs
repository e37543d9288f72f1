//! The thread that runs the sink: records from the journal, cuts when due, retention, and what to do about errors.
//!
//! The app spawns [`run`] on a thread of its own and ends it by cancelling the token, once nothing is appended to the
//! journal any more: the sink then takes what is left, cuts, and returns.

use std::time::{Duration, Instant};

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::{debug, error, info, warn};
use weir_common::clock::now_ns;

use super::config::ParquetConfig;
use super::error::{Disposition, SinkError, chain};
use super::manifest::Reason;
use super::metrics::ParquetMetrics;
use super::sink::ParquetSink;
use super::store::RecoveryReport;
use crate::journal::{JournalReader, ReadError, SinkCursors};

/// The sink's name among cursors.
pub const NAME: &str = "parquet";

/// Why the sink ended without being told to, or could not finish when told.
#[derive(Debug, thiserror::Error)]
pub enum TaskError {
    /// Writing failed.
    #[error(transparent)]
    Sink(#[from] SinkError),
    /// The journal could not be read.
    #[error(transparent)]
    Read(#[from] ReadError),
}

impl TaskError {
    fn disposition(&self) -> Disposition {
        match self {
            Self::Sink(error) => error.disposition(),
            // Damage and removal are dealt with where they are met.
            Self::Read(ReadError::Log { .. } | ReadError::Damaged { .. } | ReadError::Removed { .. }) => {
                Disposition::Retry
            }
            Self::Read(ReadError::Decode { .. } | ReadError::Misplaced { .. }) => Disposition::Fatal,
        }
    }
}

/// Opens the sink. A store of objects that is away is waited for, until `shutdown`: only its manifest tells at which
/// position of the journal to go on, and nothing may be journaled before that is known.
pub fn open(
    config: &ParquetConfig,
    journal_id: [u8; 16],
    shutdown: &CancellationToken,
) -> Result<(ParquetSink, RecoveryReport), SinkError> {
    loop {
        match ParquetSink::open(config.clone(), journal_id) {
            Err(error)
                if config.store.is_some()
                    && error.disposition() == Disposition::Retry
                    && !shutdown.is_cancelled() =>
            {
                let error = chain(&error);
                error!(error, "waiting for the store of the Parquet files before anything is received");
                // Each try has taken some seconds of tries by itself.
                std::thread::sleep(OPEN_INTERVAL);
            }
            opened => return opened,
        }
    }
}

/// Runs the sink until `shutdown` is cancelled and everything durable in the journal is published, or until a person is
/// needed. `trouble` holds what keeps the sink from working, for readiness: `None` while all is well.
pub fn run(
    sink: ParquetSink,
    reader: JournalReader,
    cursors: SinkCursors,
    metrics: ParquetMetrics,
    trouble: watch::Sender<Option<String>>,
    shutdown: CancellationToken,
) -> Result<(), TaskError> {
    let mut task = Task { sink, reader, cursors, metrics, trouble, shutdown, retained: None };
    task.cursors.set(NAME, task.sink.next_position());
    let mut backoff = BACKOFF_MIN;
    loop {
        let before = task.sink.next_position();
        match task.step() {
            Ok(Step::More) => {
                // Taking rows proves nothing while the disk is full; a published cut does.
                if task.sink.next_position() != before {
                    backoff = BACKOFF_MIN;
                    task.well();
                }
            }
            Ok(Step::End) => return Ok(()),
            Err(problem) => task.recover(problem, &mut backoff)?,
        }
    }
}

struct Task {
    sink: ParquetSink,
    reader: JournalReader,
    cursors: SinkCursors,
    metrics: ParquetMetrics,
    trouble: watch::Sender<Option<String>>,
    shutdown: CancellationToken,
    /// When retention last looked.
    retained: Option<Instant>,
}

enum Step {
    More,
    End,
}

impl Task {
    /// One record, or a short wait for it, and whatever has become due.
    fn step(&mut self) -> Result<Step, TaskError> {
        let ending = self.shutdown.is_cancelled();
        let wait = if ending { Duration::ZERO } else { POLL };
        let taken = self.take(wait)?;
        self.observe();
        if ending && !taken {
            self.cut(Reason::Shutdown)?;
            return Ok(Step::End);
        }
        if let Some(reason) = self.sink.cut_due(Instant::now()) {
            self.cut(reason)?;
        }
        if self.retained.is_none_or(|at| at.elapsed() >= RETENTION_INTERVAL) {
            self.retained = Some(Instant::now());
            self.retain()?;
        }
        Ok(Step::More)
    }

    fn take(&mut self, wait: Duration) -> Result<bool, TaskError> {
        match self.reader.next_blocking(self.sink.due(), wait) {
            Ok(Some(record)) => {
                self.sink.write(&record, Instant::now())?;
                Ok(true)
            }
            Ok(None) => Ok(false),
            // A sink that joins an older journal has missed nothing that it was to have.
            Err(ReadError::Removed { first, .. }) if self.sink.is_new() && self.sink.due() < first => {
                self.skip(first, "removed before the sink was first started".to_owned())?;
                Ok(true)
            }
            Err(problem @ ReadError::Removed { first: next, .. })
            | Err(problem @ ReadError::Damaged { resume_at: next, .. })
                if self.sink.due() < next =>
            {
                // The segment of records that are gone was set aside at a start.
                self.reader.report(&problem);
                let text = chain(&problem);
                error!(
                    error = text,
                    next_position = next,
                    "journal records can't be read; the Parquet sink goes on after them"
                );
                self.metrics.skipped_positions.inc_by(next - self.sink.due());
                self.skip(next, text)?;
                Ok(true)
            }
            Err(problem) => Err(problem.into()),
        }
    }

    /// Skips in an entry of its own, so that the cursor can tell what was delivered from what was passed over.
    fn skip(&mut self, next: u64, reason: String) -> Result<(), TaskError> {
        self.cut(Reason::Request)?;
        self.sink.skip(next, reason, Instant::now())?;
        self.sink.cut(Reason::Request, now_us())?;
        self.cursors.skip(NAME, next);
        Ok(())
    }

    fn cut(&mut self, reason: Reason) -> Result<(), TaskError> {
        let start = Instant::now();
        let Some(report) = self.sink.cut(reason, now_us())? else { return Ok(()) };
        let took = start.elapsed();
        self.cursors.set(NAME, report.next_position);
        self.metrics.count_cut(&report);
        self.metrics.cut_duration.observe(took.as_secs_f64());
        debug!(
            reason = reason.as_str(),
            files = report.files.len(),
            rows = report.files.iter().map(|file| file.rows).sum::<u64>(),
            next_position = report.next_position,
            took_ms = u64::try_from(took.as_millis()).unwrap_or(u64::MAX),
            "published Parquet files"
        );
        self.observe();
        Ok(())
    }

    fn retain(&mut self) -> Result<(), TaskError> {
        let removed = self.sink.retain(now_us())?;
        if !removed.is_empty() {
            let bytes: u64 = removed.iter().map(|file| file.bytes).sum();
            info!(files = removed.len(), bytes, "retention deleted Parquet files");
            self.metrics.count_removed(&removed);
            // An entry was written.
            self.well();
        }
        Ok(())
    }

    /// Waits and recovers, until that succeeds or a person is needed.
    fn recover(&mut self, mut problem: TaskError, backoff: &mut Duration) -> Result<(), TaskError> {
        loop {
            let text = chain(&problem);
            self.trouble.send_replace(Some(format!("parquet: {text}")));
            if problem.disposition() == Disposition::Fatal || self.shutdown.is_cancelled() {
                error!(error = text, "the Parquet sink ends; what it has not published stays in the journal");
                return Err(problem);
            }
            error!(error = text, retry_s = backoff.as_secs_f64(), "the Parquet sink can't write");
            self.wait(*backoff);
            *backoff = (*backoff * 2).min(BACKOFF_MAX);
            self.metrics.retries.inc();
            match self.sink.recover() {
                Ok(report) => {
                    log_recovery(&report);
                    self.metrics.damaged_files.set(gauge(report.damaged.len() as u64));
                    break;
                }
                Err(error) => problem = error.into(),
            }
        }
        // A commit that had failed late may have been completed.
        self.cursors.set(NAME, self.sink.next_position());
        // Where rows wait, only their cut proves that all is well.
        if self.sink.due() >= self.reader.durable_position() {
            self.well();
        }
        Ok(())
    }

    fn well(&self) {
        self.trouble.send_if_modified(|trouble| trouble.take().is_some());
    }

    fn observe(&self) {
        let metrics = &self.metrics;
        let next = self.sink.next_position();
        metrics.open_partitions.set(gauge(self.sink.open_partitions() as u64));
        metrics.buffered_bytes.set(gauge(self.sink.buffered_bytes() as u64));
        metrics.live_files.set(gauge(self.sink.store().state().live.len() as u64));
        metrics.next_position.set(gauge(next));
        metrics.lag_records.set(gauge(self.reader.durable_position().saturating_sub(next)));
    }

    fn wait(&self, time: Duration) {
        let end = Instant::now() + time;
        while !self.shutdown.is_cancelled() && Instant::now() < end {
            // The lag grows while the sink waits, and is to be seen.
            self.observe();
            std::thread::sleep(POLL.min(end.saturating_duration_since(Instant::now())));
        }
    }
}

/// Logs what opening or recovering found; lost rows as errors.
pub fn log_recovery(report: &RecoveryReport) {
    let RecoveryReport { completed, undone, temporary_removed, damaged, next_position, live_files } = report;
    for (path, problem) in damaged {
        error!(path = %path.display(), problem, "a published Parquet file is not what the manifest says");
    }
    if let Some((entry, reason)) = undone {
        warn!(entry, reason, "undid a Parquet cut that could not be completed; its rows are written again");
    }
    if let Some(entry) = completed {
        info!(entry, "completed the Parquet cut that was under way");
    }
    info!(next_position, live_files, temporary_removed, "Parquet sink is in order");
}

fn now_us() -> i64 {
    now_ns() / 1000
}

fn gauge(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

/// How long a step waits for a record; so late at most is a cut by age, or a shutdown noticed.
const POLL: Duration = Duration::from_millis(100);
const OPEN_INTERVAL: Duration = Duration::from_secs(1);
const BACKOFF_MIN: Duration = Duration::from_millis(200);
const BACKOFF_MAX: Duration = Duration::from_secs(30);
const RETENTION_INTERVAL: Duration = Duration::from_mins(1);
