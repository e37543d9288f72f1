//! What the kernel programs and the shipper share: map keys, map values, indices and flags; and the parser of packets.
//!
//! Every type is `repr(C)` without padding or `bool`, its size is asserted, and it is read by copy on both sides.
//! A change of any of them is a change of [`LAYOUT`]. Addresses are 16 bytes, IPv4 as `::ffff:a.b.c.d`; ports are in
//! host order; times are nanoseconds of `CLOCK_BOOTTIME`; bytes are IP bytes, from the IP header to the end.
#![no_std]

pub mod packet;

/// Version of the maps' layout. It is part of the name of the directory that the maps are pinned in.
pub const LAYOUT: u32 = 1;

/// `FlowKey::vantage`: seen by `cgroup_skb` at a socket.
pub const VANTAGE_SOCKET: u8 = 0;
/// `FlowKey::vantage`: seen by TC at a network interface.
pub const VANTAGE_INTERFACE: u8 = 1;
/// How many vantage points [`total_index`] has room for.
pub const VANTAGES: u32 = 2;

/// Direction of a packet as the local side sees it.
pub const INGRESS: u32 = 0;
/// See [`INGRESS`].
pub const EGRESS: u32 = 1;

/// Protocol classes of the totals: TCP, UDP, ICMP, `ICMPv6`, SCTP, other.
pub const CLASSES: u32 = 6;
/// Entries of the maps `TOTALS` and `OVERFLOW`: two halves of every vantage, class and direction.
pub const TOTAL_ENTRIES: u32 = 2 * VANTAGES * CLASSES * 2;

/// Class of an IANA protocol number.
#[inline(always)]
pub const fn class(protocol: u8) -> u32 {
    match protocol {
        6 => 0,
        17 => 1,
        1 => 2,
        58 => 3,
        132 => 4,
        _ => 5,
    }
}

/// Index in `TOTALS` and `OVERFLOW`. `interval` may be any interval number: its lowest bit selects the half.
#[inline(always)]
pub const fn total_index(interval: u64, vantage: u8, class: u32, direction: u32) -> u32 {
    (((interval & 1) as u32 * VANTAGES + vantage as u32) * CLASSES + class) * 2 + direction
}

/// Slot of the map `INTERVAL` that holds the number of the interval being written.
pub const INTERVAL_NOW: u32 = 0;
/// Slot that holds a number drawn when the maps were made; it tells their intervals from those of earlier maps.
pub const INTERVAL_NONCE: u32 = 1;
/// The first of two slots that hold the boot time at which an interval began: the slot is this plus its parity.
pub const INTERVAL_BEGAN: u32 = 2;
/// Entries of the map `INTERVAL`.
pub const INTERVAL_ENTRIES: u32 = 4;

/// Key of a flow: one socket's conversation with one peer.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct FlowKey {
    /// The socket's cookie; 0 where the kernel has none. Ports are reused faster than intervals end.
    pub cookie: u64,
    pub local: [u8; 16],
    pub remote: [u8; 16],
    /// TCP, UDP and SCTP: the port. ICMP: type, counterpart or code, by the convention of Community ID v1.
    pub local_port: u16,
    pub remote_port: u16,
    /// IANA number. 255 with `family` 0 for what could not be parsed.
    pub protocol: u8,
    /// 4, 6, or 0 for what is not IP.
    pub family: u8,
    pub vantage: u8,
    /// One of `TUNNEL_*` where the flow was found inside a tunnel; always 0 at a socket.
    pub tunnel: u8,
}

/// `FlowKey::tunnel`: UDP with an Ethernet frame inside (RFC 7348); the id is the VNI.
pub const TUNNEL_VXLAN: u8 = 1;
/// `FlowKey::tunnel`: Geneve (RFC 8926); the id is the VNI.
pub const TUNNEL_GENEVE: u8 = 2;
/// `FlowKey::tunnel`: GRE without a key, so without an id (RFC 2784).
pub const TUNNEL_GRE: u8 = 3;
/// `FlowKey::tunnel`: GRE with a key, which is the id (RFC 2890).
pub const TUNNEL_GRE_KEYED: u8 = 4;
/// `FlowKey::tunnel`: IP in IP, of any two families; it has no id.
pub const TUNNEL_IPIP: u8 = 5;

/// Key of a flow at a network interface. What differs in any part of it is another flow: addresses may be in use again
/// behind another tag or in another tunnel.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct LinkKey {
    /// The flow, of a tunnel the inner one. `cookie` is the link: its namespace's number above, its index below.
    pub flow: FlowKey,
    /// The tunnel's end on the link's near side; zero without a tunnel.
    pub outer_local: [u8; 16],
    /// The tunnel's end on the far side.
    pub outer_remote: [u8; 16],
    /// The tunnel's id; 0 also where it has none: see [`FlowKey::tunnel`].
    pub tunnel_id: u32,
    /// Id of the first VLAN tag, from outside; 0 for none.
    pub vlan: u16,
    /// Id of the second VLAN tag; 0 for none.
    pub inner_vlan: u16,
}

/// Packets and bytes of one direction.
#[repr(C)]
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub struct Count {
    /// Packets as they are on the wire: segments of a GSO or GRO packet each count.
    pub packets: u64,
    pub bytes: u64,
}

/// What one flow did in one interval.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct FlowValue {
    pub sent: Count,
    pub received: Count,
    pub first_ns: u64,
    pub last_ns: u64,
    /// Without a connection (all but TCP with a cookie): when the flow was first seen, by `META`. Else 0.
    pub start_ns: u64,
    /// cgroup of the socket, 0 while no packet has told it.
    pub cgroup: u64,
    /// TCP flags seen, by direction.
    pub flags_sent: u32,
    pub flags_received: u32,
    /// Connections that this entry opened.
    pub opened: u32,
    /// Without a connection: direction of the flow's first packet plus one. Else 0.
    pub first_direction: u32,
    /// TCP state at the last packet, as the kernel numbers it; 0 for none.
    pub state: u32,
    /// Packets that carried a listener's cookie: handshakes on their way to a child.
    pub listener: u32,
    /// Smoothed round-trip time at the last packet and its maximum, in microseconds; 0 for none.
    pub srtt_us: u32,
    pub srtt_max_us: u32,
    /// The kernel's windowed minimum; 0 for none.
    pub rtt_min_us: u32,
    /// Segments that the local side retransmitted.
    pub retransmits: u32,
    /// `total_retrans` at the last packet: spares a look-up while it does not move.
    pub retransmits_cached: u32,
    /// One of `END_*` once the connection has ended in this interval.
    pub end: u32,
    /// One of `ERROR_*` when it never came about.
    pub error: u32,
    /// 1 in the one interval in which a handshake ended.
    pub established: u32,
}

/// How a connection ended (`FlowValue::end`, `Sock::end`).
pub const END_CLOSED: u32 = 1;
/// See [`END_CLOSED`]: the peer sent RST.
pub const END_RESET: u32 = 2;
/// See [`END_CLOSED`]: the local side sent RST, or gave up a connection that was being made.
pub const END_ABORTED: u32 = 3;
/// See [`END_CLOSED`]: retransmission gave up.
pub const END_TIMED_OUT: u32 = 4;
/// See [`END_CLOSED`]: the connection never came about; `error` says why.
pub const END_FAILED: u32 = 5;

/// Why a connection never came about (`FlowValue::error`): RST answered the SYN.
pub const ERROR_REFUSED: u32 = 1;
/// SYNs were repeated without an answer.
pub const ERROR_TIMED_OUT: u32 = 2;
/// The retransmission timer fired and nothing could be sent: the next hop has no link address.
pub const ERROR_NO_NEIGHBOUR: u32 = 3;
/// The local side gave up first.
pub const ERROR_ABORTED: u32 = 4;
/// ICMP answered the SYN.
pub const ERROR_UNREACHABLE: u32 = 5;

/// `Sock::role`: seen for the first time in mid-connection.
pub const ROLE_UNKNOWN: u32 = 0;
/// It called connect.
pub const ROLE_CLIENT: u32 = 1;
/// It was accepted.
pub const ROLE_SERVER: u32 = 2;
/// It listens.
pub const ROLE_LISTENER: u32 = 3;
/// A client that is older than the shipper, told by the listening sockets.
pub const ROLE_ADOPTED_CLIENT: u32 = 4;
/// A server that is older than the shipper, told by the listening sockets.
pub const ROLE_ADOPTED_SERVER: u32 = 5;

/// `Sock::rst`: the peer sent RST.
pub const RST_RECEIVED: u32 = 1;
/// `Sock::rst`: the local side sent RST.
pub const RST_SENT: u32 = 2;

/// What is known of a socket for as long as it lives, by cookie.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Sock {
    /// The socket's own view of the connection, cookie included.
    pub key: FlowKey,
    /// First sight of the connection. Fixed once: flow ids are made from it.
    pub start_ns: u64,
    pub connect_ns: u64,
    pub established_ns: u64,
    /// When it ended; 0 while it lives.
    pub closed_ns: u64,
    /// When an interval last began to count it.
    pub touched_ns: u64,
    /// Network namespace cookie, 0 where the kernel does not tell.
    pub netns: u64,
    /// cgroup of the socket.
    pub cgroup: u64,
    /// cgroup of the process.
    pub owner_cgroup: u64,
    /// When the owner was recorded.
    pub owner_ns: u64,
    pub role: u32,
    /// Connections made that no entry has counted as opened yet.
    pub pending: u32,
    /// `total_retrans` that has been accounted for; `u32::MAX` until the first packet of a socket that was adopted.
    pub retransmits_seen: u32,
    /// Calls of the retransmission timer, and segments that it sent.
    pub timeouts: u32,
    pub retransmits: u32,
    pub rst: u32,
    pub end: u32,
    pub error: u32,
    /// Process and thread that own the socket; 0 for unknown.
    pub pid: u32,
    pub tid: u32,
    pub comm: [u8; 16],
    pub protocol: u32,
    /// A client's: 1 from the end of the handshake to the next packet, which is counted as `established`. A server's:
    /// the time from SYN-ACK to its acknowledgement, in microseconds, at least 1.
    pub handshake: u32,
}

/// What one flow did at one link in one interval. `sent` is what left through the link.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct LinkValue {
    pub sent: Count,
    pub received: Count,
    pub first_ns: u64,
    pub last_ns: u64,
    /// When the flow was first seen, by `LINK_META`; 0 where that had no room.
    pub start_ns: u64,
    /// The last new SYN of this interval; 0 for none.
    pub syn_ns: u64,
    /// TCP flags seen, by direction.
    pub flags_sent: u32,
    pub flags_received: u32,
    /// Connections, or flows without connection, that began in this entry.
    pub opened: u32,
    /// Direction of the packet that opened the flow, plus one; of TCP without a SYN, of the first packet.
    pub first_direction: u32,
    /// Not 0 where a SYN or its answer told who opened it.
    pub observed: u32,
    /// Direction plus one of the acknowledgement that will end the handshake; 0 when none is waited for.
    pub awaiting: u32,
    /// SYN to that acknowledgement, in microseconds; 0 where not both are of this interval.
    pub handshake_us: u32,
    /// One of `END_*` once the connection has ended in this interval.
    pub end: u32,
    /// One of `ERROR_*` when it never came about.
    pub error: u32,
    pub reserved: u32,
}

/// What is known of a flow at a link for as long as it is heard of, by its key.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct LinkMeta {
    pub start_ns: u64,
    pub touched_ns: u64,
    /// Initial sequence number of the side that opened: the same SYN again opens nothing.
    pub isn: u32,
    /// As in [`LinkValue`].
    pub first_direction: u32,
    /// `SEEN_*` of the present connection.
    pub seen: u32,
    pub reserved: u32,
}

/// `LinkMeta::seen`: a SYN, or the answer to one.
pub const SEEN_SYN: u32 = 1;
/// `LinkMeta::seen`: the answer to a SYN.
pub const SEEN_SYN_ACK: u32 = 2;
/// `LinkMeta::seen`: a FIN that arrived, and shifted by the direction, one that left.
pub const SEEN_FIN: u32 = 4;
/// `LinkMeta::seen`: the connection has ended.
pub const SEEN_END: u32 = 16;

/// What is known of a flow without a connection, by its key.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Meta {
    pub start_ns: u64,
    pub touched_ns: u64,
    /// Direction of the first packet, plus one.
    pub first_direction: u32,
    pub reserved: u32,
}

/// One cell of `TOTALS` and `OVERFLOW`.
#[repr(C)]
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub struct Total {
    pub packets: u64,
    pub bytes: u64,
    pub opened: u64,
}

/// Longest cgroup path kept by the kernel side, its NUL included.
pub const CGROUP_PATH_MAX: usize = 256;

/// Path of a cgroup that was made while the programs ran.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct CgroupPath {
    pub made_ns: u64,
    /// Bytes of `path`, NUL included; negative when it could not be read.
    pub len: i32,
    pub reserved: u32,
    pub path: [u8; CGROUP_PATH_MAX],
}

/// Indices of the map `COUNTERS`, with the name that each has in metrics.
pub const COUNTER_NAMES: [&str; 8] = [
    "parse_failed",
    "flows_full",
    "socks_full",
    "meta_full",
    "cgroups_full",
    "copies",
    "tail_call_failed",
    "no_interval",
];
/// A header was cut short or is not IP. The packet is counted, without ports.
pub const COUNTER_PARSE_FAILED: u32 = 0;
/// A flow did not fit; its packet went to `OVERFLOW`. Counts packets.
pub const COUNTER_FLOWS_FULL: u32 = 1;
/// A socket did not fit into `SOCKS`.
pub const COUNTER_SOCKS_FULL: u32 = 2;
/// A flow without connection did not fit into `META`.
pub const COUNTER_META_FULL: u32 = 3;
/// A cgroup's path did not fit into `CGROUPS`.
pub const COUNTER_CGROUPS_FULL: u32 = 4;
/// A packet met again: a raw socket's copy of one that its owner receives too, or one that a listener had no more use
/// for. Not counted anywhere else.
pub const COUNTER_COPIES: u32 = 5;
/// A tracepoint fired while no program was behind its dispatcher.
pub const COUNTER_TAIL_CALL_FAILED: u32 = 6;
/// The map `INTERVAL` had no entry; cannot happen.
pub const COUNTER_NO_INTERVAL: u32 = 7;
/// Slots of the shipper: what it has reported of the counter with this number less, and what it read last.
pub const COUNTER_REPORTED: u32 = 16;
/// See [`COUNTER_REPORTED`].
pub const COUNTER_SEEN: u32 = 24;
/// Entries of the map `COUNTERS`.
pub const COUNTER_ENTRIES: u32 = 32;

impl FlowKey {
    /// All zero.
    pub const ZERO: Self = Self {
        cookie: 0,
        local: [0; 16],
        remote: [0; 16],
        local_port: 0,
        remote_port: 0,
        protocol: 0,
        family: 0,
        vantage: 0,
        tunnel: 0,
    };
}

impl LinkKey {
    /// All zero.
    pub const ZERO: Self = Self {
        flow: FlowKey::ZERO,
        outer_local: [0; 16],
        outer_remote: [0; 16],
        tunnel_id: 0,
        vlan: 0,
        inner_vlan: 0,
    };

    /// Notes a VLAN tag (its control information); from outside to inside, the third and later ones are left out.
    #[inline(always)]
    pub fn tag(&mut self, control: u16) {
        let id = control & 0xfff;
        if self.vlan == 0 {
            self.vlan = id;
        } else if self.inner_vlan == 0 {
            self.inner_vlan = id;
        }
    }
}

impl FlowValue {
    /// All zero.
    pub const ZERO: Self = Self {
        sent: Count { packets: 0, bytes: 0 },
        received: Count { packets: 0, bytes: 0 },
        first_ns: 0,
        last_ns: 0,
        start_ns: 0,
        cgroup: 0,
        flags_sent: 0,
        flags_received: 0,
        opened: 0,
        first_direction: 0,
        state: 0,
        listener: 0,
        srtt_us: 0,
        srtt_max_us: 0,
        rtt_min_us: 0,
        retransmits: 0,
        retransmits_cached: 0,
        end: 0,
        error: 0,
        established: 0,
    };
}

impl LinkValue {
    /// All zero.
    pub const ZERO: Self = Self {
        sent: Count { packets: 0, bytes: 0 },
        received: Count { packets: 0, bytes: 0 },
        first_ns: 0,
        last_ns: 0,
        start_ns: 0,
        syn_ns: 0,
        flags_sent: 0,
        flags_received: 0,
        opened: 0,
        first_direction: 0,
        observed: 0,
        awaiting: 0,
        handshake_us: 0,
        end: 0,
        error: 0,
        reserved: 0,
    };
}

impl Sock {
    /// All zero.
    pub const ZERO: Self = Self {
        key: FlowKey::ZERO,
        start_ns: 0,
        connect_ns: 0,
        established_ns: 0,
        closed_ns: 0,
        touched_ns: 0,
        netns: 0,
        cgroup: 0,
        owner_cgroup: 0,
        owner_ns: 0,
        role: 0,
        pending: 0,
        retransmits_seen: 0,
        timeouts: 0,
        retransmits: 0,
        rst: 0,
        end: 0,
        error: 0,
        pid: 0,
        tid: 0,
        comm: [0; 16],
        protocol: 0,
        handshake: 0,
    };
}

const _: () = {
    assert!(size_of::<FlowKey>() == 48);
    assert!(size_of::<LinkKey>() == 88);
    assert!(size_of::<FlowValue>() == 120);
    assert!(size_of::<Sock>() == 184);
    assert!(size_of::<Meta>() == 24);
    assert!(size_of::<LinkValue>() == 104);
    assert!(size_of::<LinkMeta>() == 32);
    assert!(size_of::<Total>() == 24);
    assert!(size_of::<CgroupPath>() == 16 + CGROUP_PATH_MAX);
};

#[cfg(feature = "user")]
mod pod {
    // SAFETY: each type is repr(C), has no padding (the sizes above are the sums of their fields) and is valid for
    // every bit pattern.
    unsafe impl aya::Pod for super::FlowKey {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::LinkKey {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::LinkValue {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::LinkMeta {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::FlowValue {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::Sock {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::Meta {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::Total {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::CgroupPath {}
}
