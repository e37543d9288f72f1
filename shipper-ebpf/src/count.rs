//! Counts every packet of every local socket: `cgroup_skb`, ingress and egress.
//!
//! Each packet is added to `TOTALS`, and to its flow's entry in the interval's map or, where that has no room, to
//! `OVERFLOW`. So totals = flows + overflow, per interval, class and direction, always.

use aya_ebpf::{
    EbpfContext,
    bindings::{__sk_buff, BPF_NOEXIST, bpf_tcp_sock},
    helpers::{
        bpf_get_socket_cookie, bpf_ktime_get_boot_ns, bpf_sk_fullsock, bpf_skb_cgroup_id, bpf_tcp_sock,
    },
    macros::cgroup_skb,
    programs::SkBuffContext,
};
use weir_shipper_ebpf::{
    COUNTER_COPIES, COUNTER_FLOWS_FULL, COUNTER_META_FULL, COUNTER_PARSE_FAILED, EGRESS, END_ABORTED,
    FlowKey, FlowValue, INGRESS, Meta, ROLE_CLIENT, RST_RECEIVED, RST_SENT, VANTAGE_SOCKET, class,
    packet::{FLAG_RST, FLAG_SYN, SCTP, TCP, UDP, ip},
    total_index,
};

use crate::{
    again::again,
    atomic::{add, add32, or32, replace32, take32},
    maps::{META, OVERFLOW, SOCKS, TOTALS, count, flow, flow_new, interval, opened, sock},
    skb::Skb,
};

const SOCK_STREAM: u32 = 1;
const SOCK_RAW: u32 = 3;
const STATE_SYN_SENT: u32 = 2;
const STATE_LISTEN: u32 = 10;

#[cgroup_skb(ingress)]
pub fn skb_ingress(ctx: SkBuffContext) -> i32 {
    packet(ctx.as_ptr().cast(), INGRESS);
    1
}

#[cgroup_skb(egress)]
pub fn skb_egress(ctx: SkBuffContext) -> i32 {
    packet(ctx.as_ptr().cast(), EGRESS);
    1
}

/// What the packet's socket says.
struct Socket {
    tcp: *mut bpf_tcp_sock,
    state: u32,
    listener: bool,
}

/// A field of the kernel's socket. Volatile, or LLVM merges reads into widths that the kernel refuses.
macro_rules! field {
    ($place:expr) => {
        core::ptr::read_volatile(&raw const $place)
    };
}

#[inline(always)]
fn packet(skb: *mut __sk_buff, direction: u32) {
    let egress = direction == EGRESS;
    let mut key = FlowKey::ZERO;
    key.vantage = VANTAGE_SOCKET;
    let parsed = ip(&Skb(skb), 0, egress, &mut key);
    if parsed.cut {
        count(COUNTER_PARSE_FAILED);
    }
    let (headers, flags) = (parsed.headers, parsed.flags);
    // SAFETY: the helper takes this context.
    key.cookie = unsafe { bpf_get_socket_cookie(skb.cast()) };
    let Some(socket) = socket(skb, egress, &mut key) else { return count(COUNTER_COPIES) };

    // SAFETY: fields of the context.
    let (len, segments) = unsafe { ((*skb).len, u64::from((*skb).gso_segs)) };
    if !egress && key.protocol == TCP && key.cookie != 0 && again(&key, &parsed, len, socket.listener) {
        return count(COUNTER_COPIES);
    }
    let len = u64::from(len);
    let segments = if segments > 1 { segments } else { 1 };
    let bytes = len + (segments - 1) * u64::from(headers);
    // SAFETY: no arguments.
    let now = unsafe { bpf_ktime_get_boot_ns() };
    let interval = interval();
    let total = total_index(interval, VANTAGE_SOCKET, class(key.protocol), direction);
    if let Some(cell) = TOTALS.get_ptr_mut(total) {
        // SAFETY: the pointer is into the map. Atomic although per CPU: a softirq may interrupt a sender here.
        unsafe {
            add(&raw mut (*cell).packets, segments);
            add(&raw mut (*cell).bytes, bytes);
        }
    }

    let mut entry = flow(interval, &key);
    let fresh = entry.is_none();
    if fresh {
        entry = flow_new(interval, &key);
    }
    let connection = key.protocol == TCP && key.cookie != 0;
    // A socket that connects again keeps its cookie, perhaps its ports too: its SYN asks again.
    if fresh || (connection && flags & FLAG_SYN != 0) {
        let new = if !connection {
            without_connection(&key, entry, direction, now)
        } else if socket.listener {
            0
        } else {
            of_connection(skb, &key, &socket, now)
        };
        opened(interval, entry, VANTAGE_SOCKET, class(key.protocol), direction, new);
    }
    if connection
        && socket.state != STATE_SYN_SENT
        && let Some(entry) = entry
    {
        // SAFETY: the pointer is into the map.
        let before = unsafe { (*entry).state };
        if fresh || before == STATE_SYN_SENT {
            shaken(key.cookie, entry);
        }
    }
    if connection && flags & FLAG_RST != 0 && !socket.listener {
        reset(key.cookie, egress, entry);
    }
    let Some(entry) = entry else {
        count(COUNTER_FLOWS_FULL);
        if let Some(cell) = OVERFLOW.get_ptr_mut(total) {
            // SAFETY: the pointer is into the map.
            unsafe {
                add(&raw mut (*cell).packets, segments);
                add(&raw mut (*cell).bytes, bytes);
            }
        }
        return;
    };
    // SAFETY: the pointer is into the map.
    unsafe {
        if (*entry).cgroup == 0 {
            (*entry).cgroup = bpf_skb_cgroup_id(skb);
        }
        if (*entry).first_ns == 0 {
            (*entry).first_ns = now;
        }
        (*entry).last_ns = now;
        if egress {
            add(&raw mut (*entry).sent.packets, segments);
            add(&raw mut (*entry).sent.bytes, bytes);
            or32(&raw mut (*entry).flags_sent, flags);
        } else {
            add(&raw mut (*entry).received.packets, segments);
            add(&raw mut (*entry).received.bytes, bytes);
            or32(&raw mut (*entry).flags_received, flags);
        }
        if socket.listener {
            add32(&raw mut (*entry).listener, 1);
        }
        if socket.state != 0 {
            (*entry).state = socket.state;
        }
    }
    health(entry, &socket, key.cookie);
}

/// Reads the socket behind the packet and settles whose the packet is. `None` for a raw socket's copy of a packet
/// that another socket receives.
#[inline(always)]
fn socket(skb: *mut __sk_buff, egress: bool, key: &mut FlowKey) -> Option<Socket> {
    let mut socket = Socket { tcp: core::ptr::null_mut(), state: 0, listener: false };
    let tcp = key.protocol == TCP;
    // SAFETY: the order of walk and null checks is the one that the verifier asks for.
    unsafe {
        let mut sk = (*skb).__bindgen_anon_2.sk;
        if !sk.is_null() {
            sk = bpf_sk_fullsock(sk);
        }
        if sk.is_null() {
            // TIME_WAIT and request sockets: no connection that a record could be tied to.
            if tcp {
                key.cookie = 0;
            }
            return Some(socket);
        }
        let kind = field!((*sk).type_);
        if !egress && kind == SOCK_RAW && (tcp || key.protocol == UDP || key.protocol == SCTP) {
            return None;
        }
        if tcp {
            if kind != SOCK_STREAM {
                // The kernel's own socket for resets: its cookie says nothing, its tcp_sock would be garbage.
                key.cookie = 0;
                return Some(socket);
            }
            socket.state = field!((*sk).state);
            if socket.state == STATE_LISTEN {
                socket.listener = true;
            } else {
                socket.tcp = bpf_tcp_sock(sk);
            }
        }
    }
    Some(socket)
}

/// First packet of a connection in this interval: ties it to its socket. Returns the connections that it opens.
#[inline(always)]
fn of_connection(skb: *mut __sk_buff, key: &FlowKey, socket: &Socket, now: u64) -> u32 {
    let Some((sock, made)) = sock(key.cookie) else { return 0 };
    // SAFETY: the pointer is into the map.
    unsafe {
        if made {
            (*sock).protocol = u32::from(TCP);
        }
        if (made || (*sock).retransmits_seen == u32::MAX) && !socket.tcp.is_null() {
            // What was retransmitted before the first sight belongs to no interval.
            (*sock).retransmits_seen = field!((*socket.tcp).total_retrans);
        }
        if (*sock).start_ns == 0 {
            (*sock).start_ns = now;
            (*sock).key = *key;
        }
        if (*sock).cgroup == 0 {
            (*sock).cgroup = bpf_skb_cgroup_id(skb);
        }
        (*sock).touched_ns = now;
        take32(&raw mut (*sock).pending)
    }
}

/// The first packet since a client's handshake ended, its last acknowledgement or later, tells the interval which one it
/// ended in. Times can't: the map may change between the answer and that packet.
#[inline(always)]
fn shaken(cookie: u64, entry: *mut FlowValue) {
    let Some(sock) = SOCKS.get_ptr_mut(cookie) else { return };
    // SAFETY: the pointers are into maps.
    unsafe {
        if (*sock).role == ROLE_CLIENT && (*sock).handshake != 0 {
            (*sock).handshake = 0;
            (*entry).established = 1;
        }
    }
}

/// First packet of anything else in this interval: start and direction come from `META`. Returns 1 when the flow
/// begins here. TCP without a socket is a reset or a late acknowledgement: it opens nothing.
#[inline(always)]
fn without_connection(key: &FlowKey, entry: Option<*mut FlowValue>, direction: u32, now: u64) -> u32 {
    if key.cookie != 0
        && let Some((sock, made)) = sock(key.cookie)
    {
        // SAFETY: the pointer is into the map.
        unsafe {
            if made {
                (*sock).protocol = u32::from(key.protocol);
            }
            (*sock).touched_ns = now;
        }
    }
    let (mut start, mut first, mut new) = (now, direction + 1, 0);
    if let Some(meta) = META.get_ptr_mut(key) {
        // SAFETY: the pointer is into the map.
        unsafe {
            start = (*meta).start_ns;
            first = (*meta).first_direction;
            (*meta).touched_ns = now;
        }
    } else {
        let meta = Meta { start_ns: now, touched_ns: now, first_direction: first, reserved: 0 };
        match META.insert(key, &meta, u64::from(BPF_NOEXIST)) {
            Ok(()) => new = u32::from(key.protocol != TCP),
            Err(error) if error == -EEXIST => {}
            Err(_) => {
                count(COUNTER_META_FULL);
                start = 0;
            }
        }
    }
    if let Some(entry) = entry {
        // SAFETY: the pointer is into the map.
        unsafe {
            (*entry).start_ns = start;
            (*entry).first_direction = first;
        }
    }
    new
}

const EEXIST: i32 = 17;

/// Remembers a reset: it decides how the connection is said to have ended.
#[inline(always)]
fn reset(cookie: u64, egress: bool, entry: Option<*mut FlowValue>) {
    let Some(sock) = SOCKS.get_ptr_mut(cookie) else { return };
    // SAFETY: the pointers are into maps.
    unsafe {
        or32(&raw mut (*sock).rst, if egress { RST_SENT } else { RST_RECEIVED });
        // A socket with unread data, or one that lingers for no time, is closed first and resets after.
        if egress && (*sock).closed_ns != 0 && (*sock).error == 0 {
            (*sock).end = END_ABORTED;
            if let Some(entry) = entry {
                (*entry).end = END_ABORTED;
            }
        }
    }
}

/// Round-trip times and retransmissions, from the stable `bpf_tcp_sock`.
#[inline(always)]
fn health(entry: *mut FlowValue, socket: &Socket, cookie: u64) {
    let tcp = socket.tcp;
    if tcp.is_null() {
        return;
    }
    // The kernel keeps eight times the value, and u32::MAX for a minimum not yet known.
    // SAFETY: the verifier knows the pointer's type and has seen its null check.
    let (srtt, rtt_min, retransmits) =
        unsafe { (field!((*tcp).srtt_us) >> 3, field!((*tcp).rtt_min), field!((*tcp).total_retrans)) };
    // SAFETY: the pointers are into maps.
    unsafe {
        (*entry).srtt_us = srtt;
        if srtt > (*entry).srtt_max_us {
            (*entry).srtt_max_us = srtt;
        }
        if rtt_min != u32::MAX {
            (*entry).rtt_min_us = rtt_min;
        }
        if retransmits == (*entry).retransmits_cached {
            return;
        }
        (*entry).retransmits_cached = retransmits;
        if let Some(sock) = SOCKS.get_ptr_mut(cookie) {
            let seen = (*sock).retransmits_seen;
            // Whoever moves `seen` adds the difference: two CPUs never both do.
            if retransmits > seen && replace32(&raw mut (*sock).retransmits_seen, seen, retransmits) {
                add32(&raw mut (*entry).retransmits, retransmits - seen);
            }
        }
    }
}
