//! Damaged and missing files: what they cost is declared, the rest is delivered.

use std::fs::{self, OpenOptions};

use super::world::*;
use super::*;

#[test]
fn a_flipped_byte_in_a_sealed_segment_is_declared_and_the_rest_delivered() {
    let mut world = World::new(1 << 20, 2048);
    for _ in 0..20 {
        world.append(&[500, 500]);
    }
    world.close();
    let segments = world.segments();
    assert!(segments.len() > 4);
    flip(&segments[2], 600);
    world.open();
    world.send_all();
    assert_eq!(world.aggregator.skips_unknown, 1);
    assert!(world.aggregator.skips_since.is_some_and(|since| since > 1_600_000_000_000_000_000));
    let missing: Vec<u64> = (0..40).filter(|id| !world.aggregator.journaled.contains_key(id)).collect();
    assert_eq!(missing.len(), 2, "one record: {missing:?}");
    assert_eq!(world.epochs().len(), 1);
}

#[test]
fn a_segment_that_cannot_be_used_is_set_aside_and_the_rest_delivered() {
    // A sealed one, and the active one.
    for index in [2, usize::MAX] {
        let mut world = World::new(1 << 20, 2048);
        for _ in 0..10 {
            world.append(&[500, 500]);
        }
        world.close();
        let segments = world.segments();
        let victim = segments.get(index).or(segments.last()).unwrap();
        flip(victim, 9);
        world.open();
        assert!(victim.with_extension("log.damaged").exists());
        world.interval = 50;
        world.append(&[500]);
        world.send_all();
        let missing = (0..21).filter(|id| !world.aggregator.journaled.contains_key(id)).count();
        assert!(missing > 0 && missing <= 4, "{missing} of segment {index}");
        assert!(world.aggregator.journaled.values().all(|times| *times == 1));
        assert_eq!(world.aggregator.journaled.len() + missing, 21);
    }
}

#[test]
fn damage_found_while_sending_is_declared_with_its_count() {
    let mut world = World::new(1 << 20, 2048);
    for _ in 0..10 {
        world.append(&[500, 500]);
    }
    let segments = world.segments();
    flip(&segments[1], 600);
    world.send_all();
    assert_eq!(world.aggregator.skips_unknown, 0);
    assert_eq!(world.aggregator.journaled.len(), 18);
    assert_eq!(world.aggregator.events + world.aggregator.skipped, world.events);
    assert_eq!(world.metrics.dropped_events_of(LossReason::Corrupt), world.aggregator.skipped);
}

#[test]
fn a_lost_tail_begins_a_new_epoch_and_is_declared() {
    let mut world = World::new(1 << 20, 1 << 20);
    let path = world.segments().pop().unwrap();
    let mut lengths = Vec::new();
    for _ in 0..5 {
        world.append(&[500]);
        lengths.push(fs::metadata(&path).unwrap().len());
    }
    let before = world.epochs();
    world.send(2, true);
    world.send(1, false);
    world.close();
    // A disk that forgot what it had synced: exactly at a frame's end, so that no checksum tells.
    let keep = lengths[1];
    OpenOptions::new().write(true).open(&path).unwrap().set_len(keep).unwrap();
    world.open();
    let after = world.epochs();
    assert_eq!(after.len(), 2, "the old epoch still has something to declare");
    assert_eq!(after[0], before[0]);
    world.interval = 20;
    world.append(&[500]);
    world.send_all();
    assert_eq!(world.aggregator.skips_unknown, 1);
    assert!(world.aggregator.journaled.values().all(|times| *times == 1));
}

#[test]
fn without_its_state_everything_is_sent_again_under_its_numbers() {
    let mut world = World::new(1 << 20, 2048);
    for _ in 0..10 {
        world.append(&[500]);
    }
    world.send(3, true);
    world.send(2, false);
    world.close();
    let state = world.options.dir.join("state");
    flip(&state, 30);
    flip(&state, 256 * 1024 + 30);
    world.open();
    world.append(&[500]);
    world.send_all();
    assert!(world.aggregator.journaled.values().all(|times| *times == 1));
    assert_eq!(world.aggregator.journaled.len(), 11);
    assert_eq!(world.aggregator.skips_unknown, 0);
}
