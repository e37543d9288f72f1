//! The published files of one journal: commits of entries, and recovery from a commit that was cut short.
//!
//! Owns the lock, the intent, the manifest's end and the list of live files. Does not know what is in a file. The sink
//! calls it with files that are written and synced; retention calls it with files to delete.

use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};
use weir_common::crash;
use weir_common::file::{FileError, parent, sync_dir};
use weir_common::id::hex;

use super::error::SinkError;
use super::intent::Intent;
use super::layout::{Layout, create_dir_durably, prune_empty, remove_file, rename_new};
use super::manifest::{
    self, ENTRY_BYTES_MAX, Entry, FORMAT, LiveFile, Reason, RemovedFile, SkippedRange, State, Walk,
    entry_name,
};

/// See the module.
#[derive(Debug)]
pub struct Store {
    layout: Layout,
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
    /// Opens the files of a journal below `root` and recovers. Creates what is missing.
    pub fn open(root: &Path, journal_id: &str) -> Result<(Self, RecoveryReport), SinkError> {
        let layout = Layout::new(root, journal_id);
        layout.create()?;
        let lock = lock(&layout.lock)?;
        let mut store = Self { layout, state: State::new(), listed: 0, _lock: lock };
        let report = store.recover()?;
        Ok((store, report))
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
        self.state = manifest::walk(&self.layout.manifest, &self.layout.journal_id, Walk::FromListing)?;
        self.listed = self.listed.min(self.state.number);
        for file in self.state.live.values() {
            let path = self.layout.root.join(&file.path);
            match fs::metadata(&path) {
                Ok(found) if found.len() == file.bytes => {}
                Ok(found) => {
                    report.damaged.push((path, format!("has {} bytes, not {}", found.len(), file.bytes)));
                }
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    report.damaged.push((path, "is missing".to_owned()));
                }
                Err(error) => return Err(FileError::at("look at", &path)(error).into()),
            }
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
        let intent = Intent::new(entry, temporary).map_err(|error| invalid(error.to_string()))?;
        self.state.check(&intent.entry).map_err(invalid)?;
        // An entry that can't be read back must not be written.
        let bytes = intent.bytes.len() as u64;
        if bytes > ENTRY_BYTES_MAX {
            return Err(SinkError::EntryTooLarge { bytes, limit: ENTRY_BYTES_MAX });
        }
        // Once the intent is there, what stands at a final name is taken for this cut's.
        for file in &intent.entry.added {
            let path = self.layout.root.join(&file.path);
            if path.try_exists().map_err(FileError::at("look at", &path))? {
                return Err(SinkError::Foreign { path });
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
        let root = &self.layout.root;
        let mut folders = BTreeSet::new();
        for (file, temporary) in intent.entry.added.iter().zip(&intent.temporary) {
            let path = root.join(&file.path);
            create_dir_durably(parent(&path))?;
            if !rename_new(temporary, &path)? {
                return Err(SinkError::Foreign { path });
            }
            folders.insert(parent(&path).to_owned());
            crash::point("parquet.published_one");
        }
        self.conclude(intent, folders)
    }

    /// What comes after the last file is published.
    fn conclude(&self, intent: &Intent, mut folders: BTreeSet<PathBuf>) -> Result<(), SinkError> {
        let root = &self.layout.root;
        for file in &intent.entry.removed {
            let path = root.join(&file.path);
            if remove_file(&path)? {
                crash::point("parquet.removed_one");
            }
            folders.insert(parent(&path).to_owned());
        }
        for folder in &folders {
            // Gone where an earlier try went as far as to remove the emptied folder.
            if folder.is_dir() {
                sync_dir(folder)?;
            }
        }
        crash::point("parquet.published_all");
        self.write_entry(intent)?;
        crash::point("parquet.manifest_written");
        Intent::remove(&self.layout)?;
        crash::point("parquet.intent_removed");
        for file in &intent.entry.removed {
            prune_empty(root, &root.join(&file.path));
        }
        Ok(())
    }

    fn write_entry(&self, intent: &Intent) -> Result<(), SinkError> {
        let name = entry_name(intent.entry.number);
        let temporary = self.layout.temporary.join(format!("{name}.entry"));
        File::create(&temporary)
            .and_then(|mut file| file.write_all(&intent.bytes).and_then(|()| file.sync_all()))
            .map_err(FileError::at("write", &temporary))?;
        let path = self.layout.manifest.join(name);
        if !rename_new(&temporary, &path)? {
            return Err(self.taken(path));
        }
        Ok(sync_dir(&self.layout.manifest)?)
    }

    fn taken(&self, path: PathBuf) -> SinkError {
        SinkError::ManifestTaken { path, journal_id: self.layout.journal_id.clone() }
    }

    /// Brings an intent that was found to its end. `Some(reason)`: it could not be completed and was undone.
    fn finish(&self, intent: &Intent) -> Result<Option<String>, SinkError> {
        let root = &self.layout.root;
        let entry_path = self.layout.manifest.join(entry_name(intent.entry.number));
        match fs::read(&entry_path) {
            // The last step is missing: the files were published before the entry was.
            Ok(bytes) if bytes == intent.bytes => {
                sync_dir(&self.layout.manifest)?;
                Intent::remove(&self.layout)?;
                return Ok(None);
            }
            Ok(_) => return Err(self.taken(entry_path)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(FileError::at("read", &entry_path)(error).into()),
        }
        let mut pending = Vec::new();
        let mut folders = BTreeSet::new();
        let mut wrong = None;
        for (file, temporary) in intent.entry.added.iter().zip(&intent.temporary) {
            let path = root.join(&file.path);
            let published = path.try_exists().map_err(FileError::at("look at", &path))?;
            let at = if published { &path } else { temporary };
            wrong = wrong.or(check_content(at, file)?);
            folders.insert(parent(&path).to_owned());
            if !published {
                pending.push((temporary, path));
            }
        }
        if let Some(reason) = wrong {
            self.undo(intent)?;
            return Ok(Some(reason));
        }
        for (temporary, path) in pending {
            create_dir_durably(parent(&path))?;
            if !rename_new(temporary, &path)? {
                return Err(SinkError::Foreign { path });
            }
            crash::point("parquet.published_one");
        }
        self.conclude(intent, folders)?;
        Ok(None)
    }

    /// Deletes what an incomplete cut has published and written. Its entry is not in the manifest, so the rows are
    /// still due from the journal.
    fn undo(&self, intent: &Intent) -> Result<(), SinkError> {
        for (file, temporary) in intent.entry.added.iter().zip(&intent.temporary) {
            let path = self.layout.root.join(&file.path);
            if remove_file(&path)? {
                sync_dir(parent(&path))?;
            }
            remove_file(temporary)?;
        }
        Ok(Intent::remove(&self.layout)?)
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

/// What is wrong with a file's content, if anything: its presence, size and hash.
pub fn check_content(path: &Path, expected: &LiveFile) -> Result<Option<String>, FileError> {
    let io = |error| FileError::at("read", path)(error);
    let mut file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Ok(Some(format!("{} is missing", path.display())));
        }
        Err(error) => return Err(io(error)),
    };
    let bytes = file.metadata().map_err(io)?.len();
    if bytes != expected.bytes {
        return Ok(Some(format!("{} has {bytes} bytes, not {}", path.display(), expected.bytes)));
    }
    let mut hash = Sha256::new();
    let mut buffer = vec![0; 256 << 10];
    loop {
        match file.read(&mut buffer).map_err(io)? {
            0 => break,
            read => hash.update(&buffer[..read]),
        }
    }
    let found = hex(&hash.finalize());
    Ok((found != expected.sha256)
        .then(|| format!("{} has SHA-256 {found}, not {}", path.display(), expected.sha256)))
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
