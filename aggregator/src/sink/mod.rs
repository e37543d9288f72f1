//! Sinks: each reads the journal by position with a cursor and a retry policy of its own.
//!
//! To add one: a folder here, a [`SinkSpec`] in the table of `app.rs`, its keys in `config/keys.rs`, and a test that
//! reads back what it wrote.

pub mod parquet;

pub use crate::journal::SinkSpec;
