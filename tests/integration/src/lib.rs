//! What Weir's tests on real kernels, servers and faults share. Each test file has its own topic; sizes stand in
//! [`scale`].

#![expect(clippy::unwrap_used, reason = "test helpers panic with what failed")]

pub mod bench;
pub mod capture;
pub mod certs;
pub mod drainer;
pub mod duckdb;
pub mod frames;
pub mod net;
pub mod peer;
pub mod pipeline;
pub mod process;
pub mod s3;
pub mod scale;
pub mod scene;
pub mod system;
pub mod tmpfs;
pub mod traffic;
