//! Shipper and aggregator as children of `weir up`: the same file under another name, ended when its parent is.

use std::process::ExitCode;

use weir_common::exit;

/// The name under which this file is the shipper.
pub(crate) const SHIPPER: &str = "weir-shipper";
/// The name under which this file is the aggregator.
pub(crate) const AGGREGATOR: &str = "weir-aggregator";
/// Set by `weir up` to its own process id: a child drains and ends when that process is gone.
pub(crate) const PARENT: &str = "WEIR_UP_PID";

/// Runs a program's `main` under its name.
pub(crate) fn run(name: &str, main: impl FnOnce() -> ExitCode) -> ExitCode {
    // What the kernel reports as the process's name; it would be that of the file else.
    if let Ok(name) = std::ffi::CString::new(name) {
        let _ = rustix::thread::set_name(&name);
    }
    if let Some(parent) = std::env::var(PARENT).ok().and_then(|pid| pid.parse::<i32>().ok()) {
        let _ = rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::TERM));
        // The parent may have died before the line above.
        if rustix::process::getppid().is_none_or(|pid| pid.as_raw_pid() != parent) {
            return exit::code(exit::FAILED);
        }
    }
    main()
}
