//! Keeps the programs where they belong as namespaces and links come and go.
//!
//! Runs on a thread of its own, which enters the namespaces. The kernel tells of new links at once; new namespaces are
//! looked for several times a second, since nothing tells of them.

use std::{
    collections::{HashMap, HashSet},
    fs, io,
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
    sync::{Arc, mpsc::SyncSender},
    time::Duration,
};

use super::{
    InterfaceConfig, LinkPattern, SharedNames,
    attach::{self, Loader},
    lock,
    namespace::{self, Place},
    netlink::{Changes, Link, Netlink},
};
use crate::probe::sys::Tcx;

/// How often namespaces are looked for, and what failed is tried again.
const PERIOD: Duration = Duration::from_millis(250);
/// The longest part of a namespace's name that is kept in the names of its links.
const PREFIX_MAX: usize = 64;

/// Tells the thread to end.
#[derive(Debug)]
pub(super) struct Stop(OwnedFd);

impl Stop {
    pub(super) fn new() -> io::Result<Self> {
        // SAFETY: no pointers; the descriptor is ours.
        unsafe {
            let fd = libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK);
            if fd < 0 { Err(io::Error::last_os_error()) } else { Ok(Self(OwnedFd::from_raw_fd(fd))) }
        }
    }

    pub(super) fn stop(&self) {
        let one = 1_u64;
        // SAFETY: eight bytes are written from a value that outlives the call. A full counter says stop as well.
        let _written = unsafe { libc::write(self.0.as_raw_fd(), (&raw const one).cast(), 8) };
    }
}

/// A namespace that is watched.
struct Space {
    place: Place,
    number: u32,
    netlink: Netlink,
    changes: Changes,
    /// Something changed, or failed, since it was looked at.
    due: bool,
    attached: HashMap<u32, String>,
    /// What was said of links that could not be attached to, so that it is said once.
    failed: HashSet<u32>,
}

/// What the thread knows.
pub(super) struct Watch {
    config: InterfaceConfig,
    loader: Loader,
    names: SharedNames,
    stop: Arc<Stop>,
    spaces: Vec<Space>,
    /// Places that could not be entered, so that it is said once.
    closed: HashSet<(u64, u64)>,
    problem: Option<String>,
}

impl Watch {
    pub(super) fn new(config: InterfaceConfig, loader: Loader, names: SharedNames, stop: Arc<Stop>) -> Self {
        Self { config, loader, names, stop, spaces: Vec::new(), closed: HashSet::new(), problem: None }
    }

    /// Runs until it is stopped. `first` is told once every link that was there is attached to, with what went wrong.
    pub(super) fn run(mut self, first: &SyncSender<Option<String>>) {
        self.scan();
        // So that a kernel that refuses the programs is known also where no link is there yet.
        if self.loader.is_unused() {
            let problem = self.loader.programs(0, true).err();
            self.problem = self.problem.take().or(problem);
        }
        self.leave_behind();
        // The receiver may have stopped waiting.
        let _late = first.send(self.problem.take());
        while self.wait() {
            self.scan();
        }
    }

    /// Waits for a change, or for the time to look again. `false` when it is to end.
    fn wait(&self) -> bool {
        let of = |fd| libc::pollfd { fd, events: libc::POLLIN, revents: 0 };
        let changes = self.spaces.iter().map(|space| of(space.changes.as_fd().as_raw_fd()));
        let mut fds: Vec<libc::pollfd> =
            std::iter::once(of(self.stop.0.as_raw_fd())).chain(changes).collect();
        // SAFETY: as many descriptors as are said.
        let ready = unsafe {
            libc::poll(fds.as_mut_ptr(), fds.len() as libc::nfds_t, PERIOD.as_millis() as libc::c_int)
        };
        ready <= 0 || fds[0].revents == 0
    }

    fn scan(&mut self) {
        let places = namespace::find(&self.config.namespaces);
        // An open socket would keep a namespace alive whose name is gone.
        let (stay, gone): (Vec<Space>, Vec<Space>) =
            self.spaces.drain(..).partition(|space| places.iter().any(|place| place.id == space.place.id));
        self.spaces = stay;
        for space in gone {
            for (index, name) in &space.attached {
                self.leave(link(space.number, *index), name);
            }
            self.loader.forget(space.number);
            tracing::info!(path = %space.place.path.display(), "network namespace is gone");
        }
        self.closed.retain(|id| places.iter().any(|place| place.id == *id));
        for place in places {
            if self.spaces.iter().all(|space| space.place.id != place.id) {
                self.enter(place);
            }
        }
        let mut spaces = std::mem::take(&mut self.spaces);
        for space in &mut spaces {
            if space.changes.take() || space.due {
                space.due = false;
                if let Err(error) = self.look(space) {
                    // Its name may be gone by the next look.
                    tracing::debug!(%error, path = %space.place.path.display(), "can't look at the links");
                    space.due = true;
                }
            }
        }
        self.spaces = spaces;
    }

    fn enter(&mut self, mut place: Place) {
        if let Some((at, _)) = place.prefix.char_indices().nth(PREFIX_MAX) {
            place.prefix.truncate(at);
            place.prefix.push('/');
        }
        let opened = namespace::enter(&place).and_then(|()| Ok((Changes::open()?, Netlink::open()?)));
        match opened {
            Ok((changes, netlink)) => {
                // The cookie counts namespaces from 1; before kernel 5.14 the inode must do.
                let number = netlink.namespace_cookie().unwrap_or(place.id.1) as u32;
                let (attached, failed) = (HashMap::new(), HashSet::new());
                self.spaces.push(Space { place, number, netlink, changes, due: true, attached, failed });
            }
            Err(error) => {
                // A namespace that is being made is a plain file at first.
                if self.closed.insert(place.id) {
                    tracing::warn!(%error, path = %place.path.display(), "can't enter the network namespace");
                }
            }
        }
    }

    /// Attaches to the links that are chosen, and leaves those that are not, or not there any more.
    fn look(&mut self, space: &mut Space) -> io::Result<()> {
        namespace::enter(&space.place)?;
        let links = space.netlink.links()?;
        let chosen = self.chosen(&links, &space.netlink)?;
        space.failed.retain(|index| chosen.iter().any(|link| link.index == *index));
        let gone: Vec<u32> = space
            .attached
            .keys()
            .filter(|index| chosen.iter().all(|link| link.index != **index))
            .copied()
            .collect();
        for index in gone {
            let Some(name) = space.attached.remove(&index) else { continue };
            self.leave(link(space.number, index), &name);
            tracing::info!(interface = name, "interface is not captured any more");
        }
        for Link { index, name, ethernet, .. } in chosen {
            let (id, name) = (link(space.number, *index), format!("{}{name}", space.place.prefix));
            match space.attached.get(index) {
                Some(known) if *known == name => continue,
                Some(known) => self.rename(id, known, &name),
                None => {}
            }
            match self.loader.attach(id, *ethernet, &name) {
                Ok(()) => {
                    lock(&self.names).attached(id, &name);
                    tracing::info!(interface = name, "interface is captured");
                    space.attached.insert(*index, name);
                    space.failed.remove(index);
                }
                Err(error) if error.is_gone() => space.due = true,
                Err(error) => {
                    space.due = true;
                    if space.failed.insert(*index) {
                        let cause =
                            std::error::Error::source(&error).map(ToString::to_string).unwrap_or_default();
                        tracing::error!(interface = name, %error, cause, "interface is not captured");
                        self.problem.get_or_insert(format!("{name}: {error}: {cause}"));
                    }
                }
            }
        }
        Ok(())
    }

    fn chosen<'a>(&self, links: &'a [Link], netlink: &Netlink) -> io::Result<Vec<&'a Link>> {
        let InterfaceConfig { links: wanted, exclude, .. } = &self.config;
        let asks = wanted.iter().chain(exclude).any(|pattern| *pattern == LinkPattern::Uplink);
        let uplinks = if asks { netlink.uplinks()? } else { HashSet::new() };
        let admitted = |patterns: &[LinkPattern], link: &Link| {
            patterns.iter().any(|pattern| pattern.admits(link, uplinks.contains(&link.index)))
        };
        Ok(links.iter().filter(|link| admitted(wanted, link) && !admitted(exclude, link)).collect())
    }

    /// The pins carry the name.
    fn rename(&self, id: u64, from: &str, to: &str) {
        for direction in [Tcx::Ingress, Tcx::Egress] {
            let _absent =
                fs::rename(self.loader.pin(id, direction, from), self.loader.pin(id, direction, to));
        }
    }

    fn leave(&self, id: u64, name: &str) {
        for direction in [Tcx::Ingress, Tcx::Egress] {
            let path = self.loader.pin(id, direction, name);
            let pin = attach::Pin { path, link: id, direction, name: name.to_owned() };
            if let Err(error) = attach::detach(&pin) {
                tracing::debug!(%error, interface = name, "can't detach");
            }
        }
        lock(&self.names).gone(id);
    }

    /// Takes programs off links that another shipper attached to and that are not chosen now.
    fn leave_behind(&self) {
        let here = |id: u64| {
            self.spaces
                .iter()
                .any(|space| space.number == (id >> 32) as u32 && space.attached.contains_key(&(id as u32)))
        };
        for pin in self.loader.pinned().into_iter().filter(|pin| !here(pin.link)) {
            self.leave(pin.link, &pin.name);
        }
    }
}

/// The number of a link in the flows' keys.
fn link(namespace: u32, index: u32) -> u64 {
    u64::from(namespace) << 32 | u64::from(index)
}
