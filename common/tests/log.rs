//! The segmented log against a small model, and against damage done to its files.
#![expect(clippy::unwrap_used, reason = "tests panic where they fail")]

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::Path;

use proptest::prelude::*;
use weir_common::log::{Log, LogError, LogOptions, Recovery};

fn options(segment_bytes: u64) -> LogOptions {
    LogOptions { segment_bytes, record_bytes_max: 4096, kind: *b"TEST", schema_version: 1 }
}

fn open(dir: &Path, segment_bytes: u64) -> (Log, Recovery) {
    let (mut log, recovery) = Log::open(dir, options(segment_bytes)).unwrap();
    if log.checkpoint().is_none() {
        log.roll(b"start").unwrap();
    }
    (log, recovery)
}

fn fill(log: &mut Log, count: u64) {
    for _ in 0..count {
        if log.roll_due() {
            log.roll(format!("before {}", log.next_position()).as_bytes()).unwrap();
        }
        let text = format!("record {}", log.next_position());
        log.append(text.as_bytes()).unwrap();
    }
    log.sync().unwrap();
}

fn flip(path: &Path, offset: u64) {
    let file = fs::OpenOptions::new().read(true).write(true).open(path).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, offset).unwrap();
    file.write_all_at(&[byte[0] ^ 0x40], offset).unwrap();
}

#[test]
fn records_are_visible_once_synced_and_survive_reopening() {
    let dir = tempfile::tempdir().unwrap();
    let (mut log, _) = open(dir.path(), 1 << 20);
    let reader = log.reader();
    assert_eq!(log.append(b"one").unwrap(), 1);
    assert_eq!(reader.read(1).unwrap(), None);
    log.sync().unwrap();
    assert_eq!(reader.read(1).unwrap().unwrap(), b"one");
    drop(log);
    let (log, recovery) = open(dir.path(), 1 << 20);
    assert!(recovery.cut.is_none() && recovery.damaged.is_empty());
    assert_eq!((log.next_position(), log.checkpoint().unwrap()), (2, &b"start"[..]));
    assert_eq!(log.reader().read(1).unwrap().unwrap(), b"one");
}

#[test]
fn one_writer_at_a_time() {
    let dir = tempfile::tempdir().unwrap();
    let (_log, _) = open(dir.path(), 1 << 20);
    assert!(matches!(Log::open(dir.path(), options(1 << 20)), Err(LogError::Locked { .. })));
}

#[test]
fn a_segment_of_a_newer_version_or_another_kind_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    drop(open(dir.path(), 1 << 20));
    for other in [
        LogOptions { schema_version: 0, ..options(1 << 20) },
        LogOptions { kind: *b"ELSE", ..options(1 << 20) },
    ] {
        assert!(matches!(Log::open(dir.path(), other), Err(LogError::BadSegment { .. })));
    }
}

#[test]
fn a_torn_tail_is_cut_and_reported_with_file_and_offset() {
    let dir = tempfile::tempdir().unwrap();
    let (mut log, _) = open(dir.path(), 1 << 20);
    fill(&mut log, 3);
    let segment = log.segments()[0].clone();
    drop(log);
    let length = fs::metadata(&segment.path).unwrap().len();
    fs::OpenOptions::new().write(true).open(&segment.path).unwrap().set_len(length - 2).unwrap();
    let (mut log, recovery) = open(dir.path(), 1 << 20);
    let cut = recovery.cut.unwrap();
    let last_frame = 24 + "record 3".len() as u64;
    assert_eq!((cut.path, cut.offset, cut.bytes_lost), (segment.path, length - last_frame, last_frame - 2));
    assert_eq!(log.next_position(), 3);
    fill(&mut log, 1);
    assert_eq!(log.reader().read(3).unwrap().unwrap(), b"record 3");
}

#[test]
fn a_flipped_byte_costs_one_record_and_says_where() {
    let dir = tempfile::tempdir().unwrap();
    let (mut log, _) = open(dir.path(), 1 << 20);
    fill(&mut log, 5);
    let path = log.segments()[0].path.clone();
    drop(log);
    let frame = |record: u64| 64 + 24 + 5 + (record - 1) * (24 + 8);
    for offset_in_frame in [0, 5, 9, 17, 21, 24, 31] {
        let clean = fs::read(&path).unwrap();
        flip(&path, frame(2) + offset_in_frame);
        let (log, recovery) = open(dir.path(), 1 << 20);
        let damage = &recovery.damaged[0];
        assert_eq!((damage.offset, damage.first_position, damage.last_position), (frame(2), 2, 2));
        assert!(recovery.cut.is_none() && recovery.damaged.len() == 1);
        let reader = log.reader();
        let (mut read, mut next) = (Vec::new(), 1);
        loop {
            match reader.read(next) {
                Ok(Some(_)) => {
                    read.push(next);
                    next += 1;
                }
                Ok(None) => break,
                Err(LogError::Damaged { resume_at, offset, .. }) => {
                    assert_eq!(offset, frame(2));
                    next = resume_at;
                }
                Err(other) => panic!("{other}"),
            }
        }
        assert_eq!(read, [1, 3, 4, 5]);
        drop(log);
        fs::write(&path, clean).unwrap();
    }
}

#[test]
fn damage_at_the_end_of_a_sealed_segment_is_not_a_torn_tail() {
    let dir = tempfile::tempdir().unwrap();
    let (mut log, _) = open(dir.path(), 200);
    fill(&mut log, 10);
    let segments = log.segments();
    assert!(segments.len() > 2);
    drop(log);
    let sealed = &segments[0];
    fs::OpenOptions::new().write(true).open(&sealed.path).unwrap().set_len(sealed.bytes - 1).unwrap();
    let (log, recovery) = open(dir.path(), 200);
    assert!(recovery.cut.is_none());
    let last = sealed.next_position - 1;
    assert_eq!((recovery.damaged[0].first_position, recovery.damaged[0].last_position), (last, last));
    let Err(LogError::Damaged { resume_at, .. }) = log.reader().read(last) else {
        panic!("read a damaged record")
    };
    assert_eq!(log.reader().read(resume_at).unwrap().unwrap(), format!("record {resume_at}").as_bytes());
}

#[test]
fn a_missing_segment_is_reported_and_the_rest_reads_on() {
    let dir = tempfile::tempdir().unwrap();
    let (mut log, _) = open(dir.path(), 200);
    fill(&mut log, 12);
    let segments = log.segments();
    drop(log);
    fs::remove_file(&segments[1].path).unwrap();
    let (log, recovery) = open(dir.path(), 200);
    let damage = &recovery.damaged[0];
    assert_eq!(damage.first_position, segments[1].first_position);
    assert_eq!(damage.last_position, segments[1].next_position - 1);
    let Err(LogError::Damaged { resume_at, .. }) = log.reader().read(segments[1].first_position) else {
        panic!()
    };
    assert_eq!(resume_at, segments[2].first_position);
    assert!(log.reader().read(resume_at).unwrap().is_some());
}

#[test]
fn positions_that_were_seen_elsewhere_are_not_given_out_again() {
    let dir = tempfile::tempdir().unwrap();
    let (mut log, _) = open(dir.path(), 1 << 20);
    fill(&mut log, 3);
    log.advance_to(10, b"later").unwrap();
    assert_eq!(log.append(b"ten").unwrap(), 10);
    log.sync().unwrap();
    let reader = log.reader();
    let Err(LogError::Damaged { resume_at, .. }) = reader.read(4) else {
        panic!("read what was never written")
    };
    assert_eq!((resume_at, reader.read(10).unwrap().unwrap()), (10, b"ten".to_vec()));
    drop(log);
    let (log, recovery) = open(dir.path(), 1 << 20);
    assert_eq!((log.next_position(), log.checkpoint().unwrap()), (11, &b"later"[..]));
    assert_eq!((recovery.damaged[0].first_position, recovery.damaged[0].last_position), (4, 9));
}

#[test]
fn too_large_a_record_is_refused_and_nothing_is_written() {
    let dir = tempfile::tempdir().unwrap();
    let (mut log, _) = open(dir.path(), 1 << 20);
    assert!(matches!(log.append(&[0; 5000]), Err(LogError::TooLarge { bytes: 5000, limit: 4096 })));
    assert_eq!(log.append(b"next").unwrap(), 1);
}

#[derive(Clone, Debug)]
enum Step {
    Append(Vec<u8>),
    Sync,
    Roll,
    Remove(u64),
    /// The process dies: bytes that were never synced may be there or not, in part.
    Crash(u64),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        6 => proptest::collection::vec(any::<u8>(), 0..120).prop_map(Step::Append),
        3 => Just(Step::Sync),
        1 => Just(Step::Roll),
        1 => (0..40u64).prop_map(Step::Remove),
        2 => (0..400u64).prop_map(Step::Crash),
    ];
    proptest::collection::vec(step, 1..60)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    /// Whatever happens, what was synced reads back, in order, and nothing else ever appears.
    #[test]
    fn a_log_is_its_model(steps in steps()) {
        let dir = tempfile::tempdir().unwrap();
        let (mut log, _) = open(dir.path(), 300);
        // Index 0 is position 1. `synced` of them are durable.
        let mut model: Vec<Vec<u8>> = Vec::new();
        let mut synced = 0;
        let mut removed_before = 1;
        for step in steps {
            match step {
                Step::Append(payload) => {
                    if log.roll_due() {
                        log.roll(b"checkpoint").unwrap();
                        synced = model.len();
                    }
                    model.push(payload.clone());
                    prop_assert_eq!(log.append(&payload).unwrap(), model.len() as u64);
                }
                Step::Sync => {
                    log.sync().unwrap();
                    synced = model.len();
                }
                Step::Roll => {
                    log.roll(b"checkpoint").unwrap();
                    synced = model.len();
                }
                Step::Remove(position) => {
                    log.remove_before(position).unwrap();
                    prop_assert!(log.first_position() <= position.max(removed_before));
                    removed_before = log.first_position();
                }
                Step::Crash(torn) => {
                    let active = log.segments().pop().unwrap();
                    drop(log);
                    // Everything after the last synced record may be torn at any byte.
                    let first = active.first_position as usize - 1;
                    let unsynced: u64 = model[synced.max(first)..].iter().map(|p| 24 + p.len() as u64).sum();
                    let keep = active.bytes - torn.min(unsynced);
                    fs::OpenOptions::new().write(true).open(&active.path).unwrap().set_len(keep).unwrap();
                    let (reopened, recovery) = open(dir.path(), 300);
                    log = reopened;
                    prop_assert!(recovery.damaged.is_empty());
                    let next = log.next_position() as usize - 1;
                    prop_assert!((synced..=model.len()).contains(&next), "{next} of {synced}..={}", model.len());
                    model.truncate(next);
                    synced = next;
                }
            }
            let reader = log.reader();
            for position in removed_before..=model.len() as u64 + 1 {
                let expected = (position <= synced as u64).then(|| &model[position as usize - 1]);
                prop_assert_eq!(reader.read(position).unwrap(), expected.cloned());
            }
        }
    }
}
