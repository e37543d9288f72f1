//! The one writer of a log, and its recovery when opened.

use std::fs::{self, File, OpenOptions};
use std::io::{self, IoSlice, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{FlockOperation, flock};

use super::reader::{DAMAGED, LogReader, Segment, Shared};
use super::segment::{
    CHECKPOINT_POSITION, FRAME_BYTES, Found, Frame, HEADER_BYTES, Header, Scan, ScanError, Source, scan,
};
use super::{Cut, Damage, LogError, LogOptions, Recovery, SegmentInfo, segment_path};
use crate::file::{FileError, sync_dir};

/// A log, held by its one writer. Dropping it releases the folder; nothing is lost that was synced.
#[derive(Debug)]
pub struct Log {
    dir: PathBuf,
    options: LogOptions,
    shared: Arc<Shared>,
    active: Option<Active>,
    next_position: u64,
    poisoned: bool,
    _lock: File,
}

#[derive(Debug)]
struct Active {
    file: File,
    path: PathBuf,
    end: u64,
    /// Where it ended at the last sync.
    durable_end: u64,
    checkpoint: Vec<u8>,
}

impl Log {
    /// Takes the folder (made if missing), verifies every segment, cuts a torn tail.
    ///
    /// A new log has no segment: [`Log::roll`] gives it the first one.
    pub fn open(dir: &Path, options: LogOptions) -> Result<(Self, Recovery), LogError> {
        fs::create_dir_all(dir).map_err(FileError::at("create folder", dir))?;
        let lock_path = dir.join("lock");
        let lock = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&lock_path)
            .map_err(FileError::at("open", &lock_path))?;
        if flock(&lock, FlockOperation::NonBlockingLockExclusive).is_err() {
            return Err(LogError::Locked { path: dir.to_owned() });
        }
        let mut log = Self {
            dir: dir.to_owned(),
            options,
            shared: Arc::new(Shared::new(options.record_bytes_max)),
            active: None,
            next_position: 1,
            poisoned: false,
            _lock: lock,
        };
        let recovery = log.recover()?;
        Ok((log, recovery))
    }

    fn recover(&mut self) -> Result<Recovery, LogError> {
        let mut recovery = Recovery::default();
        let paths = segment_paths(&self.dir)?;
        let mut segments: Vec<Segment> = Vec::with_capacity(paths.len());
        for (index, (first_position, path)) in paths.iter().enumerate() {
            let next_first = paths.get(index + 1).map(|(first, _)| *first);
            let segment = self.recover_segment(*first_position, path, next_first, &mut recovery)?;
            self.next_position = next_first.unwrap_or_else(|| segment.next_position());
            segments.push(segment);
        }
        if let Some(last) = segments.last() {
            let mut file =
                OpenOptions::new().write(true).open(&last.path).map_err(FileError::at("open", &last.path))?;
            file.seek(SeekFrom::Start(last.bytes)).map_err(FileError::at("seek in", &last.path))?;
            // What was read may be in the page cache only: a writer that died between append and sync leaves records
            // there, and from now on they count as durable.
            file.sync_all().map_err(FileError::at("sync", &last.path))?;
            sync_dir(&self.dir)?;
            self.active = Some(Active {
                file,
                path: last.path.clone(),
                end: last.bytes,
                durable_end: last.bytes,
                checkpoint: last.checkpoint.clone(),
            });
        }
        self.shared.replace(segments, self.next_position);
        Ok(recovery)
    }

    /// `next_first` is the first position of the segment after it; `None` for the last segment.
    fn recover_segment(
        &self,
        first_position: u64,
        path: &Path,
        next_first: Option<u64>,
        recovery: &mut Recovery,
    ) -> Result<Segment, LogError> {
        let bad = |reason: String, damaged| LogError::BadSegment { path: path.to_owned(), reason, damaged };
        let file = File::open(path).map_err(FileError::at("open", path))?;
        let length = file.metadata().map_err(FileError::at("query", path))?.len();
        let mut header = [0; HEADER_BYTES as usize];
        Source::read_at(&file, &mut header, 0).map_err(FileError::at("read", path))?;
        let header = Header::decode(&header).map_err(|reason| bad(reason.to_owned(), true))?;
        if header.kind != self.options.kind || header.first_position != first_position {
            return Err(bad("it belongs to another log".to_owned(), false));
        }
        if header.schema_version > self.options.schema_version {
            let (found, known) = (header.schema_version, self.options.schema_version);
            return Err(bad(
                format!("its schema_version {found} is newer than this program's {known}"),
                false,
            ));
        }
        let scan =
            scan(&file, length, header, self.options.record_bytes_max).map_err(|error| match error {
                ScanError::Io(source) => {
                    FileError { operation: "read", path: path.to_owned(), source }.into()
                }
                ScanError::Bad(reason) => bad(reason.to_owned(), true),
            })?;
        let mut segment = Segment::new(first_position, path.to_owned(), file, scan.checkpoint.clone());
        for found in &scan.found {
            match *found {
                Found::Record { offset, .. } => segment.offsets.push(offset_u32(offset)),
                Found::Damaged { offset, first_position, last_position, reason } => {
                    let damage =
                        Damage { path: path.to_owned(), offset, first_position, last_position, reason };
                    segment.add_damage(damage.clone());
                    recovery.damaged.push(damage);
                }
            }
        }
        segment.bytes = scan.end;
        match (next_first, &scan) {
            (Some(next_first), Scan { next_position, .. }) if *next_position > next_first => {
                return Err(bad(
                    format!("it goes on to {next_position}, but the next segment begins at {next_first}"),
                    false,
                ));
            }
            // The end of a sealed segment is known from the next one: what is missing there is damage, not a torn tail.
            (Some(next_first), Scan { next_position, end, tail, .. }) if *next_position < next_first => {
                let damage = Damage {
                    path: path.to_owned(),
                    offset: *end,
                    first_position: *next_position,
                    last_position: next_first - 1,
                    reason: tail.unwrap_or("the records after this segment are missing"),
                };
                segment.add_end_damage(damage.clone());
                recovery.damaged.push(damage);
            }
            (None, Scan { end, tail: Some(reason), .. }) => {
                let writable =
                    OpenOptions::new().write(true).open(path).map_err(FileError::at("open", path))?;
                writable.set_len(*end).map_err(FileError::at("cut", path))?;
                writable.sync_all().map_err(FileError::at("sync", path))?;
                recovery.cut =
                    Some(Cut { path: path.to_owned(), offset: *end, bytes_lost: length - end, reason });
            }
            _ => {}
        }
        Ok(segment)
    }

    /// Appends a record and returns its position. It is durable, and visible to readers, after [`Log::sync`].
    ///
    /// When the disk is full the part that was written is cut back and the log goes on: [`LogError::is_full`].
    pub fn append(&mut self, payload: &[u8]) -> Result<u64, LogError> {
        self.append_vectored(&[payload])
    }

    /// Appends one record given in parts.
    pub fn append_vectored(&mut self, parts: &[&[u8]]) -> Result<u64, LogError> {
        self.sound()?;
        let length = self.checked_length(parts)?;
        let position = self.next_position;
        let Some(active) = self.active.as_mut() else {
            return Err(LogError::NoSegment { path: self.dir.clone() });
        };
        let offset = active.end;
        if let Err(source) = active.write_frame(Frame::of(position, parts, length), parts) {
            // The part that got through would hide what is appended later.
            let cut = active.file.set_len(offset).and_then(|()| active.file.seek(SeekFrom::Start(offset)));
            self.poisoned = cut.is_err();
            return Err(LogError::Append { path: active.path.clone(), offset, source });
        }
        active.end += FRAME_BYTES + u64::from(length);
        self.shared.push(offset_u32(offset), active.end);
        self.next_position += 1;
        Ok(position)
    }

    fn checked_length(&self, parts: &[&[u8]]) -> Result<u32, LogError> {
        let bytes: u64 = parts.iter().map(|part| part.len() as u64).sum();
        let limit = self.options.record_bytes_max;
        u32::try_from(bytes).ok().filter(|length| *length <= limit).ok_or(LogError::TooLarge { bytes, limit })
    }

    /// Makes everything appended so far durable (`fdatasync`), then visible to readers.
    ///
    /// After an error nothing is known about what is on disk (the kernel drops dirty pages that it failed to write),
    /// so the log refuses everything from then on.
    pub fn sync(&mut self) -> Result<(), LogError> {
        self.sound()?;
        let Some(active) = &mut self.active else { return Ok(()) };
        if let Err(source) = active.file.sync_data() {
            self.poisoned = true;
            // The kernel may keep these pages and call them clean; no restart is to find them and believe them.
            let _ = active.file.set_len(active.durable_end);
            return Err(FileError { operation: "sync", path: active.path.clone(), source }.into());
        }
        active.durable_end = active.end;
        self.shared.publish(self.next_position);
        Ok(())
    }

    /// Whether the active segment has reached its size (or there is none): time for [`Log::roll`].
    pub fn roll_due(&self) -> bool {
        self.active.as_ref().is_none_or(|active| active.end >= self.options.segment_bytes)
    }

    /// Syncs the active segment and opens the next, which begins with this checkpoint: the owner's state after
    /// everything appended so far. The new segment appears whole or not at all.
    pub fn roll(&mut self, checkpoint: &[u8]) -> Result<(), LogError> {
        self.sync()?;
        let length = self.checked_length(&[checkpoint])?;
        let header = Header {
            kind: self.options.kind,
            schema_version: self.options.schema_version,
            first_position: self.next_position,
        };
        let path = segment_path(&self.dir, self.next_position);
        let temporary = path.with_extension("log.tmp");
        let mut file = File::create(&temporary).map_err(FileError::at("create", &temporary))?;
        let frame = Frame::of(CHECKPOINT_POSITION, &[checkpoint], length);
        let written = file
            .write_all(&header.encode())
            .and_then(|()| write_all_vectored(&mut file, &[&frame.encode(), checkpoint]))
            .and_then(|()| file.sync_data());
        if let Err(source) = written {
            let _ = fs::remove_file(&temporary);
            return Err(FileError { operation: "write", path: temporary, source }.into());
        }
        let reader = File::open(&temporary).map_err(FileError::at("open", &temporary))?;
        fs::rename(&temporary, &path).map_err(FileError::at("rename into place", &path))?;
        sync_dir(&self.dir)?;
        let end = HEADER_BYTES + FRAME_BYTES + u64::from(length);
        let mut segment = Segment::new(self.next_position, path.clone(), reader, checkpoint.to_vec());
        segment.bytes = end;
        self.shared.add_segment(segment);
        self.active = Some(Active { file, path, end, durable_end: end, checkpoint: checkpoint.to_vec() });
        Ok(())
    }

    /// Gives up the positions before `position`, which were lost with the end of the log, and goes on there in a new
    /// segment: a position that somebody has seen is never given out again. Reading one of them answers
    /// [`LogError::Damaged`].
    pub fn advance_to(&mut self, position: u64, checkpoint: &[u8]) -> Result<(), LogError> {
        self.sync()?;
        let before = self.next_position;
        self.next_position = before.max(position);
        // A position that has no segment must not be appended to the old one.
        self.roll(checkpoint).inspect_err(|_| self.next_position = before)
    }

    /// Unlinks the segments all of whose records lie before `position`, never the active one. Returns the bytes freed.
    pub fn remove_before(&mut self, position: u64) -> Result<u64, LogError> {
        let mut freed = 0;
        for segment in self.shared.take_before(position) {
            fs::remove_file(&segment.path).map_err(FileError::at("remove", &segment.path))?;
            freed += segment.bytes;
        }
        if freed > 0 {
            sync_dir(&self.dir)?;
        }
        Ok(freed)
    }

    /// Unlinks one sealed segment, wherever it stands. Its positions then answer [`LogError::Damaged`] as missing, also
    /// to the next [`Log::open`], so the owner notes beforehand what it gives up. Returns the bytes freed: 0 if no
    /// sealed segment begins there.
    pub fn remove_segment(&mut self, first_position: u64) -> Result<u64, LogError> {
        let Some(segment) = self.shared.take_sealed(first_position) else { return Ok(0) };
        fs::remove_file(&segment.path).map_err(FileError::at("remove", &segment.path))?;
        sync_dir(&self.dir)?;
        Ok(segment.bytes)
    }

    /// The checkpoint with which the active segment begins.
    pub fn checkpoint(&self) -> Option<&[u8]> {
        self.active.as_ref().map(|active| active.checkpoint.as_slice())
    }

    /// The position that the next record will get.
    pub fn next_position(&self) -> u64 {
        self.next_position
    }

    /// The first position that is still on disk; the next one when there is none.
    pub fn first_position(&self) -> u64 {
        self.shared.first_position().unwrap_or(self.next_position)
    }

    /// Bytes on disk, over all segments.
    pub fn bytes(&self) -> u64 {
        self.segments().iter().map(|segment| segment.bytes).sum()
    }

    /// The segments, oldest first; the last is the active one.
    pub fn segments(&self) -> Vec<SegmentInfo> {
        self.shared.segments()
    }

    /// A handle that reads what is durable.
    pub fn reader(&self) -> LogReader {
        LogReader::new(Arc::clone(&self.shared))
    }

    fn sound(&self) -> Result<(), LogError> {
        if self.poisoned { Err(LogError::Poisoned { path: self.dir.clone() }) } else { Ok(()) }
    }
}

impl Active {
    fn write_frame(&mut self, frame: Frame, parts: &[&[u8]]) -> io::Result<()> {
        let head = frame.encode();
        let mut all: Vec<&[u8]> = Vec::with_capacity(parts.len() + 1);
        all.push(&head);
        all.extend_from_slice(parts);
        write_all_vectored(&mut self.file, &all)
    }
}

fn write_all_vectored(file: &mut File, parts: &[&[u8]]) -> io::Result<()> {
    let mut slices: Vec<IoSlice<'_>> = parts.iter().map(|part| IoSlice::new(part)).collect();
    let mut rest = slices.as_mut_slice();
    IoSlice::advance_slices(&mut rest, 0);
    while !rest.is_empty() {
        match file.write_vectored(rest) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(count) => IoSlice::advance_slices(&mut rest, count),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

fn segment_paths(dir: &Path) -> Result<Vec<(u64, PathBuf)>, LogError> {
    let mut paths = Vec::new();
    for entry in fs::read_dir(dir).map_err(FileError::at("list", dir))? {
        let path = entry.map_err(FileError::at("list", dir))?.path();
        let Some(name) = path.file_name().and_then(|name| name.to_str()) else { continue };
        if name.ends_with(".log.tmp") {
            // A roll that did not come to its rename.
            fs::remove_file(&path).map_err(FileError::at("remove", &path))?;
        } else if let Some(position) = name.strip_suffix(".log").and_then(|digits| digits.parse().ok()) {
            paths.push((position, path));
        }
    }
    paths.sort();
    Ok(paths)
}

/// Offsets are kept in 32 bits: a segment ends with the record that passes `segment_bytes`, far below 4 GiB.
fn offset_u32(offset: u64) -> u32 {
    u32::try_from(offset).unwrap_or(DAMAGED)
}
