//! How a connection ended. Called by `sock_ops` and by the tracepoint of state changes, whichever comes first.

use weir_shipper_ebpf::{
    EGRESS, END_ABORTED, END_CLOSED, END_FAILED, END_RESET, END_TIMED_OUT, ERROR_ABORTED, ERROR_NO_NEIGHBOUR,
    ERROR_REFUSED, ERROR_TIMED_OUT, ERROR_UNREACHABLE, ROLE_LISTENER, RST_RECEIVED, RST_SENT, Sock,
    VANTAGE_SOCKET, class,
};

use crate::{
    atomic::take32,
    maps::{flow, flow_new, interval, opened},
};

/// The kernel's TCP states (include/net/tcp_states.h).
pub const ESTABLISHED: u32 = 1;
pub const SYN_SENT: u32 = 2;
pub const FIN_WAIT1: u32 = 4;
pub const CLOSE: u32 = 7;
pub const CLOSE_WAIT: u32 = 8;

// include/uapi/asm-generic/errno.h; what ICMP is turned into: net/ipv4/icmp.c, net/ipv6/icmp.c.
const EACCES: u32 = 13;
const ENONET: u32 = 64;
const ENOPROTOOPT: u32 = 92;
const ENETUNREACH: u32 = 101;
const ETIMEDOUT: u32 = 110;
const ECONNREFUSED: u32 = 111;
const EHOSTDOWN: u32 = 112;
const EHOSTUNREACH: u32 = 113;

/// Writes the end into the socket's entry and into the interval's flow, with an entry of no packets if need be: so
/// the end is drained even when the connection's last packet was drained before.
#[inline(always)]
pub fn closed(sock: *mut Sock, old: u32, now: u64) {
    // SAFETY: the pointer is into the map.
    unsafe {
        if (*sock).closed_ns != 0 {
            return;
        }
        (*sock).closed_ns = now;
        if (*sock).role == ROLE_LISTENER || (*sock).start_ns == 0 {
            return;
        }
        let (end, error) = outcome(&*sock, old);
        (*sock).end = end;
        (*sock).error = error;
        let interval = interval();
        let key = (*sock).key;
        let mut entry = flow(interval, &key);
        if entry.is_none() {
            entry = flow_new(interval, &key);
        }
        opened(
            interval,
            entry,
            VANTAGE_SOCKET,
            class(key.protocol),
            EGRESS,
            take32(&raw mut (*sock).pending),
        );
        if let Some(entry) = entry {
            (*entry).end = end;
            (*entry).error = error;
            (*entry).state = CLOSE;
            if (*entry).first_ns == 0 {
                (*entry).first_ns = now;
            }
            (*entry).last_ns = now;
        }
    }
}

/// Says with the kernel's own error why a connection never came about. ICMP is seen in no other way. A next hop without
/// a link address makes the kernel send itself ICMP: that is known already.
#[inline(always)]
pub fn explained(sock: *mut Sock, errno: u32) {
    let error = match errno {
        ECONNREFUSED => ERROR_REFUSED,
        ETIMEDOUT => ERROR_TIMED_OUT,
        EACCES | ENONET | ENOPROTOOPT | ENETUNREACH | EHOSTDOWN | EHOSTUNREACH => ERROR_UNREACHABLE,
        _ => return,
    };
    // SAFETY: the pointers are into maps.
    unsafe {
        if (*sock).end != END_FAILED || (*sock).error == ERROR_NO_NEIGHBOUR {
            return;
        }
        (*sock).error = error;
        let key = (*sock).key;
        if let Some(entry) = flow(interval(), &key)
            && (*entry).end == END_FAILED
        {
            (*entry).error = error;
        }
    }
}

/// End and error of a connection that goes from `old` to CLOSE.
#[inline(always)]
fn outcome(sock: &Sock, old: u32) -> (u32, u32) {
    let Sock { rst, timeouts, retransmits, .. } = *sock;
    if old == SYN_SENT {
        let error = if rst & RST_RECEIVED != 0 {
            ERROR_REFUSED
        } else if retransmits != 0 {
            ERROR_TIMED_OUT
        } else if timeouts != 0 {
            ERROR_NO_NEIGHBOUR
        } else {
            ERROR_ABORTED
        };
        return (END_FAILED, error);
    }
    let end = if rst & RST_RECEIVED != 0 {
        END_RESET
    } else if rst & RST_SENT != 0 {
        END_ABORTED
    } else if matches!(old, ESTABLISHED | FIN_WAIT1) && timeouts != 0 {
        END_TIMED_OUT
    } else if matches!(old, ESTABLISHED | CLOSE_WAIT) {
        END_ABORTED
    } else {
        END_CLOSED
    };
    (end, 0)
}
