//! Packets for sockets in TIME_WAIT: what `cgroup_skb` does not see, because no full socket receives them.
//!
//! A client that closes first is an orphan in FIN_WAIT_2, for which the kernel keeps only a TIME_WAIT socket; the
//! server's FIN meets that one. The kernel frees such packets with the socket's name on them (tcp_v4_rcv, discard_it),
//! and the socket still has the connection's cookie.

use aya_ebpf::{
    cty::c_void,
    helpers::{bpf_get_socket_cookie, bpf_ktime_get_boot_ns, bpf_probe_read_kernel},
    macros::btf_tracepoint,
    programs::BtfTracePointContext,
};
use weir_shipper_ebpf::{
    COUNTER_FLOWS_FULL, COUNTER_TAIL_CALL_FAILED, INGRESS, VANTAGE_SOCKET, class, packet::TCP, total_index,
};

use crate::{
    atomic::{add, or32},
    maps::{
        OFF_SK_STATE, OFF_SKB_HEAD, OFF_SKB_NETWORK, OVERFLOW, PROG_FREE, SOCKS, TOTALS, count, flow,
        flow_new, interval,
    },
};

const TIME_WAIT: u8 = 6;

/// Permanent: links of `tp_btf` cannot be updated, so this one stays and calls the present program.
#[btf_tracepoint(function = "kfree_skb")]
pub fn free_dispatch(ctx: BtfTracePointContext) -> i32 {
    // SAFETY: both programs have this context.
    unsafe { PROG_FREE.tail_call(&ctx, 0) };
    count(COUNTER_TAIL_CALL_FAILED);
    0
}

/// `kfree_skb(skb, location, reason, rx_sk)`; the socket is there since kernel 6.11.
#[btf_tracepoint(function = "kfree_skb")]
pub fn free(ctx: BtfTracePointContext) -> i32 {
    let sk: *const u8 = ctx.arg(3);
    if sk.is_null() {
        return 0;
    }
    let skb: *const u8 = ctx.arg(0);
    let _unreadable = late(skb, sk);
    0
}

#[inline(always)]
fn late(skb: *const u8, sk: *const u8) -> Result<(), i32> {
    // SAFETY: reads of kernel memory by a helper that fails where there is none, at offsets of this kernel's BTF;
    // pointers into maps.
    unsafe {
        let state: u8 = read(sk, OFF_SK_STATE.load())?;
        if state != TIME_WAIT {
            return Ok(());
        }
        let cookie = bpf_get_socket_cookie(sk as *mut c_void);
        let Some(sock) = SOCKS.get_ptr_mut(cookie) else { return Ok(()) };
        let head: *const u8 = read(skb, OFF_SKB_HEAD.load())?;
        let network: u16 = read(skb, OFF_SKB_NETWORK.load())?;
        let ip: [u8; 8] = read(head, u32::from(network))?;
        // By this time the packet's own length is that of its TCP part.
        let (bytes, tcp_at) = match ip[0] >> 4 {
            4 => (u64::from(u16::from_be_bytes([ip[2], ip[3]])), u32::from(ip[0] & 0xf) * 4),
            6 => (u64::from(u16::from_be_bytes([ip[4], ip[5]])) + 40, 40),
            _ => return Ok(()),
        };
        let flags: u8 = read(head, u32::from(network) + tcp_at + 13)?;
        let now = bpf_ktime_get_boot_ns();
        let interval = interval();
        let total = total_index(interval, VANTAGE_SOCKET, class(TCP), INGRESS);
        if let Some(cell) = TOTALS.get_ptr_mut(total) {
            add(&raw mut (*cell).packets, 1);
            add(&raw mut (*cell).bytes, bytes);
        }
        (*sock).touched_ns = now;
        let key = (*sock).key;
        let mut entry = flow(interval, &key);
        if entry.is_none() {
            entry = flow_new(interval, &key);
        }
        let Some(entry) = entry else {
            count(COUNTER_FLOWS_FULL);
            if let Some(cell) = OVERFLOW.get_ptr_mut(total) {
                add(&raw mut (*cell).packets, 1);
                add(&raw mut (*cell).bytes, bytes);
            }
            return Ok(());
        };
        if (*entry).first_ns == 0 {
            (*entry).first_ns = now;
        }
        (*entry).last_ns = now;
        add(&raw mut (*entry).received.packets, 1);
        add(&raw mut (*entry).received.bytes, bytes);
        // Of an IPv6 packet with extension headers the flags are elsewhere; a connection that is over loses nothing.
        or32(&raw mut (*entry).flags_received, u32::from(flags));
    }
    Ok(())
}

/// Reads kernel memory; fails where there is none.
#[inline(always)]
pub unsafe fn read<T>(base: *const u8, offset: u32) -> Result<T, i32> {
    // SAFETY: as in `late`.
    unsafe { bpf_probe_read_kernel(base.add(offset as usize).cast::<T>()) }
}
