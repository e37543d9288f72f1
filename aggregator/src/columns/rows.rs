//! The rarer kinds, which come as rows: DNS exchanges, findings and losses.

use std::borrow::Cow;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::Arc;

use arrow::array::{
    FixedSizeBinaryBuilder, Float64Array, ListBuilder, RecordBatch, StringBuilder, UInt32Array, UInt64Array,
};
use arrow::datatypes::DataType;
use arrow::error::ArrowError;
use weir_proto::v1::{AnomalyEvent, DnsEvent, LossEvent};
use weir_schema::Kind;
use weir_schema::values::{LossReason, LossStage, Reporter};

use super::assemble::{Assembler, bools, times, u16s, uuids};
use super::dns_names;
use super::text::{Interner, NULL};
use crate::accepted::{Id, Origin};

/// A DNS exchange and where it came from.
pub(super) struct DnsRow<'a> {
    pub(super) origin: &'a Origin,
    pub(super) event_id: Id,
    pub(super) event: &'a DnsEvent,
}

/// A finding and where it came from.
pub(super) struct AnomalyRow<'a> {
    pub(super) origin: &'a Origin,
    pub(super) event_id: Id,
    pub(super) event: &'a AnomalyEvent,
}

/// A loss and where it was.
pub struct LossRow<'a> {
    pub(super) event_id: Id,
    pub(super) cluster: &'a str,
    pub(super) node: &'a str,
    pub(super) sink: Option<&'static str>,
    pub(super) event: &'a LossEvent,
}

/// Every column of the catalogue, in its order.
pub(super) fn dns(rows: &[DnsRow<'_>]) -> Result<RecordBatch, ArrowError> {
    let mut texts = Interner::new();
    let mut ids = |text: &dyn for<'a> Fn(&'a DnsRow<'_>) -> Cow<'a, str>| -> Vec<u32> {
        rows.iter().map(|row| texts.id(text(row).into_owned())).collect()
    };
    let cluster = ids(&|row| row.origin.cluster.as_str().into());
    let node = ids(&|row| row.origin.node.as_str().into());
    let reporter = ids(&|row| Reporter::from_code(row.event.reporter).map_or("", Reporter::as_str).into());
    let client_ip = ids(&|row| address(&row.event.client_ip).into());
    let server_ip = ids(&|row| address(&row.event.server_ip).into());
    let transport = ids(&|row| if row.event.transport == 6 { "tcp" } else { "udp" }.into());
    let query_name = ids(&|row| row.event.query_name.as_str().into());
    let query_type = ids(&|row| dns_names::record_type(row.event.query_type));
    let rcode = ids(&|row| row.event.rcode.map_or("".into(), dns_names::response_code));
    // The client is where the question was recorded at its source.
    let at_client = |row: &DnsRow<'_>| row.event.reporter == Reporter::Source.code();
    let client_process =
        ids(&|row| if at_client(row) { row.event.local_process.as_str() } else { "" }.into());
    let server_process = ids(&|row| match Reporter::from_code(row.event.reporter) {
        Some(Reporter::Destination) => row.event.local_process.as_str().into(),
        _ => "".into(),
    });
    let mut answers = ListBuilder::new(StringBuilder::new());
    for DnsRow { event, .. } in rows {
        for answer in &event.answers {
            answers.values().append_value(answer);
        }
        answers.append(!event.answers.is_empty());
    }

    let mut out = Assembler::new(Kind::Dns, rows.len());
    out.add("event_id", uuids(rows.iter().flat_map(|row| row.event_id).collect())?)
        .add("cluster", texts.required(&cluster)?)
        .add("node", texts.required(&node)?)
        .add("reporter", texts.required(&reporter)?)
        .add("time", times(rows.iter().map(|row| row.event.time_ns)))
        .add("client_ip", texts.nullable(&client_ip)?)
        .add("client_port", u16s(rows.iter().map(|row| row.event.client_port)))
        .add("server_ip", texts.nullable(&server_ip)?)
        .add("server_port", u16s(rows.iter().map(|row| row.event.server_port)))
        .add("transport", texts.required(&transport)?)
        .add("query_name", texts.required(&query_name)?)
        .add("query_type", texts.required(&query_type)?)
        .add("rcode", texts.nullable(&rcode)?)
        .add("answers", answers.finish())
        .add("answer_ttl_s", UInt32Array::from_iter(rows.iter().map(|row| row.event.answer_ttl_s)))
        .add("latency_us", UInt32Array::from_iter(rows.iter().map(|row| row.event.latency_us)))
        .add("timed_out", bools(rows.iter().map(|row| row.event.timed_out).collect()))
        .add("truncated", bools(rows.iter().map(|row| row.event.truncated).collect()))
        .add("retries", u16s(rows.iter().map(|row| row.event.retries)))
        .add_nulls(&["client_namespace", "client_pod", "client_workload"])
        .add("client_process", texts.nullable(&client_process)?)
        .add_nulls(&["server_namespace", "server_pod", "server_workload"])
        .add("server_process", texts.nullable(&server_process)?);
    out.finish()
}

/// Every column of the catalogue, in its order.
pub(super) fn anomalies(rows: &[AnomalyRow<'_>]) -> Result<RecordBatch, ArrowError> {
    let mut texts = Interner::new();
    let mut ids = |text: &dyn for<'a> Fn(&'a AnomalyRow<'_>) -> &'a str| -> Vec<u32> {
        rows.iter().map(|row| texts.id(text(row).to_owned())).collect()
    };
    let cluster = ids(&|row| &row.origin.cluster);
    let node = ids(&|row| &row.origin.node);
    let ty = ids(&|row| &row.event.r#type);
    let severity = ids(&|row| &row.event.severity);
    let scope = ids(&|row| &row.event.scope);
    let state = ids(&|row| &row.event.state);
    let unit = ids(&|row| &row.event.unit);
    let summary = ids(&|row| &row.event.summary);
    let finding_id = rows.iter().flat_map(|row| row.event.finding_id.iter().copied()).collect();

    let mut out = Assembler::new(Kind::Anomaly, rows.len());
    out.add("event_id", uuids(rows.iter().flat_map(|row| row.event_id).collect())?)
        .add("finding_id", uuids(finding_id)?)
        .add("cluster", texts.required(&cluster)?)
        .add("node", texts.required(&node)?)
        .add("type", texts.required(&ty)?)
        .add("severity", texts.required(&severity)?)
        .add("confidence", Float64Array::from_iter_values(rows.iter().map(|row| row.event.confidence)))
        .add("scope", texts.required(&scope)?)
        .add("state", texts.required(&state)?)
        .add("first_seen", times(rows.iter().map(|row| row.event.first_seen_ns)))
        .add("last_seen", times(rows.iter().map(|row| row.event.last_seen_ns)))
        .add("observed", Float64Array::from_iter(rows.iter().map(|row| row.event.observed)))
        .add("threshold", Float64Array::from_iter(rows.iter().map(|row| row.event.threshold)))
        .add("unit", texts.nullable(&unit)?)
        .add("evidence", evidence(rows)?.finish())
        .add("summary", texts.required(&summary)?);
    out.finish()
}

fn evidence(rows: &[AnomalyRow<'_>]) -> Result<ListBuilder<FixedSizeBinaryBuilder>, ArrowError> {
    let mut list = ListBuilder::new(FixedSizeBinaryBuilder::new(16));
    let schema = Kind::Anomaly.arrow_schema();
    if let DataType::List(item) = schema.field_with_name("evidence")?.data_type() {
        list = list.with_field(Arc::clone(item));
    }
    for AnomalyRow { event, .. } in rows {
        for id in &event.evidence {
            list.values().append_value(id)?;
        }
        list.append(!event.evidence.is_empty());
    }
    Ok(list)
}

/// Every column of the catalogue, in its order.
pub(super) fn losses(rows: &[LossRow<'_>]) -> Result<RecordBatch, ArrowError> {
    let mut texts = Interner::new();
    let mut ids = |text: &dyn for<'a> Fn(&'a LossRow<'_>) -> &'a str| -> Vec<u32> {
        rows.iter().map(|row| texts.id(text(row).to_owned())).collect()
    };
    let cluster = ids(&|row| row.cluster);
    let node = ids(&|row| row.node);
    let sink = ids(&|row| row.sink.unwrap_or_default());
    let stage = ids(&|row| LossStage::from_code(row.event.stage).map_or("", LossStage::as_str));
    let reason = ids(&|row| LossReason::from_code(row.event.reason).map_or("", LossReason::as_str));

    let mut out = Assembler::new(Kind::Loss, rows.len());
    out.add("event_id", uuids(rows.iter().flat_map(|row| row.event_id).collect())?)
        .add("cluster", texts.required(&cluster)?)
        .add("node", texts.required(&node)?)
        .add("sink", texts.nullable(&sink)?)
        .add("stage", texts.required(&stage)?)
        .add("reason", texts.required(&reason)?)
        .add("count", UInt64Array::from_iter(rows.iter().map(|row| row.event.count)))
        .add("bytes", UInt64Array::from_iter(rows.iter().map(|row| row.event.bytes)))
        .add("first_time", times(rows.iter().map(|row| row.event.first_time_ns)))
        .add("last_time", times(rows.iter().map(|row| row.event.last_time_ns)));
    out.finish()
}

/// The text of a 16-byte address; empty for none.
fn address(octets: &[u8]) -> String {
    match <[u8; 16]>::try_from(octets) {
        Ok(octets) => IpAddr::V6(Ipv6Addr::from(octets)).to_canonical().to_string(),
        Err(_) => String::new(),
    }
}

const _: () = assert!(NULL == 0, "the empty text is null");
