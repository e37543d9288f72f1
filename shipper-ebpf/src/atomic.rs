//! BPF's atomic instructions. `AtomicU64::fetch_add` does not exist for this target, the intrinsics do.

use core::intrinsics::{AtomicOrdering, atomic_xadd};

/// Adds to a counter in a map.
#[inline(always)]
pub fn add(counter: *mut u64, value: u64) {
    // SAFETY: callers pass pointers into map values, which the verifier has checked.
    unsafe {
        atomic_xadd::<u64, u64, { AtomicOrdering::Relaxed }>(counter, value);
    }
}

/// As [`add`], for 32 bits.
#[inline(always)]
pub fn add32(counter: *mut u32, value: u32) {
    // SAFETY: as in `add`.
    unsafe {
        atomic_xadd::<u32, u32, { AtomicOrdering::Relaxed }>(counter, value);
    }
}

/// Sets bits; does nothing when they are set already.
#[inline(always)]
pub fn or32(word: *mut u32, bits: u32) {
    // SAFETY: as in `add`.
    unsafe {
        if bits & !*word != 0 {
            others::or32(word, bits);
        }
    }
}

pub use others::{replace32, take32};

#[cfg(not(feature = "plain"))]
mod others {
    use core::intrinsics::{AtomicOrdering, atomic_cxchg, atomic_or, atomic_xchg};

    #[inline(always)]
    pub unsafe fn or32(word: *mut u32, bits: u32) {
        // SAFETY: as in `add`.
        unsafe {
            atomic_or::<u32, u32, { AtomicOrdering::Relaxed }>(word, bits);
        }
    }

    /// Takes what a word holds, and leaves 0.
    #[inline(always)]
    pub fn take32(word: *mut u32) -> u32 {
        // SAFETY: as in `add`.
        unsafe { atomic_xchg::<u32, { AtomicOrdering::SeqCst }>(word, 0) }
    }

    /// Whether the word was `old` and is `new` now.
    #[inline(always)]
    pub fn replace32(word: *mut u32, old: u32, new: u32) -> bool {
        // SAFETY: as in `add`.
        unsafe {
            atomic_cxchg::<u32, { AtomicOrdering::SeqCst }, { AtomicOrdering::SeqCst }>(word, old, new).1
        }
    }
}

/// For kernels before 5.12. Packets and bytes are as exact as elsewhere; of two packets of one connection that two CPUs
/// handle in the same nanoseconds, a TCP flag may be lost, and an opening or a retransmission be counted twice.
#[cfg(feature = "plain")]
mod others {
    #[inline(always)]
    pub unsafe fn or32(word: *mut u32, bits: u32) {
        // SAFETY: as in `add`.
        unsafe { word.write_volatile(word.read_volatile() | bits) };
    }

    #[inline(always)]
    pub fn take32(word: *mut u32) -> u32 {
        // SAFETY: as in `add`.
        unsafe {
            let value = word.read_volatile();
            word.write_volatile(0);
            value
        }
    }

    #[inline(always)]
    pub fn replace32(word: *mut u32, old: u32, new: u32) -> bool {
        // SAFETY: as in `add`.
        unsafe {
            let same = word.read_volatile() == old;
            if same {
                word.write_volatile(new);
            }
            same
        }
    }
}
