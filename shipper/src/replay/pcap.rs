//! Packets of a pcap file (draft-ietf-opsawg-pcap): one header, then packets.

use std::io::Read;

use pcap_parser::nom::{Err, IResult, Needed};
use pcap_parser::{
    LegacyPcapBlock, PcapError, parse_pcap_frame, parse_pcap_frame_be, parse_pcap_frame_modified,
    parse_pcap_header,
};

use super::file::{Found, PACKET_BYTES_MAX, Trouble};
use super::window::Window;

const HEADER_BYTES: usize = 24;
/// libpcap's own limit (`MAXIMUM_SNAPLEN`), whatever a header says.
const SNAPLEN_MIN: u32 = 262_144;

type ParseFrame = fn(&[u8]) -> IResult<&[u8], LegacyPcapBlock<'_>, PcapError<&[u8]>>;

/// What the file's header says.
pub(super) struct Pcap {
    parse: ParseFrame,
    /// Of a packet before its bytes.
    frame_header_bytes: usize,
    nanoseconds: bool,
    link: u32,
    packet_bytes_max: u32,
}

impl Pcap {
    /// Whether a file that begins so is one.
    pub(super) fn is_magic(magic: [u8; 4]) -> bool {
        matches!(
            u32::from_le_bytes(magic),
            0xa1b2_c3d4 | 0xa1b2_3c4d | 0xa1b2_cd34 | 0xd4c3_b2a1 | 0x4d3c_b2a1
        )
    }

    pub(super) fn open<R: Read>(window: &mut Window<R>) -> Result<Self, Trouble> {
        let found = window.need(HEADER_BYTES)?;
        let Ok((_, header)) = parse_pcap_header(window.data()) else {
            return Err(Trouble::cut(window.offset(), "the file's header", found, HEADER_BYTES));
        };
        window.take(HEADER_BYTES);
        let modified = header.is_modified_format();
        Ok(Self {
            parse: match (header.is_bigendian(), modified) {
                (true, _) => parse_pcap_frame_be,
                (false, true) => parse_pcap_frame_modified,
                (false, false) => parse_pcap_frame,
            },
            frame_header_bytes: if modified { 24 } else { 16 },
            nanoseconds: header.is_nanosecond_precision(),
            // The upper bits say something of the frame check sequence (draft-ietf-opsawg-pcap, section 4).
            link: header.network.0.cast_unsigned() & 0x03ff_ffff,
            packet_bytes_max: header.snaplen.clamp(SNAPLEN_MIN, PACKET_BYTES_MAX),
        })
    }

    /// The next packet, which stays in the window; `None` at the end.
    pub(super) fn next<R: Read>(&mut self, window: &mut Window<R>) -> Result<Option<Found>, Trouble> {
        let mut needed = self.frame_header_bytes;
        loop {
            let found = window.need(needed)?;
            if found == 0 {
                return Ok(None);
            }
            if found < needed {
                return Err(Trouble::cut(window.offset(), "a packet", found, needed));
            }
            let data = window.data();
            match (self.parse)(data) {
                Ok((_, block)) => {
                    let length = block.caplen;
                    if length > self.packet_bytes_max {
                        return Err(Trouble::too_long(window.offset(), length.into()));
                    }
                    let fraction = i64::from(block.ts_usec);
                    let fraction_ns = if self.nanoseconds { fraction } else { fraction * 1000 };
                    let bytes = self.frame_header_bytes + length as usize;
                    return Ok(Some(Found {
                        time_ns: i64::from(block.ts_sec) * 1_000_000_000 + fraction_ns,
                        link: self.link,
                        interface: 0,
                        data: self.frame_header_bytes..bytes,
                        wire_bytes: block.origlen,
                        bytes,
                    }));
                }
                Err(Err::Incomplete(Needed::Size(more))) => {
                    needed = data.len().saturating_add(more.get());
                    let length = needed.saturating_sub(self.frame_header_bytes);
                    if length > self.packet_bytes_max as usize {
                        return Err(Trouble::too_long(window.offset(), length as u64));
                    }
                }
                Err(_) => return Err(Trouble::damaged(window.offset(), "a packet's header", 0)),
            }
        }
    }
}
