//! Who a client's certificate is for, from its one URI name.
//!
//! `weir://cluster/<cluster>/node/<node>` is the shipper of a node: it may send that node's events.
//! `weir://cluster/<cluster>/observer/<name>` is a viewer: it may watch. `spiffe://<trust domain>/weir/cluster/…` says the
//! same; which trust domains there are is decided by the authorities that are believed.

use std::fmt;

use rustls::pki_types::CertificateDer;
use webpki::EndEntityCert;

/// A name in an identity has at most as many bytes as Kubernetes gives a node.
const NAME_BYTES_MAX: usize = 253;

/// What a client may be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Identity {
    /// The shipper of a node.
    Node {
        /// Of the node.
        cluster: String,
        /// The node's name.
        node: String,
    },
    /// Somebody who watches.
    Observer {
        /// Where it belongs.
        cluster: String,
        /// Its name.
        name: String,
    },
}

/// Why a certificate is nobody's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoIdentity {
    /// It is not one.
    #[error("the certificate cannot be read")]
    Unreadable,
    /// It has no URI of the form.
    #[error(
        "the certificate names no Weir client: a URI in its subjectAltName is expected, such as \
         weir://cluster/<cluster>/node/<node>"
    )]
    None,
    /// It has more than one.
    #[error("the certificate names more than one Weir client")]
    Several,
}

impl Identity {
    /// Of a certificate whose chain was checked.
    pub fn of(certificate: &CertificateDer<'_>) -> Result<Self, NoIdentity> {
        let certificate = EndEntityCert::try_from(certificate).map_err(|_| NoIdentity::Unreadable)?;
        let mut all = certificate.valid_uri_names().filter_map(Self::from_uri);
        let identity = all.next().ok_or(NoIdentity::None)?;
        if all.any(|other| other != identity) { Err(NoIdentity::Several) } else { Ok(identity) }
    }

    /// From a URI of either form.
    pub fn from_uri(uri: &str) -> Option<Self> {
        let path = match uri.strip_prefix("weir://") {
            Some(path) => path,
            None => uri.strip_prefix("spiffe://")?.split_once('/')?.1.strip_prefix("weir/")?,
        };
        let parts: Vec<&str> = path.split('/').collect();
        let ["cluster", cluster, kind, name] = parts[..] else { return None };
        if !is_name(cluster) || cluster.len() > 63 || !is_name(name) {
            return None;
        }
        let (cluster, name) = (cluster.to_owned(), name.to_owned());
        match kind {
            "node" => Some(Self::Node { cluster, node: name }),
            "observer" => Some(Self::Observer { cluster, name }),
            _ => None,
        }
    }
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Node { cluster, node } => write!(f, "weir://cluster/{cluster}/node/{node}"),
            Self::Observer { cluster, name } => write!(f, "weir://cluster/{cluster}/observer/{name}"),
        }
    }
}

/// Whether a text can stand in an identity as it is: unreserved characters of a URI (RFC 3986, section 2.3).
pub fn is_name(text: &str) -> bool {
    let good = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~".contains(&byte);
    (1..=NAME_BYTES_MAX).contains(&text.len()) && text.bytes().all(good) && text != "." && text != ".."
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_forms_are_read_and_nothing_else() {
        let node = Identity::Node { cluster: "c.1".into(), node: "node-7.example".into() };
        assert_eq!(Identity::from_uri(&node.to_string()).as_ref(), Some(&node));
        let spiffe = "spiffe://example.org/weir/cluster/c.1/node/node-7.example";
        assert_eq!(Identity::from_uri(spiffe), Some(node));
        let observer = Identity::Observer { cluster: "c".into(), name: "me".into() };
        assert_eq!(Identity::from_uri(&observer.to_string()), Some(observer));
        for uri in [
            "",
            "weir://",
            "weir://cluster/c/node/",
            "weir://cluster//node/n",
            "weir://cluster/c/node/n/",
            "weir://cluster/c/node/a/b",
            "weir://cluster/c/node/..",
            "weir://cluster/c/node/a%2Fb",
            "weir://cluster/c/admin/n",
            "WEIR://cluster/c/node/n",
            "https://cluster/c/node/n",
            "spiffe://example.org/cluster/c/node/n",
            "spiffe://weir/cluster/c/node/n",
        ] {
            assert_eq!(Identity::from_uri(uri), None, "{uri}");
        }
        assert_eq!(Identity::of(&CertificateDer::from(vec![48, 0])), Err(NoIdentity::Unreadable));
    }
}
