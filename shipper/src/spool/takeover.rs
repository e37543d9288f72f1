//! From one aggregator to another: what was never sent can go to a second choice, what may have arrived cannot.
//!
//! Owns the changes of the ledger that give numbers to another epoch because of where they are to go, and their
//! syncing. When to do so is the client's affair. An epoch belongs to the journal that any of its numbers may have
//! arrived at, so what goes elsewhere gets an epoch of its own; records in the log stay as they are, and an alias says
//! where their batches are now.

use std::collections::BTreeMap;

use weir_common::crash;
use weir_common::id::random_id;

use super::epoch::Epoch;
use super::ledger::{Alias, Ledger};
use super::outbox::{Inner, Outbox, OutboxError, perhaps_doubled};
use super::record::Id;

/// Open epochs at most: beyond, nothing is given to another aggregator. Each has its place in the state file.
const EPOCHS_MAX: usize = 256;

/// What was taken from an aggregator.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Released {
    /// Numbers that wait for another aggregator now.
    pub released: u64,
    /// Numbers that may have arrived, and wait for this one.
    pub kept: u64,
}

impl Ledger {
    /// Gives the numbers of an epoch above `base` to a new one that belongs to nobody, where they begin at 1. A skip is
    /// not divided: it stays whole. `base` is not below the mark.
    fn split(&mut self, id: &Id, base: u64, new: Id) {
        let Some(place) = self.epochs.iter().position(|epoch| epoch.id == *id) else { return };
        let grows = place + 1 == self.epochs.len();
        let epoch = &mut self.epochs[place];
        let base = epoch.tombstone_at(base).map_or(base, |tombstone| tombstone.to);
        let end = if grows { u64::MAX } else { epoch.last() };
        let mut rest = Epoch { next: epoch.next - base, ..Epoch::new(new) };
        epoch.next = base + 1;
        rest.entries = epoch.entries.split_off(epoch.entries.partition_point(|entry| entry.last() <= base));
        if let Some(divided) = rest.entries.front().filter(|entry| entry.first <= base && base > epoch.acked)
        {
            let mut kept = divided.clone();
            kept.cut(base);
            epoch.entries.push_back(kept);
        }
        rest.entries.iter_mut().for_each(|entry| entry.shift(base));
        let buried = epoch.tombstones.partition_point(|tombstone| tombstone.to <= base);
        rest.tombstones = epoch.tombstones.split_off(buried);
        for tombstone in &mut rest.tombstones {
            (tombstone.from, tombstone.to) = (tombstone.from - base, tombstone.to - base);
        }
        self.aliases.push(Alias { from: *id, base, end, to: new });
        self.epochs.insert(place + 1, rest);
    }

    /// Takes from a journal what was never sent to it; what is captured from now on does not go there either. `None`
    /// when there are too many epochs.
    fn release(&mut self, journal: Id) -> Option<Released> {
        let mut released = Released::default();
        let current = self.current().id;
        let mut of = Vec::new();
        for epoch in self.epochs.iter().filter(|epoch| epoch.journal == Some(journal)) {
            let base = epoch.sent.max(epoch.acked);
            released.kept += base - epoch.acked;
            released.released += epoch.last() - base;
            if base < epoch.last() || epoch.id == current {
                of.push((epoch.id, base));
            }
        }
        if of.is_empty() {
            return Some(released);
        }
        if self.epochs.len() + of.len() >= EPOCHS_MAX {
            return None;
        }
        for (id, base) in of {
            match self.epoch_mut(&id) {
                // Nothing of it was ever sent: it can go as it is.
                Some(epoch) if base == 0 => epoch.journal = None,
                _ => self.split(&id, base, random_id()),
            }
        }
        // A stream stays with the epoch that grows: it must end, to come to those that were freed.
        let current = self.current();
        if let (true, id, last) = (current.journal.is_some(), current.id, current.last()) {
            self.split(&id, last, random_id());
        }
        self.drop_done();
        Some(released)
    }

    /// What is captured from now on may go to this journal.
    fn prefer(&mut self, journal: Option<Id>) {
        let current = self.current();
        let (id, last) = (current.id, current.last());
        if current.journal.is_none() || current.journal == journal || self.epochs.len() >= EPOCHS_MAX {
            return;
        }
        self.split(&id, last, random_id());
        self.drop_done();
    }
}

impl Outbox {
    /// The aggregator is out of reach: what was never sent to it may go to another one. Synced.
    pub fn release(&self) -> Result<Released, OutboxError> {
        let mut inner = self.lock();
        let Some(journal) = inner.journal(&self.aggregator) else { return Ok(Released::default()) };
        let mut released = None;
        let changed = self.change(&mut inner, |ledger| released = ledger.release(journal))?;
        let Some(released) = released else {
            tracing::warn!(
                aggregator = &*self.aggregator,
                epochs_max = EPOCHS_MAX,
                "too many epochs are open: what was not sent stays with this aggregator"
            );
            return Ok(Released::default());
        };
        if changed {
            self.shared.metrics.epochs.get_or_create(&[("reason", "takeover")]).inc();
            crash::point("client.released");
        }
        Ok(released)
    }

    /// The aggregator is up and the best choice: what is captured from now on is for it. Synced.
    pub fn prefer(&self) -> Result<(), OutboxError> {
        let mut inner = self.lock();
        let journal = inner.journal(&self.aggregator);
        if self.change(&mut inner, |ledger| ledger.prefer(journal))? {
            self.shared.metrics.epochs.get_or_create(&[("reason", "preferred")]).inc();
            crash::point("client.preferred");
        }
        Ok(())
    }

    /// Names and waiting numbers of aggregators that are not configured any more.
    pub fn unclaimed(&self) -> Vec<(String, u64)> {
        let inner = self.lock();
        let foreign =
            inner.ledger.journals.iter().filter(|(name, _)| !self.shared.aggregators.contains(name));
        let waiting = foreign.map(|(name, journal)| (name.clone(), inner.ledger.waiting_of(journal)));
        waiting.filter(|(_, numbers)| *numbers > 0).collect()
    }

    /// Aggregators that the spool knows, with their journals.
    pub fn aggregators(&self) -> BTreeMap<String, Id> {
        self.lock().ledger.journals.clone()
    }

    /// This aggregator has another journal, or the next one that is met: what waits for it gets new epochs, and a loss
    /// record says that events may be doubled. Synced.
    pub fn rebind(&self, journal: Option<Id>) -> Result<(), OutboxError> {
        let mut inner = self.lock();
        let bound = inner.journal(&self.aggregator);
        self.change(&mut inner, |ledger| {
            // Without a journal and sent: the state was lost, and with it where that went.
            let of = ledger.epochs.iter().filter(|epoch| epoch.journal == bound && epoch.sent > 0);
            for id in of.map(|epoch| epoch.id).collect::<Vec<_>>() {
                ledger.renumber(&id, random_id());
            }
            for epoch in ledger.epochs.iter_mut().filter(|epoch| epoch.journal == bound) {
                epoch.journal = None;
            }
            ledger.lose_new(perhaps_doubled(), 1);
            match journal {
                Some(journal) => ledger.journals.insert(self.aggregator.to_string(), journal),
                None => ledger.journals.remove(&*self.aggregator),
            };
        })?;
        self.shared.metrics.epochs.get_or_create(&[("reason", "rebind")]).inc();
        Ok(())
    }

    /// Notes the journal of an aggregator that had none, synced; or gives the name of the one that has it already.
    pub(super) fn meet(&self, inner: &mut Inner, journal: Id) -> Result<Option<String>, OutboxError> {
        let Self { shared, aggregator } = self;
        let holder = inner.ledger.journals.iter().find(|(_, other)| **other == journal);
        if let Some((name, _)) = holder.filter(|(name, _)| shared.aggregators.contains(name)) {
            return Ok(Some(name.clone()));
        }
        self.change(inner, |ledger| {
            // A name that is not configured and has this journal, or nothing that waits, is done with.
            let done: Vec<String> = ledger
                .journals
                .iter()
                .filter(|(name, other)| {
                    let foreign = !shared.aggregators.contains(name);
                    foreign && (**other == journal || ledger.waiting_of(other) == 0)
                })
                .map(|(name, _)| name.clone())
                .collect();
            for name in done {
                ledger.journals.remove(&name);
            }
            ledger.journals.insert(aggregator.to_string(), journal);
        })?;
        Ok(None)
    }

    /// Changes the ledger and saves it; what could not be saved is undone. Returns whether there was a change.
    fn change(&self, inner: &mut Inner, change: impl FnOnce(&mut Ledger)) -> Result<bool, OutboxError> {
        let before = inner.ledger.clone();
        change(&mut inner.ledger);
        if inner.ledger == before {
            return Ok(false);
        }
        if let Err(error) = inner.save() {
            inner.ledger = before;
            return Err(error.into());
        }
        self.changed(inner);
        Ok(true)
    }
}
