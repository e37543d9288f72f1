//! Identifiers: of events, of flows, and the Community ID.
//!
//! Event and flow ids are `UUIDv8` (RFC 9562, section 5.8): 122 bits of Weir's own. They are ranges, not random
//! numbers, because two random ids cost 16 bytes per flow in every format.

use std::net::IpAddr;

use sha1::{Digest, Sha1};

/// 16 bytes from the system's random source.
///
/// # Panics
/// When the kernel has no random source, which since Linux 3.17 can't happen to a running process.
pub fn random_id() -> [u8; 16] {
    let mut bytes = [0; 16];
    getrandom::fill(&mut bytes).expect("the kernel's getrandom(2) answers");
    bytes
}

/// The id of row `row` (20 bits) of batch `batch` (42 bits) of an epoch (of which 60 bits are kept).
pub fn event_id(epoch: &[u8; 16], batch: u64, row: u32) -> [u8; 16] {
    let epoch =
        u64::from_be_bytes([epoch[0], epoch[1], epoch[2], epoch[3], epoch[4], epoch[5], epoch[6], epoch[7]]);
    let low = (batch & ((1 << 42) - 1)) << 20 | u64::from(row & 0xf_ffff);
    uuid_v8(epoch >> 4, low)
}

/// The rows that one batch can number: 20 bits.
pub const EVENT_ROWS_MAX: u32 = 1 << 20;

/// The id of a flow: 48 bits of the node's boot id, 34 bits of the socket cookie, 40 bits of a hash over the flow's key
/// and its start, which tells apart the peers of one datagram socket.
pub fn flow_id(boot: u64, cookie: u64, hash: u64) -> [u8; 16] {
    let cookie = cookie & ((1 << 34) - 1);
    let high = (boot & ((1 << 48) - 1)) << 12 | cookie >> 22;
    let low = (cookie & ((1 << 22) - 1)) << 40 | hash & ((1 << 40) - 1);
    uuid_v8(high, low)
}

/// Places 60 + 62 bits around the version and the variant.
fn uuid_v8(high60: u64, low62: u64) -> [u8; 16] {
    let high = (high60 >> 12 & 0xffff_ffff_ffff) << 16 | 0x8000 | high60 & 0xfff;
    let low = 0x8000_0000_0000_0000 | low62 & 0x3fff_ffff_ffff_ffff;
    (u128::from(high) << 64 | u128::from(low)).to_be_bytes()
}

/// The usual text of a UUID: 8-4-4-4-12 lower-case hexadecimal digits.
pub fn uuid_text(id: &[u8; 16]) -> String {
    let hex = hex(id);
    format!("{}-{}-{}-{}-{}", &hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..])
}

/// Lower-case hexadecimal digits, two a byte.
pub fn hex(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    bytes
        .iter()
        .flat_map(|byte| [DIGITS[usize::from(byte >> 4)], DIGITS[usize::from(byte & 15)]])
        .map(char::from)
        .collect()
}

/// The Community ID, version 1, seed 0, of a conversation (specification: github.com/corelight/community-id-spec).
///
/// The result is the same for both directions. For ICMP and `ICMPv6` the ports are the message type and the type of its
/// answer, or type and code where there is none: then the direction is kept, as the specification asks.
pub fn community_id(src: IpAddr, dst: IpAddr, protocol: u8, src_port: u16, dst_port: u16) -> String {
    let (src, dst) = (octets(src), octets(dst));
    let one_way = match protocol {
        1 => icmp_is_one_way(src_port, ICMP_PAIRS),
        58 => icmp_is_one_way(src_port, ICMPV6_PAIRS),
        _ => false,
    };
    let ordered = one_way || (src.as_ref(), src_port) <= (dst.as_ref(), dst_port);
    let (a, b) =
        if ordered { ((&src, src_port), (&dst, dst_port)) } else { ((&dst, dst_port), (&src, src_port)) };
    let mut hash = Sha1::new();
    hash.update([0, 0]); // seed
    hash.update(a.0.as_ref());
    hash.update(b.0.as_ref());
    hash.update([protocol, 0]);
    if HAS_PORTS.contains(&protocol) {
        hash.update(a.1.to_be_bytes());
        hash.update(b.1.to_be_bytes());
    }
    let mut id = String::with_capacity(30);
    id.push_str("1:");
    base64(&hash.finalize(), &mut id);
    id
}

/// ICMP, TCP, UDP, ICMPv6, SCTP.
const HAS_PORTS: [u8; 5] = [1, 6, 17, 58, 132];

/// Message types that have an answer of another type, and that type (Community ID specification, ICMP tables).
pub const ICMP_PAIRS: &[(u16, u16)] =
    &[(8, 0), (0, 8), (13, 14), (14, 13), (15, 16), (16, 15), (10, 9), (9, 10), (17, 18), (18, 17)];

/// The same for `ICMPv6`.
pub const ICMPV6_PAIRS: &[(u16, u16)] = &[
    (128, 129),
    (129, 128),
    (133, 134),
    (134, 133),
    (135, 136),
    (136, 135),
    (130, 131),
    (131, 130),
    (144, 145),
    (145, 144),
    (139, 140),
    (140, 139),
];

fn icmp_is_one_way(message_type: u16, pairs: &[(u16, u16)]) -> bool {
    !pairs.iter().any(|(question, _)| *question == message_type)
}

enum Octets {
    V4([u8; 4]),
    V6([u8; 16]),
}

impl AsRef<[u8]> for Octets {
    fn as_ref(&self) -> &[u8] {
        match self {
            Self::V4(octets) => octets,
            Self::V6(octets) => octets,
        }
    }
}

fn octets(address: IpAddr) -> Octets {
    match address {
        IpAddr::V4(address) => Octets::V4(address.octets()),
        IpAddr::V6(address) => Octets::V6(address.octets()),
    }
}

/// Base64 with padding (RFC 4648, section 4).
fn base64(bytes: &[u8], out: &mut String) {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    for chunk in bytes.chunks(3) {
        let word =
            chunk.iter().fold(0u32, |word, byte| word << 8 | u32::from(*byte)) << (8 * (3 - chunk.len()));
        for place in 0..4 {
            if place <= chunk.len() {
                out.push(char::from(ALPHABET[(word >> (18 - 6 * place) & 63) as usize]));
            } else {
                out.push('=');
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(src: &str, dst: &str, protocol: u8, src_port: u16, dst_port: u16) -> String {
        community_id(src.parse().unwrap(), dst.parse().unwrap(), protocol, src_port, dst_port)
    }

    /// Vectors of the specification's baseline files and README.
    #[test]
    fn community_ids_match_the_specification() {
        let tcp = "1:LQU9qZlK+B5F3KDmev6m5PMibrg=";
        assert_eq!(id("128.232.110.120", "66.35.250.204", 6, 34855, 80), tcp);
        assert_eq!(id("66.35.250.204", "128.232.110.120", 6, 80, 34855), tcp);
        assert_eq!(id("192.168.1.52", "8.8.8.8", 17, 54585, 53), "1:d/FP5EW3wiY1vCndhwleRRKHowQ=");
        assert_eq!(id("192.168.0.89", "192.168.0.1", 1, 8, 0), "1:X0snYXpgwiv9TZtqg64sgzUn6Dk=");
        assert_eq!(id("192.168.170.8", "192.168.170.56", 132, 7, 80), "1:jQgCxbku+pNGw8WPbEc/TS/uTpQ=");
    }

    #[test]
    fn event_ids_are_ranges_of_uuid_version_8() {
        let epoch = [0xab; 16];
        let (first, second) = (event_id(&epoch, 7, 0), event_id(&epoch, 7, 1));
        assert_eq!(u128::from_be_bytes(second) - u128::from_be_bytes(first), 1);
        let text = uuid_text(&first);
        assert_eq!((&text[14..15], text.len()), ("8", 36));
        assert!("89ab".contains(&text[19..20]));
        assert_ne!(event_id(&epoch, 8, 0), first);
    }

    #[test]
    fn flow_ids_differ_by_cookie_and_hash() {
        let base = flow_id(1, 2, 3);
        assert!(flow_id(1, 3, 3) != base && flow_id(1, 2, 4) != base && flow_id(2, 2, 3) != base);
        assert_eq!(&uuid_text(&base)[14..15], "8");
    }

    #[test]
    fn base64_pads() {
        let text = |bytes: &[u8]| {
            let mut out = String::new();
            base64(bytes, &mut out);
            out
        };
        assert_eq!([text(b"f"), text(b"fo"), text(b"foo")], ["Zg==", "Zm8=", "Zm9v"]);
    }
}
