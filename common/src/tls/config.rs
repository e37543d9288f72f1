//! The keys of TLS in every program's configuration, and what they mean together.

use std::path::PathBuf;
use std::time::Duration;

use super::files::TlsFiles;
use crate::config::{ConfigErrors, Key, ValueKind, Values};

/// `tls.mode`.
pub const MODE: Key = Key {
    path: "tls.mode",
    kind: ValueKind::Choice(&["auto", "mtls", "insecure-plaintext"]),
    default: "auto",
    doc: "`auto`: mutual TLS once the files are set; without them only addresses of this host are allowed. `mtls`: the files must be set. `insecure-plaintext`: no TLS, whatever the address.",
};
/// `tls.certificate`.
pub const CERTIFICATE: Key = Key {
    path: "tls.certificate",
    kind: ValueKind::Text,
    default: "",
    doc: "PEM file: own certificate, then those between it and the authority. Read again when it changes, like the two below.",
};
/// `tls.key`.
pub const KEY: Key =
    Key { path: "tls.key", kind: ValueKind::Text, default: "", doc: "PEM file: the certificate's key." };
/// `tls.ca`.
pub const CA: Key = Key {
    path: "tls.ca",
    kind: ValueKind::Text,
    default: "",
    doc: "PEM file: the authorities whose certificates the other side may have. Two of them while one takes over from the other.",
};
/// `tls.reload_interval`.
pub const RELOAD_INTERVAL: Key = Key {
    path: "tls.reload_interval",
    kind: ValueKind::Duration { min_ms: 50, max_ms: 3_600_000 },
    default: "5s",
    doc: "How often the three files are looked at.",
};

/// What the keys say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TlsConfig {
    /// No TLS, because nothing leaves this host.
    Loopback,
    /// No TLS, because that was asked for.
    Plaintext,
    /// Mutual TLS.
    Files {
        /// Where they are.
        files: TlsFiles,
        /// How often they are looked at.
        reload_interval: Duration,
    },
}

impl TlsConfig {
    /// Checks the keys against the addresses that are listened on or dialled: key, address, whether it is this host's.
    pub fn parse<'a>(
        values: &Values,
        addresses: impl IntoIterator<Item = (&'a str, &'a str, bool)>,
        errors: &mut ConfigErrors,
    ) -> Self {
        let mode = values.text(MODE.path);
        let [certificate, key, ca] =
            [CERTIFICATE, KEY, CA].map(|key| (key.path, values.text(key.path).to_owned()));
        let set = [&certificate, &key, &ca].iter().any(|(_, path)| !path.is_empty());
        match (mode, set) {
            ("insecure-plaintext", false) => Self::Plaintext,
            ("insecure-plaintext", true) => {
                for (path, value) in [certificate, key, ca].iter().filter(|(_, value)| !value.is_empty()) {
                    errors.push(path, path, value, "nothing, as tls.mode is insecure-plaintext");
                }
                Self::Plaintext
            }
            ("mtls", _) | (_, true) => {
                for (path, value) in [&certificate, &key, &ca] {
                    if value.is_empty() {
                        errors.push(
                            path,
                            path,
                            value,
                            "a PEM file; tls.certificate, tls.key and tls.ca go together",
                        );
                    }
                }
                let [certificate, key, ca] = [certificate, key, ca].map(|(_, path)| PathBuf::from(path));
                let reload_interval = values.duration(RELOAD_INTERVAL.path);
                Self::Files { files: TlsFiles { certificate, key, ca }, reload_interval }
            }
            _ => {
                for (path, address, own) in addresses {
                    if !own {
                        errors.push(path, path, address, ELSEWHERE);
                    }
                }
                Self::Loopback
            }
        }
    }
}

const ELSEWHERE: &str = "a loopback address; for any other set tls.certificate, tls.key and tls.ca, or say \
                         tls.mode: insecure-plaintext";
