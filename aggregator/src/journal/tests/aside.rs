//! Segments whose header or checkpoint is damaged: the journal goes on without them.

use super::*;

/// A journal of 200 batches of shipper 1 in several segments; gives these and the journal's id.
fn many_segments(dir: &Path) -> (Vec<PathBuf>, Id) {
    let bench = Bench::open(dir, PLENTY);
    let mut seat = bench.seat(1);
    for number in 1..=200 {
        bench.offer(&seat, 1, number);
        bench.acknowledged(&mut seat, number);
    }
    let id = bench.id;
    drop(seat);
    bench.close();
    let segments = segments(dir);
    assert!(segments.len() > 3, "the test needs a middle segment");
    (segments, id)
}

fn flip(path: &Path, at: u64) {
    let file = fs::OpenOptions::new().read(true).write(true).open(path).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).unwrap();
    file.write_all_at(&[byte[0] ^ 0x10], at).unwrap();
}

fn first_of(path: &Path) -> u64 {
    path.file_stem().unwrap().to_str().unwrap().parse().unwrap()
}

const IN_HEADER: u64 = 20;
const IN_CHECKPOINT: u64 = 64 + 24 + 2;

/// Damages a segment, opens the journal and checks that it goes on without `lost`, and after all that it had.
fn assert_goes_on_without(dir: &Path, id: Id, damaged: &Path, lost: std::ops::Range<u64>) {
    for start in 0..2 {
        let bench = Bench::open(dir, PLENTY);
        bench.cursors.set(SINK.name, 1);
        assert_eq!(bench.id, id);
        let next = bench.reader.durable_position();
        assert!(next >= 201, "position {next} was given out before");
        if start == 0 {
            let reported =
                bench.recovery.damaged.iter().any(|damage| {
                    damage.first_position <= lost.start && damage.last_position + 1 >= lost.end
                });
            assert!(reported || lost.is_empty(), "{lost:?} of {:?}", bench.recovery.damaged);
        }
        let last = *bench.seat(1).journaled.borrow();
        let expected = if lost.end == 201 { lost.start - 1 } else { 200 };
        assert_eq!(last, expected, "one record a batch: the state is that of the last record which is left");
        let numbers: Vec<u64> = bench.contents().into_iter().map(|(_, number)| number).collect();
        assert_eq!(numbers, (1..201).filter(|number| !lost.contains(number)).collect::<Vec<_>>());
        bench.close();
    }
    assert!(!damaged.exists() || fs::metadata(damaged).unwrap().len() < 1000, "a new segment at most");
    assert!(damaged.with_extension("log.damaged").exists());
}

#[test]
fn a_journal_goes_on_without_a_segment_that_cannot_be_used() {
    for at in [IN_HEADER, IN_CHECKPOINT] {
        let dir = TempDir::new().unwrap();
        let (segments, id) = many_segments(dir.path());
        flip(&segments[1], at);
        assert_goes_on_without(dir.path(), id, &segments[1], first_of(&segments[1])..first_of(&segments[2]));

        let dir = TempDir::new().unwrap();
        let (segments, id) = many_segments(dir.path());
        let last = segments.last().unwrap();
        flip(last, at);
        assert_goes_on_without(dir.path(), id, last, first_of(last)..201);

        let dir = TempDir::new().unwrap();
        let (segments, id) = many_segments(dir.path());
        // As after a roll: the last segment has no record.
        let last = segments.last().unwrap();
        let kept = fs::read(last).unwrap();
        let checkpoint = 88 + u64::from(u32::from_le_bytes(kept[68..72].try_into().unwrap()));
        fs::OpenOptions::new().write(true).open(last).unwrap().set_len(checkpoint).unwrap();
        flip(last, at);
        let bench = Bench::open(dir.path(), PLENTY);
        assert_eq!((bench.id, bench.reader.durable_position()), (id, first_of(last)));
        assert_eq!(*bench.seat(1).journaled.borrow(), first_of(last) - 1);
        assert!(bench.recovery.damaged.is_empty(), "{:?}", bench.recovery.damaged);
        bench.close();

        // The only segment: its id is kept, and its positions are not given out again.
        let dir = TempDir::new().unwrap();
        let (segments, id) = many_segments(dir.path());
        let (last, others) = segments.split_last().unwrap();
        others.iter().for_each(|path| fs::remove_file(path).unwrap());
        flip(last, at);
        let bench = Bench::open(dir.path(), PLENTY);
        assert_eq!((bench.id, bench.reader.durable_position()), (id, 201));
        let known = if at == IN_HEADER { first_of(last) - 1 } else { 0 };
        assert_eq!(*bench.seat(1).journaled.borrow(), known, "the checkpoint is read if it can be");
        bench.close();
    }
}
