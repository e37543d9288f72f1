//! Certificates under test: authorities, what they sign, and files that are swapped as Kubernetes swaps a Secret.

use std::ops::Range;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use weir::certs::{Authority, Pair, Subject};
use weir_common::tls::files::TlsFiles;
use weir_common::tls::identity::Identity;

/// Unix seconds of a day before now and one after.
pub fn valid() -> Range<u64> {
    let now = now();
    now - 86_400..now + 86_400
}

/// Over since a minute ago.
pub fn expired() -> Range<u64> {
    let now = now();
    now - 86_400..now - 60
}

/// To begin in an hour.
pub fn future() -> Range<u64> {
    let now = now();
    now + 3600..now + 86_400
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()
}

/// A new authority.
pub fn authority() -> Authority {
    Authority::new("test", valid()).unwrap()
}

/// A certificate of an aggregator at 127.0.0.1.
pub fn server(authority: &Authority, valid: Range<u64>) -> Pair {
    authority.issue(&Subject::Server(vec!["127.0.0.1".to_owned(), "weir.test".to_owned()]), valid).unwrap()
}

/// A certificate of a node's shipper, in cluster `default`.
pub fn node(authority: &Authority, node: &str, valid: Range<u64>) -> Pair {
    let identity = Identity::Node { cluster: "default".to_owned(), node: node.to_owned() };
    authority.issue(&Subject::Client(identity), valid).unwrap()
}

/// A certificate of a viewer.
pub fn observer(authority: &Authority, valid: Range<u64>) -> Pair {
    let identity = Identity::Observer { cluster: "default".to_owned(), name: "tester".to_owned() };
    authority.issue(&Subject::Client(identity), valid).unwrap()
}

/// A folder with the three files of a side. Each is a link into `..data`, which is a link that is swapped at once.
#[derive(Debug)]
pub struct Secret {
    dir: PathBuf,
    versions: u32,
}

impl Secret {
    /// Makes the folder with its first contents.
    pub fn new(dir: &Path, pair: &Pair, authorities: &[&Authority]) -> Self {
        std::fs::create_dir_all(dir).unwrap();
        for name in ["tls.crt", "tls.key", "ca.crt"] {
            symlink(Path::new("..data").join(name), dir.join(name)).unwrap();
        }
        let mut secret = Self { dir: dir.to_owned(), versions: 0 };
        secret.put(pair, authorities);
        secret
    }

    /// Swaps the contents.
    pub fn put(&mut self, pair: &Pair, authorities: &[&Authority]) {
        let ca: String = authorities.iter().map(|authority| authority.certificate()).collect();
        self.put_raw(&pair.certificate, &pair.key, &ca);
    }

    /// The same with any contents.
    pub fn put_raw(&mut self, certificate: &str, key: &str, ca: &str) {
        self.versions += 1;
        let version = format!("..version-{}", self.versions);
        let dir = self.dir.join(&version);
        std::fs::create_dir(&dir).unwrap();
        for (name, contents) in [("tls.crt", certificate), ("tls.key", key), ("ca.crt", ca)] {
            std::fs::write(dir.join(name), contents).unwrap();
        }
        let new = self.dir.join("..data_tmp");
        symlink(&version, &new).unwrap();
        std::fs::rename(&new, self.dir.join("..data")).unwrap();
    }

    /// The paths.
    pub fn files(&self) -> TlsFiles {
        let [certificate, key, ca] = ["tls.crt", "tls.key", "ca.crt"].map(|name| self.dir.join(name));
        TlsFiles { certificate, key, ca }
    }

    /// As settings of either program.
    pub fn settings(&self) -> Vec<String> {
        let TlsFiles { certificate, key, ca } = self.files();
        vec![
            format!("tls.certificate={}", certificate.display()),
            format!("tls.key={}", key.display()),
            format!("tls.ca={}", ca.display()),
            "tls.reload_interval=50ms".to_owned(),
        ]
    }
}
