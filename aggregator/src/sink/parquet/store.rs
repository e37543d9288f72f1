//! The published files of one journal: commits of entries, and recovery from a commit that was cut short.
//!
//! Owns the lock, the intent, the manifest's end and the list of live files, and the order of the steps; `published` does
//! each, in a folder or in a store of objects. Does not know what is in a file. The sink calls it with files that are
//! written and synced; retention calls it with files to delete.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::path::{Path, PathBuf};

use weir_common::crash;
use weir_common::file::{FileError, sync_dir};

use super::error::SinkError;
use super::intent::Intent;
use super::layout::{Layout, remove_file};
use super::manifest::{
    self, ENTRY_BYTES_MAX, Entry, FORMAT, LiveFile, Reason, RemovedFile, SkippedRange, State, Walk,
};
use super::published::{Published, Standing};

/// See the module.
#[derive(Debug)]
pub struct Store {
    layout: Layout,
    published: Published,
    state: State,
    /// Number of the last entry that lists the live files; 0 before the first.
    listed: u64,
    _lock: File,
}

/// What opening, or recovering, found and did.
#[derive(Clone, Debug, Default)]
pub struct RecoveryReport {
    /// The commit that was completed: number of its entry.
    pub completed: Option<u64>,
    /// The commit that was undone, and why. Its rows are taken from the journal again.
    pub undone: Option<(u64, String)>,
    /// Temporary files that belonged to no commit and were deleted.
    pub temporary_removed: u64,
    /// Live files that are missing or have another size: path and what is wrong. Their rows are lost.
    pub damaged: Vec<(PathBuf, String)>,
    /// First journal position whose rows are in no file yet.
    pub next_position: u64,
    /// How many files are live.
    pub live_files: usize,
}

/// What a commit does.
#[derive(Debug)]
pub struct Commit {
    /// Why.
    pub reason: Reason,
    /// When, microseconds since the Unix epoch.
    pub written_us: i64,
    /// First position whose rows are still in no file after it.
    pub next_position: u64,
    /// Files to publish, with the temporary names under which they are written and synced.
    pub added: Vec<(LiveFile, PathBuf)>,
    /// Files to delete.
    pub removed: Vec<RemovedFile>,
    /// Positions that could not be read.
    pub skipped: Vec<SkippedRange>,
}

impl Store {
    /// Opens what a journal has published, and recovers. Creates what is missing. Temporary files, intent and lock are
    /// below `root`.
    pub(super) fn open(
        root: &Path,
        published: Published,
        journal_id: &str,
    ) -> Result<(Self, RecoveryReport), SinkError> {
        let layout = Layout::new(root, journal_id);
        layout.create()?;
        let lock = lock(&layout.lock)?;
        published.prepare(&layout)?;
        let mut store = Self { layout, published, state: State::new(), listed: 0, _lock: lock };
        let mut report = store.recover()?;
        if store.published.store().is_some() {
            // A listing of everything is not for each retry: stores don't lose single objects as disks do.
            report.damaged = store.published.damaged(&store.state.live)?;
        }
        Ok((store, report))
    }

    /// The name of the file that the next entry adds to a partition, relative to the root.
    pub fn file_name(&self, partition: &str, sha256: &str) -> String {
        self.published.file_name(partition, &self.layout.journal_id, self.state.number + 1, sha256)
    }

    /// The paths.
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// The manifest's end.
    pub fn state(&self) -> &State {
        &self.state
    }

    /// Completes or undoes the commit that was cut short, deletes the other temporary files, and reads the manifest
    /// again. After any error of this store or of its temporary files, this is the one way on.
    pub fn recover(&mut self) -> Result<RecoveryReport, SinkError> {
        let mut report = RecoveryReport::default();
        self.layout.create()?;
        remove_file(&self.layout.intent.with_extension("json.tmp"))?;
        if let Some(intent) = Intent::read(&self.layout)? {
            match self.finish(&intent)? {
                None => report.completed = Some(intent.entry.number),
                Some(reason) => report.undone = Some((intent.entry.number, reason)),
            }
        }
        report.temporary_removed = self.remove_temporary()?;
        self.state = manifest::walk(&self.published, &self.layout.journal_id, Walk::FromListing)?;
        self.listed = self.listed.min(self.state.number);
        if self.published.store().is_none() {
            report.damaged = self.published.damaged(&self.state.live)?;
        }
        report.next_position = self.state.next_position;
        report.live_files = self.state.live.len();
        Ok(report)
    }

    /// Publishes and deletes, all or nothing. After an error call `recover`, which says which of the two it was.
    pub fn commit(&mut self, commit: Commit) -> Result<(), SinkError> {
        let Commit { reason, written_us, next_position, added, removed, skipped } = commit;
        let number = self.state.number + 1;
        let (added, temporary): (Vec<_>, Vec<_>) = added.into_iter().unzip();
        let list = number >= self.listed + LISTING_INTERVAL && self.state.live.len() <= LISTING_FILES_MAX;
        let entry = Entry {
            format: FORMAT,
            journal_id: self.layout.journal_id.clone(),
            number,
            previous_sha256: self.state.sha256.clone(),
            written_us,
            first_position: self.state.next_position,
            next_position,
            reason,
            added,
            removed,
            skipped,
            live: list.then(|| self.state.live.values().cloned().collect()),
        };
        let invalid = |reason: String| SinkError::Intent { path: self.layout.intent.clone(), reason };
        let intent = Intent::new(entry, temporary, self.published.store())
            .map_err(|error| invalid(error.to_string()))?;
        self.state.check(&intent.entry).map_err(invalid)?;
        // An entry that can't be read back must not be written.
        let bytes = intent.bytes.len() as u64;
        if bytes > ENTRY_BYTES_MAX {
            return Err(SinkError::EntryTooLarge { bytes, limit: ENTRY_BYTES_MAX });
        }
        // Once the intent is there, what stands at a final name is taken for this cut's.
        for file in &intent.entry.added {
            if self.published.is_taken(&file.path)? {
                return Err(SinkError::Foreign { path: self.published.path(&file.path) });
            }
        }

        sync_dir(&self.layout.temporary)?;
        intent.write(&self.layout)?;
        crash::point("parquet.intent_synced");
        self.publish(&intent)?;
        self.state.apply(&intent.entry, &intent.bytes);
        if list {
            self.listed = number;
        }
        Ok(())
    }

    /// Every step after the intent is synced. Each may have been done before.
    fn publish(&self, intent: &Intent) -> Result<(), SinkError> {
        let files: Vec<(&LiveFile, &Path)> = pairs(intent).collect();
        self.published.publish(&files)?;
        self.conclude(intent)
    }

    /// What comes after the last file is published.
    fn conclude(&self, intent: &Intent) -> Result<(), SinkError> {
        self.published.settle(intent)?;
        crash::point("parquet.published_all");
        if !self.published.create_entry(&self.layout, intent)? {
            return Err(self.taken(intent));
        }
        crash::point("parquet.manifest_written");
        Intent::remove(&self.layout)?;
        crash::point("parquet.intent_removed");
        self.published.tidy(intent)
    }

    /// Another process has created the entry that an intent was for: the race is lost.
    fn taken(&self, intent: &Intent) -> SinkError {
        let (journal_id, number) = (&self.layout.journal_id, intent.entry.number);
        if let Ok(Some(winner)) = self.published.entry(journal_id, number) {
            // This ends here whether or not it succeeds; `weir verify` names what is left.
            let _ = self.published.take_back_lost(intent, &winner);
        }
        let path = self.published.entry_path(journal_id, number);
        SinkError::ManifestTaken { path, journal_id: journal_id.clone() }
    }

    /// Brings an intent that was found to its end. `Some(reason)`: it could not be completed and was undone.
    fn finish(&self, intent: &Intent) -> Result<Option<String>, SinkError> {
        if intent.store != self.published.store() {
            let name = |store: &Option<String>| store.clone().unwrap_or_else(|| "this folder".to_owned());
            let (meant, now) = (name(&intent.store), name(&self.published.store()));
            let reason =
                format!("it is for {meant}, and the sink now writes to {now}: start once with the former");
            return Err(SinkError::Intent { path: self.layout.intent.clone(), reason });
        }
        match self.published.entry(&self.layout.journal_id, intent.entry.number)? {
            // The last step is missing: the files were published before the entry was.
            Some(bytes) if bytes == intent.bytes => {
                self.published.confirm_entry(&self.layout)?;
                Intent::remove(&self.layout)?;
                return Ok(None);
            }
            Some(_) => return Err(self.taken(intent)),
            None => {}
        }
        let mut pending = Vec::new();
        let mut wrong = None;
        for (file, temporary) in pairs(intent) {
            match self.published.standing(file, temporary)? {
                Standing::Published => {}
                Standing::Pending => pending.push((file, temporary)),
                Standing::Wrong(reason) => wrong = wrong.or(Some(reason)),
            }
        }
        if let Some(reason) = wrong {
            // The entry is not in the manifest, so the rows are still due from the journal.
            self.published.undo(intent)?;
            Intent::remove(&self.layout)?;
            return Ok(Some(reason));
        }
        self.published.publish(&pending)?;
        self.conclude(intent)?;
        Ok(None)
    }

    fn remove_temporary(&self) -> Result<u64, SinkError> {
        let folder = &self.layout.temporary;
        let listing = fs::read_dir(folder).map_err(FileError::at("list", folder))?;
        let mut removed = 0;
        for file in listing {
            let path = file.map_err(FileError::at("list", folder))?.path();
            removed += u64::from(remove_file(&path)?);
        }
        Ok(removed)
    }
}

fn pairs(intent: &Intent) -> impl Iterator<Item = (&LiveFile, &Path)> {
    intent.entry.added.iter().zip(intent.temporary.iter().map(PathBuf::as_path))
}

fn lock(path: &Path) -> Result<File, SinkError> {
    let file = OpenOptions::new().write(true).create(true).truncate(false).open(path);
    let file = file.map_err(FileError::at("open", path))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(SinkError::Locked { path: path.to_owned() }),
        Err(TryLockError::Error(error)) => Err(FileError::at("lock", path)(error).into()),
    }
}

/// Every so many entries one lists the live files, so that a start reads at most so many. Few under test.
const LISTING_INTERVAL: u64 = if cfg!(test) { 8 } else { 256 };
/// A longer listing would make an entry too large.
const LISTING_FILES_MAX: usize = 100_000;
