//! The journal with its writer, on real files: crashes, torn tails, damage and a spent budget, against a model that is
//! the list of what was acknowledged.

use std::fs;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use arrow::array::cast::AsArray;
use arrow::datatypes::UInt64Type;
use prometheus_client::registry::Registry as MetricsRegistry;
use proptest::prelude::*;
use tempfile::TempDir;
use tokio::runtime::Runtime;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use weir_common::admin::Health;
use weir_common::clock;
use weir_proto::v1::{BatchBody, FlowColumns};
use weir_schema::Kind;

use super::damage::LossReporter;
use super::writer::{GroupOptions, Writer, WriterError};
use super::*;
use crate::accepted::{Accepted, Content, Origin, Source};
use crate::enrich::{Snapshot, Sources};
use crate::ingest::check::CheckedBody;
use crate::ingest::limits::Limits;
use crate::ingest::registry::{Registry, Seat};
use crate::ingest::sequence::Verdict;
use crate::metrics::Metrics;

mod aside;
mod largest;

const SINK: SinkSpec = SinkSpec { name: "test", required: true };

/// An open journal with its writer's thread.
struct Bench {
    runtime: Runtime,
    registry: Arc<Registry>,
    reader: JournalReader,
    cursors: SinkCursors,
    health: Health,
    recovery: Recovery,
    id: Id,
    queue: Option<mpsc::Sender<Accepted>>,
    streams_ended: CancellationToken,
    give_up: CancellationToken,
    writer: Option<std::thread::JoinHandle<Result<(), WriterError>>>,
}

impl Bench {
    fn open(dir: &Path, budget_bytes: u64) -> Self {
        let options = JournalOptions {
            dir: dir.to_owned(),
            budget_bytes,
            segment_bytes: 64 << 10,
            tail_bytes: 100_000,
            bounds: Bounds::default(),
        };
        let cursors = SinkCursors::default();
        cursors.register(SINK);
        let Opened { journal, sequences, recovery } =
            Journal::open(&options, cursors.clone(), clock::now_ns() / 1_000_000_000).unwrap();
        let registry = Registry::new(sequences);
        let (reporter, own) = LossReporter::new(journal.id(), "c", "a", dir.join("damage-reported"));
        let (queue, queued) = mpsc::channel(64);
        let (streams_ended, give_up) = (CancellationToken::new(), CancellationToken::new());
        let health = Health::default();
        let (id, reader) = (journal.id(), journal.reader().reporting_to(reporter.clone()));
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let writer = Writer {
            journal,
            queue: queued,
            own,
            reporter,
            registry: Arc::clone(&registry),
            enricher: Arc::new(ArcSwap::from_pointee(Snapshot::new(Sources::default()))),
            group: GroupOptions { rows: 100, bytes: 16 << 20, linger: Duration::ZERO },
            metrics: Metrics::new(&mut MetricsRegistry::default(), &cursors),
            health: health.clone(),
            streams_ended: streams_ended.clone(),
            give_up: give_up.clone(),
        };
        let handle = runtime.handle().clone();
        let writer = Some(std::thread::spawn(move || writer.run(&handle)));
        let queue = Some(queue);
        Self {
            runtime,
            registry,
            reader,
            cursors,
            health,
            recovery,
            id,
            queue,
            streams_ended,
            give_up,
            writer,
        }
    }

    fn seat(&self, shipper: u8) -> Seat {
        self.registry.seat(&origin(shipper))
    }

    fn offer(&self, seat: &Seat, shipper: u8, number: u64) -> Verdict {
        let queue = self.queue.as_ref().unwrap();
        let place = self.runtime.block_on(queue.reserve()).unwrap();
        seat.offer(place, unit(shipper, number), clock::now_ns() / 1_000_000_000)
    }

    fn acknowledged(&self, seat: &mut Seat, number: u64) {
        let reached = seat.journaled.wait_for(|journaled| *journaled >= number);
        self.runtime.block_on(async { tokio::time::timeout(PATIENCE, reached).await }).unwrap().unwrap();
    }

    /// Sends until the writer is paused; gives the last number.
    fn pause(&self, seat: &Seat) -> u64 {
        self.cursors.set(SINK.name, 1);
        let mut sent = 0;
        let deadline = Instant::now() + PATIENCE;
        while self.health.is_ready() {
            assert!(Instant::now() < deadline, "never paused");
            if *seat.journaled.borrow() == sent {
                sent += 1;
                assert_eq!(self.offer(seat, 1, sent), Verdict::Accept);
            }
            std::thread::yield_now();
        }
        sent
    }

    /// Everything that can be read, as (shipper, number); damage is passed over.
    fn contents(&self) -> Vec<(u64, u64)> {
        let mut found = Vec::new();
        let mut position = 1;
        loop {
            match self.reader.try_next(position) {
                Ok(Some(record)) => {
                    for (_, batch) in record.batches.iter().filter(|(kind, _)| *kind == Kind::Flow) {
                        let column = |name: &str| {
                            let column = batch.column_by_name(name).unwrap();
                            column.as_primitive::<UInt64Type>().values().to_vec()
                        };
                        found.extend(column("src_bytes").into_iter().zip(column("record_seq")));
                    }
                    position += 1;
                }
                Ok(None) => return found,
                Err(ReadError::Damaged { resume_at, .. }) => position = resume_at,
                Err(ReadError::Removed { first, .. }) => position = first,
                Err(error) => panic!("{error:?}"),
            }
        }
    }

    /// Ends the writer after what is queued.
    fn close(mut self) {
        self.stop();
    }

    fn stop(&mut self) {
        self.give_up.cancel();
        self.queue = None;
        if let Some(writer) = self.writer.take() {
            writer.join().unwrap().unwrap();
        }
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            self.stop();
        }
    }
}

fn origin(shipper: u8) -> Origin {
    let source = Source { shipper: [shipper; 16], epoch: [9; 16] };
    Origin { source, node: "n".into(), cluster: "c".into() }
}

/// A batch of one flow that says whose it is, padded so that segments are soon full.
fn unit(shipper: u8, number: u64) -> Accepted {
    let text = format!("{shipper}/{number}/").repeat(300).chars().take(3000).collect();
    unit_of(shipper, number, FlowColumns { strings: vec![String::new(), text], ..flow(shipper, number) })
}

/// One flow that says whose it is; its first text is its cgroup.
fn flow(shipper: u8, number: u64) -> FlowColumns {
    FlowColumns {
        rows: 1,
        addresses: vec![1; 16],
        reporter: vec![1],
        vantage: vec![1],
        orientation: vec![1],
        record_seq: vec![number],
        src_bytes: vec![shipper.into()],
        local_cgroup: vec![1],
        ..FlowColumns::default()
    }
}

fn unit_of(shipper: u8, number: u64, flows: FlowColumns) -> Accepted {
    let body = BatchBody { flows: Some(flows), ..BatchBody::default() };
    let body = CheckedBody::check(body, 1, &Limits::default()).unwrap();
    let content = Content::Body(Box::new(body));
    Accepted {
        origin: Arc::new(origin(shipper)),
        first_number: number,
        last_number: number,
        content,
        share: None,
    }
}

fn segments(dir: &Path) -> Vec<PathBuf> {
    let paths = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    let mut paths: Vec<_> = paths.filter(|path| path.extension().is_some_and(|ext| ext == "log")).collect();
    paths.sort();
    paths
}

const PATIENCE: Duration = Duration::from_secs(60);
const PLENTY: u64 = 1 << 40;

#[derive(Clone, Debug)]
enum Step {
    /// A shipper sends so many batches, from where its Welcome says; only the last is waited for.
    Send { shipper: u8, count: u64 },
    /// The process dies and comes back; a torn frame of so many bytes may be left.
    Crash { torn: usize },
    /// The sink has everything.
    Delivered,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        5 => (1..4_u8, 1..30_u64).prop_map(|(shipper, count)| Step::Send { shipper, count }),
        2 => (0..200_usize).prop_map(|torn| Step::Crash { torn }),
        1 => Just(Step::Delivered),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(16) })]

    /// Each acknowledged batch is there once and in order, whatever happened between; only what the sink has may go.
    #[test]
    fn what_is_acknowledged_is_there_once(steps in prop::collection::vec(step(), 1..20)) {
        let dir = TempDir::new().unwrap();
        let mut bench = Bench::open(dir.path(), PLENTY);
        let id = bench.id;
        let mut model: Vec<Vec<u64>> = vec![Vec::new(); 4];
        for step in steps {
            match step {
                Step::Send { shipper, count } => {
                    let mut seat = bench.seat(shipper);
                    let sent = &mut model[usize::from(shipper)];
                    let next = *seat.journaled.borrow() + 1;
                    prop_assert_eq!(next, sent.last().map_or(1, |last| last + 1));
                    for number in next..next + count {
                        prop_assert_eq!(bench.offer(&seat, shipper, number), Verdict::Accept);
                        sent.push(number);
                    }
                    prop_assert_eq!(bench.offer(&seat, shipper, next), Verdict::Duplicate);
                    bench.acknowledged(&mut seat, next + count - 1);
                }
                Step::Crash { torn } => {
                    bench.close();
                    let last = segments(dir.path()).pop().unwrap();
                    let end = fs::metadata(&last).unwrap().len();
                    let file = fs::OpenOptions::new().write(true).open(&last).unwrap();
                    file.write_all_at(&vec![0x5a; torn], end).unwrap();
                    bench = Bench::open(dir.path(), PLENTY);
                    prop_assert_eq!(bench.id, id);
                    prop_assert_eq!(bench.recovery.cut.as_ref().map_or(0, |cut| cut.bytes_lost), torn as u64);
                }
                Step::Delivered => bench.cursors.set(SINK.name, bench.reader.durable_position()),
            }
        }
        let contents = bench.contents();
        for (shipper, sent) in model.iter().enumerate() {
            let found: Vec<u64> =
                contents.iter().filter(|(owner, _)| *owner == shipper as u64).map(|(_, number)| *number).collect();
            // Segments that the sink is past are gone, oldest first.
            prop_assert_eq!(&sent[sent.len() - found.len().min(sent.len())..], &found[..]);
            let nothing_removed = !matches!(bench.reader.try_next(1), Err(ReadError::Removed { .. }));
            prop_assert!(found.len() == sent.len() || !nothing_removed);
        }
    }
}

#[test]
fn a_flipped_byte_costs_its_records_which_are_named_and_counted_once_and_nothing_else() {
    let dir = TempDir::new().unwrap();
    let bench = Bench::open(dir.path(), PLENTY);
    let mut seat = bench.seat(1);
    for number in 1..=200 {
        bench.offer(&seat, 1, number);
        bench.acknowledged(&mut seat, number);
    }
    drop(seat);
    bench.close();
    let first = segments(dir.path()).remove(0);
    assert!(segments(dir.path()).len() > 2, "the test needs sealed segments");
    let middle = fs::metadata(&first).unwrap().len() / 2;
    let file = fs::OpenOptions::new().read(true).write(true).open(&first).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, middle).unwrap();
    file.write_all_at(&[byte[0] ^ 0x10], middle).unwrap();

    for start in 0..2 {
        let bench = Bench::open(dir.path(), PLENTY);
        assert_eq!(
            *bench.seat(1).journaled.borrow(),
            200,
            "sequence state does not need the damaged segment"
        );
        let damaged = &bench.recovery.damaged;
        assert_eq!((damaged.len(), damaged[0].path == first), (1, true), "{damaged:?}");
        assert!(damaged[0].offset <= middle);
        bench.cursors.set(SINK.name, 1);
        let lost = damaged[0].last_position - damaged[0].first_position + 1;
        let found = bench.contents();
        assert_eq!(found.len() as u64, 200 - lost, "all the others are read");
        // The row that says so is journaled once, by whichever start met the damage first.
        let losses = || {
            let records =
                (1..bench.reader.durable_position()).filter_map(|p| bench.reader.try_next(p).ok().flatten());
            records.filter(|record| record.batches.iter().any(|(kind, _)| *kind == Kind::Loss)).count()
        };
        let deadline = Instant::now() + PATIENCE;
        while losses() == 0 && Instant::now() < deadline {
            std::thread::yield_now();
        }
        assert_eq!(losses(), 1, "start {start}");
        bench.close();
    }
}

#[test]
fn one_group_of_large_batches_is_many_records() {
    let dir = TempDir::new().unwrap();
    let bench = Bench::open(dir.path(), PLENTY);
    bench.cursors.set(SINK.name, 1);
    let mut seat = bench.seat(1);
    // More than a group may hold, in fewer rows than one may have.
    let texts: Vec<String> = (0..2500).map(|index| format!("{index:04}").repeat(1000)).collect();
    for number in 1..=3 {
        let flows = FlowColumns { strings: [vec![String::new()], texts.clone()].concat(), ..flow(1, number) };
        let place = bench.runtime.block_on(bench.queue.as_ref().unwrap().reserve()).unwrap();
        assert_eq!(seat.offer(place, unit_of(1, number, flows), 0), Verdict::Accept);
    }
    bench.acknowledged(&mut seat, 3);
    assert_eq!(bench.reader.durable_position(), 4, "10 MB each: no two of them fit 16 MiB");
    assert_eq!(bench.contents().len(), 3);
}

#[test]
fn a_spent_budget_waits_for_the_sink_and_says_so() {
    let dir = TempDir::new().unwrap();
    let bench = Bench::open(dir.path(), 200 << 10);
    let mut seat = bench.seat(1);
    let sent = bench.pause(&seat);
    assert!(bench.health.problems().contains("budget"), "{}", bench.health.problems());
    assert_eq!(*seat.journaled.borrow(), sent - 1, "what does not fit is not acknowledged");
    bench.cursors.set(SINK.name, bench.reader.durable_position());
    bench.acknowledged(&mut seat, sent);
    assert!(bench.health.is_ready());
    let on_disk: u64 = segments(dir.path()).iter().map(|path| fs::metadata(path).unwrap().len()).sum();
    assert!(on_disk <= 200 << 10, "{on_disk} bytes");
}

#[test]
fn a_paused_writer_that_drains_waits_for_its_sink() {
    let dir = TempDir::new().unwrap();
    let mut bench = Bench::open(dir.path(), 200 << 10);
    let mut seat = bench.seat(1);
    let sent = bench.pause(&seat);
    bench.streams_ended.cancel();
    bench.cursors.set(SINK.name, bench.reader.durable_position());
    bench.acknowledged(&mut seat, sent);
    // The bench still holds a sender, as a connection does whose peer does not read.
    bench.writer.take().unwrap().join().unwrap().unwrap();
}

#[test]
fn a_writer_that_gives_up_lets_its_streams_go() {
    let dir = TempDir::new().unwrap();
    let bench = Bench::open(dir.path(), 200 << 10);
    let mut seat = bench.seat(1);
    let sent = bench.pause(&seat);
    bench.give_up.cancel();
    let waiting =
        async { tokio::time::timeout(PATIENCE, seat.journaled.wait_for(|last| *last >= sent)).await };
    assert!(bench.runtime.block_on(waiting).unwrap().is_err(), "it is told that nobody will journal it");
    let mut late = bench.seat(2);
    let waiting = async { tokio::time::timeout(PATIENCE, late.journaled.wait_for(|last| *last >= 1)).await };
    assert!(bench.runtime.block_on(waiting).unwrap().is_err());
}
