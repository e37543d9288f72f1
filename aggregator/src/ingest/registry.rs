//! The sequence rules behind one lock, shared by all streams and the journal's writer.
//!
//! Deciding on a unit and putting it into the writer's queue happen under the same lock, so the queue has the order of
//! the decisions and a stream that is dropped between the two leaves no hole.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use foldhash::fast::RandomState;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;
use weir_proto::v1::ShipperState;

use super::sequence::{Sequences, Verdict};
use crate::accepted::{Accepted, Content, Id, Origin, Source};

/// Shared handle.
pub struct Registry {
    inner: Mutex<Inner>,
}

struct Inner {
    sequences: Sequences,
    /// The stream that speaks for each shipper.
    streams: HashMap<Id, Stream, RandomState>,
    /// The writer has ended.
    closed: bool,
}

struct Stream {
    generation: u64,
    source: Source,
    journaled: watch::Sender<u64>,
    fence: CancellationToken,
}

/// A stream's place in the registry; dropping it says goodbye.
pub struct Seat {
    registry: Arc<Registry>,
    source: Source,
    generation: u64,
    /// The last journaled number of the stream's epoch, kept up to date.
    pub journaled: watch::Receiver<u64>,
    /// Cancelled when a newer stream of the shipper took over.
    pub fence: CancellationToken,
}

impl Registry {
    /// With the state that recovery found.
    pub fn new(sequences: Sequences) -> Arc<Self> {
        let inner = Inner { sequences, streams: HashMap::default(), closed: false };
        Arc::new(Self { inner: Mutex::new(inner) })
    }

    /// Seats a new stream and fences the shipper's older one.
    pub fn seat(self: &Arc<Self>, origin: &Origin) -> Seat {
        let source = origin.source;
        let mut inner = self.lock();
        let greeting = inner.sequences.hello(source, &origin.node, &origin.cluster);
        let (sender, journaled) = watch::channel(greeting.journaled);
        let fence = CancellationToken::new();
        let generation = greeting.generation;
        let stream = Stream { generation, source, journaled: sender, fence: fence.clone() };
        let older = if inner.closed {
            inner.streams.remove(&source.shipper)
        } else {
            inner.streams.insert(source.shipper, stream)
        };
        if let Some(older) = older {
            older.fence.cancel();
        }
        Seat { registry: Arc::clone(self), source, generation, journaled, fence }
    }

    /// Units were synced to the journal, in this order.
    pub fn journaled(&self, units: &[Accepted]) {
        let mut inner = self.lock();
        let Inner { sequences, streams, closed: _ } = &mut *inner;
        for unit in units {
            let source = unit.origin.source;
            sequences.journaled(source, unit.last_number);
            if let Some(stream) = streams.get(&source.shipper).filter(|stream| stream.source == source) {
                stream.journaled.send_replace(unit.last_number);
            }
        }
    }

    /// The writer has ended: whoever waits for something to be journaled learns that it will not be.
    pub fn close(&self) {
        let mut inner = self.lock();
        inner.closed = true;
        inner.streams.clear();
    }

    /// The state for a checkpoint.
    pub fn checkpoint(&self, now_s: i64) -> Vec<ShipperState> {
        self.lock().sequences.checkpoint(now_s)
    }

    /// Shippers with a stream.
    pub fn connected(&self) -> usize {
        self.lock().streams.len()
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Seat {
    /// What an offer of these numbers would bring, so that nothing is decoded in vain.
    pub fn judge(&self, first: u64, last: u64) -> Verdict {
        self.registry.lock().sequences.judge(self.source, self.generation, first, last)
    }

    /// Offers `unit`; if it is accepted it is in the queue when this returns.
    pub fn offer(&self, queue: mpsc::Permit<'_, Accepted>, mut unit: Accepted, now_s: i64) -> Verdict {
        let mut inner = self.registry.lock();
        let (first, last) = (unit.first_number, unit.last_number);
        let verdict = inner.sequences.offer(self.source, self.generation, first, last, now_s);
        match verdict {
            Verdict::Accept => queue.send(unit),
            Verdict::AcceptOverlap => {
                // How much of it is new is not known; null says so (catalogue: `count`).
                if let Content::Skip(loss) = &mut unit.content {
                    (loss.count, loss.bytes) = (None, None);
                }
                queue.send(unit);
            }
            Verdict::Duplicate
            | Verdict::Gap { .. }
            | Verdict::UnknownEpoch
            | Verdict::Superseded
            | Verdict::Full => {}
        }
        verdict
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut inner = self.registry.lock();
        inner.sequences.goodbye(self.source.shipper, self.generation);
        let shipper = self.source.shipper;
        if inner.streams.get(&shipper).is_some_and(|stream| stream.generation == self.generation) {
            inner.streams.remove(&shipper);
        }
    }
}
