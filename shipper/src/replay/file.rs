//! A capture file: opened, decompressed, its format told by its first bytes, read packet by packet.
//!
//! Owns the limits of what is read and the words of what is wrong. What is in a packet is for others.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Cursor, Read};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use flate2::read::MultiGzDecoder;

use super::error::FileError;
use super::pcap::Pcap;
use super::pcapng::PcapNg;
use super::window::Window;

/// The name that stands for standard input.
pub const STDIN: &str = "-";
/// The longest packet that is read.
pub(super) const PACKET_BYTES_MAX: u32 = 16 << 20;
/// The latest time that a packet may have (the year 2115): differences of two times fit into 64 bits.
pub(super) const TIME_NS_MAX: i64 = 4_600_000_000_000_000_000;
/// Names of interfaces that are kept apart; the rest share one number.
const INTERFACES_MAX: usize = 4096;
const INTERFACE_NAME_BYTES_MAX: usize = 255;
/// 2 to this power bytes is how far a zstd frame may reach back: what its own tool takes without being told.
const ZSTD_WINDOW_LOG_MAX: u32 = 27;

/// A packet as the file has it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Packet<'a> {
    /// Unix nanoseconds.
    pub time_ns: i64,
    /// LINKTYPE_ value (tcpdump.org/linktypes.html).
    pub link: u32,
    /// Number in [`Interfaces`].
    pub interface: u32,
    /// What was captured.
    pub data: &'a [u8],
    /// How long it was on the wire.
    pub wire_bytes: u32,
}

/// A packet's place in the window.
pub(super) struct Found {
    pub time_ns: i64,
    pub link: u32,
    pub interface: u32,
    pub data: Range<usize>,
    pub wire_bytes: u32,
    /// Of the packet with its header.
    pub bytes: usize,
}

/// What is wrong, before it is said of which file.
pub(super) enum Trouble {
    Cut { offset: u64, what: &'static str, found: u64, expected: u64 },
    Damaged { offset: u64, what: &'static str, value: u64 },
    Read(io::Error),
}

impl Trouble {
    pub(super) fn cut(offset: u64, what: &'static str, found: usize, expected: usize) -> Self {
        Self::Cut { offset, what, found: found as u64, expected: expected as u64 }
    }

    pub(super) fn damaged(offset: u64, what: &'static str, value: u64) -> Self {
        Self::Damaged { offset, what, value }
    }

    pub(super) fn too_long(offset: u64, value: u64) -> Self {
        Self::damaged(offset, "a length beyond any packet's", value)
    }
}

impl From<io::Error> for Trouble {
    fn from(error: io::Error) -> Self {
        Self::Read(error)
    }
}

/// The interfaces of all files of a replay: those of one name are one, through sections and files.
#[derive(Debug)]
pub(super) struct Interfaces {
    names: Vec<Option<Arc<str>>>,
    numbers: HashMap<String, u32>,
}

impl Default for Interfaces {
    /// Number 0 is that of files that name none.
    fn default() -> Self {
        Self { names: vec![None], numbers: HashMap::new() }
    }
}

impl Interfaces {
    /// The number of interface `index` of a section.
    pub(super) fn number(&mut self, index: usize, name: Option<&str>) -> u32 {
        let name = name.filter(|name| !name.is_empty());
        let name = name.map(|name| &name[..name.floor_char_boundary(INTERFACE_NAME_BYTES_MAX)]);
        let key = match name {
            Some(name) => format!("={name}"),
            None if index == 0 => return 0,
            None => format!("#{index}"),
        };
        if let Some(number) = self.numbers.get(&key) {
            return *number;
        }
        if self.names.len() >= INTERFACES_MAX {
            return 0;
        }
        let number = u32::try_from(self.names.len()).unwrap_or(0);
        self.names.push(name.map(Arc::from));
        self.numbers.insert(key, number);
        number
    }

    /// The name of an interface, where it has one.
    pub(super) fn name(&self, number: u32) -> Option<&Arc<str>> {
        self.names.get(number as usize).and_then(Option::as_ref)
    }
}

enum Format {
    Pcap(Pcap),
    PcapNg(PcapNg),
}

type Bytes = Box<dyn Read + Send>;

/// An open capture file.
pub(super) struct CaptureFile {
    path: PathBuf,
    window: Window<Bytes>,
    compressed: bool,
    format: Format,
    /// Bytes of the packet that was given out last: they stay in the window until the next one is asked for.
    given: usize,
}

impl CaptureFile {
    /// Opens a file.
    pub(super) fn open(path: &Path) -> Result<Self, FileError> {
        let file = File::open(path).map_err(|source| FileError::Open { path: path.to_owned(), source })?;
        Self::read(path, Box::new(file))
    }

    /// Reads a capture from anything; `path` is its name in errors.
    pub(super) fn read(path: &Path, mut bytes: Bytes) -> Result<Self, FileError> {
        let at = |offset| move |source| FileError::Read { path: path.to_owned(), offset, source };
        let magic = magic(&mut bytes).map_err(at(0))?;
        let bytes: Bytes = Box::new(Cursor::new(magic.clone()).chain(bytes));
        let (bytes, compressed): (Bytes, bool) = match magic[..] {
            [0x1f, 0x8b, ..] => (Box::new(MultiGzDecoder::new(bytes)), true),
            [0x28, 0xb5, 0x2f, 0xfd] | [0x50..=0x5f, 0x2a, 0x4d, 0x18] => {
                let mut decoder = zstd::stream::read::Decoder::new(bytes).map_err(at(0))?;
                decoder.window_log_max(ZSTD_WINDOW_LOG_MAX).map_err(at(0))?;
                (Box::new(decoder), true)
            }
            _ => (bytes, false),
        };
        let mut window = Window::new(bytes);
        let found = window.need(4).map_err(|error| said(path, compressed, 0, Trouble::Read(error)))?;
        let first: [u8; 4] = match window.data().first_chunk() {
            Some(first) if found == 4 => *first,
            _ => [0; 4],
        };
        let format = if Pcap::is_magic(first) {
            Format::Pcap(Pcap::open(&mut window).map_err(|trouble| said(path, compressed, 0, trouble))?)
        } else if PcapNg::is_magic(first) {
            Format::PcapNg(PcapNg::new())
        } else {
            let magic = weir_common::id::hex(&window.data()[..found]);
            let magic = if found == 0 { "nothing".to_owned() } else { magic };
            return Err(FileError::Format { path: path.to_owned(), magic });
        };
        Ok(Self { path: path.to_owned(), window, compressed, format, given: 0 })
    }

    /// Its name.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// The next packet, `None` at the end.
    pub(super) fn next(&mut self, names: &mut Interfaces) -> Result<Option<Packet<'_>>, FileError> {
        self.window.take(std::mem::take(&mut self.given));
        let found = match &mut self.format {
            Format::Pcap(pcap) => pcap.next(&mut self.window),
            Format::PcapNg(pcapng) => pcapng.next(&mut self.window, names),
        };
        match found {
            Ok(None) => Ok(None),
            Ok(Some(Found { time_ns, link, interface, data, wire_bytes, bytes })) => {
                self.given = bytes;
                let data = &self.window.data()[data];
                // Some programs cut packets and forget to say so.
                let wire_bytes = wire_bytes.max(data.len() as u32);
                Ok(Some(Packet { time_ns, link, interface, data, wire_bytes }))
            }
            Err(trouble) => Err(said(&self.path, self.compressed, self.window.offset(), trouble)),
        }
    }
}

fn said(path: &Path, compressed: bool, offset: u64, trouble: Trouble) -> FileError {
    let path = path.to_owned();
    match trouble {
        Trouble::Cut { offset, what, found, expected } => {
            FileError::Cut { path, offset, what, found, expected }
        }
        Trouble::Damaged { offset, what, value } => FileError::Damaged { path, offset, what, value },
        // The decompressors speak of bad data in these kinds; what a disk says has a number.
        Trouble::Read(source) if compressed && source.raw_os_error().is_none() => {
            FileError::Decompress { path, offset, source }
        }
        Trouble::Read(source) => FileError::Read { path, offset, source },
    }
}

/// The first four bytes, or as many as there are.
fn magic(bytes: &mut Bytes) -> io::Result<Vec<u8>> {
    let mut magic = Vec::with_capacity(4);
    bytes.by_ref().take(4).read_to_end(&mut magic)?;
    Ok(magic)
}
