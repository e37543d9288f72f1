//! TLS between Weir's programs: mutual, version 1.3 only, from files that may change while the program runs.
//!
//! Owns the files and their checks ([`files`]), who a certificate is for ([`identity`]), what a failed handshake means
//! ([`failure`]), both sides' set-up ([`server`], [`client`]), reloading ([`reload`]) and which addresses may go without
//! ([`plaintext`]). Owns no sockets but the one that [`client::Dialer`] hands out. Used by shipper, aggregator and the
//! command line.
//!
//! No session is ever resumed: a ticket would carry an old certificate past the check that is made of a new one.

pub mod client;
pub mod config;
pub mod failure;
pub mod files;
pub mod identity;
pub mod plaintext;
pub mod reload;
pub mod server;

use std::sync::Arc;

use rustls::crypto::CryptoProvider;

pub use rustls::pki_types::{CertificateDer, ServerName};

/// What HTTP/2 is called in ALPN (RFC 9113, section 3.1).
const ALPN_H2: &[u8] = b"h2";

fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

#[cfg(test)]
mod tests;
