//! The directory of pins: found, mounted, made, locked, and removed again.
//!
//! It is named by the maps' layout version, so that another layout never meets these maps. Whoever drains holds the
//! lock on it; the lock goes with the process.

use std::{
    fs::{self, File},
    io,
    os::fd::AsRawFd,
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use weir_shipper_ebpf::LAYOUT;

use super::CaptureError;

/// `BPF_FS_MAGIC`, include/uapi/linux/magic.h.
const BPF_FS_MAGIC: libc::c_long = 0xcafe_4a11;

/// How long to wait for a lock: a process that was killed, or a child between fork and exec, lets go of it soon.
const LOCK_WAIT: Duration = Duration::from_secs(1);

/// The pins' directory, locked for this process.
#[derive(Debug)]
pub(crate) struct Pins {
    directory: PathBuf,
    _lock: File,
}

impl Pins {
    /// Makes and locks the directory `root/v<layout>`; mounts bpffs on `/sys/fs/bpf` when `root` is below it and
    /// nothing is mounted there.
    pub(crate) fn open(root: &Path) -> Result<Self, CaptureError> {
        ensure_bpffs(root)?;
        let directory = directory(root);
        fs::create_dir_all(&directory).map_err(CaptureError::file("create", &directory))?;
        let lock = lock(&directory)?;
        Ok(Self { directory, _lock: lock })
    }

    /// Removes everything that is pinned here. Returns how many pins went. Pins of other layouts stay.
    pub(crate) fn remove(self) -> Result<usize, CaptureError> {
        let Self { directory, _lock } = self;
        let removed = empty(&directory)?;
        if let Some(root) = directory.parent() {
            // Others may have theirs there.
            let _others = fs::remove_dir(root);
        }
        Ok(removed)
    }

    /// Where the maps and links are.
    pub(crate) fn directory(&self) -> &Path {
        &self.directory
    }

    /// Path of a map's pin.
    pub(crate) fn map(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    /// Path of a link's pin.
    pub(crate) fn link(&self, program: &str) -> PathBuf {
        self.directory.join(format!("link_{program}"))
    }
}

/// Removes every pin of every layout below `root`, with what they counted. Returns how many pins went.
pub(crate) fn remove(root: &Path) -> Result<usize, CaptureError> {
    let versions = match fs::read_dir(root) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(0),
        Err(error) => return Err(CaptureError::file("read", root)(error)),
    };
    let mut removed = 0;
    for version in versions {
        let version = version.map_err(CaptureError::file("read", root))?.path();
        let _lock = lock(&version)?;
        removed += empty(&version)?;
    }
    fs::remove_dir(root).map_err(CaptureError::file("remove", root))?;
    Ok(removed)
}

/// Removes a directory and the pins in it, links first, so that no program runs without its maps.
fn empty(directory: &Path) -> Result<usize, CaptureError> {
    let mut pins = Vec::new();
    for pin in fs::read_dir(directory).map_err(CaptureError::file("read", directory))? {
        pins.push(pin.map_err(CaptureError::file("read", directory))?.path());
    }
    pins.sort_by_key(|pin| !is_link(pin));
    for pin in &pins {
        fs::remove_file(pin).map_err(CaptureError::file("remove", pin))?;
    }
    fs::remove_dir(directory).map_err(CaptureError::file("remove", directory))?;
    Ok(pins.len())
}

fn is_link(pin: &Path) -> bool {
    pin.file_name().is_some_and(|name| name.to_string_lossy().starts_with("link_"))
}

/// Directory of this version's pins below `root`.
pub(crate) fn directory(root: &Path) -> PathBuf {
    root.join(format!("v{LAYOUT}"))
}

fn lock(directory: &Path) -> Result<File, CaptureError> {
    let file = File::open(directory).map_err(CaptureError::file("open", directory))?;
    let deadline = Instant::now() + LOCK_WAIT;
    loop {
        // SAFETY: flock takes a descriptor that is open and no pointers.
        if unsafe { libc::flock(file.as_raw_fd(), libc::LOCK_EX | libc::LOCK_NB) } == 0 {
            return Ok(file);
        }
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::WouldBlock {
            return Err(CaptureError::file("lock", directory)(error));
        }
        if Instant::now() >= deadline {
            return Err(CaptureError::Locked { path: directory.to_owned() });
        }
        thread::sleep(Duration::from_millis(10));
    }
}

/// Whether the nearest existing directory of `path` is on bpffs.
pub(crate) fn on_bpffs(path: &Path) -> bool {
    let Some(existing) = path.ancestors().find(|path| path.exists()) else { return false };
    let Ok(file) = File::open(existing) else { return false };
    // SAFETY: fstatfs writes one struct of plain integers.
    unsafe {
        let mut stat: libc::statfs = std::mem::zeroed();
        libc::fstatfs(file.as_raw_fd(), &raw mut stat) == 0 && stat.f_type as libc::c_long == BPF_FS_MAGIC
    }
}

fn ensure_bpffs(root: &Path) -> Result<(), CaptureError> {
    const MOUNT: &str = "/sys/fs/bpf";
    if on_bpffs(root) {
        return Ok(());
    }
    if root.starts_with(MOUNT) {
        // SAFETY: all four strings are constants that end in NUL.
        let result = unsafe {
            libc::mount(
                c"bpf".as_ptr(),
                c"/sys/fs/bpf".as_ptr(),
                c"bpf".as_ptr(),
                0,
                c"mode=0700".as_ptr().cast(),
            )
        };
        if result != 0 {
            return Err(CaptureError::file("mount bpffs on", MOUNT)(io::Error::last_os_error()));
        }
        tracing::info!(path = MOUNT, "mounted the bpf file system");
        return Ok(());
    }
    Err(CaptureError::NotBpffs { path: root.to_owned() })
}
