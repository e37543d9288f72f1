//! The spool on a disk that becomes full: the interval waits where it was counted, and nothing is lost.

use std::fs::{self, File};
use std::io::Write;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use weir_common::admin::Health;
use weir_integration_tests::process::wait_for;
use weir_integration_tests::tmpfs::SmallDisk;
use weir_shipper::metrics::Metrics;
use weir_shipper::source::{Drain, Generator, GeneratorOptions, Shape, Source};
use weir_shipper::spool::{Outgoing, Spool, SpoolOptions, Welcomed};

#[test]
fn a_full_disk_holds_the_interval_back_and_nothing_is_lost() {
    let Some(disk) = SmallDisk::mount(2 << 20) else { return };
    let elsewhere = tempfile::tempdir().unwrap();
    let (metrics, health) = (Metrics::default(), Health::default());
    let options =
        SpoolOptions { dir: disk.path().join("spool"), bytes_max: 64 << 20, segment_bytes: 128 << 10 };
    let spool = Spool::open(options.clone(), metrics.clone()).unwrap();
    let outbox = spool.outbox();
    // Somebody else fills the rest but for some 400 KiB.
    let ballast = disk.path().join("ballast");
    File::create(&ballast).unwrap().write_all(&vec![1; 1100 << 10]).unwrap();

    const EVENTS: u64 = 40_000;
    let generator = Generator::open(GeneratorOptions {
        seed: 3,
        events: EVENTS,
        interval_events: 500,
        rate: 0,
        state: elsewhere.path().join("generator"),
        start_ns: 1_700_000_000_000_000_000,
        step_ns: 1000,
        stay: false,
        shape: Shape::Numbered,
    });
    let drain = Drain {
        source: Source::Generator(generator.unwrap()),
        spool,
        interval: Duration::from_secs(1),
        body_bytes: 1 << 20,
        unload: false,
        metrics: metrics.clone(),
        health: health.clone(),
    };
    let (stop, stopped) = mpsc::channel();
    let drain = std::thread::spawn(move || drain.run(&stopped));

    wait_for("a full disk", || format!("{metrics:?}"), || metrics.disk_full.get() > 0);
    assert!(health.problems().contains("disk full"), "{}", health.problems());
    let stored = metrics.captured_events.get();
    assert!(stored > 0 && stored < EVENTS, "{stored}");

    // Sending needs no new space, and makes some.
    let head = outbox.head();
    assert_eq!(outbox.welcome(&head.epoch, [1; 16], 0).unwrap(), Welcomed::From(1));
    let (mut number, mut delivered) = (1, 0);
    let ends = Instant::now() + Duration::from_secs(60);
    while delivered < EVENTS {
        assert!(Instant::now() < ends, "{delivered} of {EVENTS}: {metrics:?}");
        match outbox.next(&head.epoch, number, Duration::from_millis(50)).unwrap() {
            Some(Outgoing::Batches(batches)) => {
                delivered += batches.iter().map(|batch| u64::from(batch.events)).sum::<u64>();
                number = batches.last().unwrap().number + 1;
                outbox.ack(&head.epoch, number - 1).unwrap();
            }
            Some(other) => panic!("{other:?}"),
            None => {}
        }
    }
    let spool = drain.join().unwrap().unwrap();
    drop(stop);
    assert_eq!((delivered, metrics.dropped_events_sum()), (EVENTS, 0));
    assert!(health.is_ready(), "{}", health.problems());
    assert_eq!(metrics.in_flight_events.get(), 0);

    // What is on disk is whole: it opens without a cut.
    drop(spool);
    let again = Metrics::default();
    Spool::open(options, again.clone()).unwrap();
    assert!(again.epochs.get(&[("reason", "cut")]).is_none());
    fs::remove_file(ballast).unwrap();
}
