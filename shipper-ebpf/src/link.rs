//! Counts every packet at chosen network interfaces: TC, ingress and egress.
//!
//! As at the sockets, each packet is added to `TOTALS`, and to its flow's entry in the interval's map or to `OVERFLOW`.
//! The direction is the link's: what leaves through it is sent by the local side. What has passed through a tunnel is
//! counted once, as the flow within.

use aya_ebpf::{
    EbpfContext,
    bindings::{__sk_buff, BPF_NOEXIST, TC_ACT_UNSPEC},
    helpers::bpf_ktime_get_boot_ns,
    macros::classifier,
    programs::TcContext,
};
use weir_shipper_ebpf::{
    COUNTER_FLOWS_FULL, COUNTER_META_FULL, COUNTER_PARSE_FAILED, EGRESS, END_CLOSED, END_FAILED, END_RESET,
    ERROR_ABORTED, ERROR_REFUSED, INGRESS, LinkKey, LinkMeta, LinkValue, SEEN_END, SEEN_FIN, SEEN_SYN,
    SEEN_SYN_ACK, VANTAGE_INTERFACE, class,
    packet::{FLAG_ACK, FLAG_FIN, FLAG_RST, FLAG_SYN, Load, Packet, TCP, TunnelPorts, network},
    total_index,
};

use crate::{
    atomic::{add, add32, or32},
    maps::{
        GENEVE_PORT, LINK_ETHERNET, LINK_META, LINK_NAMESPACE, OVERFLOW, TOTALS, VXLAN_PORTS, count,
        interval, link_flow, link_flow_new,
    },
    skb::LinkSkb,
};

#[classifier]
pub fn link_ingress(ctx: TcContext) -> i32 {
    packet(ctx.as_ptr().cast(), INGRESS);
    TC_ACT_UNSPEC
}

#[classifier]
pub fn link_egress(ctx: TcContext) -> i32 {
    packet(ctx.as_ptr().cast(), EGRESS);
    TC_ACT_UNSPEC
}

#[inline(always)]
fn packet(skb: *mut __sk_buff, direction: u32) {
    let mut key = LinkKey::ZERO;
    let parsed = parse(skb, direction == EGRESS, &mut key);
    if parsed.cut {
        count(COUNTER_PARSE_FAILED);
    }
    // SAFETY: fields of the context.
    let len = unsafe { (*skb).len };
    let segments = segments(skb, &parsed);
    let bytes = parsed.wire_bytes(len, segments);
    // SAFETY: no arguments.
    let now = unsafe { bpf_ktime_get_boot_ns() };
    let interval = interval();
    let total = total_index(interval, VANTAGE_INTERFACE, class(key.flow.protocol), direction);
    if let Some(cell) = TOTALS.get_ptr_mut(total) {
        // SAFETY: the pointer is into the map. Atomic although per CPU: a softirq may interrupt a sender here.
        unsafe {
            add(&raw mut (*cell).packets, segments);
            add(&raw mut (*cell).bytes, bytes);
        }
    }

    let mut entry = link_flow(interval, &key);
    let fresh = entry.is_none();
    if fresh {
        entry = link_flow_new(interval, &key);
    }
    let mut opened = 0;
    if fresh || parsed.flags & (FLAG_SYN | FLAG_FIN | FLAG_RST) != 0 {
        opened = follow(&key, entry, &parsed, direction, now);
    }
    let Some(entry) = entry else {
        count(COUNTER_FLOWS_FULL);
        if let Some(cell) = OVERFLOW.get_ptr_mut(total) {
            // SAFETY: the pointer is into the map.
            unsafe {
                add(&raw mut (*cell).packets, segments);
                add(&raw mut (*cell).bytes, bytes);
                add(&raw mut (*cell).opened, u64::from(opened));
            }
        }
        return;
    };
    // SAFETY: the pointer is into the map.
    unsafe {
        if opened != 0 {
            add32(&raw mut (*entry).opened, opened);
        }
        if (*entry).first_ns == 0 {
            (*entry).first_ns = now;
        }
        (*entry).last_ns = now;
        if direction == EGRESS {
            add(&raw mut (*entry).sent.packets, segments);
            add(&raw mut (*entry).sent.bytes, bytes);
            or32(&raw mut (*entry).flags_sent, parsed.flags);
        } else {
            add(&raw mut (*entry).received.packets, segments);
            add(&raw mut (*entry).received.bytes, bytes);
            or32(&raw mut (*entry).flags_received, parsed.flags);
        }
        if (*entry).awaiting == direction + 1 && parsed.flags & (FLAG_SYN | FLAG_ACK) == FLAG_ACK {
            (*entry).awaiting = 0;
            (*entry).handshake_us = ((now - (*entry).syn_ns) / 1000) as u32;
        }
    }
}

#[inline(always)]
fn parse(skb: *mut __sk_buff, egress: bool, key: &mut LinkKey) -> Packet {
    let vxlan = VXLAN_PORTS.load();
    let ports =
        TunnelPorts { vxlan: [vxlan as u16, (vxlan >> 16) as u16], geneve: GENEVE_PORT.load() as u16 };
    key.flow.vantage = VANTAGE_INTERFACE;
    // SAFETY: fields of the context.
    unsafe {
        key.flow.cookie = u64::from(LINK_NAMESPACE.load()) << 32 | u64::from((*skb).ifindex);
        // The first tag is beside the packet on the way in, and may be in it on the way out.
        if (*skb).vlan_present != 0 {
            key.tag((*skb).vlan_tci as u16);
        }
        let (mut at, mut ethertype) = (0, (*skb).protocol as u16);
        if LINK_ETHERNET.load() != 0 {
            at = 14;
            // A frame is never shorter: the kernel has read its header.
            ethertype = LinkSkb(skb).load::<2>(12).map_or(0, u16::from_ne_bytes);
        }
        network(&LinkSkb(skb), at, u16::from_be(ethertype), &ports, egress, key)
    }
}

/// Packets on the wire that a GSO or GRO packet stands for.
#[inline(always)]
fn segments(skb: *mut __sk_buff, parsed: &Packet) -> u64 {
    // SAFETY: fields of the context.
    let (segments, size, len) = unsafe { ((*skb).gso_segs, (*skb).gso_size, (*skb).len) };
    if segments > 1 {
        return u64::from(segments);
    }
    // A guest's packet says how large its segments are, not how many.
    let payload = len.saturating_sub(parsed.ip_at + parsed.headers);
    if segments == 0 && size != 0 && payload > size {
        return u64::from(payload.div_ceil(size));
    }
    1
}

/// Follows the flow by its first packet in an interval, and by its SYN, FIN and RST. Returns the connections that this
/// packet opens.
#[inline(always)]
fn follow(key: &LinkKey, entry: Option<*mut LinkValue>, parsed: &Packet, direction: u32, now: u64) -> u32 {
    let made = LinkMeta {
        start_ns: now,
        touched_ns: now,
        isn: 0,
        first_direction: direction + 1,
        seen: 0,
        reserved: 0,
    };
    let mut new = false;
    let mut meta = LINK_META.get_ptr_mut(key);
    if meta.is_none() {
        new = LINK_META.insert(key, &made, u64::from(BPF_NOEXIST)).is_ok();
        meta = LINK_META.get_ptr_mut(key);
    }
    let Some(meta) = meta else {
        count(COUNTER_META_FULL);
        // Nothing else would know that a connection began; a SYN that is sent again counts again.
        return u32::from(key.flow.protocol == TCP && parsed.flags & (FLAG_SYN | FLAG_ACK) == FLAG_SYN);
    };
    // SAFETY: the pointers are into maps.
    unsafe {
        (*meta).touched_ns = now;
        let opened = if key.flow.protocol == TCP {
            connection(meta, new, entry, parsed, direction, now)
        } else {
            u32::from(new && !parsed.later_fragment && key.flow.family != 0)
        };
        if let Some(entry) = entry {
            if (*entry).start_ns == 0 {
                (*entry).start_ns = (*meta).start_ns;
            }
            (*entry).first_direction = (*meta).first_direction;
            (*entry).observed = (*meta).seen & SEEN_SYN;
        }
        opened
    }
}

#[inline(always)]
unsafe fn connection(
    meta: *mut LinkMeta,
    new: bool,
    entry: Option<*mut LinkValue>,
    parsed: &Packet,
    direction: u32,
    now: u64,
) -> u32 {
    let flags = parsed.flags;
    let mut opened = 0;
    let (mut end, mut error) = (0, 0);
    // SAFETY: the pointers are into maps.
    unsafe {
        if flags & FLAG_SYN != 0 && flags & FLAG_ACK == 0 {
            // The same SYN again opens nothing; another one is another connection with the same ports.
            if (*meta).seen & SEEN_SYN == 0 || (*meta).isn != parsed.seq {
                if !new {
                    (*meta).start_ns = now;
                }
                (*meta).isn = parsed.seq;
                (*meta).first_direction = direction + 1;
                (*meta).seen = SEEN_SYN;
                opened = 1;
                if let Some(entry) = entry {
                    (*entry).syn_ns = now;
                    (*entry).awaiting = 0;
                    (*entry).end = 0;
                    (*entry).error = 0;
                }
            }
        } else if flags & FLAG_SYN != 0 {
            if (*meta).seen & SEEN_SYN == 0 {
                // The SYN went another way, or before.
                (*meta).isn = parsed.ack.wrapping_sub(1);
                (*meta).first_direction = 2 - direction;
            }
            (*meta).seen |= SEEN_SYN | SEEN_SYN_ACK;
            if let Some(entry) = entry
                && (*entry).syn_ns != 0
                && (*entry).handshake_us == 0
            {
                (*entry).awaiting = (*meta).first_direction;
            }
        }
        let seen = (*meta).seen;
        if flags & FLAG_RST != 0 {
            end = END_RESET;
            if seen & (SEEN_SYN | SEEN_SYN_ACK) == SEEN_SYN {
                end = END_FAILED;
                error = if direction + 1 == (*meta).first_direction { ERROR_ABORTED } else { ERROR_REFUSED };
            }
        } else if flags & FLAG_FIN != 0 {
            (*meta).seen = seen | SEEN_FIN << direction;
            if (*meta).seen & (SEEN_FIN * 3) == SEEN_FIN * 3 {
                end = END_CLOSED;
            }
        }
        if end != 0 && seen & SEEN_END == 0 {
            (*meta).seen |= SEEN_END;
            if let Some(entry) = entry {
                (*entry).end = end;
                (*entry).error = error;
            }
        }
    }
    opened
}
