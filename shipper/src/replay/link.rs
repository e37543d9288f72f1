//! From a captured frame to its flow: link types, then the parser that the kernel programs use too.

use weir_shipper_ebpf::LinkKey;
use weir_shipper_ebpf::packet::{
    self, Bytes, ETHERTYPE_IPV4, ETHERTYPE_IPV6, ICMP, ICMP6, Load, Packet, TCP, TunnelPorts, UNPARSED,
};

/// LINKTYPE_ values (tcpdump.org/linktypes.html).
const NULL: u32 = 0;
const ETHERNET: u32 = 1;
const RAW: u32 = 101;
/// What DLT_RAW is on OpenBSD and elsewhere; some programs write it to files.
const RAW_OPENBSD: u32 = 14;
const RAW_ELSEWHERE: u32 = 12;
const LOOP: u32 = 108;
const LINUX_SLL: u32 = 113;
const PPI: u32 = 192;
const IPV4: u32 = 228;
const IPV6: u32 = 229;
const LINUX_SLL2: u32 = 276;

/// Per-packet information may hold another one; one is enough.
const PPI_DEPTH_MAX: u32 = 2;

/// A frame's flow, the sender as the local side, and what else its headers say.
#[derive(Clone, Copy, Debug)]
pub(super) struct Parsed {
    /// `flow.cookie` is the link: the index that the frame states, above; the file's interface, below.
    pub key: LinkKey,
    pub packet: Packet,
    /// TCP's window, unscaled.
    pub window: u16,
}

impl Parsed {
    /// Whether it is an IP packet whose addresses could be read.
    pub(super) fn is_ip(&self) -> bool {
        self.key.flow.family != 0 && self.key.flow.protocol != UNPARSED
    }

    /// Its IP bytes on the wire, of a frame of `wire_bytes`; without IP what follows the link header. A header that states none is one of a segmentation
    /// offload, or of a jumbogram: then what was on the wire after the link header counts.
    pub(super) fn ip_bytes(&self, wire_bytes: u32) -> u32 {
        match self.packet.ip_len {
            0 => wire_bytes.saturating_sub(self.packet.ip_at),
            stated => stated,
        }
    }
}

/// Reads a frame; `None` for a link type that is not known.
pub(super) fn parse(link: u32, interface: u32, data: &[u8]) -> Option<Parsed> {
    let mut key = LinkKey::ZERO;
    key.flow.cookie = u64::from(interface);
    let packet = frame(link, data, &mut key, PPI_DEPTH_MAX)?;
    let mut parsed = Parsed { key, packet, window: 0 };
    if key.flow.protocol == TCP && key.flow.family != 0 && !packet.later_fragment {
        let load = Bytes(data);
        if packet.cut {
            // The snap length may leave the ports and no more.
            let ports = load.load::<4>(packet.transport_at).unwrap_or_default();
            parsed.key.flow.local_port = u16::from_be_bytes([ports[0], ports[1]]);
            parsed.key.flow.remote_port = u16::from_be_bytes([ports[2], ports[3]]);
        } else {
            let window = load.load::<2>(packet.transport_at.saturating_add(14));
            parsed.window = window.map_or(u16::MAX, u16::from_be_bytes);
        }
    }
    Some(parsed)
}

fn frame(link: u32, data: &[u8], key: &mut LinkKey, depth: u32) -> Option<Packet> {
    let load = Bytes(data);
    let network = |at: u32, ethertype: u16, key: &mut LinkKey| {
        packet::network(&load, at, ethertype, &TunnelPorts::DEFAULT, true, key)
    };
    Some(match link {
        ETHERNET => packet::ethernet(&load, &TunnelPorts::DEFAULT, true, key),
        RAW | RAW_OPENBSD | RAW_ELSEWHERE => network(0, version(load.load::<1>(0)), key),
        IPV4 => network(0, ETHERTYPE_IPV4, key),
        IPV6 => network(0, ETHERTYPE_IPV6, key),
        LINUX_SLL => match load.load::<2>(14) {
            Some(ethertype) => network(16, u16::from_be_bytes(ethertype), key),
            None => cut(key),
        },
        LINUX_SLL2 => match load.load::<8>(0).zip(load.load::<4>(16)) {
            Some((header, _)) => {
                let index = u32::from_be_bytes([header[4], header[5], header[6], header[7]]);
                key.flow.cookie |= u64::from(index) << 32;
                network(20, u16::from_be_bytes([header[0], header[1]]), key)
            }
            None => cut(key),
        },
        NULL | LOOP => match load.load::<4>(0) {
            // NULL has the byte order of the host that captured, LOOP that of the network.
            Some(family) => network(4, ethertype_of(u32::from_le_bytes(family)), key),
            None => cut(key),
        },
        PPI if depth > 0 => {
            let Some(header) = load.load::<8>(0) else { return Some(cut(key)) };
            let length = u16::from_le_bytes([header[2], header[3]]);
            let inner = u32::from_le_bytes([header[4], header[5], header[6], header[7]]);
            match data.get(usize::from(length.max(8))..) {
                Some(data) => {
                    let mut packet = frame(inner, data, key, depth - 1)?;
                    packet.ip_at += u32::from(length.max(8));
                    packet.transport_at += u32::from(length.max(8));
                    packet
                }
                None => cut(key),
            }
        }
        _ => return None,
    })
}

/// The key, the sender as the local side, of the packet that an ICMP error is about, where it is TCP: the beginning of
/// a packet that the sender of the error received.
pub(super) fn refused_by_icmp(parsed: &Parsed, data: &[u8]) -> Option<LinkKey> {
    let flow = &parsed.key.flow;
    let unreachable = match flow.protocol {
        // Destination unreachable, but for "fragmentation needed", after which the sender goes on (RFC 792, RFC 1191).
        ICMP => flow.local_port == 3 && flow.remote_port != 4,
        // RFC 4443, section 3.1.
        ICMP6 => flow.local_port == 1,
        _ => false,
    };
    if !unreachable || parsed.packet.later_fragment || parsed.packet.cut {
        return None;
    }
    let load = Bytes(data);
    let mut key = parsed.key;
    let quoted = packet::ip(&load, parsed.packet.transport_at.checked_add(8)?, true, &mut key.flow);
    if key.flow.protocol != TCP || quoted.later_fragment || key.flow.family == 0 {
        return None;
    }
    let ports = load.load::<4>(quoted.transport_at)?;
    key.flow.local_port = u16::from_be_bytes([ports[0], ports[1]]);
    key.flow.remote_port = u16::from_be_bytes([ports[2], ports[3]]);
    // It was on the way in the other direction of the same tunnel.
    (key.outer_local, key.outer_remote) = (key.outer_remote, key.outer_local);
    Some(key)
}

fn version(first: Option<[u8; 1]>) -> u16 {
    match first.map(|[byte]| byte >> 4) {
        Some(4) => ETHERTYPE_IPV4,
        Some(6) => ETHERTYPE_IPV6,
        _ => 0,
    }
}

/// Address families of the systems that write these link types: AF_INET is 2 everywhere, AF_INET6 is not.
fn ethertype_of(family: u32) -> u16 {
    match if family > 0xffff { family.swap_bytes() } else { family } {
        2 => ETHERTYPE_IPV4,
        10 | 24 | 28 | 30 => ETHERTYPE_IPV6,
        _ => 0,
    }
}

fn cut(key: &mut LinkKey) -> Packet {
    key.flow.family = 0;
    key.flow.protocol = UNPARSED;
    Packet { cut: true, ..Packet::default() }
}
