//! Random walks: whatever happens in whatever order, nothing is lost or doubled.

use std::fs::{self, OpenOptions};
use std::os::unix::fs::FileExt;

use proptest::prelude::*;

use super::world::*;
use super::*;

#[derive(Clone, Debug)]
enum Step {
    Append(Vec<usize>),
    Send(usize, bool),
    Crash,
    TornTail(usize),
    Free,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        5 => proptest::collection::vec(8usize..900, 0..4).prop_map(Step::Append),
        3 => (0usize..6, any::<bool>()).prop_map(|(count, acked)| Step::Send(count, acked)),
        1 => Just(Step::Crash),
        1 => (1usize..300).prop_map(Step::TornTail),
        1 => Just(Step::Free),
    ]
}

fn walk(bytes_max: u64, steps: Vec<Step>) -> World {
    let mut world = World::new(bytes_max, 2048);
    for step in steps {
        match step {
            Step::Append(sizes) => {
                world.append(&sizes);
            }
            Step::Send(count, acked) => world.send(count, acked),
            Step::Crash => {
                world.open();
                let held =
                    world.interval.checked_sub(1).map(|interval| CaptureKey { source: SOURCE, interval });
                assert!(
                    held.is_none_or(|key| world.spool().holds(key)),
                    "a stored interval would be read again"
                );
            }
            Step::TornTail(bytes) => {
                world.close();
                let last = world.segments().pop().unwrap();
                let length = fs::metadata(&last).unwrap().len();
                let file = OpenOptions::new().write(true).open(&last).unwrap();
                file.write_all_at(&vec![0xf7; bytes], length).unwrap();
                let before = world.aggregator.last.len();
                world.open();
                assert!(world.aggregator.last.len() == before);
            }
            Step::Free => world.spool().free().unwrap(),
        }
        world.check();
    }
    world.finish();
    world
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn nothing_is_lost_or_doubled(steps in proptest::collection::vec(step(), 1..40)) {
        let world = walk(1 << 20, steps);
        assert_eq!((world.aggregator.skipped, world.aggregator.skips_unknown), (0, 0));
    }

    #[test]
    fn with_a_small_budget_what_is_dropped_is_counted(steps in proptest::collection::vec(step(), 1..60)) {
        let world = walk(10_000, steps);
        assert_eq!(world.aggregator.skips_unknown, 0);
    }
}
