//! `weir-shipper unload`: takes the capture out of the kernel and loses nothing.
//!
//! For when no shipper runs: takes the kernel side over, stops the counting, drains all of it into the spool, and
//! removes it. The next shipper sends what the spool holds. Called by the command line.

use std::fmt;
use std::path::PathBuf;
use std::sync::mpsc;

use weir_common::admin::Health;

use crate::config::Config;
use crate::metrics::Metrics;
use crate::probe::{Capture, CaptureError, pins_directory};
use crate::source::{Drain, Ended, Source, SourceError};
use crate::spool::{Spool, SpoolError};

/// What was removed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unloaded {
    /// There was nothing.
    Nothing,
    /// So many pins, and everything that was counted is in the spool.
    Drained {
        /// Pins removed.
        pins: usize,
        /// Events added to the spool.
        events: u64,
    },
    /// So many pins, and what was counted since a shipper drained it is lost.
    Discarded(usize),
}

/// Why nothing was removed.
#[derive(Debug, thiserror::Error)]
pub enum UnloadError {
    /// There is nowhere to drain to.
    #[error(
        "the spool {} is not there: give the shipper's own --config or --spool; --discard loses what the kernel counted",
        dir.display()
    )]
    NoSpool {
        /// Where it should be.
        dir: PathBuf,
    },
    /// These pins cannot be read by this version.
    #[error(
        "{} holds pins of another version only: unload with the version that made them; --discard loses what they counted",
        directory.display()
    )]
    OtherVersion {
        /// The directory of pins.
        directory: PathBuf,
    },
    /// There is no room for what was counted.
    #[error("the disk of the spool {} is full: what the kernel counted stays there", dir.display())]
    Full {
        /// Where it is.
        dir: PathBuf,
    },
    /// The spool.
    #[error(
        "open the spool (a running shipper unloads with capture.unload_on_exit; --discard does without a spool)"
    )]
    Spool(#[source] SpoolError),
    /// The kernel's side.
    #[error("take the capture over (--discard does without, and loses what was counted)")]
    Capture(#[from] CaptureError),
    /// Draining.
    #[error("drain what was counted (--discard does without, and loses it)")]
    Source(#[from] SourceError),
    /// The end of the spool.
    #[error("close the spool")]
    Close(#[source] SpoolError),
}

/// Drains what is pinned where `config` says into the spool that it says, and removes it.
///
/// # Errors
/// When a shipper runs, or something stands in the way: then the capture is still there.
pub fn unload(config: Config) -> Result<Unloaded, UnloadError> {
    let Config { spool: options, capture, interval, body_bytes, .. } = config;
    if !pins_directory(&capture.pin_directory).exists() {
        return if capture.pin_directory.exists() {
            Err(UnloadError::OtherVersion { directory: capture.pin_directory })
        } else {
            Ok(Unloaded::Nothing)
        };
    }
    let dir = options.dir.clone();
    if !dir.is_dir() {
        return Err(UnloadError::NoSpool { dir });
    }
    let metrics = Metrics::default();
    let spool = Spool::open(options, metrics.clone()).map_err(UnloadError::Spool)?;
    let source = Source::Capture(Box::new(Capture::open(&capture)?));
    let health = Health::default();
    let drain = Drain { source, spool, interval, body_bytes, unload: true, metrics: metrics.clone(), health };
    // Nobody will make room: a full disk ends it at once.
    let (told, stop) = mpsc::channel();
    drop(told);
    let Ended { spool, unloaded, replay: _ } = drain.end(&stop)?;
    spool.close().map_err(UnloadError::Close)?;
    let Some(pins) = unloaded else { return Err(UnloadError::Full { dir }) };
    Ok(Unloaded::Drained { pins, events: metrics.captured_events.get() })
}

impl fmt::Display for Unloaded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Nothing | Self::Discarded(0) => write!(f, "nothing is pinned"),
            Self::Drained { pins, events } => {
                write!(f, "removed {pins} pins; the spool has what they counted last ({events} events)")
            }
            Self::Discarded(pins) => write!(
                f,
                "removed {pins} pins; what they counted since a shipper drained them is lost, which the next one records as a loss \
                 with reason=unloaded and no count"
            ),
        }
    }
}
