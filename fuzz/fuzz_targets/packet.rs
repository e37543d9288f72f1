//! Any bytes as a packet: the first says what it begins with and which way it goes, the next ones how long it was and how
//! many segments it stands for.
#![no_main]

use libfuzzer_sys::fuzz_target;
use weir_shipper_ebpf::{
    LinkKey,
    packet::{Bytes, ETHERTYPE_IPV4, Packet, TunnelPorts, ethernet, network},
};

fn parse(start: u8, egress: bool, bytes: &[u8]) -> (LinkKey, Packet) {
    let (mut key, ports) = (LinkKey::ZERO, TunnelPorts::DEFAULT);
    let packet = match start & 3 {
        0 => network(&Bytes(bytes), 0, ETHERTYPE_IPV4, &ports, egress, &mut key),
        1 => network(&Bytes(bytes), 4, 0x8100, &ports, egress, &mut key),
        _ => ethernet(&Bytes(bytes), &ports, egress, &mut key),
    };
    (key, packet)
}

fuzz_target!(|input: (u8, u32, u16, &[u8])| {
    let (start, len, segments, bytes) = input;
    let (key, packet) = parse(start, start & 4 != 0, bytes);
    let present = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
    assert!(packet.cut || packet.ip_at <= present.max(14));
    assert!(packet.transport_at >= packet.ip_at);
    assert!(packet.wire_bytes(present, 1) <= u64::from(present));
    let wire = packet.wire_bytes(len, u64::from(segments) + 1);
    assert!(wire <= u64::from(len) + u64::from(segments) * u64::from(packet.headers));
    assert!(key.flow.family != 0 || (key.flow.protocol == 255 && key.flow.local == [0; 16]));

    // The other direction is the same packet with its sides exchanged.
    let (mirrored, again) = parse(start, start & 4 == 0, bytes);
    assert_eq!(packet, again);
    assert_eq!((key.flow.local, key.outer_remote), (mirrored.flow.remote, mirrored.outer_local));
});
