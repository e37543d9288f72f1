//! An S3 server (moto) for tests, and weather between it and the program under test: a proxy that cuts connections,
//! answers for the server, or loses its answers.
//!
//! `scripts/setup.sh test` installs moto; where it is missing a test fails in CI and is skipped, with the reason,
//! elsewhere. moto keeps objects in memory, so the server itself lives as long as its test: to whoever speaks to it
//! through the proxy, [`Weather::Down`] is a server that was killed.

use std::io::{Read, Write as _};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use crate::process::{Process, free_address, wait_for};

/// The bucket that every server begins with.
pub const BUCKET: &str = "flows";

/// A running server with an empty bucket.
#[derive(Debug)]
pub struct S3 {
    python: PathBuf,
    address: SocketAddr,
    _process: Process,
}

impl S3 {
    /// Starts one; its log goes to `dir`. `None`, with the reason printed, where there is none.
    ///
    /// # Panics
    /// When there is none and `CI` is set.
    pub fn start(dir: &Path) -> Option<Self> {
        let cached = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../../.cache/venv/bin/python"));
        let python = std::env::var_os("WEIR_PYTHON").map_or_else(|| cached.to_owned(), PathBuf::from);
        let found = Command::new(&python).args(["-c", "import moto.server, boto3"]).output();
        if !found.as_ref().is_ok_and(|output| output.status.success()) {
            assert!(
                std::env::var_os("CI").is_none(),
                "moto is missing (scripts/setup.sh test installs it): {found:?}"
            );
            eprintln!("skipped: moto is missing (scripts/setup.sh test installs it): {found:?}");
            return None;
        }
        let address = free_address();
        let port = address.port().to_string();
        let mut command = Command::new(&python);
        command.args(["-m", "moto.server", "-H", "127.0.0.1", "-p", &port]);
        let process = Process::spawn(&mut command, &dir.join("moto.log"));
        wait_for("moto", || process.log_tail(), || TcpStream::connect(address).is_ok());
        let server = Self { python, address, _process: process };
        server.python("s3.create_bucket(Bucket=sys.argv[2])", &[BUCKET]);
        Some(server)
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Copies every object below a prefix into a folder, by its name after the prefix.
    pub fn download(&self, prefix: &str, into: &Path) {
        let script = "
import os
for page in s3.get_paginator('list_objects_v2').paginate(Bucket=sys.argv[2], Prefix=sys.argv[3] + '/'):
    for item in page.get('Contents', []):
        path = os.path.join(sys.argv[4], item['Key'][len(sys.argv[3]) + 1:])
        os.makedirs(os.path.dirname(path), exist_ok=True)
        s3.download_file(sys.argv[2], item['Key'], path)
";
        std::fs::create_dir_all(into).unwrap();
        self.python(script, &[BUCKET, prefix, &into.display().to_string()]);
    }

    /// How many uploads in parts were begun and neither completed nor aborted.
    pub fn unfinished_uploads(&self) -> usize {
        let script = "print(len(s3.list_multipart_uploads(Bucket=sys.argv[2]).get('Uploads', [])))";
        self.python(script, &[BUCKET]).trim().parse().unwrap()
    }

    /// Runs a script with `s3` as its client; gives what it printed.
    fn python(&self, script: &str, arguments: &[&str]) -> String {
        let head = "import sys, boto3
s3 = boto3.client('s3', endpoint_url=sys.argv[1], region_name='us-east-1', aws_access_key_id='test', aws_secret_access_key='test')
";
        let mut command = Command::new(&self.python);
        command
            .arg("-c")
            .arg(format!("{head}{script}"))
            .arg(format!("http://{}", self.address))
            .args(arguments);
        let output = command.output().unwrap();
        assert!(output.status.success(), "{script}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).into_owned()
    }
}

/// Options of a store at an address, as the sink takes them.
pub fn options(address: SocketAddr) -> [(String, String); 5] {
    let endpoint = format!("http://{address}");
    let pairs = [
        ("endpoint", endpoint.as_str()),
        ("allow_http", "true"),
        ("region", "us-east-1"),
        ("access_key_id", "test"),
        ("secret_access_key", "test"),
    ];
    pairs.map(|(name, value)| (name.to_owned(), value.to_owned()))
}

/// What is between client and server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Weather {
    /// Everything passes.
    Fair,
    /// Connections are reset and refused, as by a server that was killed.
    Down,
    /// The server does what it is asked, and its answers are lost.
    AnswersLost,
    /// Every request gets this answer: status line and body.
    Answer(&'static str, &'static str),
}

/// What an overloaded S3 says.
pub const SLOW_DOWN: Weather = Weather::Answer(
    "503 Slow Down",
    "<Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>",
);
/// What it says to a wrong key.
pub const WRONG_KEY: Weather = Weather::Answer(
    "403 Forbidden",
    "<Error><Code>SignatureDoesNotMatch</Code><Message>Check your key and signing method.</Message></Error>",
);

/// See the module.
#[derive(Debug)]
pub struct Proxy {
    address: SocketAddr,
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    backend: SocketAddr,
    weather: Mutex<Weather>,
    streams: Mutex<Vec<TcpStream>>,
    listener: Mutex<Option<TcpListener>>,
    end: AtomicBool,
}

impl Proxy {
    /// One before a server, in fair weather.
    pub fn start(backend: SocketAddr) -> Self {
        let listener = listen("127.0.0.1:0".parse().unwrap());
        let address = listener.local_addr().unwrap();
        let shared = Arc::new(Shared {
            backend,
            weather: Mutex::new(Weather::Fair),
            streams: Mutex::default(),
            listener: Mutex::new(Some(listener)),
            end: AtomicBool::new(false),
        });
        thread::spawn({
            let shared = Arc::clone(&shared);
            move || accept(&shared)
        });
        Self { address, shared }
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Changes the weather; open connections end.
    pub fn set(&self, weather: Weather) {
        *self.shared.weather.lock().unwrap() = weather;
        let mut listener = self.shared.listener.lock().unwrap();
        match weather {
            Weather::Down => *listener = None,
            _ if listener.is_none() => *listener = Some(listen(self.address)),
            _ => {}
        }
        for stream in self.shared.streams.lock().unwrap().drain(..) {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.shared.end.store(true, Ordering::Release);
        self.set(Weather::Down);
    }
}

fn listen(address: SocketAddr) -> TcpListener {
    let listener = TcpListener::bind(address).unwrap();
    listener.set_nonblocking(true).unwrap();
    listener
}

fn accept(shared: &Arc<Shared>) {
    while !shared.end.load(Ordering::Acquire) {
        let accepted = shared.listener.lock().unwrap().as_ref().and_then(|listener| listener.accept().ok());
        let Some((stream, _)) = accepted else {
            thread::park_timeout(Duration::from_millis(2));
            continue;
        };
        stream.set_nonblocking(false).unwrap();
        let weather = *shared.weather.lock().unwrap();
        shared.streams.lock().unwrap().push(stream.try_clone().unwrap());
        let shared = Arc::clone(shared);
        thread::spawn(move || serve(&shared, stream, weather));
    }
}

/// One connection, to its end; errors are its end.
fn serve(shared: &Shared, client: TcpStream, weather: Weather) {
    match weather {
        Weather::Down => {}
        Weather::Answer(status, body) => answer(client, status, body),
        Weather::Fair | Weather::AnswersLost => {
            let Ok(server) = TcpStream::connect(shared.backend) else { return };
            shared.streams.lock().unwrap().push(server.try_clone().unwrap());
            let (mut from, mut to) = (client.try_clone().unwrap(), server.try_clone().unwrap());
            thread::spawn(move || {
                let _ = std::io::copy(&mut from, &mut to);
                let _ = to.shutdown(Shutdown::Write);
            });
            let (mut from, mut to) = (server, client);
            if weather == Weather::AnswersLost {
                // The first byte of the answer: the request was carried out.
                let _ = from.read(&mut [0]);
                let _ = from.shutdown(Shutdown::Both);
            } else {
                let _ = std::io::copy(&mut from, &mut to);
            }
            let _ = to.shutdown(Shutdown::Both);
        }
    }
}

fn answer(mut client: TcpStream, status: &str, body: &str) {
    let _ = client.set_read_timeout(Some(Duration::from_secs(10)));
    let mut request = Vec::new();
    let mut buffer = [0; 16 << 10];
    // Reads the whole request, so that the answer is not lost to a reset.
    loop {
        let text = String::from_utf8_lossy(&request).to_ascii_lowercase();
        if let Some((head, _)) = text.split_once("\r\n\r\n") {
            let length =
                head.split("content-length: ").nth(1).and_then(|rest| rest.lines().next()?.parse().ok());
            if request.len() >= head.len() + 4 + length.unwrap_or(0) {
                break;
            }
        }
        match client.read(&mut buffer) {
            Ok(0) | Err(_) => return,
            Ok(read) => request.extend_from_slice(&buffer[..read]),
        }
    }
    let length = body.len();
    let _ =
        write!(client, "HTTP/1.1 {status}\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{body}");
}
