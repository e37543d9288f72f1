//! Captures made by hand: packets, and the files around them.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use weir_shipper::flow::FlowRecord;
use weir_shipper::replay::{FileError, Replay, Report, TableOptions};

pub(crate) const FIN: u8 = 1;
pub(crate) const SYN: u8 = 2;
pub(crate) const RST: u8 = 4;
pub(crate) const ACK: u8 = 16;

pub(crate) const A: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1));
pub(crate) const B: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 2));
pub(crate) const A6: IpAddr = IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1));
pub(crate) const B6: IpAddr = IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 2));
/// Where captures begin: 2023-11-14T22:13:20Z.
pub(crate) const START_NS: i64 = 1_700_000_000_000_000_000;
pub(crate) const MS: i64 = 1_000_000;
pub(crate) const S: i64 = 1_000_000_000;

pub(crate) const OPTIONS: TableOptions =
    TableOptions { interval_ns: 10 * S, idle_ns: 120 * S, tcp_idle_ns: 3600 * S, entries: 1000 };

/// An IP packet.
pub(crate) fn ip(src: IpAddr, dst: IpAddr, protocol: u8, payload: &[u8]) -> Vec<u8> {
    let mut packet = match (src, dst) {
        (IpAddr::V4(src), IpAddr::V4(dst)) => {
            let mut header = vec![0x45, 0];
            header.extend((20 + payload.len() as u16).to_be_bytes());
            header.extend([0, 1, 0, 0, 64, protocol, 0, 0]);
            header.extend(src.octets());
            header.extend(dst.octets());
            header
        }
        (IpAddr::V6(src), IpAddr::V6(dst)) => {
            let mut header = vec![0x60, 0, 0, 0];
            header.extend((payload.len() as u16).to_be_bytes());
            header.extend([protocol, 64]);
            header.extend(src.octets());
            header.extend(dst.octets());
            header
        }
        _ => panic!("two families"),
    };
    packet.extend(payload);
    packet
}

pub(crate) fn udp(src_port: u16, dst_port: u16, payload: &[u8]) -> Vec<u8> {
    let mut datagram = Vec::new();
    datagram.extend(src_port.to_be_bytes());
    datagram.extend(dst_port.to_be_bytes());
    datagram.extend((8 + payload.len() as u16).to_be_bytes());
    datagram.extend([0, 0]);
    datagram.extend(payload);
    datagram
}

/// A segment with a window of its own.
pub(crate) fn tcp_window(
    ports: (u16, u16),
    seq: u32,
    ack: u32,
    flags: u8,
    window: u16,
    payload: usize,
) -> Vec<u8> {
    let mut segment = Vec::new();
    segment.extend(ports.0.to_be_bytes());
    segment.extend(ports.1.to_be_bytes());
    segment.extend(seq.to_be_bytes());
    segment.extend(ack.to_be_bytes());
    segment.extend([0x50, flags]);
    segment.extend(window.to_be_bytes());
    segment.extend([0; 4]);
    segment.extend(vec![b'x'; payload]);
    segment
}

/// An Ethernet frame.
pub(crate) fn ethernet(ethertype: u16, payload: &[u8]) -> Vec<u8> {
    let mut frame = vec![2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1];
    frame.extend(ethertype.to_be_bytes());
    frame.extend(payload);
    frame
}

/// An Ethernet frame around an IP packet.
pub(crate) fn framed(packet: &[u8]) -> Vec<u8> {
    ethernet(if packet[0] >> 4 == 4 { 0x0800 } else { 0x86dd }, packet)
}

/// A VLAN tag and what follows it, to stand after an EtherType.
pub(crate) fn tagged(id: u16, ethertype: u16, payload: &[u8]) -> Vec<u8> {
    let mut tag = id.to_be_bytes().to_vec();
    tag.extend(ethertype.to_be_bytes());
    tag.extend(payload);
    tag
}

/// A packet of a capture.
#[derive(Clone, Debug)]
pub(crate) struct Frame {
    pub(crate) at_ns: i64,
    pub(crate) data: Vec<u8>,
    /// Length on the wire, where it is not the data's.
    pub(crate) wire: Option<u32>,
}

impl Frame {
    pub(crate) fn new(after_ns: i64, data: Vec<u8>) -> Self {
        Self { at_ns: START_NS + after_ns, data, wire: None }
    }

    fn wire(&self) -> u32 {
        self.wire.unwrap_or(self.data.len() as u32)
    }
}

/// Byte order and time unit of a pcap file.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Look {
    pub(crate) big_endian: bool,
    pub(crate) nanoseconds: bool,
}

/// A pcap file.
pub(crate) fn pcap(link: u32, look: Look, frames: &[Frame]) -> Vec<u8> {
    let Look { big_endian, nanoseconds } = look;
    let word = |value: u32| if big_endian { value.to_be_bytes() } else { value.to_le_bytes() };
    let half = |value: u16| if big_endian { value.to_be_bytes() } else { value.to_le_bytes() };
    let mut file = Vec::new();
    file.extend(word(if nanoseconds { 0xa1b2_3c4d } else { 0xa1b2_c3d4 }));
    file.extend(half(2));
    file.extend(half(4));
    [0, 0, 262_144, link].iter().for_each(|value| file.extend(word(*value)));
    for frame in frames {
        let fraction = (frame.at_ns % S) as u32;
        file.extend(word((frame.at_ns / S) as u32));
        file.extend(word(if nanoseconds { fraction } else { fraction / 1000 }));
        file.extend(word(frame.data.len() as u32));
        file.extend(word(frame.wire()));
        file.extend(&frame.data);
    }
    file
}

/// The usual kind: little-endian, microseconds.
pub(crate) fn usual(link: u32, frames: &[Frame]) -> Vec<u8> {
    pcap(link, Look { big_endian: false, nanoseconds: false }, frames)
}

/// Blocks of a pcapng file.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Blocks {
    pub(crate) big_endian: bool,
}

impl Blocks {
    pub(crate) fn word(self, value: u32) -> [u8; 4] {
        if self.big_endian { value.to_be_bytes() } else { value.to_le_bytes() }
    }

    pub(crate) fn half(self, value: u16) -> [u8; 2] {
        if self.big_endian { value.to_be_bytes() } else { value.to_le_bytes() }
    }

    pub(crate) fn block(self, kind: u32, body: &[u8]) -> Vec<u8> {
        let padding = (4 - body.len() % 4) % 4;
        let length = self.word((12 + body.len() + padding) as u32);
        [&self.word(kind)[..], &length, body, &vec![0; padding], &length].concat()
    }

    pub(crate) fn section(self) -> Vec<u8> {
        let mut body = self.word(0x1a2b_3c4d).to_vec();
        body.extend(self.half(1));
        body.extend(self.half(0));
        body.extend([0xff; 8]);
        self.block(0x0a0d_0d0a, &body)
    }

    fn option(self, code: u16, value: &[u8]) -> Vec<u8> {
        let padding = (4 - value.len() % 4) % 4;
        [&self.half(code)[..], &self.half(value.len() as u16), value, &vec![0; padding]].concat()
    }

    /// With the options `if_name`, `if_tsresol` and `if_tsoffset`.
    pub(crate) fn interface(
        self,
        link: u16,
        snaplen: u32,
        name: &str,
        resolution: Option<u8>,
        offset: i64,
    ) -> Vec<u8> {
        let mut body = self.half(link).to_vec();
        body.extend([0, 0]);
        body.extend(self.word(snaplen));
        if !name.is_empty() {
            body.extend(self.option(2, name.as_bytes()));
        }
        if let Some(resolution) = resolution {
            body.extend(self.option(9, &[resolution]));
        }
        if offset != 0 {
            let offset = if self.big_endian { offset.to_be_bytes() } else { offset.to_le_bytes() };
            body.extend(self.option(14, &offset));
        }
        body.extend(self.option(0, &[]));
        self.block(1, &body)
    }

    pub(crate) fn packet(self, interface: u32, ticks: u64, frame: &Frame) -> Vec<u8> {
        let mut body = Vec::new();
        let words = [interface, (ticks >> 32) as u32, ticks as u32, frame.data.len() as u32, frame.wire()];
        words.iter().for_each(|value| body.extend(self.word(*value)));
        body.extend(&frame.data);
        self.block(6, &body)
    }

    pub(crate) fn simple_packet(self, frame: &Frame) -> Vec<u8> {
        self.block(3, &[&self.word(frame.wire())[..], &frame.data].concat())
    }

    pub(crate) fn obsolete_packet(self, interface: u16, ticks: u64, frame: &Frame) -> Vec<u8> {
        let mut body = [self.half(interface), self.half(0)].concat();
        let words = [(ticks >> 32) as u32, ticks as u32, frame.data.len() as u32, frame.wire()];
        words.iter().for_each(|value| body.extend(self.word(*value)));
        body.extend(&frame.data);
        self.block(2, &body)
    }
}

/// A TCP connection under construction: A and B, ports 40000 and 80.
#[derive(Debug, Default)]
pub(crate) struct Talk {
    pub(crate) frames: Vec<Frame>,
}

pub(crate) const PORTS: (u16, u16) = (40_000, 80);

impl Talk {
    /// A sends, so many nanoseconds after the start.
    pub(crate) fn a(&mut self, at_ns: i64, seq: u32, ack: u32, flags: u8, payload: usize) -> &mut Self {
        self.window(true, at_ns, seq, ack, flags, 1000, payload)
    }

    /// B sends.
    pub(crate) fn b(&mut self, at_ns: i64, seq: u32, ack: u32, flags: u8, payload: usize) -> &mut Self {
        self.window(false, at_ns, seq, ack, flags, 1000, payload)
    }

    #[expect(clippy::too_many_arguments, reason = "the fields of a segment")]
    pub(crate) fn window(
        &mut self,
        from_a: bool,
        at_ns: i64,
        seq: u32,
        ack: u32,
        flags: u8,
        window: u16,
        payload: usize,
    ) -> &mut Self {
        let (src, dst, ports) = if from_a { (A, B, PORTS) } else { (B, A, (PORTS.1, PORTS.0)) };
        let segment = tcp_window(ports, seq, ack, flags, window, payload);
        self.frames.push(Frame::new(at_ns, framed(&ip(src, dst, 6, &segment))));
        self
    }

    /// SYN, SYN/ACK after 10 ms, ACK after 1 ms more; sequences begin at 101 and 501 after it.
    pub(crate) fn handshake(&mut self) -> &mut Self {
        self.a(0, 100, 0, SYN, 0).b(10 * MS, 500, 101, SYN | ACK, 0).a(11 * MS, 101, 501, ACK, 0)
    }

    pub(crate) fn replay(&self) -> Vec<FlowRecord> {
        replayed(usual(1, &self.frames)).0
    }

    /// The only record.
    #[track_caller]
    pub(crate) fn record(&self) -> FlowRecord {
        let mut records = self.replay();
        assert_eq!(records.len(), 1, "{records:?}");
        records.remove(0)
    }
}

/// The records of a file without fault.
#[track_caller]
pub(crate) fn replayed(file: Vec<u8>) -> (Vec<FlowRecord>, Report) {
    let (records, report) = Replay::of_bytes(file, OPTIONS).unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(report.problems, Vec::<String>::new());
    (records, report)
}

pub(crate) fn tried(file: Vec<u8>) -> Result<(Vec<FlowRecord>, Report), FileError> {
    Replay::of_bytes(file, OPTIONS)
}

/// Packets and bytes of a record, as src and dst sent them.
pub(crate) fn sums(record: &FlowRecord) -> [(u64, u64); 2] {
    [(record.src_packets, record.src_bytes), (record.dst_packets, record.dst_bytes)]
}
