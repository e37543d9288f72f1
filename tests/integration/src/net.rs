//! Hosts made of network namespaces, pods made of cgroups, and nftables counters to judge by.
//!
//! Everything is named by process and number, so that tests run side by side, and is removed when dropped.

use std::{
    fs::{self, File},
    io::{self, Write},
    os::{fd::AsRawFd, unix::process::CommandExt},
    path::{Path, PathBuf},
    process::{Command, Output},
    sync::atomic::{AtomicU32, Ordering},
    time::{Duration, Instant},
};

static NUMBER: AtomicU32 = AtomicU32::new(0);

/// A name that no other test and no other process has: at most 12 characters, as interfaces allow 15.
pub fn unique() -> String {
    format!("w{:x}-{}", std::process::id() & 0xf_ffff, NUMBER.fetch_add(1, Ordering::Relaxed))
}

/// Whether tests with a real kernel can run: root, cgroup v2, BTF, and the tools. Where not, prints why and returns
/// `false`.
///
/// # Panics
/// With `CI=true`, where a missing need is a failure.
pub fn kernel_tests_possible() -> bool {
    match missing_need() {
        None => true,
        Some(need) if std::env::var("CI").is_ok_and(|ci| ci == "true") => panic!("this test needs {need}"),
        Some(need) => {
            eprintln!("skipped: this test needs {need}");
            false
        }
    }
}

fn missing_need() -> Option<String> {
    // SAFETY: geteuid has no arguments and cannot fail.
    if unsafe { libc::geteuid() } != 0 {
        return Some("root".to_owned());
    }
    if !Path::new("/sys/kernel/btf/vmlinux").exists() {
        return Some("a kernel with BTF".to_owned());
    }
    if !matches!(weir_shipper::cgroup::cgroup2_root(), Ok(Some(_))) {
        return Some("a mounted cgroup v2 hierarchy".to_owned());
    }
    for (tool, package) in
        [("ip", "iproute2"), ("nft", "nftables"), ("ethtool", "ethtool"), ("sysctl", "procps")]
    {
        if Command::new(tool).arg("--version").output().is_err() {
            return Some(format!("the command {tool} (apt-get install {package})"));
        }
    }
    None
}

/// Runs a command line, and panics with its output when it fails.
#[track_caller]
pub fn run(line: &str) -> Output {
    let mut words = line.split_whitespace();
    let output = Command::new(words.next().unwrap_or_default()).args(words).output();
    let output = output.unwrap_or_else(|error| panic!("{line}: {error}"));
    assert!(
        output.status.success(),
        "{line}: {}\n{}{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    output
}

/// Waits until `done` returns something; panics with `what` after `limit`.
#[track_caller]
pub fn wait_for<T>(what: &str, limit: Duration, mut done: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + limit;
    loop {
        if let Some(value) = done() {
            return value;
        }
        assert!(Instant::now() < deadline, "{what}: not within {limit:?}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// A network namespace: a host, or the network of a pod.
#[derive(Debug)]
pub struct Namespace {
    name: String,
}

impl Namespace {
    /// A new one, with loopback up and room for many short connections.
    pub fn new() -> Self {
        Self::named(unique())
    }

    /// As [`Namespace::new`], with a name that [`unique`] gave before.
    pub fn named(name: String) -> Self {
        run(&format!("ip netns add {name}"));
        let namespace = Self { name };
        namespace.ip("link set lo up");
        namespace.sysctl("net.ipv4.ip_local_port_range", "1100 65000");
        namespace.sysctl("net.ipv4.ip_forward", "1");
        namespace.sysctl("net.ipv6.conf.all.forwarding", "1");
        namespace
    }

    /// Its name, as `ip netns` has it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Where `ip netns` has put it.
    pub fn path(&self) -> String {
        format!("/run/netns/{}", self.name)
    }

    /// `ip -n <this> …`
    #[track_caller]
    pub fn ip(&self, arguments: &str) {
        run(&format!("ip -n {} {arguments}", self.name));
    }

    /// `ip netns exec <this> …`
    #[track_caller]
    pub fn exec(&self, line: &str) -> Output {
        run(&format!("ip netns exec {} {line}", self.name))
    }

    /// Sets a sysctl of this namespace.
    #[track_caller]
    pub fn sysctl(&self, key: &str, value: &str) {
        let output = Command::new("ip")
            .args(["netns", "exec", &self.name, "sysctl", "-qw", &format!("{key}={value}")])
            .output()
            .expect("run sysctl");
        assert!(output.status.success(), "sysctl {key}={value}: {}", String::from_utf8_lossy(&output.stderr));
    }

    /// Loads an nftables ruleset here.
    #[track_caller]
    pub fn nft(&self, rules: &str) {
        let mut child = Command::new("ip")
            .args(["netns", "exec", &self.name, "nft", "-f", "-"])
            .stdin(std::process::Stdio::piped())
            .stderr(std::process::Stdio::piped())
            .spawn()
            .expect("run nft");
        child.stdin.take().expect("stdin is piped").write_all(rules.as_bytes()).expect("write rules");
        let output = child.wait_with_output().expect("wait for nft");
        assert!(output.status.success(), "nft: {}\n{rules}", String::from_utf8_lossy(&output.stderr));
    }

    /// Counts every packet of each protocol that this host sends and receives, on any interface.
    pub fn count(&self) {
        let mut rules = String::from("table inet weir {\n");
        for (direction, hook) in [("out", "output priority 300"), ("in", "input priority -300")] {
            let mut chain = format!("chain {direction} {{ type filter hook {hook};\n");
            for protocol in ["tcp", "udp", "icmp", "icmpv6", "sctp"] {
                rules.push_str(&format!("counter {protocol}_{direction} {{ }}\n"));
                chain.push_str(&format!("meta l4proto {protocol} counter name {protocol}_{direction}\n"));
            }
            rules.push_str(&chain);
            rules.push_str("}\n");
        }
        rules.push_str("}\n");
        self.nft(&rules);
    }

    /// A counter made by [`Namespace::count`], such as `tcp_out`.
    #[track_caller]
    pub fn counted(&self, counter: &str) -> Bytes {
        let output = self.exec(&format!("nft list counter inet weir {counter}"));
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let mut words = text.split_whitespace();
        let mut number = |name: &str| -> u64 {
            words
                .find(|word| *word == name)
                .and_then(|_| words.next()?.parse().ok())
                .expect("nft prints counters")
        };
        Bytes { packets: number("packets"), bytes: number("bytes") }
    }
}

impl Default for Namespace {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let _gone = Command::new("ip").args(["netns", "del", &self.name]).output();
    }
}

/// Packets and IP bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Bytes {
    /// Packets.
    pub packets: u64,
    /// Bytes.
    pub bytes: u64,
}

/// Connects two namespaces with a pair of veth devices, each named like its namespace's peer, and gives each its
/// IPv4 and IPv6 addresses (`10.9.0.1/24`, `fd09::1/64`, …).
pub fn veth(a: &Namespace, a_addresses: &[&str], b: &Namespace, b_addresses: &[&str]) -> (String, String) {
    let (a_device, b_device) = (unique(), unique());
    run(&format!("ip link add {a_device} netns {} type veth peer name {b_device} netns {}", a.name, b.name));
    for (namespace, device, addresses) in [(a, &a_device, a_addresses), (b, &b_device, b_addresses)] {
        for address in addresses {
            let nodad = if address.contains(':') { " nodad" } else { "" };
            namespace.ip(&format!("addr add {address} dev {device}{nodad}"));
        }
        namespace.ip(&format!("link set {device} up"));
    }
    (a_device, b_device)
}

/// Turns every offload of a device off, so that nftables sees the packets of the wire.
pub fn offloads_off(namespace: &Namespace, device: &str) {
    namespace.exec(&format!("ethtool -K {device} gro off gso off tso off sg off tx off rx off"));
}

/// A cgroup: a pod, or the part of the tree that a test captures.
#[derive(Debug)]
pub struct Cgroup {
    path: PathBuf,
}

impl Cgroup {
    /// A new one below the root.
    pub fn new() -> Self {
        let root =
            weir_shipper::cgroup::cgroup2_root().expect("read mountinfo").expect("cgroup v2 is mounted");
        Self::at(root.join(unique()))
    }

    /// A new one below this one.
    pub fn child(&self, name: &str) -> Self {
        Self::at(self.path.join(name))
    }

    fn at(path: PathBuf) -> Self {
        fs::create_dir_all(&path).unwrap_or_else(|error| panic!("create {}: {error}", path.display()));
        Self { path }
    }

    /// Where it is mounted.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Its path in the hierarchy.
    pub fn name(&self) -> String {
        let root =
            weir_shipper::cgroup::cgroup2_root().expect("read mountinfo").expect("cgroup v2 is mounted");
        format!("/{}", self.path.strip_prefix(root).expect("it is below the root").display())
    }

    /// Removes it now; the processes in it must be gone.
    pub fn remove(&self) {
        wait_for(
            &format!("remove {}", self.path.display()),
            Duration::from_secs(10),
            || match fs::remove_dir(&self.path) {
                Ok(()) => Some(()),
                Err(error) if error.kind() == io::ErrorKind::NotFound => Some(()),
                Err(_) => None,
            },
        );
    }
}

impl Default for Cgroup {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        let deadline = Instant::now() + Duration::from_secs(5);
        while self.path.exists() && fs::remove_dir(&self.path).is_err() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

/// A command that will run in that cgroup and that namespace from its first instruction on.
pub fn command_in(cgroup: &Cgroup, namespace: &Namespace, program: impl AsRef<Path>) -> Command {
    let procs =
        File::options().write(true).open(cgroup.path.join("cgroup.procs")).expect("open cgroup.procs");
    let net = File::open(format!("/run/netns/{}", namespace.name)).expect("open namespace");
    let mut command = Command::new(program.as_ref());
    // SAFETY: between fork and exec only system calls are made, on files that were opened before.
    unsafe {
        command.pre_exec(move || {
            if libc::write(procs.as_raw_fd(), c"0".as_ptr().cast(), 1) != 1
                || libc::setns(net.as_raw_fd(), libc::CLONE_NEWNET) != 0
            {
                return Err(io::Error::last_os_error());
            }
            Ok(())
        });
    }
    command
}
