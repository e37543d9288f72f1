//! One run of numbers: its records that wait and its losses.
//!
//! Owns what holds within one epoch: order, no overlap, what may be joined. The ledger owns what holds between epochs.

use std::collections::VecDeque;
use std::ops::Range;

use weir_schema::values::{LossReason, LossStage};

use super::record::Id;

/// Events and size of one batch in a record.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct BatchSize {
    pub events: u32,
    pub bytes: u32,
}

/// A record of the log that holds numbers not yet acknowledged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    pub position: u64,
    /// Number of the first batch here.
    pub first: u64,
    /// Batches of the record before that one: they were acknowledged before a renumbering.
    pub offset: usize,
    pub batches: Box<[BatchSize]>,
    pub first_ns: i64,
    pub last_ns: i64,
}

impl Entry {
    pub(crate) fn last(&self) -> u64 {
        self.first + self.batches.len() as u64 - 1
    }

    /// Takes its numbers above `base` away.
    pub(super) fn cut(&mut self, base: u64) {
        let kept = (base + 1).saturating_sub(self.first).min(self.batches.len() as u64) as usize;
        self.batches = self.batches[..kept].into();
    }

    /// Takes `base` off its numbers; batches that have none then are left out.
    pub(crate) fn shift(&mut self, base: u64) {
        let gone = (base + 1).saturating_sub(self.first).min(self.batches.len() as u64) as usize;
        self.batches = self.batches[gone..].into();
        self.offset += gone;
        self.first = self.first + gone as u64 - base;
    }
}

/// Numbers that will never be sent, and what was in them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tombstone {
    /// First number.
    pub from: u64,
    /// Last number.
    pub to: u64,
    /// Where it was lost.
    pub stage: LossStage,
    /// Why.
    pub reason: LossReason,
    /// Rows; `None` when unknown.
    pub events: Option<u64>,
    /// Encoded bytes; `None` when unknown.
    pub bytes: Option<u64>,
    /// Earliest time in it, Unix nanoseconds; 0 when unknown.
    pub first_ns: i64,
    /// Latest time in it, Unix nanoseconds; 0 when unknown.
    pub last_ns: i64,
}

/// One run of numbers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Epoch {
    pub id: Id,
    /// The journal that numbers of it may have arrived at: they go to no other. `None`: nothing was sent.
    pub journal: Option<Id>,
    pub acked: u64,
    /// Numbers up to this one may have arrived.
    pub sent: u64,
    pub next: u64,
    /// By number. A tombstone wins over a batch of the same number.
    pub entries: VecDeque<Entry>,
    /// By number, without overlap.
    pub tombstones: VecDeque<Tombstone>,
}

/// A count of numbers, of their rows and of their encoded bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Amount {
    /// Numbers.
    pub batches: u64,
    /// Rows.
    pub events: u64,
    /// Encoded bytes.
    pub bytes: u64,
}

impl Epoch {
    pub(crate) fn new(id: Id) -> Self {
        Self {
            id,
            journal: None,
            acked: 0,
            sent: 0,
            next: 1,
            entries: VecDeque::new(),
            tombstones: VecDeque::new(),
        }
    }

    pub(crate) fn last(&self) -> u64 {
        self.next - 1
    }

    pub(crate) fn is_done(&self) -> bool {
        self.acked == self.last()
    }

    /// Whether a number is in a tombstone.
    pub(crate) fn is_dropped(&self, number: u64) -> bool {
        self.tombstone_at(number).is_some()
    }

    pub(super) fn tombstone_at(&self, number: u64) -> Option<&Tombstone> {
        let place = self.tombstones.partition_point(|tombstone| tombstone.to < number);
        self.tombstones.get(place).filter(|tombstone| tombstone.from <= number)
    }

    pub(super) fn between(&self, positions: &Range<u64>) -> impl Iterator<Item = &Entry> {
        let from = self.entries.partition_point(|entry| entry.position < positions.start);
        self.entries.range(from..).take_while(|entry| entry.position < positions.end)
    }

    /// Notes the loss of what waits in an entry, run by run between what is buried already.
    pub(super) fn bury_entry(&mut self, entry: &Entry, stage: LossStage, reason: LossReason) -> Amount {
        let Entry { first_ns, last_ns, .. } = *entry;
        let mut lost = Amount::default();
        let mut run: Option<Tombstone> = None;
        for (number, size) in (entry.first..).zip(&entry.batches) {
            if number <= self.acked || self.is_dropped(number) {
                run.take().into_iter().for_each(|run| self.bury(run));
                continue;
            }
            lost.add(size.amount());
            let (events, bytes) = (u64::from(size.events), u64::from(size.bytes));
            match &mut run {
                Some(run) => {
                    run.to = number;
                    run.events = run.events.map(|sum| sum + events);
                    run.bytes = run.bytes.map(|sum| sum + bytes);
                }
                None => {
                    let (events, bytes) = (Some(events), Some(bytes));
                    run = Some(Tombstone {
                        from: number,
                        to: number,
                        stage,
                        reason,
                        events,
                        bytes,
                        first_ns,
                        last_ns,
                    });
                }
            }
        }
        run.into_iter().for_each(|run| self.bury(run));
        lost
    }

    /// Notes a loss. It is joined to the one before it if that has the same cause and cannot have been sent yet:
    /// what was sent never changes.
    pub(crate) fn bury(&mut self, tombstone: Tombstone) {
        let place = self.tombstones.partition_point(|other| other.to < tombstone.from);
        if let Some(before) = place.checked_sub(1).and_then(|place| self.tombstones.get_mut(place)) {
            let alike = (before.stage, before.reason) == (tombstone.stage, tombstone.reason);
            if alike && before.to + 1 == tombstone.from && before.to > self.sent {
                before.to = tombstone.to;
                before.events = before.events.zip(tombstone.events).map(|(a, b)| a + b);
                before.bytes = before.bytes.zip(tombstone.bytes).map(|(a, b)| a + b);
                before.first_ns = match (before.first_ns, tombstone.first_ns) {
                    // 0 is unknown, not 1970.
                    (0, known) | (known, 0) => known,
                    (a, b) => a.min(b),
                };
                before.last_ns = before.last_ns.max(tombstone.last_ns);
                return;
            }
        }
        self.tombstones.insert(place, tombstone);
    }
}

impl BatchSize {
    pub(super) fn amount(self) -> Amount {
        Amount { batches: 1, events: u64::from(self.events), bytes: u64::from(self.bytes) }
    }
}

impl Amount {
    pub(crate) fn add(&mut self, other: Self) {
        let Self { batches, events, bytes } = other;
        self.batches += batches;
        self.events += events;
        self.bytes += bytes;
    }

    pub(super) fn subtract(&mut self, other: Self) {
        let Self { batches, events, bytes } = other;
        self.batches = self.batches.saturating_sub(batches);
        self.events = self.events.saturating_sub(events);
        self.bytes = self.bytes.saturating_sub(bytes);
    }
}

/// All of some batches.
pub(crate) fn amount(batches: &[BatchSize]) -> Amount {
    let mut sum = Amount::default();
    batches.iter().for_each(|size| sum.add(size.amount()));
    sum
}
