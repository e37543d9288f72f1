//! The manifest: numbered immutable entries, each with the hash of the one before, that say which files are live.
//!
//! Owns the form of an entry and the reading and checking of a chain. Writing is the store's; `verify` and the store
//! call this. What is read here may have been written by anybody: sizes are bounded, nothing is believed.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use weir_common::id::hex;
use weir_schema::Kind;

use super::error::ObjectError;
use super::partition::PartitionKey;
use super::published::Published;

/// One step of a journal's Parquet files: a cut, or a deletion.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Entry {
    /// Version of this form; [`FORMAT`].
    pub format: u32,
    /// The journal, 32 hexadecimal digits.
    pub journal_id: String,
    /// Its number: 1, 2, 3, … without a gap.
    pub number: u64,
    /// SHA-256 of the bytes of the entry before, in hexadecimal; null in the first.
    pub previous_sha256: Option<String>,
    /// When it was written, microseconds since the Unix epoch.
    pub written_us: i64,
    /// First journal position whose rows it adds.
    pub first_position: u64,
    /// First journal position whose rows it does not add; the same as `first_position` for a deletion.
    pub next_position: u64,
    /// Why it was written.
    pub reason: Reason,
    /// Files that became live.
    pub added: Vec<LiveFile>,
    /// Files that ceased to be.
    pub removed: Vec<RemovedFile>,
    /// Positions within the range that could not be read from the journal, so their rows are in no file.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub skipped: Vec<SkippedRange>,
    /// Every file that was live before this entry, in some entries: reading may begin here.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub live: Option<Vec<LiveFile>>,
}

/// Why an entry was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reason {
    /// A file reached its size.
    Size,
    /// The oldest row waited long enough.
    Age,
    /// As many partitions as may be were open.
    Partitions,
    /// The process ended.
    Shutdown,
    /// Somebody asked.
    Request,
    /// Retention removed files.
    Retention,
}

impl Reason {
    /// The text in entries and metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Size => "size",
            Self::Age => "age",
            Self::Partitions => "partitions",
            Self::Shutdown => "shutdown",
            Self::Request => "request",
            Self::Retention => "retention",
        }
    }
}

/// A file that readers may see.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LiveFile {
    /// Relative to the root of the data: partition folder and name.
    pub path: String,
    /// Rows in it.
    pub rows: u64,
    /// Its size.
    pub bytes: u64,
    /// SHA-256 of its content, in hexadecimal.
    pub sha256: String,
    /// Smallest time of the kind's time field, microseconds since the Unix epoch.
    pub min_time_us: i64,
    /// Greatest one.
    pub max_time_us: i64,
    /// When its entry was written, microseconds since the Unix epoch.
    pub written_us: i64,
    /// Version of the field catalogue.
    pub schema_version: u32,
}

/// A file that was deleted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RemovedFile {
    /// As in the entry that added it.
    pub path: String,
    /// Rows that went with it.
    pub rows: u64,
    /// Bytes that it gave back.
    pub bytes: u64,
    /// Which rule asked for it.
    pub reason: RemovalReason,
}

/// Why a file was deleted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RemovalReason {
    /// Older than its kind is kept.
    Age,
    /// Its kind had more bytes than it may.
    Size,
    /// It was found missing, or not what the manifest says, and was struck off by command.
    Damaged,
}

impl RemovalReason {
    /// The text in entries and metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Age => "age",
            Self::Size => "size",
            Self::Damaged => "damaged",
        }
    }
}

/// Journal positions that could not be read.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SkippedRange {
    /// The first of them.
    pub first_position: u64,
    /// The first after them.
    pub next_position: u64,
    /// The journal's words.
    pub reason: String,
}

/// The version of the form of entries that this code writes, and the only one it reads.
pub const FORMAT: u32 = 1;
/// No entry is larger than this, bytes.
pub const ENTRY_BYTES_MAX: u64 = 64 << 20;

/// A chain that can't be followed.
#[derive(Debug, thiserror::Error)]
pub enum ManifestError {
    /// The disk refused.
    #[error("read {path}")]
    Io {
        /// Entry or folder.
        path: PathBuf,
        /// The system's words.
        source: io::Error,
    },
    /// The store of objects refused.
    #[error(transparent)]
    Object(#[from] ObjectError),
    /// An entry, or its place in the chain, is not what it must be.
    #[error("manifest entry {path}{}: {reason}", offset.map(|at| format!(", byte {at}")).unwrap_or_default())]
    Invalid {
        /// The entry.
        path: PathBuf,
        /// Where in it, bytes from its start, when the place is known.
        offset: Option<u64>,
        /// What is wrong.
        reason: String,
    },
}

/// What a chain says when followed to its end.
#[derive(Clone, Debug, Default)]
pub struct State {
    /// Number of the last entry; 0 when there is none.
    pub number: u64,
    /// SHA-256 of its bytes, in hexadecimal.
    pub sha256: Option<String>,
    /// First journal position whose rows are in no file yet.
    pub next_position: u64,
    /// The live files by path.
    pub live: BTreeMap<String, LiveFile>,
}

impl State {
    /// Before the first entry.
    pub fn new() -> Self {
        Self { number: 0, sha256: None, next_position: FIRST_POSITION, live: BTreeMap::new() }
    }

    /// Adds an entry that follows. `bytes` are its own. The error is the reason alone; then nothing has changed.
    pub fn follow(&mut self, entry: &Entry, bytes: &[u8]) -> Result<(), String> {
        self.check(entry)?;
        self.apply(entry, bytes);
        Ok(())
    }

    /// Whether an entry follows, and if not, why.
    pub fn check(&self, entry: &Entry) -> Result<(), String> {
        if entry.number != self.number + 1 {
            return Err(format!("has number {} where {} was due", entry.number, self.number + 1));
        }
        if entry.previous_sha256 != self.sha256 {
            let text = |hash: &Option<String>| hash.clone().unwrap_or_else(|| "none".to_owned());
            let (found, due) = (text(&entry.previous_sha256), text(&self.sha256));
            return Err(format!("names {found} as the hash of the entry before, which has {due}"));
        }
        if entry.first_position != self.next_position {
            let (found, due) = (entry.first_position, self.next_position);
            return Err(format!("begins at journal position {found} where {due} was due"));
        }
        if let Some(listed) = &entry.live
            && !(listed.len() == self.live.len()
                && listed.iter().all(|file| self.live.get(&file.path) == Some(file)))
        {
            return Err("lists live files that are not those of the entries before".to_owned());
        }
        let mut seen = BTreeSet::new();
        for file in &entry.removed {
            if !self.live.contains_key(&file.path) || !seen.insert(&file.path) {
                return Err(format!("removes {}, which is not live", file.path));
            }
        }
        for file in &entry.added {
            if self.live.contains_key(&file.path) || !seen.insert(&file.path) {
                return Err(format!("adds {}, which is live already", file.path));
            }
        }
        Ok(())
    }

    /// Adds an entry that was checked.
    pub fn apply(&mut self, entry: &Entry, bytes: &[u8]) {
        for file in &entry.removed {
            self.live.remove(&file.path);
        }
        for file in &entry.added {
            self.live.insert(file.path.clone(), file.clone());
        }
        self.number = entry.number;
        self.sha256 = Some(sha256_hex(bytes));
        self.next_position = entry.next_position;
    }
}

/// The first position of every journal.
const FIRST_POSITION: u64 = 1;

/// Reads an entry's bytes and checks everything that it says about itself.
pub fn parse(journal_id: &str, number: u64, bytes: &[u8]) -> Result<Entry, (Option<u64>, String)> {
    let entry: Entry = serde_json::from_slice(bytes).map_err(|error| {
        let offset = byte_offset(bytes, error.line(), error.column());
        (Some(offset), format!("is not an entry: {error}"))
    })?;
    check(&entry, journal_id, number).map_err(|reason| (None, reason))?;
    Ok(entry)
}

fn check(entry: &Entry, journal_id: &str, number: u64) -> Result<(), String> {
    if entry.format != FORMAT {
        return Err(format!("has format {}; this version reads {FORMAT}", entry.format));
    }
    if entry.journal_id != journal_id {
        return Err(format!("belongs to journal {}, not {journal_id}", entry.journal_id));
    }
    if entry.number != number {
        return Err(format!("has number {} in itself", entry.number));
    }
    if entry.next_position < entry.first_position {
        let (first, next) = (entry.first_position, entry.next_position);
        return Err(format!("ends at journal position {next}, before its start at {first}"));
    }
    for file in entry.added.iter().chain(entry.live.iter().flatten()) {
        check_path(&file.path)?;
        if !is_sha256(&file.sha256) {
            return Err(format!("gives {} a hash that is none: {}", file.path, file.sha256));
        }
    }
    entry.removed.iter().try_for_each(|file| check_path(&file.path).map(drop))
}

/// Paths of entries are opened and deleted: only a partition's folder and a plain name will do.
pub fn check_path(path: &str) -> Result<PartitionKey, String> {
    let wrong = || format!("names {path:?}, which is not a file of a partition");
    let (folder, name) = path.rsplit_once('/').ok_or_else(wrong)?;
    let plain = name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte));
    if !plain || name.starts_with('.') || !name.ends_with(".parquet") || name.len() > 200 {
        return Err(wrong());
    }
    PartitionKey::parse(folder).ok_or_else(wrong)
}

/// The kind of a checked path.
pub fn kind_of(path: &str) -> Option<Kind> {
    Kind::from_name(path.strip_prefix("kind=")?.split('/').next()?)
}

/// The name of an entry's file.
pub(super) fn entry_name(number: u64) -> String {
    format!("{number:020}.json")
}

/// The names of the files in a folder of entries; a folder that is not there has none.
pub(super) fn names(folder: &Path) -> Result<Vec<String>, ManifestError> {
    let io = |source| ManifestError::Io { path: folder.to_owned(), source };
    let listing = match fs::read_dir(folder) {
        Ok(listing) => listing,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(io(error)),
    };
    let name =
        |file: io::Result<fs::DirEntry>| Ok(file.map_err(io)?.file_name().to_string_lossy().into_owned());
    listing.map(name).collect()
}

/// The numbers of entries with these names, ascending. A gap, or a name that is no entry's, is an error.
pub(super) fn numbers(folder: &Path, names: &[String]) -> Result<Vec<u64>, ManifestError> {
    let mut numbers = Vec::with_capacity(names.len());
    for name in names {
        match name.strip_suffix(".json").and_then(|number| number.parse().ok()) {
            Some(number) if *name == entry_name(number) => numbers.push(number),
            _ => {
                let reason = "is not named as an entry is".to_owned();
                return Err(ManifestError::Invalid { path: folder.join(name), offset: None, reason });
            }
        }
    }
    numbers.sort_unstable();
    for (due, number) in (1..).zip(&numbers) {
        if *number != due {
            let reason = format!("is missing; the next one present is {number}");
            return Err(ManifestError::Invalid { path: folder.join(entry_name(due)), offset: None, reason });
        }
    }
    Ok(numbers)
}

/// Every entry of a chain in a local folder, each checked by itself, in order.
pub fn read_entries(folder: &Path, journal_id: &str) -> Result<Vec<Entry>, ManifestError> {
    let numbers = numbers(folder, &names(folder)?)?;
    let read = |number| {
        let path = folder.join(entry_name(number));
        let bytes = read_bounded(&path, ENTRY_BYTES_MAX)?;
        parse(journal_id, number, &bytes).map_err(|(offset, reason)| ManifestError::Invalid {
            path,
            offset,
            reason,
        })
    };
    numbers.into_iter().map(read).collect()
}

/// Follows a chain to its end.
///
/// `Walk::Whole` reads every entry. `Walk::FromListing` begins at the last entry that lists the live files, which
/// bounds the time of a start; what lies before is believed.
pub(super) fn walk(published: &Published, journal_id: &str, walk: Walk) -> Result<State, ManifestError> {
    let last = published.entry_numbers(journal_id)?.len() as u64;
    let mut chain = Chain { published, journal_id, ahead: BTreeMap::new() };
    let mut state = State::new();
    let mut first = 1;
    if walk == Walk::FromListing {
        for number in (1..=last).rev() {
            let (entry, bytes) =
                chain.read(number, (number + 1).saturating_sub(chain.reach()).max(1)..=number)?;
            chain.ahead.insert(number, bytes);
            if let Some(listed) = entry.live {
                first = number;
                state = State {
                    number: number - 1,
                    sha256: entry.previous_sha256,
                    next_position: entry.first_position,
                    live: listed.into_iter().map(|file| (file.path.clone(), file)).collect(),
                };
                break;
            }
        }
    }
    for number in first..=last {
        let (entry, bytes) = chain.read(number, number..=last.min(number + chain.reach() - 1))?;
        state.follow(&entry, &bytes).map_err(|reason| {
            let path = published.entry_path(journal_id, number);
            ManifestError::Invalid { path, offset: None, reason }
        })?;
    }
    Ok(state)
}

/// Entries being read, some ahead of their turn where asking for many at once pays.
struct Chain<'a> {
    published: &'a Published,
    journal_id: &'a str,
    ahead: BTreeMap<u64, Vec<u8>>,
}

impl Chain<'_> {
    fn reach(&self) -> u64 {
        self.published.entries_at_once()
    }

    /// Reads and checks one entry, and with it the bytes of those in `range` if it is not at hand.
    fn read(
        &mut self,
        number: u64,
        range: std::ops::RangeInclusive<u64>,
    ) -> Result<(Entry, Vec<u8>), ManifestError> {
        let bytes = match self.ahead.remove(&number) {
            Some(bytes) => bytes,
            None => {
                let wanted: Vec<u64> = range.filter(|number| !self.ahead.contains_key(number)).collect();
                let read = self.published.entries(self.journal_id, &wanted)?;
                self.ahead.extend(wanted.into_iter().zip(read));
                self.ahead.remove(&number).unwrap_or_default()
            }
        };
        match parse(self.journal_id, number, &bytes) {
            Ok(entry) => Ok((entry, bytes)),
            Err((offset, reason)) => {
                let path = self.published.entry_path(self.journal_id, number);
                Err(ManifestError::Invalid { path, offset, reason })
            }
        }
    }
}

/// How much of a chain to read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Walk {
    /// Every entry.
    Whole,
    /// From the last listing of live files.
    FromListing,
}

/// Reads a file that may not be larger than `limit` bytes.
pub(super) fn read_bounded(path: &Path, limit: u64) -> Result<Vec<u8>, ManifestError> {
    let io = |source| ManifestError::Io { path: path.to_owned(), source };
    let mut bytes = Vec::new();
    File::open(path).map_err(io)?.take(limit + 1).read_to_end(&mut bytes).map_err(io)?;
    if bytes.len() as u64 > limit {
        let reason = format!("is larger than {limit} bytes");
        return Err(ManifestError::Invalid { path: path.to_owned(), offset: Some(limit), reason });
    }
    Ok(bytes)
}

/// SHA-256 of bytes, in hexadecimal.
pub(super) fn sha256_hex(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

fn is_sha256(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte))
}

/// The offset of a line and a column (both from 1, as serde_json counts them).
fn byte_offset(bytes: &[u8], line: usize, column: usize) -> u64 {
    let before: usize =
        bytes.split_inclusive(|byte| *byte == b'\n').take(line.saturating_sub(1)).map(<[u8]>::len).sum();
    (before + column.saturating_sub(1)).min(bytes.len()) as u64
}
