//! `weir certs`: an authority and certificates to try TLS with. For production use what your cluster has, such as
//! cert-manager; the names that Weir wants in a certificate are in docs/encryption.md.

mod authority;

use std::fs::{self, OpenOptions};
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use anyhow::{Context as _, bail};
use weir_common::tls::identity::{Identity, is_name};
use weir_common::{clock, exit};

pub use authority::{Authority, CertificateError, Pair, Subject};

use crate::arguments::Certs;

pub(crate) fn run(arguments: &Certs) -> anyhow::Result<u8> {
    let Certs { dir, cluster, node, observer, server, days, new_ca } = arguments;
    for name in [cluster].into_iter().chain(node).chain(observer) {
        if !is_name(name) {
            bail!("{name:?} cannot stand in a certificate: letters, digits, `-`, `.`, `_` and `~` can");
        }
    }
    fs::create_dir_all(dir).with_context(|| format!("make {}", dir.display()))?;
    let now = u64::try_from(clock::now_ns() / 1_000_000_000).unwrap_or_default();
    // Clocks differ.
    let from = now.saturating_sub(HOUR_S);
    let authority = authority(dir, *new_ca, from)?;
    let until = from + u64::from(*days) * DAY_S;
    let issue = |file: &str, subject: Subject| -> anyhow::Result<()> {
        let Pair { certificate, key } = authority.issue(&subject, from..until)?;
        write(&dir.join(format!("{file}.pem")), certificate.as_bytes(), PUBLIC)?;
        write(&dir.join(format!("{file}.key")), key.as_bytes(), PRIVATE)?;
        println!("{}", dir.join(format!("{file}.pem")).display());
        Ok(())
    };
    if !server.is_empty() {
        issue("server", Subject::Server(server.clone()))?;
    }
    for name in node {
        let identity = Identity::Node { cluster: cluster.clone(), node: name.clone() };
        issue(&format!("node-{name}"), Subject::Client(identity))?;
    }
    for name in observer {
        let identity = Identity::Observer { cluster: cluster.clone(), name: name.clone() };
        issue(&format!("observer-{name}"), Subject::Client(identity))?;
    }
    Ok(exit::OK)
}

/// The folder's authority, or a new one.
fn authority(dir: &Path, new: bool, from: u64) -> anyhow::Result<Authority> {
    let (certificate, key) = (dir.join("ca.pem"), dir.join("ca.key"));
    if certificate.exists() && key.exists() && !new {
        let read = |path: &Path| fs::read_to_string(path).with_context(|| format!("read {}", path.display()));
        return Ok(Authority::load(NAME, read(&certificate)?, &read(&key)?)?);
    }
    let authority = Authority::new(NAME, from..from + 3650 * DAY_S)?;
    write(&certificate, authority.certificate().as_bytes(), PUBLIC)?;
    write(&key, authority.key().as_bytes(), PRIVATE)?;
    println!("{}", certificate.display());
    Ok(authority)
}

/// Replaces a file as a whole: a program that reads it sees the old one or the new one.
fn write(path: &Path, bytes: &[u8], mode: u32) -> anyhow::Result<()> {
    let new = path.with_extension("new");
    let written = || -> std::io::Result<()> {
        let _ = fs::remove_file(&new);
        let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(&new)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&new, path)
    };
    written().with_context(|| format!("write {}", path.display()))
}

/// With some of the key behind it.
const NAME: &str = "Weir test authority";
const HOUR_S: u64 = 3600;
const DAY_S: u64 = 86_400;
const PUBLIC: u32 = 0o644;
/// Keys are nobody else's.
const PRIVATE: u32 = 0o600;
