//! Frames of the ingest protocol, right ones and payloads that are traps: what hostile and well-behaved peers are made of.

use std::io::Read as _;

use prost::Message as _;
use weir_proto::v1::{Batch, BatchBody, FlowColumns, Hello, LossEvent, ShipperFrame, Skip, shipper_frame};

/// A frame with this content.
pub fn frame(frame: shipper_frame::Frame) -> ShipperFrame {
    ShipperFrame { frame: Some(frame) }
}

/// A shipper's id.
pub fn id(shipper: u64) -> Vec<u8> {
    [&b"hostile!"[..], &shipper.to_be_bytes()].concat()
}

/// A right Hello of a shipper; it claims nothing sent before.
pub fn hello(shipper: u64) -> Hello {
    Hello {
        protocol_version: 1,
        shipper_id: id(shipper),
        epoch: vec![3; 16],
        node: "n".into(),
        cluster: "test".into(),
        first_number: 1,
        last_number: 0,
        journal_id: Vec::new(),
        version: "test".into(),
    }
}

/// Flows in which every column is right.
pub fn flows(rows: u32) -> FlowColumns {
    let all = |value: u32| vec![value; rows as usize];
    FlowColumns {
        rows,
        strings: vec![String::new(), "curl".into()],
        addresses: [[1; 16], [2; 16]].concat(),
        base_time_ns: 1_700_000_000_000_000_000,
        flow_id_high: vec![1; rows as usize],
        flow_id_low: vec![2; rows as usize],
        reporter: all(1),
        vantage: all(1),
        orientation: all(1),
        src_ip: all(0),
        dst_ip: all(1),
        protocol: all(6),
        local_process: all(1),
        ..FlowColumns::default()
    }
}

/// A batch of flows.
pub fn batch(number: u64, flows: &FlowColumns) -> ShipperFrame {
    let mut frame = frame_of(number, &BatchBody { flows: Some(flows.clone()), ..BatchBody::default() });
    if let Some(shipper_frame::Frame::Batch(batch)) = &mut frame.frame {
        // What a lie about the rows is held against.
        batch.events = u32::try_from(flows.reporter.len().max(flows.vantage.len())).unwrap();
    }
    frame
}

/// A batch with this content.
pub fn frame_of(number: u64, body: &BatchBody) -> ShipperFrame {
    let BatchBody { flows, dns, anomalies, losses } = body;
    let rows =
        flows.as_ref().map_or(0, |flows| flows.rows as usize) + dns.len() + anomalies.len() + losses.len();
    let payload = pack(&body.encode_to_vec()).into();
    let events = u32::try_from(rows).unwrap();
    frame(shipper_frame::Frame::Batch(Batch { number, schema_version: 1, codec: 1, payload, events }))
}

/// A skip of these numbers, which says that one event was in them.
pub fn skip(from_number: u64, to_number: u64) -> ShipperFrame {
    let loss = LossEvent { stage: 2, reason: 1, count: Some(1), ..LossEvent::default() };
    frame(shipper_frame::Frame::Skip(Skip { from_number, to_number, loss: Some(loss) }))
}

/// A payload of these bytes.
pub fn pack(bytes: &[u8]) -> Vec<u8> {
    zstd::bulk::compress(bytes, 1).unwrap()
}

/// A gibibyte of zeros in a few KiB.
pub fn bomb() -> Vec<u8> {
    let mut encoder = zstd::stream::Encoder::new(Vec::new(), 1).unwrap();
    encoder.set_pledged_src_size(Some(1 << 30)).unwrap();
    encoder.include_contentsize(true).unwrap();
    std::io::copy(&mut std::io::repeat(0).take(1 << 30), &mut encoder).unwrap();
    encoder.finish().unwrap()
}

/// A frame that does not state its content's size.
pub fn without_size() -> Vec<u8> {
    zstd::stream::encode_all(&[0; 64][..], 1).unwrap()
}
