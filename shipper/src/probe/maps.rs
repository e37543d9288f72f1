//! The pinned maps: checked before they are reused, opened, read, emptied.
//!
//! Knows how each is laid out; what is done with them, and when, is `drain`'s.

use std::{
    os::fd::{AsFd, OwnedFd},
    time::Duration,
};

use aya::{
    maps::{MapInfo, MapType},
    util::nr_cpus,
};
use weir_shipper_ebpf::{
    COUNTER_CGROUPS_FULL, COUNTER_META_FULL, COUNTER_NAMES, COUNTER_REPORTED, COUNTER_SEEN,
    COUNTER_SOCKS_FULL, CgroupPath, FlowKey, FlowValue, INTERVAL_BEGAN, INTERVAL_NONCE, INTERVAL_NOW,
    LinkKey, LinkMeta, LinkValue, Meta, SEEN_END, SEEN_SYN_ACK, Sock, TOTAL_ENTRIES, Total,
};

use super::{CaptureError, pins::Pins, sys};

/// Counters of what maps could not take. Not of `FLOWS`: the overflow records have that.
const REFUSALS: [u32; 3] = [COUNTER_SOCKS_FULL, COUNTER_META_FULL, COUNTER_CGROUPS_FULL];

/// A connection that was made and not ended is remembered for so many times the idle time.
const CONNECTION_IDLE: u32 = 30;

/// Name, type, key size and value size of every map that the shipper touches.
const MAPS: &[(&str, MapType, u32, u32)] = &[
    ("FLOWS_A", MapType::Hash, size_of::<FlowKey>() as u32, size_of::<FlowValue>() as u32),
    ("FLOWS_B", MapType::Hash, size_of::<FlowKey>() as u32, size_of::<FlowValue>() as u32),
    ("LINK_FLOWS_A", MapType::Hash, size_of::<LinkKey>() as u32, size_of::<LinkValue>() as u32),
    ("LINK_FLOWS_B", MapType::Hash, size_of::<LinkKey>() as u32, size_of::<LinkValue>() as u32),
    ("LINK_META", MapType::Hash, size_of::<LinkKey>() as u32, size_of::<LinkMeta>() as u32),
    ("INTERVAL", MapType::Array, 4, 8),
    ("TOTALS", MapType::PerCpuArray, 4, size_of::<Total>() as u32),
    ("OVERFLOW", MapType::PerCpuArray, 4, size_of::<Total>() as u32),
    ("SOCKS", MapType::Hash, 8, size_of::<Sock>() as u32),
    ("META", MapType::Hash, size_of::<FlowKey>() as u32, size_of::<Meta>() as u32),
    ("CGROUPS", MapType::Hash, 8, size_of::<CgroupPath>() as u32),
    ("COUNTERS", MapType::Array, 4, 8),
];

/// aya reuses a pin of another layout silently: refuse it, before any program meets it. The type counts too: of a map
/// per CPU the kernel gives as many values as there are CPUs, past a buffer for one.
pub(crate) fn check_layout(pins: &Pins) -> Result<(), CaptureError> {
    for (name, kind, key, value) in MAPS {
        let path = pins.map(name);
        if !path.exists() {
            continue;
        }
        let found = match MapInfo::from_pin(&path) {
            Err(_) => "not a map".to_owned(),
            Ok(info) => {
                let found = (info.map_type().ok(), info.key_size(), info.value_size());
                if found == (Some(*kind), *key, *value) {
                    continue;
                }
                let kind = found.0.map_or_else(|| "unknown".to_owned(), |kind| format!("{kind:?}"));
                format!("a map of type {kind}, {} and {} bytes", found.1, found.2)
            }
        };
        let expected = format!("a map of type {kind:?}, {key} and {value} bytes");
        return Err(CaptureError::Layout { path, found, expected });
    }
    Ok(())
}

/// Removes the interface vantage's maps where they were made without room, because nobody asked for it then: nothing
/// has written to them.
pub(crate) fn make_room_for_links(pins: &Pins) -> Result<(), CaptureError> {
    for name in ["LINK_FLOWS_A", "LINK_FLOWS_B", "LINK_META"] {
        let path = pins.map(name);
        if MapInfo::from_pin(&path).is_ok_and(|info| info.max_entries() == 1) {
            std::fs::remove_file(&path).map_err(CaptureError::file("remove", &path))?;
        }
    }
    Ok(())
}

/// What was touched before this time is idle. An interval touches once, with the first packet: of what was touched
/// within it, nobody knows how long it went on.
fn idle_before(before: u64, began: u64, idle: Duration) -> u64 {
    began.saturating_sub(u64::try_from(idle.as_nanos()).unwrap_or(u64::MAX)).min(before)
}

/// The maps, open.
#[derive(Debug)]
pub(crate) struct Maps {
    flows: [OwnedFd; 2],
    link_flows: [OwnedFd; 2],
    link_meta: OwnedFd,
    interval: OwnedFd,
    totals: OwnedFd,
    overflow: OwnedFd,
    socks: OwnedFd,
    meta: OwnedFd,
    cgroups: OwnedFd,
    counters: OwnedFd,
    cpus: usize,
}

impl Maps {
    /// Opens the pins, and gives a new set of maps its number and its first interval.
    pub(crate) fn open(pins: &Pins) -> Result<Self, CaptureError> {
        let open =
            |name: &'static str| sys::obj_get(&pins.map(name)).map_err(CaptureError::map("open", name));
        let maps = Self {
            flows: [open("FLOWS_A")?, open("FLOWS_B")?],
            link_flows: [open("LINK_FLOWS_A")?, open("LINK_FLOWS_B")?],
            link_meta: open("LINK_META")?,
            interval: open("INTERVAL")?,
            totals: open("TOTALS")?,
            overflow: open("OVERFLOW")?,
            socks: open("SOCKS")?,
            meta: open("META")?,
            cgroups: open("CGROUPS")?,
            counters: open("COUNTERS")?,
            cpus: nr_cpus().map_err(|(path, source)| CaptureError::file("read", path)(source))?,
        };
        if maps.nonce()? == 0 {
            let id = weir_common::id::random_id();
            let nonce = u64::from_ne_bytes([id[0], id[1], id[2], id[3], id[4], id[5], id[6], id[7]]) | 1;
            maps.write_interval(INTERVAL_NONCE, nonce)?;
        }
        if maps.interval()? == 0 {
            maps.begin(1)?;
        }
        Ok(maps)
    }

    /// Number of the interval being written; from 1.
    pub(crate) fn interval(&self) -> Result<u64, CaptureError> {
        self.read_interval(INTERVAL_NOW)
    }

    /// Number drawn when these maps were made; not 0.
    pub(crate) fn nonce(&self) -> Result<u64, CaptureError> {
        self.read_interval(INTERVAL_NONCE)
    }

    /// Boot time at which an interval began: the present one or the one before it.
    pub(crate) fn began(&self, interval: u64) -> Result<u64, CaptureError> {
        self.read_interval(INTERVAL_BEGAN + (interval & 1) as u32)
    }

    /// Makes `interval` the one being written. Its beginning is written first, into a slot of its own, so that a
    /// death between the two changes nothing for the interval that goes on.
    pub(crate) fn begin(&self, interval: u64) -> Result<(), CaptureError> {
        self.write_interval(INTERVAL_BEGAN + (interval & 1) as u32, sys::boot_ns())?;
        self.write_interval(INTERVAL_NOW, interval)
    }

    /// Every flow of an interval, which must be frozen.
    pub(crate) fn flows(&self, interval: u64) -> Result<Vec<(FlowKey, FlowValue)>, CaptureError> {
        sys::read_all(&self.flows[(interval & 1) as usize]).map_err(CaptureError::map("read", "FLOWS"))
    }

    /// As [`Maps::flows`], of the interface vantage.
    pub(crate) fn link_flows(&self, interval: u64) -> Result<Vec<(LinkKey, LinkValue)>, CaptureError> {
        sys::read_all(&self.link_flows[(interval & 1) as usize])
            .map_err(CaptureError::map("read", "LINK_FLOWS"))
    }

    /// Empties the flows, totals and overflow of an interval, which must be frozen.
    pub(crate) fn clear(&self, interval: u64) -> Result<u64, CaptureError> {
        let deleted = sys::delete_all::<FlowKey, FlowValue>(&self.flows[(interval & 1) as usize])
            .map_err(CaptureError::map("empty", "FLOWS"))?;
        sys::delete_all::<LinkKey, LinkValue>(&self.link_flows[(interval & 1) as usize])
            .map_err(CaptureError::map("empty", "LINK_FLOWS"))?;
        let half = TOTAL_ENTRIES / 2;
        let first = (interval & 1) as u32 * half;
        for index in first..first + half {
            for (map, name) in [(&self.totals, "TOTALS"), (&self.overflow, "OVERFLOW")] {
                sys::zero_slots::<Total>(map.as_fd(), index, self.cpus)
                    .map_err(CaptureError::map("empty", name))?;
            }
        }
        Ok(deleted)
    }

    /// A cell of `TOTALS`, summed over the CPUs.
    pub(crate) fn total(&self, index: u32) -> Result<Total, CaptureError> {
        self.sum(&self.totals, "TOTALS", index)
    }

    /// A cell of `OVERFLOW`, summed over the CPUs.
    pub(crate) fn overflow(&self, index: u32) -> Result<Total, CaptureError> {
        self.sum(&self.overflow, "OVERFLOW", index)
    }

    /// Every socket.
    pub(crate) fn socks(&self) -> Result<Vec<(u64, Sock)>, CaptureError> {
        sys::read_all(&self.socks).map_err(CaptureError::map("read", "SOCKS"))
    }

    /// Adds a socket that is older than the programs; `false` when the kernel has an entry for it already.
    pub(crate) fn adopt(&self, cookie: u64, sock: &Sock) -> Result<bool, CaptureError> {
        match sys::update(self.socks.as_fd(), &cookie, sock, sys::NOEXIST) {
            Ok(()) => Ok(true),
            Err(error) if error.raw_os_error() == Some(libc::EEXIST) => Ok(false),
            Err(error) => Err(CaptureError::map("write", "SOCKS")(error)),
        }
    }

    /// Removes sockets and connectionless flows that nothing will count for any more: the sockets that closed before
    /// `began`, and the flows of those and of whom nobody has heard for `idle`. `before` is when the interval began
    /// that ended at `began`.
    pub(crate) fn prune(&self, before: u64, began: u64, idle: Duration) -> Result<(), CaptureError> {
        let idle = idle_before(before, began, idle);
        let mut gone = std::collections::HashSet::new();
        for (cookie, sock) in self.socks()? {
            let ended = sock.closed_ns != 0 && sock.closed_ns < began && sock.touched_ns < began;
            // Nothing tells of the end of a datagram socket where `released` is missing. An entry that was never touched
            // is being made at this moment.
            let forgotten = sock.protocol != 6 && sock.touched_ns != 0 && sock.touched_ns < idle;
            if ended || forgotten {
                sys::delete(self.socks.as_fd(), &cookie).map_err(CaptureError::map("prune", "SOCKS"))?;
                gone.insert(cookie);
            }
        }
        let metas: Vec<(FlowKey, Meta)> =
            sys::read_all(&self.meta).map_err(CaptureError::map("read", "META"))?;
        for (key, meta) in metas {
            if meta.touched_ns < idle || (meta.touched_ns < began && gone.contains(&key.cookie)) {
                sys::delete(self.meta.as_fd(), &key).map_err(CaptureError::map("prune", "META"))?;
            }
        }
        Ok(())
    }

    /// Removes flows of the interface vantage that have ended before `began`, or of which nobody has heard for `idle`;
    /// of a TCP connection that was made, for much longer: it may say nothing for long and is still the same.
    pub(crate) fn prune_links(&self, before: u64, began: u64, idle: Duration) -> Result<(), CaptureError> {
        let silent = idle_before(before, began, idle.saturating_mul(CONNECTION_IDLE));
        let idle = idle_before(before, began, idle);
        let metas: Vec<(LinkKey, LinkMeta)> =
            sys::read_all(&self.link_meta).map_err(CaptureError::map("read", "LINK_META"))?;
        for (key, LinkMeta { touched_ns, seen, .. }) in metas {
            let ended = seen & SEEN_END != 0 && touched_ns < began;
            let until = if seen & SEEN_SYN_ACK != 0 { silent } else { idle };
            if ended || touched_ns < until {
                sys::delete(self.link_meta.as_fd(), &key).map_err(CaptureError::map("prune", "LINK_META"))?;
            }
        }
        Ok(())
    }

    /// Paths of cgroups made since capture began.
    pub(crate) fn cgroups(&self) -> Result<Vec<(u64, CgroupPath)>, CaptureError> {
        sys::read_all(&self.cgroups).map_err(CaptureError::map("read", "CGROUPS"))
    }

    /// Forgets the path of a cgroup.
    pub(crate) fn forget_cgroup(&self, id: u64) -> Result<(), CaptureError> {
        sys::delete(self.cgroups.as_fd(), &id).map_err(CaptureError::map("prune", "CGROUPS"))
    }

    /// What the programs could not do, by name, since the maps were made.
    pub(crate) fn counters(&self) -> Result<Vec<(&'static str, u64)>, CaptureError> {
        let mut out = Vec::with_capacity(COUNTER_NAMES.len());
        for (index, name) in (0_u32..).zip(COUNTER_NAMES) {
            out.push((name, self.counter(index)?));
        }
        Ok(out)
    }

    /// What maps could not take since the shipper last said so, and that it is about to say it: after
    /// [`Maps::reported`] it counts as said. A death in between neither repeats nor forgets it.
    pub(crate) fn refused(&self) -> Result<u64, CaptureError> {
        let mut sum = 0;
        for counter in REFUSALS {
            let seen = self.counter(counter)?;
            self.write_counter(COUNTER_SEEN + counter, seen)?;
            sum += seen.saturating_sub(self.counter(COUNTER_REPORTED + counter)?);
        }
        Ok(sum)
    }

    /// Notes that what [`Maps::refused`] gave last was said.
    pub(crate) fn reported(&self) -> Result<(), CaptureError> {
        for counter in REFUSALS {
            let seen = self.counter(COUNTER_SEEN + counter)?;
            if seen > self.counter(COUNTER_REPORTED + counter)? {
                self.write_counter(COUNTER_REPORTED + counter, seen)?;
            }
        }
        Ok(())
    }

    fn counter(&self, slot: u32) -> Result<u64, CaptureError> {
        sys::lookup(self.counters.as_fd(), &slot).map_err(CaptureError::map("read", "COUNTERS"))
    }

    fn write_counter(&self, slot: u32, value: u64) -> Result<(), CaptureError> {
        sys::update(self.counters.as_fd(), &slot, &value, 0).map_err(CaptureError::map("write", "COUNTERS"))
    }

    fn sum(&self, map: &OwnedFd, name: &'static str, index: u32) -> Result<Total, CaptureError> {
        let slots: Vec<Total> =
            sys::lookup_slots(map.as_fd(), index, self.cpus).map_err(CaptureError::map("read", name))?;
        let mut sum = Total::default();
        for Total { packets, bytes, opened } in slots {
            sum.packets += packets;
            sum.bytes += bytes;
            sum.opened += opened;
        }
        Ok(sum)
    }

    fn read_interval(&self, slot: u32) -> Result<u64, CaptureError> {
        sys::lookup(self.interval.as_fd(), &slot).map_err(CaptureError::map("read", "INTERVAL"))
    }

    fn write_interval(&self, slot: u32, value: u64) -> Result<(), CaptureError> {
        sys::update(self.interval.as_fd(), &slot, &value, 0).map_err(CaptureError::map("write", "INTERVAL"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_touched_within_a_long_interval_is_not_idle() {
        let idle = Duration::from_secs(120);
        let at = |seconds: u64| seconds * 1_000_000_000;
        assert_eq!(idle_before(at(995), at(1000), idle), at(880));
        assert_eq!(idle_before(at(400), at(1000), idle), at(400));
        assert_eq!(idle_before(at(1), at(2), idle), 0);
    }
    #[test]
    fn a_pin_of_another_type_is_refused() {
        // SAFETY: no pointers.
        if unsafe { libc::geteuid() } != 0 {
            assert!(std::env::var_os("CI").is_none(), "needs root");
            eprintln!("skipped: needs root");
            return;
        }
        let root = std::path::PathBuf::from(format!("/sys/fs/bpf/weir-unit-{}", std::process::id()));
        let pins = Pins::open(&root).unwrap();
        // BPF_MAP_CREATE of the right sizes: type, key, value, entries, flags.
        let attributes: [u32; 5] = [MapType::PerCpuArray as u32, 4, 8, 4, 0];
        // SAFETY: the kernel reads the attributes; the descriptor is ours.
        let map = unsafe {
            let fd = libc::syscall(libc::SYS_bpf, 0, &raw const attributes, size_of_val(&attributes));
            assert!(fd >= 0, "{}", std::io::Error::last_os_error());
            <OwnedFd as std::os::fd::FromRawFd>::from_raw_fd(fd as i32)
        };
        check_layout(&pins).unwrap();
        sys::obj_pin(&pins.map("INTERVAL"), map.as_fd()).unwrap();
        let error = check_layout(&pins).unwrap_err();
        drop(pins);
        super::super::remove_pins(&root).unwrap();
        assert!(error.to_string().contains("is a map of type PerCpuArray, 4 and 8 bytes"), "{error}");
    }
}
