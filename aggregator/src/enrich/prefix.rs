//! Longest-prefix match: one hash table per prefix length that occurs, tried from the longest.
//!
//! Configurations have few lengths, and a look-up is made once per entry of a batch's address table.

use std::collections::HashMap;
use std::net::IpAddr;

use foldhash::fast::RandomState;
use ipnet::IpNet;

/// Prefixes with a value each.
#[derive(Debug, Default)]
pub(super) struct PrefixTable {
    v4: Vec<Length>,
    v6: Vec<Length>,
}

#[derive(Debug)]
struct Length {
    bits: u8,
    by_prefix: HashMap<u128, usize, RandomState>,
}

impl PrefixTable {
    /// Of equal prefixes the first counts.
    pub(super) fn new(entries: impl IntoIterator<Item = (IpNet, usize)>) -> Self {
        let mut table = Self::default();
        for (net, value) in entries {
            let (lengths, width) = match net {
                IpNet::V4(_) => (&mut table.v4, 32),
                IpNet::V6(_) => (&mut table.v6, 128),
            };
            let bits = net.prefix_len();
            let at = lengths.partition_point(|length| length.bits > bits);
            if lengths.get(at).is_none_or(|length| length.bits != bits) {
                lengths.insert(at, Length { bits, by_prefix: HashMap::default() });
            }
            let prefix = prefix(number(net.addr()), bits, width);
            lengths[at].by_prefix.entry(prefix).or_insert(value);
        }
        table
    }

    /// The value of the longest prefix that holds `address`.
    pub(super) fn longest(&self, address: IpAddr) -> Option<usize> {
        let (lengths, width) = match address {
            IpAddr::V4(_) => (&self.v4, 32),
            IpAddr::V6(_) => (&self.v6, 128),
        };
        let number = number(address);
        lengths.iter().find_map(|length| length.by_prefix.get(&prefix(number, length.bits, width)).copied())
    }
}

fn number(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(address) => u128::from(address.to_bits()),
        IpAddr::V6(address) => address.to_bits(),
    }
}

/// The first `bits` of an address of `width` bits.
fn prefix(number: u128, bits: u8, width: u32) -> u128 {
    number.checked_shr(width - u32::from(bits)).unwrap_or(0)
}
