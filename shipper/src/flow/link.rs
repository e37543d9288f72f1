//! Records of the interface vantage. Called by the builder.
//!
//! There is no socket here: who opened a conversation is told by its SYN or its first packet, how it ended by FIN and
//! RST. Nothing is known of processes, round-trip times and socket states, and those fields are null.

use std::{cmp::Ordering, net::IpAddr, sync::Arc};

use weir_common::id::flow_id;
use weir_schema::values::{Orientation, Reporter, TimeQuality, TunnelType, Vantage};
use weir_shipper_ebpf::{
    EGRESS, LinkKey, LinkValue, TUNNEL_GENEVE, TUNNEL_GRE, TUNNEL_GRE_KEYED, TUNNEL_IPIP, TUNNEL_VXLAN,
    packet::TCP,
};

use super::{
    builder::{Fnv, address, connect_error, connection_end},
    clock::Clock,
    record::{FlowRecord, LinkPart, Tunnel},
};

/// The record of one flow at one link.
pub(super) fn link_record(
    boot: u64,
    interval: u64,
    clock: &Clock,
    key: &LinkKey,
    value: &LinkValue,
    interface: Arc<str>,
) -> FlowRecord {
    let (local_is_src, orientation) = orient(key, value);
    let flow = &key.flow;
    let local = (address(flow.family, &flow.local), flow.local_port);
    let remote = (address(flow.family, &flow.remote), flow.remote_port);
    let near = (value.sent, value.flags_sent);
    let far = (value.received, value.flags_received);
    // What is not IP has its EtherType in the place of the port, whoever sent it.
    let local_is_src = local_is_src || flow.family == 0;
    let ((src, dst), ((src_count, flags_src), (dst_count, flags_dst))) =
        if local_is_src { ((local, remote), (near, far)) } else { ((remote, local), (far, near)) };
    FlowRecord {
        flow_id: id(boot, key, value.start_ns),
        record_seq: interval,
        opened: value.opened,
        reporter: Reporter::Transit,
        vantage: Vantage::Interface,
        orientation,
        time_quality: TimeQuality::Ok,
        start_ns: clock.unix_ns(value.first_ns),
        end_ns: clock.unix_ns(value.last_ns),
        src_ip: src.0,
        src_port: src.1,
        dst_ip: dst.0,
        dst_port: dst.1,
        protocol: flow.protocol,
        src_bytes: src_count.bytes,
        dst_bytes: dst_count.bytes,
        src_packets: src_count.packets,
        dst_packets: dst_count.packets,
        tcp_flags_src: flags_src as u8,
        tcp_flags_dst: flags_dst as u8,
        tcp_state: None,
        end_reason: connection_end(value.end),
        connect_error: connect_error(value.error),
        handshake_us: (value.handshake_us != 0).then_some(value.handshake_us),
        rtt_us: None,
        rtt_min_us: None,
        rtt_max_us: None,
        src_retransmits: None,
        dst_retransmits: None,
        nat: None,
        local: None,
        link: Some(LinkPart {
            interface,
            vlan_id: key.vlan,
            inner_vlan_id: key.inner_vlan,
            tunnel: tunnel(key, local_is_src),
        }),
    }
}

/// Whether the link's near side opened the conversation, and how that is known.
fn orient(key: &LinkKey, value: &LinkValue) -> (bool, Orientation) {
    let first = value.first_direction == EGRESS + 1;
    if value.first_direction != 0 && (key.flow.protocol != TCP || value.observed != 0) {
        return (first, Orientation::Observed);
    }
    let near = match key.flow.local_port.cmp(&key.flow.remote_port) {
        Ordering::Greater => true,
        Ordering::Less => false,
        Ordering::Equal => first,
    };
    (near, Orientation::Inferred)
}

fn tunnel(key: &LinkKey, local_is_src: bool) -> Option<Tunnel> {
    let (kind, id) = match key.flow.tunnel {
        TUNNEL_VXLAN => (TunnelType::Vxlan, Some(key.tunnel_id)),
        TUNNEL_GENEVE => (TunnelType::Geneve, Some(key.tunnel_id)),
        TUNNEL_GRE => (TunnelType::Gre, None),
        TUNNEL_GRE_KEYED => (TunnelType::Gre, Some(key.tunnel_id)),
        TUNNEL_IPIP => (TunnelType::Ipip, None),
        _ => return None,
    };
    let (near, far) = (outer(&key.outer_local), outer(&key.outer_remote));
    let (src_ip, dst_ip) = if local_is_src { (near, far) } else { (far, near) };
    Some(Tunnel { kind, id, src_ip, dst_ip })
}

fn outer(octets: &[u8; 16]) -> IpAddr {
    let v4 = octets[..10] == [0; 10] && octets[10..12] == [0xff; 2];
    address(if v4 { 4 } else { 6 }, octets)
}

/// Made from what never changes in a flow's life at this link.
fn id(boot: u64, key: &LinkKey, start_ns: u64) -> [u8; 16] {
    let LinkKey { flow, outer_local, outer_remote, tunnel_id, vlan, inner_vlan } = key;
    let mut hash = Fnv::new();
    hash.write(&flow.local);
    hash.write(&flow.remote);
    hash.write(&flow.local_port.to_be_bytes());
    hash.write(&flow.remote_port.to_be_bytes());
    hash.write(&[flow.protocol, flow.vantage, flow.tunnel]);
    hash.write(outer_local);
    hash.write(outer_remote);
    hash.write(&tunnel_id.to_be_bytes());
    hash.write(&vlan.to_be_bytes());
    hash.write(&inner_vlan.to_be_bytes());
    hash.write(&start_ns.to_be_bytes());
    flow_id(boot, flow.cookie, hash.0)
}

#[cfg(test)]
mod tests {
    use weir_shipper_ebpf::{Count, FlowKey, INGRESS};

    use super::*;

    fn key(protocol: u8) -> LinkKey {
        let (mut local, mut remote) = ([0; 16], [0; 16]);
        (local[10], local[11], remote[10], remote[11]) = (0xff, 0xff, 0xff, 0xff);
        (local[15], remote[15]) = (1, 2);
        let base = FlowKey { local, remote, local_port: 80, remote_port: 4000, ..FlowKey::ZERO };
        LinkKey { flow: FlowKey { protocol, family: 4, ..base }, ..LinkKey::ZERO }
    }

    fn record(key: LinkKey, value: LinkValue) -> FlowRecord {
        let count = |packets| Count { packets, bytes: packets * 100 };
        let value = LinkValue { sent: count(1), received: count(2), ..value };
        link_record(1, 1, &Clock::new(0, 0), &key, &value, "eth0".into())
    }

    #[test]
    fn the_syn_says_who_opened_it_else_the_ports_do() {
        let seen = LinkValue { first_direction: EGRESS + 1, observed: 1, ..LinkValue::ZERO };
        let found = record(key(TCP), seen);
        assert_eq!((found.src_port, found.src_packets, found.orientation), (80, 1, Orientation::Observed));
        let guessed = record(key(TCP), LinkValue { observed: 0, ..seen });
        assert_eq!(
            (guessed.src_port, guessed.src_packets, guessed.orientation),
            (4000, 2, Orientation::Inferred)
        );
        let first = record(key(17), LinkValue { first_direction: INGRESS + 1, ..LinkValue::ZERO });
        assert_eq!((first.src_port, first.orientation), (4000, Orientation::Observed));
    }

    #[test]
    fn outer_addresses_stand_on_the_side_that_they_carry() {
        let mut tunnelled = key(17);
        tunnelled.flow.tunnel = TUNNEL_GRE;
        (tunnelled.outer_local, tunnelled.outer_remote) = (tunnelled.flow.local, tunnelled.flow.remote);
        let found = record(tunnelled, LinkValue { first_direction: INGRESS + 1, ..LinkValue::ZERO });
        let tunnel = found.link.and_then(|link| link.tunnel).unwrap();
        assert_eq!((tunnel.src_ip, tunnel.dst_ip, tunnel.id), (found.src_ip, found.dst_ip, None));
    }

    #[test]
    fn every_part_of_the_key_makes_another_flow() {
        let base = key(TCP);
        let others = [
            LinkKey { vlan: 1, ..base },
            LinkKey { inner_vlan: 1, ..base },
            LinkKey { tunnel_id: 1, ..base },
            LinkKey { outer_local: [1; 16], ..base },
            LinkKey { flow: FlowKey { cookie: 1, ..base.flow }, ..base },
            LinkKey { flow: FlowKey { cookie: 1 << 32, ..base.flow }, ..base },
        ];
        let ids: std::collections::HashSet<_> =
            others.iter().chain([&base]).map(|key| id(1, key, 5)).collect();
        assert_eq!(ids.len(), 7);
        assert_eq!(id(1, &base, 5), id(1, &base, 5));
    }
}
