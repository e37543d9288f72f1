//! The spool against models of three aggregators that take over from each other, through crashes and small budgets:
//! what arrived at one is never given to another.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::Duration;

use proptest::prelude::*;
use tempfile::TempDir;
use weir_schema::values::LossReason;

use super::ledger::Ledger;
use super::record::SavedKey;
use super::state::{SavedEpoch, State, StateFile};
use super::*;
use crate::metrics::Metrics;

const NAMES: [&str; 3] = ["a", "b", "c"];
const SOURCE: Id = [7; 16];

fn journal_of(index: usize) -> Id {
    [index as u8 + 1; 16]
}

/// Aggregators that keep to the rules and notice when the shipper does not.
#[derive(Default)]
struct Cluster {
    last: HashMap<(usize, Id), u64>,
    /// Where each batch is, by the id in its payload.
    holder: BTreeMap<u64, usize>,
    events: u64,
    skipped: u64,
}

impl Cluster {
    fn last(&self, index: usize, epoch: &Id) -> u64 {
        self.last.get(&(index, *epoch)).copied().unwrap_or(0)
    }

    fn receive(&mut self, index: usize, epoch: Id, outgoing: &Outgoing) -> u64 {
        let last = self.last.entry((index, epoch)).or_default();
        match outgoing {
            Outgoing::Batches(batches) => {
                let journaled = *last;
                for batch in batches.iter().filter(|batch| batch.number > journaled) {
                    assert_eq!(batch.number, *last + 1, "a gap without a skip");
                    *last = batch.number;
                    let id = u64::from_le_bytes(batch.payload[..8].try_into().unwrap());
                    let before = self.holder.insert(id, index);
                    assert_eq!(before, None, "batch {id} came to {index} too");
                    self.events += u64::from(batch.events);
                }
            }
            Outgoing::Skip(skip) => {
                assert_eq!(skip.from, *last + 1, "a skip out of order");
                *last = skip.to;
                self.skipped += skip.events.unwrap();
            }
            Outgoing::End => {}
        }
        *last
    }
}

/// A spool, the streams that are open, and what is around them.
struct World {
    _dir: TempDir,
    options: SpoolOptions,
    metrics: Metrics,
    spool: Option<Spool>,
    streams: [Option<(Id, u64)>; 3],
    cluster: Cluster,
    interval: u64,
    batches: u64,
    events: u64,
}

impl World {
    fn new(bytes_max: u64) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let options = SpoolOptions { dir: dir.path().join("spool"), bytes_max, segment_bytes: 2048 };
        let mut world = Self {
            _dir: dir,
            options,
            metrics: Metrics::default(),
            spool: None,
            streams: [None; 3],
            cluster: Cluster::default(),
            interval: 0,
            batches: 0,
            events: 0,
        };
        world.open();
        world
    }

    fn open(&mut self) {
        self.spool = None;
        self.streams = [None; 3];
        self.metrics = Metrics::default();
        let names = NAMES.map(str::to_owned);
        self.spool = Some(Spool::open_for(self.options.clone(), &names, self.metrics.clone()).unwrap());
    }

    fn outbox(&self, index: usize) -> Outbox {
        self.spool.as_ref().unwrap().outbox().of(NAMES[index])
    }

    fn append(&mut self, sizes: &[usize]) {
        let batches: Vec<EncodedBatch> = sizes.iter().map(|size| self.batch(*size)).collect();
        let key = CaptureKey { source: SOURCE, interval: self.interval };
        self.interval += 1;
        self.spool.as_mut().unwrap().append(key, &batches).unwrap();
    }

    fn batch(&mut self, size: usize) -> EncodedBatch {
        let id = self.batches;
        self.batches += 1;
        let events = 1 + (id % 3) as u32;
        self.events += u64::from(events);
        let mut payload = id.to_le_bytes().to_vec();
        payload.resize(size.max(8), id as u8);
        EncodedBatch { payload: payload.into(), events, first_ns: id as i64, last_ns: id as i64 }
    }

    /// Goes on with the stream to an aggregator, or opens one: up to `count` records or skips. Returns whether
    /// anything was sent.
    fn send(&mut self, index: usize, role: Role, count: usize, acked: bool) -> bool {
        let outbox = self.outbox(index);
        let mut sent = false;
        for _ in 0..count {
            let (epoch, number) = match self.streams[index] {
                Some(stream) => stream,
                None => {
                    let Some(head) = outbox.head_for(role) else { return sent };
                    let last = self.cluster.last(index, &head.epoch);
                    assert!(head.first_number <= last + 1, "the aggregator does not know this epoch");
                    let welcomed = outbox.welcome(&head.epoch, journal_of(index), last).unwrap();
                    if role == Role::Chosen {
                        outbox.prefer().unwrap();
                    }
                    match welcomed {
                        Welcomed::From(next) if !head.probe => (head.epoch, next),
                        Welcomed::From(_) | Welcomed::NotOurs => continue,
                        other => panic!("{other:?}"),
                    }
                }
            };
            self.streams[index] = Some((epoch, number));
            let Some(outgoing) = outbox.next(&epoch, number, Duration::ZERO).unwrap() else { break };
            if outgoing == Outgoing::End {
                self.streams[index] = None;
                continue;
            }
            sent = true;
            let last = self.cluster.receive(index, epoch, &outgoing);
            self.streams[index] = Some((epoch, last + 1));
            if acked {
                outbox.ack(&epoch, last).unwrap();
            }
        }
        self.check();
        sent
    }

    fn check(&self) {
        let inner = self.spool.as_ref().unwrap().outbox.lock();
        let ledger = &inner.ledger;
        let waits = |e: &epoch::Epoch| (e.acked + 1..e.next).filter(|n| !e.is_dropped(*n)).count() as u64;
        assert_eq!(ledger.pending.batches, ledger.epochs.iter().map(waits).sum::<u64>());
        let ids: BTreeSet<Id> = ledger.epochs.iter().map(|epoch| epoch.id).collect();
        assert_eq!(ids.len(), ledger.epochs.len());
        for epoch in &ledger.epochs {
            assert!(epoch.sent < epoch.next && (epoch.sent == 0 || epoch.journal.is_some()), "{epoch:?}");
            let ordered = epoch.entries.iter().zip(epoch.entries.iter().skip(1));
            assert!(ordered.clone().all(|(a, b)| a.last() < b.first && a.position < b.position), "{epoch:?}");
        }
        drop(inner);
        // `captured + recovered = journaled + dropped + in flight` is the sum of this, over processes.
        assert_eq!(self.metrics.in_flight_batches.get(), {
            self.spool.as_ref().unwrap().outbox.lock().ledger.pending.batches
        });
    }

    fn drain(&mut self, chosen: impl Fn(usize) -> usize) {
        for round in 0..1000 {
            if self.outbox(0).waiting().borrow().numbers == 0 {
                return;
            }
            self.streams = [None; 3];
            for index in 0..3 {
                let role = if index == chosen(round) { Role::Chosen } else { Role::Other };
                self.send(index, role, usize::MAX, true);
            }
        }
        panic!("the spool does not empty: {:?}", self.outbox(0).lock().ledger);
    }

    fn finish(&mut self) {
        self.drain(|round| round % 3);
        // What stands between old and new numbers is forgotten once it is used up.
        for _ in 0..3 {
            self.append(&[20]);
            self.drain(|_| 0);
        }
        let Cluster { events, skipped, .. } = &self.cluster;
        assert_eq!(events + skipped, self.events, "dropped + delivered = sent");
        self.spool.as_mut().unwrap().free().unwrap();
        let inner = self.spool.as_ref().unwrap().outbox.lock();
        assert_eq!((inner.ledger.epochs.len(), inner.ledger.aliases.len()), (1, 0), "{:?}", inner.ledger);
    }
}

#[derive(Clone, Debug)]
enum Step {
    Append(Vec<usize>),
    Send(usize, Role, usize, bool),
    Break(usize),
    Release(usize),
    Crash,
    Free,
}

fn step() -> impl Strategy<Value = Step> {
    let role = prop_oneof![3 => Just(Role::Chosen), 1 => Just(Role::Returning), 1 => Just(Role::Other)];
    prop_oneof![
        6 => proptest::collection::vec(8usize..400, 0..6).prop_map(Step::Append),
        6 => (0usize..3, role, 0usize..5, any::<bool>()).prop_map(|(i, r, c, a)| Step::Send(i, r, c, a)),
        2 => (0usize..3).prop_map(Step::Break),
        3 => (0usize..3).prop_map(Step::Release),
        1 => Just(Step::Crash),
        1 => Just(Step::Free),
    ]
}

fn walk(bytes_max: u64, steps: Vec<Step>) -> World {
    let mut world = World::new(bytes_max);
    for step in steps {
        match step {
            Step::Append(sizes) => world.append(&sizes),
            Step::Send(index, role, count, acked) => drop(world.send(index, role, count, acked)),
            Step::Break(index) => world.streams[index] = None,
            Step::Release(index) => drop(world.outbox(index).release().unwrap()),
            Step::Crash => world.open(),
            Step::Free => world.spool.as_mut().unwrap().free().unwrap(),
        }
        world.check();
    }
    world.finish();
    world
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn nothing_is_lost_or_at_two_places(steps in proptest::collection::vec(step(), 1..60)) {
        let world = walk(1 << 20, steps);
        assert_eq!(world.cluster.skipped, 0);
        assert_eq!(world.cluster.holder.len() as u64, world.batches);
    }

    #[test]
    fn with_a_small_budget_what_is_dropped_is_counted(steps in proptest::collection::vec(step(), 1..80)) {
        walk(6_000, steps);
    }
}

#[test]
fn what_was_never_sent_goes_on_and_the_rest_waits() {
    let mut world = World::new(1 << 20);
    for _ in 0..30 {
        world.append(&[20, 20, 20]);
    }
    // One record is sent; the mark covers 64 numbers more: one record is divided by it.
    world.send(0, Role::Chosen, 1, false);
    let released = world.outbox(0).release().unwrap();
    assert_eq!((released.kept, released.released), (67, 23));
    assert_eq!(world.outbox(0).release().unwrap(), Released { kept: 67, released: 0 });
    assert_eq!(world.outbox(1).head_for(Role::Other), None);
    while world.send(1, Role::Chosen, 1, true) {}
    assert_eq!(world.cluster.holder.len(), 3 + 23);
    world.append(&[20]);
    world.open();
    // Acknowledgements are not synced: the Welcome says them again.
    assert_eq!(world.outbox(0).waiting().borrow().numbers, 67 + 23 + 1);
    world.send(1, Role::Other, 1, true);
    // The first one is back: what may have arrived is delivered, and what is captured goes there again.
    world.send(0, Role::Chosen, usize::MAX, true);
    world.append(&[20]);
    world.send(0, Role::Chosen, usize::MAX, true);
    world.send(1, Role::Other, usize::MAX, true);
    let at = |index| world.cluster.holder.values().filter(|holder| **holder == index).count();
    assert_eq!((at(0), at(1)), (67 + 1, 23 + 1));
    world.finish();
}

#[test]
fn a_batch_that_is_appended_meanwhile_is_found() {
    let (old, new, other) = ([1; 16], [2; 16], [9; 16]);
    let mut ledger = Ledger::new(old);
    let entry = |position, first| Entry {
        position,
        first,
        offset: 0,
        batches: vec![BatchSize { events: 1, bytes: 10 }; 2].into(),
        first_ns: 0,
        last_ns: 0,
    };
    ledger.push(old, entry(0, 1));
    ledger.reserve(&old, 2, 0, Some(other));
    // The writer took number 3 of the old epoch before; the epoch ends, and is even gone, before it says so.
    ledger.aliases.push(ledger::Alias { from: old, base: 2, end: u64::MAX, to: new });
    ledger.epochs.push_back(epoch::Epoch::new(new));
    ledger.ack(&old, 2).unwrap();
    assert_eq!(ledger.epochs.len(), 1);
    ledger.push(old, entry(1, 3));
    assert_eq!((ledger.epochs[0].next, ledger.pending.batches), (3, 2));
    let parts = ledger.parts(old, 2, 3);
    let places: Vec<_> = parts.iter().map(|part| (part.epoch, part.first, part.offset, part.count)).collect();
    assert_eq!(places, [(old, 2, 0, 1), (new, 1, 1, 2)]);
}

#[test]
fn one_aggregator_under_two_names_gets_nothing_twice() {
    let mut world = World::new(1 << 20);
    world.append(&[20]);
    world.send(0, Role::Chosen, 1, false);
    let outbox = world.outbox(1);
    let head = outbox.head_for(Role::Chosen).unwrap();
    let welcomed = outbox.welcome(&head.epoch, journal_of(0), 0).unwrap();
    assert_eq!(welcomed, Welcomed::SameAs { aggregator: "a".to_owned() });
    // Under a new name alone it is the same one.
    world.spool = None;
    let renamed = ["z".to_owned(), "b".to_owned()];
    let spool = Spool::open_for(world.options.clone(), &renamed, Metrics::default()).unwrap();
    let outbox = spool.outbox();
    assert_eq!(outbox.unclaimed(), [("a".to_owned(), 1)]);
    let probe = outbox.head_for(Role::Chosen).unwrap();
    assert!(probe.probe && probe.journal.is_none());
    assert_eq!(outbox.welcome(&probe.epoch, journal_of(0), 0).unwrap(), Welcomed::From(1));
    assert_eq!((outbox.unclaimed(), outbox.head().probe), (vec![], false));
}

#[test]
fn a_lost_journal_is_that_of_one_aggregator() {
    let mut world = World::new(1 << 20);
    world.append(&[20]);
    world.send(0, Role::Chosen, 1, false);
    world.outbox(0).release().unwrap();
    world.append(&[20]);
    world.send(1, Role::Chosen, 1, false);
    world.spool = None;
    let names = NAMES.map(str::to_owned);
    let rebind = |of| crate::rebind::rebind_of(world.options.clone(), &names, of, None);
    assert!(rebind(None).unwrap_err().to_string().contains("a, b, c"));
    let done = rebind(Some("a")).unwrap();
    assert_eq!((done.from, done.to), (Some(journal_of(0)), None));
    world.open();
    assert_eq!(world.outbox(0).aggregators(), BTreeMap::from([("b".to_owned(), journal_of(1))]));
    assert_eq!(world.outbox(1).head_for(Role::Other).unwrap().last_number, 2, "its own, and what says so");
    assert_eq!(world.outbox(2).head_for(Role::Chosen).unwrap().last_number, 1);
}

#[test]
fn a_state_of_version_1_is_that_of_the_first_aggregator() {
    let mut world = World::new(1 << 20);
    for _ in 0..3 {
        world.append(&[20]);
    }
    let (shipper, epoch) = {
        let inner = world.spool.as_ref().unwrap().outbox.lock();
        (inner.shipper, inner.ledger.epochs[0].id)
    };
    world.spool = None;
    let bytes = |id: &Id| bytes::Bytes::copy_from_slice(id);
    let path = world.options.dir.join("state");
    std::fs::remove_file(&path).unwrap();
    let (mut file, _) = StateFile::open(&path).unwrap();
    let saved = SavedEpoch { epoch: bytes(&epoch), acked: 0, sent: 2, next: 4, journal: bytes::Bytes::new() };
    let state = State {
        shipper: bytes(&shipper),
        journal: bytes(&journal_of(0)),
        epochs: vec![saved],
        dropped_key: None::<SavedKey>,
        ..State::default()
    };
    file.save(&state).unwrap();
    drop(file);
    // As the older version wrote it.
    let raw = std::fs::OpenOptions::new().write(true).open(&path).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&raw, b"WEIRSPS1", 256 * 1024).unwrap();
    world.open();
    assert_eq!(world.outbox(0).aggregators(), BTreeMap::from([("a".to_owned(), journal_of(0))]));
    assert_eq!(world.outbox(0).release().unwrap(), Released { kept: 2, released: 1 });
    assert!(world.metrics.epochs.get(&[("reason", "lost_state")]).is_none());
    world.finish();
    assert_eq!(world.metrics.dropped_events_of(LossReason::Corrupt), 0);
}
