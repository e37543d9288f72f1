//! Which numbers are new: the sequence rules for every epoch of every shipper, and which stream may speak for it.
//!
//! Pure: no IO, no clock, no lock. `registry.rs` holds it behind one lock; the journal's checkpoint and headers rebuild
//! it. A number is *accepted* once it is in the writer's queue and *journaled* once it is synced; a stream that dies
//! between the two leaves its numbers accepted, so that a replay of them is not journaled twice.

use std::collections::HashMap;

use foldhash::fast::RandomState;
use weir_proto::v1::{BatchRange, ShipperState};

use crate::accepted::{Id, Source};

/// The state of all shippers.
#[derive(Debug, Default)]
pub struct Sequences {
    shippers: HashMap<Id, Shipper, RandomState>,
    bounds: Bounds,
    generations: u64,
}

/// How much state may be kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    /// Shippers with state.
    pub shippers_max: usize,
    /// Epochs of one shipper; of more, the one that was silent longest is forgotten.
    pub epochs_max: usize,
    /// Seconds without a batch after which an epoch may be forgotten.
    pub age_s_max: i64,
}

impl Default for Bounds {
    fn default() -> Self {
        Self { shippers_max: 16_384, epochs_max: 8, age_s_max: 90 * 86_400 }
    }
}

#[derive(Debug, Default)]
struct Shipper {
    node: String,
    cluster: String,
    /// The stream that speaks for it: the one with the latest Hello; 0 while there is none.
    generation: u64,
    epochs: Vec<Epoch>,
}

#[derive(Debug)]
struct Epoch {
    id: Id,
    accepted: u64,
    journaled: u64,
    last_seen_s: i64,
}

/// What becomes of an offered unit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It is next: it is accepted now and must be journaled.
    Accept,
    /// A skip that begins below the next number and ends above it: accepted, but what it says it lost is too much.
    AcceptOverlap,
    /// All its numbers were accepted before; nothing is to be done but to acknowledge when they are journaled.
    Duplicate,
    /// A number is missing.
    Gap {
        /// The next one.
        expected: u64,
    },
    /// Nothing is known of the epoch, and this does not begin it.
    UnknownEpoch,
    /// A newer stream speaks for the shipper.
    Superseded,
    /// No more shippers can be kept.
    Full,
}

/// The answer to a Hello.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Greeting {
    /// Names the stream; to be given with everything that it offers.
    pub generation: u64,
    /// The last journaled number of the epoch; 0 when there is none.
    pub journaled: u64,
}

impl Sequences {
    /// Without state.
    pub fn new(bounds: Bounds) -> Self {
        Self { bounds, ..Self::default() }
    }

    /// From the checkpoint of a journal segment.
    pub fn restore(bounds: Bounds, states: Vec<ShipperState>) -> Self {
        let mut sequences = Self::new(bounds);
        for state in states {
            let ShipperState { shipper_id, epoch, last_number, node, cluster, last_seen_s } = state;
            let (Ok(shipper), Ok(epoch)) = (Id::try_from(shipper_id), Id::try_from(epoch)) else { continue };
            let shipper = sequences.shippers.entry(shipper).or_default();
            (shipper.node, shipper.cluster) = (node, cluster);
            shipper.epochs.push(Epoch {
                id: epoch,
                accepted: last_number,
                journaled: last_number,
                last_seen_s,
            });
        }
        sequences
    }

    /// Applies what the header of a journal record says, on recovery.
    pub fn replay(&mut self, range: &BatchRange, seen_s: i64) {
        let ids = (Id::try_from(range.shipper_id.as_slice()), Id::try_from(range.epoch.as_slice()));
        let (Ok(shipper), Ok(epoch)) = ids else { return };
        let bounds = self.bounds;
        let epoch = self.shippers.entry(shipper).or_default().epoch(epoch, seen_s, bounds);
        epoch.journaled = epoch.journaled.max(range.last_number);
        epoch.accepted = epoch.journaled;
        epoch.last_seen_s = epoch.last_seen_s.max(seen_s);
    }

    /// Makes a new stream the one that speaks for the shipper. Leaves no state but for a shipper known before.
    pub fn hello(&mut self, source: Source, node: &str, cluster: &str) -> Greeting {
        self.generations += 1;
        let generation = self.generations;
        let shipper = self.shippers.entry(source.shipper).or_default();
        shipper.generation = generation;
        node.clone_into(&mut shipper.node);
        cluster.clone_into(&mut shipper.cluster);
        let journaled = shipper.find(source.epoch).map_or(0, |epoch| epoch.journaled);
        Greeting { generation, journaled }
    }

    /// The stream `generation` has ended.
    pub fn goodbye(&mut self, shipper: Id, generation: u64) {
        let Some(state) = self.shippers.get_mut(&shipper) else { return };
        if state.generation == generation {
            state.generation = 0;
            if state.epochs.is_empty() {
                self.shippers.remove(&shipper);
            }
        }
    }

    /// Decides on the numbers `first..=last`, `1 <= first <= last`, and takes them if they are accepted.
    pub fn offer(&mut self, source: Source, generation: u64, first: u64, last: u64, now_s: i64) -> Verdict {
        let verdict = self.judge(source, generation, first, last);
        if matches!(verdict, Verdict::Accept | Verdict::AcceptOverlap) {
            let bounds = self.bounds;
            let shipper = self.shippers.entry(source.shipper).or_default();
            let epoch = shipper.epoch(source.epoch, now_s, bounds);
            epoch.accepted = last;
            epoch.last_seen_s = now_s;
        }
        verdict
    }

    /// What `offer` would say; changes nothing.
    pub fn judge(&self, source: Source, generation: u64, first: u64, last: u64) -> Verdict {
        let Some(shipper) = self.shippers.get(&source.shipper) else { return Verdict::Superseded };
        if shipper.generation != generation {
            return Verdict::Superseded;
        }
        let accepted = match shipper.find(source.epoch) {
            Some(epoch) => epoch.accepted,
            None if first > 1 => return Verdict::UnknownEpoch,
            None if shipper.epochs.is_empty() && self.kept() >= self.bounds.shippers_max => {
                return Verdict::Full;
            }
            None => 0,
        };
        if last <= accepted {
            Verdict::Duplicate
        } else if first > accepted + 1 {
            Verdict::Gap { expected: accepted + 1 }
        } else if first <= accepted {
            Verdict::AcceptOverlap
        } else {
            Verdict::Accept
        }
    }

    /// Numbers up to `last` are synced to the journal.
    pub fn journaled(&mut self, source: Source, last: u64) {
        let shipper = self.shippers.get_mut(&source.shipper);
        if let Some(epoch) = shipper.and_then(|shipper| shipper.find_mut(source.epoch)) {
            epoch.journaled = epoch.journaled.max(last);
        }
    }

    /// The state for a checkpoint, without what nobody has needed for too long.
    pub fn checkpoint(&mut self, now_s: i64) -> Vec<ShipperState> {
        let oldest = now_s.saturating_sub(self.bounds.age_s_max);
        self.shippers.retain(|_, shipper| {
            // A clock that was set wrong must not make a connected shipper's numbers unknown.
            let connected = shipper.generation != 0;
            shipper
                .epochs
                .retain(|epoch| connected || epoch.last_seen_s >= oldest || epoch.accepted > epoch.journaled);
            !shipper.epochs.is_empty() || shipper.generation != 0
        });
        let mut states: Vec<ShipperState> = self
            .shippers
            .iter()
            .flat_map(|(id, shipper)| {
                shipper.epochs.iter().filter(|epoch| epoch.journaled > 0).map(move |epoch| ShipperState {
                    shipper_id: id.to_vec(),
                    epoch: epoch.id.to_vec(),
                    last_number: epoch.journaled,
                    node: shipper.node.clone(),
                    cluster: shipper.cluster.clone(),
                    last_seen_s: epoch.last_seen_s,
                })
            })
            .collect();
        states.sort_unstable_by(|a, b| (&a.shipper_id, &a.epoch).cmp(&(&b.shipper_id, &b.epoch)));
        states
    }

    /// Shippers of which something is journaled or queued.
    fn kept(&self) -> usize {
        self.shippers.values().filter(|shipper| !shipper.epochs.is_empty()).count()
    }

    /// Shippers with state.
    pub fn shippers(&self) -> usize {
        self.shippers.len()
    }
}

impl Shipper {
    fn find(&self, id: Id) -> Option<&Epoch> {
        self.epochs.iter().find(|epoch| epoch.id == id)
    }

    fn find_mut(&mut self, id: Id) -> Option<&mut Epoch> {
        self.epochs.iter_mut().find(|epoch| epoch.id == id)
    }

    /// The epoch, made if it is new; then one too many is forgotten, but none with units in the writer's queue.
    fn epoch(&mut self, id: Id, now_s: i64, bounds: Bounds) -> &mut Epoch {
        if let Some(at) = self.epochs.iter().position(|epoch| epoch.id == id) {
            return &mut self.epochs[at];
        }
        if self.epochs.len() >= bounds.epochs_max {
            let idle = self.epochs.iter().enumerate().filter(|(_, epoch)| epoch.accepted == epoch.journaled);
            if let Some((at, _)) = idle.min_by_key(|(_, epoch)| epoch.last_seen_s) {
                self.epochs.remove(at);
            }
        }
        let at = self.epochs.len();
        self.epochs.push(Epoch { id, accepted: 0, journaled: 0, last_seen_s: now_s });
        &mut self.epochs[at]
    }
}

#[cfg(test)]
#[path = "sequence_tests.rs"]
mod tests;
