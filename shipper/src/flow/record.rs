//! One flow record and one loss record, as the capture makes them and the batch encoder takes them.
//!
//! Owns the shapes only: who fills them is the capture, what they look like on the wire is `batch`.

use std::net::IpAddr;
use std::sync::Arc;

use weir_schema::values::{
    ConnectError, EndReason, LossReason, LossStage, Orientation, Reporter, TcpState, TimeQuality, TunnelType,
    Vantage,
};

/// What one vantage point saw of one conversation in one interval.
///
/// `src` opened the conversation, `dst` accepted it. Counters are deltas over [`start_ns`, `end_ns`]; bytes are IP
/// bytes. An overflow record has `orientation = Overflow`, unspecified addresses, the protocol of its class, what left
/// in `src_*` and what arrived in `dst_*`, and `reporter = Source`.
#[derive(Clone, Debug, PartialEq)]
pub struct FlowRecord {
    /// Ties the records of one conversation at one vantage point.
    pub flow_id: [u8; 16],
    /// The interval in which it was drained.
    pub record_seq: u64,
    /// 1 on the first record of a connection that was seen opening, else 0.
    pub opened: u32,
    /// Which end of the conversation this is.
    pub reporter: Reporter,
    /// Where packets were counted.
    pub vantage: Vantage,
    /// How it is known which side is `src`.
    pub orientation: Orientation,
    /// Whether the times are the node's own, or a capture file's.
    pub time_quality: TimeQuality,
    /// Start of this record's window, Unix nanoseconds.
    pub start_ns: i64,
    /// Last packet, or the close, Unix nanoseconds.
    pub end_ns: i64,
    /// Address of the side that opened.
    pub src_ip: IpAddr,
    /// Its port; 0 for protocols without ports.
    pub src_port: u16,
    /// Address of the side that accepted.
    pub dst_ip: IpAddr,
    /// Its port; 0 for protocols without ports.
    pub dst_port: u16,
    /// IANA protocol number.
    pub protocol: u8,
    /// IP bytes that `src` sent.
    pub src_bytes: u64,
    /// IP bytes that `dst` sent.
    pub dst_bytes: u64,
    /// Packets that `src` sent.
    pub src_packets: u64,
    /// Packets that `dst` sent.
    pub dst_packets: u64,
    /// TCP flags that `src` sent, or-ed.
    pub tcp_flags_src: u8,
    /// TCP flags that `dst` sent, or-ed.
    pub tcp_flags_dst: u8,
    /// State of the reporting side's socket.
    pub tcp_state: Option<TcpState>,
    /// How it ended; on the last record only.
    pub end_reason: Option<EndReason>,
    /// Why it was never established.
    pub connect_error: Option<ConnectError>,
    /// SYN to its answer, microseconds.
    pub handshake_us: Option<u32>,
    /// Smoothed round-trip time, microseconds.
    pub rtt_us: Option<u32>,
    /// Smallest round-trip time, microseconds.
    pub rtt_min_us: Option<u32>,
    /// Largest round-trip time, microseconds.
    pub rtt_max_us: Option<u32>,
    /// Segments that `src` sent again.
    pub src_retransmits: Option<u32>,
    /// Segments that `dst` sent again.
    pub dst_retransmits: Option<u32>,
    /// The socket's own addresses, where they differ from the packets'.
    pub nat: Option<NatTuple>,
    /// Who is on the reporting side.
    pub local: Option<Arc<LocalIdentity>>,
    /// Where on the way it was counted, and in what; `None` at a socket.
    pub link: Option<LinkPart>,
}

/// What only the interface vantage and capture files tell.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LinkPart {
    /// Name of the interface; empty when unknown.
    pub interface: Arc<str>,
    /// Id of the outermost VLAN tag; 0 for none.
    pub vlan_id: u16,
    /// Id of the next VLAN tag within; 0 for none.
    pub inner_vlan_id: u16,
    /// What the packets came in.
    pub tunnel: Option<Tunnel>,
}

/// A tunnel that carried the flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tunnel {
    /// What kind of tunnel.
    pub kind: TunnelType,
    /// VNI, or GRE key.
    pub id: Option<u32>,
    /// Outer address on the side of `src`.
    pub src_ip: IpAddr,
    /// Outer address on the side of `dst`.
    pub dst_ip: IpAddr,
}

/// The addresses that the application used, before a translation on this node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NatTuple {
    /// Address of the side that opened.
    pub src_ip: IpAddr,
    /// Its port.
    pub src_port: u16,
    /// Address of the side that accepted.
    pub dst_ip: IpAddr,
    /// Its port.
    pub dst_port: u16,
}

/// Process and cgroup of the reporting side; an empty text means unknown.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct LocalIdentity {
    /// Command name.
    pub process: Arc<str>,
    /// Process id; 0 when unknown.
    pub pid: u32,
    /// Id of the cgroup (its inode); 0 when unknown.
    pub cgroup_id: u64,
    /// Path of the cgroup below the mount.
    pub cgroup: Arc<str>,
    /// Container id parsed from the path.
    pub container_id: Arc<str>,
    /// Pod UID parsed from the path.
    pub pod_uid: Arc<str>,
}

/// Something that was lost and can be counted, or is known to be uncountable.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LossRecord {
    /// Where.
    pub stage: LossStage,
    /// Why.
    pub reason: LossReason,
    /// Events; `None` when it cannot be known.
    pub count: Option<u64>,
    /// Bytes of what was lost; `None` when it cannot be known.
    pub bytes: Option<u64>,
    /// Earliest time of what was lost, Unix nanoseconds.
    pub first_ns: i64,
    /// Latest time of what was lost, Unix nanoseconds.
    pub last_ns: i64,
}
