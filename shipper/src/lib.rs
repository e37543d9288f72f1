//! The node agent: captures flows with eBPF, spools them, sends them to an aggregator.
//!
//! In the order of the data: `probe` drains the kernel, `flow` and `cgroup` make records of it, `batch` encodes them,
//! `spool` keeps them on disk, `client` sends them until they are acknowledged. `source` is the loop between the kernel
//! and the spool; `replay` takes the kernel's place for capture files; `app` wires and ends everything.

pub mod app;
pub mod batch;
pub mod cgroup;
pub mod check;
pub mod client;
mod command;
pub mod config;
pub mod flow;
pub mod metrics;
pub mod probe;
pub mod rebind;
pub mod replay;
pub mod source;
pub mod spool;
pub mod unload;

pub use app::run;
pub use command::{block_on, main};
