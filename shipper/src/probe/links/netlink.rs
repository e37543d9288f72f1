//! The links and default routes of a network namespace, asked from the kernel (rtnetlink(7)), and word of changes.
//!
//! A socket belongs to the namespace that its thread was in when it was opened, and keeps that namespace alive. Used
//! by `watch` and `clsact`.

use std::{
    collections::HashSet,
    io,
    os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd},
};

const RTM_NEWLINK: u16 = 16;
const RTM_GETLINK: u16 = 18;
const RTM_NEWROUTE: u16 = 24;
const RTM_GETROUTE: u16 = 26;
const NLM_F_REQUEST: u16 = 1;
const NLM_F_ACK: u16 = 4;
const NLM_F_DUMP: u16 = 0x300;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const HEADER: usize = 16;
/// `struct ifinfomsg` and `struct rtmsg` (include/uapi/linux/rtnetlink.h).
const IFINFO: usize = 16;
const RTMSG: usize = 12;
const IFLA_IFNAME: u16 = 3;
const IFLA_LINKINFO: u16 = 18;
const IFLA_INFO_KIND: u16 = 1;
const RTA_OIF: u16 = 4;
const RTA_MULTIPATH: u16 = 9;
const RTN_UNICAST: u8 = 1;
const RTNEXTHOP: usize = 8;
/// Links and both families' routes: `RTMGRP_LINK | RTMGRP_IPV4_ROUTE | RTMGRP_IPV6_ROUTE`.
const GROUPS: u32 = 0x1 | 0x40 | 0x400;
const ARPHRD_ETHER: u16 = 1;
const ARPHRD_LOOPBACK: u16 = 772;
/// How long an answer may take.
static TIMEOUT: libc::timeval = libc::timeval { tv_sec: 5, tv_usec: 0 };
/// `SO_NETNS_COOKIE` (kernel 5.14).
const SO_NETNS_COOKIE: libc::c_int = 71;

/// One network interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Link {
    pub index: u32,
    pub name: String,
    /// As `ip -d link` has it (`veth`, `bridge`, …); empty for hardware.
    pub kind: String,
    /// Packets begin with an Ethernet header.
    pub ethernet: bool,
}

/// A socket for questions.
#[derive(Debug)]
pub(crate) struct Netlink(OwnedFd);

impl Netlink {
    /// In the namespace of this thread.
    pub(crate) fn open() -> io::Result<Self> {
        let socket = socket(0, 0)?;
        // SAFETY: the option's value outlives the call.
        let set = unsafe {
            libc::setsockopt(
                socket.as_raw_fd(),
                libc::SOL_SOCKET,
                libc::SO_RCVTIMEO,
                (&raw const TIMEOUT).cast(),
                size_of_val(&TIMEOUT) as u32,
            )
        };
        if set == 0 { Ok(Self(socket)) } else { Err(io::Error::last_os_error()) }
    }

    /// A number of the namespace, which no other one of this boot has; `None` before kernel 5.14.
    pub(crate) fn namespace_cookie(&self) -> Option<u64> {
        let mut cookie = 0_u64;
        let mut len = size_of::<u64>() as u32;
        // SAFETY: the kernel writes one u64.
        let got = unsafe {
            let to = (&raw mut cookie).cast();
            libc::getsockopt(self.0.as_raw_fd(), libc::SOL_SOCKET, SO_NETNS_COOKIE, to, &raw mut len)
        };
        (got == 0 && cookie != 0).then_some(cookie)
    }

    /// Every link.
    pub(crate) fn links(&self) -> io::Result<Vec<Link>> {
        let mut found = Vec::new();
        self.request(RTM_GETLINK, NLM_F_DUMP, &[0; IFINFO], |kind, message| {
            if kind == RTM_NEWLINK {
                found.extend(link(message));
            }
        })?;
        Ok(found)
    }

    /// Indices of the links that a default route of any table goes out by.
    pub(crate) fn uplinks(&self) -> io::Result<HashSet<u32>> {
        let mut found = HashSet::new();
        for family in [libc::AF_INET, libc::AF_INET6] {
            let mut body = [0; RTMSG];
            body[0] = family as u8;
            self.request(RTM_GETROUTE, NLM_F_DUMP, &body, |kind, message| {
                if kind == RTM_NEWROUTE {
                    default_route(message, &mut found);
                }
            })?;
        }
        Ok(found)
    }

    /// Sends a request and gives each message of the answer to `each`, until the kernel says that it was the last.
    pub(crate) fn request(
        &self,
        kind: u16,
        flags: u16,
        body: &[u8],
        mut each: impl FnMut(u16, &[u8]),
    ) -> io::Result<()> {
        let mut request = Vec::with_capacity(HEADER + body.len());
        request.extend_from_slice(&((HEADER + body.len()) as u32).to_ne_bytes());
        request.extend_from_slice(&kind.to_ne_bytes());
        let ack = if flags & NLM_F_DUMP == NLM_F_DUMP { 0 } else { NLM_F_ACK };
        request.extend_from_slice(&(NLM_F_REQUEST | ack | flags).to_ne_bytes());
        request.extend_from_slice(&[0; 8]);
        request.extend_from_slice(body);
        // SAFETY: the buffer outlives the call.
        let sent = unsafe { libc::send(self.0.as_raw_fd(), request.as_ptr().cast(), request.len(), 0) };
        if sent < 0 {
            return Err(io::Error::last_os_error());
        }
        let mut buffer = vec![0_u8; 64 << 10];
        loop {
            let read = receive(&self.0, &mut buffer)?;
            if messages(&buffer[..read], &mut each)? {
                return Ok(());
            }
        }
    }
}

/// A socket that hears of changes.
#[derive(Debug)]
pub(crate) struct Changes(OwnedFd);

impl Changes {
    /// Of links and routes, in the namespace of this thread.
    pub(crate) fn open() -> io::Result<Self> {
        socket(libc::SOCK_NONBLOCK, GROUPS).map(Self)
    }

    /// To wait for.
    pub(crate) fn as_fd(&self) -> BorrowedFd<'_> {
        std::os::fd::AsFd::as_fd(&self.0)
    }

    /// Takes what has come; `true` when something has. What it was does not matter: everything is asked again, so
    /// messages that did not fit are no loss.
    pub(crate) fn take(&self) -> bool {
        let mut buffer = [0_u8; 16 << 10];
        let mut any = false;
        loop {
            match receive(&self.0, &mut buffer) {
                Ok(_) => any = true,
                Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => any = true,
                Err(_) => return any,
            }
        }
    }
}

fn socket(flags: libc::c_int, groups: u32) -> io::Result<OwnedFd> {
    // SAFETY: the address is a whole sockaddr_nl; the descriptor is ours.
    unsafe {
        let kind = libc::SOCK_RAW | libc::SOCK_CLOEXEC | flags;
        let fd = libc::socket(libc::AF_NETLINK, kind, libc::NETLINK_ROUTE);
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        let socket = OwnedFd::from_raw_fd(fd);
        let mut address: libc::sockaddr_nl = std::mem::zeroed();
        address.nl_family = libc::AF_NETLINK as u16;
        address.nl_groups = groups;
        if libc::bind(fd, (&raw const address).cast(), size_of_val(&address) as u32) != 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(socket)
    }
}

fn receive(socket: &OwnedFd, buffer: &mut [u8]) -> io::Result<usize> {
    // SAFETY: the buffer outlives the call.
    let read = unsafe { libc::recv(socket.as_raw_fd(), buffer.as_mut_ptr().cast(), buffer.len(), 0) };
    usize::try_from(read).map_err(|_| io::Error::last_os_error())
}

/// Gives out the messages of one datagram. `true` when it says that there are no more.
fn messages(mut rest: &[u8], each: &mut impl FnMut(u16, &[u8])) -> io::Result<bool> {
    while rest.len() >= HEADER {
        let len = word(rest, 0) as usize;
        let Some(message) = rest.get(HEADER..len) else { break };
        match half(rest, 4) {
            NLMSG_DONE => return Ok(true),
            NLMSG_ERROR => {
                let code = if message.len() >= 4 { word(message, 0).cast_signed() } else { 0 };
                return if code == 0 { Ok(true) } else { Err(io::Error::from_raw_os_error(-code)) };
            }
            kind => each(kind, message),
        }
        rest = rest.get(len.next_multiple_of(4)..).unwrap_or_default();
    }
    Ok(false)
}

fn link(message: &[u8]) -> Option<Link> {
    let attributes = message.get(IFINFO..)?;
    let name = text(find(attributes, IFLA_IFNAME)?);
    let kind = find(attributes, IFLA_LINKINFO).and_then(|info| find(info, IFLA_INFO_KIND)).map(text);
    let ethernet = matches!(half(message, 2), ARPHRD_ETHER | ARPHRD_LOOPBACK);
    Some(Link { index: word(message, 4), name, kind: kind.unwrap_or_default(), ethernet })
}

fn default_route(message: &[u8], found: &mut HashSet<u32>) {
    let Some(attributes) = message.get(RTMSG..) else { return };
    let (prefix, kind) = (message[1], message[7]);
    if prefix != 0 || kind != RTN_UNICAST {
        return;
    }
    if let Some(index) = find(attributes, RTA_OIF).filter(|value| value.len() >= 4) {
        found.insert(word(index, 0));
    }
    let mut hops = find(attributes, RTA_MULTIPATH).unwrap_or_default();
    while hops.len() >= RTNEXTHOP {
        found.insert(word(hops, 4));
        let len = usize::from(half(hops, 0)).max(RTNEXTHOP);
        hops = hops.get(len.next_multiple_of(4)..).unwrap_or_default();
    }
}

/// The value of an attribute.
fn find(mut attributes: &[u8], wanted: u16) -> Option<&[u8]> {
    while attributes.len() >= 4 {
        let len = usize::from(half(attributes, 0));
        let value = attributes.get(4..len)?;
        // The upper bits say that attributes are nested.
        if half(attributes, 2) & 0x3fff == wanted {
            return Some(value);
        }
        attributes = attributes.get(len.next_multiple_of(4)..).unwrap_or_default();
    }
    None
}

/// A text that ends with a NUL.
fn text(value: &[u8]) -> String {
    let end = value.iter().position(|byte| *byte == 0).unwrap_or(value.len());
    String::from_utf8_lossy(&value[..end]).into_owned()
}

fn word(bytes: &[u8], at: usize) -> u32 {
    u32::from_ne_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

fn half(bytes: &[u8], at: usize) -> u16 {
    u16::from_ne_bytes([bytes[at], bytes[at + 1]])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_is_a_link_and_no_uplink() {
        let netlink = Netlink::open().unwrap();
        let links = netlink.links().unwrap();
        let loopback = links.iter().find(|link| link.name == "lo").unwrap();
        assert_eq!((loopback.index, loopback.kind.as_str(), loopback.ethernet), (1, "", true));
        assert!(!netlink.uplinks().unwrap().contains(&1));
    }

    #[test]
    fn cut_messages_give_nothing() {
        let mut message = vec![0_u8; IFINFO];
        assert_eq!(link(&message[..9]), None);
        assert_eq!(link(&message), None);
        message.extend_from_slice(&[200, 0, 3, 0, b'e']);
        assert_eq!(link(&message), None);
        let mut found = HashSet::new();
        default_route(&[0; 5], &mut found);
        let hop = [0_u8, 0, 0, 0, 7, 0, 0, 0];
        let mut route = vec![0_u8; RTMSG];
        route[7] = RTN_UNICAST;
        route.extend_from_slice(&[12, 0, 9, 0]);
        route.extend_from_slice(&hop);
        default_route(&route, &mut found);
        assert_eq!(found, HashSet::from([7]));
        let mut seen = 0;
        assert!(!messages(&[40, 0, 0, 0, 16, 0], &mut |_, _| seen += 1).unwrap());
        assert_eq!(seen, 0);
    }
}
