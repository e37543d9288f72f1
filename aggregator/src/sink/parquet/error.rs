//! What can go wrong in the sink, and what to do about it: one match.

use std::io;
use std::path::PathBuf;

use parquet::errors::ParquetError;
use weir_common::file::FileError;

use super::manifest::ManifestError;

/// Why rows were not written or a cut was not published.
#[derive(Debug, thiserror::Error)]
pub enum SinkError {
    /// The disk refused.
    #[error(transparent)]
    File(#[from] FileError),
    /// The store of objects refused, or did not answer.
    #[error(transparent)]
    Object(#[from] ObjectError),
    /// The Parquet encoder refused.
    #[error("encode Parquet file {path}")]
    Encode {
        /// The temporary file.
        path: PathBuf,
        /// The encoder's words.
        source: ParquetError,
    },
    /// The manifest of this journal is damaged.
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    /// The manifest has grown under our feet.
    #[error(
        "manifest entry {path} exists already and is not ours: another process writes for journal {journal_id}; \
         stop one of the two"
    )]
    ManifestTaken {
        /// The entry.
        path: PathBuf,
        /// The journal that both claim, in hexadecimal.
        journal_id: String,
    },
    /// A file stands where this cut has to publish, and its content is not this cut's.
    #[error("{path} exists already and is not the file of this cut; move it away")]
    Foreign {
        /// The final name.
        path: PathBuf,
    },
    /// Another process has this journal's part of the folder open.
    #[error("{path} is locked: another process writes Parquet for this journal")]
    Locked {
        /// The lock file.
        path: PathBuf,
    },
    /// An intent that can't be read: it was written whole, so the disk has changed it.
    #[error(
        "intent {path} is damaged: {reason}; compare the files it names with the manifest, then remove it"
    )]
    Intent {
        /// The intent.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// A commit of too many files for one manifest entry.
    #[error("the manifest entry of this commit has {bytes} bytes, more than the limit of {limit}")]
    EntryTooLarge {
        /// Its size.
        bytes: u64,
        /// The largest that is read.
        limit: u64,
    },
    /// A journal record that this version can't write.
    #[error("journal record {position} has a {kind} batch that can't be written: {reason}")]
    Record {
        /// Its position.
        position: u64,
        /// The kind of the batch.
        kind: &'static str,
        /// What is wrong with it.
        reason: String,
    },
    /// A record out of turn.
    #[error("journal record {found} came where {expected} was due")]
    OutOfTurn {
        /// The position that was due.
        expected: u64,
        /// The one that came.
        found: u64,
    },
    /// An earlier error has not been recovered from.
    #[error("the sink has to recover from an earlier error first")]
    Broken,
}

/// What to do about an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Disposition {
    /// Recover, wait, and take the same records again: a full or failing disk, or one that can't be written.
    Retry,
    /// A person is needed; trying again can't help and may do harm.
    Fatal,
}

impl SinkError {
    /// Retry or fatal, for every error there is.
    pub fn disposition(&self) -> Disposition {
        match self {
            Self::File(_) | Self::Broken | Self::Manifest(ManifestError::Io { .. }) => Disposition::Retry,
            Self::Object(error) | Self::Manifest(ManifestError::Object(error)) => error.disposition(),
            Self::Encode { source: ParquetError::External(inner), .. } if inner.is::<io::Error>() => {
                Disposition::Retry
            }
            Self::Encode { .. }
            | Self::Manifest(_)
            | Self::ManifestTaken { .. }
            | Self::Foreign { .. }
            | Self::Locked { .. }
            | Self::Intent { .. }
            | Self::EntryTooLarge { .. }
            | Self::Record { .. }
            | Self::OutOfTurn { .. } => Disposition::Fatal,
        }
    }
}

/// A request that a store of objects did not fulfil.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{operation} {url}: {trouble}: {words}")]
pub struct ObjectError {
    /// Verb, such as `put`.
    pub operation: &'static str,
    /// The object, with its store.
    pub url: String,
    /// The store's own words.
    pub words: String,
    /// What they come to.
    pub trouble: Trouble,
}

/// What a store's refusal comes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Trouble {
    /// No answer, an overload, an error of its own: it may do later.
    #[error("the store can't be reached or can't do it now")]
    Away,
    /// Who we are, or what we may.
    #[error("the store does not accept these credentials, or they don't allow this")]
    Credentials,
    /// Neither object nor bucket.
    #[error("there is no such bucket, container or object")]
    Missing,
    /// Anything else that another try would not change.
    #[error("the store refuses")]
    Refused,
}

impl ObjectError {
    /// Retry or fatal.
    pub fn disposition(&self) -> Disposition {
        match self.trouble {
            Trouble::Away => Disposition::Retry,
            Trouble::Credentials | Trouble::Missing | Trouble::Refused => Disposition::Fatal,
        }
    }
}

/// An error with all its causes on one line, for logs and readiness.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        next = cause.source();
    }
    text
}
