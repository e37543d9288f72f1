//! What the packets of a TCP connection say of it, seen at one place: handshake, state, end, round-trip times, segments
//! sent again (RFC 9293; the estimator of RFC 6298).
//!
//! Owns one connection's state, of a fixed size. Sequence numbers wrap: they are compared by their difference. Called
//! by `table` for every packet.

use weir_schema::values::{ConnectError, EndReason, TcpState};
use weir_shipper_ebpf::packet::{FLAG_ACK, FLAG_FIN, FLAG_RST, FLAG_SYN};

/// Gaps in the sequence that are remembered: of more the oldest is forgotten, and what fills it counts as sent again.
const HOLES_MAX: usize = 4;
/// A jump further than this is not one of this sequence.
const JUMP_MAX: u32 = 1 << 30;

/// A segment, as far as it matters here.
#[derive(Clone, Copy, Debug)]
pub(super) struct Segment {
    pub time_ns: i64,
    pub seq: u32,
    pub ack: u32,
    pub flags: u32,
    pub window: u16,
    /// Bytes after the TCP header.
    pub payload: u32,
}

impl Segment {
    fn has(&self, flag: u32) -> bool {
        self.flags & flag != 0
    }

    /// Asks for a connection.
    pub(super) fn is_syn(&self) -> bool {
        self.flags & (FLAG_SYN | FLAG_ACK | FLAG_RST) == FLAG_SYN
    }

    /// Numbers of the sequence that it takes.
    fn length(&self) -> u32 {
        self.payload + u32::from(self.has(FLAG_SYN)) + u32::from(self.has(FLAG_FIN))
    }
}

/// What a segment is to the sequence of its side.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// New, or without a place of its own: acknowledgements, keep-alives, window probes.
    Regular,
    /// Seen before.
    Again,
    /// Fills a gap that an earlier packet left.
    OutOfOrder,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// SYNs and nothing else.
    Asked,
    /// The SYN was answered.
    Answered,
    /// Established, or older than the capture.
    Open,
}

/// One connection. Sides are numbered as the caller likes; `src` is the one that opened.
#[derive(Clone, Debug)]
pub(super) struct Tcp {
    sides: [Side; 2],
    phase: Phase,
    src: usize,
    syn_ns: Option<i64>,
    answer_ns: Option<i64>,
    handshake_us: Option<u32>,
    /// Side of the first FIN.
    first_fin: Option<usize>,
    end: Option<(EndReason, Option<ConnectError>)>,
    /// The largest since it was asked for last.
    rtt_max_us: Option<u32>,
}

/// What one side sent, and what the other said of it.
#[derive(Clone, Copy, Debug, Default)]
struct Side {
    seen: bool,
    isn: Option<u32>,
    /// One after the highest number seen.
    next: u32,
    /// The other side has all before this.
    acked: Option<u32>,
    fin: Option<u32>,
    window_closed: bool,
    /// From first to one after the last number that is missing.
    holes: [(u32, u32); HOLES_MAX],
    holes_used: usize,
    /// End and time of a segment whose acknowledgement is waited for.
    timed: Option<(u32, i64)>,
    /// Time between a segment that goes to this side and its acknowledgement: microseconds times 8.
    srtt_8: Option<u64>,
    rtt_min_us: u32,
}

impl Tcp {
    /// Begins with the first segment, which side 0 or 1 sent. `src` is told by it, or guessed by the caller.
    pub(super) fn new(segment: &Segment, from: usize, guess: usize) -> Self {
        let syn = segment.has(FLAG_SYN) && !segment.has(FLAG_RST);
        let (phase, src) = match (syn, segment.has(FLAG_ACK)) {
            (true, false) => (Phase::Asked, from),
            (true, true) => (Phase::Answered, 1 - from),
            (false, _) => (Phase::Open, guess),
        };
        Self {
            sides: [Side::default(); 2],
            phase,
            src,
            syn_ns: None,
            answer_ns: None,
            handshake_us: None,
            first_fin: None,
            end: None,
            rtt_max_us: None,
        }
    }

    /// The side that opened.
    pub(super) fn src(&self) -> usize {
        self.src
    }

    /// Whether it was seen opening.
    pub(super) fn was_opened(&self) -> bool {
        self.sides.iter().any(|side| side.isn.is_some())
    }

    /// Whether a segment asks for another connection than this one.
    pub(super) fn is_another(&self, segment: &Segment, from: usize) -> bool {
        if !segment.is_syn() {
            return false;
        }
        match self.sides[from].isn {
            Some(isn) => isn != segment.seq,
            // Both sides may ask at once; any other SYN is of a connection after this one.
            None => self.phase != Phase::Asked || self.end.is_some(),
        }
    }

    /// Takes in a segment that `from` sent.
    pub(super) fn segment(&mut self, segment: &Segment, from: usize) -> Place {
        if segment.has(FLAG_RST) {
            self.reset(from);
            return Place::Regular;
        }
        let place = self.sequence(segment, from);
        if segment.has(FLAG_SYN) {
            self.sides[from].isn.get_or_insert(segment.seq);
            if segment.has(FLAG_ACK) {
                self.answer_ns.get_or_insert(segment.time_ns);
                if self.phase == Phase::Asked {
                    self.phase = Phase::Answered;
                }
            } else {
                self.syn_ns.get_or_insert(segment.time_ns);
            }
        }
        if segment.has(FLAG_ACK) {
            self.acknowledged(segment, 1 - from);
        }
        self.sides[from].window_closed = segment.window == 0 && !segment.has(FLAG_SYN);
        // The opener's first word after its SYN, or payload of any side: the connection stands.
        if self.phase != Phase::Open
            && !segment.has(FLAG_SYN)
            && ((from == self.src && segment.has(FLAG_ACK)) || segment.payload > 0)
        {
            if let (Phase::Answered, Some(syn), Some(_)) = (self.phase, self.syn_ns, self.answer_ns) {
                self.handshake_us = Some(micros(segment.time_ns.saturating_sub(syn)));
            }
            self.phase = Phase::Open;
        }
        if segment.has(FLAG_FIN) {
            let end = segment.seq.wrapping_add(segment.length());
            self.sides[from].fin.get_or_insert(end);
            self.first_fin.get_or_insert(from);
        }
        if self.end.is_none() && self.sides.iter().all(Side::is_finished) {
            self.end = Some((EndReason::Closed, None));
        }
        place
    }

    /// An ICMP error answered a segment of side `from`.
    pub(super) fn unreachable(&mut self, from: usize) {
        if self.phase == Phase::Asked && from == self.src && self.end.is_none() {
            self.end = Some((EndReason::ConnectFailed, Some(ConnectError::Unreachable)));
        }
    }

    /// Nothing more comes: after the idle time, or at the end of the capture, `since_ns` after the last packet.
    pub(super) fn silent(&mut self, idle: bool, since_ns: i64) {
        const SYN_ANSWER_NS: i64 = 1_000_000_000;
        if self.end.is_some() {
            return;
        }
        let failed = (EndReason::ConnectFailed, Some(ConnectError::TimedOut));
        self.end = match self.phase {
            _ if self.sides.iter().all(|side| side.fin.is_some()) => Some((EndReason::Closed, None)),
            // A system sends its SYN again after a second (RFC 6298, section 2): by then there was no answer.
            Phase::Asked if idle || since_ns >= SYN_ANSWER_NS => Some(failed),
            Phase::Answered if idle => Some(failed),
            Phase::Open if idle => Some((EndReason::TimedOut, None)),
            _ => None,
        };
    }

    /// How and why it ended, if it has.
    pub(super) fn end(&self) -> Option<(EndReason, Option<ConnectError>)> {
        self.end
    }

    /// Whether it was established, or is older than the capture.
    pub(super) fn is_open(&self) -> bool {
        self.phase == Phase::Open
    }

    /// The opener's state, as the packets imply it.
    pub(super) fn state(&self) -> TcpState {
        let (src, dst) = (&self.sides[self.src], &self.sides[1 - self.src]);
        if self.end.is_some() {
            return TcpState::Closed;
        }
        match self.phase {
            Phase::Asked => return TcpState::SynSent,
            Phase::Answered => return TcpState::SynReceived,
            Phase::Open => {}
        }
        match (src.fin.is_some(), dst.fin.is_some()) {
            (false, false) => TcpState::Established,
            (false, true) => TcpState::CloseWait,
            (true, false) if src.is_finished() => TcpState::FinWait2,
            (true, false) => TcpState::FinWait1,
            (true, true) if src.is_finished() => TcpState::TimeWait,
            (true, true) if self.first_fin == Some(self.src) => TcpState::Closing,
            (true, true) => TcpState::LastAck,
        }
    }

    /// From the first SYN to the acknowledgement of its answer, once.
    pub(super) fn take_handshake_us(&mut self) -> Option<u32> {
        self.handshake_us.take()
    }

    /// Smoothed, smallest, and largest smoothed round-trip time since this was called last.
    pub(super) fn take_rtt_us(&mut self) -> [Option<u32>; 3] {
        let smoothed = self.rtt_us();
        let largest = self.rtt_max_us.take().max(smoothed);
        [smoothed, self.sum(|side| side.rtt_min_us), largest]
    }

    fn rtt_us(&self) -> Option<u32> {
        self.sum(|side| u32::try_from(side.srtt_8.unwrap_or(0) / 8).unwrap_or(u32::MAX))
    }

    /// The way to one side and back, and the way to the other: both together are the way between the two.
    fn sum(&self, part: impl Fn(&Side) -> u32) -> Option<u32> {
        let known = self.sides.iter().filter(|side| side.srtt_8.is_some());
        known.map(part).reduce(u32::saturating_add)
    }

    fn reset(&mut self, from: usize) {
        if self.end.is_some() {
            return;
        }
        self.end = Some(match self.phase {
            Phase::Open if self.sides.iter().all(|side| side.fin.is_some()) => (EndReason::Closed, None),
            Phase::Open => (EndReason::Reset, None),
            _ if from == self.src => (EndReason::ConnectFailed, Some(ConnectError::Aborted)),
            _ => (EndReason::ConnectFailed, Some(ConnectError::Refused)),
        });
    }

    fn sequence(&mut self, segment: &Segment, from: usize) -> Place {
        let peer_closed = self.sides[1 - from].window_closed;
        let side = &mut self.sides[from];
        let (start, length) = (segment.seq, segment.length());
        let end = start.wrapping_add(length);
        if length == 0 {
            return Place::Regular;
        }
        let ahead = start.wrapping_sub(side.next);
        if !side.seen || ahead.min(ahead.wrapping_neg()) > JUMP_MAX {
            *side =
                Side { seen: true, next: end, timed: Some((end, segment.time_ns)), holes_used: 0, ..*side };
            return Place::Regular;
        }
        let plain = !segment.has(FLAG_SYN | FLAG_FIN);
        if ahead < JUMP_MAX {
            if plain && segment.payload == 1 && ahead == 0 && peer_closed {
                // A window probe. Its byte comes again when the window opens.
                return Place::Regular;
            }
            if ahead > 0 {
                side.add_hole(side.next, start);
            }
            side.next = end;
            side.timed.get_or_insert((end, segment.time_ns));
            return Place::Regular;
        }
        // A keep-alive repeats the last byte of what has all arrived; where the other side is not seen, so it seems.
        if plain && segment.payload <= 1 && end == side.next && side.acked.is_none_or(|acked| acked == end) {
            return Place::Regular;
        }
        // Which of the two was acknowledged will not be known (Karn).
        side.timed = None;
        let fills = side.fill(start, end);
        if after(end, side.next) {
            side.next = end;
        }
        if fills { Place::OutOfOrder } else { Place::Again }
    }

    /// The side `of` has its segments acknowledged.
    fn acknowledged(&mut self, segment: &Segment, of: usize) {
        let side = &mut self.sides[of];
        let ack = segment.ack;
        if side.acked.is_none_or(|acked| after(ack, acked)) {
            side.acked = Some(ack);
        }
        if side.seen && after(ack, side.next) && ack.wrapping_sub(side.next) < JUMP_MAX {
            // The capture missed what was acknowledged.
            side.next = ack;
        }
        let Some((_, sent_ns)) = side.timed.filter(|(end, _)| !after(*end, ack)) else { return };
        side.timed = None;
        let sample_us = micros(segment.time_ns.saturating_sub(sent_ns));
        self.sides[1 - of].sample(sample_us);
        self.rtt_max_us = self.rtt_max_us.max(self.rtt_us());
    }
}

impl Side {
    fn is_finished(&self) -> bool {
        self.fin.is_some_and(|fin| self.acked.is_some_and(|acked| !after(fin, acked)))
    }

    fn add_hole(&mut self, start: u32, end: u32) {
        if self.holes_used == HOLES_MAX {
            self.holes.rotate_left(1);
            self.holes_used -= 1;
        }
        self.holes[self.holes_used] = (start, end);
        self.holes_used += 1;
    }

    /// Takes a range out of the holes; says whether it was in one.
    fn fill(&mut self, start: u32, end: u32) -> bool {
        let before = self.holes;
        let used = std::mem::take(&mut self.holes_used);
        let mut hit = false;
        for (from, to) in before.into_iter().take(used) {
            if !after(end, from) || !after(to, start) {
                self.add_hole(from, to);
                continue;
            }
            hit = true;
            if after(start, from) {
                self.add_hole(from, start);
            }
            if after(to, end) {
                self.add_hole(end, to);
            }
        }
        hit
    }

    fn sample(&mut self, us: u32) {
        let us_8 = u64::from(us) * 8;
        match &mut self.srtt_8 {
            None => {
                self.srtt_8 = Some(us_8);
                self.rtt_min_us = us;
            }
            Some(srtt_8) => {
                *srtt_8 = *srtt_8 - *srtt_8 / 8 + u64::from(us);
                self.rtt_min_us = self.rtt_min_us.min(us);
            }
        }
    }
}

/// Whether a sequence number comes after another, modulo 2^32.
fn after(a: u32, b: u32) -> bool {
    (a.wrapping_sub(b).cast_signed()) > 0
}

fn micros(ns: i64) -> u32 {
    u32::try_from(ns.max(0) / 1000).unwrap_or(u32::MAX)
}
