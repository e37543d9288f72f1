//! Logs: structured fields with a constant message, for people or as JSON, to stderr.

use tracing_subscriber::EnvFilter;

/// How log lines look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// For people; colours on a terminal.
    Human,
    /// One JSON object a line.
    Json,
}

/// Installs the process's logger. `level` is a `tracing` filter such as `info` or `info,weir_shipper=debug`; the
/// environment variable `WEIR_LOG` wins over it. A second call changes nothing.
pub fn init(format: Format, level: &str) {
    let filter = std::env::var("WEIR_LOG")
        .ok()
        .and_then(|filter| EnvFilter::try_new(filter).ok())
        .or_else(|| EnvFilter::try_new(level).ok())
        .unwrap_or_else(|| EnvFilter::new("info"));
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    let _ = match format {
        Format::Human => {
            use std::io::IsTerminal;
            builder.with_ansi(std::io::stderr().is_terminal()).with_target(false).try_init()
        }
        Format::Json => builder.json().flatten_event(true).try_init(),
    };
}
