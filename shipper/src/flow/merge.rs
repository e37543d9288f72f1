//! Brings together what the kernel counts apart: a server's handshake, which carries its listener's cookie, and the
//! two views that one socket has of a translated connection.

use std::collections::HashMap;

use foldhash::fast::FixedState;
use weir_shipper_ebpf::{FlowKey, FlowValue, ROLE_SERVER, Sock};

const TCP: u8 = 6;
const FLAG_SYN: u32 = 2;
const FLAG_RST: u32 = 4;

/// One flow of one interval, on its way to a record.
#[derive(Clone, Debug)]
pub(crate) struct Entry {
    pub key: FlowKey,
    pub value: FlowValue,
    /// Cookie of the listener that the handshake came in by, 0 for none.
    pub listener: u64,
    /// First packet of that handshake, boot time, 0 for none.
    pub handshake_ns: u64,
    /// The socket's own tuple, where packets carry another.
    pub own: Option<FlowKey>,
}

/// Sockets by cookie.
pub(crate) type Socks = HashMap<u64, Sock, FixedState>;

type Tuple = ([u8; 16], [u8; 16], u16, u16);

/// Turns what was drained into entries, one per connection.
pub(crate) fn merge(flows: Vec<(FlowKey, FlowValue)>, socks: &Socks) -> Vec<Entry> {
    let (handshakes, mut entries): (Vec<_>, Vec<_>) = flows
        .into_iter()
        .map(|(key, value)| Entry { key, value, listener: 0, handshake_ns: 0, own: None })
        .partition(|entry| entry.value.listener != 0);
    if !handshakes.is_empty() {
        join_handshakes(handshakes, &mut entries, socks);
    }
    join_translations(join_afterlife(entries, socks), socks)
}

/// Adds the packets of each handshake to the child that came of it. Bytes stay exact whichever child it is: of two
/// that reused a tuple within one interval, one takes all. A handshake without a child stays: it is half-open.
fn join_handshakes(handshakes: Vec<Entry>, entries: &mut Vec<Entry>, socks: &Socks) {
    let mut children: HashMap<Tuple, usize, FixedState> = HashMap::default();
    for (index, entry) in entries.iter().enumerate() {
        if is_connection(&entry.key) {
            children.insert(tuple(&entry.key), index);
        }
    }
    // Made when first needed: most handshakes end in the interval that they began in.
    let mut accepted: Option<HashMap<Tuple, u64, FixedState>> = None;
    for mut handshake in handshakes {
        let listener = handshake.key.cookie;
        if let Some(index) = children.get(&tuple(&handshake.key)) {
            let child = &mut entries[*index];
            child.listener = listener;
            child.handshake_ns = asked_ns(&handshake.value);
            add(&mut child.value, &handshake.value);
            continue;
        }
        let accepted = accepted.get_or_insert_with(|| {
            let servers = socks.iter().filter(|(_, sock)| sock.role == ROLE_SERVER);
            servers.map(|(cookie, sock)| (tuple(&sock.key), *cookie)).collect()
        });
        handshake.listener = listener;
        handshake.handshake_ns = asked_ns(&handshake.value);
        if let Some(child) = accepted.get(&tuple(&handshake.key)) {
            handshake.key.cookie = *child;
            handshake.value.listener = 0;
        }
        // The SYN-ACK of a translated handshake has another tuple than its SYN: both stay, under the same listener.
        entries.push(handshake);
    }
}

/// When the handshake's SYN arrived; 0 when it did in an interval before, and this one has only the last acknowledgement.
fn asked_ns(handshake: &FlowValue) -> u64 {
    if handshake.flags_received & FLAG_SYN != 0 { handshake.first_ns } else { 0 }
}

/// Acknowledgements that the kernel sends for a socket in TIME_WAIT carry no cookie. They belong to the connection that
/// had the tuple last; without one they stay.
fn join_afterlife(entries: Vec<Entry>, socks: &Socks) -> Vec<Entry> {
    let orphan = |entry: &Entry| {
        let Entry { key, value, .. } = entry;
        key.protocol == TCP && key.cookie == 0 && value.flags_sent & FLAG_RST == 0
    };
    if !entries.iter().any(orphan) {
        return entries;
    }
    let (orphans, mut entries): (Vec<Entry>, Vec<Entry>) = entries.into_iter().partition(orphan);
    let mut last: HashMap<Tuple, usize, FixedState> = HashMap::default();
    for (index, Entry { key, value, .. }) in entries.iter().enumerate().filter(|(_, e)| is_connection(&e.key))
    {
        let later = |other: &usize| entries[*other].value.first_ns < value.first_ns;
        if last.get(&tuple(key)).is_none_or(later) {
            last.insert(tuple(key), index);
        }
    }
    let mut ended: HashMap<Tuple, (u64, u64), FixedState> = HashMap::default();
    for (cookie, sock) in socks.iter().filter(|(_, sock)| sock.closed_ns != 0 && is_connection(&sock.key)) {
        let seen = ended.entry(tuple(&sock.key)).or_insert((sock.start_ns, *cookie));
        *seen = (*seen).max((sock.start_ns, *cookie));
    }
    for mut orphan in orphans {
        if let Some(index) = last.get(&tuple(&orphan.key)) {
            add(&mut entries[*index].value, &orphan.value);
            continue;
        }
        if let Some((_, cookie)) = ended.get(&tuple(&orphan.key)) {
            orphan.key.cookie = *cookie;
            orphan.value.start_ns = 0;
            orphan.value.first_direction = 0;
        }
        entries.push(orphan);
    }
    entries
}

/// With translation in the socket's own namespace packets leave with one tuple and arrive with another. They are one
/// connection: the record has the packets' addresses, and the socket's own beside them.
fn join_translations(entries: Vec<Entry>, socks: &Socks) -> Vec<Entry> {
    let own_index: HashMap<u64, usize, FixedState> = entries
        .iter()
        .enumerate()
        .filter(|(_, entry)| {
            is_connection(&entry.key)
                && socks.get(&entry.key.cookie).is_some_and(|sock| sock.key == entry.key)
        })
        .map(|(index, entry)| (entry.key.cookie, index))
        .collect();
    let mut joined: Vec<Option<Entry>> = entries.into_iter().map(Some).collect();
    for index in 0..joined.len() {
        let Some(entry) = &joined[index] else { continue };
        if !is_connection(&entry.key) || entry.value.sent.packets == 0 || entry.value.received.packets != 0 {
            continue;
        }
        let Some(own) = own_index.get(&entry.key.cookie).copied().filter(|own| *own != index) else {
            continue;
        };
        let one_way = joined[own].as_ref().is_some_and(|own| own.value.sent.packets == 0);
        if !one_way {
            continue;
        }
        let Some(inner) = joined[own].take() else { continue };
        if let Some(outer) = &mut joined[index] {
            add(&mut outer.value, &inner.value);
            outer.own = Some(inner.key);
            outer.listener = outer.listener.max(inner.listener);
            outer.handshake_ns = outer.handshake_ns.max(inner.handshake_ns);
        }
    }
    joined.into_iter().flatten().collect()
}

/// Adds one count to another. What is a state, not a count, is the later one's.
fn add(into: &mut FlowValue, from: &FlowValue) {
    let FlowValue {
        sent,
        received,
        first_ns,
        last_ns,
        start_ns: _,
        cgroup,
        flags_sent,
        flags_received,
        opened,
        first_direction: _,
        state,
        listener: _,
        srtt_us,
        srtt_max_us,
        rtt_min_us,
        retransmits,
        retransmits_cached: _,
        end,
        error,
        established,
    } = *from;
    into.established |= established;
    into.sent.packets += sent.packets;
    into.sent.bytes += sent.bytes;
    into.received.packets += received.packets;
    into.received.bytes += received.bytes;
    if from.listener == 0 && from.state != 0 && last_ns > into.last_ns {
        into.state = state;
        into.srtt_us = srtt_us;
    }
    into.first_ns = into.first_ns.min(first_ns);
    into.last_ns = into.last_ns.max(last_ns);
    if into.cgroup == 0 {
        into.cgroup = cgroup;
    }
    into.flags_sent |= flags_sent;
    into.flags_received |= flags_received;
    into.opened += opened;
    into.srtt_max_us = into.srtt_max_us.max(srtt_max_us);
    if into.rtt_min_us == 0 {
        into.rtt_min_us = rtt_min_us;
    }
    into.retransmits += retransmits;
    if end != 0 {
        into.end = end;
        into.error = error;
    }
}

pub(crate) fn is_connection(key: &FlowKey) -> bool {
    key.protocol == TCP && key.cookie != 0
}

fn tuple(key: &FlowKey) -> Tuple {
    (key.local, key.remote, key.local_port, key.remote_port)
}

#[cfg(test)]
mod tests {
    use weir_shipper_ebpf::Count;

    use super::*;

    fn key(cookie: u64, local: u8, remote: u8) -> FlowKey {
        let (mut local_ip, mut remote_ip) = ([0; 16], [0; 16]);
        (local_ip[15], remote_ip[15]) = (local, remote);
        let base = FlowKey { cookie, local: local_ip, remote: remote_ip, ..FlowKey::ZERO };
        FlowKey { local_port: 80, remote_port: 40_000, protocol: 6, family: 4, ..base }
    }

    fn value(sent: u64, received: u64) -> FlowValue {
        FlowValue {
            sent: Count { packets: sent, bytes: sent * 100 },
            received: Count { packets: received, bytes: received * 100 },
            first_ns: 5,
            last_ns: 9,
            ..FlowValue::ZERO
        }
    }

    #[test]
    fn a_handshake_joins_its_child() {
        let syn = FlowValue { flags_received: FLAG_SYN, ..value(1, 2) };
        let listener = FlowValue { listener: 3, first_ns: 1, last_ns: 4, ..syn };
        let child = FlowValue { opened: 1, ..value(3, 4) };
        let merged = merge(vec![(key(7, 1, 2), listener), (key(8, 1, 2), child)], &Socks::default());
        let [entry] = &merged[..] else { panic!("{merged:?}") };
        assert_eq!((entry.key.cookie, entry.listener, entry.handshake_ns), (8, 7, 1));
        assert_eq!((entry.value.sent.packets, entry.value.received.bytes, entry.value.opened), (4, 600, 1));
    }

    #[test]
    fn a_handshake_that_began_an_interval_earlier_has_no_beginning() {
        let acknowledgement = FlowValue { listener: 1, first_ns: 1, ..value(0, 1) };
        let flows = vec![(key(7, 1, 2), acknowledgement), (key(8, 1, 2), value(3, 4))];
        let merged = merge(flows, &Socks::default());
        assert_eq!((merged[0].key.cookie, merged[0].listener, merged[0].handshake_ns), (8, 7, 0));
    }

    #[test]
    fn a_handshake_whose_child_is_counted_later_takes_its_cookie() {
        let mut socks = Socks::default();
        socks.insert(8, Sock { key: key(8, 1, 2), role: ROLE_SERVER, ..Sock::ZERO });
        let merged = merge(vec![(key(7, 1, 2), FlowValue { listener: 3, ..value(1, 2) })], &socks);
        assert_eq!((merged[0].key.cookie, merged[0].value.listener, merged[0].listener), (8, 0, 7));
    }

    #[test]
    fn a_handshake_without_child_stays() {
        let merged = merge(vec![(key(7, 1, 2), FlowValue { listener: 2, ..value(1, 1) })], &Socks::default());
        assert_eq!((merged[0].key.cookie, merged[0].value.listener), (7, 2));
    }

    #[test]
    fn the_two_views_of_a_translated_connection_are_one() {
        let (inner, outer) = (key(8, 1, 9), key(8, 1, 2));
        let mut socks = Socks::default();
        socks.insert(8, Sock { key: inner, ..Sock::ZERO });
        let merged =
            merge(vec![(inner, value(0, 5)), (outer, FlowValue { opened: 1, ..value(4, 0) })], &socks);
        let [entry] = &merged[..] else { panic!("{merged:?}") };
        assert_eq!((entry.key, entry.own), (outer, Some(inner)));
        assert_eq!((entry.value.sent.packets, entry.value.received.packets, entry.value.opened), (4, 5, 1));
    }

    #[test]
    fn what_the_kernel_says_for_a_dead_socket_is_its_connections() {
        let mut socks = Socks::default();
        socks.insert(9, Sock { key: key(9, 3, 4), closed_ns: 5, ..Sock::ZERO });
        let reset = FlowValue { flags_sent: FLAG_RST, ..value(1, 0) };
        let flows = vec![
            (key(8, 1, 2), value(3, 4)),
            (key(0, 1, 2), value(1, 0)),
            (key(0, 3, 4), value(1, 0)),
            (key(0, 5, 6), value(1, 0)),
            (key(0, 7, 8), reset),
        ];
        let mut merged: Vec<_> =
            merge(flows, &socks).iter().map(|entry| (entry.key.cookie, entry.value.sent.packets)).collect();
        merged.sort_unstable();
        assert_eq!(merged, [(0, 1), (0, 1), (8, 4), (9, 1)]);
    }

    #[test]
    fn an_earlier_connection_of_the_same_socket_stays_apart() {
        let (old, new) = (key(8, 1, 9), key(8, 1, 2));
        let mut socks = Socks::default();
        socks.insert(8, Sock { key: new, ..Sock::ZERO });
        let merged = merge(vec![(old, value(1, 1)), (new, value(4, 4))], &socks);
        assert_eq!(merged.len(), 2);
    }
}
