//! Child processes under test: started, awaited, killed, and never left behind.

use std::fs::{File, OpenOptions};
use std::net::{SocketAddr, TcpListener};
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

/// How long any single condition may take, on a loaded machine; passing it is a failure, not a retry.
pub const DEADLINE: Duration = Duration::from_secs(120);

/// A child that dies with its owner. Its output goes to a log file, which a failure shows.
#[derive(Debug)]
pub struct Process {
    child: Child,
    log: PathBuf,
    name: String,
}

impl Process {
    /// Starts it; stdout and stderr are appended to `log`.
    pub fn spawn(command: &mut Command, log: &Path) -> Self {
        let file = OpenOptions::new().create(true).append(true).open(log).unwrap();
        let name = command.get_program().to_string_lossy().rsplit('/').next().unwrap_or_default().to_owned();
        command.stdin(Stdio::null()).stdout(file.try_clone().unwrap()).stderr(file);
        die_with_parent(command);
        let child = command.spawn().unwrap_or_else(|error| panic!("start {command:?}: {error}"));
        Self { child, log: log.to_owned(), name }
    }

    /// Its process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Whether it still runs.
    pub fn is_running(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }

    /// How it ended, if it has.
    pub fn status(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().unwrap()
    }

    /// Ends it by SIGKILL.
    pub fn kill_9(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Asks it to end by SIGTERM.
    pub fn terminate(&self) {
        self.signal(Signal::TERM);
    }

    /// Halts it: it neither reads nor answers nor ends, though its connections stay, and new ones are accepted for it.
    pub fn freeze(&self) {
        self.signal(Signal::STOP);
    }

    /// Has it go on.
    pub fn thaw(&self) {
        self.signal(Signal::CONT);
    }

    fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(i32::try_from(self.id()).unwrap()).unwrap();
        kill_process(pid, signal).unwrap();
    }

    /// Waits for its end, within [`DEADLINE`].
    pub fn wait(&mut self) -> ExitStatus {
        self.wait_within(DEADLINE)
    }

    /// Waits for its end.
    pub fn wait_within(&mut self, limit: Duration) -> ExitStatus {
        let mut status = None;
        let ended = holds_within(limit, || {
            status = self.child.try_wait().unwrap();
            status.is_some()
        });
        assert!(ended, "{} did not end within {limit:?}; its log:\n{}", self.name, self.log_tail());
        status.unwrap()
    }

    /// Waits until it was killed by SIGKILL, as a crash point does.
    pub fn wait_killed(&mut self) {
        let status = self.wait();
        assert_eq!(
            status.signal(),
            Some(9),
            "{} ended with {status}; its log:\n{}",
            self.name,
            self.log_tail()
        );
    }

    /// Waits for its end, which must be a success.
    pub fn wait_success(&mut self) {
        let status = self.wait();
        assert!(status.success(), "{} ended with {status}; its log:\n{}", self.name, self.log_tail());
    }

    /// The last lines that it wrote.
    pub fn log_tail(&self) -> String {
        let text = std::fs::read(&self.log)
            .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
            .unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(60)..].join("\n")
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Has the kernel kill the child when the thread that started it ends, so that no test leaves one behind.
fn die_with_parent(command: &mut Command) {
    // SAFETY: prctl with these arguments is async-signal-safe and touches no memory of ours.
    unsafe {
        command.pre_exec(|| {
            libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
            Ok(())
        });
    }
}

/// Waits until a condition holds, within [`DEADLINE`]; panics with `what` and what `detail` says.
pub fn wait_for(what: &str, detail: impl Fn() -> String, condition: impl FnMut() -> bool) {
    assert!(holds_within(DEADLINE, condition), "waited {DEADLINE:?} for {what}: {}", detail());
}

/// Whether a condition comes to hold within a time.
pub fn holds_within(limit: Duration, mut condition: impl FnMut() -> bool) -> bool {
    let end = Instant::now() + limit;
    loop {
        if condition() {
            return true;
        }
        if Instant::now() >= end {
            return false;
        }
        // A poll of a condition with a deadline; nothing is assumed to have happened after it.
        std::thread::park_timeout(Duration::from_millis(10));
    }
}

/// A loopback address whose port was free a moment ago, for a server that must come back at the same place.
pub fn free_address() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

/// The JSON that a process writes to its `--ready-file`, once it is there.
pub fn ready_file(path: &Path, process: &mut Process) -> serde_json::Value {
    let mut ready = None;
    let appeared = holds_within(DEADLINE, || {
        ready = File::open(path).ok().and_then(|file| serde_json::from_reader(file).ok());
        ready.is_some() || !process.is_running()
    });
    assert!(appeared && ready.is_some(), "{} is not ready; its log:\n{}", path.display(), process.log_tail());
    ready.unwrap()
}

/// One HTTP GET on loopback: status and body.
pub fn http_get(address: SocketAddr, path: &str) -> std::io::Result<(u16, String)> {
    use std::io::{Read as _, Write as _};
    let mut stream = std::net::TcpStream::connect_timeout(&address, Duration::from_secs(5))?;
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    write!(stream, "GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n")?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    let status = text.split(' ').nth(1).and_then(|code| code.parse().ok()).unwrap_or(0);
    let body = text.split_once("\r\n\r\n").map_or("", |(_, body)| body);
    Ok((status, body.to_owned()))
}

/// The sum of all samples of a metric in an OpenMetrics text whose label text contains `labels`.
pub fn metric_sum(text: &str, name: &str, labels: &str) -> Option<f64> {
    let mut sum = None;
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        let Some((series, value)) = line.rsplit_once(' ') else { continue };
        let (series_name, series_labels) = series.split_once('{').unwrap_or((series, ""));
        if series_name == name && series_labels.contains(labels) {
            *sum.get_or_insert(0.0) += value.parse::<f64>().unwrap_or(0.0);
        }
    }
    sum
}
