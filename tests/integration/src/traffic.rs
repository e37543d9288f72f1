//! Starts and stops the traffic maker (`src/bin/traffic.rs`) in pods.

use std::{
    io::{BufRead, BufReader, Write},
    process::{Child, ChildStdout, Stdio},
    time::{Duration, Instant},
};

use crate::net::{Cgroup, Namespace, command_in};

/// A running traffic maker; killed when dropped.
#[derive(Debug)]
pub struct Traffic {
    child: Child,
    output: BufReader<ChildStdout>,
    line: String,
}

impl Traffic {
    /// Starts `traffic <arguments>` in a pod. `program` is `env!("CARGO_BIN_EXE_traffic")`.
    #[track_caller]
    pub fn start(program: &str, cgroup: &Cgroup, namespace: &Namespace, arguments: &str) -> Self {
        let mut child = command_in(cgroup, namespace, program)
            .args(arguments.split_whitespace())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| panic!("start traffic {arguments}: {error}"));
        let output = BufReader::new(child.stdout.take().expect("stdout is piped"));
        Self { child, output, line: arguments.to_owned() }
    }

    /// Starts a server, and returns when it listens.
    #[track_caller]
    pub fn server(program: &str, cgroup: &Cgroup, namespace: &Namespace, arguments: &str) -> Self {
        let mut server = Self::start(program, cgroup, namespace, arguments);
        assert_eq!(server.read_line(), "ready", "traffic {arguments}");
        server
    }

    /// The next line that it prints; empty at its end.
    pub fn read_line(&mut self) -> String {
        let mut line = String::new();
        self.output.read_line(&mut line).unwrap_or_else(|error| panic!("traffic {}: {error}", self.line));
        line.trim_end().to_owned()
    }

    /// Sends it a line of input.
    #[track_caller]
    pub fn say(&mut self, line: &str) {
        let input = self.child.stdin.as_mut().expect("stdin is piped");
        writeln!(input, "{line}").unwrap_or_else(|error| panic!("traffic {}: {error}", self.line));
    }

    /// Ends its input.
    pub fn hang_up(&mut self) {
        self.child.stdin = None;
    }

    /// Process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Whether it has ended; panics when it has failed.
    #[track_caller]
    pub fn ended(&mut self) -> bool {
        match self.child.try_wait().expect("wait for traffic") {
            None => false,
            Some(status) => {
                assert!(status.success(), "traffic {}: {status}", self.line);
                true
            }
        }
    }

    /// Waits for its end, calling `meanwhile` now and then; panics when it fails or takes longer than `limit`.
    #[track_caller]
    pub fn wait(mut self, limit: Duration, mut meanwhile: impl FnMut()) {
        let deadline = Instant::now() + limit;
        while !self.ended() {
            assert!(Instant::now() < deadline, "traffic {}: not done within {limit:?}", self.line);
            meanwhile();
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Traffic {
    fn drop(&mut self) {
        let _ended = self.child.kill();
        let _status = self.child.wait();
    }
}
