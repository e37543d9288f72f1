//! What enrichment and time add to each flow: ids and values by row, from tables resolved once per batch.

use std::borrow::Cow;
use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::Arc;

use arrow::array::{DictionaryArray, StringBuilder, UInt32Array};
use arrow::datatypes::UInt32Type;
use arrow::error::ArrowError;
use foldhash::fast::RandomState;
use weir_common::id;
use weir_proto::v1::FlowColumns;
use weir_schema::protocol::protocol_name;
use weir_schema::values::{
    ConnectError, EndReason, Identity, Orientation, Reporter, TcpState, TimeQuality, TunnelType, Vantage,
};

use super::flow::FlowUnit;
use super::text::{Codes, Interner, NULL};
use crate::enrich::Snapshot;

/// Columns being filled, one element a row; texts are ids of the group's interner.
pub(super) struct Rows {
    pub(super) codes: SetCodes,
    pub(super) event_id: Vec<u8>,
    pub(super) flow_id: Vec<u8>,
    pub(super) cluster: Vec<u32>,
    pub(super) node: Vec<u32>,
    pub(super) reporter: Vec<u32>,
    pub(super) vantage: Vec<u32>,
    pub(super) primary: Vec<bool>,
    pub(super) start_ns: Vec<i64>,
    pub(super) end_ns: Vec<i64>,
    pub(super) time_quality: Vec<u32>,
    pub(super) protocol: Vec<u32>,
    pub(super) community: Community,
    pub(super) tcp_state: Vec<u32>,
    pub(super) end_reason: Vec<u32>,
    pub(super) connect_error: Vec<u32>,
    pub(super) src: Side,
    pub(super) dst: Side,
    pub(super) nat_src_ip: Vec<u32>,
    pub(super) nat_dst_ip: Vec<u32>,
    pub(super) orientation: Vec<u32>,
    pub(super) interface: Vec<u32>,
    pub(super) tunnel_type: Vec<u32>,
    pub(super) tunnel_src_ip: Vec<u32>,
    pub(super) tunnel_dst_ip: Vec<u32>,
}

/// One end of the flows.
#[derive(Default)]
pub(super) struct Side {
    pub(super) ip: Vec<u32>,
    pub(super) node: Vec<u32>,
    pub(super) process: Vec<u32>,
    pub(super) pid: Vec<u32>,
    pub(super) container_id: Vec<u32>,
    pub(super) cgroup: Vec<u32>,
    pub(super) pod_uid: Vec<u32>,
    pub(super) identity: Vec<u32>,
    pub(super) network: Vec<u32>,
}

/// Text ids of the closed sets.
pub(super) struct SetCodes {
    reporter: Codes,
    vantage: Codes,
    time_quality: Codes,
    tcp_state: Codes,
    end_reason: Codes,
    connect_error: Codes,
    orientation: Codes,
    tunnel_type: Codes,
    identity: Codes,
}

/// An entry of a batch's address table, resolved.
struct Address {
    ip: IpAddr,
    /// Null for the unspecified address, which stands for "none" on overflow records.
    text: u32,
    network: u32,
    node: u32,
    identity: Identity,
    enrolled: bool,
}

/// The process at the reporting side, as text ids.
struct Local {
    node: u32,
    process: u32,
    pid: u32,
    container_id: u32,
    cgroup: u32,
    pod_uid: u32,
}

impl Rows {
    pub(super) fn with_capacity(rows: usize, texts: &mut Interner<'_>) -> Self {
        let ids = || Vec::with_capacity(rows);
        Self {
            codes: SetCodes::new(texts),
            event_id: Vec::with_capacity(rows * 16),
            flow_id: Vec::with_capacity(rows * 16),
            cluster: ids(),
            node: ids(),
            reporter: ids(),
            vantage: ids(),
            primary: Vec::with_capacity(rows),
            start_ns: Vec::with_capacity(rows),
            end_ns: Vec::with_capacity(rows),
            time_quality: ids(),
            protocol: ids(),
            community: Community::with_capacity(rows),
            tcp_state: ids(),
            end_reason: ids(),
            connect_error: ids(),
            src: Side::with_capacity(rows),
            dst: Side::with_capacity(rows),
            nat_src_ip: ids(),
            nat_dst_ip: ids(),
            orientation: ids(),
            interface: ids(),
            tunnel_type: ids(),
            tunnel_src_ip: ids(),
            tunnel_dst_ip: ids(),
        }
    }

    pub(super) fn push_unit<'a>(
        &mut self,
        unit: &FlowUnit<'a>,
        snapshot: &'a Snapshot,
        received_ns: i64,
        texts: &mut Interner<'a>,
    ) {
        let (flows, count) = (unit.columns, unit.columns.rows as usize);
        let node = texts.id(unit.origin.node.as_str());
        let cluster = texts.id(unit.origin.cluster.as_str());
        let strings: Vec<u32> = flows.strings.iter().map(|text| texts.id(text.as_str())).collect();
        let string = |column: &[u32], row| strings.get(at(column, row) as usize).copied().unwrap_or(NULL);
        let addresses = resolve(&flows.addresses, snapshot, node, texts);
        let mut protocols: [u32; 256] = [NULL; 256];

        self.cluster.resize(self.cluster.len() + count, cluster);
        self.node.resize(self.node.len() + count, node);
        self.push_columns(flows, &strings, &addresses);
        for row in 0..count {
            let reporter = Reporter::from_code(at(&flows.reporter, row)).unwrap_or(Reporter::Transit);
            let overflow = at(&flows.orientation, row) == Orientation::Overflow.code();
            let index = u32::try_from(row).unwrap_or(u32::MAX);
            self.event_id.extend_from_slice(&id::event_id(&unit.origin.source.epoch, unit.number, index));
            self.reporter.push(self.codes.reporter.id(reporter.code()));

            // Ingest has checked that these do not wrap.
            let end_ns = flows.base_time_ns.saturating_add(at(&flows.end_delta_ns, row));
            self.end_ns.push(end_ns);
            self.start_ns.push(end_ns.saturating_sub_unsigned(at(&flows.duration_ns, row)));
            let stated = TimeQuality::from_code(at(&flows.time_quality, row)).unwrap_or(TimeQuality::Ok);
            let quality = snapshot.time_quality(stated, end_ns, received_ns);
            self.time_quality.push(self.codes.time_quality.id(quality.code()));

            let protocol = u8::try_from(at(&flows.protocol, row)).unwrap_or(u8::MAX);
            let name = &mut protocols[usize::from(protocol)];
            if *name == NULL {
                *name = texts.id(protocol_name(protocol));
            }
            self.protocol.push(*name);

            let src = &addresses[at(&flows.src_ip, row) as usize];
            let dst = &addresses[at(&flows.dst_ip, row) as usize];
            let port = |column: &[u32]| u16::try_from(at(column, row)).unwrap_or(u16::MAX);
            self.primary.push(!overflow && is_primary(reporter, src.enrolled));
            // Neither overflow nor what is not IP is between two addresses.
            if overflow || (src.text == NULL && dst.text == NULL) {
                self.community.push_null();
            } else {
                let key = (src.ip, dst.ip, protocol, port(&flows.src_port), port(&flows.dst_port));
                self.community.push(key);
            }

            let local = Local {
                node,
                process: string(&flows.local_process, row),
                pid: at(&flows.local_pid, row),
                container_id: string(&flows.local_container_id, row),
                cgroup: string(&flows.local_cgroup, row),
                pod_uid: string(&flows.local_pod_uid, row),
            };
            let at_src = (reporter == Reporter::Source).then_some(&local);
            let at_dst = (reporter == Reporter::Destination).then_some(&local);
            self.src.push(src, at_src, overflow, &self.codes);
            self.dst.push(dst, at_dst, overflow, &self.codes);
        }
    }
}

impl Rows {
    /// The columns that depend on nothing else, each in one go: many are left out by most batches.
    fn push_columns(&mut self, flows: &FlowColumns, strings: &[u32], addresses: &[Address]) {
        let count = flows.rows as usize;
        for row in 0..count {
            self.flow_id.extend_from_slice(&at(&flows.flow_id_high, row).to_be_bytes());
            self.flow_id.extend_from_slice(&at(&flows.flow_id_low, row).to_be_bytes());
        }
        let Self { codes, vantage, orientation, tcp_state, end_reason, connect_error, tunnel_type, .. } =
            self;
        for (column, from, codes) in [
            (vantage, &flows.vantage, &codes.vantage),
            (orientation, &flows.orientation, &codes.orientation),
            (tcp_state, &flows.tcp_state, &codes.tcp_state),
            (end_reason, &flows.end_reason, &codes.end_reason),
            (connect_error, &flows.connect_error, &codes.connect_error),
            (tunnel_type, &flows.tunnel_type, &codes.tunnel_type),
        ] {
            mapped(column, from, count, |code| codes.id(code));
        }
        mapped(&mut self.interface, &flows.interface, count, |index| {
            strings.get(index as usize).copied().unwrap_or(NULL)
        });
        for (column, from) in [
            (&mut self.nat_src_ip, &flows.nat_src_ip),
            (&mut self.nat_dst_ip, &flows.nat_dst_ip),
            (&mut self.tunnel_src_ip, &flows.tunnel_src_ip),
            (&mut self.tunnel_dst_ip, &flows.tunnel_dst_ip),
        ] {
            mapped(column, from, count, |place| {
                let address = (place as usize).checked_sub(1).and_then(|index| addresses.get(index));
                address.map_or(NULL, |address| address.text)
            });
        }
    }
}

/// Appends what becomes of each of `count` values; a column that was left out is all 0.
fn mapped(column: &mut Vec<u32>, values: &[u32], count: usize, id: impl Fn(u32) -> u32) {
    if values.is_empty() {
        column.resize(column.len() + count, id(0));
    } else {
        column.extend(values.iter().map(|value| id(*value)));
    }
}

/// Counts each conversation once: the source's report, and the destination's where no shipper reports for the source.
fn is_primary(reporter: Reporter, src_enrolled: bool) -> bool {
    match reporter {
        Reporter::Source => true,
        Reporter::Destination => !src_enrolled,
        Reporter::Transit => false,
    }
}

fn resolve<'a>(table: &[u8], snapshot: &'a Snapshot, node: u32, texts: &mut Interner<'a>) -> Vec<Address> {
    let entries = table.as_chunks::<16>().0.iter();
    entries
        .map(|octets| {
            let ip = IpAddr::V6(Ipv6Addr::from(*octets)).to_canonical();
            let who = snapshot.who(ip);
            let text = if ip.is_unspecified() { NULL } else { texts.id(Cow::Owned(ip.to_string())) };
            let node = if who.loopback { node } else { texts.id_or_null(who.node) };
            Address {
                ip,
                text,
                network: texts.id_or_null(who.network),
                node,
                identity: who.identity,
                enrolled: who.enrolled,
            }
        })
        .collect()
}

impl Side {
    fn with_capacity(rows: usize) -> Self {
        let ids = || Vec::with_capacity(rows);
        Self {
            ip: ids(),
            node: ids(),
            process: ids(),
            pid: ids(),
            container_id: ids(),
            cgroup: ids(),
            pod_uid: ids(),
            identity: ids(),
            network: ids(),
        }
    }

    /// Adds a row; `local` where this side is the one that reports.
    fn push(&mut self, address: &Address, local: Option<&Local>, overflow: bool, codes: &SetCodes) {
        const NOBODY: Local =
            Local { node: NULL, process: NULL, pid: 0, container_id: NULL, cgroup: NULL, pod_uid: NULL };
        let identity = match local {
            _ if overflow => Identity::Unknown,
            Some(local) if local.pod_uid != NULL => Identity::Pod,
            Some(_) => Identity::Node,
            None => address.identity,
        };
        self.ip.push(if overflow { NULL } else { address.text });
        self.network.push(if overflow { NULL } else { address.network });
        self.identity.push(codes.identity.id(identity.code()));
        let other = Local { node: if overflow { NULL } else { address.node }, ..NOBODY };
        let Local { node, process, pid, container_id, cgroup, pod_uid } = local.unwrap_or(&other);
        self.node.push(*node);
        self.process.push(*process);
        self.pid.push(*pid);
        self.container_id.push(*container_id);
        self.cgroup.push(*cgroup);
        self.pod_uid.push(*pod_uid);
    }
}

impl SetCodes {
    fn new(texts: &mut Interner<'_>) -> Self {
        Self {
            reporter: texts.codes(|code| Reporter::from_code(code).map(Reporter::as_str)),
            vantage: texts.codes(|code| Vantage::from_code(code).map(Vantage::as_str)),
            time_quality: texts.codes(|code| TimeQuality::from_code(code).map(TimeQuality::as_str)),
            tcp_state: texts.codes(|code| TcpState::from_code(code).map(TcpState::as_str)),
            end_reason: texts.codes(|code| EndReason::from_code(code).map(EndReason::as_str)),
            connect_error: texts.codes(|code| ConnectError::from_code(code).map(ConnectError::as_str)),
            orientation: texts.codes(|code| Orientation::from_code(code).map(Orientation::as_str)),
            tunnel_type: texts.codes(|code| TunnelType::from_code(code).map(TunnelType::as_str)),
            identity: texts.codes(|code| Identity::from_code(code).map(Identity::as_str)),
        }
    }
}

/// The column of Community IDs: hashed once per conversation and group, since a look-up costs a tenth of a SHA-1.
pub(super) struct Community {
    keys: Vec<Option<u32>>,
    values: StringBuilder,
    count: u32,
    known: HashMap<Conversation, u32, RandomState>,
}

type Conversation = (IpAddr, IpAddr, u8, u16, u16);

impl Community {
    fn with_capacity(rows: usize) -> Self {
        Self {
            keys: Vec::with_capacity(rows),
            values: StringBuilder::with_capacity(rows, rows * COMMUNITY_ID_BYTES),
            count: 0,
            known: HashMap::with_capacity_and_hasher(rows, RandomState::default()),
        }
    }

    fn push_null(&mut self) {
        self.keys.push(None);
    }

    fn push(&mut self, conversation: Conversation) {
        let Self { keys, values, count, known } = self;
        let key = known.entry(conversation).or_insert_with(|| {
            let (src, dst, protocol, src_port, dst_port) = conversation;
            values.append_value(id::community_id(src, dst, protocol, src_port, dst_port));
            *count += 1;
            *count - 1
        });
        keys.push(Some(*key));
    }

    pub(super) fn finish(mut self) -> Result<DictionaryArray<UInt32Type>, ArrowError> {
        let keys: UInt32Array = self.keys.into_iter().collect();
        DictionaryArray::try_new(keys, Arc::new(self.values.finish()))
    }
}

/// The value of a row; a column that was left out is all 0.
fn at<T: Copy + Default>(column: &[T], row: usize) -> T {
    column.get(row).copied().unwrap_or_default()
}

/// "1:" and 28 characters of base64.
const COMMUNITY_ID_BYTES: usize = 30;
