//! The captures that stand in the repository, for comparison with tshark and as seeds of the fuzzer: made here, and
//! renewed by `WEIR_REGENERATE=1 cargo test -p weir-shipper --test replay`.

use std::path::{Path, PathBuf};

use crate::captures::*;

/// Where they stand, from the root of the checkout.
const FOLDERS: [&str; 2] = ["tests/integration/captures", "fuzz/corpus/capture_file"];

#[test]
fn committed_captures_are_current() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    for (name, bytes) in captures() {
        for folder in FOLDERS.map(|folder| root.join(folder)) {
            let path: PathBuf = folder.join(name);
            if std::env::var_os("WEIR_REGENERATE").is_some() {
                std::fs::create_dir_all(&folder).unwrap();
                std::fs::write(&path, &bytes).unwrap();
            }
            let found = std::fs::read(&path).unwrap_or_default();
            assert!(found == bytes, "{} is stale: WEIR_REGENERATE=1 renews it", path.display());
        }
    }
}

/// Name and content.
pub(crate) fn captures() -> [(&'static str, Vec<u8>); 3] {
    let mut talk = Talk::default();
    talk.handshake()
        .a(20 * MS, 101, 501, ACK, 100)
        .a(220 * MS, 101, 501, ACK, 100)
        .b(230 * MS, 501, 201, ACK, 300)
        .a(240 * MS, 201, 801, FIN | ACK, 0)
        .b(250 * MS, 801, 202, FIN | ACK, 0)
        .a(251 * MS, 202, 802, ACK, 0)
        .a(300 * MS, 900, 0, SYN, 0)
        .b(301 * MS, 0, 901, RST | ACK, 0);
    [
        ("connection.pcap", usual(1, &talk.frames)),
        ("tunnels.pcapng", tunnels()),
        ("protocols.pcap", protocols()),
    ]
}

/// Two interfaces, big-endian: tags and tunnels on one, raw IP on the other.
fn tunnels() -> Vec<u8> {
    let blocks = Blocks { big_endian: true };
    let inner = ip(A, B, 17, &udp(5000, 53, b"query"));
    let outer = |protocol: u8, payload: &[u8]| framed(&ip(A6, B6, protocol, payload));
    let vxlan = [&[8, 0, 0, 0, 0, 0, 77, 0][..], &framed(&inner)].concat();
    let geneve = [&[1, 0, 0x65, 0x58, 0, 0, 78, 0, 0, 0, 0, 0][..], &framed(&inner)].concat();
    let gre = [&[0x20, 0, 8, 0, 0, 0, 0, 79][..], &inner].concat();
    let frames = [
        outer(17, &udp(999, 4789, &vxlan)),
        outer(17, &udp(999, 8472, &vxlan)),
        outer(17, &udp(999, 6081, &geneve)),
        outer(47, &gre),
        outer(4, &inner),
        ethernet(0x88a8, &tagged(100, 0x8100, &tagged(7, 0x0800, &inner))),
        ethernet(0x0806, &[0; 28]),
    ];
    let mut file = [
        blocks.section(),
        blocks.interface(1, 0, "eth0", Some(9), 0),
        blocks.interface(101, 0, "tun0", None, 0),
    ]
    .concat();
    for (at, frame) in (START_NS as u64..).zip(frames) {
        file.extend(blocks.packet(0, at, &Frame::new(0, frame)));
    }
    file.extend(blocks.packet(1, START_NS as u64 / 1000, &Frame::new(0, inner)));
    file
}

/// Big-endian and in nanoseconds: fragments, ICMP with what it is about, SCTP, ESP, extension headers, padding, packets
/// that are cut by the snap length.
fn protocols() -> Vec<u8> {
    let whole = ip(A, B, 17, &udp(5000, 53, &[0; 32]));
    let fragment = |place: u16, more: u16, bytes: &[u8]| {
        let mut packet = ip(A, B, 17, bytes);
        packet[6..8].copy_from_slice(&(more | (place / 8)).to_be_bytes());
        framed(&packet)
    };
    let fragment6 = |place: u16, more: u16, bytes: &[u8]| {
        let header = [17, 0, (place >> 8) as u8, place as u8 | more as u8, 0, 0, 0, 9];
        framed(&ip(A6, B6, 44, &[&header[..], bytes].concat()))
    };
    let unreachable = [&[3, 3, 0, 0, 0, 0, 0, 0], &whole[..28]].concat();
    let hop_by_hop = [&[17, 0, 1, 4, 0, 0, 0, 0][..], &udp(7, 8, b"x")].concat();
    let mut padded = framed(&ip(A, B, 17, &udp(1, 2, b"")));
    padded.resize(60, 0);
    let frames = [
        fragment(0, 0x2000, &whole[20..44]),
        fragment(24, 0, &whole[44..]),
        fragment6(0, 1, &whole[20..44]),
        fragment6(24, 0, &whole[44..]),
        framed(&ip(A, B, 1, &[8, 0, 0, 0, 0, 1, 0, 1])),
        framed(&ip(B, A, 1, &[0, 0, 0, 0, 0, 1, 0, 1])),
        framed(&ip(B, A, 1, &unreachable)),
        framed(&ip(A6, B6, 58, &[135, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0])),
        framed(&ip(A, B, 132, &[0x9c, 0x40, 0, 80, 0, 0, 0, 0, 0, 0, 0, 0])),
        framed(&ip(A, B, 50, &[0, 0, 0, 1, 0, 0, 0, 1, 9, 9, 9, 9])),
        framed(&ip(A6, B6, 0, &hop_by_hop)),
        padded,
    ];
    let mut frames: Vec<Frame> =
        (0..).map(|step| step * MS + 7).zip(frames).map(|(at, data)| Frame::new(at, data)).collect();
    let long = framed(&ip(A, B, 17, &udp(5000, 53, &[0; 1000])));
    for kept in [42, 96] {
        frames.push(Frame { wire: Some(long.len() as u32), ..Frame::new(S, long[..kept].to_vec()) });
    }
    pcap(1, Look { big_endian: true, nanoseconds: true }, &frames)
}
