//! Made-up events with known ids, for tests and measurements: in place of the kernel, through the same spool and client.
//!
//! Interval n always gives the same records, whatever was killed in between. Each record carries its running number in
//! the low half of `flow_id` (the high half is the seed) and in `src_bytes`; with [`Shape::Realistic`] it looks like a
//! node's instead. Where the kernel has a pinned interval, the
//! generator has a small file, written when an interval is released.

use std::fs::{File, OpenOptions};
use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use weir_common::id::flow_id;
use weir_schema::values::{EndReason, Orientation, Reporter, TcpState, TimeQuality, Vantage};

use crate::flow::{FlowRecord, LocalIdentity};
use crate::spool::Id;

/// Pairs of pods that talk; which pair an event is of follows a power law.
const PAIRS: u64 = 1024;
/// The same of the realistic shape.
const REALISTIC_PAIRS: u64 = 2_000;

/// How events look.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Shape {
    /// `src_bytes` is the running number: for tests that ask which events arrived.
    #[default]
    Numbered,
    /// Sizes, times and ids as distributed as those of a node: for measurements.
    Realistic,
}

/// What is made.
#[derive(Clone, Debug)]
pub struct GeneratorOptions {
    /// Distinguishes generators: it is the high half of every `flow_id`.
    pub seed: u64,
    /// Ids run from 0 to this, exclusive.
    pub events: u64,
    /// Events in one interval.
    pub interval_events: u64,
    /// Events a second; 0 is as fast as the spool takes them.
    pub rate: u64,
    /// Where to note how far it is.
    pub state: PathBuf,
    /// Time of the first event, Unix nanoseconds; kept from the first run on.
    pub start_ns: i64,
    /// Between two events, nanoseconds of event time.
    pub step_ns: i64,
    /// Go on without events when all are made, until told to end.
    pub stay: bool,
    /// How events look.
    pub shape: Shape,
}

/// What a generator is to do next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Due {
    /// Make the next interval at this time.
    At(Instant),
    /// Wait to be told to end.
    Stay,
    /// End.
    Done,
}

/// The generator's file could not be used.
#[derive(Debug, thiserror::Error)]
#[error("{action} {path}")]
pub struct GeneratorError {
    /// What was tried.
    pub action: &'static str,
    /// On which file.
    pub path: PathBuf,
    /// The system's words.
    pub source: io::Error,
}

/// A source of known events.
#[derive(Debug)]
pub struct Generator {
    options: GeneratorOptions,
    state: File,
    /// The frozen interval.
    interval: u64,
    began: Instant,
    first_interval: u64,
    pods: Vec<Arc<LocalIdentity>>,
}

impl Generator {
    /// Begins, or goes on where it was.
    pub fn open(mut options: GeneratorOptions) -> Result<Self, GeneratorError> {
        options.interval_events = options.interval_events.max(1);
        let path = options.state.clone();
        let fail = |action| {
            let path = path.clone();
            move |source| GeneratorError { action, path, source }
        };
        if let Some(parent) = path.parent() {
            std::fs::create_dir_all(parent).map_err(fail("create the folder of"))?;
        }
        let state = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path);
        let state = state.map_err(fail("open"))?;
        let mut saved = [0; 16];
        let mut interval = 0;
        match state.read_exact_at(&mut saved, 0) {
            Ok(()) => {
                let (start, next) = saved.split_at(8);
                options.start_ns = i64::from_le_bytes(start.try_into().unwrap_or_default());
                interval = u64::from_le_bytes(next.try_into().unwrap_or_default());
            }
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {}
            Err(error) => return Err(fail("read")(error)),
        }
        let pods = (0..PAIRS).map(pod).collect();
        let generator =
            Self { options, state, interval, began: Instant::now(), first_interval: interval, pods };
        generator.save()?;
        Ok(generator)
    }

    /// Begins with the seed, as a capture's begins with the boot.
    pub(super) fn source_id(&self) -> Id {
        let mut id = [0x47; 16];
        id[..8].copy_from_slice(&self.options.seed.to_be_bytes());
        id
    }

    /// When the next interval is to be drained.
    pub(super) fn due(&self) -> Due {
        let done = self.interval.saturating_mul(self.options.interval_events);
        if done >= self.options.events {
            return if self.options.stay { Due::Stay } else { Due::Done };
        }
        let intervals = self.interval + 1 - self.first_interval;
        let events = intervals.saturating_mul(self.options.interval_events);
        let nanos = events.saturating_mul(1_000_000_000).checked_div(self.options.rate).unwrap_or(0);
        Due::At(self.began + Duration::from_nanos(nanos))
    }

    pub(super) fn frozen(&self) -> Option<u64> {
        matches!(self.due(), Due::At(_)).then_some(self.interval)
    }

    /// The records of an interval.
    pub fn read(&self, interval: u64) -> Vec<FlowRecord> {
        let first = interval.saturating_mul(self.options.interval_events);
        let end = first.saturating_add(self.options.interval_events).min(self.options.events);
        let event = match self.options.shape {
            Shape::Numbered => Self::numbered,
            Shape::Realistic => Self::realistic,
        };
        (first..end).map(|id| event(self, interval, id)).collect()
    }

    pub(super) fn release(&mut self, interval: u64) -> Result<(), GeneratorError> {
        self.interval = interval + 1;
        self.save()
    }

    fn save(&self) -> Result<(), GeneratorError> {
        let mut saved = [0; 16];
        saved[..8].copy_from_slice(&self.options.start_ns.to_le_bytes());
        saved[8..].copy_from_slice(&self.interval.to_le_bytes());
        // Not synced: like the kernel's memory it outlives the process, not the node.
        let path = self.options.state.clone();
        self.state.write_all_at(&saved, 0).map_err(|source| GeneratorError { action: "write", path, source })
    }

    fn numbered(&self, interval: u64, id: u64) -> FlowRecord {
        let random = mix(self.options.seed ^ mix(id));
        // Evenly distributed in the logarithm: pair k has about 1 / k of the events.
        let unit = (random >> 11) as f64 / (1u64 << 53) as f64;
        let pair = ((PAIRS as f64).powf(unit) as u64 - 1).min(PAIRS - 1);
        let end_ns = self.options.start_ns.saturating_add(self.options.step_ns.saturating_mul(id as i64));
        let ended = random.is_multiple_of(4);
        let packets = 1 + random % 64;
        FlowRecord {
            flow_id: ((u128::from(self.options.seed) << 64) | u128::from(id)).to_be_bytes(),
            record_seq: interval,
            opened: 1,
            reporter: Reporter::Source,
            vantage: Vantage::Socket,
            orientation: Orientation::Observed,
            time_quality: TimeQuality::Ok,
            start_ns: end_ns.saturating_sub((random % 10_000_000_000) as i64),
            end_ns,
            src_ip: ip(10, pair),
            src_port: 32_768 + (random >> 16 & 0x3fff) as u16,
            dst_ip: ip(11, pair / 4),
            dst_port: [80, 443, 5432, 6379][(pair % 4) as usize],
            protocol: 6,
            src_bytes: id,
            dst_bytes: packets * 700,
            src_packets: packets,
            dst_packets: packets,
            tcp_flags_src: 0x1a,
            tcp_flags_dst: 0x1a,
            tcp_state: Some(if ended { TcpState::Closed } else { TcpState::Established }),
            end_reason: ended.then_some(EndReason::Closed),
            connect_error: None,
            handshake_us: Some(50 + (random % 1000) as u32),
            rtt_us: Some(80 + (random % 500) as u32),
            rtt_min_us: Some(60),
            rtt_max_us: None,
            src_retransmits: Some(0),
            dst_retransmits: None,
            nat: None,
            link: None,
            local: self.pods.get(pair as usize).cloned(),
        }
    }

    /// A connection of one interval: a pair by Zipf's law, an ephemeral port, three in four seen from their start to
    /// their end, cookies in the order of opening.
    fn realistic(&self, interval: u64, id: u64) -> FlowRecord {
        let mut draw = Draws(self.options.seed ^ mix(id));
        let pair = (draw.log(1.0, (REALISTIC_PAIRS + 1) as f64) - 1).min(REALISTIC_PAIRS - 1);
        let first_ns = self.options.start_ns.saturating_add(
            self.options.step_ns.saturating_mul(interval.saturating_mul(self.options.interval_events) as i64),
        );
        let window = self.options.step_ns.saturating_mul(self.options.interval_events as i64).max(1);
        let end_ns = first_ns.saturating_add((draw.unit() * window as f64) as i64);
        let whole = draw.chance(75);
        let duration = draw.log(200_000.0, 10_000_000_000.0) as i64;
        let src_packets = draw.log(4.0, 3_000.0);
        let dst_packets = (src_packets as f64 * (0.6 + 0.8 * draw.unit())) as u64 + 1;
        let bytes = |packets: u64, draw: &mut Draws| packets * 52 + draw.log(80.0, 1_400.0) * packets;
        let rtt = draw.log(30.0, 3_000.0) as u32;
        let lossy = draw.chance(2);
        // A pod talks to some others, and a service's pods are talked to by many.
        let (client, server) = (mix(pair) % 400, pair % 150);
        FlowRecord {
            flow_id: flow_id(mix(self.options.seed), id, draw.next() & 0xffff),
            record_seq: interval,
            opened: u32::from(whole),
            reporter: Reporter::Source,
            vantage: Vantage::Socket,
            orientation: Orientation::Observed,
            time_quality: TimeQuality::Ok,
            start_ns: end_ns.saturating_sub(duration),
            end_ns,
            src_ip: ip(10, client),
            src_port: 32_768 + (draw.next() % 28_232) as u16,
            dst_ip: ip(11, server),
            dst_port: [80, 443, 5432, 6379, 8080, 9092][(server % 6) as usize],
            protocol: 6,
            src_bytes: bytes(src_packets, &mut draw),
            dst_bytes: bytes(dst_packets, &mut draw),
            src_packets,
            dst_packets,
            tcp_flags_src: if whole { 0x1b } else { 0x18 },
            tcp_flags_dst: if whole { 0x1b } else { 0x18 },
            tcp_state: Some(if whole { TcpState::Closed } else { TcpState::Established }),
            end_reason: whole.then_some(EndReason::Closed),
            connect_error: None,
            handshake_us: whole.then_some(rtt + (draw.next() % 40) as u32),
            rtt_us: Some(rtt),
            rtt_min_us: Some(rtt - rtt / 4),
            rtt_max_us: None,
            src_retransmits: Some(u32::from(lossy)),
            dst_retransmits: None,
            nat: None,
            link: None,
            local: self.pods.get(client as usize).cloned(),
        }
    }
}

/// Draws from a hash of seed and number, one after the other.
struct Draws(u64);

impl Draws {
    fn next(&mut self) -> u64 {
        self.0 = mix(self.0);
        self.0
    }

    /// From 0 to 1, exclusive.
    fn unit(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1u64 << 53) as f64
    }

    /// Evenly distributed in the logarithm, from `low` to `high`.
    fn log(&mut self, low: f64, high: f64) -> u64 {
        (low * (high / low).powf(self.unit())) as u64
    }

    fn chance(&mut self, percent: u64) -> bool {
        self.next() % 100 < percent
    }
}

fn pod(pair: u64) -> Arc<LocalIdentity> {
    let high = mix(pair);
    let uid = format!("{:08x}-{:04x}-4000-8000-{:012x}", high >> 32, high & 0xffff, mix(high) >> 16);
    let container = format!("{:016x}{:016x}{high:016x}{pair:016x}", mix(high), mix(!high));
    Arc::new(LocalIdentity {
        process: format!("app-{}", pair % 40).into(),
        pid: 1000 + pair as u32,
        cgroup_id: 5000 + pair,
        cgroup: format!("/kubepods.slice/kubepods-pod{uid}.slice/cri-containerd-{container}.scope").into(),
        container_id: container.into(),
        pod_uid: uid.into(),
    })
}

fn ip(net: u8, host: u64) -> IpAddr {
    IpAddr::V4(Ipv4Addr::from_bits(u32::from(net) << 24 | (host as u32 & 0x00ff_ffff)))
}

/// The finaliser of splitmix64 (Steele, Lea, Flood: Fast splittable pseudorandom number generators, 2014).
fn mix(value: u64) -> u64 {
    let value = value.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn intervals_are_the_same_after_a_restart_and_ids_run_through() {
        let dir = tempfile::tempdir().unwrap();
        let options = GeneratorOptions {
            seed: 7,
            events: 25,
            interval_events: 10,
            rate: 0,
            state: dir.path().join("generator"),
            start_ns: 1_700_000_000_000_000_000,
            step_ns: 1000,
            stay: false,
            shape: Shape::Numbered,
        };
        let mut generator = Generator::open(options.clone()).unwrap();
        let first = generator.read(0);
        generator.release(0).unwrap();
        let second = generator.read(1);
        drop(generator);
        let mut again = Generator::open(GeneratorOptions { start_ns: 5, ..options }).unwrap();
        assert_eq!(again.frozen(), Some(1));
        assert_eq!((again.read(0), again.read(1)), (first, second));
        let ids: Vec<u64> = (0..3).flat_map(|n| again.read(n)).map(|flow| flow.src_bytes).collect();
        assert_eq!(ids, (0..25).collect::<Vec<_>>());
        again.release(1).unwrap();
        again.release(2).unwrap();
        assert_eq!((again.frozen(), again.due()), (None, Due::Done));
    }
}
