//! Journals that know more, know less, refuse, or are others than before.

use std::fs;
use std::time::Duration;

use super::world::*;
use super::*;

#[test]
fn a_spool_that_is_behind_the_journal_takes_a_new_epoch() {
    let mut world = World::new(1 << 20, 2048);
    for _ in 0..3 {
        world.append(&[500]);
    }
    // One is acknowledged; the mark covers the three that exist.
    world.send(1, true);
    for _ in 0..3 {
        world.append(&[500]);
    }
    // A copy of this moment comes back after more was captured and sent.
    world.close();
    let (dir, copy) = (world.options.dir.clone(), world.dir.path().join("copy"));
    copy_dir(&dir, &copy);
    world.open();
    world.append(&[500]);
    world.send_all();
    world.close();
    fs::remove_dir_all(&dir).unwrap();
    copy_dir(&copy, &dir);
    world.open();
    // What is captured meanwhile has the number of another batch in the journal.
    world.append(&[500]);
    let outbox = world.spool().outbox();
    let head = outbox.head();
    assert_eq!((head.last_number, world.aggregator.last(&head.epoch)), (7, 7));
    assert_eq!(outbox.welcome(&head.epoch, JOURNAL, 7).unwrap(), Welcomed::Renumbered);
    world.check();
    let renumbered = outbox.head();
    assert_ne!(renumbered.epoch, head.epoch);
    assert_eq!((renumbered.first_number, renumbered.last_number), (1, 5), "four batches and what says so");
    let skip = outbox.next(&renumbered.epoch, 5, Duration::ZERO).unwrap();
    let Some(Outgoing::Skip(skip)) = skip else { panic!("{skip:?}") };
    assert_eq!((skip.reason, skip.events), (LossReason::Rebind, Some(0)));
    drop(outbox);
    // The numbers stay so over a restart, and new ones follow.
    world.open();
    world.append(&[500]);
    let head = world.spool().outbox().head();
    assert_eq!((head.epoch, head.first_number, head.last_number), (renumbered.epoch, 1, 6));
    world.send_all();
    let times: Vec<u32> = world.aggregator.journaled.values().copied().collect();
    assert_eq!(
        times,
        [1, 1, 1, 2, 2, 2, 1, 1, 1],
        "what was marked as sent is not doubled, and nothing is lost"
    );
}

#[test]
fn part_of_a_record_can_be_acknowledged_before_a_renumbering() {
    let mut world = World::new(1 << 20, 1 << 20);
    world.append(&[100, 100, 100, 100]);
    let outbox = world.spool().outbox();
    let head = outbox.head();
    world.send(0, true);
    let sent = outbox.next(&head.epoch, 1, Duration::ZERO).unwrap().unwrap();
    let Outgoing::Batches(batches) = sent else { panic!("{sent:?}") };
    world.aggregator.receive(head.epoch, &Outgoing::Batches(batches[..2].to_vec()));
    outbox.ack(&head.epoch, 2).unwrap();
    outbox.renumber(&head.epoch, "unknown_epoch").unwrap();
    world.check();
    world.open();
    world.finish();
    assert_eq!(world.aggregator.journaled.len(), 4);
}

#[test]
fn another_journal_gets_nothing_until_the_spool_is_bound_to_it() {
    let mut world = World::new(1 << 20, 2048);
    world.append(&[100, 100]);
    world.send(1, false);
    let outbox = world.spool().outbox();
    let head = outbox.head();
    let welcomed = outbox.welcome(&head.epoch, [8; 16], 0).unwrap();
    assert_eq!(welcomed, Welcomed::OtherJournal { bound: JOURNAL });
    drop(outbox);
    world.close();
    let rebound = crate::rebind::rebind(world.options.clone(), Some([8; 16])).unwrap();
    assert_eq!((rebound.from, rebound.to, rebound.events), (Some(JOURNAL), Some([8; 16]), 3));
    world.open();
    let outbox = world.spool().outbox();
    let head = outbox.head();
    assert_eq!((head.first_number, head.last_number, head.journal), (1, 3, Some([8; 16])));
    assert_eq!(outbox.welcome(&head.epoch, [8; 16], 0).unwrap(), Welcomed::From(1));
    let skip = outbox.next(&head.epoch, 3, Duration::ZERO).unwrap();
    let Some(Outgoing::Skip(skip)) = skip else { panic!("{skip:?}") };
    assert_eq!((skip.reason, skip.events), (LossReason::Rebind, Some(0)));
}

#[test]
fn a_refused_batch_becomes_a_counted_skip() {
    let mut world = World::new(1 << 20, 2048);
    world.append(&[100, 100, 100]);
    let outbox = world.spool().outbox();
    let head = outbox.head();
    world.send(0, true);
    outbox.reject(&head.epoch, 2).unwrap();
    world.check();
    world.open();
    world.finish();
    assert_eq!((world.aggregator.journaled.len(), world.aggregator.skipped), (2, 2));
}

#[test]
fn a_journal_that_went_back_is_told_what_it_lost() {
    let mut world = World::new(1 << 20, 2048);
    for _ in 0..4 {
        world.append(&[100]);
    }
    world.send(3, true);
    let epoch = world.spool().outbox().head().epoch;
    world.aggregator.last.insert(epoch, 1);
    world.send_all();
    assert_eq!(world.aggregator.skips_unknown, 1);
    assert!(world.aggregator.skips_since.is_some_and(|since| since > 1_600_000_000_000_000_000));
    assert_eq!(world.aggregator.last(&epoch), 4);
}
