//! Flow records: what the capture makes of the kernel's counters.
//!
//! `merge` brings together what the kernel had to count apart, `builder` orients and completes, `identity` says who it
//! was. Called by `probe` for each drained interval; the records go to `batch`.

pub mod record;

mod builder;
mod clock;
mod identity;
mod link;
mod merge;

pub(crate) use builder::{Adopted, Builder, Interval, OverflowCell};
pub(crate) use clock::Clock;
pub(crate) use identity::{Identities, Owner};
pub use record::{FlowRecord, LinkPart, LocalIdentity, LossRecord, NatTuple, Tunnel};
