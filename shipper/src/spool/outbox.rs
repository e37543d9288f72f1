//! The spool as its reader sees it: what is to be sent next, what was acknowledged.
//!
//! Owns the one lock over the ledger and the state file. A change that must not be forgotten is in the state file, and
//! synced, before it is acted on; the lock is held over that short write, so that writer and client cannot disagree.
//! Used by the client (through clones) and by the spool's writer; the client calls what may sync from blocking threads.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::watch;
use weir_common::clock::now_ns;
use weir_common::crash;
use weir_common::id::{hex, random_id};
use weir_common::log::{LogError, LogReader};
use weir_schema::values::{LossReason, LossStage};

use super::epoch::{Amount, Epoch, Tombstone};
use super::image::{self, Dropped};
use super::ledger::{BeyondLast, Ledger, Next};
use super::record::{Id, RecordError, SpoolRecord};
use super::state::{StateError, StateFile};
use crate::metrics::Metrics;

/// How many numbers are marked as sent ahead of their sending, so that the state is not written for each.
const RESERVE: u64 = 64;

/// The spool as the client of one aggregator sees it. A clone of the handle shares the spool.
#[derive(Clone, Debug)]
pub struct Outbox {
    pub(super) shared: Arc<Shared>,
    /// The aggregator's name.
    pub(super) aggregator: Arc<str>,
}

/// What a client is to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Send what may have arrived there, then what belongs to nobody yet, then what is captured.
    Chosen,
    /// Come back: send what may have arrived there, and say so when the aggregator is up again.
    Returning,
    /// Send what may have arrived there.
    Other,
}

/// Where a stream begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Head {
    /// An epoch with numbers for this aggregator, or one that does not exist, to see whether it is up.
    pub epoch: Id,
    /// The first number that waits; one past the last if none does.
    pub first_number: u64,
    /// The last number given out.
    pub last_number: u64,
    /// The journal that the aggregator had before.
    pub journal: Option<Id>,
    /// There is nothing to send: the epoch does not exist.
    pub probe: bool,
}

/// What a Welcome means for the spool.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Welcomed {
    /// Send from this number on.
    From(u64),
    /// The spool was behind and gave its numbers to a new epoch: say Hello again.
    Renumbered,
    /// The journal is another one: nothing may be sent to it.
    OtherJournal {
        /// The one that batches went to.
        bound: Id,
    },
    /// Another of the configured aggregators has this journal: they are one.
    SameAs {
        /// Its name.
        aggregator: String,
    },
    /// The epoch belongs to another aggregator by now.
    NotOurs,
}

/// What is sent next.
#[derive(Clone, Debug, PartialEq)]
pub enum Outgoing {
    /// Batches with contiguous numbers, of one record.
    Batches(Vec<OutgoingBatch>),
    /// Numbers that will never be sent.
    Skip(Tombstone),
    /// The epoch ends here.
    End,
}

/// A numbered batch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OutgoingBatch {
    /// Its number.
    pub number: u64,
    /// Its bytes.
    pub payload: Bytes,
    /// Its rows.
    pub events: u32,
}

/// What waits in the spool.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Waiting {
    /// Numbers without an acknowledgement, skips included.
    pub numbers: u64,
    /// What is in the records among them.
    pub records: Amount,
}

/// Reading or marking failed; the spool stays as it was.
#[derive(Debug, thiserror::Error)]
pub enum OutboxError {
    /// The state file.
    #[error(transparent)]
    State(#[from] StateError),
    /// The log, other than by damage.
    #[error(transparent)]
    Log(#[from] LogError),
}

#[derive(Debug)]
pub(super) struct Shared {
    inner: Mutex<Inner>,
    grown: Condvar,
    waiting: watch::Sender<Waiting>,
    pub(super) reader: LogReader,
    pub(super) metrics: Metrics,
    /// Names of the configured aggregators.
    pub(super) aggregators: Vec<String>,
}

#[derive(Debug)]
pub(super) struct Inner {
    pub(super) shipper: Id,
    pub(super) ledger: Ledger,
    pub(super) dropped: Option<Dropped>,
    pub(super) state: StateFile,
}

impl Inner {
    pub(super) fn journal(&self, aggregator: &str) -> Option<Id> {
        self.ledger.journals.get(aggregator).copied()
    }

    pub(super) fn save(&mut self) -> Result<(), StateError> {
        let state = image::save(self.shipper, &self.ledger, self.dropped);
        self.state.save(&state)
    }
}

impl Outbox {
    pub(super) fn new(inner: Inner, reader: LogReader, metrics: Metrics, aggregators: &[String]) -> Self {
        let (waiting, _) = watch::channel(Waiting::default());
        let outbox = Self {
            aggregator: aggregators.first().map_or(super::ONLY_AGGREGATOR, String::as_str).into(),
            shared: Arc::new(Shared {
                inner: Mutex::new(inner),
                grown: Condvar::new(),
                waiting,
                reader,
                metrics,
                aggregators: aggregators.to_vec(),
            }),
        };
        outbox.changed(&outbox.lock());
        outbox
    }

    /// The id that the spool was made with.
    pub fn shipper(&self) -> Id {
        self.lock().shipper
    }

    /// The handle of another aggregator's client.
    pub fn of(&self, aggregator: &str) -> Self {
        Self { shared: Arc::clone(&self.shared), aggregator: aggregator.into() }
    }

    /// Where the next stream of the chosen aggregator begins.
    pub fn head(&self) -> Head {
        let probe = || self.probe(self.lock().journal(&self.aggregator));
        self.head_for(Role::Chosen).unwrap_or_else(probe)
    }

    /// Where the next stream begins: `None` when there is nothing to do.
    pub fn head_for(&self, role: Role) -> Option<Head> {
        let inner = self.lock();
        let journal = inner.journal(&self.aggregator);
        let epochs = &inner.ledger.epochs;
        let oldest = |of: Option<Id>| epochs.iter().find(|epoch| !epoch.is_done() && epoch.journal == of);
        let bound = journal.and_then(|journal| oldest(Some(journal)));
        let current = || epochs.back().filter(|last| last.journal.is_none() || last.journal == journal);
        let epoch = match role {
            Role::Chosen => bound.or_else(|| oldest(None)).or_else(current),
            Role::Returning | Role::Other => bound,
        };
        match (epoch, role) {
            (Some(epoch), _) => Some(Head {
                epoch: epoch.id,
                first_number: epoch.acked + 1,
                last_number: epoch.last(),
                journal,
                probe: false,
            }),
            (None, Role::Chosen | Role::Returning) => Some(self.probe(journal)),
            (None, Role::Other) => None,
        }
    }

    fn probe(&self, journal: Option<Id>) -> Head {
        Head { epoch: random_id(), first_number: 1, last_number: 0, journal, probe: true }
    }

    /// What waits, and a way to be told when it changes.
    pub fn waiting(&self) -> watch::Receiver<Waiting> {
        self.shared.waiting.subscribe()
    }

    /// Settles with a journal what it has of an epoch. The first one that is met is the aggregator's from then on.
    pub fn welcome(&self, epoch: &Id, journal: Id, journaled: u64) -> Result<Welcomed, OutboxError> {
        let mut inner = self.lock();
        match inner.journal(&self.aggregator) {
            Some(bound) if bound != journal => return Ok(Welcomed::OtherJournal { bound }),
            Some(_) => {}
            None => {
                if let Some(aggregator) = self.meet(&mut inner, journal)? {
                    return Ok(Welcomed::SameAs { aggregator });
                }
                crash::point("client.bound");
            }
        }
        if !inner.ledger.may_go_to(epoch, Some(journal)) {
            return Ok(Welcomed::NotOurs);
        }
        if inner.ledger.epoch(epoch).is_none() {
            return Ok(Welcomed::From(journaled + 1));
        }
        // The mark is synced before anything is sent: a journal that has more got it from another life of this spool.
        let sent = inner.ledger.epoch(epoch).map_or(0, |epoch| epoch.sent);
        if journaled > sent {
            tracing::error!(
                epoch = hex(epoch),
                journaled,
                sent,
                "the spool is behind the journal: its disk went back in time; what waits is sent under a new epoch, and may be doubled"
            );
            self.fall_behind(&mut inner, epoch, sent)?;
            return Ok(Welcomed::Renumbered);
        }
        if inner.ledger.rewind(epoch, journaled, now_ns()) {
            tracing::error!(
                epoch = hex(epoch),
                journaled,
                "the journal has less than it acknowledged: the numbers between are declared as lost there"
            );
            inner.save()?;
        }
        self.ack_locked(&mut inner, epoch, journaled);
        Ok(Welcomed::From(journaled + 1))
    }

    /// What follows in an epoch from `number` on; waits up to `patience` for it. Marks it as sent, synced, before it
    /// is given out. Blocks on the disk.
    pub fn next(&self, epoch: &Id, number: u64, patience: Duration) -> Result<Option<Outgoing>, OutboxError> {
        let mut inner = self.lock();
        let mut next = inner.ledger.next(epoch, number);
        if next == Next::Nothing {
            let waited = self.shared.grown.wait_timeout(inner, patience);
            inner = waited.unwrap_or_else(PoisonError::into_inner).0;
            next = inner.ledger.next(epoch, number);
        }
        if !inner.ledger.may_go_to(epoch, inner.journal(&self.aggregator)) {
            return Ok(Some(Outgoing::End));
        }
        let (position, index) = match next {
            Next::Nothing => return Ok(None),
            Next::End => return Ok(Some(Outgoing::End)),
            Next::Skip(mut tombstone) => {
                tombstone.from = number;
                self.reserve(&mut inner, epoch, tombstone.to)?;
                return Ok(Some(Outgoing::Skip(tombstone)));
            }
            Next::Batch { position, index } => (position, index),
        };
        // The record is read without the lock: what is marked as sent is not dropped. All batches of the record that
        // no tombstone stands between are given out together.
        let until = inner.ledger.end_of_run(epoch, number);
        self.reserve(&mut inner, epoch, until)?;
        drop(inner);
        let record = match self.shared.reader.read(position) {
            Ok(Some(frame)) => SpoolRecord::parse(frame),
            Ok(None) => return Ok(None),
            // Acknowledged meanwhile, on another stream, and gone.
            Err(LogError::Damaged { .. } | LogError::Removed { .. }) if !self.needs(position) => {
                return Ok(None);
            }
            Err(LogError::Damaged { path, offset, reason, .. }) => {
                tracing::error!(path = %path.display(), offset, reason, "spool record is damaged: it is declared as lost");
                self.lose(position)?;
                return Ok(None);
            }
            Err(error) => return Err(error.into()),
        };
        let batches = record.map(|record| {
            let rest = record.batches.into_iter().skip(index).take((until - number + 1) as usize);
            let numbered = (number..).zip(rest);
            numbered.map(|(number, batch)| OutgoingBatch {
                number,
                payload: batch.payload,
                events: batch.events,
            })
        });
        match batches.map(Iterator::collect::<Vec<_>>) {
            Ok(batches) if !batches.is_empty() => Ok(Some(Outgoing::Batches(batches))),
            Ok(_) => self.lose_unreadable(
                position,
                &RecordError::Field { what: "spool record", field: "batches", value: 0 },
            ),
            Err(error) => self.lose_unreadable(position, &error),
        }
    }

    /// All numbers up to this one are journaled.
    pub fn ack(&self, epoch: &Id, number: u64) -> Result<(), BeyondLast> {
        let mut inner = self.lock();
        let last = inner.ledger.epoch(epoch).map_or(0, Epoch::last);
        if number > last {
            return Err(BeyondLast { number, last });
        }
        self.ack_locked(&mut inner, epoch, number);
        Ok(())
    }

    /// The aggregator will never take this batch: it becomes a loss.
    pub fn reject(&self, epoch: &Id, number: u64) -> Result<(), OutboxError> {
        let mut inner = self.lock();
        let lost = inner.ledger.reject(epoch, number);
        self.shared.metrics.dropped(LossReason::Rejected, lost);
        self.changed(&inner);
        Ok(inner.save()?)
    }

    /// The aggregator does not know this epoch, or has other batches under its numbers: a new one takes over.
    pub fn renumber(&self, epoch: &Id, reason: &'static str) -> Result<(), OutboxError> {
        self.renumber_locked(&mut self.lock(), epoch, reason)
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, Inner> {
        // Every change is finished before anything that could panic.
        self.shared.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn metrics(&self) -> &Metrics {
        &self.shared.metrics
    }

    /// Tells everybody who waits; called with the lock held, after a change.
    pub(super) fn changed(&self, inner: &Inner) {
        let waiting = Waiting { numbers: inner.ledger.waiting(), records: inner.ledger.pending };
        let Shared { metrics, aggregators, .. } = &*self.shared;
        metrics.in_flight(waiting.records);
        for (name, journal) in &inner.ledger.journals {
            let of = inner.ledger.waiting_of(journal);
            if of > 0 || aggregators.contains(name) {
                metrics.aggregator_in_flight_batches.get_or_create(&[("aggregator", name.clone())]).set(of);
            }
        }
        self.shared.waiting.send_replace(waiting);
        self.shared.grown.notify_all();
    }

    fn ack_locked(&self, inner: &mut Inner, epoch: &Id, number: u64) {
        // Checked by both callers.
        let Ok(done) = inner.ledger.ack(epoch, number) else { return };
        self.shared.metrics.journaled(done);
        self.changed(inner);
    }

    fn reserve(&self, inner: &mut Inner, epoch: &Id, number: u64) -> Result<(), OutboxError> {
        let journal = inner.journal(&self.aggregator);
        let Some(before) = inner.ledger.reserve(epoch, number, RESERVE, journal) else { return Ok(()) };
        if let Err(error) = inner.save() {
            inner.ledger.unreserve(epoch, before);
            return Err(error.into());
        }
        crash::point("client.reserved");
        Ok(())
    }

    fn renumber_locked(
        &self,
        inner: &mut Inner,
        epoch: &Id,
        reason: &'static str,
    ) -> Result<(), OutboxError> {
        let new = random_id();
        let before = inner.ledger.clone();
        let moved = inner.ledger.renumber(epoch, new);
        if let Err(error) = inner.save() {
            inner.ledger = before;
            return Err(error.into());
        }
        tracing::warn!(old = hex(epoch), new = hex(&new), reason, batches = moved.batches, "new epoch");
        self.shared.metrics.epochs.get_or_create(&[("reason", reason)]).inc();
        Ok(())
    }

    /// Of what was marked as sent the journal has everything. The rest it may have too, or other batches under the same
    /// numbers: it goes under a new epoch, and a loss record says that events may be doubled.
    fn fall_behind(&self, inner: &mut Inner, epoch: &Id, sent: u64) -> Result<(), OutboxError> {
        let new = random_id();
        let before = inner.ledger.clone();
        // Never beyond the last: the mark does not pass it.
        let done = inner.ledger.ack(epoch, sent).unwrap_or_default();
        let moved = inner.ledger.renumber(epoch, new);
        inner.ledger.lose_new(perhaps_doubled(), 1);
        if let Err(error) = inner.save() {
            inner.ledger = before;
            return Err(error.into());
        }
        tracing::warn!(
            old = hex(epoch),
            new = hex(&new),
            reason = "behind",
            batches = moved.batches,
            "new epoch"
        );
        self.shared.metrics.epochs.get_or_create(&[("reason", "behind")]).inc();
        self.shared.metrics.journaled(done);
        self.changed(inner);
        Ok(())
    }

    fn needs(&self, position: u64) -> bool {
        self.lock().ledger.needs(&(position..position + 1))
    }

    fn lose(&self, position: u64) -> Result<(), OutboxError> {
        let mut inner = self.lock();
        let lost = inner.ledger.lose(&(position..position + 1), LossStage::Spool, LossReason::Corrupt);
        self.shared.metrics.dropped(LossReason::Corrupt, lost);
        self.changed(&inner);
        Ok(inner.save()?)
    }

    fn lose_unreadable(&self, position: u64, error: &RecordError) -> Result<Option<Outgoing>, OutboxError> {
        tracing::error!(position, %error, "spool record makes no sense: it is declared as lost");
        self.lose(position)?;
        Ok(None)
    }
}

/// Nothing is lost, but what goes to a journal after this may be in one already.
pub(super) fn perhaps_doubled() -> Tombstone {
    let now = now_ns();
    Tombstone {
        from: 0,
        to: 0,
        stage: LossStage::Delivery,
        reason: LossReason::Rebind,
        events: Some(0),
        bytes: Some(0),
        first_ns: now,
        last_ns: now,
    }
}
