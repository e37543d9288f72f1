//! The pinned maps, the frozen globals, and the few ways in which the programs touch them.
//!
//! The shipper owns the maps' life: it sizes, pins, drains and prunes them.

use aya_ebpf::{
    Global,
    bindings::{BPF_F_NO_PREALLOC, BPF_NOEXIST},
    macros::map,
    maps::{Array, HashMap, PerCpuArray, ProgramArray},
};
use weir_shipper_ebpf::{
    COUNTER_ENTRIES, COUNTER_NO_INTERVAL, COUNTER_SOCKS_FULL, CgroupPath, FlowKey, FlowValue,
    INTERVAL_ENTRIES, INTERVAL_NOW, LinkKey, LinkMeta, LinkValue, Meta, Sock, TOTAL_ENTRIES, Total,
    total_index,
};

use crate::atomic::{add, add32};

// The entries below are defaults; the shipper sets its own (EbpfLoader::map_max_entries).
#[map]
pub static FLOWS_A: HashMap<FlowKey, FlowValue> = HashMap::pinned(131_072, 0);
#[map]
pub static FLOWS_B: HashMap<FlowKey, FlowValue> = HashMap::pinned(131_072, 0);
#[map]
pub static INTERVAL: Array<u64> = Array::pinned(INTERVAL_ENTRIES, 0);
#[map]
pub static TOTALS: PerCpuArray<Total> = PerCpuArray::pinned(TOTAL_ENTRIES, 0);
#[map]
pub static OVERFLOW: PerCpuArray<Total> = PerCpuArray::pinned(TOTAL_ENTRIES, 0);
#[map]
pub static SOCKS: HashMap<u64, Sock> = HashMap::pinned(262_144, BPF_F_NO_PREALLOC);
#[map]
pub static META: HashMap<FlowKey, Meta> = HashMap::pinned(262_144, BPF_F_NO_PREALLOC);
// The interface vantage has maps of its own: a scan that it sees takes no room from the sockets.
#[map]
pub static LINK_FLOWS_A: HashMap<LinkKey, LinkValue> = HashMap::pinned(131_072, 0);
#[map]
pub static LINK_FLOWS_B: HashMap<LinkKey, LinkValue> = HashMap::pinned(131_072, 0);
#[map]
pub static LINK_META: HashMap<LinkKey, LinkMeta> = HashMap::pinned(262_144, BPF_F_NO_PREALLOC);
#[map]
pub static CGROUPS: HashMap<u64, CgroupPath> = HashMap::pinned(16_384, BPF_F_NO_PREALLOC);
#[map]
pub static CGROUP_SCRATCH: PerCpuArray<CgroupPath> = PerCpuArray::pinned(1, 0);
#[map]
pub static COUNTERS: Array<u64> = Array::pinned(COUNTER_ENTRIES, 0);

// A program array belongs to the prototype of one tracepoint: one array each.
#[map]
pub static PROG_SEND: ProgramArray = ProgramArray::pinned(1, 0);
#[map]
pub static PROG_RECV: ProgramArray = ProgramArray::pinned(1, 0);
#[map]
pub static PROG_STATE: ProgramArray = ProgramArray::pinned(1, 0);
#[map]
pub static PROG_MKDIR: ProgramArray = ProgramArray::pinned(1, 0);
#[map]
pub static PROG_FREE: ProgramArray = ProgramArray::pinned(1, 0);

/// 1 where `sock_ops` may ask for the network namespace's cookie (kernel 5.15). A helper that the kernel lacks is dead
/// code to the verifier behind a frozen 0.
#[unsafe(no_mangle)]
pub static HAS_SOCKOPS_NETNS: Global<u32> = Global::new(0);
/// 1 where `sock_ops` may ask for the current process and its name (kernel 6.16).
#[unsafe(no_mangle)]
pub static HAS_SOCKOPS_CURRENT: Global<u32> = Global::new(0);
/// Offset from the kernel's BTF: `socket.sk`.
#[unsafe(no_mangle)]
pub static OFF_SOCKET_SK: Global<u32> = Global::new(0);
/// Offsets from the kernel's BTF, for the path of a new cgroup: `cgroup.kn`, `kernfs_node.id`, `cgroup.root`,
/// `cgroup_root.hierarchy_id`.
#[unsafe(no_mangle)]
pub static OFF_CGROUP_KN: Global<u32> = Global::new(0);
#[unsafe(no_mangle)]
pub static OFF_KN_ID: Global<u32> = Global::new(0);
#[unsafe(no_mangle)]
pub static OFF_CGROUP_ROOT: Global<u32> = Global::new(0);
#[unsafe(no_mangle)]
pub static OFF_ROOT_HIERARCHY: Global<u32> = Global::new(0);

/// Offsets for packets that no full socket receives: `sk_buff.head`, `sk_buff.network_header`, `sock.skc_state`.
#[unsafe(no_mangle)]
pub static OFF_SKB_HEAD: Global<u32> = Global::new(0);
#[unsafe(no_mangle)]
pub static OFF_SKB_NETWORK: Global<u32> = Global::new(0);
#[unsafe(no_mangle)]
pub static OFF_SK_STATE: Global<u32> = Global::new(0);

/// Offset of `sock.sk_err`, 0 where it is not known.
#[unsafe(no_mangle)]
pub static OFF_SK_ERR: Global<u32> = Global::new(0);

/// Number of the network namespace that these programs' links are in: an interface's index is unique within one only.
/// `bpf_get_netns_cookie` is no help here: of a packet without a socket it gives the first namespace.
#[unsafe(no_mangle)]
pub static LINK_NAMESPACE: Global<u32> = Global::new(0);
/// 1 where packets begin with an Ethernet header.
#[unsafe(no_mangle)]
pub static LINK_ETHERNET: Global<u32> = Global::new(1);
/// UDP ports of VXLAN, two of 16 bits, and of Geneve; 0 for none.
#[unsafe(no_mangle)]
pub static VXLAN_PORTS: Global<u32> = Global::new(0);
#[unsafe(no_mangle)]
pub static GENEVE_PORT: Global<u32> = Global::new(0);

// What new entries start as. In .rodata, because 184 bytes are a third of a program's stack.
static FLOW_ZERO: FlowValue = FlowValue::ZERO;
static SOCK_ZERO: Sock = Sock::ZERO;
static LINK_ZERO: LinkValue = LinkValue::ZERO;

/// Adds one to an entry of `COUNTERS`.
#[inline(always)]
pub fn count(counter: u32) {
    if let Some(entry) = COUNTERS.get_ptr_mut(counter) {
        add(entry, 1);
    }
}

/// Number of the interval being written. A program reads it once per run: map, totals and overflow of one packet
/// belong to the same interval.
#[inline(always)]
pub fn interval() -> u64 {
    match INTERVAL.get_ptr(INTERVAL_NOW) {
        // SAFETY: the pointer is into the map. Volatile, because the shipper writes it.
        Some(entry) => unsafe { core::ptr::read_volatile(entry) },
        None => {
            count(COUNTER_NO_INTERVAL);
            0
        }
    }
}

/// The flow's entry in the interval's map, if there is one.
#[inline(always)]
pub fn flow(interval: u64, key: &FlowKey) -> Option<*mut FlowValue> {
    if interval & 1 == 0 { FLOWS_A.get_ptr_mut(key) } else { FLOWS_B.get_ptr_mut(key) }
}

/// Makes the flow's entry and returns it; `None` when the map is full.
#[inline(always)]
pub fn flow_new(interval: u64, key: &FlowKey) -> Option<*mut FlowValue> {
    // Another CPU may have been faster: that is the entry that both add to.
    if interval & 1 == 0 {
        let _exists = FLOWS_A.insert(key, &FLOW_ZERO, u64::from(BPF_NOEXIST));
        FLOWS_A.get_ptr_mut(key)
    } else {
        let _exists = FLOWS_B.insert(key, &FLOW_ZERO, u64::from(BPF_NOEXIST));
        FLOWS_B.get_ptr_mut(key)
    }
}

/// As [`flow`], at a link.
#[inline(always)]
pub fn link_flow(interval: u64, key: &LinkKey) -> Option<*mut LinkValue> {
    if interval & 1 == 0 { LINK_FLOWS_A.get_ptr_mut(key) } else { LINK_FLOWS_B.get_ptr_mut(key) }
}

/// As [`flow_new`], at a link.
#[inline(always)]
pub fn link_flow_new(interval: u64, key: &LinkKey) -> Option<*mut LinkValue> {
    if interval & 1 == 0 {
        let _exists = LINK_FLOWS_A.insert(key, &LINK_ZERO, u64::from(BPF_NOEXIST));
        LINK_FLOWS_A.get_ptr_mut(key)
    } else {
        let _exists = LINK_FLOWS_B.insert(key, &LINK_ZERO, u64::from(BPF_NOEXIST));
        LINK_FLOWS_B.get_ptr_mut(key)
    }
}

/// Adds opened connections to a flow's entry, or to the overflow where it has none.
#[inline(always)]
pub fn opened(
    interval: u64,
    flow: Option<*mut FlowValue>,
    vantage: u8,
    class: u32,
    direction: u32,
    opened: u32,
) {
    if opened == 0 {
        return;
    }
    match flow {
        // SAFETY: the pointer is into the map.
        Some(flow) => unsafe { add32(&raw mut (*flow).opened, opened) },
        None => {
            if let Some(total) = OVERFLOW.get_ptr_mut(total_index(interval, vantage, class, direction)) {
                // SAFETY: the pointer is into the map.
                unsafe { add(&raw mut (*total).opened, u64::from(opened)) }
            }
        }
    }
}

/// The socket's entry, made when it is missing. `true` says that this call made it.
#[inline(always)]
pub fn sock(cookie: u64) -> Option<(*mut Sock, bool)> {
    if let Some(sock) = SOCKS.get_ptr_mut(cookie) {
        return Some((sock, false));
    }
    let made = SOCKS.insert(cookie, &SOCK_ZERO, u64::from(BPF_NOEXIST)).is_ok();
    match SOCKS.get_ptr_mut(cookie) {
        Some(sock) => Some((sock, made)),
        None => {
            count(COUNTER_SOCKS_FULL);
            None
        }
    }
}
