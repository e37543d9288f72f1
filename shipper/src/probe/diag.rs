//! Every socket of a network namespace, asked from the kernel (sock_diag(7)): tuple, state, cookie, inode, cgroup.
//!
//! The caller's thread must be in the namespace. Used by `adopt` only.

use std::{
    io,
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
};

const SOCK_DIAG_BY_FAMILY: u16 = 20;
const NLM_F_REQUEST_DUMP: u16 = 0x301;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const HEADER: usize = 16;
/// `struct inet_diag_req_v2` and `struct inet_diag_msg` (include/uapi/linux/inet_diag.h).
const REQUEST: usize = 56;
const MESSAGE: usize = 72;
const INET_DIAG_CGROUP_ID: u16 = 21;

/// TCP's states, as bits: all but TIME_WAIT, CLOSE and SYN_RECV, which have no socket of a process.
pub(crate) const TCP_STATES: u32 = 1 << 1 | 1 << 2 | 1 << 4 | 1 << 5 | 1 << 8 | 1 << 9 | 1 << 10 | 1 << 11;
/// Every state.
pub(crate) const ALL_STATES: u32 = u32::MAX;

/// One socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct DiagSocket {
    pub protocol: u8,
    pub state: u8,
    /// 16 bytes each, IPv4 as `::ffff:a.b.c.d`.
    pub local: [u8; 16],
    pub remote: [u8; 16],
    pub local_port: u16,
    pub remote_port: u16,
    pub cookie: u64,
    pub inode: u32,
    /// 0 where the kernel does not tell (before 5.9).
    pub cgroup: u64,
}

/// The sockets of one protocol and family (`AF_INET`, `AF_INET6`) in the namespace of this thread.
pub(crate) fn sockets(family: libc::c_int, protocol: u8, states: u32) -> io::Result<Vec<DiagSocket>> {
    let socket = open()?;
    let mut request = [0_u8; HEADER + REQUEST];
    request[0..4].copy_from_slice(&((HEADER + REQUEST) as u32).to_ne_bytes());
    request[4..6].copy_from_slice(&SOCK_DIAG_BY_FAMILY.to_ne_bytes());
    request[6..8].copy_from_slice(&NLM_F_REQUEST_DUMP.to_ne_bytes());
    request[16] = family as u8;
    request[17] = protocol;
    request[20..24].copy_from_slice(&states.to_ne_bytes());
    // SAFETY: the buffer outlives the call.
    let sent = unsafe { libc::send(socket.as_raw_fd(), request.as_ptr().cast(), request.len(), 0) };
    if sent < 0 {
        return Err(io::Error::last_os_error());
    }
    let mut found = Vec::new();
    let mut buffer = vec![0_u8; 64 << 10];
    loop {
        // SAFETY: the buffer outlives the call.
        let read = unsafe { libc::recv(socket.as_raw_fd(), buffer.as_mut_ptr().cast(), buffer.len(), 0) };
        let read = usize::try_from(read).map_err(|_| io::Error::last_os_error())?;
        if messages(&buffer[..read], protocol, &mut found)? {
            return Ok(found);
        }
    }
}

fn open() -> io::Result<OwnedFd> {
    // SAFETY: no pointers; the descriptor is ours.
    unsafe {
        let fd =
            libc::socket(libc::AF_NETLINK, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, libc::NETLINK_SOCK_DIAG);
        if fd < 0 { Err(io::Error::last_os_error()) } else { Ok(OwnedFd::from_raw_fd(fd)) }
    }
}

/// Takes the sockets out of one datagram. `true` when it says that there are no more.
fn messages(mut rest: &[u8], protocol: u8, found: &mut Vec<DiagSocket>) -> io::Result<bool> {
    while rest.len() >= HEADER {
        let len = word(rest, 0) as usize;
        let Some(message) = rest.get(HEADER..len) else { break };
        match half(rest, 4) {
            NLMSG_DONE => return Ok(true),
            NLMSG_ERROR => {
                let code = if message.len() >= 4 { word(message, 0).cast_signed() } else { 0 };
                return if code == 0 { Ok(true) } else { Err(io::Error::from_raw_os_error(-code)) };
            }
            SOCK_DIAG_BY_FAMILY => found.extend(parse(message, protocol)),
            _ => {}
        }
        rest = rest.get(len.next_multiple_of(4)..).unwrap_or_default();
    }
    Ok(false)
}

fn parse(message: &[u8], protocol: u8) -> Option<DiagSocket> {
    if message.len() < MESSAGE {
        return None;
    }
    let address = |at: usize| {
        let mut octets = [0_u8; 16];
        if i32::from(message[0]) == libc::AF_INET {
            octets[10..12].fill(0xff);
            octets[12..].copy_from_slice(&message[at..at + 4]);
        } else {
            octets.copy_from_slice(&message[at..at + 16]);
        }
        octets
    };
    let mut socket = DiagSocket {
        protocol,
        state: message[1],
        local: address(8),
        remote: address(24),
        local_port: u16::from_be_bytes([message[4], message[5]]),
        remote_port: u16::from_be_bytes([message[6], message[7]]),
        cookie: u64::from(word(message, 44)) | u64::from(word(message, 48)) << 32,
        inode: word(message, 68),
        cgroup: 0,
    };
    let mut attributes = &message[MESSAGE..];
    while attributes.len() >= 4 {
        let len = usize::from(half(attributes, 0));
        let Some(value) = attributes.get(4..len) else { break };
        if half(attributes, 2) == INET_DIAG_CGROUP_ID && value.len() >= 8 {
            socket.cgroup = u64::from(word(value, 0)) | u64::from(word(value, 4)) << 32;
        }
        attributes = attributes.get(len.next_multiple_of(4)..).unwrap_or_default();
    }
    Some(socket)
}

// The attributes' 64-bit values are in the byte order of the machine, and so little-endian on every target that the
// programs are built for.
fn word(bytes: &[u8], at: usize) -> u32 {
    u32::from_ne_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

fn half(bytes: &[u8], at: usize) -> u16 {
    u16::from_ne_bytes([bytes[at], bytes[at + 1]])
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};

    use super::*;

    #[test]
    fn finds_a_listener_and_its_connection() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
        let found = sockets(libc::AF_INET, 6, TCP_STATES).unwrap();
        let listening = found.iter().find(|socket| socket.local_port == port && socket.state == 10).unwrap();
        let client = found.iter().find(|socket| socket.remote_port == port && socket.state == 1).unwrap();
        assert_eq!(client.local_port, stream.local_addr().unwrap().port());
        assert!(listening.cookie != 0 && client.cookie != 0 && listening.cookie != client.cookie);
        assert!(listening.inode != 0);
    }

    #[test]
    fn cut_datagrams_end_the_search() {
        let mut found = Vec::new();
        let mut datagram = vec![0_u8; 40];
        datagram[0..4].copy_from_slice(&4000_u32.to_ne_bytes());
        datagram[4..6].copy_from_slice(&SOCK_DIAG_BY_FAMILY.to_ne_bytes());
        assert!(!messages(&datagram, 6, &mut found).unwrap());
        datagram[0..4].copy_from_slice(&0_u32.to_ne_bytes());
        assert!(!messages(&datagram, 6, &mut found).unwrap());
        assert!(found.is_empty());
    }
}
