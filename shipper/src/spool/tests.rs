//! The spool against a model of the aggregator, through crashes, torn ends, damage and small budgets.

use std::collections::{BTreeMap, HashMap};
use std::fs::{self, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use proptest::prelude::*;
use tempfile::TempDir;

use super::*;
use crate::metrics::Metrics;

const JOURNAL: Id = [9; 16];
const SOURCE: Id = [7; 16];

/// An aggregator that keeps to the rules and notices when the shipper does not.
#[derive(Debug, Default)]
struct Aggregator {
    last: HashMap<Id, u64>,
    bytes: HashMap<(Id, u64), Bytes>,
    /// How often each batch was journaled, by the id in its payload.
    journaled: BTreeMap<u64, u32>,
    events: u64,
    skipped: u64,
    skips_unknown: u64,
    /// Earliest time of any skip.
    skips_since: Option<i64>,
}

impl Aggregator {
    fn last(&self, epoch: &Id) -> u64 {
        self.last.get(epoch).copied().unwrap_or(0)
    }

    fn receive(&mut self, epoch: Id, outgoing: &Outgoing) -> u64 {
        let last = self.last(&epoch);
        match outgoing {
            Outgoing::Batches(batches) => {
                for batch in batches {
                    let known =
                        self.bytes.entry((epoch, batch.number)).or_insert_with(|| batch.payload.clone());
                    assert_eq!(*known, batch.payload, "the bytes of a number changed");
                    let last = self.last.entry(epoch).or_default();
                    if batch.number <= *last {
                        continue;
                    }
                    assert_eq!(batch.number, *last + 1, "a gap without a skip");
                    *last = batch.number;
                    *self.journaled.entry(id_of(&batch.payload)).or_default() += 1;
                    self.events += u64::from(batch.events);
                }
            }
            Outgoing::Skip(skip) => {
                assert_eq!(skip.from, last + 1, "a skip out of order");
                self.last.insert(epoch, skip.to);
                self.skips_since = self.skips_since.into_iter().chain([skip.first_ns]).min();
                match skip.events {
                    Some(events) => self.skipped += events,
                    None => self.skips_unknown += 1,
                }
            }
            Outgoing::End => {}
        }
        self.last(&epoch)
    }
}

/// A spool with what is around it.
struct World {
    dir: TempDir,
    options: SpoolOptions,
    metrics: Metrics,
    spool: Option<Spool>,
    aggregator: Aggregator,
    interval: u64,
    batches: u64,
    events: u64,
}

impl World {
    fn new(bytes_max: u64, segment_bytes: u64) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let options = SpoolOptions { dir: dir.path().join("spool"), bytes_max, segment_bytes };
        let metrics = Metrics::default();
        let spool = Some(Spool::open(options.clone(), metrics.clone()).unwrap());
        let aggregator = Aggregator::default();
        Self { dir, options, metrics, spool, aggregator, interval: 0, batches: 0, events: 0 }
    }

    fn spool(&mut self) -> &mut Spool {
        self.spool.as_mut().unwrap()
    }

    fn close(&mut self) {
        self.spool = None;
    }

    fn open(&mut self) {
        self.spool = None;
        self.metrics = Metrics::default();
        self.spool = Some(Spool::open(self.options.clone(), self.metrics.clone()).unwrap());
    }

    fn key(&self) -> CaptureKey {
        CaptureKey { source: SOURCE, interval: self.interval }
    }

    fn append(&mut self, sizes: &[usize]) -> Appended {
        let batches: Vec<EncodedBatch> = sizes
            .iter()
            .map(|size| {
                let id = self.batches;
                self.batches += 1;
                let events = 1 + (id % 3) as u32;
                self.events += u64::from(events);
                batch(id, *size, events)
            })
            .collect();
        let key = self.key();
        assert!(!self.spool().holds(key));
        let appended = self.spool().append(key, &batches).unwrap();
        assert!(self.spool().holds(key));
        self.interval += 1;
        self.check();
        appended
    }

    /// One stream: up to `count` records or skips, acknowledged or not.
    fn send(&mut self, count: usize, acked: bool) {
        let outbox = self.spool().outbox();
        let mut head = outbox.head();
        let mut number = self.welcome(&outbox, &head);
        for _ in 0..count {
            let Some(outgoing) = outbox.next(&head.epoch, number, Duration::ZERO).unwrap() else { break };
            if outgoing == Outgoing::End {
                if outbox.head().epoch == head.epoch {
                    assert!(!acked, "an epoch that is done leaves the front");
                    break;
                }
                head = outbox.head();
                number = self.welcome(&outbox, &head);
                continue;
            }
            let last = self.aggregator.receive(head.epoch, &outgoing);
            number = last + 1;
            if acked {
                outbox.ack(&head.epoch, last).unwrap();
            }
        }
        self.check();
    }

    fn welcome(&self, outbox: &Outbox, head: &Head) -> u64 {
        let last = self.aggregator.last(&head.epoch);
        match outbox.welcome(&head.epoch, JOURNAL, last).unwrap() {
            Welcomed::From(next) => next,
            other => panic!("{other:?}"),
        }
    }

    fn send_all(&mut self) {
        for _ in 0..1000 {
            if self.spool().outbox().waiting().borrow().numbers == 0 {
                return;
            }
            self.send(usize::MAX, true);
        }
        panic!("the spool does not empty: {:?}", self.spool().outbox().lock().ledger);
    }

    /// `captured + recovered = journaled + dropped + in flight`, in this process.
    fn check(&mut self) {
        let m = &self.metrics;
        let in_flight = m.in_flight_events.get();
        let pending = self.spool.as_ref().unwrap().outbox.lock().ledger.pending;
        assert_eq!(in_flight, pending.events);
        let numbers: u64 = {
            let inner = self.spool.as_ref().unwrap().outbox.lock();
            let epochs = inner.ledger.epochs.iter();
            let waits = |e: &epoch::Epoch| (e.acked + 1..e.next).filter(|n| !e.is_dropped(*n)).count() as u64;
            epochs.map(waits).sum()
        };
        assert_eq!(pending.batches, numbers);
        let on_disk = self.spool.as_ref().unwrap().log.bytes();
        assert!(on_disk <= self.options.bytes_max, "{on_disk} bytes");
    }

    fn segments(&self) -> Vec<PathBuf> {
        let mut paths: Vec<_> = fs::read_dir(&self.options.dir)
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .filter(|path| path.extension().is_some_and(|extension| extension == "log"))
            .collect();
        paths.sort();
        paths
    }

    fn epochs(&mut self) -> Vec<Id> {
        self.spool().outbox().lock().ledger.epochs.iter().map(|epoch| epoch.id).collect()
    }

    fn finish(&mut self) {
        self.send_all();
        let Aggregator { journaled, events, skipped, .. } = &self.aggregator;
        assert!(journaled.values().all(|times| *times == 1), "doubled: {journaled:?}");
        assert_eq!(events + skipped, self.events, "dropped + delivered = sent");
        assert_eq!(self.metrics.in_flight_events.get(), 0);
        // Acknowledged segments go with the next look.
        self.spool().free().unwrap();
        assert_eq!(self.segments().len(), 1);
    }
}

fn batch(id: u64, size: usize, events: u32) -> EncodedBatch {
    let mut payload = id.to_le_bytes().to_vec();
    payload.resize(size.max(8), id as u8);
    EncodedBatch { payload: payload.into(), events, first_ns: id as i64, last_ns: id as i64 }
}

fn id_of(payload: &[u8]) -> u64 {
    u64::from_le_bytes(payload[..8].try_into().unwrap())
}

fn copy_dir(from: &Path, to: &Path) {
    fs::create_dir(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
    }
}

fn flip(path: &Path, offset: u64) {
    let file = OpenOptions::new().read(true).write(true).open(path).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, offset).unwrap();
    file.write_all_at(&[byte[0] ^ 0x10], offset).unwrap();
}

#[derive(Clone, Debug)]
enum Step {
    Append(Vec<usize>),
    Send(usize, bool),
    Crash,
    TornTail(usize),
    Free,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        5 => proptest::collection::vec(8usize..900, 0..4).prop_map(Step::Append),
        3 => (0usize..6, any::<bool>()).prop_map(|(count, acked)| Step::Send(count, acked)),
        1 => Just(Step::Crash),
        1 => (1usize..300).prop_map(Step::TornTail),
        1 => Just(Step::Free),
    ]
}

fn walk(bytes_max: u64, steps: Vec<Step>) -> World {
    let mut world = World::new(bytes_max, 2048);
    for step in steps {
        match step {
            Step::Append(sizes) => {
                world.append(&sizes);
            }
            Step::Send(count, acked) => world.send(count, acked),
            Step::Crash => {
                world.open();
                let held =
                    world.interval.checked_sub(1).map(|interval| CaptureKey { source: SOURCE, interval });
                assert!(
                    held.is_none_or(|key| world.spool().holds(key)),
                    "a stored interval would be read again"
                );
            }
            Step::TornTail(bytes) => {
                world.close();
                let last = world.segments().pop().unwrap();
                let length = fs::metadata(&last).unwrap().len();
                let file = OpenOptions::new().write(true).open(&last).unwrap();
                file.write_all_at(&vec![0xf7; bytes], length).unwrap();
                let before = world.aggregator.last.len();
                world.open();
                assert!(world.aggregator.last.len() == before);
            }
            Step::Free => world.spool().free().unwrap(),
        }
        world.check();
    }
    world.finish();
    world
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn nothing_is_lost_or_doubled(steps in proptest::collection::vec(step(), 1..40)) {
        let world = walk(1 << 20, steps);
        assert_eq!((world.aggregator.skipped, world.aggregator.skips_unknown), (0, 0));
    }

    #[test]
    fn with_a_small_budget_what_is_dropped_is_counted(steps in proptest::collection::vec(step(), 1..60)) {
        let world = walk(10_000, steps);
        assert_eq!(world.aggregator.skips_unknown, 0);
    }
}

#[test]
fn the_oldest_batches_that_were_never_sent_go_first() {
    let mut world = World::new(20_000, 2048);
    for _ in 0..4 {
        world.append(&[1000]);
    }
    // Two may have arrived; the mark covers what existed then.
    world.send(2, false);
    for _ in 0..60 {
        assert_eq!(world.append(&[1000]), Appended::Stored, "there is always something older to drop");
    }
    let dropped = world.metrics.dropped_events_of(LossReason::Budget);
    assert!(dropped > 0);
    world.finish();
    assert_eq!(world.aggregator.skipped, dropped);
    for id in [0, 1, 2, 3, 63] {
        assert_eq!(world.aggregator.journaled.get(&id), Some(&1), "batch {id}");
    }
    assert_eq!(world.aggregator.journaled.get(&10), None);
}

#[test]
fn when_all_may_have_arrived_the_new_interval_is_dropped_and_not_read_again() {
    let mut world = World::new(20_000, 2048);
    let outbox = world.spool().outbox();
    let epoch = outbox.head().epoch;
    outbox.welcome(&epoch, JOURNAL, 0).unwrap();
    let mut stored = 0;
    while world.append(&[1000]) == Appended::Stored {
        stored += 1;
        let sent = outbox.next(&epoch, stored, Duration::ZERO).unwrap().unwrap();
        world.aggregator.receive(epoch, &sent);
        assert!(stored < 100);
    }
    drop(outbox);
    assert!(stored < 20, "{stored}");
    let key = CaptureKey { source: SOURCE, interval: world.interval - 1 };
    world.open();
    assert!(world.spool().holds(key));
    world.finish();
    assert_eq!(world.aggregator.journaled.len() as u64, stored);
}

#[test]
fn a_record_over_the_budget_is_dropped_counted() {
    let mut world = World::new(20_000, 2048);
    assert_eq!(world.append(&[30_000]), Appended::Dropped);
    assert_eq!(world.append(&[100]), Appended::Stored);
    world.finish();
    assert_eq!((world.aggregator.skipped, world.aggregator.events), (1, 2));
}

#[test]
fn a_flipped_byte_in_a_sealed_segment_is_declared_and_the_rest_delivered() {
    let mut world = World::new(1 << 20, 2048);
    for _ in 0..20 {
        world.append(&[500, 500]);
    }
    world.close();
    let segments = world.segments();
    assert!(segments.len() > 4);
    flip(&segments[2], 600);
    world.open();
    world.send_all();
    assert_eq!(world.aggregator.skips_unknown, 1);
    assert!(world.aggregator.skips_since.is_some_and(|since| since > 1_600_000_000_000_000_000));
    let missing: Vec<u64> = (0..40).filter(|id| !world.aggregator.journaled.contains_key(id)).collect();
    assert_eq!(missing.len(), 2, "one record: {missing:?}");
    assert_eq!(world.epochs().len(), 1);
}

#[test]
fn a_segment_that_cannot_be_used_is_set_aside_and_the_rest_delivered() {
    // A sealed one, and the active one.
    for index in [2, usize::MAX] {
        let mut world = World::new(1 << 20, 2048);
        for _ in 0..10 {
            world.append(&[500, 500]);
        }
        world.close();
        let segments = world.segments();
        let victim = segments.get(index).or(segments.last()).unwrap();
        flip(victim, 9);
        world.open();
        assert!(victim.with_extension("log.damaged").exists());
        world.interval = 50;
        world.append(&[500]);
        world.send_all();
        let missing = (0..21).filter(|id| !world.aggregator.journaled.contains_key(id)).count();
        assert!(missing > 0 && missing <= 4, "{missing} of segment {index}");
        assert!(world.aggregator.journaled.values().all(|times| *times == 1));
        assert_eq!(world.aggregator.journaled.len() + missing, 21);
    }
}

#[test]
fn damage_found_while_sending_is_declared_with_its_count() {
    let mut world = World::new(1 << 20, 2048);
    for _ in 0..10 {
        world.append(&[500, 500]);
    }
    let segments = world.segments();
    flip(&segments[1], 600);
    world.send_all();
    assert_eq!(world.aggregator.skips_unknown, 0);
    assert_eq!(world.aggregator.journaled.len(), 18);
    assert_eq!(world.aggregator.events + world.aggregator.skipped, world.events);
    assert_eq!(world.metrics.dropped_events_of(LossReason::Corrupt), world.aggregator.skipped);
}

#[test]
fn a_lost_tail_begins_a_new_epoch_and_is_declared() {
    let mut world = World::new(1 << 20, 1 << 20);
    let path = world.segments().pop().unwrap();
    let mut lengths = Vec::new();
    for _ in 0..5 {
        world.append(&[500]);
        lengths.push(fs::metadata(&path).unwrap().len());
    }
    let before = world.epochs();
    world.send(2, true);
    world.send(1, false);
    world.close();
    // A disk that forgot what it had synced: exactly at a frame's end, so that no checksum tells.
    let keep = lengths[1];
    OpenOptions::new().write(true).open(&path).unwrap().set_len(keep).unwrap();
    world.open();
    let after = world.epochs();
    assert_eq!(after.len(), 2, "the old epoch still has something to declare");
    assert_eq!(after[0], before[0]);
    world.interval = 20;
    world.append(&[500]);
    world.send_all();
    assert_eq!(world.aggregator.skips_unknown, 1);
    assert!(world.aggregator.journaled.values().all(|times| *times == 1));
}

#[test]
fn without_its_state_everything_is_sent_again_under_its_numbers() {
    let mut world = World::new(1 << 20, 2048);
    for _ in 0..10 {
        world.append(&[500]);
    }
    world.send(3, true);
    world.send(2, false);
    world.close();
    let state = world.options.dir.join("state");
    flip(&state, 30);
    flip(&state, 256 * 1024 + 30);
    world.open();
    world.append(&[500]);
    world.send_all();
    assert!(world.aggregator.journaled.values().all(|times| *times == 1));
    assert_eq!(world.aggregator.journaled.len(), 11);
    assert_eq!(world.aggregator.skips_unknown, 0);
}

#[test]
fn a_spool_that_is_behind_the_journal_takes_a_new_epoch() {
    let mut world = World::new(1 << 20, 2048);
    for _ in 0..3 {
        world.append(&[500]);
    }
    // One is acknowledged; the mark covers the three that exist.
    world.send(1, true);
    for _ in 0..3 {
        world.append(&[500]);
    }
    // A copy of this moment comes back after more was captured and sent.
    world.close();
    let (dir, copy) = (world.options.dir.clone(), world.dir.path().join("copy"));
    copy_dir(&dir, &copy);
    world.open();
    world.append(&[500]);
    world.send_all();
    world.close();
    fs::remove_dir_all(&dir).unwrap();
    copy_dir(&copy, &dir);
    world.open();
    // What is captured meanwhile has the number of another batch in the journal.
    world.append(&[500]);
    let outbox = world.spool().outbox();
    let head = outbox.head();
    assert_eq!((head.last_number, world.aggregator.last(&head.epoch)), (7, 7));
    assert_eq!(outbox.welcome(&head.epoch, JOURNAL, 7).unwrap(), Welcomed::Renumbered);
    world.check();
    let renumbered = outbox.head();
    assert_ne!(renumbered.epoch, head.epoch);
    assert_eq!((renumbered.first_number, renumbered.last_number), (1, 5), "four batches and what says so");
    let skip = outbox.next(&renumbered.epoch, 5, Duration::ZERO).unwrap();
    let Some(Outgoing::Skip(skip)) = skip else { panic!("{skip:?}") };
    assert_eq!((skip.reason, skip.events), (LossReason::Rebind, Some(0)));
    drop(outbox);
    // The numbers stay so over a restart, and new ones follow.
    world.open();
    world.append(&[500]);
    let head = world.spool().outbox().head();
    assert_eq!((head.epoch, head.first_number, head.last_number), (renumbered.epoch, 1, 6));
    world.send_all();
    let times: Vec<u32> = world.aggregator.journaled.values().copied().collect();
    assert_eq!(
        times,
        [1, 1, 1, 2, 2, 2, 1, 1, 1],
        "what was marked as sent is not doubled, and nothing is lost"
    );
}

#[test]
fn part_of_a_record_can_be_acknowledged_before_a_renumbering() {
    let mut world = World::new(1 << 20, 1 << 20);
    world.append(&[100, 100, 100, 100]);
    let outbox = world.spool().outbox();
    let head = outbox.head();
    world.send(0, true);
    let sent = outbox.next(&head.epoch, 1, Duration::ZERO).unwrap().unwrap();
    let Outgoing::Batches(batches) = sent else { panic!("{sent:?}") };
    world.aggregator.receive(head.epoch, &Outgoing::Batches(batches[..2].to_vec()));
    outbox.ack(&head.epoch, 2).unwrap();
    outbox.renumber(&head.epoch, "unknown_epoch").unwrap();
    world.check();
    world.open();
    world.finish();
    assert_eq!(world.aggregator.journaled.len(), 4);
}

#[test]
fn another_journal_gets_nothing_until_the_spool_is_bound_to_it() {
    let mut world = World::new(1 << 20, 2048);
    world.append(&[100, 100]);
    world.send(1, false);
    let outbox = world.spool().outbox();
    let head = outbox.head();
    let welcomed = outbox.welcome(&head.epoch, [8; 16], 0).unwrap();
    assert_eq!(welcomed, Welcomed::OtherJournal { bound: JOURNAL });
    drop(outbox);
    world.close();
    let rebound = crate::rebind::rebind(world.options.clone(), Some([8; 16])).unwrap();
    assert_eq!((rebound.from, rebound.to, rebound.events), (Some(JOURNAL), Some([8; 16]), 3));
    world.open();
    let outbox = world.spool().outbox();
    let head = outbox.head();
    assert_eq!((head.first_number, head.last_number, head.journal), (1, 3, Some([8; 16])));
    assert_eq!(outbox.welcome(&head.epoch, [8; 16], 0).unwrap(), Welcomed::From(1));
    let skip = outbox.next(&head.epoch, 3, Duration::ZERO).unwrap();
    let Some(Outgoing::Skip(skip)) = skip else { panic!("{skip:?}") };
    assert_eq!((skip.reason, skip.events), (LossReason::Rebind, Some(0)));
}

#[test]
fn a_refused_batch_becomes_a_counted_skip() {
    let mut world = World::new(1 << 20, 2048);
    world.append(&[100, 100, 100]);
    let outbox = world.spool().outbox();
    let head = outbox.head();
    world.send(0, true);
    outbox.reject(&head.epoch, 2).unwrap();
    world.check();
    world.open();
    world.finish();
    assert_eq!((world.aggregator.journaled.len(), world.aggregator.skipped), (2, 2));
}

#[test]
fn a_journal_that_went_back_is_told_what_it_lost() {
    let mut world = World::new(1 << 20, 2048);
    for _ in 0..4 {
        world.append(&[100]);
    }
    world.send(3, true);
    let epoch = world.spool().outbox().head().epoch;
    world.aggregator.last.insert(epoch, 1);
    world.send_all();
    assert_eq!(world.aggregator.skips_unknown, 1);
    assert!(world.aggregator.skips_since.is_some_and(|since| since > 1_600_000_000_000_000_000));
    assert_eq!(world.aggregator.last(&epoch), 4);
}

#[test]
fn an_interval_that_the_checkpoint_knows_is_not_read_again() {
    let mut world = World::new(1 << 20, 2048);
    for _ in 0..3 {
        world.append(&[100]);
    }
    let key = CaptureKey { source: SOURCE, interval: 9 };
    world.spool().last_key = Some(key);
    world.spool().roll().unwrap();
    world.open();
    assert_eq!(world.spool().last_key(), Some(key));
    let next = CaptureKey { source: SOURCE, interval: 10 };
    world.spool().append(next, &[]).unwrap();
    world.open();
    assert_eq!(world.spool().last_key(), Some(next));
}

#[test]
fn a_loss_of_unknown_time_is_joined_without_1970() {
    let mut epoch = epoch::Epoch::new([1; 16]);
    for (from, first_ns, last_ns) in [(1, 0, 0), (2, 500, 700), (3, 400, 900), (4, 0, 0)] {
        epoch.next = from + 1;
        let (stage, reason) = (LossStage::Spool, LossReason::Corrupt);
        epoch.bury(Tombstone { from, to: from, stage, reason, events: None, bytes: None, first_ns, last_ns });
    }
    assert_eq!(epoch.tombstones.len(), 1);
    assert_eq!((epoch.tombstones[0].first_ns, epoch.tombstones[0].last_ns), (400, 900));
}

#[test]
fn one_spool_has_one_owner() {
    let world = World::new(1 << 20, 2048);
    let second = Spool::open(world.options.clone(), Metrics::default());
    assert!(matches!(second, Err(SpoolError::Log(LogError::Locked { .. }))), "{second:?}");
    assert!(world.dir.path().exists());
}
