//! weir-aggregator: receives batches from shippers, enriches and journals them once, and feeds the sinks.
//!
//! The way of an event is the order of the modules: [`ingest`] checks a batch and decides on its number, [`enrich`] and
//! [`columns`] turn it into Arrow, [`journal`] syncs it, after which it is acknowledged; [`sink`]s and [`observe`] read
//! the journal by position. [`app`] wires and ends everything.

#![forbid(unsafe_code)]
#![cfg_attr(test, recursion_limit = "256")]

pub mod accepted;
pub mod app;
pub mod columns;
mod command;
pub mod config;
pub mod enrich;
pub mod ingest;
pub mod journal;
pub mod metrics;
pub mod observe;
pub mod sink;

pub use command::{block_on, main};

/// The points at which tests kill the process (`weir_common::crash`), in the order of an event; those of the Parquet
/// sink are [`sink::parquet::CRASH_POINTS`]. docs/delivery.md lists them too.
pub const CRASH_POINTS: [&str; 8] = [
    "ingest.decoded",
    "ingest.queued",
    "journal.built",
    "journal.appended",
    "journal.synced",
    "journal.acknowledged",
    "journal.rolled",
    "ack.sent",
];

/// Runs an aggregator until `shutdown` is cancelled, then drains it.
pub async fn run(
    config: config::Config,
    shutdown: tokio_util::sync::CancellationToken,
) -> Result<app::Outcome, app::RunError> {
    app::Run { config, ready_file: None, shutdown }.run().await
}
