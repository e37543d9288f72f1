//! Capture files of every kind that is read, and of kinds that are not: packets, bytes, times and names are what was put
//! in, and what is wrong is said with its place.

use std::io::Write;

use crate::captures::*;
use flate2::{Compression, write::GzEncoder};
use weir_schema::values::{Orientation, Reporter, TimeQuality, TunnelType, Vantage};
use weir_shipper::flow::FlowRecord;
use weir_shipper::replay::FileError;

/// A question and its answer, 28 + 5 and 28 + 7 IP bytes.
fn exchange() -> Vec<Frame> {
    vec![
        Frame::new(0, framed(&ip(A, B, 17, &udp(5000, 53, b"query")))),
        Frame::new(2 * MS + 1000, framed(&ip(B, A, 17, &udp(53, 5000, b"answer!")))),
    ]
}

#[track_caller]
fn assert_exchange(records: &[FlowRecord]) {
    let [record] = records else { panic!("{records:?}") };
    assert_eq!(sums(record), [(1, 33), (1, 35)], "{record:?}");
    let FlowRecord { src_ip, src_port, dst_ip, dst_port, protocol, .. } = *record;
    assert_eq!((src_ip, src_port, dst_ip, dst_port, protocol), (A, 5000, B, 53, 17));
    assert_eq!((record.start_ns, record.end_ns), (START_NS, START_NS + 2 * MS + 1000));
    assert_eq!((record.reporter, record.vantage), (Reporter::Transit, Vantage::Interface));
    assert_eq!((record.orientation, record.opened), (Orientation::Observed, 1));
    assert_eq!(record.time_quality, TimeQuality::Replayed);
}

#[test]
fn pcap_in_both_byte_orders_and_units() {
    for big_endian in [false, true] {
        for nanoseconds in [false, true] {
            let mut frames = exchange();
            if nanoseconds {
                frames[1].at_ns += 7;
            }
            let (mut records, _) = replayed(pcap(1, Look { big_endian, nanoseconds }, &frames));
            if nanoseconds {
                assert_eq!(records[0].end_ns, START_NS + 2 * MS + 1007);
                records[0].end_ns -= 7;
            }
            assert_exchange(&records);
        }
    }
}

#[test]
fn every_link_type() {
    let sll = |packet: &[u8]| {
        let mut frame = vec![0, 0, 0, 1, 0, 6, 2, 0, 0, 0, 0, 1, 0, 0];
        frame.extend(if packet[0] >> 4 == 4 { [8, 0] } else { [0x86, 0xdd] });
        [frame, packet.to_vec()].concat()
    };
    let sll2 = |packet: &[u8]| {
        let mut frame = if packet[0] >> 4 == 4 { vec![8, 0] } else { vec![0x86, 0xdd] };
        frame.extend([0, 0, 0, 0, 0, 3, 0, 1, 0, 6, 2, 0, 0, 0, 0, 1, 0, 0]);
        [frame, packet.to_vec()].concat()
    };
    let family = |order: fn(u32) -> [u8; 4], v6: u32| {
        move |packet: &[u8]| [&order(if packet[0] >> 4 == 4 { 2 } else { v6 })[..], packet].concat()
    };
    let ppi = |packet: &[u8]| [&[0, 0, 12, 0, 1, 0, 0, 0, 9, 9, 9, 9][..], &framed(packet)].concat();
    type Wrap<'a> = Box<dyn Fn(&[u8]) -> Vec<u8> + 'a>;
    let links: Vec<(u32, Wrap<'_>)> = vec![
        (1, Box::new(framed)),
        (12, Box::new(<[u8]>::to_vec)),
        (14, Box::new(<[u8]>::to_vec)),
        (101, Box::new(<[u8]>::to_vec)),
        (113, Box::new(sll)),
        (276, Box::new(sll2)),
        (0, Box::new(family(u32::to_le_bytes, 24))),
        (0, Box::new(family(u32::to_be_bytes, 30))),
        (108, Box::new(family(u32::to_be_bytes, 28))),
        (192, Box::new(ppi)),
    ];
    for (link, wrap) in &links {
        for (a, b, header) in [(A, B, 20), (A6, B6, 40)] {
            let frames = [
                Frame::new(0, wrap(&ip(a, b, 17, &udp(5000, 53, b"query")))),
                Frame::new(MS, wrap(&ip(b, a, 17, &udp(53, 5000, b"answer!")))),
            ];
            let (records, report) = replayed(usual(*link, &frames));
            let [record] = &records[..] else { panic!("{link}: {records:?}") };
            assert_eq!(sums(record), [(1, header + 13), (1, header + 15)], "link type {link}");
            assert_eq!((record.src_ip, record.dst_ip, record.dst_port), (a, b, 53), "link type {link}");
            assert_eq!(report.other_packets, 0);
        }
    }
    for (link, a, b) in [(228, A, B), (229, A6, B6)] {
        let (records, _) = replayed(usual(link, &[Frame::new(0, ip(a, b, 17, &udp(1, 2, b"")))]));
        assert_eq!((records[0].src_ip, records[0].src_packets), (a, 1));
    }
    // Upper bits of the link type speak of the frame check sequence.
    let (records, _) = replayed(usual(1 | 0x2400_0000, &exchange()));
    assert_exchange(&records);
}

#[test]
fn an_unknown_link_type_is_said_and_its_packets_are_counted_apart() {
    let (records, report) = tried(usual(105, &exchange())).unwrap();
    assert_eq!((records.len(), report.unknown_link_packets), (0, 2));
    assert!(report.problems[0].contains("link type 105"), "{:?}", report.problems);
}

#[test]
fn pcapng_has_sections_interfaces_and_units_of_its_own() {
    for big_endian in [false, true] {
        let blocks = Blocks { big_endian };
        let frames = exchange();
        let micros = |frame: &Frame| (frame.at_ns / 1000) as u64;
        let file = [
            blocks.section(),
            blocks.interface(1, 0, "eth0", None, 0),
            // Name resolution, an unknown block, a custom one: passed over.
            blocks.block(4, &[0; 8]),
            blocks.block(0x1234, &[1, 2, 3]),
            blocks.interface(101, 64, "tun0", Some(9), -5),
            blocks.packet(0, micros(&frames[0]), &frames[0]),
            blocks.block(0xbad, &vec![7; 3_000_000]),
            blocks.packet(0, micros(&frames[1]), &frames[1]),
            blocks.packet(1, (START_NS + 5 * S + 123) as u64, &Frame::new(0, ip(A, B, 17, &udp(7, 8, b"")))),
            // Another section, of the other byte order, whose interface 0 has the same name.
            Blocks { big_endian: !big_endian }.section(),
            Blocks { big_endian: !big_endian }.interface(1, 0, "eth0", Some(0x80 | 20), 0),
            Blocks { big_endian: !big_endian }.packet(
                0,
                ((START_NS / S) as u64) << 20 | 1 << 19,
                &Frame::new(0, framed(&ip(A, B, 17, &udp(5000, 53, b"more")))),
            ),
        ]
        .concat();
        let (mut records, report) = replayed(file);
        records.sort_by_key(|record| record.src_port);
        let [tun, eth] = &records[..] else { panic!("{records:?}") };
        assert_eq!((tun.start_ns, tun.link.as_ref().unwrap().interface.as_ref()), (START_NS + 123, "tun0"));
        assert_eq!(sums(eth), [(2, 65), (1, 35)]);
        assert_eq!((eth.end_ns, eth.link.as_ref().unwrap().interface.as_ref()), (START_NS + S / 2, "eth0"));
        assert_eq!((report.totals.packets, report.totals.flows), (4, 2));
    }
}

#[test]
fn old_and_simple_packet_blocks_are_read() {
    for big_endian in [false, true] {
        let blocks = Blocks { big_endian };
        let frames = exchange();
        let mut cut = frames[1].clone();
        (cut.wire, cut.data) = (Some(cut.data.len() as u32), cut.data[..44].to_vec());
        let file = [
            blocks.section(),
            blocks.interface(1, 44, "", None, 0),
            blocks.obsolete_packet(0, (START_NS / 1000) as u64, &frames[0]),
            blocks.simple_packet(&cut),
        ]
        .concat();
        let (records, _) = replayed(file);
        let [record] = &records[..] else { panic!("{records:?}") };
        assert_eq!(sums(record), [(1, 33), (1, 35)]);
        assert_eq!((record.start_ns, record.end_ns), (START_NS, START_NS));
    }
}

#[test]
fn a_packet_seen_at_two_interfaces_is_counted_at_each() {
    let blocks = Blocks { big_endian: false };
    let frame = &exchange()[0];
    let ticks = (START_NS / 1000) as u64;
    let file = [
        blocks.section(),
        blocks.interface(1, 0, "a", None, 0),
        blocks.interface(1, 0, "b", None, 0),
        blocks.packet(0, ticks, frame),
        blocks.packet(1, ticks, frame),
    ]
    .concat();
    let (records, _) = replayed(file);
    let names: Vec<_> =
        records.iter().map(|record| record.link.as_ref().unwrap().interface.to_string()).collect();
    assert_eq!(names, ["a", "b"]);
    assert_ne!(records[0].flow_id, records[1].flow_id);
}

#[test]
fn gzip_and_zstd_are_told_by_their_first_bytes() {
    let file = usual(1, &exchange());
    let gzip = |bytes: &[u8]| {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    };
    assert_exchange(&replayed(gzip(&file)).0);
    // Several members, as `cat a.gz b.gz` makes them; here one file cut in two.
    assert_exchange(&replayed([gzip(&file[..50]), gzip(&file[50..])].concat()).0);
    let zstd = |bytes: &[u8]| zstd::encode_all(bytes, 1).unwrap();
    assert_exchange(&replayed(zstd(&file)).0);
    assert_exchange(&replayed([zstd(&file[..50]), zstd(&file[50..])].concat()).0);

    // Cut off: what came out before is kept, and the place is one of the uncompressed bytes.
    let packed = gzip(&file);
    let (records, report) = tried(packed[..packed.len() - 12].to_vec()).unwrap();
    assert!(!report.problems.is_empty() && records.len() <= 1);
    let [problem] = &report.problems[..] else { panic!("{report:?}") };
    assert!(problem.contains("memory"), "{problem}");
    let mut damaged = gzip(&usual(1, &vec![exchange()[0].clone(); 1000]));
    let middle = damaged.len() / 2;
    damaged[middle] ^= 0xff;
    match tried(damaged) {
        Ok((_, report)) => assert_eq!(report.problems.len(), 1, "{report:?}"),
        Err(error) => assert!(error.is_of_content(), "{error}"),
    }
}

#[test]
fn a_short_snap_length_changes_nothing_in_the_counts() {
    let long = framed(&ip(A, B, 17, &udp(5000, 53, &[0; 1000])));
    let frame = |kept: usize| Frame { wire: Some(long.len() as u32), ..Frame::new(0, long[..kept].to_vec()) };
    for kept in [42, 60, 200] {
        let (records, _) = replayed(usual(1, &[frame(kept)]));
        assert_eq!((records[0].src_bytes, records[0].dst_port), (1028, 53), "kept {kept}");
    }
    // The ports are gone, then the addresses.
    let (records, _) = replayed(usual(1, &[frame(36)]));
    assert_eq!((records[0].src_bytes, records[0].src_port, records[0].dst_port), (1028, 0, 0));
    let (records, report) = replayed(usual(1, &[frame(33), frame(14), frame(3), frame(0)]));
    assert_eq!((records.len(), records[0].protocol, records[0].src_packets), (1, 255, 4));
    assert_eq!(report.other_packets, 4);
    // TCP's ports are there, and no more.
    let segment = framed(&ip(A, B, 6, &tcp_window(PORTS, 1, 0, SYN, 1, 0)));
    let (records, _) =
        replayed(usual(1, &[Frame { wire: Some(54), ..Frame::new(0, segment[..40].to_vec()) }]));
    assert_eq!((records[0].src_port, records[0].dst_port, records[0].src_bytes), (40_000, 80, 40));
}

#[test]
fn lengths_of_zero_and_padding_are_understood() {
    // Before segmentation offload the IP header says nothing: what is on the wire counts.
    let mut offload = framed(&ip(A, B, 17, &udp(1, 2, &[0; 100])));
    (offload[16], offload[17]) = (0, 0);
    let mut frame = Frame::new(0, offload.clone());
    frame.data.truncate(60);
    frame.wire = Some(offload.len() as u32);
    assert_eq!(replayed(usual(1, &[frame])).0[0].src_bytes, 128);
    // A jumbogram's, or BIG TCP's.
    let mut jumbo = framed(&ip(A6, B6, 17, &udp(1, 2, &[0; 100])));
    (jumbo[18], jumbo[19]) = (0, 0);
    assert_eq!(replayed(usual(1, &[Frame::new(0, jumbo)])).0[0].src_bytes, 148);
    // Short frames are padded.
    let mut padded = framed(&ip(A, B, 17, &udp(1, 2, b"")));
    padded.resize(60, 0);
    assert_eq!(replayed(usual(1, &[Frame::new(0, padded)])).0[0].src_bytes, 28);
}

#[test]
fn fragments_count_once_each_and_the_first_has_the_ports() {
    let whole = ip(A, B, 17, &udp(5000, 53, &[0; 32]));
    let fragment = |offset: u16, more: bool, bytes: &[u8]| {
        let mut packet = ip(A, B, 17, bytes);
        let field = (offset / 8) | if more { 0x2000 } else { 0 };
        packet[6..8].copy_from_slice(&field.to_be_bytes());
        Frame::new(0, framed(&packet))
    };
    let frames = [fragment(0, true, &whole[20..44]), fragment(24, false, &whole[44..])];
    let (mut records, _) = replayed(usual(1, &frames));
    records.sort_by_key(|record| record.src_port);
    let [later, first] = &records[..] else { panic!("{records:?}") };
    assert_eq!((first.src_port, first.dst_port, first.src_bytes), (5000, 53, 44));
    assert_eq!((later.src_port, later.dst_port, later.src_bytes), (0, 0, 36));
}

#[test]
fn vlan_tags_and_tunnels_give_the_inner_flow_once() {
    let inner = ip(A, B, 17, &udp(5000, 53, b"query"));
    let outer = |protocol: u8, payload: &[u8]| framed(&ip(A6, B6, protocol, payload));
    let vxlan = [&[8, 0, 0, 0, 0, 0, 77, 0][..], &framed(&inner)].concat();
    let geneve = [&[1, 0, 0x65, 0x58, 0, 0, 78, 0, 0, 0, 0, 0][..], &framed(&inner)].concat();
    let gre = [&[0x20, 0, 8, 0, 0, 0, 0, 79][..], &inner].concat();
    let cases = [
        (outer(17, &udp(999, 4789, &vxlan)), TunnelType::Vxlan, Some(77)),
        (outer(17, &udp(999, 8472, &vxlan)), TunnelType::Vxlan, Some(77)),
        (outer(17, &udp(999, 6081, &geneve)), TunnelType::Geneve, Some(78)),
        (outer(47, &gre), TunnelType::Gre, Some(79)),
        (outer(4, &inner), TunnelType::Ipip, None),
    ];
    for (frame, kind, id) in cases {
        let (records, _) = replayed(usual(1, &[Frame::new(0, frame)]));
        let [record] = &records[..] else { panic!("{records:?}") };
        assert_eq!((sums(record)[0], record.src_ip, record.dst_port), ((1, 33), A, 53), "{kind:?}");
        let tunnel = record.link.as_ref().unwrap().tunnel.unwrap();
        assert_eq!((tunnel.kind, tunnel.id, tunnel.src_ip, tunnel.dst_ip), (kind, id, A6, B6));
    }
    let qinq = ethernet(0x88a8, &tagged(100, 0x8100, &tagged(0x3007, 0x0800, &inner)));
    let (records, _) = replayed(usual(1, &[Frame::new(0, qinq), exchange()[0].clone()]));
    let [tagged, plain] = &records[..] else { panic!("{records:?}") };
    let link = tagged.link.as_ref().unwrap();
    assert_eq!((link.vlan_id, link.inner_vlan_id, tagged.src_bytes), (100, 7, 33));
    assert_eq!(plain.link.as_ref().unwrap().vlan_id, 0);
}

#[test]
fn what_is_not_ip_is_counted_apart() {
    let frames = [
        Frame::new(0, ethernet(0x0806, &[0; 28])),
        Frame::new(0, vec![]),
        Frame::new(0, ethernet(38, &[0; 38])),
    ];
    let (records, report) = replayed(usual(1, &frames));
    assert_eq!((report.other_packets, report.totals.packets), (3, 3));
    // A record for each EtherType, as at an interface; 0 is what was cut off.
    let seen: Vec<_> = records.iter().map(|r| (r.protocol, r.src_port, r.dst_port, r.src_bytes)).collect();
    assert_eq!(seen, [(255, 0, 0x0806, 28), (255, 0, 0, 0), (255, 0, 38, 38)]);
    assert!(records.iter().all(|record| record.src_ip.is_unspecified() && record.dst_ip.is_unspecified()));
}

#[test]
fn an_empty_capture_is_no_problem_and_an_empty_file_is() {
    assert_eq!(replayed(usual(1, &[])).0, []);
    let blocks = Blocks { big_endian: true };
    assert_eq!(replayed([blocks.section(), blocks.interface(1, 0, "", None, 0)].concat()).0, []);
    for nothing in [&b""[..], b"\x0a", b"not a capture", b"\x1f\x8b", &[0xa1, 0xb2, 0xc3]] {
        let error = tried(nothing.to_vec()).unwrap_err();
        assert!(error.is_of_content(), "{error}");
    }
    let error = tried(b"not a capture".to_vec()).unwrap_err();
    assert_eq!(
        error.to_string(),
        "memory is not a capture file: it begins with 6e6f7420; expected pcap or pcapng, perhaps compressed by gzip or zstd"
    );
}

#[test]
fn a_file_that_is_cut_anywhere_gives_what_stands_before_and_says_where() {
    let look = Look { big_endian: false, nanoseconds: false };
    let frames = exchange();
    let blocks = Blocks { big_endian: false };
    let pcapng: Vec<Vec<u8>> = vec![
        blocks.section(),
        blocks.interface(1, 0, "eth0", None, 0),
        blocks.packet(0, (START_NS / 1000) as u64, &frames[0]),
        blocks.block(5, &[0; 20]),
        blocks.packet(0, (START_NS / 1000) as u64, &frames[1]),
    ];
    let packet = |index: usize| 16 + frames[index].data.len();
    let pcap_parts = [24, packet(0), packet(1)];
    let pcapng_parts: Vec<usize> = pcapng.iter().map(Vec::len).collect();
    for (file, parts) in [(pcap(1, look, &frames), &pcap_parts[..]), (pcapng.concat(), &pcapng_parts)] {
        let mut begins = vec![0];
        parts.iter().for_each(|part| begins.push(begins[begins.len() - 1] + part));
        for cut in 0..file.len() {
            let whole = *begins.iter().rev().find(|begin| **begin <= cut).unwrap();
            match tried(file[..cut].to_vec()) {
                Ok((records, report)) if whole == cut => {
                    assert_eq!(report.problems, Vec::<String>::new(), "cut at {cut}: {records:?}");
                }
                Ok((_, report)) => {
                    let text = &report.problems[0];
                    assert!(text.contains(&format!("cut off at byte {whole}:")), "cut at {cut}: {text}");
                }
                Err(FileError::Cut { offset: 0, .. } | FileError::Format { .. }) if cut < 24 => {}
                Err(error) => panic!("cut at {cut}: {error}"),
            }
        }
    }
}

#[test]
fn lengths_that_no_packet_has_are_damage_with_its_place() {
    let mut file = usual(1, &exchange());
    let second = 24 + 16 + exchange()[0].data.len();
    file[second + 8..second + 12].copy_from_slice(&u32::MAX.to_le_bytes());
    let (records, report) = tried(file).unwrap();
    assert_eq!((records.len(), records[0].src_packets), (1, 1));
    assert!(report.problems[0].contains(&format!("damaged at byte {second}")), "{:?}", report.problems);

    let blocks = Blocks { big_endian: false };
    let head = [blocks.section(), blocks.interface(1, 0, "", None, 0)].concat();
    let frame = &exchange()[0];
    let mut longer_inside = blocks.packet(0, 0, frame);
    longer_inside[20..24].copy_from_slice(&60_000u32.to_le_bytes());
    let mut other_end = blocks.packet(0, 0, frame);
    let last = other_end.len() - 1;
    other_end[last] = 1;
    let mut odd = blocks.packet(0, 0, frame);
    odd[4] += 1;
    let mut tiny = blocks.packet(0, 0, frame);
    tiny[4..8].copy_from_slice(&8u32.to_le_bytes());
    let mut huge = blocks.packet(0, 0, frame);
    huge[4..8].copy_from_slice(&0x4000_0000u32.to_le_bytes());
    for bad in [longer_inside, other_end, odd, tiny, huge, blocks.packet(3, 0, frame)] {
        let (_, report) = tried([head.clone(), bad].concat()).unwrap();
        let place = format!("damaged at byte {}", head.len());
        assert!(report.problems[0].contains(&place), "{:?}", report.problems);
    }
}

#[test]
fn records_are_deltas_of_intervals_of_the_captures_time() {
    let frame = |at_s: i64| Frame::new(at_s * S, framed(&ip(A, B, 17, &udp(5000, 53, b"query"))));
    let (records, _) = replayed(usual(1, &[frame(0), frame(9), frame(10), frame(35), frame(36), frame(400)]));
    let seen: Vec<_> = records
        .iter()
        .map(|r| (r.src_packets, r.opened, (r.start_ns - START_NS) / S, (r.end_ns - START_NS) / S))
        .collect();
    assert_eq!(seen, [(2, 1, 0, 9), (1, 0, 10, 10), (2, 0, 35, 36), (1, 1, 400, 400)]);
    assert_eq!(records[0].flow_id, records[2].flow_id);
    assert_ne!(records[0].flow_id, records[3].flow_id, "idle for longer than replay.idle");
    let sequence: Vec<_> = records.iter().map(|record| record.record_seq).collect();
    assert!(sequence.is_sorted_by(|a, b| a < b), "{sequence:?}");
}

#[test]
fn times_may_go_back_by_any_step() {
    let frame = |at_ns: i64| Frame::new(at_ns, framed(&ip(A, B, 17, &udp(5000, 53, b"query"))));
    let steps = [0, -MS, 5 * S, -900 * S, 0, i64::from(u32::MAX) * S - START_NS, -START_NS];
    let (records, report) = replayed(usual(1, &steps.map(frame)));
    assert_eq!(records.iter().map(|record| record.src_packets).sum::<u64>(), 7);
    assert!(records.iter().all(|record| record.start_ns <= record.end_ns));
    assert_eq!(report.totals.packets, 7);
}

#[test]
fn a_full_table_forgets_the_flows_that_were_silent_longest_and_counts_them() {
    let frame = |flow: u16| Frame::new(i64::from(flow), framed(&ip(A, B, 17, &udp(flow, 53, b"query"))));
    let frames: Vec<Frame> = (0..5000).map(frame).collect();
    let (records, report) = replayed(usual(1, &frames));
    assert_eq!((records.len(), report.totals.packets), (5000, 5000));
    assert!(report.totals.evicted >= 4000, "{report:?}");
    assert!(records.iter().all(|record| record.src_bytes == 33 && record.opened == 1));
}
