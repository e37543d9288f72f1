//! An authority to try TLS with, and what it signs.

use std::net::IpAddr;
use std::ops::Range;
use std::time::Duration;

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, SanType, date_time_ymd,
};
use weir_common::tls::identity::Identity;

/// Whose certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Subject {
    /// An aggregator's, with these DNS names and addresses.
    Server(Vec<String>),
    /// A client's.
    Client(Identity),
}

/// A certificate and its key, PEM.
#[derive(Clone)]
pub struct Pair {
    /// The certificate.
    pub certificate: String,
    /// Its key, PKCS#8.
    pub key: String,
}

/// An authority with its key.
pub struct Authority {
    params: CertificateParams,
    key: KeyPair,
    certificate: String,
}

/// What could not be made.
#[derive(Debug, thiserror::Error)]
#[error("make a certificate of {what}")]
pub struct CertificateError {
    what: String,
    source: rcgen::Error,
}

impl Authority {
    /// A new one with a new key, for these Unix seconds.
    pub fn new(name: &str, valid: Range<u64>) -> Result<Self, CertificateError> {
        let failed = |source| CertificateError { what: name.to_owned(), source };
        let key = KeyPair::generate().map_err(failed)?;
        let params = authority_params(name, &key, valid);
        let certificate = params.self_signed(&key).map_err(failed)?.pem();
        Ok(Self { params, key, certificate })
    }

    /// One that was made before under this name: its certificate and key as PEM.
    pub fn load(name: &str, certificate: String, key: &str) -> Result<Self, CertificateError> {
        let failed = |source| CertificateError { what: name.to_owned(), source };
        let key = KeyPair::from_pem(key).map_err(failed)?;
        // What a signature needs of the authority is its name and its key.
        Ok(Self { params: authority_params(name, &key, 0..1), key, certificate })
    }

    /// Its certificate, PEM.
    pub fn certificate(&self) -> &str {
        &self.certificate
    }

    /// Its key, PEM.
    pub fn key(&self) -> String {
        self.key.serialize_pem()
    }

    /// A certificate for these Unix seconds.
    pub fn issue(&self, subject: &Subject, valid: Range<u64>) -> Result<Pair, CertificateError> {
        let (what, names, usage) = match subject {
            Subject::Server(names) => (
                names.first().cloned().unwrap_or_default(),
                names.clone(),
                ExtendedKeyUsagePurpose::ServerAuth,
            ),
            Subject::Client(identity) => {
                (identity.to_string(), Vec::new(), ExtendedKeyUsagePurpose::ClientAuth)
            }
        };
        let failed = |source| CertificateError { what: what.clone(), source };
        let mut params = CertificateParams::default();
        for name in names {
            params.subject_alt_names.push(match name.parse::<IpAddr>() {
                Ok(address) => SanType::IpAddress(address),
                Err(_) => SanType::DnsName(name.try_into().map_err(failed)?),
            });
        }
        if let Subject::Client(identity) = subject {
            params.subject_alt_names.push(SanType::URI(identity.to_string().try_into().map_err(failed)?));
        }
        params
            .distinguished_name
            .push(DnType::CommonName, what.chars().take(COMMON_NAME_MAX).collect::<String>());
        set_validity(&mut params, valid);
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![usage];
        let key = KeyPair::generate().map_err(failed)?;
        let issuer = Issuer::from_params(&self.params, &self.key);
        let certificate = params.signed_by(&key, &issuer).map_err(failed)?.pem();
        Ok(Pair { certificate, key: key.serialize_pem() })
    }
}

/// Its name holds some of its key: two of them are never taken for each other.
fn authority_params(name: &str, key: &KeyPair, valid: Range<u64>) -> CertificateParams {
    let mut params = CertificateParams::default();
    // The first byte says how the point is written (SEC 1, section 2.3.3).
    let some: String =
        key.public_key_raw().iter().skip(1).take(8).map(|byte| format!("{byte:02x}")).collect();
    let name = format!("{name} {some}");
    params
        .distinguished_name
        .push(DnType::CommonName, name.chars().take(COMMON_NAME_MAX).collect::<String>());
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    set_validity(&mut params, valid);
    params
}

fn set_validity(params: &mut CertificateParams, valid: Range<u64>) {
    let epoch = date_time_ymd(1970, 1, 1);
    params.not_before = epoch + Duration::from_secs(valid.start);
    params.not_after = epoch + Duration::from_secs(valid.end);
}

/// RFC 5280, appendix A.1: ub-common-name.
const COMMON_NAME_MAX: usize = 64;
