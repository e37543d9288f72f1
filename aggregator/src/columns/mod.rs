//! From accepted units to Arrow: one record batch per kind for each journal record.
//!
//! Owns the one conversion of an event; every sink reads these columns. The journal's writer calls [`build`]. A batch's
//! tables are resolved once per entry; rows then only copy 32-bit ids (0.09 µs a flow, docs/benchmarks.md).

mod assemble;
mod dns_names;
mod flow;
mod flow_rows;
mod rows;
mod text;

use arrow::array::RecordBatch;
use arrow::error::ArrowError;
use weir_proto::v1::LossEvent;
use weir_schema::Kind;

use crate::accepted::{Accepted, Content, Id, Origin};
use crate::enrich::Snapshot;

pub use rows::LossRow;

/// The row of `event_id` that a skip's loss row has, in the batch of its first number. Batches have fewer rows.
pub const SKIP_ROW: u32 = 0xf_ffff;

/// Builds the batches of a group, in the order of `Kind::ALL`, kinds without rows left out.
///
/// `own` are losses that the aggregator itself reports. `received_ns` is the group's append time.
pub fn build(
    units: &[Accepted],
    own: &[OwnLoss],
    snapshot: &Snapshot,
    received_ns: i64,
) -> Result<Vec<(Kind, RecordBatch)>, ArrowError> {
    let mut flows = Vec::new();
    let mut dns = Vec::new();
    let mut anomalies = Vec::new();
    let mut losses: Vec<LossRow<'_>> = own.iter().map(OwnLoss::row).collect();
    for unit in units {
        let origin = unit.origin.as_ref();
        let number = unit.first_number;
        match &unit.content {
            Content::Skip(event) => losses.push(loss_row(origin, number, SKIP_ROW, event)),
            Content::Body(body) => {
                let body = body.get();
                let mut row = 0;
                if let Some(columns) = body.flows.as_ref().filter(|columns| columns.rows > 0) {
                    flows.push(flow::FlowUnit { origin, number, columns });
                    row = columns.rows;
                }
                for event in &body.dns {
                    dns.push(rows::DnsRow { origin, event_id: event_id(origin, number, row), event });
                    row += 1;
                }
                for event in &body.anomalies {
                    anomalies.push(rows::AnomalyRow {
                        origin,
                        event_id: event_id(origin, number, row),
                        event,
                    });
                    row += 1;
                }
                for event in &body.losses {
                    losses.push(loss_row(origin, number, row, event));
                    row += 1;
                }
            }
        }
    }
    let mut batches = Vec::with_capacity(Kind::ALL.len());
    if !flows.is_empty() {
        batches.push((Kind::Flow, flow::build(&flows, snapshot, received_ns)?));
    }
    if !dns.is_empty() {
        batches.push((Kind::Dns, rows::dns(&dns)?));
    }
    if !anomalies.is_empty() {
        batches.push((Kind::Anomaly, rows::anomalies(&anomalies)?));
    }
    if !losses.is_empty() {
        batches.push((Kind::Loss, rows::losses(&losses)?));
    }
    Ok(batches)
}

/// A loss that the aggregator itself found, for example a damaged journal segment.
#[derive(Clone, Debug, PartialEq)]
pub struct OwnLoss {
    /// Its id: the same when the same loss is reported again.
    pub event_id: Id,
    /// The aggregator's cluster.
    pub cluster: String,
    /// The aggregator's name.
    pub node: String,
    /// At stage sink: which.
    pub sink: Option<&'static str>,
    /// What was lost.
    pub event: LossEvent,
}

impl OwnLoss {
    fn row(&self) -> LossRow<'_> {
        let Self { event_id, cluster, node, sink, event } = self;
        LossRow { event_id: *event_id, cluster, node, sink: *sink, event }
    }
}

fn loss_row<'a>(origin: &'a Origin, number: u64, row: u32, event: &'a LossEvent) -> LossRow<'a> {
    let event_id = event_id(origin, number, row);
    LossRow { event_id, cluster: &origin.cluster, node: &origin.node, sink: None, event }
}

fn event_id(origin: &Origin, number: u64, row: u32) -> Id {
    weir_common::id::event_id(&origin.source.epoch, number, row)
}

#[cfg(test)]
mod tests;
