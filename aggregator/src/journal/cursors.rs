//! How far each sink is: what the journal may remove, and each sink's balance of events.
//!
//! A sink's own cursor (its manifest) is the truth; it tells the journal here. Owns the count of events per retained
//! record, from which a sink's `in flight` comes, so `journaled = delivered + rejected + skipped + in flight` holds
//! at every moment.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// A sink as the journal sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SinkSpec {
    /// Its name in metrics, logs and loss rows.
    pub name: &'static str,
    /// Whether ingestion waits for it once the journal's budget is spent; else its cursor moves on and what it
    /// missed becomes a loss row.
    pub required: bool,
}

/// Shared handle; cheap to clone.
#[derive(Clone, Default)]
pub struct SinkCursors {
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    moved: Condvar,
}

#[derive(Default)]
struct State {
    sinks: Vec<Sink>,
    events: EventIndex,
}

struct Sink {
    spec: SinkSpec,
    /// The first record that the sink still needs; `None` until it has said so: then it needs all.
    position: Option<u64>,
    counts: SinkCounts,
}

/// A sink's balance since the process began; its backlog of then counts as journaled.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SinkCounts {
    /// Events that the sink was to deliver.
    pub journaled: u64,
    /// Events that are safely in the sink.
    pub delivered: u64,
    /// Events that the sink refused.
    pub rejected: u64,
    /// Events that were passed over.
    pub skipped: u64,
}

/// A sink's name, balance and lag.
#[derive(Clone, Copy, Debug)]
pub struct SinkStatus {
    /// Which sink.
    pub spec: SinkSpec,
    /// Its balance.
    pub counts: SinkCounts,
    /// Records after its cursor.
    pub lag_records: u64,
    /// Their events: what is in flight.
    pub lag_events: u64,
}

impl SinkCursors {
    /// Adds a sink, which holds all records until it says how far it is.
    pub fn register(&self, spec: SinkSpec) {
        self.lock().sinks.push(Sink { spec, position: None, counts: SinkCounts::default() });
    }

    /// Says that `sink` has everything before `position`. Its first call states where it starts; after that, the
    /// events it passes count as delivered. A position behind the last one is ignored.
    pub fn set(&self, sink: &str, position: u64) {
        self.advance(sink, position, |counts, events| counts.delivered += events);
    }

    /// Says that `sink` goes on at `position` and that what it passes is lost to it.
    pub fn skip(&self, sink: &str, position: u64) {
        self.advance(sink, position, |counts, events| counts.skipped += events);
    }

    /// Moves `events` of `sink` from delivered to rejected: the server refused them for good.
    pub fn reject(&self, sink: &str, events: u64) {
        let mut state = self.lock();
        if let Some(sink) = state.sinks.iter_mut().find(|entry| entry.spec.name == sink) {
            sink.counts.rejected += events;
            sink.counts.delivered = sink.counts.delivered.saturating_sub(events);
        }
    }

    fn advance(&self, sink: &str, position: u64, book: impl FnOnce(&mut SinkCounts, u64)) {
        let mut state = self.lock();
        let State { sinks, events } = &mut *state;
        let Some(sink) = sinks.iter_mut().find(|entry| entry.spec.name == sink) else { return };
        match sink.position {
            None => {
                sink.position = Some(position);
                sink.counts.journaled = events.between(position, events.next());
            }
            Some(before) if before < position => {
                book(&mut sink.counts, events.between(before, position));
                sink.position = Some(position);
            }
            Some(_) => return,
        }
        drop(state);
        self.shared.moved.notify_all();
    }

    /// The first position that a required sink still needs; `None` while one has not said, or there is none.
    pub fn slowest_required(&self) -> Option<u64> {
        let state = self.lock();
        let required = state.sinks.iter().filter(|sink| sink.spec.required);
        required.map(|sink| sink.position).min().flatten()
    }

    /// The first position that any sink still needs; `None` while one has not said, or there is none.
    pub fn slowest(&self) -> Option<u64> {
        self.lock().sinks.iter().map(|sink| sink.position).min().flatten()
    }

    /// Whether there is no sink at all.
    pub fn is_empty(&self) -> bool {
        self.lock().sinks.is_empty()
    }

    /// Waits until a sink moved, or for `timeout`.
    pub(super) fn wait_moved(&self, timeout: Duration) {
        let state = self.lock();
        // Waking for nothing is harmless: the caller looks again.
        drop(self.shared.moved.wait_timeout(state, timeout));
    }

    /// Every sink with its balance.
    pub fn status(&self) -> Vec<SinkStatus> {
        let state = self.lock();
        let next = state.events.next();
        state
            .sinks
            .iter()
            .map(|sink| {
                let position = sink.position.unwrap_or(next);
                SinkStatus {
                    spec: sink.spec,
                    counts: sink.counts,
                    lag_records: next.saturating_sub(position),
                    lag_events: state.events.between(position, next),
                }
            })
            .collect()
    }

    /// States how many events the record after the last one has.
    pub(super) fn push_record(&self, events: u64) {
        let mut state = self.lock();
        state.events.push(events);
        for sink in state.sinks.iter_mut().filter(|sink| sink.position.is_some()) {
            sink.counts.journaled += events;
        }
    }

    /// Begins the index at `first`, before any `push_record`.
    pub(super) fn start_at(&self, first: u64) {
        self.lock().events = EventIndex::new(first);
    }

    /// Forgets records before `first`.
    pub(super) fn removed_before(&self, first: u64) {
        self.lock().events.remove_before(first);
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.shared.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Running totals of events by position: 8 bytes per retained record.
struct EventIndex {
    first: u64,
    /// `totals[i]`: events before record `first + i`; one entry more than there are records.
    totals: VecDeque<u64>,
}

impl Default for EventIndex {
    fn default() -> Self {
        Self::new(1)
    }
}

impl EventIndex {
    fn new(first: u64) -> Self {
        Self { first, totals: VecDeque::from([0]) }
    }

    fn next(&self) -> u64 {
        self.first + self.totals.len() as u64 - 1
    }

    fn push(&mut self, events: u64) {
        let before = self.totals.back().copied().unwrap_or_default();
        self.totals.push_back(before + events);
    }

    fn remove_before(&mut self, first: u64) {
        while self.first < first && self.totals.len() > 1 {
            self.totals.pop_front();
            self.first += 1;
        }
    }

    /// Events in records `from..to`, as far as they are retained.
    fn between(&self, from: u64, to: u64) -> u64 {
        let total = |position: u64| {
            let index = position.clamp(self.first, self.next()) - self.first;
            usize::try_from(index).ok().and_then(|index| self.totals.get(index)).copied().unwrap_or_default()
        };
        total(to).saturating_sub(total(from))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PARQUET: SinkSpec = SinkSpec { name: "parquet", required: true };
    const LOKI: SinkSpec = SinkSpec { name: "loki", required: false };

    fn balance(cursors: &SinkCursors, name: &str) -> (SinkCounts, u64) {
        let status = cursors.status().into_iter().find(|status| status.spec.name == name).unwrap();
        let SinkCounts { journaled, delivered, rejected, skipped } = status.counts;
        assert_eq!(journaled, delivered + rejected + skipped + status.lag_events, "{status:?}");
        (status.counts, status.lag_events)
    }

    #[test]
    fn the_balance_holds_through_backlog_delivery_rejection_skip_and_removal() {
        let cursors = SinkCursors::default();
        cursors.register(PARQUET);
        cursors.start_at(5);
        for events in [10, 20, 30] {
            cursors.push_record(events);
        }
        assert_eq!(cursors.slowest_required(), None, "a sink that has not said needs all");
        cursors.set("parquet", 6);
        assert_eq!(balance(&cursors, "parquet").1, 50);
        cursors.push_record(1);
        cursors.set("parquet", 7);
        cursors.reject("parquet", 3);
        cursors.skip("parquet", 8);
        let (counts, lag) = balance(&cursors, "parquet");
        assert_eq!((counts.delivered, counts.rejected, counts.skipped, lag), (17, 3, 30, 1));
        cursors.removed_before(8);
        assert_eq!(balance(&cursors, "parquet").1, 1);
        cursors.set("parquet", 2);
        assert_eq!(cursors.slowest_required(), Some(8), "a cursor never goes back");
    }

    #[test]
    fn only_required_sinks_hold_the_journal_back() {
        let cursors = SinkCursors::default();
        cursors.register(PARQUET);
        cursors.register(LOKI);
        cursors.start_at(1);
        cursors.push_record(1);
        cursors.push_record(1);
        cursors.set("loki", 1);
        cursors.set("parquet", 3);
        assert_eq!((cursors.slowest_required(), cursors.slowest()), (Some(3), Some(1)));
    }
}
