//! From the bytes of a packet to its flow's key: one source for the kernel programs and for capture files.
//!
//! Ethernet with VLAN tags (IEEE 802.1Q, 802.1ad), IPv4 (RFC 791), IPv6 with extension headers (RFC 8200, AH of
//! RFC 4302), TCP, UDP, SCTP, ICMP and `ICMPv6`; through VXLAN (RFC 7348), Geneve (RFC 8926), GRE (RFC 2784, 2890) and
//! IP in IP (RFC 2003, 4213, 2473) to the flow inside. Never fails: what is cut short is counted under what could be
//! read of it. Called by the kernel programs, where everything is inlined, and by whoever reads capture files.

use crate::{FlowKey, LinkKey, TUNNEL_GENEVE, TUNNEL_GRE, TUNNEL_GRE_KEYED, TUNNEL_IPIP, TUNNEL_VXLAN};

/// IANA protocol numbers.
pub const TCP: u8 = 6;
/// See [`TCP`].
pub const UDP: u8 = 17;
/// See [`TCP`].
pub const ICMP: u8 = 1;
/// See [`TCP`].
pub const ICMP6: u8 = 58;
/// See [`TCP`].
pub const SCTP: u8 = 132;
const IPIP: u8 = 4;
const IPV6_IN_IP: u8 = 41;
const GRE: u8 = 47;
/// What stands for the protocol of something that is not IP.
pub const UNPARSED: u8 = 255;

/// TCP flags (RFC 9293).
pub const FLAG_FIN: u32 = 1;
/// See [`FLAG_FIN`].
pub const FLAG_SYN: u32 = 2;
/// See [`FLAG_FIN`].
pub const FLAG_RST: u32 = 4;
/// See [`FLAG_FIN`].
pub const FLAG_ACK: u32 = 16;

/// EtherTypes.
pub const ETHERTYPE_IPV4: u16 = 0x0800;
/// See [`ETHERTYPE_IPV4`].
pub const ETHERTYPE_IPV6: u16 = 0x86dd;
/// Transparent Ethernet bridging: an Ethernet frame follows.
const ETHERTYPE_BRIDGED: u16 = 0x6558;

/// How many tunnels are opened, one within the other.
const TUNNELS_MAX: u32 = 2;
/// How many VLAN tags are passed over, at each level.
const TAGS_MAX: u32 = 3;

/// The bytes of a packet.
pub trait Load {
    /// Copies `N` bytes at an offset; `None` where the packet ends before them.
    fn load<const N: usize>(&self, at: u32) -> Option<[u8; N]>;
}

/// A packet in memory, which may be cut short.
#[derive(Clone, Copy, Debug)]
pub struct Bytes<'a>(pub &'a [u8]);

impl Load for Bytes<'_> {
    fn load<const N: usize>(&self, at: u32) -> Option<[u8; N]> {
        self.0.get(at as usize..)?.first_chunk().copied()
    }
}

/// UDP ports by which tunnels are known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TunnelPorts {
    /// VXLAN: 4789 by IANA, 8472 by Linux's default; 0 for none.
    pub vxlan: [u16; 2],
    /// Geneve: 6081; 0 for none.
    pub geneve: u16,
}

impl TunnelPorts {
    /// The usual ones.
    pub const DEFAULT: Self = Self { vxlan: [4789, 8472], geneve: 6081 };
}

/// What the parser learns beside the key.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Packet {
    /// Offset of the IP header that is counted: of a tunnel the inner one. Of what is not IP, the end of the link header.
    pub ip_at: u32,
    /// Bytes of the IP packet as its header states them; 0 where it doesn't (jumbograms) and without IP.
    pub ip_len: u32,
    /// Offset of the transport header.
    pub transport_at: u32,
    /// Bytes of IP, extension and transport headers: each segment of a GSO packet carries them.
    pub headers: u32,
    /// TCP flags, else 0.
    pub flags: u32,
    /// TCP sequence number, else 0.
    pub seq: u32,
    /// TCP acknowledgement number, else 0.
    pub ack: u32,
    /// The EtherType of what is not IP, else 0.
    pub ethertype: u16,
    /// A fragment of an IP packet, the first one included.
    pub fragment: bool,
    /// A fragment without transport header: any but the first.
    pub later_fragment: bool,
    /// A header was cut short, or makes no sense.
    pub cut: bool,
}

impl Packet {
    /// IP bytes on the wire of a packet of `len` bytes, counted from where offsets are, that is sent as `segments`.
    /// Padding after the IP packet is left out.
    #[inline(always)]
    pub fn wire_bytes(&self, len: u32, segments: u64) -> u64 {
        let there = len.saturating_sub(self.ip_at);
        let whole = if self.ip_len != 0 && self.ip_len <= there { self.ip_len } else { there };
        u64::from(whole) + (segments - 1) * u64::from(self.headers)
    }
}

/// Reads a frame that begins with an Ethernet header.
#[inline(always)]
pub fn ethernet(load: &impl Load, ports: &TunnelPorts, egress: bool, key: &mut LinkKey) -> Packet {
    let Some(header) = load.load::<14>(0) else {
        unparsed(&mut key.flow);
        return Packet { cut: true, ..Packet::default() };
    };
    let ethertype = u16::from_be_bytes([header[12], header[13]]);
    network(load, 14, ethertype, ports, egress, key)
}

/// Reads a packet from `at` on, where something of this EtherType begins: VLAN tags, IP, tunnels.
///
/// `key` must be zero but for the link, the vantage and VLAN tags that were met before. With `egress` the sender is the
/// local side, else the receiver; of a tunnel's outer addresses too.
#[inline(always)]
pub fn network(
    load: &impl Load,
    at: u32,
    ethertype: u16,
    ports: &TunnelPorts,
    egress: bool,
    key: &mut LinkKey,
) -> Packet {
    let (at, ethertype) = tags(load, at, ethertype, key);
    if ethertype != ETHERTYPE_IPV4 && ethertype != ETHERTYPE_IPV6 {
        unparsed(&mut key.flow);
        key.flow.remote_port = ethertype;
        return Packet { ip_at: at, transport_at: at, ethertype, ..Packet::default() };
    }
    let mut packet = ip(load, at, egress, &mut key.flow);
    for _ in 0..TUNNELS_MAX {
        let Some(inner) = inner(load, ports, &packet, egress, key) else { break };
        if key.flow.tunnel == 0 {
            key.flow.tunnel = inner.tunnel;
            key.tunnel_id = inner.id;
            key.outer_local = key.flow.local;
            key.outer_remote = key.flow.remote;
        }
        key.flow.local_port = 0;
        key.flow.remote_port = 0;
        packet = ip(load, inner.at, egress, &mut key.flow);
    }
    packet
}

/// Passes over VLAN tags. The first two are part of the key; a tag without an id (802.1p) is none.
#[inline(always)]
fn tags(load: &impl Load, mut at: u32, mut ethertype: u16, key: &mut LinkKey) -> (u32, u16) {
    for _ in 0..TAGS_MAX {
        if !matches!(ethertype, 0x8100 | 0x88a8 | 0x9100) {
            break;
        }
        let Some(tag) = load.load::<4>(at) else { break };
        key.tag(u16::from_be_bytes([tag[0], tag[1]]));
        ethertype = u16::from_be_bytes([tag[2], tag[3]]);
        at += 4;
    }
    (at, ethertype)
}

/// An IP packet within a tunnel.
struct Inner {
    tunnel: u8,
    id: u32,
    at: u32,
}

/// Finds the IP packet in a tunnel. `None` for what is no tunnel, and for what can't be counted by its content: a
/// fragment, something other than IP inside, a header that makes no sense. That is counted as the outer packet.
#[inline(always)]
fn inner(
    load: &impl Load,
    ports: &TunnelPorts,
    outer: &Packet,
    egress: bool,
    key: &mut LinkKey,
) -> Option<Inner> {
    if outer.fragment || outer.cut {
        return None;
    }
    let at = outer.transport_at;
    let (inner, ethertype) = match key.flow.protocol {
        UDP => {
            let port = if egress { key.flow.remote_port } else { key.flow.local_port };
            if port == 0 {
                return None;
            }
            if port == ports.vxlan[0] || port == ports.vxlan[1] {
                vxlan(load, at + 8)?
            } else if port == ports.geneve {
                geneve(load, at + 8)?
            } else {
                return None;
            }
        }
        IPIP => (Inner { tunnel: TUNNEL_IPIP, id: 0, at }, ETHERTYPE_IPV4),
        IPV6_IN_IP => (Inner { tunnel: TUNNEL_IPIP, id: 0, at }, ETHERTYPE_IPV6),
        GRE => gre(load, at)?,
        _ => return None,
    };
    let (at, ethertype) = if ethertype == ETHERTYPE_BRIDGED {
        let [high, low] = load.load::<2>(inner.at + 12)?;
        tags(load, inner.at + 14, u16::from_be_bytes([high, low]), key)
    } else {
        (inner.at, ethertype)
    };
    // So much at least there must be: then the inner packet can stand for the outer one.
    let header = load.load::<20>(at)?;
    match (ethertype, header[0] >> 4) {
        (ETHERTYPE_IPV4, 4) if header[0] & 0xf >= 5 => Some(Inner { at, ..inner }),
        (ETHERTYPE_IPV6, 6) => load.load::<20>(at + 20).map(|_| Inner { at, ..inner }),
        _ => None,
    }
}

/// RFC 7348, section 5: flags, of which I must be set, and the VNI.
#[inline(always)]
fn vxlan(load: &impl Load, at: u32) -> Option<(Inner, u16)> {
    let header = load.load::<8>(at)?;
    if header[0] & 0x08 == 0 {
        return None;
    }
    let id = u32::from_be_bytes([0, header[4], header[5], header[6]]);
    Some((Inner { tunnel: TUNNEL_VXLAN, id, at: at + 8 }, ETHERTYPE_BRIDGED))
}

/// RFC 8926, section 3.4: version 0, options of variable length, protocol, VNI.
#[inline(always)]
fn geneve(load: &impl Load, at: u32) -> Option<(Inner, u16)> {
    let header = load.load::<8>(at)?;
    if header[0] >> 6 != 0 {
        return None;
    }
    let id = u32::from_be_bytes([0, header[4], header[5], header[6]]);
    let ethertype = u16::from_be_bytes([header[2], header[3]]);
    Some((Inner { tunnel: TUNNEL_GENEVE, id, at: at + 8 + u32::from(header[0] & 0x3f) * 4 }, ethertype))
}

/// RFC 2784 and 2890: version 0, no routing; checksum, key and sequence number may follow. ERSPAN, which carries copies
/// of packets, and PPTP (version 1) are left as they are.
#[inline(always)]
fn gre(load: &impl Load, at: u32) -> Option<(Inner, u16)> {
    let header = load.load::<4>(at)?;
    let flags = u16::from_be_bytes([header[0], header[1]]);
    if flags & 0x4007 != 0 {
        return None;
    }
    let mut end = at + 4 + if flags & 0x8000 != 0 { 4 } else { 0 };
    let (mut tunnel, mut id) = (TUNNEL_GRE, 0);
    if flags & 0x2000 != 0 {
        id = u32::from_be_bytes(load.load::<4>(end)?);
        tunnel = TUNNEL_GRE_KEYED;
        end += 4;
    }
    if flags & 0x1000 != 0 {
        end += 4;
    }
    Some((Inner { tunnel, id, at: end }, u16::from_be_bytes([header[2], header[3]])))
}

/// Reads the packet whose IP header is at `l3` and fills addresses, ports, protocol and family of `key`. Tunnels stay
/// closed.
#[inline(always)]
pub fn ip(load: &impl Load, l3: u32, egress: bool, key: &mut FlowKey) -> Packet {
    let mut packet = Packet { ip_at: l3, transport_at: l3, ..Packet::default() };
    let mut offset = l3;
    let Some(ip) = load.load::<20>(l3) else {
        unparsed(key);
        packet.cut = true;
        return packet;
    };
    match ip[0] >> 4 {
        4 => {
            key.family = 4;
            key.protocol = ip[9];
            // Of a tunnel the outer addresses stood here before.
            let (mut source, mut destination) = ([0; 16], [0; 16]);
            (source[10], source[11], destination[10], destination[11]) = (0xff, 0xff, 0xff, 0xff);
            source[12..16].copy_from_slice(&ip[12..16]);
            destination[12..16].copy_from_slice(&ip[16..20]);
            sides(source, destination, egress, key);
            packet.ip_len = u32::from(u16::from_be_bytes([ip[2], ip[3]]));
            let fragment = u16::from_be_bytes([ip[6], ip[7]]) & 0x3fff;
            packet.fragment = fragment != 0;
            packet.later_fragment = fragment & 0x1fff != 0;
            offset += u32::from(ip[0] & 0xf) * 4;
            if ip[0] & 0xf < 5 {
                packet.cut = true;
                return packet;
            }
        }
        6 => {
            let Some(ip) = load.load::<40>(l3) else {
                unparsed(key);
                packet.cut = true;
                return packet;
            };
            key.family = 6;
            let (mut source, mut destination) = ([0; 16], [0; 16]);
            source.copy_from_slice(&ip[8..24]);
            destination.copy_from_slice(&ip[24..40]);
            sides(source, destination, egress, key);
            let payload = u32::from(u16::from_be_bytes([ip[4], ip[5]]));
            packet.ip_len = if payload == 0 { 0 } else { payload + 40 };
            offset += 40;
            let mut next = ip[6];
            // Six in a row is more than any sender has a reason for; the seventh is counted as a protocol by number.
            for _ in 0..6 {
                if !matches!(next, 0 | 43 | 44 | 51 | 60 | 135) {
                    break;
                }
                let Some(header) = load.load::<4>(offset) else {
                    packet.cut = true;
                    break;
                };
                match next {
                    44 => {
                        let fragment = u16::from_be_bytes([header[2], header[3]]);
                        packet.fragment = packet.fragment || fragment & 0xfff9 != 0;
                        packet.later_fragment = packet.later_fragment || fragment & 0xfff8 != 0;
                        offset += 8;
                    }
                    51 => offset += (u32::from(header[1]) + 2) * 4,
                    _ => offset += (u32::from(header[1]) + 1) * 8,
                }
                next = header[0];
                if packet.later_fragment {
                    break;
                }
            }
            key.protocol = next;
        }
        _ => {
            unparsed(key);
            packet.cut = true;
            return packet;
        }
    }
    packet.transport_at = offset;
    packet.headers = offset - l3;
    if !packet.later_fragment && !packet.cut {
        transport(load, offset, egress, key, &mut packet);
    }
    packet
}

#[inline(always)]
fn sides(source: [u8; 16], destination: [u8; 16], egress: bool, key: &mut FlowKey) {
    (key.local, key.remote) = if egress { (source, destination) } else { (destination, source) };
}

#[inline(always)]
fn unparsed(key: &mut FlowKey) {
    key.family = 0;
    key.protocol = UNPARSED;
}

#[inline(always)]
fn transport(load: &impl Load, at: u32, egress: bool, key: &mut FlowKey, packet: &mut Packet) {
    let (source, destination) = match key.protocol {
        TCP => {
            let Some(tcp) = load.load::<14>(at) else {
                packet.cut = true;
                return;
            };
            packet.flags = u32::from(tcp[13]);
            packet.seq = u32::from_be_bytes([tcp[4], tcp[5], tcp[6], tcp[7]]);
            packet.ack = u32::from_be_bytes([tcp[8], tcp[9], tcp[10], tcp[11]]);
            packet.headers += u32::from(tcp[12] >> 4) * 4;
            (u16::from_be_bytes([tcp[0], tcp[1]]), u16::from_be_bytes([tcp[2], tcp[3]]))
        }
        UDP | SCTP => {
            let Some(ports) = load.load::<4>(at) else {
                packet.cut = true;
                return;
            };
            packet.headers += if key.protocol == UDP { 8 } else { 12 };
            (u16::from_be_bytes([ports[0], ports[1]]), u16::from_be_bytes([ports[2], ports[3]]))
        }
        ICMP | ICMP6 => {
            let Some(icmp) = load.load::<2>(at) else {
                packet.cut = true;
                return;
            };
            (u16::from(icmp[0]), icmp_counterpart(key.protocol, icmp[0], icmp[1]))
        }
        _ => return,
    };
    (key.local_port, key.remote_port) = if egress { (source, destination) } else { (destination, source) };
}

/// The second "port" of an ICMP message by Community ID v1: the type that answers it, else its code.
#[inline(always)]
fn icmp_counterpart(protocol: u8, kind: u8, code: u8) -> u16 {
    let counterpart = if protocol == ICMP {
        match kind {
            0 => 8,
            8 => 0,
            9 => 10,
            10 => 9,
            13 => 14,
            14 => 13,
            15 => 16,
            16 => 15,
            17 => 18,
            18 => 17,
            _ => code,
        }
    } else {
        match kind {
            128 => 129,
            129 => 128,
            130 => 131,
            131 => 130,
            133 => 134,
            134 => 133,
            135 => 136,
            136 => 135,
            139 => 140,
            140 => 139,
            144 => 145,
            145 => 144,
            _ => code,
        }
    };
    u16::from(counterpart)
}
