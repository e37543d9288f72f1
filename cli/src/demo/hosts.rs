//! The two hosts: namespaces, the wire between them, their processes, and their end.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::Context;

use super::leftovers;

/// What every namespace and cgroup of a demo begins with; the process id of its `weir up` follows.
pub(super) const PREFIX: &str = "weir-demo-";
/// Where `ip netns` keeps its files (ip-netns(8)).
pub(super) const NETNS_FOLDER: &str = "/run/netns";

/// The demo's network: TEST-NET-1, which is nobody's (RFC 5737).
pub(crate) const NETWORK: &str = "192.0.2.0/24";
const CLIENT: &str = "192.0.2.1/24";
const SERVER: &str = "192.0.2.2/24";
const HTTP: &str = "192.0.2.2:80";
const CLOSED: &str = "192.0.2.2:81";
/// On the wire's network, but nobody has it: the kernel finds no neighbour.
const DEAD: &str = "192.0.2.99:80";

/// A running demo. Dropping it takes everything away.
pub(crate) struct Demo {
    name: String,
    cgroups: PathBuf,
    server: Option<Child>,
    client: Option<Child>,
}

impl Demo {
    /// Makes the hosts; nothing runs in them yet. Also removes what killed runs left.
    pub(crate) fn new() -> anyhow::Result<Self> {
        let cgroups = cgroup_root()?;
        leftovers::remove_of_the_dead(&cgroups);
        let name = format!("{PREFIX}{}", std::process::id());
        // From here on a failure drops what was made.
        let demo = Self { name, cgroups, server: None, client: None };
        for host in ["a", "b"] {
            let cgroup = demo.cgroup(host);
            fs::create_dir_all(&cgroup).with_context(|| format!("make cgroup {}", cgroup.display()))?;
            ip(&["netns", "add", &demo.netns(host)])?;
        }
        let (a, b) = (demo.netns("a"), demo.netns("b"));
        ip(&["link", "add", "eth0", "netns", &a, "type", "veth", "peer", "name", "eth0", "netns", &b])?;
        for (netns, address) in [(&a, CLIENT), (&b, SERVER)] {
            ip(&["-n", netns, "address", "add", address, "dev", "eth0"])?;
            ip(&["-n", netns, "link", "set", "lo", "up"])?;
            ip(&["-n", netns, "link", "set", "eth0", "up"])?;
        }
        Ok(demo)
    }

    /// Starts the server, and the client once the server listens. The client keeps its counts in `counts`.
    pub(crate) fn start(&mut self, counts: &Path) -> anyhow::Result<()> {
        let mut server = self.spawn("b", &["demo-server", "--listen", HTTP])?;
        let output = server.stdout.take();
        self.server = Some(server);
        let mut line = String::new();
        if let Some(output) = output {
            BufReader::new(output).read_line(&mut line)?;
        }
        anyhow::ensure!(line == "ready\n", "the demo's server did not start");
        let counts = counts.to_str().context("the data folder's name is not UTF-8")?;
        let arguments =
            ["demo-client", "--server", HTTP, "--closed", CLOSED, "--dead", DEAD, "--counts", counts];
        self.client = Some(self.spawn("a", &arguments)?);
        Ok(())
    }

    /// Ends client and server, in this order and in their own way, so that every connection is closed; by force when
    /// that takes too long. The hosts stay until the drop.
    pub(crate) fn stop(&mut self) {
        for process in [&mut self.client, &mut self.server] {
            let Some(mut child) = process.take() else { continue };
            // It ends when its standard input does.
            drop(child.stdin.take());
            let deadline = Instant::now() + STOP_MAX;
            while matches!(child.try_wait(), Ok(None)) && Instant::now() < deadline {
                std::thread::sleep(Duration::from_millis(10));
            }
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    fn spawn(&self, host: &str, arguments: &[&str]) -> anyhow::Result<Child> {
        let program = std::env::current_exe().context("find this program's file")?;
        // A group of its own: Ctrl-C on the terminal must not end it before its connections are closed.
        let mut command = Command::new(program);
        std::os::unix::process::CommandExt::process_group(&mut command, 0)
            .args(arguments)
            .arg("--netns")
            .arg(Path::new(NETNS_FOLDER).join(self.netns(host)))
            .arg("--cgroup")
            .arg(self.cgroup(host))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("start {}", arguments[0]))
    }

    fn netns(&self, host: &str) -> String {
        format!("{}-{host}", self.name)
    }

    fn cgroup(&self, host: &str) -> PathBuf {
        self.cgroups.join(&self.name).join(host)
    }
}

impl Drop for Demo {
    fn drop(&mut self) {
        for mut child in [self.client.take(), self.server.take()].into_iter().flatten() {
            let _ = child.kill();
            let _ = child.wait();
        }
        leftovers::remove(&self.name, &self.cgroups);
    }
}

/// Where cgroup v2 is mounted: `/sys/fs/cgroup`, or `/sys/fs/cgroup/unified` on a hybrid host.
fn cgroup_root() -> anyhow::Result<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").context("read /proc/self/mountinfo")?;
    mount_of("cgroup2", &mounts).context("cgroup v2 is not mounted, which the capture needs")
}

/// The first mount point of a file system type in a mountinfo table (proc(5)).
fn mount_of(kind: &str, mounts: &str) -> Option<PathBuf> {
    mounts.lines().find_map(|line| {
        let (mount, rest) = line.split_once(" - ")?;
        let point = mount.split(' ').nth(4)?;
        (rest.split(' ').next()? == kind).then(|| PathBuf::from(point))
    })
}

fn ip(arguments: &[&str]) -> anyhow::Result<()> {
    let output = Command::new("ip")
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .context("start ip, which Debian's package iproute2 has")?;
    let words = String::from_utf8_lossy(&output.stderr);
    anyhow::ensure!(output.status.success(), "ip {}: {}", arguments.join(" "), words.trim());
    Ok(())
}

/// The client may wait three seconds for its last failing connection.
const STOP_MAX: Duration = Duration::from_secs(15);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mount_point_of_cgroup_v2_is_found() {
        let table = "30 25 0:26 / /sys/fs/cgroup rw - tmpfs tmpfs rw\n\
                     31 30 0:27 / /sys/fs/cgroup/unified rw,relatime shared:9 - cgroup2 cgroup2 rw\n";
        assert_eq!(mount_of("cgroup2", table), Some(PathBuf::from("/sys/fs/cgroup/unified")));
        assert_eq!(mount_of("bpf", table), None);
    }
}
