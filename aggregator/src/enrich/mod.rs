//! What the aggregator adds to an event: a pure function of the event and an immutable [`Snapshot`].
//!
//! Owns names of networks, kinds of identity and enrolment. Snapshots are built aside and swapped whole; the columns'
//! builder resolves each entry of a batch's address table once. Pods and services come with the Kubernetes index.

mod prefix;

use std::net::IpAddr;
use std::sync::Arc;

use arc_swap::ArcSwap;
use ipnet::IpNet;
use weir_schema::values::{Identity, TimeQuality};

use prefix::PrefixTable;

/// The current snapshot, shared with whoever replaces it.
pub type Enricher = Arc<ArcSwap<Snapshot>>;

/// A named set of addresses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Network {
    /// What stands in `src_network` and `dst_network`.
    pub name: String,
    /// Its prefixes.
    pub cidrs: Vec<IpNet>,
    /// What its addresses are, where the network says it.
    pub identity: Option<Identity>,
}

/// A node on which a shipper is scheduled, whether or not it is alive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EnrolledNode {
    /// Its name.
    pub name: String,
    /// Its own addresses.
    pub cidrs: Vec<IpNet>,
}

/// What a snapshot is made from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sources {
    /// Named networks.
    pub networks: Vec<Network>,
    /// Enrolled nodes.
    pub nodes: Vec<EnrolledNode>,
    /// Prefixes from which pods of enrolled nodes get their addresses.
    pub pools: Vec<IpNet>,
    /// What an address is that nothing else names.
    pub default_identity: Identity,
    /// A flow that ends later than this after its receipt is `skewed`, nanoseconds.
    pub ahead_ns_max: i64,
    /// A flow that ended earlier than this before its receipt is `skewed`, nanoseconds; none: never.
    pub behind_ns_max: Option<i64>,
}

impl Default for Sources {
    fn default() -> Self {
        Self {
            networks: Vec::new(),
            nodes: Vec::new(),
            pools: Vec::new(),
            default_identity: Identity::Unknown,
            ahead_ns_max: 600 * 1_000_000_000,
            behind_ns_max: None,
        }
    }
}

/// An immutable view of everything that enrichment knows.
#[derive(Debug)]
pub struct Snapshot {
    sources: Sources,
    networks: PrefixTable,
    nodes: PrefixTable,
    pools: PrefixTable,
}

/// What is known about an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Who<'a> {
    /// The named network with the longest prefix that holds it.
    pub network: Option<&'a str>,
    /// What it is, seen from the other side.
    pub identity: Identity,
    /// The enrolled node that has it.
    pub node: Option<&'a str>,
    /// A loopback address: the same host as the reporter.
    pub loopback: bool,
    /// Whether a shipper reports for it, so that its own report counts.
    pub enrolled: bool,
}

impl Snapshot {
    /// Indexes `sources`.
    pub fn new(sources: Sources) -> Self {
        let networks = sources.networks.iter().enumerate();
        let networks = PrefixTable::new(networks.flat_map(|(i, net)| net.cidrs.iter().map(move |c| (*c, i))));
        let nodes = sources.nodes.iter().enumerate();
        let nodes = PrefixTable::new(nodes.flat_map(|(i, node)| node.cidrs.iter().map(move |c| (*c, i))));
        let pools = PrefixTable::new(sources.pools.iter().map(|cidr| (*cidr, 0)));
        Self { sources, networks, nodes, pools }
    }

    /// What is known about `address`. An IPv4-mapped address is its IPv4 address.
    pub fn who(&self, address: IpAddr) -> Who<'_> {
        let address = address.to_canonical();
        let network = self.networks.longest(address).map(|index| &self.sources.networks[index]);
        let node = self.nodes.longest(address).map(|index| self.sources.nodes[index].name.as_str());
        let loopback = address.is_loopback();
        let pooled = self.pools.longest(address).is_some();
        let identity = match network.and_then(|network| network.identity) {
            Some(identity) => identity,
            None if loopback || node.is_some() => Identity::Node,
            None if pooled => Identity::Pod,
            None => self.sources.default_identity,
        };
        let enrolled = loopback || node.is_some() || pooled;
        Who { network: network.map(|network| network.name.as_str()), identity, node, loopback, enrolled }
    }

    /// How far the time of a flow may be trusted: the shipper's word, unless its end is too far from its receipt.
    pub fn time_quality(&self, stated: TimeQuality, end_ns: i64, received_ns: i64) -> TimeQuality {
        if stated == TimeQuality::Replayed {
            return stated;
        }
        let ahead = end_ns.saturating_sub(received_ns);
        let late = self.sources.behind_ns_max.is_some_and(|max| ahead < -max);
        if ahead > self.sources.ahead_ns_max || late || end_ns <= 0 { TimeQuality::Skewed } else { stated }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn snapshot() -> Snapshot {
        let cidr = |text: &str| text.parse::<IpNet>().unwrap();
        let network = |name: &str, text: &str, identity| Network {
            name: name.into(),
            cidrs: vec![cidr(text)],
            identity,
        };
        Snapshot::new(Sources {
            networks: vec![
                network("office", "10.0.0.0/8", Some(Identity::External)),
                network("printers", "10.9.0.0/16", None),
                network("v6", "2001:db8::/32", Some(Identity::Service)),
            ],
            nodes: vec![EnrolledNode { name: "n1".into(), cidrs: vec![cidr("192.0.2.1/32")] }],
            pools: vec![cidr("10.9.3.0/24"), cidr("10.244.0.0/16")],
            default_identity: Identity::Unknown,
            ..Sources::default()
        })
    }

    fn who(address: &str) -> (Option<String>, Identity, Option<String>, bool) {
        let snapshot = snapshot();
        let who = snapshot.who(address.parse().unwrap());
        (who.network.map(str::to_owned), who.identity, who.node.map(str::to_owned), who.enrolled)
    }

    #[test]
    fn the_longest_prefix_names_the_network_and_what_it_leaves_open_is_filled() {
        let some = |text: &str| Some(text.to_owned());
        assert_eq!(who("10.1.2.3"), (some("office"), Identity::External, None, false));
        assert_eq!(who("10.9.3.1"), (some("printers"), Identity::Pod, None, true));
        assert_eq!(who("10.9.4.1"), (some("printers"), Identity::Unknown, None, false));
        assert_eq!(who("::ffff:192.0.2.1"), (None, Identity::Node, some("n1"), true));
        assert_eq!(who("2001:db8::1"), (some("v6"), Identity::Service, None, false));
        assert_eq!(who("127.0.0.5"), (None, Identity::Node, None, true));
        assert_eq!(who("::1"), (None, Identity::Node, None, true));
        assert_eq!(who("203.0.113.9"), (None, Identity::Unknown, None, false));
    }

    #[test]
    fn a_time_far_ahead_is_skewed_and_a_replayed_one_is_not() {
        let (now, minute) = (1_700_000_000_000_000_000, 60_000_000_000);
        let snapshot = Snapshot::new(Sources { behind_ns_max: Some(60 * minute), ..Sources::default() });
        let quality = |stated, end| snapshot.time_quality(stated, end, now);
        assert_eq!(quality(TimeQuality::Ok, now + 10 * minute), TimeQuality::Ok);
        assert_eq!(quality(TimeQuality::Ok, now + 11 * minute), TimeQuality::Skewed);
        assert_eq!(quality(TimeQuality::Ok, now - 61 * minute), TimeQuality::Skewed);
        assert_eq!(quality(TimeQuality::Replayed, 5), TimeQuality::Replayed);
        assert_eq!(quality(TimeQuality::Ok, i64::MAX), TimeQuality::Skewed);
        assert_eq!(quality(TimeQuality::Ok, i64::MIN), TimeQuality::Skewed);
    }
}
