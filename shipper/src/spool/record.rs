//! What the spool's log holds: one record an interval, and the checkpoint that opens each segment.
//!
//! Owns their bytes (protobuf, private to the shipper) and their limits. Used by the spool's writer and its reader.

use bytes::Bytes;
use prost::Message;

use crate::batch::EncodedBatch;

/// 16 random bytes: of a shipper, an epoch, a journal or a capture.
pub type Id = [u8; 16];

/// Batches that one record holds at most.
const BATCHES_MAX: usize = 1 << 20;

/// Names one interval of one capture: what was read before must not be read again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CaptureKey {
    /// Changes whenever the capture's counters begin anew.
    pub source: Id,
    /// Rises by one with each interval of a source.
    pub interval: u64,
}

impl CaptureKey {
    /// In place of an interval's number: the source was ended by request, and nothing that it counted is missing here.
    pub const ENDED: u64 = u64::MAX;
}

/// One interval, as it was appended.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct SpoolRecord {
    #[prost(bytes = "bytes", tag = "1")]
    epoch: Bytes,
    #[prost(uint64, tag = "2")]
    pub first_number: u64,
    #[prost(message, optional, tag = "3")]
    key: Option<SavedKey>,
    #[prost(message, repeated, tag = "4")]
    pub batches: Vec<SpoolBatch>,
}

/// One batch: its number is the record's first number plus its place.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct SpoolBatch {
    #[prost(bytes = "bytes", tag = "1")]
    pub payload: Bytes,
    #[prost(uint32, tag = "2")]
    pub events: u32,
    #[prost(sint64, tag = "3")]
    pub first_ns: i64,
    #[prost(sint64, tag = "4")]
    pub last_ns: i64,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct SavedKey {
    #[prost(bytes = "bytes", tag = "1")]
    source: Bytes,
    #[prost(uint64, tag = "2")]
    interval: u64,
}

/// The state before a segment's first record; what remains known when all older segments are gone.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct Checkpoint {
    #[prost(bytes = "bytes", tag = "1")]
    shipper: Bytes,
    #[prost(bytes = "bytes", tag = "2")]
    epoch: Bytes,
    #[prost(uint64, tag = "3")]
    pub next_number: u64,
    #[prost(message, optional, tag = "4")]
    key: Option<SavedKey>,
}

/// A frame with a right checksum that still makes no sense: it was written by something else.
#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    /// Not protobuf of this shape.
    #[error("decode a {what} of {bytes} bytes")]
    Decode {
        /// Record, checkpoint or state.
        what: &'static str,
        /// Its size.
        bytes: usize,
        /// Where it went wrong.
        source: prost::DecodeError,
    },
    /// A field is out of its range.
    #[error("field {field} of a {what} is {value}")]
    Field {
        /// Record, checkpoint or state.
        what: &'static str,
        /// The field.
        field: &'static str,
        /// Its value.
        value: u64,
    },
}

impl SpoolRecord {
    pub(crate) fn new(epoch: Id, first_number: u64, key: CaptureKey, batches: &[EncodedBatch]) -> Self {
        let batches = batches
            .iter()
            .map(|EncodedBatch { payload, events, first_ns, last_ns }| SpoolBatch {
                payload: payload.clone(),
                events: *events,
                first_ns: *first_ns,
                last_ns: *last_ns,
            })
            .collect();
        Self { epoch: Bytes::copy_from_slice(&epoch), first_number, key: Some(SavedKey::from(key)), batches }
    }

    /// Decodes and checks one record; payloads share the frame's memory.
    pub(crate) fn parse(frame: Vec<u8>) -> Result<Self, RecordError> {
        const WHAT: &str = "spool record";
        let bytes = frame.len();
        let record = Self::decode(Bytes::from(frame)).map_err(|source| RecordError::Decode {
            what: WHAT,
            bytes,
            source,
        })?;
        let field = |field, value| RecordError::Field { what: WHAT, field, value };
        id(WHAT, "epoch", &record.epoch)?;
        record.key()?;
        let batches = record.batches.len();
        if batches > BATCHES_MAX {
            return Err(field("batches", batches as u64));
        }
        if record.first_number == 0 || record.first_number.checked_add(batches as u64).is_none() {
            return Err(field("first_number", record.first_number));
        }
        Ok(record)
    }

    pub(crate) fn epoch(&self) -> Id {
        id("spool record", "epoch", &self.epoch).unwrap_or_default()
    }

    pub(crate) fn key(&self) -> Result<CaptureKey, RecordError> {
        required("spool record", self.key.as_ref())
    }
}

impl Checkpoint {
    pub(crate) fn new(shipper: Id, epoch: Id, next_number: u64, key: Option<CaptureKey>) -> Self {
        Self {
            shipper: Bytes::copy_from_slice(&shipper),
            epoch: Bytes::copy_from_slice(&epoch),
            next_number,
            key: key.map(SavedKey::from),
        }
    }

    pub(crate) fn parse(frame: &[u8]) -> Result<Self, RecordError> {
        const WHAT: &str = "spool checkpoint";
        let checkpoint = Self::decode(frame).map_err(|source| RecordError::Decode {
            what: WHAT,
            bytes: frame.len(),
            source,
        })?;
        id(WHAT, "shipper", &checkpoint.shipper)?;
        id(WHAT, "epoch", &checkpoint.epoch)?;
        checkpoint.key()?;
        Ok(checkpoint)
    }

    pub(crate) fn shipper(&self) -> Id {
        id("spool checkpoint", "shipper", &self.shipper).unwrap_or_default()
    }

    pub(crate) fn epoch(&self) -> Id {
        id("spool checkpoint", "epoch", &self.epoch).unwrap_or_default()
    }

    pub(crate) fn key(&self) -> Result<Option<CaptureKey>, RecordError> {
        self.key.as_ref().map(|key| required("spool checkpoint", Some(key))).transpose()
    }
}

impl From<CaptureKey> for SavedKey {
    fn from(CaptureKey { source, interval }: CaptureKey) -> Self {
        Self { source: Bytes::copy_from_slice(&source), interval }
    }
}

/// 16 bytes or an error that says how many there were.
pub(crate) fn id(what: &'static str, field: &'static str, bytes: &[u8]) -> Result<Id, RecordError> {
    Id::try_from(bytes).map_err(|_| RecordError::Field { what, field, value: bytes.len() as u64 })
}

pub(crate) fn required(what: &'static str, key: Option<&SavedKey>) -> Result<CaptureKey, RecordError> {
    let key = key.ok_or(RecordError::Field { what, field: "key", value: 0 })?;
    Ok(CaptureKey { source: id(what, "source", &key.source)?, interval: key.interval })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_comes_back_and_foreign_bytes_are_refused() {
        let key = CaptureKey { source: [3; 16], interval: 7 };
        let batch =
            EncodedBatch { payload: Bytes::from_static(b"zstd"), events: 2, first_ns: -4, last_ns: 9 };
        let record = SpoolRecord::new([1; 16], 5, key, &[batch.clone(), batch]);
        let back = SpoolRecord::parse(record.encode_to_vec()).unwrap();
        assert_eq!(back, record);
        assert_eq!((back.epoch(), back.key().unwrap()), ([1; 16], key));
        let error =
            SpoolRecord::parse(SpoolRecord { first_number: u64::MAX, ..record.clone() }.encode_to_vec());
        assert_eq!(
            error.unwrap_err().to_string(),
            format!("field first_number of a spool record is {}", u64::MAX)
        );
        SpoolRecord::parse(b"\xff\xff\xff".to_vec()).unwrap_err();
        SpoolRecord::parse(SpoolRecord { epoch: Bytes::from_static(b"short"), ..record }.encode_to_vec())
            .unwrap_err();
    }
}
