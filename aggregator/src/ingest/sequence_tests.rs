//! The sequence rules by example, and against a model that knows nothing but the list of what was journaled.

use std::collections::VecDeque;

use proptest::prelude::*;
use weir_proto::v1::BatchRange;

use super::*;

const S: Source = Source { shipper: [1; 16], epoch: [2; 16] };

fn ready() -> (Sequences, u64) {
    let mut sequences = Sequences::new(Bounds::default());
    let greeting = sequences.hello(S, "n", "c");
    assert_eq!(greeting.journaled, 0);
    (sequences, greeting.generation)
}

#[test]
fn numbers_are_taken_once_and_in_order() {
    let (mut sequences, stream) = ready();
    let mut offer = |first, last| sequences.offer(S, stream, first, last, 0);
    assert_eq!(offer(2, 2), Verdict::UnknownEpoch);
    assert_eq!(offer(1, 1), Verdict::Accept);
    assert_eq!(offer(1, 1), Verdict::Duplicate, "accepted, not yet journaled");
    assert_eq!(offer(3, 3), Verdict::Gap { expected: 2 });
    assert_eq!(offer(2, 5), Verdict::Accept, "a skip");
    assert_eq!(offer(4, 8), Verdict::AcceptOverlap, "a skip of what was partly accepted");
    assert_eq!(offer(2, 8), Verdict::Duplicate);
    assert_eq!(offer(9, 9), Verdict::Accept);
}

#[test]
fn an_epoch_may_begin_with_a_skip_and_a_newer_stream_fences_the_older() {
    let (mut sequences, old) = ready();
    assert_eq!(sequences.offer(S, old, 1, 7, 0), Verdict::Accept);
    let new = sequences.hello(Source { epoch: [9; 16], ..S }, "n", "c").generation;
    assert_eq!(sequences.offer(S, old, 8, 8, 0), Verdict::Superseded);
    sequences.goodbye(S.shipper, old);
    assert_eq!(sequences.offer(S, new, 8, 8, 0), Verdict::Accept, "the old one's end is not the new one's");
}

#[test]
fn state_is_bounded_and_aged_but_never_what_is_queued() {
    let bounds = Bounds { shippers_max: 2, epochs_max: 2, age_s_max: 100 };
    let mut sequences = Sequences::new(bounds);
    let source = |shipper: u8, epoch: u8| Source { shipper: [shipper; 16], epoch: [epoch; 16] };
    let mut take = |source: Source, now| {
        let stream = sequences.hello(source, "n", "c").generation;
        let verdict = sequences.offer(source, stream, 1, 1, now);
        if verdict == Verdict::Accept && source.epoch != [9; 16] {
            sequences.journaled(source, 1);
        }
        sequences.goodbye(source.shipper, stream);
        verdict
    };
    assert_eq!(take(source(1, 9), 0), Verdict::Accept);
    assert_eq!(take(source(1, 2), 1), Verdict::Accept);
    assert_eq!(take(source(1, 3), 2), Verdict::Accept, "epoch 2 goes, epoch 9 is in the queue");
    assert_eq!(take(source(2, 1), 3), Verdict::Accept);
    assert_eq!(take(source(3, 1), 4), Verdict::Full);
    let kept: Vec<Vec<u8>> = sequences.checkpoint(102).into_iter().map(|state| state.epoch).collect();
    assert_eq!(kept, [vec![3; 16], vec![1; 16]]);
    assert_eq!(sequences.shippers(), 2);
    sequences.journaled(source(1, 9), 1);
    assert_eq!(sequences.checkpoint(1000), [], "all too old");
    assert_eq!(sequences.shippers(), 0);
}

#[derive(Clone, Debug)]
enum Step {
    /// A new stream; the shipper goes on after what it is told is journaled.
    Reconnect,
    /// The current stream sends the next unit, a skip of `n` if above 1.
    Send(u64),
    /// A stream that was replaced sends once more.
    SendFromOld,
    /// The current stream sends a number out of order.
    Stray(u64),
    /// The writer syncs so many queued units.
    Commit(usize),
    /// The journal begins a new segment.
    Checkpoint,
    /// The process dies: the queue is lost, the journal stays.
    Crash,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        2 => Just(Step::Reconnect),
        8 => (1..4_u64).prop_map(Step::Send),
        1 => Just(Step::SendFromOld),
        2 => (1..30_u64).prop_map(Step::Stray),
        6 => (1..5_usize).prop_map(Step::Commit),
        1 => Just(Step::Checkpoint),
        1 => Just(Step::Crash),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    /// Whatever happens, the journal holds 1, 2, 3, … once each, and an acknowledgement never runs ahead of it.
    #[test]
    fn the_journal_holds_each_number_once(steps in prop::collection::vec(step(), 1..120)) {
        let mut sequences = Sequences::new(Bounds::default());
        let mut queue: VecDeque<(u64, u64)> = VecDeque::new();
        let mut journal: Vec<(u64, u64)> = Vec::new();
        let (mut checkpoint, mut checkpointed) = (Vec::new(), 0);
        let mut stream = sequences.hello(S, "n", "c");
        let (mut old, mut next) = (stream, 1);
        for step in steps {
            let end = journal.last().map_or(0, |unit| unit.1);
            let mut offered = None;
            match step {
                Step::Reconnect => {
                    old = stream;
                    stream = sequences.hello(S, "n", "c");
                    prop_assert_eq!(stream.journaled, end);
                    next = stream.journaled + 1;
                }
                Step::Send(count) => {
                    offered = Some((stream.generation, next, next + count - 1));
                    next += count;
                }
                Step::SendFromOld => offered = Some((old.generation, next, next)),
                Step::Stray(number) => offered = Some((stream.generation, number, number)),
                Step::Commit(count) => {
                    for unit in queue.drain(..count.min(queue.len())) {
                        journal.push(unit);
                        sequences.journaled(S, unit.1);
                    }
                }
                Step::Checkpoint => {
                    (checkpoint, checkpointed) = (sequences.checkpoint(0), journal.len());
                }
                Step::Crash => {
                    queue.clear();
                    sequences = Sequences::restore(Bounds::default(), checkpoint.clone());
                    for (first_number, last_number) in journal[checkpointed..].iter().copied() {
                        let (shipper_id, epoch) = (S.shipper.to_vec(), S.epoch.to_vec());
                        sequences.replay(&BatchRange { shipper_id, epoch, first_number, last_number }, 0);
                    }
                    stream = sequences.hello(S, "n", "c");
                    old = stream;
                    prop_assert_eq!(stream.journaled, end);
                    next = end + 1;
                }
            }
            if let Some((generation, first, last)) = offered {
                match sequences.offer(S, generation, first, last, 0) {
                    // The shipper's skips that overlap are cut to what is new.
                    Verdict::Accept | Verdict::AcceptOverlap => {
                        let taken = queue.back().or(journal.last()).map_or(0, |unit| unit.1);
                        queue.push_back((taken + 1, last));
                        next = next.max(last + 1);
                    }
                    Verdict::Gap { expected } => next = expected,
                    Verdict::UnknownEpoch => next = 1,
                    Verdict::Duplicate | Verdict::Superseded | Verdict::Full => {}
                }
            }
            let mut expected = 1;
            for (first, last) in journal.iter().chain(&queue) {
                prop_assert_eq!(*first, expected);
                prop_assert!(last >= first);
                expected = last + 1;
            }
        }
    }
}
