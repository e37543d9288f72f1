//! The Parquet sink: journal records become partitioned Parquet files, each row in exactly one of them.
//!
//! [`sink`] takes records and cuts; [`file`](self) writes one file; [`store`] publishes, deletes and recovers, by the
//! steps of [`published`], in a folder or in a store of objects; [`manifest`] and [`verify`] read what was published;
//! [`task`] is the thread that the app spawns. The order of the steps of a cut, and why a kill between any two of them is harmless, is in docs/parquet.md.

mod config;
mod content;
mod error;
mod file;
mod intent;
mod layout;
pub mod manifest;
mod metrics;
#[cfg(feature = "cloud")]
mod objects;
mod partition;
mod properties;
mod published;
mod retention;
mod row_group;
mod sink;
mod sort;
pub mod store;
#[cfg(any(test, feature = "crash-points"))]
pub mod synthetic;
mod target;
mod task;
mod text_column;
mod verify;

pub use config::ParquetConfig;
pub use error::{Disposition, ObjectError, SinkError, Trouble, chain};
pub use metrics::{METRICS, ParquetMetrics};
pub use partition::{AHEAD_MAX, PartitionKey};
pub use retention::{Keep, Retention};
pub use sink::{CutReport, ParquetSink};
pub use store::RecoveryReport;
pub use target::{Scheme, StoreUrl};
pub use task::{NAME, TaskError, log_recovery, open, run};
pub use verify::{JournalReport, Problem, Report, live_files, live_files_in_store, verify, verify_store};

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
#[cfg(feature = "cloud")]
mod objects_tests;
#[cfg(test)]
mod tests;
