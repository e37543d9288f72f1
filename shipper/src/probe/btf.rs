//! Offsets of kernel structure members, from `/sys/kernel/btf/vmlinux`: Rust programs have no CO-RE relocations.
//!
//! A reader of just that (Documentation/bpf/btf.rst); a file that is cut or lies gives `None`, never a panic.

use std::{collections::HashMap, fs, path::Path};

const STRUCT: u32 = 4;
const UNION: u32 = 5;
const FUNC: u32 = 12;
const TYPEDEF: u32 = 8;
/// Nesting of anonymous members and of modifiers that a kernel could have, with room.
const DEPTH_MAX: usize = 32;

/// The kernel's type information.
pub(crate) struct KernelTypes {
    data: Vec<u8>,
    /// Where each type stands in `data`; id 0 is void.
    types: Vec<usize>,
    strings: usize,
    structs: HashMap<String, u32>,
    others: HashMap<String, u32>,
}

impl KernelTypes {
    /// Reads `path`; `None` when it is not BTF.
    pub(crate) fn read(path: &Path) -> Option<Self> {
        Self::parse(fs::read(path).ok()?)
    }

    fn parse(data: Vec<u8>) -> Option<Self> {
        if data.get(..2)? != [0x9f, 0xeb] {
            return None;
        }
        let header = word(&data, 4)? as usize;
        let start = header.checked_add(word(&data, 8)? as usize)?;
        let end = start.checked_add(word(&data, 12)? as usize)?;
        let strings = header.checked_add(word(&data, 16)? as usize)?;
        let mut types = vec![0];
        let mut at = start;
        while at < end {
            types.push(at);
            let info = word(&data, at + 4)?;
            let count = (info & 0xffff) as usize;
            at += 12
                + match info >> 24 & 0x1f {
                    1 | 14 | 17 => 4,
                    3 => 12,
                    STRUCT | UNION | 15 | 19 => count * 12,
                    6 | 13 => count * 8,
                    _ => 0,
                };
        }
        let mut read = Self { data, types, strings, structs: HashMap::new(), others: HashMap::new() };
        for id in 1..read.types.len() as u32 {
            let (Some(kind), Some(name)) = (read.kind(id), read.name(id)) else { continue };
            match kind {
                STRUCT if !name.is_empty() => read.structs.entry(name).or_insert(id),
                FUNC | TYPEDEF => read.others.entry(name).or_insert(id),
                _ => continue,
            };
        }
        Some(read)
    }

    /// Byte offset of a member, also of one in an anonymous structure or union.
    pub(crate) fn offset(&self, structure: &str, member: &str) -> Option<u32> {
        let id = *self.structs.get(structure)?;
        Some(self.member(id, member, 0)? / 8)
    }

    /// Whether the kernel has this tracepoint.
    pub(crate) fn has_tracepoint(&self, name: &str) -> bool {
        self.others.contains_key(&format!("btf_trace_{name}"))
    }

    fn member(&self, id: u32, wanted: &str, depth: usize) -> Option<u32> {
        let at = *self.types.get(id as usize)?;
        let info = word(&self.data, at + 4)?;
        if depth > DEPTH_MAX || !matches!(info >> 24 & 0x1f, STRUCT | UNION) {
            return None;
        }
        for index in 0..(info & 0xffff) as usize {
            let member = at + 12 + index * 12;
            let name = self.string(word(&self.data, member)?)?;
            let kind = word(&self.data, member + 4)?;
            let mut bits = word(&self.data, member + 8)?;
            if info >> 31 != 0 {
                bits &= 0x00ff_ffff;
            }
            if name == wanted {
                return Some(bits);
            }
            if name.is_empty()
                && let Some(inner) = self.member(self.stripped(kind)?, wanted, depth + 1)
            {
                return bits.checked_add(inner);
            }
        }
        None
    }

    /// The type behind const, volatile, restrict, typedef and type tags.
    fn stripped(&self, mut id: u32) -> Option<u32> {
        for _ in 0..DEPTH_MAX {
            if !matches!(self.kind(id)?, 8..=11 | 18) {
                return Some(id);
            }
            id = word(&self.data, self.types.get(id as usize)? + 8)?;
        }
        None
    }

    fn kind(&self, id: u32) -> Option<u32> {
        if id == 0 {
            return Some(0);
        }
        Some(word(&self.data, self.types.get(id as usize)? + 4)? >> 24 & 0x1f)
    }

    fn name(&self, id: u32) -> Option<String> {
        self.string(word(&self.data, *self.types.get(id as usize)?)?).map(str::to_owned)
    }

    fn string(&self, offset: u32) -> Option<&str> {
        let rest = self.data.get(self.strings.checked_add(offset as usize)?..)?;
        let end = rest.iter().position(|byte| *byte == 0)?;
        std::str::from_utf8(&rest[..end]).ok()
    }
}

fn word(data: &[u8], at: usize) -> Option<u32> {
    let bytes = data.get(at..at.checked_add(4)?)?;
    Some(u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_this_kernels_types_when_it_has_them() {
        let path = Path::new("/sys/kernel/btf/vmlinux");
        if !path.exists() {
            eprintln!("skipped: this kernel has no BTF");
            return;
        }
        let types = KernelTypes::read(path).expect("the kernel's own BTF is readable");
        assert_eq!(types.offset("kernfs_node", "nonexistent"), None);
        assert!(types.offset("kernfs_node", "id").is_some());
        assert!(types.offset("cgroup", "kn").is_some());
        assert!(types.has_tracepoint("inet_sock_set_state"));
    }

    #[test]
    fn cut_files_are_no_btf() {
        assert!(KernelTypes::parse(vec![]).is_none());
        assert!(KernelTypes::parse(vec![0x9f, 0xeb, 1, 0]).is_none());
        let mut lying = vec![0x9f, 0xeb, 1, 0];
        for word in [24_u32, 0, u32::MAX, u32::MAX, 4] {
            lying.extend(word.to_le_bytes());
        }
        assert!(KernelTypes::parse(lying).is_none());
    }
}
