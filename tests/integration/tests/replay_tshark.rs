//! Every capture of a folder: packets, IP bytes and 5-tuples as tshark has them, packet by packet summed up.
//!
//! The folder is `WEIR_CAPTURES`, else `../shared/captures` beside the checkout; the committed ones of
//! `tests/integration/captures` are always read. tshark dissects as Weir does on purpose: fragments are not joined,
//! and of a tunnel that Weir opens (VXLAN, Geneve, GRE, IP in IP) the innermost packet counts.
#![expect(clippy::unwrap_used, reason = "tests panic where they fail")]

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::Command;

use weir_common::id::{ICMP_PAIRS, ICMPV6_PAIRS};
use weir_shipper::flow::FlowRecord;
use weir_shipper::replay::{Replay, TableOptions};

/// Source, its port, destination, its port, protocol.
type Tuple = (IpAddr, u16, IpAddr, u16, u8);
/// Packets and IP bytes that the tuple's source sent.
type Sums = BTreeMap<Tuple, (u64, u64)>;

#[test]
fn captures_give_what_tshark_computes() {
    let Some(tshark) = tshark() else { return };
    let files = captures();
    let (mut packets, mut tuples) = (0, 0);
    let mut problems = Vec::new();
    for file in &files {
        let expected = of_tshark(&tshark, file);
        let found = of_weir(file);
        packets += expected.values().map(|(packets, _)| packets).sum::<u64>();
        tuples += expected.len();
        for (tuple, sums) in &expected {
            if found.get(tuple) != Some(sums) {
                problems.push(format!(
                    "{}: {tuple:?}: tshark {sums:?}, Weir {:?}",
                    file.display(),
                    found.get(tuple)
                ));
            }
        }
        for (tuple, sums) in found.iter().filter(|(tuple, _)| !expected.contains_key(tuple)) {
            problems.push(format!("{}: {tuple:?}: tshark nothing, Weir {sums:?}", file.display()));
        }
    }
    println!("{} captures, {packets} IP packets, {tuples} directed 5-tuples", files.len());
    assert!(problems.is_empty(), "{} differences:\n{}", problems.len(), problems.join("\n"));
    assert!(packets > 0);
}

fn of_weir(file: &Path) -> Sums {
    let options = TableOptions {
        interval_ns: 10_000_000_000,
        idle_ns: 120_000_000_000,
        tcp_idle_ns: 3_600_000_000_000,
        entries: 1000,
    };
    let (records, report) = Replay::of_bytes(std::fs::read(file).unwrap(), options).unwrap();
    assert_eq!(report.problems, Vec::<String>::new(), "{}", file.display());
    let mut sums = Sums::new();
    let mut add = |tuple, packets, bytes| {
        if packets > 0 {
            let sum = sums.entry(tuple).or_default();
            sum.0 += packets;
            sum.1 += bytes;
        }
    };
    for record in &records {
        if record.protocol == 255 {
            // Not IP.
            continue;
        }
        let FlowRecord { src_ip, src_port, dst_ip, dst_port, protocol, .. } = *record;
        add((src_ip, src_port, dst_ip, dst_port, protocol), record.src_packets, record.src_bytes);
        add((dst_ip, dst_port, src_ip, src_port, protocol), record.dst_packets, record.dst_bytes);
    }
    sums
}

const FIELDS: [&str; 23] = [
    "frame.len",
    "frame.protocols",
    "ip.src",
    "ip.dst",
    "ip.proto",
    "ip.len",
    "ip.frag_offset",
    "ipv6.src",
    "ipv6.dst",
    "ipv6.nxt",
    "ipv6.plen",
    "ipv6.hopopts.nxt",
    "ipv6.routing.nxt",
    "ipv6.fraghdr.nxt",
    "ipv6.dstopts.nxt",
    "tcp.port",
    "udp.port",
    "sctp.port",
    "icmp.type",
    "icmp.code",
    "icmpv6.type",
    "icmpv6.code",
    "ah.next_header",
];

/// One pass of tshark over a file.
fn of_tshark(tshark: &Path, file: &Path) -> Sums {
    let mut command = Command::new(tshark);
    command.args(["-n", "-T", "fields", "-E", "occurrence=a", "-E", "aggregator=,", "-E", "separator=/t"]);
    command.args(["-o", "ip.defragment:FALSE", "-o", "ipv6.defragment:FALSE"]);
    command.args(["-d", "udp.port==8472,vxlan"]);
    FIELDS.iter().for_each(|field| {
        command.args(["-e", field]);
    });
    let output = command.arg("-r").arg(file).output().unwrap();
    assert!(output.status.success(), "{}: {}", file.display(), String::from_utf8_lossy(&output.stderr));
    let mut sums = Sums::new();
    for line in String::from_utf8_lossy(&output.stdout).lines() {
        let values: BTreeMap<&str, Vec<&str>> = FIELDS
            .iter()
            .zip(line.split('\t'))
            .map(|(field, values)| (*field, values.split(',').filter(|value| !value.is_empty()).collect()))
            .collect();
        let protocols = values["frame.protocols"].join(",");
        if let Some((tuple, bytes)) = packet(&protocols, &values) {
            let sum = sums.entry(tuple).or_default();
            sum.0 += 1;
            sum.1 += bytes;
        }
    }
    sums
}

/// The tuple and the IP bytes of a packet, by the layers that tshark found.
fn packet(protocols: &str, values: &BTreeMap<&str, Vec<&str>>) -> Option<(Tuple, u64)> {
    let layers: Vec<&str> = protocols.split(':').collect();
    let (mut v4, mut v6, mut udp) = (0, 0, 0);
    let mut found = None;
    for (index, layer) in layers.iter().enumerate() {
        let next = layers.get(index + 1).copied().unwrap_or_default();
        match *layer {
            "ip" => {
                found = Some((4, v4));
                v4 += 1;
            }
            "ipv6" => {
                found = Some((6, v6));
                v6 += 1;
            }
            "udp" if found.is_some() && matches!(next, "vxlan" | "geneve") => udp += 1,
            "eth" | "ethertype" | "vlan" | "ieee8021ad" | "sll" | "raw" | "ppi" | "pcap_pktdata" | "null"
            | "loop" | "gre" | "vxlan" | "geneve" | "ipv6.hopopts" | "ipv6.routing" | "ipv6.fraghdr"
            | "ipv6.dstopts" | "ah" => {}
            _ => break,
        }
    }
    let (version, place) = found?;
    let number = |field: &str, place: usize| -> u64 {
        values[field].get(place).map_or(0, |text| match text.strip_prefix("0x") {
            Some(hex) => u64::from_str_radix(hex, 16).unwrap(),
            None => text.parse().unwrap_or_else(|_| panic!("{field} is {text}")),
        })
    };
    let address = |field: &str| -> IpAddr { values[field][place].parse().unwrap() };
    let (src, dst, protocol, bytes) = if version == 4 {
        let mut protocol = number("ip.proto", place) as u8;
        let _ = &mut protocol;
        (address("ip.src"), address("ip.dst"), protocol, number("ip.len", place))
    } else {
        let mut protocol = number("ipv6.nxt", place) as u8;
        let extensions = [
            (0, "ipv6.hopopts.nxt"),
            (43, "ipv6.routing.nxt"),
            (44, "ipv6.fraghdr.nxt"),
            (60, "ipv6.dstopts.nxt"),
            (51, "ah.next_header"),
        ];
        while let Some((_, field)) = extensions.iter().find(|(number, _)| *number == protocol) {
            protocol = number(field, 0) as u8;
        }
        (address("ipv6.src"), address("ipv6.dst"), protocol, number("ipv6.plen", place) + 40)
    };
    let later_fragment = version == 4 && number("ip.frag_offset", place) != 0;
    let counterpart = |pairs: &[(u16, u16)], kind: u16, code: u16| {
        pairs.iter().find(|(question, _)| *question == kind).map_or(code, |(_, answer)| *answer)
    };
    let (src_port, dst_port) = match protocol {
        _ if later_fragment => (0, 0),
        6 => (number("tcp.port", 0) as u16, number("tcp.port", 1) as u16),
        17 => (number("udp.port", 2 * udp) as u16, number("udp.port", 2 * udp + 1) as u16),
        132 => (number("sctp.port", 0) as u16, number("sctp.port", 1) as u16),
        1 => {
            let (kind, code) = (number("icmp.type", 0) as u16, number("icmp.code", 0) as u16);
            (kind, counterpart(ICMP_PAIRS, kind, code))
        }
        58 => {
            let (kind, code) = (number("icmpv6.type", 0) as u16, number("icmpv6.code", 0) as u16);
            (kind, counterpart(ICMPV6_PAIRS, kind, code))
        }
        _ => (0, 0),
    };
    Some(((src, src_port, dst, dst_port, protocol), bytes))
}

/// tshark; `None`, with the reason printed, where there is none.
fn tshark() -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&path).map(|folder| folder.join("tshark")).find(|path| path.is_file());
    if found.is_none() {
        assert!(std::env::var_os("CI").is_none(), "tshark is missing: scripts/setup.sh test installs it");
        eprintln!("skipped: tshark is missing (scripts/setup.sh test installs it)");
    }
    found
}

fn captures() -> Vec<PathBuf> {
    let root = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../.."));
    let shared =
        std::env::var_os("WEIR_CAPTURES").map_or_else(|| root.join("../shared/captures"), PathBuf::from);
    let committed = Path::new(env!("CARGO_MANIFEST_DIR")).join("captures");
    if !shared.is_dir() {
        println!(
            "{} is not here (WEIR_CAPTURES names another): only the committed captures are read",
            shared.display()
        );
    }
    let mut files: Vec<PathBuf> = [shared, committed]
        .iter()
        .filter_map(|folder| std::fs::read_dir(folder).ok())
        .flatten()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "pcap" || extension == "pcapng"))
        .collect();
    files.sort();
    files
}
