//! Which files are to be deleted: whole files, oldest first, by age and by size of each kind.
//!
//! Pure: the store deletes them.

use std::time::Duration;

use weir_schema::Kind;

use super::manifest::{LiveFile, RemovalReason, RemovedFile, State, check_path, kind_of};

/// How long the files of each kind are kept, in the order of `Kind::ALL`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Retention(pub [Keep; 4]);

/// How long, and how much of, one kind is kept; by default all of it, for ever.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Keep {
    /// Files whose hour ended longer ago are deleted. A file of an hour that was past when it was written, such as a
    /// replayed capture's, is kept for this time after it was written.
    pub age: Option<Duration>,
    /// The oldest files beyond so many bytes are deleted.
    pub bytes: Option<u64>,
}

impl Retention {
    /// The rule of a kind.
    pub fn of(&self, kind: Kind) -> Keep {
        self.0[kind as usize - 1]
    }
}

/// The live files that a rule asks to delete at a time (microseconds since the Unix epoch), at most
/// [`REMOVALS_MAX`]; the rest comes next time.
pub(super) fn expired(state: &State, retention: &Retention, now_us: i64) -> Vec<RemovedFile> {
    let mut removed = Vec::new();
    for kind in Kind::ALL {
        let Keep { age, bytes: bytes_max } = retention.of(kind);
        if age.is_none() && bytes_max.is_none() {
            continue;
        }
        let of_kind = state.live.values().filter(|file| kind_of(&file.path) == Some(kind));
        let mut files: Vec<(i64, &LiveFile)> = of_kind.map(|file| (kept_from(file), file)).collect();
        files.sort_unstable_by_key(|(from, file)| (*from, &file.path));
        let mut bytes: u64 = files.iter().map(|(_, file)| file.bytes).sum();
        let oldest = age.map(|age| now_us.saturating_sub(i64::try_from(age.as_micros()).unwrap_or(i64::MAX)));
        for (from, file) in files {
            let reason = if oldest.is_some_and(|oldest| from < oldest) {
                RemovalReason::Age
            } else if bytes_max.is_some_and(|max| bytes > max) {
                RemovalReason::Size
            } else {
                break;
            };
            bytes -= file.bytes;
            let LiveFile { path, rows, bytes, .. } = file;
            removed.push(RemovedFile { path: path.clone(), rows: *rows, bytes: *bytes, reason });
        }
    }
    removed.truncate(REMOVALS_MAX);
    removed
}

/// From when a file's age counts: the end of its hour, or when it was written if that is later.
fn kept_from(file: &LiveFile) -> i64 {
    let hour = check_path(&file.path).map_or(0, |key| key.hour);
    (hour + 1).saturating_mul(HOUR_US).max(file.written_us)
}

/// Deletions of one entry.
const REMOVALS_MAX: usize = 10_000;
const HOUR_US: i64 = 3_600_000_000;

#[cfg(test)]
mod tests {
    use super::*;

    fn state(files: &[(&str, i64, u64)]) -> State {
        let mut state = State::new();
        for (path, written_hour, bytes) in files {
            let file = LiveFile {
                path: (*path).to_owned(),
                rows: 1,
                bytes: *bytes,
                sha256: String::new(),
                min_time_us: 0,
                max_time_us: i64::MAX,
                written_us: written_hour * HOUR_US,
                schema_version: 1,
            };
            state.live.insert((*path).to_owned(), file);
        }
        state
    }

    fn names(removed: &[RemovedFile]) -> Vec<(&str, RemovalReason)> {
        removed.iter().map(|file| (file.path.rsplit('/').next().unwrap(), file.reason)).collect()
    }

    #[test]
    fn oldest_first_by_age_then_by_size_each_kind_alone() {
        let state = state(&[
            ("kind=flow/cluster=a/date=1970-01-01/hour=00/a.parquet", 1, 100),
            ("kind=flow/cluster=a/date=1970-01-01/hour=05/b.parquet", 6, 100),
            ("kind=flow/cluster=a/date=1970-01-01/hour=06/c.parquet", 7, 100),
            // An old hour, written late.
            ("kind=flow/cluster=a/date=1970-01-01/hour=00/d.parquet", 8, 100),
            ("kind=loss/cluster=a/date=1970-01-01/hour=00/e.parquet", 1, 100),
        ]);
        let rule = Keep { age: Some(Duration::from_hours(5)), bytes: Some(250) };
        let retention = Retention([rule, Keep::default(), Keep::default(), Keep::default()]);
        let removed = expired(&state, &retention, 7 * HOUR_US);
        assert_eq!(names(&removed), [("a.parquet", RemovalReason::Age), ("b.parquet", RemovalReason::Size)]);
        let removed = expired(&state, &retention, 100 * HOUR_US);
        assert_eq!(removed.len(), 4);
        assert!(expired(&state, &Retention::default(), i64::MAX).is_empty());
    }
}
