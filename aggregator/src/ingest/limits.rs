//! The limits of one batch, from the configuration.

/// What one batch may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of `Batch.payload`.
    pub payload_bytes_max: u64,
    /// Bytes of the decompressed body.
    pub decoded_bytes_max: u64,
    /// Rows over all kinds; below 2^20 - 1, which numbers a skip's loss row.
    pub rows_max: u64,
    /// Bytes of one text.
    pub string_bytes_max: u64,
}

impl Limits {
    /// Memory that a batch takes from its decompression until it is journaled, at most: its bytes, and its columns
    /// (39 of them, 208 bytes a row, doubled because vectors grow by doubling).
    pub fn memory_bytes(&self, decoded_bytes: u64, events: u64) -> u64 {
        decoded_bytes.saturating_add(events.saturating_mul(ROW_MEMORY_BYTES))
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            payload_bytes_max: 4 << 20,
            decoded_bytes_max: 16 << 20,
            rows_max: 262_144,
            string_bytes_max: 4096,
        }
    }
}

const ROW_MEMORY_BYTES: u64 = 512;
