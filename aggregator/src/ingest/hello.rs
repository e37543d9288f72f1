//! Who may speak: checks of a Hello.

use weir_common::tls::identity::{Identity, NoIdentity};
use weir_proto::PROTOCOL_VERSION;
use weir_proto::v1::Hello;
use weir_proto::v1::refusal::Reason;

use crate::accepted::{Id, Origin, Source};

/// What a Hello is held against.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HelloRules {
    /// Of this aggregator's journal.
    pub journal_id: Id,
    /// The cluster of shippers that name none.
    pub cluster_default: String,
    /// When not empty, the cluster of all shippers, whatever they say.
    pub cluster_override: String,
    /// When not empty, the only clusters that may speak.
    pub clusters_allowed: Vec<String>,
}

/// Why a stream is ended: the wire's reason, and words that say what to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused {
    /// The wire's reason.
    pub reason: Reason,
    /// For a person.
    pub message: String,
    /// The batch or skip it is about; 0 for the stream.
    pub number: u64,
}

impl Refused {
    /// About the stream.
    pub fn stream(reason: Reason, message: impl Into<String>) -> Self {
        Self { reason, message: message.into(), number: 0 }
    }
}

impl HelloRules {
    /// The same behind TLS: the names are the certificate's, and a Hello that claims others is refused.
    pub fn admit(
        &self,
        hello: &Hello,
        certificate: Option<&Result<Identity, NoIdentity>>,
    ) -> Result<Origin, Refused> {
        let refuse = |message: String| Err(Refused::stream(Reason::Identity, message));
        match certificate {
            None => self.check(hello),
            Some(Err(none)) => refuse(none.to_string()),
            Some(Ok(Identity::Observer { .. })) => {
                refuse("the certificate is an observer's: it may watch, not send".to_owned())
            }
            Some(Ok(Identity::Node { cluster, node })) => {
                for (what, claimed, own) in
                    [("node", &hello.node, node), ("cluster", &hello.cluster, cluster)]
                {
                    if !claimed.is_empty() && claimed != own {
                        return refuse(format!(
                            "Hello.{what} is {claimed:?}, the certificate is for {own:?}"
                        ));
                    }
                }
                self.check(&Hello { node: node.clone(), cluster: cluster.clone(), ..hello.clone() })
            }
        }
    }

    /// The origin that a Hello states, if it may speak.
    pub fn check(&self, hello: &Hello) -> Result<Origin, Refused> {
        let refuse = |reason, message: String| Err(Refused::stream(reason, message));
        let Hello {
            protocol_version,
            shipper_id,
            epoch,
            node,
            cluster,
            first_number,
            last_number,
            journal_id,
            version: _,
        } = hello;
        if *protocol_version != PROTOCOL_VERSION {
            let message = format!(
                "protocol_version {protocol_version} is not spoken here, {PROTOCOL_VERSION} is: \
                 run the same release on both sides"
            );
            return refuse(Reason::ProtocolVersion, message);
        }
        let id = |name: &str, bytes: &[u8]| {
            let id = Id::try_from(bytes).ok().filter(|id| *id != [0; 16]);
            id.ok_or_else(|| {
                let message =
                    format!("Hello.{name} has {} bytes, expected 16 that are not all 0", bytes.len());
                Refused::stream(Reason::Protocol, message)
            })
        };
        let source = Source { shipper: id("shipper_id", shipper_id)?, epoch: id("epoch", epoch)? };
        if *first_number == 0 || last_number.checked_add(1).is_none_or(|next| *first_number > next) {
            let message = format!(
                "Hello.first_number {first_number} and last_number {last_number}: \
                 expected 1 <= first_number <= last_number + 1"
            );
            return refuse(Reason::Protocol, message);
        }
        if node.is_empty() || node.len() > NODE_BYTES_MAX || node.chars().any(char::is_control) {
            let message = format!(
                "Hello.node has {} bytes, expected 1 to {NODE_BYTES_MAX} without control characters",
                node.len()
            );
            return refuse(Reason::Identity, message);
        }
        let named = if cluster.is_empty() { &self.cluster_default } else { cluster };
        if !is_cluster(named) {
            let message = format!("Hello.cluster {named:?} does not match [a-z0-9.-]{{1,63}}");
            return refuse(Reason::Identity, message);
        }
        if !self.clusters_allowed.is_empty() && !self.clusters_allowed.contains(named) {
            let message = format!("cluster {named:?} is not in cluster.allowed of this aggregator");
            return refuse(Reason::Identity, message);
        }
        if !journal_id.is_empty() && *journal_id != self.journal_id {
            let message = format!(
                "batches of this epoch were sent to journal {} before, this is journal {}: bring that aggregator's \
                 volume back, or declare it lost with `weir-shipper rebind`",
                weir_common::id::hex(journal_id),
                weir_common::id::hex(&self.journal_id)
            );
            return refuse(Reason::OtherJournal, message);
        }
        let cluster = if self.cluster_override.is_empty() { named } else { &self.cluster_override };
        Ok(Origin { source, node: node.clone(), cluster: cluster.clone() })
    }
}

/// Whether a text can be a cluster's name: it becomes a path (DESIGN: Names).
pub fn is_cluster(text: &str) -> bool {
    let good = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || matches!(byte, b'.' | b'-');
    (1..=63).contains(&text.len()) && text.bytes().all(good) && text != "." && text != ".."
}

/// A DNS name's limit, as Kubernetes has for nodes.
const NODE_BYTES_MAX: usize = 253;

#[cfg(test)]
mod tests {
    use super::*;

    fn hello() -> Hello {
        Hello {
            protocol_version: 1,
            shipper_id: vec![1; 16],
            epoch: vec![2; 16],
            node: "n".into(),
            cluster: "c".into(),
            first_number: 1,
            last_number: 0,
            journal_id: vec![7; 16],
            version: "0".into(),
        }
    }

    fn rules() -> HelloRules {
        HelloRules {
            journal_id: [7; 16],
            cluster_default: "home".into(),
            cluster_override: String::new(),
            clusters_allowed: vec!["c".into(), "home".into()],
        }
    }

    #[test]
    fn each_lie_has_its_own_words() {
        let refused = |change: &dyn Fn(&mut Hello)| {
            let mut hello = hello();
            change(&mut hello);
            let Refused { reason, message, number } = rules().check(&hello).unwrap_err();
            assert_eq!(number, 0);
            (reason, message)
        };
        assert_eq!(refused(&|h| h.protocol_version = 9).0, Reason::ProtocolVersion);
        let (reason, message) = refused(&|h| h.shipper_id = vec![1; 15]);
        assert_eq!(
            (reason, message.contains("shipper_id has 15 bytes")),
            (Reason::Protocol, true),
            "{message}"
        );
        assert_eq!(refused(&|h| h.epoch = vec![0; 16]).0, Reason::Protocol);
        assert_eq!(refused(&|h| h.first_number = 0).0, Reason::Protocol);
        assert_eq!(refused(&|h| h.first_number = 2).0, Reason::Protocol);
        assert_eq!(refused(&|h| (h.first_number, h.last_number) = (9, u64::MAX)).0, Reason::Protocol);
        assert_eq!(refused(&|h| h.node = "a\nb".into()).0, Reason::Identity);
        assert_eq!(refused(&|h| h.cluster = "../etc".into()).0, Reason::Identity);
        assert_eq!(refused(&|h| h.cluster = "..".into()).0, Reason::Identity);
        let (reason, message) = refused(&|h| h.cluster = "other".into());
        assert_eq!((reason, message.contains("cluster.allowed")), (Reason::Identity, true), "{message}");
        let (reason, message) = refused(&|h| h.journal_id = vec![8; 16]);
        assert_eq!((reason, message.contains("rebind")), (Reason::OtherJournal, true), "{message}");
    }

    #[test]
    fn behind_tls_the_names_are_the_certificates() {
        let node = |cluster: &str, node: &str| {
            Ok(Identity::Node { cluster: cluster.to_owned(), node: node.to_owned() })
        };
        let names = |hello: &Hello, certificate: Result<Identity, NoIdentity>| {
            let origin = rules().admit(hello, Some(&certificate));
            origin.map(|origin| (origin.cluster, origin.node)).map_err(|refused| {
                assert_eq!(refused.reason, Reason::Identity);
                refused.message
            })
        };
        let nameless = Hello { node: String::new(), cluster: String::new(), ..hello() };
        let named = Ok(("c".to_owned(), "n".to_owned()));
        assert_eq!(names(&hello(), node("c", "n")), named);
        assert_eq!(names(&nameless, node("c", "n")), named);
        assert!(names(&hello(), node("c", "m")).unwrap_err().contains("the certificate is for \"m\""));
        assert!(names(&hello(), node("home", "n")).unwrap_err().contains("Hello.cluster is \"c\""));
        assert!(names(&nameless, node("elsewhere", "n")).unwrap_err().contains("cluster.allowed"));
        assert!(names(&hello(), Err(NoIdentity::None)).unwrap_err().contains("names no Weir client"));
        let observer = Identity::Observer { cluster: "c".into(), name: "n".into() };
        assert!(names(&hello(), Ok(observer)).unwrap_err().contains("observer"));
    }

    #[test]
    fn clusters_are_named_by_the_shipper_the_default_or_the_override() {
        let cluster = |rules: HelloRules, text: &str| {
            rules.check(&Hello { cluster: text.into(), ..hello() }).unwrap().cluster
        };
        assert_eq!(cluster(rules(), "c"), "c");
        assert_eq!(cluster(rules(), ""), "home");
        assert_eq!(cluster(HelloRules { cluster_override: "all".into(), ..rules() }, "c"), "all");
    }
}
