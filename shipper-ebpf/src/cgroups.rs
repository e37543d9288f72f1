//! Paths of cgroups as they are made, so that one that is gone at export still has its name.

use aya_ebpf::{
    helpers::{bpf_ktime_get_boot_ns, bpf_probe_read_kernel, generated::bpf_probe_read_kernel_str},
    macros::btf_tracepoint,
    programs::BtfTracePointContext,
};
use weir_shipper_ebpf::{CGROUP_PATH_MAX, COUNTER_CGROUPS_FULL, COUNTER_TAIL_CALL_FAILED};

use crate::maps::{
    CGROUP_SCRATCH, CGROUPS, OFF_CGROUP_KN, OFF_CGROUP_ROOT, OFF_KN_ID, OFF_ROOT_HIERARCHY, PROG_MKDIR, count,
};

/// Permanent: links of `tp_btf` cannot be updated, so this one stays and calls the present program.
#[btf_tracepoint(function = "cgroup_mkdir")]
pub fn mkdir_dispatch(ctx: BtfTracePointContext) -> i32 {
    // SAFETY: both programs have this context.
    unsafe { PROG_MKDIR.tail_call(&ctx, 0) };
    count(COUNTER_TAIL_CALL_FAILED);
    0
}

/// `cgroup_mkdir(cgrp, path)`, of every hierarchy; only the unified one (number 0) is of use.
#[btf_tracepoint(function = "cgroup_mkdir")]
pub fn mkdir(ctx: BtfTracePointContext) -> i32 {
    let cgroup: *const u8 = ctx.arg(0);
    let path: *const u8 = ctx.arg(1);
    let _unreadable = record(cgroup, path);
    0
}

#[inline(always)]
fn record(cgroup: *const u8, path: *const u8) -> Result<(), i32> {
    // SAFETY: reads of kernel memory by a helper that fails where there is none; the offsets are of this kernel's BTF.
    unsafe {
        let root: *const u8 = read(cgroup, OFF_CGROUP_ROOT.load())?;
        let hierarchy: i32 = read(root, OFF_ROOT_HIERARCHY.load())?;
        if hierarchy != 0 {
            return Ok(());
        }
        let node: *const u8 = read(cgroup, OFF_CGROUP_KN.load())?;
        let id: u64 = read(node, OFF_KN_ID.load())?;
        let scratch = CGROUP_SCRATCH.get_ptr_mut(0).ok_or(0)?;
        (*scratch).made_ns = bpf_ktime_get_boot_ns();
        (*scratch).reserved = 0;
        (*scratch).len =
            bpf_probe_read_kernel_str((&raw mut (*scratch).path).cast(), CGROUP_PATH_MAX as u32, path.cast())
                as i32;
        if CGROUPS.insert(id, &*scratch, 0).is_err() {
            count(COUNTER_CGROUPS_FULL);
        }
    }
    Ok(())
}

#[inline(always)]
unsafe fn read<T>(base: *const u8, offset: u32) -> Result<T, i32> {
    // SAFETY: as in `record`.
    unsafe { bpf_probe_read_kernel(base.add(offset as usize).cast::<T>()) }
}
