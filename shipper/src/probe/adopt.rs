//! Sockets that are older than the programs: which side listens, and whose they are.
//!
//! Asked once, when capture opens, in every network namespace. What the programs see later goes before what is found
//! here.

use std::{
    collections::{HashMap, HashSet},
    fs::{self, File},
    io,
    os::{fd::AsRawFd, unix::fs::MetadataExt},
    path::{Path, PathBuf},
    thread,
};

use weir_shipper_ebpf::{
    FlowKey, ROLE_ADOPTED_CLIENT, ROLE_ADOPTED_SERVER, ROLE_LISTENER, ROLE_UNKNOWN, Sock, VANTAGE_SOCKET,
};

use super::{
    diag::{ALL_STATES, DiagSocket, TCP_STATES, sockets},
    sys,
};
use crate::flow::{Adopted, Owner};

const TCP: u8 = 6;
const UDP: u8 = 17;
const LISTEN: u8 = 10;

/// A socket that was there before.
#[derive(Clone, Copy, Debug)]
pub(crate) struct OldSocket {
    pub cookie: u64,
    pub cgroup: u64,
    pub adopted: Adopted,
    key: FlowKey,
    protocol: u8,
}

impl OldSocket {
    /// The entry that the programs find it by. What it retransmitted before is not known yet, which `u32::MAX` says.
    pub(crate) fn entry(&self) -> Sock {
        let now = sys::boot_ns();
        let mut sock = Sock {
            key: self.key,
            start_ns: now,
            touched_ns: now,
            cgroup: self.cgroup,
            role: self.adopted.role,
            retransmits_seen: u32::MAX,
            protocol: u32::from(self.protocol),
            ..Sock::ZERO
        };
        if let Some(Owner { pid, tid, comm, cgroup, seen_ns }) = self.adopted.owner {
            (sock.pid, sock.tid, sock.comm, sock.owner_cgroup, sock.owner_ns) =
                (pid, tid, comm, cgroup, seen_ns);
        }
        sock
    }
}

/// Finds every TCP and UDP socket of this node. `cgroups` is where cgroup v2 is mounted.
///
/// Namespaces are entered by a thread of its own, which ends with the search.
pub(crate) fn find(cgroups: &Path) -> io::Result<Vec<OldSocket>> {
    let namespaces = namespaces();
    let found = thread::scope(|scope| {
        thread::Builder::new()
            .name("weir-adopt".to_owned())
            .spawn_scoped(scope, || namespaces.iter().flat_map(|path| in_namespace(path)).collect::<Vec<_>>())
            .map(|search| search.join().unwrap_or_default())
    })?;
    let owners = owners(cgroups);
    let listening: HashSet<(usize, u16)> = found
        .iter()
        .filter(|(_, socket)| socket.protocol == TCP && socket.state == LISTEN)
        .map(|(namespace, socket)| (*namespace, socket.local_port))
        .collect();
    Ok(found
        .iter()
        .filter(|(_, socket)| socket.cookie != 0)
        .map(|(namespace, socket)| {
            let role = match (socket.protocol, socket.state) {
                (TCP, LISTEN) => ROLE_LISTENER,
                (TCP, _) if listening.contains(&(*namespace, socket.local_port)) => ROLE_ADOPTED_SERVER,
                (TCP, _) => ROLE_ADOPTED_CLIENT,
                // A datagram socket may speak first or answer: its packets will tell.
                _ => ROLE_UNKNOWN,
            };
            let owner = owners.get(&socket.inode).copied();
            old_socket(socket, Adopted { role, owner })
        })
        .collect())
}

fn old_socket(socket: &DiagSocket, adopted: Adopted) -> OldSocket {
    let DiagSocket { protocol, local, remote, local_port, remote_port, cookie, cgroup, .. } = *socket;
    let ipv4 = remote[..10] == [0; 10] && remote[10..12] == [0xff; 2];
    let family = if ipv4 { 4 } else { 6 };
    let base = FlowKey { cookie, local, remote, local_port, remote_port, ..FlowKey::ZERO };
    let key = FlowKey { protocol, family, vantage: VANTAGE_SOCKET, ..base };
    OldSocket { cookie, cgroup, adopted, key, protocol }
}

/// One path to each network namespace: of a process in it, or of its name.
fn namespaces() -> Vec<PathBuf> {
    let of_processes = pids().map(|pid| PathBuf::from(format!("/proc/{pid}/ns/net")));
    let named = fs::read_dir("/run/netns").into_iter().flatten().flatten().map(|entry| entry.path());
    let mut seen = HashSet::new();
    of_processes
        .chain(named)
        .filter(|path| fs::metadata(path).is_ok_and(|meta| seen.insert((meta.dev(), meta.ino()))))
        .collect()
}

/// The sockets of one namespace, which the thread stays in. A namespace that goes meanwhile has none.
fn in_namespace(path: &Path) -> Vec<(usize, DiagSocket)> {
    let Ok(namespace) = File::open(path) else { return Vec::new() };
    // SAFETY: setns takes a descriptor that is open and no pointers.
    if unsafe { libc::setns(namespace.as_raw_fd(), libc::CLONE_NEWNET) } != 0 {
        return Vec::new();
    }
    let Ok(id) = namespace.metadata().map(|meta| meta.ino() as usize) else { return Vec::new() };
    let mut found = Vec::new();
    for family in [libc::AF_INET, libc::AF_INET6] {
        for (protocol, states) in [(TCP, TCP_STATES), (UDP, ALL_STATES)] {
            match sockets(family, protocol, states) {
                Ok(sockets) => found.extend(sockets.into_iter().map(|socket| (id, socket))),
                Err(error) => {
                    tracing::debug!(%error, protocol, path = %path.display(), "no sockets from sock_diag");
                }
            }
        }
    }
    found
}

/// The process of each socket's inode. Of several that hold it, the oldest by number.
fn owners(cgroups: &Path) -> HashMap<u32, Owner> {
    let mut owners: HashMap<u32, Owner> = HashMap::new();
    let mut pids: Vec<u32> = pids().collect();
    pids.sort_unstable();
    for pid in pids {
        let Ok(descriptors) = fs::read_dir(format!("/proc/{pid}/fd")) else { continue };
        let mut owner = None;
        for descriptor in descriptors.flatten() {
            let Ok(target) = fs::read_link(descriptor.path()) else { continue };
            let Some(inode) = socket_inode(&target) else { continue };
            let owner = *owner.get_or_insert_with(|| describe(pid, cgroups));
            owners.entry(inode).or_insert(owner);
        }
    }
    owners
}

fn describe(pid: u32, cgroups: &Path) -> Owner {
    let mut comm = [0; 16];
    let name = fs::read(format!("/proc/{pid}/comm")).unwrap_or_default();
    for (to, from) in comm.iter_mut().take(15).zip(name.iter().take_while(|byte| **byte != b'\n')) {
        *to = *from;
    }
    let unified = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default();
    let path = unified.lines().find_map(|line| line.strip_prefix("0::/"));
    let cgroup = path.and_then(|path| fs::metadata(cgroups.join(path)).ok()).map_or(0, |meta| meta.ino());
    Owner { pid, tid: pid, comm, cgroup, seen_ns: sys::boot_ns() }
}

/// The number in `socket:[12345]`.
fn socket_inode(target: &Path) -> Option<u32> {
    target.to_str()?.strip_prefix("socket:[")?.strip_suffix(']')?.parse().ok()
}

fn pids() -> impl Iterator<Item = u32> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_sockets_have_a_socket_inode() {
        assert_eq!(socket_inode(Path::new("socket:[42]")), Some(42));
        assert_eq!(socket_inode(Path::new("pipe:[42]")), None);
        assert_eq!(socket_inode(Path::new("/dev/null")), None);
    }
}
