//! The flow columns: from columns on the wire to Arrow arrays.
//!
//! Numbers are copied column by column; what enrichment adds is filled row by row from ids (`flow_rows.rs`).

use arrow::array::{RecordBatch, UInt32Array};
use arrow::error::ArrowError;
use weir_proto::v1::FlowColumns;
use weir_schema::Kind;

use super::assemble::{
    Assembler, bools, times, u8s, u16s, u16s_or_null, u32s_or_null, u32s_shifted, u64s, uuids,
    wide_u32s_shifted,
};
use super::flow_rows::{Rows, Side};
use super::text::Interner;
use crate::accepted::Origin;
use crate::enrich::Snapshot;

/// The flows of one batch; checked, with at least one row.
pub(super) struct FlowUnit<'a> {
    pub(super) origin: &'a Origin,
    pub(super) number: u64,
    pub(super) columns: &'a FlowColumns,
}

/// Every column of the catalogue, in its order.
pub(super) fn build(
    units: &[FlowUnit<'_>],
    snapshot: &Snapshot,
    received_ns: i64,
) -> Result<RecordBatch, ArrowError> {
    let count = units.iter().map(|unit| unit.columns.rows as usize).sum();
    let mut texts = Interner::new();
    let mut rows = Rows::with_capacity(count, &mut texts);
    for unit in units {
        rows.push_unit(unit, snapshot, received_ns, &mut texts);
    }
    let Rows {
        codes: _,
        event_id,
        flow_id,
        cluster,
        node,
        reporter,
        vantage,
        primary,
        start_ns,
        end_ns,
        time_quality,
        protocol,
        community,
        tcp_state,
        end_reason,
        connect_error,
        src,
        dst,
        nat_src_ip,
        nat_dst_ip,
        orientation,
        interface,
        tunnel_type,
        tunnel_src_ip,
        tunnel_dst_ip,
    } = rows;
    let wide = |column: fn(&FlowColumns) -> &Vec<u64>| u64s(copy(units, count, column));
    let narrow = |column: fn(&FlowColumns) -> &Vec<u32>| copy(units, count, column);

    let mut out = Assembler::new(Kind::Flow, count);
    out.add("event_id", uuids(event_id)?)
        .add("flow_id", uuids(flow_id)?)
        .add("record_seq", wide(|flows| &flows.record_seq))
        .add("opened", UInt32Array::from_iter_values(narrow(|flows| &flows.opened)))
        .add("cluster", texts.required(&cluster)?)
        .add("node", texts.required(&node)?)
        .add("reporter", texts.required(&reporter)?)
        .add("vantage", texts.required(&vantage)?)
        .add("primary", bools(primary))
        .add("start_time", times(start_ns))
        .add("end_time", times(end_ns))
        .add("time_quality", texts.required(&time_quality)?)
        .add("src_ip", texts.nullable(&src.ip)?)
        .add("src_port", u16s(narrow(|flows| &flows.src_port)))
        .add("dst_ip", texts.nullable(&dst.ip)?)
        .add("dst_port", u16s(narrow(|flows| &flows.dst_port)))
        .add("protocol", texts.required(&protocol)?)
        .add("community_id", community.finish()?)
        .add("src_bytes", wide(|flows| &flows.src_bytes))
        .add("dst_bytes", wide(|flows| &flows.dst_bytes))
        .add("src_packets", wide(|flows| &flows.src_packets))
        .add("dst_packets", wide(|flows| &flows.dst_packets))
        .add("tcp_flags_src", u8s(narrow(|flows| &flows.tcp_flags_src)))
        .add("tcp_flags_dst", u8s(narrow(|flows| &flows.tcp_flags_dst)))
        .add("tcp_state", texts.nullable(&tcp_state)?)
        .add("end_reason", texts.nullable(&end_reason)?)
        .add("handshake_us", u32s_shifted(narrow(|flows| &flows.handshake_us)))
        .add("rtt_us", u32s_shifted(narrow(|flows| &flows.rtt_us)))
        .add("rtt_min_us", u32s_shifted(narrow(|flows| &flows.rtt_min_us)))
        .add("rtt_max_us", u32s_shifted(narrow(|flows| &flows.rtt_max_us)))
        .add("src_retransmits", u32s_shifted(narrow(|flows| &flows.src_retransmits)))
        .add("dst_retransmits", u32s_shifted(narrow(|flows| &flows.dst_retransmits)))
        .add_nulls(&["drop_packets", "drop_bytes", "drop_reason"])
        .add("connect_error", texts.nullable(&connect_error)?);
    add_side(&mut out, &SRC, &src, &mut texts)?;
    add_side(&mut out, &DST, &dst, &mut texts)?;
    out.add_nulls(&["dst_domain"])
        .add("nat_src_ip", texts.nullable(&nat_src_ip)?)
        .add("nat_src_port", u16s_or_null(narrow(|flows| &flows.nat_src_port)))
        .add("nat_dst_ip", texts.nullable(&nat_dst_ip)?)
        .add("nat_dst_port", u16s_or_null(narrow(|flows| &flows.nat_dst_port)))
        .add("orientation", texts.required(&orientation)?)
        .add("sampling", UInt32Array::from_value(1, count))
        .add("interface", texts.nullable(&interface)?)
        .add("vlan_id", u16s_or_null(narrow(|flows| &flows.vlan_id)))
        .add("inner_vlan_id", u16s_or_null(narrow(|flows| &flows.inner_vlan_id)))
        .add("tunnel_type", texts.nullable(&tunnel_type)?)
        .add("tunnel_id", wide_u32s_shifted(copy(units, count, |flows| &flows.tunnel_id)))
        .add("tunnel_src_ip", texts.nullable(&tunnel_src_ip)?)
        .add("tunnel_dst_ip", texts.nullable(&tunnel_dst_ip)?);
    out.finish()
}

fn add_side(
    out: &mut Assembler,
    names: &SideNames,
    side: &Side,
    texts: &mut Interner<'_>,
) -> Result<(), ArrowError> {
    let Side { ip: _, node, process, pid, container_id, cgroup, pod_uid, identity, network } = side;
    out.add_nulls(&names.namespace_pod)
        .add(names.pod_uid, texts.nullable(pod_uid)?)
        .add_nulls(&names.workload_kind)
        .add(names.node, texts.nullable(node)?)
        .add_nulls(&names.zone_service)
        .add(names.process, texts.nullable(process)?)
        .add(names.pid, u32s_or_null(pid.iter().copied()))
        .add(names.container_id, texts.nullable(container_id)?)
        .add(names.cgroup, texts.nullable(cgroup)?)
        .add(names.identity, texts.required(identity)?)
        .add(names.network, texts.nullable(network)?);
    Ok(())
}

/// A column of all units, one after the other; one that a unit leaves out is all 0.
fn copy<T: Copy + Default>(
    units: &[FlowUnit<'_>],
    count: usize,
    column: fn(&FlowColumns) -> &Vec<T>,
) -> Vec<T> {
    let mut out = Vec::with_capacity(count);
    for unit in units {
        out.extend_from_slice(column(unit.columns));
        if column(unit.columns).is_empty() {
            out.resize(out.len() + unit.columns.rows as usize, T::default());
        }
    }
    out
}

/// The names of one end's columns.
struct SideNames {
    namespace_pod: [&'static str; 2],
    pod_uid: &'static str,
    workload_kind: [&'static str; 2],
    node: &'static str,
    zone_service: [&'static str; 2],
    process: &'static str,
    pid: &'static str,
    container_id: &'static str,
    cgroup: &'static str,
    identity: &'static str,
    network: &'static str,
}

const SRC: SideNames = SideNames {
    namespace_pod: ["src_namespace", "src_pod"],
    pod_uid: "src_pod_uid",
    workload_kind: ["src_workload", "src_workload_kind"],
    node: "src_node",
    zone_service: ["src_zone", "src_service"],
    process: "src_process",
    pid: "src_pid",
    container_id: "src_container_id",
    cgroup: "src_cgroup",
    identity: "src_identity",
    network: "src_network",
};

const DST: SideNames = SideNames {
    namespace_pod: ["dst_namespace", "dst_pod"],
    pod_uid: "dst_pod_uid",
    workload_kind: ["dst_workload", "dst_workload_kind"],
    node: "dst_node",
    zone_service: ["dst_zone", "dst_service"],
    process: "dst_process",
    pid: "dst_pid",
    container_id: "dst_container_id",
    cgroup: "dst_cgroup",
    identity: "dst_identity",
    network: "dst_network",
};
