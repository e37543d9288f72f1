//! Batches: the records of one interval as `BatchBody` messages in protobuf, each compressed once as one zstd frame.
//!
//! Owns the split of an interval into batches and their bytes. The same records give the same bytes: after a `kill -9`
//! the frozen interval is read again and must not differ. Called by the source loop; the spool stores the result, the
//! client sends it unchanged.

mod columns;

use bytes::Bytes;
use prost::Message;
use weir_proto::v1::{BatchBody, LossEvent};

use crate::flow::{FlowRecord, LossRecord};
use columns::Columns;

/// Rows that one batch holds at most.
pub const ROWS_MAX: usize = 65_536;
/// A payload never exceeds this, whatever `batch.bytes` says.
pub const PAYLOAD_BYTES_MAX: usize = 4 << 20;
/// zstd level: what costs least CPU per byte saved.
const ZSTD_LEVEL: i32 = 1;
/// Encoded size of a loss row, at most.
const LOSS_BYTES_MAX: usize = 64;

/// One encoded batch, not yet numbered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EncodedBatch {
    /// A zstd frame with content size, holding a `BatchBody`.
    pub payload: Bytes,
    /// Rows, over all kinds.
    pub events: u32,
    /// Earliest end of a flow or first time of a loss, Unix nanoseconds.
    pub first_ns: i64,
    /// Latest end of a flow or last time of a loss, Unix nanoseconds.
    pub last_ns: i64,
}

/// An interval could not be encoded. Nothing is lost by it: the capture still holds the interval.
#[derive(Debug, thiserror::Error)]
pub enum BatchError {
    /// The compressor failed.
    #[error("compress a batch of {bytes} bytes")]
    Compress {
        /// Size before compression.
        bytes: usize,
        /// The compressor's words.
        source: std::io::Error,
    },
    /// `batch.bytes` keeps bodies far below this.
    #[error("a batch of {bytes} bytes is over the limit of {PAYLOAD_BYTES_MAX}")]
    TooLarge {
        /// Size after compression.
        bytes: usize,
    },
}

/// Encodes one interval. `body_bytes` is where a body is closed: its size before compression stays below that plus one
/// row. No records give no batches.
pub fn encode(
    flows: &[FlowRecord],
    losses: &[LossRecord],
    body_bytes: usize,
) -> Result<Vec<EncodedBatch>, BatchError> {
    let mut encoder = Encoder { out: Vec::new(), open: Open::default() };
    for flow in flows {
        encoder.open.flow(flow);
        encoder.close_at(body_bytes)?;
    }
    for loss in losses {
        encoder.open.loss(loss);
        encoder.close_at(body_bytes)?;
    }
    encoder.close()?;
    Ok(encoder.out)
}

struct Encoder {
    out: Vec<EncodedBatch>,
    open: Open,
}

impl Encoder {
    fn close_at(&mut self, body_bytes: usize) -> Result<(), BatchError> {
        if self.open.bytes() >= body_bytes || self.open.rows() >= ROWS_MAX {
            self.close()?;
        }
        Ok(())
    }

    fn close(&mut self) -> Result<(), BatchError> {
        if self.open.rows() > 0 {
            self.out.push(std::mem::take(&mut self.open).finish()?);
        }
        Ok(())
    }
}

/// The batch being filled.
#[derive(Default)]
struct Open {
    flows: Columns,
    losses: Vec<LossEvent>,
    span: Option<(i64, i64)>,
}

impl Open {
    fn flow(&mut self, flow: &FlowRecord) {
        self.flows.push(flow);
        self.widen(flow.end_ns, flow.end_ns);
    }

    fn loss(&mut self, loss: &LossRecord) {
        let LossRecord { stage, reason, count, bytes, first_ns, last_ns } = loss.clone();
        self.losses.push(LossEvent {
            stage: stage.code(),
            reason: reason.code(),
            count,
            bytes,
            first_time_ns: first_ns,
            last_time_ns: last_ns,
        });
        self.widen(first_ns, last_ns);
    }

    fn widen(&mut self, first_ns: i64, last_ns: i64) {
        let (first, last) = self.span.unwrap_or((first_ns, last_ns));
        self.span = Some((first.min(first_ns), last.max(last_ns)));
    }

    fn rows(&self) -> usize {
        self.flows.rows() + self.losses.len()
    }

    fn bytes(&self) -> usize {
        self.flows.bytes() + self.losses.len() * LOSS_BYTES_MAX
    }

    fn finish(self) -> Result<EncodedBatch, BatchError> {
        let events = u32::try_from(self.rows()).unwrap_or(u32::MAX);
        let (first_ns, last_ns) = self.span.unwrap_or_default();
        let flows = (self.flows.rows() > 0).then(|| self.flows.finish());
        let body = BatchBody { flows, losses: self.losses, ..BatchBody::default() }.encode_to_vec();
        let payload = zstd::bulk::compress(&body, ZSTD_LEVEL)
            .map_err(|source| BatchError::Compress { bytes: body.len(), source })?;
        if payload.len() > PAYLOAD_BYTES_MAX {
            return Err(BatchError::TooLarge { bytes: payload.len() });
        }
        Ok(EncodedBatch { payload: payload.into(), events, first_ns, last_ns })
    }
}

#[cfg(test)]
mod tests;
