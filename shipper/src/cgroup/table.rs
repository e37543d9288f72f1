//! Paths of cgroups by the kernel's id: from a scan of the tree, and from the tracepoint of `mkdir` for those that
//! came since. A cgroup that is gone keeps its name for as long as there is room.

use std::{
    collections::HashMap,
    fs,
    os::unix::fs::{DirEntryExt, MetadataExt},
    path::PathBuf,
    sync::Arc,
};

use super::path::{CgroupIdentity, parse_cgroup_path};

/// Names kept at most. Above it those that were asked for longest ago go.
const NAMES_MAX: usize = 65_536;
/// Depth at which a scan stops.
const DEPTH_MAX: usize = 32;

/// A cgroup's path and what it says.
#[derive(Debug)]
pub(crate) struct Cgroup {
    pub path: Arc<str>,
    pub container_id: Arc<str>,
    pub pod_uid: Arc<str>,
}

impl Cgroup {
    pub(crate) fn new(path: &str) -> Self {
        let CgroupIdentity { container_id, pod_uid } = parse_cgroup_path(path);
        Self { path: path.into(), container_id: container_id.into(), pod_uid: pod_uid.into() }
    }
}

struct Entry {
    cgroup: Arc<Cgroup>,
    used: u64,
}

/// The names.
pub(crate) struct CgroupTable {
    root: PathBuf,
    names: HashMap<u64, Entry>,
    /// Counts the rounds of use: one per drained interval.
    round: u64,
    /// The round of the last scan: an unknown id asks for one scan a round.
    scanned: u64,
}

impl CgroupTable {
    /// A table of the hierarchy that is mounted at `root`, scanned.
    pub(crate) fn new(root: PathBuf) -> Self {
        let mut table = Self { root, names: HashMap::new(), round: 1, scanned: 0 };
        table.scan();
        table
    }

    /// Begins a round of look-ups, and makes room.
    pub(crate) fn begin(&mut self) {
        self.round += 1;
        if self.names.len() > NAMES_MAX {
            let mut rounds: Vec<u64> = self.names.values().map(|entry| entry.used).collect();
            rounds.sort_unstable();
            let oldest = rounds[self.names.len() - NAMES_MAX * 3 / 4];
            self.names.retain(|_, entry| entry.used > oldest);
        }
    }

    /// Takes a path from the tracepoint. A scan's answer stands: it has the whole path.
    pub(crate) fn learn(&mut self, id: u64, path: &str) {
        let used = self.round;
        self.names.entry(id).or_insert_with(|| Entry { cgroup: Arc::new(Cgroup::new(path)), used });
    }

    /// The cgroup of an id; scans when it is unknown. `None` for 0 and for one that nobody has seen.
    pub(crate) fn find(&mut self, id: u64) -> Option<Arc<Cgroup>> {
        if id == 0 {
            return None;
        }
        if !self.names.contains_key(&id) && self.scanned != self.round {
            self.scan();
        }
        let entry = self.names.get_mut(&id)?;
        entry.used = self.round;
        Some(Arc::clone(&entry.cgroup))
    }

    fn scan(&mut self) {
        self.scanned = self.round;
        let Ok(meta) = fs::metadata(&self.root) else { return };
        self.insert(meta.ino(), "/");
        let mut waiting = vec![(self.root.clone(), String::new(), 0)];
        while let Some((directory, path, depth)) = waiting.pop() {
            // A cgroup may go while it is read: what is left of it is not an error.
            let Ok(entries) = fs::read_dir(&directory) else { continue };
            for entry in entries.flatten() {
                if !entry.file_type().is_ok_and(|kind| kind.is_dir()) || depth == DEPTH_MAX {
                    continue;
                }
                let path = format!("{path}/{}", entry.file_name().to_string_lossy());
                self.insert(entry.ino(), &path);
                waiting.push((entry.path(), path, depth + 1));
            }
        }
    }

    fn insert(&mut self, id: u64, path: &str) {
        let used = self.round;
        match self.names.get_mut(&id) {
            Some(entry) if &*entry.cgroup.path == path => entry.used = used,
            _ => {
                self.names.insert(id, Entry { cgroup: Arc::new(Cgroup::new(path)), used });
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_that_is_gone_keeps_its_name() {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir_all(root.path().join("kubepods/x")).unwrap();
        let id = fs::metadata(root.path().join("kubepods/x")).unwrap().ino();
        let mut table = CgroupTable::new(root.path().to_owned());
        fs::remove_dir(root.path().join("kubepods/x")).unwrap();
        table.begin();
        assert_eq!(&*table.find(id).unwrap().path, "/kubepods/x");
        assert!(table.find(0).is_none());
    }

    #[test]
    fn a_new_directory_is_found_by_a_scan_or_by_the_tracepoint() {
        let root = tempfile::tempdir().unwrap();
        let mut table = CgroupTable::new(root.path().to_owned());
        fs::create_dir(root.path().join("late")).unwrap();
        let id = fs::metadata(root.path().join("late")).unwrap().ino();
        table.begin();
        assert_eq!(&*table.find(id).unwrap().path, "/late");
        table.learn(12_345, "/gone");
        assert_eq!(&*table.find(12_345).unwrap().path, "/gone");
    }

    #[test]
    fn names_are_bounded() {
        let root = tempfile::tempdir().unwrap();
        let mut table = CgroupTable::new(root.path().to_owned());
        for id in 0..NAMES_MAX as u64 + 10 {
            if id % 1000 == 0 {
                table.begin();
            }
            table.learn(1_000_000 + id, "/x");
        }
        table.begin();
        assert!(table.names.len() <= NAMES_MAX);
        assert!(table.find(1_000_000 + NAMES_MAX as u64).is_some());
    }
}
