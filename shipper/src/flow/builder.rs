//! From the kernel's entries of one interval to oriented flow records.

use std::{
    cmp::Ordering,
    collections::HashMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use foldhash::fast::FixedState;
use weir_common::id::flow_id;
use weir_schema::values::{ConnectError, EndReason, Orientation, Reporter, TcpState, TimeQuality, Vantage};
use weir_shipper_ebpf::{
    EGRESS, FlowKey, FlowValue, LinkKey, LinkValue, ROLE_ADOPTED_CLIENT, ROLE_ADOPTED_SERVER, ROLE_CLIENT,
    ROLE_SERVER, Sock, Total, VANTAGE_INTERFACE,
};

use super::{
    clock::Clock,
    identity::{Identities, Owner},
    link::link_record,
    merge::{Entry, Socks, is_connection, merge},
    record::{FlowRecord, NatTuple},
};
use crate::probe::Names;

const TCP: u8 = 6;
const FLAG_SYN: u32 = 2;
const FLAG_RST: u32 = 4;

/// One drained interval.
pub(crate) struct Interval {
    pub number: u64,
    /// Boot times of its beginning and its end.
    pub began_ns: u64,
    pub ended_ns: u64,
    pub flows: Vec<(FlowKey, FlowValue)>,
    pub link_flows: Vec<(LinkKey, LinkValue)>,
    pub overflow: Vec<OverflowCell>,
    pub socks: Vec<(u64, Sock)>,
}

/// What the flow map could not take, of one protocol class.
#[derive(Clone, Copy, Debug)]
pub(crate) struct OverflowCell {
    pub vantage: Vantage,
    /// Number of the class's protocol; 255 for all others.
    pub protocol: u8,
    pub ingress: Total,
    pub egress: Total,
}

/// What is known of a socket that is older than the programs.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Adopted {
    /// One of `ROLE_ADOPTED_*`, or `ROLE_LISTENER`.
    pub role: u32,
    pub owner: Option<Owner>,
}

/// Makes records. Keeps what outlives an interval: names, the clock, the sockets that were there before.
pub(crate) struct Builder {
    boot: u64,
    pub clock: Clock,
    pub identities: Identities,
    pub adopted: HashMap<u64, Adopted, FixedState>,
}

impl Builder {
    /// `boot` is the node's boot id, folded.
    pub(crate) fn new(boot: u64, clock: Clock, identities: Identities) -> Self {
        Self { boot, clock, identities, adopted: HashMap::default() }
    }

    /// The records of an interval.
    pub(crate) fn build(&mut self, interval: Interval, names: &Names) -> Vec<FlowRecord> {
        let Interval { number, began_ns, ended_ns, flows, link_flows, overflow, socks } = interval;
        self.identities.begin();
        let socks: Socks = socks.into_iter().collect();
        let entries = merge(flows, &socks);
        let mut records: Vec<FlowRecord> =
            Vec::with_capacity(entries.len() + link_flows.len() + overflow.len());
        for entry in &entries {
            records.push(self.record(number, ended_ns, entry, &socks));
        }
        records.extend(link_flows.iter().map(|(key, value)| {
            link_record(self.boot, number, &self.clock, key, value, names.of(key.flow.cookie))
        }));
        records.extend(overflow.iter().map(|cell| self.overflow(number, began_ns, ended_ns, cell)));
        self.adopted.retain(|cookie, _| socks.contains_key(cookie));
        records
    }

    fn record(&mut self, interval: u64, ended_ns: u64, entry: &Entry, socks: &Socks) -> FlowRecord {
        let Entry { key, value, .. } = entry;
        let sock = socks.get(&key.cookie).filter(|_| key.cookie != 0);
        let (local_is_src, orientation) = self.orient(entry, sock);
        let side = |key: &FlowKey| {
            let local = (address(key.family, &key.local), key.local_port);
            let remote = (address(key.family, &key.remote), key.remote_port);
            if local_is_src { (local, remote) } else { (remote, local) }
        };
        let ((src_ip, src_port), (dst_ip, dst_port)) = side(key);
        let nat = entry.own.as_ref().map(|own| {
            let ((src_ip, src_port), (dst_ip, dst_port)) = side(own);
            NatTuple { src_ip, src_port, dst_ip, dst_port }
        });
        let (src, dst, flags_src, flags_dst) = if local_is_src {
            (value.sent, value.received, value.flags_sent, value.flags_received)
        } else {
            (value.received, value.sent, value.flags_received, value.flags_sent)
        };
        let tcp = key.protocol == TCP;
        // A SYN that is sent again has no round-trip time yet.
        let told = value.srtt_us != 0 || value.retransmits != 0;
        let retransmits = (tcp && told).then_some(value.retransmits);
        FlowRecord {
            flow_id: self.flow_id(entry, sock),
            record_seq: interval,
            opened: value.opened,
            reporter: if local_is_src { Reporter::Source } else { Reporter::Destination },
            vantage: Vantage::Socket,
            orientation,
            time_quality: TimeQuality::Ok,
            start_ns: self.clock.unix_ns(value.first_ns),
            end_ns: self.clock.unix_ns(value.last_ns),
            src_ip,
            src_port,
            dst_ip,
            dst_port,
            protocol: key.protocol,
            src_bytes: src.bytes,
            dst_bytes: dst.bytes,
            src_packets: src.packets,
            dst_packets: dst.packets,
            tcp_flags_src: flags_src as u8,
            tcp_flags_dst: flags_dst as u8,
            tcp_state: if tcp { tcp_state(value) } else { None },
            end_reason: end_reason(key, value, sock, ended_ns),
            connect_error: connect_error(value.error),
            handshake_us: sock.and_then(|sock| handshake_us(entry, sock)),
            rtt_us: some(value.srtt_us),
            rtt_min_us: some(value.rtt_min_us),
            rtt_max_us: some(value.srtt_max_us),
            src_retransmits: retransmits.filter(|_| local_is_src),
            dst_retransmits: retransmits.filter(|_| !local_is_src),
            nat,
            local: self.identities.find(
                self.owner(entry, sock, socks),
                if value.cgroup == 0 { sock.map_or(0, |sock| sock.cgroup) } else { value.cgroup },
            ),
            link: None,
        }
    }

    /// Whether the local side opened the conversation, and how that is known.
    fn orient(&self, entry: &Entry, sock: Option<&Sock>) -> (bool, Orientation) {
        let Entry { key, value, .. } = entry;
        let role = match sock.map_or(0, |sock| sock.role) {
            ROLE_CLIENT => return (true, Orientation::Observed),
            ROLE_SERVER => return (false, Orientation::Observed),
            role @ (ROLE_ADOPTED_CLIENT | ROLE_ADOPTED_SERVER) => role,
            _ => self.adopted.get(&key.cookie).map_or(0, |adopted| adopted.role),
        };
        match role {
            // Nobody listens on its port, so it connected; what it connected to is elsewhere.
            ROLE_ADOPTED_CLIENT => return (true, Orientation::Inferred),
            ROLE_ADOPTED_SERVER => return (false, Orientation::Listener),
            _ => {}
        }
        // Also of a handshake that was joined to its child.
        if entry.listener != 0 {
            return (false, Orientation::Observed);
        }
        if key.protocol != TCP {
            return (value.first_direction == EGRESS + 1, Orientation::Observed);
        }
        // The kernel resets what nobody listens for: the other side had asked.
        if key.cookie == 0 && value.flags_sent & FLAG_RST != 0 && value.received.packets == 0 {
            return (false, Orientation::Observed);
        }
        // A server's SYN-ACK carries its listener's cookie, so whoever sends a SYN under its own is the client.
        if key.cookie != 0 && value.flags_sent & FLAG_SYN != 0 {
            return (true, Orientation::Observed);
        }
        let local_is_src = match key.local_port.cmp(&key.remote_port) {
            Ordering::Greater => true,
            Ordering::Less => false,
            Ordering::Equal => value.first_direction == EGRESS + 1,
        };
        (local_is_src, Orientation::Inferred)
    }

    /// The socket's owner; else that of the listener that its handshake came in by.
    fn owner(&self, entry: &Entry, sock: Option<&Sock>, socks: &Socks) -> Option<Owner> {
        let known = |cookie: u64| self.adopted.get(&cookie).and_then(|adopted| adopted.owner);
        sock.and_then(Owner::of).or_else(|| known(entry.key.cookie)).or_else(|| {
            let listener = if entry.listener == 0 { entry.key.cookie } else { entry.listener };
            socks.get(&listener).and_then(Owner::of).or_else(|| known(listener))
        })
    }

    /// Made from what never changes in a flow's life, so that every interval's record has the same.
    fn flow_id(&self, entry: &Entry, sock: Option<&Sock>) -> [u8; 16] {
        let (key, connection) = (&entry.key, is_connection(&entry.key));
        let start = sock.filter(|_| connection).map_or(entry.value.start_ns, |sock| sock.start_ns);
        let mut hash = Fnv::new();
        // A translated connection has two tuples, of which an interval may show either: the cookie and the start name
        // it. They don't name what is left of a connection that its socket made before this one.
        let before = entry.value.last_ns < start && entry.listener == 0;
        if !connection || sock.is_none() || before {
            hash.write(&key.local);
            hash.write(&key.remote);
            hash.write(&key.local_port.to_be_bytes());
            hash.write(&key.remote_port.to_be_bytes());
        }
        hash.write(&[key.protocol, key.vantage]);
        hash.write(&start.to_be_bytes());
        flow_id(self.boot, key.cookie, hash.0)
    }

    fn overflow(&self, interval: u64, began_ns: u64, ended_ns: u64, cell: &OverflowCell) -> FlowRecord {
        let OverflowCell { vantage, protocol, ingress, egress } = *cell;
        let mut hash = Fnv::new();
        hash.write(&[protocol]);
        if vantage == Vantage::Interface {
            hash.write(&[VANTAGE_INTERFACE]);
        }
        hash.write(&interval.to_be_bytes());
        let unspecified = IpAddr::V4(Ipv4Addr::UNSPECIFIED);
        FlowRecord {
            flow_id: flow_id(self.boot, 0, hash.0),
            record_seq: interval,
            opened: u32::try_from(ingress.opened + egress.opened).unwrap_or(u32::MAX),
            reporter: if vantage == Vantage::Interface { Reporter::Transit } else { Reporter::Source },
            vantage,
            orientation: Orientation::Overflow,
            time_quality: TimeQuality::Ok,
            start_ns: self.clock.unix_ns(began_ns),
            end_ns: self.clock.unix_ns(ended_ns),
            src_ip: unspecified,
            src_port: 0,
            dst_ip: unspecified,
            dst_port: 0,
            protocol,
            src_bytes: egress.bytes,
            dst_bytes: ingress.bytes,
            src_packets: egress.packets,
            dst_packets: ingress.packets,
            tcp_flags_src: 0,
            tcp_flags_dst: 0,
            tcp_state: None,
            end_reason: None,
            connect_error: None,
            handshake_us: None,
            rtt_us: None,
            rtt_min_us: None,
            rtt_max_us: None,
            src_retransmits: None,
            dst_retransmits: None,
            nat: None,
            local: None,
            link: None,
        }
    }
}

pub(super) fn address(family: u8, octets: &[u8; 16]) -> IpAddr {
    match family {
        4 => IpAddr::V4(Ipv4Addr::new(octets[12], octets[13], octets[14], octets[15])),
        6 => IpAddr::V6(Ipv6Addr::from(*octets)),
        _ => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
    }
}

fn some(value: u32) -> Option<u32> {
    (value != 0).then_some(value)
}

fn tcp_state(value: &FlowValue) -> Option<TcpState> {
    match value.state {
        // A half-open connection has no socket but its listener; 12 is the kernel's TCP_NEW_SYN_RECV.
        10 | 12 => Some(TcpState::SynReceived),
        state => TcpState::from_code(state),
    }
}

fn end_reason(key: &FlowKey, value: &FlowValue, sock: Option<&Sock>, ended_ns: u64) -> Option<EndReason> {
    // A datagram socket that was closed before the interval ended has no later record.
    let closed = sock.map_or(0, |sock| sock.closed_ns);
    let released = key.protocol != TCP && closed != 0 && closed < ended_ns;
    connection_end(value.end).or(released.then_some(EndReason::Closed))
}

pub(super) fn connection_end(end: u32) -> Option<EndReason> {
    use weir_shipper_ebpf::{END_ABORTED, END_CLOSED, END_FAILED, END_RESET, END_TIMED_OUT};
    match end {
        END_CLOSED => Some(EndReason::Closed),
        END_RESET => Some(EndReason::Reset),
        END_ABORTED => Some(EndReason::Aborted),
        END_TIMED_OUT => Some(EndReason::TimedOut),
        END_FAILED => Some(EndReason::ConnectFailed),
        _ => None,
    }
}

pub(super) fn connect_error(error: u32) -> Option<ConnectError> {
    use weir_shipper_ebpf::{
        ERROR_ABORTED, ERROR_NO_NEIGHBOUR, ERROR_REFUSED, ERROR_TIMED_OUT, ERROR_UNREACHABLE,
    };
    match error {
        ERROR_REFUSED => Some(ConnectError::Refused),
        ERROR_TIMED_OUT => Some(ConnectError::TimedOut),
        ERROR_NO_NEIGHBOUR => Some(ConnectError::NoNeighbour),
        ERROR_ABORTED => Some(ConnectError::Aborted),
        ERROR_UNREACHABLE => Some(ConnectError::Unreachable),
        _ => None,
    }
}

/// Handshake time, on the one record in whose interval the handshake ended. A client's is from the call of connect, a
/// server's from the first SYN; where that came an interval earlier, from the SYN-ACK.
fn handshake_us(entry: &Entry, sock: &Sock) -> Option<u32> {
    if !is_connection(&entry.key) || entry.value.established == 0 {
        return None;
    }
    let since = |began: u64| {
        let took = sock.established_ns.checked_sub(began).filter(|_| began != 0)?;
        Some(u32::try_from(took / 1000).unwrap_or(u32::MAX))
    };
    match sock.role {
        ROLE_CLIENT => since(sock.connect_ns),
        ROLE_SERVER => since(entry.handshake_ns).or_else(|| some(sock.handshake)),
        _ => None,
    }
}

/// FNV-1a: the same in every version of every program, which a hasher of a library does not promise.
pub(super) struct Fnv(pub(super) u64);

impl Fnv {
    pub(super) fn new() -> Self {
        Self(0xcbf2_9ce4_8422_2325)
    }

    pub(super) fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = (self.0 ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
        }
    }
}

#[cfg(test)]
mod tests {
    use weir_shipper_ebpf::Count;

    use super::*;
    use crate::cgroup::CgroupTable;

    fn key(cookie: u64, local: u8, remote: u8) -> FlowKey {
        let (mut local_ip, mut remote_ip) = ([0; 16], [0; 16]);
        (local_ip[15], remote_ip[15]) = (local, remote);
        let base = FlowKey { cookie, local: local_ip, remote: remote_ip, ..FlowKey::ZERO };
        FlowKey { local_port: 40_000, remote_port: 80, protocol: TCP, family: 4, ..base }
    }

    fn value(sent: u64, received: u64) -> FlowValue {
        let count = |packets| Count { packets, bytes: packets * 100 };
        let base = FlowValue { first_ns: 5, last_ns: 9, ..FlowValue::ZERO };
        FlowValue { sent: count(sent), received: count(received), ..base }
    }

    fn build(flows: Vec<(FlowKey, FlowValue)>, socks: Vec<(u64, Sock)>) -> Vec<FlowRecord> {
        let identities = Identities::new(CgroupTable::new("/nonexistent".into()));
        let mut builder = Builder::new(1, Clock::new(0, 0), identities);
        let (number, began_ns, ended_ns) = (1, 0, 10);
        let (link_flows, overflow) = (Vec::new(), Vec::new());
        let interval = Interval { number, began_ns, ended_ns, flows, link_flows, overflow, socks };
        builder.build(interval, &Names::default())
    }

    #[test]
    fn a_repeated_syn_is_a_retransmission_without_a_round_trip_time() {
        let sock = Sock { key: key(8, 1, 2), role: ROLE_CLIENT, start_ns: 5, ..Sock::ZERO };
        let of = |value| build(vec![(key(8, 1, 2), value)], vec![(8, sock)])[0].src_retransmits;
        assert_eq!(of(FlowValue { retransmits: 3, ..value(4, 0) }), Some(3));
        assert_eq!(of(value(1, 0)), None);
        assert_eq!(of(FlowValue { srtt_us: 9, ..value(1, 1) }), Some(0));
    }

    #[test]
    fn a_translated_connection_keeps_its_id_whichever_tuple_an_interval_shows() {
        let (inner, outer) = (key(8, 1, 9), key(8, 1, 2));
        let sock = Sock { key: inner, role: ROLE_CLIENT, start_ns: 5, ..Sock::ZERO };
        let ids = |flows| -> Vec<_> {
            build(flows, vec![(8, sock)]).iter().map(|record: &FlowRecord| record.flow_id).collect()
        };
        let both = ids(vec![(inner, value(0, 5)), (outer, value(4, 0))]);
        assert_eq!(both.len(), 1);
        assert_eq!(ids(vec![(outer, value(4, 0))]), both);
        assert_eq!(ids(vec![(inner, value(0, 5))]), both);
        // What its socket did before it connected again is another connection.
        let earlier = ids(vec![(outer, FlowValue { first_ns: 1, last_ns: 2, ..value(1, 1) })]);
        assert_ne!(earlier, both);
    }

    #[test]
    fn a_handshake_tells_the_server_where_its_socket_did_not_fit() {
        let handshake = FlowValue { listener: 2, first_ns: 1, ..value(1, 2) };
        let records = build(vec![(key(7, 1, 2), handshake), (key(8, 1, 2), value(3, 4))], Vec::new());
        let [record] = &records[..] else { panic!("{records:?}") };
        assert_eq!((record.reporter, record.orientation), (Reporter::Destination, Orientation::Observed));
        assert_eq!((record.src_packets, record.dst_packets), (6, 4));
    }
}
