//! What capturing costs: nanoseconds per packet and hook in the kernel, CPU per packet of who sends it, and the shipper's CPU
//! per exported flow and memory at many flows.
//!
//! A sender in a network namespace sends datagrams of 64 bytes to a link that drops them, over so many flows as are asked
//! for. Needs root and a kernel that takes the programs; elsewhere it says so and gives no figures.

use std::collections::BTreeMap;
use std::fs;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};
use std::process::Stdio;
use std::time::Duration;

use super::machine::{ended_children_cpu, process_cpu};
use super::pipeline::{aggregator, up};
use super::{Figures, Plan};
use crate::capture::TestCapture;
use crate::net::{Cgroup, Namespace, command_in, kernel_tests_possible};
use crate::process::{http_get, metric_sum, wait_for};
use crate::system::{Shipper, peak_memory};

/// Runs it.
///
/// # Panics
/// When a program or a process fails.
pub fn run(plan: &Plan) -> Figures {
    let mut figures = Figures::default();
    if !kernel_tests_possible() {
        return figures;
    }
    let sender = Sender::new(plan);
    let packets = plan.packets;
    let alone = sender.send(packets, 1).as_secs_f64();
    figures.add("sender_cpu_ns_per_packet_without_weir", alone * 1e9 / packets as f64, "ns, 64-byte UDP");
    hooks(plan, &sender, &mut figures);
    shipper(plan, &sender, &mut figures);
    figures
}

/// The kernel programs, over few and many flows.
fn hooks(plan: &Plan, sender: &Sender, figures: &mut Figures) {
    let mut capture = TestCapture::with(&sender.cgroup, |config| config.flow_entries = 1 << 18);
    let stats = BpfStats::on();
    let names: [(u64, &str, f64); 3] = [
        (1, "egress_ns_per_packet_at_1_flow", 120.0),
        (1_000, "egress_ns_per_packet_at_1000_flows", 150.0),
        (100_000, "egress_ns_per_packet_at_100000_flows", 300.0),
    ];
    for (flows, name, goal) in names {
        // The first round makes the flows' entries; what is measured finds them.
        sender.send(flows, flows);
        let before = stats.runs();
        let cpu = sender.send(plan.packets, flows).as_secs_f64();
        let after = stats.runs();
        // The hook of each sent packet ran that often, or a little more often; others on this host ran otherwise.
        let ran = after.iter().filter_map(|(id, (ns, runs))| {
            let (ns_before, runs_before) = before.get(id).copied().unwrap_or_default();
            Some((runs.checked_sub(runs_before)?, ns.checked_sub(ns_before)?))
        });
        if let Some((runs, ns)) = ran.filter(|(runs, _)| *runs >= plan.packets).min() {
            figures.add_goal(name, ns as f64 / runs as f64, "ns (kernel.bpf_stats_enabled)", goal);
        }
        if flows == 1 {
            figures.add(
                "sender_cpu_ns_per_packet_with_weir",
                cpu * 1e9 / plan.packets as f64,
                "ns, 64-byte UDP",
            );
        }
        capture.drain();
        capture.drain();
    }
}

/// The shipper as a process, with every flow in every interval.
fn shipper(plan: &Plan, sender: &Sender, figures: &mut Figures) {
    let home = plan.folder("capture");
    let aggregator = aggregator(plan, &home, Vec::new());
    let mut aggregating = aggregator.start(None);
    up(&aggregator, &mut aggregating);
    let shipper = Shipper {
        program: plan.program("sut_shipper"),
        home: home.join("shipper"),
        node: "bench".to_owned(),
        aggregator: aggregator.address,
        cgroup: sender.cgroup.path().to_owned(),
        pins: Shipper::pins(),
        set: vec!["capture.interval=2s".to_owned(), "capture.flow_entries=262144".to_owned()],
    };
    let shipping = shipper.start(None);
    let exported = || {
        let text = http_get(aggregator.admin, "/metrics").map(|(_, text)| text).unwrap_or_default();
        metric_sum(&text, "weir_aggregator_journaled_events_total", r#"kind="flow""#).unwrap_or_default()
    };
    let flows = plan.captured_flows;
    let (cpu, mut seen) = (process_cpu(shipping.id()), exported());
    let first = seen;
    for _ in 0..3 {
        sender.send(flows, flows);
        let wanted = seen + flows as f64;
        wait_for("the flows to be journaled", || shipping.log_tail(), || exported() >= wanted);
        seen = exported();
    }
    let cpu = (process_cpu(shipping.id()) - cpu).as_secs_f64();
    let resident = |pid: u32| peak_memory(pid) as f64 / f64::from(1 << 20);
    figures
        .add("shipper_flows", flows as f64, "at once")
        .add_goal("shipper_cpu_us_per_flow", cpu * 1e6 / (seen - first), "µs, of the process", 1.0)
        .add_goal("shipper_peak_memory_mib", resident(shipping.id()), "MiB, without the kernel's maps", 80.0);
}

/// Sends known packets from one cgroup.
struct Sender {
    cgroup: Cgroup,
    namespace: Namespace,
    _nowhere: Namespace,
    program: std::path::PathBuf,
}

impl Sender {
    fn new(plan: &Plan) -> Self {
        let (namespace, nowhere) = (Namespace::new(), Namespace::new());
        namespace.ip(&format!("link add sink type veth peer name drain netns {}", nowhere.name()));
        nowhere.ip("link set drain up");
        // Without ARP the link's own address is taken for the gateway's, so the other end drops what it gets.
        namespace.ip("link set sink arp off");
        namespace.ip("addr add 10.0.0.1/24 dev sink");
        namespace.ip("link set sink up");
        namespace.ip("route add 10.128.0.0/9 via 10.0.0.2");
        Self { cgroup: Cgroup::new(), namespace, _nowhere: nowhere, program: plan.program("traffic") }
    }

    /// Sends so many datagrams over so many flows; gives the sender's CPU time.
    fn send(&self, packets: u64, flows: u64) -> Duration {
        let before = ended_children_cpu();
        let mut command = command_in(&self.cgroup, &self.namespace, &self.program);
        command.args(["spread-udp", "10.128.0.0", &packets.to_string(), &flows.to_string()]);
        let status = command.stdout(Stdio::null()).status().unwrap();
        assert!(status.success(), "{command:?}: {status}");
        ended_children_cpu() - before
    }
}

/// The kernel's own measurement of programs, switched on as long as this lives.
struct BpfStats {
    before: String,
}

impl BpfStats {
    fn on() -> Self {
        let before = fs::read_to_string(SWITCH).unwrap_or_default();
        fs::write(SWITCH, "1").unwrap();
        Self { before }
    }

    /// Time and number of runs of each program for the packets of a cgroup, by its id.
    fn runs(&self) -> BTreeMap<u32, (u64, u64)> {
        let mut programs = BTreeMap::new();
        let mut id = 0;
        while let Some(next) = next_program(id) {
            id = next;
            // One that has gone in between has no file.
            let Some(file) = open_program(id) else { continue };
            let info = format!("/proc/self/fdinfo/{}", file.as_raw_fd());
            let text = fs::read_to_string(info).unwrap_or_default();
            let field = |name: &str| {
                let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
                line.and_then(|value| value.trim().parse::<u64>().ok())
            };
            let is_hook = field("prog_type") == Some(CGROUP_SKB);
            if let (true, Some(ns), Some(runs)) = (is_hook, field("run_time_ns"), field("run_cnt")) {
                programs.insert(id, (ns, runs));
            }
        }
        programs
    }
}

/// `BPF_PROG_GET_NEXT_ID` of bpf(2).
fn next_program(id: u32) -> Option<u32> {
    let mut attributes = [id, 0, 0];
    (bpf(11, &mut attributes) == 0).then_some(attributes[1])
}

/// `BPF_PROG_GET_FD_BY_ID` of bpf(2).
fn open_program(id: u32) -> Option<OwnedFd> {
    let fd = i32::try_from(bpf(13, &mut [id, 0, 0])).ok().filter(|fd| *fd >= 0)?;
    // SAFETY: the kernel has just given us this descriptor, and nobody else has it.
    Some(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn bpf(command: i32, attributes: &mut [u32; 3]) -> i64 {
    // SAFETY: both commands read and write at most these 12 bytes, whose length is passed.
    unsafe { libc::syscall(libc::SYS_bpf, command, attributes.as_mut_ptr(), size_of_val(attributes)) }
}

impl Drop for BpfStats {
    fn drop(&mut self) {
        let _ = fs::write(SWITCH, self.before.trim());
    }
}

/// `BPF_PROG_TYPE_CGROUP_SKB`.
const CGROUP_SKB: u64 = 8;
const SWITCH: &str = "/proc/sys/kernel/bpf_stats_enabled";
