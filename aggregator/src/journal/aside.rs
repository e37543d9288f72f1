//! Segments that can't be used at all: set aside for a person to look at, and what they still tell.
//!
//! A journal without one of its segments goes on: the state comes from the last good checkpoint and the headers after
//! it, and no position that the lost segment gave out is given out again. Called by `Journal::open` alone.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use prost::Message as _;
use weir_common::file::{FileError, sync_dir};
use weir_common::log::segment::{
    CHECKPOINT_POSITION, FRAME_BYTES, Frame, HEADER_BYTES, Source, Verdict, read_frame,
};
use weir_common::log::{Damage, Log, LogError, LogOptions, Recovery};
use weir_proto::v1::JournalCheckpoint;

/// A segment that was set aside, now or at an earlier start.
pub(super) struct Aside {
    path: PathBuf,
    /// Its first position, by its name.
    pub(super) first_position: u64,
}

/// Opens the log without the segments that can't be used; those are renamed, and reported as damage.
pub(super) fn open_log(dir: &Path, options: LogOptions) -> Result<(Log, Recovery), LogError> {
    let mut new: Vec<Aside> = Vec::new();
    let (log, mut recovery) = loop {
        match Log::open(dir, options) {
            Ok(opened) => break opened,
            Err(LogError::BadSegment { path, reason, damaged: true }) => {
                let to = free_name(&path);
                tracing::error!(
                    path = %path.display(), offset = 0, reason, kept_as = %to.display(),
                    "a segment of the journal can't be used and is set aside"
                );
                fs::rename(&path, &to).map_err(FileError::at("set aside", &path))?;
                sync_dir(dir)?;
                new.extend(Aside::at(to));
            }
            Err(error) => return Err(error),
        }
    };
    let segments = log.segments();
    for aside in new {
        let after =
            segments.iter().map(|segment| segment.first_position).find(|at| *at > aside.first_position);
        let next = match after {
            Some(after) => after,
            None => aside.next_position()?,
        };
        let first_position = aside.first_position;
        // The log reports what is missing between two segments by itself.
        let known = recovery.damaged.iter().any(|damage| damage.last_position + 1 == next);
        if next > first_position && !known {
            recovery.damaged.push(Damage {
                path: aside.path,
                offset: 0,
                first_position,
                last_position: next - 1,
                reason: "its segment can't be used and is set aside",
            });
        }
    }
    Ok((log, recovery))
}

/// All that were ever set aside and are still there, oldest first.
pub(super) fn list(dir: &Path) -> Result<Vec<Aside>, FileError> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).map_err(FileError::at("list", dir))? {
        found.extend(Aside::at(entry.map_err(FileError::at("list", dir))?.path()));
    }
    found.sort_by(|a, b| (a.first_position, &a.path).cmp(&(b.first_position, &b.path)));
    Ok(found)
}

/// One past the last position that is known to have been given out, where that is `next` or more: what comes after a
/// segment that is in use is told by that.
pub(super) fn floor(asides: &[Aside], next: u64) -> Result<u64, FileError> {
    let mut floor = next;
    for aside in asides.iter().filter(|aside| aside.first_position >= next) {
        floor = floor.max(aside.next_position()?);
    }
    Ok(floor)
}

/// The last checkpoint that can still be read.
pub(super) fn checkpoint(
    asides: &[Aside],
    record_bytes_max: u32,
) -> Result<Option<JournalCheckpoint>, FileError> {
    for aside in asides.iter().rev() {
        let file = File::open(&aside.path).map_err(FileError::at("open", &aside.path))?;
        let mut payload = Vec::new();
        let frame = read_frame(&file, HEADER_BYTES, record_bytes_max, &mut payload);
        if let Verdict::Sound(Frame { position: CHECKPOINT_POSITION, .. }) =
            frame.map_err(FileError::at("read", &aside.path))?
            && let Ok(checkpoint) = JournalCheckpoint::decode(payload.as_slice())
        {
            return Ok(Some(checkpoint));
        }
    }
    Ok(None)
}

impl Aside {
    /// `<20 digits>.log.damaged`, or with a number behind it.
    fn at(path: PathBuf) -> Option<Self> {
        let (digits, rest) = path.file_name()?.to_str()?.split_once(".log.")?;
        let first_position = digits.parse().ok().filter(|_| rest.starts_with(DAMAGED))?;
        Some(Self { path, first_position })
    }

    /// One past the last position that a sound frame header in it states.
    fn next_position(&self) -> Result<u64, FileError> {
        let file = File::open(&self.path).map_err(FileError::at("open", &self.path))?;
        let mut chunk = vec![0; CHUNK_BYTES];
        let (mut offset, mut next) = (0, self.first_position);
        loop {
            let count =
                Source::read_at(&file, &mut chunk, offset).map_err(FileError::at("read", &self.path))?;
            if count < FRAME_BYTES as usize {
                return Ok(next);
            }
            let windows = chunk[..count].windows(FRAME_BYTES as usize).zip(offset..);
            for (frame, at) in
                windows.filter_map(|(window, at)| Some((Frame::decode(window.first_chunk()?)?, at)))
            {
                // Content may look like a frame; each record in front of a true one took a frame as well.
                let plausible = self.first_position..=self.first_position.saturating_add(at / FRAME_BYTES);
                if plausible.contains(&frame.position) {
                    next = next.max(frame.position + 1);
                }
            }
            offset += (count - FRAME_BYTES as usize + 1) as u64;
        }
    }
}

/// A name that nothing has: what was set aside before stays.
fn free_name(path: &Path) -> PathBuf {
    let first = path.with_extension(format!("log.{DAMAGED}"));
    let more = (2..).map(|number: u32| path.with_extension(format!("log.{DAMAGED}-{number}")));
    std::iter::once(first.clone()).chain(more).find(|path| !path.exists()).unwrap_or(first)
}

const DAMAGED: &str = "damaged";
const CHUNK_BYTES: usize = 1 << 20;
