//! `weir-shipper check` and `unload --discard`: what this kernel gives, what is missing, why, and what that costs.
//!
//! Loads every program and attaches none. Called by the binary.

use std::fmt;

use aya::Btf;

use crate::{
    cgroup::cgroup2_root,
    probe::{
        CaptureConfig, CaptureError, InterfaceConfig, KernelFeatures, LinkGlobals, Pins, ProgramStatus,
        load_all, load_links, on_bpffs, open_object, remove_pins, tcx, wait_for_programs,
    },
};

/// One line of the report.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Feature {
    /// What was asked for.
    pub name: String,
    /// The kernel's words where it is missing.
    pub problem: Option<String>,
    /// What is lost without it.
    pub cost: String,
    /// Whether capture is impossible without it.
    pub needed: bool,
}

/// What this kernel gives.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CheckReport {
    /// `uname -r`.
    pub kernel: String,
    /// Every feature, present or not.
    pub features: Vec<Feature>,
}

impl CheckReport {
    /// Whether packets can be counted at all.
    pub fn capture_possible(&self) -> bool {
        !self.features.iter().any(|feature| feature.needed && feature.problem.is_some())
    }
}

impl fmt::Display for CheckReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "kernel {}", self.kernel)?;
        for Feature { name, problem, cost, needed } in &self.features {
            match problem {
                None => writeln!(f, "  ok       {name}")?,
                Some(problem) => {
                    writeln!(f, "  missing  {name}: {problem}")?;
                    let weight = if *needed { "needed" } else { "cost" };
                    writeln!(f, "           {weight}: {cost}")?;
                }
            }
        }
        let missing = self.features.iter().filter(|feature| feature.problem.is_some()).count();
        match (self.capture_possible(), missing) {
            (true, 0) => write!(f, "capture is possible, with everything"),
            (true, missing) => write!(f, "capture is possible, without {missing} of {}", self.features.len()),
            (false, _) => write!(f, "capture is NOT possible on this host"),
        }
    }
}

/// Asks the kernel for everything that capture uses. Leaves nothing behind; mounts bpffs if need be.
pub fn report(config: &CaptureConfig) -> CheckReport {
    let features = KernelFeatures::probe();
    let mut lines =
        vec![cgroup_feature(config), bpffs_feature(config), membarrier_feature(wait_for_programs())];
    let mut line = |name: &str, ok: bool, problem: &str, cost: &str| {
        let problem = (!ok).then(|| problem.to_owned());
        lines.push(Feature { name: name.to_owned(), problem, cost: cost.to_owned(), needed: false });
    };
    line(
        "kernel type information",
        features.btf,
        "/sys/kernel/btf/vmlinux is not there (CONFIG_DEBUG_INFO_BTF)",
        "no tracepoints: servers have no process, connections older than the shipper no end",
    );
    line(
        "network namespace in sock_ops",
        features.sockops_netns,
        "helper bpf_get_netns_cookie is not allowed there (kernel 5.15 has it)",
        "on hosts with cgroup v1 the pods of accepted connections cannot be told apart by namespace",
    );
    line(
        "current process in sock_ops",
        features.sockops_current,
        "helper bpf_get_current_comm is not allowed there (kernel 6.16 has it)",
        "a server that neither sends nor receives before it closes has no process",
    );
    line(
        "offsets for new cgroups",
        features.cgroup_offsets.is_some(),
        "tracepoint cgroup_mkdir or its structures are not in the kernel's BTF",
        "a cgroup that is made and removed between two scans has no path, so no container and no pod",
    );
    line(
        "offsets of freed packets",
        features.packet_offsets.is_some(),
        "sk_buff or sock_common is not in the kernel's BTF",
        "packets that meet a socket in TIME_WAIT are not counted",
    );
    line(
        "offset of a socket's error",
        features.sk_err.is_some(),
        "sock is not in the kernel's BTF",
        "connect_error is never unreachable: connections that ICMP refused are called aborted or timed_out",
    );
    match load(&features, config) {
        Ok((statuses, tcx)) => {
            lines.extend(statuses.into_iter().map(Feature::from));
            lines.push(tcx_feature(tcx));
        }
        Err(error) => lines.push(Feature {
            name: "eBPF maps".to_owned(),
            problem: Some(format!("{error:#}")),
            cost: "nothing is captured: needs CAP_BPF, CAP_NET_ADMIN, CAP_PERFMON (or root), and kernel 5.12"
                .to_owned(),
            needed: true,
        }),
    }
    CheckReport { kernel: features.release, features: lines }
}

/// Programs, and whether links can be attached to by TCX.
type Loaded = (Vec<ProgramStatus>, std::io::Result<()>);

/// Loads every program with small maps, pinned in a directory of their own for as long as this takes.
fn load(features: &KernelFeatures, config: &CaptureConfig) -> anyhow::Result<Loaded> {
    const ENTRIES: u32 = 16;
    let mut directory = config.pin_directory.clone().into_os_string();
    directory.push(format!("-check-{}", std::process::id()));
    let config = CaptureConfig {
        cgroup: None,
        pin_directory: directory.into(),
        flow_entries: ENTRIES,
        socket_entries: ENTRIES,
        meta_entries: ENTRIES,
        cgroup_entries: ENTRIES,
        idle: config.idle,
        interfaces: Some(InterfaceConfig {
            flow_entries: ENTRIES,
            meta_entries: ENTRIES,
            ..InterfaceConfig::default()
        }),
    };
    let pins = Pins::open(&config.pin_directory)?;
    let loaded = open_object(features, &config, pins.directory(), LinkGlobals::default()).map(|mut ebpf| {
        let btf = if features.btf { Btf::from_sys_fs().ok() } else { None };
        let mut statuses = load_all(&mut ebpf, btf.as_ref());
        statuses.extend(load_links(features, &config, pins.directory()));
        (statuses, tcx(features, &config, pins.directory()))
    });
    drop(pins);
    remove_pins(&config.pin_directory)?;
    Ok(loaded?)
}

impl From<ProgramStatus> for Feature {
    fn from(status: ProgramStatus) -> Self {
        let ProgramStatus { name, problem, cost, needed } = status;
        Self { name: format!("program {name}"), problem, cost: cost.to_owned(), needed }
    }
}

/// Detaches the programs and removes every map and link of every layout, with what they counted: [`crate::unload`] loses
/// nothing. Returns how many pins went.
///
/// # Errors
/// When a shipper is running, or a pin cannot be removed.
pub fn unload(config: &CaptureConfig) -> Result<usize, CaptureError> {
    remove_pins(&config.pin_directory)
}

fn cgroup_feature(config: &CaptureConfig) -> Feature {
    let found = match (&config.cgroup, cgroup2_root()) {
        (Some(path), _) => {
            std::fs::metadata(path).map(drop).map_err(|error| format!("{}: {error}", path.display()))
        }
        (None, Ok(Some(_))) => Ok(()),
        (None, Ok(None)) => Err("no cgroup2 file system is mounted".to_owned()),
        (None, Err(error)) => Err(format!("/proc/self/mountinfo: {error}")),
    };
    Feature {
        name: "cgroup v2".to_owned(),
        problem: found.err(),
        cost: "programs have nothing to attach to: mount cgroup2, in a container the host's".to_owned(),
        needed: true,
    }
}

fn bpffs_feature(config: &CaptureConfig) -> Feature {
    let path = &config.pin_directory;
    let possible = on_bpffs(path) || path.starts_with("/sys/fs/bpf");
    Feature {
        name: "bpf file system".to_owned(),
        problem: (!possible).then(|| format!("{} is not on bpffs", path.display())),
        cost: "maps and links cannot be pinned: mount bpffs, in a container the host's /sys/fs/bpf"
            .to_owned(),
        needed: true,
    }
}

fn tcx_feature(tried: std::io::Result<()>) -> Feature {
    Feature {
        name: "pinned links at interfaces (TCX)".to_owned(),
        problem: tried.err().map(|error| format!("{error} (kernel 6.6 has them)")),
        cost: "the interface vantage attaches by filters of a clsact queueing discipline, which anybody who manages \
               tc may remove; `weir-shipper unload` must find each namespace again"
            .to_owned(),
        needed: false,
    }
}

fn membarrier_feature(waited: std::io::Result<()>) -> Feature {
    Feature {
        name: "wait for running programs".to_owned(),
        problem: waited
            .err()
            .map(|error| format!("membarrier: {error} (a kernel that was started with nohz_full refuses it)")),
        cost: "an interval cannot be drained exactly while a program may still write to it: the shipper does not drain, \
               and ends"
            .to_owned(),
        needed: true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refused_wait_makes_capture_impossible() {
        let feature = membarrier_feature(Err(std::io::Error::from_raw_os_error(libc::EINVAL)));
        let report = CheckReport { kernel: "6.1".to_owned(), features: vec![feature] };
        assert!(!report.capture_possible());
        assert!(report.to_string().contains("nohz_full"), "{report}");
        assert_eq!(membarrier_feature(Ok(())).problem, None);
    }
}
