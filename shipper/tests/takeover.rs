//! The shipper with several aggregators in memory: who gets what while one is away, on hold, or the same as another.
#![expect(clippy::unwrap_used, reason = "tests panic where they fail")]

#[expect(dead_code, reason = "shared with the other tests of delivery")]
mod aggregator;

use std::path::Path;
use std::time::Duration;

use aggregator::{Aggregator, Manner};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use weir_shipper::app::{Outcome, Run, RunError, SourceOptions};
use weir_shipper::config::Config;
use weir_shipper::metrics::Metrics;
use weir_shipper::source::{GeneratorOptions, Shape};

const NOWHERE: &str = "127.0.0.1:1";
const EVENTS: u64 = 5_000;

struct Shipper {
    metrics: Metrics,
    task: JoinHandle<Result<Outcome, RunError>>,
}

fn start(dir: &Path, addresses: [&str; 2], takeover_after: &str) -> Shipper {
    start_seeded(dir, addresses, takeover_after, 1)
}

fn start_seeded(dir: &Path, addresses: [&str; 2], takeover_after: &str, seed: u64) -> Shipper {
    let spool = dir.join("spool");
    let others = format!("[{{\"name\": \"b\", \"addresses\": [\"{}\"]}}]", addresses[1]);
    let flags = [
        ("spool.dir", spool.to_str().unwrap()),
        ("aggregator.name", "a"),
        ("aggregator.addresses", &format!("[\"{}\"]", addresses[0])),
        ("aggregator.others", &others),
        ("aggregator.order", "listed"),
        ("aggregator.takeover_after", takeover_after),
        ("admin.listen", ""),
        ("client.backoff_min", "5ms"),
        ("client.backoff_max", "50ms"),
        ("drain.timeout", "100ms"),
    ];
    let flags: Vec<_> = flags.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
    let config = Config::load(None, &flags).unwrap();
    let source = SourceOptions::Generator(GeneratorOptions {
        seed,
        events: EVENTS,
        interval_events: 100,
        rate: 0,
        state: dir.join(format!("generator-{seed}")),
        start_ns: 1_700_000_000_000_000_000,
        step_ns: 1000,
        stay: false,
        shape: Shape::Numbered,
    });
    let (metrics, shutdown) = (Metrics::default(), CancellationToken::new());
    let run = Run { config, source, ready_file: None, shutdown, metrics: metrics.clone() };
    Shipper { metrics, task: tokio::spawn(run.run()) }
}

async fn finish(shipper: Shipper) -> Metrics {
    let outcome = tokio::time::timeout(Duration::from_secs(60), shipper.task).await;
    let outcome = outcome.unwrap_or_else(|_| panic!("not done in time: {:?}", shipper.metrics));
    assert_eq!(outcome.unwrap().unwrap(), Outcome::Sent);
    shipper.metrics
}

#[tokio::test(flavor = "multi_thread")]
async fn the_second_choice_gets_nothing_while_the_first_is_there() {
    let dir = tempfile::tempdir().unwrap();
    let (a, b) = (Aggregator::start(Manner::default()).await, Aggregator::start(Manner::default()).await);
    finish(start(dir.path(), [&a.address, &b.address], "100ms")).await;
    a.has_exactly(0..EVENTS);
    b.has_exactly(0..0);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_aggregator_that_was_never_reached_is_replaced() {
    let dir = tempfile::tempdir().unwrap();
    let b = Aggregator::start(Manner::default()).await;
    let metrics = finish(start(dir.path(), [NOWHERE, &b.address], "100ms")).await;
    b.has_exactly(0..EVENTS);
    let name = |name: &str| [("aggregator", name.to_owned())];
    assert_eq!(metrics.takeovers.get(&name("a")).unwrap().get(), 1);
    assert_eq!(metrics.chosen.get(&name("b")).unwrap().get(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_may_have_arrived_waits_for_the_one_that_stopped() {
    let dir = tempfile::tempdir().unwrap();
    // Takes ten frames, then ends every stream before it journals anything.
    let manner = Manner { stop_after: Some(10), ..Manner::default() };
    let (a, b) = (Aggregator::start(manner).await, Aggregator::start(Manner::default()).await);
    let shipper = start(dir.path(), [&a.address, &b.address], "100ms");
    // It welcomes and breaks: as long as it does so it is not out of reach, and nothing goes elsewhere.
    let ends = tokio::time::Instant::now() + Duration::from_secs(60);
    while shipper.metrics.connects.get() < 20 {
        assert!(tokio::time::Instant::now() < ends, "{:?}", shipper.metrics);
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert!(b.ids().is_empty());
    let at_a = a.ids();
    assert!(at_a.len() >= 1000, "{}", at_a.len());
    drop(a);
    while shipper
        .metrics
        .takeovers
        .get(&[("aggregator", "a".to_owned())])
        .is_none_or(|count| count.get() == 0)
    {
        assert!(tokio::time::Instant::now() < ends, "{:?}", shipper.metrics);
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let ends = tokio::time::Instant::now() + Duration::from_secs(60);
    let waits = |name: &str| {
        let gauge = shipper.metrics.aggregator_in_flight_batches.get(&[("aggregator", name.to_owned())]);
        gauge.map_or(0, |gauge| gauge.get())
    };
    while shipper.metrics.in_flight_batches.get() > waits("a") {
        assert!(tokio::time::Instant::now() < ends, "{:?}", shipper.metrics);
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    // Marked as sent are 64 batches beyond the first: all that there are, or those up to there.
    let at_b = b.ids();
    assert!(at_b.iter().all(|id| !at_a.contains(id)));
    assert_eq!(at_a.len() as u64 + at_b.len() as u64 + waits("a") * 100, EVENTS);
    shipper.task.abort();
}

#[tokio::test(flavor = "multi_thread")]
async fn two_names_of_one_aggregator_are_said_and_harm_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let a = Aggregator::start(Manner::default()).await;
    let first = finish(start(dir.path(), [&a.address, NOWHERE], "100ms")).await;
    assert_eq!(first.journaled_events.get(), EVENTS);
    // Now the first name leads nowhere and the second one to the same journal.
    let shipper = start_seeded(dir.path(), [NOWHERE, &a.address], "100ms", 2);
    let ends = tokio::time::Instant::now() + Duration::from_secs(60);
    while shipper.metrics.disconnects.get(&[("reason", "same_aggregator")]).is_none() {
        assert!(tokio::time::Instant::now() < ends, "{:?}", shipper.metrics);
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    shipper.task.abort();
    a.has_exactly(0..EVENTS);
}
