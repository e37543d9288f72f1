//! Links come and go, shippers die and are replaced, namespaces use the same numbers: what the interface vantage counts
//! stays exact, and it leaves nothing behind. What has no connection is visible: scans, and what a policy drops.

use std::{
    fs,
    time::{Duration, Instant},
};

use weir_integration_tests::{
    capture::{TRAFFIC_MAX, TestCapture, opened_of, sent_of},
    drainer::Drainer,
    net::{Cgroup, Namespace, kernel_tests_possible, unique, veth, wait_for},
    scale::scale,
    scene::Scene,
    traffic::Traffic,
};
use weir_schema::values::{ConnectError, EndReason, Orientation};
use weir_shipper::probe::{CaptureConfig, InterfaceConfig, LinkPattern};

const TRAFFIC: &str = env!("CARGO_BIN_EXE_traffic");
const DRAIN: &str = env!("CARGO_BIN_EXE_drain");
const TCP: u8 = 6;
const UDP: u8 = 17;
const SYN: u8 = 2;
const RST: u8 = 4;

/// Pins of programs at links.
fn pins(config: &CaptureConfig) -> Vec<String> {
    let versions = fs::read_dir(&config.pin_directory).into_iter().flatten().flatten();
    let files = versions.flat_map(|version| fs::read_dir(version.path()).into_iter().flatten().flatten());
    files
        .map(|file| file.file_name().to_string_lossy().into_owned())
        .filter(|name| name.starts_with("link_tc_"))
        .collect()
}

#[test]
fn a_scan_of_closed_ports_is_visible() {
    if !kernel_tests_possible() {
        return;
    }
    let scene = Scene::forwarded();
    let router = scene.router.as_ref().unwrap();
    let mut capture = TestCapture::of_links(&scene.pods, &[&router.host]);
    scene.connect(TRAFFIC, "scan-tcp 10.9.2.2 2000 1000").wait(TRAFFIC_MAX, || {});
    capture.finish();
    for device in [&router.inside, &router.outside] {
        let probes: Vec<_> = capture.link(&router.host, device).filter(|r| r.protocol == TCP).collect();
        assert_eq!(probes.len(), 1000);
        assert_eq!(opened_of(probes.iter().copied()), 1000);
        for probe in &probes {
            assert_eq!((probe.src_packets, probe.dst_packets), (1, 1), "{probe:?}");
            assert_eq!(probe.tcp_flags_src, SYN);
            assert!(probe.tcp_flags_dst & RST != 0);
            assert_eq!(probe.end_reason, Some(EndReason::ConnectFailed));
            assert_eq!(probe.connect_error, Some(ConnectError::Refused));
            assert_eq!(probe.orientation, Orientation::Observed);
            assert_eq!(probe.src_ip.to_string(), "10.9.1.1");
        }
        assert_eq!(sent_of(TCP, probes.iter().copied()), scene.wire("tcp"));
    }
}

#[test]
fn what_a_policy_drops_is_visible_where_it_came_in() {
    if !kernel_tests_possible() {
        return;
    }
    let scene = Scene::forwarded();
    let router = scene.router.as_ref().unwrap();
    router.host.nft(
        "table inet weir-policy { counter dropped { }\nchain f { type filter hook forward priority 0; tcp dport 81 counter name dropped drop\n}\n}\n",
    );
    let mut capture = TestCapture::of_links(&scene.pods, &[&router.host]);
    scene.connect(TRAFFIC, "try-tcp 10.9.2.2:81 1500").wait(TRAFFIC_MAX, || capture.drain());
    capture.finish();
    let dropped = router.host.exec("nft list counter inet weir-policy dropped");
    let dropped = String::from_utf8_lossy(&dropped.stdout).into_owned();
    let tries: Vec<_> = capture.link(&router.host, &router.inside).filter(|r| r.dst_port == 81).collect();
    let (syns, answers) = sent_of(TCP, tries.iter().copied());
    assert!(syns.packets >= 2, "the SYN and a repetition: {tries:?}");
    assert!(
        dropped.contains(&format!("packets {} bytes {}", syns.packets, syns.bytes)),
        "{dropped} {syns:?}"
    );
    assert_eq!(answers.packets, 0);
    assert_eq!(opened_of(tries.iter().copied()), 1, "a repeated SYN opens nothing");
    assert!(tries.iter().all(|record| record.flow_id == tries[0].flow_id));
    assert_eq!(capture.link(&router.host, &router.outside).filter(|r| r.dst_port == 81).count(), 0);
}

#[test]
fn links_and_namespaces_that_appear_are_captured_and_leave_nothing_behind() {
    if !kernel_tests_possible() {
        return;
    }
    let pods = Cgroup::new();
    let name = unique();
    let mut capture = TestCapture::with(&pods, |config| {
        config.interfaces = Some(InterfaceConfig {
            links: vec![LinkPattern::Kind("veth".to_owned())],
            exclude: vec![LinkPattern::Name("not-*".to_owned())],
            namespaces: vec![format!("/run/netns/{name}")],
            flow_entries: 1024,
            meta_entries: 1024,
            ..InterfaceConfig::default()
        });
    });
    let config = capture.config().clone();
    assert_eq!(pins(&config), Vec::<String>::new());
    let (here, there) = (Namespace::named(name), Namespace::new());
    // A namespace in which nothing is yet is found first.
    for round in 0..3 {
        here.ip("link add not-me type veth peer name not-you");
        let (device, _) = veth(&here, &["10.9.3.1/24"], &there, &["10.9.3.2/24"]);
        let appeared = Instant::now();
        wait_for("programs at the new link", Duration::from_secs(5), || {
            (pins(&config).len() == 2).then_some(())
        });
        // In a namespace that is new too, programs are loaded first.
        let limit = Duration::from_secs(if round == 0 { 5 } else { 1 });
        assert!(appeared.elapsed() < limit, "{:?}", appeared.elapsed());
        here.count();
        let pod = pods.child("pod");
        let echo = Traffic::server(TRAFFIC, &pod, &there, "serve-udp 10.9.3.2:53");
        Traffic::start(TRAFFIC, &pod, &here, "send-udp 10.9.3.2:53 300 500 3").wait(TRAFFIC_MAX, || {});
        drop(echo);
        capture.finish();
        let sums = sent_of(UDP, capture.link(&here, &device));
        assert_eq!(sums, (here.counted("udp_out"), here.counted("udp_in")), "round {round}");
        assert!(
            capture.records.iter().filter_map(|r| r.link.as_ref()).all(|l| !l.interface.contains("not-"))
        );
        here.ip(&format!("link del {device}"));
        here.ip("link del not-me");
        here.exec("nft delete table inet weir");
        wait_for("the pins of the link that went", Duration::from_secs(10), || {
            capture.drain();
            pins(&config).is_empty().then_some(())
        });
    }
    // A namespace that goes takes its links with it.
    veth(&here, &["10.9.3.1/24"], &there, &["10.9.3.2/24"]);
    wait_for("programs at the last link", Duration::from_secs(5), || {
        (pins(&config).len() == 2).then_some(())
    });
    drop((here, there));
    wait_for("the pins of the namespace that went", Duration::from_secs(10), || {
        capture.drain();
        pins(&config).is_empty().then_some(())
    });
}

#[test]
fn links_with_the_same_index_in_two_namespaces_do_not_collide() {
    if !kernel_tests_possible() {
        return;
    }
    let scenes = [Scene::forwarded(), Scene::forwarded()];
    let routers = [scenes[0].router.as_ref().unwrap(), scenes[1].router.as_ref().unwrap()];
    let index = |n: usize| {
        let path = format!("cat /sys/class/net/{}/ifindex", routers[n].inside);
        String::from_utf8_lossy(&routers[n].host.exec(&path).stdout).trim().to_owned()
    };
    assert_eq!(index(0), index(1));
    let mut capture = TestCapture::of_links(&scenes[0].pods, &[&routers[0].host, &routers[1].host]);
    for (scene, count) in scenes.iter().zip([200, 300]) {
        let _echo = scene.serve(TRAFFIC, "serve-udp 10.9.2.2:53");
        scene.connect(TRAFFIC, &format!("send-udp 10.9.2.2:53 {count} 400 2")).wait(TRAFFIC_MAX, || {});
    }
    capture.finish();
    for (scene, router) in scenes.iter().zip(routers) {
        for device in [&router.inside, &router.outside] {
            assert_eq!(sent_of(UDP, capture.link(&router.host, device)), scene.wire("udp"));
        }
    }
}

#[test]
fn more_flows_than_can_be_followed_are_counted_and_opened() {
    if !kernel_tests_possible() {
        return;
    }
    let scene = Scene::forwarded();
    let router = scene.router.as_ref().unwrap();
    let mut capture = TestCapture::with(&scene.pods, |config| {
        config.interfaces = Some(InterfaceConfig {
            links: vec![LinkPattern::Name("w*".to_owned())],
            namespaces: vec![router.host.path()],
            meta_entries: 64,
            ..InterfaceConfig::default()
        });
    });
    let _server = scene.serve(TRAFFIC, "serve-tcp 10.9.2.2:80 2");
    scene.connect(TRAFFIC, "connect-tcp 10.9.2.2:80 500 200 400 2").wait(TRAFFIC_MAX, || {});
    capture.finish();
    assert!(capture.counter("meta_full") > 0);
    for device in [&router.inside, &router.outside] {
        let records: Vec<_> =
            capture.link(&router.host, device).filter(|record| record.protocol == TCP).collect();
        assert_eq!(sent_of(TCP, records.iter().copied()), scene.wire("tcp"), "{device}");
        assert_eq!(opened_of(records.iter().copied()), 500, "{device}");
    }
}

#[test]
fn programs_are_replaced_under_traffic() {
    if !kernel_tests_possible() {
        return;
    }
    let scene = Scene::forwarded();
    let router = scene.router.as_ref().unwrap();
    let mut capture = TestCapture::of_links(&scene.pods, &[&router.host]);
    let (mut count, mut swaps) = (0, 0);
    let _server = scene.serve(TRAFFIC, "serve-tcp 10.9.2.2:80 2");
    while swaps < 4 {
        count += scale().connections;
        let line = format!("connect-tcp 10.9.2.2:80 {} 20000 40000 4", scale().connections);
        scene.connect(TRAFFIC, &line).wait(TRAFFIC_MAX, || {
            capture.reopen();
            capture.drain();
            swaps += 1;
        });
    }
    capture.finish();
    for device in [&router.inside, &router.outside] {
        let sums = sent_of(TCP, capture.link(&router.host, device));
        assert_eq!(sums, scene.wire("tcp"), "{device} after {swaps} swaps");
        let reused = opened_of(capture.link(&router.host, device).filter(|r| r.protocol == TCP));
        assert_eq!(reused, count, "{device} after {swaps} swaps");
    }
}

#[test]
fn killed_under_traffic() {
    if !kernel_tests_possible() {
        return;
    }
    let scene = Scene::forwarded();
    let router = scene.router.as_ref().unwrap();
    let link = format!("{},{}", router.host.path(), router.inside);
    let drainer = Drainer::new(DRAIN, &scene.pods, Some(link));
    let mut first = drainer.start(&["final"]);
    assert!(first.wait().unwrap().success());
    let count = scale().connections;
    let _server = scene.serve(TRAFFIC, "serve-tcp 10.9.2.2:80 2");
    let mut client = scene.connect(TRAFFIC, &format!("connect-tcp 10.9.2.2:80 {count} 20000 40000 4"));
    let mut kills = 0;
    while !client.ended() || kills < 3 {
        for point in ["read", "append", "release"] {
            let mut child = drainer.start(&["die", point]);
            assert!(!child.wait().unwrap().success(), "it dies at {point}");
            kills += 1;
        }
        let mut child = drainer.start(&[]);
        let lines = drainer.lines() + 3;
        wait_for("the log grows", Duration::from_secs(60), || (drainer.lines() > lines).then_some(()));
        child.kill().unwrap();
        child.wait().unwrap();
        kills += 1;
    }
    let mut last = drainer.start(&["final"]);
    assert!(last.wait().unwrap().success());
    let (up, down) = scene.wire("tcp");
    assert_eq!(drainer.sum(), (count, up, down), "after {kills} kills");
}

#[test]
fn detached_or_switched_off_nothing_is_counted_any_more() {
    if !kernel_tests_possible() {
        return;
    }
    let scene = Scene::forwarded();
    let router = scene.router.as_ref().unwrap();
    let mut capture = TestCapture::of_links(&scene.pods, &[&router.host]);
    let _echo = scene.serve(TRAFFIC, "serve-udp 10.9.2.2:53");
    let send = |count: u32| {
        let line = format!("send-udp 10.9.2.2:53 {count} 100 1");
        scene.connect(TRAFFIC, &line).wait(TRAFFIC_MAX, || {});
    };
    send(50);
    capture.detach();
    let wire = scene.wire("udp");
    send(50);
    capture.finish();
    assert_eq!(sent_of(UDP, capture.link(&router.host, &router.inside)), wire);
    // The next shipper puts its own in their place; one that is to leave links alone takes them off.
    capture.reopen();
    assert_eq!(pins(capture.config()).len(), 4);
    send(50);
    capture.reopen_with(|config| config.interfaces = None);
    send(50);
    capture.finish();
    let again = sent_of(UDP, capture.link(&router.host, &router.inside));
    assert_eq!((again.0.packets, again.1.packets), (100, 100));
    capture.drain();
    assert_eq!(pins(capture.config()), Vec::<String>::new());
}
