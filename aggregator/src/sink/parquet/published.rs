//! What readers see, and the steps that change it: in a folder by renames and syncs, in a store of objects by requests.
//!
//! The store calls these in the order of a cut; `manifest` and `verify` read through it. Each step may have been done
//! before. Temporary files, intent and lock are always local and not of this.

#![cfg_attr(
    not(feature = "cloud"),
    expect(unused_imports, unused_variables, reason = "a folder needs less than a store of objects")
)]

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use weir_common::crash;
use weir_common::file::{FileError, parent, sync_dir};
use weir_schema::Kind;

use super::content::check_content;
use super::error::SinkError;
use super::intent::Intent;
use super::layout::{self, Layout, MANIFEST_DIR, create_dir_durably, prune_empty, remove_file, rename_new};
use super::manifest::{self, ENTRY_BYTES_MAX, LiveFile, ManifestError, entry_name};
#[cfg(feature = "cloud")]
use super::objects::{GETS_AT_ONCE, Objects};
use super::target::StoreUrl;

/// See the module.
#[derive(Debug)]
pub(super) enum Published {
    /// Below this root.
    Folder(PathBuf),
    /// In a store of objects.
    #[cfg(feature = "cloud")]
    Objects(Objects),
}

/// What there is of a file that an intent names.
#[derive(Debug)]
pub(super) enum Standing {
    /// Published, and right.
    Published,
    /// Still to be published from its temporary file, which is right.
    Pending,
    /// Neither is right.
    Wrong(String),
}

impl Published {
    /// Below the root, or in the store where there is one.
    pub(super) fn open(root: &Path, store: Option<&StoreUrl>) -> Result<Self, SinkError> {
        match store {
            None => Ok(Self::Folder(root.to_owned())),
            #[cfg(feature = "cloud")]
            Some(url) => Ok(Self::Objects(Objects::new(url)?)),
            #[cfg(not(feature = "cloud"))]
            Some(_) => unreachable!("a URL of a store does not parse without the feature"),
        }
    }

    /// Makes what a journal's writer needs, and checks that entries can be created exclusively.
    pub(super) fn prepare(&self, layout: &Layout) -> Result<(), SinkError> {
        match self {
            Self::Folder(_) => Ok(create_dir_durably(&layout.manifest)?),
            #[cfg(feature = "cloud")]
            Self::Objects(objects) => {
                Ok(objects.check_exclusive(&format!("_weir/exclusive/{}", layout.journal_id))?)
            }
        }
    }

    /// The store's URL, as intents note it.
    pub(super) fn store(&self) -> Option<String> {
        match self {
            Self::Folder(_) => None,
            #[cfg(feature = "cloud")]
            Self::Objects(objects) => Some(objects.url().to_string()),
        }
    }

    /// Where a file is, for messages.
    pub(super) fn path(&self, name: &str) -> PathBuf {
        match self {
            Self::Folder(root) => root.join(name),
            #[cfg(feature = "cloud")]
            Self::Objects(objects) => objects.path(name),
        }
    }

    /// The name of the file that entry `number` adds to a partition, relative to the root.
    pub(super) fn file_name(&self, partition: &str, journal_id: &str, number: u64, sha256: &str) -> String {
        match self {
            Self::Folder(_) => format!("{partition}/{journal_id}-{number:012}.parquet"),
            // A store can't be kept from replacing an object, so a name belongs to one content: whoever writes to it
            // again writes the same.
            #[cfg(feature = "cloud")]
            Self::Objects(_) => {
                let content = sha256.get(..16).unwrap_or(sha256);
                format!("{partition}/{journal_id}-{number:012}-{content}.parquet")
            }
        }
    }

    /// Whether a name is taken by something that is not of the cut that is about to be published.
    pub(super) fn is_taken(&self, name: &str) -> Result<bool, SinkError> {
        match self {
            Self::Folder(root) => {
                let path = root.join(name);
                Ok(path.try_exists().map_err(FileError::at("look at", &path))?)
            }
            #[cfg(feature = "cloud")]
            Self::Objects(_) => Ok(false),
        }
    }

    /// What there is of a file of an intent that was found.
    pub(super) fn standing(&self, file: &LiveFile, temporary: &Path) -> Result<Standing, SinkError> {
        match self {
            Self::Folder(_) => {
                let published = self.is_taken(&file.path)?;
                let at = if published { &self.path(&file.path) } else { temporary };
                Ok(match check_content(at, file)? {
                    Some(reason) => Standing::Wrong(reason),
                    None if published => Standing::Published,
                    None => Standing::Pending,
                })
            }
            #[cfg(feature = "cloud")]
            Self::Objects(_) => {
                let Some(reason) = check_content(temporary, file)? else { return Ok(Standing::Pending) };
                let published = self.content_problem(file)?.is_none();
                Ok(if published { Standing::Published } else { Standing::Wrong(reason) })
            }
        }
    }

    /// Publishes files under their names. In a folder never over another file.
    pub(super) fn publish(&self, files: &[(&LiveFile, &Path)]) -> Result<(), SinkError> {
        match self {
            Self::Folder(root) => {
                for (file, temporary) in files {
                    let path = root.join(&file.path);
                    create_dir_durably(parent(&path))?;
                    if !rename_new(temporary, &path)? {
                        return Err(SinkError::Foreign { path });
                    }
                    crash::point("parquet.published_one");
                }
                Ok(())
            }
            #[cfg(feature = "cloud")]
            Self::Objects(objects) => objects.put_files(files),
        }
    }

    /// Deletes what an intent removes, and makes that and what it added durable.
    pub(super) fn settle(&self, intent: &Intent) -> Result<(), SinkError> {
        let removed = intent.entry.removed.iter().map(|file| file.path.as_str());
        match self {
            Self::Folder(root) => {
                for name in removed.clone() {
                    if remove_file(&root.join(name))? {
                        crash::point("parquet.removed_one");
                    }
                }
                let added = intent.entry.added.iter().map(|file| file.path.as_str());
                let paths: Vec<PathBuf> = added.chain(removed).map(|name| root.join(name)).collect();
                let folders: BTreeSet<&Path> = paths.iter().map(|path| parent(path)).collect();
                // Gone where an earlier try went as far as to remove the emptied folder.
                for folder in folders.into_iter().filter(|folder| folder.is_dir()) {
                    sync_dir(folder)?;
                }
            }
            #[cfg(feature = "cloud")]
            Self::Objects(objects) => {
                for name in removed {
                    objects.remove(name)?;
                    crash::point("parquet.removed_one");
                }
            }
        }
        Ok(())
    }

    /// Creates the entry of an intent. `Ok(false)`: another one stands there.
    pub(super) fn create_entry(&self, layout: &Layout, intent: &Intent) -> Result<bool, SinkError> {
        let name = entry_name(intent.entry.number);
        match self {
            Self::Folder(_) => {
                let temporary = layout.temporary.join(format!("{name}.entry"));
                File::create(&temporary)
                    .and_then(|mut file| file.write_all(&intent.bytes).and_then(|()| file.sync_all()))
                    .map_err(FileError::at("write", &temporary))?;
                let created = rename_new(&temporary, &layout.manifest.join(name))?;
                if created {
                    sync_dir(&layout.manifest)?;
                }
                Ok(created)
            }
            #[cfg(feature = "cloud")]
            Self::Objects(objects) => {
                let name = entry_key(&layout.journal_id, intent.entry.number);
                if objects.create(&name, &intent.bytes)? {
                    return Ok(true);
                }
                // Ours, if an earlier request arrived whose answer did not.
                match self.entry(&layout.journal_id, intent.entry.number)? {
                    Some(bytes) => Ok(bytes == intent.bytes),
                    None => Err(objects.unsettled(&name).into()),
                }
            }
        }
    }

    /// The bytes of an entry, if there is one.
    pub(super) fn entry(&self, journal_id: &str, number: u64) -> Result<Option<Vec<u8>>, SinkError> {
        match self {
            Self::Folder(_) => {
                let path = self.entry_path(journal_id, number);
                match manifest::read_bounded(&path, ENTRY_BYTES_MAX) {
                    Ok(bytes) => Ok(Some(bytes)),
                    Err(ManifestError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
                        Ok(None)
                    }
                    Err(error) => Err(error.into()),
                }
            }
            #[cfg(feature = "cloud")]
            Self::Objects(objects) => Ok(objects.get(&entry_key(journal_id, number), ENTRY_BYTES_MAX)?),
        }
    }

    /// Makes an entry that was found durable.
    pub(super) fn confirm_entry(&self, layout: &Layout) -> Result<(), SinkError> {
        match self {
            Self::Folder(_) => Ok(sync_dir(&layout.manifest)?),
            #[cfg(feature = "cloud")]
            Self::Objects(_) => Ok(()),
        }
    }

    /// Clears up behind a commit that is complete.
    pub(super) fn tidy(&self, intent: &Intent) -> Result<(), SinkError> {
        match self {
            Self::Folder(root) => {
                for file in &intent.entry.removed {
                    prune_empty(root, &root.join(&file.path));
                }
            }
            #[cfg(feature = "cloud")]
            Self::Objects(_) => {
                for temporary in &intent.temporary {
                    remove_file(temporary)?;
                }
            }
        }
        Ok(())
    }

    /// Deletes what an incomplete cut has published and written.
    pub(super) fn undo(&self, intent: &Intent) -> Result<(), SinkError> {
        for (file, temporary) in intent.entry.added.iter().zip(&intent.temporary) {
            self.take_back(&file.path)?;
            remove_file(temporary)?;
        }
        Ok(())
    }

    /// Deletes the files of a cut that lost its place to another's entry: readers of the glob would see rows twice. A
    /// file that the other one lists stays. In a folder the other's files have the same names, so nothing is done.
    pub(super) fn take_back_lost(&self, intent: &Intent, winner: &[u8]) -> Result<(), SinkError> {
        match self {
            Self::Folder(_) => Ok(()),
            #[cfg(feature = "cloud")]
            Self::Objects(_) => {
                let entry = &intent.entry;
                let Ok(winner) = manifest::parse(&entry.journal_id, entry.number, winner) else {
                    return Ok(());
                };
                let theirs: BTreeSet<&str> = winner.added.iter().map(|file| file.path.as_str()).collect();
                let ours = entry.added.iter().map(|file| file.path.as_str());
                ours.filter(|name| !theirs.contains(name)).try_for_each(|name| self.take_back(name))
            }
        }
    }

    fn take_back(&self, name: &str) -> Result<(), SinkError> {
        match self {
            Self::Folder(root) => {
                let path = root.join(name);
                if remove_file(&path)? {
                    sync_dir(parent(&path))?;
                }
                Ok(())
            }
            #[cfg(feature = "cloud")]
            Self::Objects(objects) => Ok(objects.remove(name)?),
        }
    }

    /// The journals that have a manifest, by id.
    pub(super) fn journals(&self) -> Result<Vec<String>, SinkError> {
        match self {
            Self::Folder(root) => Ok(layout::journals(root)?),
            #[cfg(feature = "cloud")]
            Self::Objects(objects) => {
                let mut ids = objects.folders(MANIFEST_DIR)?;
                ids.retain(|name| layout::is_journal_id(name));
                ids.sort_unstable();
                Ok(ids)
            }
        }
    }

    /// The numbers of a journal's entries, 1, 2, 3, … without a gap.
    pub(super) fn entry_numbers(&self, journal_id: &str) -> Result<Vec<u64>, ManifestError> {
        let folder = self.path(&format!("{MANIFEST_DIR}/{journal_id}"));
        let names = match self {
            Self::Folder(_) => manifest::names(&folder)?,
            #[cfg(feature = "cloud")]
            Self::Objects(objects) => {
                let below = format!("{MANIFEST_DIR}/{journal_id}");
                let names = objects.list(&below)?.into_keys();
                names.map(|name| name[below.len()..].trim_start_matches('/').to_owned()).collect()
            }
        };
        manifest::numbers(&folder, &names)
    }

    /// How many entries are best asked for at once.
    pub(super) fn entries_at_once(&self) -> u64 {
        match self {
            Self::Folder(_) => 1,
            #[cfg(feature = "cloud")]
            Self::Objects(_) => GETS_AT_ONCE as u64,
        }
    }

    /// The bytes of entries.
    pub(super) fn entries(&self, journal_id: &str, numbers: &[u64]) -> Result<Vec<Vec<u8>>, ManifestError> {
        match self {
            Self::Folder(_) => {
                let read = |number: &u64| {
                    manifest::read_bounded(&self.entry_path(journal_id, *number), ENTRY_BYTES_MAX)
                };
                numbers.iter().map(read).collect()
            }
            #[cfg(feature = "cloud")]
            Self::Objects(objects) => {
                let names: Vec<String> =
                    numbers.iter().map(|number| entry_key(journal_id, *number)).collect();
                let found = objects.get_all(&names, ENTRY_BYTES_MAX)?;
                let present = |(bytes, number): (Option<Vec<u8>>, &u64)| {
                    bytes.ok_or_else(|| ManifestError::Invalid {
                        path: self.entry_path(journal_id, *number),
                        offset: None,
                        reason: "is gone".to_owned(),
                    })
                };
                found.into_iter().zip(numbers).map(present).collect()
            }
        }
    }

    /// Where an entry is, for messages.
    pub(super) fn entry_path(&self, journal_id: &str, number: u64) -> PathBuf {
        self.path(&entry_key(journal_id, number))
    }

    /// The live files that are missing or have another size, and what is wrong with each.
    pub(super) fn damaged(
        &self,
        live: &BTreeMap<String, LiveFile>,
    ) -> Result<Vec<(PathBuf, String)>, SinkError> {
        #[cfg(feature = "cloud")]
        let found = match self {
            Self::Folder(_) => None,
            // A request for each file would take longer than a listing.
            Self::Objects(objects) => {
                let mut found = BTreeMap::new();
                for kind in Kind::ALL {
                    found.extend(objects.list(&format!("kind={}", kind.as_str()))?);
                }
                Some(found)
            }
        };
        let mut damaged = Vec::new();
        for file in live.values() {
            let path = self.path(&file.path);
            let size = match self {
                Self::Folder(_) => match fs::metadata(&path) {
                    Ok(found) => Some(found.len()),
                    Err(error) if error.kind() == io::ErrorKind::NotFound => None,
                    Err(error) => return Err(FileError::at("look at", &path)(error).into()),
                },
                #[cfg(feature = "cloud")]
                Self::Objects(_) => found.as_ref().and_then(|found| found.get(&file.path).copied()),
            };
            match size {
                Some(size) if size == file.bytes => {}
                Some(size) => damaged.push((path, format!("has {size} bytes, not {}", file.bytes))),
                None => damaged.push((path, "is missing".to_owned())),
            }
        }
        Ok(damaged)
    }

    /// What is wrong with a live file's content, if anything.
    pub(super) fn content_problem(&self, file: &LiveFile) -> Result<Option<String>, SinkError> {
        let path = self.path(&file.path);
        match self {
            Self::Folder(_) => Ok(check_content(&path, file)?),
            #[cfg(feature = "cloud")]
            Self::Objects(objects) => {
                let path = path.display();
                Ok(match objects.digest(&file.path)? {
                    None => Some(format!("{path} is missing")),
                    Some((bytes, _)) if bytes != file.bytes => {
                        Some(format!("{path} has {bytes} bytes, not {}", file.bytes))
                    }
                    Some((_, sha256)) if sha256 != file.sha256 => {
                        Some(format!("{path} has SHA-256 {sha256}, not {}", file.sha256))
                    }
                    Some(_) => None,
                })
            }
        }
    }

    /// The names of everything that readers of the glob see, with its size.
    pub(super) fn parquet_files(&self) -> Result<BTreeMap<String, u64>, SinkError> {
        match self {
            Self::Folder(root) => Ok(layout::parquet_files(root)?),
            #[cfg(feature = "cloud")]
            Self::Objects(objects) => {
                let mut files = objects.list("")?;
                let seen = |name: &String| name.ends_with(".parquet") && !name.starts_with("_weir/");
                files.retain(|name, _| seen(name));
                Ok(files)
            }
        }
    }
}

fn entry_key(journal_id: &str, number: u64) -> String {
    format!("{MANIFEST_DIR}/{journal_id}/{}", entry_name(number))
}
