//! Any bytes as a batch's payload, and compressed as its body: an error, or columns with exactly the rows that were
//! stated.
#![no_main]

use std::sync::{Arc, LazyLock};

use libfuzzer_sys::fuzz_target;
use weir_aggregator::accepted::{Accepted, Content, Origin, Source};
use weir_aggregator::columns;
use weir_aggregator::enrich::{Snapshot, Sources};
use weir_aggregator::ingest::check::CheckedBody;
use weir_aggregator::ingest::decode::{body, envelope};
use weir_aggregator::ingest::error::BatchError;
use weir_aggregator::ingest::limits::Limits;
use weir_proto::v1::{Batch, Codec};
use weir_schema::SCHEMA_VERSION;

/// Small, so that a body of a few bytes cannot state rows that take long to build.
const LIMITS: Limits =
    Limits { payload_bytes_max: 1 << 16, decoded_bytes_max: 1 << 17, rows_max: 512, string_bytes_max: 256 };
const RECEIVED_NS: i64 = 1_700_000_000_000_000_000;

static SNAPSHOT: LazyLock<Snapshot> = LazyLock::new(|| Snapshot::new(Sources::default()));
static ORIGIN: LazyLock<Arc<Origin>> = LazyLock::new(|| {
    let source = Source { shipper: [1; 16], epoch: [2; 16] };
    Arc::new(Origin { source, node: "node".to_owned(), cluster: "cluster".to_owned() })
});

fuzz_target!(|bytes: &[u8]| {
    check(bytes.to_vec());
    if let Ok(payload) = zstd::bulk::compress(bytes, 1) {
        check(payload);
    }
});

fn check(payload: Vec<u8>) {
    let batch = Batch {
        number: 1,
        schema_version: SCHEMA_VERSION,
        codec: Codec::Zstd as i32,
        payload: payload.into(),
        events: LIMITS.rows_max as u32,
    };
    match decode(&batch) {
        Ok(body) => build(body, batch.events),
        // The body is good but for the count: state the right one.
        Err(BatchError::Events { stated, found }) => {
            assert!(stated == batch.events && found < u64::from(stated));
            let batch = Batch { events: found as u32, ..batch };
            let body = decode(&batch).expect("only the count was wrong");
            build(body, batch.events);
        }
        Err(error) => assert!(!error.to_string().is_empty()),
    }
}

fn decode(batch: &Batch) -> Result<CheckedBody, BatchError> {
    let envelope = envelope(batch, &LIMITS)?;
    assert!(envelope.decoded_bytes <= LIMITS.decoded_bytes_max);
    body(batch, envelope, &LIMITS)
}

fn build(body: CheckedBody, events: u32) {
    assert_eq!(body.events(), u64::from(events));
    let content = Content::Body(Box::new(body));
    let unit =
        Accepted { origin: Arc::clone(&ORIGIN), first_number: 1, last_number: 1, content, share: None };
    let batches = columns::build(&[unit], &[], &SNAPSHOT, RECEIVED_NS).expect("a checked body has columns");
    for (kind, batch) in &batches {
        assert_eq!(batch.schema(), kind.arrow_schema());
    }
    assert_eq!(batches.iter().map(|(_, batch)| batch.num_rows()).sum::<usize>(), events as usize);
}
