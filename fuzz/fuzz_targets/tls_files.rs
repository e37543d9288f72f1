//! Any bytes as the three files of TLS (parted by zero bytes): an error with words, or material that both sides can be
//! set up with.
#![no_main]

use libfuzzer_sys::fuzz_target;
use weir_common::tls::CertificateDer;
use weir_common::tls::client::TlsClient;
use weir_common::tls::files::{Material, Pem};
use weir_common::tls::identity::Identity;
use weir_common::tls::server::TlsServer;

fuzz_target!(|bytes: &[u8]| {
    let mut parts = bytes.splitn(3, |byte| *byte == 0).map(<[u8]>::to_vec);
    let mut part = || parts.next().unwrap_or_default();
    let pem = Pem { certificate: part(), key: part(), ca: part() };
    match Material::parse(&pem) {
        Ok(material) => {
            if let Some(identity) = material.identity() {
                assert_eq!(Identity::from_uri(&identity.to_string()), Some(identity));
            }
            let (client, server) = (TlsClient::new(&material), TlsServer::new(&material));
            assert_eq!(client.is_ok(), server.is_ok());
        }
        Err(error) => assert!(!error.to_string().is_empty()),
    }
    // A certificate as it comes over the wire.
    if let Ok(identity) = Identity::of(&CertificateDer::from(bytes)) {
        assert!(!identity.to_string().contains('%'));
    }
});
