//! Capture files in place of the kernel: packets from files become flow records with the capture's own times, through
//! the same spool and client.
//!
//! In the order of the data: `file` opens and decompresses, `pcap` and `pcapng` find the packets, `link` and the parser
//! that the kernel programs use (`weir_shipper_ebpf::packet`) read their headers, `table`, `conversation` and `tcp`
//! make records of them. `state` remembers what a replay reads, so that one that was killed goes on. Called by the source loop.
//!
//! One chunk of records is one record of the spool, as an interval of the kernel's is: see [`crate::spool`].

mod conversation;
mod error;
mod file;
mod link;
mod pcap;
mod pcapng;
mod state;
mod stream;
mod table;
mod tcp;
mod window;

use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;

pub use error::FileError;
pub use file::STDIN;
pub use state::{Report, StateError};
pub use table::{TableOptions, Totals};

use file::{CaptureFile, Interfaces};
use state::{FileIdentity, State};
use stream::Stream;
use table::Table;

use crate::flow::FlowRecord;
use crate::spool::Id;

/// Records that go to the spool at once.
const CHUNK_RECORDS: usize = 8192;
/// What a spool for replays must hold at least: several chunks.
pub const SPOOL_BYTES_MIN: u64 = 16 << 20;
/// How long records of a stream may wait for more.
const STREAM_WAIT: Duration = Duration::from_secs(1);
/// Problems that are told; there are no more than files.
const PROBLEMS_MAX: usize = 64;

/// What is replayed, and how.
#[derive(Clone, Debug)]
pub struct ReplayOptions {
    /// Capture files, read one after the other; `-` is standard input.
    pub files: Vec<PathBuf>,
    /// The flow table.
    pub table: TableOptions,
    /// Begin anew though another replay into this spool was cut off.
    pub abandon: bool,
}

/// A replay: a source of records.
pub struct Replay {
    dir: PathBuf,
    state: State,
    id: Id,
    waiting: VecDeque<FileIdentity>,
    open: Option<Open>,
    table: Table,
    interfaces: Interfaces,
    report: Report,
    stop: CancellationToken,
    /// The chunk that is read next.
    next: u64,
    /// Every file is read.
    ended: bool,
    stored: Instant,
}

struct Open {
    file: CaptureFile,
    /// Whether it can be read only once.
    stream: bool,
    packets: u64,
    unknown_link: Option<u32>,
}

impl std::fmt::Debug for Replay {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Replay").field("state", &self.state).field("next", &self.next).finish_non_exhaustive()
    }
}

impl Replay {
    /// Begins, or goes on where it was; `dir` is the folder of its spool, which must be locked by the caller. `stop`
    /// ends the input of what has no end.
    pub fn open(options: &ReplayOptions, dir: &Path, stop: CancellationToken) -> Result<Self, StateError> {
        let (state, resumed) = State::begin(dir, &options.files, options.table, options.abandon)?;
        let mut id = [0; 16];
        for (byte, digits) in id.iter_mut().zip(state.replay.as_bytes().chunks(2)) {
            let digits = std::str::from_utf8(digits).unwrap_or_default();
            *byte = u8::from_str_radix(digits, 16).unwrap_or_default();
        }
        tracing::info!(replay = %state.replay, files = options.files.len(), resumed, "replaying capture files");
        let table = Table::new(options.table, number(&id));
        Ok(Self {
            dir: dir.to_owned(),
            waiting: state.files.iter().cloned().collect(),
            state,
            id,
            open: None,
            table,
            interfaces: Interfaces::default(),
            report: Report::default(),
            stop,
            next: 0,
            ended: false,
            stored: Instant::now(),
        })
    }

    /// A replay of one capture that is in memory, without spool or state: for measurements and fuzzing.
    pub fn of_bytes(bytes: Vec<u8>, options: TableOptions) -> Result<(Vec<FlowRecord>, Report), FileError> {
        let file = CaptureFile::read(Path::new("memory"), Box::new(std::io::Cursor::new(bytes)))?;
        let state = State {
            replay: String::new(),
            derivation: 0,
            interval_ns: 0,
            idle_ns: 0,
            tcp_idle_ns: 0,
            entries: 0,
            files: Vec::new(),
            done: false,
            report: None,
        };
        let mut replay = Self {
            dir: PathBuf::new(),
            state,
            id: [0; 16],
            waiting: VecDeque::new(),
            open: Some(Open { file, stream: false, packets: 0, unknown_link: None }),
            table: Table::new(options, 0),
            interfaces: Interfaces::default(),
            report: Report::default(),
            stop: CancellationToken::new(),
            next: 0,
            ended: false,
            stored: Instant::now(),
        };
        let mut records = Vec::new();
        while !replay.is_done() {
            records.append(&mut replay.read()?);
        }
        Ok((records, replay.report()))
    }

    /// Of this replay, not of its files: the same files replayed twice are two replays.
    pub(crate) fn source_id(&self) -> Id {
        self.id
    }

    /// The beginning of every `flow_id` of this replay, as text.
    pub fn flow_id_prefix(&self) -> String {
        let text = weir_common::id::uuid_text(&weir_common::id::flow_id(number(&self.id), 0, 0));
        text[..13].to_owned()
    }

    /// The chunk that is to be stored next.
    pub(crate) fn frozen(&self) -> Option<u64> {
        (!self.is_done()).then_some(self.next)
    }

    /// Whether everything was read and given out.
    pub fn is_done(&self) -> bool {
        self.ended && self.table.ready() == 0
    }

    /// Whether it reads something that can't be read again: then it is brought to its end even when it is stopped.
    pub(crate) fn must_end(&self) -> bool {
        self.state.files.iter().any(|file| file.content.is_none()) && !self.is_done()
    }

    /// The next chunk of records.
    pub(crate) fn read(&mut self) -> Result<Vec<FlowRecord>, FileError> {
        while !self.ended && self.table.ready() < CHUNK_RECORDS {
            let waited = self.table.ready() > 0 && self.must_end() && self.stored.elapsed() >= STREAM_WAIT;
            if waited {
                break;
            }
            self.step()?;
        }
        self.stored = Instant::now();
        self.next += 1;
        Ok(self.table.take(CHUNK_RECORDS))
    }

    /// The chunk is stored: go on. One that the spool had from before is read now, and left.
    pub(crate) fn release(&mut self, chunk: u64) -> Result<(), FileError> {
        if chunk >= self.next {
            self.read()?;
        }
        Ok(())
    }

    /// What is known so far.
    pub fn report(&self) -> Report {
        Report { totals: self.table.totals(), ..self.report.clone() }
    }

    /// Everything is delivered: a next start begins another replay.
    pub(crate) fn finish(&mut self) -> Result<Report, StateError> {
        let report = self.report();
        self.state.finish(&self.dir, report.clone())?;
        Ok(report)
    }

    /// Some hundred packets of the open file, or the next file, or the end.
    fn step(&mut self) -> Result<(), FileError> {
        const PACKETS: usize = 256;
        let Some(open) = &mut self.open else {
            return self.next_file();
        };
        for _ in 0..PACKETS {
            let packet = match open.file.next(&mut self.interfaces) {
                Ok(Some(packet)) => packet,
                Ok(None) => {
                    self.end_of_file(None);
                    return Ok(());
                }
                Err(error) if error.is_of_content() => {
                    self.end_of_file(Some(error));
                    return Ok(());
                }
                Err(error) => return Err(error),
            };
            open.packets += 1;
            match link::parse(packet.link, packet.interface, packet.data) {
                Some(parsed) => {
                    self.report.other_packets += u64::from(!parsed.is_ip());
                    self.table.packet(&packet, &parsed, &self.interfaces);
                }
                None => {
                    self.report.unknown_link_packets += 1;
                    open.unknown_link = Some(packet.link);
                }
            }
        }
        Ok(())
    }

    fn next_file(&mut self) -> Result<(), FileError> {
        let Some(FileIdentity { path, content }) = self.waiting.pop_front() else {
            self.table.finish(&self.interfaces);
            self.ended = true;
            return Ok(());
        };
        let stream = content.is_none();
        let opened = if stream {
            Stream::open(&path, self.stop.clone())
                .map_err(|source| FileError::Open { path: path.clone(), source })
                .and_then(|stream| CaptureFile::read(&path, Box::new(stream)))
        } else {
            CaptureFile::open(&path)
        };
        match opened {
            Ok(file) => self.open = Some(Open { file, stream, packets: 0, unknown_link: None }),
            Err(error) if error.is_of_content() => self.problem(&error.into()),
            Err(error) => return Err(error),
        }
        Ok(())
    }

    fn end_of_file(&mut self, error: Option<FileError>) {
        let Some(Open { file, stream, packets, unknown_link }) = self.open.take() else { return };
        let path = file.path();
        tracing::info!(file = %path.display(), packets, "read");
        if let Some(link) = unknown_link {
            let error = FileError::LinkType { path: path.to_owned(), link };
            self.problem(&error.into());
        }
        // Who ends a stream by a signal cuts it where it is.
        let asked = self.stop.is_cancelled() && stream;
        if let Some(error) = error.filter(|_| !asked) {
            self.problem(&error.into());
        }
    }

    fn problem(&mut self, error: &anyhow::Error) {
        let text = format!("{error:#}");
        tracing::error!(
            error = text,
            "a capture file could not be read to its end; what stood before is kept"
        );
        if self.report.problems.len() < PROBLEMS_MAX {
            self.report.problems.push(text);
        }
    }
}

/// 48 bits of the id.
fn number(id: &Id) -> u64 {
    id.iter().take(6).fold(0, |number, byte| number << 8 | u64::from(*byte))
}
