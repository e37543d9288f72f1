//! Exit codes of every Weir program.

use std::process::ExitCode;

/// Ended as asked; everything that was taken in is durable.
pub const OK: u8 = 0;
/// Could not start, or met an error that it must not go on after; the last log line says which.
pub const FAILED: u8 = 1;
/// Ended on request, but the drain's time bound ran out; what was not delivered is in the spool or the journal.
pub const DRAIN_TIMED_OUT: u8 = 2;
/// The configuration is wrong (`EX_USAGE` of sysexits.h); every problem is listed on stderr.
pub const CONFIG: u8 = 64;
/// What was to be read is damaged, cut off or no capture file (`EX_DATAERR`); what stood before is delivered.
pub const DATA: u8 = 65;
/// What was to be read is not there or can't be opened (`EX_NOINPUT`); nothing was begun.
pub const NO_INPUT: u8 = 66;
/// This kernel or these privileges do not allow the capture (`EX_UNAVAILABLE`); `weir-shipper check` says why.
pub const UNAVAILABLE: u8 = 69;

/// The code as `main` returns it.
pub fn code(code: u8) -> ExitCode {
    ExitCode::from(code)
}
