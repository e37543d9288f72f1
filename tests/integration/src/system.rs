//! Aggregator, shipper and generators as processes under test, with the settings that the delivery tests share.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;

use weir_shipper::check;
use weir_shipper::probe::CaptureConfig;

use crate::net::unique;
use crate::process::{Process, ready_file};

/// How to start an aggregator; the programs' paths come from the test, which cargo tells them to.
#[derive(Clone, Debug)]
pub struct Aggregator {
    /// `CARGO_BIN_EXE_sut_aggregator`.
    pub program: PathBuf,
    /// Where journal, data and log go.
    pub home: PathBuf,
    /// Where it listens, at every start.
    pub address: SocketAddr,
    /// Where `/metrics` is.
    pub admin: SocketAddr,
    /// More settings.
    pub set: Vec<String>,
}

impl Aggregator {
    /// Starts it; `crash` arms a crash point.
    pub fn start(&self, crash: Option<&str>) -> Process {
        let mut command = Command::new(&self.program);
        for setting in [
            format!("grpc.listen={}", self.address),
            format!("admin.listen={}", self.admin),
            format!("journal.dir={}", self.home.join("journal").display()),
            // Small, so that segments roll and files are cut all the time.
            "journal.segment_bytes=256KiB".to_owned(),
            format!("parquet.dir={}", self.data().display()),
            "parquet.roll_age=300ms".to_owned(),
        ] {
            command.args(["--set", &setting]);
        }
        for setting in &self.set {
            command.args(["--set", setting]);
        }
        arm(&mut command, crash);
        Process::spawn(&mut command, &self.home.join("aggregator.log"))
    }

    /// The root of the Parquet files.
    pub fn data(&self) -> PathBuf {
        self.home.join("data")
    }

    /// What DuckDB reads of a kind.
    pub fn table(&self, kind: &str) -> String {
        let data = self.data();
        format!(
            "read_parquet('{}/kind={kind}/**/*.parquet', hive_partitioning = true, union_by_name = true)",
            data.display()
        )
    }

    /// Whether files of a kind were published.
    pub fn has(&self, kind: &str) -> bool {
        self.data().join(format!("kind={kind}")).exists()
    }
}

/// How to start a generator of known events.
#[derive(Clone, Debug)]
pub struct Generator {
    /// `CARGO_BIN_EXE_weir-gen`.
    pub program: PathBuf,
    /// Where spool and log go; made if missing.
    pub home: PathBuf,
    /// Where the aggregator listens.
    pub aggregator: SocketAddr,
    /// Where `/metrics` is, if wanted.
    pub admin: Option<SocketAddr>,
    /// Tells generators apart: seed and name of the node.
    pub index: u64,
    /// How many events it makes.
    pub events: u64,
    /// Events in one interval.
    pub interval_events: u64,
    /// Events a second; 0 is as fast as it goes.
    pub rate: u64,
    /// Whether it stays when all is acknowledged.
    pub stay: bool,
    /// More settings.
    pub set: Vec<String>,
    /// Whether events look like a node's, instead of carrying their number.
    pub realistic: bool,
}

impl Generator {
    /// Starts it, or starts it again where it was; `crash` arms a crash point.
    pub fn start(&self, crash: Option<&str>) -> Process {
        std::fs::create_dir_all(&self.home).unwrap();
        let mut command = Command::new(&self.program);
        command.arg("--spool").arg(self.spool()).arg("--aggregator").arg(self.aggregator.to_string());
        command.arg("--node").arg(format!("node-{}", self.index));
        for (flag, value) in [
            ("--seed", self.index + 1),
            ("--events", self.events),
            ("--interval-events", self.interval_events),
            ("--rate", self.rate),
        ] {
            command.arg(flag).arg(value.to_string());
        }
        command.args(["--set", "client.backoff_max=500ms"]);
        for setting in &self.set {
            command.args(["--set", setting]);
        }
        if let Some(admin) = self.admin {
            command.arg("--admin").arg(admin.to_string());
        }
        if self.realistic {
            command.arg("--realistic");
        }
        if self.stay {
            command.arg("--no-exit");
        }
        arm(&mut command, crash);
        Process::spawn(&mut command, &self.home.join("generator.log"))
    }

    /// How many intervals are in its spool, or were dropped: the second number of the generator's state file.
    pub fn intervals_released(&self) -> u64 {
        let state = std::fs::read(self.spool().with_extension("generator")).unwrap_or_default();
        state.get(8..16).map_or(0, |bytes| u64::from_le_bytes(bytes.try_into().unwrap()))
    }

    /// The folder of its spool.
    pub fn spool(&self) -> PathBuf {
        self.home.join("spool")
    }
}

/// How to start a shipper that captures a part of this host; its pins go when this is dropped.
#[derive(Debug)]
pub struct Shipper {
    /// `CARGO_BIN_EXE_sut_shipper`.
    pub program: PathBuf,
    /// Where spool and log go; made if missing.
    pub home: PathBuf,
    /// Name of its node.
    pub node: String,
    /// Where the aggregator listens.
    pub aggregator: SocketAddr,
    /// The part of the cgroup tree that it captures.
    pub cgroup: PathBuf,
    /// Where it pins; see [`Shipper::pins`].
    pub pins: PathBuf,
    /// More settings.
    pub set: Vec<String>,
}

impl Shipper {
    /// A directory for pins that no other test has.
    pub fn pins() -> PathBuf {
        format!("/sys/fs/bpf/weir-test-{}", unique()).into()
    }

    /// Its command line, with its settings.
    pub fn command(&self) -> Command {
        std::fs::create_dir_all(&self.home).unwrap();
        let mut command = Command::new(&self.program);
        for setting in [
            format!("node={}", self.node),
            format!("aggregator.addresses=[\"{}\"]", self.aggregator),
            format!("spool.dir={}", self.home.join("spool").display()),
            format!("capture.cgroup_root={}", self.cgroup.display()),
            format!("capture.pin_dir={}", self.pins.display()),
            "capture.interval=300ms".to_owned(),
            "client.backoff_max=500ms".to_owned(),
            "admin.listen=".to_owned(),
        ] {
            command.args(["--set", &setting]);
        }
        for setting in &self.set {
            command.args(["--set", setting]);
        }
        command
    }

    /// Starts it, and returns when it counts; `crash` arms a crash point.
    pub fn start(&self, crash: Option<&str>) -> Process {
        let ready = self.home.join("ready.json");
        let _before = std::fs::remove_file(&ready);
        let mut command = self.command();
        command.arg("--ready-file").arg(&ready);
        arm(&mut command, crash);
        let mut process = Process::spawn(&mut command, &self.home.join("shipper.log"));
        ready_file(&ready, &mut process);
        process
    }
}

impl Drop for Shipper {
    fn drop(&mut self) {
        let config = CaptureConfig { pin_directory: self.pins.clone(), ..CaptureConfig::default() };
        if let Err(error) = check::unload(&config) {
            eprintln!("unload {}: {error}", self.pins.display());
        }
    }
}

fn arm(command: &mut Command, crash: Option<&str>) {
    command.env("WEIR_LOG", "warn");
    match crash {
        Some(crash) => command.env("WEIR_CRASH_AT", crash),
        None => command.env_remove("WEIR_CRASH_AT"),
    };
}

/// Peak resident memory of a process so far, bytes (`VmHWM` of proc(5)).
pub fn peak_memory(pid: u32) -> u64 {
    let status = std::fs::read_to_string(Path::new("/proc").join(pid.to_string()).join("status")).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmHWM:")).unwrap();
    let kibibytes: u64 = line.split_whitespace().nth(1).unwrap().parse().unwrap();
    kibibytes << 10
}
