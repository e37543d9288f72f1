//! One Parquet file while it is being written: a temporary file in which row groups are sorted and hashed on their way.
//!
//! The sink has one per open partition. Nothing here publishes; a file that is dropped leaves its temporary file, which
//! the next recovery deletes.

use std::fs::{File, OpenOptions};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use arrow::array::RecordBatch;
use parquet::arrow::ArrowWriter;
use parquet::arrow::arrow_writer::{ArrowRowGroupWriterFactory, ArrowWriterOptions};
use parquet::errors::ParquetError;
use parquet::file::metadata::KeyValue;
use parquet::file::writer::SerializedFileWriter;
use sha2::{Digest, Sha256};
use weir_common::file::FileError;
use weir_common::id::hex;
use weir_schema::{Kind, SCHEMA_VERSION, SCHEMA_VERSION_KEY};

use super::error::SinkError;
use super::partition::Part;
use super::properties::{ROW_GROUP_ROWS, writer_properties};
use super::row_group::write_row_group;
use super::sort::{join, sort};
use super::text_column::TextEncoder;

/// See the module.
#[derive(Debug)]
pub(super) struct OpenFile {
    kind: Kind,
    path: PathBuf,
    writer: Option<Writer>,
    pending: Vec<RecordBatch>,
    pending_rows: usize,
    pending_bytes: usize,
    rows: u64,
    times: (i64, i64),
}

/// A file that is whole and synced under its temporary name.
#[derive(Debug)]
pub(super) struct WrittenFile {
    /// Its temporary name.
    pub path: PathBuf,
    /// Its rows.
    pub rows: u64,
    /// Its size.
    pub bytes: u64,
    /// Its hash, in hexadecimal.
    pub sha256: String,
    /// Smallest and greatest time, microseconds since the Unix epoch.
    pub times: (i64, i64),
}

impl OpenFile {
    /// A file of a kind that will be written at a path; the path is not touched before the first row group.
    pub(super) fn new(kind: Kind, path: PathBuf) -> Self {
        Self {
            kind,
            path,
            writer: None,
            pending: Vec::new(),
            pending_rows: 0,
            pending_bytes: 0,
            rows: 0,
            times: (i64::MAX, i64::MIN),
        }
    }

    /// Takes rows; writes row groups as they become full.
    pub(super) fn push(&mut self, part: &Part) -> Result<(), SinkError> {
        let Part { key: _, batch, times } = part;
        self.times = (self.times.0.min(times.0), self.times.1.max(times.1));
        self.rows += batch.num_rows() as u64;
        let mut from = 0;
        while from < batch.num_rows() {
            let rows = (ROW_GROUP_ROWS - self.pending_rows).min(batch.num_rows() - from);
            let slice = batch.slice(from, rows);
            self.pending_rows += rows;
            self.pending_bytes += slice.get_array_memory_size();
            self.pending.push(slice);
            from += rows;
            if self.pending_rows == ROW_GROUP_ROWS {
                self.flush()?;
            }
        }
        Ok(())
    }

    /// Bytes of memory that rows waiting for their row group hold, at most: texts shared by columns count each time.
    pub(super) fn pending_bytes(&self) -> usize {
        self.pending_bytes
    }

    /// Bytes in the temporary file so far.
    pub(super) fn bytes_written(&self) -> u64 {
        self.writer.as_ref().map_or(0, |writer| writer.file.bytes_written() as u64)
    }

    /// Writes the waiting rows as one sorted row group.
    pub(super) fn flush(&mut self) -> Result<(), SinkError> {
        if self.pending.is_empty() {
            return Ok(());
        }
        let encode = |source| SinkError::Encode { path: self.path.clone(), source };
        let arrow = |error| encode(ParquetError::from(error));
        let batch = match self.pending.as_slice() {
            [one] => one.clone(),
            many => join(self.kind, many).map_err(arrow)?,
        };
        self.pending.clear();
        (self.pending_rows, self.pending_bytes) = (0, 0);
        let batch = sort(self.kind, &batch).map_err(arrow)?;
        if self.writer.is_none() {
            self.writer = Some(open(self.kind, &self.path)?);
        }
        if let Some(writer) = &mut self.writer {
            let Writer { file, columns, texts } = writer;
            write_row_group(file, columns, texts, &batch).map_err(encode)?;
        }
        Ok(())
    }

    /// Ends the file: everything is written and synced. `positions` are those that it has rows of: first and next.
    pub(super) fn finish(
        mut self,
        journal_id: &str,
        positions: (u64, u64),
    ) -> Result<WrittenFile, SinkError> {
        self.flush()?;
        let Self { kind, path, writer, rows, times, .. } = self;
        let mut writer = match writer {
            Some(writer) => writer,
            None => open(kind, &path)?,
        };
        let (first, next) = positions;
        for (key, value) in [
            (SCHEMA_VERSION_KEY, SCHEMA_VERSION.to_string()),
            ("weir.kind", kind.as_str().to_owned()),
            ("weir.journal_id", journal_id.to_owned()),
            ("weir.first_position", first.to_string()),
            ("weir.next_position", next.to_string()),
        ] {
            writer.file.append_key_value_metadata(KeyValue::new(key.to_owned(), value));
        }
        let encode = |source| SinkError::Encode { path: path.clone(), source };
        let (bytes, sha256) = writer.file.into_inner().map_err(encode)?.finish(&path)?;
        Ok(WrittenFile { path, rows, bytes, sha256, times })
    }
}

/// The Parquet file, and what its row groups are written with.
struct Writer {
    file: SerializedFileWriter<HashingFile>,
    columns: ArrowRowGroupWriterFactory,
    texts: TextEncoder,
}

impl std::fmt::Debug for Writer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Writer").field("bytes_written", &self.file.bytes_written()).finish_non_exhaustive()
    }
}

fn open(kind: Kind, path: &Path) -> Result<Writer, SinkError> {
    let file = OpenOptions::new().write(true).create_new(true).open(path);
    let file = HashingFile::new(file.map_err(FileError::at("create", path))?);
    let properties = writer_properties(kind).as_ref().clone();
    // Without the Arrow schema in the footer: the Parquet types say it all, and a small file stays small.
    let options = ArrowWriterOptions::new().with_properties(properties).with_skip_arrow_metadata(true);
    let writer = ArrowWriter::try_new_with_options(file, kind.arrow_schema(), options)
        .and_then(ArrowWriter::into_serialized_writer)
        .and_then(|(file, columns)| Ok(Writer { file, columns, texts: TextEncoder::new()? }));
    writer.map_err(|source| SinkError::Encode { path: path.to_owned(), source })
}

/// A file whose bytes are counted and hashed as they are written.
#[derive(Debug)]
struct HashingFile {
    file: BufWriter<Hashing>,
}

#[derive(Debug)]
struct Hashing {
    file: File,
    hash: Sha256,
    bytes: u64,
}

impl HashingFile {
    fn new(file: File) -> Self {
        let hashing = Hashing { file, hash: Sha256::new(), bytes: 0 };
        Self { file: BufWriter::with_capacity(BUFFER_BYTES, hashing) }
    }

    /// Writes what is buffered and syncs; gives size and hash.
    fn finish(self, path: &Path) -> Result<(u64, String), FileError> {
        let hashing = self.file.into_inner().map_err(io::IntoInnerError::into_error);
        let Hashing { file, hash, bytes } = hashing.map_err(FileError::at("write", path))?;
        file.sync_all().map_err(FileError::at("sync", path))?;
        Ok((bytes, hex(&hash.finalize())))
    }
}

impl Write for HashingFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.file.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        // The encoder flushes after each row group; only the end has to reach the file.
        Ok(())
    }
}

impl Write for Hashing {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.file.write(bytes)?;
        self.hash.update(&bytes[..written]);
        self.bytes += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

const BUFFER_BYTES: usize = 256 << 10;
