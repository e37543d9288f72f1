//! The aggregator is away, or the spool is too small: nothing is lost without being counted, and memory stays flat.
#![expect(clippy::unwrap_used, reason = "tests panic where they fail")]

use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use weir_integration_tests::duckdb::{DuckDb, number};
use weir_integration_tests::process::{Process, free_address, holds_within, http_get, metric_sum, wait_for};
use weir_integration_tests::scale::scale;
use weir_integration_tests::system::{Aggregator, Generator, peak_memory};

/// What a shipper may take at its peak, whatever waits in its spool: windows, one interval, read-ahead.
const SHIPPER_MEMORY_MAX: u64 = 128 << 20;
/// What an aggregator may take: the journal's tail (64 MiB), rows that wait for a cut, batches in flight.
const AGGREGATOR_MEMORY_MAX: u64 = 512 << 20;

fn aggregator(home: &Path) -> Aggregator {
    Aggregator {
        program: env!("CARGO_BIN_EXE_sut_aggregator").into(),
        home: home.to_owned(),
        address: free_address(),
        admin: free_address(),
        set: Vec::new(),
    }
}

fn generator(home: &Path, aggregator: SocketAddr, events: u64) -> Generator {
    Generator {
        program: env!("CARGO_BIN_EXE_weir-gen").into(),
        home: home.join("generator"),
        aggregator,
        admin: Some(free_address()),
        index: 0,
        events,
        interval_events: 1000,
        rate: 0,
        stay: false,
        set: Vec::new(),
        realistic: false,
    }
}

fn metric(address: SocketAddr, name: &str, labels: &str) -> f64 {
    http_get(address, "/metrics").ok().and_then(|(_, text)| metric_sum(&text, name, labels)).unwrap_or(0.0)
}

/// Waits until a generator made all its events.
fn wait_captured(generator: &Generator, process: &Process) {
    let admin = generator.admin.unwrap();
    let captured = || metric(admin, "weir_shipper_captured_events_total", "");
    wait_for(
        "all events to be made",
        || format!("{} made\n{}", captured(), process.log_tail()),
        || captured() as u64 == generator.events,
    );
}

#[test]
fn an_aggregator_that_is_away_costs_nothing_but_time() {
    let Some(duckdb) = DuckDb::find() else { return };
    let scale = scale();
    let dir = tempfile::tempdir().unwrap();
    let aggregator = aggregator(dir.path());
    let events = scale.outage_rate * (scale.outage.as_secs() + 4);
    let generator =
        Generator { rate: scale.outage_rate, ..generator(dir.path(), aggregator.address, events) };

    let mut first = aggregator.start(None);
    let mut shipper = generator.start(None);
    wait_for(
        "the first events to be journaled",
        || first.log_tail(),
        || metric(aggregator.admin, "weir_aggregator_journaled_events_total", "") > 0.0,
    );
    first.kill_9();
    // The time itself is what is tested: the shipper has to live through it.
    let died = holds_within(scale.outage, || !shipper.is_running());
    assert!(!died, "the shipper ended while the aggregator was away:\n{}", shipper.log_tail());
    let at_end_of_outage = peak_memory(shipper.id());
    let mut second = aggregator.start(None);
    let mut peak = (at_end_of_outage, 0);
    let ended = holds_within(Duration::from_secs(600), || {
        if shipper.is_running() {
            peak = (peak.0.max(peak_memory(shipper.id())), peak_memory(second.id()));
        }
        shipper.status().is_some()
    });
    assert!(ended, "the backlog was not delivered:\n{}", shipper.log_tail());
    shipper.wait_success();
    second.terminate();
    second.wait_success();

    let row = &duckdb.query(&format!(
        "SELECT count(*) AS rows, count(DISTINCT src_bytes) AS ids FROM {}",
        aggregator.table("flow")
    ))[0];
    let (rows, ids) = (number(&row["rows"]), number(&row["ids"]));
    let mib = |bytes: u64| bytes >> 20;
    println!(
        "SOAK outage: {:?} away at {} events/s, {events} sent, {rows} rows, {ids} ids; peak memory: shipper {} MiB \
         ({} MiB at the outage's end), aggregator {} MiB",
        scale.outage,
        scale.outage_rate,
        mib(peak.0),
        mib(at_end_of_outage),
        mib(peak.1)
    );
    assert_eq!((rows, ids), (events.into(), events.into()));
    assert!(!aggregator.has("loss"), "something was declared lost");
    assert!(peak.0 < SHIPPER_MEMORY_MAX, "the shipper took {} bytes", peak.0);
    assert!(peak.1 < AGGREGATOR_MEMORY_MAX, "the aggregator took {} bytes", peak.1);
}

#[test]
fn what_a_small_spool_drops_is_counted_to_the_event() {
    let Some(duckdb) = DuckDb::find() else { return };
    let events = scale().disk_events;
    let dir = tempfile::tempdir().unwrap();
    let aggregator = aggregator(dir.path());
    let set = ["spool.bytes_max=256KiB", "spool.segment_bytes=32KiB"].map(str::to_owned).to_vec();
    let generator = Generator { set, stay: true, ..generator(dir.path(), aggregator.address, events) };

    let mut shipper = generator.start(None);
    wait_captured(&generator, &shipper);
    let dropped = metric(generator.admin.unwrap(), "weir_shipper_dropped_events_total", "reason=\"budget\"");
    let mut server = aggregator.start(None);
    wait_for(
        "everything to be acknowledged",
        || shipper.log_tail(),
        || {
            let admin = generator.admin.unwrap();
            let journaled = metric(admin, "weir_shipper_journaled_events_total", "");
            journaled + dropped == events as f64 && metric(admin, "weir_shipper_unacked_batches", "") == 0.0
        },
    );
    wait_for("the loss rows", || server.log_tail(), || aggregator.has("loss"));
    shipper.terminate();
    shipper.wait_success();
    server.terminate();
    server.wait_success();

    let (delivered, lost) = delivered_and_lost(&duckdb, &aggregator);
    println!(
        "SOAK budget: {events} sent = {delivered} delivered + {lost} in kind=loss; metric says {dropped} dropped"
    );
    assert!(dropped > 0.0, "the budget was large enough");
    assert_eq!(lost, dropped as i128);
    assert_eq!(delivered + lost, events.into());
}

#[test]
fn drops_are_counted_once_under_kill_9() {
    let Some(duckdb) = DuckDb::find() else { return };
    let events = scale().disk_events;
    let dir = tempfile::tempdir().unwrap();
    let aggregator = aggregator(dir.path());
    let set = ["spool.bytes_max=256KiB", "spool.segment_bytes=32KiB"].map(str::to_owned).to_vec();
    let generator = Generator { set, ..generator(dir.path(), aggregator.address, events) };

    for pass in 1..=3 {
        generator.start(Some(&format!("spool.tombstoned:{pass}"))).wait_killed();
    }
    let mut last = Generator { stay: true, ..generator.clone() }.start(None);
    wait_for(
        "the generator to be through",
        || last.log_tail(),
        || generator.intervals_released() == events / 1000,
    );
    last.kill_9();
    let mut server = aggregator.start(None);
    generator.start(Some("client.skipped:1")).wait_killed();
    server.kill_9();
    server = aggregator.start(Some("journal.synced:1"));
    let mut last = generator.start(None);
    server.wait_killed();
    server = aggregator.start(None);
    last.wait_success();
    server.terminate();
    server.wait_success();

    let (delivered, lost) = delivered_and_lost(&duckdb, &aggregator);
    println!("SOAK budget under kill -9: {events} sent = {delivered} delivered + {lost} in kind=loss");
    assert!(lost > 0, "the budget was large enough");
    assert_eq!(delivered + lost, events.into());
}

fn delivered_and_lost(duckdb: &DuckDb, aggregator: &Aggregator) -> (i128, i128) {
    let flows = &duckdb.query(&format!(
        "SELECT count(*) AS rows, count(DISTINCT src_bytes) AS ids FROM {}",
        aggregator.table("flow")
    ))[0];
    assert_eq!(number(&flows["rows"]), number(&flows["ids"]), "doubled");
    let losses = duckdb.query(&format!(
        "SELECT coalesce(sum(count), 0) AS lost, count(*) FILTER (count IS NULL) AS unknown FROM {} \
         WHERE stage = 'spool' AND reason = 'budget'",
        aggregator.table("loss")
    ));
    assert_eq!(number(&losses[0]["unknown"]), 0, "a drop has no count");
    (number(&flows["rows"]), number(&losses[0]["lost"]))
}
