//! The check of everything published below a root: chains, hashes, presence. Reads only, and takes no lock, so it can
//! run beside a working sink.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use super::error::SinkError;
use super::manifest::{self, ManifestError, State, Walk};
use super::published::Published;
use super::target::StoreUrl;

/// What a check found.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// Each journal that ever published here.
    pub journals: Vec<JournalReport>,
    /// `*.parquet` files that no manifest lists: not Weir's, or of a cut that is not complete. Readers of the glob see
    /// them.
    pub unlisted: Vec<PathBuf>,
}

/// What a check found of one journal.
#[derive(Clone, Debug, Default)]
pub struct JournalReport {
    /// The journal, 32 hexadecimal digits.
    pub journal_id: String,
    /// Entries of its manifest.
    pub entries: u64,
    /// First position whose rows are in no file.
    pub next_position: u64,
    /// Live files.
    pub files: u64,
    /// Their rows.
    pub rows: u64,
    /// Their bytes.
    pub bytes: u64,
    /// What is wrong.
    pub problems: Vec<Problem>,
}

/// Something that is not as it must be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// The file.
    pub path: PathBuf,
    /// The place in it, bytes, when it is known.
    pub offset: Option<u64>,
    /// What is wrong.
    pub reason: String,
}

impl Report {
    /// Whether nothing is wrong. Unlisted files are not wrong in themselves.
    pub fn is_sound(&self) -> bool {
        self.journals.iter().all(|journal| journal.problems.is_empty())
    }
}

/// Follows every chain below `root` from its first entry and reads every live file. The error is something that could
/// not be read; everything else is in the report.
pub fn verify(root: &Path) -> Result<Report, SinkError> {
    verify_published(&Published::open(root, None)?)
}

/// The same in a store of objects.
pub fn verify_store(url: &StoreUrl) -> Result<Report, SinkError> {
    verify_published(&Published::open(Path::new(""), Some(url))?)
}

/// The files that a reader has to read to see every row of every journal below `root` once, relative to it. Unlike the
/// glob it never shows a part of a cut.
pub fn live_files(root: &Path) -> Result<Vec<String>, SinkError> {
    live_files_published(&Published::open(root, None)?)
}

/// The same in a store of objects.
pub fn live_files_in_store(url: &StoreUrl) -> Result<Vec<String>, SinkError> {
    live_files_published(&Published::open(Path::new(""), Some(url))?)
}

pub(super) fn live_files_published(published: &Published) -> Result<Vec<String>, SinkError> {
    let mut files = Vec::new();
    for journal_id in published.journals()? {
        files.extend(manifest::walk(published, &journal_id, Walk::FromListing)?.live.into_keys());
    }
    Ok(files)
}

pub(super) fn verify_published(published: &Published) -> Result<Report, SinkError> {
    let mut report = Report::default();
    let mut listed = BTreeSet::new();
    for journal_id in published.journals()? {
        report.journals.push(verify_journal(published, journal_id, &mut listed)?);
    }
    let mut unlisted = published.parquet_files()?;
    unlisted.retain(|name, _| !listed.contains(name));
    if !unlisted.is_empty() {
        // Files that a cut published while we were reading are listed by now.
        for journal_id in published.journals()? {
            if let Ok(state) = manifest::walk(published, &journal_id, Walk::FromListing) {
                unlisted.retain(|name, _| !state.live.contains_key(name));
            }
        }
    }
    report.unlisted = unlisted.into_keys().map(|name| published.path(&name)).collect();
    Ok(report)
}

fn verify_journal(
    published: &Published,
    journal_id: String,
    listed: &mut BTreeSet<String>,
) -> Result<JournalReport, SinkError> {
    let mut report = JournalReport { journal_id, ..JournalReport::default() };
    let state = match manifest::walk(published, &report.journal_id, Walk::Whole) {
        Ok(state) => state,
        Err(ManifestError::Invalid { path, offset, reason }) => {
            report.problems.push(Problem { path, offset, reason });
            return Ok(report);
        }
        Err(error) => return Err(error.into()),
    };
    let State { number, sha256: _, next_position, live } = state;
    report.entries = number;
    report.next_position = next_position;
    let mut wrong = Vec::new();
    for (name, file) in live {
        report.files += 1;
        report.rows += file.rows;
        report.bytes += file.bytes;
        if let Some(reason) = published.content_problem(&file)? {
            wrong.push((name.clone(), Problem { path: published.path(&name), offset: None, reason }));
        }
        listed.insert(name);
    }
    if !wrong.is_empty() {
        // What retention deleted while we were reading is not wrong.
        let now = manifest::walk(published, &report.journal_id, Walk::FromListing);
        let now = now.map(|state| state.live).unwrap_or_default();
        let still = wrong.into_iter().filter(|(name, _)| now.contains_key(name));
        report.problems.extend(still.map(|(_, problem)| problem));
    }
    Ok(report)
}
