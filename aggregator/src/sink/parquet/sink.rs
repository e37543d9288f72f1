//! The sink: rows of journal records are sorted into open files, and a cut publishes all of these at one position.
//!
//! Owns what is in memory and the temporary files; the store owns what is published. Time is passed in. After an error
//! the only way on is `recover`: rows of no published cut are forgotten and taken from the journal again.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Instant;

use weir_common::crash;
use weir_schema::SCHEMA_VERSION;

use super::config::ParquetConfig;
use super::error::SinkError;
use super::file::OpenFile;
use super::manifest::{LiveFile, Reason, RemovedFile, SkippedRange};
use super::partition::{PartitionKey, TimeRule, split};
use super::published::Published;
use super::retention::expired;
use super::store::{Commit, RecoveryReport, Store};
use crate::journal::JournalRecord;

/// See the module.
#[derive(Debug)]
pub struct ParquetSink {
    config: ParquetConfig,
    store: Store,
    open: BTreeMap<PartitionKey, OpenFile>,
    /// The record that is due; those between the manifest's end and this one are in `open`.
    due: u64,
    skipped: Vec<SkippedRange>,
    /// When the first record that is in no published file came.
    since: Option<Instant>,
    /// Temporary files named so far.
    names: u64,
    broken: bool,
}

/// What a cut published.
#[derive(Clone, Debug)]
pub struct CutReport {
    /// Why it was made.
    pub reason: Reason,
    /// First journal position whose rows are in no file yet.
    pub next_position: u64,
    /// The files that became live.
    pub files: Vec<LiveFile>,
}

impl ParquetSink {
    /// Opens the files of a journal, and completes or undoes a cut that was cut short.
    pub fn open(config: ParquetConfig, journal_id: [u8; 16]) -> Result<(Self, RecoveryReport), SinkError> {
        let published = Published::open(&config.dir, config.store.as_ref())?;
        Self::open_published(config, published, journal_id)
    }

    /// The same of what is published somewhere else.
    pub(super) fn open_published(
        config: ParquetConfig,
        published: Published,
        journal_id: [u8; 16],
    ) -> Result<(Self, RecoveryReport), SinkError> {
        let (store, report) = Store::open(&config.dir, published, &weir_common::id::hex(&journal_id))?;
        let due = store.state().next_position;
        let sink = Self {
            config,
            store,
            open: BTreeMap::new(),
            due,
            skipped: Vec::new(),
            since: None,
            names: 0,
            broken: false,
        };
        Ok((sink, report))
    }

    /// First journal position whose rows are in no published file: the sink's cursor.
    pub fn next_position(&self) -> u64 {
        self.store.state().next_position
    }

    /// The record that `write` takes next.
    pub fn due(&self) -> u64 {
        self.due
    }

    /// Whether nothing was ever published for this journal.
    pub fn is_new(&self) -> bool {
        self.store.state().number == 0
    }

    /// The published files.
    pub fn store(&self) -> &Store {
        &self.store
    }

    /// Partitions with rows that no cut has published.
    pub fn open_partitions(&self) -> usize {
        self.open.len()
    }

    /// Bytes of memory that waiting rows hold, at most.
    pub fn buffered_bytes(&self) -> usize {
        self.open.values().map(OpenFile::pending_bytes).sum()
    }

    /// Takes the record that is due.
    pub fn write(&mut self, record: &JournalRecord, now: Instant) -> Result<(), SinkError> {
        self.check_turn(record.position)?;
        self.since.get_or_insert(now);
        self.guard(|sink| sink.take(record))?;
        self.due += 1;
        Ok(())
    }

    /// Goes on at `next`: the records from the one that is due can't be read. The next entry says so.
    pub fn skip(&mut self, next: u64, reason: String, now: Instant) -> Result<(), SinkError> {
        self.check_turn(self.due)?;
        if next > self.due {
            self.since.get_or_insert(now);
            self.skipped.push(SkippedRange { first_position: self.due, next_position: next, reason });
            self.due = next;
        }
        Ok(())
    }

    /// Whether it is time to cut, and why.
    pub fn cut_due(&self, now: Instant) -> Option<Reason> {
        let since = self.since?;
        if self.open.values().any(|file| file.bytes_written() >= self.config.roll_bytes) {
            Some(Reason::Size)
        } else if self.open.len() >= self.config.partitions_max {
            Some(Reason::Partitions)
        } else {
            (now.saturating_duration_since(since) >= self.config.roll_age).then_some(Reason::Age)
        }
    }

    /// Publishes everything taken so far; `None` when there is nothing. `now_us`: microseconds since the Unix epoch.
    pub fn cut(&mut self, reason: Reason, now_us: i64) -> Result<Option<CutReport>, SinkError> {
        self.check_turn(self.due)?;
        if self.due == self.next_position() {
            return Ok(None);
        }
        self.guard(|sink| sink.publish(reason, now_us)).map(Some)
    }

    /// Deletes what retention asks for; gives what it deleted.
    pub fn retain(&mut self, now_us: i64) -> Result<Vec<RemovedFile>, SinkError> {
        self.check_turn(self.due)?;
        let removed = expired(self.store.state(), &self.config.retention, now_us);
        if removed.is_empty() {
            return Ok(removed);
        }
        let commit = Commit {
            reason: Reason::Retention,
            written_us: now_us,
            next_position: self.next_position(),
            added: Vec::new(),
            removed: removed.clone(),
            skipped: Vec::new(),
        };
        self.guard(|sink| sink.store.commit(commit))?;
        Ok(removed)
    }

    /// Forgets everything unpublished, completes or undoes the commit that failed, and begins again after the last
    /// one: `due` says at which record.
    pub fn recover(&mut self) -> Result<RecoveryReport, SinkError> {
        self.broken = true;
        self.open.clear();
        self.skipped.clear();
        self.since = None;
        let report = self.store.recover()?;
        self.due = self.next_position();
        self.broken = false;
        Ok(report)
    }

    fn take(&mut self, record: &JournalRecord) -> Result<(), SinkError> {
        // Times are the shippers' word: one record must not open a file for each of its rows.
        let mut left = self.config.partitions_max;
        for (kind, batch) in &record.batches {
            let rule = TimeRule {
                append_time_ns: record.append_time_ns,
                oldest: self.config.retention.of(*kind).age,
            };
            let parts = split(*kind, batch, rule, &mut left).map_err(|reason| SinkError::Record {
                position: record.position,
                kind: kind.as_str(),
                reason,
            })?;
            for part in parts {
                let file = match self.open.get_mut(&part.key) {
                    Some(file) => file,
                    None => {
                        self.names += 1;
                        let path = self.store.layout().temporary.join(format!("{:08}.tmp", self.names));
                        let file = OpenFile::new(part.key.kind, path);
                        self.open.entry(part.key.clone()).or_insert(file)
                    }
                };
                file.push(&part)?;
            }
        }
        while self.buffered_bytes() > self.config.buffer_bytes_max {
            let largest = self.open.values_mut().max_by_key(|file| file.pending_bytes());
            let Some(largest) = largest else { break };
            largest.flush()?;
        }
        Ok(())
    }

    fn publish(&mut self, reason: Reason, written_us: i64) -> Result<CutReport, SinkError> {
        let positions = (self.next_position(), self.due);
        let mut added: Vec<(LiveFile, PathBuf)> = Vec::with_capacity(self.open.len());
        for (key, file) in std::mem::take(&mut self.open) {
            let written = file.finish(&self.store.layout().journal_id, positions)?;
            crash::point("parquet.file_written");
            let file = LiveFile {
                path: self.store.file_name(&key.to_string(), &written.sha256),
                rows: written.rows,
                bytes: written.bytes,
                sha256: written.sha256,
                min_time_us: written.times.0,
                max_time_us: written.times.1,
                written_us,
                schema_version: SCHEMA_VERSION,
            };
            added.push((file, written.path));
        }
        let files = added.iter().map(|(file, _)| file.clone()).collect();
        let skipped = std::mem::take(&mut self.skipped);
        let next_position = self.due;
        self.store.commit(Commit {
            reason,
            written_us,
            next_position,
            added,
            removed: Vec::new(),
            skipped,
        })?;
        self.since = None;
        Ok(CutReport { reason, next_position, files })
    }

    fn check_turn(&self, position: u64) -> Result<(), SinkError> {
        if self.broken {
            return Err(SinkError::Broken);
        }
        if position != self.due {
            return Err(SinkError::OutOfTurn { expected: self.due, found: position });
        }
        Ok(())
    }

    /// Runs a step after whose failure only `recover` leads on.
    fn guard<T>(&mut self, step: impl FnOnce(&mut Self) -> Result<T, SinkError>) -> Result<T, SinkError> {
        let result = step(self);
        self.broken |= result.is_err();
        result
    }
}
