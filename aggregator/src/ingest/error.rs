//! Why a batch is refused: each error names the field, the value and the limit, so that a person can act on it.

use weir_proto::v1::refusal::Reason;

/// Why a batch can't be journaled.
#[derive(Debug, thiserror::Error, PartialEq)]
pub enum BatchError {
    /// Made by a newer shipper.
    #[error(
        "schema_version {found} is newer than {known}, the newest that this aggregator reads: update the aggregator first"
    )]
    NewerSchema {
        /// Of the batch.
        found: u32,
        /// Of this program.
        known: u32,
    },
    /// No schema version.
    #[error("schema_version 0 does not exist")]
    NoSchema,
    /// A codec that this version does not know.
    #[error("codec {codec} is unknown, 1 (zstd) is expected")]
    Codec {
        /// Its number.
        codec: i32,
    },
    /// More than a limit allows.
    #[error("{what}: {value}, at most {max} are accepted")]
    TooMany {
        /// Of what.
        what: &'static str,
        /// How many there are.
        value: u64,
        /// How many may be.
        max: u64,
    },
    /// The payload is not one zstd frame that states its size.
    #[error("the payload is not one zstd frame with its content size: {what}")]
    Frame {
        /// What is wrong with it.
        what: &'static str,
    },
    /// Decompression failed.
    #[error("decompress the payload: {what}")]
    Decompress {
        /// zstd's words.
        what: String,
    },
    /// The body breaks protobuf's rules, or its message's.
    #[error("{what}")]
    Malformed {
        /// Which rule.
        what: &'static str,
    },
    /// The body can't be decoded.
    #[error("decode the body: {0}")]
    Decode(prost::DecodeError),
    /// A field that this schema version does not have.
    #[error("{message} has an unknown field {tag}")]
    UnknownField {
        /// In which message.
        message: &'static str,
        /// Its number.
        tag: u32,
    },
    /// `Batch.events` is not what the body holds.
    #[error("events says {stated}, the body holds {found}")]
    Events {
        /// By the envelope.
        stated: u32,
        /// In the body.
        found: u64,
    },
    /// A column that is neither empty nor as long as there are rows.
    #[error("{field} has {found} values for {rows} rows")]
    Length {
        /// The column.
        field: &'static str,
        /// Values in it.
        found: usize,
        /// Rows in the batch.
        rows: usize,
    },
    /// A value out of its range.
    #[error("{field} is {value} in row {row}, expected {expected}")]
    Value {
        /// The field.
        field: &'static str,
        /// Row of its kind, from 0.
        row: usize,
        /// What stands there.
        value: u64,
        /// What could.
        expected: Expected,
    },
    /// Times that leave the range of nanoseconds since 1970 in 64 bits.
    #[error("{field} leaves the range of time in row {row}")]
    Time {
        /// The field.
        field: &'static str,
        /// Row, from 0.
        row: usize,
    },
}

/// What a value could have been.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expected {
    /// Not above this.
    AtMost(u64),
    /// An index into a table of this many entries.
    Below(usize),
    /// One of the codes of this set.
    Code(&'static str),
    /// So many bytes.
    Bytes(&'static str),
}

impl std::fmt::Display for Expected {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::AtMost(max) => write!(f, "at most {max}"),
            Self::Below(length) => write!(f, "an index into a table of {length}"),
            Self::Code(set) => write!(f, "a code of {set}"),
            Self::Bytes(lengths) => write!(f, "{lengths} bytes"),
        }
    }
}

impl BatchError {
    /// The wire's reason.
    pub fn reason(&self) -> Reason {
        match self {
            Self::NewerSchema { .. } | Self::NoSchema => Reason::SchemaVersion,
            Self::Codec { .. }
            | Self::TooMany { .. }
            | Self::Frame { .. }
            | Self::Decompress { .. }
            | Self::Malformed { .. }
            | Self::Decode(_)
            | Self::UnknownField { .. }
            | Self::Events { .. }
            | Self::Length { .. }
            | Self::Value { .. }
            | Self::Time { .. } => Reason::BadBatch,
        }
    }
}
