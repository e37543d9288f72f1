//! The Parquet sink under `kill -9`: a child process takes synthetic records and is killed at every step of a cut and
//! of a deletion, and at random moments; every row is in the files once, as DuckDB counts them.
//!
//! The child is this test program again, told by [`CHILD`] what to do.

#![expect(clippy::unwrap_used, reason = "helpers of tests panic with what failed")]

use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;
use weir_aggregator::sink::parquet::manifest::Reason;
use weir_aggregator::sink::parquet::synthetic::{Synthetic, synthetic_event_id};
use weir_aggregator::sink::parquet::{Keep, ParquetConfig, ParquetSink, Report, verify};
use weir_common::id::uuid_text;
use weir_integration_tests::duckdb::{DuckDb, read_all};
use weir_integration_tests::scale::scale;

/// `<folder>|<next position>|<bytes of a kind that retention keeps, 0 for all>`.
const CHILD: &str = "WEIR_TEST_PARQUET_CHILD";
const JOURNAL: [u8; 16] = [9; 16];
const SIGKILL: i32 = 9;

/// Rows over two clusters, two or three hours and four kinds: some twenty files a cut.
fn synthetic() -> Synthetic {
    let clusters = vec!["a".to_owned(), "b".to_owned()];
    Synthetic { flows: 200, others: 4, clusters, spread_us: 7_200_000_000, ..Synthetic::default() }
}

/// Not a test of its own: what a child does. Takes the records up to a position, a cut every third.
#[test]
fn child() {
    let Ok(task) = std::env::var(CHILD) else { return };
    let fields: Vec<&str> = task.split('|').collect();
    let (folder, next, keep) = (fields[0], fields[1].parse::<u64>().unwrap(), fields[2].parse().unwrap());
    let mut config = ParquetConfig::new(folder.into());
    // Small, so that row groups are written between cuts too.
    config.buffer_bytes_max = 1 << 20;
    if keep > 0 {
        config.retention.0 = [Keep { age: None, bytes: Some(keep) }; 4];
    }
    let synthetic = synthetic();
    let now_us = synthetic.start_ns / 1000;
    let mut sink = ParquetSink::open(config, JOURNAL).unwrap().0;
    while sink.due() < next {
        let position = sink.due();
        sink.write(&synthetic.record(position), Instant::now()).unwrap();
        if position.is_multiple_of(3) {
            sink.cut(Reason::Age, now_us).unwrap();
            sink.retain(now_us).unwrap();
        }
    }
    sink.cut(Reason::Shutdown, now_us).unwrap();
    sink.retain(now_us).unwrap();
}

fn spawn(folder: &Path, next: u64, keep: u64, crash: Option<&str>) -> Child {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command
        .args(["--exact", "child", "--nocapture"])
        .env(CHILD, format!("{}|{next}|{keep}", folder.display()));
    match crash {
        Some(crash) => command.env("WEIR_CRASH_AT", crash),
        None => command.env_remove("WEIR_CRASH_AT"),
    };
    command.stdout(Stdio::null()).spawn().unwrap()
}

fn run(folder: &Path, next: u64, keep: u64, crash: Option<&str>) -> ExitStatus {
    spawn(folder, next, keep, crash).wait().unwrap()
}

/// Runs a child to its end, and checks the folder.
#[track_caller]
fn finish(folder: &Path, next: u64, keep: u64, what: &str) -> Report {
    let status = run(folder, next, keep, None);
    assert!(status.success(), "{what}: {status}");
    let report = verify(folder).unwrap();
    assert!(report.is_sound() && report.unlisted.is_empty(), "{what}: {report:?}");
    let left = std::fs::read_dir(folder.join("_weir/tmp").join("09".repeat(16))).unwrap().count();
    assert_eq!(left, 0, "{what}: temporary files are left");
    assert_eq!(
        std::fs::read_dir(folder.join("_weir/intent")).unwrap().count(),
        0,
        "{what}: the intent is left"
    );
    report
}

/// Asserts that DuckDB finds each row of `1..next` once.
#[track_caller]
fn assert_each_once(duckdb: &DuckDb, folder: &Path, next: u64, what: &str) {
    let rows = duckdb.query(&format!("SELECT event_id::VARCHAR AS id FROM {}", read_all(folder)));
    let mut found: Vec<&str> = rows.iter().filter_map(|row| row["id"].as_str()).collect();
    found.sort_unstable();
    let rows = synthetic().rows();
    let mut sent: Vec<String> = (1..next)
        .flat_map(|position| (0..rows).map(move |row| uuid_text(&synthetic_event_id(position, row))))
        .collect();
    sent.sort_unstable();
    let distinct = found.windows(2).filter(|pair| pair[0] != pair[1]).count() + 1;
    assert_eq!((found.len(), distinct), (sent.len(), sent.len()), "{what}: rows, distinct rows");
    assert!(found == sent, "{what}: other rows than were sent");
}

#[test]
fn killed_at_every_step_of_a_cut() {
    let Some(duckdb) = DuckDb::find() else { return };
    let counts: &[u32] = if scale().name == "soak" { &[1, 2, 3, 5, 7, 11] } else { &[1, 2] };
    for point in [
        "parquet.file_written",
        "parquet.intent_synced",
        "parquet.published_one",
        "parquet.published_all",
        "parquet.manifest_written",
        "parquet.intent_removed",
    ] {
        for count in counts {
            // A cut every third record, so that the point is passed that often.
            let next = 3 * u64::from(*count) + 5;
            let folder = TempDir::new().unwrap();
            let crash = format!("{point}:{count}");
            let status = run(folder.path(), next, 0, Some(&crash));
            assert_eq!(status.signal(), Some(SIGKILL), "{crash} was not reached: {status}");
            // Killed once more on the way out, where recovery or the next cut passes this point.
            run(folder.path(), next, 0, Some("parquet.published_one:2"));
            finish(folder.path(), next, 0, &crash);
            assert_each_once(&duckdb, folder.path(), next, &crash);
        }
    }
}

#[test]
fn killed_at_every_step_of_a_deletion() {
    let next = 10;
    let points = [
        "parquet.intent_synced",
        "parquet.removed_one",
        "parquet.published_all",
        "parquet.manifest_written",
        "parquet.intent_removed",
    ];
    for point in points {
        // A budget that the first cut overdraws: the second commit is a deletion.
        for count in [1, 2, 4] {
            let folder = TempDir::new().unwrap();
            let crash = format!("{point}:{count}");
            let status = run(folder.path(), next, 100_000, Some(&crash));
            assert_eq!(status.signal(), Some(SIGKILL), "{crash} was not reached: {status}");
            let report = finish(folder.path(), next, 100_000, &crash);
            assert_eq!(report.journals[0].next_position, next, "{crash}");
            let rows = rows_ever(folder.path());
            assert_eq!(rows, (next - 1) * u64::from(synthetic().rows()), "{crash}: rows added");
            assert!(report.journals[0].rows < rows, "{crash}: nothing was deleted");
        }
    }
}

/// Rows that the entries of the manifest added, deleted since or not.
fn rows_ever(folder: &Path) -> u64 {
    use weir_aggregator::sink::parquet::manifest::read_entries;
    let id = "09".repeat(16);
    let entries = folder.join("_weir/manifest").join(&id);
    let added = read_entries(&entries, &id).unwrap().into_iter().flat_map(|entry| entry.added);
    added.map(|file| file.rows).sum()
}

#[test]
fn killed_at_random_moments() {
    let Some(duckdb) = DuckDb::find() else { return };
    let next = 40;
    for seed in 0..u64::from(scale().kill_random) {
        let folder = TempDir::new().unwrap();
        // Park and Miller (1988).
        let mut random: u64 = seed * 7919 + 17;
        let mut kills = 0;
        let deadline = Instant::now() + Duration::from_secs(120);
        loop {
            assert!(Instant::now() < deadline, "seed {seed}: the child never came to its end");
            random = (random * 48_271) % 2_147_483_647;
            let mut child = spawn(folder.path(), next, 0, None);
            // Longer each time, so that the end is reached however slow the machine.
            std::thread::sleep(Duration::from_millis(5 + random % 150 + 20 * kills));
            if let Some(status) = child.try_wait().unwrap() {
                assert!(status.success(), "seed {seed}: {status}");
                break;
            }
            child.kill().unwrap();
            child.wait().unwrap();
            kills += 1;
            // A reader at this moment may see part of a cut, but nothing twice in what is listed.
            assert!(verify(folder.path()).unwrap().is_sound(), "seed {seed}, kill {kills}");
        }
        let what = format!("seed {seed}, {kills} kills");
        finish(folder.path(), next, 0, &what);
        assert_each_once(&duckdb, folder.path(), next, &what);
    }
}
