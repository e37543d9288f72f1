//! What can go wrong between the shipper and the kernel.

use std::{io, path::PathBuf};

/// Why capture could not begin, or not go on.
#[derive(Debug, thiserror::Error)]
pub enum CaptureError {
    /// There is no cgroup v2 hierarchy to attach to.
    #[error("no cgroup2 file system in /proc/self/mountinfo: mount it, or name the root with capture.cgroup")]
    NoCgroup2,
    /// A file or directory could not be used.
    #[error("{action} {}", path.display())]
    File {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// The kernel's answer.
        source: io::Error,
    },
    /// The directory for pins is not on bpffs, and none could be mounted.
    #[error("{} is not on a bpf file system", path.display())]
    NotBpffs {
        /// The directory for pins.
        path: PathBuf,
    },
    /// Another shipper drains these maps.
    #[error("another shipper holds {}", path.display())]
    Locked {
        /// The directory that is locked.
        path: PathBuf,
    },
    /// A pinned map is not the one that this version makes.
    #[error(
        "pinned map {} is {found}, this version has {expected}: run `weir-shipper unload` with the version that made it",
        path.display()
    )]
    Layout {
        /// The pin.
        path: PathBuf,
        /// Type and sizes in the kernel.
        found: String,
        /// Type and sizes of this version.
        expected: String,
    },
    /// The kernel has no type information: it needs `CONFIG_DEBUG_INFO_BTF`.
    #[error("read the kernel's BTF")]
    Btf(#[source] aya::BtfError),
    /// The object could not be opened, or its maps not made.
    #[error("load the kernel programs' maps")]
    Object(#[source] aya::EbpfError),
    /// A map that the object must have is not there.
    #[error("the kernel object has no map {name}")]
    NoMap {
        /// Its name.
        name: &'static str,
    },
    /// A program without which nothing can be counted did not load or attach.
    #[error("program {name} is needed to count packets: {reason}")]
    Program {
        /// The program.
        name: &'static str,
        /// The kernel's words.
        reason: String,
    },
    /// A call on a map failed.
    #[error("{action} map {map}")]
    Map {
        /// What was tried.
        action: &'static str,
        /// On which map.
        map: &'static str,
        /// The kernel's answer.
        source: io::Error,
    },
    /// `membarrier(2)` failed: nothing may be drained without it.
    #[error("wait for running programs (membarrier)")]
    Membarrier(#[source] io::Error),
    /// An interval was asked for that is not the frozen one.
    #[error("interval {asked} is not frozen, the frozen one is {frozen:?}")]
    NotFrozen {
        /// What the caller asked for.
        asked: u64,
        /// What is frozen.
        frozen: Option<u64>,
    },
}

impl CaptureError {
    /// For `map_err`: `action` on `path` failed.
    pub(crate) fn file(action: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::File { action, path, source }
    }

    /// For `map_err`: `action` on `map` failed.
    pub(crate) fn map(action: &'static str, map: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Map { action, map, source }
    }
}
