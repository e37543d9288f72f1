//! The three PEM files of a side: its certificate chain, its key, and the authorities that it believes.
//!
//! Reading and checking are apart, so that any bytes can be checked without a file (the fuzz target does).

use std::fmt;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::RootCertStore;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;

use super::identity::Identity;

/// A file may have this many bytes.
pub const FILE_BYTES_MAX: u64 = 1 << 20;
/// Certificates in one file, at most.
pub const CERTIFICATES_MAX: usize = 256;

/// Where the files are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsFiles {
    /// Own certificate, then those between it and the authority.
    pub certificate: PathBuf,
    /// Its key: PKCS#8, PKCS#1 or SEC1.
    pub key: PathBuf,
    /// Certificates of the authorities whose certificates the other side may have.
    pub ca: PathBuf,
}

/// The files' bytes.
#[derive(Clone, PartialEq, Eq)]
pub struct Pem {
    /// Of the chain.
    pub certificate: Vec<u8>,
    /// Of the key.
    pub key: Vec<u8>,
    /// Of the authorities.
    pub ca: Vec<u8>,
}

impl fmt::Debug for Pem {
    /// Without the bytes: one of them is a key.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pem").finish_non_exhaustive()
    }
}

/// Which file an error is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// `tls.certificate`.
    Certificate,
    /// `tls.key`.
    Key,
    /// `tls.ca`.
    Ca,
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Certificate => "certificate (tls.certificate)",
            Self::Key => "key (tls.key)",
            Self::Ca => "authorities (tls.ca)",
        })
    }
}

/// What the files' bytes lack.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PemError {
    /// Not PEM, or cut off.
    #[error("the {part} are not PEM: {reason}")]
    Syntax {
        /// Which file.
        part: Part,
        /// What is wrong.
        reason: String,
    },
    /// Nothing of the kind is in it.
    #[error("no {wanted} is in the file of the {part}")]
    Missing {
        /// Which file.
        part: Part,
        /// What should be.
        wanted: &'static str,
    },
    /// More than anybody needs.
    #[error("{count} certificates are in the file of the {part}, at most {CERTIFICATES_MAX} may be")]
    TooMany {
        /// Which file.
        part: Part,
        /// How many there are.
        count: usize,
    },
    /// A certificate or key cannot be used.
    #[error("the {part} cannot be used: {reason}")]
    Unusable {
        /// Which file.
        part: Part,
        /// What is wrong.
        reason: String,
    },
    /// Key and certificate are not a pair.
    #[error("the key (tls.key) does not belong to the certificate (tls.certificate)")]
    Mismatch,
}

/// Why the files could not be used.
#[derive(Debug, thiserror::Error)]
pub enum FilesError {
    /// One could not be read.
    #[error("read {path}, the file of the {part}")]
    Read {
        /// Which file.
        part: Part,
        /// Where.
        path: PathBuf,
        /// The system's words.
        source: io::Error,
    },
    /// One is too large.
    #[error("{path}, the file of the {part}, has more than {FILE_BYTES_MAX} bytes")]
    TooLarge {
        /// Which file.
        part: Part,
        /// Where.
        path: PathBuf,
    },
    /// Their contents.
    #[error("{certificate}, {key}, {ca}")]
    Pem {
        /// Path of the chain.
        certificate: PathBuf,
        /// Path of the key.
        key: PathBuf,
        /// Path of the authorities.
        ca: PathBuf,
        /// What is wrong.
        source: PemError,
    },
}

impl TlsFiles {
    /// Reads all three. Blocks on the disk.
    pub fn read(&self) -> Result<Pem, FilesError> {
        let Self { certificate, key, ca } = self;
        Ok(Pem {
            certificate: read(Part::Certificate, certificate)?,
            key: read(Part::Key, key)?,
            ca: read(Part::Ca, ca)?,
        })
    }

    /// Checks what was read.
    pub fn check(&self, pem: &Pem) -> Result<Material, FilesError> {
        Material::parse(pem).map_err(|source| {
            let Self { certificate, key, ca } = self.clone();
            FilesError::Pem { certificate, key, ca, source }
        })
    }
}

/// Checked contents: a key with its chain, and authorities.
#[derive(Debug)]
pub struct Material {
    pub(super) key: Arc<CertifiedKey>,
    pub(super) roots: Arc<RootCertStore>,
}

impl Material {
    /// Checks the bytes of three files.
    pub fn parse(pem: &Pem) -> Result<Self, PemError> {
        let chain = certificates(Part::Certificate, &pem.certificate)?;
        let key = PrivateKeyDer::from_pem_slice(&pem.key).map_err(|error| match error {
            rustls::pki_types::pem::Error::NoItemsFound => {
                PemError::Missing { part: Part::Key, wanted: "private key" }
            }
            error => PemError::Syntax { part: Part::Key, reason: error.to_string() },
        })?;
        let key = CertifiedKey::from_der(chain, key, &super::provider()).map_err(|error| match error {
            rustls::Error::InconsistentKeys(_) => PemError::Mismatch,
            rustls::Error::InvalidCertificate(_) => {
                PemError::Unusable { part: Part::Certificate, reason: error.to_string() }
            }
            error => PemError::Unusable { part: Part::Key, reason: error.to_string() },
        })?;
        let mut roots = RootCertStore::empty();
        for authority in certificates(Part::Ca, &pem.ca)? {
            roots
                .add(authority)
                .map_err(|error| PemError::Unusable { part: Part::Ca, reason: error.to_string() })?;
        }
        Ok(Self { key: Arc::new(key), roots: Arc::new(roots) })
    }

    /// Who the own certificate is for, if it is for a Weir client.
    pub fn identity(&self) -> Option<Identity> {
        Identity::of(self.key.cert.first()?).ok()
    }
}

fn certificates(part: Part, pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, PemError> {
    let mut all = Vec::new();
    for certificate in CertificateDer::pem_slice_iter(pem) {
        let certificate =
            certificate.map_err(|error| PemError::Syntax { part, reason: error.to_string() })?;
        all.push(certificate);
    }
    match all.len() {
        0 => Err(PemError::Missing { part, wanted: "certificate" }),
        count if count > CERTIFICATES_MAX => Err(PemError::TooMany { part, count }),
        _ => Ok(all),
    }
}

fn read(part: Part, path: &Path) -> Result<Vec<u8>, FilesError> {
    let failed = |source| FilesError::Read { part, path: path.to_owned(), source };
    let file = std::fs::File::open(path).map_err(failed)?;
    let mut bytes = Vec::new();
    file.take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes).map_err(failed)?;
    if bytes.len() as u64 > FILE_BYTES_MAX {
        return Err(FilesError::TooLarge { part, path: path.to_owned() });
    }
    Ok(bytes)
}
