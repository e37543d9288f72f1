//! Takes the demo's namespaces and cgroups away: its own at the end, and those of runs that were killed.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use super::hosts::{NETNS_FOLDER, PREFIX};

/// Removes what demos left whose `weir up` is not running any more.
pub(super) fn remove_of_the_dead(cgroups: &Path) {
    for folder in [Path::new(NETNS_FOLDER), cgroups] {
        for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
            let name = entry.file_name();
            let Some(owner) = name.to_str().and_then(owner) else { continue };
            if !is_weir(owner) {
                remove(&format!("{PREFIX}{owner}"), cgroups);
            }
        }
    }
}

/// Removes both hosts of a demo, and ends whatever still runs in them. What can't be removed is tried again at the
/// next start, so errors end nothing.
pub(super) fn remove(name: &str, cgroups: &Path) {
    let cgroup = cgroups.join(name);
    for host in ["a", "b"] {
        // Kernel 5.14; older ones rely on the processes' own end, which comes with their standard input's.
        let _ = fs::write(cgroup.join(host).join("cgroup.kill"), "1");
    }
    for host in ["a", "b"] {
        let netns = format!("{name}-{host}");
        if Path::new(NETNS_FOLDER).join(&netns).exists() {
            let _ = Command::new("ip")
                .args(["netns", "delete", &netns])
                .stdin(Stdio::null())
                .stderr(Stdio::null())
                .status();
        }
    }
    // A cgroup can be removed once its last process is reaped, shortly after its death.
    let deadline = Instant::now() + Duration::from_secs(5);
    for folder in [cgroup.join("a"), cgroup.join("b"), cgroup] {
        while folder.exists() && fs::remove_dir(&folder).is_err() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

/// The process that made a namespace or cgroup, from its name.
fn owner(name: &str) -> Option<u32> {
    let rest = name.strip_prefix(PREFIX)?;
    rest.split_once('-').map_or(rest, |(pid, _)| pid).parse().ok()
}

/// Whether that process runs the same program as this one: process ids come round again.
fn is_weir(pid: u32) -> bool {
    let name = |path: &str| fs::read_link(path).ok().and_then(|exe| exe.file_name().map(ToOwned::to_owned));
    name(&format!("/proc/{pid}/exe")).is_some_and(|exe| Some(exe) == name("/proc/self/exe"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_tell_their_owner() {
        assert_eq!(owner("weir-demo-12-a"), Some(12));
        assert_eq!(owner("weir-demo-12"), Some(12));
        assert_eq!(owner("weir-demo-x"), None);
        assert_eq!(owner("docker"), None);
        assert!(is_weir(std::process::id()) && !is_weir(1));
    }
}
