//! The bytes of a packet in the kernel, for the parser.

use aya_ebpf::{bindings::__sk_buff, helpers::bpf_skb_load_bytes};
use weir_shipper_ebpf::packet::Load;

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
