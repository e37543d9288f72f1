//! weir-aggregator: receives batches from shippers, enriches and journals them once, and feeds the sinks.
//!
//! The way of an event is the order of the modules: [`ingest`] checks a batch and decides on its number, [`enrich`] and
//! [`columns`] turn it into Arrow, [`journal`] syncs it, after which it is acknowledged; [`sink`]s and [`observe`] read
//! the journal by position.

#![forbid(unsafe_code)]

pub mod accepted;
pub mod columns;
pub mod config;
pub mod enrich;
pub mod ingest;
pub mod journal;
pub mod metrics;
pub mod observe;
pub mod sink;
