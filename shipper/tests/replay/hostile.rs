//! Captures that were changed at random places: whatever they hold, every packet that is counted is in one record.

use proptest::prelude::*;
use weir_shipper::flow::FlowRecord;
use weir_shipper::replay::{Replay, TableOptions};

use crate::captures::{OPTIONS, S};
use crate::committed::captures;

/// What the fuzz target `capture_file` holds too.
fn check(file: Vec<u8>) {
    // A small table, so that it is full all the time.
    let options = TableOptions { entries: 8, ..OPTIONS };
    let Ok((records, report)) = Replay::of_bytes(file, options) else { return };
    let sum = |part: fn(&FlowRecord) -> u64| records.iter().map(part).sum::<u64>();
    assert_eq!(sum(|record| record.src_packets + record.dst_packets), report.totals.packets);
    assert_eq!(sum(|record| record.src_bytes + record.dst_bytes), report.totals.bytes);
    assert!(records.iter().all(|record| record.start_ns <= record.end_ns && record.opened <= 1));
    assert!(records.iter().all(|record| record.end_reason.is_some() || record.connect_error.is_none()));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, ..ProptestConfig::default() })]

    #[test]
    fn changed_bytes_do_no_harm(
        which in 0..3usize,
        changes in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..12),
        cut in any::<prop::sample::Index>(),
        twice in any::<bool>(),
    ) {
        let (_, mut file) = captures()[which].clone();
        if twice {
            file.extend_from_within(24..);
        }
        for (place, byte) in changes {
            let place = place.index(file.len());
            file[place] = byte;
        }
        file.truncate(file.len() - cut.index(file.len()) / 4);
        check(file);
    }

    #[test]
    fn any_bytes_after_a_header_do_no_harm(link in 0..300u32, bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
        let mut file = crate::captures::usual(link, &[]);
        file.extend(&bytes);
        check(file);
        let frame = crate::captures::Frame::new(S, bytes);
        check(crate::captures::usual(link, &[frame.clone(), frame]));
    }
}

#[test]
fn the_same_file_gives_the_same_records() {
    for (name, file) in captures() {
        let once = Replay::of_bytes(file.clone(), OPTIONS).map(|(records, _)| records);
        let again = Replay::of_bytes(file, OPTIONS).map(|(records, _)| records);
        assert_eq!(once.ok(), again.ok(), "{name}");
    }
}
