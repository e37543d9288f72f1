//! The aggregator's metrics: one table of names and helps, from which the registry and docs/metrics.md come.
//!
//! Counted per batch or group, never per event. The balance of ingestion is
//! `received = journaled + duplicate + refused + in flight`; that of each sink is collected from its cursor.

use std::fmt;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::{ConstCounter, Counter};
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::{ConstGauge, Gauge};
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;
use weir_schema::Kind;

use crate::accepted::{Accepted, Content};
use crate::journal::{JournalRecord, SinkCursors, SinkStatus};

/// A metric's documentation.
#[derive(Clone, Copy, Debug)]
pub struct MetricDoc {
    /// Name as it is exported.
    pub name: &'static str,
    /// Names of its labels.
    pub labels: &'static str,
    /// What it counts.
    pub help: &'static str,
}

const fn doc(name: &'static str, labels: &'static str, help: &'static str) -> MetricDoc {
    MetricDoc { name, labels, help }
}

/// Every metric of the aggregator.
pub const METRICS: &[MetricDoc] = &[
    doc("weir_aggregator_received_batches_total", "", "Batches and skips received"),
    doc("weir_aggregator_received_events_total", "", "Events in them, as their envelopes say; 1 for a skip"),
    doc("weir_aggregator_received_bytes_total", "", "Bytes of their payloads, compressed"),
    doc("weir_aggregator_journaled_batches_total", "", "Batches and skips synced to the journal"),
    doc("weir_aggregator_journaled_events_total", "kind", "Events synced to the journal"),
    doc("weir_aggregator_journaled_bytes_total", "", "Bytes of the journal's records"),
    doc("weir_aggregator_duplicate_batches_total", "", "Batches and skips that were accepted before"),
    doc("weir_aggregator_duplicate_events_total", "", "Events in them"),
    doc("weir_aggregator_refused_batches_total", "reason", "Batches and skips refused, with their stream"),
    doc("weir_aggregator_refused_events_total", "reason", "Events in them, as their envelopes say"),
    doc(
        "weir_aggregator_in_flight_batches",
        "",
        "Batches and skips received and not yet decided or journaled",
    ),
    doc("weir_aggregator_in_flight_events", "", "Events in them"),
    doc("weir_aggregator_undecided_bytes", "", "Memory taken by them; at most ingest.memory_bytes"),
    doc("weir_aggregator_lost_events_total", "stage,reason", "Events that journaled loss rows say were lost"),
    doc("weir_aggregator_streams", "", "Open shipper streams"),
    doc("weir_aggregator_streams_refused_total", "reason", "Streams ended by a refusal"),
    doc("weir_aggregator_connections", "", "Open connections"),
    doc(
        "weir_aggregator_connections_refused_total",
        "reason",
        "Connections closed unserved: by a limit, silent, or what was wrong with their TLS (docs/encryption.md)",
    ),
    doc(
        "weir_aggregator_connections_revoked_total",
        "reason",
        "Connections ended because their certificate is not accepted any more",
    ),
    doc("weir_aggregator_tls_handshakes", "", "TLS handshakes that are not complete"),
    doc(
        "weir_aggregator_tls_reloads_total",
        "result",
        "New states of the files of TLS: used, or failed and the last good one kept",
    ),
    doc("weir_aggregator_journal_bytes", "", "Bytes of the journal on disk"),
    doc("weir_aggregator_journal_segments", "", "Files of the journal"),
    doc("weir_aggregator_journal_tail_bytes", "", "Memory of the latest records; about journal.tail_bytes"),
    doc("weir_aggregator_journal_sync_seconds", "", "Time of each fdatasync"),
    doc("weir_aggregator_journal_group_events", "", "Events per group commit"),
    doc("weir_aggregator_journal_paused_budget", "", "1 while ingestion waits for a required sink"),
    doc("weir_aggregator_journal_paused_disk_full", "", "1 while ingestion waits for disk"),
    doc(
        "weir_aggregator_journal_cut_bytes_total",
        "",
        "Bytes of torn tails cut at start; never acknowledged",
    ),
    doc("weir_aggregator_journal_damaged_ranges_total", "", "Damaged ranges of records found at start"),
    doc("weir_aggregator_observe_viewers", "", "Open observe streams"),
    doc("weir_aggregator_observe_missed_events_total", "", "Events that passed slow viewers by"),
    doc(SINK_JOURNALED, "sink", "Events the sink was to deliver: its backlog at start and all since"),
    doc(SINK_DELIVERED, "sink", "Events safely in the sink"),
    doc(SINK_REJECTED, "sink", "Events the sink refused"),
    doc(SINK_SKIPPED, "sink", "Events passed over"),
    doc(SINK_IN_FLIGHT, "sink", "Events behind the sink's cursor"),
    doc(SINK_LAG, "sink", "Journal records behind the sink's cursor"),
];

const SINK_JOURNALED: &str = "weir_aggregator_sink_journaled_events_total";
const SINK_DELIVERED: &str = "weir_aggregator_sink_delivered_events_total";
const SINK_REJECTED: &str = "weir_aggregator_sink_rejected_events_total";
const SINK_SKIPPED: &str = "weir_aggregator_sink_skipped_events_total";
const SINK_IN_FLIGHT: &str = "weir_aggregator_sink_in_flight_events";
const SINK_LAG: &str = "weir_aggregator_sink_lag_records";

/// Label `reason`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct Reason {
    /// A word of a closed set.
    pub reason: &'static str,
}

/// Label `result`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct ResultLabel {
    /// `used` or `failed`.
    pub result: &'static str,
}

/// Label `kind`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct KindLabel {
    /// Of `Kind::as_str`.
    pub kind: &'static str,
}

/// Labels `stage` and `reason`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct LossLabel {
    /// Of `LossStage::as_str`.
    pub stage: &'static str,
    /// Of `LossReason::as_str`.
    pub reason: &'static str,
}

/// Handles on every metric; cheap to clone.
#[derive(Clone, Debug)]
#[expect(missing_docs, reason = "each field is documented by its row of METRICS")]
pub struct Metrics {
    pub received_batches: Counter,
    pub received_events: Counter,
    pub received_bytes: Counter,
    pub journaled_batches: Counter,
    pub journaled_events: Family<KindLabel, Counter>,
    pub journaled_bytes: Counter,
    pub duplicate_batches: Counter,
    pub duplicate_events: Counter,
    pub refused_batches: Family<Reason, Counter>,
    pub refused_events: Family<Reason, Counter>,
    pub in_flight_batches: Gauge,
    pub in_flight_events: Gauge,
    pub undecided_bytes: Gauge,
    pub lost_events: Family<LossLabel, Counter>,
    pub streams: Gauge,
    pub streams_refused: Family<Reason, Counter>,
    pub connections: Gauge,
    pub connections_refused: Family<Reason, Counter>,
    pub connections_revoked: Family<Reason, Counter>,
    pub tls_handshakes: Gauge,
    pub tls_reloads: Family<ResultLabel, Counter>,
    pub journal_bytes: Gauge,
    pub journal_segments: Gauge,
    pub journal_tail_bytes: Gauge,
    pub journal_sync_seconds: Histogram,
    pub group_events: Histogram,
    pub paused_budget: Gauge,
    pub paused_disk_full: Gauge,
    pub journal_cut_bytes: Counter,
    pub journal_damaged_ranges: Counter,
    pub observe_viewers: Gauge,
    pub observe_missed_events: Counter,
}

impl Metrics {
    /// Registers everything, with the balance of the sinks of `cursors`.
    pub fn new(registry: &mut Registry, cursors: &SinkCursors) -> Self {
        let mut add = Adder(registry);
        let metrics = Self {
            received_batches: add.metric("weir_aggregator_received_batches_total"),
            received_events: add.metric("weir_aggregator_received_events_total"),
            received_bytes: add.metric("weir_aggregator_received_bytes_total"),
            journaled_batches: add.metric("weir_aggregator_journaled_batches_total"),
            journaled_events: add.metric("weir_aggregator_journaled_events_total"),
            journaled_bytes: add.metric("weir_aggregator_journaled_bytes_total"),
            duplicate_batches: add.metric("weir_aggregator_duplicate_batches_total"),
            duplicate_events: add.metric("weir_aggregator_duplicate_events_total"),
            refused_batches: add.metric("weir_aggregator_refused_batches_total"),
            refused_events: add.metric("weir_aggregator_refused_events_total"),
            in_flight_batches: add.metric("weir_aggregator_in_flight_batches"),
            in_flight_events: add.metric("weir_aggregator_in_flight_events"),
            undecided_bytes: add.metric("weir_aggregator_undecided_bytes"),
            lost_events: add.metric("weir_aggregator_lost_events_total"),
            streams: add.metric("weir_aggregator_streams"),
            streams_refused: add.metric("weir_aggregator_streams_refused_total"),
            connections: add.metric("weir_aggregator_connections"),
            connections_refused: add.metric("weir_aggregator_connections_refused_total"),
            connections_revoked: add.metric("weir_aggregator_connections_revoked_total"),
            tls_handshakes: add.metric("weir_aggregator_tls_handshakes"),
            tls_reloads: add.metric("weir_aggregator_tls_reloads_total"),
            journal_bytes: add.metric("weir_aggregator_journal_bytes"),
            journal_segments: add.metric("weir_aggregator_journal_segments"),
            journal_tail_bytes: add.metric("weir_aggregator_journal_tail_bytes"),
            journal_sync_seconds: add.with(
                "weir_aggregator_journal_sync_seconds",
                Histogram::new(exponential_buckets(0.0001, 2.0, 16)),
            ),
            group_events: add.with(
                "weir_aggregator_journal_group_events",
                Histogram::new(exponential_buckets(1.0, 4.0, 10)),
            ),
            paused_budget: add.metric("weir_aggregator_journal_paused_budget"),
            paused_disk_full: add.metric("weir_aggregator_journal_paused_disk_full"),
            journal_cut_bytes: add.metric("weir_aggregator_journal_cut_bytes_total"),
            journal_damaged_ranges: add.metric("weir_aggregator_journal_damaged_ranges_total"),
            observe_viewers: add.metric("weir_aggregator_observe_viewers"),
            observe_missed_events: add.metric("weir_aggregator_observe_missed_events_total"),
        };
        for kind in Kind::ALL {
            // A kind that has not occurred is 0, not absent.
            drop(metrics.journaled_events.get_or_create(&KindLabel { kind: kind.as_str() }));
        }
        for result in ["used", "failed"] {
            drop(metrics.tls_reloads.get_or_create(&ResultLabel { result }));
        }
        registry.register_collector(Box::new(SinkCollector(cursors.clone())));
        metrics
    }

    /// A unit arrived.
    pub fn received(&self, events: u64, bytes: u64) {
        self.received_batches.inc();
        self.received_events.inc_by(events);
        self.received_bytes.inc_by(bytes);
        self.in_flight_batches.inc();
        self.in_flight_events.inc_by(signed(events));
    }

    /// A unit that arrived was accepted before.
    pub fn duplicate(&self, events: u64) {
        self.duplicate_batches.inc();
        self.duplicate_events.inc_by(events);
        self.decided(1, events);
    }

    /// A unit that arrived was refused, or its stream ended before it was decided.
    pub fn refused(&self, reason: &'static str, events: u64) {
        self.refused_batches.get_or_create(&Reason { reason }).inc();
        self.refused_events.get_or_create(&Reason { reason }).inc_by(events);
        self.decided(1, events);
    }

    /// Units were synced in `record`, which takes `bytes` on disk.
    pub fn journaled(&self, units: &[Accepted], record: &JournalRecord, bytes: usize) {
        self.journaled_batches.inc_by(units.len() as u64);
        self.journaled_bytes.inc_by(bytes as u64);
        for (kind, batch) in &record.batches {
            let label = KindLabel { kind: kind.as_str() };
            self.journaled_events.get_or_create(&label).inc_by(batch.num_rows() as u64);
        }
        self.decided(units.len() as u64, units.iter().map(Accepted::events).sum());
        for unit in units {
            match &unit.content {
                Content::Skip(loss) => self.lost(loss),
                Content::Body(body) => body.get().losses.iter().for_each(|loss| self.lost(loss)),
            }
        }
    }

    /// Events that loss rows say were lost, over all stages and reasons.
    pub fn lost_total(&self) -> u64 {
        use weir_schema::values::{LossReason, LossStage};
        let pairs =
            LossStage::ALL.iter().flat_map(|s| LossReason::ALL.iter().map(move |r| (s.as_str(), r.as_str())));
        pairs
            .filter_map(|(stage, reason)| self.lost_events.get(&LossLabel { stage, reason }))
            .map(|counter| counter.get())
            .sum()
    }

    fn lost(&self, loss: &weir_proto::v1::LossEvent) {
        use weir_schema::values::{LossReason, LossStage};
        let stage = LossStage::from_code(loss.stage).map_or("", LossStage::as_str);
        let reason = LossReason::from_code(loss.reason).map_or("", LossReason::as_str);
        let counter = self.lost_events.get_or_create_owned(&LossLabel { stage, reason });
        counter.inc_by(loss.count.unwrap_or_default());
    }

    fn decided(&self, batches: u64, events: u64) {
        self.in_flight_batches.dec_by(signed(batches));
        self.in_flight_events.dec_by(signed(events));
    }
}

/// Registers with the help of the table.
struct Adder<'a>(&'a mut Registry);

impl Adder<'_> {
    fn metric<M>(&mut self, name: &'static str) -> M
    where
        M: Clone + Default + prometheus_client::registry::Metric,
    {
        self.with(name, M::default())
    }

    fn with<M>(&mut self, name: &'static str, metric: M) -> M
    where
        M: Clone + prometheus_client::registry::Metric,
    {
        // The encoder adds `_total` to counters.
        self.0.register(name.trim_end_matches("_total"), help(name), metric.clone());
        metric
    }
}

fn help(name: &str) -> &'static str {
    METRICS.iter().find(|row| row.name == name).map_or("", |row| row.help)
}

fn signed(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

/// Exports each sink's balance as its cursor has it at that moment.
struct SinkCollector(SinkCursors);

impl fmt::Debug for SinkCollector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SinkCollector")
    }
}

impl Collector for SinkCollector {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        type Value = fn(&SinkStatus) -> u64;
        let status = self.0.status();
        let counters: [(&str, Value); 4] = [
            (SINK_JOURNALED, |sink| sink.counts.journaled),
            (SINK_DELIVERED, |sink| sink.counts.delivered),
            (SINK_REJECTED, |sink| sink.counts.rejected),
            (SINK_SKIPPED, |sink| sink.counts.skipped),
        ];
        for (name, value) in counters {
            let short = name.trim_end_matches("_total");
            let mut family = encoder.encode_descriptor(short, help(name), None, MetricType::Counter)?;
            for sink in &status {
                let labels = [("sink", sink.spec.name)];
                ConstCounter::new(value(sink)).encode(family.encode_family(&labels)?)?;
            }
        }
        let gauges: [(&str, Value); 2] =
            [(SINK_IN_FLIGHT, |sink| sink.lag_events), (SINK_LAG, |sink| sink.lag_records)];
        for (name, value) in gauges {
            let mut family = encoder.encode_descriptor(name, help(name), None, MetricType::Gauge)?;
            for sink in &status {
                let labels = [("sink", sink.spec.name)];
                ConstGauge::new(signed(value(sink))).encode(family.encode_family(&labels)?)?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::journal::SinkSpec;

    #[test]
    fn what_is_exported_is_what_the_table_says() {
        let mut registry = Registry::default();
        let cursors = SinkCursors::default();
        cursors.register(SinkSpec { name: "parquet", required: true });
        let metrics = Metrics::new(&mut registry, &cursors);
        metrics.received(1, 1);
        metrics.refused("gap", 1);
        metrics.lost(&weir_proto::v1::LossEvent { stage: 1, reason: 1, ..Default::default() });
        let reason = Reason { reason: "gap" };
        drop((
            metrics.streams_refused.get_or_create(&reason),
            metrics.connections_refused.get_or_create(&reason),
            metrics.connections_revoked.get_or_create(&reason),
        ));
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
        let mut exported: Vec<(&str, &str)> = text
            .lines()
            .filter_map(|line| line.strip_prefix("# HELP "))
            .filter_map(|line| line.split_once(' '))
            .map(|(name, help)| (name, help.trim_end_matches('.')))
            .collect();
        let mut table: Vec<(&str, &str)> =
            METRICS.iter().map(|row| (row.name.trim_end_matches("_total"), row.help)).collect();
        exported.sort_unstable();
        table.sort_unstable();
        assert_eq!(exported, table);
    }
}
