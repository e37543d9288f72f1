//! The same traffic, captured by tcpdump and by the interface vantage: a replay of the file gives the same flows.
#![expect(clippy::unwrap_used, reason = "tests panic where they fail")]

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::net::IpAddr;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use weir_integration_tests::{
    capture::{TRAFFIC_MAX, TestCapture},
    net::{Namespace, kernel_tests_possible},
    process,
    scene::Scene,
};
use weir_schema::values::{ConnectError, EndReason, Orientation};
use weir_shipper::flow::FlowRecord;
use weir_shipper::replay::{Replay, TableOptions};

const TRAFFIC: &str = env!("CARGO_BIN_EXE_traffic");
const TCP: u8 = 6;
const UDP: u8 = 17;

/// tcpdump on one device of a namespace.
struct Dump(Child);

impl Dump {
    fn start(host: &Namespace, device: &str, file: &Path) -> Self {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", host.name(), "tcpdump", "-Z", "root", "-n", "-U", "--immediate-mode"]);
        // What it keeps of a packet is less than the packet.
        command.args(["-B", "32768", "-s", "128", "-i", device, "-w"]).arg(file);
        let mut child = command.stdin(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let listens = lines.by_ref().map(Result::unwrap).any(|line| line.contains("listening on"));
        assert!(listens, "tcpdump ended");
        // It says something at its end, which must not block it.
        std::thread::spawn(move || lines.count());
        Self(child)
    }
}

impl Drop for Dump {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Who with whom, by which protocol; whether in a tunnel.
type Who = (IpAddr, u16, IpAddr, u16, u8, bool);

/// What all records of a flow say together.
#[derive(Debug, Default, PartialEq)]
struct Flow {
    opened: u32,
    src: (u64, u64, u8),
    dst: (u64, u64, u8),
    orientation: Option<Orientation>,
    end: Option<EndReason>,
    error: Option<ConnectError>,
}

fn flows<'a>(records: impl IntoIterator<Item = &'a FlowRecord>) -> BTreeMap<Who, Flow> {
    let mut flows = BTreeMap::<Who, Flow>::new();
    for record in records.into_iter().filter(|record| [TCP, UDP].contains(&record.protocol)) {
        let tunnel = record.link.as_ref().is_some_and(|link| link.tunnel.is_some());
        let FlowRecord { src_ip, src_port, dst_ip, dst_port, protocol, .. } = *record;
        let flow = flows.entry((src_ip, src_port, dst_ip, dst_port, protocol, tunnel)).or_default();
        flow.opened += record.opened;
        flow.src.0 += record.src_packets;
        flow.src.1 += record.src_bytes;
        flow.src.2 |= record.tcp_flags_src;
        flow.dst.0 += record.dst_packets;
        flow.dst.1 += record.dst_bytes;
        flow.dst.2 |= record.tcp_flags_dst;
        flow.orientation = Some(record.orientation);
        flow.end = flow.end.or(record.end_reason);
        flow.error = flow.error.or(record.connect_error);
    }
    flows
}

fn replayed(file: &Path) -> BTreeMap<Who, Flow> {
    const S: i64 = 1_000_000_000;
    let options =
        TableOptions { interval_ns: 10 * S, idle_ns: 120 * S, tcp_idle_ns: 3600 * S, entries: 16_384 };
    // It may be written to, so that its last packet is not whole.
    let read = Replay::of_bytes(std::fs::read(file).unwrap_or_default(), options);
    read.map(|(records, _)| flows(&records)).unwrap_or_default()
}

fn agree(scene: &Scene, exchanges: &[(&str, &str)]) {
    let router = scene.router.as_ref().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("inside.pcap");
    let _dump = Dump::start(&router.host, &router.inside, &file);
    let mut capture = TestCapture::of_links(&scene.pods, &[&router.host]);
    for (serve, connect) in exchanges {
        let _server = (!serve.is_empty()).then(|| scene.serve(TRAFFIC, serve));
        scene.connect(TRAFFIC, connect).wait(TRAFFIC_MAX, || {});
    }
    capture.finish();
    let live = flows(capture.link(&router.host, &router.inside));
    assert!(live.len() > 40, "{live:?}");
    let packets =
        |flows: &BTreeMap<Who, Flow>| flows.values().map(|flow| flow.src.0 + flow.dst.0).sum::<u64>();
    process::wait_for(
        "tcpdump's last packet",
        || format!("{} of {} packets", packets(&replayed(&file)), packets(&live)),
        || packets(&replayed(&file)) >= packets(&live),
    );
    let replayed = replayed(&file);
    for (who, flow) in &live {
        assert_eq!(replayed.get(who), Some(flow), "{who:?}: replayed, live");
    }
    assert_eq!(replayed.len(), live.len());
}

#[test]
fn forwarded_traffic_gives_the_same_flows() {
    if !possible() {
        return;
    }
    agree(
        &Scene::forwarded(),
        &[
            ("serve-tcp 10.9.2.2:80 2", "connect-tcp 10.9.2.2:80 40 30000 70000 4"),
            ("serve-tcp [fd09:2::2]:80 2", "connect-tcp [fd09:2::2]:80 10 3000 7000 2"),
            ("serve-tcp 10.9.2.2:80 1", "reset-tcp 10.9.2.2:80"),
            ("serve-udp 10.9.2.2:53", "send-udp 10.9.2.2:53 300 700 5"),
            ("", "scan-tcp 10.9.2.2 2000 50"),
        ],
    );
}

#[test]
fn tunnelled_traffic_gives_the_same_flows() {
    if !possible() {
        return;
    }
    agree(
        &Scene::forwarded_in_vxlan(),
        &[("serve-tcp 10.8.0.2:80 2", "connect-tcp 10.8.0.2:80 50 30000 70000 4")],
    );
}

fn possible() -> bool {
    if !kernel_tests_possible() {
        return false;
    }
    let there = Command::new("tcpdump").arg("--version").output().is_ok();
    if !there {
        assert!(std::env::var_os("CI").is_none(), "tcpdump is missing: scripts/setup.sh test installs it");
        eprintln!("skipped: tcpdump is missing (scripts/setup.sh test installs it)");
    }
    there
}
