//! Where records come from, and the loop that brings them into the spool.
//!
//! Owns the order that makes a death at any point harmless: the frozen interval is read, stored and synced, and only
//! then released. Runs on a thread of its own; the app starts and stops it. A full disk holds the loop up, not the
//! kernel: it goes on counting into the other map, then into the overflow record.

mod generator;

use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use weir_common::admin::Health;
use weir_common::clock::now_ns;
use weir_common::crash;
use weir_schema::values::{LossReason, LossStage, Vantage};

use generator::Due;
pub use generator::{Generator, GeneratorError, GeneratorOptions, Shape};

use crate::batch::{self, BatchError, EncodedBatch};
use crate::flow::{FlowRecord, LossRecord};
use crate::metrics::Metrics;
use crate::probe::{Capture, CaptureError};
use crate::replay::{FileError, Replay};
use crate::spool::{Appended, CaptureKey, Id, Spool, SpoolError};

/// Crash points on the way of a capture out of the kernel, in their order.
pub const CRASH_POINTS: &[&str] = &["capture.detached", "capture.drained", "capture.unloaded"];

/// How long to wait for room on a full disk, at first and at most.
const FULL_DISK_WAIT: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(5));
/// How often a replay looks whether its spool has room again.
const ROOM_WAIT: Duration = Duration::from_millis(20);
/// How often a generator that has made everything looks after its spool.
const STAY: Duration = Duration::from_millis(100);
/// A step of the wall clock against the monotonic one that is worth a line.
const CLOCK_STEP: Duration = Duration::from_millis(500);
/// The subject of readiness that the loop speaks for.
const SUBJECT: &str = "spool";

/// What is drained.
#[derive(Debug)]
pub enum Source {
    /// The kernel's maps.
    Capture(Box<Capture>),
    /// Made-up events with known ids.
    Generator(Generator),
    /// Capture files.
    Replay(Box<Replay>),
}

/// What one interval held.
#[derive(Debug, Default)]
struct Read {
    flows: Vec<FlowRecord>,
    losses: Vec<LossRecord>,
    /// Packets and bytes by vantage.
    counts: Vec<(Vantage, u64, u64)>,
}

/// Why the loop ended. What was not stored is still with the source.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// The kernel's side.
    #[error("drain the capture")]
    Capture(#[from] CaptureError),
    /// The generator's side.
    #[error("generate events")]
    Generator(#[from] GeneratorError),
    /// A capture file, other than for what is in it.
    #[error("read the capture files")]
    Replay(#[from] FileError),
    /// One record of the spool is more than its budget.
    #[error(
        "the spool's budget is too small for a replay: {needed} bytes at once and room for what is being sent, of spool.bytes_max = {budget}"
    )]
    SpoolTooSmall {
        /// Bytes of the record.
        needed: u64,
        /// Bytes of the budget.
        budget: u64,
    },
    /// The encoder.
    #[error("encode an interval")]
    Batch(#[from] BatchError),
    /// The spool, other than for want of room.
    #[error("store an interval")]
    Spool(#[from] SpoolError),
}

impl Source {
    fn id(&self) -> Id {
        match self {
            Self::Capture(capture) => capture.source_id(),
            Self::Generator(generator) => generator.source_id(),
            Self::Replay(replay) => replay.source_id(),
        }
    }

    fn frozen(&self) -> Result<Option<u64>, SourceError> {
        match self {
            Self::Capture(capture) => Ok(capture.frozen()?),
            Self::Generator(generator) => Ok(generator.frozen()),
            Self::Replay(replay) => Ok(replay.frozen()),
        }
    }

    fn read(&mut self, interval: u64) -> Result<Read, SourceError> {
        match self {
            Self::Capture(capture) => {
                let drained = capture.read(interval)?;
                let sums = Vantage::ALL.iter().map(|vantage| (*vantage, drained.totals.sum(*vantage)));
                let counts = sums.map(|(vantage, sum)| (vantage, sum.packets, sum.bytes)).collect();
                Ok(Read { flows: drained.records, losses: drained.losses, counts })
            }
            Self::Generator(generator) => {
                let flows = generator.read(interval);
                let packets = flows.iter().map(|flow| flow.src_packets + flow.dst_packets).sum();
                let bytes = flows.iter().map(|flow| flow.src_bytes.saturating_add(flow.dst_bytes)).sum();
                Ok(Read { flows, losses: Vec::new(), counts: vec![(Vantage::Socket, packets, bytes)] })
            }
            Self::Replay(replay) => {
                let flows = replay.read()?;
                let packets = flows.iter().map(|flow| flow.src_packets + flow.dst_packets).sum();
                let bytes = flows.iter().map(|flow| flow.src_bytes.saturating_add(flow.dst_bytes)).sum();
                Ok(Read { flows, losses: Vec::new(), counts: vec![(Vantage::Interface, packets, bytes)] })
            }
        }
    }

    fn release(&mut self, interval: u64) -> Result<(), SourceError> {
        match self {
            Self::Capture(capture) => Ok(capture.release(interval)?),
            Self::Generator(generator) => Ok(generator.release(interval)?),
            Self::Replay(replay) => Ok(replay.release(interval)?),
        }
    }

    /// Stops the counting, for good. What was counted is still there.
    fn detach(&mut self) -> Result<(), SourceError> {
        match self {
            Self::Capture(capture) => Ok(capture.detach()?),
            Self::Generator(_) | Self::Replay(_) => Ok(()),
        }
    }

    /// Removes what is in the kernel. Returns how many pins went.
    fn unload(self) -> Result<usize, SourceError> {
        match self {
            Self::Capture(capture) => Ok(capture.unload()?),
            Self::Generator(_) | Self::Replay(_) => Ok(0),
        }
    }

    /// How many intervals are drained once more when the loop is stopped: of a capture what is frozen, and what was
    /// being written.
    fn last_drains(&self) -> u32 {
        match self {
            Self::Capture(_) => 2,
            Self::Generator(_) | Self::Replay(_) => 0,
        }
    }
}

/// The loop.
#[derive(Debug)]
pub struct Drain {
    /// What is drained.
    pub source: Source,
    /// Where to.
    pub spool: Spool,
    /// Between two drains of a capture.
    pub interval: Duration,
    /// Where a batch is closed, in bytes before compression.
    pub body_bytes: usize,
    /// Whether the source goes with the loop, instead of counting on while no shipper runs.
    pub unload: bool,
    /// What is counted.
    pub metrics: Metrics,
    /// Who is told of a full disk.
    pub health: Health,
}

/// How the loop ended.
#[derive(Debug)]
pub struct Ended {
    /// What it wrote to.
    pub spool: Spool,
    /// How many pins went, when the source was to be unloaded and nothing is left in it.
    pub unloaded: Option<usize>,
    /// The source, where it has an end of its own.
    pub replay: Option<Box<Replay>>,
}

/// Whether the loop was told to stop while it waited.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wait {
    Over,
    Stopped,
}

impl Drain {
    /// Runs until `stop`'s sender is dropped, or the source has an end and it is reached.
    pub fn run(mut self, stop: &Receiver<()>) -> Result<Ended, SourceError> {
        let mut due = Instant::now();
        let mut clock = ClockWatch::new();
        loop {
            let now = Instant::now();
            due = match &self.source {
                // A late drain is not made up for: the interval was longer.
                Source::Capture(_) => (due + self.interval).max(now),
                Source::Generator(generator) => match generator.due() {
                    Due::At(due) => due,
                    Due::Stay => now + STAY,
                    Due::Done => return Ok(self.ended()),
                },
                Source::Replay(replay) if replay.is_done() => return Ok(self.ended()),
                Source::Replay(_) => now,
            };
            if wait(stop, due.saturating_duration_since(now)) == Wait::Stopped {
                break;
            }
            if clock.stepped() {
                self.metrics.clock_steps.inc();
            }
            if self.drain(stop)? == Wait::Stopped {
                return Ok(self.ended());
            }
        }
        self.end(stop)
    }

    /// Drains what was counted until now, and unloads the source if it is to go: first no program counts any more, then
    /// everything is drained, then the maps go, and last the spool notes that nothing is missing. A death before that
    /// last step makes a loss row where nothing was lost, never the other way round. After `stop` a full disk ends this
    /// at once: what was not stored stays in the kernel.
    pub fn end(mut self, stop: &Receiver<()>) -> Result<Ended, SourceError> {
        if self.unload {
            self.source.detach()?;
            crash::point("capture.detached");
        }
        for _ in 0..self.source.last_drains() {
            if self.drain(stop)? == Wait::Stopped {
                return Ok(self.ended());
            }
        }
        while matches!(&self.source, Source::Replay(replay) if replay.must_end()) {
            if self.drain(stop)? == Wait::Stopped {
                break;
            }
        }
        if !self.unload {
            return Ok(self.ended());
        }
        let Self { source, mut spool, .. } = self;
        let id = source.id();
        crash::point("capture.drained");
        let unloaded = Some(source.unload()?);
        crash::point("capture.unloaded");
        match spool.end_source(id) {
            Err(error) if error.is_full() => {
                tracing::warn!(%error, source = %root(&error), "everything was drained, but that could not be noted: the next start records a loss");
            }
            noted => noted?,
        }
        tracing::info!(pins = unloaded, "the capture was taken out of the kernel");
        Ok(Ended { spool, unloaded, replay: None })
    }

    fn ended(self) -> Ended {
        let replay = match self.source {
            Source::Replay(replay) => Some(replay),
            Source::Capture(_) | Source::Generator(_) => None,
        };
        Ended { spool: self.spool, unloaded: None, replay }
    }

    /// Stores the frozen interval if it is not stored yet, then releases it.
    fn drain(&mut self, stop: &Receiver<()>) -> Result<Wait, SourceError> {
        let Some(interval) = self.source.frozen()? else {
            self.spool.free()?;
            return Ok(Wait::Over);
        };
        let key = CaptureKey { source: self.source.id(), interval };
        if !self.spool.holds(key) && self.store(key, stop)? == Wait::Stopped {
            return Ok(Wait::Stopped);
        }
        self.source.release(interval)?;
        crash::point("spool.released");
        self.spool.free()?;
        Ok(Wait::Over)
    }

    fn store(&mut self, key: CaptureKey, stop: &Receiver<()>) -> Result<Wait, SourceError> {
        let mut read = self.source.read(key.interval)?;
        read.losses.extend(self.gap(key));
        let batches = batch::encode(&read.flows, &read.losses, self.body_bytes)?;
        if self.append(key, &batches, stop)? == Wait::Stopped {
            return Ok(Wait::Stopped);
        }
        if let Source::Capture(capture) = &self.source {
            self.metrics.kernel(&capture.counters()?);
        }
        self.metrics.intervals.inc();
        self.metrics.captured_events.inc_by(batches.iter().map(|batch| u64::from(batch.events)).sum());
        for (vantage, packets, bytes) in read.counts {
            self.metrics.captured(vantage, packets, bytes);
        }
        Ok(Wait::Over)
    }

    /// Appends, however long the disk is full. When stopped meanwhile the interval stays with the source.
    fn append(
        &mut self,
        key: CaptureKey,
        batches: &[EncodedBatch],
        stop: &Receiver<()>,
    ) -> Result<Wait, SourceError> {
        if matches!(self.source, Source::Replay(_)) && self.wait_for_room(batches, stop)? == Wait::Stopped {
            return Ok(Wait::Stopped);
        }
        let (mut delay, longest) = FULL_DISK_WAIT;
        let mut full = false;
        loop {
            match self.spool.append(key, batches) {
                Ok(Appended::Stored | Appended::Dropped) => {
                    if full {
                        tracing::info!("the spool has room again");
                        self.health.ready(SUBJECT);
                    }
                    return Ok(Wait::Over);
                }
                Err(error) if error.is_full() => {
                    full = true;
                    tracing::error!(%error, source = %root(&error), "disk full: the interval waits in the kernel");
                    self.health.unready(SUBJECT, format!("disk full: {error}"));
                    self.metrics.disk_full.inc();
                    if wait(stop, delay) == Wait::Stopped {
                        return Ok(Wait::Stopped);
                    }
                    delay = (delay * 2).min(longest);
                }
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// A file waits where the kernel can't: nothing is dropped for want of room in the spool.
    fn wait_for_room(&mut self, batches: &[EncodedBatch], stop: &Receiver<()>) -> Result<Wait, SourceError> {
        let needed: u64 = batches.iter().map(|batch| batch.payload.len() as u64).sum();
        let mut told = false;
        while !self.spool.has_room(needed)? {
            if self.spool.outbox().waiting().borrow().numbers == 0 {
                let budget = self.metrics.spool_budget_bytes.get();
                return Err(SourceError::SpoolTooSmall { needed, budget });
            }
            if !std::mem::replace(&mut told, true) {
                tracing::info!("the spool is full: reading goes on when the aggregator has taken some of it");
            }
            if wait(stop, ROOM_WAIT) == Wait::Stopped {
                return Ok(Wait::Stopped);
            }
        }
        Ok(Wait::Over)
    }

    /// What must have been lost between the newest interval in the spool and this one.
    fn gap(&self, key: CaptureKey) -> Option<LossRecord> {
        if matches!(self.source, Source::Replay(_)) {
            // Nothing was counted between two replays.
            return None;
        }
        let last = self.spool.last_key().filter(|last| last.interval != CaptureKey::ENDED)?;
        let now = now_ns();
        let since = self.spool.last_time_ns().unwrap_or(now);
        let lost = |stage, reason| {
            Some(LossRecord {
                stage,
                reason,
                count: None,
                bytes: None,
                first_ns: since.min(now),
                last_ns: now,
            })
        };
        if last.source == key.source {
            if key.interval <= last.interval + 1 {
                return None;
            }
            tracing::error!(
                last = last.interval,
                next = key.interval,
                "intervals are missing from the spool"
            );
            return lost(LossStage::Spool, LossReason::Corrupt);
        }
        // A source's id begins with the boot's.
        if last.source[..4] == key.source[..4] {
            tracing::warn!("the kernel's maps are others than before: what those counted last is lost");
            return lost(LossStage::Capture, LossReason::Unloaded);
        }
        tracing::warn!("the node was started anew: what the kernel counted last is lost");
        lost(LossStage::Capture, LossReason::Reboot)
    }
}

/// Waits for a time or for the stop.
fn wait(stop: &Receiver<()>, time: Duration) -> Wait {
    match stop.recv_timeout(time) {
        Err(RecvTimeoutError::Timeout) => Wait::Over,
        Ok(()) | Err(RecvTimeoutError::Disconnected) => Wait::Stopped,
    }
}

fn root(error: &dyn std::error::Error) -> String {
    let mut last = error;
    while let Some(source) = last.source() {
        last = source;
    }
    last.to_string()
}

/// Compares the wall clock with the monotonic one.
#[derive(Debug)]
struct ClockWatch {
    began: Instant,
    wall_ns: i64,
}

impl ClockWatch {
    fn new() -> Self {
        Self { began: Instant::now(), wall_ns: now_ns() }
    }

    fn stepped(&mut self) -> bool {
        let now = Self::new();
        let elapsed = i64::try_from((now.began - self.began).as_nanos()).unwrap_or(i64::MAX);
        let step = now.wall_ns.saturating_sub(self.wall_ns).saturating_sub(elapsed);
        *self = now;
        let stepped = u128::from(step.unsigned_abs()) > CLOCK_STEP.as_nanos();
        if stepped {
            tracing::warn!(step_ms = step / 1_000_000, "the wall clock was stepped");
        }
        stepped
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spool::SpoolOptions;

    #[test]
    fn what_came_before_another_source_is_lost_by_reboot_or_unload() {
        let dir = tempfile::tempdir().unwrap();
        let metrics = Metrics::default();
        let options =
            SpoolOptions { dir: dir.path().join("spool"), bytes_max: 1 << 20, segment_bytes: 1 << 16 };
        let mut spool = Spool::open(options, metrics.clone()).unwrap();
        let (boot, interval) = ([1, 2, 3, 4], 7);
        let source = |boot: [u8; 4], maps: u8| {
            let mut id = [maps; 16];
            id[..4].copy_from_slice(&boot);
            id
        };
        spool.append(CaptureKey { source: source(boot, 1), interval }, &[]).unwrap();
        let state = dir.path().join("generator");
        let options = GeneratorOptions {
            seed: 1,
            events: 0,
            interval_events: 1,
            rate: 0,
            state,
            start_ns: 0,
            step_ns: 1,
            stay: false,
            shape: Shape::Numbered,
        };
        let source_of = Source::Generator(Generator::open(options).unwrap());
        let (interval_time, health) = (Duration::from_secs(1), Health::default());
        let mut drain = Drain {
            source: source_of,
            spool,
            interval: interval_time,
            body_bytes: 1024,
            unload: false,
            metrics,
            health,
        };
        let reason = |drain: &Drain, source, interval| {
            let loss = drain.gap(CaptureKey { source, interval });
            loss.map(|loss| (loss.stage, loss.reason, loss.count))
        };
        assert_eq!(reason(&drain, source(boot, 1), interval + 1), None);
        let spool_lost = Some((LossStage::Spool, LossReason::Corrupt, None));
        assert_eq!(reason(&drain, source(boot, 1), interval + 2), spool_lost);
        assert_eq!(
            reason(&drain, source(boot, 2), 0),
            Some((LossStage::Capture, LossReason::Unloaded, None))
        );
        assert_eq!(
            reason(&drain, source([9; 4], 2), 0),
            Some((LossStage::Capture, LossReason::Reboot, None))
        );
        drain.spool.end_source(source(boot, 1)).unwrap();
        assert_eq!(reason(&drain, source(boot, 2), 0), None, "nothing is missing of a source that was ended");
        assert_eq!(reason(&drain, source([9; 4], 2), 0), None);
    }
}
