//! The catalogue: every field of every kind, once. Arrow schemas, JSON Schema, SQL and the reference page are made
//! from these tables; protobuf names agree with them by a test.
//!
//! Evolution: fields are only added, at the end of their group, nullable, never retyped; then `SCHEMA_VERSION` rises.

/// What `schema_version` states in batches, journal segments, Parquet footers and headers.
pub const SCHEMA_VERSION: u32 = 2;

/// A kind of event; also the first partition of the Parquet tree.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    /// Counters of one conversation over one interval.
    Flow = 1,
    /// One DNS exchange.
    Dns = 2,
    /// A finding of a detector.
    Anomaly = 3,
    /// What was lost, and where.
    Loss = 4,
}

impl Kind {
    /// Every kind.
    pub const ALL: [Self; 4] = [Self::Flow, Self::Dns, Self::Anomaly, Self::Loss];

    /// The name in paths, topics and labels.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Flow => "flow",
            Self::Dns => "dns",
            Self::Anomaly => "anomaly",
            Self::Loss => "loss",
        }
    }

    /// The kind of that name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.as_str() == name)
    }

    /// The wire's code; never 0.
    pub const fn code(self) -> u32 {
        self as u32
    }

    /// The kind of a wire code.
    pub fn from_code(code: u32) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.code() == code)
    }

    /// Its fields, in the order of the columns.
    pub const fn fields(self) -> &'static [Field] {
        match self {
            Self::Flow => FLOW,
            Self::Dns => DNS,
            Self::Anomaly => ANOMALY,
            Self::Loss => LOSS,
        }
    }

    /// The field whose time decides the partition.
    pub const fn time_field(self) -> &'static str {
        match self {
            Self::Flow => "end_time",
            Self::Dns => "time",
            Self::Anomaly => "last_seen",
            Self::Loss => "last_time",
        }
    }

    /// The fields by which rows of a Parquet file are sorted.
    pub const fn sort_fields(self) -> &'static [&'static str] {
        match self {
            Self::Flow => &["src_namespace", "src_workload", "end_time"],
            Self::Dns => &["client_namespace", "client_workload", "time"],
            Self::Anomaly => &["last_seen"],
            Self::Loss => &["last_time"],
        }
    }
}

/// The type of a column.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Type {
    /// 16 bytes; `uuid` in Parquet and DuckDB, the usual text elsewhere.
    Uuid,
    /// UTF-8, dictionary-encoded.
    Text,
    /// An IP address as its canonical text (RFC 5952), dictionary-encoded; casts to `inet`.
    Ip,
    /// Microseconds since the Unix epoch, UTC.
    Time,
    /// Unsigned integers.
    U8,
    /// 16 bits.
    U16,
    /// 32 bits.
    U32,
    /// 64 bits.
    U64,
    /// True or false.
    Bool,
    /// IEEE 754 double.
    F64,
    /// List of UTF-8.
    TextList,
    /// List of `Uuid`.
    UuidList,
}

/// How many distinct values to expect: whether the field can be a label in Loki or Prometheus.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cardinality {
    /// A small closed set: fine as a label.
    Fine,
    /// Bounded by the cluster's size: as a label with care.
    Careful,
    /// Unbounded: never a label.
    Avoid,
}

/// One column.
#[derive(Clone, Copy, Debug)]
pub struct Field {
    /// The one name everywhere.
    pub name: &'static str,
    /// Its type.
    pub ty: Type,
    /// Whether it may be null.
    pub nullable: bool,
    /// Whether it can serve as a label.
    pub cardinality: Cardinality,
    /// What it says, with its unit.
    pub doc: &'static str,
}

const fn must(name: &'static str, ty: Type, cardinality: Cardinality, doc: &'static str) -> Field {
    Field { name, ty, nullable: false, cardinality, doc }
}

const fn may(name: &'static str, ty: Type, cardinality: Cardinality, doc: &'static str) -> Field {
    Field { name, ty, nullable: true, cardinality, doc }
}

use Cardinality::{Avoid, Careful, Fine};

const FLOW: &[Field] = &[
    must(
        "event_id",
        Type::Uuid,
        Avoid,
        "Of this record, the same in every sink; made from epoch, batch and row",
    ),
    must("flow_id", Type::Uuid, Avoid, "Of the conversation at this vantage; ties its records"),
    must(
        "record_seq",
        Type::U64,
        Avoid,
        "The capture interval that the record counts; rises along a conversation",
    ),
    must(
        "opened",
        Type::U32,
        Fine,
        "Connections that the record opened: 1 on the first record of a conversation, 0 after, more on overflow records. Its sum counts connections",
    ),
    must("cluster", Type::Text, Fine, "Cluster of the reporting node"),
    must("node", Type::Text, Careful, "Reporting node"),
    must("reporter", Type::Text, Fine, "source | destination | transit: which side was recorded"),
    must(
        "vantage",
        Type::Text,
        Fine,
        "socket | interface; never add up the two, nor the interfaces that a packet passes",
    ),
    must("primary", Type::Bool, Fine, "Sums over records where this is true count each conversation once"),
    must("start_time", Type::Time, Avoid, "Start of the time that the counters cover"),
    must("end_time", Type::Time, Avoid, "End of it: last packet, or close. Decides the partition"),
    must(
        "time_quality",
        Type::Text,
        Fine,
        "ok | skewed | replayed: from a capture file, with the capture's own time",
    ),
    may("src_ip", Type::Ip, Avoid, "Address that opened the conversation; null on overflow records"),
    must("src_port", Type::U16, Avoid, "Its port; for ICMP the type, as Community ID v1 has it"),
    may("dst_ip", Type::Ip, Avoid, "Address that accepted it; null on overflow records"),
    must("dst_port", Type::U16, Careful, "Its port; for ICMP the answer's type, or the code"),
    must(
        "protocol",
        Type::Text,
        Fine,
        "IANA name in lower case; the number where it has none. 255: not IP, dst_port holds the EtherType",
    ),
    may("community_id", Type::Text, Avoid, "Community ID v1, seed 0; null on overflow records"),
    must(
        "src_bytes",
        Type::U64,
        Avoid,
        "IP bytes that src sent in this time: IP header to end, retransmissions included",
    ),
    must("dst_bytes", Type::U64, Avoid, "IP bytes that dst sent"),
    must("src_packets", Type::U64, Avoid, "Packets that src sent, segmentation offload unfolded"),
    must("dst_packets", Type::U64, Avoid, "Packets that dst sent"),
    must("tcp_flags_src", Type::U8, Fine, "TCP flags of src's packets, or-ed (RFC 9293); 0 without TCP"),
    must("tcp_flags_dst", Type::U8, Fine, "TCP flags of dst's packets, or-ed"),
    may("tcp_state", Type::Text, Fine, "State of the reporting side's socket at the end of the record"),
    may(
        "end_reason",
        Type::Text,
        Fine,
        "closed | reset | aborted | timed_out | connect_failed | idle; on the last record only",
    ),
    may("handshake_us", Type::U32, Avoid, "Microseconds from SYN to established, on the side that opened"),
    may(
        "rtt_us",
        Type::U32,
        Avoid,
        "Smoothed round-trip time at the end of the record, microseconds (RFC 6298)",
    ),
    may("rtt_min_us", Type::U32, Avoid, "Smallest round-trip time in the kernel's window, microseconds"),
    may("rtt_max_us", Type::U32, Avoid, "Largest smoothed round-trip time in the record, microseconds"),
    may("src_retransmits", Type::U32, Avoid, "Segments that src sent again, where src reports"),
    may("dst_retransmits", Type::U32, Avoid, "Segments that dst sent again, where dst reports"),
    may("drop_packets", Type::U64, Avoid, "Packets of the flow that the kernel dropped (not yet filled)"),
    may("drop_bytes", Type::U64, Avoid, "Their bytes (not yet filled)"),
    may("drop_reason", Type::Text, Fine, "The kernel's most frequent reason (not yet filled)"),
    may(
        "connect_error",
        Type::Text,
        Fine,
        "refused | timed_out | no_neighbour | aborted | unreachable: why it was never established",
    ),
    may("src_namespace", Type::Text, Careful, "Kubernetes namespace (not yet filled)"),
    may("src_pod", Type::Text, Avoid, "Pod (not yet filled)"),
    may("src_pod_uid", Type::Text, Avoid, "Pod's UID, from the socket's cgroup"),
    may("src_workload", Type::Text, Careful, "Top owner of the pod (not yet filled)"),
    may("src_workload_kind", Type::Text, Fine, "Its kind (not yet filled)"),
    may("src_node", Type::Text, Careful, "Node that src runs on"),
    may("src_zone", Type::Text, Fine, "That node's zone (not yet filled)"),
    may("src_service", Type::Text, Careful, "Service (not yet filled)"),
    may(
        "src_process",
        Type::Text,
        Careful,
        "Command name of the process (16 bytes at most, as the kernel keeps it)",
    ),
    may("src_pid", Type::U32, Avoid, "Process id in the host's namespace"),
    may("src_container_id", Type::Text, Avoid, "Container id, from the socket's cgroup"),
    may("src_cgroup", Type::Text, Avoid, "Path of the socket's cgroup"),
    must("src_identity", Type::Text, Fine, "pod | service | node | external | masked | unknown"),
    may("src_network", Type::Text, Careful, "Configured network whose longest prefix holds the address"),
    may("dst_namespace", Type::Text, Careful, "Kubernetes namespace (not yet filled)"),
    may("dst_pod", Type::Text, Avoid, "Pod (not yet filled)"),
    may("dst_pod_uid", Type::Text, Avoid, "Pod's UID, from the socket's cgroup"),
    may("dst_workload", Type::Text, Careful, "Top owner of the pod (not yet filled)"),
    may("dst_workload_kind", Type::Text, Fine, "Its kind (not yet filled)"),
    may("dst_node", Type::Text, Careful, "Node that dst runs on"),
    may("dst_zone", Type::Text, Fine, "That node's zone (not yet filled)"),
    may("dst_service", Type::Text, Careful, "Service (not yet filled)"),
    may("dst_process", Type::Text, Careful, "Command name of the process"),
    may("dst_pid", Type::U32, Avoid, "Process id in the host's namespace"),
    may("dst_container_id", Type::Text, Avoid, "Container id, from the socket's cgroup"),
    may("dst_cgroup", Type::Text, Avoid, "Path of the socket's cgroup"),
    must("dst_identity", Type::Text, Fine, "pod | service | node | external | masked | unknown"),
    may("dst_network", Type::Text, Careful, "Configured network whose longest prefix holds the address"),
    may("dst_domain", Type::Text, Careful, "Name by which src resolved dst (not yet filled)"),
    may("nat_src_ip", Type::Ip, Avoid, "Source address on the other side of an address translation"),
    may("nat_src_port", Type::U16, Avoid, "Its port"),
    may("nat_dst_ip", Type::Ip, Avoid, "Destination address on the other side of an address translation"),
    may("nat_dst_port", Type::U16, Avoid, "Its port"),
    must("orientation", Type::Text, Fine, "observed | listener | inferred | overflow: how src is known"),
    must("sampling", Type::U32, Fine, "Each record stands for this many; 1 in this version"),
    may(
        "interface",
        Type::Text,
        Careful,
        "Network interface at which it was counted; vantage interface only",
    ),
    may("vlan_id", Type::U16, Careful, "Id of the outermost VLAN tag (IEEE 802.1Q, 802.1ad)"),
    may("inner_vlan_id", Type::U16, Careful, "Id of the next VLAN tag within, as in QinQ"),
    may(
        "tunnel_type",
        Type::Text,
        Fine,
        "vxlan | geneve | gre | ipip: what the packets came in; src_* and dst_* are the inner flow's",
    ),
    may("tunnel_id", Type::U32, Careful, "VNI, or GRE key; null where the tunnel has none"),
    may("tunnel_src_ip", Type::Ip, Avoid, "Outer address on src's side of the tunnel"),
    may("tunnel_dst_ip", Type::Ip, Avoid, "Outer address on dst's side of the tunnel"),
];

const DNS: &[Field] = &[
    must("event_id", Type::Uuid, Avoid, "Of this record, the same in every sink"),
    must("cluster", Type::Text, Fine, "Cluster of the reporting node"),
    must("node", Type::Text, Careful, "Reporting node"),
    must("reporter", Type::Text, Fine, "source | destination | transit"),
    must("time", Type::Time, Avoid, "When the question was sent"),
    may("client_ip", Type::Ip, Avoid, "Who asked"),
    must("client_port", Type::U16, Avoid, "Its port"),
    may("server_ip", Type::Ip, Avoid, "Who was asked"),
    must("server_port", Type::U16, Careful, "Its port"),
    must("transport", Type::Text, Fine, "udp | tcp"),
    must("query_name", Type::Text, Avoid, "The name asked for, as sent"),
    must("query_type", Type::Text, Fine, "IANA name of the type"),
    may("rcode", Type::Text, Fine, "IANA name of the response code; null without an answer"),
    may("answers", Type::TextList, Avoid, "Record data of the answers"),
    may("answer_ttl_s", Type::U32, Avoid, "Smallest TTL of the answers, seconds"),
    may("latency_us", Type::U32, Avoid, "Microseconds from question to answer"),
    must("timed_out", Type::Bool, Fine, "No answer came in time"),
    must("truncated", Type::Bool, Fine, "The answer had the TC bit"),
    must("retries", Type::U16, Fine, "How often the question was sent again"),
    may("client_namespace", Type::Text, Careful, "Kubernetes namespace of the client"),
    may("client_pod", Type::Text, Avoid, "Pod of the client"),
    may("client_workload", Type::Text, Careful, "Top owner of that pod"),
    may("client_process", Type::Text, Careful, "Command name of the client's process"),
    may("server_namespace", Type::Text, Careful, "Kubernetes namespace of the server"),
    may("server_pod", Type::Text, Avoid, "Pod of the server"),
    may("server_workload", Type::Text, Careful, "Top owner of that pod"),
    may("server_process", Type::Text, Careful, "Command name of the server's process"),
];

const ANOMALY: &[Field] = &[
    must("event_id", Type::Uuid, Avoid, "Of this record, the same in every sink"),
    must("finding_id", Type::Uuid, Avoid, "Of the finding; ties its openings, updates and closing"),
    must("cluster", Type::Text, Fine, "Cluster"),
    must("node", Type::Text, Careful, "Reporting node"),
    must("type", Type::Text, Fine, "The detector"),
    must("severity", Type::Text, Fine, "info | warning | critical"),
    must("confidence", Type::F64, Avoid, "0 to 1"),
    must("scope", Type::Text, Careful, "What is affected"),
    must("state", Type::Text, Fine, "opened | updated | closed | abandoned"),
    must("first_seen", Type::Time, Avoid, "Onset"),
    must("last_seen", Type::Time, Avoid, "Latest sign. Decides the partition"),
    may("observed", Type::F64, Avoid, "The number that made the finding"),
    may("threshold", Type::F64, Avoid, "What it was held against"),
    may("unit", Type::Text, Fine, "Unit of both"),
    may("evidence", Type::UuidList, Avoid, "event_id of records that show it, 20 at most"),
    must("summary", Type::Text, Avoid, "One sentence for a person"),
];

const LOSS: &[Field] = &[
    must("event_id", Type::Uuid, Avoid, "Of this record, the same in every sink"),
    must("cluster", Type::Text, Fine, "Cluster of the node"),
    must("node", Type::Text, Careful, "Node on which, or from which, events were lost"),
    may("sink", Type::Text, Fine, "Sink that lost them, at stage sink"),
    must("stage", Type::Text, Fine, "capture | spool | delivery | journal | sink"),
    must(
        "reason",
        Type::Text,
        Fine,
        "budget | reboot | corrupt | rebind | map_full | rejected | skipped | unloaded",
    ),
    may("count", Type::U64, Avoid, "Events lost; null when it can't be known"),
    may("bytes", Type::U64, Avoid, "IP bytes at stage capture, encoded bytes elsewhere"),
    must("first_time", Type::Time, Avoid, "Since when"),
    must("last_time", Type::Time, Avoid, "Until when. Decides the partition"),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique_snake_case_and_the_special_ones_exist() {
        for kind in Kind::ALL {
            let names: Vec<&str> = kind.fields().iter().map(|field| field.name).collect();
            for name in &names {
                assert!(
                    name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_'),
                    "{name}"
                );
                assert_eq!(names.iter().filter(|other| *other == name).count(), 1, "{name} stands twice");
            }
            assert!(names.contains(&kind.time_field()));
            assert!(kind.sort_fields().iter().all(|field| names.contains(field)));
            assert_eq!(Kind::from_code(kind.code()), Some(kind));
        }
    }

    #[test]
    fn both_ends_of_a_flow_have_the_same_fields() {
        let ends = |prefix: &str| -> Vec<&str> {
            FLOW.iter()
                .filter_map(|field| field.name.strip_prefix(prefix))
                .filter(|name| *name != "domain")
                .collect()
        };
        assert_eq!(ends("src_"), ends("dst_"));
    }
}
