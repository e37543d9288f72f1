//! A process of the demo enters its host: cgroup, network namespace, name.

use std::ffi::CStr;
use std::fs::{self, File};
use std::io::Read;
use std::os::fd::AsFd;
use std::sync::mpsc;

use anyhow::Context;
use rustix::thread::LinkNameSpaceType;

use crate::arguments::DemoPlace;

/// Enters the host. Only the calling thread changes its network: call it before the first other thread.
pub(super) fn enter(place: &DemoPlace, name: &CStr) -> anyhow::Result<()> {
    let DemoPlace { netns, cgroup } = place;
    // The cgroup first: joining it before any socket exists is what gives the sockets their identity.
    let procs = cgroup.join("cgroup.procs");
    fs::write(&procs, "0").with_context(|| format!("join {}", procs.display()))?;
    let namespace = File::open(netns).with_context(|| format!("open {}", netns.display()))?;
    rustix::thread::move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))
        .with_context(|| format!("enter {}", netns.display()))?;
    rustix::thread::set_name(name).context("set the process's name")?;
    Ok(())
}

/// A channel that closes when the parent closes our standard input or is gone.
pub(super) fn until_parent_is_done() -> mpsc::Receiver<()> {
    let (sender, receiver) = mpsc::channel();
    std::thread::spawn(move || {
        let _ = std::io::stdin().read_to_end(&mut Vec::new());
        drop(sender);
    });
    receiver
}
