//! Between the shipper and the kernel: loads and pins the programs, and drains their maps interval by interval.
//!
//! Owns everything under the pin directory. Capture goes on while no shipper runs: programs, links and maps are pinned,
//! and the next shipper takes them over. Called by the app from one thread: `read`, spool, `release`; see [`Capture`].

mod adopt;
mod btf;
mod capture;
mod diag;
mod error;
mod kernel;
mod links;
mod maps;
mod pins;
mod programs;
mod sys;

pub use capture::{Capture, CaptureConfig, Count, Drained, TotalCount, Totals};
pub use error::CaptureError;
pub use links::{BadPattern, InterfaceConfig, LinkPattern, SELF};
pub use programs::ProgramStatus;

pub(crate) use kernel::KernelFeatures;
pub(crate) use links::{Names, load as load_links, tcx};
pub(crate) use pins::{Pins, directory as pins_directory, on_bpffs, remove as remove_pins};
pub(crate) use programs::load_all;
pub(crate) use sys::wait_for_programs;

/// The kernel programs, as committed or as built from source: see `build.rs`.
static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/weir-shipper.bpf.o"));
/// The same without the atomic instructions that kernels before 5.12 lack.
static PLAIN_OBJECT: &[u8] =
    aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/weir-shipper-plain.bpf.o"));

use aya::{Ebpf, EbpfError, EbpfLoader};

/// What the programs at a link are told of it.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct LinkGlobals {
    /// Number of its network namespace.
    pub namespace: u32,
    /// Packets begin with an Ethernet header.
    pub ethernet: bool,
}

/// Opens the object for this kernel; its maps are pinned in `pins`, or taken from there.
pub(crate) fn open_object(
    features: &KernelFeatures,
    config: &CaptureConfig,
    pins: &std::path::Path,
    link: LinkGlobals,
) -> Result<Ebpf, EbpfError> {
    // Without interfaces their maps are there, with room for nothing.
    let none = InterfaceConfig { flow_entries: 1, meta_entries: 1, ..InterfaceConfig::default() };
    let interfaces = config.interfaces.as_ref().unwrap_or(&none);
    let [first, second] = interfaces.vxlan_ports.map(u32::from);
    let (vxlan, geneve) = (first | second << 16, u32::from(interfaces.geneve_port));
    let flag = |value: bool| u32::from(value);
    let (netns, current) = (flag(features.sockops_netns), flag(features.sockops_current));
    let offsets = features.cgroup_offsets.unwrap_or(kernel::CgroupOffsets {
        cgroup_kn: 0,
        kn_id: 0,
        cgroup_root: 0,
        root_hierarchy: 0,
    });
    let packet =
        features.packet_offsets.unwrap_or(kernel::PacketOffsets { skb_head: 0, skb_network: 0, sk_state: 0 });
    EbpfLoader::new()
        .override_global("HAS_SOCKOPS_NETNS", &netns, true)
        .override_global("HAS_SOCKOPS_CURRENT", &current, true)
        .override_global("OFF_CGROUP_KN", &offsets.cgroup_kn, true)
        .override_global("OFF_KN_ID", &offsets.kn_id, true)
        .override_global("OFF_CGROUP_ROOT", &offsets.cgroup_root, true)
        .override_global("OFF_ROOT_HIERARCHY", &offsets.root_hierarchy, true)
        .override_global("OFF_SKB_HEAD", &packet.skb_head, true)
        .override_global("OFF_SKB_NETWORK", &packet.skb_network, true)
        .override_global("OFF_SK_STATE", &packet.sk_state, true)
        .override_global("OFF_SK_ERR", &features.sk_err.unwrap_or(0), true)
        .override_global("OFF_SOCKET_SK", &features.socket_sk.unwrap_or(0), true)
        .override_global("LINK_NAMESPACE", &link.namespace, true)
        .override_global("LINK_ETHERNET", &flag(link.ethernet), true)
        .override_global("VXLAN_PORTS", &vxlan, true)
        .override_global("GENEVE_PORT", &geneve, true)
        .map_max_entries("LINK_FLOWS_A", interfaces.flow_entries)
        .map_max_entries("LINK_FLOWS_B", interfaces.flow_entries)
        .map_max_entries("LINK_META", interfaces.meta_entries)
        .map_max_entries("FLOWS_A", config.flow_entries)
        .map_max_entries("FLOWS_B", config.flow_entries)
        .map_max_entries("SOCKS", config.socket_entries)
        .map_max_entries("META", config.meta_entries)
        .map_max_entries("CGROUPS", config.cgroup_entries)
        .default_map_pin_directory(pins)
        .load(if features.atomics { OBJECT } else { PLAIN_OBJECT })
}
