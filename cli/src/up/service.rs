//! Shipper and aggregator as processes: start, ready, drain, end.

use std::ffi::OsString;
use std::fs::{self, File};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use anyhow::{Context, bail};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tokio::process::{Child, Command};
use tokio::time::{Instant, sleep, timeout};

use crate::adopt;

/// A running process of this same file under another name.
pub(super) struct Service {
    pub(super) name: &'static str,
    child: Child,
    pid: u32,
    log: PathBuf,
    ended: Option<ExitStatus>,
}

impl Service {
    /// Starts `name` with its configuration; its log goes to `<state>/<name>.log`. Waits until it is ready and returns
    /// what it wrote into its ready file.
    pub(super) async fn start(
        name: &'static str,
        config: &Value,
        state: &Path,
    ) -> anyhow::Result<(Self, Value)> {
        Self::start_with(name, config, state, &[], Stdio::null()).await
    }

    /// The same with arguments of its own, and an input.
    pub(super) async fn start_with(
        name: &'static str,
        config: &Value,
        state: &Path,
        arguments: &[OsString],
        input: Stdio,
    ) -> anyhow::Result<(Self, Value)> {
        let log = state.join(format!("{name}.log"));
        let ready = state.join(format!("{name}.ready.json"));
        match fs::remove_file(&ready) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(error).with_context(|| format!("remove {}", ready.display()));
            }
            _ => {}
        }
        let config = write_config(name, config, state)?;
        let output = File::create(&log).with_context(|| format!("create {}", log.display()))?;
        let mut command = command(name)?;
        command.arg("--config").arg(&config).arg("--ready-file").arg(&ready).args(arguments);
        command.stdin(input).stdout(output.try_clone()?).stderr(output);
        let mut command = Command::from(command);
        let child = command.kill_on_drop(true).spawn().with_context(|| format!("start {name}"))?;
        let pid = child.id().context("the process ended at once")?;
        let mut service = Self { name, child, pid, log, ended: None };
        let deadline = Instant::now() + READY_MAX;
        loop {
            if let Ok(text) = fs::read(&ready) {
                let value =
                    serde_json::from_slice(&text).with_context(|| format!("read {}", ready.display()))?;
                return Ok((service, value));
            }
            if let Some(status) = service.child.try_wait()? {
                // It may have been ready before it ended.
                if !ready.exists() {
                    return Err(EndedEarly { code: status.code(), words: service.obituary(status) }.into());
                }
                service.ended = Some(status);
                continue;
            }
            if Instant::now() > deadline {
                bail!(
                    "{name} was not ready within {} s; its log ends so:\n{}",
                    READY_MAX.as_secs(),
                    service.last_words()
                );
            }
            sleep(Duration::from_millis(20)).await;
        }
    }

    pub(super) fn pid(&self) -> u32 {
        self.pid
    }

    /// Waits for the process's end.
    pub(super) async fn ended(&mut self) -> ExitStatus {
        if let Some(status) = self.ended {
            return status;
        }
        match self.child.wait().await {
            Ok(status) => *self.ended.insert(status),
            // waitpid(2) fails only for what is not our child, which it is.
            Err(_) => std::future::pending().await,
        }
    }

    /// The exit code of a process that ended by itself.
    pub(super) fn code(&self) -> Option<i32> {
        self.ended.and_then(|status| status.code())
    }

    /// Asks it to drain and end, and waits at most `max` for that; an error says what became of it.
    pub(super) async fn drain(&mut self, max: Duration) -> anyhow::Result<()> {
        if self.ended.is_none()
            && let Some(pid) = i32::try_from(self.pid).ok().and_then(Pid::from_raw)
        {
            let _ = kill_process(pid, Signal::TERM);
        }
        match timeout(max, self.ended()).await {
            Ok(status) if status.success() => Ok(()),
            Ok(status) => bail!("{}", self.obituary(status)),
            Err(_) => {
                let _ = self.child.kill().await;
                bail!(
                    "{} had not drained after {} s and was killed; see {}",
                    self.name,
                    max.as_secs(),
                    self.log.display()
                )
            }
        }
    }

    /// How it ended, with the end of its log.
    pub(super) fn obituary(&self, status: ExitStatus) -> String {
        format!("{} ended: {status}; its log ends so:\n{}", self.name, self.last_words())
    }

    fn last_words(&self) -> String {
        let text = fs::read(&self.log).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        let lines: Vec<&str> = text.lines().collect();
        let last = &lines[lines.len().saturating_sub(LAST_LINES)..];
        format!("  {}\n({})", last.join("\n  "), self.log.display())
    }
}

/// A program ended before it was ready.
#[derive(Debug)]
pub(super) struct EndedEarly {
    /// Its exit code.
    pub(super) code: Option<i32>,
    words: String,
}

impl std::fmt::Display for EndedEarly {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.words)
    }
}

impl std::error::Error for EndedEarly {}

/// Writes a program's configuration to `<state>/<name>.yaml`. JSON is YAML.
pub(super) fn write_config(name: &str, config: &Value, state: &Path) -> anyhow::Result<PathBuf> {
    let path = state.join(format!("{name}.yaml"));
    fs::write(&path, format!("{config:#}\n")).with_context(|| format!("write {}", path.display()))?;
    Ok(path)
}

/// This file under another name, in a process group of its own: Ctrl-C on the terminal is for `weir up` alone, which
/// ends the others in order.
pub(super) fn command(name: &str) -> anyhow::Result<std::process::Command> {
    let program = std::env::current_exe().context("find this program's file")?;
    let mut command = std::process::Command::new(program);
    command.arg0(name).env(adopt::PARENT, std::process::id().to_string()).process_group(0);
    Ok(command)
}

const READY_MAX: Duration = Duration::from_secs(30);
const LAST_LINES: usize = 12;
