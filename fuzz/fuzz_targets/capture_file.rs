//! Any bytes as a capture file: formats, link types, the packet parser, the flow table. Every packet that is counted is
//! in one record, and no record has more than its totals.
#![no_main]

use libfuzzer_sys::fuzz_target;
use weir_shipper::replay::{Replay, TableOptions};

const S: i64 = 1_000_000_000;

fuzz_target!(|data: &[u8]| {
    // A small table, so that it is full all the time.
    let options = TableOptions { interval_ns: 10 * S, idle_ns: 120 * S, tcp_idle_ns: 3600 * S, entries: 8 };
    let Ok((records, report)) = Replay::of_bytes(data.to_vec(), options) else { return };
    let sum = |part: fn(&weir_shipper::flow::FlowRecord) -> u64| records.iter().map(part).sum::<u64>();
    assert_eq!(sum(|record| record.src_packets + record.dst_packets), report.totals.packets);
    assert_eq!(sum(|record| record.src_bytes + record.dst_bytes), report.totals.bytes);
    assert_eq!(records.len() as u64, report.totals.records);
    assert!(records.iter().all(|record| record.start_ns <= record.end_ns && record.opened <= 1));
    assert!(records.iter().all(|record| record.end_reason.is_some() || record.connect_error.is_none()));
});
