//! Bytes are exact: what is recorded at the sockets equals what nftables counted on the wire, to the byte, with
//! offloads off; with offloads on it agrees with the sender's model.

use weir_integration_tests::{
    capture::{TRAFFIC_MAX, TestCapture, opened_of, sent_of},
    net::{Cgroup, Namespace, kernel_tests_possible},
    scale::scale,
    scene::Scene,
    traffic::Traffic,
};
use weir_schema::values::{LossReason, Reporter};

const TRAFFIC: &str = env!("CARGO_BIN_EXE_traffic");
const TCP: u8 = 6;
const UDP: u8 = 17;

/// A scene, and a capture of its pods.
struct Pair {
    capture: TestCapture,
    scene: Scene,
}

impl Pair {
    fn new(scene: Scene) -> Self {
        Self { capture: TestCapture::new(&scene.pods), scene }
    }

    /// On one link, segmentation on or off.
    fn linked(offloads: bool) -> Self {
        Self::new(Scene::linked(offloads))
    }

    /// Runs a client against a server, draining all the while.
    fn run(&mut self, server: &str, client: &str) {
        let _server = self.scene.serve(TRAFFIC, server);
        self.scene.connect(TRAFFIC, client).wait(TRAFFIC_MAX, || self.capture.drain());
        self.capture.finish();
    }

    /// Both reports equal what nftables counted of the wire, and name as many openings as were made.
    #[track_caller]
    fn assert_exact(&self, protocol: u8, name: &str, opened: u64) {
        let wire = self.scene.wire(name);
        let source = sent_of(protocol, self.capture.side(Reporter::Source));
        assert_eq!(source, wire, "the source's report");
        let destination = sent_of(protocol, self.capture.side(Reporter::Destination));
        assert_eq!(destination, wire, "the destination's report");
        assert!(source.0.bytes > 0, "something was sent");
        for reporter in [Reporter::Source, Reporter::Destination] {
            let records = self.capture.side(reporter).filter(|record| record.protocol == protocol);
            assert_eq!(opened_of(records), opened, "connections opened, by the {reporter}'s report");
        }
        println!("SOAK bytes, {name}: nftables and both reports say {wire:?}; {opened} opened");
    }
}

#[test]
fn tcp_bulk_in_both_directions() {
    if !kernel_tests_possible() {
        return;
    }
    let bytes = scale().transfer_bytes / 2;
    let mut pair = Pair::linked(false);
    pair.run("serve-tcp 10.9.0.2:80 1", &format!("connect-tcp 10.9.0.2:80 2 {bytes} {bytes} 2"));
    pair.assert_exact(TCP, "tcp", 2);
}

#[test]
fn tcp_over_ipv6() {
    if !kernel_tests_possible() {
        return;
    }
    let bytes = scale().transfer_bytes / 8;
    let mut pair = Pair::linked(false);
    pair.run("serve-tcp [fd09::2]:80 1", &format!("connect-tcp [fd09::2]:80 3 {bytes} 1000 1"));
    pair.assert_exact(TCP, "tcp", 3);
}

#[test]
fn many_short_connections() {
    if !kernel_tests_possible() {
        return;
    }
    let count = scale().connections;
    let mut pair = Pair::linked(false);
    pair.run("serve-tcp 10.9.0.2:80 4", &format!("connect-tcp 10.9.0.2:80 {count} 200 1000 8"));
    pair.assert_exact(TCP, "tcp", count);
}

#[test]
fn udp_small_and_fragmented() {
    if !kernel_tests_possible() {
        return;
    }
    let count = scale().datagrams;
    let mut pair = Pair::linked(false);
    // A port each: a client's port that comes again soon is the same flow to one server.
    for (port, count, size) in [(53, count, 100), (54, count / 10, 5000)] {
        let server = format!("serve-udp 10.9.0.2:{port}");
        let _server = pair.scene.serve(TRAFFIC, &server);
        let line = format!("send-udp 10.9.0.2:{port} {count} {size} 16");
        pair.scene.connect(TRAFFIC, &line).wait(TRAFFIC_MAX, || pair.capture.drain());
    }
    pair.capture.finish();
    pair.assert_exact(UDP, "udp", 32);
}

#[test]
fn tcp_with_segmentation_offload_agrees_with_the_senders_model() {
    if !kernel_tests_possible() {
        return;
    }
    let bytes = scale().transfer_bytes;
    let mut pair = Pair::linked(true);
    pair.run("serve-tcp 10.9.0.2:80 1", &format!("connect-tcp 10.9.0.2:80 1 {bytes} 8 1"));
    for reporter in [Reporter::Source, Reporter::Destination] {
        let (sent, _) = sent_of(TCP, pair.capture.side(reporter));
        // Each segment of an MTU of 1500 carries 1448 bytes and 52 of headers (timestamps are on).
        let segments = bytes.div_ceil(1448);
        let again: u64 = pair
            .capture
            .side(Reporter::Source)
            .filter_map(|record| record.src_retransmits)
            .map(u64::from)
            .sum();
        let model = bytes + segments * 52 + again * 1500;
        let error = sent.bytes.abs_diff(model) as f64 / model as f64;
        assert!(error < 0.001, "{reporter}: {} bytes, the model says {model}", sent.bytes);
        // Segments may be shorter than the largest, so their number has no model of its own; but whatever it is, what
        // remains without their headers is the payload, to the byte: once, and what was sent again. The SYN has 8 more.
        let payload = sent.bytes - 52 * sent.packets;
        let excess =
            payload.checked_sub(bytes).unwrap_or_else(|| panic!("{reporter}: {payload} of {bytes} bytes"));
        assert!(
            excess <= again * 1448 + 8,
            "{reporter}: {excess} bytes too many, {again} segments sent again"
        );
    }
    let source = sent_of(TCP, pair.capture.side(Reporter::Source)).0;
    let destination = sent_of(TCP, pair.capture.side(Reporter::Destination)).0;
    assert_eq!(source, destination, "nothing was lost, so both ends saw the same");
}

#[test]
fn behind_snat_each_side_has_its_own_view() {
    if !kernel_tests_possible() {
        return;
    }
    let mut pair = Pair::new(Scene::behind_snat());
    pair.run("serve-tcp 10.9.2.2:80 1", "connect-tcp 10.9.2.2:80 50 5000 20000 4");
    pair.assert_exact(TCP, "tcp", 50);
    for record in pair.capture.side(Reporter::Destination) {
        assert_eq!(record.src_ip.to_string(), "10.9.2.1", "the server sees the router");
    }
    for record in pair.capture.side(Reporter::Source) {
        assert_eq!(record.src_ip.to_string(), "10.9.1.1", "the client sees itself");
    }
}

#[test]
fn behind_dnat_each_side_has_its_own_view() {
    if !kernel_tests_possible() {
        return;
    }
    let mut pair = Pair::new(Scene::behind_dnat());
    pair.run("serve-tcp 10.9.2.2:80 1", "connect-tcp 10.9.1.254:8080 50 5000 20000 4");
    pair.assert_exact(TCP, "tcp", 50);
    for record in pair.capture.side(Reporter::Source) {
        assert_eq!((record.dst_ip.to_string().as_str(), record.dst_port), ("10.9.1.254", 8080));
    }
    for record in pair.capture.side(Reporter::Destination) {
        assert_eq!((record.dst_ip.to_string().as_str(), record.dst_port), ("10.9.2.2", 80));
    }
}

#[test]
fn translated_on_the_clients_own_host_it_is_one_flow_with_both_addresses() {
    if !kernel_tests_possible() {
        return;
    }
    let mut pair = Pair::new(Scene::translated_by_the_client());
    pair.run("serve-tcp 10.9.0.2:80 1", "connect-tcp 10.96.0.1:443 30 5000 20000 2");
    pair.assert_exact(TCP, "tcp", 30);
    let translated: Vec<_> = pair
        .capture
        .side(Reporter::Source)
        .filter(|record| record.dst_ip.to_string() == "10.9.0.2" && record.dst_port == 80)
        .filter(|record| {
            record
                .nat
                .is_some_and(|nat| (nat.dst_ip.to_string().as_str(), nat.dst_port) == ("10.96.0.1", 443))
        })
        .collect();
    assert_eq!(opened_of(translated.iter().copied()), 30, "{:#?}", pair.capture.records);
}

#[test]
fn through_vxlan_the_inner_packets_count_once() {
    if !kernel_tests_possible() {
        return;
    }
    let mut pair = Pair::new(Scene::in_vxlan());
    let bytes = scale().transfer_bytes / 16;
    pair.run("serve-tcp 10.8.0.2:80 1", &format!("connect-tcp 10.8.0.2:80 4 {bytes} {bytes} 2"));
    pair.assert_exact(TCP, "tcp", 4);
}

#[test]
fn loopback_in_one_pod_is_reported_by_both_sides() {
    if !kernel_tests_possible() {
        return;
    }
    let mut pair = Pair::new(Scene::one_pod());
    pair.run("serve-tcp 127.0.0.1:80 1", "connect-tcp 127.0.0.1:80 20 100000 100000 2");
    let (counted, _) = pair.scene.wire("tcp");
    for reporter in [Reporter::Source, Reporter::Destination] {
        let (up, down) = sent_of(TCP, pair.capture.side(reporter));
        assert_eq!((up.packets + down.packets, up.bytes + down.bytes), (counted.packets, counted.bytes));
        assert_eq!(opened_of(pair.capture.side(reporter)), 20);
    }
}

#[test]
fn a_client_that_closes_first_lacks_only_its_last_acknowledgement() {
    if !kernel_tests_possible() {
        return;
    }
    let mut pair = Pair::linked(false);
    pair.run("serve-tcp 10.9.0.2:80 1", "abandon-tcp 10.9.0.2:80 40");
    let (up, down) = sent_of(TCP, pair.capture.side(Reporter::Source));
    let (out, into) = (pair.scene.client.counted("tcp_out"), pair.scene.client.counted("tcp_in"));
    assert_eq!(down, into, "what arrives is exact, TIME_WAIT or not");
    // The kernel answers for a TIME_WAIT socket past every cgroup program: 52 bytes, at most once per connection.
    let missing = out.packets - up.packets;
    assert!(missing <= 40, "{missing} packets are missing");
    assert_eq!(out.bytes - up.bytes, missing * 52);
    let (up, down) = sent_of(TCP, pair.capture.side(Reporter::Destination));
    assert_eq!((up, down), (pair.scene.server.counted("tcp_in"), pair.scene.server.counted("tcp_out")));
}

#[test]
fn more_flows_than_the_map_holds_reconcile_through_the_overflow() {
    if !kernel_tests_possible() {
        return;
    }
    let mut pair = Pair::linked(false);
    let pods = Cgroup::new();
    let (client_pod, server_pod) = (pods.child("client"), pods.child("server"));
    let mut capture = TestCapture::with(&pods, |config| config.flow_entries = 200);
    let _server = Traffic::server(TRAFFIC, &server_pod, &pair.scene.server, "serve-tcp 10.9.0.2:81 1");
    let client =
        Traffic::start(TRAFFIC, &client_pod, &pair.scene.client, "connect-tcp 10.9.0.2:81 600 200 1000 4");
    client.wait(TRAFFIC_MAX, || {});
    // Drain asserts that records, overflow included, equal the totals.
    capture.finish();
    let counted = |host: &Namespace, way: &str| host.counted(way);
    let all = [
        counted(&pair.scene.client, "tcp_out"),
        counted(&pair.scene.client, "tcp_in"),
        counted(&pair.scene.server, "tcp_in"),
        counted(&pair.scene.server, "tcp_out"),
    ];
    assert_eq!(capture.total.bytes, all.iter().map(|counted| counted.bytes).sum::<u64>());
    assert_eq!(capture.total.packets, all.iter().map(|counted| counted.packets).sum::<u64>());
    assert_eq!(opened_of(capture.records.iter()), 1200, "each side opened 600, in flows or in the overflow");
    assert!(capture.counter("flows_full") > 0, "the map was full");
    pair.capture.finish();
}

#[test]
fn more_sockets_than_the_map_holds_are_counted_and_said() {
    if !kernel_tests_possible() {
        return;
    }
    let mut pair = Pair::linked(false);
    let pods = Cgroup::new();
    let (client_pod, server_pod) = (pods.child("client"), pods.child("server"));
    let mut capture = TestCapture::with(&pods, |config| config.socket_entries = 100);
    let _server = Traffic::server(TRAFFIC, &server_pod, &pair.scene.server, "serve-tcp 10.9.0.2:81 1");
    let client =
        Traffic::start(TRAFFIC, &client_pod, &pair.scene.client, "connect-tcp 10.9.0.2:81 300 200 1000 4");
    client.wait(TRAFFIC_MAX, || {});
    capture.finish();
    assert_eq!(opened_of(capture.records.iter()), 600, "each side opened 300, with or without a socket");
    let said = |capture: &TestCapture| -> u64 {
        assert!(capture.losses.iter().all(|loss| loss.reason == LossReason::MapFull), "{:?}", capture.losses);
        capture.losses.iter().filter_map(|loss| loss.count).sum()
    };
    let full = capture.counter("socks_full");
    assert!(full > 0, "the map was full");
    assert_eq!(said(&capture), full + capture.counter("meta_full") + capture.counter("cgroups_full"));
    // Said once, whoever drains.
    let before = said(&capture);
    capture.reopen();
    capture.finish();
    assert_eq!(said(&capture), before + (capture.counter("socks_full") - full));
    pair.capture.finish();
}

#[test]
fn odd_packets_are_counted_under_what_could_be_read_of_them() {
    if !kernel_tests_possible() {
        return;
    }
    let mut pair = Pair::linked(false);
    let mut sending =
        Traffic::start(TRAFFIC, &pair.scene.client_pod, &pair.scene.client, "send-odd 10.9.0.2 fd09::2");
    let mut sent = Vec::new();
    loop {
        let line = sending.read_line();
        let Some((protocol, rest)) = line.split_once(' ') else { break };
        let (bytes, what) = rest.split_once(' ').expect("three fields");
        let number = |text: &str| text.parse::<u64>().expect("a number");
        sent.push((number(protocol), number(bytes), what.to_owned()));
    }
    sending.wait(TRAFFIC_MAX, || {});
    pair.capture.finish();
    assert_eq!(sent.len(), 14);
    let seen = |protocol: u64| {
        let of = pair.capture.records.iter().filter(|record| u64::from(record.protocol) == protocol);
        of.fold((0, 0), |(packets, bytes), record| (packets + record.src_packets, bytes + record.src_bytes))
    };
    for protocol in [1, 6, 17, 47, 58, 59, 60, 132] {
        let of = sent.iter().filter(|(number, ..)| *number == protocol);
        let expected = of.fold((0, 0), |(packets, bytes), (_, more, _)| (packets + 1, bytes + more));
        assert_eq!(seen(protocol), expected, "protocol {protocol}: {:#?}", pair.capture.records);
    }
    let ports = |protocol: u8, family6: bool| {
        let of = pair
            .capture
            .records
            .iter()
            .filter(move |record| record.protocol == protocol && record.dst_ip.is_ipv6() == family6);
        let mut ports: Vec<_> =
            of.map(|record| (record.src_port, record.dst_port, record.src_packets)).collect();
        ports.sort_unstable();
        ports
    };
    // Each packet has a socket of its own, and so a flow.
    assert_eq!(ports(1, false), [(8, 0, 1)], "echo and its answer's type");
    assert_eq!(ports(58, true), [(128, 129, 1)], "echo and its answer's type");
    assert_eq!(ports(132, false), [(1000, 2000, 1)]);
    assert_eq!(ports(6, false), [(0, 0, 1)], "cut short");
    assert_eq!(ports(17, false), [(0, 0, 1), (0, 0, 1)], "cut short, and a later fragment");
    let with_ports = (1000, 2000, 1);
    assert_eq!(
        ports(17, true),
        [(0, 0, 1), with_ports, with_ports, with_ports],
        "behind headers, but no later fragment"
    );
}
