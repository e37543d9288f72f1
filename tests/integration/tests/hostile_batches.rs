//! Batches and greetings that lie, against a real aggregator: each gets words of its own, nothing of it is journaled, and a
//! good shipper beside them is served all the time.

use weir_integration_tests::frames::{batch, bomb, flows, frame, frame_of, hello, pack, skip, without_size};
use weir_integration_tests::peer::run;
use weir_proto::v1::refusal::Reason;
use weir_proto::v1::{
    Batch, BatchBody, DnsEvent, FlowColumns, Hello, LossEvent, ShipperFrame, shipper_frame,
};

const AGGREGATOR: &str = env!("CARGO_BIN_EXE_sut_aggregator");

#[test]
fn every_lie_has_its_own_words_and_nothing_of_it_is_journaled() {
    run(AGGREGATOR, &[], |server| async move {
        for (index, case) in lies().into_iter().enumerate() {
            let Case { name, frames, reason, words } = case;
            let refusal = server.refused(index as u64, frames).await;
            assert_eq!(refusal.reason(), reason, "{name}: {}", refusal.message);
            assert!(refusal.message.contains(words), "{name}: {:?} does not say {words:?}", refusal.message);
        }
        0
    });
}

struct Case {
    name: String,
    frames: Vec<ShipperFrame>,
    reason: Reason,
    words: &'static str,
}

/// Every way to break the rules with frames that are well-formed gRPC.
fn lies() -> Vec<Case> {
    let welcome = || frame(shipper_frame::Frame::Hello(hello(0)));
    let case = |name: &str, frames: Vec<ShipperFrame>, reason, words| Case {
        name: name.to_owned(),
        frames,
        reason,
        words,
    };
    let mut cases = vec![
        case("silence", vec![], Reason::Protocol, "no Hello within 2000 ms"),
        case("batch first", vec![batch(1, &flows(1))], Reason::Protocol, "before Hello"),
        case("empty frame", vec![ShipperFrame { frame: None }], Reason::Protocol, "without content"),
        case("Hello twice", vec![welcome(), welcome()], Reason::Protocol, "Hello came twice"),
        case("unknown epoch", vec![welcome(), batch(2, &flows(1))], Reason::UnknownEpoch, "must begin at 1"),
        case("number 0", vec![welcome(), batch(0, &flows(1))], Reason::Protocol, "1 <= first"),
        case("number too high", vec![welcome(), batch(1 << 42, &flows(1))], Reason::Protocol, "1 <= first"),
        case("skip backwards", vec![welcome(), skip(5, 4)], Reason::Protocol, "5..=4"),
    ];
    let hellos: [Spoiled<Hello>; 6] = [
        (
            "newer protocol",
            |hello| hello.protocol_version = 99,
            Reason::ProtocolVersion,
            "protocol_version 99",
        ),
        ("short id", |hello| hello.shipper_id = vec![1], Reason::Protocol, "shipper_id has 1 bytes"),
        ("no node", |hello| hello.node.clear(), Reason::Identity, "Hello.node"),
        ("path as cluster", |hello| hello.cluster = "../../etc".into(), Reason::Identity, "does not match"),
        ("other cluster", |hello| hello.cluster = "prod".into(), Reason::Identity, "cluster.allowed"),
        ("other journal", |hello| hello.journal_id = vec![9; 16], Reason::OtherJournal, "rebind"),
    ];
    for (name, lie, reason, words) in hellos {
        let mut hello = hello(0);
        lie(&mut hello);
        cases.push(case(name, vec![frame(shipper_frame::Frame::Hello(hello))], reason, words));
    }
    let batches: [Spoiled<Batch>; 12] = [
        (
            "newer schema",
            |batch| batch.schema_version = 3,
            Reason::SchemaVersion,
            "schema_version 3 is newer",
        ),
        ("no schema", |batch| batch.schema_version = 0, Reason::SchemaVersion, "schema_version 0"),
        ("unknown codec", |batch| batch.codec = 7, Reason::BadBatch, "codec 7"),
        ("no payload", |batch| batch.payload.clear(), Reason::BadBatch, "frame"),
        ("garbage", |batch| batch.payload = vec![0xa5; 500].into(), Reason::BadBatch, "frame"),
        (
            "truncated",
            |batch| batch.payload.truncate(batch.payload.len() - 1),
            Reason::BadBatch,
            "cut or damaged",
        ),
        (
            "trailing bytes",
            |batch| batch.payload = [&batch.payload[..], b"x"].concat().into(),
            Reason::BadBatch,
            "bytes after",
        ),
        ("a bomb", |batch| batch.payload = bomb().into(), Reason::BadBatch, "decoded bytes: 1073741824"),
        ("no size", |batch| batch.payload = without_size().into(), Reason::BadBatch, "no content size"),
        ("not protobuf", |batch| batch.payload = pack(&[0xff; 64]).into(), Reason::BadBatch, "no protobuf"),
        ("too many events", |batch| batch.events = u32::MAX, Reason::BadBatch, "events: 4294967295"),
        ("miscounted", |batch| batch.events += 1, Reason::BadBatch, "events says 3"),
    ];
    for (name, lie, reason, words) in batches {
        let mut frame = batch(1, &flows(2));
        let Some(shipper_frame::Frame::Batch(inner)) = &mut frame.frame else { unreachable!() };
        lie(inner);
        cases.push(case(name, vec![welcome(), frame], reason, words));
    }
    let mut large = batch(1, &flows(1));
    if let Some(shipper_frame::Frame::Batch(inner)) = &mut large.frame {
        inner.payload = vec![0; 5 << 20].into();
    }
    cases.push(case("oversized", vec![welcome(), large], Reason::Protocol, "too large"));
    for (name, lie, words) in columns() {
        let mut flows = flows(2);
        lie(&mut flows);
        cases.push(case(name, vec![welcome(), batch(1, &flows)], Reason::BadBatch, words));
    }
    let other = |body: BatchBody| vec![welcome(), frame_of(1, &body)];
    let dns = DnsEvent { reporter: 1, transport: 99, ..DnsEvent::default() };
    cases.push(case(
        "dns",
        other(BatchBody { dns: vec![dns], ..BatchBody::default() }),
        Reason::BadBatch,
        "transport is 99",
    ));
    let loss = LossEvent { stage: 77, reason: 1, ..LossEvent::default() };
    cases.push(case(
        "loss",
        other(BatchBody { losses: vec![loss], ..BatchBody::default() }),
        Reason::BadBatch,
        "stage is 77",
    ));
    let crowd = BatchBody { losses: vec![LossEvent::default(); 200_000], ..BatchBody::default() };
    cases.push(case("a crowd of rows", other(crowd), Reason::BadBatch, "events: 200000"));
    cases
}

/// What is wrong, how it is made so, the refusal's reason and a part of its words.
type Spoiled<T> = (&'static str, fn(&mut T), Reason, &'static str);

type Lie = (&'static str, fn(&mut FlowColumns), &'static str);

/// A lie in each column, with the words that name it.
fn columns() -> Vec<Lie> {
    vec![
        ("rows", |f| f.rows = 1, "has 2 values for 1 rows"),
        ("strings", |f| f.strings = vec!["x".into()], "begin with the empty text"),
        ("many strings", |f| f.strings = vec![String::new(); 50], "flows.strings: 50, at most 11"),
        (
            "long string",
            |f| f.strings = vec![String::new(), "x".repeat(5000)],
            "flows.strings (bytes of one): 5000",
        ),
        ("addresses", |f| f.addresses.truncate(17), "flows.addresses is 17"),
        ("flow_id_high", |f| f.flow_id_high.truncate(1), "flow_id_high has 1 values for 2 rows"),
        ("flow_id_low", |f| f.flow_id_low.truncate(1), "flow_id_low has 1 values for 2 rows"),
        ("record_seq", |f| f.record_seq = vec![1], "record_seq has 1 values for 2 rows"),
        ("too long", |f| f.record_seq = vec![1; 3], "elements of a column: 3"),
        ("opened", |f| f.opened = vec![1], "opened has 1 values for 2 rows"),
        ("reporter", |f| f.reporter = vec![1, 9], "reporter is 9 in row 1"),
        ("no reporter", |f| f.reporter.clear(), "reporter is 0 in row 0"),
        ("vantage", |f| f.vantage = vec![0, 1], "vantage is 0 in row 0"),
        ("orientation", |f| f.orientation = vec![1, 5], "orientation is 5 in row 1"),
        ("time_quality", |f| f.time_quality = vec![4, 0], "time_quality is 4 in row 0"),
        (
            "end_delta_ns",
            |f| f.end_delta_ns = vec![0, i64::MAX],
            "end_delta_ns leaves the range of time in row 1",
        ),
        (
            "duration_ns",
            |f| f.duration_ns = vec![u64::MAX, 0],
            "duration_ns leaves the range of time in row 0",
        ),
        ("src_ip", |f| f.src_ip = vec![0, 2], "src_ip is 2 in row 1, expected an index into a table of 2"),
        ("dst_ip", |f| f.dst_ip = vec![u32::MAX, 0], "dst_ip is 4294967295 in row 0"),
        (
            "no addresses",
            |f| f.addresses.clear(),
            "src_ip is 0 in row 0, expected an index into a table of 0",
        ),
        ("src_port", |f| f.src_port = vec![65_536, 0], "src_port is 65536 in row 0"),
        ("dst_port", |f| f.dst_port = vec![0, 65_536], "dst_port is 65536 in row 1"),
        ("protocol", |f| f.protocol = vec![256, 0], "protocol is 256 in row 0"),
        ("src_bytes", |f| f.src_bytes = vec![1], "src_bytes has 1 values"),
        ("dst_bytes", |f| f.dst_bytes = vec![1], "dst_bytes has 1 values"),
        ("src_packets", |f| f.src_packets = vec![1], "src_packets has 1 values"),
        ("dst_packets", |f| f.dst_packets = vec![1], "dst_packets has 1 values"),
        ("tcp_flags_src", |f| f.tcp_flags_src = vec![256, 0], "tcp_flags_src is 256"),
        ("tcp_flags_dst", |f| f.tcp_flags_dst = vec![256, 0], "tcp_flags_dst is 256"),
        ("tcp_state", |f| f.tcp_state = vec![12, 0], "tcp_state is 12"),
        ("end_reason", |f| f.end_reason = vec![7, 0], "end_reason is 7"),
        ("connect_error", |f| f.connect_error = vec![6, 0], "connect_error is 6"),
        ("handshake_us", |f| f.handshake_us = vec![1], "handshake_us has 1 values"),
        ("rtt_us", |f| f.rtt_us = vec![1], "rtt_us has 1 values"),
        ("rtt_min_us", |f| f.rtt_min_us = vec![1], "rtt_min_us has 1 values"),
        ("rtt_max_us", |f| f.rtt_max_us = vec![1], "rtt_max_us has 1 values"),
        ("src_retransmits", |f| f.src_retransmits = vec![1], "src_retransmits has 1 values"),
        ("dst_retransmits", |f| f.dst_retransmits = vec![1], "dst_retransmits has 1 values"),
        ("local_process", |f| f.local_process = vec![2, 0], "local_process is 2 in row 0"),
        ("local_pid", |f| f.local_pid = vec![1], "local_pid has 1 values"),
        ("local_cgroup", |f| f.local_cgroup = vec![2, 0], "local_cgroup is 2 in row 0"),
        ("local_container_id", |f| f.local_container_id = vec![0, 9], "local_container_id is 9 in row 1"),
        ("local_pod_uid", |f| f.local_pod_uid = vec![0, 9], "local_pod_uid is 9 in row 1"),
        ("nat_src_ip", |f| f.nat_src_ip = vec![3, 0], "nat_src_ip is 3 in row 0"),
        ("nat_src_port", |f| f.nat_src_port = vec![65_536, 0], "nat_src_port is 65536"),
        ("nat_dst_ip", |f| f.nat_dst_ip = vec![3, 0], "nat_dst_ip is 3 in row 0"),
        ("nat_dst_port", |f| f.nat_dst_port = vec![65_536, 0], "nat_dst_port is 65536"),
        ("interface", |f| f.interface = vec![2, 0], "interface is 2 in row 0"),
        ("vlan_id", |f| f.vlan_id = vec![0, 4096], "vlan_id is 4096 in row 1"),
        ("inner_vlan_id", |f| f.inner_vlan_id = vec![4096, 0], "inner_vlan_id is 4096"),
        ("tunnel_type", |f| f.tunnel_type = vec![0, 5], "tunnel_type is 5 in row 1"),
        ("tunnel_id", |f| f.tunnel_id = vec![(1 << 32) + 1, 0], "tunnel_id is 4294967297"),
        ("tunnel_src_ip", |f| f.tunnel_src_ip = vec![3, 0], "tunnel_src_ip is 3 in row 0"),
        ("tunnel_dst_ip", |f| f.tunnel_dst_ip = vec![0, 3], "tunnel_dst_ip is 3 in row 1"),
    ]
}
