//! The table of kernel programs: what each gives, how it loads and where it attaches. Each one degrades alone.
//!
//! Links are pinned. A program that is attached already is replaced in place: cgroup links by `BPF_LINK_UPDATE`,
//! tracepoints through the program array behind their permanent dispatcher.

use std::{
    fs, io,
    os::fd::{AsFd, BorrowedFd},
    path::Path,
};

use aya::{Btf, Ebpf, programs::Program};

use super::{error::CaptureError, pins::Pins, sys};

/// Where a program goes.
enum Place {
    /// A cgroup, with the kernel's `enum bpf_attach_type`.
    Cgroup(u32),
    /// A tracepoint: its name, its permanent dispatcher, and the map through which that calls the program; and the
    /// programs, named like the functions that they go to, which stand in for it where the kernel lacks it.
    Tracepoint {
        name: &'static str,
        dispatcher: &'static str,
        array: &'static str,
        instead: &'static [&'static str],
    },
}

struct Spec {
    name: &'static str,
    place: Place,
    /// Nothing can be counted without it.
    needed: bool,
    /// What is lost without it.
    cost: &'static str,
}

/// In the order of attaching: whoever names and orients comes before whoever counts.
const PROGRAMS: &[Spec] = &[
    Spec {
        name: "mkdir",
        place: Place::Tracepoint {
            name: "cgroup_mkdir",
            dispatcher: "mkdir_dispatch",
            array: "PROG_MKDIR",
            instead: &[],
        },
        needed: false,
        cost: "a cgroup that is made and removed between two scans has no path, so no container and no pod",
    },
    Spec {
        name: "send",
        place: Place::Tracepoint {
            name: "sock_send_length",
            dispatcher: "send_dispatch",
            array: "PROG_SEND",
            instead: &["inet_sendmsg", "inet6_sendmsg"],
        },
        needed: false,
        cost: "servers that only send are named by their listening socket, if at all (kernel 6.3 has the tracepoint, 5.12 \
               what stands in for it)",
    },
    Spec {
        name: "recv",
        place: Place::Tracepoint {
            name: "sock_recv_length",
            dispatcher: "recv_dispatch",
            array: "PROG_RECV",
            instead: &["inet_recvmsg", "inet6_recvmsg"],
        },
        needed: false,
        cost: "servers are named by their listening socket, if at all (kernel 6.3 has the tracepoint, 5.12 what stands in \
               for it)",
    },
    Spec {
        name: "state",
        place: Place::Tracepoint {
            name: "inet_sock_set_state",
            dispatcher: "state_dispatch",
            array: "PROG_STATE",
            instead: &[],
        },
        needed: false,
        cost: "the end of connections older than the shipper is not seen",
    },
    Spec {
        name: "free",
        place: Place::Tracepoint {
            name: "kfree_skb",
            dispatcher: "free_dispatch",
            array: "PROG_FREE",
            instead: &[],
        },
        needed: false,
        cost: "packets that meet a socket in TIME_WAIT are not counted: a FIN per connection that this side closes \
               first (kernel 6.11 tells the socket)",
    },
    Spec { name: "connect4", place: Place::Cgroup(10), needed: false, cost: "IPv4 clients have no process" },
    Spec { name: "connect6", place: Place::Cgroup(11), needed: false, cost: "IPv6 clients have no process" },
    Spec {
        name: "sendmsg4",
        place: Place::Cgroup(14),
        needed: false,
        cost: "IPv4 UDP senders have no process",
    },
    Spec {
        name: "sendmsg6",
        place: Place::Cgroup(15),
        needed: false,
        cost: "IPv6 UDP senders have no process",
    },
    Spec {
        name: "released",
        place: Place::Cgroup(34),
        needed: false,
        cost: "the end of UDP sockets is not seen; their entries go when idle",
    },
    Spec {
        name: "sock_events",
        place: Place::Cgroup(3),
        needed: false,
        cost: "connections have no observed opening (sum(opened) is 0), no handshake time and no connect error",
    },
    Spec {
        name: "skb_egress",
        place: Place::Cgroup(1),
        needed: true,
        cost: "packets that leave are not counted",
    },
    Spec {
        name: "skb_ingress",
        place: Place::Cgroup(0),
        needed: true,
        cost: "packets that arrive are not counted",
    },
];

/// What became of one program.
#[derive(Clone, Debug)]
pub struct ProgramStatus {
    /// Its name in the kernel.
    pub name: &'static str,
    /// The kernel's words where it is missing.
    pub problem: Option<String>,
    /// What is lost without it.
    pub cost: &'static str,
    /// Whether capture is impossible without it.
    pub needed: bool,
}

/// Loads and attaches every program, and pins the links.
pub(crate) fn attach_all(
    ebpf: &mut Ebpf,
    btf: Option<&Btf>,
    pins: &Pins,
    cgroup: BorrowedFd<'_>,
    cgroup_id: u64,
) -> Vec<ProgramStatus> {
    each(|spec| {
        let result = match spec.place {
            Place::Cgroup(attach_type) => load(ebpf, spec.name, None, btf).and_then(|()| {
                let program = descriptor(ebpf, spec.name)?;
                attach_cgroup(program, cgroup, cgroup_id, attach_type, &pins.link(spec.name))
            }),
            Place::Tracepoint { name, dispatcher, array, instead } => {
                or_instead(load(ebpf, spec.name, Some(name), btf), instead, |function| {
                    load(ebpf, function, Some(function), btf)?;
                    attach_function(descriptor(ebpf, function)?, &pins.link(function))
                })
                .and_then(|here| match here {
                    Here::Itself => attach_tracepoint(ebpf, spec.name, name, dispatcher, array, btf, pins),
                    Here::Instead => Ok(()),
                })
            }
        };
        result.err()
    })
}

/// Takes every program off its place, whoever counts first: what they have counted stays in the maps. One that runs at
/// that moment goes on to its end; see [`sys::wait_for_programs`]. Closing a link is no substitute: the kernel detaches
/// some time later then.
pub(crate) fn detach_all(pins: &Pins) -> Result<(), CaptureError> {
    for spec in PROGRAMS.iter().rev() {
        match spec.place {
            Place::Cgroup(_) => {
                let pin = pins.link(spec.name);
                if pin.exists() {
                    let link = sys::obj_get(&pin).map_err(CaptureError::file("open", &pin))?;
                    sys::link_detach(link.as_fd()).map_err(CaptureError::file("detach", &pin))?;
                }
            }
            Place::Tracepoint { array, .. } => {
                let map = sys::obj_get(&pins.map(array)).map_err(CaptureError::map("open", array))?;
                sys::delete(map.as_fd(), &0_u32).map_err(CaptureError::map("empty", array))?;
            }
        }
    }
    Ok(())
}

/// Loads every program and attaches none: what `check` asks.
pub(crate) fn load_all(ebpf: &mut Ebpf, btf: Option<&Btf>) -> Vec<ProgramStatus> {
    each(|spec| match spec.place {
        Place::Cgroup(_) => load(ebpf, spec.name, None, btf).err(),
        Place::Tracepoint { name, instead, .. } => {
            or_instead(load(ebpf, spec.name, Some(name), btf), instead, |function| {
                load(ebpf, function, Some(function), btf)
            })
            .err()
        }
    })
}

/// What of a tracepoint is there.
enum Here {
    Itself,
    Instead,
}

/// Where `loaded` failed, does `each` of what stands in for it.
fn or_instead(
    loaded: Result<(), String>,
    instead: &[&'static str],
    mut each: impl FnMut(&'static str) -> Result<(), String>,
) -> Result<Here, String> {
    match loaded {
        Ok(()) => Ok(Here::Itself),
        Err(problem) if instead.is_empty() => Err(problem),
        Err(problem) => instead
            .iter()
            .try_for_each(|function| {
                each(function).map_err(|error| format!("{problem}; {function}: {error}"))
            })
            .map(|()| Here::Instead),
    }
}

/// Fails when a program is missing without which nothing can be counted.
pub(crate) fn require(statuses: &[ProgramStatus]) -> Result<(), CaptureError> {
    for ProgramStatus { name, problem, needed, .. } in statuses {
        if let (true, Some(reason)) = (needed, problem) {
            return Err(CaptureError::Program { name, reason: reason.clone() });
        }
    }
    Ok(())
}

fn each(mut run: impl FnMut(&Spec) -> Option<String>) -> Vec<ProgramStatus> {
    PROGRAMS
        .iter()
        .map(|spec| ProgramStatus {
            name: spec.name,
            problem: run(spec),
            cost: spec.cost,
            needed: spec.needed,
        })
        .collect()
}

/// `target` is a tracepoint or a function, by the kind of the program.
fn load(ebpf: &mut Ebpf, name: &str, target: Option<&str>, btf: Option<&Btf>) -> Result<(), String> {
    let program = ebpf.program_mut(name).ok_or("the kernel object does not have it")?;
    let result = match (program, target) {
        (Program::CgroupSkb(program), None) => program.load(),
        (Program::SockOps(program), None) => program.load(),
        (Program::CgroupSock(program), None) => program.load(),
        (Program::CgroupSockAddr(program), None) => program.load(),
        (Program::BtfTracePoint(program), Some(tracepoint)) => {
            program.load(tracepoint, btf.ok_or("the kernel has no BTF (CONFIG_DEBUG_INFO_BTF)")?)
        }
        (Program::FEntry(program), Some(function)) => {
            program.load(function, btf.ok_or("the kernel has no BTF (CONFIG_DEBUG_INFO_BTF)")?)
        }
        _ => return Err("the kernel object has it as another type".to_owned()),
    };
    result.map_err(|error| words(&error))
}

fn descriptor<'a>(ebpf: &'a Ebpf, name: &str) -> Result<BorrowedFd<'a>, String> {
    let program = ebpf.program(name).ok_or("the kernel object does not have it")?;
    program.fd().map(AsFd::as_fd).map_err(|error| words(&error))
}

fn attach_cgroup(
    program: BorrowedFd<'_>,
    cgroup: BorrowedFd<'_>,
    cgroup_id: u64,
    attach_type: u32,
    pin: &Path,
) -> Result<(), String> {
    if pin.exists() {
        let link = sys::obj_get(pin).map_err(|error| format!("open pinned link: {error}"))?;
        if sys::link_cgroup(link.as_fd()).is_ok_and(|attached| attached == cgroup_id) {
            match sys::link_update(link.as_fd(), program) {
                Ok(()) => return Ok(()),
                // The cgroup was removed and its id is in use again: the link is dead, a new one is needed.
                Err(error) if error.raw_os_error() == Some(libc::ENOLINK) => {}
                Err(error) => return Err(format!("replace the attached program: {error}")),
            }
        }
        drop(link);
        fs::remove_file(pin).map_err(|error| format!("remove the pin of a dead link: {error}"))?;
    }
    let link = sys::link_create(program, cgroup, attach_type).map_err(|error| attach_words(&error))?;
    sys::obj_pin(pin, link.as_fd()).map_err(|error| format!("pin link: {error}"))
}

fn attach_words(error: &io::Error) -> String {
    match error.raw_os_error() {
        Some(libc::EPERM) => format!(
            "attach: {error} (a program without the multi flag may sit at this cgroup or above: `bpftool cgroup tree`)"
        ),
        Some(libc::EINVAL) => format!("attach: {error} (cgroup links need kernel 5.7)"),
        _ => format!("attach: {error}"),
    }
}

fn attach_tracepoint(
    ebpf: &mut Ebpf,
    name: &str,
    tracepoint: &str,
    dispatcher: &str,
    array: &str,
    btf: Option<&Btf>,
    pins: &Pins,
) -> Result<(), String> {
    let map = sys::obj_get(&pins.map(array)).map_err(|error| format!("open map {array}: {error}"))?;
    let program = u32::try_from(std::os::fd::AsRawFd::as_raw_fd(&descriptor(ebpf, name)?)).unwrap_or(0);
    sys::update(map.as_fd(), &0_u32, &program, 0)
        .map_err(|error| format!("put behind its dispatcher: {error}"))?;
    let pin = pins.link(dispatcher);
    if pin.exists() {
        return Ok(());
    }
    load(ebpf, dispatcher, Some(tracepoint), btf)?;
    let link =
        sys::tracepoint_open(descriptor(ebpf, dispatcher)?).map_err(|error| format!("attach: {error}"))?;
    sys::obj_pin(&pin, link.as_fd()).map_err(|error| format!("pin link: {error}"))
}

/// Such links can't be updated. The new one is there before the old one goes: both name the same owner.
fn attach_function(program: BorrowedFd<'_>, pin: &Path) -> Result<(), String> {
    let link = sys::tracepoint_open(program).map_err(|error| format!("attach: {error}"))?;
    match fs::remove_file(pin) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            return Err(format!("remove the pin of the link before: {error}"));
        }
        _ => {}
    }
    sys::obj_pin(pin, link.as_fd()).map_err(|error| format!("pin link: {error}"))
}

/// An error with its causes in one line; of the verifier's log the last lines, which say why.
pub(crate) fn words(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let more = error.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        cause = error.source();
    }
    let lines: Vec<&str> = text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    if lines.len() > 6 {
        return format!("{} … {}", lines[0], lines[lines.len() - 4..].join(" | "));
    }
    lines.join(" | ")
}
