//! A second aggregator takes over while the first is away: every event is at exactly one of them.
//!
//! A generator (own process, own spool) knows two aggregators, each with a journal and a Parquet tree. The first one is
//! killed again and again, and so is the generator, at the points between one aggregator and the other and at random
//! moments. At the end DuckDB counts both trees together.
#![expect(clippy::unwrap_used, reason = "tests panic where they fail")]

use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use weir_integration_tests::duckdb::{DuckDb, number};
use weir_integration_tests::process::{Process, free_address, holds_within, http_get, metric_sum, wait_for};
use weir_integration_tests::scale::scale;
use weir_integration_tests::system::{Aggregator, Generator};

const INTERVAL_EVENTS: u64 = 100;

fn aggregator(home: &Path) -> Aggregator {
    std::fs::create_dir_all(home).unwrap();
    Aggregator {
        program: env!("CARGO_BIN_EXE_sut_aggregator").into(),
        home: home.to_owned(),
        address: free_address(),
        admin: free_address(),
        set: Vec::new(),
    }
}

fn metric(address: SocketAddr, name: &str, labels: &str) -> Option<f64> {
    http_get(address, "/metrics").ok().and_then(|(_, text)| metric_sum(&text, name, labels))
}

/// Waits until an aggregator journals events again.
fn wait_journaling(what: &str, aggregator: &Aggregator, logs: impl Fn() -> String) {
    let journaled = || metric(aggregator.admin, "weir_aggregator_journaled_events_total", "").unwrap_or(0.0);
    let before = journaled();
    wait_for(what, logs, || journaled() > before);
}

/// Splitmix64: the same schedule every time.
struct Random(u64);

impl Random {
    fn millis(&mut self, from: u64, to: u64) -> Duration {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        Duration::from_millis(from + (z ^ (z >> 31)) % (to - from))
    }
}

/// Lives through a time, in which it must not end.
fn live(process: &mut Process, time: Duration) {
    let ended = holds_within(time, || !process.is_running());
    assert!(!ended, "ended by itself:\n{}", process.log_tail());
}

#[test]
fn each_event_is_at_one_aggregator_whoever_dies() {
    let Some(duckdb) = DuckDb::find() else { return };
    let scale = scale();
    let dir = tempfile::tempdir().unwrap();
    let (first, second) = (aggregator(&dir.path().join("a")), aggregator(&dir.path().join("b")));
    let admin = free_address();
    let generator = Generator {
        program: env!("CARGO_BIN_EXE_weir-gen").into(),
        home: dir.path().join("generator"),
        aggregator: first.address,
        admin: Some(admin),
        index: 0,
        events: 1 << 40,
        interval_events: INTERVAL_EVENTS,
        rate: scale.kill_rate,
        stay: true,
        set: vec![
            "aggregator.name=a".to_owned(),
            format!("aggregator.others=[{{\"name\": \"b\", \"addresses\": [\"{}\"]}}]", second.address),
            "aggregator.order=listed".to_owned(),
            "aggregator.takeover_after=400ms".to_owned(),
            "client.backoff_max=100ms".to_owned(),
            "drain.timeout=20m".to_owned(),
        ],
        realistic: false,
    };
    let mut b = second.start(None);
    let mut kills = 0;

    // The generator dies where it gives batches to the second one, and while it binds that one to its spool.
    let mut a = first.start(None);
    let mut shipper = generator.start(Some("client.released:1"));
    wait_journaling("the first aggregator to journal", &first, || a.log_tail() + &shipper.log_tail());
    a.kill_9();
    shipper.wait_killed();
    // Without a state of the route it waits again, and then meets the second one for the first time.
    generator.start(Some("client.bound:1")).wait_killed();
    generator.start(Some("client.reserved:2")).wait_killed();
    let mut shipper = generator.start(None);
    wait_journaling("the second aggregator to take over", &second, || b.log_tail() + &shipper.log_tail());
    shipper.kill_9();
    // And where it comes back to the first one.
    let mut shipper = generator.start(Some("client.preferred:1"));
    a = first.start(None);
    shipper.wait_killed();
    shipper = generator.start(None);
    wait_journaling("the first aggregator to be back", &first, || a.log_tail() + &shipper.log_tail());
    kills += 6;

    // Each dies at random moments.
    let mut random = Random(0x7a4e);
    for round in 0..2 * scale.kill_random {
        a.kill_9();
        if round % 2 == 0 {
            live(&mut shipper, random.millis(50, 1200));
            shipper.kill_9();
            shipper = generator.start(None);
            kills += 1;
        }
        if round % 3 == 2 {
            live(&mut shipper, random.millis(10, 300));
            b.kill_9();
            b = second.start(None);
            kills += 1;
        }
        live(&mut shipper, random.millis(50, 1200));
        a = first.start(None);
        live(&mut shipper, random.millis(50, 1200));
        kills += 1;
    }

    // What the first one took in and did not acknowledge waits for it, while the second one gets the rest.
    wait_journaling("the first aggregator to be back", &first, || a.log_tail() + &shipper.log_tail());
    a.kill_9();
    a = first.start(Some("ingest.queued:5"));
    a.wait_killed();
    kills += 2;
    let waiting = |name: &str| {
        let labels = format!("aggregator=\"{name}\"");
        metric(admin, "weir_shipper_aggregator_in_flight_batches", &labels)
    };
    let takeovers = || metric(admin, "weir_shipper_takeovers_total", "aggregator=\"a\"").unwrap_or(0.0);
    let before = takeovers();
    wait_for("a takeover", || shipper.log_tail(), || takeovers() > before);
    wait_journaling("the second aggregator to take over", &second, || b.log_tail() + &shipper.log_tail());
    let kept = waiting("a").unwrap();
    assert!(kept > 0.0, "nothing waits for the first aggregator");
    assert_eq!(metric(admin, "weir_shipper_chosen", "aggregator=\"b\""), Some(1.0));
    a = first.start(None);
    wait_for("what waited to be delivered", || shipper.log_tail(), || waiting("a") == Some(0.0));
    shipper.terminate();
    let status = shipper.wait_within(Duration::from_secs(600));
    assert!(status.success(), "the generator ended with {status}:\n{}", shipper.log_tail());
    for process in [&mut a, &mut b] {
        process.terminate();
        process.wait_success();
    }

    let sent = i128::from(generator.intervals_released() * INTERVAL_EVENTS);
    let count = |table: &str| {
        let row = &duckdb.query(&format!(
            "SELECT count(*) AS rows, count(DISTINCT event_id) AS event_ids, count(DISTINCT src_bytes) AS ids, \
             max(src_bytes) AS high FROM {table}"
        ))[0];
        ["rows", "event_ids", "ids", "high"].map(|name| number(&row[name]))
    };
    let (at_a, at_b) = (count(&first.table("flow")), count(&second.table("flow")));
    let both = format!("(FROM {} UNION ALL FROM {})", first.table("flow"), second.table("flow"));
    println!("SOAK takeover: {kills} kills, {sent} sent, {} rows at a, {} rows at b", at_a[0], at_b[0]);
    assert_eq!(count(&both), [sent, sent, sent, sent - 1]);
    assert!(at_a[0] > 0 && at_b[0] > 0);
    assert!(!first.has("loss") && !second.has("loss"), "something was declared lost");
}
