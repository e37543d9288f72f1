//! The demo's client: a page every second, now and then a connection that is refused or reaches nobody. It writes down
//! how many connections it tried, so that a test can hold the records against its count.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::sync::mpsc::RecvTimeoutError;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::Context;
use weir_common::{exit, file};

use super::place;
use crate::arguments::DemoClient;

/// How many connections were tried.
#[derive(Clone, Copy, Default)]
struct Counts {
    http: u64,
    refused: u64,
    dead: u64,
}

/// Makes connections until standard input ends.
pub(crate) fn run(arguments: &DemoClient) -> anyhow::Result<u8> {
    let DemoClient { place, server, closed, dead, counts: path } = arguments;
    place::enter(place, c"demo-client")?;
    let done = place::until_parent_is_done();
    let mut counts = Counts::default();
    // It takes three seconds until the kernel gives up on a neighbour: meanwhile the pages go on.
    let mut unanswered: Option<JoinHandle<()>> = None;
    for second in 0u64.. {
        counts.http += 1;
        fetch(*server, if second % 5 == 4 { "/large" } else { "/" })
            .with_context(|| format!("fetch from http://{server}"))?;
        if second % 4 == 1 {
            counts.refused += 1;
            let refused = TcpStream::connect_timeout(closed, TIMEOUT);
            anyhow::ensure!(refused.is_err(), "somebody listens on {closed}");
        }
        if second % 6 == 0 && unanswered.as_ref().is_none_or(JoinHandle::is_finished) {
            counts.dead += 1;
            let dead = *dead;
            unanswered = Some(thread::spawn(move || {
                let _ = TcpStream::connect_timeout(&dead, TIMEOUT);
            }));
        }
        counts.write(path)?;
        if done.recv_timeout(Duration::from_secs(1)) != Err(RecvTimeoutError::Timeout) {
            break;
        }
    }
    // The last failing connection too is to end by itself.
    if let Some(unanswered) = unanswered {
        let _ = unanswered.join();
    }
    Ok(exit::OK)
}

impl Counts {
    fn write(self, path: &Path) -> anyhow::Result<()> {
        let Self { http, refused, dead } = self;
        let counts = serde_json::json!({
            "http": http, "refused": refused, "dead": dead, "connections": http + refused + dead,
        });
        Ok(file::atomic_write(path, counts.to_string().as_bytes())?)
    }
}

fn fetch(server: SocketAddr, page: &str) -> std::io::Result<()> {
    let mut connection = TcpStream::connect_timeout(&server, TIMEOUT)?;
    connection.set_read_timeout(Some(TIMEOUT))?;
    write!(connection, "GET {page} HTTP/1.1\r\nHost: {server}\r\nConnection: close\r\n\r\n")?;
    connection.read_to_end(&mut Vec::new())?;
    Ok(())
}

const TIMEOUT: Duration = Duration::from_secs(10);
