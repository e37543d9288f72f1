//! A small disk: a tmpfs of a given size in a folder of its own. For tests of full disks.

use std::path::Path;

use rustix::io::Errno;
use rustix::mount::{MountFlags, UnmountFlags, mount, mount_remount, unmount};
use tempfile::TempDir;

/// See the module. Unmounted when dropped.
#[derive(Debug)]
pub struct SmallDisk {
    folder: TempDir,
}

impl SmallDisk {
    /// Mounts a disk of so many bytes. `None`, with the reason printed, where mounting is not allowed.
    ///
    /// # Panics
    /// With `CI=true`, where a missing need is a failure; on errors other than missing rights.
    pub fn mount(bytes: u64) -> Option<Self> {
        let folder = TempDir::new().expect("a folder to mount on");
        let options = std::ffi::CString::new(format!("size={bytes}")).expect("digits have no NUL");
        match mount("tmpfs", folder.path(), "tmpfs", MountFlags::empty(), options.as_c_str()) {
            Ok(()) => Some(Self { folder }),
            Err(Errno::PERM | Errno::ACCESS) => {
                assert!(
                    !std::env::var("CI").is_ok_and(|ci| ci == "true"),
                    "this test needs root, to mount a tmpfs"
                );
                eprintln!("skipped: needs root, to mount a tmpfs");
                None
            }
            Err(errno) => panic!("mount a tmpfs on {}: {errno}", folder.path().display()),
        }
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        self.folder.path()
    }

    /// Has it hold so many more files than it has now. With none, files that are there may grow, and new ones meet a full
    /// disk.
    ///
    /// # Panics
    /// When the kernel refuses.
    pub fn allow_more_files(&self, count: u64) {
        let stat = rustix::fs::statvfs(self.path()).expect("the disk is mounted");
        let files = stat.f_files - stat.f_ffree + count;
        mount_remount(self.path(), MountFlags::empty(), format!("nr_inodes={files}"))
            .unwrap_or_else(|errno| panic!("limit the files on {}: {errno}", self.path().display()));
    }

    /// Gives it another size, with what is on it.
    ///
    /// # Panics
    /// When the kernel refuses.
    pub fn resize(&self, bytes: u64) {
        mount_remount(self.path(), MountFlags::empty(), format!("size={bytes}"))
            .unwrap_or_else(|errno| panic!("resize the tmpfs on {}: {errno}", self.path().display()));
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        if let Err(errno) = unmount(self.path(), UnmountFlags::DETACH) {
            eprintln!("unmount {}: {errno}", self.path().display());
        }
    }
}
