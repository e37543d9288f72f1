//! The `bpf(2)` commands that aya does not offer, and their neighbours: pins, links, batches, `membarrier`.
//!
//! Owns no state. Called by the rest of `probe`. Layouts are those of include/uapi/linux/bpf.h, `union bpf_attr`.

use std::{
    ffi::CString,
    io,
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd},
        unix::ffi::OsStrExt,
    },
    path::Path,
};

const PROG_LOAD: libc::c_int = 5;
const OBJ_PIN: libc::c_int = 6;
const OBJ_GET: libc::c_int = 7;
const OBJ_GET_INFO: libc::c_int = 15;
const RAW_TRACEPOINT_OPEN: libc::c_int = 17;
const LOOKUP_BATCH: libc::c_int = 24;
const LOOKUP_AND_DELETE_BATCH: libc::c_int = 25;
const UPDATE: libc::c_int = 2;
const LOOKUP: libc::c_int = 1;
const DELETE: libc::c_int = 3;
const LINK_CREATE: libc::c_int = 28;
const LINK_UPDATE: libc::c_int = 29;
const LINK_DETACH: libc::c_int = 34;
const MEMBARRIER_GLOBAL: libc::c_int = 1;

/// Make the entry only if it is absent (`BPF_NOEXIST`).
pub(crate) const NOEXIST: u64 = 1;

fn bpf<T>(command: libc::c_int, attributes: &mut T) -> io::Result<libc::c_long> {
    // SAFETY: every caller passes the attributes of that command, whose pointers outlive the call.
    let result =
        unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_mut(attributes), size_of::<T>()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

fn owned(fd: libc::c_long) -> OwnedFd {
    // SAFETY: the kernel has just made this descriptor for us.
    unsafe { OwnedFd::from_raw_fd(fd as RawFd) }
}

fn c_path(path: &Path) -> io::Result<CString> {
    CString::new(path.as_os_str().as_bytes()).map_err(io::Error::from)
}

#[repr(C)]
struct Obj {
    path: u64,
    fd: u32,
    flags: u32,
}

/// Opens what is pinned at `path`: a map, a program or a link.
pub(crate) fn obj_get(path: &Path) -> io::Result<OwnedFd> {
    let path = c_path(path)?;
    bpf(OBJ_GET, &mut Obj { path: path.as_ptr() as u64, fd: 0, flags: 0 }).map(owned)
}

/// Pins `fd` at `path`, which must be on bpffs and must not exist.
pub(crate) fn obj_pin(path: &Path, fd: BorrowedFd<'_>) -> io::Result<()> {
    let path = c_path(path)?;
    bpf(OBJ_PIN, &mut Obj { path: path.as_ptr() as u64, fd: fd.as_raw_fd() as u32, flags: 0 }).map(drop)
}

#[repr(C)]
struct ProgramLoad {
    kind: u32,
    instructions: u32,
    code: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log: u64,
    kernel_version: u32,
    flags: u32,
}

/// Whether the kernel takes an atomic OR: loads a program of four instructions that has one.
pub(crate) fn atomics_supported() -> bool {
    const SOCKET_FILTER: u32 = 1;
    // r0 = 0; *(u64 *)(r10 - 8) = r0; lock *(u64 *)(r10 - 8) |= r0; exit (kernel: Documentation/bpf/standardization).
    const CODE: [u64; 4] =
        [0x0000_0000_0000_00b7, 0x0000_0000_fff8_0a7b, 0x0000_0040_fff8_0adb, 0x0000_0000_0000_0095];
    let mut load = ProgramLoad {
        kind: SOCKET_FILTER,
        instructions: CODE.len() as u32,
        code: CODE.as_ptr() as u64,
        license: c"GPL".as_ptr() as u64,
        log_level: 0,
        log_size: 0,
        log: 0,
        kernel_version: 0,
        flags: 0,
    };
    bpf(PROG_LOAD, &mut load).map(owned).is_ok()
}

#[repr(C)]
struct LinkCreate {
    program: u32,
    target: u32,
    attach_type: u32,
    flags: u32,
}

/// Attaches a program to a cgroup. Flags are 0: such links always admit others beside them.
pub(crate) fn link_create(
    program: BorrowedFd<'_>,
    target: BorrowedFd<'_>,
    attach_type: u32,
) -> io::Result<OwnedFd> {
    let (program, target) = (program.as_raw_fd() as u32, target.as_raw_fd() as u32);
    bpf(LINK_CREATE, &mut LinkCreate { program, target, attach_type, flags: 0 }).map(owned)
}

/// A hook of a network interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Tcx {
    /// What arrives.
    Ingress,
    /// What leaves.
    Egress,
}

/// Attaches a program to an interface of this thread's namespace (TCX, kernel 6.6). On the way in before the others,
/// since what they drop has arrived; on the way out after them, since what they drop never leaves.
pub(crate) fn link_create_tcx(program: BorrowedFd<'_>, index: u32, hook: Tcx) -> io::Result<OwnedFd> {
    const BEFORE: u32 = 1 << 3;
    let (attach_type, flags) = match hook {
        Tcx::Ingress => (46, BEFORE),
        Tcx::Egress => (47, 0),
    };
    let program = program.as_raw_fd() as u32;
    bpf(LINK_CREATE, &mut LinkCreate { program, target: index, attach_type, flags }).map(owned)
}

#[repr(C)]
struct LinkUpdate {
    link: u32,
    program: u32,
    flags: u32,
    old: u32,
}

/// Puts another program behind a link: no packet is missed, none is seen twice.
pub(crate) fn link_update(link: BorrowedFd<'_>, program: BorrowedFd<'_>) -> io::Result<()> {
    let (link, program) = (link.as_raw_fd() as u32, program.as_raw_fd() as u32);
    bpf(LINK_UPDATE, &mut LinkUpdate { link, program, flags: 0, old: 0 }).map(drop)
}

/// Takes a link off its cgroup, whoever else holds it: no packet that comes later meets its program (kernel 5.9).
pub(crate) fn link_detach(link: BorrowedFd<'_>) -> io::Result<()> {
    bpf(LINK_DETACH, &mut (link.as_raw_fd() as u32)).map(drop)
}

#[repr(C)]
struct RawTracepoint {
    name: u64,
    program: u32,
    reserved: u32,
}

/// Attaches a `tp_btf` program to the tracepoint that it was loaded for.
pub(crate) fn tracepoint_open(program: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    let program = program.as_raw_fd() as u32;
    bpf(RAW_TRACEPOINT_OPEN, &mut RawTracepoint { name: 0, program, reserved: 0 }).map(owned)
}

#[repr(C)]
struct Info {
    fd: u32,
    len: u32,
    info: u64,
}

/// `struct bpf_link_info` of a cgroup link or, with the index in the lower half of `place`, of a TCX link.
#[repr(C)]
#[derive(Default)]
struct LinkInfo {
    kind: u32,
    id: u32,
    program: u32,
    reserved: u32,
    place: u64,
    attach_type: u32,
    tail: u32,
}

/// The id of the cgroup that a link is attached to; 0 when that is gone.
pub(crate) fn link_cgroup(link: BorrowedFd<'_>) -> io::Result<u64> {
    link_info(link).map(|info| info.place)
}

/// The index of the interface that a TCX link is attached to; 0 when that is gone. An error for anything else.
pub(crate) fn link_ifindex(link: BorrowedFd<'_>) -> io::Result<u32> {
    /// `BPF_LINK_TYPE_TCX`; a program's information begins with another number.
    const TCX: u32 = 11;
    let info = link_info(link)?;
    if info.kind == TCX { Ok(info.place as u32) } else { Err(io::ErrorKind::InvalidInput.into()) }
}

fn link_info(link: BorrowedFd<'_>) -> io::Result<LinkInfo> {
    let mut info = LinkInfo::default();
    let mut attributes = Info {
        fd: link.as_raw_fd() as u32,
        len: size_of::<LinkInfo>() as u32,
        info: std::ptr::from_mut(&mut info) as u64,
    };
    bpf(OBJ_GET_INFO, &mut attributes)?;
    Ok(info)
}

#[repr(C)]
struct Element {
    map: u32,
    reserved: u32,
    key: u64,
    value: u64,
    flags: u64,
}

fn element<K, V>(
    command: libc::c_int,
    map: BorrowedFd<'_>,
    key: &K,
    value: *mut V,
    flags: u64,
) -> io::Result<()> {
    let (map, key, value) = (map.as_raw_fd() as u32, std::ptr::from_ref(key) as u64, value as u64);
    bpf(command, &mut Element { map, reserved: 0, key, value, flags }).map(drop)
}

/// Writes an entry. `K` and `V` must be the map's types.
pub(crate) fn update<K: aya::Pod, V: aya::Pod>(
    map: BorrowedFd<'_>,
    key: &K,
    value: &V,
    flags: u64,
) -> io::Result<()> {
    element(UPDATE, map, key, std::ptr::from_ref(value).cast_mut(), flags)
}

/// Reads an entry. `K` and `V` must be the map's types; a per-CPU map needs [`lookup_slots`].
pub(crate) fn lookup<K: aya::Pod, V: aya::Pod + Default>(map: BorrowedFd<'_>, key: &K) -> io::Result<V> {
    let mut value = V::default();
    element(LOOKUP, map, key, &raw mut value, 0)?;
    Ok(value)
}

/// Reads the entry of every CPU of a per-CPU map: `slots` values, as many as there are possible CPUs.
pub(crate) fn lookup_slots<V: aya::Pod + Default>(
    map: BorrowedFd<'_>,
    key: u32,
    slots: usize,
) -> io::Result<Vec<V>> {
    let mut values = vec![V::default(); slots];
    element(LOOKUP, map, &key, values.as_mut_ptr(), 0)?;
    Ok(values)
}

/// Writes zeroes for every CPU of a per-CPU map.
pub(crate) fn zero_slots<V: aya::Pod + Default>(
    map: BorrowedFd<'_>,
    key: u32,
    slots: usize,
) -> io::Result<()> {
    let mut values = vec![V::default(); slots];
    element(UPDATE, map, &key, values.as_mut_ptr(), 0)
}

/// Removes an entry; an absent one is no error.
pub(crate) fn delete<K: aya::Pod>(map: BorrowedFd<'_>, key: &K) -> io::Result<()> {
    match element(DELETE, map, key, std::ptr::null_mut::<u8>(), 0) {
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(()),
        other => other,
    }
}

#[repr(C)]
struct Batch {
    from: u64,
    to: u64,
    keys: u64,
    values: u64,
    count: u32,
    map: u32,
    element_flags: u64,
    flags: u64,
}

/// Reads every entry of a hash map: 100,000 in 20 ms. `K` and `V` must be the map's types.
pub(crate) fn read_all<K: aya::Pod, V: aya::Pod>(map: impl AsFd) -> io::Result<Vec<(K, V)>> {
    let mut out = Vec::new();
    batches(LOOKUP_BATCH, map.as_fd(), |key: K, value: V| out.push((key, value)))?;
    Ok(out)
}

/// Removes every entry of a hash map that no program writes to: deleting from a live one loses what is in flight.
pub(crate) fn delete_all<K: aya::Pod, V: aya::Pod>(map: impl AsFd) -> io::Result<u64> {
    let mut deleted = 0;
    batches(LOOKUP_AND_DELETE_BATCH, map.as_fd(), |_: K, _: V| deleted += 1)?;
    Ok(deleted)
}

fn batches<K: aya::Pod, V: aya::Pod>(
    command: libc::c_int,
    map: BorrowedFd<'_>,
    mut each: impl FnMut(K, V),
) -> io::Result<()> {
    // A bucket's entries come together: a chunk that is smaller than a bucket gives ENOSPC.
    let mut chunk = 4096_usize;
    let mut keys: Vec<std::mem::MaybeUninit<K>> = Vec::new();
    let mut values: Vec<std::mem::MaybeUninit<V>> = Vec::new();
    let mut position = 0_u32;
    let mut first = true;
    loop {
        keys.resize_with(chunk, std::mem::MaybeUninit::uninit);
        values.resize_with(chunk, std::mem::MaybeUninit::uninit);
        let mut next = 0_u32;
        let mut attributes = Batch {
            from: if first { 0 } else { std::ptr::from_ref(&position) as u64 },
            to: std::ptr::from_mut(&mut next) as u64,
            keys: keys.as_mut_ptr() as u64,
            values: values.as_mut_ptr() as u64,
            count: chunk as u32,
            map: map.as_raw_fd() as u32,
            element_flags: 0,
            flags: 0,
        };
        let result = bpf(command, &mut attributes);
        let end = match result {
            Ok(_) => false,
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => true,
            Err(error) if error.raw_os_error() == Some(libc::ENOSPC) && chunk < 1 << 22 => {
                chunk *= 2;
                continue;
            }
            Err(error) => return Err(error),
        };
        let count = (attributes.count as usize).min(chunk);
        for (key, value) in keys.iter().zip(&values).take(count) {
            // SAFETY: the kernel has written `count` keys and values, and both types are plain bytes.
            unsafe { each(key.assume_init_read(), value.assume_init_read()) };
        }
        if end {
            return Ok(());
        }
        position = next;
        first = false;
    }
}

/// Waits until every program that runs now has ended (`MEMBARRIER_CMD_GLOBAL` is a grace period of RCU).
pub(crate) fn wait_for_programs() -> io::Result<()> {
    // SAFETY: membarrier takes no pointers.
    match unsafe { libc::syscall(libc::SYS_membarrier, MEMBARRIER_GLOBAL, 0, 0) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Boot time in nanoseconds: the clock of `bpf_ktime_get_boot_ns`.
pub(crate) fn boot_ns() -> u64 {
    clock(libc::CLOCK_BOOTTIME)
}

/// Wall-clock time in nanoseconds since 1970.
pub(crate) fn wall_ns() -> u64 {
    clock(libc::CLOCK_REALTIME)
}

fn clock(id: libc::clockid_t) -> u64 {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the kernel writes one timespec. These two clocks exist on every kernel that runs the programs.
    unsafe { libc::clock_gettime(id, &raw mut now) };
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}
