//! Makes traffic whose size is known: for tests that compare it with what was captured.
//!
//!   traffic serve-tcp ADDRESS WORKERS            answer each request with as many bytes as it asks for
//!   traffic connect-tcp ADDRESS COUNT UP DOWN THREADS   COUNT connections: send UP bytes, close, read DOWN bytes
//!   traffic abandon-tcp ADDRESS COUNT            COUNT connections that the client closes first
//!   traffic hold-tcp ADDRESS UP                  connect, print `connected`, and send UP bytes per line of input
//!   traffic try-tcp ADDRESS MILLISECONDS         connect, give up after that time (0: never), print the error
//!   traffic reset-tcp ADDRESS                    connect, and reset the connection
//!   traffic serve-udp ADDRESS                    receive, and echo one byte per datagram
//!   traffic send-udp ADDRESS COUNT SIZE SOCKETS  COUNT datagrams of SIZE bytes from SOCKETS sockets
//!
//! Servers print `ready` when they listen, and run until they are killed. Clients print how many connections they made.

use std::{
    env,
    io::{self, BufRead, Read, Write},
    net::{Shutdown, TcpListener, TcpStream, UdpSocket},
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
        ["reset-tcp", address] => reset_tcp(address),
        ["serve-udp", address] => serve_udp(address),
        ["send-udp", address, count, size, sockets] => {
            send_udp(address, count.parse()?, size.parse()?, sockets.parse()?)
        }
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
