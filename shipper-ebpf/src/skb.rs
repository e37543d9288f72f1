//! The bytes of a packet in the kernel, for the parser.

use aya_ebpf::{
    bindings::__sk_buff,
    helpers::{bpf_skb_load_bytes, generated::bpf_skb_load_bytes_relative},
};
use weir_shipper_ebpf::packet::Load;

use crate::maps::LINK_ETHERNET;

/// include/uapi/linux/bpf.h, enum bpf_hdr_start_off.
const BPF_HDR_START_NET: u32 = 1;

/// A packet whose offsets count from where its data begins: the IP header in `cgroup_skb`, the link header in TC.
pub struct Skb(pub *mut __sk_buff);

impl Load for Skb {
    #[inline(always)]
    fn load<const N: usize>(&self, at: u32) -> Option<[u8; N]> {
        let mut bytes = core::mem::MaybeUninit::<[u8; N]>::uninit();
        // SAFETY: the helper writes N bytes or fails.
        unsafe {
            if bpf_skb_load_bytes(self.0.cast(), at, bytes.as_mut_ptr().cast(), N as u32) == 0 {
                Some(bytes.assume_init())
            } else {
                None
            }
        }
    }
}

/// A packet at a link. On devices without Ethernet offsets count from the network header, since the data may begin
/// elsewhere: at the outer header on the way in from an `ipgre` tunnel.
pub struct LinkSkb(pub *mut __sk_buff);

impl Load for LinkSkb {
    #[inline(always)]
    fn load<const N: usize>(&self, at: u32) -> Option<[u8; N]> {
        if LINK_ETHERNET.load() != 0 {
            return Skb(self.0).load(at);
        }
        let mut bytes = core::mem::MaybeUninit::<[u8; N]>::uninit();
        // SAFETY: as above.
        unsafe {
            let to = bytes.as_mut_ptr().cast();
            if bpf_skb_load_bytes_relative(self.0.cast(), at, to, N as u32, BPF_HDR_START_NET) == 0 {
                Some(bytes.assume_init())
            } else {
                None
            }
        }
    }
}
