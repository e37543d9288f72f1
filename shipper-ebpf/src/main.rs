//! Weir's kernel programs. Each module is one noun; `maps` holds what they share with the shipper.
//!
//! A packet always passes: `cgroup_skb` programs return 1 whatever happens. Every map is bounded, and what it could
//! not take is counted. Built by `scripts/ebpf.sh`, loaded by `shipper/src/probe`.
#![no_std]
#![no_main]
#![feature(core_intrinsics)]
#![expect(internal_features, reason = "BPF has atomic instructions, and core's atomics do not reach them")]

mod again;
mod atomic;
mod cgroups;
mod close;
mod count;
mod functions;
mod link;
mod maps;
mod owner;
mod skb;
mod socks;
mod timewait;

#[panic_handler]
fn panic(_: &core::panic::PanicInfo) -> ! {
    loop {}
}

#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
