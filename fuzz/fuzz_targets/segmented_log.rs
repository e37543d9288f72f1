//! Any bytes after a segment's header: the scan ends, never allocates beyond the record limit, and what it finds is in
//! order and inside the file.
#![no_main]

use libfuzzer_sys::fuzz_target;
use weir_common::log::segment::{Found, HEADER_BYTES, Header, scan};

const HEADER: Header = Header { kind: *b"FUZZ", schema_version: 1, first_position: 1 };

fuzz_target!(|body: &[u8]| {
    if let Some(bytes) = body.first_chunk() {
        let _ = Header::decode(bytes);
    }
    let mut segment = HEADER.encode().to_vec();
    segment.extend_from_slice(body);
    let length = segment.len() as u64;
    let Ok(found) = scan(&segment.as_slice(), length, HEADER, 1 << 16) else { return };
    assert!(found.end >= HEADER_BYTES && found.end <= length);
    assert_eq!(found.tail.is_some(), found.end < length);
    let mut next = HEADER.first_position;
    for item in &found.found {
        let (first, last) = match *item {
            Found::Record { position, .. } => (position, position),
            Found::Damaged { first_position, last_position, .. } => (first_position, last_position),
        };
        assert!(first == next && last >= first);
        next = last + 1;
    }
    assert_eq!(next, found.next_position);
});
