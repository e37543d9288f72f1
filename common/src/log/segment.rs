//! The bytes of one segment: header and frames, and the scan that finds the whole ones.
//!
//! Reads through [`Source`], so that the fuzz target and tests scan plain bytes. Input and output errors are never
//! taken for damage.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

/// Bytes of the segment header.
pub const HEADER_BYTES: u64 = 64;
/// Bytes in front of a payload.
pub const FRAME_BYTES: u64 = 24;
/// The position that a checkpoint frame states; records count from 1.
pub const CHECKPOINT_POSITION: u64 = 0;

const SEGMENT_MAGIC: &[u8; 8] = b"WEIRLOG1";
const FRAME_MAGIC: [u8; 4] = [0xf7, b'W', b'R', 0x1e];

/// What a segment header states.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Whose log it is.
    pub kind: [u8; 4],
    /// Version of the records.
    pub schema_version: u32,
    /// Position of the first record.
    pub first_position: u64,
}

impl Header {
    /// The 64 bytes: magic, kind, version, position, CRC32C of those, zeros.
    pub fn encode(self) -> [u8; HEADER_BYTES as usize] {
        let mut bytes = [0; HEADER_BYTES as usize];
        bytes[..8].copy_from_slice(SEGMENT_MAGIC);
        bytes[8..12].copy_from_slice(&self.kind);
        bytes[12..16].copy_from_slice(&self.schema_version.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.first_position.to_le_bytes());
        let crc = crc32c::crc32c(&bytes[..24]);
        bytes[24..28].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    /// The header of these bytes, or what is wrong with them.
    pub fn decode(bytes: &[u8; HEADER_BYTES as usize]) -> Result<Self, &'static str> {
        if &bytes[..8] != SEGMENT_MAGIC {
            return Err("it does not begin with a segment header");
        }
        if u32_at(bytes, 24) != crc32c::crc32c(&bytes[..24]) {
            return Err("the checksum of its header is wrong");
        }
        let kind = [bytes[8], bytes[9], bytes[10], bytes[11]];
        Ok(Self { kind, schema_version: u32_at(bytes, 12), first_position: u64_at(bytes, 16) })
    }
}

/// The 24 bytes in front of a payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Frame {
    /// Bytes of the payload.
    pub length: u32,
    /// Which record it is.
    pub position: u64,
    /// CRC32C of the payload.
    pub payload_crc: u32,
}

impl Frame {
    /// The frame of a payload given in parts.
    pub fn of(position: u64, parts: &[&[u8]], length: u32) -> Self {
        let payload_crc = parts.iter().fold(0, |crc, part| crc32c::crc32c_append(crc, part));
        Self { length, position, payload_crc }
    }

    /// The bytes.
    pub fn encode(self) -> [u8; FRAME_BYTES as usize] {
        let mut bytes = [0; FRAME_BYTES as usize];
        bytes[..4].copy_from_slice(&FRAME_MAGIC);
        bytes[4..8].copy_from_slice(&self.length.to_le_bytes());
        bytes[8..16].copy_from_slice(&self.position.to_le_bytes());
        bytes[16..20].copy_from_slice(&self.payload_crc.to_le_bytes());
        let crc = crc32c::crc32c(&bytes[..20]);
        bytes[20..24].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    /// The frame of these bytes; `None` when magic or checksum is wrong.
    pub fn decode(bytes: &[u8; FRAME_BYTES as usize]) -> Option<Self> {
        let sound = bytes[..4] == FRAME_MAGIC && u32_at(bytes, 20) == crc32c::crc32c(&bytes[..20]);
        sound.then(|| Self {
            length: u32_at(bytes, 4),
            position: u64_at(bytes, 8),
            payload_crc: u32_at(bytes, 16),
        })
    }
}

/// Something that can be read at an offset.
pub trait Source {
    /// Reads up to `buffer.len()` bytes at `offset`; fewer only at the end.
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize>;
}

impl Source for File {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        let mut done = 0;
        while done < buffer.len() {
            match FileExt::read_at(self, &mut buffer[done..], offset + done as u64) {
                Ok(0) => break,
                Ok(count) => done += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(done)
    }
}

impl Source for &[u8] {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        let rest = usize::try_from(offset).ok().and_then(|offset| self.get(offset..)).unwrap_or_default();
        let count = rest.len().min(buffer.len());
        buffer[..count].copy_from_slice(&rest[..count]);
        Ok(count)
    }
}

/// One finding of a scan, in the order of the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Found {
    /// A whole record.
    Record {
        /// Where its frame begins.
        offset: u64,
        /// Its position.
        position: u64,
    },
    /// Damaged records in front of a sound frame; at the end of the file see [`Scan::end`].
    Damaged {
        /// Where the first damaged frame begins.
        offset: u64,
        /// The first record concerned.
        first_position: u64,
        /// The last one.
        last_position: u64,
        /// What was wrong.
        reason: &'static str,
    },
}

/// What a segment holds.
#[derive(Debug)]
pub struct Scan {
    /// The payload of the checkpoint frame.
    pub checkpoint: Vec<u8>,
    /// Records and damage, in order.
    pub found: Vec<Found>,
    /// One past the last record or damage.
    pub next_position: u64,
    /// Where the last sound frame ends.
    pub end: u64,
    /// What is wrong with the bytes after `end`, if there are any.
    pub tail: Option<&'static str>,
}

/// Why a segment can't be scanned at all.
#[derive(Debug)]
pub enum ScanError {
    /// Reading failed.
    Io(io::Error),
    /// Header or checkpoint can't be trusted.
    Bad(&'static str),
}

/// Scans a segment of `length` bytes whose header was accepted. Every checksum is verified.
pub fn scan(
    source: &impl Source,
    length: u64,
    header: Header,
    record_bytes_max: u32,
) -> Result<Scan, ScanError> {
    let mut payload = Vec::new();
    let mut read = |offset: u64| read_frame(source, offset, record_bytes_max, &mut payload);
    let Verdict::Sound(frame) = read(HEADER_BYTES).map_err(ScanError::Io)? else {
        return Err(ScanError::Bad("its checkpoint is damaged"));
    };
    if frame.position != CHECKPOINT_POSITION {
        return Err(ScanError::Bad("it does not begin with a checkpoint"));
    }
    let mut offset = HEADER_BYTES + FRAME_BYTES + u64::from(frame.length);
    let checkpoint = std::mem::take(&mut payload);
    let mut scan =
        Scan { checkpoint, found: Vec::new(), next_position: header.first_position, end: offset, tail: None };
    // The first of the bytes that are not a sound frame, with what is wrong there.
    let mut broken: Option<(u64, &'static str)> = None;
    while offset < length {
        match read_frame(source, offset, record_bytes_max, &mut payload).map_err(ScanError::Io)? {
            Verdict::Sound(frame) if plausible(frame.position, scan.next_position, offset - scan.end) => {
                if let Some((offset, reason)) = broken.take()
                    && frame.position > scan.next_position
                {
                    let (first_position, last_position) = (scan.next_position, frame.position - 1);
                    scan.found.push(Found::Damaged { offset, first_position, last_position, reason });
                }
                scan.found.push(Found::Record { offset, position: frame.position });
                let Some(next) = frame.position.checked_add(1) else {
                    return Err(ScanError::Bad("its positions overflow"));
                };
                scan.next_position = next;
                offset += FRAME_BYTES + u64::from(frame.length);
                scan.end = offset;
            }
            verdict => {
                let reason = match verdict {
                    Verdict::Broken(reason) => reason,
                    Verdict::Sound(_) => "a frame states a position that can't be",
                };
                broken.get_or_insert((offset, reason));
                match next_magic(source, offset + 1, length).map_err(ScanError::Io)? {
                    Some(candidate) => offset = candidate,
                    None => break,
                }
            }
        }
    }
    scan.tail =
        (scan.end < length).then(|| broken.map_or("bytes after the last frame", |(_, reason)| reason));
    Ok(scan)
}

/// Whether a frame after `broken_bytes` of damage may state this position: each record hidden in there took a frame.
fn plausible(position: u64, expected: u64, broken_bytes: u64) -> bool {
    position >= expected && position - expected <= broken_bytes / FRAME_BYTES
}

/// What stands at an offset.
#[derive(Debug, PartialEq, Eq)]
pub enum Verdict {
    /// A frame whose payload, now in the buffer, has the right checksum.
    Sound(Frame),
    /// Not that; why.
    Broken(&'static str),
}

/// Reads and verifies the frame at an offset; its payload replaces what `payload` held.
pub fn read_frame(
    source: &impl Source,
    offset: u64,
    limit: u32,
    payload: &mut Vec<u8>,
) -> io::Result<Verdict> {
    let mut bytes = [0; FRAME_BYTES as usize];
    if source.read_at(&mut bytes, offset)? < bytes.len() {
        return Ok(Verdict::Broken("a frame is cut short"));
    }
    let Some(frame) = Frame::decode(&bytes) else {
        return Ok(Verdict::Broken("the checksum of a frame header is wrong"));
    };
    if frame.length > limit {
        return Ok(Verdict::Broken("a frame is longer than the limit"));
    }
    payload.clear();
    payload.resize(frame.length as usize, 0);
    if source.read_at(payload, offset + FRAME_BYTES)? < payload.len() {
        return Ok(Verdict::Broken("a payload is cut short"));
    }
    if crc32c::crc32c(payload) != frame.payload_crc {
        return Ok(Verdict::Broken("the checksum of a payload is wrong"));
    }
    Ok(Verdict::Sound(frame))
}

/// The next offset at which a sound frame header begins, whatever its payload is.
fn next_magic(source: &impl Source, mut offset: u64, length: u64) -> io::Result<Option<u64>> {
    let mut chunk = vec![0; 64 << 10];
    while offset < length {
        let count = source.read_at(&mut chunk, offset)?;
        if count < FRAME_BYTES as usize {
            return Ok(None);
        }
        let found = chunk[..count].windows(FRAME_BYTES as usize).position(|window| {
            window[..4] == FRAME_MAGIC
                && window.first_chunk().is_some_and(|bytes| Frame::decode(bytes).is_some())
        });
        if let Some(index) = found {
            return Ok(Some(offset + index as u64));
        }
        offset += (count - FRAME_BYTES as usize + 1) as u64;
    }
    Ok(None)
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from(u32_at(bytes, at)) | u64::from(u32_at(bytes, at + 4)) << 32
}
