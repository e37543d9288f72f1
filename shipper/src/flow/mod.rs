//! Flow records: what the capture makes of the kernel's counters.

pub mod record;

pub use record::{FlowRecord, LocalIdentity, LossRecord, NatTuple};
