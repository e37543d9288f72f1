//! What Weir's binaries share, written once: the segmented log under the shipper's spool and the aggregator's journal,
//! identifiers, table-driven configuration, the admin server, TLS, logging.
//!
//! Nothing here knows what an event is.

pub mod admin;
pub mod clock;
pub mod config;
pub mod crash;
pub mod exit;
pub mod file;
pub mod id;
pub mod log;
pub mod logging;
pub mod tls;
