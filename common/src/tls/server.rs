//! The side that is connected to.

use std::sync::Arc;

use rustls::ServerConfig;
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::server::danger::ClientCertVerifier;
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use rustls::sign::SingleCertAndKey;

use super::failure::Failure;
use super::files::{Material, Part, PemError};

/// One state of the files, as a server uses it.
#[derive(Debug)]
pub struct TlsServer {
    /// For new connections.
    pub config: Arc<ServerConfig>,
    verifier: Arc<dyn ClientCertVerifier>,
}

impl TlsServer {
    /// From checked files.
    pub fn new(material: &Material) -> Result<Self, PemError> {
        let unusable = |reason: String| PemError::Unusable { part: Part::Ca, reason };
        let roots = Arc::clone(&material.roots);
        let verifier = WebPkiClientVerifier::builder_with_provider(roots, super::provider())
            .build()
            .map_err(|error| unusable(error.to_string()))?;
        let mut config = ServerConfig::builder_with_provider(super::provider())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(|error| unusable(error.to_string()))?
            .with_client_cert_verifier(Arc::clone(&verifier))
            .with_cert_resolver(Arc::new(SingleCertAndKey::from(Arc::clone(&material.key))));
        config.alpn_protocols = vec![super::ALPN_H2.to_vec()];
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        Ok(Self { config: Arc::new(config), verifier })
    }

    /// Whether a client's chain would be accepted now.
    pub fn accepts(&self, chain: &[CertificateDer<'_>]) -> Result<(), Failure> {
        let (first, rest) = chain.split_first().ok_or(Failure::NoCertificate)?;
        match self.verifier.verify_client_cert(first, rest, UnixTime::now()) {
            Ok(_) => Ok(()),
            Err(error) => Err(Failure::of(&error)),
        }
    }
}
