//! Journal records made from numbers, for tests and measurements: the same position gives the same record in every
//! process. Compiled for tests and with `crash-points` only.
//!
//! Flows look like those of a cluster: 2,000 pods in 40 namespaces on 50 nodes talk to few peers each and to the
//! outside, on few ports, four of ten records go on with a conversation.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, BooleanArray, DictionaryArray, FixedSizeBinaryArray, Float64Array, ListArray,
    PrimitiveArray, RecordBatch, StringArray, TimestampMicrosecondArray, UInt32Array, new_null_array,
};
use arrow::buffer::OffsetBuffer;
use arrow::datatypes::{ArrowPrimitiveType, DataType, UInt8Type, UInt16Type, UInt32Type, UInt64Type};
use weir_common::id::{community_id, event_id, flow_id};
use weir_schema::{Field, Kind, Type};

use crate::journal::JournalRecord;

/// How records are made.
#[derive(Clone, Debug)]
pub struct Synthetic {
    /// Flows of each record.
    pub flows: u32,
    /// Rows of each other kind in each record.
    pub others: u32,
    /// Time of the first record, nanoseconds since the Unix epoch.
    pub start_ns: i64,
    /// Time between records, nanoseconds.
    pub step_ns: i64,
    /// How far back the end of a flow may lie, microseconds.
    pub spread_us: u64,
    /// Clusters, taken in turn by row.
    pub clusters: Vec<String>,
    /// Whether Kubernetes names are filled.
    pub names: bool,
}

impl Default for Synthetic {
    /// 2025-06-01T12:30:00Z, 8,192 flows a record at 20,000 a second, one cluster, names filled.
    fn default() -> Self {
        Self {
            flows: 8192,
            others: 0,
            start_ns: 1_748_781_000_000_000_000,
            step_ns: 8192 * 50_000,
            spread_us: 10_000_000,
            clusters: vec!["prod".to_owned()],
            names: true,
        }
    }
}

/// The `event_id` of row `row` of the record at `position`; rows of the other kinds follow the flows.
pub fn synthetic_event_id(position: u64, row: u32) -> [u8; 16] {
    event_id(&EPOCH, position, row)
}

impl Synthetic {
    /// Rows of each record.
    pub fn rows(&self) -> u32 {
        self.flows + self.others * (Kind::ALL.len() as u32 - 1)
    }

    /// The record at a position.
    pub fn record(&self, position: u64) -> JournalRecord {
        let append_time_ns = self.start_ns + self.step_ns * i64::try_from(position).unwrap_or(i64::MAX / 2);
        let mut batches = Vec::new();
        let mut first = 0;
        for kind in Kind::ALL {
            let count = if kind == Kind::Flow { self.flows } else { self.others };
            if count == 0 {
                continue;
            }
            let rows: Vec<Row> = (first..first + count).map(|row| Row::new(self, position, row)).collect();
            let schema = kind.arrow_schema();
            let fields = kind.fields().iter().zip(schema.fields());
            let columns = fields.map(|(field, arrow)| column(field, arrow.data_type(), &rows)).collect();
            let batch = RecordBatch::try_new(schema, columns).expect("columns are made from the schema");
            batches.push((kind, batch));
            first += count;
        }
        JournalRecord { position, append_time_ns, batches }
    }
}

/// What one row says, as far as it varies.
struct Row {
    event_id: [u8; 16],
    cluster: String,
    end_us: i64,
    duration_us: i64,
    names: bool,
    opened: bool,
    src: Pod,
    dst: Pod,
    conversation: u64,
    random: u64,
}

/// One side.
#[derive(Clone, Copy)]
struct Pod {
    number: u64,
    external: bool,
}

impl Row {
    fn new(from: &Synthetic, position: u64, row: u32) -> Self {
        let random = mix(position << 20 | u64::from(row));
        let received_us = (from.start_ns / 1000) + (from.step_ns / 1000) * position as i64;
        let opened = random % 10 < 6;
        // Going on: a conversation of the last few records.
        let conversation = if opened {
            random
        } else {
            mix(((position - random % position.min(8)) << 20) | ((random >> 8) & 63))
        };
        let src = Pod { number: skewed(mix(conversation ^ 1), PODS), external: false };
        let peer = mix(src.number * 5 + conversation % 5);
        let external = peer.is_multiple_of(5);
        let dst = Pod { number: if external { peer >> 8 & 4095 } else { skewed(peer, PODS) }, external };
        Self {
            event_id: synthetic_event_id(position, row),
            cluster: from.clusters[row as usize % from.clusters.len()].clone(),
            end_us: received_us - (mix(random ^ 2) % from.spread_us.max(1)) as i64,
            duration_us: (mix(random ^ 3) % 10_000_000) as i64,
            names: from.names,
            opened,
            src,
            dst,
            conversation,
            random,
        }
    }

    fn tcp(&self) -> bool {
        !self.conversation.is_multiple_of(5)
    }

    fn tuple(&self) -> (IpAddr, IpAddr, u8, u16, u16) {
        let (src_port, dst_port) = (self.number("src_port") as u16, self.number("dst_port") as u16);
        (self.src.ip(), self.dst.ip(), if self.tcp() { 6 } else { 17 }, src_port, dst_port)
    }

    fn number(&self, field: &str) -> u64 {
        let own = mix(self.random ^ field.len() as u64 ^ u64::from(field.as_bytes()[field.len() / 2]) << 8);
        match field {
            "record_seq" => (self.end_us / 10_000_000) as u64,
            "opened" => u64::from(self.opened),
            "src_port" => 32_768 + self.conversation % 28_000,
            "dst_port" => [80, 443, 8080, 5432, 6379, 9092, 53, 3306][(self.conversation >> 16 & 7) as usize],
            "src_bytes" | "dst_bytes" | "bytes" => 40 + (own >> (40 + own % 24)),
            "src_packets" | "dst_packets" | "count" => 1 + (own >> (52 + own % 12)),
            "tcp_flags_src" | "tcp_flags_dst" if self.tcp() => [0x1b, 0x1a, 0x18][(own % 3) as usize],
            "handshake_us" | "rtt_us" | "rtt_min_us" | "rtt_max_us" => 100 + own % 2000,
            "src_pid" => 1000 + self.src.number * 7,
            "dst_pid" => 1000 + self.dst.number * 7,
            "sampling" => 1,
            _ => 0,
        }
    }

    /// Whether a nullable number is there.
    fn has(&self, field: &str) -> bool {
        match field {
            "handshake_us" => self.tcp() && self.opened,
            "rtt_us" | "rtt_min_us" | "rtt_max_us" | "src_retransmits" => self.tcp(),
            "src_pid" | "count" | "bytes" => true,
            _ => false,
        }
    }

    fn text(&self, field: &str) -> Option<String> {
        if let Some(end) = field.strip_prefix("src_") {
            return self.src.text(end, self.names);
        }
        if let Some(end) = field.strip_prefix("dst_") {
            return self.dst.text(end, self.names);
        }
        let (src, dst, protocol, src_port, dst_port) = self.tuple();
        Some(match field {
            "cluster" => self.cluster.clone(),
            "node" => format!("node-{:02}", self.src.number % NODES),
            "reporter" => "source".to_owned(),
            "vantage" => "socket".to_owned(),
            "time_quality" => "ok".to_owned(),
            "protocol" => if self.tcp() { "tcp" } else { "udp" }.to_owned(),
            "community_id" => community_id(src, dst, protocol, src_port, dst_port),
            "tcp_state" if self.tcp() => {
                ["established", "close", "fin_wait2"][(self.random >> 9) as usize % 3].to_owned()
            }
            "end_reason" if !self.random.is_multiple_of(4) => "closed".to_owned(),
            "orientation" => "observed".to_owned(),
            "stage" => "spool".to_owned(),
            "reason" => "budget".to_owned(),
            _ => return None,
        })
    }
}

impl Pod {
    fn ip(self) -> IpAddr {
        if self.number % 8 == 7 {
            let net = if self.external { 0x2001_0db8 } else { 0xfd00_0042 };
            return IpAddr::V6(Ipv6Addr::from_bits(net << 96 | u128::from(self.number)));
        }
        let number = (self.number as u32).to_be_bytes();
        let first = if self.external { [203, 0] } else { [10, 42] };
        IpAddr::V4(Ipv4Addr::new(first[0], first[1], number[2], number[3]))
    }

    fn text(self, field: &str, names: bool) -> Option<String> {
        let Self { number, external } = self;
        let workload = number / 6;
        Some(match field {
            "ip" => self.ip().to_string(),
            "identity" => if external { "external" } else { "pod" }.to_owned(),
            "network" if external => "internet".to_owned(),
            _ if external => return None,
            "process" => format!("server{}", workload % 60),
            "container_id" => format!(
                "{:016x}{:016x}{:016x}{:016x}",
                mix(number),
                mix(number + 1),
                mix(number + 2),
                mix(number + 3)
            ),
            "cgroup" => format!(
                "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{:016x}.slice",
                mix(number)
            ),
            "pod_uid" => format!(
                "{:08x}-{:04x}-4000-8000-{:012x}",
                mix(number) as u32,
                mix(number) as u16,
                mix(number) >> 16
            ),
            _ if !names => return None,
            "namespace" => format!("team-{:02}", workload % 40),
            "pod" => format!("service-{workload}-{:05x}", mix(number) & 0xf_ffff),
            "workload" | "service" => format!("service-{workload}"),
            "workload_kind" => "Deployment".to_owned(),
            "node" => format!("node-{:02}", number % NODES),
            "zone" => format!("zone-{}", number % 3),
            _ => return None,
        })
    }
}

fn column(field: &Field, data_type: &DataType, rows: &[Row]) -> ArrayRef {
    let name = field.name;
    match field.ty {
        Type::Uuid => {
            let id = |row: &Row| match name {
                "flow_id" => flow_id(mix(row.src.number % NODES), row.conversation >> 30, row.conversation),
                _ => row.event_id,
            };
            let ids: Vec<u8> = rows.iter().flat_map(id).collect();
            Arc::new(FixedSizeBinaryArray::new(16, ids.into(), None))
        }
        Type::Text | Type::Ip => {
            let due = || (!field.nullable).then(|| name.to_owned());
            text_column(rows.iter().map(|row| row.text(name).or_else(due)))
        }
        Type::Time => {
            let start = matches!(name, "start_time" | "first_time" | "first_seen");
            let time = |row: &Row| row.end_us - if start { row.duration_us } else { 0 };
            Arc::new(TimestampMicrosecondArray::from_iter_values(rows.iter().map(time)).with_timezone("UTC"))
        }
        Type::U8 => numbers::<UInt8Type>(field, rows, |number| number as u8),
        Type::U16 => numbers::<UInt16Type>(field, rows, |number| number as u16),
        Type::U32 => numbers::<UInt32Type>(field, rows, |number| number as u32),
        Type::U64 => numbers::<UInt64Type>(field, rows, |number| number),
        Type::Bool => Arc::new(BooleanArray::from(vec![true; rows.len()])),
        Type::F64 => Arc::new(Float64Array::from_iter_values(rows.iter().map(|row| row.number(name) as f64))),
        Type::TextList | Type::UuidList => {
            let DataType::List(item) = data_type else { return new_null_array(data_type, rows.len()) };
            let values: ArrayRef = if field.ty == Type::UuidList {
                let ids: Vec<u8> = rows.iter().flat_map(|row| row.event_id).collect();
                Arc::new(FixedSizeBinaryArray::new(16, ids.into(), None))
            } else {
                Arc::new(rows.iter().map(|row| Some(row.dst.ip().to_string())).collect::<StringArray>())
            };
            let offsets = OffsetBuffer::from_repeated_length(1, rows.len());
            Arc::new(ListArray::new(Arc::clone(item), offsets, values, None))
        }
    }
}

fn numbers<T: ArrowPrimitiveType>(field: &Field, rows: &[Row], to: fn(u64) -> T::Native) -> ArrayRef {
    let value = |row: &Row| (!field.nullable || row.has(field.name)).then(|| to(row.number(field.name)));
    Arc::new(rows.iter().map(value).collect::<PrimitiveArray<T>>())
}

/// A dictionary column, as the aggregator makes them: each text once, keys in order of appearance.
fn text_column(texts: impl Iterator<Item = Option<String>>) -> ArrayRef {
    let mut known = std::collections::HashMap::new();
    let mut values: Vec<String> = Vec::new();
    let key = |text: String| {
        *known.entry(text).or_insert_with_key(|text| {
            values.push(text.clone());
            values.len() as u32 - 1
        })
    };
    let mut key = key;
    let keys: UInt32Array = texts.map(|text| text.map(&mut key)).collect();
    let values: ArrayRef = Arc::new(StringArray::from(values));
    debug_assert!(keys.is_empty() || values.len() <= keys.len());
    Arc::new(DictionaryArray::<UInt32Type>::try_new(keys, values).expect("keys are indices of the values"))
}

/// Few of the numbers below `count` are frequent.
fn skewed(random: u64, count: u64) -> u64 {
    let (a, b) = (random % count, (random >> 32) % count);
    a * b / count
}

/// A good hash of a number (SplitMix64, Steele et al. 2014).
fn mix(number: u64) -> u64 {
    let mut z = number.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

const EPOCH: [u8; 16] = *b"synthetic epoch!";
const PODS: u64 = 2000;
const NODES: u64 = 50;
