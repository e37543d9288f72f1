//! What the interface vantage counts on its way through a host equals, to the byte, what nftables counts where it
//! arrives: forwarded, translated, bridged, tunnelled.

#![expect(clippy::unwrap_used, reason = "tests panic where they fail")]

use std::collections::HashSet;

use weir_integration_tests::{
    capture::{TRAFFIC_MAX, TestCapture, opened_of, sent_of},
    net::kernel_tests_possible,
    scene::Scene,
};
use weir_schema::values::{EndReason, Orientation, Reporter, TunnelType, Vantage};
use weir_shipper::flow::FlowRecord;

const TRAFFIC: &str = env!("CARGO_BIN_EXE_traffic");
const TCP: u8 = 6;
const UDP: u8 = 17;
const CONNECTIONS: u64 = 50;

/// Makes traffic between the ends of a scene, and captures on the router between them.
fn run(scene: &Scene, server: &str, client: &str, transport: &str) -> TestCapture {
    let router = scene.router.as_ref().unwrap();
    let mut capture = TestCapture::of_links(&scene.pods, &[&router.host]);
    let exchange = |serve: &str, connect: &str| {
        let _server = scene.serve(TRAFFIC, serve);
        scene.connect(TRAFFIC, connect).wait(TRAFFIC_MAX, || {});
    };
    exchange(
        &format!("serve-tcp {server}:80 2"),
        &format!("connect-tcp {client} {CONNECTIONS} 30000 70000 4"),
    );
    if transport == "both" {
        exchange(&format!("serve-udp {server}:53"), &format!("send-udp {server}:53 500 700 5"));
    }
    capture.finish();
    capture
}

/// The records of a protocol at a link, whatever it is that they are all to be.
fn of<'a>(capture: &'a TestCapture, scene: &'a Scene, device: &'a str, protocol: u8) -> Vec<&'a FlowRecord> {
    let router = scene.router.as_ref().unwrap();
    let records: Vec<_> =
        capture.link(&router.host, device).filter(|record| record.protocol == protocol).collect();
    assert!(!records.is_empty(), "{device} has records of protocol {protocol}");
    for record in &records {
        assert_eq!((record.vantage, record.reporter), (Vantage::Interface, Reporter::Transit));
    }
    records
}

fn exact(capture: &TestCapture, scene: &Scene, protocols: &[(u8, &str)]) {
    let router = scene.router.as_ref().unwrap();
    for device in [&router.inside, &router.outside] {
        for (protocol, name) in protocols {
            let records = of(capture, scene, device, *protocol);
            let sums = sent_of(*protocol, records.iter().copied());
            assert_eq!(sums, scene.wire(name), "{name} at {device}");
        }
        let records = of(capture, scene, device, TCP);
        assert_eq!(opened_of(records.iter().copied()), CONNECTIONS);
        assert!(records.iter().all(|record| record.orientation == Orientation::Observed), "{records:#?}");
        let closed = records.iter().filter(|record| record.end_reason == Some(EndReason::Closed)).count();
        assert_eq!(closed as u64, CONNECTIONS, "each connection has ended once at {device}");
        let timed: u64 = records.iter().filter(|record| record.handshake_us.is_some()).count() as u64;
        assert!(timed >= CONNECTIONS - 2, "{timed} handshakes fell into one interval");
    }
    assert_eq!(capture.counter("flows_full") + capture.counter("meta_full"), 0);
}

#[test]
fn forwarded_over_both_families() {
    if !kernel_tests_possible() {
        return;
    }
    let scene = Scene::forwarded();
    let capture = run(&scene, "10.9.2.2", "10.9.2.2:80", "both");
    exact(&capture, &scene, &[(TCP, "tcp"), (UDP, "udp")]);
    let scene = Scene::forwarded();
    let capture = run(&scene, "[fd09:2::2]", "[fd09:2::2]:80", "both");
    exact(&capture, &scene, &[(TCP, "tcp"), (UDP, "udp")]);
}

#[test]
fn behind_snat_each_link_has_its_own_view() {
    if !kernel_tests_possible() {
        return;
    }
    let scene = Scene::behind_snat();
    let capture = run(&scene, "10.9.2.2", "10.9.2.2:80", "both");
    exact(&capture, &scene, &[(TCP, "tcp"), (UDP, "udp")]);
    let router = scene.router.as_ref().unwrap();
    let sources = |device: &str| -> HashSet<String> {
        of(&capture, &scene, device, TCP).iter().map(|record| record.src_ip.to_string()).collect()
    };
    assert_eq!(sources(&router.inside), HashSet::from(["10.9.1.1".to_owned()]));
    assert_eq!(sources(&router.outside), HashSet::from(["10.9.2.1".to_owned()]));
}

#[test]
fn behind_dnat_each_link_has_its_own_view() {
    if !kernel_tests_possible() {
        return;
    }
    let scene = Scene::behind_dnat();
    let capture = run(&scene, "10.9.2.2", "10.9.1.254:8080", "tcp");
    exact(&capture, &scene, &[(TCP, "tcp")]);
    let router = scene.router.as_ref().unwrap();
    let targets = |device: &str| -> HashSet<(String, u16)> {
        let records = of(&capture, &scene, device, TCP);
        records.iter().map(|record| (record.dst_ip.to_string(), record.dst_port)).collect()
    };
    assert_eq!(targets(&router.inside), HashSet::from([("10.9.1.254".to_owned(), 8080)]));
    assert_eq!(targets(&router.outside), HashSet::from([("10.9.2.2".to_owned(), 80)]));
}

#[test]
fn across_a_bridge() {
    if !kernel_tests_possible() {
        return;
    }
    let scene = Scene::bridged();
    let capture = run(&scene, "10.9.0.2", "10.9.0.2:80", "both");
    exact(&capture, &scene, &[(TCP, "tcp"), (UDP, "udp")]);
    let router = scene.router.as_ref().unwrap();
    let arp = capture.link(&router.host, &router.inside).filter(|record| record.protocol == 255);
    let ethertypes: HashSet<u16> = arp.map(|record| record.dst_port).collect();
    assert!(ethertypes.contains(&0x0806), "ARP is counted apart: {ethertypes:x?}");
}

#[test]
fn within_vxlan_the_inner_flow_is_counted_once() {
    if !kernel_tests_possible() {
        return;
    }
    let scene = Scene::forwarded_in_vxlan();
    let capture = run(&scene, "10.8.0.2", "10.8.0.2:80", "tcp");
    exact(&capture, &scene, &[(TCP, "tcp")]);
    let router = scene.router.as_ref().unwrap();
    for device in [&router.inside, &router.outside] {
        for record in of(&capture, &scene, device, TCP) {
            let tunnel = record.link.as_ref().unwrap().tunnel.unwrap();
            assert_eq!((tunnel.kind, tunnel.id), (TunnelType::Vxlan, Some(7)));
            assert_eq!(tunnel.src_ip.to_string(), "10.9.1.1");
            assert_eq!(tunnel.dst_ip.to_string(), "10.9.2.2");
            assert_eq!((record.src_ip.to_string(), record.dst_port), ("10.8.0.1".to_owned(), 80));
        }
        // What is not IP within a tunnel is counted as the tunnel's packets: ARP here.
        let outer = capture.link(&router.host, device).filter(|record| record.dst_port == 4789);
        assert!(outer.map(|record| record.src_packets + record.dst_packets).sum::<u64>() <= 8);
    }
}
