//! The check of everything published below a root: chains, hashes, presence. Reads only, and takes no lock, so it can
//! run beside a working sink.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use weir_common::file::FileError;

use super::layout::{Layout, WEIR_DIR, journals};
use super::manifest::{self, ManifestError, State, Walk};
use super::store::check_content;

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

/// Follows every chain below `root` from its first entry and reads every live file. The error is a folder that could
/// not be read; everything else is in the report.
pub fn verify(root: &Path) -> Result<Report, FileError> {
    let mut report = Report::default();
    let mut listed = BTreeSet::new();
    for journal_id in journals(root)? {
        let layout = Layout::new(root, &journal_id);
        report.journals.push(verify_journal(&layout, &mut listed)?);
    }
    for path in parquet_files(root)? {
        if !listed.contains(&path) {
            report.unlisted.push(path);
        }
    }
    if !report.unlisted.is_empty() {
        // Files that a cut published while we were reading are listed by now.
        for journal_id in journals(root)? {
            let layout = Layout::new(root, &journal_id);
            if let Ok(state) = manifest::walk(&layout.manifest, &journal_id, Walk::FromListing) {
                let live: BTreeSet<PathBuf> = state.live.keys().map(|path| root.join(path)).collect();
                report.unlisted.retain(|path| !live.contains(path));
            }
        }
    }
    Ok(report)
}

/// The files that a reader has to read to see every row of every journal below `root` once, relative to it. Unlike the
/// glob it never shows a part of a cut.
pub fn live_files(root: &Path) -> Result<Vec<String>, ManifestError> {
    let ids = journals(root).map_err(|error| ManifestError::Io { path: error.path, source: error.source })?;
    let mut files = Vec::new();
    for journal_id in ids {
        let layout = Layout::new(root, &journal_id);
        files.extend(manifest::walk(&layout.manifest, &journal_id, Walk::FromListing)?.live.into_keys());
    }
    Ok(files)
}

fn verify_journal(layout: &Layout, listed: &mut BTreeSet<PathBuf>) -> Result<JournalReport, FileError> {
    let mut report = JournalReport { journal_id: layout.journal_id.clone(), ..JournalReport::default() };
    let walk = |walk| manifest::walk(&layout.manifest, &layout.journal_id, walk);
    let state = match walk(Walk::Whole) {
        Ok(state) => state,
        Err(ManifestError::Io { path, source }) => return Err(FileError { operation: "read", path, source }),
        Err(ManifestError::Invalid { path, offset, reason }) => {
            report.problems.push(Problem { path, offset, reason });
            return Ok(report);
        }
    };
    let State { number, sha256: _, next_position, live } = state;
    report.entries = number;
    report.next_position = next_position;
    let mut wrong = Vec::new();
    for (name, file) in live {
        let path = layout.root.join(&name);
        report.files += 1;
        report.rows += file.rows;
        report.bytes += file.bytes;
        if let Some(reason) = check_content(&path, &file)? {
            wrong.push((name, Problem { path: path.clone(), offset: None, reason }));
        }
        listed.insert(path);
    }
    if !wrong.is_empty() {
        // What retention deleted while we were reading is not wrong.
        let now = walk(Walk::FromListing).map(|state| state.live).unwrap_or_default();
        let still = wrong.into_iter().filter(|(name, _)| now.contains_key(name));
        report.problems.extend(still.map(|(_, problem)| problem));
    }
    Ok(report)
}

fn parquet_files(root: &Path) -> Result<Vec<PathBuf>, FileError> {
    let mut files = Vec::new();
    let mut folders = vec![root.to_owned()];
    while let Some(folder) = folders.pop() {
        let listing = match fs::read_dir(&folder) {
            Ok(listing) => listing,
            // An emptied folder goes with its last file.
            Err(error) if error.kind() == io::ErrorKind::NotFound && folder != root => continue,
            Err(error) => return Err(FileError::at("list", &folder)(error)),
        };
        for file in listing {
            let file = file.map_err(FileError::at("list", &folder))?;
            let kind = file.file_type().map_err(FileError::at("look at", &folder))?;
            let path = file.path();
            if kind.is_dir() && path != root.join(WEIR_DIR) {
                folders.push(path);
            } else if kind.is_file() && path.extension().is_some_and(|extension| extension == "parquet") {
                files.push(path);
            }
        }
    }
    files.sort_unstable();
    Ok(files)
}
