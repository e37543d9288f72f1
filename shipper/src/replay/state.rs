//! What a replay has to remember: which files it reads, under which id, and whether it is through.
//!
//! One file, `replay.json`, in the replay's spool, whose lock guards it. A replay that was cut off is resumed only from
//! the same files with the same options: then the same records come in the same order, and what the spool has of them
//! is passed over.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use weir_common::file::atomic_write;
use weir_common::id::hex;

use super::error::FileError;
use super::file::{CaptureFile, STDIN};
use super::table::{TableOptions, Totals};

/// In the spool's folder.
const NAME: &str = "replay.json";
/// Raised when the same file gives other records than before: then no replay is resumed across the change.
const DERIVATION: u32 = 1;
/// Of a file's beginning, to know it again by.
const HEAD_BYTES: u64 = 64 << 10;

/// The state of a replay, as it stands in the file.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(super) struct State {
    /// 32 hexadecimal digits.
    pub replay: String,
    pub derivation: u32,
    /// Those of the options that records depend on.
    pub interval_ns: i64,
    pub idle_ns: i64,
    pub tcp_idle_ns: i64,
    pub entries: usize,
    pub files: Vec<FileIdentity>,
    /// Everything is delivered.
    pub done: bool,
    pub report: Option<Report>,
}

/// How a file is known again.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(super) struct FileIdentity {
    pub path: PathBuf,
    /// Not of what can be read only once: standard input, pipes.
    pub content: Option<Content>,
}

#[derive(Clone, Debug, Deserialize, Serialize, PartialEq, Eq)]
pub(super) struct Content {
    pub bytes: u64,
    pub modified_ns: i64,
    pub head_sha256: String,
}

/// What a replay says at its end.
#[derive(Clone, Debug, Default, Deserialize, Serialize, PartialEq, Eq)]
pub struct Report {
    /// What is in records.
    #[serde(flatten)]
    pub totals: Totals,
    /// Packets among them that are not IP, or whose IP header was cut off: in records of protocol 255, as at an
    /// interface.
    pub other_packets: u64,
    /// Packets of interfaces whose link type is not known: in no record.
    pub unknown_link_packets: u64,
    /// What could not be read, and where, in the order of the files.
    pub problems: Vec<String>,
}

/// The state could not be read or written, or speaks of another replay.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// A capture file.
    #[error(transparent)]
    File(#[from] FileError),
    /// The file of the state can't be read.
    #[error("read {path}")]
    Read {
        /// The file.
        path: PathBuf,
        /// The system's words.
        source: io::Error,
    },
    /// It holds something else.
    #[error("{path} is not the state of a replay; remove it if no replay into this spool was cut off")]
    Malformed {
        /// The file.
        path: PathBuf,
        /// Where and why.
        source: serde_json::Error,
    },
    /// It can't be written.
    #[error("note the replay in its spool")]
    Write(#[from] weir_common::file::FileError),
    /// Another replay into this spool was cut off.
    #[error(
        "the replay of {files} into the spool {dir} was cut off, and {why}: {what_to_do}, or begin anew with --abandon \
         (what was stored before stays, and is delivered)"
    )]
    Unfinished {
        /// The spool.
        dir: PathBuf,
        /// What it read.
        files: String,
        /// Why it is not resumed.
        why: &'static str,
        /// How it can be.
        what_to_do: &'static str,
    },
}

impl State {
    /// The state to go on with: that of a replay that was cut off, where this is the same one, else a new one, synced.
    pub(super) fn begin(
        dir: &Path,
        files: &[PathBuf],
        options: TableOptions,
        abandon: bool,
    ) -> Result<(Self, bool), StateError> {
        let TableOptions { interval_ns, idle_ns, tcp_idle_ns, entries } = options;
        let state = Self {
            replay: hex(&weir_common::id::random_id()),
            derivation: DERIVATION,
            interval_ns,
            idle_ns,
            tcp_idle_ns,
            entries,
            files: files.iter().map(|path| FileIdentity::of(path)).collect::<Result<_, _>>()?,
            done: false,
            report: None,
        };
        if let Some(before) = Self::load(dir)?.filter(|before| !before.done && !abandon) {
            before.is_same(&state, dir)?;
            // They may have been moved meanwhile.
            return Ok((Self { files: state.files, ..before }, true));
        }
        state.save(dir)?;
        Ok((state, false))
    }

    /// Notes that everything is delivered.
    pub(super) fn finish(&mut self, dir: &Path, report: Report) -> Result<(), StateError> {
        self.done = true;
        self.report = Some(report);
        self.save(dir)
    }

    fn load(dir: &Path) -> Result<Option<Self>, StateError> {
        let path = dir.join(NAME);
        match std::fs::read(&path) {
            Ok(bytes) => match serde_json::from_slice(&bytes) {
                Ok(state) => Ok(Some(state)),
                Err(source) => Err(StateError::Malformed { path, source }),
            },
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(StateError::Read { path, source }),
        }
    }

    fn save(&self, dir: &Path) -> Result<(), StateError> {
        let json = serde_json::json!(self);
        Ok(atomic_write(&dir.join(NAME), format!("{json:#}\n").as_bytes())?)
    }

    /// Whether another one would give the same records.
    fn is_same(&self, other: &Self, dir: &Path) -> Result<(), StateError> {
        let names: Vec<_> = self.files.iter().map(|file| file.path.display().to_string()).collect();
        let refuse = |why, what_to_do| {
            let (dir, files) = (dir.to_owned(), names.join(", "));
            Err(StateError::Unfinished { dir, files, why, what_to_do })
        };
        let contents = |state: &Self| -> Option<Vec<Content>> {
            state.files.iter().map(|file| file.content.clone()).collect()
        };
        let options = |state: &Self| {
            let Self { derivation, interval_ns, idle_ns, tcp_idle_ns, entries, .. } = *state;
            (derivation, interval_ns, idle_ns, tcp_idle_ns, entries)
        };
        match (contents(self), contents(other)) {
            (None, _) => refuse("what was a stream can't be read again", "replay into another spool"),
            (Some(before), Some(now)) if before == now => {
                if self.derivation != other.derivation {
                    refuse("this version of Weir makes other records", "finish it with the version before")
                } else if options(self) != options(other) {
                    refuse("its options were others", "repeat it with the options that it began with")
                } else {
                    Ok(())
                }
            }
            _ => refuse("this is another one", "repeat that one first, which goes on where it was"),
        }
    }
}

impl FileIdentity {
    /// Opens the file and sees whether it is a capture at all; what can be read only once is left alone.
    fn of(path: &Path) -> Result<Self, FileError> {
        let failed = |source| FileError::Open { path: path.to_owned(), source };
        if path == Path::new(STDIN) {
            return Ok(Self { path: path.to_owned(), content: None });
        }
        let file = File::open(path).map_err(failed)?;
        let metadata = file.metadata().map_err(failed)?;
        if metadata.is_dir() {
            return Err(failed(io::ErrorKind::IsADirectory.into()));
        }
        if !metadata.is_file() {
            return Ok(Self { path: path.to_owned(), content: None });
        }
        CaptureFile::read(path, Box::new(file.try_clone().map_err(failed)?))?;
        let mut head = Vec::new();
        let mut file = File::open(path).map_err(failed)?.take(HEAD_BYTES);
        file.read_to_end(&mut head).map_err(|source| FileError::Read {
            path: path.to_owned(),
            offset: 0,
            source,
        })?;
        let content = Content {
            bytes: metadata.len(),
            modified_ns: metadata.mtime().saturating_mul(1_000_000_000).saturating_add(metadata.mtime_nsec()),
            head_sha256: hex(&Sha256::digest(&head)),
        };
        Ok(Self { path: path.to_owned(), content: Some(content) })
    }
}
