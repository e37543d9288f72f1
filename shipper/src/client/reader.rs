//! Reads the spool ahead of a stream, on a thread of its own: disk reads and syncs never hold up the network.
//!
//! Bounded: one record waits in the channel, one is being read; so memory does not depend on the backlog.

use std::time::Duration;

use tokio::sync::mpsc;

use crate::spool::{Id, Outbox, OutboxError, Outgoing};

/// Records read ahead.
const READ_AHEAD: usize = 1;
/// How often an idle reader looks whether its stream is still there.
const PATIENCE: Duration = Duration::from_millis(100);

/// Starts reading an epoch at a number. The thread ends with the receiver, after an error, or at the epoch's end.
pub(super) fn spawn(outbox: Outbox, epoch: Id, from: u64) -> mpsc::Receiver<Result<Outgoing, OutboxError>> {
    let (records, receiver) = mpsc::channel(READ_AHEAD);
    tokio::task::spawn_blocking(move || {
        let mut number = from;
        while !records.is_closed() {
            let next = match outbox.next(&epoch, number, PATIENCE) {
                Ok(None) => continue,
                Ok(Some(next)) => next,
                Err(error) => {
                    let _ = records.blocking_send(Err(error));
                    return;
                }
            };
            let last = match &next {
                Outgoing::Batches(batches) => batches.last().map_or(number, |batch| batch.number),
                Outgoing::Skip(tombstone) => tombstone.to,
                Outgoing::End => number,
            };
            let end = next == Outgoing::End;
            if records.blocking_send(Ok(next)).is_err() || end {
                return;
            }
            number = last + 1;
        }
    });
    receiver
}
