//! The interface vantage: programs at chosen links of chosen namespaces, kept there as links come and go.
//!
//! `watch` decides and runs on a thread of its own, since entering a namespace is a thread's affair; `attach` loads and
//! pins. A pin's name tells which link it belongs to, so that the next shipper knows the names of links that went
//! while none ran. Called by `Capture`, which drains what the programs count.

mod attach;
mod choice;
mod clsact;
mod namespace;
mod netlink;
mod watch;

use std::{
    collections::HashMap,
    fs, io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc},
    thread::JoinHandle,
    time::Duration,
};

pub use choice::{BadPattern, LinkPattern};
pub use namespace::SELF;
use watch::{Stop, Watch};

use super::{CaptureConfig, CaptureError, KernelFeatures, ProgramStatus, pins::Pins, sys};

/// How long the first look at the links may take, before capture goes on without having seen its end.
const FIRST_SCAN: Duration = Duration::from_secs(30);

/// What is captured at network interfaces.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InterfaceConfig {
    /// A link that meets one of these is captured.
    pub links: Vec<LinkPattern>,
    /// Unless it meets one of these.
    pub exclude: Vec<LinkPattern>,
    /// Namespaces: `self`, paths such as `/run/netns/blue`, or paths with `*` in their last part.
    pub namespaces: Vec<String>,
    /// Flows in one interval, in each of two maps: about 250 bytes of kernel memory each, taken at once.
    pub flow_entries: u32,
    /// Flows heard of lately: about 180 bytes each, taken as they come.
    pub meta_entries: u32,
    /// UDP ports of VXLAN; 0 for none.
    pub vxlan_ports: [u16; 2],
    /// UDP port of Geneve; 0 for none.
    pub geneve_port: u16,
}

impl Default for InterfaceConfig {
    fn default() -> Self {
        Self {
            links: vec![LinkPattern::Uplink],
            exclude: Vec::new(),
            namespaces: vec![SELF.to_owned()],
            flow_entries: 65_536,
            meta_entries: 262_144,
            vxlan_ports: [4789, 8472],
            geneve_port: 6081,
        }
    }
}

/// The names of links, by their number in the flows' keys.
#[derive(Debug, Default)]
pub(crate) struct Names(HashMap<u64, Name>);

#[derive(Debug)]
struct Name {
    text: Arc<str>,
    /// Releases until the last interval that may have counted there is drained; `None` while programs are attached.
    left: Option<u8>,
}

impl Names {
    /// Name of a link; empty when it is not known.
    pub(crate) fn of(&self, link: u64) -> Arc<str> {
        self.0.get(&link).map_or_else(|| Arc::from(""), |name| Arc::clone(&name.text))
    }

    fn attached(&mut self, link: u64, text: &str) {
        self.0.insert(link, Name { text: text.into(), left: None });
    }

    fn gone(&mut self, link: u64) {
        if let Some(name) = self.0.get_mut(&link) {
            name.left.get_or_insert(3);
        }
    }

    /// Notes that an interval was released; returns the links that nothing will ask for any more.
    fn released(&mut self) -> Vec<u64> {
        let mut forgotten = Vec::new();
        self.0.retain(|link, name| {
            let Some(left) = &mut name.left else { return true };
            *left -= 1;
            if *left == 0 {
                forgotten.push(*link);
            }
            *left != 0
        });
        forgotten
    }
}

/// The names, shared with the thread that attaches.
pub(crate) type SharedNames = Arc<Mutex<Names>>;

fn lock(names: &SharedNames) -> MutexGuard<'_, Names> {
    names.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The interface vantage, running.
#[derive(Debug)]
pub(crate) struct Links {
    names: SharedNames,
    directory: PathBuf,
    running: Mutex<Option<(Arc<Stop>, JoinHandle<()>)>>,
}

impl Links {
    /// Attaches to the links that are there, and goes on as they come and go. Without interfaces in `config` what
    /// another shipper left attached is taken off.
    pub(crate) fn open(
        config: &CaptureConfig,
        features: &KernelFeatures,
        pins: &Pins,
    ) -> Result<(Self, Vec<ProgramStatus>), CaptureError> {
        let directory = pins.directory().to_owned();
        let names = SharedNames::default();
        for pin in attach::pinned(&directory).map_err(CaptureError::file("read", &directory))? {
            lock(&names).attached(pin.link, &pin.name);
        }
        let mut links = Self { names, directory, running: Mutex::new(None) };
        let Some(interfaces) = &config.interfaces else {
            links.detach()?;
            for link in lock(&links.names).0.values_mut() {
                link.left = Some(3);
            }
            return Ok((links, Vec::new()));
        };
        let statuses = links.start(config, interfaces, features)?;
        Ok((links, statuses))
    }

    fn start(
        &mut self,
        config: &CaptureConfig,
        interfaces: &InterfaceConfig,
        features: &KernelFeatures,
    ) -> Result<Vec<ProgramStatus>, CaptureError> {
        let failed = |source: io::Error| CaptureError::file("watch links for", &self.directory)(source);
        let stop = Arc::new(Stop::new().map_err(failed)?);
        let loader = attach::Loader::new(features.clone(), config.clone(), self.directory.clone());
        let watch = Watch::new(interfaces.clone(), loader, Arc::clone(&self.names), Arc::clone(&stop));
        let (first, scanned) = mpsc::sync_channel(1);
        let thread = std::thread::Builder::new()
            .name("weir-links".to_owned())
            .spawn(move || watch.run(&first))
            .map_err(failed)?;
        self.running = Mutex::new(Some((stop, thread)));
        let problem = match scanned.recv_timeout(FIRST_SCAN) {
            Ok(problem) => problem,
            Err(_) => Some("the first look at the links takes too long".to_owned()),
        };
        Ok(statuses(problem.as_deref()))
    }

    /// The names of links at this moment.
    pub(crate) fn names(&self) -> MutexGuard<'_, Names> {
        lock(&self.names)
    }

    /// Takes every program off its link. New links are left alone from now on.
    pub(crate) fn detach(&self) -> Result<(), CaptureError> {
        self.stop();
        for pin in attach::pinned(&self.directory).map_err(CaptureError::file("read", &self.directory))? {
            attach::detach(&pin).map_err(CaptureError::file("detach", &pin.path))?;
        }
        Ok(())
    }

    /// Removes what is left of links that are gone, once their last interval is released.
    pub(crate) fn released(&self) {
        let forgotten = self.names().released();
        if forgotten.is_empty() {
            return;
        }
        for pin in attach::pinned(&self.directory).unwrap_or_default() {
            if forgotten.contains(&pin.link) {
                let _gone = fs::remove_file(&pin.path);
            }
        }
    }

    fn stop(&self) {
        let running = self.running.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some((stop, thread)) = running {
            stop.stop();
            // Its panic was printed; nothing else depends on it.
            let _panicked = thread.join();
        }
    }
}

impl Drop for Links {
    fn drop(&mut self) {
        self.stop();
    }
}

const COST: &str = "the interface vantage sees nothing: no forwarded traffic, no scans of closed ports, nothing that a \
                    policy drops";

/// The interface vantage's programs, as they stand in the list of programs.
fn statuses(problem: Option<&str>) -> Vec<ProgramStatus> {
    let status =
        |name| ProgramStatus { name, problem: problem.map(str::to_owned), cost: COST, needed: false };
    vec![status("link_ingress"), status("link_egress")]
}

/// Loads the programs and attaches none: what `check` asks.
pub(crate) fn load(features: &KernelFeatures, config: &CaptureConfig, pins: &Path) -> Vec<ProgramStatus> {
    let mut loader = attach::Loader::new(features.clone(), config.clone(), pins.to_owned());
    statuses(loader.programs(0, true).err().as_deref())
}

/// Whether links of this kernel can be pinned to (TCX, kernel 6.6); tried on the loopback of a namespace of its own.
pub(crate) fn tcx(features: &KernelFeatures, config: &CaptureConfig, pins: &Path) -> io::Result<()> {
    let mut loader = attach::Loader::new(features.clone(), config.clone(), pins.to_owned());
    std::thread::scope(|scope| {
        let tried = scope.spawn(move || {
            // SAFETY: unshare takes no pointers; only this thread, which ends soon, is in the new namespace.
            if unsafe { libc::unshare(libc::CLONE_NEWNET) } != 0 {
                return Err(io::Error::last_os_error());
            }
            let programs = loader.programs(0, true).map_err(io::Error::other)?;
            sys::link_create_tcx(programs.program(sys::Tcx::Ingress)?, 1, sys::Tcx::Ingress).map(drop)
        });
        tried.join().unwrap_or_else(|_| Err(io::Error::other("the attempt panicked")))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_outlives_its_link_until_its_last_interval_is_released() {
        let mut names = Names::default();
        names.attached(7, "eth0");
        assert!(names.released().is_empty());
        names.gone(7);
        assert!(names.released().is_empty() && names.released().is_empty());
        assert_eq!(&*names.of(7), "eth0");
        assert_eq!(names.released(), [7]);
        assert_eq!(&*names.of(7), "");
    }
}
