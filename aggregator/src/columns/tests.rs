//! Every column of every kind is read back by name, so that a field which nothing fills, or fills wrongly, is seen.

use std::sync::Arc;

use ipnet::IpNet;
use serde_json::{Value, json};
use weir_proto::v1::{AnomalyEvent, BatchBody, DnsEvent, FlowColumns, LossEvent};
use weir_schema::values::Identity;

use super::*;
use crate::accepted::Source;
use crate::enrich::{Network, Sources};
use crate::ingest::check::CheckedBody;
use crate::ingest::limits::Limits;
use crate::observe::event_json;

const RECEIVED: i64 = 1_700_000_100_000_000_000;

fn origin() -> Arc<Origin> {
    let source = Source { shipper: [1; 16], epoch: [0xab; 16] };
    Arc::new(Origin { source, node: "node-1".into(), cluster: "test".into() })
}

fn unit(number: u64, body: BatchBody) -> Accepted {
    let events = body.flows.as_ref().map_or(0, |flows| flows.rows)
        + u32::try_from(body.dns.len() + body.anomalies.len() + body.losses.len()).unwrap();
    let body = CheckedBody::check(body, events, &Limits::default()).unwrap();
    let content = Content::Body(Box::new(body));
    Accepted { origin: origin(), first_number: number, last_number: number, content, share: None }
}

fn mapped(address: [u8; 4]) -> Vec<u8> {
    [vec![0; 10], vec![0xff; 2], address.to_vec()].concat()
}

/// Four rows: a source's report, a destination's, an overflow record, and a flow of which everything is left out that
/// can be.
fn flows() -> FlowColumns {
    FlowColumns {
        rows: 4,
        strings: ["", "curl", "/kubepods/x", "c0ffee", "uid-1", "nginx", "eth0"].map(str::to_owned).to_vec(),
        addresses: [
            mapped([10, 0, 0, 1]),
            mapped([10, 0, 0, 2]),
            vec![0; 16],
            [vec![0x20, 0x01, 0x0d, 0xb8], vec![0; 11], vec![1]].concat(),
        ]
        .concat(),
        base_time_ns: 1_700_000_000_000_000_000,
        flow_id_high: vec![0x0102_0304_0506_0708, 2, 3, 4],
        flow_id_low: vec![0x090a_0b0c_0d0e_0f10, 2, 3, 4],
        record_seq: vec![7, 8, 9, 10],
        opened: vec![1, 0, 300, 0],
        reporter: vec![1, 2, 1, 3],
        vantage: vec![1, 1, 1, 2],
        orientation: vec![1, 2, 4, 3],
        time_quality: vec![1, 0, 1, 3],
        end_delta_ns: vec![5_000_001_500, -1, 0, 0],
        duration_ns: vec![5_000_000_000, 1, 0, 0],
        src_ip: vec![0, 0, 2, 3],
        dst_ip: vec![1, 1, 2, 0],
        src_port: vec![40_000, 40_000, 0, 53],
        dst_port: vec![443, 443, 0, 99],
        protocol: vec![6, 6, 17, 200],
        src_bytes: vec![100, 200, 300, 400],
        dst_bytes: vec![101, 201, 301, 401],
        src_packets: vec![11, 12, 13, 14],
        dst_packets: vec![21, 22, 23, 24],
        tcp_flags_src: vec![0x1b, 0, 0, 0],
        tcp_flags_dst: vec![0x12, 0, 0, 0],
        tcp_state: vec![1, 0, 0, 0],
        end_reason: vec![5, 1, 0, 0],
        connect_error: vec![1, 0, 0, 0],
        handshake_us: vec![1001, 0, 0, 1],
        rtt_us: vec![1002, 0, 0, 0],
        rtt_min_us: vec![1003, 0, 0, 0],
        rtt_max_us: vec![1004, 0, 0, 0],
        src_retransmits: vec![6, 0, 0, 0],
        dst_retransmits: vec![0, 1, 0, 0],
        local_process: vec![1, 5, 0, 0],
        local_pid: vec![4242, 80, 0, 0],
        local_cgroup: vec![2, 0, 0, 0],
        local_container_id: vec![3, 0, 0, 0],
        local_pod_uid: vec![4, 0, 0, 0],
        nat_src_ip: vec![0, 2, 0, 0],
        nat_src_port: vec![0, 999, 0, 0],
        nat_dst_ip: vec![1, 0, 0, 0],
        nat_dst_port: vec![8443, 0, 0, 0],
        interface: vec![0, 0, 0, 6],
        vlan_id: vec![0, 0, 0, 100],
        inner_vlan_id: vec![0, 0, 0, 4095],
        tunnel_type: vec![0, 0, 0, 3],
        tunnel_id: vec![0, 0, 0, 1 << 32],
        tunnel_src_ip: vec![0, 0, 0, 1],
        tunnel_dst_ip: vec![0, 0, 0, 2],
    }
}

fn snapshot() -> Snapshot {
    let cidr = |text: &str| text.parse::<IpNet>().unwrap();
    Snapshot::new(Sources {
        networks: vec![
            Network { name: "lan".into(), cidrs: vec![cidr("10.0.0.0/24")], identity: None },
            Network {
                name: "doc".into(),
                cidrs: vec![cidr("2001:db8::/32")],
                identity: Some(Identity::External),
            },
        ],
        ..Sources::default()
    })
}

fn rows(units: &[Accepted], kind: Kind) -> Vec<Value> {
    let batches = build(units, &[], &snapshot(), RECEIVED).unwrap();
    let (_, batch) = batches.into_iter().find(|(found, _)| *found == kind).unwrap();
    (0..batch.num_rows()).map(|row| serde_json::from_str(&event_json(kind, &batch, row)).unwrap()).collect()
}

#[test]
fn a_flow_has_every_field_that_is_filled_and_no_other() {
    let rows = rows(&[unit(3, BatchBody { flows: Some(flows()), ..BatchBody::default() })], Kind::Flow);
    let community = weir_common::id::community_id([10, 0, 0, 1].into(), [10, 0, 0, 2].into(), 6, 40_000, 443);
    let id = |row| weir_common::id::uuid_text(&weir_common::id::event_id(&[0xab; 16], 3, row));
    assert_eq!(
        rows[0],
        json!({
            "event_id": id(0), "flow_id": "01020304-0506-0708-090a-0b0c0d0e0f10", "record_seq": 7, "opened": 1,
            "cluster": "test", "node": "node-1", "reporter": "source", "vantage": "socket", "primary": true,
            "start_time": "2023-11-14T22:13:20.000001Z", "end_time": "2023-11-14T22:13:25.000001Z",
            "time_quality": "ok", "src_ip": "10.0.0.1", "src_port": 40000, "dst_ip": "10.0.0.2", "dst_port": 443,
            "protocol": "tcp", "community_id": community, "src_bytes": 100, "dst_bytes": 101, "src_packets": 11,
            "dst_packets": 21, "tcp_flags_src": 0x1b, "tcp_flags_dst": 0x12, "tcp_state": "established",
            "end_reason": "connect_failed", "handshake_us": 1000, "rtt_us": 1001, "rtt_min_us": 1002,
            "rtt_max_us": 1003, "src_retransmits": 5, "connect_error": "refused", "src_pod_uid": "uid-1",
            "src_node": "node-1", "src_process": "curl", "src_pid": 4242, "src_container_id": "c0ffee",
            "src_cgroup": "/kubepods/x", "src_identity": "pod", "src_network": "lan", "dst_identity": "unknown",
            "dst_network": "lan", "nat_dst_ip": "10.0.0.1", "nat_dst_port": 8443, "orientation": "observed",
            "sampling": 1,
        })
    );
    assert_eq!(
        rows[1],
        json!({
            "event_id": id(1), "flow_id": "00000000-0000-0002-0000-000000000002", "record_seq": 8, "opened": 0,
            "cluster": "test", "node": "node-1", "reporter": "destination", "vantage": "socket", "primary": true,
            "start_time": "2023-11-14T22:13:19.999999Z", "end_time": "2023-11-14T22:13:19.999999Z",
            "time_quality": "ok", "src_ip": "10.0.0.1", "src_port": 40000, "dst_ip": "10.0.0.2", "dst_port": 443,
            "protocol": "tcp", "community_id": community, "src_bytes": 200, "dst_bytes": 201, "src_packets": 12,
            "dst_packets": 22, "tcp_flags_src": 0, "tcp_flags_dst": 0, "end_reason": "closed",
            "dst_retransmits": 0, "src_identity": "unknown", "src_network": "lan", "dst_node": "node-1",
            "dst_process": "nginx", "dst_pid": 80, "dst_identity": "node", "dst_network": "lan",
            "nat_src_ip": "10.0.0.2", "nat_src_port": 999, "orientation": "listener", "sampling": 1,
        })
    );
    assert_eq!(
        rows[2],
        json!({
            "event_id": id(2), "flow_id": "00000000-0000-0003-0000-000000000003", "record_seq": 9, "opened": 300,
            "cluster": "test", "node": "node-1", "reporter": "source", "vantage": "socket", "primary": false,
            "start_time": "2023-11-14T22:13:20.000000Z", "end_time": "2023-11-14T22:13:20.000000Z",
            "time_quality": "ok", "src_port": 0, "dst_port": 0, "protocol": "udp", "src_bytes": 300,
            "dst_bytes": 301, "src_packets": 13, "dst_packets": 23, "tcp_flags_src": 0, "tcp_flags_dst": 0,
            "src_identity": "unknown", "src_node": "node-1", "dst_identity": "unknown", "orientation": "overflow",
            "sampling": 1,
        })
    );
    assert_eq!(rows[3]["protocol"], "200");
    assert_eq!(rows[3]["src_ip"], "2001:db8::1");
    assert_eq!((&rows[3]["src_identity"], &rows[3]["src_network"]), (&json!("external"), &json!("doc")));
    assert_eq!(rows[3]["handshake_us"], 0, "0 µs is not null");
    assert_eq!((&rows[3]["primary"], &rows[3]["reporter"]), (&json!(false), &json!("transit")));
    assert_eq!(rows[3]["time_quality"], "replayed");
    let link =
        ["interface", "vlan_id", "inner_vlan_id", "tunnel_type", "tunnel_id"].map(|name| &rows[3][name]);
    assert_eq!(link, [&json!("eth0"), &json!(100), &json!(4095), &json!("gre"), &json!(u32::MAX)]);
    assert_eq!(
        (&rows[3]["tunnel_src_ip"], &rows[3]["tunnel_dst_ip"]),
        (&json!("10.0.0.1"), &json!("10.0.0.2"))
    );
}

#[test]
fn primary_follows_the_enrolment_of_the_source() {
    let primary = |pools: &[&str]| {
        let pools = pools.iter().map(|text| text.parse().unwrap()).collect();
        let snapshot = Snapshot::new(Sources { pools, ..Sources::default() });
        let body = BatchBody { flows: Some(flows()), ..BatchBody::default() };
        let batches = build(&[unit(1, body)], &[], &snapshot, RECEIVED).unwrap();
        let column = batches[0].1.column_by_name("primary").unwrap().clone();
        let column = arrow::array::cast::AsArray::as_boolean(&column).clone();
        column.iter().flatten().collect::<Vec<bool>>()
    };
    assert_eq!(primary(&[]), [true, true, false, false]);
    assert_eq!(primary(&["10.0.0.1/32"]), [true, false, false, false]);
}

#[test]
fn columns_that_are_left_out_are_defaults_and_batches_are_joined_in_order() {
    let small = |seq: &[u64]| FlowColumns {
        rows: u32::try_from(seq.len()).unwrap(),
        addresses: vec![0; 16],
        reporter: vec![1; seq.len()],
        vantage: vec![1; seq.len()],
        orientation: vec![1; seq.len()],
        record_seq: seq.to_vec(),
        base_time_ns: RECEIVED,
        ..FlowColumns::default()
    };
    let body = |flows| BatchBody { flows: Some(flows), ..BatchBody::default() };
    let units = [unit(1, body(flows())), unit(2, body(small(&[]))), unit(3, body(small(&[20, 21])))];
    let rows = rows(&units, Kind::Flow);
    let seqs: Vec<u64> = rows.iter().map(|row| row["record_seq"].as_u64().unwrap()).collect();
    assert_eq!(seqs, [7, 8, 9, 10, 20, 21]);
    assert_eq!((&rows[5]["protocol"], &rows[5]["src_bytes"]), (&json!("hopopt"), &json!(0)));
    assert_eq!(rows[5].get("src_ip"), None);
}

#[test]
fn dns_anomaly_and_loss_rows_have_every_field_and_follow_the_flows() {
    let dns = DnsEvent {
        time_ns: 1_700_000_000_000_001_999,
        reporter: 1,
        client_ip: mapped([10, 0, 0, 9]),
        client_port: 5353,
        server_ip: Vec::new(),
        server_port: 53,
        transport: 17,
        query_name: "example.org.".into(),
        query_type: 28,
        rcode: Some(3),
        answers: vec!["a".into(), "b".into()],
        answer_ttl_s: Some(60),
        latency_us: Some(0),
        timed_out: false,
        truncated: true,
        retries: 2,
        local_process: "dig".into(),
        ..DnsEvent::default()
    };
    let anomaly = AnomalyEvent {
        finding_id: vec![7; 16],
        r#type: "scan".into(),
        severity: "warning".into(),
        confidence: 0.5,
        scope: "node".into(),
        subject: "x".into(),
        state: "opened".into(),
        first_seen_ns: 0,
        last_seen_ns: 1_000_000,
        observed: Some(2.0),
        threshold: None,
        unit: "ports".into(),
        evidence: vec![vec![1; 16]],
        summary: "many ports".into(),
    };
    let loss = LossEvent {
        stage: 2,
        reason: 1,
        count: Some(5),
        bytes: None,
        first_time_ns: 0,
        last_time_ns: 2_000_000,
    };
    let body =
        BatchBody { flows: Some(flows()), dns: vec![dns], anomalies: vec![anomaly], losses: vec![loss] };
    let units = [
        unit(9, body),
        Accepted {
            origin: origin(),
            first_number: 10,
            last_number: 12,
            content: Content::Skip(loss),
            share: None,
        },
    ];
    let id = |batch, row| weir_common::id::uuid_text(&weir_common::id::event_id(&[0xab; 16], batch, row));
    assert_eq!(
        rows(&units, Kind::Dns),
        [json!({
            "event_id": id(9, 4), "cluster": "test", "node": "node-1", "reporter": "source",
            "time": "2023-11-14T22:13:20.000001Z", "client_ip": "10.0.0.9", "client_port": 5353,
            "server_port": 53, "transport": "udp", "query_name": "example.org.", "query_type": "AAAA",
            "rcode": "NXDOMAIN", "answers": ["a", "b"], "answer_ttl_s": 60, "latency_us": 0, "timed_out": false,
            "truncated": true, "retries": 2, "client_process": "dig",
        })]
    );
    let mut anomaly = rows(&units, Kind::Anomaly).remove(0);
    assert_eq!(anomaly["event_id"], id(9, 5));
    let fields = anomaly.as_object_mut().unwrap();
    for (name, value) in [
        ("finding_id", json!("07070707-0707-0707-0707-070707070707")),
        ("type", json!("scan")),
        ("severity", json!("warning")),
        ("confidence", json!(0.5)),
        ("scope", json!("node")),
        ("state", json!("opened")),
        ("first_seen", json!("1970-01-01T00:00:00.000000Z")),
        ("last_seen", json!("1970-01-01T00:00:00.001000Z")),
        ("observed", json!(2.0)),
        ("unit", json!("ports")),
        ("evidence", json!(["01010101-0101-0101-0101-010101010101"])),
        ("summary", json!("many ports")),
    ] {
        assert_eq!(fields[name], value, "{name}");
    }
    assert_eq!(fields.get("threshold"), None);
    let loss = |id: String| {
        json!({
            "event_id": id, "cluster": "test", "node": "node-1", "stage": "spool", "reason": "budget", "count": 5,
            "first_time": "1970-01-01T00:00:00.000000Z", "last_time": "1970-01-01T00:00:00.002000Z",
        })
    };
    assert_eq!(rows(&units, Kind::Loss), [loss(id(9, 6)), loss(id(10, SKIP_ROW))]);
}

#[test]
fn a_record_is_read_back_from_its_bytes_as_it_was() {
    let body = BatchBody { flows: Some(flows()), ..BatchBody::default() };
    let batches = build(&[unit(1, body)], &[], &snapshot(), RECEIVED).unwrap();
    let encoded = crate::journal::record::encode(Vec::new(), 5, &batches).unwrap();
    let record = crate::journal::record::decode(1, &encoded.parts().concat()).unwrap();
    assert_eq!((record.append_time_ns, record.batches), (5, batches));
}
