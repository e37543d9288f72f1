//! The thread over a real journal: it delivers everything, waits out a disk that refuses, and says what it passes over.

use std::io::{Read as _, Seek as _, SeekFrom, Write as _};
use std::path::PathBuf;
use std::thread::JoinHandle;

use prometheus_client::registry::Registry;
use prost::Message as _;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use weir_common::log::{Log, LogOptions};
use weir_proto::v1::JournalCheckpoint;
use weir_schema::SCHEMA_VERSION;

use super::*;
use crate::ingest::sequence::Bounds;
use crate::journal::damage::LossReporter;
use crate::journal::{Journal, JournalOptions, LOG_KIND, SinkCursors, SinkSpec, record};

/// A journal with the records `1..next`, a segment for every two.
fn journal(dir: &Path, synthetic: &Synthetic, next: u64) -> (Journal, Vec<PathBuf>) {
    let (mut log, _) = Log::open(dir, LogOptions::new(LOG_KIND, SCHEMA_VERSION)).unwrap();
    for position in 1..next {
        if position % 2 == 1 {
            let checkpoint = JournalCheckpoint {
                journal_id: JOURNAL.to_vec(),
                schema_version: SCHEMA_VERSION,
                next_position: position,
                shippers: Vec::new(),
            };
            log.roll(&checkpoint.encode_to_vec()).unwrap();
        }
        let record = synthetic.record(position);
        let encoded = record::encode(Vec::new(), record.append_time_ns, &record.batches).unwrap();
        assert_eq!(log.append_vectored(&encoded.parts()).unwrap(), position);
    }
    log.sync().unwrap();
    let segments = log.segments().into_iter().map(|segment| segment.path).collect();
    drop(log);
    (open_journal(dir), segments)
}

fn open_journal(dir: &Path) -> Journal {
    let cursors = SinkCursors::default();
    cursors.register(SinkSpec { name: NAME, required: true });
    let options = JournalOptions {
        dir: dir.to_owned(),
        budget_bytes: 1 << 30,
        segment_bytes: 1 << 30,
        tail_bytes: 1 << 20,
        bounds: Bounds::default(),
    };
    Journal::open(&options, cursors, 0).unwrap().journal
}

struct Running {
    thread: JoinHandle<Result<(), TaskError>>,
    trouble: watch::Receiver<Option<String>>,
    shutdown: CancellationToken,
}

fn start(journal: &Journal, config: ParquetConfig) -> Running {
    spawn(journal, ParquetSink::open(config, journal.id()).unwrap().0)
}

fn spawn(journal: &Journal, sink: ParquetSink) -> Running {
    let metrics = ParquetMetrics::register(&mut Registry::default());
    let (trouble, troubled) = watch::channel(None);
    let shutdown = CancellationToken::new();
    let (reader, cursors, end) = (journal.reader(), journal.cursors().clone(), shutdown.clone());
    let thread = std::thread::spawn(move || run(sink, reader, cursors, metrics, trouble, end));
    Running { thread, trouble: troubled, shutdown }
}

/// Delivered, skipped and in flight.
fn balance(journal: &Journal) -> (u64, u64, u64) {
    let status = &journal.cursors().status()[0];
    (status.counts.delivered, status.counts.skipped, status.lag_events)
}

#[track_caller]
fn wait_until(what: &str, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !done() {
        assert!(Instant::now() < deadline, "waited 20 s until {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn all_of_the_journal_is_published_by_the_end() {
    let dir = TempDir::new().unwrap();
    let synthetic = small();
    let (journal, _) = journal(&dir.path().join("journal"), &synthetic, 8);
    let data = dir.path().join("data");
    let running = start(&journal, config(&data));
    running.shutdown.cancel();
    running.thread.join().unwrap().unwrap();
    assert_exactly(&data, &synthetic, 8);
    assert_eq!(balance(&journal), (7 * u64::from(synthetic.rows()), 0, 0));
    // Another start finds nothing to do.
    let running = start(&journal, config(&data));
    running.shutdown.cancel();
    running.thread.join().unwrap().unwrap();
    assert_exactly(&data, &synthetic, 8);
}

#[test]
fn a_folder_that_refuses_is_waited_for() {
    let dir = TempDir::new().unwrap();
    let synthetic = small();
    let (journal, _) = journal(&dir.path().join("journal"), &synthetic, 4);
    let data = dir.path().join("data");
    let config = ParquetConfig { roll_age: Duration::ZERO, ..config(&data) };
    let (sink, _) = ParquetSink::open(config, journal.id()).unwrap();
    // Root may write anywhere, but not below a file.
    let intents = data.join("_weir/intent");
    fs::remove_dir(&intents).unwrap();
    fs::write(&intents, "").unwrap();
    let running = spawn(&journal, sink);
    let mut trouble = running.trouble.clone();
    wait_until("the sink is in trouble", || {
        trouble.borrow_and_update().as_ref().is_some_and(|words| words.contains(intents.to_str().unwrap()))
    });
    assert!(live_files(&data).unwrap().is_empty());
    assert_eq!(balance(&journal).0, 0, "nothing counts as delivered");
    fs::remove_file(&intents).unwrap();
    wait_until("all is published", || balance(&journal).2 == 0);
    wait_until("the sink is out of trouble", || running.trouble.borrow().is_none());
    running.shutdown.cancel();
    running.thread.join().unwrap().unwrap();
    assert_exactly(&data, &synthetic, 4);
}

#[test]
fn what_the_journal_lost_is_passed_over_and_recorded() {
    let dir = TempDir::new().unwrap();
    let synthetic = small();
    let folder = dir.path().join("journal");
    let (journal, segments) = journal(&folder, &synthetic, 6);
    drop(journal);
    // A byte of record 3, in the second of three segments: 3 and 4 can't be read.
    let mut segment = fs::OpenOptions::new().read(true).write(true).open(&segments[1]).unwrap();
    let middle = segment.metadata().unwrap().len() / 4;
    let mut byte = [0];
    segment.seek(SeekFrom::Start(middle)).unwrap();
    segment.read_exact(&mut byte).unwrap();
    segment.seek(SeekFrom::Start(middle)).unwrap();
    segment.write_all(&[byte[0] ^ 0x40]).unwrap();
    drop(segment);
    let journal = open_journal(&folder);
    let data = dir.path().join("data");
    let running = start(&journal, config(&data));
    running.shutdown.cancel();
    running.thread.join().unwrap().unwrap();

    let rows = u64::from(synthetic.rows());
    let found = ids(&data);
    let kept: Vec<u64> =
        (1..6).filter(|position| found.contains_key(&synthetic_event_id(*position, 0))).collect();
    assert!(
        kept == [1, 2, 5] || kept == [1, 2, 4, 5],
        "record 3 is lost, its segment's rest at most: {kept:?}"
    );
    assert_eq!(found.len() as u64, kept.len() as u64 * rows);
    let entries = data.join("_weir/manifest").join(JOURNAL_HEX);
    let entries = manifest::read_entries(&entries, JOURNAL_HEX).unwrap();
    let skipped: Vec<_> = entries.into_iter().flat_map(|entry| entry.skipped).collect();
    assert_eq!(skipped[0].first_position, 3, "{skipped:?}");
    assert!(skipped[0].reason.contains(segments[1].to_str().unwrap()), "{skipped:?}");
    assert_eq!(balance(&journal).0, kept.len() as u64 * rows);
    assert!(verify(&data).unwrap().is_sound());
}

#[test]
fn a_first_segment_that_is_set_aside_is_passed_over_and_recorded() {
    let dir = TempDir::new().unwrap();
    let synthetic = small();
    let folder = dir.path().join("journal");
    let (journal, segments) = journal(&folder, &synthetic, 6);
    drop(journal);
    let data = dir.path().join("data");
    let mut sink = ParquetSink::open(config(&data), JOURNAL).unwrap().0;
    sink.write(&synthetic.record(1), Instant::now()).unwrap();
    sink.cut(Reason::Request, NOW_US).unwrap();
    fs::OpenOptions::new().write(true).open(&segments[0]).unwrap().write_all(b"damage").unwrap();

    let journal = open_journal(&folder);
    assert_eq!((journal.first_position(), journal.next_position()), (3, 6));
    let (reporter, mut losses) = LossReporter::new(JOURNAL, "c", "n", folder.join("damage-reported"));
    let metrics = ParquetMetrics::register(&mut Registry::default());
    let (reader, end) = (journal.reader().reporting_to(reporter), CancellationToken::new());
    end.cancel();
    run(sink, reader, journal.cursors().clone(), metrics, watch::channel(None).0, end).unwrap();
    let found = ids(&data);
    let kept: Vec<u64> =
        (1..6).filter(|position| found.contains_key(&synthetic_event_id(*position, 0))).collect();
    assert_eq!(kept, [1, 3, 4, 5]);
    assert!(losses.try_recv().is_ok() && losses.try_recv().is_err(), "one row says so");
    assert!(verify(&data).unwrap().is_sound());
}
