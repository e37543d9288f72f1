//! Which process a socket belongs to: connect and sendmsg name clients, send and receive name servers.
//!
//! The tracepoints touch only sockets that have an entry already: a shipper that is attached to a part of the cgroup
//! tree leaves the rest of the host alone.

use aya_ebpf::{
    EbpfContext,
    cty::c_void,
    helpers::{
        bpf_get_current_cgroup_id, bpf_get_current_comm, bpf_get_current_pid_tgid, bpf_get_netns_cookie,
        bpf_get_socket_cookie, bpf_ktime_get_boot_ns,
    },
    macros::{btf_tracepoint, cgroup_sock, cgroup_sock_addr},
    maps::ProgramArray,
    programs::{BtfTracePointContext, SockAddrContext, SockContext},
};
use weir_shipper_ebpf::{COUNTER_TAIL_CALL_FAILED, ROLE_LISTENER, ROLE_UNKNOWN, Sock, packet::TCP};

use crate::maps::{PROG_RECV, PROG_SEND, SOCKS, count, sock};

#[cgroup_sock_addr(connect4)]
pub fn connect4(ctx: SockAddrContext) -> i32 {
    connecting(&ctx);
    1
}

#[cgroup_sock_addr(connect6)]
pub fn connect6(ctx: SockAddrContext) -> i32 {
    connecting(&ctx);
    1
}

#[cgroup_sock_addr(sendmsg4)]
pub fn sendmsg4(ctx: SockAddrContext) -> i32 {
    sending(&ctx);
    1
}

#[cgroup_sock_addr(sendmsg6)]
pub fn sendmsg6(ctx: SockAddrContext) -> i32 {
    sending(&ctx);
    1
}

/// Whoever connects is the owner, also of a socket that was somebody else's.
#[inline(always)]
fn connecting(ctx: &SockAddrContext) {
    // SAFETY: the helpers take this context and no arguments.
    unsafe {
        let (cookie, now) = (bpf_get_socket_cookie(ctx.as_ptr()), bpf_ktime_get_boot_ns());
        let Some((sock, made)) = sock(cookie) else { return };
        if made {
            (*sock).protocol = (*ctx.sock_addr).protocol;
            (*sock).touched_ns = now;
            (*sock).netns = bpf_get_netns_cookie(ctx.as_ptr());
        }
        fill(sock, now);
    }
}

#[inline(always)]
fn sending(ctx: &SockAddrContext) {
    // SAFETY: the helpers take this context and no arguments.
    unsafe {
        let (cookie, now) = (bpf_get_socket_cookie(ctx.as_ptr()), bpf_ktime_get_boot_ns());
        let Some((sock, made)) = sock(cookie) else { return };
        if made {
            (*sock).protocol = (*ctx.sock_addr).protocol;
            (*sock).touched_ns = now;
            (*sock).netns = bpf_get_netns_cookie(ctx.as_ptr());
        }
        if (*sock).pid == 0 {
            fill(sock, now);
        }
    }
}

/// The last descriptor is closed. A TCP connection goes on until its state says so; everything else ends here.
#[cgroup_sock(sock_release)]
pub fn released(ctx: SockContext) -> i32 {
    // SAFETY: the helpers take this context and no arguments; the pointer is into the map.
    unsafe {
        let cookie = bpf_get_socket_cookie(ctx.as_ptr());
        if let Some(sock) = SOCKS.get_ptr_mut(cookie) {
            let idle =
                (*sock).role == ROLE_LISTENER || ((*sock).role == ROLE_UNKNOWN && (*sock).start_ns == 0);
            if (*sock).closed_ns == 0 && ((*sock).protocol != u32::from(TCP) || idle) {
                (*sock).closed_ns = bpf_ktime_get_boot_ns();
            }
        }
    }
    1
}

/// Permanent: links of `tp_btf` cannot be updated, so this one stays and calls the present program.
#[btf_tracepoint(function = "sock_send_length")]
pub fn send_dispatch(ctx: BtfTracePointContext) -> i32 {
    dispatch(&ctx, &PROG_SEND)
}

/// See [`send_dispatch`].
#[btf_tracepoint(function = "sock_recv_length")]
pub fn recv_dispatch(ctx: BtfTracePointContext) -> i32 {
    dispatch(&ctx, &PROG_RECV)
}

#[inline(always)]
fn dispatch(ctx: &BtfTracePointContext, programs: &ProgramArray) -> i32 {
    // SAFETY: both programs have this context.
    unsafe { programs.tail_call(ctx, 0) };
    count(COUNTER_TAIL_CALL_FAILED);
    0
}

/// `sock_send_length(sk, ret, flags)`.
#[btf_tracepoint(function = "sock_send_length")]
pub fn send(ctx: BtfTracePointContext) -> i32 {
    used(ctx.arg(0))
}

/// `sock_recv_length(sk, ret, flags)`.
#[btf_tracepoint(function = "sock_recv_length")]
pub fn recv(ctx: BtfTracePointContext) -> i32 {
    used(ctx.arg(0))
}

/// The first process that sends or receives is the owner of an accepted socket.
#[inline(always)]
pub fn used(sk: *const u8) -> i32 {
    // SAFETY: the helper takes a socket whose type the verifier knows; the pointer is into the map.
    unsafe {
        let cookie = bpf_get_socket_cookie(sk as *mut c_void);
        if let Some(sock) = SOCKS.get_ptr_mut(cookie)
            && (*sock).pid == 0
        {
            fill(sock, bpf_ktime_get_boot_ns());
        }
    }
    0
}

/// Writes the current process into the socket's entry.
#[inline(always)]
pub fn fill(sock: *mut Sock, now: u64) {
    let id = bpf_get_current_pid_tgid();
    // SAFETY: the pointer is into the map.
    unsafe {
        (*sock).comm = bpf_get_current_comm().unwrap_or([0; 16]);
        (*sock).owner_cgroup = bpf_get_current_cgroup_id();
        (*sock).owner_ns = now;
        (*sock).tid = id as u32;
        (*sock).pid = (id >> 32) as u32;
    }
}
