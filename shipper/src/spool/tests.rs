//! The spool against a model of the aggregator, through crashes, torn ends, damage and small budgets.

mod budget;
mod damage;
mod journal;
mod model;
mod world;

use world::{SOURCE, World};

use super::*;
use crate::metrics::Metrics;

#[test]
fn an_interval_that_the_checkpoint_knows_is_not_read_again() {
    let mut world = World::new(1 << 20, 2048);
    for _ in 0..3 {
        world.append(&[100]);
    }
    let key = CaptureKey { source: SOURCE, interval: 9 };
    world.spool().last_key = Some(key);
    world.spool().roll().unwrap();
    world.open();
    assert_eq!(world.spool().last_key(), Some(key));
    let next = CaptureKey { source: SOURCE, interval: 10 };
    world.spool().append(next, &[]).unwrap();
    world.open();
    assert_eq!(world.spool().last_key(), Some(next));
}

#[test]
fn one_spool_has_one_owner() {
    let world = World::new(1 << 20, 2048);
    let second = Spool::open(world.options.clone(), Metrics::default());
    assert!(matches!(second, Err(SpoolError::Log(LogError::Locked { .. }))), "{second:?}");
    assert!(world.dir.path().exists());
}
