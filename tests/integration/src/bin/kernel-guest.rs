//! What `scripts/kernels.sh` runs in each guest: every kernel program is loaded, 100 connections are made over a veth,
//! and bytes, connections, processes and cgroups are compared with what is true. Prints a line per check, and `done`
//! as its last line when all of them hold.
//!
//! What a kernel lacks is in [`LACKS`], as `docs/kernels.md` has it: more is a failure, and less is one too, so that
//! neither goes unnoticed.

use std::{collections::BTreeSet, fs, process::ExitCode};

use weir_integration_tests::{
    capture::{TRAFFIC_MAX, TestCapture, opened_of, sent_of},
    net::{Bytes, Cgroup, Namespace, kernel_tests_possible, offloads_off, veth},
    traffic::Traffic,
};
use weir_schema::values::Reporter;
use weir_shipper::{check, probe::CaptureConfig};

const TRAFFIC: &str = "/bin/traffic";
const CONNECTIONS: u64 = 100;
const TCP: u8 = 6;
const UDP: u8 = 17;

/// First release without a lack, and the names that `weir-shipper check` prints.
const LACKS: &[((u32, u32), &[&str])] = &[
    ((6, 16), &["current process in sock_ops"]),
    ((6, 12), &["program link_ingress", "program link_egress"]),
    ((6, 11), &["program free"]),
    ((6, 6), &["pinned links at interfaces (TCX)"]),
    ((5, 15), &["network namespace in sock_ops"]),
    ((5, 12), &["program send", "program recv", "program state"]),
];

fn main() -> ExitCode {
    assert!(kernel_tests_possible());
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let release = release.trim();
    let mut numbers = release.split('.').map(|number| number.parse().unwrap_or(0));
    let version = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    let mut failures = Vec::new();
    features(version, &mut failures);
    for protocol in [TCP, UDP] {
        sockets(version, protocol, &mut failures);
    }
    for failure in &failures {
        println!("FAILED {failure}");
    }
    if !failures.is_empty() {
        return ExitCode::FAILURE;
    }
    println!("done");
    ExitCode::SUCCESS
}

/// What is missing is what the documentation says.
fn features(version: (u32, u32), failures: &mut Vec<String>) {
    let report = check::report(&CaptureConfig::default());
    println!("{report}");
    if !report.capture_possible() {
        failures.push("capture is not possible".to_owned());
    }
    let missing: BTreeSet<&str> = report
        .features
        .iter()
        .filter(|feature| feature.problem.is_some())
        .map(|feature| feature.name.as_str())
        .collect();
    let expected: BTreeSet<&str> = LACKS
        .iter()
        .filter(|(since, _)| version < *since)
        .flat_map(|(_, names)| names.iter().copied())
        .collect();
    if missing != expected {
        failures.push(format!("missing {missing:?}, documented {expected:?}"));
    }
}

/// Two pods on two hosts: both reports equal nftables, and name the right processes and cgroups.
fn sockets(version: (u32, u32), protocol: u8, failures: &mut Vec<String>) {
    let (client, server) = (Namespace::new(), Namespace::new());
    let (a, b) = veth(&client, &["10.9.0.1/24"], &server, &["10.9.0.2/24"]);
    offloads_off(&client, &a);
    offloads_off(&server, &b);
    client.count();
    server.count();
    let pods = Cgroup::new();
    let (client_pod, server_pod) = (pods.child("client"), pods.child("server"));
    let mut capture = TestCapture::degraded(&pods, |config| {
        // The guest has a gibibyte.
        (config.flow_entries, config.socket_entries, config.meta_entries) = (8192, 8192, 8192);
    });
    let (name, serve, connect) = if protocol == TCP {
        ("tcp", "serve-tcp 10.9.0.2:80 2", format!("connect-tcp 10.9.0.2:80 {CONNECTIONS} 300 20000 2"))
    } else {
        (
            "udp",
            "serve-udp 10.9.0.2:53",
            format!("send-udp 10.9.0.2:53 {} 200 {CONNECTIONS}", 3 * CONNECTIONS),
        )
    };
    let serving = Traffic::server(TRAFFIC, &server_pod, &server, serve);
    let connecting = Traffic::start(TRAFFIC, &client_pod, &client, &connect);
    let client_pid = connecting.pid();
    let server_pids = family(serving.pid());
    connecting.wait(TRAFFIC_MAX, || capture.drain());
    capture.finish();

    let wire = (server.counted(&format!("{name}_in")), client.counted(&format!("{name}_in")));
    println!("{name}: {} packets met again", capture.counter("copies"));
    let mut same = |what: String, found: (Bytes, Bytes)| {
        println!("{what}: {found:?}, nftables: {wire:?}");
        if found != wire {
            failures.push(what);
        }
    };
    same(format!("{name} bytes, client"), sent_of(protocol, capture.side(Reporter::Source)));
    same(format!("{name} bytes, server"), sent_of(protocol, capture.side(Reporter::Destination)));
    for (reporter, pod, pids) in [
        (Reporter::Source, &client_pod, &BTreeSet::from([client_pid])),
        (Reporter::Destination, &server_pod, &server_pids),
    ] {
        let records: Vec<_> = capture.side(reporter).filter(|record| record.protocol == protocol).collect();
        let opened = opened_of(records.iter().copied());
        let of_process = records
            .iter()
            .filter(|record| {
                record
                    .local
                    .as_ref()
                    .is_some_and(|local| pids.contains(&local.pid) && &*local.process == "traffic")
            })
            .count();
        // A connection that is accepted as the interval ends has a record without packets, and packets tell the cgroup.
        let of_cgroup = records
            .iter()
            .filter(|record| {
                record.src_packets + record.dst_packets == 0
                    || record.local.as_ref().is_some_and(|local| *local.cgroup == *pod.name())
            })
            .count();
        let handshakes = records.iter().filter(|record| record.handshake_us.is_some()).count();
        println!(
            "{name} {reporter}: {} records, {opened} opened, {of_process} with their process, {of_cgroup} with their cgroup, \
             {handshakes} with their handshake",
            records.len()
        );
        if protocol == TCP && handshakes as u64 != CONNECTIONS {
            failures.push(format!("{name} {reporter}: handshakes"));
        }
        if opened != CONNECTIONS || of_cgroup != records.len() {
            failures.push(format!("{name} {reporter}: opened or cgroup"));
        }
        if of_process != records.len() && version >= (6, 1) {
            failures.push(format!("{name} {reporter}: process"));
        }
    }
}

/// A process and its children.
fn family(pid: u32) -> BTreeSet<u32> {
    let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    children.split_whitespace().filter_map(|child| child.parse().ok()).chain([pid]).collect()
}
