//! `kill -9` of every process at every named point and at random moments: the ids in Parquet equal the ids sent.
//!
//! Three generators (own processes, each with a spool) publish known events over gRPC to an aggregator that writes
//! Parquet. Each process is started again whenever it died. At the end DuckDB counts what arrived.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use weir_integration_tests::duckdb::{DuckDb, number};
use weir_integration_tests::process::{Process, free_address, holds_within};
use weir_integration_tests::scale::scale;
use weir_integration_tests::system::{Aggregator, Generator};

const GENERATORS: u64 = 3;
const INTERVAL_EVENTS: u64 = 200;
/// For schedules and backlogs to be through; far beyond what they take.
const PATIENCE: Duration = Duration::from_secs(1800);

/// What a shipper passes on its way, in any order. The points of dropped batches are in the backpressure tests.
const SHIPPER_POINTS: &[&str] = &[
    "client.bound",
    "spool.before_append",
    "spool.appended",
    "spool.synced",
    "spool.released",
    "client.reserved",
    "client.sent",
    "client.acked",
];

/// What an aggregator passes. The points of deletions are in the tests of retention.
const AGGREGATOR_POINTS: &[&str] = &[
    "ingest.decoded",
    "ingest.queued",
    "journal.built",
    "journal.appended",
    "journal.synced",
    "journal.acknowledged",
    "journal.rolled",
    "ack.sent",
    "parquet.file_written",
    "parquet.intent_synced",
    "parquet.published_one",
    "parquet.published_all",
    "parquet.manifest_written",
    "parquet.intent_removed",
];

#[test]
fn nothing_is_lost_or_doubled_under_kill_9_of_any_process() {
    let Some(duckdb) = DuckDb::find() else { return };
    let scale = scale();
    let wanted = scale.kill_events / GENERATORS;
    let dir = tempfile::tempdir().unwrap();
    let aggregator = Aggregator {
        program: env!("CARGO_BIN_EXE_sut_aggregator").into(),
        home: dir.path().to_owned(),
        address: free_address(),
        admin: free_address(),
        set: Vec::new(),
    };
    // Events go on until the aggregator has died everywhere it is to die, however slow the machine is.
    let aggregator_done = AtomicBool::new(false);
    let failed = AtomicBool::new(false);

    let (sent, kills) = thread::scope(|scope| {
        let generators: Vec<_> = (0..GENERATORS)
            .map(|index| {
                let generator = Generator {
                    program: env!("CARGO_BIN_EXE_weir-gen").into(),
                    home: dir.path().join(format!("generator-{index}")),
                    aggregator: aggregator.address,
                    admin: None,
                    index,
                    events: 1 << 40,
                    interval_events: INTERVAL_EVENTS,
                    rate: scale.kill_rate,
                    stay: true,
                    set: vec!["drain.timeout=20m".to_owned()],
                    realistic: false,
                };
                let (aggregator_done, failed) = (&aggregator_done, &failed);
                scope.spawn(move || {
                    let mut victim = Victim::new(|crash| generator.start(crash), 0x5eed + index);
                    victim.die_at(SHIPPER_POINTS);
                    victim.die_at_random(scale.kill_random);
                    let mut last = victim.start();
                    let made = || generator.intervals_released() * INTERVAL_EVENTS;
                    let enough = holds_within(PATIENCE, || {
                        assert!(last.is_running(), "generator {index} ended:\n{}", last.log_tail());
                        assert!(!failed.load(Ordering::Acquire), "the aggregator's schedule failed");
                        aggregator_done.load(Ordering::Acquire) && made() >= wanted
                    });
                    assert!(enough, "generator {index} made {} of {wanted} events", made());
                    last.terminate();
                    let status = last.wait_within(PATIENCE);
                    assert!(status.success(), "generator {index} ended with {status}:\n{}", last.log_tail());
                    (made(), victim.kills)
                })
            })
            .collect();
        let _tell = TellFailure(&failed);
        let mut victim = Victim::new(|crash| aggregator.start(crash), 0xa99e);
        victim.die_at(AGGREGATOR_POINTS);
        victim.die_at_random(scale.kill_random);
        aggregator_done.store(true, Ordering::Release);
        let mut last = victim.start();
        let (sent, kills): (Vec<u64>, Vec<u32>) =
            generators.into_iter().map(|thread| thread.join().unwrap()).unzip();
        last.terminate();
        last.wait_success();
        (sent, kills.iter().sum::<u32>() + victim.kills)
    });

    let rows = duckdb.query(&format!(
        "SELECT node, count(*) AS rows, count(DISTINCT event_id) AS event_ids, count(DISTINCT src_bytes) AS ids, \
         min(src_bytes) AS low, max(src_bytes) AS high FROM {} GROUP BY node ORDER BY node",
        aggregator.table("flow")
    ));
    println!("SOAK kill -9: {kills} kills, sent by generator: {sent:?}, rows: {rows:?}");
    assert_eq!(rows.len() as u64, GENERATORS, "{rows:?}");
    for (row, sent) in rows.iter().zip(sent) {
        let value = |name: &str| u64::try_from(number(&row[name])).unwrap();
        assert_eq!((value("rows"), value("event_ids"), value("ids")), (sent, sent, sent), "{row:?}");
        assert_eq!((value("low"), value("high")), (0, sent - 1), "{row:?}");
    }
    assert!(!aggregator.has("loss"), "something was declared lost");
}

/// Tells the other threads when this one panics, so that they do not wait for it.
struct TellFailure<'a>(&'a AtomicBool);

impl Drop for TellFailure<'_> {
    fn drop(&mut self) {
        self.0.fetch_or(thread::panicking(), Ordering::AcqRel);
    }
}

/// A process that is killed on a schedule and started again.
struct Victim<F> {
    start: F,
    random: u64,
    kills: u32,
}

impl<F: Fn(Option<&str>) -> Process> Victim<F> {
    fn new(start: F, seed: u64) -> Self {
        Self { start, random: seed, kills: 0 }
    }

    fn start(&self) -> Process {
        (self.start)(None)
    }

    /// Dies once at each point, at its first to third pass.
    fn die_at(&mut self, points: &[&str]) {
        for point in points {
            // A new spool is bound once.
            let pass = if *point == "client.bound" { 1 } else { 1 + self.below(3) };
            (self.start)(Some(&format!("{point}:{pass}"))).wait_killed();
            self.kills += 1;
        }
    }

    /// Dies after 50 to 800 milliseconds, so many times.
    fn die_at_random(&mut self, times: u32) {
        for _ in 0..times {
            let mut process = self.start();
            let moment = Duration::from_millis(50 + self.below(750));
            let ended_early = holds_within(moment, || !process.is_running());
            assert!(!ended_early, "ended before it was killed:\n{}", process.log_tail());
            process.kill_9();
            self.kills += 1;
        }
    }

    /// Splitmix64: the same schedule every time.
    fn below(&mut self, limit: u64) -> u64 {
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.random;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % limit
    }
}
