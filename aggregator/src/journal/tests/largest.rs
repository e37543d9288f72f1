//! The largest record: what a configuration says is no less than what a batch can make.

use super::*;
use crate::columns;

#[test]
fn a_batch_whose_texts_are_in_every_dictionary_stays_below_the_bound() {
    let limits = Limits { decoded_bytes_max: 1 << 20, rows_max: 4096, ..Limits::default() };
    let group = GroupOptions { rows: 1, bytes: GroupOptions::bytes(&limits), linger: Duration::ZERO };
    // Texts that do not compress, once in every column that can hold them, by the reports of both sides.
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    let mut letter = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        char::from(b'!' + (state % 90) as u8)
    };
    let texts = 240_u32;
    let mut strings = vec![String::new()];
    strings.extend((0..texts).map(|_| (0..4090).map(|_| letter()).collect::<String>()));
    let rows = 2 * texts;
    let column: Vec<u32> = (0..rows).map(|row| 1 + row / 2).collect();
    let flows = FlowColumns {
        rows,
        strings,
        addresses: vec![1; 32],
        base_time_ns: 1_700_000_000_000_000_000,
        flow_id_high: vec![1; rows as usize],
        flow_id_low: vec![2; rows as usize],
        reporter: (0..rows).map(|row| 1 + row % 2).collect(),
        vantage: vec![1; rows as usize],
        orientation: vec![1; rows as usize],
        src_ip: vec![0; rows as usize],
        dst_ip: vec![1; rows as usize],
        protocol: vec![6; rows as usize],
        local_process: column.clone(),
        local_cgroup: column.clone(),
        local_container_id: column.clone(),
        local_pod_uid: column,
        ..FlowColumns::default()
    };
    let body = BatchBody { flows: Some(flows), ..BatchBody::default() };
    let body = CheckedBody::check(body, rows, &limits).unwrap();
    let content = Content::Body(Box::new(body));
    let unit = Accepted { origin: origin(1).into(), first_number: 1, last_number: 1, content, share: None };
    let snapshot = Snapshot::new(Sources::default());
    let ranges = vec![unit.range()];
    let batches = columns::build(&[unit], &[], &snapshot, 0).unwrap();
    let record = record::encode(ranges, 0, &batches).unwrap().len() as u64;
    let bound = group.record_bytes_max(&limits);
    assert!(record > 7 * limits.decoded_bytes_max * 9 / 10, "the texts are in eight columns: {record}");
    assert!(record < bound, "{record} of {bound}");
}
