//! Parquet in a store of objects, on a real S3 server: every row is there once, whatever dies or stays away.
//!
//! Like `parquet_crash.rs` for a folder: a child of this program is killed at every step of a cut and of a deletion, and
//! at random; then the whole aggregator under an outage. DuckDB counts in what was downloaded.

#![expect(clippy::unwrap_used, reason = "helpers of tests panic with what failed")]

use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use tempfile::TempDir;
use weir_aggregator::sink::parquet::manifest::Reason;
use weir_aggregator::sink::parquet::synthetic::{Synthetic, synthetic_event_id};
use weir_aggregator::sink::parquet::{Keep, ParquetConfig, ParquetSink, Report, StoreUrl, verify_store};
use weir_common::id::uuid_text;
use weir_integration_tests::duckdb::{DuckDb, number, read_all};
use weir_integration_tests::process::{Process, free_address, holds_within, http_get, metric_sum, wait_for};
use weir_integration_tests::s3::{BUCKET, Proxy, S3, SLOW_DOWN, WRONG_KEY, Weather, options};
use weir_integration_tests::scale::scale;
use weir_integration_tests::system::{Aggregator, Generator, peak_memory};

/// `<folder>|<prefix>|<address of the server>|<next position>|<bytes of a kind that retention keeps, 0 for all>`.
const CHILD: &str = "WEIR_TEST_PARQUET_STORE_CHILD";
const JOURNAL: [u8; 16] = [9; 16];
const SIGKILL: i32 = 9;

fn synthetic() -> Synthetic {
    let clusters = vec!["a".to_owned()];
    Synthetic { flows: 100, others: 2, clusters, spread_us: 7_200_000_000, ..Synthetic::default() }
}

/// A prefix of its own in the bucket, and the folder of the sink.
struct Place<'a> {
    s3: &'a S3,
    prefix: String,
    folder: TempDir,
}

impl<'a> Place<'a> {
    fn new(s3: &'a S3, prefix: impl Into<String>) -> Self {
        Self { s3, prefix: prefix.into(), folder: TempDir::new().unwrap() }
    }

    fn url(&self) -> StoreUrl {
        url(&self.prefix, self.s3.address())
    }

    fn spawn(&self, next: u64, keep: u64, crash: Option<&str>) -> Child {
        let (folder, prefix, address) = (self.folder.path().display(), &self.prefix, self.s3.address());
        let mut command = Command::new(std::env::current_exe().unwrap());
        command
            .args(["--exact", "child", "--nocapture"])
            .env(CHILD, format!("{folder}|{prefix}|{address}|{next}|{keep}"));
        match crash {
            Some(crash) => command.env("WEIR_CRASH_AT", crash),
            None => command.env_remove("WEIR_CRASH_AT"),
        };
        command.stdout(Stdio::null()).spawn().unwrap()
    }

    fn run(&self, next: u64, keep: u64, crash: Option<&str>) -> ExitStatus {
        self.spawn(next, keep, crash).wait().unwrap()
    }

    /// Runs a child to its end, and checks the store.
    #[track_caller]
    fn finish(&self, next: u64, keep: u64, what: &str) -> Report {
        let status = self.run(next, keep, None);
        assert!(status.success(), "{what}: {status}");
        let report = verify_store(&self.url()).unwrap();
        assert!(report.is_sound() && report.unlisted.is_empty(), "{what}: {report:?}");
        for left in ["tmp/".to_owned() + &"09".repeat(16), "intent".to_owned()] {
            let folder = self.folder.path().join("_weir").join(&left);
            assert_eq!(std::fs::read_dir(folder).unwrap().count(), 0, "{what}: something is left in {left}");
        }
        report
    }

    /// Asserts that DuckDB finds each row of `1..next` once.
    #[track_caller]
    fn assert_each_once(&self, duckdb: &DuckDb, next: u64, what: &str) {
        let copy = TempDir::new().unwrap();
        self.s3.download(&self.prefix, copy.path());
        let rows = duckdb.query(&format!("SELECT event_id::VARCHAR AS id FROM {}", read_all(copy.path())));
        let mut found: Vec<&str> = rows.iter().filter_map(|row| row["id"].as_str()).collect();
        found.sort_unstable();
        let rows = synthetic().rows();
        let mut sent: Vec<String> = (1..next)
            .flat_map(|position| (0..rows).map(move |row| uuid_text(&synthetic_event_id(position, row))))
            .collect();
        sent.sort_unstable();
        assert_eq!(found.len(), sent.len(), "{what}: rows");
        assert!(found == sent, "{what}: other rows than were sent");
    }
}

fn url(prefix: &str, address: std::net::SocketAddr) -> StoreUrl {
    StoreUrl::parse(&format!("s3://{BUCKET}/{prefix}"), options(address).into()).unwrap()
}

/// Not a test of its own: what a child does. Takes the records up to a position, a cut every third.
#[test]
fn child() {
    let Ok(task) = std::env::var(CHILD) else { return };
    let fields: Vec<&str> = task.split('|').collect();
    let [folder, prefix, address, next, keep] = fields[..] else { panic!("{task}") };
    let (next, keep) = (next.parse::<u64>().unwrap(), keep.parse().unwrap());
    let mut config = ParquetConfig::new(folder.into());
    config.store = Some(url(prefix, address.parse().unwrap()));
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

#[test]
fn killed_at_every_step_of_a_cut() {
    let Some(duckdb) = DuckDb::find() else { return };
    let logs = TempDir::new().unwrap();
    let Some(s3) = S3::start(logs.path()) else { return };
    let counts: &[u32] = if scale().name == "soak" { &[1, 2, 3, 5, 7] } else { &[1, 2] };
    for point in [
        "parquet.file_written",
        "parquet.intent_synced",
        "parquet.published_one",
        "parquet.published_all",
        "parquet.manifest_written",
        "parquet.intent_removed",
    ] {
        for count in counts {
            let next = 3 * u64::from(*count) + 2;
            let crash = format!("{point}:{count}");
            let place = Place::new(&s3, crash.replace([':', '_'], "-"));
            let status = place.run(next, 0, Some(&crash));
            assert_eq!(status.signal(), Some(SIGKILL), "{crash} was not reached: {status}");
            // Killed once more on the way out, where recovery or the next cut passes this point.
            place.run(next, 0, Some("parquet.published_one:2"));
            place.finish(next, 0, &crash);
            place.assert_each_once(&duckdb, next, &crash);
        }
    }
}

#[test]
fn killed_at_every_step_of_a_deletion() {
    let logs = TempDir::new().unwrap();
    let Some(s3) = S3::start(logs.path()) else { return };
    let next = 7;
    for point in [
        "parquet.intent_synced",
        "parquet.removed_one",
        "parquet.published_all",
        "parquet.manifest_written",
        "parquet.intent_removed",
    ] {
        for count in [2, 3] {
            let crash = format!("{point}:{count}");
            let place = Place::new(&s3, crash.replace([':', '_'], "-"));
            // A budget that the first cut overdraws: the second commit is a deletion.
            let status = place.run(next, 50_000, Some(&crash));
            assert_eq!(status.signal(), Some(SIGKILL), "{crash} was not reached: {status}");
            let report = place.finish(next, 50_000, &crash);
            assert_eq!(report.journals[0].next_position, next, "{crash}");
            let all = (next - 1) * u64::from(synthetic().rows());
            assert!(report.journals[0].rows < all, "{crash}: nothing was deleted");
        }
    }
}

#[test]
fn killed_at_random_moments() {
    let Some(duckdb) = DuckDb::find() else { return };
    let logs = TempDir::new().unwrap();
    let Some(s3) = S3::start(logs.path()) else { return };
    let next = 20;
    for seed in 0..u64::from(scale().kill_random) {
        let place = Place::new(&s3, format!("random-{seed}"));
        // Park and Miller (1988).
        let mut random: u64 = seed * 7919 + 17;
        let mut kills = 0;
        let deadline = Instant::now() + Duration::from_secs(120);
        loop {
            assert!(Instant::now() < deadline, "seed {seed}: the child never came to its end");
            random = (random * 48_271) % 2_147_483_647;
            let mut child = place.spawn(next, 0, None);
            // Longer each time, so that the end is reached however slow the machine.
            thread::sleep(Duration::from_millis(20 + random % 300 + 40 * kills));
            if let Some(status) = child.try_wait().unwrap() {
                assert!(status.success(), "seed {seed}: {status}");
                break;
            }
            child.kill().unwrap();
            child.wait().unwrap();
            kills += 1;
        }
        let what = format!("seed {seed}, {kills} kills");
        place.finish(next, 0, &what);
        place.assert_each_once(&duckdb, next, &what);
    }
}

#[test]
fn of_two_writers_of_one_journal_one_ends_and_takes_its_files_back() {
    let logs = TempDir::new().unwrap();
    let Some(s3) = S3::start(logs.path()) else { return };
    let synthetic = synthetic();
    let now_us = synthetic.start_ns / 1000;
    let folders = [TempDir::new().unwrap(), TempDir::new().unwrap()];
    let ends: Vec<Result<(), String>> = thread::scope(|scope| {
        let writers = folders.each_ref().map(|folder| {
            let (address, synthetic) = (s3.address(), &synthetic);
            scope.spawn(move || {
                let mut config = ParquetConfig::new(folder.path().to_owned());
                config.store = Some(url("race", address));
                let mut sink = ParquetSink::open(config, JOURNAL).unwrap().0;
                for position in sink.due()..=4 {
                    sink.write(&synthetic.record(position), Instant::now()).unwrap();
                    sink.cut(Reason::Age, now_us).map_err(|error| error.to_string())?;
                }
                Ok(())
            })
        });
        writers.into_iter().map(|writer| writer.join().unwrap()).collect()
    });
    // One of them may have come to its end before the other began, which then finds nothing left to do.
    let lost: Vec<&String> = ends.iter().filter_map(|end| end.as_ref().err()).collect();
    assert!(lost.len() <= 1 && lost.iter().all(|error| error.contains("is not ours")), "{ends:?}");
    let report = verify_store(&url("race", s3.address())).unwrap();
    assert!(report.is_sound() && report.unlisted.is_empty(), "{report:?}");
    assert_eq!(report.journals[0].rows, 4 * u64::from(synthetic.rows()), "{report:?}");
}

/// An aggregator that writes to a bucket through the weather.
fn aggregator(home: &Path, proxy: &Proxy, bucket: &str) -> Aggregator {
    let options: Vec<String> =
        options(proxy.address()).iter().map(|(name, value)| format!("{name}: '{value}'")).collect();
    Aggregator {
        program: env!("CARGO_BIN_EXE_sut_aggregator").into(),
        home: home.to_owned(),
        address: free_address(),
        admin: free_address(),
        set: vec![
            format!("parquet.url=s3://{bucket}/whole"),
            format!("parquet.options={{{}}}", options.join(", ")),
        ],
    }
}

fn metric(aggregator: &Aggregator, name: &str) -> Option<f64> {
    let (_, text) = http_get(aggregator.admin, "/metrics").ok()?;
    metric_sum(&text, name, "")
}

#[test]
fn an_outage_costs_time_and_no_row() {
    let Some(duckdb) = DuckDb::find() else { return };
    let dir = TempDir::new().unwrap();
    let Some(s3) = S3::start(dir.path()) else { return };
    let proxy = Proxy::start(s3.address());
    let aggregator = aggregator(dir.path(), &proxy, BUCKET);
    let mut running = aggregator.start(None);
    let generator = Generator {
        program: env!("CARGO_BIN_EXE_weir-gen").into(),
        home: dir.path().join("generator"),
        aggregator: aggregator.address,
        admin: None,
        index: 0,
        events: 1 << 40,
        interval_events: 200,
        rate: 2_000,
        stay: true,
        set: vec!["drain.timeout=20m".to_owned()],
        realistic: false,
    };
    let mut sending = generator.start(None);
    let detail = |running: &Process| format!("{}\n{}", running.log_tail(), proxy.address());
    let published = || metric(&aggregator, "weir_aggregator_parquet_next_position").unwrap_or(0.0);
    wait_for("the first cut", || detail(&running), || published() > 1.0);

    for weather in [Weather::AnswersLost, Weather::Down, SLOW_DOWN] {
        proxy.set(weather);
        let lag = || metric(&aggregator, "weir_aggregator_parquet_lag_records").unwrap_or(0.0);
        wait_for("the lag to show", || format!("{weather:?}: {}", detail(&running)), || lag() >= 10.0);
        let unready = || {
            http_get(aggregator.admin, "/readyz")
                .is_ok_and(|(code, text)| code == 503 && text.contains("s3://"))
        };
        wait_for("readiness to tell", || format!("{weather:?}: {}", detail(&running)), unready);
        let before = published();
        proxy.set(Weather::Fair);
        wait_for("cuts to go on", || detail(&running), || published() > before);
    }
    // Killed while the store is away, with a cut on its way.
    proxy.set(Weather::AnswersLost);
    let stuck = || !http_get(aggregator.admin, "/readyz").is_ok_and(|(code, _)| code == 200);
    wait_for("a cut to be stuck", || detail(&running), stuck);
    let peak = peak_memory(running.id());
    running.kill_9();
    proxy.set(Weather::Down);
    let mut running = aggregator.start(None);
    wait_for(
        "the start to wait",
        || running.log_tail(),
        || running.log_tail().contains("waiting for the store"),
    );
    proxy.set(Weather::Fair);
    wait_for("cuts to go on", || running.log_tail(), || published() > 1.0);

    sending.terminate();
    let status = sending.wait_within(Duration::from_secs(600));
    assert!(status.success(), "{status}: {}", sending.log_tail());
    let sent = generator.intervals_released() * 200;
    running.terminate();
    running.wait_success();
    let report = verify_store(&url("whole", s3.address())).unwrap();
    assert!(report.is_sound() && report.unlisted.is_empty(), "{report:?}");
    let copy = dir.path().join("copy");
    s3.download("whole", &copy);
    let rows = duckdb.query(&format!(
        "SELECT count(*) AS rows, count(DISTINCT event_id) AS ids, min(src_bytes) AS low, max(src_bytes) AS high FROM {} WHERE kind = 'flow'",
        read_all(&copy)
    ));
    let value = |name: &str| u64::try_from(number(&rows[0][name])).unwrap();
    println!("SOAK store outage: {sent} events sent, {rows:?}, peak memory {} MiB", peak >> 20);
    assert_eq!((value("rows"), value("ids"), value("low"), value("high")), (sent, sent, 0, sent - 1));
    assert!(!copy.join("kind=loss").exists(), "something was declared lost");
    assert!(peak < 512 << 20, "{peak} bytes of memory");
    assert_eq!(s3.unfinished_uploads(), 0);
}

#[test]
fn what_no_patience_cures_is_said_and_ends() {
    let dir = TempDir::new().unwrap();
    let Some(s3) = S3::start(dir.path()) else { return };
    let proxy = Proxy::start(s3.address());
    for (home, bucket, weather, words) in [
        ("bucket", "no-such-bucket", Weather::Fair, "there is no such bucket"),
        ("key", BUCKET, WRONG_KEY, "SignatureDoesNotMatch"),
    ] {
        proxy.set(weather);
        let home = dir.path().join(home);
        std::fs::create_dir_all(&home).unwrap();
        let mut process = aggregator(&home, &proxy, bucket).start(None);
        let status = process.wait();
        assert_eq!(status.code(), Some(1), "{}", process.log_tail());
        assert!(process.log_tail().contains(words), "{}", process.log_tail());
    }
    // A key that is withdrawn later.
    proxy.set(Weather::Fair);
    let home = dir.path().join("later");
    std::fs::create_dir_all(&home).unwrap();
    let aggregator = aggregator(&home, &proxy, BUCKET);
    let mut process = aggregator.start(None);
    let up = || http_get(aggregator.admin, "/readyz").is_ok_and(|(code, _)| code == 200);
    wait_for("the aggregator", || process.log_tail(), up);
    proxy.set(WRONG_KEY);
    let generator = Generator {
        program: env!("CARGO_BIN_EXE_weir-gen").into(),
        home: home.join("generator"),
        aggregator: aggregator.address,
        admin: None,
        index: 0,
        events: 200,
        interval_events: 200,
        rate: 0,
        stay: true,
        set: Vec::new(),
        realistic: false,
    };
    let _sending = generator.start(None);
    assert!(holds_within(Duration::from_secs(120), || !process.is_running()), "{}", process.log_tail());
    assert!(process.log_tail().contains("does not accept these credentials"), "{}", process.log_tail());
}
