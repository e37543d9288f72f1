//! SIGTERM while the other side does not read or does not answer: each program ends within its bound and with its
//! documented code, and nothing is lost or doubled when both are back.

use std::net::TcpListener;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use weir_integration_tests::duckdb::{DuckDb, number};
use weir_integration_tests::pipeline::{Pipeline, Programs};
use weir_integration_tests::process::{Process, free_address, http_get, metric_sum, wait_for};
use weir_integration_tests::scene::Scene;
use weir_integration_tests::system::{Aggregator, Generator};

const PROGRAMS: Programs = Programs {
    traffic: env!("CARGO_BIN_EXE_traffic"),
    shipper: env!("CARGO_BIN_EXE_sut_shipper"),
    aggregator: env!("CARGO_BIN_EXE_sut_aggregator"),
};
const EVENTS: u64 = 40_000;
/// Ended on request, and everything is where it belongs.
const OK: i32 = 0;
/// Ended on request; the rest is on disk.
const DRAIN_TIMED_OUT: i32 = 2;
/// What a loaded machine may take beside the bound.
const SLACK: Duration = Duration::from_secs(10);

fn aggregator(home: &Path) -> Aggregator {
    Aggregator {
        program: PROGRAMS.aggregator.into(),
        home: home.to_owned(),
        address: free_address(),
        admin: free_address(),
        set: Vec::new(),
    }
}

fn generator(aggregator: &Aggregator) -> Generator {
    Generator {
        program: env!("CARGO_BIN_EXE_weir-gen").into(),
        home: aggregator.home.join("generator"),
        aggregator: aggregator.address,
        admin: None,
        index: 0,
        events: EVENTS,
        interval_events: 500,
        rate: 10_000,
        stay: false,
        set: vec!["drain.timeout=2s".to_owned(), "client.hello_timeout=1s".to_owned()],
        realistic: false,
    }
}

/// Asks it to end, and gives its exit code; fails when it takes longer than `bound`.
#[track_caller]
fn ended_within(process: &mut Process, bound: Duration) -> i32 {
    let asked = Instant::now();
    process.terminate();
    let status = process.wait_within(bound + SLACK);
    println!("SOAK SIGTERM: ended after {:?}, bound {bound:?}, {status}", asked.elapsed());
    status.code().unwrap_or_else(|| panic!("{status}; its log:\n{}", process.log_tail()))
}

/// Rows and different ids in Parquet.
fn rows(duckdb: &DuckDb, aggregator: &Aggregator) -> (i128, i128) {
    let table = aggregator.table("flow");
    let sql = format!("SELECT count(*) AS rows, count(DISTINCT src_bytes) AS ids FROM {table}");
    let row = &duckdb.query(&sql)[0];
    (number(&row["rows"]), number(&row["ids"]))
}

fn metric(aggregator: &Aggregator, name: &str) -> f64 {
    let text = http_get(aggregator.admin, "/metrics").map(|(_, text)| text).unwrap_or_default();
    metric_sum(&text, name, "").unwrap_or(0.0)
}

#[test]
fn an_aggregator_drains_though_a_viewer_and_a_shipper_do_not_read() {
    let Some(duckdb) = DuckDb::find() else { return };
    let home = tempfile::tempdir().unwrap();
    let mut aggregator = aggregator(home.path());
    aggregator.set = vec!["drain.timeout=10s".to_owned()];
    let mut server = aggregator.start(None);
    let mut shipper = generator(&aggregator).start(None);
    let journaled = || metric(&aggregator, "weir_aggregator_journaled_events_total");
    wait_for("events", || server.log_tail(), || journaled() > 2000.0);
    // A viewer with a long history before it, which it does not read, nor what follows.
    let mut command = Command::new(env!("CARGO_BIN_EXE_sut_weir"));
    command.args(["observe", "--follow", "--last", "10000", "--aggregator", &aggregator.address.to_string()]);
    let viewer = Process::spawn(&mut command, &home.path().join("viewer.log"));
    wait_for(
        "the viewer",
        || viewer.log_tail(),
        || metric(&aggregator, "weir_aggregator_observe_viewers") == 1.0,
    );
    viewer.freeze();
    wait_for("more events", || server.log_tail(), || journaled() > 8000.0);
    shipper.freeze();

    assert_eq!(ended_within(&mut server, Duration::from_secs(10)), OK, "{}", server.log_tail());
    let (before, ids) = rows(&duckdb, &aggregator);
    assert_eq!(before, ids, "doubled");
    assert!(before > 8000 && before < i128::from(EVENTS), "{before} rows");

    shipper.thaw();
    let mut server = aggregator.start(None);
    shipper.wait_success();
    assert_eq!(ended_within(&mut server, Duration::from_secs(10)), OK, "{}", server.log_tail());
    assert_eq!(rows(&duckdb, &aggregator), (i128::from(EVENTS), i128::from(EVENTS)));
    assert!(!aggregator.has("loss"), "nothing is lost");
}

#[test]
fn a_shipper_ends_though_its_aggregator_accepts_and_never_answers() {
    let Some(duckdb) = DuckDb::find() else { return };
    let home = tempfile::tempdir().unwrap();
    let aggregator = aggregator(home.path());
    let generator = generator(&aggregator);

    // Somebody who takes connections, and nothing else.
    let listener = TcpListener::bind(aggregator.address).unwrap();
    let silent = std::thread::spawn(move || {
        let taken = listener.accept().unwrap();
        (listener, taken)
    });
    let mut shipper = generator.start(None);
    let mut held = Some(silent.join().unwrap());
    wait_for("events in the spool", || shipper.log_tail(), || generator.intervals_released() > 5);
    let code = ended_within(&mut shipper, Duration::from_secs(2));
    assert_eq!(code, DRAIN_TIMED_OUT, "{}", shipper.log_tail());
    held.take();

    // One that answers, and halts in mid-flight.
    let mut server = aggregator.start(None);
    let mut shipper = generator.start(None);
    wait_for(
        "events",
        || server.log_tail(),
        || metric(&aggregator, "weir_aggregator_journaled_events_total") > 2000.0,
    );
    let reached = generator.intervals_released();
    server.freeze();
    wait_for("more in the spool", || shipper.log_tail(), || generator.intervals_released() > reached + 5);
    let code = ended_within(&mut shipper, Duration::from_secs(2));
    assert_eq!(code, DRAIN_TIMED_OUT, "{}", shipper.log_tail());

    server.thaw();
    generator.start(None).wait_success();
    server.terminate();
    server.wait_success();
    assert_eq!(rows(&duckdb, &aggregator), (i128::from(EVENTS), i128::from(EVENTS)));
    assert!(!aggregator.has("loss"), "nothing is lost");
}

#[test]
fn a_capture_that_ends_before_a_silent_aggregator_loses_no_byte() {
    let Some(mut pipeline) = Pipeline::new(PROGRAMS, || Scene::linked(false)) else { return };
    pipeline.shipping.terminate();
    pipeline.shipping.wait_success();
    pipeline.shipper.set = vec!["drain.timeout=2s".to_owned()];
    pipeline.shipping = pipeline.shipper.start(None);
    pipeline.run("serve-tcp 10.9.0.2:80 1", "connect-tcp 10.9.0.2:80 20 5000 20000 2");
    pipeline.aggregating.freeze();
    pipeline.run("serve-tcp 10.9.0.2:80 1", "connect-tcp 10.9.0.2:80 20 5000 20000 2");
    let code = ended_within(&mut pipeline.shipping, Duration::from_secs(2));
    assert_eq!(code, DRAIN_TIMED_OUT, "{}", pipeline.shipping.log_tail());
    pipeline.aggregating.thaw();
    pipeline.shipping = pipeline.shipper.start(None);
    pipeline.finish();
    pipeline.assert_exact("tcp", "SIGTERM before a silent aggregator", 40, &["10.9.0.1", "10.9.0.2"]);
}
