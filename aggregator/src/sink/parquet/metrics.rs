//! What the sink counts.

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Metric, Registry};

use super::manifest::{RemovedFile, kind_of};
use super::sink::CutReport;
use crate::metrics::MetricDoc;

/// Every metric of the sink, under its name as exported.
pub const METRICS: &[MetricDoc] = &[
    doc("weir_aggregator_parquet_rows_total", "kind", "Rows published"),
    doc("weir_aggregator_parquet_files_total", "kind", "Files published"),
    doc("weir_aggregator_parquet_bytes_total", "kind", "Bytes of the files published"),
    doc("weir_aggregator_parquet_cuts_total", "reason", "Cuts, by what made them due"),
    doc(
        "weir_aggregator_parquet_cut_duration_seconds",
        "",
        "Time of a cut, from closing its files to its manifest entry",
    ),
    doc("weir_aggregator_parquet_removed_files_total", "kind,reason", "Files that retention deleted"),
    doc(
        "weir_aggregator_parquet_removed_bytes_total",
        "kind,reason",
        "Bytes of the files that retention deleted",
    ),
    doc("weir_aggregator_parquet_live_files", "", "Files that are live"),
    doc("weir_aggregator_parquet_open_partitions", "", "Partitions with rows that no cut has published"),
    doc(
        "weir_aggregator_parquet_buffered_bytes",
        "",
        "Memory of rows that wait for their row group, upper bound",
    ),
    doc("weir_aggregator_parquet_next_position", "", "First journal position whose rows are in no file"),
    doc("weir_aggregator_parquet_lag_records", "", "Journal records whose rows are in no file"),
    doc(
        "weir_aggregator_parquet_skipped_positions_total",
        "",
        "Journal records that could not be read: lost",
    ),
    doc(
        "weir_aggregator_parquet_damaged_files",
        "",
        "Live files found missing or of another size at the last recovery",
    ),
    doc("weir_aggregator_parquet_retries_total", "", "Recoveries after an error such as a full disk"),
];

const fn doc(name: &'static str, labels: &'static str, help: &'static str) -> MetricDoc {
    MetricDoc { name, labels, help }
}

/// The metrics' handles; a clone counts on the same.
#[derive(Clone, Debug)]
pub struct ParquetMetrics {
    rows: Family<KindLabel, Counter>,
    files: Family<KindLabel, Counter>,
    bytes: Family<KindLabel, Counter>,
    cuts: Family<ReasonLabel, Counter>,
    pub(super) cut_duration: Histogram,
    removed_files: Family<RemovalLabels, Counter>,
    removed_bytes: Family<RemovalLabels, Counter>,
    pub(super) live_files: Gauge,
    pub(super) open_partitions: Gauge,
    pub(super) buffered_bytes: Gauge,
    pub(super) next_position: Gauge,
    pub(super) lag_records: Gauge,
    pub(super) skipped_positions: Counter,
    pub(super) damaged_files: Gauge,
    pub(super) retries: Counter,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct KindLabel {
    kind: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ReasonLabel {
    reason: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RemovalLabels {
    kind: &'static str,
    reason: &'static str,
}

impl ParquetMetrics {
    /// Makes the metrics and registers them under their whole names.
    pub fn register(registry: &mut Registry) -> Self {
        let metrics = Self {
            rows: Family::default(),
            files: Family::default(),
            bytes: Family::default(),
            cuts: Family::default(),
            cut_duration: Histogram::new(exponential_buckets(0.001, 4.0, 9)),
            removed_files: Family::default(),
            removed_bytes: Family::default(),
            live_files: Gauge::default(),
            open_partitions: Gauge::default(),
            buffered_bytes: Gauge::default(),
            next_position: Gauge::default(),
            lag_records: Gauge::default(),
            skipped_positions: Counter::default(),
            damaged_files: Gauge::default(),
            retries: Counter::default(),
        };
        let Self {
            rows,
            files,
            bytes,
            cuts,
            cut_duration,
            removed_files,
            removed_bytes,
            live_files,
            open_partitions,
            buffered_bytes,
            next_position,
            lag_records,
            skipped_positions,
            damaged_files,
            retries,
        } = metrics.clone();
        add(registry, "rows_total", rows);
        add(registry, "files_total", files);
        add(registry, "bytes_total", bytes);
        add(registry, "cuts_total", cuts);
        add(registry, "cut_duration_seconds", cut_duration);
        add(registry, "removed_files_total", removed_files);
        add(registry, "removed_bytes_total", removed_bytes);
        add(registry, "live_files", live_files);
        add(registry, "open_partitions", open_partitions);
        add(registry, "buffered_bytes", buffered_bytes);
        add(registry, "next_position", next_position);
        add(registry, "lag_records", lag_records);
        add(registry, "skipped_positions_total", skipped_positions);
        add(registry, "damaged_files", damaged_files);
        add(registry, "retries_total", retries);
        metrics
    }

    /// Counts a cut.
    pub(super) fn count_cut(&self, cut: &CutReport) {
        self.cuts.get_or_create(&ReasonLabel { reason: cut.reason.as_str() }).inc();
        for file in &cut.files {
            let Some(kind) = kind_of(&file.path) else { continue };
            let label = KindLabel { kind: kind.as_str() };
            self.rows.get_or_create(&label).inc_by(file.rows);
            self.files.get_or_create(&label).inc();
            self.bytes.get_or_create(&label).inc_by(file.bytes);
        }
    }

    /// Counts deletions.
    pub(super) fn count_removed(&self, removed: &[RemovedFile]) {
        for file in removed {
            let Some(kind) = kind_of(&file.path) else { continue };
            let labels = RemovalLabels { kind: kind.as_str(), reason: file.reason.as_str() };
            self.removed_files.get_or_create(&labels).inc();
            self.removed_bytes.get_or_create(&labels).inc_by(file.bytes);
        }
    }
}

/// Registers a metric of [`METRICS`] by the end of its name. The library appends `_total` to counters itself.
fn add(registry: &mut Registry, end: &str, metric: impl Metric) {
    let row = METRICS.iter().find(|row| row.name.strip_prefix(PREFIX) == Some(end));
    debug_assert!(row.is_some(), "{end} is not in the table");
    if let Some(MetricDoc { name, labels: _, help }) = row {
        registry.register(name.strip_suffix("_total").unwrap_or(name), *help, metric);
    }
}

const PREFIX: &str = "weir_aggregator_parquet_";

#[cfg(test)]
mod tests {
    use super::super::manifest::{LiveFile, Reason, RemovalReason};
    use super::*;

    #[test]
    fn every_metric_of_the_table_is_scraped_and_none_else() {
        let mut registry = Registry::default();
        let metrics = ParquetMetrics::register(&mut registry);
        let path = "kind=flow/cluster=a/date=2025-06-01/hour=12/a.parquet".to_owned();
        metrics.count_removed(&[RemovedFile {
            path: path.clone(),
            rows: 1,
            bytes: 7,
            reason: RemovalReason::Age,
        }]);
        let file = LiveFile {
            path,
            rows: 5,
            bytes: 7,
            sha256: String::new(),
            min_time_us: 0,
            max_time_us: 0,
            written_us: 0,
            schema_version: 1,
        };
        metrics.count_cut(&CutReport { reason: Reason::Age, next_position: 2, files: vec![file] });
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
        for row in METRICS {
            let base = row.name.strip_suffix("_total").unwrap_or(row.name);
            assert!(text.contains(&format!("# HELP {base} {}.\n", row.help)), "{}: {text}", row.name);
            let sample = text.lines().find(|line| !line.starts_with('#') && line.starts_with(base)).unwrap();
            let labels = sample.split_once('{').map_or("", |(_, rest)| rest.split('}').next().unwrap());
            let names: Vec<&str> = labels.split(',').filter_map(|label| label.split('=').next()).collect();
            assert_eq!(names.join(","), row.labels, "{sample}");
        }
        assert_eq!(text.matches("# HELP ").count(), METRICS.len(), "{text}");
        assert!(text.contains("weir_aggregator_parquet_rows_total{kind=\"flow\"} 5"), "{text}");
    }
}
