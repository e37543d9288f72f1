//! A packet that the kernel hands to `cgroup_skb` twice: counted once.
//!
//! The last acknowledgement of a handshake and the first data may be handled by two CPUs at the same time. Both find the
//! request at the listener, and both pass its filter; one makes the child, and the other starts over with it, through
//! the child's filter (`goto lookup` in tcp_v4_rcv and tcp_v6_rcv, where the request was stolen). Between the two passes
//! the CPU meets no other packet, and makes no child itself.

use aya_ebpf::macros::map;
use aya_ebpf::maps::PerCpuArray;
use weir_shipper_ebpf::{FlowKey, packet::Packet};

/// What tells one TCP packet from the next.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq)]
struct Met {
    remote: [u8; 16],
    remote_port: u16,
    local_port: u16,
    seq: u32,
    ack: u32,
    /// 0 for none: the packet is shorter than no packet can be.
    len: u32,
}

/// The packet that this CPU last handed to a listener, if it met none since.
#[map]
static MET: PerCpuArray<Met> = PerCpuArray::pinned(1, 0);

/// Whether this packet, arriving at a connection, was the last one that this CPU handed to a listener.
#[inline(always)]
pub fn again(key: &FlowKey, packet: &Packet, len: u32, listener: bool) -> bool {
    let Some(slot) = MET.get_ptr_mut(0) else { return false };
    let met = Met {
        remote: key.remote,
        remote_port: key.remote_port,
        local_port: key.local_port,
        seq: packet.seq,
        ack: packet.ack,
        len,
    };
    // SAFETY: the pointer is into the map, of this CPU; packets that arrive are handled by one softirq at a time.
    unsafe {
        let before = *slot;
        if listener {
            *slot = met;
            return false;
        }
        (*slot).len = 0;
        before == met
    }
}

/// This CPU made a child of a listener: what it met has done its work, and a packet just like it is another one.
#[inline(always)]
pub fn forget() {
    if let Some(slot) = MET.get_ptr_mut(0) {
        // SAFETY: as in `again`.
        unsafe { (*slot).len = 0 };
    }
}
