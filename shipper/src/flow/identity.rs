//! Who is on the reporting side: process from the socket's owner, container and pod from its cgroup.
//!
//! The kernel recorded pid and command at the time; `/proc` is asked only for what the kernel did not tell, and
//! believed only if the process is old enough to be the one that was recorded.

use std::{collections::HashMap, fs, sync::Arc};

use weir_shipper_ebpf::Sock;

use super::record::LocalIdentity;
use crate::cgroup::{Cgroup, CgroupTable};

/// Identities kept for sharing; above it the cache begins anew.
const CACHE_MAX: usize = 65_536;
/// Nanoseconds of one tick of `/proc/<pid>/stat` (`USER_HZ` is 100 in every ABI that eBPF runs on).
const TICK_NS: u64 = 10_000_000;

/// The owner of a socket, as recorded at one time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Owner {
    pub pid: u32,
    pub tid: u32,
    pub comm: [u8; 16],
    pub cgroup: u64,
    /// When it was recorded, boot time.
    pub seen_ns: u64,
}

impl Owner {
    /// What the kernel side recorded of a socket's owner.
    pub(crate) fn of(sock: &Sock) -> Option<Self> {
        let Sock { pid, tid, comm, owner_cgroup: cgroup, owner_ns: seen_ns, .. } = *sock;
        (pid != 0).then_some(Self { pid, tid, comm, cgroup, seen_ns })
    }
}

/// Makes identities and shares equal ones.
pub(crate) struct Identities {
    cgroups: CgroupTable,
    cache: HashMap<(u32, u32, [u8; 16], u64), Arc<LocalIdentity>>,
}

impl Identities {
    pub(crate) fn new(cgroups: CgroupTable) -> Self {
        Self { cgroups, cache: HashMap::new() }
    }

    /// The table of cgroups.
    pub(crate) fn cgroups(&mut self) -> &mut CgroupTable {
        &mut self.cgroups
    }

    /// Begins an interval: what was told of a process that has gone may be another's by now.
    pub(crate) fn begin(&mut self) {
        self.cgroups.begin();
        if self.cache.len() > CACHE_MAX {
            self.cache.clear();
        }
    }

    /// The identity of an owner, or of the cgroup alone. The process's cgroup goes before the socket's: a socket may
    /// be made for somebody else.
    pub(crate) fn find(&mut self, owner: Option<Owner>, socket_cgroup: u64) -> Option<Arc<LocalIdentity>> {
        let owner_cgroup = owner.map_or(0, |owner| owner.cgroup);
        let cgroup_id = if owner_cgroup == 0 { socket_cgroup } else { owner_cgroup };
        if owner.is_none() && cgroup_id == 0 {
            return None;
        }
        let (pid, tid, comm) = owner.map_or((0, 0, [0; 16]), |owner| (owner.pid, owner.tid, owner.comm));
        if let Some(identity) = self.cache.get(&(pid, tid, comm, cgroup_id)) {
            return Some(Arc::clone(identity));
        }
        let mut cgroup = self.cgroups.find(cgroup_id);
        let mut process = text(&comm);
        if let Some(owner) = owner {
            // A thread may be named for its work; and where kubelet uses cgroup v1, the unified path says nothing.
            let unnamed = cgroup.as_ref().is_none_or(|cgroup| &*cgroup.path == "/");
            if (owner.tid != owner.pid || unnamed) && is_recorded_process(owner) {
                if let Ok(name) = fs::read_to_string(format!("/proc/{pid}/comm")) {
                    name.trim_end_matches('\n').clone_into(&mut process);
                }
                if unnamed && let Some(found) = cgroup_of(pid) {
                    cgroup = Some(Arc::new(found));
                }
            }
        }
        let empty: Arc<str> = "".into();
        let identity = Arc::new(LocalIdentity {
            process: process.into(),
            pid,
            cgroup_id,
            cgroup: cgroup.as_ref().map_or_else(|| Arc::clone(&empty), |cgroup| Arc::clone(&cgroup.path)),
            container_id: cgroup.as_ref().map_or_else(|| Arc::clone(&empty), |c| Arc::clone(&c.container_id)),
            pod_uid: cgroup.as_ref().map_or(empty, |cgroup| Arc::clone(&cgroup.pod_uid)),
        });
        // A cgroup that is not known yet may be known at the next scan.
        if cgroup.is_some() || cgroup_id == 0 {
            self.cache.insert((pid, tid, comm, cgroup_id), Arc::clone(&identity));
        }
        Some(identity)
    }
}

/// A command name: up to the first NUL, whatever bytes the process has put there.
pub(crate) fn text(comm: &[u8; 16]) -> String {
    let end = comm.iter().position(|byte| *byte == 0).unwrap_or(comm.len());
    String::from_utf8_lossy(&comm[..end]).into_owned()
}

/// Whether the process with that pid was there when the owner was recorded, and so is it.
fn is_recorded_process(owner: Owner) -> bool {
    let Ok(stat) = fs::read_to_string(format!("/proc/{}/stat", owner.pid)) else { return false };
    started_ns(&stat).is_some_and(|started| started <= owner.seen_ns)
}

/// Boot time at which a process started, from the 22nd field of `/proc/<pid>/stat` (proc_pid_stat(5)); the name in
/// the second may contain anything.
fn started_ns(stat: &str) -> Option<u64> {
    let (_, fields) = stat.rsplit_once(") ")?;
    fields.split(' ').nth(19)?.parse::<u64>().ok()?.checked_mul(TICK_NS)
}

/// The path among a process's cgroups that names a pod or a container, on any hierarchy.
fn cgroup_of(pid: u32) -> Option<Cgroup> {
    let lines = fs::read_to_string(format!("/proc/{pid}/cgroup")).ok()?;
    lines
        .lines()
        .filter_map(|line| line.splitn(3, ':').nth(2))
        .map(Cgroup::new)
        .find(|cgroup| !cgroup.pod_uid.is_empty() || !cgroup.container_id.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn start_time_survives_a_hostile_name() {
        let stat = "12 (a) R 1 2 (b)) S 1 12 12 0 -1 4194560 100 0 0 0 1 2 3 4 20 0 1 0 777 1000 50";
        assert_eq!(started_ns(stat), Some(777 * TICK_NS));
        assert_eq!(started_ns("12 (x"), None);
    }

    #[test]
    fn command_names_may_be_any_bytes() {
        assert_eq!(text(b"nginx\0\0\0\0\0\0\0\0\0\0\0"), "nginx");
        assert_eq!(text(b"sixteen-bytes-xx"), "sixteen-bytes-xx");
        assert_eq!(text(&[0xff; 16]).chars().count(), 16);
    }

    #[test]
    fn an_owner_without_cgroup_still_has_a_name() {
        let root = tempfile::tempdir().unwrap();
        let mut identities = Identities::new(CgroupTable::new(root.path().to_owned()));
        let mut comm = [0; 16];
        comm[..4].copy_from_slice(b"curl");
        let owner = Owner { pid: u32::MAX - 1, tid: u32::MAX - 1, comm, cgroup: 99, seen_ns: 1 };
        let identity = identities.find(Some(owner), 0).unwrap();
        assert_eq!((&*identity.process, identity.pid, &*identity.cgroup), ("curl", u32::MAX - 1, ""));
        assert!(identities.find(None, 0).is_none());
    }
}
