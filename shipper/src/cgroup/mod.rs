//! cgroups: from the kernel's id to a path, and from a path to container and pod.
//!
//! Called by `flow` when records are made. Knows nothing of Kubernetes but the shape of its paths.

mod path;
mod table;

pub use path::{CgroupIdentity, parse_cgroup_path};
pub(crate) use table::{Cgroup, CgroupTable};

use std::{fs, io, path::PathBuf};

/// Mount point of the cgroup v2 hierarchy; on hybrid hosts that is not `/sys/fs/cgroup`.
pub fn cgroup2_root() -> io::Result<Option<PathBuf>> {
    Ok(find_cgroup2(&fs::read_to_string("/proc/self/mountinfo")?))
}

/// Finds it in the text of `/proc/self/mountinfo` (proc_pid_mountinfo(5)).
fn find_cgroup2(mountinfo: &str) -> Option<PathBuf> {
    let mut found: Option<(bool, PathBuf)> = None;
    for line in mountinfo.lines() {
        let Some((mount, kind)) = line.split_once(" - ") else { continue };
        let mut fields = mount.split(' ').skip(3);
        let (Some(root), Some(point)) = (fields.next(), fields.next()) else { continue };
        if kind.split(' ').next() != Some("cgroup2") {
            continue;
        }
        // A bind mount of a part of the hierarchy serves only where there is nothing better.
        let whole = root == "/";
        if found.as_ref().is_none_or(|(best, _)| whole && !best) {
            found = Some((whole, PathBuf::from(point)));
        }
    }
    found.map(|(_, point)| point)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_the_unified_hierarchy() {
        let hybrid = "25 1 0:22 / /sys/fs/cgroup ro - tmpfs tmpfs ro\n\
                      26 25 0:23 / /sys/fs/cgroup/cpu rw shared:9 - cgroup cgroup rw,cpu\n\
                      40 25 0:30 /part /mnt/part rw - cgroup2 cgroup2 rw\n\
                      27 25 0:24 / /sys/fs/cgroup/unified rw shared:10 - cgroup2 cgroup2 rw\n";
        assert_eq!(find_cgroup2(hybrid), Some(PathBuf::from("/sys/fs/cgroup/unified")));
        let pure = "30 23 0:26 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate\n";
        assert_eq!(find_cgroup2(pure), Some(PathBuf::from("/sys/fs/cgroup")));
        assert_eq!(find_cgroup2("nonsense\n- - -\n"), None);
    }
}
