//! Losses that the aggregator itself finds: damaged journal records, reported once by a row of kind=loss.
//!
//! A sink that meets damage goes on behind it; its reader reports it here. Which damage was reported is kept in a small synced
//! file beside the journal; the row's `event_id` is made from the journal's id and the position, so that a report
//! repeated after a crash between row and file is the same event again.

use std::collections::BTreeSet;
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
    /// Where reading goes on behind each damage that is reported: the same from wherever in it one begins.
    reported: Mutex<BTreeSet<u64>>,
    queue: mpsc::UnboundedSender<OwnLoss>,
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
        let reported = text.lines().filter_map(|line| line.parse().ok()).collect();
        // Bounded by the journal's damage: one row for each damaged range.
        let (queue, receiver) = mpsc::unbounded_channel();
        let (cluster, node) = (cluster.to_owned(), node.to_owned());
        let reported = Mutex::new(reported);
        (Self { shared: Arc::new(Shared { journal_id, cluster, node, path, reported, queue }) }, receiver)
    }

    /// Reports damage that a sink met, once for all sinks. Returns whether it was new.
    pub fn damaged(&self, error: &ReadError) -> bool {
        let ReadError::Damaged { position, resume_at, path, offset, reason } = error else { return false };
        if !self.lock().insert(*resume_at) {
            return false;
        }
        let path = path.display();
        tracing::error!(%path, offset, reason, position, resume_at, "journal records are damaged and lost to the sinks");
        let now = clock::now_ns();
        let event = LossEvent {
            stage: LossStage::Journal.code(),
            reason: LossReason::Corrupt.code(),
            count: None,
            bytes: None,
            first_time_ns: now,
            last_time_ns: now,
        };
        let Shared { journal_id, cluster, node, queue, .. } = &*self.shared;
        let event_id = id::event_id(journal_id, *resume_at, SKIP_ROW);
        let loss = OwnLoss { event_id, cluster: cluster.clone(), node: node.clone(), sink: None, event };
        // The writer is gone only when the process ends; the next one reports it.
        let _ = queue.send(loss);
        true
    }

    /// Remembers on disk what was reported: its rows are journaled.
    pub(super) fn journaled(&self) -> Result<(), file::FileError> {
        let text: String = self.lock().iter().map(|position| format!("{position}\n")).collect();
        file::atomic_write(&self.shared.path, text.as_bytes())
    }

    fn lock(&self) -> MutexGuard<'_, BTreeSet<u64>> {
        self.shared.reported.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
