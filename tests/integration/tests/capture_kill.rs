//! Each byte is counted once, whatever dies: the process that drains is killed at named points and at random, and the
//! kernel programs are replaced under traffic. What was logged equals what nftables counted.

use std::time::Duration;

use weir_integration_tests::{
    capture::{TRAFFIC_MAX, TestCapture, opened_of, sent_of},
    drainer::Drainer,
    net::{Cgroup, kernel_tests_possible, wait_for},
    scale::scale,
    scene::Scene,
    traffic::Traffic,
};
use weir_schema::values::Reporter;
use weir_shipper::check;

const TRAFFIC: &str = env!("CARGO_BIN_EXE_traffic");
const DRAIN: &str = env!("CARGO_BIN_EXE_drain");

fn traffic(scene: &Scene, count: u64) -> (Traffic, Traffic) {
    let server = scene.serve(TRAFFIC, "serve-tcp 10.9.0.2:80 2");
    let line = format!("connect-tcp 10.9.0.2:80 {count} 20000 40000 4");
    (server, scene.connect(TRAFFIC, &line))
}

#[test]
fn killed_at_every_point_and_at_random() {
    if !kernel_tests_possible() {
        return;
    }
    let scene = Scene::linked(false);
    let drainer = Drainer::new(DRAIN, &scene.pods, None);
    // The programs must be there before the traffic is; they stay when their loader dies.
    let mut first = drainer.start(&["final"]);
    assert!(first.wait().expect("wait for drain").success());
    let count = scale().connections;
    let (_server, mut client) = traffic(&scene, count);
    let mut random = 0x2545_f491_4f6c_dd1d_u64;
    let mut kills = 0;
    let minimum = scale().kill_random.max(5);
    while !client.ended() || kills < minimum {
        for point in ["read", "append", "release"] {
            let mut child = drainer.start(&["die", point]);
            assert!(!child.wait().expect("wait for drain").success(), "it dies at {point}");
            kills += 1;
        }
        let mut child = drainer.start(&[]);
        // xorshift64: another moment each time, the same ones in every run.
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        let lines = drainer.lines() + (random % 5) as usize;
        wait_for("the log grows", Duration::from_secs(60), || (drainer.lines() > lines).then_some(()));
        std::thread::sleep(Duration::from_micros(random % 20_000));
        child.kill().expect("kill drain");
        child.wait().expect("wait for drain");
        kills += 1;
    }
    let mut last = drainer.start(&["final"]);
    assert!(last.wait().expect("wait for drain").success());
    let (up, down) = scene.wire("tcp");
    assert_eq!(drainer.sum(), (count, up, down), "after {kills} kills");
}

#[test]
fn programs_are_replaced_under_traffic() {
    if !kernel_tests_possible() {
        return;
    }
    let scene = Scene::linked(false);
    let mut capture = TestCapture::new(&scene.pods);
    let count = scale().connections;
    let (_server, client) = traffic(&scene, count);
    let mut swaps = 0;
    client.wait(TRAFFIC_MAX, || {
        capture.reopen();
        capture.drain();
        swaps += 1;
    });
    capture.finish();
    assert_eq!(sent_of(6, capture.side(Reporter::Source)), scene.wire("tcp"), "after {swaps} swaps");
    assert_eq!(sent_of(6, capture.side(Reporter::Destination)), scene.wire("tcp"), "after {swaps} swaps");
    assert_eq!(opened_of(capture.side(Reporter::Source)), count);
    assert_eq!(opened_of(capture.side(Reporter::Destination)), count);
    assert!(swaps >= 2, "{swaps} swaps");
}

#[test]
fn once_detached_nothing_is_counted_and_the_next_capture_goes_on() {
    if !kernel_tests_possible() {
        return;
    }
    let scene = Scene::linked(false);
    let mut capture = TestCapture::new(&scene.pods);
    let _echo = scene.serve(TRAFFIC, "serve-udp 10.9.0.2:53");
    let mut sending = scene.connect(TRAFFIC, "send-udp 10.9.0.2:53 100000000 100 1");
    let pass = |count: u64| {
        let end = scene.wire("udp").1.packets + count;
        wait_for("datagrams", Duration::from_secs(60), || (scene.wire("udp").1.packets > end).then_some(()));
    };
    pass(200);
    capture.detach();
    let wire = scene.wire("udp");
    capture.finish();
    let all = capture.total;
    assert!(all.packets > 0 && all.packets <= 2 * (wire.0.packets + wire.1.packets) + 2, "{all:?}, {wire:?}");
    pass(200);
    capture.finish();
    assert_eq!(capture.total, all, "nothing was counted after it was detached");
    capture.reopen();
    pass(200);
    capture.finish();
    assert!(capture.total.packets >= all.packets + 400, "{:?} after {all:?}", capture.total);
    assert!(!sending.ended());
}

#[test]
fn one_shipper_at_a_time_and_unload_leaves_nothing() {
    if !kernel_tests_possible() {
        return;
    }
    let pods = Cgroup::new();
    let mut capture = TestCapture::new(&pods);
    let config = capture.config().clone();
    let error = weir_shipper::probe::Capture::open(&config).expect_err("the lock is held");
    assert!(error.to_string().starts_with("another shipper holds"), "{error}");
    let error = check::unload(&config).expect_err("the lock is held");
    assert!(error.to_string().starts_with("another shipper holds"), "{error}");
    capture.close();
    assert!(check::unload(&config).expect("unload") > 20, "maps and links");
    assert!(!config.pin_directory.exists());
    assert_eq!(check::unload(&config).expect("unload again"), 0);
}
