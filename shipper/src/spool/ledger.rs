//! Which numbers exist, and what is to become of each: the sequence rules, in memory, without IO.
//!
//! Every number of an epoch from 1 up to the next is in exactly one of four states: acknowledged, in a record that
//! waits, dropped (in a tombstone that waits to be sent as a skip), or not yet given out. Owned by the spool's lock;
//! writer and client go through it. Its model is in `tests/model.rs`.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Range;

use weir_schema::values::{LossReason, LossStage};

use super::epoch::{Amount, Entry, Epoch, Tombstone, amount};
use super::record::Id;

/// Numbers of `from` above `base`, up to `end`, are numbers of `to`, less `base`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Alias {
    pub from: Id,
    pub base: u64,
    /// `u64::MAX` for an epoch that still grew: a record may be on its way to it.
    pub end: u64,
    pub to: Id,
}

/// Where batches of a record are now: `count` of them, the first being number `first` of `epoch`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Part {
    pub epoch: Id,
    pub first: u64,
    /// Batches of the record before these.
    pub offset: usize,
    pub count: usize,
}

/// An epoch's mark before it was moved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Reservation {
    pub sent: u64,
    pub journal: Option<Id>,
}

/// What comes after a number in an epoch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Next {
    /// The batch stands in the record at `position`, in place `index`.
    Batch { position: u64, index: usize },
    /// A skip is to be sent.
    Skip(Tombstone),
    /// Nothing yet; later perhaps.
    Nothing,
    /// Nothing ever: the epoch ended.
    End,
}

/// An aggregator acknowledged what was never given out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("number {number} is beyond the last one, {last}")]
pub struct BeyondLast {
    /// What it said.
    pub number: u64,
    /// The last that exists.
    pub last: u64,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Ledger {
    /// Oldest first, never empty; the last is the current one.
    pub epochs: VecDeque<Epoch>,
    pub aliases: Vec<Alias>,
    /// The journal of each aggregator that was met, by the aggregator's name.
    pub journals: BTreeMap<String, Id>,
    /// What waits in records; tombstones are not in it.
    pub pending: Amount,
}

impl Ledger {
    pub(crate) fn new(epoch: Id) -> Self {
        let epochs = VecDeque::from([Epoch::new(epoch)]);
        Self { epochs, aliases: Vec::new(), journals: BTreeMap::new(), pending: Amount::default() }
    }

    /// The epoch that new batches get their numbers in.
    pub(crate) fn current(&mut self) -> &mut Epoch {
        if self.epochs.is_empty() {
            // Not reached: nothing removes the last one. A new epoch is right even so.
            self.epochs.push_back(Epoch::new(weir_common::id::random_id()));
        }
        let last = self.epochs.len() - 1;
        &mut self.epochs[last]
    }

    pub(crate) fn epoch(&self, id: &Id) -> Option<&Epoch> {
        self.epochs.iter().find(|epoch| epoch.id == *id)
    }

    pub(super) fn epoch_mut(&mut self, id: &Id) -> Option<&mut Epoch> {
        self.epochs.iter_mut().find(|epoch| epoch.id == *id)
    }

    /// Where a number of a record is now.
    pub(crate) fn resolve(&self, mut epoch: Id, mut number: u64) -> (Id, u64) {
        // An alias leads to an epoch that was made after its own, so the way is no longer than the list.
        for _ in 0..=self.aliases.len() {
            let covers = |alias: &&Alias| alias.from == epoch && alias.base < number && number <= alias.end;
            match self.aliases.iter().find(covers) {
                Some(alias) => (epoch, number) = (alias.to, number - alias.base),
                None => break,
            }
        }
        (epoch, number)
    }

    /// Where the batches of a record are now that was appended under `(epoch, first)`.
    pub(crate) fn parts(&self, epoch: Id, first: u64, count: usize) -> Vec<Part> {
        let mut parts: Vec<Part> = Vec::new();
        for (offset, number) in (first..).take(count).enumerate() {
            let (epoch, first) = self.resolve(epoch, number);
            match parts.last_mut() {
                Some(part) if part.epoch == epoch && part.first + part.count as u64 == first => {
                    part.count += 1;
                }
                _ => parts.push(Part { epoch, first, offset, count: 1 }),
            }
        }
        parts
    }

    /// Takes in a record that was just appended under `(epoch, first)` and synced.
    pub(crate) fn push(&mut self, epoch: Id, mut entry: Entry) {
        if self.epochs.back().is_some_and(|last| last.id == epoch) {
            self.close_aliases();
        }
        let (epoch, first) = self.resolve(epoch, entry.first);
        entry.first = first;
        let amount = amount(&entry.batches);
        let Some(epoch) = self.epoch_mut(&epoch) else { return };
        epoch.next = entry.last() + 1;
        epoch.entries.push_back(entry);
        self.pending.add(amount);
    }

    /// What is to be sent for `number`.
    pub(crate) fn next(&self, id: &Id, number: u64) -> Next {
        let Some(epoch) = self.epoch(id) else { return Next::End };
        if number >= epoch.next {
            let current = self.epochs.back().is_some_and(|last| last.id == *id);
            return if current { Next::Nothing } else { Next::End };
        }
        if let Some(tombstone) = epoch.tombstone_at(number) {
            return Next::Skip(tombstone.clone());
        }
        let place = epoch.entries.partition_point(|entry| entry.last() < number);
        match epoch.entries.get(place).filter(|entry| entry.first <= number) {
            Some(entry) => {
                let index = entry.offset + (number - entry.first) as usize;
                Next::Batch { position: entry.position, index }
            }
            // Not reached: recovery buries every hole. To wait is harmless.
            None => Next::Nothing,
        }
    }

    /// All numbers up to this one are journaled. Gives what waited and waits no more.
    pub(crate) fn ack(&mut self, id: &Id, number: u64) -> Result<Amount, BeyondLast> {
        let mut done = Amount::default();
        let Some(epoch) = self.epoch_mut(id) else { return Ok(done) };
        if number > epoch.last() {
            return Err(BeyondLast { number, last: epoch.last() });
        }
        if number <= epoch.acked {
            return Ok(done);
        }
        for entry in &epoch.entries {
            if entry.first > number {
                break;
            }
            for (number_of, size) in (entry.first..=number).zip(&entry.batches) {
                if number_of > epoch.acked && !epoch.is_dropped(number_of) {
                    done.add(size.amount());
                }
            }
        }
        epoch.acked = number;
        epoch.sent = epoch.sent.max(number);
        while epoch.entries.front().is_some_and(|entry| entry.last() <= number) {
            epoch.entries.pop_front();
        }
        while epoch.tombstones.front().is_some_and(|tombstone| tombstone.to <= number) {
            epoch.tombstones.pop_front();
        }
        if let Some(tombstone) = epoch.tombstones.front_mut().filter(|tombstone| tombstone.from <= number) {
            // Some of it had arrived after all; how much of the count that was is not known.
            tombstone.from = number + 1;
            (tombstone.events, tombstone.bytes) = (None, None);
        }
        self.pending.subtract(done);
        self.drop_done();
        Ok(done)
    }

    /// The journal holds less than it acknowledged before: the numbers between are lost there, and are said to be.
    /// Returns whether that was so. When they were is not known: `now_ns` stands for it.
    pub(crate) fn rewind(&mut self, id: &Id, journaled: u64, now_ns: i64) -> bool {
        let Some(epoch) = self.epoch_mut(id).filter(|epoch| epoch.acked > journaled) else { return false };
        let (from, to) = (journaled + 1, epoch.acked);
        epoch.acked = journaled;
        epoch.tombstones.push_front(Tombstone {
            from,
            to,
            stage: LossStage::Journal,
            reason: LossReason::Corrupt,
            events: None,
            bytes: None,
            first_ns: now_ns,
            last_ns: now_ns,
        });
        true
    }

    /// Gives the waiting numbers of an epoch to a new one, where they begin at 1.
    pub(crate) fn renumber(&mut self, id: &Id, new: Id) -> Amount {
        let mut moved = Amount::default();
        let grows = self.epochs.back().is_some_and(|last| last.id == *id);
        let Some(epoch) = self.epoch_mut(id) else { return moved };
        let base = epoch.acked;
        let end = if grows { u64::MAX } else { epoch.last() };
        let from = epoch.id;
        epoch.id = new;
        (epoch.acked, epoch.sent, epoch.next) = (0, 0, epoch.next - base);
        for entry in &mut epoch.entries {
            entry.shift(base);
            moved.add(amount(&entry.batches));
        }
        for tombstone in &mut epoch.tombstones {
            (tombstone.from, tombstone.to) = (tombstone.from - base, tombstone.to - base);
        }
        self.aliases.push(Alias { from, base, end, to: new });
        self.forget_aliases();
        moved
    }

    /// Marks numbers up to `number`, and up to `ahead` more, as sent to a journal, which the epoch belongs to from then
    /// on. Gives the mark before if it moved; it never passes what exists, so that a mark beyond the end tells of a lost
    /// tail.
    pub(crate) fn reserve(
        &mut self,
        id: &Id,
        number: u64,
        ahead: u64,
        journal: Option<Id>,
    ) -> Option<Reservation> {
        let epoch = self.epoch_mut(id)?;
        let before = Reservation { sent: epoch.sent, journal: epoch.journal };
        epoch.journal = epoch.journal.or(journal);
        if epoch.sent < number {
            epoch.sent = number.saturating_add(ahead).min(epoch.last());
        }
        (before != Reservation { sent: epoch.sent, journal: epoch.journal }).then_some(before)
    }

    /// Takes a mark back that could not be saved.
    pub(crate) fn unreserve(&mut self, id: &Id, before: Reservation) {
        if let Some(epoch) = self.epoch_mut(id) {
            (epoch.sent, epoch.journal) = (before.sent, before.journal);
        }
    }

    /// Whether an epoch may be sent to a journal: nothing of it may have arrived at another one.
    pub(crate) fn may_go_to(&self, id: &Id, journal: Option<Id>) -> bool {
        self.epoch(id).is_none_or(|epoch| epoch.journal.is_none() || epoch.journal == journal)
    }

    /// The last number after `number` in the same record with no tombstone between.
    pub(crate) fn end_of_run(&self, id: &Id, number: u64) -> u64 {
        let Some(epoch) = self.epoch(id) else { return number };
        let place = epoch.entries.partition_point(|entry| entry.last() < number);
        let end = epoch.entries.get(place).map_or(number, Entry::last);
        let next_loss = epoch.tombstones.iter().map(|tombstone| tombstone.from).find(|from| *from > number);
        next_loss.map_or(end, |from| end.min(from - 1))
    }

    /// Closes the current epoch and opens a new one.
    pub(crate) fn begin(&mut self, new: Id) {
        self.epochs.push_back(Epoch::new(new));
        self.drop_done();
    }

    /// Whether a record at these positions waits, and none of them can have been sent.
    pub(crate) fn never_sent(&self, positions: &Range<u64>) -> bool {
        let mut any = false;
        for epoch in &self.epochs {
            for entry in epoch.between(positions) {
                if entry.first <= epoch.sent {
                    return false;
                }
                any = true;
            }
        }
        any
    }

    /// Buries the records at these positions.
    pub(crate) fn lose(&mut self, positions: &Range<u64>, stage: LossStage, reason: LossReason) -> Amount {
        let mut lost = Amount::default();
        for epoch in &mut self.epochs {
            let (mut kept, mut gone) = (VecDeque::new(), Vec::new());
            for entry in std::mem::take(&mut epoch.entries) {
                if positions.contains(&entry.position) { gone.push(entry) } else { kept.push_back(entry) }
            }
            epoch.entries = kept;
            for entry in &gone {
                lost.add(epoch.bury_entry(entry, stage, reason));
            }
        }
        self.pending.subtract(lost);
        lost
    }

    /// Buries one batch that the aggregator will never take.
    pub(crate) fn reject(&mut self, id: &Id, number: u64) -> Amount {
        let Some(epoch) = self.epoch_mut(id) else { return Amount::default() };
        let place = epoch.entries.partition_point(|entry| entry.last() < number);
        let Some(entry) = epoch.entries.get(place).filter(|entry| entry.first <= number) else {
            return Amount::default();
        };
        let one = Entry {
            first: number,
            batches: entry.batches[(number - entry.first) as usize..][..1].into(),
            ..entry.clone()
        };
        let lost = epoch.bury_entry(&one, LossStage::Delivery, LossReason::Rejected);
        self.pending.subtract(lost);
        lost
    }

    /// Gives numbers to batches that are lost at once.
    pub(crate) fn lose_new(&mut self, mut tombstone: Tombstone, numbers: u64) {
        let epoch = self.current();
        (tombstone.from, tombstone.to) = (epoch.next, epoch.next + numbers - 1);
        epoch.next += numbers;
        epoch.bury(tombstone);
    }

    /// Whether a record at these positions waits.
    pub(crate) fn needs(&self, positions: &Range<u64>) -> bool {
        self.epochs.iter().any(|epoch| epoch.between(positions).next().is_some())
    }

    /// Numbers that wait, tombstones included.
    pub(crate) fn waiting(&self) -> u64 {
        self.epochs.iter().map(|epoch| epoch.last() - epoch.acked).sum()
    }

    /// Those that may have arrived at a journal, or follow such ones in their epoch.
    pub(crate) fn waiting_of(&self, journal: &Id) -> u64 {
        let of = self.epochs.iter().filter(|epoch| epoch.journal == Some(*journal));
        of.map(|epoch| epoch.last() - epoch.acked).sum()
    }

    pub(super) fn drop_done(&mut self) {
        let current = self.epochs.back().map(|last| last.id);
        self.epochs.retain(|epoch| !epoch.is_done() || Some(epoch.id) == current);
        self.forget_aliases();
    }

    fn forget_aliases(&mut self) {
        let needed = |alias: &Alias| self.waits_among(alias.to, 1, alias.end.saturating_sub(alias.base));
        let keep: Vec<bool> = self.aliases.iter().map(needed).collect();
        let mut keep = keep.into_iter();
        self.aliases.retain(|_| keep.next().unwrap_or(true));
    }

    /// Whether any of these numbers waits, wherever it is now, or may still come.
    fn waits_among(&self, id: Id, from: u64, to: u64) -> bool {
        let grows = self.epochs.back().is_some_and(|last| last.id == id);
        if self.epoch(&id).is_some_and(|epoch| {
            from <= epoch.last() && epoch.acked < to.min(epoch.last()) || grows && to > epoch.last()
        }) {
            return true;
        }
        self.aliases.iter().any(|alias| {
            let covers = alias.from == id && alias.base < to && from <= alias.end;
            covers
                && self.waits_among(
                    alias.to,
                    from.max(alias.base + 1) - alias.base,
                    to.min(alias.end) - alias.base,
                )
        })
    }

    /// The writer has come to the current epoch: no record is on its way any more under an older name of it.
    fn close_aliases(&mut self) {
        for index in (0..self.aliases.len()).rev() {
            let Alias { base, end, to, .. } = self.aliases[index];
            if end != u64::MAX {
                continue;
            }
            let next =
                self.aliases[index + 1..].iter().find(|alias| alias.from == to && alias.end != u64::MAX);
            let last = match self.epoch(&to) {
                Some(epoch) => next.map_or(epoch.last(), |next| next.end.max(epoch.last())),
                None => next.map_or(0, |next| next.end),
            };
            self.aliases[index].end = base + last;
        }
    }
}
