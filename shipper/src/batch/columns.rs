//! Flow records into `FlowColumns`: tables of texts and addresses, deltas of time, one column per field.
//!
//! Owns the columnar form that ingest.proto documents, and the count of its bytes while it grows. Called by `batch`.

use std::net::IpAddr;
use std::sync::Arc;

use foldhash::{HashMap, HashMapExt};
use prost::encoding::encoded_len_varint;
use weir_proto::v1::FlowColumns;
use weir_schema::values::{ConnectError, EndReason, TcpState};

use crate::flow::{FlowRecord, LinkPart, LocalIdentity, Tunnel};

/// Texts are cut here, at a character's boundary; the kernel's own limit of a path.
pub(super) const TEXT_BYTES_MAX: usize = 4096;

/// Columns under construction.
pub(super) struct Columns {
    columns: FlowColumns,
    texts: HashMap<Arc<str>, u32>,
    addresses: HashMap<u128, u32>,
    bytes: usize,
}

impl Default for Columns {
    fn default() -> Self {
        Self {
            columns: FlowColumns { strings: vec![String::new()], ..FlowColumns::default() },
            texts: HashMap::new(),
            addresses: HashMap::new(),
            bytes: 64,
        }
    }
}

impl Columns {
    pub(super) fn rows(&self) -> usize {
        self.columns.rows as usize
    }

    /// Size of the columns in protobuf, but for the headers of columns.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    pub(super) fn push(&mut self, flow: &FlowRecord) {
        let FlowRecord {
            flow_id,
            record_seq,
            opened,
            reporter,
            vantage,
            orientation,
            time_quality,
            start_ns,
            end_ns,
            src_ip,
            src_port,
            dst_ip,
            dst_port,
            protocol,
            src_bytes,
            dst_bytes,
            src_packets,
            dst_packets,
            tcp_flags_src,
            tcp_flags_dst,
            tcp_state,
            end_reason,
            connect_error,
            handshake_us,
            rtt_us,
            rtt_min_us,
            rtt_max_us,
            src_retransmits,
            dst_retransmits,
            nat,
            local,
            link,
        } = flow;
        if self.columns.rows == 0 {
            self.columns.base_time_ns = *end_ns;
        }
        let src_ip = self.address(*src_ip);
        let dst_ip = self.address(*dst_ip);
        let nat = nat.map(|nat| {
            let (src, dst) = (self.address(nat.src_ip), self.address(nat.dst_ip));
            [src + 1, u32::from(nat.src_port), dst + 1, u32::from(nat.dst_port)]
        });
        let local = local.as_deref().map(|local| self.local(local)).unwrap_or_default();
        let link = link.as_ref().map(|link| self.link(link)).unwrap_or_default();

        let columns = &mut self.columns;
        let id = u128::from_be_bytes(*flow_id);
        columns.flow_id_high.push((id >> 64) as u64);
        columns.flow_id_low.push(id as u64);
        let end_delta = end_ns.wrapping_sub(columns.base_time_ns);
        columns.end_delta_ns.push(end_delta);
        let zigzag = ((end_delta << 1) ^ (end_delta >> 63)) as u64;
        let mut bytes = 16 + encoded_len_varint(zigzag);
        columns.rows += 1;

        let mut wide = |column: &mut Vec<u64>, value: u64| {
            bytes += encoded_len_varint(value);
            column.push(value);
        };
        wide(&mut columns.record_seq, *record_seq);
        wide(&mut columns.duration_ns, end_ns.saturating_sub(*start_ns).max(0).unsigned_abs());
        wide(&mut columns.src_bytes, *src_bytes);
        wide(&mut columns.dst_bytes, *dst_bytes);
        wide(&mut columns.src_packets, *src_packets);
        wide(&mut columns.dst_packets, *dst_packets);
        wide(&mut columns.tunnel_id, link.tunnel_id);

        let mut put = |column: &mut Vec<u32>, value: u32| {
            bytes += encoded_len_varint(u64::from(value));
            column.push(value);
        };
        put(&mut columns.opened, *opened);
        put(&mut columns.reporter, reporter.code());
        put(&mut columns.vantage, vantage.code());
        put(&mut columns.orientation, orientation.code());
        put(&mut columns.time_quality, time_quality.code());
        put(&mut columns.src_ip, src_ip);
        put(&mut columns.dst_ip, dst_ip);
        put(&mut columns.src_port, u32::from(*src_port));
        put(&mut columns.dst_port, u32::from(*dst_port));
        put(&mut columns.protocol, u32::from(*protocol));
        put(&mut columns.tcp_flags_src, u32::from(*tcp_flags_src));
        put(&mut columns.tcp_flags_dst, u32::from(*tcp_flags_dst));
        put(&mut columns.tcp_state, tcp_state.map_or(0, TcpState::code));
        put(&mut columns.end_reason, end_reason.map_or(0, EndReason::code));
        put(&mut columns.connect_error, connect_error.map_or(0, ConnectError::code));
        put(&mut columns.handshake_us, plus_one(*handshake_us));
        put(&mut columns.rtt_us, plus_one(*rtt_us));
        put(&mut columns.rtt_min_us, plus_one(*rtt_min_us));
        put(&mut columns.rtt_max_us, plus_one(*rtt_max_us));
        put(&mut columns.src_retransmits, plus_one(*src_retransmits));
        put(&mut columns.dst_retransmits, plus_one(*dst_retransmits));
        let [process, pid, cgroup, container_id, pod_uid] = local;
        put(&mut columns.local_process, process);
        put(&mut columns.local_pid, pid);
        put(&mut columns.local_cgroup, cgroup);
        put(&mut columns.local_container_id, container_id);
        put(&mut columns.local_pod_uid, pod_uid);
        let [nat_src_ip, nat_src_port, nat_dst_ip, nat_dst_port] = nat.unwrap_or_default();
        put(&mut columns.nat_src_ip, nat_src_ip);
        put(&mut columns.nat_src_port, nat_src_port);
        put(&mut columns.nat_dst_ip, nat_dst_ip);
        put(&mut columns.nat_dst_port, nat_dst_port);
        put(&mut columns.interface, link.interface);
        put(&mut columns.vlan_id, link.vlan_id);
        put(&mut columns.inner_vlan_id, link.inner_vlan_id);
        put(&mut columns.tunnel_type, link.tunnel_type);
        put(&mut columns.tunnel_src_ip, link.tunnel_src_ip);
        put(&mut columns.tunnel_dst_ip, link.tunnel_dst_ip);
        self.bytes += bytes;
    }

    /// The columns, those without any value other than the default left out.
    pub(super) fn finish(self) -> FlowColumns {
        let mut columns = self.columns;
        let FlowColumns {
            rows: _,
            strings: _,
            addresses: _,
            base_time_ns: _,
            flow_id_high,
            flow_id_low,
            record_seq,
            opened,
            reporter,
            vantage,
            orientation,
            time_quality,
            end_delta_ns,
            duration_ns,
            src_ip,
            dst_ip,
            src_port,
            dst_port,
            protocol,
            src_bytes,
            dst_bytes,
            src_packets,
            dst_packets,
            tcp_flags_src,
            tcp_flags_dst,
            tcp_state,
            end_reason,
            connect_error,
            handshake_us,
            rtt_us,
            rtt_min_us,
            rtt_max_us,
            src_retransmits,
            dst_retransmits,
            interface,
            vlan_id,
            inner_vlan_id,
            tunnel_type,
            tunnel_id,
            tunnel_src_ip,
            tunnel_dst_ip,
            local_process,
            local_pid,
            local_cgroup,
            local_container_id,
            local_pod_uid,
            nat_src_ip,
            nat_src_port,
            nat_dst_ip,
            nat_dst_port,
        } = &mut columns;
        for column in [
            flow_id_high,
            flow_id_low,
            record_seq,
            duration_ns,
            src_bytes,
            dst_bytes,
            src_packets,
            dst_packets,
            tunnel_id,
        ] {
            leave_out(column);
        }
        leave_out(end_delta_ns);
        for column in [
            opened,
            reporter,
            vantage,
            orientation,
            time_quality,
            src_ip,
            dst_ip,
            src_port,
            dst_port,
            protocol,
            tcp_flags_src,
            tcp_flags_dst,
            tcp_state,
            end_reason,
            connect_error,
            handshake_us,
            rtt_us,
            rtt_min_us,
            rtt_max_us,
            src_retransmits,
            dst_retransmits,
            interface,
            vlan_id,
            inner_vlan_id,
            tunnel_type,
            tunnel_src_ip,
            tunnel_dst_ip,
            local_process,
            local_pid,
            local_cgroup,
            local_container_id,
            local_pod_uid,
            nat_src_ip,
            nat_src_port,
            nat_dst_ip,
            nat_dst_port,
        ] {
            leave_out(column);
        }
        columns
    }

    fn local(&mut self, local: &LocalIdentity) -> [u32; 5] {
        let LocalIdentity { process, pid, cgroup_id: _, cgroup, container_id, pod_uid } = local;
        [self.text(process), *pid, self.text(cgroup), self.text(container_id), self.text(pod_uid)]
    }

    fn link(&mut self, link: &LinkPart) -> LinkCodes {
        let LinkPart { interface, vlan_id, inner_vlan_id, tunnel } = link;
        let mut codes = LinkCodes {
            interface: self.text(interface),
            vlan_id: u32::from(*vlan_id),
            inner_vlan_id: u32::from(*inner_vlan_id),
            ..LinkCodes::default()
        };
        if let Some(Tunnel { kind, id, src_ip, dst_ip }) = tunnel {
            codes.tunnel_type = kind.code();
            codes.tunnel_id = id.map_or(0, |id| u64::from(id) + 1);
            codes.tunnel_src_ip = self.address(*src_ip) + 1;
            codes.tunnel_dst_ip = self.address(*dst_ip) + 1;
        }
        codes
    }

    fn text(&mut self, text: &Arc<str>) -> u32 {
        if text.is_empty() {
            return 0;
        }
        if let Some(index) = self.texts.get(text) {
            return *index;
        }
        let index = u32::try_from(self.columns.strings.len()).unwrap_or(0);
        let cut = text.floor_char_boundary(TEXT_BYTES_MAX);
        self.columns.strings.push(text[..cut].to_owned());
        self.texts.insert(Arc::clone(text), index);
        self.bytes += cut + 4;
        index
    }

    fn address(&mut self, address: IpAddr) -> u32 {
        let bits = match address {
            IpAddr::V4(v4) => v4.to_ipv6_mapped().to_bits(),
            IpAddr::V6(v6) => v6.to_bits(),
        };
        let table = &mut self.columns.addresses;
        let total = &mut self.bytes;
        *self.addresses.entry(bits).or_insert_with(|| {
            let index = u32::try_from(table.len() / 16).unwrap_or(0);
            table.extend_from_slice(&bits.to_be_bytes());
            *total += 16;
            index
        })
    }
}

/// What a [`LinkPart`] is on the wire; all 0 without one.
#[derive(Default)]
struct LinkCodes {
    interface: u32,
    vlan_id: u32,
    inner_vlan_id: u32,
    tunnel_type: u32,
    tunnel_id: u64,
    tunnel_src_ip: u32,
    tunnel_dst_ip: u32,
}

/// Numbers travel as value + 1, 0 is null.
fn plus_one(value: Option<u32>) -> u32 {
    value.map_or(0, |value| value.saturating_add(1))
}

fn leave_out<T: Default + PartialEq>(column: &mut Vec<T>) {
    if column.iter().all(|value| *value == T::default()) {
        column.clear();
    }
}
