//! One end of a tunnel, for kernels without the module: takes the packets of a TUN device and carries them to the other
//! end, and back.
//!
//!   tunnel KIND LOCAL REMOTE DEVICE
//!
//! KIND is `ipip`, `sit` (IPv6 in IPv4), `gre` (key 5), `geneve` (VNI 9), `vlan` (id 10) or `qinq` (100 and 10); LOCAL and
//! REMOTE are IPv4 addresses; tagged frames leave and arrive by DEVICE. Prints `ready` when the device `tu0` is there, and
//! runs until it is killed.

use std::{
    env,
    ffi::CString,
    fs::File,
    io::{self, Read, Write},
    net::Ipv4Addr,
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
    thread,
};

use anyhow::{Context, Result, bail, ensure};

/// Longer than any packet here.
const PACKET_MAX: usize = 4096;
const ETHERNET: usize = 14;

fn main() -> Result<()> {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let [kind, local, remote, device] = &arguments[..] else { bail!("four arguments are needed") };
    let kind = Kind::parse(kind)?;
    let wire = Wire::open(kind, local.parse()?, remote.parse()?, device)?;
    let mut tun = tun().context("make a TUN device")?;
    let mut out = tun.try_clone()?;
    println!("ready");
    let way_back = wire.socket.try_clone()?;
    thread::spawn(move || {
        let mut buffer = [0; PACKET_MAX];
        while let Ok((len, outgoing)) = receive(&way_back, &mut buffer) {
            // The kernel refuses what is no IP packet: nothing else of ours arrives.
            if let Some(inner) = kind.unwrap(&buffer[..len]).filter(|_| !outgoing) {
                let _refused = out.write_all(inner);
            }
        }
    });
    let mut buffer = [0; PACKET_MAX];
    loop {
        let len = tun.read(&mut buffer).context("read from the device")?;
        if let Some(packet) = kind.wrap(&buffer[..len]) {
            wire.send(&packet)?;
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Ipip,
    Sit,
    Gre,
    Geneve,
    Vlan,
    Qinq,
}

impl Kind {
    fn parse(text: &str) -> Result<Self> {
        Ok(match text {
            "ipip" => Self::Ipip,
            "sit" => Self::Sit,
            "gre" => Self::Gre,
            "geneve" => Self::Geneve,
            "vlan" => Self::Vlan,
            "qinq" => Self::Qinq,
            _ => bail!("unknown kind {text}"),
        })
    }

    /// The protocol number of a raw socket; `None` where another kind of socket is used.
    fn protocol(self) -> Option<i32> {
        match self {
            Self::Ipip => Some(4),
            Self::Sit => Some(41),
            Self::Gre => Some(47),
            Self::Geneve | Self::Vlan | Self::Qinq => None,
        }
    }

    /// What goes to the socket; `None` for a family that this kind does not carry.
    fn wrap(self, inner: &[u8]) -> Option<Vec<u8>> {
        let ethertype: [u8; 2] = match inner.first()? >> 4 {
            4 if self != Self::Sit => [0x08, 0x00],
            6 if self != Self::Ipip => [0x86, 0xdd],
            _ => return None,
        };
        let addresses = [0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 2, 0, 0, 0, 0, 1];
        let head: Vec<u8> = match self {
            Self::Ipip | Self::Sit => Vec::new(),
            Self::Gre => [&[0x20, 0][..], &ethertype, &[0, 0, 0, 5]].concat(),
            Self::Geneve => [&[0, 0, 0x65, 0x58, 0, 0, 9, 0][..], &addresses, &ethertype].concat(),
            Self::Vlan => [&addresses[..], &[0x81, 0, 0, 10], &ethertype].concat(),
            Self::Qinq => [&addresses[..], &[0x88, 0xa8, 0, 100, 0x81, 0, 0, 10], &ethertype].concat(),
        };
        Some([&head, inner].concat())
    }

    /// The inner packet of what came from the socket.
    fn unwrap(self, packet: &[u8]) -> Option<&[u8]> {
        match self {
            // A raw socket gives the IP header too.
            Self::Ipip | Self::Sit => packet.get(20..),
            Self::Gre => packet.get(28..),
            Self::Geneve => packet.get(8 + ETHERNET..),
            Self::Vlan | Self::Qinq => {
                // The kernel has taken the outer tag off.
                let mut at = ETHERNET;
                while matches!(packet.get(at - 2..at)?, [0x81, 0] | [0x88, 0xa8]) {
                    at += 4;
                }
                matches!(packet.get(at - 2..at)?, [0x08, 0x00] | [0x86, 0xdd]).then(|| &packet[at..])
            }
        }
    }
}

struct Wire {
    socket: OwnedFd,
    /// Where to; 0 for where the socket is connected to.
    index: u32,
}

impl Wire {
    fn open(kind: Kind, local: Ipv4Addr, remote: Ipv4Addr, device: &str) -> Result<Self> {
        let (family, socket_type, protocol) = match (kind, kind.protocol()) {
            (_, Some(protocol)) => (libc::AF_INET, libc::SOCK_RAW, protocol),
            (Kind::Geneve, None) => (libc::AF_INET, libc::SOCK_DGRAM, 0),
            _ => (libc::AF_PACKET, libc::SOCK_RAW, i32::from((libc::ETH_P_ALL as u16).to_be())),
        };
        // SAFETY: no pointers; the descriptor is ours.
        let socket = unsafe {
            let fd = libc::socket(family, socket_type | libc::SOCK_CLOEXEC, protocol);
            ensure!(fd >= 0, "socket: {}", io::Error::last_os_error());
            OwnedFd::from_raw_fd(fd)
        };
        if family == libc::AF_PACKET {
            let name = CString::new(device)?;
            // SAFETY: the name outlives the call.
            let index = unsafe { libc::if_nametoindex(name.as_ptr()) };
            ensure!(index != 0, "{device}: {}", io::Error::last_os_error());
            return Ok(Self { socket, index });
        }
        let port = if kind == Kind::Geneve { 6081 } else { 0 };
        bind_and_connect(&socket, local, remote, port)?;
        Ok(Self { socket, index: 0 })
    }

    fn send(&self, packet: &[u8]) -> Result<()> {
        // SAFETY: the address is a whole sockaddr_ll; buffers outlive the calls.
        let sent = unsafe {
            let (to, len) = (packet.as_ptr().cast(), packet.len());
            if self.index == 0 {
                libc::send(self.socket.as_raw_fd(), to, len, 0)
            } else {
                let mut address: libc::sockaddr_ll = std::mem::zeroed();
                address.sll_family = libc::AF_PACKET as u16;
                address.sll_ifindex = self.index as i32;
                address.sll_halen = 6;
                address.sll_addr[..6].fill(0xff);
                let size = size_of::<libc::sockaddr_ll>() as u32;
                libc::sendto(self.socket.as_raw_fd(), to, len, 0, (&raw const address).cast(), size)
            }
        };
        let error = io::Error::last_os_error();
        ensure!(sent >= 0 || not_there_yet(&error), "send {} bytes: {error}", packet.len());
        Ok(())
    }
}

fn bind_and_connect(socket: &OwnedFd, local: Ipv4Addr, remote: Ipv4Addr, port: u16) -> Result<()> {
    let address = |ip: Ipv4Addr| {
        // SAFETY: sockaddr_in is plain bytes.
        let mut address: libc::sockaddr_in = unsafe { std::mem::zeroed() };
        address.sin_family = libc::AF_INET as u16;
        address.sin_port = port.to_be();
        address.sin_addr.s_addr = u32::from_ne_bytes(ip.octets());
        address
    };
    let (local, remote) = (address(local), address(remote));
    let len = size_of::<libc::sockaddr_in>() as u32;
    // SAFETY: both addresses outlive the calls.
    unsafe {
        let fd = socket.as_raw_fd();
        ensure!(libc::bind(fd, (&raw const local).cast(), len) == 0, "bind: {}", io::Error::last_os_error());
        ensure!(
            libc::connect(fd, (&raw const remote).cast(), len) == 0,
            "connect: {}",
            io::Error::last_os_error()
        );
    }
    Ok(())
}

/// The next packet, and whether it is one that leaves.
fn receive(socket: &OwnedFd, buffer: &mut [u8]) -> io::Result<(usize, bool)> {
    const PACKET_OUTGOING: u8 = 4;
    loop {
        // SAFETY: the buffer and the address outlive the call; sockaddr_ll is larger than sockaddr_in.
        let (read, from) = unsafe {
            let mut from: libc::sockaddr_ll = std::mem::zeroed();
            let mut len = size_of::<libc::sockaddr_ll>() as u32;
            let to = buffer.as_mut_ptr().cast();
            let address = (&raw mut from).cast();
            (libc::recvfrom(socket.as_raw_fd(), to, buffer.len(), 0, address, &raw mut len), from)
        };
        if let Ok(len) = usize::try_from(read) {
            let packet = i32::from(from.sll_family) == libc::AF_PACKET;
            return Ok((len, packet && from.sll_pkttype == PACKET_OUTGOING));
        }
        let error = io::Error::last_os_error();
        if !not_there_yet(&error) && error.raw_os_error() != Some(libc::EINTR) {
            return Err(error);
        }
    }
}

/// ICMP has said that nobody takes this port or protocol: the other end starts a little later.
fn not_there_yet(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ECONNREFUSED | libc::ENOPROTOOPT | libc::EHOSTUNREACH))
}

/// The device `tu0` of this namespace.
fn tun() -> Result<File> {
    const TUNSETIFF: libc::c_ulong = 0x4004_54ca;
    const IFF_TUN: i16 = 1;
    const IFF_NO_PI: i16 = 0x1000;
    let file = File::options().read(true).write(true).open("/dev/net/tun")?;
    // SAFETY: ifreq is plain bytes, and as long as the kernel expects.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(b"tu0") {
        *to = *from as libc::c_char;
    }
    request.ifr_ifru.ifru_flags = IFF_TUN | IFF_NO_PI;
    // SAFETY: the request outlives the call.
    let made = unsafe { libc::ioctl(file.as_raw_fd(), TUNSETIFF, &raw mut request) };
    ensure!(made == 0, "TUNSETIFF: {}", io::Error::last_os_error());
    Ok(file)
}
