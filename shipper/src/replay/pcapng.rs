//! Packets of a pcapng file (draft-ietf-opsawg-pcapng): sections, interfaces, packets of three kinds.
//!
//! Blocks that carry no packets are passed over unread, however long they are.

use std::io::Read;

use pcap_parser::{
    OptionCode, parse_enhancedpacketblock_be, parse_enhancedpacketblock_le,
    parse_interfacedescriptionblock_be, parse_interfacedescriptionblock_le, parse_sectionheaderblock,
    parse_simplepacketblock_be, parse_simplepacketblock_le, traits::PcapNGPacketBlock,
};

use super::file::{Found, Interfaces, PACKET_BYTES_MAX, TIME_NS_MAX, Trouble};
use super::window::Window;

const SECTION: u32 = 0x0a0d_0d0a;
const INTERFACE: u32 = 1;
/// Obsolete, but still written by old programs.
const PACKET: u32 = 2;
const SIMPLE_PACKET: u32 = 3;
const ENHANCED_PACKET: u32 = 6;
const BYTE_ORDER: u32 = 0x1a2b_3c4d;

/// Of a block that is read as a whole: a packet with its options.
const BLOCK_BYTES_MAX: u32 = PACKET_BYTES_MAX + (1 << 20);
/// Interfaces of one section.
const INTERFACES_MAX: usize = 65_536;

/// An interface of the section.
struct Interface {
    link: u32,
    snaplen: u32,
    /// As in the option `if_tsresol`.
    resolution: u8,
    offset_s: i64,
    /// Its number in [`Interfaces`].
    number: u32,
}

/// Where in the file a reader is.
pub(super) struct PcapNg {
    big_endian: bool,
    interfaces: Vec<Interface>,
    /// Of the packet before: simple packets have none of their own.
    time_ns: i64,
}

/// A block's place in the window.
struct Block {
    kind: u32,
    offset: u64,
    bytes: usize,
}

impl PcapNg {
    /// Whether a file that begins so is one.
    pub(super) fn is_magic(magic: [u8; 4]) -> bool {
        u32::from_le_bytes(magic) == SECTION
    }

    pub(super) fn new() -> Self {
        Self { big_endian: false, interfaces: Vec::new(), time_ns: 0 }
    }

    /// The next packet, which stays in the window; `None` at the end.
    pub(super) fn next<R: Read>(
        &mut self,
        window: &mut Window<R>,
        names: &mut Interfaces,
    ) -> Result<Option<Found>, Trouble> {
        while let Some(block) = self.block(window)? {
            let Block { kind, offset, bytes } = block;
            let data = &window.data()[..bytes];
            let found = match kind {
                SECTION => {
                    parse_sectionheaderblock(data)
                        .map_err(|_| Trouble::damaged(offset, "a section header that can't be parsed", 0))?;
                    self.interfaces.clear();
                    None
                }
                INTERFACE => {
                    let interface = self.interface(offset, data, names)?;
                    self.interfaces.push(interface);
                    None
                }
                ENHANCED_PACKET => Some(self.enhanced(offset, data)?),
                SIMPLE_PACKET => Some(self.simple(offset, data)?),
                PACKET => Some(self.obsolete(offset, data)?),
                _ => None,
            };
            match found {
                Some(found) => {
                    self.time_ns = found.time_ns;
                    return Ok(Some(found));
                }
                None => window.take(bytes),
            }
        }
        Ok(None)
    }

    /// The next block that matters, whole in the window.
    fn block<R: Read>(&mut self, window: &mut Window<R>) -> Result<Option<Block>, Trouble> {
        loop {
            let offset = window.offset();
            let found = window.need(12)?;
            if found == 0 {
                return Ok(None);
            }
            if found < 12 {
                return Err(Trouble::cut(offset, "a block", found, 12));
            }
            let data = window.data();
            if word(data, 0, false) == SECTION {
                self.big_endian = match word(data, 8, false) {
                    BYTE_ORDER => false,
                    order if order.swap_bytes() == BYTE_ORDER => true,
                    order => return Err(Trouble::damaged(offset, "a section's byte order", order.into())),
                };
            }
            let (kind, length) = (word(data, 0, self.big_endian), word(data, 4, self.big_endian));
            if length < 12 || length % 4 != 0 {
                return Err(Trouble::damaged(offset, "a block's length", length.into()));
            }
            let trailer = if matches!(kind, SECTION | INTERFACE | PACKET | SIMPLE_PACKET | ENHANCED_PACKET) {
                if length > BLOCK_BYTES_MAX {
                    return Err(Trouble::too_long(offset, length.into()));
                }
                let bytes = length as usize;
                let found = window.need(bytes)?;
                if found < bytes {
                    return Err(Trouble::cut(offset, "a block", found, bytes));
                }
                word(window.data(), bytes - 4, self.big_endian)
            } else {
                let whole = window.skip(u64::from(length) - 4)? && window.need(4)? == 4;
                if !whole {
                    let found = (window.offset() - offset) + window.data().len() as u64;
                    return Err(Trouble::cut(offset, "a block", found as usize, length as usize));
                }
                let trailer = word(window.data(), 0, self.big_endian);
                window.take(4);
                trailer
            };
            if trailer != length {
                return Err(Trouble::damaged(
                    offset,
                    "a block whose length at its end is another",
                    trailer.into(),
                ));
            }
            if window.offset() == offset {
                return Ok(Some(Block { kind, offset, bytes: length as usize }));
            }
        }
    }

    fn interface(&self, offset: u64, data: &[u8], names: &mut Interfaces) -> Result<Interface, Trouble> {
        let parsed = if self.big_endian {
            parse_interfacedescriptionblock_be(data)
        } else {
            parse_interfacedescriptionblock_le(data)
        };
        let (_, block) = parsed
            .map_err(|_| Trouble::damaged(offset, "an interface description that can't be parsed", 0))?;
        let index = self.interfaces.len();
        if index >= INTERFACES_MAX {
            return Err(Trouble::damaged(offset, "a section with too many interfaces", index as u64));
        }
        let bytes_of = |code: OptionCode| {
            block.options.iter().find(|option| option.code == code).and_then(|option| option.as_bytes().ok())
        };
        let name = bytes_of(OptionCode::IfName).map(String::from_utf8_lossy);
        let name = name.as_deref().map(|name| name.trim_end_matches('\0'));
        // Read here, as the library reads this one as little-endian in every section.
        let offset_s = match bytes_of(OptionCode::IfTsoffset).and_then(|bytes| bytes.try_into().ok()) {
            Some(bytes) if self.big_endian => i64::from_be_bytes(bytes),
            Some(bytes) => i64::from_le_bytes(bytes),
            None => 0,
        };
        Ok(Interface {
            link: block.linktype.0.cast_unsigned(),
            snaplen: block.snaplen,
            resolution: block.if_tsresol,
            offset_s,
            number: names.number(index, name),
        })
    }

    fn enhanced(&self, offset: u64, data: &[u8]) -> Result<Found, Trouble> {
        let parsed = if self.big_endian {
            parse_enhancedpacketblock_be(data)
        } else {
            parse_enhancedpacketblock_le(data)
        };
        let (_, block) =
            parsed.map_err(|_| Trouble::damaged(offset, "a packet block that can't be parsed", 0))?;
        let ticks = u64::from(block.ts_high) << 32 | u64::from(block.ts_low);
        let captured = block.packet_data().len();
        self.found(offset, data.len(), block.if_id, ticks, 28, captured, block.origlen)
    }

    /// No interface but the first, no time, and the captured length only by the snap length.
    fn simple(&self, offset: u64, data: &[u8]) -> Result<Found, Trouble> {
        let parsed =
            if self.big_endian { parse_simplepacketblock_be(data) } else { parse_simplepacketblock_le(data) };
        let (_, block) =
            parsed.map_err(|_| Trouble::damaged(offset, "a packet block that can't be parsed", 0))?;
        let interface = self.interface_of(offset, 0)?;
        let snaplen = if interface.snaplen == 0 { u32::MAX } else { interface.snaplen };
        let captured = block.data.len().min(block.origlen.min(snaplen) as usize);
        Ok(Found {
            time_ns: self.time_ns,
            link: interface.link,
            interface: interface.number,
            data: 12..12 + captured,
            wire_bytes: block.origlen,
            bytes: data.len(),
        })
    }

    /// The packet block of the first drafts, which the library does not know.
    fn obsolete(&self, offset: u64, data: &[u8]) -> Result<Found, Trouble> {
        if data.len() < 32 {
            return Err(Trouble::damaged(offset, "a packet block's length", data.len() as u64));
        }
        let at = |place| word(data, place, self.big_endian);
        let half = [data[8], data[9]];
        let index = if self.big_endian { u16::from_be_bytes(half) } else { u16::from_le_bytes(half) };
        let ticks = u64::from(at(12)) << 32 | u64::from(at(16));
        let (captured, wire) = (at(20), at(24));
        if captured as usize > data.len() - 32 {
            return Err(Trouble::damaged(offset, "a packet that is longer than its block", captured.into()));
        }
        self.found(offset, data.len(), index.into(), ticks, 28, captured as usize, wire)
    }

    #[expect(clippy::too_many_arguments, reason = "the fields of a packet block, in their order")]
    fn found(
        &self,
        offset: u64,
        bytes: usize,
        index: u32,
        ticks: u64,
        from: usize,
        captured: usize,
        wire_bytes: u32,
    ) -> Result<Found, Trouble> {
        let interface = self.interface_of(offset, index)?;
        Ok(Found {
            time_ns: interface.time_ns(ticks),
            link: interface.link,
            interface: interface.number,
            data: from..from + captured,
            wire_bytes,
            bytes,
        })
    }

    fn interface_of(&self, offset: u64, index: u32) -> Result<&Interface, Trouble> {
        let interface = self.interfaces.get(index as usize);
        interface.ok_or_else(|| {
            Trouble::damaged(offset, "a packet of an interface that is not described", index.into())
        })
    }
}

impl Interface {
    /// Unix nanoseconds of a time in the interface's own unit.
    fn time_ns(&self, ticks: u64) -> i64 {
        let exponent = u32::from(self.resolution & 0x7f);
        let ticks = u128::from(ticks);
        let ns = if self.resolution & 0x80 != 0 {
            (ticks * 1_000_000_000) >> exponent
        } else if exponent <= 9 {
            ticks * 10u128.pow(9 - exponent)
        } else {
            10u128.checked_pow(exponent - 9).map_or(0, |unit| ticks / unit)
        };
        let offset_ns = i128::from(self.offset_s) * 1_000_000_000;
        let ns = i128::try_from(ns).unwrap_or(i128::MAX).saturating_add(offset_ns);
        i64::try_from(ns.clamp(0, i128::from(TIME_NS_MAX))).unwrap_or(TIME_NS_MAX)
    }
}

fn word(data: &[u8], place: usize, big_endian: bool) -> u32 {
    let bytes = data.get(place..place + 4).and_then(|bytes| bytes.try_into().ok()).unwrap_or([0; 4]);
    if big_endian { u32::from_be_bytes(bytes) } else { u32::from_le_bytes(bytes) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_have_the_interfaces_unit_and_offset() {
        let time = |resolution, offset_s, ticks| {
            Interface { link: 1, snaplen: 0, resolution, offset_s, number: 0 }.time_ns(ticks)
        };
        assert_eq!(time(6, 0, 1_500_000_000_123_456), 1_500_000_000_123_456_000);
        assert_eq!(time(9, 0, 1_500_000_000_123_456_789), 1_500_000_000_123_456_789);
        assert_eq!(time(3, 10, 2_005), 12_005_000_000);
        assert_eq!(time(12, 0, 3_000_000_000_999), 3_000_000_000);
        assert_eq!(time(0x80 | 10, 0, 1536), 1_500_000_000);
        assert_eq!(time(0, -5, 7), 2_000_000_000);
        for resolution in [0, 19, 48, 60, 0x7f, 0x80, 0xff] {
            for offset in [i64::MIN, -1, 0, i64::MAX] {
                let time = time(resolution, offset, u64::MAX);
                assert!((0..=TIME_NS_MAX).contains(&time), "{resolution} {offset}: {time}");
            }
        }
    }
}
