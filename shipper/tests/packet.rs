//! The parser of packets, in the form that reads memory: what is put into tags and tunnels comes out with the same key,
//! each header's fields are where the standards have them, and nothing that is cut short makes it panic.

#![expect(clippy::unwrap_used, reason = "tests panic where they fail")]

use proptest::prelude::*;
use weir_shipper_ebpf::{
    FlowKey, LinkKey, TUNNEL_GENEVE, TUNNEL_GRE, TUNNEL_GRE_KEYED, TUNNEL_IPIP, TUNNEL_VXLAN,
    packet::{Bytes, Packet, TCP, TunnelPorts, UDP, ethernet, ip},
};

const ICMP: u8 = 1;

/// An IPv4 packet of `protocol` between 10.0.0.`source` and 10.0.0.`destination`.
fn ipv4(source: u8, destination: u8, protocol: u8, payload: &[u8]) -> Vec<u8> {
    let len = u16::try_from(20 + payload.len()).unwrap().to_be_bytes();
    let header = [0x45, 0, len[0], len[1], 0, 0, 0, 0, 64, protocol, 0, 0];
    [&header[..], &[10, 0, 0, source], &[10, 0, 0, destination], payload].concat()
}

/// As [`ipv4`], between fd00::`source` and fd00::`destination`.
fn ipv6(source: u8, destination: u8, next: u8, payload: &[u8]) -> Vec<u8> {
    let len = u16::try_from(payload.len()).unwrap().to_be_bytes();
    let address = |last: u8| [&[0xfd][..], &[0; 14], &[last]].concat();
    [&[0x60, 0, 0, 0, len[0], len[1], next, 64][..], &address(source), &address(destination), payload]
        .concat()
}

fn udp(source: u16, destination: u16, payload: &[u8]) -> Vec<u8> {
    let len = u16::try_from(8 + payload.len()).unwrap().to_be_bytes();
    [&source.to_be_bytes()[..], &destination.to_be_bytes(), &len, &[0, 0], payload].concat()
}

fn tcp(source: u16, destination: u16, flags: u8, payload: &[u8]) -> Vec<u8> {
    let ports = [source.to_be_bytes(), destination.to_be_bytes()].concat();
    // Sequence 7, acknowledgement 9, 24 bytes of header.
    [&ports[..], &[0, 0, 0, 7, 0, 0, 0, 9, 0x60, flags, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1], payload].concat()
}

fn frame(ethertype: u16, payload: &[u8]) -> Vec<u8> {
    [&[2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2][..], &ethertype.to_be_bytes(), payload].concat()
}

fn tagged(tags: &[(u16, u16)], ethertype: u16, payload: &[u8]) -> Vec<u8> {
    let mut kinds: Vec<u16> = tags.iter().map(|(kind, _)| *kind).collect();
    kinds.push(ethertype);
    let mut rest = Vec::new();
    for (n, (_, id)) in tags.iter().enumerate() {
        rest.extend_from_slice(&id.to_be_bytes());
        rest.extend_from_slice(&kinds[n + 1].to_be_bytes());
    }
    rest.extend_from_slice(payload);
    frame(kinds[0], &rest)
}

fn family(packet: &[u8]) -> u16 {
    if packet[0] >> 4 == 4 { 0x0800 } else { 0x86dd }
}

fn parse(frame: &[u8]) -> (LinkKey, Packet) {
    let mut key = LinkKey::ZERO;
    let packet = ethernet(&Bytes(frame), &TunnelPorts::DEFAULT, true, &mut key);
    (key, packet)
}

/// Every way to wrap an IP packet, by its number, with the tunnel and the id that come out.
fn wrap(way: usize, inner: &[u8]) -> (Vec<u8>, u8, u32) {
    let vni = |id: u32| id.to_be_bytes()[1..].to_vec();
    let vxlan = |ports: u16, payload: Vec<u8>| {
        let header = [vec![8, 0, 0, 0], vni(77), vec![0]].concat();
        udp(50_000, ports, &[header, payload].concat())
    };
    let geneve = |options: usize, kind: u16, payload: Vec<u8>| {
        let header = [vec![u8::try_from(options).unwrap(), 0], kind.to_be_bytes().to_vec(), vni(88), vec![0]];
        udp(50_000, 6081, &[header.concat(), vec![0; options * 4], payload].concat())
    };
    let gre = |flags: u16, kind: u16, rest: &[u8], payload: Vec<u8>| {
        [flags.to_be_bytes().to_vec(), kind.to_be_bytes().to_vec(), rest.to_vec(), payload].concat()
    };
    let bridged = frame(family(inner), inner);
    let protocol = if inner[0] >> 4 == 4 { 4 } else { 41 };
    let key = [0, 0, 0, 99];
    match way {
        0 => (ipv4(1, 2, UDP, &vxlan(4789, bridged)), TUNNEL_VXLAN, 77),
        1 => (ipv6(1, 2, UDP, &vxlan(8472, bridged)), TUNNEL_VXLAN, 77),
        2 => {
            let tagged = tagged(&[(0x8100, 5)], family(inner), inner);
            (ipv4(1, 2, UDP, &vxlan(4789, tagged)), TUNNEL_VXLAN, 77)
        }
        3 => (ipv4(1, 2, UDP, &geneve(0, 0x6558, bridged)), TUNNEL_GENEVE, 88),
        4 => (ipv6(1, 2, UDP, &geneve(63, family(inner), inner.to_vec())), TUNNEL_GENEVE, 88),
        5 => (ipv4(1, 2, 47, &gre(0, family(inner), &[], inner.to_vec())), TUNNEL_GRE, 0),
        6 => {
            let rest = [&[0; 4][..], &key, &[0; 4]].concat();
            (ipv4(1, 2, 47, &gre(0xb000, family(inner), &rest, inner.to_vec())), TUNNEL_GRE_KEYED, 99)
        }
        7 => (ipv6(1, 2, 47, &gre(0x2000, 0x6558, &key, bridged)), TUNNEL_GRE_KEYED, 99),
        8 => (ipv4(1, 2, protocol, inner), TUNNEL_IPIP, 0),
        _ => (ipv6(1, 2, protocol, inner), TUNNEL_IPIP, 0),
    }
}
const WAYS: usize = 10;

/// Inner packets of both families: TCP, UDP and ICMP.
fn inner_packets() -> Vec<Vec<u8>> {
    let (tcp, udp, icmp) = (tcp(40_000, 443, 2, &[5; 9]), udp(40_001, 53, &[6; 3]), vec![8, 0, 0, 0, 0, 1]);
    vec![
        ipv4(8, 9, TCP, &tcp),
        ipv4(8, 9, UDP, &udp),
        ipv4(8, 9, ICMP, &icmp),
        ipv6(8, 9, TCP, &tcp),
        ipv6(8, 9, UDP, &udp),
    ]
}

fn plain(packet: &[u8]) -> (FlowKey, Packet) {
    let mut key = FlowKey::ZERO;
    let parsed = ip(&Bytes(packet), 0, true, &mut key);
    (key, parsed)
}

#[test]
fn what_goes_into_a_tunnel_comes_out_with_the_same_key_and_size() {
    for inner in inner_packets() {
        let (expected, alone) = plain(&inner);
        assert!(!alone.cut && expected.local_port != 0);
        for way in 0..WAYS {
            let (outer, tunnel, id) = wrap(way, &inner);
            for tags in [&[][..], &[(0x8100, 10)], &[(0x88a8, 100), (0x8100, 0x2010)]] {
                let bytes = tagged(tags, family(&outer), &outer);
                let (key, packet) = parse(&bytes);
                assert_eq!(FlowKey { tunnel: 0, ..key.flow }, expected, "way {way}");
                assert_eq!((key.flow.tunnel, key.tunnel_id), (tunnel, id), "way {way}");
                assert_eq!((key.outer_local[15], key.outer_remote[15]), (1, 2), "way {way}");
                let seen: Vec<u16> = tags.iter().map(|(_, id)| id & 0xfff).collect();
                assert_eq!(key.vlan, seen.first().copied().unwrap_or(if way == 2 { 5 } else { 0 }));
                let len = u32::try_from(bytes.len()).unwrap();
                assert_eq!(packet.wire_bytes(len, 1), inner.len() as u64, "way {way}");
                assert_eq!(
                    (packet.headers, packet.flags, packet.seq),
                    (alone.headers, alone.flags, alone.seq)
                );
                // A super-packet of three segments repeats the inner headers twice.
                let twice = 2 * u64::from(alone.headers);
                assert_eq!(packet.wire_bytes(len, 3), inner.len() as u64 + twice);
            }
        }
    }
}

#[test]
fn the_outermost_of_two_tunnels_is_named_and_the_third_stays_closed() {
    let inner = ipv4(8, 9, TCP, &tcp(1, 2, 16, &[]));
    let (once, ..) = wrap(5, &inner);
    let (twice, ..) = wrap(0, &once);
    let (key, _) = parse(&frame(0x0800, &twice));
    assert_eq!((key.flow.tunnel, key.tunnel_id, key.flow.local_port), (TUNNEL_VXLAN, 77, 1));
    let (thrice, ..) = wrap(8, &twice);
    let (key, _) = parse(&frame(0x0800, &thrice));
    assert_eq!((key.flow.tunnel, key.flow.protocol, key.flow.local_port), (TUNNEL_IPIP, 47, 0));
}

#[test]
fn what_cannot_be_counted_by_its_content_is_the_tunnels_own_packet() {
    let inner = ipv4(8, 9, TCP, &tcp(1, 2, 16, &[]));
    let outer_flow = |packet: &[u8]| {
        let (key, parsed) = parse(&frame(family(packet), packet));
        assert_eq!((key.flow.tunnel, key.outer_local, key.flow.local[15]), (0, [0; 16], 1));
        assert_eq!(parsed.wire_bytes(14 + u32::try_from(packet.len()).unwrap(), 1), packet.len() as u64);
    };
    let (mut fragment, ..) = wrap(0, &inner);
    fragment[6] = 0x20;
    outer_flow(&fragment);
    let arp = frame(0x0806, &[0; 28]);
    outer_flow(&ipv4(1, 2, UDP, &udp(5, 4789, &[&[8, 0, 0, 0, 0, 0, 7, 0][..], &arp].concat())));
    // No VNI, another version of GRE, a header inside that is cut or is no IP header.
    outer_flow(&ipv4(1, 2, UDP, &udp(5, 4789, &[&[0; 8][..], &frame(0x0800, &inner)].concat())));
    outer_flow(&ipv4(1, 2, 47, &[&[0x30, 1, 0x88, 0x0b][..], &inner].concat()));
    outer_flow(&ipv4(1, 2, 4, &inner[..19]));
    outer_flow(&ipv4(1, 2, 4, &[0x42; 40]));
    outer_flow(&ipv4(1, 2, 41, &inner));
}

#[test]
fn other_ethertypes_and_fragments_are_told_apart() {
    let (key, packet) = parse(&frame(0x8847, &[0; 50]));
    assert_eq!((key.flow.family, key.flow.protocol, key.flow.remote_port), (0, 255, 0x8847));
    assert_eq!((packet.ethertype, packet.wire_bytes(64, 1)), (0x8847, 50));
    let mut later = ipv4(8, 9, UDP, &[9; 30]);
    later[7] = 3;
    let (key, packet) = parse(&frame(0x0800, &later));
    assert!(packet.fragment && packet.later_fragment && !packet.cut);
    assert_eq!((key.flow.protocol, key.flow.local_port), (UDP, 0));
    // Ethernet pads short frames; the IP packet ends before.
    let short = ipv4(8, 9, UDP, &udp(1, 2, &[]));
    let padded = [frame(0x0800, &short), vec![0; 18]].concat();
    assert_eq!(parse(&padded).1.wire_bytes(60, 1), 28);
}

#[test]
fn behind_extension_headers_the_transport_is_found() {
    let tcp = tcp(5, 6, 2, &[]);
    let headers = [&[60, 0][..], &[0; 6], &[44, 0], &[0; 6], &[TCP, 0, 0, 0], &[0; 4], &tcp].concat();
    let (key, packet) = plain(&ipv6(1, 2, 0, &headers));
    assert_eq!((key.protocol, key.local_port, packet.headers), (TCP, 5, 40 + 24 + 24));
    assert!(!packet.fragment);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn nothing_that_is_cut_or_made_up_panics(
        which in 0_usize..5,
        ways in prop::collection::vec(0..WAYS, 0..4),
        flips in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..6),
        cut in any::<prop::sample::Index>(),
        segments in 1_u64..50,
    ) {
        let mut packet = inner_packets().swap_remove(which);
        for way in ways {
            packet = wrap(way, &packet).0;
        }
        let mut bytes = frame(family(&packet), &packet);
        for (at, value) in flips {
            let at = at.index(bytes.len());
            bytes[at] = value;
        }
        let cut = &bytes[..cut.index(bytes.len() + 1)];
        let (key, parsed) = parse(cut);
        let len = u32::try_from(cut.len()).unwrap();
        prop_assert!(parsed.wire_bytes(len, 1) <= u64::from(len));
        let _many = parsed.wire_bytes(len, segments);
        // The other direction is the same packet with its sides exchanged.
        let mut mirrored = LinkKey::ZERO;
        let again = ethernet(&Bytes(cut), &TunnelPorts::DEFAULT, false, &mut mirrored);
        prop_assert_eq!(again, parsed);
        prop_assert_eq!(mirrored.flow.local, key.flow.remote);
        prop_assert_eq!(mirrored.outer_remote, key.outer_local);
        prop_assert_eq!(mirrored.tunnel_id, key.tunnel_id);
    }
}
