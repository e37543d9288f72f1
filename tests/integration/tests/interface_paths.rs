//! What the interface vantage counts on its way through a host equals, to the byte, what nftables counts where it
//! arrives: forwarded, translated, bridged, tunnelled.

#![expect(clippy::unwrap_used, reason = "tests panic where they fail")]

use std::collections::HashSet;

use weir_integration_tests::{
    capture::{TRAFFIC_MAX, TestCapture, opened_of, sent_of},
    net::kernel_tests_possible,
    scene::Scene,
    traffic::Traffic,
};
use weir_schema::values::{EndReason, Orientation, Reporter, TunnelType, Vantage};
use weir_shipper::flow::FlowRecord;

const TRAFFIC: &str = env!("CARGO_BIN_EXE_traffic");
const TUNNEL: &str = env!("CARGO_BIN_EXE_tunnel");
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

fn exact(capture: &TestCapture, scene: &Scene, protocols: &[(u8, &str)], connections: u64) {
    let router = scene.router.as_ref().unwrap();
    for device in [&router.inside, &router.outside] {
        for (protocol, name) in protocols {
            let records = of(capture, scene, device, *protocol);
            let sums = sent_of(*protocol, records.iter().copied());
            assert_eq!(sums, scene.wire(name), "{name} at {device}");
        }
        let records = of(capture, scene, device, TCP);
        assert_eq!(opened_of(records.iter().copied()), connections);
        assert!(records.iter().all(|record| record.orientation == Orientation::Observed), "{records:#?}");
        let closed = records.iter().filter(|record| record.end_reason == Some(EndReason::Closed)).count();
        assert_eq!(closed as u64, connections, "each connection has ended once at {device}");
        let timed: u64 = records.iter().filter(|record| record.handshake_us.is_some()).count() as u64;
        assert!(timed >= connections - 2, "{timed} handshakes fell into one interval");
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
    exact(&capture, &scene, &[(TCP, "tcp"), (UDP, "udp")], CONNECTIONS);
    let scene = Scene::forwarded();
    let capture = run(&scene, "[fd09:2::2]", "[fd09:2::2]:80", "both");
    exact(&capture, &scene, &[(TCP, "tcp"), (UDP, "udp")], CONNECTIONS);
}

#[test]
fn behind_snat_each_link_has_its_own_view() {
    if !kernel_tests_possible() {
        return;
    }
    let scene = Scene::behind_snat();
    let capture = run(&scene, "10.9.2.2", "10.9.2.2:80", "both");
    exact(&capture, &scene, &[(TCP, "tcp"), (UDP, "udp")], CONNECTIONS);
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
    exact(&capture, &scene, &[(TCP, "tcp")], CONNECTIONS);
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
    exact(&capture, &scene, &[(TCP, "tcp"), (UDP, "udp")], CONNECTIONS);
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
    exact(&capture, &scene, &[(TCP, "tcp")], CONNECTIONS);
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

/// What the records must say beside the inner flow: VLAN tags, tunnel, id.
type Around = (u16, u16, Option<TunnelType>, Option<u32>);

/// Carries a few connections through a tunnel whose ends are programs, since not every kernel has the modules.
fn tunnelled(kind: &str, scene: &Scene, ends: [&str; 2], around: Around) {
    const CONNECTIONS: u64 = 20;
    let router = scene.router.as_ref().unwrap();
    let mut capture = TestCapture::of_links(&scene.pods, &[&router.host]);
    let start = |host: &weir_integration_tests::net::Namespace, pod, from: &str, to: &str, last: u8| {
        let line = format!("{kind} {from} {to} {}", scene.device(host));
        let tunnel = Traffic::server(TUNNEL, pod, host, &line);
        host.ip("link set tu0 mtu 1300 up");
        host.ip(&format!("addr add 10.8.0.{last}/24 dev tu0"));
        host.ip(&format!("addr add fd08::{last}/64 dev tu0 nodad"));
        tunnel
    };
    let _client_end = start(&scene.client, &scene.client_pod, ends[0], ends[1], 1);
    let _server_end = start(&scene.server, &scene.server_pod, ends[1], ends[0], 2);
    let server = if kind == "sit" { "[fd08::2]:80" } else { "10.8.0.2:80" };
    let _server = scene.serve(TRAFFIC, &format!("serve-tcp {server} 1"));
    scene
        .connect(TRAFFIC, &format!("connect-tcp {server} {CONNECTIONS} 20000 30000 1"))
        .wait(TRAFFIC_MAX, || {});
    capture.finish();
    exact(&capture, scene, &[(TCP, "tcp")], CONNECTIONS);
    let (vlan, inner_vlan, tunnel_type, id) = around;
    for device in [&router.inside, &router.outside] {
        for record in of(&capture, scene, device, TCP) {
            let link = record.link.as_ref().unwrap();
            assert_eq!((link.vlan_id, link.inner_vlan_id), (vlan, inner_vlan), "{kind}");
            let tunnel = link.tunnel.map(|tunnel| (tunnel.kind, tunnel.id, tunnel.src_ip.to_string()));
            assert_eq!(tunnel, tunnel_type.map(|kind| (kind, id, ends[0].to_owned())), "{kind}");
            assert_eq!(record.dst_port, 80);
        }
    }
}

#[test]
fn within_ip_in_ip_gre_and_geneve_the_inner_flow_is_counted_once() {
    if !kernel_tests_possible() {
        return;
    }
    for (kind, tunnel, id) in [
        ("ipip", TunnelType::Ipip, None),
        ("sit", TunnelType::Ipip, None),
        ("gre", TunnelType::Gre, Some(5)),
        ("geneve", TunnelType::Geneve, Some(9)),
    ] {
        tunnelled(kind, &Scene::forwarded(), ["10.9.1.1", "10.9.2.2"], (0, 0, Some(tunnel), id));
    }
}

#[test]
fn on_a_trunk_tags_are_part_of_the_flow() {
    if !kernel_tests_possible() {
        return;
    }
    let ends = ["10.9.0.1", "10.9.0.2"];
    tunnelled("vlan", &Scene::bridged(), ends, (10, 0, None, None));
    tunnelled("qinq", &Scene::bridged(), ends, (100, 10, None, None));
}
