//! Capture: opened once, drained interval by interval, exact across a death at any point.
//!
//! Programs write to the map of interval i; the map of i − 1 is frozen. The caller reads i − 1, stores it with its
//! number, and only then releases it, which empties the map and makes i + 1 the one being written. After a death the
//! caller finds i − 1 in its store, or not, and so knows whether to read again or to release only.

use std::{
    fs::File,
    os::{fd::AsFd, unix::fs::MetadataExt},
    path::{Path, PathBuf},
    time::Duration,
};

use aya::Btf;
use weir_schema::values::{LossReason, LossStage, Vantage};
use weir_shipper_ebpf::{
    CLASSES, EGRESS, INGRESS, LAYOUT, Total, VANTAGE_INTERFACE, VANTAGE_SOCKET, total_index,
};

use super::{
    CaptureError, InterfaceConfig, KernelFeatures, LinkGlobals, adopt,
    links::Links,
    maps::{Maps, check_layout, make_room_for_links},
    open_object,
    pins::Pins,
    programs,
    programs::ProgramStatus,
    sys,
};
use crate::{
    cgroup::{CgroupTable, cgroup2_root},
    flow::{Builder, Clock, FlowRecord, Identities, Interval, LossRecord, OverflowCell},
};

/// Where to attach, and how large the kernel's maps may become. Sizes take effect when the maps are made; pinned maps
/// keep theirs until `unload`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CaptureConfig {
    /// cgroup v2 directory whose sockets are captured; `None` is the root of the hierarchy: the whole node.
    pub cgroup: Option<PathBuf>,
    /// Directory on bpffs for the pins.
    pub pin_directory: PathBuf,
    /// Flows in one interval, in each of two maps: about 230 bytes of kernel memory each, taken at once.
    pub flow_entries: u32,
    /// Sockets alive or just closed: about 250 bytes each, taken as they come.
    pub socket_entries: u32,
    /// Flows without connection (UDP and others) heard of lately: about 130 bytes each, taken as they come.
    pub meta_entries: u32,
    /// Paths of cgroups made while no shipper ran: about 330 bytes each, taken as they come.
    pub cgroup_entries: u32,
    /// A flow without connection that is silent for so long begins anew with its next packet.
    pub idle: Duration,
    /// What is captured at network interfaces, beside the sockets; `None` for nothing.
    pub interfaces: Option<InterfaceConfig>,
}

impl Default for CaptureConfig {
    fn default() -> Self {
        Self {
            cgroup: None,
            pin_directory: PathBuf::from("/sys/fs/bpf/weir"),
            flow_entries: 131_072,
            socket_entries: 262_144,
            meta_entries: 262_144,
            cgroup_entries: 16_384,
            idle: Duration::from_secs(120),
            interfaces: None,
        }
    }
}

/// What one interval held.
#[derive(Debug)]
pub struct Drained {
    /// One record per connection and side, and overflow records.
    pub records: Vec<FlowRecord>,
    /// What is known to be lost.
    pub losses: Vec<LossRecord>,
    /// The independent count of every packet: equal to the sum of the records, always.
    pub totals: Totals,
}

/// Packets and IP bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Count {
    /// Packets; segments of a GSO packet each count.
    pub packets: u64,
    /// IP bytes.
    pub bytes: u64,
}

/// The count of one protocol class in one direction at one vantage.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TotalCount {
    /// Where it was counted.
    pub vantage: Vantage,
    /// Class of protocols: `tcp`, `udp`, `icmp`, `icmp6`, `sctp`, `other`.
    pub protocol: &'static str,
    /// As the sockets of this node see it, or the link: `ingress` or `egress`.
    pub direction: &'static str,
    /// How much.
    pub count: Count,
}

/// Independent totals of one interval: every vantage, class and direction once.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Totals(pub Vec<TotalCount>);

impl Totals {
    /// Packets and bytes of a vantage over all classes and directions. Those of two vantages are never added up.
    pub fn sum(&self, vantage: Vantage) -> Count {
        self.0.iter().filter(|total| total.vantage == vantage).fold(Count::default(), |sum, total| Count {
            packets: sum.packets + total.count.packets,
            bytes: sum.bytes + total.count.bytes,
        })
    }
}

/// Name of each class of totals, and the protocol number that its overflow record carries.
const CLASS_NAMES: [(&str, u8); CLASSES as usize] =
    [("tcp", 6), ("udp", 17), ("icmp", 1), ("icmp6", 58), ("sctp", 132), ("other", 255)];

/// The kernel side, taken over by this process.
pub struct Capture {
    links: Links,
    maps: Maps,
    pins: Pins,
    builder: Builder,
    statuses: Vec<ProgramStatus>,
    source_id: [u8; 16],
    idle: Duration,
    cgroup_entries: u32,
}

impl std::fmt::Debug for Capture {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Capture").field("source_id", &self.source_id).finish_non_exhaustive()
    }
}

impl Capture {
    /// Loads the programs, or takes over and replaces those that are pinned, and begins to count.
    ///
    /// # Errors
    /// When another shipper drains, when the maps are of another layout, or when packets cannot be counted at all.
    /// Programs that only name or time are allowed to be missing: see [`Capture::programs`].
    pub fn open(config: &CaptureConfig) -> Result<Self, CaptureError> {
        let root = cgroup2_root().map_err(CaptureError::file("read", "/proc/self/mountinfo"))?;
        let root = root.or_else(|| config.cgroup.clone()).ok_or(CaptureError::NoCgroup2)?;
        let cgroup_path = config.cgroup.as_ref().unwrap_or(&root);
        let cgroup = File::open(cgroup_path).map_err(CaptureError::file("open", cgroup_path))?;
        let cgroup_id = cgroup.metadata().map_err(CaptureError::file("read", cgroup_path))?.ino();
        let boot_id = boot_id()?;

        let pins = Pins::open(&config.pin_directory)?;
        check_layout(&pins)?;
        if config.interfaces.is_some() {
            make_room_for_links(&pins)?;
        }
        let features = KernelFeatures::probe();
        let mut ebpf = open_object(&features, config, pins.directory(), LinkGlobals::default())
            .map_err(CaptureError::Object)?;
        let maps = Maps::open(&pins)?;
        let btf = features.btf.then(Btf::from_sys_fs).transpose().map_err(CaptureError::Btf)?;
        let mut statuses = programs::attach_all(&mut ebpf, btf.as_ref(), &pins, cgroup.as_fd(), cgroup_id);
        programs::require(&statuses)?;
        let (links, at_links) = Links::open(config, &features, &pins)?;
        statuses.extend(at_links);

        let clock = Clock::new(sys::boot_ns(), sys::wall_ns());
        let mut identities = Identities::new(CgroupTable::new(root.clone()));
        for (id, path) in maps.cgroups()? {
            learn(&mut identities, id, &path);
        }
        let boot = u64::from_be_bytes([
            0, 0, boot_id[0], boot_id[1], boot_id[2], boot_id[3], boot_id[4], boot_id[5],
        ]);
        let mut builder = Builder::new(boot, clock, identities);
        adopt_sockets(&maps, &mut builder, &root, config.cgroup.as_deref());
        let source_id = source_id(boot_id, maps.nonce()?);
        let (idle, cgroup_entries) = (config.idle, config.cgroup_entries);
        Ok(Self { links, maps, pins, builder, statuses, source_id, idle, cgroup_entries })
    }

    /// Identifies this set of maps: interval numbers are unique within it. Other maps, another boot or another layout
    /// give another.
    pub fn source_id(&self) -> [u8; 16] {
        self.source_id
    }

    /// Number of the frozen interval: the one to read and release.
    ///
    /// # Errors
    /// When the kernel's map cannot be read.
    pub fn frozen(&self) -> Result<Option<u64>, CaptureError> {
        Ok(self.maps.interval()?.checked_sub(1))
    }

    /// Reads the frozen interval. It may be read again, until it is released, with the same counts.
    ///
    /// # Errors
    /// When `interval` is not the frozen one, or a map cannot be read.
    pub fn read(&mut self, interval: u64) -> Result<Drained, CaptureError> {
        self.settle(interval)?;
        let flows = self.maps.flows(interval)?;
        let link_flows = self.maps.link_flows(interval)?;
        let (totals, overflow) = self.totals(interval)?;
        // Sockets after flows: every flow's socket is there.
        let socks = self.maps.socks()?;
        self.learn_cgroups()?;
        if let Some(step) = self.builder.clock.sample(sys::boot_ns(), sys::wall_ns()) {
            tracing::warn!(step_ms = step / 1_000_000, "the wall clock was stepped");
        }
        let (began_ns, ended_ns) = (self.maps.began(interval)?, self.maps.began(interval + 1)?);
        let number = interval;
        let read = Interval { number, began_ns, ended_ns, flows, link_flows, overflow, socks };
        let records = self.builder.build(read, &self.links.names());
        let losses = self.losses(began_ns, ended_ns)?;
        Ok(Drained { records, losses, totals })
    }

    /// Empties the frozen interval, forgets what has ended, and begins the next one. Only for an interval that is
    /// stored: its counts are gone after.
    ///
    /// # Errors
    /// When `interval` is not the frozen one, or a map cannot be written. It may be repeated.
    pub fn release(&mut self, interval: u64) -> Result<(), CaptureError> {
        self.settle(interval)?;
        self.maps.clear(interval)?;
        let (before, began) = (self.maps.began(interval)?, self.maps.began(interval + 1)?);
        self.maps.prune(before, began, self.idle)?;
        self.maps.prune_links(before, began, self.idle)?;
        self.maps.reported()?;
        self.maps.begin(interval + 2)?;
        self.links.released();
        Ok(())
    }

    /// Ends the counting: when this returns, no program writes to any map any more. What was counted is still there;
    /// two intervals, read and released, take it all.
    ///
    /// # Errors
    /// When a program cannot be taken off its place. It may be repeated.
    pub fn detach(&self) -> Result<(), CaptureError> {
        programs::detach_all(&self.pins)?;
        self.links.detach()?;
        sys::wait_for_programs().map_err(CaptureError::Membarrier)
    }

    /// Removes programs and maps from the kernel, with what is still in them. Returns how many pins went.
    ///
    /// # Errors
    /// When a pin cannot be removed.
    pub fn unload(self) -> Result<usize, CaptureError> {
        let Self { links, maps, pins, .. } = self;
        drop((links, maps));
        pins.remove()
    }

    /// What became of each program.
    pub fn programs(&self) -> &[ProgramStatus] {
        &self.statuses
    }

    /// What the programs could not do, by name, since the maps were made.
    ///
    /// # Errors
    /// When the kernel's map cannot be read.
    pub fn counters(&self) -> Result<Vec<(&'static str, u64)>, CaptureError> {
        self.maps.counters()
    }

    /// Fails unless `interval` is frozen; returns when no program writes to it any more.
    fn settle(&self, interval: u64) -> Result<(), CaptureError> {
        let frozen = self.frozen()?;
        if frozen != Some(interval) {
            return Err(CaptureError::NotFrozen { asked: interval, frozen });
        }
        sys::wait_for_programs().map_err(CaptureError::Membarrier)
    }

    /// What sockets, flows without connection and cgroups could not be noted: their packets are counted, but have no
    /// owner, no opening or no path.
    fn losses(&self, began_ns: u64, ended_ns: u64) -> Result<Vec<LossRecord>, CaptureError> {
        let refused = self.maps.refused()?;
        if refused == 0 {
            return Ok(Vec::new());
        }
        let unix_ns = |boot_ns| self.builder.clock.unix_ns(boot_ns);
        Ok(vec![LossRecord {
            stage: LossStage::Capture,
            reason: LossReason::MapFull,
            count: Some(refused),
            bytes: Some(0),
            first_ns: unix_ns(began_ns),
            last_ns: unix_ns(ended_ns),
        }])
    }

    fn totals(&self, interval: u64) -> Result<(Totals, Vec<OverflowCell>), CaptureError> {
        let mut totals = Vec::with_capacity(CLASS_NAMES.len() * 4);
        let mut overflow = Vec::new();
        let vantages = [(Vantage::Socket, VANTAGE_SOCKET), (Vantage::Interface, VANTAGE_INTERFACE)];
        let classes = (0_u32..).zip(CLASS_NAMES);
        let cells =
            vantages.into_iter().flat_map(|vantage| classes.clone().map(move |class| (vantage, class)));
        for ((vantage, number), (class, (name, protocol))) in cells {
            let cell = |direction| total_index(interval, number, class, direction);
            for (direction, direction_name) in [(INGRESS, "ingress"), (EGRESS, "egress")] {
                let Total { packets, bytes, .. } = self.maps.total(cell(direction))?;
                let count = Count { packets, bytes };
                totals.push(TotalCount { vantage, protocol: name, direction: direction_name, count });
            }
            let (ingress, egress) = (self.maps.overflow(cell(INGRESS))?, self.maps.overflow(cell(EGRESS))?);
            if ingress != Total::default() || egress != Total::default() {
                overflow.push(OverflowCell { vantage, protocol, ingress, egress });
            }
        }
        Ok((Totals(totals), overflow))
    }

    /// Takes over the names of new cgroups. They stay in the kernel's map for the next shipper, until it is half full.
    fn learn_cgroups(&mut self) -> Result<(), CaptureError> {
        let mut paths = self.maps.cgroups()?;
        for (id, path) in &paths {
            learn(&mut self.builder.identities, *id, path);
        }
        let room = (self.cgroup_entries / 2) as usize;
        if paths.len() > room {
            paths.sort_by_key(|(_, path)| path.made_ns);
            for (id, _) in &paths[..paths.len() - room] {
                self.maps.forget_cgroup(*id)?;
            }
        }
        Ok(())
    }
}

/// Gives the sockets that are older than the programs a side and an owner. Capture goes on without.
fn adopt_sockets(maps: &Maps, builder: &mut Builder, root: &Path, part: Option<&Path>) {
    let found = match adopt::find(root) {
        Ok(found) => found,
        Err(error) => {
            tracing::warn!(%error, "sockets older than the shipper stay without process and orientation");
            return;
        }
    };
    let below = part.map(|part| part.strip_prefix(root).unwrap_or(part));
    let mut adopted = 0_u64;
    for socket in found {
        let inside = below.is_none_or(|below| {
            let cgroup = builder.identities.cgroups().find(socket.cgroup);
            cgroup.is_some_and(|cgroup| {
                Path::new(&*cgroup.path).strip_prefix("/").is_ok_and(|p| p.starts_with(below))
            })
        });
        if !inside {
            continue;
        }
        adopted += 1;
        // Where the kernel has an entry already, or no room, what was found is kept here.
        if !maps.adopt(socket.cookie, &socket.entry()).unwrap_or(false) {
            builder.adopted.insert(socket.cookie, socket.adopted);
        }
    }
    tracing::info!(sockets = adopted, "adopted the sockets that were there before");
}

fn learn(identities: &mut Identities, id: u64, path: &weir_shipper_ebpf::CgroupPath) {
    // The kernel counts the NUL.
    let len = usize::try_from(path.len).unwrap_or(0).saturating_sub(1).min(path.path.len());
    if len != 0 {
        identities.cgroups().learn(id, &String::from_utf8_lossy(&path.path[..len]));
    }
}

/// The boot id (random(4)) as 16 bytes.
fn boot_id() -> Result<[u8; 16], CaptureError> {
    const PATH: &str = "/proc/sys/kernel/random/boot_id";
    let text = std::fs::read_to_string(PATH).map_err(CaptureError::file("read", PATH))?;
    let hex: String = text.chars().filter(char::is_ascii_hexdigit).collect();
    let id = u128::from_str_radix(&hex, 16).unwrap_or(0);
    Ok(id.to_be_bytes())
}

fn source_id(boot_id: [u8; 16], nonce: u64) -> [u8; 16] {
    let nonce = u128::from(nonce) << 32 | u128::from(LAYOUT);
    (u128::from_be_bytes(boot_id) ^ nonce).to_be_bytes()
}
