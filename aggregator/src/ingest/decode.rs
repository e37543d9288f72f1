//! From a `Batch` frame to a checked body: sizes before bytes, structure before values.

use prost::Message;
use weir_proto::v1::{Batch, BatchBody, Codec};
use weir_schema::SCHEMA_VERSION;
use zstd::zstd_safe;

use super::check::CheckedBody;
use super::error::BatchError;
use super::limits::Limits;
use super::scan;

/// What a batch says about itself, checked as far as that goes without decompressing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Envelope {
    /// Bytes of the decompressed body.
    pub decoded_bytes: u64,
    /// Rows, by the envelope.
    pub events: u32,
}

/// Checks versions and stated sizes. Reads only the payload's frame header.
pub fn envelope(batch: &Batch, limits: &Limits) -> Result<Envelope, BatchError> {
    if batch.schema_version > SCHEMA_VERSION {
        return Err(BatchError::NewerSchema { found: batch.schema_version, known: SCHEMA_VERSION });
    }
    if batch.schema_version == 0 {
        return Err(BatchError::NoSchema);
    }
    if batch.codec != Codec::Zstd as i32 {
        return Err(BatchError::Codec { codec: batch.codec });
    }
    at_most("payload bytes", batch.payload.len() as u64, limits.payload_bytes_max)?;
    at_most("events", u64::from(batch.events), limits.rows_max)?;
    let decoded_bytes = match zstd_safe::get_frame_content_size(&batch.payload) {
        Ok(Some(bytes)) => bytes,
        Ok(None) => return Err(BatchError::Frame { what: "no content size" }),
        Err(_) => return Err(BatchError::Frame { what: "no frame header" }),
    };
    at_most("decoded bytes", decoded_bytes, limits.decoded_bytes_max)?;
    match zstd_safe::find_frame_compressed_size(&batch.payload) {
        Ok(length) if length == batch.payload.len() => {}
        Ok(_) => return Err(BatchError::Frame { what: "bytes after the frame" }),
        Err(_) => return Err(BatchError::Frame { what: "the frame is cut or damaged" }),
    }
    Ok(Envelope { decoded_bytes, events: batch.events })
}

/// Decompresses, decodes and checks the body. Allocates no more than `Limits::memory_bytes` of the envelope.
pub fn body(batch: &Batch, envelope: Envelope, limits: &Limits) -> Result<CheckedBody, BatchError> {
    let size = usize::try_from(envelope.decoded_bytes).unwrap_or(usize::MAX);
    let bytes = zstd::bulk::decompress(&batch.payload, size)
        .map_err(|error| BatchError::Decompress { what: error.to_string() })?;
    if bytes.len() != size {
        return Err(BatchError::Frame { what: "the content has not the stated size" });
    }
    scan::scan(&bytes, &Limits { rows_max: u64::from(envelope.events), ..*limits })?;
    let body = BatchBody::decode(bytes.as_slice()).map_err(BatchError::Decode)?;
    CheckedBody::check_sized(body, envelope.decoded_bytes, envelope.events, limits)
}

fn at_most(what: &'static str, value: u64, max: u64) -> Result<(), BatchError> {
    if value > max { Err(BatchError::TooMany { what, value, max }) } else { Ok(()) }
}
