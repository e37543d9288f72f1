//! The life of a TCP socket: `sock_ops`, and the tracepoint of state changes for sockets older than the programs.
//!
//! `sock_ops` returns 1 and never writes `reply`: some operations are questions to which it must give no answer.

use aya_ebpf::{
    bindings::bpf_sock_ops,
    cty::c_void,
    helpers::{bpf_get_netns_cookie, bpf_get_socket_cookie, bpf_ktime_get_boot_ns},
    macros::{btf_tracepoint, sock_ops},
    programs::{BtfTracePointContext, SockOpsContext},
};
use weir_shipper_ebpf::{
    COUNTER_TAIL_CALL_FAILED, EGRESS, FlowKey, INGRESS, ROLE_CLIENT, ROLE_LISTENER, ROLE_SERVER, Sock,
    VANTAGE_SOCKET, class, packet::TCP,
};

use crate::{
    again,
    atomic::{add32, take32},
    close::{CLOSE, SYN_SENT, closed, explained},
    maps::{
        HAS_SOCKOPS_CURRENT, HAS_SOCKOPS_NETNS, OFF_SK_ERR, PROG_STATE, SOCKS, count, flow, flow_new,
        interval, opened, sock,
    },
    owner,
    timewait::read,
};

// include/uapi/linux/bpf.h, enum bpf_sock_ops_op.
const CONNECT: u32 = 3;
const ACTIVE_ESTABLISHED: u32 = 4;
const PASSIVE_ESTABLISHED: u32 = 5;
const RTO: u32 = 8;
const RETRANS: u32 = 9;
const STATE: u32 = 10;
const LISTEN: u32 = 11;
/// RTO, RETRANS and STATE. Not RTT: it fires on every acknowledgement.
const CALLBACKS: i32 = 7;
const AF_INET6: u32 = 10;

/// A word of the context, by itself.
macro_rules! word {
    ($place:expr) => {
        core::ptr::read_volatile(&raw const $place)
    };
}

#[sock_ops]
pub fn sock_events(ctx: SockOpsContext) -> u32 {
    let op = ctx.op();
    if op < CONNECT || op == 6 || op == 7 || op > LISTEN {
        return 1;
    }
    // SAFETY: the helpers take this context and no arguments.
    let (cookie, now) = unsafe { (bpf_get_socket_cookie(ctx.ops.cast()), bpf_ktime_get_boot_ns()) };
    match op {
        CONNECT => connect(&ctx, cookie, now),
        PASSIVE_ESTABLISHED => accepted(&ctx, cookie, now),
        LISTEN => listening(&ctx, cookie, now),
        _ => {
            let Some(sock) = SOCKS.get_ptr_mut(cookie) else { return 1 };
            // SAFETY: the pointer is into the map.
            unsafe {
                match op {
                    ACTIVE_ESTABLISHED => {
                        (*sock).established_ns = now;
                        (*sock).handshake = 1;
                    }
                    RTO => add32(&raw mut (*sock).timeouts, 1),
                    RETRANS => add32(&raw mut (*sock).retransmits, ctx.arg(1)),
                    STATE if ctx.arg(1) == CLOSE => closed(sock, ctx.arg(0), now),
                    _ => {}
                }
            }
        }
    }
    1
}

/// The SYN follows. A socket may connect again: everything but its owner begins anew.
#[inline(always)]
fn connect(ctx: &SockOpsContext, cookie: u64, now: u64) {
    let _unsupported = ctx.set_cb_flags(CALLBACKS);
    let Some((sock, _)) = sock(cookie) else { return unnamed(EGRESS) };
    begin(ctx, sock, cookie, ROLE_CLIENT, now);
    // SAFETY: the pointer is into the map.
    unsafe {
        (*sock).connect_ns = now;
        (*sock).established_ns = 0;
        (*sock).handshake = 0;
        add32(&raw mut (*sock).pending, 1);
    }
}

/// A child of a listener. It is counted as opened at once, by an entry of no packets: the handshake's packets carried
/// the listener's cookie.
#[inline(always)]
fn accepted(ctx: &SockOpsContext, cookie: u64, now: u64) {
    again::forget();
    let _unsupported = ctx.set_cb_flags(CALLBACKS);
    let Some((sock, _)) = sock(cookie) else { return unnamed(INGRESS) };
    begin(ctx, sock, cookie, ROLE_SERVER, now);
    let interval = interval();
    // SAFETY: the pointers are into maps.
    unsafe {
        (*sock).established_ns = now;
        // The first sample is the handshake's. The kernel keeps eight times the value.
        let answered = word!((*ctx.ops).srtt_us) >> 3;
        (*sock).handshake = if answered == 0 { 1 } else { answered };
        add32(&raw mut (*sock).pending, 1);
        let key = (*sock).key;
        let mut entry = flow(interval, &key);
        if entry.is_none() {
            entry = flow_new(interval, &key);
        }
        opened(interval, entry, VANTAGE_SOCKET, class(TCP), INGRESS, take32(&raw mut (*sock).pending));
        if let Some(entry) = entry {
            if (*entry).first_ns == 0 {
                (*entry).first_ns = now;
            }
            (*entry).last_ns = now;
            (*entry).state = 1;
            (*entry).established = 1;
        }
    }
}

/// Counts a connection whose socket does not fit: nothing else would know that it is one.
#[inline(always)]
fn unnamed(direction: u32) {
    opened(interval(), None, VANTAGE_SOCKET, class(TCP), direction, 1);
}

#[inline(always)]
fn listening(ctx: &SockOpsContext, cookie: u64, now: u64) {
    let Some((sock, _)) = sock(cookie) else { return };
    begin(ctx, sock, cookie, ROLE_LISTENER, now);
    if HAS_SOCKOPS_CURRENT.load() != 0 {
        owner::fill(sock, now);
    }
}

#[inline(always)]
fn begin(ctx: &SockOpsContext, sock: *mut Sock, cookie: u64, role: u32, now: u64) {
    // SAFETY: the pointer is into the map; the helper takes this context.
    unsafe {
        (*sock).key = own_key(ctx, cookie);
        (*sock).protocol = u32::from(TCP);
        (*sock).role = role;
        (*sock).start_ns = now;
        (*sock).touched_ns = now;
        (*sock).closed_ns = 0;
        (*sock).retransmits_seen = 0;
        (*sock).timeouts = 0;
        (*sock).retransmits = 0;
        (*sock).rst = 0;
        (*sock).end = 0;
        (*sock).error = 0;
        if HAS_SOCKOPS_NETNS.load() != 0 {
            (*sock).netns = bpf_get_netns_cookie(ctx.ops.cast());
        }
    }
}

/// The key that the socket's packets will have, were there no translation in between.
#[inline(always)]
fn own_key(ctx: &SockOpsContext, cookie: u64) -> FlowKey {
    let ops: *mut bpf_sock_ops = ctx.ops;
    let mut key = FlowKey::ZERO;
    key.cookie = cookie;
    key.protocol = TCP;
    key.vantage = VANTAGE_SOCKET;
    key.local_port = ctx.local_port() as u16;
    let mapped = u32::to_be(0xffff);
    // SAFETY: fields of the context. Each is read by itself, at a constant offset: the verifier refuses a pointer into
    // the context that has been moved, which is what LLVM makes of copied arrays.
    let (local, remote) = unsafe {
        key.remote_port = u32::from_be(word!((*ops).remote_port)) as u16;
        if ctx.family() == AF_INET6 {
            (
                [
                    word!((*ops).local_ip6[0]),
                    word!((*ops).local_ip6[1]),
                    word!((*ops).local_ip6[2]),
                    word!((*ops).local_ip6[3]),
                ],
                [
                    word!((*ops).remote_ip6[0]),
                    word!((*ops).remote_ip6[1]),
                    word!((*ops).remote_ip6[2]),
                    word!((*ops).remote_ip6[3]),
                ],
            )
        } else {
            ([0, 0, mapped, word!((*ops).local_ip4)], [0, 0, mapped, word!((*ops).remote_ip4)])
        }
    };
    key.family = if remote[0] == 0 && remote[1] == 0 && remote[2] == mapped { 4 } else { 6 };
    for word in 0..4 {
        key.local[word * 4..word * 4 + 4].copy_from_slice(&local[word].to_ne_bytes());
        key.remote[word * 4..word * 4 + 4].copy_from_slice(&remote[word].to_ne_bytes());
    }
    key
}

/// Permanent: links of `tp_btf` cannot be updated, so this one stays and calls the present program.
#[btf_tracepoint(function = "inet_sock_set_state")]
pub fn state_dispatch(ctx: BtfTracePointContext) -> i32 {
    // SAFETY: both programs have this context.
    unsafe { PROG_STATE.tail_call(&ctx, 0) };
    count(COUNTER_TAIL_CALL_FAILED);
    0
}

/// `inet_sock_set_state(sk, old, new)`: the end of sockets that `sock_ops` does not follow.
#[btf_tracepoint(function = "inet_sock_set_state")]
pub fn state(ctx: BtfTracePointContext) -> i32 {
    let new: i32 = ctx.arg(2);
    if new as u32 != CLOSE {
        return 0;
    }
    let sk: *const u8 = ctx.arg(0);
    let old: i32 = ctx.arg(1);
    // SAFETY: the helper takes a socket of a tracepoint's arguments.
    let (cookie, now) = unsafe { (bpf_get_socket_cookie(sk as *mut c_void), bpf_ktime_get_boot_ns()) };
    if let Some(sock) = SOCKS.get_ptr_mut(cookie) {
        closed(sock, old as u32, now);
        // `sock_ops` was told first, but not why.
        if old as u32 == SYN_SENT && OFF_SK_ERR.load() != 0 {
            // SAFETY: a read of kernel memory by a helper that fails where there is none.
            if let Ok(errno) = unsafe { read::<u32>(sk, OFF_SK_ERR.load()) } {
                explained(sock, errno);
            }
        }
    }
    0
}
