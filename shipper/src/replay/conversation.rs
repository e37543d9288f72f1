//! One flow of a replay: what it did in the interval, and the record of that.
//!
//! Called by `table`, which finds the flow of a packet.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use weir_common::id::flow_id;
use weir_schema::values::{Orientation, Reporter, TimeQuality, TunnelType, Vantage};
use weir_shipper_ebpf::{
    FlowKey, LinkKey, TUNNEL_GENEVE, TUNNEL_GRE, TUNNEL_GRE_KEYED, TUNNEL_IPIP, TUNNEL_VXLAN,
};

use super::file::Interfaces;
use super::table::TableOptions;
use super::tcp::Tcp;
use crate::flow::{FlowRecord, LinkPart, Tunnel};

/// What one side sent.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Count {
    pub packets: u64,
    pub bytes: u64,
    pub flags: u8,
    pub retransmits: u32,
}

/// What a flow did in the interval.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Delta {
    pub start_ns: i64,
    pub end_ns: i64,
    pub sides: [Count; 2],
    pub opened: u32,
}

/// A flow that the table follows.
pub(super) struct Flow {
    /// Side 0 is `local`.
    pub key: LinkKey,
    pub number: u64,
    pub started_ns: i64,
    pub last_ns: i64,
    pub src: usize,
    pub orientation: Orientation,
    pub delta: Option<Delta>,
    pub tcp: Option<Box<Tcp>>,
    /// Its first packet is counted.
    pub begun: bool,
    /// Its end stands in a record.
    pub end_told: bool,
}

impl Flow {
    pub(super) fn is_idle(&self, now_ns: i64, options: &TableOptions) -> bool {
        let open = self.tcp.as_ref().is_some_and(|tcp| tcp.is_open() && tcp.end().is_none());
        let limit = if open { options.tcp_idle_ns } else { options.idle_ns };
        (now_ns - self.last_ns).unsigned_abs() > limit.unsigned_abs()
    }

    /// The record of a delta; `replay` and `interval` are in it, ends and times are told once.
    pub(super) fn record(
        &mut self,
        delta: &Delta,
        replay: u64,
        interval: u64,
        names: &Interfaces,
    ) -> FlowRecord {
        let Delta { start_ns, end_ns, sides, opened } = *delta;
        let FlowKey { local, remote, local_port, remote_port, protocol, family, cookie, tunnel, .. } =
            self.key.flow;
        let ends = if family == 0 {
            let unspecified = IpAddr::V4(Ipv4Addr::UNSPECIFIED);
            [(unspecified, local_port), (unspecified, remote_port)]
        } else {
            [(address(&local), local_port), (address(&remote), remote_port)]
        };
        let (src, dst) = (self.src, 1 - self.src);
        let end = self.tcp.as_ref().and_then(|tcp| tcp.end()).filter(|_| !self.end_told);
        self.end_told |= end.is_some();
        let [rtt_us, rtt_min_us, rtt_max_us] =
            self.tcp.as_mut().map(|tcp| tcp.take_rtt_us()).unwrap_or_default();
        let is_tcp = self.tcp.is_some();
        let retransmits = |side: usize| is_tcp.then_some(sides[side].retransmits);
        let side = |octets: [[u8; 16]; 2], side: usize| address(&octets[side]);
        let outer = [self.key.outer_local, self.key.outer_remote];
        let tunnel = tunnel_type(tunnel).map(|(kind, has_id)| Tunnel {
            kind,
            id: has_id.then_some(self.key.tunnel_id),
            src_ip: side(outer, src),
            dst_ip: side(outer, dst),
        });
        let link = LinkPart {
            // The lower half is the file's interface: see `link`.
            interface: names.name(cookie as u32).cloned().unwrap_or_default(),
            vlan_id: self.key.vlan,
            inner_vlan_id: self.key.inner_vlan,
            tunnel,
        };
        FlowRecord {
            flow_id: flow_id(replay, self.number, self.started_ns.unsigned_abs()),
            record_seq: interval,
            opened,
            reporter: Reporter::Transit,
            vantage: Vantage::Interface,
            orientation: self.orientation,
            time_quality: TimeQuality::Replayed,
            start_ns,
            end_ns,
            src_ip: ends[src].0,
            src_port: ends[src].1,
            dst_ip: ends[dst].0,
            dst_port: ends[dst].1,
            protocol,
            src_bytes: sides[src].bytes,
            dst_bytes: sides[dst].bytes,
            src_packets: sides[src].packets,
            dst_packets: sides[dst].packets,
            tcp_flags_src: sides[src].flags,
            tcp_flags_dst: sides[dst].flags,
            tcp_state: self.tcp.as_ref().map(|tcp| tcp.state()),
            end_reason: end.map(|(reason, _)| reason),
            connect_error: end.and_then(|(_, error)| error),
            handshake_us: self.tcp.as_mut().and_then(|tcp| tcp.take_handshake_us()),
            rtt_us,
            rtt_min_us,
            rtt_max_us,
            src_retransmits: retransmits(src),
            dst_retransmits: retransmits(dst),
            nat: None,
            local: None,
            link: Some(link),
        }
    }
}

/// What a tunnel is called, and whether it has an id.
fn tunnel_type(tunnel: u8) -> Option<(TunnelType, bool)> {
    match tunnel {
        TUNNEL_VXLAN => Some((TunnelType::Vxlan, true)),
        TUNNEL_GENEVE => Some((TunnelType::Geneve, true)),
        TUNNEL_GRE => Some((TunnelType::Gre, false)),
        TUNNEL_GRE_KEYED => Some((TunnelType::Gre, true)),
        TUNNEL_IPIP => Some((TunnelType::Ipip, false)),
        _ => None,
    }
}

fn address(octets: &[u8; 16]) -> IpAddr {
    let address = Ipv6Addr::from(*octets);
    address.to_ipv4_mapped().map_or(IpAddr::V6(address), IpAddr::V4)
}
