//! A process that drains a capture into a log, to be killed: `src/bin/drain.rs` as its tests see it.

use std::{
    fs,
    path::PathBuf,
    process::{Child, Command, Stdio},
};

use weir_shipper::{check, probe::CaptureConfig};

use crate::net::{Bytes, Cgroup, unique};

/// The log of a draining process, and its pins; removed when dropped.
#[derive(Debug)]
pub struct Drainer {
    program: &'static str,
    cgroup: PathBuf,
    link: Option<String>,
    pins: PathBuf,
    log: tempfile::TempPath,
}

impl Drainer {
    /// `program` is `CARGO_BIN_EXE_drain`. With a link, `<namespace's path>,<device>`, that link is captured too, and
    /// the sums are of its records; else those of the sources' reports.
    pub fn new(program: &'static str, pods: &Cgroup, link: Option<String>) -> Self {
        let log = tempfile::NamedTempFile::new().expect("make a log").into_temp_path();
        let pins = PathBuf::from(format!("/sys/fs/bpf/weir-test-{}", unique()));
        Self { program, cgroup: pods.path().to_owned(), link, pins, log }
    }

    /// Starts a process that drains.
    pub fn start(&self, rest: &[&str]) -> Child {
        Command::new(self.program)
            .env("DRAIN_LINK", self.link.as_deref().unwrap_or_default())
            .args([&self.cgroup, &self.pins])
            .arg(&self.log)
            .args(rest)
            .stdout(Stdio::null())
            .spawn()
            .expect("start drain")
    }

    /// Intervals in the log.
    pub fn lines(&self) -> usize {
        fs::read_to_string(&self.log).unwrap_or_default().lines().count()
    }

    /// Sums the log: connections opened, what `src` sent and what `dst` sent. Every interval may stand in it once.
    pub fn sum(&self) -> (u64, Bytes, Bytes) {
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
