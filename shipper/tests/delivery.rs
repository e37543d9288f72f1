//! The whole shipper but for the kernel, against an aggregator in the same process that does what a test tells it.
#![expect(clippy::unwrap_used, reason = "tests panic where they fail")]

mod aggregator;

use std::path::Path;
use std::time::Duration;

use aggregator::{Aggregator, Manner};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use weir_proto::v1::refusal::Reason;
use weir_schema::values::LossReason;
use weir_shipper::app::{Outcome, Run, RunError, SourceOptions};
use weir_shipper::config::Config;
use weir_shipper::metrics::Metrics;
use weir_shipper::source::{GeneratorOptions, Shape};

const DEADLINE: Duration = Duration::from_secs(60);

/// A running shipper.
struct Shipper {
    metrics: Metrics,
    shutdown: CancellationToken,
    task: JoinHandle<Result<Outcome, RunError>>,
}

impl Shipper {
    fn start(dir: &Path, address: &str, events: u64, interval_events: u64, set: &[(&str, &str)]) -> Self {
        let spool = dir.join("spool");
        let mut flags: Vec<(String, String)> = [
            ("spool.dir", spool.to_str().unwrap()),
            ("aggregator.addresses", &format!("[\"{address}\"]")),
            ("admin.listen", ""),
            ("client.backoff_min", "5ms"),
            ("client.backoff_max", "50ms"),
            ("client.hello_timeout", "2s"),
            ("drain.timeout", "100ms"),
        ]
        .iter()
        .chain(set)
        .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
        .collect();
        flags.dedup_by(|later, earlier| later.0 == earlier.0);
        let config = Config::load(None, &flags).unwrap();
        let source = SourceOptions::Generator(GeneratorOptions {
            seed: 1,
            events,
            interval_events,
            rate: 0,
            state: dir.join("generator"),
            start_ns: 1_700_000_000_000_000_000,
            step_ns: 1000,
            stay: false,
            shape: Shape::Numbered,
        });
        let (metrics, shutdown) = (Metrics::default(), CancellationToken::new());
        let run =
            Run { config, source, ready_file: None, shutdown: shutdown.clone(), metrics: metrics.clone() };
        Self { metrics, shutdown, task: tokio::spawn(run.run()) }
    }

    async fn finish(self) -> Metrics {
        let outcome = tokio::time::timeout(DEADLINE, self.task).await;
        let outcome = outcome.unwrap_or_else(|_| panic!("not done in time: {:?}", self.metrics));
        assert_eq!(outcome.unwrap().unwrap(), Outcome::Sent);
        self.metrics
    }

    async fn until(&self, what: &str, condition: impl Fn(&Metrics) -> bool) {
        let ends = tokio::time::Instant::now() + DEADLINE;
        while !condition(&self.metrics) {
            assert!(tokio::time::Instant::now() < ends, "{what} did not come: {:?}", self.metrics);
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

fn balanced(metrics: &Metrics) {
    let left = metrics.captured_events.get() + metrics.recovered_events.get();
    let right =
        metrics.journaled_events.get() + metrics.dropped_events_sum() + metrics.in_flight_events.get();
    assert_eq!(left, right, "{metrics:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn every_event_arrives_once() {
    let dir = tempfile::tempdir().unwrap();
    let aggregator = Aggregator::start(Manner::default()).await;
    let metrics = Shipper::start(dir.path(), &aggregator.address, 20_000, 500, &[]).finish().await;
    aggregator.has_exactly(0..20_000);
    assert_eq!(metrics.journaled_events.get(), 20_000);
    assert_eq!(metrics.captured_events.get(), 20_000);
    balanced(&metrics);
}

#[tokio::test(flavor = "multi_thread")]
async fn streams_that_break_anywhere_double_nothing() {
    let dir = tempfile::tempdir().unwrap();
    // Takes a few frames, journals them, breaks before or after the acknowledgement.
    let aggregator = Aggregator::start(Manner { break_after: Some(7), ..Manner::default() }).await;
    let metrics = Shipper::start(dir.path(), &aggregator.address, 20_000, 500, &[]).finish().await;
    aggregator.has_exactly(0..20_000);
    assert!(metrics.connects.get() >= 5, "{metrics:?}");
    balanced(&metrics);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_window_is_kept_and_used() {
    let dir = tempfile::tempdir().unwrap();
    let manner = Manner { window_batches: 5, ack_every: 5, ..Manner::default() };
    let aggregator = Aggregator::start(manner).await;
    Shipper::start(dir.path(), &aggregator.address, 5_000, 100, &[]).finish().await;
    aggregator.has_exactly(0..5_000);
    // 50 batches, acknowledged in fives: with fewer in flight it would never have ended.
    assert_eq!(aggregator.in_flight_max(), 5);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stopped_shipper_goes_on_where_it_was() {
    let dir = tempfile::tempdir().unwrap();
    let nowhere = "127.0.0.1:1";
    let first = Shipper::start(dir.path(), nowhere, 10_000, 100, &[]);
    first.until("half of the events", |m| m.captured_events.get() >= 5_000).await;
    first.shutdown.cancel();
    assert_eq!(first.task.await.unwrap().unwrap(), Outcome::DrainTimedOut);
    balanced(&first.metrics);
    assert!(first.metrics.disconnects.get(&[("reason", "connect")]).is_some());
    let spooled = first.metrics.captured_events.get();

    let aggregator = Aggregator::start(Manner::default()).await;
    let metrics = Shipper::start(dir.path(), &aggregator.address, 10_000, 100, &[]).finish().await;
    aggregator.has_exactly(0..10_000);
    assert_eq!(metrics.recovered_events.get(), spooled);
    balanced(&metrics);
}

#[tokio::test(flavor = "multi_thread")]
async fn dropped_and_delivered_are_what_was_sent() {
    let dir = tempfile::tempdir().unwrap();
    let budget = [("spool.bytes_max", "256KiB"), ("spool.segment_bytes", "16KiB")];
    let first = Shipper::start(dir.path(), "127.0.0.1:1", 20_000, 100, &budget);
    first.until("all events", |m| m.captured_events.get() == 20_000).await;
    let dropped = first.metrics.dropped_events_of(LossReason::Budget);
    assert!(dropped > 0);
    balanced(&first.metrics);
    first.shutdown.cancel();
    first.task.await.unwrap().unwrap();

    let aggregator = Aggregator::start(Manner::default()).await;
    let metrics = Shipper::start(dir.path(), &aggregator.address, 20_000, 100, &budget).finish().await;
    let ids = aggregator.ids();
    assert_eq!(ids.len() as u64 + dropped, 20_000);
    assert_eq!(aggregator.lost(LossReason::Budget), dropped);
    assert_eq!(ids.last(), Some(&19_999), "the newest are kept");
    balanced(&metrics);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_that_is_always_refused_is_given_up_and_counted() {
    let dir = tempfile::tempdir().unwrap();
    let aggregator = Aggregator::start(Manner { bad_batch: Some(3), ..Manner::default() }).await;
    let metrics = Shipper::start(dir.path(), &aggregator.address, 1_000, 100, &[]).finish().await;
    assert_eq!(aggregator.ids().len(), 900);
    assert_eq!(aggregator.lost(LossReason::Rejected), 100);
    assert_eq!(metrics.disconnects.get(&[("reason", Reason::BadBatch.as_str_name())]).unwrap().get(), 3);
    balanced(&metrics);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_aggregator_that_forgot_the_epoch_gets_a_new_one() {
    let dir = tempfile::tempdir().unwrap();
    let aggregator = Aggregator::start(Manner { forget_epoch_at: Some(4), ..Manner::default() }).await;
    let metrics = Shipper::start(dir.path(), &aggregator.address, 1_000, 100, &[]).finish().await;
    aggregator.has_exactly(0..1_000);
    assert_eq!(metrics.epochs.get(&[("reason", "unknown_epoch")]).unwrap().get(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn another_journal_gets_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let first =
        Aggregator::start(Manner { break_after: Some(3), stop_after: Some(3), ..Manner::default() }).await;
    let shipper = Shipper::start(dir.path(), &first.address, 1_000, 100, &[]);
    shipper.until("some events", |m| m.journaled_events.get() >= 100).await;
    shipper.shutdown.cancel();
    shipper.task.await.unwrap().unwrap();
    drop(first);

    let second = Aggregator::start(Manner::default()).await;
    let shipper = Shipper::start(dir.path(), &second.address, 1_000, 100, &[]);
    shipper.until("a refusal", |m| m.disconnects.get(&[("reason", "other_journal")]).is_some()).await;
    shipper.shutdown.cancel();
    assert_eq!(shipper.task.await.unwrap().unwrap(), Outcome::DrainTimedOut);
    assert!(second.ids().is_empty());
    assert_eq!(shipper.metrics.sent_batches.get(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn hostile_answers_are_survived() {
    for hostile in [
        aggregator::Hostile::AckBeyondSent,
        aggregator::Hostile::ShortJournalId,
        aggregator::Hostile::NoWindow,
        aggregator::Hostile::EmptyFrame,
        aggregator::Hostile::SecondWelcome,
        aggregator::Hostile::AckFirst,
        aggregator::Hostile::Silence,
    ] {
        let dir = tempfile::tempdir().unwrap();
        let aggregator = Aggregator::start(Manner { hostile: Some((hostile, 2)), ..Manner::default() }).await;
        let set = [("client.hello_timeout", "200ms"), ("client.ack_timeout", "200ms")];
        let metrics = Shipper::start(dir.path(), &aggregator.address, 1_000, 100, &set).finish().await;
        aggregator.has_exactly(0..1_000);
        balanced(&metrics);
    }
}
