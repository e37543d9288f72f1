use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use proptest::prelude::*;
use weir_proto::v1::FlowColumns;
use weir_schema::values::{
    ConnectError, EndReason, LossReason, LossStage, Orientation, Reporter, TcpState, TimeQuality, TunnelType,
    Vantage,
};

use super::*;
use crate::flow::{LinkPart, LocalIdentity, NatTuple, Tunnel};

/// The way back, written from ingest.proto alone.
fn decode(batch: &EncodedBatch) -> (Vec<FlowRecord>, Vec<LossEvent>) {
    let size = zstd::zstd_safe::get_frame_content_size(&batch.payload).unwrap().expect("content size");
    let body = zstd::bulk::decompress(&batch.payload, size as usize).unwrap();
    let body = BatchBody::decode(body.as_slice()).unwrap();
    let flows = body.flows.as_ref().map(rows).unwrap_or_default();
    assert_eq!(flows.len() + body.losses.len(), batch.events as usize);
    (flows, body.losses)
}

fn rows(c: &FlowColumns) -> Vec<FlowRecord> {
    fn at<T: Copy + Default>(column: &[T], row: usize, rows: u32) -> T {
        assert!(column.is_empty() || column.len() == rows as usize);
        column.get(row).copied().unwrap_or_default()
    }
    let ip = |index: u32| {
        let bytes: [u8; 16] = c.addresses[index as usize * 16..][..16].try_into().unwrap();
        Ipv6Addr::from(bytes).to_canonical()
    };
    let text = |index: u32| Arc::<str>::from(c.strings[index as usize].as_str());
    (0..c.rows as usize)
        .map(|row| {
            let u = |column: &[u32]| at(column, row, c.rows);
            let w = |column: &[u64]| at(column, row, c.rows);
            let minus_one = |column: &[u32]| u(column).checked_sub(1);
            let end_ns = c.base_time_ns + at(&c.end_delta_ns, row, c.rows);
            let id = (u128::from(w(&c.flow_id_high)) << 64) | u128::from(w(&c.flow_id_low));
            let local = LocalIdentity {
                process: text(u(&c.local_process)),
                pid: u(&c.local_pid),
                cgroup_id: 0,
                cgroup: text(u(&c.local_cgroup)),
                container_id: text(u(&c.local_container_id)),
                pod_uid: text(u(&c.local_pod_uid)),
            };
            let known = local.pid != 0 || !local.process.is_empty() || !local.cgroup.is_empty();
            FlowRecord {
                flow_id: id.to_be_bytes(),
                record_seq: w(&c.record_seq),
                opened: u(&c.opened),
                reporter: Reporter::from_code(u(&c.reporter)).unwrap(),
                vantage: Vantage::from_code(u(&c.vantage)).unwrap(),
                orientation: Orientation::from_code(u(&c.orientation)).unwrap(),
                time_quality: TimeQuality::from_code(u(&c.time_quality)).unwrap(),
                start_ns: end_ns - w(&c.duration_ns) as i64,
                end_ns,
                src_ip: ip(u(&c.src_ip)),
                src_port: u(&c.src_port) as u16,
                dst_ip: ip(u(&c.dst_ip)),
                dst_port: u(&c.dst_port) as u16,
                protocol: u(&c.protocol) as u8,
                src_bytes: w(&c.src_bytes),
                dst_bytes: w(&c.dst_bytes),
                src_packets: w(&c.src_packets),
                dst_packets: w(&c.dst_packets),
                tcp_flags_src: u(&c.tcp_flags_src) as u8,
                tcp_flags_dst: u(&c.tcp_flags_dst) as u8,
                tcp_state: TcpState::from_code(u(&c.tcp_state)),
                end_reason: EndReason::from_code(u(&c.end_reason)),
                connect_error: ConnectError::from_code(u(&c.connect_error)),
                handshake_us: minus_one(&c.handshake_us),
                rtt_us: minus_one(&c.rtt_us),
                rtt_min_us: minus_one(&c.rtt_min_us),
                rtt_max_us: minus_one(&c.rtt_max_us),
                src_retransmits: minus_one(&c.src_retransmits),
                dst_retransmits: minus_one(&c.dst_retransmits),
                nat: minus_one(&c.nat_src_ip).map(|src| NatTuple {
                    src_ip: ip(src),
                    src_port: u(&c.nat_src_port) as u16,
                    dst_ip: ip(u(&c.nat_dst_ip) - 1),
                    dst_port: u(&c.nat_dst_port) as u16,
                }),
                local: known.then(|| Arc::new(local)),
                link: link(c, row, &text, &ip),
            }
        })
        .collect()
}

fn link(
    c: &FlowColumns,
    row: usize,
    text: &impl Fn(u32) -> Arc<str>,
    ip: &impl Fn(u32) -> IpAddr,
) -> Option<LinkPart> {
    let u = |column: &[u32]| column.get(row).copied().unwrap_or_default();
    let tunnel = TunnelType::from_code(u(&c.tunnel_type)).map(|kind| Tunnel {
        kind,
        id: c.tunnel_id.get(row).copied().unwrap_or_default().checked_sub(1).map(|id| id as u32),
        src_ip: ip(u(&c.tunnel_src_ip) - 1),
        dst_ip: ip(u(&c.tunnel_dst_ip) - 1),
    });
    let (vlan_id, inner_vlan_id) = (u(&c.vlan_id) as u16, u(&c.inner_vlan_id) as u16);
    let link = LinkPart { interface: text(u(&c.interface)), vlan_id, inner_vlan_id, tunnel };
    (link != LinkPart::default()).then_some(link)
}

fn some_link(ip: IpAddr, id: u32) -> LinkPart {
    let kind = TunnelType::ALL[id as usize % TunnelType::ALL.len()];
    let tunnel = Tunnel { kind, id: (kind != TunnelType::Ipip).then_some(id), src_ip: ip, dst_ip: ip };
    let tunnel = (!id.is_multiple_of(3)).then_some(tunnel);
    LinkPart { interface: "eth0".into(), vlan_id: id as u16 & 0xfff, inner_vlan_id: 0, tunnel }
}

fn address() -> impl Strategy<Value = IpAddr> {
    prop_oneof![
        (0u32..50).prop_map(|n| IpAddr::V4(Ipv4Addr::from_bits(0x0a00_0000 | n))),
        any::<u32>().prop_map(|n| IpAddr::V4(Ipv4Addr::from_bits(n))),
        (1u128..9).prop_map(|n| IpAddr::V6(Ipv6Addr::from_bits((0xfd00 << 112) | n))),
    ]
}

fn local() -> impl Strategy<Value = Option<Arc<LocalIdentity>>> {
    let pod = prop::option::of("[a-f0-9]{8}");
    proptest::option::of(("[a-z]{1,15}", 1u32..5000, pod).prop_map(|(process, pid, pod)| {
        let pod = pod.unwrap_or_default();
        Arc::new(LocalIdentity {
            process: process.as_str().into(),
            pid,
            cgroup_id: 0,
            cgroup: format!("/kubepods/pod{pod}").into(),
            container_id: "".into(),
            pod_uid: pod.as_str().into(),
        })
    }))
}

fn flow() -> impl Strategy<Value = FlowRecord> {
    let who = (
        any::<[u8; 16]>(),
        0u64..1000,
        0u32..2,
        address(),
        address(),
        any::<u16>(),
        any::<u16>(),
        any::<u8>(),
    );
    let counts = (any::<u64>(), 0u64..1 << 40, 0u64..1 << 20, 0u64..2);
    let maybe = || proptest::option::of(0u32..u32::MAX);
    let health = (maybe(), maybe(), maybe(), maybe(), proptest::option::of(0usize..EndReason::ALL.len()));
    let time = (1_700_000_000_000_000_000i64..1_800_000_000_000_000_000, 0i64..20_000_000_000);
    (who, counts, health, time, local(), any::<bool>()).prop_map(|(who, counts, health, time, local, nat)| {
        FlowRecord {
            flow_id: who.0,
            record_seq: who.1,
            opened: who.2,
            reporter: Reporter::ALL[who.1 as usize % 3],
            vantage: Vantage::Socket,
            orientation: Orientation::ALL[who.1 as usize % 4],
            time_quality: TimeQuality::ALL[who.1 as usize % 3],
            start_ns: time.0 - time.1,
            end_ns: time.0,
            src_ip: who.3,
            src_port: who.5,
            dst_ip: who.4,
            dst_port: who.6,
            protocol: who.7,
            src_bytes: counts.0,
            dst_bytes: counts.1,
            src_packets: counts.2,
            dst_packets: counts.3,
            tcp_flags_src: 0x1b,
            tcp_flags_dst: 0,
            tcp_state: TcpState::from_code(who.2),
            end_reason: health.4.map(|index| EndReason::ALL[index]),
            connect_error: None,
            handshake_us: health.0,
            rtt_us: health.1,
            rtt_min_us: health.2,
            rtt_max_us: None,
            src_retransmits: health.3,
            dst_retransmits: Some(0),
            nat: nat.then_some(NatTuple { src_ip: who.4, src_port: who.6, dst_ip: who.3, dst_port: who.5 }),
            local,
            link: nat.then(|| some_link(who.3, who.2)),
        }
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn what_goes_in_comes_out_however_it_is_split(
        flows in proptest::collection::vec(flow(), 0..60),
        losses in 0u64..4,
        body_bytes in 300usize..20_000,
    ) {
        let losses: Vec<_> = (0..losses).map(loss).collect();
        let batches = encode(&flows, &losses, body_bytes).unwrap();
        prop_assert_eq!(&batches, &encode(&flows, &losses, body_bytes).unwrap());
        let (mut flows_back, mut losses_back) = (Vec::new(), Vec::new());
        for batch in &batches {
            let (some_flows, some_losses) = decode(batch);
            flows_back.extend(some_flows);
            losses_back.extend(some_losses);
        }
        prop_assert_eq!(flows_back, flows);
        prop_assert_eq!(losses_back.len(), losses.len());
        for (back, loss) in losses_back.iter().zip(&losses) {
            prop_assert_eq!(back.count, loss.count);
            prop_assert_eq!(back.reason, loss.reason.code());
        }
    }

    #[test]
    fn the_counted_size_is_the_size(flows in proptest::collection::vec(flow(), 1..200)) {
        let mut columns = Columns::default();
        flows.iter().for_each(|flow| columns.push(flow));
        let counted = columns.bytes();
        let encoded = columns.finish().encoded_len();
        // Left-out columns make it smaller (a byte a row each), headers of columns larger.
        prop_assert!(encoded <= counted + 200, "{encoded} {counted}");
        prop_assert!(counted <= encoded + 64 + 30 * flows.len(), "{encoded} {counted}");
    }
}

fn loss(n: u64) -> LossRecord {
    LossRecord {
        stage: LossStage::Capture,
        reason: LossReason::MapFull,
        count: n.checked_sub(1),
        bytes: None,
        first_ns: 5,
        last_ns: 9,
    }
}

#[test]
fn nothing_gives_no_batch_and_losses_alone_give_one() {
    assert!(encode(&[], &[], 1 << 20).unwrap().is_empty());
    let batches = encode(&[], &[loss(7)], 1 << 20).unwrap();
    assert_eq!(batches.len(), 1);
    assert_eq!((batches[0].events, batches[0].first_ns, batches[0].last_ns), (1, 5, 9));
}
