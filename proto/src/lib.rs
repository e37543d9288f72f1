//! Weir's wire format: the messages and services of `weir/v1`.
//!
//! `generated/` is made from `weir/v1/*.proto` by `cargo test -p weir-proto` with `WEIR_REGENERATE=1`, and the same
//! test fails when it is stale; so building Weir needs no protobuf compiler.

/// Messages and services of package `weir.v1`; documented in the `.proto` files.
#[expect(
    missing_docs,
    clippy::all,
    clippy::allow_attributes,
    clippy::allow_attributes_without_reason,
    unused_qualifications,
    reason = "generated code"
)]
pub mod v1 {
    include!("generated/weir.v1.rs");
}

pub mod channel;

/// The version of the stream protocol that `Hello::protocol_version` states.
pub const PROTOCOL_VERSION: u32 = 1;
