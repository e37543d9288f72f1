//! Any bytes as a manifest entry: an error with a place inside it, or an entry whose paths stay below the root and
//! that can be followed without trouble.
#![no_main]

use libfuzzer_sys::fuzz_target;
use weir_aggregator::sink::parquet::manifest::{State, check_path, parse};

const JOURNAL: &str = "00112233445566778899aabbccddeeff";

fuzz_target!(|bytes: &[u8]| {
    let entry = match parse(JOURNAL, 1, bytes) {
        Ok(entry) => entry,
        Err((offset, reason)) => {
            assert!(!reason.is_empty() && offset.is_none_or(|at| at <= bytes.len() as u64));
            return;
        }
    };
    let paths = entry.added.iter().map(|file| &file.path).chain(entry.removed.iter().map(|file| &file.path));
    for path in paths {
        assert!(check_path(path).is_ok());
        assert!(
            !path.starts_with('/')
                && path.split('/').all(|part| !part.is_empty() && part != ".." && part != ".")
        );
    }
    let mut state = State::new();
    if state.follow(&entry, bytes).is_ok() {
        assert_eq!((state.number, state.next_position), (1, entry.next_position));
        assert_eq!(state.live.len(), entry.added.len());
        assert!(state.follow(&entry, bytes).is_err(), "an entry does not follow itself");
    }
});
