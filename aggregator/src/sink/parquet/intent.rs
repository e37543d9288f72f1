//! The intent: what is about to be published or deleted, synced before the first step and removed after the last.
//!
//! Its one file is whole or absent. It carries the manifest entry byte for byte, so that whoever completes it writes
//! the same entry.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use weir_common::file::{FileError, atomic_write, parent, sync_dir};

use super::error::SinkError;
use super::layout::{Layout, remove_file};
use super::manifest::{self, ENTRY_BYTES_MAX, Entry, FORMAT, ManifestError, sha256_hex};

/// An intent, read and checked.
#[derive(Debug)]
pub(super) struct Intent {
    /// The entry that completes it.
    pub entry: Entry,
    /// Its bytes.
    pub bytes: Vec<u8>,
    /// The temporary file of each added one, in the same order.
    pub temporary: Vec<PathBuf>,
    /// The store of objects that it is meant for; none: the folder.
    pub store: Option<String>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Raw {
    format: u32,
    /// Names in the folder of temporary files.
    temporary: Vec<String>,
    entry_sha256: String,
    entry: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    store: Option<String>,
}

impl Intent {
    /// An intent to complete this entry.
    pub(super) fn new(
        entry: Entry,
        temporary: Vec<PathBuf>,
        store: Option<String>,
    ) -> Result<Self, serde_json::Error> {
        let mut bytes = serde_json::to_vec(&entry)?;
        bytes.push(b'\n');
        Ok(Self { entry, bytes, temporary, store })
    }

    /// Writes it durably.
    pub(super) fn write(&self, layout: &Layout) -> Result<(), SinkError> {
        let name = |path: &PathBuf| path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let raw = Raw {
            format: FORMAT,
            temporary: self.temporary.iter().map(name).collect(),
            entry_sha256: sha256_hex(&self.bytes),
            entry: String::from_utf8_lossy(&self.bytes).into_owned(),
            store: self.store.clone(),
        };
        let invalid = |error: serde_json::Error| damaged(&layout.intent, error.to_string());
        let bytes = serde_json::to_vec(&raw).map_err(invalid)?;
        Ok(atomic_write(&layout.intent, &bytes)?)
    }

    /// The intent that is there, if one is.
    pub(super) fn read(layout: &Layout) -> Result<Option<Self>, SinkError> {
        let path = &layout.intent;
        // Twice the size of an entry: as a JSON string each quote is two bytes.
        let bytes = match manifest::read_bounded(path, 3 * ENTRY_BYTES_MAX) {
            Ok(bytes) => bytes,
            Err(ManifestError::Io { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => {
                return Ok(None);
            }
            Err(ManifestError::Io { path, source }) => {
                return Err(FileError { operation: "read", path, source }.into());
            }
            Err(error) => return Err(damaged(path, error.to_string())),
        };
        Self::parse(layout, &bytes).map(Some).map_err(|reason| damaged(path, reason))
    }

    fn parse(layout: &Layout, bytes: &[u8]) -> Result<Self, String> {
        let raw: Raw = serde_json::from_slice(bytes).map_err(|error| error.to_string())?;
        if raw.format != FORMAT {
            return Err(format!("it has format {}; this version reads {FORMAT}", raw.format));
        }
        let bytes = raw.entry.into_bytes();
        if sha256_hex(&bytes) != raw.entry_sha256 {
            return Err("its entry does not have the hash that it states".to_owned());
        }
        let number = serde_json::from_slice::<Entry>(&bytes).map_err(|error| error.to_string())?.number;
        let entry = manifest::parse(&layout.journal_id, number, &bytes).map_err(|(_, reason)| reason)?;
        if raw.temporary.len() != entry.added.len() {
            let (names, files) = (raw.temporary.len(), entry.added.len());
            return Err(format!("it has {names} temporary names for {files} files"));
        }
        let is_name =
            |name: &&String| !name.is_empty() && !name.contains('/') && *name != "." && *name != "..";
        if let Some(name) = raw.temporary.iter().find(|name| !is_name(name)) {
            return Err(format!("{name:?} is not a name"));
        }
        let temporary = raw.temporary.iter().map(|name| layout.temporary.join(name)).collect();
        Ok(Self { entry, bytes, temporary, store: raw.store })
    }

    /// Removes the intent durably: what it said is done, or undone.
    pub(super) fn remove(layout: &Layout) -> Result<(), FileError> {
        remove_file(&layout.intent)?;
        sync_dir(parent(&layout.intent))
    }
}

fn damaged(path: &Path, reason: String) -> SinkError {
    SinkError::Intent { path: path.to_owned(), reason }
}
