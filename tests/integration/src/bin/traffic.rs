//! Makes traffic whose size is known: for tests that compare it with what was captured.
//!
//!   traffic serve-tcp ADDRESS WORKERS            answer each request with as many bytes as it asks for
//!   traffic connect-tcp ADDRESS COUNT UP DOWN THREADS   COUNT connections: send UP bytes, close, read DOWN bytes
//!   traffic abandon-tcp ADDRESS COUNT            COUNT connections that the client closes first
//!   traffic hold-tcp ADDRESS UP                  connect, print `connected`, and send UP bytes per line of input
//!   traffic try-tcp ADDRESS MILLISECONDS         connect, give up after that time (0: never), print the error
//!   traffic scan-tcp HOST FIRST COUNT            try COUNT ports from FIRST on; print how many are closed
//!   traffic reset-tcp ADDRESS                    connect, and reset the connection
//!   traffic send-odd ADDRESS4 ADDRESS6           packets that few programs send; a line for each: protocol, bytes, what
//!   traffic serve-udp ADDRESS                    receive, and echo one byte per datagram
//!   traffic send-udp ADDRESS COUNT SIZE SOCKETS  COUNT datagrams of SIZE bytes from SOCKETS sockets
//!   traffic spread-udp ADDRESS4 COUNT FLOWS      COUNT datagrams of 64 bytes to FLOWS addresses from this one on, in turn
//!
//! Servers print `ready` when they listen, and run until they are killed. Clients print how many connections they made.

use std::{
    env,
    io::{self, BufRead, Read, Write},
    net::{IpAddr, Ipv4Addr, Shutdown, TcpListener, TcpStream, UdpSocket},
    os::fd::AsRawFd,
    process::exit,
    thread,
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};

const CHUNK: usize = 64 << 10;

fn main() -> Result<()> {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match arguments[..] {
        ["serve-tcp", address, workers] => serve_tcp(address, workers.parse()?),
        ["connect-tcp", address, count, up, down, threads] => {
            connect_tcp(address, count.parse()?, up.parse()?, down.parse()?, threads.parse()?)
        }
        ["abandon-tcp", address, count] => abandon_tcp(address, count.parse()?),
        ["hold-tcp", address, up] => hold_tcp(address, up.parse()?),
        ["try-tcp", address, milliseconds] => try_tcp(address, milliseconds.parse()?),
        ["scan-tcp", host, first, count] => scan_tcp(host.parse()?, first.parse()?, count.parse()?),
        ["reset-tcp", address] => reset_tcp(address),
        ["send-odd", ipv4, ipv6] => odd::send(ipv4.parse()?, ipv6.parse()?),
        ["serve-udp", address] => serve_udp(address),
        ["send-udp", address, count, size, sockets] => {
            send_udp(address, count.parse()?, size.parse()?, sockets.parse()?)
        }
        ["spread-udp", address, count, flows] => spread_udp(address.parse()?, count.parse()?, flows.parse()?),
        _ => bail!("unknown arguments {arguments:?}: see the head of this file"),
    }
}

fn serve_tcp(address: &str, workers: u32) -> Result<()> {
    let listener = TcpListener::bind(address).with_context(|| format!("listen on {address}"))?;
    for _ in 1..workers {
        // Pre-forked, as many servers are: each worker accepts from the same socket.
        // SAFETY: the process has one thread.
        if unsafe { libc::fork() } == 0 {
            // SAFETY: prctl with plain integers: the worker goes when its parent does.
            unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) };
            accept(&listener);
        }
    }
    println!("ready");
    accept(&listener)
}

fn accept(listener: &TcpListener) -> ! {
    loop {
        match listener.accept() {
            Ok((stream, _)) => {
                thread::spawn(move || answer(stream));
            }
            Err(error) => {
                eprintln!("accept: {error}");
                exit(1);
            }
        }
    }
}

/// Reads to the end, then sends as many bytes as the first eight asked for. The client's FIN comes first, but its
/// socket lives on until it has read ours.
fn answer(mut stream: TcpStream) -> io::Result<()> {
    let mut head = [0; 8];
    stream.read_exact(&mut head)?;
    io::copy(&mut stream, &mut io::sink())?;
    send(&mut stream, u64::from_be_bytes(head))
}

fn send(stream: &mut TcpStream, mut bytes: u64) -> io::Result<()> {
    let chunk = [7_u8; CHUNK];
    while bytes > 0 {
        let size = bytes.min(CHUNK as u64);
        stream.write_all(&chunk[..size as usize])?;
        bytes -= size;
    }
    Ok(())
}

fn connect_tcp(address: &str, count: u64, up: u64, down: u64, threads: u64) -> Result<()> {
    ensure!(up >= 8, "a request has at least 8 bytes");
    let workers: Vec<_> = (0..threads)
        .map(|index| {
            let address = address.to_owned();
            let share = count / threads + u64::from(index < count % threads);
            thread::spawn(move || (0..share).try_for_each(|_| exchange(&address, up, down)))
        })
        .collect();
    for worker in workers {
        worker.join().map_err(|_| anyhow::anyhow!("a worker panicked"))??;
    }
    println!("{count}");
    Ok(())
}

fn exchange(address: &str, up: u64, down: u64) -> Result<()> {
    let mut stream = TcpStream::connect(address).with_context(|| format!("connect to {address}"))?;
    stream.set_nodelay(true)?;
    stream.write_all(&down.to_be_bytes())?;
    send(&mut stream, up - 8)?;
    stream.shutdown(Shutdown::Write)?;
    let read = io::copy(&mut stream, &mut io::sink())?;
    ensure!(read == down, "{read} bytes of {down} arrived");
    Ok(())
}

fn abandon_tcp(address: &str, count: u64) -> Result<()> {
    for _ in 0..count {
        let mut stream = TcpStream::connect(address).with_context(|| format!("connect to {address}"))?;
        stream.write_all(&0_u64.to_be_bytes())?;
        drop(stream);
    }
    println!("{count}");
    Ok(())
}

fn hold_tcp(address: &str, up: u64) -> Result<()> {
    let mut stream = TcpStream::connect(address).with_context(|| format!("connect to {address}"))?;
    stream.write_all(&0_u64.to_be_bytes())?;
    println!("connected");
    for line in io::stdin().lock().lines() {
        line?;
        send(&mut stream, up)?;
        println!("sent");
    }
    stream.shutdown(Shutdown::Write)?;
    io::copy(&mut stream, &mut io::sink())?;
    Ok(())
}

fn try_tcp(address: &str, milliseconds: u64) -> Result<()> {
    let result = if milliseconds == 0 {
        TcpStream::connect(address)
    } else {
        TcpStream::connect_timeout(&address.parse()?, Duration::from_millis(milliseconds))
    };
    match result {
        Ok(_) => println!("connected"),
        Err(error) => println!("{:?}", error.kind()),
    }
    Ok(())
}

fn reset_tcp(address: &str) -> Result<()> {
    let mut stream = TcpStream::connect(address).with_context(|| format!("connect to {address}"))?;
    stream.write_all(&0_u64.to_be_bytes())?;
    let linger = libc::linger { l_onoff: 1, l_linger: 0 };
    // SAFETY: the option takes a linger, whose size is given.
    let result = unsafe {
        libc::setsockopt(
            stream.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_LINGER,
            (&raw const linger).cast(),
            size_of::<libc::linger>() as libc::socklen_t,
        )
    };
    ensure!(result == 0, "set SO_LINGER: {}", io::Error::last_os_error());
    Ok(())
}

/// A port is closed when the connection is refused.
fn scan_tcp(host: IpAddr, first: u16, count: u16) -> Result<()> {
    let closed = (first..first + count).filter(|port| {
        let tried = TcpStream::connect_timeout(&(host, *port).into(), Duration::from_secs(10));
        tried.is_err_and(|error| error.kind() == io::ErrorKind::ConnectionRefused)
    });
    println!("{}", closed.count());
    Ok(())
}

fn serve_udp(address: &str) -> Result<()> {
    let socket = UdpSocket::bind(address).with_context(|| format!("bind {address}"))?;
    println!("ready");
    let mut datagram = vec![0; 65_536];
    loop {
        let (_, from) = socket.recv_from(&mut datagram)?;
        socket.send_to(&[1], from)?;
    }
}

fn send_udp(address: &str, count: u64, size: usize, sockets: usize) -> Result<()> {
    let any = if address.starts_with('[') { "[::]:0" } else { "0.0.0.0:0" };
    let datagram = vec![3; size];
    let sockets: Vec<UdpSocket> = (0..sockets)
        .map(|_| {
            let socket = UdpSocket::bind(any)?;
            socket.connect(address)?;
            socket.set_read_timeout(Some(Duration::from_secs(5)))?;
            Ok(socket)
        })
        .collect::<Result<_>>()?;
    let mut echo = [0; 16];
    for index in 0..count {
        let socket = &sockets[usize::try_from(index)? % sockets.len()];
        socket.send(&datagram)?;
        socket.recv(&mut echo).context("no echo")?;
    }
    println!("{count}");
    Ok(())
}

/// Nobody answers: the link drops them.
fn spread_udp(first: Ipv4Addr, count: u64, flows: u32) -> Result<()> {
    let socket = UdpSocket::bind("0.0.0.0:0")?;
    // With the headers of IPv4 and UDP 64 bytes.
    let datagram = [3; 36];
    for (index, _) in (0..flows).cycle().zip(0..count) {
        socket.send_to(&datagram, (Ipv4Addr::from_bits(first.to_bits() + index), 9))?;
    }
    println!("{count}");
    Ok(())
}

/// Packets made byte by byte: extension headers, fragments, cut headers, rare protocols.
mod odd {
    use std::{
        io,
        net::{Ipv4Addr, Ipv6Addr},
    };

    use anyhow::{Result, ensure};

    /// Ports 1000 and 2000, and room for any header after them.
    const PORTS: [u8; 4] = [0x03, 0xe8, 0x07, 0xd0];

    pub(super) fn send(ipv4: Ipv4Addr, ipv6: Ipv6Addr) -> Result<()> {
        let packets4: [(&str, u8, u16, Vec<u8>); 6] = [
            ("icmp echo", 1, 0, padded(&[8, 0], 64)),
            ("sctp", 132, 0, padded(&PORTS, 32)),
            ("gre", 47, 0, padded(&[], 30)),
            ("udp cut short", 17, 0, padded(&PORTS, 3)),
            ("tcp cut short", 6, 0, padded(&PORTS, 10)),
            ("udp later fragment", 17, 100, padded(&PORTS, 64)),
        ];
        for (what, protocol, fragment, payload) in packets4 {
            let mut packet = vec![0x45, 0, 0, 0, 0, 7];
            packet.extend(fragment.to_be_bytes());
            packet.extend([64, protocol, 0, 0, 0, 0, 0, 0]);
            packet.extend(ipv4.octets());
            packet.extend(payload);
            raw4(ipv4, &packet)?;
            println!("{protocol} {} {what}", packet.len());
        }
        let udp = padded(&PORTS, 24);
        let chain = |headers: &[(u8, Vec<u8>)], last: u8, payload: &[u8]| {
            let mut bytes = Vec::new();
            for (index, (_, header)) in headers.iter().enumerate() {
                let next = headers.get(index + 1).map_or(last, |(kind, _)| *kind);
                bytes.push(next);
                bytes.extend(&header[1..]);
            }
            bytes.extend(payload);
            (headers.first().map_or(last, |(kind, _)| *kind), bytes)
        };
        // An options header of eight bytes, filled with PadN.
        let options = |kind: u8| (kind, vec![0, 0, 1, 4, 0, 0, 0, 0]);
        let fragment = |offset: u16| {
            let [high, low] = (offset << 3 | 1).to_be_bytes();
            (44_u8, vec![0, 0, high, low, 0, 0, 0, 9])
        };
        let authentication =
            (51_u8, vec![0, 4, 0, 0, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        let packets6 = [
            ("hop-by-hop, destination, udp", 17, chain(&[options(0), options(60)], 17, &udp)),
            ("first fragment", 17, chain(&[fragment(0)], 17, &udp)),
            ("later fragment", 17, chain(&[fragment(50)], 17, &udp)),
            ("authentication", 17, chain(&[authentication], 17, &udp)),
            ("more options than anybody sends", 60, chain(&vec![options(60); 8], 17, &udp)),
            ("cut in its options", 60, chain(&[], 60, &[17, 0])),
            ("icmpv6 echo", 58, chain(&[], 58, &padded(&[128, 0], 40))),
            ("nothing follows", 59, chain(&[], 59, &[])),
        ];
        for (what, protocol, (next, payload)) in packets6 {
            let mut packet = vec![0x60, 0, 0, 0];
            packet.extend(u16::try_from(payload.len())?.to_be_bytes());
            packet.extend([next, 64]);
            packet.extend(source6().octets());
            packet.extend(ipv6.octets());
            packet.extend(payload);
            raw6(ipv6, &packet)?;
            println!("{protocol} {} {what}", packet.len());
        }
        Ok(())
    }

    fn source6() -> Ipv6Addr {
        Ipv6Addr::new(0xfd09, 0, 0, 0, 0, 0, 0, 1)
    }

    fn padded(start: &[u8], len: usize) -> Vec<u8> {
        let mut bytes = start.to_vec();
        bytes.resize(len, 0);
        bytes
    }

    fn raw4(to: Ipv4Addr, packet: &[u8]) -> Result<()> {
        // SAFETY: the address is one of plain bytes, and outlives the call.
        unsafe {
            let mut address: libc::sockaddr_in = std::mem::zeroed();
            address.sin_family = libc::AF_INET as libc::sa_family_t;
            address.sin_addr.s_addr = u32::from_ne_bytes(to.octets());
            send_raw(libc::AF_INET, (&raw const address).cast(), size_of::<libc::sockaddr_in>(), packet)
        }
    }

    fn raw6(to: Ipv6Addr, packet: &[u8]) -> Result<()> {
        // SAFETY: as in `raw4`.
        unsafe {
            let mut address: libc::sockaddr_in6 = std::mem::zeroed();
            address.sin6_family = libc::AF_INET6 as libc::sa_family_t;
            address.sin6_addr.s6_addr = to.octets();
            send_raw(libc::AF_INET6, (&raw const address).cast(), size_of::<libc::sockaddr_in6>(), packet)
        }
    }

    /// Sends a packet that has its own IP header (raw(7): `IPPROTO_RAW` means that).
    unsafe fn send_raw(family: i32, address: *const libc::sockaddr, len: usize, packet: &[u8]) -> Result<()> {
        // SAFETY: the caller's address has `len` bytes; the descriptor is closed here.
        let sent = unsafe {
            let socket = libc::socket(family, libc::SOCK_RAW | libc::SOCK_CLOEXEC, libc::IPPROTO_RAW);
            ensure!(socket >= 0, "raw socket: {}", io::Error::last_os_error());
            let sent = libc::sendto(
                socket,
                packet.as_ptr().cast(),
                packet.len(),
                0,
                address,
                len as libc::socklen_t,
            );
            libc::close(socket);
            sent
        };
        ensure!(sent == packet.len() as isize, "send {} bytes: {}", packet.len(), io::Error::last_os_error());
        Ok(())
    }
}
