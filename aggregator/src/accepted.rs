//! What ingest hands to the journal's writer: a checked batch or a skip, with where it came from.
//!
//! An [`Accepted`] is decided: its number was taken by the sequence rules, so exactly these units end up in the
//! journal, each once.

use std::sync::Arc;

use prometheus_client::metrics::gauge::Gauge;
use tokio::sync::OwnedSemaphorePermit;
use weir_proto::v1::{BatchRange, LossEvent};

use crate::ingest::check::CheckedBody;

/// 16 bytes that name a shipper, an epoch or a journal.
pub type Id = [u8; 16];

/// One epoch of one shipper.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Source {
    /// Made with the shipper's spool.
    pub shipper: Id,
    /// Made anew whenever the spool's tail was cut.
    pub epoch: Id,
}

/// Who sent a unit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Origin {
    /// Shipper and epoch.
    pub source: Source,
    /// Name of its node; never empty.
    pub node: String,
    /// Its cluster; `[a-z0-9.-]{1,63}`.
    pub cluster: String,
}

/// A unit that will be journaled.
#[derive(Debug)]
pub struct Accepted {
    /// Who sent it.
    pub origin: Arc<Origin>,
    /// Its first number; the only one of a batch.
    pub first_number: u64,
    /// Its last number.
    pub last_number: u64,
    /// What it holds.
    pub content: Content,
    /// Its share of the memory for undecided units, given back when it is journaled.
    pub share: Option<MemoryShare>,
}

/// A share of the memory for undecided units; dropping it gives it back.
#[derive(Debug)]
pub struct MemoryShare {
    bytes: i64,
    taken: Gauge,
    _permit: OwnedSemaphorePermit,
}

impl MemoryShare {
    /// Counts the permits, of 1 KiB each, in `taken`.
    pub fn new(permit: OwnedSemaphorePermit, taken: &Gauge) -> Self {
        let bytes = i64::try_from(permit.num_permits() * 1024).unwrap_or(i64::MAX);
        taken.inc_by(bytes);
        Self { bytes, taken: taken.clone(), _permit: permit }
    }
}

impl Drop for MemoryShare {
    fn drop(&mut self) {
        self.taken.dec_by(self.bytes);
    }
}

/// What a unit holds.
#[derive(Debug)]
pub enum Content {
    /// The events of a batch.
    Body(Box<CheckedBody>),
    /// The one row that stands for skipped numbers.
    Skip(LossEvent),
}

impl Accepted {
    /// Rows that it gives.
    pub fn events(&self) -> u64 {
        match &self.content {
            Content::Body(body) => body.events(),
            Content::Skip(_) => 1,
        }
    }

    /// Bytes of its content before it becomes columns.
    pub fn decoded_bytes(&self) -> u64 {
        match &self.content {
            Content::Body(body) => body.decoded_bytes(),
            Content::Skip(_) => 0,
        }
    }

    /// Its entry in a journal record's header.
    pub fn range(&self) -> BatchRange {
        BatchRange {
            shipper_id: self.origin.source.shipper.to_vec(),
            epoch: self.origin.source.epoch.to_vec(),
            first_number: self.first_number,
            last_number: self.last_number,
        }
    }
}
