//! The programs as filters of a `clsact` queueing discipline (tc-bpf(8)), where the kernel has no TCX (below 6.6).
//!
//! A filter belongs to its link and stays there when its maker dies. It is known by a handle of its own, and replaced
//! in place. Messages are those of include/uapi/linux/pkt_cls.h and rtnetlink.h. Used by `attach`.

use std::{
    fs, io,
    os::fd::{AsRawFd, BorrowedFd},
    path::PathBuf,
};

use super::netlink::Netlink;
use crate::probe::sys::Tcx;

const RTM_NEWQDISC: u16 = 36;
const RTM_NEWTFILTER: u16 = 44;
const RTM_DELTFILTER: u16 = 45;
const NLM_F_REPLACE: u16 = 0x100;
const NLM_F_EXCL: u16 = 0x200;
const NLM_F_CREATE: u16 = 0x400;
const TC_H_CLSACT: u32 = 0xffff_fff1;
const CLSACT_HANDLE: u32 = 0xffff_0000;
const INGRESS_PARENT: u32 = 0xffff_fff2;
const EGRESS_PARENT: u32 = 0xffff_fff3;
const TCA_KIND: u16 = 1;
const TCA_OPTIONS: u16 = 2;
const TCA_BPF_FD: u16 = 6;
const TCA_BPF_NAME: u16 = 7;
const TCA_BPF_FLAGS: u16 = 8;
/// The program's result is the verdict: `TC_ACT_UNSPEC` goes on to the next filter.
const TCA_BPF_FLAG_ACT_DIRECT: u32 = 1;
/// "weir", as a number: no other filter has it.
const HANDLE: u32 = 0x7765_6972;
/// First on the way in: what a later filter drops has arrived. Last on the way out: what an earlier one drops never left.
const PRIORITIES: [u32; 2] = [1, 0xc000];

/// Adds the filter to a link of the namespace that this thread is in, or puts another program into it.
pub(crate) fn replace(program: BorrowedFd<'_>, index: u32, direction: Tcx) -> io::Result<()> {
    let netlink = Netlink::open()?;
    let mut qdisc = header(index, CLSACT_HANDLE, TC_H_CLSACT, 0);
    attribute(&mut qdisc, TCA_KIND, b"clsact\0");
    match netlink.request(RTM_NEWQDISC, NLM_F_CREATE | NLM_F_EXCL, &qdisc, |_, _| {}) {
        Err(error) if error.raw_os_error() != Some(libc::EEXIST) => return Err(error),
        _ => {}
    }
    let mut filter = filter(index, direction);
    attribute(&mut filter, TCA_KIND, b"bpf\0");
    let mut options = Vec::new();
    attribute(&mut options, TCA_BPF_FD, &(program.as_raw_fd() as u32).to_ne_bytes());
    attribute(&mut options, TCA_BPF_NAME, b"weir\0");
    attribute(&mut options, TCA_BPF_FLAGS, &TCA_BPF_FLAG_ACT_DIRECT.to_ne_bytes());
    attribute(&mut filter, TCA_OPTIONS, &options);
    netlink.request(RTM_NEWTFILTER, NLM_F_CREATE | NLM_F_REPLACE, &filter, |_, _| {})
}

/// Removes the filter from a link, in whichever namespace that is. The discipline stays: others may use it.
pub(crate) fn remove_anywhere(link: u64, direction: Tcx) -> io::Result<()> {
    let (namespace, index) = ((link >> 32) as u32, link as u32);
    std::thread::scope(|scope| {
        let removal = scope.spawn(move || {
            for path in namespaces() {
                if enter(&path).is_err() {
                    continue;
                }
                let netlink = Netlink::open()?;
                let inode = fs::metadata(&path).map_or(0, |meta| std::os::unix::fs::MetadataExt::ino(&meta));
                if netlink.namespace_cookie().unwrap_or(inode) as u32 == namespace {
                    return remove(&netlink, index, direction);
                }
            }
            // The namespace is gone, and the link with it.
            Ok(())
        });
        removal.join().unwrap_or_else(|_| Err(io::Error::other("the removal panicked")))
    })
}

fn remove(netlink: &Netlink, index: u32, direction: Tcx) -> io::Result<()> {
    let mut filter = filter(index, direction);
    attribute(&mut filter, TCA_KIND, b"bpf\0");
    match netlink.request(RTM_DELTFILTER, 0, &filter, |_, _| {}) {
        Err(error) if !matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ENODEV | libc::EINVAL)) => {
            Err(error)
        }
        // No filter, no link, no discipline.
        _ => Ok(()),
    }
}

fn namespaces() -> Vec<PathBuf> {
    let named = fs::read_dir("/run/netns").into_iter().flatten().flatten().map(|entry| entry.path());
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    let numbered = processes.filter(|entry| entry.file_name().to_string_lossy().parse::<u32>().is_ok());
    let of_processes = numbered.map(|entry| entry.path().join("ns/net"));
    std::iter::once(PathBuf::from("/proc/self/ns/net")).chain(named).chain(of_processes).collect()
}

fn enter(path: &std::path::Path) -> io::Result<()> {
    let file = fs::File::open(path)?;
    // SAFETY: setns takes a descriptor that is open and no pointers.
    if unsafe { libc::setns(file.as_raw_fd(), libc::CLONE_NEWNET) } == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// `struct tcmsg`.
fn header(index: u32, handle: u32, parent: u32, info: u32) -> Vec<u8> {
    let words = [0, index, handle, parent, info];
    words.iter().flat_map(|word: &u32| word.to_ne_bytes()).collect()
}

fn filter(index: u32, direction: Tcx) -> Vec<u8> {
    let (parent, priority) = match direction {
        Tcx::Ingress => (INGRESS_PARENT, PRIORITIES[0]),
        Tcx::Egress => (EGRESS_PARENT, PRIORITIES[1]),
    };
    // All protocols, in network order.
    let protocol = u32::from(u16::try_from(libc::ETH_P_ALL).unwrap_or(3).to_be());
    header(index, HANDLE, parent, priority << 16 | protocol)
}

fn attribute(to: &mut Vec<u8>, kind: u16, value: &[u8]) {
    to.extend_from_slice(&((4 + value.len()) as u16).to_ne_bytes());
    to.extend_from_slice(&kind.to_ne_bytes());
    to.extend_from_slice(value);
    to.resize(to.len().next_multiple_of(4), 0);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::probe::{
        CaptureConfig, InterfaceConfig, KernelFeatures, links::attach::Loader, pins::Pins, remove_pins,
    };

    const RTM_GETTFILTER: u16 = 46;
    const NLM_F_DUMP: u16 = 0x300;

    fn filters(netlink: &Netlink) -> usize {
        let mut found = 0;
        let body = header(1, 0, INGRESS_PARENT, 0);
        let listed = netlink.request(RTM_GETTFILTER, NLM_F_DUMP, &body, |kind, message| {
            // Without a handle it is the chain's head.
            found += usize::from(kind == RTM_NEWTFILTER && message[8..12] == HANDLE.to_ne_bytes());
        });
        listed.unwrap();
        found
    }

    #[test]
    fn a_filter_is_added_once_replaced_and_removed() {
        // SAFETY: no pointers.
        if unsafe { libc::geteuid() } != 0 {
            assert!(std::env::var_os("CI").is_none(), "needs root");
            eprintln!("skipped: needs root");
            return;
        }
        let root = PathBuf::from(format!("/sys/fs/bpf/weir-unit-clsact-{}", std::process::id()));
        let pins = Pins::open(&root).unwrap();
        let interfaces = InterfaceConfig { flow_entries: 64, meta_entries: 64, ..InterfaceConfig::default() };
        let config = CaptureConfig {
            flow_entries: 64,
            socket_entries: 64,
            meta_entries: 64,
            cgroup_entries: 64,
            interfaces: Some(interfaces),
            ..CaptureConfig::default()
        };
        let mut loader = Loader::new(KernelFeatures::probe(), config, pins.directory().to_owned());
        let seen = std::thread::scope(|scope| {
            let thread = scope.spawn(move || {
                // SAFETY: no pointers; only this thread, which ends soon, is in the new namespace.
                assert_eq!(unsafe { libc::unshare(libc::CLONE_NEWNET) }, 0);
                let netlink = Netlink::open().unwrap();
                let programs = loader.programs(1, true).unwrap();
                let program = programs.program(Tcx::Ingress).unwrap();
                replace(program, 1, Tcx::Ingress).unwrap();
                replace(program, 1, Tcx::Ingress).unwrap();
                let there = filters(&netlink);
                remove(&netlink, 1, Tcx::Ingress).unwrap();
                remove(&netlink, 1, Tcx::Ingress).unwrap();
                (there, filters(&netlink))
            });
            thread.join()
        });
        drop(pins);
        remove_pins(&root).unwrap();
        assert_eq!(seen.unwrap(), (1, 0));
    }
}
