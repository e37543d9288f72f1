//! Network namespaces by path: found, entered by a thread, known again.

use std::{
    fs::{self, File},
    io,
    os::{fd::AsRawFd, unix::fs::MetadataExt},
    path::{Path, PathBuf},
};

use super::choice::matches;

/// The namespace that the shipper itself runs in.
pub const SELF: &str = "self";

/// A namespace that is to be watched.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    pub path: PathBuf,
    /// What comes before the names of its links in records, with a `/`; empty for the shipper's own.
    pub prefix: String,
    /// Device and inode: whether it is still the same one.
    pub id: (u64, u64),
}

/// The namespaces that exist now of those that are configured: `self`, paths, and paths with `*` in their last part.
pub(crate) fn find(configured: &[String]) -> Vec<Place> {
    let mut found: Vec<Place> = Vec::new();
    for pattern in configured {
        let places: Vec<Place> = if pattern == SELF {
            place(PathBuf::from("/proc/self/ns/net"), String::new()).into_iter().collect()
        } else {
            paths(Path::new(pattern)).into_iter().filter_map(named).collect()
        };
        for place in places {
            if !found.iter().any(|other| other.id == place.id) {
                found.push(place);
            }
        }
    }
    found
}

fn named(path: PathBuf) -> Option<Place> {
    let prefix = format!("{}/", path.file_name()?.to_string_lossy());
    place(path, prefix)
}

fn place(path: PathBuf, prefix: String) -> Option<Place> {
    // A file that is no namespace lies on another file system; entering it fails, and is said then.
    let meta = fs::metadata(&path).ok()?;
    Some(Place { path, prefix, id: (meta.dev(), meta.ino()) })
}

fn paths(pattern: &Path) -> Vec<PathBuf> {
    let name = pattern.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let Some(folder) = pattern.parent().filter(|_| name.contains('*')) else {
        return vec![pattern.to_owned()];
    };
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let mut found: Vec<PathBuf> = entries
        .filter(|entry| matches(&name, &entry.file_name().to_string_lossy()))
        .map(|entry| entry.path())
        .collect();
    found.sort();
    found
}

/// Takes this thread into the namespace. Fails when another one is there by now.
pub(crate) fn enter(place: &Place) -> io::Result<()> {
    let file = File::open(&place.path)?;
    let meta = file.metadata()?;
    if (meta.dev(), meta.ino()) != place.id {
        return Err(io::Error::from_raw_os_error(libc::ESTALE));
    }
    // SAFETY: setns takes a descriptor that is open and no pointers.
    if unsafe { libc::setns(file.as_raw_fd(), libc::CLONE_NEWNET) } == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_own_namespace_is_found_once_and_others_by_pattern() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["blue", "black", "red"] {
            fs::write(dir.path().join(name), "").unwrap();
        }
        let pattern = dir.path().join("bl*").to_string_lossy().into_owned();
        let configured = [SELF.to_owned(), SELF.to_owned(), pattern, "/nonexistent/x".to_owned()];
        let prefixes: Vec<String> = find(&configured).into_iter().map(|place| place.prefix).collect();
        assert_eq!(prefixes, ["", "black/", "blue/"]);
    }
}
