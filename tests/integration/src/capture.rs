//! Drains a capture in a test, and sums what it gave.

use std::time::Duration;

use weir_schema::values::{Orientation, Reporter, Vantage};
use weir_shipper::{
    check,
    flow::{FlowRecord, LossRecord},
    probe::{Capture, CaptureConfig, InterfaceConfig, LinkPattern, ProgramStatus},
};

use crate::net::{Bytes, Cgroup, Namespace, unique};

/// A capture of one part of the cgroup tree, with pins of its own; everything goes when it is dropped.
#[derive(Debug)]
pub struct TestCapture {
    config: CaptureConfig,
    capture: Option<Capture>,
    /// Every record drained so far.
    pub records: Vec<FlowRecord>,
    /// Every loss drained so far.
    pub losses: Vec<LossRecord>,
    /// Sum of the independent totals of the socket vantage so far.
    pub total: Bytes,
}

impl TestCapture {
    /// Captures the sockets below `cgroup`.
    pub fn new(cgroup: &Cgroup) -> Self {
        Self::with(cgroup, |_| {})
    }

    /// As [`TestCapture::new`], with other sizes.
    pub fn with(cgroup: &Cgroup, change: impl FnOnce(&mut CaptureConfig)) -> Self {
        let capture = Self::degraded(cgroup, change);
        for program in capture.programs() {
            assert_eq!(program.problem, None, "program {}", program.name);
        }
        capture
    }

    /// As [`TestCapture::with`], on a kernel that may lack something.
    pub fn degraded(cgroup: &Cgroup, change: impl FnOnce(&mut CaptureConfig)) -> Self {
        let mut config = CaptureConfig {
            cgroup: Some(cgroup.path().to_owned()),
            pin_directory: format!("/sys/fs/bpf/weir-test-{}", unique()).into(),
            ..CaptureConfig::default()
        };
        change(&mut config);
        let capture = Capture::open(&config).expect("open capture");
        Self {
            config,
            capture: Some(capture),
            records: Vec::new(),
            losses: Vec::new(),
            total: Bytes::default(),
        }
    }

    /// What became of each kernel program.
    pub fn programs(&self) -> &[ProgramStatus] {
        self.capture.as_ref().expect("the capture is open").programs()
    }

    /// Captures the sockets below `cgroup`, and the links of a namespace whose names begin as tests' devices do.
    pub fn of_links(cgroup: &Cgroup, namespaces: &[&Namespace]) -> Self {
        Self::with(cgroup, |config| {
            config.interfaces = Some(InterfaceConfig {
                links: vec![LinkPattern::Name("w*".to_owned())],
                namespaces: namespaces.iter().map(|namespace| namespace.path()).collect(),
                flow_entries: 16_384,
                meta_entries: 16_384,
                ..InterfaceConfig::default()
            });
        })
    }

    /// The records of one interface of a namespace; of all protocols, without the overflow.
    pub fn link(&self, namespace: &Namespace, device: &str) -> impl Iterator<Item = &FlowRecord> {
        let name = format!("{}/{device}", namespace.name());
        self.records.iter().filter(move |record| {
            record.orientation != Orientation::Overflow
                && record.link.as_ref().is_some_and(|link| *link.interface == *name)
        })
    }

    /// How this capture was opened.
    pub fn config(&self) -> &CaptureConfig {
        &self.config
    }

    /// Lets go of the kernel side, which goes on counting.
    pub fn close(&mut self) {
        self.capture = None;
    }

    /// Takes the kernel side over again: every program is replaced while it runs.
    pub fn reopen(&mut self) {
        self.capture = None;
        self.capture = Some(Capture::open(&self.config).expect("reopen capture"));
    }

    /// As [`TestCapture::reopen`], with another configuration.
    pub fn reopen_with(&mut self, change: impl FnOnce(&mut CaptureConfig)) {
        change(&mut self.config);
        self.reopen();
    }

    /// Ends the counting.
    pub fn detach(&mut self) {
        self.capture.as_mut().expect("the capture is open").detach().expect("detach");
    }

    /// Drains one interval.
    pub fn drain(&mut self) {
        let capture = self.capture.as_mut().expect("the capture is open");
        let interval = capture.frozen().expect("read interval").expect("intervals begin at 1");
        let drained = capture.read(interval).expect("read interval");
        for vantage in Vantage::ALL {
            let sum = drained.totals.sum(*vantage);
            let of_records = sum_of(drained.records.iter().filter(|record| record.vantage == *vantage));
            assert_eq!(
                (of_records.packets, of_records.bytes),
                (sum.packets, sum.bytes),
                "{vantage}: records equal the independent totals in every interval"
            );
            if *vantage == Vantage::Socket {
                self.total.packets += sum.packets;
                self.total.bytes += sum.bytes;
            }
        }
        self.records.extend(drained.records);
        self.losses.extend(drained.losses);
        capture.release(interval).expect("release interval");
    }

    /// Drains everything that was counted until now: what is being written, and what is frozen.
    pub fn finish(&mut self) {
        self.drain();
        self.drain();
    }

    /// The records of one side.
    pub fn side(&self, reporter: Reporter) -> impl Iterator<Item = &FlowRecord> {
        self.records
            .iter()
            .filter(move |record| record.reporter == reporter && record.orientation != Orientation::Overflow)
    }

    /// What the programs could not do.
    pub fn counter(&self, name: &str) -> u64 {
        let counters = self.capture.as_ref().expect("the capture is open").counters().expect("read counters");
        counters
            .iter()
            .find(|(counter, _)| *counter == name)
            .map_or_else(|| panic!("no counter {name}"), |(_, n)| *n)
    }
}

impl Drop for TestCapture {
    fn drop(&mut self) {
        self.capture = None;
        if let Err(error) = check::unload(&self.config) {
            eprintln!("unload {}: {error}", self.config.pin_directory.display());
        }
    }
}

/// Packets and bytes of records, both directions.
pub fn sum_of<'a>(records: impl Iterator<Item = &'a FlowRecord>) -> Bytes {
    records.fold(Bytes::default(), |sum, record| Bytes {
        packets: sum.packets + record.src_packets + record.dst_packets,
        bytes: sum.bytes + record.src_bytes + record.dst_bytes,
    })
}

/// What `src` sent and what `dst` sent, over records of one protocol.
pub fn sent_of<'a>(protocol: u8, records: impl Iterator<Item = &'a FlowRecord>) -> (Bytes, Bytes) {
    let mut sums = (Bytes::default(), Bytes::default());
    for record in records.filter(|record| record.protocol == protocol) {
        sums.0.packets += record.src_packets;
        sums.0.bytes += record.src_bytes;
        sums.1.packets += record.dst_packets;
        sums.1.bytes += record.dst_bytes;
    }
    sums
}

/// Connections opened, over records.
pub fn opened_of<'a>(records: impl Iterator<Item = &'a FlowRecord>) -> u64 {
    records.map(|record| u64::from(record.opened)).sum()
}

/// Longest that any traffic of a test may take.
pub const TRAFFIC_MAX: Duration = Duration::from_secs(600);
