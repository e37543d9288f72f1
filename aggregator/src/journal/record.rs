//! One journal record and its bytes: a length-prefixed `JournalHeader`, then one Arrow IPC stream (lz4) per kind.
//!
//! Owns the layout inside a log record. Framing, checksums and segments are `weir_common::log`'s. The writer encodes,
//! the reader and recovery decode.

use std::io::Cursor;

use arrow::array::{Array, ArrayRef, RecordBatch, RecordBatchOptions, new_null_array};
use arrow::error::ArrowError;
use arrow_ipc::CompressionType;
use arrow_ipc::reader::StreamReader;
use arrow_ipc::writer::{IpcWriteOptions, StreamWriter};
use prost::Message;
use weir_proto::v1::{BatchRange, JournalHeader, JournalPart};
use weir_schema::{Kind, SCHEMA_VERSION};

/// What one group commit wrote: at most one batch per kind, in the order of `Kind::ALL`.
#[derive(Debug)]
pub struct JournalRecord {
    /// Number of the record in the journal, from 1.
    pub position: u64,
    /// Unix nanoseconds at which it was appended.
    pub append_time_ns: i64,
    /// The rows, with the columns of `Kind::arrow_schema()`.
    pub batches: Vec<(Kind, RecordBatch)>,
}

impl JournalRecord {
    /// Rows over all kinds.
    pub fn events(&self) -> u64 {
        self.batches.iter().map(|(_, batch)| batch.num_rows() as u64).sum()
    }

    /// Bytes that its arrays hold in memory.
    pub fn memory_bytes(&self) -> usize {
        self.batches.iter().map(|(_, batch)| batch.get_array_memory_size()).sum()
    }
}

/// The parts of one log record, to be appended together.
#[derive(Debug)]
pub struct Encoded {
    /// Length prefix and header.
    pub head: Vec<u8>,
    /// IPC streams, in the order of the header's parts.
    pub streams: Vec<Vec<u8>>,
}

impl Encoded {
    /// The pieces for `Log::append_vectored`.
    pub fn parts(&self) -> Vec<&[u8]> {
        std::iter::once(self.head.as_slice()).chain(self.streams.iter().map(Vec::as_slice)).collect()
    }

    /// Length of the log record.
    pub fn len(&self) -> usize {
        self.head.len() + self.streams.iter().map(Vec::len).sum::<usize>()
    }

    /// Never: a record has a header.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// Encodes the rows of a group with the batches that they came from.
pub fn encode(
    ranges: Vec<BatchRange>,
    append_time_ns: i64,
    batches: &[(Kind, RecordBatch)],
) -> Result<Encoded, ArrowError> {
    let mut streams = Vec::with_capacity(batches.len());
    let mut parts = Vec::with_capacity(batches.len());
    for (kind, batch) in batches {
        let stream = ipc_stream(batch)?;
        let (rows, length) = (batch.num_rows() as u64, stream.len() as u64);
        parts.push(JournalPart { kind: kind.code(), rows, length });
        streams.push(stream);
    }
    let header = JournalHeader { schema_version: SCHEMA_VERSION, ranges, parts, append_time_ns };
    let length = header.encoded_len();
    let mut head = Vec::with_capacity(HEAD_LENGTH + length);
    head.extend_from_slice(&u32::try_from(length).unwrap_or(u32::MAX).to_le_bytes());
    head.extend_from_slice(&header.encode_to_vec());
    Ok(Encoded { head, streams })
}

fn ipc_stream(batch: &RecordBatch) -> Result<Vec<u8>, ArrowError> {
    // A column without a value takes as long to compress as others, and the reader makes it again.
    let is_filled = |column: &ArrayRef| column.null_count() < column.len();
    let filled: Vec<usize> = batch
        .columns()
        .iter()
        .enumerate()
        .filter(|(_, column)| is_filled(column))
        .map(|(at, _)| at)
        .collect();
    let batch = &batch.project(&filled)?;
    let options = IpcWriteOptions::default().try_with_compression(Some(CompressionType::LZ4_FRAME))?;
    let buffer = Vec::with_capacity(batch.num_rows() * ROW_BYTES_GUESS + STREAM_BYTES_GUESS);
    let mut writer = StreamWriter::try_new_with_options(buffer, batch.schema_ref(), options)?;
    writer.write(batch)?;
    writer.into_inner()
}

/// The header of a record, and where its streams begin.
pub fn decode_header(payload: &[u8]) -> Result<(JournalHeader, &[u8]), DecodeError> {
    let (length, rest) = payload.split_first_chunk::<HEAD_LENGTH>().ok_or(DecodeError::Short {
        part: "length of the header",
        needed: HEAD_LENGTH,
        length: payload.len(),
    })?;
    let needed = u32::from_le_bytes(*length) as usize;
    let Some((head, streams)) = rest.split_at_checked(needed) else {
        return Err(DecodeError::Short { part: "header", needed, length: rest.len() });
    };
    let header = JournalHeader::decode(head).map_err(DecodeError::Header)?;
    if header.schema_version > SCHEMA_VERSION {
        return Err(DecodeError::NewerSchema { found: header.schema_version, known: SCHEMA_VERSION });
    }
    Ok((header, streams))
}

/// A whole record.
pub fn decode(position: u64, payload: &[u8]) -> Result<JournalRecord, DecodeError> {
    let (header, mut rest) = decode_header(payload)?;
    let mut batches = Vec::with_capacity(header.parts.len());
    for part in &header.parts {
        let kind = Kind::from_code(part.kind).ok_or(DecodeError::Kind { code: part.kind })?;
        let needed = usize::try_from(part.length).unwrap_or(usize::MAX);
        let Some((stream, after)) = rest.split_at_checked(needed) else {
            return Err(DecodeError::Short { part: kind.as_str(), needed, length: rest.len() });
        };
        rest = after;
        let batch = read_stream(kind, stream).map_err(|source| DecodeError::Arrow { kind, source })?;
        if batch.num_rows() as u64 != part.rows {
            return Err(DecodeError::Rows { kind, stated: part.rows, found: batch.num_rows() });
        }
        batches.push((kind, batch));
    }
    Ok(JournalRecord { position, append_time_ns: header.append_time_ns, batches })
}

fn read_stream(kind: Kind, stream: &[u8]) -> Result<RecordBatch, ArrowError> {
    let mut reader = StreamReader::try_new(Cursor::new(stream), None)?;
    let batch = reader.next().ok_or_else(|| ArrowError::IpcError("stream without a batch".into()))??;
    if reader.next().is_some() {
        return Err(ArrowError::IpcError("stream with more than one batch".into()));
    }
    conform(kind, &batch)
}

/// Gives a batch the columns of this version: by name, null where it has none, because no row had a value or an earlier
/// version wrote it.
fn conform(kind: Kind, batch: &RecordBatch) -> Result<RecordBatch, ArrowError> {
    let schema = kind.arrow_schema();
    let columns = schema
        .fields()
        .iter()
        .map(|field| match batch.column_by_name(field.name()) {
            Some(column) => column.clone(),
            None => new_null_array(field.data_type(), batch.num_rows()),
        })
        .collect();
    let options = RecordBatchOptions::new().with_row_count(Some(batch.num_rows()));
    RecordBatch::try_new_with_options(schema, columns, &options)
}

/// Why the payload of a log record is no journal record. Its checksum was right: another version wrote it.
#[derive(Debug, thiserror::Error)]
pub enum DecodeError {
    /// It ends within a part.
    #[error("{part} needs {needed} bytes, {length} are left")]
    Short {
        /// Which part.
        part: &'static str,
        /// Bytes that it should have.
        needed: usize,
        /// Bytes that there are.
        length: usize,
    },
    /// The header is no protobuf.
    #[error("decode journal header")]
    Header(#[source] prost::DecodeError),
    /// Written by a newer version of Weir.
    #[error("schema_version {found} is newer than {known}, the newest that this version reads")]
    NewerSchema {
        /// Of the record.
        found: u32,
        /// Of this program.
        known: u32,
    },
    /// A kind that this version does not know.
    #[error("unknown kind {code}")]
    Kind {
        /// Its code.
        code: u32,
    },
    /// The stream can't be read.
    #[error("read Arrow stream of kind {}", .kind.as_str())]
    Arrow {
        /// Of which kind.
        kind: Kind,
        /// Arrow's error.
        #[source]
        source: ArrowError,
    },
    /// The stream has not the rows that the header states.
    #[error("kind {} has {found} rows, {stated} are stated", .kind.as_str())]
    Rows {
        /// Of which kind.
        kind: Kind,
        /// By the header.
        stated: u64,
        /// In the stream.
        found: usize,
    },
}

/// Bytes of the length before the header.
const HEAD_LENGTH: usize = 4;
/// First capacity of a stream's buffer: what a flow takes with lz4 (docs/benchmarks.md).
const ROW_BYTES_GUESS: usize = 144;
/// Schema and dictionaries of an almost empty stream.
const STREAM_BYTES_GUESS: usize = 32 << 10;
