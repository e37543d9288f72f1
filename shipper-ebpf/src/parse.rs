//! From an IP header to a flow's key. Never fails: what is cut short is counted under what could be read of it.
//!
//! IPv4 (RFC 791), IPv6 with extension headers (RFC 8200, AH of RFC 4302), TCP, UDP, SCTP, ICMP and `ICMPv6`.

use aya_ebpf::{bindings::__sk_buff, helpers::bpf_skb_load_bytes};
use weir_shipper_ebpf::{COUNTER_PARSE_FAILED, FlowKey};

use crate::maps::count;

pub const TCP: u8 = 6;
pub const UDP: u8 = 17;
pub const ICMP: u8 = 1;
pub const ICMP6: u8 = 58;
pub const SCTP: u8 = 132;
/// What stands for the protocol of something that is not IP.
const UNPARSED: u8 = 255;

/// What the parser learns beside the key.
pub struct Packet {
    /// Bytes of IP, extension and transport headers: each segment of a GSO packet carries them.
    pub headers: u32,
    /// TCP flags, else 0.
    pub flags: u32,
}

#[repr(C)]
struct Ipv4 {
    version_ihl: u8,
    tos: u8,
    len: [u8; 2],
    id: [u8; 2],
    fragment: [u8; 2],
    ttl: u8,
    protocol: u8,
    checksum: [u8; 2],
    source: [u8; 4],
    destination: [u8; 4],
}

#[repr(C)]
struct Ipv6 {
    version_class_label: [u8; 4],
    len: [u8; 2],
    next_header: u8,
    hop_limit: u8,
    source: [u8; 16],
    destination: [u8; 16],
}

/// Copies a header out of the packet; `None` when the packet ends before it does.
#[inline(always)]
fn load<T>(skb: *mut __sk_buff, offset: u32) -> Option<T> {
    let mut header = core::mem::MaybeUninit::<T>::uninit();
    // SAFETY: the helper writes size_of::<T>() bytes or fails; T is a header of plain bytes.
    unsafe {
        if bpf_skb_load_bytes(skb.cast(), offset, header.as_mut_ptr().cast(), size_of::<T>() as u32) == 0 {
            Some(header.assume_init())
        } else {
            None
        }
    }
}

/// Reads the packet whose IP header is at `l3` and fills addresses, ports, protocol and family of `key`.
#[inline(always)]
pub fn parse(skb: *mut __sk_buff, l3: u32, egress: bool, key: &mut FlowKey) -> Packet {
    let mut offset = l3;
    let mut fragment = false;
    let Some(ip) = load::<Ipv4>(skb, l3) else { return unparsed(key) };
    match ip.version_ihl >> 4 {
        4 => {
            key.family = 4;
            key.protocol = ip.protocol;
            key.local[10] = 0xff;
            key.local[11] = 0xff;
            key.remote[10] = 0xff;
            key.remote[11] = 0xff;
            let (local, remote) =
                if egress { (ip.source, ip.destination) } else { (ip.destination, ip.source) };
            key.local[12..16].copy_from_slice(&local);
            key.remote[12..16].copy_from_slice(&remote);
            fragment = u16::from_be_bytes(ip.fragment) & 0x1fff != 0;
            offset += u32::from(ip.version_ihl & 0xf) * 4;
        }
        6 => {
            let Some(ip) = load::<Ipv6>(skb, l3) else { return unparsed(key) };
            key.family = 6;
            if egress {
                key.local = ip.source;
                key.remote = ip.destination;
            } else {
                key.local = ip.destination;
                key.remote = ip.source;
            }
            offset += 40;
            let mut next = ip.next_header;
            // Six in a row is more than any sender has a reason for; the seventh is counted as a protocol by number.
            for _ in 0..6 {
                if !matches!(next, 0 | 43 | 44 | 51 | 60 | 135) {
                    break;
                }
                let Some(header) = load::<[u8; 4]>(skb, offset) else {
                    fragment = true;
                    count(COUNTER_PARSE_FAILED);
                    break;
                };
                match next {
                    44 => {
                        fragment = fragment || u16::from_be_bytes([header[2], header[3]]) & 0xfff8 != 0;
                        offset += 8;
                    }
                    51 => offset += (u32::from(header[1]) + 2) * 4,
                    _ => offset += (u32::from(header[1]) + 1) * 8,
                }
                next = header[0];
                if fragment {
                    break;
                }
            }
            key.protocol = next;
        }
        _ => return unparsed(key),
    }
    let mut packet = Packet { headers: offset - l3, flags: 0 };
    if !fragment {
        transport(skb, offset, egress, key, &mut packet);
    }
    packet
}

#[inline(always)]
fn unparsed(key: &mut FlowKey) -> Packet {
    count(COUNTER_PARSE_FAILED);
    key.family = 0;
    key.protocol = UNPARSED;
    Packet { headers: 0, flags: 0 }
}

#[inline(always)]
fn transport(skb: *mut __sk_buff, offset: u32, egress: bool, key: &mut FlowKey, packet: &mut Packet) {
    let (source, destination) = match key.protocol {
        TCP => {
            let Some(tcp) = load::<[u8; 14]>(skb, offset) else { return count(COUNTER_PARSE_FAILED) };
            packet.flags = u32::from(tcp[13]);
            packet.headers += u32::from(tcp[12] >> 4) * 4;
            (u16::from_be_bytes([tcp[0], tcp[1]]), u16::from_be_bytes([tcp[2], tcp[3]]))
        }
        UDP | SCTP => {
            let Some(ports) = load::<[u8; 4]>(skb, offset) else { return count(COUNTER_PARSE_FAILED) };
            packet.headers += if key.protocol == UDP { 8 } else { 12 };
            (u16::from_be_bytes([ports[0], ports[1]]), u16::from_be_bytes([ports[2], ports[3]]))
        }
        ICMP | ICMP6 => {
            let Some(icmp) = load::<[u8; 2]>(skb, offset) else { return count(COUNTER_PARSE_FAILED) };
            (u16::from(icmp[0]), icmp_counterpart(key.protocol, icmp[0], icmp[1]))
        }
        _ => return,
    };
    if egress {
        key.local_port = source;
        key.remote_port = destination;
    } else {
        key.local_port = destination;
        key.remote_port = source;
    }
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
