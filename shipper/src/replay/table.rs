//! The flows of a replay, in memory: packets in, records out, one per flow and interval of the capture's time.
//!
//! Owns orientation, deltas, ends, and the bound of what is kept. The same packets give the same records in the same
//! order, whatever the hasher's seed: a replay that was killed is resumed by this. Called by `replay`.

use std::collections::HashMap;

use foldhash::fast::RandomState;
use serde::{Deserialize, Serialize};
use weir_schema::values::Orientation;
use weir_shipper_ebpf::LinkKey;
use weir_shipper_ebpf::packet::{FLAG_RST, TCP};

use super::conversation::{Delta, Flow};
use super::file::{Interfaces, Packet};
use super::link::{Parsed, refused_by_icmp};
use super::tcp::{Place, Segment, Tcp};
use crate::flow::FlowRecord;

/// What a table is bounded by. Part of what makes records, so a replay that is resumed must have the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TableOptions {
    /// The length of a record, in the capture's time.
    pub interval_ns: i64,
    /// A flow without connection that is silent for so long begins anew; a connection that is not made failed.
    pub idle_ns: i64,
    /// A connection that is silent for so long has timed out.
    pub tcp_idle_ns: i64,
    /// Flows that are kept at once. When there are more, those that were silent longest are forgotten.
    pub entries: usize,
}

/// Sums over a replay.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
pub struct Totals {
    /// Packets in records.
    pub packets: u64,
    /// Their IP bytes.
    pub bytes: u64,
    /// Flows that were seen beginning, or seen first.
    pub flows: u64,
    /// Records made.
    pub records: u64,
    /// TCP segments seen before.
    pub retransmits: u64,
    /// TCP segments that came later than their successors.
    pub out_of_order: u64,
    /// Flows forgotten for want of room.
    pub evicted: u64,
}

/// The table.
pub(super) struct Table {
    options: TableOptions,
    /// In the ids of flows: 48 bits.
    replay: u64,
    index: HashMap<LinkKey, u32, RandomState>,
    flows: Vec<Option<Flow>>,
    free: Vec<u32>,
    /// Flows with packets in this interval, in the order of the first.
    active: Vec<u32>,
    interval: u64,
    began_ns: Option<i64>,
    /// When silent flows were looked for.
    swept_ns: i64,
    records: Vec<FlowRecord>,
    totals: Totals,
}

impl Table {
    pub(super) fn new(options: TableOptions, replay: u64) -> Self {
        Self {
            options,
            replay,
            index: HashMap::default(),
            flows: Vec::new(),
            free: Vec::new(),
            active: Vec::new(),
            interval: 0,
            began_ns: None,
            swept_ns: 0,
            records: Vec::new(),
            totals: Totals::default(),
        }
    }

    pub(super) fn totals(&self) -> Totals {
        self.totals
    }

    /// How many records are ready.
    pub(super) fn ready(&self) -> usize {
        self.records.len()
    }

    /// The first `most` of them.
    pub(super) fn take(&mut self, most: usize) -> Vec<FlowRecord> {
        let rest = self.records.split_off(most.min(self.records.len()));
        std::mem::replace(&mut self.records, rest)
    }

    /// Counts an IP packet.
    pub(super) fn packet(&mut self, packet: &Packet<'_>, parsed: &Parsed, names: &Interfaces) {
        let Packet { time_ns, wire_bytes, data, .. } = *packet;
        self.advance(time_ns, names);
        let bytes = parsed.ip_bytes(wire_bytes);
        let (key, from) = canonical(parsed.key);
        let segment = (key.flow.protocol == TCP && !parsed.packet.later_fragment).then(|| Segment {
            time_ns,
            seq: parsed.packet.seq,
            ack: parsed.packet.ack,
            flags: parsed.packet.flags,
            window: parsed.window,
            payload: bytes.saturating_sub(parsed.packet.headers),
        });
        // A header that was cut short says nothing of the connection.
        let segment = segment.filter(|_| !parsed.packet.cut);
        let number = self.find(time_ns, key, from, segment.as_ref(), names);
        self.count(number, time_ns, from, bytes, parsed, segment.as_ref());
        if let Some(key) = refused_by_icmp(parsed, data) {
            self.unreachable(time_ns, key);
        }
    }

    /// Everything that is left becomes records: the capture is over.
    pub(super) fn finish(&mut self, names: &Interfaces) {
        let now = self.flows.iter().flatten().map(|flow| flow.last_ns).max().unwrap_or_default();
        for flow in self.flows.iter_mut().flatten() {
            if let Some(tcp) = &mut flow.tcp {
                tcp.silent(false, now.saturating_sub(flow.last_ns));
            }
        }
        self.flush(names);
        for number in 0..self.flows.len() as u32 {
            self.tell_end(number, names);
        }
        self.index.clear();
        self.flows.clear();
        self.free.clear();
    }

    /// Ends the interval if the time is past it, or before it by as much: files may follow each other in any order.
    fn advance(&mut self, time_ns: i64, names: &Interfaces) {
        let Some(began) = self.began_ns else {
            (self.began_ns, self.swept_ns) = (Some(time_ns), time_ns);
            return;
        };
        // A slot that is used again stands here twice.
        if self.active.len() > self.options.entries.saturating_mul(2) {
            self.flush(names);
            self.interval += 1;
        }
        let since = time_ns - began;
        if since.unsigned_abs() < self.options.interval_ns.unsigned_abs() {
            return;
        }
        let sweep = (time_ns - self.swept_ns).unsigned_abs() >= self.options.idle_ns.unsigned_abs() / 4;
        if sweep {
            self.swept_ns = time_ns;
            self.silence(time_ns);
        }
        self.flush(names);
        if sweep {
            self.forget_silent(time_ns, names);
        }
        self.interval += 1;
        let interval = self.options.interval_ns.max(1);
        self.began_ns = Some(if since > 0 { began + since / interval * interval } else { time_ns });
    }

    /// Notes the end of connections that were silent too long.
    fn silence(&mut self, now_ns: i64) {
        let options = self.options;
        for flow in self.flows.iter_mut().flatten() {
            if flow.is_idle(now_ns, &options)
                && let Some(tcp) = &mut flow.tcp
            {
                tcp.silent(true, 0);
            }
        }
    }

    /// Removes flows that were silent too long, with a last record where it has an end to tell.
    fn forget_silent(&mut self, now_ns: i64, names: &Interfaces) {
        for number in 0..self.flows.len() as u32 {
            let flow = &self.flows[number as usize];
            if flow.as_ref().is_some_and(|flow| flow.is_idle(now_ns, &self.options)) {
                self.tell_end(number, names);
                self.remove(number);
            }
        }
    }

    /// The records of the interval.
    fn flush(&mut self, names: &Interfaces) {
        for number in std::mem::take(&mut self.active) {
            self.emit(number, names);
        }
    }

    fn emit(&mut self, number: u32, names: &Interfaces) {
        let Some(Some(flow)) = self.flows.get_mut(number as usize) else { return };
        let Some(delta) = flow.delta.take() else { return };
        let record = flow.record(&delta, self.replay, self.interval, names);
        self.totals.records += 1;
        self.records.push(record);
    }

    /// A record without packets for an end that came by silence.
    fn tell_end(&mut self, number: u32, names: &Interfaces) {
        let Some(Some(flow)) = self.flows.get_mut(number as usize) else { return };
        let untold = !flow.end_told && flow.tcp.as_ref().is_some_and(|tcp| tcp.end().is_some());
        if untold && flow.delta.is_none() {
            flow.delta = Some(Delta { start_ns: flow.last_ns, end_ns: flow.last_ns, ..Delta::default() });
            self.emit(number, names);
        }
    }

    fn find(
        &mut self,
        time_ns: i64,
        key: LinkKey,
        from: usize,
        segment: Option<&Segment>,
        names: &Interfaces,
    ) -> u32 {
        if let Some(number) = self.index.get(&key).copied() {
            let Some(Some(flow)) = self.flows.get_mut(number as usize) else { return number };
            let idle = flow.is_idle(time_ns, &self.options);
            let another = match (segment, &flow.tcp) {
                (Some(segment), Some(tcp)) => tcp.is_another(segment, from),
                _ => false,
            };
            if !idle && !another {
                return number;
            }
            if let Some(tcp) = &mut flow.tcp {
                tcp.silent(idle, time_ns.saturating_sub(flow.last_ns));
            }
            self.emit(number, names);
            self.tell_end(number, names);
            self.remove(number);
        }
        if self.index.len() >= self.options.entries {
            self.evict(names);
        }
        self.insert(time_ns, key, from, segment)
    }

    fn insert(&mut self, time_ns: i64, key: LinkKey, from: usize, segment: Option<&Segment>) -> u32 {
        // The lower port is the one that is known; of equal ones, who speaks first asks.
        let guess = match key.flow.local_port.cmp(&key.flow.remote_port) {
            std::cmp::Ordering::Less => 1,
            std::cmp::Ordering::Greater => 0,
            std::cmp::Ordering::Equal => from,
        };
        // What answers a SYN that was not seen: nobody listens there.
        let refusal = segment.is_some_and(|segment| segment.flags & FLAG_RST != 0 && segment.seq == 0);
        let guess = if refusal { 1 - from } else { guess };
        let tcp = segment.map(|segment| Box::new(Tcp::new(segment, from, guess)));
        let (src, orientation) = match (&tcp, key.flow.protocol) {
            (Some(tcp), _) => (tcp.src(), Orientation::Inferred),
            (None, TCP) => (guess, Orientation::Inferred),
            (None, _) => (from, Orientation::Observed),
        };
        self.totals.flows += 1;
        let flow = Flow {
            key,
            number: self.totals.flows,
            started_ns: time_ns,
            last_ns: time_ns,
            src,
            orientation,
            delta: None,
            tcp,
            begun: false,
            end_told: false,
        };
        let number = match self.free.pop() {
            Some(number) => number,
            None => {
                self.flows.push(None);
                self.flows.len() as u32 - 1
            }
        };
        self.flows[number as usize] = Some(flow);
        self.index.insert(key, number);
        number
    }

    fn remove(&mut self, number: u32) {
        if let Some(flow) = self.flows.get_mut(number as usize).and_then(Option::take) {
            self.index.remove(&flow.key);
            self.free.push(number);
        }
    }

    /// Makes room: the interval ends here, and the quarter that was silent longest is forgotten.
    #[cold]
    fn evict(&mut self, names: &Interfaces) {
        self.flush(names);
        self.interval += 1;
        let mut ages: Vec<(i64, u64, u32)> = (0u32..)
            .zip(&self.flows)
            .filter_map(|(number, flow)| flow.as_ref().map(|flow| (flow.last_ns, flow.number, number)))
            .collect();
        ages.sort_unstable();
        ages.truncate((self.options.entries / 4).max(1));
        self.totals.evicted += ages.len() as u64;
        for (_, _, number) in ages {
            self.remove(number);
        }
    }

    fn count(
        &mut self,
        number: u32,
        time_ns: i64,
        from: usize,
        bytes: u32,
        parsed: &Parsed,
        segment: Option<&Segment>,
    ) {
        self.totals.packets += 1;
        self.totals.bytes += u64::from(bytes);
        let Some(Some(flow)) = self.flows.get_mut(number as usize) else { return };
        if flow.delta.is_none() {
            self.active.push(number);
        }
        let begins = !std::mem::replace(&mut flow.begun, true);
        let delta =
            flow.delta.get_or_insert(Delta { start_ns: time_ns, end_ns: time_ns, ..Delta::default() });
        let place = match (&mut flow.tcp, segment) {
            (Some(tcp), Some(segment)) => {
                let opened = tcp.was_opened();
                let place = tcp.segment(segment, from);
                if !opened && tcp.was_opened() {
                    delta.opened = 1;
                    flow.src = tcp.src();
                    flow.orientation = Orientation::Observed;
                }
                place
            }
            _ => {
                if begins && flow.key.flow.protocol != TCP {
                    delta.opened = 1;
                }
                Place::Regular
            }
        };
        flow.last_ns = flow.last_ns.max(time_ns);
        delta.start_ns = delta.start_ns.min(time_ns);
        delta.end_ns = delta.end_ns.max(time_ns);
        let side = &mut delta.sides[from];
        side.packets += 1;
        side.bytes += u64::from(bytes);
        side.flags |= parsed.packet.flags as u8;
        match place {
            Place::Regular => {}
            Place::Again => {
                side.retransmits += 1;
                self.totals.retransmits += 1;
            }
            Place::OutOfOrder => self.totals.out_of_order += 1,
        }
    }

    /// An ICMP error says that a connection can't be made.
    fn unreachable(&mut self, time_ns: i64, key: LinkKey) {
        let (key, from) = canonical(key);
        let Some(number) = self.index.get(&key).copied() else { return };
        let Some(Some(flow)) = self.flows.get_mut(number as usize) else { return };
        if let Some(tcp) = &mut flow.tcp {
            tcp.unreachable(from);
            if flow.delta.is_none() && tcp.end().is_some() && !flow.end_told {
                flow.delta = Some(Delta { start_ns: time_ns, end_ns: time_ns, ..Delta::default() });
                self.active.push(number);
            }
        }
    }
}

/// The same key for both directions, and which of its sides sent: 0 is `local`.
fn canonical(mut key: LinkKey) -> (LinkKey, usize) {
    let flow = &mut key.flow;
    if (flow.local, flow.local_port) <= (flow.remote, flow.remote_port) {
        return (key, 0);
    }
    std::mem::swap(&mut flow.local, &mut flow.remote);
    std::mem::swap(&mut flow.local_port, &mut flow.remote_port);
    std::mem::swap(&mut key.outer_local, &mut key.outer_remote);
    (key, 1)
}
