//! Where things are below the root of the data, and the few steps on folders that have to be durable.
//!
//! ```text
//! kind=…/cluster=…/date=…/hour=…/<journal>-<entry>.parquet   published files
//! _weir/manifest/<journal>/<20 digits>.json                  the manifest
//! _weir/intent/<journal>.json                                what is being published or deleted right now
//! _weir/tmp/<journal>/                                       files being written
//! _weir/lock/<journal>                                       held by the one process that writes for the journal
//! ```
//!
//! Files and manifest may be in a store of objects instead; the rest stays below the root.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, RenameFlags, renameat_with};
use rustix::io::Errno;
use weir_common::file::{FileError, parent, sync_dir};

/// The paths of one journal below one root.
#[derive(Clone, Debug)]
pub struct Layout {
    /// The root of the data.
    pub root: PathBuf,
    /// The journal, 32 hexadecimal digits.
    pub journal_id: String,
    /// Its manifest.
    pub manifest: PathBuf,
    /// Its intent.
    pub intent: PathBuf,
    /// Its temporary files.
    pub temporary: PathBuf,
    /// Its lock.
    pub lock: PathBuf,
}

impl Layout {
    /// The layout below `root`; touches nothing.
    pub fn new(root: &Path, journal_id: &str) -> Self {
        let weir = root.join(WEIR_DIR);
        Self {
            root: root.to_owned(),
            journal_id: journal_id.to_owned(),
            manifest: root.join(MANIFEST_DIR).join(journal_id),
            intent: weir.join("intent").join(format!("{journal_id}.json")),
            temporary: weir.join("tmp").join(journal_id),
            lock: weir.join("lock").join(journal_id),
        }
    }

    /// Makes the folders of everything but the manifest and the files.
    pub fn create(&self) -> Result<(), FileError> {
        create_dir_durably(&self.temporary)?;
        for path in [&self.intent, &self.lock] {
            create_dir_durably(parent(path))?;
        }
        Ok(())
    }
}

/// The journals that have a manifest below a root, by id.
pub(super) fn journals(root: &Path) -> Result<Vec<String>, FileError> {
    let folder = root.join(MANIFEST_DIR);
    let io = |source| FileError { operation: "list", path: folder.clone(), source };
    let listing = match fs::read_dir(&folder) {
        Ok(listing) => listing,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(io(error)),
    };
    let mut ids = Vec::new();
    for file in listing {
        let name = file.map_err(io)?.file_name();
        ids.extend(name.to_str().filter(|name| is_journal_id(name)).map(str::to_owned));
    }
    ids.sort_unstable();
    Ok(ids)
}

pub(super) fn is_journal_id(name: &str) -> bool {
    name.len() == 32 && name.bytes().all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte))
}

/// Makes a folder and those above it; what is made is there after a power cut too.
pub(super) fn create_dir_durably(path: &Path) -> Result<(), FileError> {
    match fs::create_dir(path) {
        Ok(()) => sync_dir(parent(path)),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotFound && path != parent(path) => {
            create_dir_durably(parent(path))?;
            fs::create_dir(path).map_err(FileError::at("create folder", path))?;
            sync_dir(parent(path))
        }
        Err(error) => Err(FileError::at("create folder", path)(error)),
    }
}

/// Renames without ever replacing: `Ok(false)` when the new name is taken. The caller syncs the folders.
pub(super) fn rename_new(from: &Path, to: &Path) -> Result<bool, FileError> {
    match renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE) {
        Ok(()) => Ok(true),
        Err(Errno::EXIST) => Ok(false),
        // File systems that do not know the flag: a hard link is as exclusive. A crash between the two steps leaves
        // both names; recovery deletes the temporary one.
        Err(Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP) => match fs::hard_link(from, to) {
            Ok(()) => remove_file(from).map(|_| true),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(false),
            Err(error) => Err(FileError::at("link", to)(error)),
        },
        Err(errno) => Err(FileError::at("rename into place", to)(errno.into())),
    }
}

/// Unlinks a file; `Ok(false)` when it was not there.
pub(super) fn remove_file(path: &Path) -> Result<bool, FileError> {
    match fs::remove_file(path) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(FileError::at("remove", path)(error)),
    }
}

/// Removes the folders above a deleted file that it has left empty, up to the root of the data.
pub(super) fn prune_empty(root: &Path, file: &Path) {
    let above = file.ancestors().skip(1).take_while(|folder| *folder != root);
    for folder in above {
        // A folder that is not empty, or any other trouble, ends it: empty folders harm nobody.
        if fs::remove_dir(folder).is_err() {
            break;
        }
    }
}

/// The names and sizes of everything below a root that readers of the glob see.
pub(super) fn parquet_files(root: &Path) -> Result<BTreeMap<String, u64>, FileError> {
    let mut files = BTreeMap::new();
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
                let size = file.metadata().map_or(0, |found| found.len());
                let name = path.strip_prefix(root).unwrap_or(&path).to_string_lossy().into_owned();
                files.insert(name, size);
            }
        }
    }
    Ok(files)
}

/// What does not belong to readers.
const WEIR_DIR: &str = "_weir";
/// The folder of the manifests, each in one named for its journal.
pub(super) const MANIFEST_DIR: &str = "_weir/manifest";
