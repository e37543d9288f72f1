//! Sinks: each reads the journal by position with a cursor and a retry policy of its own.
//!
//! To add one: a folder here, a row below, its keys in `config/keys.rs`, its start in `app.rs`, and a test that reads
//! back what it wrote.

pub mod parquet;

pub use crate::journal::SinkSpec;

/// The one sink that ingestion waits for.
pub const PARQUET: SinkSpec = SinkSpec { name: parquet::NAME, required: true };
