//! A spent budget: what goes, in which order, and that it is counted.

use std::time::Duration;

use super::world::*;
use super::*;

#[test]
fn the_oldest_batches_that_were_never_sent_go_first() {
    let mut world = World::new(20_000, 2048);
    for _ in 0..4 {
        world.append(&[1000]);
    }
    // Two may have arrived; the mark covers what existed then.
    world.send(2, false);
    for _ in 0..60 {
        assert_eq!(world.append(&[1000]), Appended::Stored, "there is always something older to drop");
    }
    let dropped = world.metrics.dropped_events_of(LossReason::Budget);
    assert!(dropped > 0);
    world.finish();
    assert_eq!(world.aggregator.skipped, dropped);
    for id in [0, 1, 2, 3, 63] {
        assert_eq!(world.aggregator.journaled.get(&id), Some(&1), "batch {id}");
    }
    assert_eq!(world.aggregator.journaled.get(&10), None);
}

#[test]
fn when_all_may_have_arrived_the_new_interval_is_dropped_and_not_read_again() {
    let mut world = World::new(20_000, 2048);
    let outbox = world.spool().outbox();
    let epoch = outbox.head().epoch;
    outbox.welcome(&epoch, JOURNAL, 0).unwrap();
    let mut stored = 0;
    while world.append(&[1000]) == Appended::Stored {
        stored += 1;
        let sent = outbox.next(&epoch, stored, Duration::ZERO).unwrap().unwrap();
        world.aggregator.receive(epoch, &sent);
        assert!(stored < 100);
    }
    drop(outbox);
    assert!(stored < 20, "{stored}");
    let key = CaptureKey { source: SOURCE, interval: world.interval - 1 };
    world.open();
    assert!(world.spool().holds(key));
    world.finish();
    assert_eq!(world.aggregator.journaled.len() as u64, stored);
}

#[test]
fn a_record_over_the_budget_is_dropped_counted() {
    let mut world = World::new(20_000, 2048);
    assert_eq!(world.append(&[30_000]), Appended::Dropped);
    assert_eq!(world.append(&[100]), Appended::Stored);
    world.finish();
    assert_eq!((world.aggregator.skipped, world.aggregator.events), (1, 2));
}

#[test]
fn a_loss_of_unknown_time_is_joined_without_1970() {
    let mut epoch = epoch::Epoch::new([1; 16]);
    for (from, first_ns, last_ns) in [(1, 0, 0), (2, 500, 700), (3, 400, 900), (4, 0, 0)] {
        epoch.next = from + 1;
        let (stage, reason) = (LossStage::Spool, LossReason::Corrupt);
        epoch.bury(Tombstone { from, to: from, stage, reason, events: None, bytes: None, first_ns, last_ns });
    }
    assert_eq!(epoch.tombstones.len(), 1);
    assert_eq!((epoch.tombstones[0].first_ns, epoch.tombstones[0].last_ns), (400, 900));
}
