//! What this kernel can do: helpers, structure offsets, tracepoints. Asked once, when capture opens or is checked.

use std::path::Path;

use aya::{
    programs::ProgramType,
    sys::{BpfHelper, is_helper_supported},
};

use super::{btf::KernelTypes, sys};

/// Answers of this kernel.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct KernelFeatures {
    /// `uname -r`.
    pub release: String,
    /// Type information is there.
    pub btf: bool,
    /// Atomic instructions other than the addition (kernel 5.12).
    pub atomics: bool,
    /// `sock_ops` may read the network namespace's cookie.
    pub sockops_netns: bool,
    /// `sock_ops` may read the current process.
    pub sockops_current: bool,
    /// Where to find the id of a cgroup that is being made.
    pub cgroup_offsets: Option<CgroupOffsets>,
    /// Where to find the headers of a packet that is freed, and the state of its socket.
    pub packet_offsets: Option<PacketOffsets>,
    /// Where to find a socket's error: `sock.sk_err`.
    pub sk_err: Option<u32>,
    /// Where to find the protocol's part of a socket: `socket.sk`.
    pub socket_sk: Option<u32>,
}

/// Byte offsets for `cgroups.rs` of the kernel programs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct CgroupOffsets {
    pub cgroup_kn: u32,
    pub kn_id: u32,
    pub cgroup_root: u32,
    pub root_hierarchy: u32,
}

/// Byte offsets for `timewait.rs` of the kernel programs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct PacketOffsets {
    pub skb_head: u32,
    pub skb_network: u32,
    pub sk_state: u32,
}

impl KernelFeatures {
    /// Asks the running kernel.
    pub(crate) fn probe() -> Self {
        let types = KernelTypes::read(Path::new("/sys/kernel/btf/vmlinux"));
        let helper = |helper| is_helper_supported(ProgramType::SockOps, helper).unwrap_or(false);
        Self {
            release: std::fs::read_to_string("/proc/sys/kernel/osrelease")
                .map(|release| release.trim().to_owned())
                .unwrap_or_default(),
            btf: types.is_some(),
            atomics: sys::atomics_supported(),
            sockops_netns: helper(BpfHelper::BPF_FUNC_get_netns_cookie),
            sockops_current: helper(BpfHelper::BPF_FUNC_get_current_pid_tgid)
                && helper(BpfHelper::BPF_FUNC_get_current_comm)
                && helper(BpfHelper::BPF_FUNC_get_current_cgroup_id),
            cgroup_offsets: types.as_ref().and_then(CgroupOffsets::find),
            packet_offsets: types.as_ref().and_then(PacketOffsets::find),
            sk_err: types.as_ref().and_then(|types| types.offset("sock", "sk_err")),
            socket_sk: types.as_ref().and_then(|types| types.offset("socket", "sk")),
        }
    }
}

impl CgroupOffsets {
    fn find(types: &KernelTypes) -> Option<Self> {
        if !types.has_tracepoint("cgroup_mkdir") {
            return None;
        }
        Some(Self {
            cgroup_kn: types.offset("cgroup", "kn")?,
            kn_id: types.offset("kernfs_node", "id")?,
            cgroup_root: types.offset("cgroup", "root")?,
            root_hierarchy: types.offset("cgroup_root", "hierarchy_id")?,
        })
    }
}

impl PacketOffsets {
    fn find(types: &KernelTypes) -> Option<Self> {
        Some(Self {
            skb_head: types.offset("sk_buff", "head")?,
            skb_network: types.offset("sk_buff", "network_header")?,
            // The common part comes first in every kind of socket, TIME_WAIT's too.
            sk_state: types.offset("sock_common", "skc_state")?,
        })
    }
}
