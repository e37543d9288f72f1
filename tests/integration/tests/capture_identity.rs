//! Who it was: every client and every server carries the right process and cgroup, however short-lived.

use std::{collections::HashSet, fs, time::Duration};

use weir_integration_tests::{
    capture::{TRAFFIC_MAX, TestCapture},
    net::{Cgroup, Namespace, kernel_tests_possible, veth},
    scale::scale,
    scene::family,
    traffic::Traffic,
};
use weir_schema::values::{ConnectError, EndReason, Orientation, Reporter};

const TRAFFIC: &str = env!("CARGO_BIN_EXE_traffic");

fn hosts() -> (Namespace, Namespace) {
    let (client, server) = (Namespace::new(), Namespace::new());
    veth(&client, &["10.9.0.1/24"], &server, &["10.9.0.2/24"]);
    (client, server)
}

#[track_caller]
fn assert_owned(capture: &TestCapture, reporter: Reporter, pids: &HashSet<u32>, cgroup: &str) -> usize {
    let mut count = 0;
    for record in capture.side(reporter).filter(|record| record.protocol == 6) {
        let local = record.local.as_ref().unwrap_or_else(|| panic!("no identity: {record:?}"));
        assert_eq!(&*local.process, "traffic", "{record:?}");
        assert!(pids.contains(&local.pid), "pid {} of {pids:?}: {record:?}", local.pid);
        assert_eq!(&*local.cgroup, cgroup, "{record:?}");
        count += 1;
    }
    count
}

#[test]
fn pre_forked_servers_older_than_the_shipper() {
    if !kernel_tests_possible() {
        return;
    }
    let (client, server) = hosts();
    let pods = Cgroup::new();
    let (client_pod, server_pod) = (pods.child("client"), pods.child("server"));
    let serving = Traffic::server(TRAFFIC, &server_pod, &server, "serve-tcp 10.9.0.2:80 4");
    let mut capture = TestCapture::new(&pods);
    let count = scale().connections;
    let line = format!("connect-tcp 10.9.0.2:80 {count} 100 100 8");
    let connecting = Traffic::start(TRAFFIC, &client_pod, &client, &line);
    let client_pids = HashSet::from([connecting.pid()]);
    connecting.wait(TRAFFIC_MAX, || capture.drain());
    capture.finish();
    let clients = assert_owned(&capture, Reporter::Source, &client_pids, &client_pod.name());
    let servers = assert_owned(&capture, Reporter::Destination, &family(serving.pid()), &server_pod.name());
    assert!(clients as u64 >= count && servers as u64 >= count, "{clients} and {servers} records");
}

#[test]
fn a_process_and_its_cgroup_are_gone_before_export() {
    if !kernel_tests_possible() {
        return;
    }
    let (client, server) = hosts();
    let pods = Cgroup::new();
    let mut capture = TestCapture::new(&pods);
    // Made after the capture was opened, so that only the tracepoint can have told their names.
    let uid = "8f9ed1d7-3c2e-4d6b-9a52-6e0f1c2d3e4f";
    let container = "0fb3a7d3c1b2a49e8d7c6b5a493827160fb3a7d3c1b2a49e8d7c6b5a49382716";
    let (client_pod, server_pod) =
        (pods.child(&format!("pod{uid}")).child(container), pods.child("short-lived-server"));
    let serving = Traffic::server(TRAFFIC, &server_pod, &server, "serve-tcp 10.9.0.2:80 1");
    let server_pids = family(serving.pid());
    let connecting = Traffic::start(TRAFFIC, &client_pod, &client, "connect-tcp 10.9.0.2:80 5 100 100 1");
    let client_pids = HashSet::from([connecting.pid()]);
    let (client_name, server_name) = (client_pod.name(), server_pod.name());
    connecting.wait(Duration::from_secs(20), || {});
    drop(serving);
    client_pod.remove();
    server_pod.remove();
    capture.finish();
    assert_eq!(assert_owned(&capture, Reporter::Source, &client_pids, &client_name), 5);
    assert_eq!(assert_owned(&capture, Reporter::Destination, &server_pids, &server_name), 5);
    let local =
        capture.side(Reporter::Source).next().and_then(|record| record.local.clone()).expect("an identity");
    assert_eq!((&*local.pod_uid, &*local.container_id), (uid, container));
    drop(client_pod);
    fs::remove_dir(pods.path().join(format!("pod{uid}"))).expect("remove the pod's cgroup");
}

#[test]
fn connections_older_than_the_shipper_are_oriented_and_named() {
    if !kernel_tests_possible() {
        return;
    }
    let (client, server) = hosts();
    let pods = Cgroup::new();
    let (client_pod, server_pod) = (pods.child("client"), pods.child("server"));
    // A port above the ephemeral ones: only the listening socket can tell which side serves.
    let serving = Traffic::server(TRAFFIC, &server_pod, &server, "serve-tcp 10.9.0.2:65500 1");
    let mut holding = Traffic::start(TRAFFIC, &client_pod, &client, "hold-tcp 10.9.0.2:65500 5000");
    assert_eq!(holding.read_line(), "connected");
    let mut capture = TestCapture::new(&pods);
    let client_pids = HashSet::from([holding.pid()]);
    for _ in 0..3 {
        holding.say("more");
        assert_eq!(holding.read_line(), "sent");
        capture.finish();
    }
    holding.hang_up();
    holding.wait(Duration::from_secs(20), || {});
    capture.finish();
    for (reporter, orientation) in
        [(Reporter::Source, Orientation::Inferred), (Reporter::Destination, Orientation::Listener)]
    {
        let records: Vec<_> = capture.side(reporter).collect();
        assert!(records.len() >= 4, "{reporter}: one record per interval with packets: {records:?}");
        for record in &records {
            assert_eq!(
                (record.dst_port, record.orientation, record.opened),
                (65_500, orientation, 0),
                "{record:?}"
            );
            assert_eq!(record.flow_id, records[0].flow_id, "{record:?}");
        }
        let sent: u64 = records.iter().map(|record| record.src_bytes).sum();
        assert!(sent > 15_000, "{sent} bytes");
        let ends: Vec<_> = records.iter().filter_map(|record| record.end_reason).collect();
        assert_eq!(ends, [EndReason::Closed], "by the {reporter}'s report");
    }
    assert_owned(&capture, Reporter::Source, &client_pids, &client_pod.name());
    assert_owned(&capture, Reporter::Destination, &family(serving.pid()), &server_pod.name());
}

#[test]
fn failures_have_their_reason() {
    if !kernel_tests_possible() {
        return;
    }
    let (client, server) = hosts();
    client.sysctl("net.ipv4.tcp_syn_retries", "1");
    server.nft(
        "table inet dropping {\nchain i {\ntype filter hook input priority 0\ntcp dport 81 drop\n\
         tcp dport 84 reject with icmp type host-unreachable\n\
         tcp dport 85 reject with icmp type port-unreachable\n}\n}\n",
    );
    let pods = Cgroup::new();
    let (client_pod, server_pod) = (pods.child("client"), pods.child("server"));
    let mut capture = TestCapture::new(&pods);
    let _serving = Traffic::server(TRAFFIC, &server_pod, &server, "serve-tcp 10.9.0.2:80 1");
    let tries = [
        ("try-tcp 10.9.0.2:79 0", "ConnectionRefused", 79, ConnectError::Refused),
        ("try-tcp 10.9.0.2:81 0", "TimedOut", 81, ConnectError::TimedOut),
        ("try-tcp 10.9.0.9:82 0", "", 82, ConnectError::NoNeighbour),
        ("try-tcp 10.9.0.8:83 50", "TimedOut", 83, ConnectError::Aborted),
        ("try-tcp 10.9.0.2:84 0", "HostUnreachable", 84, ConnectError::Unreachable),
        ("try-tcp 10.9.0.2:85 0", "ConnectionRefused", 85, ConnectError::Refused),
    ];
    let mut trying: Vec<Traffic> =
        tries.iter().map(|(line, ..)| Traffic::start(TRAFFIC, &client_pod, &client, line)).collect();
    for (traffic, (line, error, ..)) in trying.iter_mut().zip(tries) {
        let printed = traffic.read_line();
        // Without a neighbour the program is told one error or another, by which timer is first.
        assert!(error.is_empty() || printed == error, "{line}: {printed}");
    }
    for traffic in trying {
        traffic.wait(Duration::from_secs(20), || capture.drain());
    }
    Traffic::start(TRAFFIC, &client_pod, &client, "reset-tcp 10.9.0.2:80")
        .wait(Duration::from_secs(20), || {});
    capture.finish();
    for (line, _, port, error) in tries {
        let ends: Vec<_> = capture
            .side(Reporter::Source)
            .filter(|record| record.dst_port == port && record.end_reason.is_some())
            .map(|record| (record.end_reason, record.connect_error))
            .collect();
        assert_eq!(ends, [(Some(EndReason::ConnectFailed), Some(error))], "{line}");
        let opened: u32 = capture
            .side(Reporter::Source)
            .filter(|record| record.dst_port == port)
            .map(|record| record.opened)
            .sum();
        assert_eq!(opened, 1, "{line}");
    }
    for (reporter, end) in [(Reporter::Source, EndReason::Aborted), (Reporter::Destination, EndReason::Reset)]
    {
        let record = capture
            .side(reporter)
            .find(|record| record.dst_port == 80 && record.end_reason.is_some())
            .expect("the reset connection ended");
        assert_eq!(record.end_reason, Some(end), "by the {reporter}'s report");
        assert!(record.handshake_us.is_some_and(|us| us < 1_000_000), "{record:?}");
    }
}
