//! Each byte is counted once, whatever dies: the process that drains is killed at named points and at random, and the
//! kernel programs are replaced under traffic. What was logged equals what nftables counted.

use std::{
    fs,
    path::PathBuf,
    process::{Child, Command, Stdio},
    time::Duration,
};

use weir_integration_tests::{
    capture::{TRAFFIC_MAX, TestCapture, opened_of, sent_of},
    net::{Bytes, Cgroup, Namespace, kernel_tests_possible, offloads_off, unique, veth, wait_for},
    scale::scale,
    traffic::Traffic,
};
use weir_schema::values::Reporter;
use weir_shipper::{check, probe::CaptureConfig};

const TRAFFIC: &str = env!("CARGO_BIN_EXE_traffic");
const DRAIN: &str = env!("CARGO_BIN_EXE_drain");

struct Hosts {
    client: Namespace,
    server: Namespace,
    client_pod: Cgroup,
    server_pod: Cgroup,
    pods: Cgroup,
}

impl Hosts {
    fn new() -> Self {
        let (client, server) = (Namespace::new(), Namespace::new());
        let (a, b) = veth(&client, &["10.9.0.1/24"], &server, &["10.9.0.2/24"]);
        offloads_off(&client, &a);
        offloads_off(&server, &b);
        client.count();
        server.count();
        let pods = Cgroup::new();
        let (client_pod, server_pod) = (pods.child("client"), pods.child("server"));
        Self { client, server, client_pod, server_pod, pods }
    }

    fn wire(&self) -> (Bytes, Bytes) {
        (self.server.counted("tcp_in"), self.client.counted("tcp_in"))
    }

    fn traffic(&self, count: u64) -> (Traffic, Traffic) {
        let server = Traffic::server(TRAFFIC, &self.server_pod, &self.server, "serve-tcp 10.9.0.2:80 2");
        let line = format!("connect-tcp 10.9.0.2:80 {count} 20000 40000 4");
        (server, Traffic::start(TRAFFIC, &self.client_pod, &self.client, &line))
    }
}

/// The log of a draining process, and its pins; removed when dropped.
struct Drainer {
    cgroup: PathBuf,
    pins: PathBuf,
    log: tempfile::TempPath,
}

impl Drainer {
    fn new(pods: &Cgroup) -> Self {
        let log = tempfile::NamedTempFile::new().expect("make a log").into_temp_path();
        let pins = PathBuf::from(format!("/sys/fs/bpf/weir-test-{}", unique()));
        Self { cgroup: pods.path().to_owned(), pins, log }
    }

    fn start(&self, rest: &[&str]) -> Child {
        Command::new(DRAIN)
            .args([&self.cgroup, &self.pins])
            .arg(&self.log)
            .args(rest)
            .stdout(Stdio::null())
            .spawn()
            .expect("start drain")
    }

    fn lines(&self) -> usize {
        fs::read_to_string(&self.log).unwrap_or_default().lines().count()
    }

    /// Sums the log; every interval may stand in it once.
    fn sum(&self) -> (u64, Bytes, Bytes) {
        let text = fs::read_to_string(&self.log).expect("read the log");
        let (mut opened, mut up, mut down) = (0, Bytes::default(), Bytes::default());
        let mut before = None;
        for line in text.lines() {
            let mut numbers = line.split(' ').map(|word| word.parse::<u128>().expect("a number"));
            let mut next = || numbers.next().expect("seven numbers");
            let interval = (next(), next());
            assert!(before < Some(interval), "interval {interval:?} after {before:?}");
            before = Some(interval);
            let mut next = || next() as u64;
            opened += next();
            up.packets += next();
            up.bytes += next();
            down.packets += next();
            down.bytes += next();
        }
        (opened, up, down)
    }
}

impl Drop for Drainer {
    fn drop(&mut self) {
        let config = CaptureConfig { pin_directory: self.pins.clone(), ..CaptureConfig::default() };
        if let Err(error) = check::unload(&config) {
            eprintln!("unload {}: {error}", self.pins.display());
        }
    }
}

#[test]
fn killed_at_every_point_and_at_random() {
    if !kernel_tests_possible() {
        return;
    }
    let hosts = Hosts::new();
    let drainer = Drainer::new(&hosts.pods);
    // The programs must be there before the traffic is; they stay when their loader dies.
    let mut first = drainer.start(&["final"]);
    assert!(first.wait().expect("wait for drain").success());
    let count = scale().connections;
    let (_server, mut traffic) = hosts.traffic(count);
    let mut random = 0x2545_f491_4f6c_dd1d_u64;
    let mut kills = 0;
    let minimum = scale().kill_random.max(5);
    while !traffic.ended() || kills < minimum {
        for point in ["read", "append", "release"] {
            let mut child = drainer.start(&["die", point]);
            assert!(!child.wait().expect("wait for drain").success(), "it dies at {point}");
            kills += 1;
        }
        let mut child = drainer.start(&[]);
        // xorshift64: another moment each time, the same ones in every run.
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        let lines = drainer.lines() + (random % 5) as usize;
        wait_for("the log grows", Duration::from_secs(60), || (drainer.lines() > lines).then_some(()));
        std::thread::sleep(Duration::from_micros(random % 20_000));
        child.kill().expect("kill drain");
        child.wait().expect("wait for drain");
        kills += 1;
    }
    let mut last = drainer.start(&["final"]);
    assert!(last.wait().expect("wait for drain").success());
    let (up, down) = hosts.wire();
    assert_eq!(drainer.sum(), (count, up, down), "after {kills} kills");
}

#[test]
fn programs_are_replaced_under_traffic() {
    if !kernel_tests_possible() {
        return;
    }
    let hosts = Hosts::new();
    let mut capture = TestCapture::new(&hosts.pods);
    let count = scale().connections;
    let (_server, traffic) = hosts.traffic(count);
    let mut swaps = 0;
    traffic.wait(TRAFFIC_MAX, || {
        capture.reopen();
        capture.drain();
        swaps += 1;
    });
    capture.finish();
    assert_eq!(sent_of(6, capture.side(Reporter::Source)), hosts.wire(), "after {swaps} swaps");
    assert_eq!(sent_of(6, capture.side(Reporter::Destination)), hosts.wire(), "after {swaps} swaps");
    assert_eq!(opened_of(capture.side(Reporter::Source)), count);
    assert_eq!(opened_of(capture.side(Reporter::Destination)), count);
    assert!(swaps >= 2, "{swaps} swaps");
}

#[test]
fn one_shipper_at_a_time_and_unload_leaves_nothing() {
    if !kernel_tests_possible() {
        return;
    }
    let pods = Cgroup::new();
    let mut capture = TestCapture::new(&pods);
    let config = capture.config().clone();
    let error = weir_shipper::probe::Capture::open(&config).expect_err("the lock is held");
    assert!(error.to_string().starts_with("another shipper holds"), "{error}");
    let error = check::unload(&config).expect_err("the lock is held");
    assert!(error.to_string().starts_with("another shipper holds"), "{error}");
    capture.close();
    assert!(check::unload(&config).expect("unload") > 20, "maps and links");
    assert!(!config.pin_directory.exists());
    assert_eq!(check::unload(&config).expect("unload again"), 0);
}
