//! The demo's HTTP server: one small and one large page, one connection at a time.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::time::Duration;

use anyhow::Context;
use weir_common::exit;

use super::place;
use crate::arguments::DemoServer;

/// Serves until standard input ends. Prints `ready` once it listens.
pub(crate) fn run(arguments: &DemoServer) -> anyhow::Result<u8> {
    place::enter(&arguments.place, c"demo-server")?;
    let listener =
        TcpListener::bind(arguments.listen).with_context(|| format!("listen on {}", arguments.listen))?;
    println!("ready");
    let done = place::until_parent_is_done();
    std::thread::spawn(move || {
        let _ = done.recv();
        std::process::exit(i32::from(exit::OK));
    });
    for connection in listener.incoming() {
        // A client that breaks off is its own affair.
        let _ = connection.and_then(|connection| answer(&connection));
    }
    Ok(exit::OK)
}

fn answer(mut connection: &TcpStream) -> std::io::Result<()> {
    connection.set_read_timeout(Some(Duration::from_secs(5)))?;
    let mut request = Vec::new();
    let mut buffer = [0; 2048];
    while !request.windows(4).any(|end| end == b"\r\n\r\n") && request.len() < REQUEST_BYTES_MAX {
        let read = connection.read(&mut buffer)?;
        if read == 0 {
            return Ok(());
        }
        request.extend_from_slice(&buffer[..read]);
    }
    let length = if request.starts_with(b"GET /large ") { LARGE_BYTES } else { SMALL_BYTES };
    write!(connection, "HTTP/1.1 200 OK\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n")?;
    connection.write_all(&vec![b'.'; length])?;
    connection.shutdown(Shutdown::Write)?;
    // Wait for the client's end, so that closing does not answer its last bytes with a reset.
    while connection.read(&mut buffer)? > 0 {}
    Ok(())
}

const REQUEST_BYTES_MAX: usize = 16 << 10;
const SMALL_BYTES: usize = 8 << 10;
const LARGE_BYTES: usize = 1 << 20;
