//! A spool with what is around it, and an aggregator that keeps to the rules and notices when the shipper does not.

use std::collections::{BTreeMap, HashMap};
use std::fs::{self, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use tempfile::TempDir;

use super::*;

pub(super) const JOURNAL: Id = [9; 16];
pub(super) const SOURCE: Id = [7; 16];

/// An aggregator that keeps to the rules and notices when the shipper does not.
#[derive(Debug, Default)]
pub(super) struct Aggregator {
    pub(super) last: HashMap<Id, u64>,
    pub(super) bytes: HashMap<(Id, u64), Bytes>,
    /// How often each batch was journaled, by the id in its payload.
    pub(super) journaled: BTreeMap<u64, u32>,
    pub(super) events: u64,
    pub(super) skipped: u64,
    pub(super) skips_unknown: u64,
    /// Earliest time of any skip.
    pub(super) skips_since: Option<i64>,
}

impl Aggregator {
    pub(super) fn last(&self, epoch: &Id) -> u64 {
        self.last.get(epoch).copied().unwrap_or(0)
    }

    pub(super) fn receive(&mut self, epoch: Id, outgoing: &Outgoing) -> u64 {
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
pub(super) struct World {
    pub(super) dir: TempDir,
    pub(super) options: SpoolOptions,
    pub(super) metrics: Metrics,
    pub(super) spool: Option<Spool>,
    pub(super) aggregator: Aggregator,
    pub(super) interval: u64,
    pub(super) batches: u64,
    pub(super) events: u64,
}

impl World {
    pub(super) fn new(bytes_max: u64, segment_bytes: u64) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let options = SpoolOptions { dir: dir.path().join("spool"), bytes_max, segment_bytes };
        let metrics = Metrics::default();
        let spool = Some(Spool::open(options.clone(), metrics.clone()).unwrap());
        let aggregator = Aggregator::default();
        Self { dir, options, metrics, spool, aggregator, interval: 0, batches: 0, events: 0 }
    }

    pub(super) fn spool(&mut self) -> &mut Spool {
        self.spool.as_mut().unwrap()
    }

    pub(super) fn close(&mut self) {
        self.spool = None;
    }

    pub(super) fn open(&mut self) {
        self.spool = None;
        self.metrics = Metrics::default();
        self.spool = Some(Spool::open(self.options.clone(), self.metrics.clone()).unwrap());
    }

    pub(super) fn key(&self) -> CaptureKey {
        CaptureKey { source: SOURCE, interval: self.interval }
    }

    pub(super) fn append(&mut self, sizes: &[usize]) -> Appended {
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
    pub(super) fn send(&mut self, count: usize, acked: bool) {
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

    pub(super) fn welcome(&self, outbox: &Outbox, head: &Head) -> u64 {
        let last = self.aggregator.last(&head.epoch);
        match outbox.welcome(&head.epoch, JOURNAL, last).unwrap() {
            Welcomed::From(next) => next,
            other => panic!("{other:?}"),
        }
    }

    pub(super) fn send_all(&mut self) {
        for _ in 0..1000 {
            if self.spool().outbox().waiting().borrow().numbers == 0 {
                return;
            }
            self.send(usize::MAX, true);
        }
        panic!("the spool does not empty: {:?}", self.spool().outbox().lock().ledger);
    }

    /// `captured + recovered = journaled + dropped + in flight`, in this process.
    pub(super) fn check(&mut self) {
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

    pub(super) fn segments(&self) -> Vec<PathBuf> {
        let mut paths: Vec<_> = fs::read_dir(&self.options.dir)
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .filter(|path| path.extension().is_some_and(|extension| extension == "log"))
            .collect();
        paths.sort();
        paths
    }

    pub(super) fn epochs(&mut self) -> Vec<Id> {
        self.spool().outbox().lock().ledger.epochs.iter().map(|epoch| epoch.id).collect()
    }

    pub(super) fn finish(&mut self) {
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

pub(super) fn batch(id: u64, size: usize, events: u32) -> EncodedBatch {
    let mut payload = id.to_le_bytes().to_vec();
    payload.resize(size.max(8), id as u8);
    EncodedBatch { payload: payload.into(), events, first_ns: id as i64, last_ns: id as i64 }
}

pub(super) fn id_of(payload: &[u8]) -> u64 {
    u64::from_le_bytes(payload[..8].try_into().unwrap())
}

pub(super) fn copy_dir(from: &Path, to: &Path) {
    fs::create_dir(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
    }
}

pub(super) fn flip(path: &Path, offset: u64) {
    let file = OpenOptions::new().read(true).write(true).open(path).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, offset).unwrap();
    file.write_all_at(&[byte[0] ^ 0x10], offset).unwrap();
}
