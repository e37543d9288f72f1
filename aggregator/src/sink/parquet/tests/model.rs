//! Random sequences of steps against a small model: what was cut is there once, whatever happened between.

use proptest::prelude::*;

use super::*;

#[derive(Clone, Debug)]
enum Op {
    /// Take so many records.
    Write(u8),
    Cut,
    /// Drop the sink as a crash would, without a cut, and open again.
    Reopen,
    /// The folder can't be written for one cut.
    FailedCut,
    Skip(u8),
    Retain,
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        4 => (1u8..5).prop_map(Op::Write),
        3 => Just(Op::Cut),
        2 => Just(Op::Reopen),
        1 => Just(Op::FailedCut),
        1 => (1u8..4).prop_map(Op::Skip),
        1 => Just(Op::Retain),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 32, ..ProptestConfig::default() })]

    #[test]
    fn every_row_of_every_cut_is_there_once(ops in prop::collection::vec(op(), 1..25), spread in 1u64..7_200_000_000) {
        let synthetic = Synthetic { flows: 20, others: 1, spread_us: spread, ..small() };
        let dir = TempDir::new().unwrap();
        let mut config = config(dir.path());
        config.buffer_bytes_max = 200_000;
        config.retention.0 = [Keep { age: None, bytes: Some(400_000) }; 4];
        let mut sink = ParquetSink::open(config.clone(), JOURNAL).unwrap().0;
        // The model: the rows that are published, and the positions that are taken but not published.
        let mut published: BTreeMap<[u8; 16], u32> = BTreeMap::new();
        let mut taken: Vec<u64> = Vec::new();
        let rows_of = |position| (0..23).map(move |row| (synthetic_event_id(position, row), 1));
        for op in ops {
            match op {
                Op::Write(records) => for _ in 0..records {
                    let position = sink.due();
                    sink.write(&synthetic.record(position), Instant::now()).unwrap();
                    taken.push(position);
                },
                Op::Cut => {
                    sink.cut(Reason::Request, NOW_US).unwrap();
                    published.extend(taken.drain(..).flat_map(rows_of));
                }
                Op::Reopen => {
                    drop(sink);
                    sink = ParquetSink::open(config.clone(), JOURNAL).unwrap().0;
                    taken.clear();
                }
                Op::FailedCut => {
                    let folder = dir.path().join("_weir/intent");
                    fs::rename(&folder, dir.path().join("away")).unwrap();
                    let failed = sink.cut(Reason::Request, NOW_US);
                    if let Err(error) = &failed {
                        prop_assert_eq!(error.disposition(), Disposition::Retry);
                        prop_assert!(sink.cut(Reason::Request, NOW_US).is_err(), "only recovery leads on");
                    }
                    fs::rename(dir.path().join("away"), &folder).unwrap();
                    sink.recover().unwrap();
                    taken.clear();
                }
                Op::Skip(records) => {
                    sink.skip(sink.due() + u64::from(records), "test".to_owned(), Instant::now()).unwrap();
                }
                Op::Retain => {
                    let gone: std::collections::BTreeSet<_> =
                        sink.retain(NOW_US).unwrap().into_iter().map(|file| file.path).collect();
                    if !gone.is_empty() {
                        // Which rows went is in the files that stayed: none of these may be new.
                        let left = ids(dir.path());
                        prop_assert!(left.iter().all(|(id, count)| published.get(id) == Some(count)));
                        published = left;
                    }
                }
            }
            let found = ids(dir.path());
            prop_assert!(found == published, "{} rows found, {} published", found.len(), published.len());
        }
        drop(sink);
        let report = verify(dir.path()).unwrap();
        prop_assert!(report.is_sound() && report.unlisted.is_empty(), "{:?}", report);
    }
}
