//! The files of TLS as they are on disk: what is wrong with them has its words, and a change is seen however it is made.

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use rcgen::{CertificateParams, KeyPair, SanType};

use super::client::TlsClient;
use super::files::{FilesError, Material, Part, Pem, PemError, TlsFiles};
use super::identity::{Identity, NoIdentity};
use super::reload;
use super::server::TlsServer;

/// A self-signed certificate with these URIs, and its key.
fn pair(uris: &[&str]) -> (String, String) {
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::default();
    params.subject_alt_names = uris.iter().map(|uri| SanType::URI((*uri).try_into().unwrap())).collect();
    (params.self_signed(&key).unwrap().pem(), key.serialize_pem())
}

fn pem(certificate: &str, key: &str, ca: &str) -> Pem {
    Pem { certificate: certificate.into(), key: key.into(), ca: ca.into() }
}

fn write(dir: &Path, certificate: &str, key: &str) -> TlsFiles {
    let files = TlsFiles { certificate: dir.join("c"), key: dir.join("k"), ca: dir.join("a") };
    fs::write(&files.certificate, certificate).unwrap();
    fs::write(&files.key, key).unwrap();
    fs::write(&files.ca, certificate).unwrap();
    files
}

#[test]
fn each_fault_of_a_file_has_its_words() {
    let (certificate, key) = pair(&["weir://cluster/c/node/n"]);
    let (other, _) = pair(&[]);
    let material = Material::parse(&pem(&certificate, &key, &other)).unwrap();
    let node = Identity::Node { cluster: "c".into(), node: "n".into() };
    assert_eq!(material.identity(), Some(node));
    assert!(TlsServer::new(&material).is_ok() && TlsClient::new(&material).is_ok());

    let fault = |c: &str, k: &str, a: &str| Material::parse(&pem(c, k, a)).unwrap_err();
    let missing = |part, wanted| PemError::Missing { part, wanted };
    assert_eq!(fault("", &key, &other), missing(Part::Certificate, "certificate"));
    assert_eq!(fault(&key, &key, &other), missing(Part::Certificate, "certificate"));
    assert_eq!(fault(&certificate, &certificate, &other), missing(Part::Key, "private key"));
    assert_eq!(fault(&certificate, &key, "no PEM"), missing(Part::Ca, "certificate"));
    assert_eq!(fault(&other, &key, &other), PemError::Mismatch);
    let cut = &certificate[..certificate.len() / 2];
    assert!(matches!(fault(cut, &key, &other), PemError::Syntax { part: Part::Certificate, .. }));
    let foreign = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
    assert!(matches!(fault(&certificate, &key, foreign), PemError::Unusable { part: Part::Ca, .. }));
    assert!(matches!(fault(foreign, &key, &other), PemError::Unusable { part: Part::Certificate, .. }));
    let many = certificate.repeat(257);
    assert_eq!(fault(&certificate, &key, &many), PemError::TooMany { part: Part::Ca, count: 257 });
    assert_eq!(format!("{:?}", pem(&certificate, &key, &other)), "Pem { .. }", "a key is not printed");

    let dir = tempfile::tempdir().unwrap();
    let files = write(dir.path(), &certificate, &key);
    fs::write(&files.key, vec![b'x'; (1 << 20) + 1]).unwrap();
    assert!(matches!(files.read().unwrap_err(), FilesError::TooLarge { part: Part::Key, .. }));
    fs::remove_file(&files.key).unwrap();
    assert!(matches!(files.read().unwrap_err(), FilesError::Read { part: Part::Key, .. }));
}

#[test]
fn a_certificate_is_one_clients_or_nobodys() {
    let of = |uris: &[&str]| {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.subject_alt_names = uris.iter().map(|uri| SanType::URI((*uri).try_into().unwrap())).collect();
        Identity::of(params.self_signed(&key).unwrap().der())
    };
    let node = "weir://cluster/c/node/n";
    assert!(of(&[node]).is_ok() && of(&["https://example.org", node]).is_ok());
    assert!(of(&[node, "spiffe://example.org/weir/cluster/c/node/n"]).is_ok());
    assert_eq!(of(&[]), Err(NoIdentity::None));
    assert_eq!(of(&["https://example.org"]), Err(NoIdentity::None));
    assert_eq!(of(&[node, "weir://cluster/c/node/m"]), Err(NoIdentity::Several));
}

#[tokio::test]
async fn a_change_is_used_once_it_is_whole() {
    let dir = tempfile::tempdir().unwrap();
    let ((first, first_key), (second, second_key)) = (pair(&[]), pair(&[]));
    let files = write(dir.path(), &first, &first_key);
    let counts = Arc::new([AtomicU32::new(0), AtomicU32::new(0)]);
    let count = Arc::clone(&counts);
    let reloaded = move |used| {
        count[usize::from(used)].fetch_add(1, Ordering::AcqRel);
    };
    let every = Duration::from_millis(5);
    let mut state = reload::watch(files.clone(), every, TlsServer::new, reloaded).unwrap();
    state.mark_unchanged();
    let counted = |used: bool| counts[usize::from(used)].load(Ordering::Acquire);
    let until = async |used: bool, times: u32| {
        let ends = tokio::time::Instant::now() + Duration::from_secs(30);
        while counted(used) < times {
            assert!(tokio::time::Instant::now() < ends, "{counts:?}");
            tokio::time::sleep(every).await;
        }
    };
    // Half of a pair, then the other half.
    fs::write(&files.certificate, &second).unwrap();
    until(false, 1).await;
    assert!(!state.has_changed().unwrap());
    fs::write(&files.key, &second_key).unwrap();
    until(true, 1).await;
    assert!(state.has_changed().unwrap());
    state.mark_unchanged();
    // Gone, and back as it was: said once, and nothing new.
    let key = fs::read(&files.key).unwrap();
    fs::remove_file(&files.key).unwrap();
    until(false, 2).await;
    fs::write(&files.key, key).unwrap();
    fs::write(&files.ca, &second).unwrap();
    until(true, 2).await;
    assert_eq!((counted(false), counted(true), state.has_changed().unwrap()), (2, 2, true));
}
