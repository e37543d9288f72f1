//! Losses that the aggregator itself finds: damaged journal records, reported once by a row of kind=loss.
//!
//! A sink that meets damage goes on behind it; its reader reports it here. Which damage was reported is kept in a small synced
//! file beside the journal; the row's `event_id` is made from the journal's id and the position, so that a report
//! repeated after a crash between row and file is the same event again.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::mpsc;
use weir_common::{clock, file, id};
use weir_proto::v1::LossEvent;
use weir_schema::values::{LossReason, LossStage};

use super::ReadError;
use crate::accepted::Id;
use crate::columns::{OwnLoss, SKIP_ROW};

/// Shared handle.
#[derive(Clone)]
pub struct LossReporter {
    shared: Arc<Shared>,
}

struct Shared {
    journal_id: Id,
    /// The aggregator's own cluster and name, which its rows carry.
    cluster: String,
    node: String,
    path: PathBuf,
    reported: Mutex<Reported>,
    queue: mpsc::UnboundedSender<OwnLoss>,
}

/// Each damage is named by where reading goes on behind it: the same from wherever in it one begins.
#[derive(Default)]
struct Reported {
    /// Whose row is journaled; this is what the file has.
    journaled: BTreeSet<u64>,
    /// Whose row is with the writer, by its `event_id`.
    queued: BTreeMap<Id, u64>,
    /// The file could not be written.
    behind: bool,
}

impl LossReporter {
    /// `path` is the file that remembers; the writer takes the rows from the receiver.
    pub fn new(
        journal_id: Id,
        cluster: &str,
        node: &str,
        path: PathBuf,
    ) -> (Self, mpsc::UnboundedReceiver<OwnLoss>) {
        let text = std::fs::read_to_string(&path).unwrap_or_default();
        let journaled = text.lines().filter_map(|line| line.parse().ok()).collect();
        // Bounded by the journal's damage: one row for each damaged range.
        let (queue, receiver) = mpsc::unbounded_channel();
        let (cluster, node) = (cluster.to_owned(), node.to_owned());
        let reported = Mutex::new(Reported { journaled, ..Reported::default() });
        (Self { shared: Arc::new(Shared { journal_id, cluster, node, path, reported, queue }) }, receiver)
    }

    /// Reports records that a sink needed and that are damaged or gone, once for all sinks. Returns whether it was new.
    pub fn damaged(&self, error: &ReadError) -> bool {
        let (position, resume_at) = match error {
            ReadError::Damaged { position, resume_at, .. } => (position, resume_at),
            ReadError::Removed { position, first } => (position, first),
            _ => return false,
        };
        let event_id = id::event_id(&self.shared.journal_id, *resume_at, SKIP_ROW);
        let mut reported = self.lock();
        if reported.journaled.contains(resume_at) || reported.queued.insert(event_id, *resume_at).is_some() {
            return false;
        }
        drop(reported);
        tracing::error!(%error, position, resume_at, "journal records are lost to the sinks");
        let now = clock::now_ns();
        let event = LossEvent {
            stage: LossStage::Journal.code(),
            reason: LossReason::Corrupt.code(),
            count: None,
            bytes: None,
            first_time_ns: now,
            last_time_ns: now,
        };
        let Shared { cluster, node, queue, .. } = &*self.shared;
        let loss = OwnLoss { event_id, cluster: cluster.clone(), node: node.clone(), sink: None, event };
        // The writer is gone only when the process ends; the next one reports it.
        let _ = queue.send(loss);
        true
    }

    /// Remembers on disk that these rows are journaled. A full disk puts it off to the next call: until then a start
    /// reports them again, as the same events.
    pub(super) fn journaled(&self, own: &[OwnLoss]) -> Result<(), file::FileError> {
        let mut reported = self.lock();
        for loss in own {
            if let Some(damage) = reported.queued.remove(&loss.event_id) {
                reported.behind |= reported.journaled.insert(damage);
            }
        }
        if !reported.behind {
            return Ok(());
        }
        let text: String = reported.journaled.iter().map(|position| format!("{position}\n")).collect();
        match file::atomic_write(&self.shared.path, text.as_bytes()) {
            Ok(()) => reported.behind = false,
            Err(error) if error.is_full() => {
                tracing::warn!(%error, "no room to remember reported damage; tried again with the next record");
            }
            Err(error) => return Err(error),
        }
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, Reported> {
        self.shared.reported.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_journaled_is_remembered() {
        let dir = tempfile::TempDir::new().unwrap();
        let path = dir.path().join("damage-reported");
        let open = || LossReporter::new([1; 16], "c", "n", path.clone());
        let damage = |resume_at| ReadError::Damaged {
            position: resume_at - 1,
            resume_at,
            path: PathBuf::new(),
            offset: 0,
            reason: "test",
        };
        let (reporter, mut rows) = open();
        assert!(reporter.damaged(&damage(5)) && reporter.damaged(&damage(9)));
        assert!(!reporter.damaged(&damage(5)), "it is queued");
        reporter.journaled(&[rows.try_recv().unwrap()]).unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "5\n");
        assert!(!reporter.damaged(&damage(5)));
        let (reporter, _rows) = open();
        assert!(!reporter.damaged(&damage(5)), "it is journaled");
        assert!(reporter.damaged(&damage(9)), "its row never was");
    }
}
