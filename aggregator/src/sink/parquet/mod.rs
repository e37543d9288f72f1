//! The Parquet sink: journal records become partitioned Parquet files, each row in exactly one of them.
//!
//! [`sink`] takes records and cuts; [`file`](self) writes one file; [`store`] publishes, deletes and recovers;
//! [`manifest`] and [`verify`] read what was published; [`task`] is the thread that the app spawns. The order of the
//! steps of a cut, and why a kill between any two of them is harmless, is in docs/parquet.md.

mod config;
mod error;
mod file;
mod intent;
mod layout;
pub mod manifest;
mod metrics;
mod partition;
mod properties;
mod retention;
mod sink;
mod sort;
pub mod store;
#[cfg(any(test, feature = "crash-points"))]
pub mod synthetic;
mod task;
mod verify;

pub use config::ParquetConfig;
pub use error::{Disposition, SinkError, chain};
pub use metrics::{METRICS, ParquetMetrics};
pub use partition::{AHEAD_MAX, PartitionKey};
pub use retention::{Keep, Retention};
pub use sink::{CutReport, ParquetSink};
pub use store::RecoveryReport;
pub use task::{NAME, TaskError, log_recovery, run};
pub use verify::{JournalReport, Problem, Report, live_files, verify};

/// The points at which tests kill the process (`weir_common::crash`), in the order of a cut; the last one is of a
/// deletion. docs/delivery.md lists them too.
pub const CRASH_POINTS: [&str; 7] = [
    "parquet.file_written",
    "parquet.intent_synced",
    "parquet.published_one",
    "parquet.published_all",
    "parquet.manifest_written",
    "parquet.intent_removed",
    "parquet.removed_one",
];

#[cfg(test)]
mod tests;
