//! `weir up` from end to end: demo, live lines, Parquet, summary, and nothing left behind.
//!
//! Needs root, eBPF and `ip`. The capture of `weir up` is one per host, so these tests take turns.
#![expect(clippy::unwrap_used, reason = "tests panic where they fail")]

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, PoisonError};

use serde_json::Value;
use weir_integration_tests::capture::TRAFFIC_MAX;
use weir_integration_tests::duckdb::{DuckDb, number, read_all};
use weir_integration_tests::net::kernel_tests_possible;
use weir_integration_tests::process::{Process, wait_for};
use weir_integration_tests::scene::Scene;

const TRAFFIC: &str = env!("CARGO_BIN_EXE_traffic");

static TURN: Mutex<()> = Mutex::new(());

/// One `weir up` in a folder of its own.
struct Up {
    process: Process,
    data: PathBuf,
    log: PathBuf,
}

impl Up {
    fn start(folder: &Path, name: &str, arguments: &[&str]) -> Self {
        let (data, log) = (folder.join("data"), folder.join(format!("{name}.log")));
        let mut command = Command::new(env!("CARGO_BIN_EXE_sut_weir"));
        command.arg("up").arg("--data").arg(&data).args(arguments);
        let process = Process::spawn(&mut command, &log);
        Self { process, data, log }
    }

    fn output(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    #[track_caller]
    fn wait_for_output(&self, text: &str) {
        wait_for(text, || self.output(), || self.output().contains(text));
    }

    fn signal(&self, signal: rustix::process::Signal) {
        let pid = i32::try_from(self.process.id()).ok().and_then(rustix::process::Pid::from_raw).unwrap();
        rustix::process::kill_process(pid, signal).unwrap();
    }
}

#[test]
fn the_demo_is_in_parquet_to_the_connection_and_nothing_stays() {
    let Some(duckdb) = needs() else { return };
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let folder = tempfile::tempdir().unwrap();
    let mut up = Up::start(folder.path(), "up", &["--duration", "8"]);
    let pid = up.process.id();
    up.process.wait_success();
    let output = up.output();

    let counts: Value =
        serde_json::from_slice(&std::fs::read(up.data.join(".weir/demo.json")).unwrap()).unwrap();
    let count = |name: &str| i128::from(counts[name].as_u64().unwrap());
    assert!(count("http") >= 5 && count("refused") >= 1 && count("dead") >= 1, "{counts}");
    let opened = |condition: &str| {
        let sql = format!(
            "SELECT coalesce(sum(opened), 0)::BIGINT FROM {} WHERE kind = 'flow' AND {condition}",
            read_all(&up.data)
        );
        number(&duckdb.value(&sql))
    };
    let client = "reporter = 'source' AND src_process = 'demo-client' AND src_ip = '192.0.2.1'";
    let server = "reporter = 'destination' AND dst_process = 'demo-server' AND dst_ip = '192.0.2.2'";
    assert_eq!(
        opened(&format!("{client} AND dst_port = 80 AND dst_ip = '192.0.2.2'")),
        count("http"),
        "{output}"
    );
    assert_eq!(opened(&format!("{server} AND dst_port = 80")), count("http"), "{output}");
    assert_eq!(opened(&format!("{client} AND dst_port = 81")), count("refused"), "{output}");
    assert_eq!(opened(&format!("{client} AND dst_ip = '192.0.2.99'")), count("dead"), "{output}");
    let of_demo = format!("\"primary\" AND coalesce(src_cgroup, dst_cgroup) LIKE '%/weir-demo-{pid}/%'");
    assert_eq!(opened(&of_demo), count("connections"), "{output}");

    let failed = |error: &str| {
        let sql = format!(
            "SELECT count(*) FROM {} WHERE kind = 'flow' AND {client} AND connect_error = '{error}'",
            read_all(&up.data)
        );
        number(&duckdb.value(&sql))
    };
    assert_eq!((failed("refused"), failed("no_neighbour")), (count("refused"), count("dead")), "{output}");

    for text in [
        "demo-client[",
        "demo-server[",
        "failed: refused",
        "failed: no_neighbour",
        "events/s",
        "0 lost",
        "Top talkers",
        "demo-client (demo)",
        "Bytes by protocol",
        "Failed connections",
        "To ask again:",
        "FROM read_parquet(",
    ] {
        assert!(output.contains(text), "no '{text}' in:\n{output}");
    }
    assert_eq!(left_behind(pid), Vec::<PathBuf>::new());
}

#[test]
fn a_killed_run_is_tidied_by_the_next_and_ctrl_c_ends_it() {
    if needs().is_none() {
        return;
    }
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let folder = tempfile::tempdir().unwrap();
    let mut killed = Up::start(folder.path(), "killed", &[]);
    killed.wait_for_output("demo-client[");
    let pid = killed.process.id();
    killed.process.kill_9();
    // Its children notice their parent's death and drain.
    wait_for(
        "the end of the killed run's processes",
        || format!("{:?}", children_of(pid)),
        || children_of(pid).is_empty(),
    );
    assert!(!left_behind(pid).is_empty(), "kill -9 left nothing to tidy: this test tests nothing");

    let mut next = Up::start(folder.path(), "next", &[]);
    next.wait_for_output("demo-client[");
    assert!(left_behind(pid).iter().all(|path| path.starts_with(PINS)), "{:?}", left_behind(pid));
    next.signal(rustix::process::Signal::INT);
    next.process.wait_success();
    assert!(next.output().contains("Top talkers"), "{}", next.output());
    assert_eq!(left_behind(pid), Vec::<PathBuf>::new());
    assert_eq!(left_behind(next.process.id()), Vec::<PathBuf>::new());
}

#[test]
fn two_runs_in_one_folder_lose_nothing_when_the_capture_is_unloaded() {
    let Some(duckdb) = needs() else { return };
    if !kernel_tests_possible() {
        return;
    }
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let folder = tempfile::tempdir().unwrap();
    let scene = Scene::linked(false);
    let connections = 50_u32;
    for name in ["first", "second"] {
        // So long an interval that the end alone drains the kernel.
        let mut up = Up::start(folder.path(), name, &["--no-demo", "--interval", "3600"]);
        up.wait_for_output("Watching");
        let _server = scene.serve(TRAFFIC, "serve-tcp 10.9.0.2:80 1");
        let line = format!("connect-tcp 10.9.0.2:80 {connections} 5000 20000 2");
        scene.connect(TRAFFIC, &line).wait(TRAFFIC_MAX, || {});
        // Datagrams that go on while the capture is taken out.
        let _echo = scene.serve(TRAFFIC, "serve-udp 10.9.0.2:53");
        let mut sending = scene.connect(TRAFFIC, "send-udp 10.9.0.2:53 100000000 100 1");
        let sent = || scene.wire("udp").1.packets;
        let before = sent();
        wait_for("datagrams", || format!("{} echoed", sent()), || sent() > before + 100);
        up.signal(rustix::process::Signal::INT);
        up.process.wait_success();
        assert!(!sending.ended(), "datagrams went on to the end");
        assert_eq!(left_behind(up.process.id()), Vec::<PathBuf>::new());
    }
    let data = folder.path().join("data");
    assert!(!data.join("kind=loss").exists(), "nothing is lost between the runs");
    let (src, dst) = scene.wire("tcp");
    let scene_root = scene.pods.name();
    for reporter in ["source", "destination"] {
        let sums = &duckdb.query(&format!(
            "SELECT sum(src_packets)::BIGINT AS src_packets, sum(src_bytes)::BIGINT AS src_bytes, \
             sum(dst_packets)::BIGINT AS dst_packets, sum(dst_bytes)::BIGINT AS dst_bytes, sum(opened)::BIGINT AS opened \
             FROM {} WHERE kind = 'flow' AND protocol = 'tcp' AND reporter = '{reporter}' \
             AND coalesce(src_cgroup, dst_cgroup) LIKE '{}/%'",
            read_all(&data), scene_root
        ))[0];
        let sum = |name: &str| number(&sums[name]);
        let wire = [src.packets, src.bytes, dst.packets, dst.bytes].map(i128::from);
        let found = ["src_packets", "src_bytes", "dst_packets", "dst_bytes"].map(sum);
        assert_eq!(found, wire, "by the {reporter}'s report");
        assert_eq!(sum("opened"), 2 * i128::from(connections), "by the {reporter}'s report");
    }
    println!("SOAK weir up twice: nftables and both reports say {src:?} up, {dst:?} down; no loss rows");
}

/// Where `weir up` pins its capture.
const PINS: &str = "/sys/fs/bpf/weir-up";

/// Namespaces and cgroups of that `weir up`, and pins of any.
fn left_behind(pid: u32) -> Vec<PathBuf> {
    let name = format!("weir-demo-{pid}");
    let mut paths = vec![
        format!("/run/netns/{name}-a"),
        format!("/run/netns/{name}-b"),
        format!("/sys/fs/cgroup/{name}"),
        format!("/sys/fs/cgroup/unified/{name}"),
        PINS.to_owned(),
    ]
    .into_iter()
    .map(PathBuf::from)
    .collect::<Vec<_>>();
    paths.retain(|path| path.exists());
    paths
}

/// Processes that say they were started by that `weir up`.
fn children_of(pid: u32) -> Vec<PathBuf> {
    let mark = format!("WEIR_UP_PID={pid}");
    let processes = std::fs::read_dir("/proc").unwrap().flatten().map(|entry| entry.path());
    let started_by = |path: &PathBuf| {
        let environment = std::fs::read(path.join("environ")).unwrap_or_default();
        environment.split(|byte| *byte == 0).any(|variable| variable == mark.as_bytes())
    };
    processes.filter(started_by).collect()
}

/// DuckDB; `None`, with the reason printed, where these tests can't run.
fn needs() -> Option<DuckDb> {
    if !rustix::process::geteuid().is_root() {
        assert!(std::env::var_os("CI").is_none(), "needs root, to capture and to make namespaces");
        eprintln!("skipped: needs root, to capture and to make namespaces");
        return None;
    }
    DuckDb::find()
}
