//! Owners on kernels before 6.3, which lack the tracepoints `sock_send_length` and `sock_recv_length`: the functions
//! that every TCP, UDP and raw socket sends and receives by, entered by fentry (kernel 5.12 gives it the cookie).
//!
//! These have no dispatcher: their links are replaced by new ones, and what an exchange misses in between is named by
//! the socket's next use.

use aya_ebpf::{macros::fentry, programs::FEntryContext};

use crate::{maps::OFF_SOCKET_SK, owner::used};

/// `inet_sendmsg(sock, msg, size)`
#[fentry(function = "inet_sendmsg")]
pub fn inet_sendmsg(ctx: FEntryContext) -> i32 {
    of_socket(&ctx)
}

/// `inet_recvmsg(sock, msg, size, flags)`
#[fentry(function = "inet_recvmsg")]
pub fn inet_recvmsg(ctx: FEntryContext) -> i32 {
    of_socket(&ctx)
}

/// As [`inet_sendmsg`], of IPv6 sockets.
#[fentry(function = "inet6_sendmsg")]
pub fn inet6_sendmsg(ctx: FEntryContext) -> i32 {
    of_socket(&ctx)
}

/// As [`inet_recvmsg`], of IPv6 sockets.
#[fentry(function = "inet6_recvmsg")]
pub fn inet6_recvmsg(ctx: FEntryContext) -> i32 {
    of_socket(&ctx)
}

/// `struct socket` has the `struct sock`. Loaded directly, not by a helper: the verifier follows the type, and the
/// cookie's helper asks for it.
#[inline(always)]
fn of_socket(ctx: &FEntryContext) -> i32 {
    let socket: *const u8 = ctx.arg(0);
    // SAFETY: the offset is a constant to the verifier (a frozen global) and of this kernel's BTF; the verifier checks
    // the load.
    let sk = unsafe { socket.add(OFF_SOCKET_SK.load() as usize).cast::<*const u8>().read_volatile() };
    used(sk)
}
