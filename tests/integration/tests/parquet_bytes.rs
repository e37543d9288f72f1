//! Bytes are exact to the file: shipper and aggregator run as processes while traffic passes between pods, and what
//! DuckDB sums over the Parquet files equals what nftables counted on the wire. So does who it was.

use weir_integration_tests::pipeline::{Pipeline, Programs};
use weir_integration_tests::scale::scale;
use weir_integration_tests::scene::Scene;

const PROGRAMS: Programs = Programs {
    traffic: env!("CARGO_BIN_EXE_traffic"),
    shipper: env!("CARGO_BIN_EXE_sut_shipper"),
    aggregator: env!("CARGO_BIN_EXE_sut_aggregator"),
};

#[test]
fn tcp_bulk_in_both_directions() {
    let Some(mut pipeline) = Pipeline::new(PROGRAMS, || Scene::linked(false)) else { return };
    let bytes = scale().transfer_bytes / 2;
    pipeline.run("serve-tcp 10.9.0.2:80 1", &format!("connect-tcp 10.9.0.2:80 2 {bytes} {bytes} 2"));
    pipeline.finish();
    pipeline.assert_exact("tcp", "TCP", 2, &["10.9.0.1", "10.9.0.2"]);
    pipeline.assert_named("tcp", "TCP");
}

#[test]
fn udp_whole_and_fragmented_and_tcp_over_ipv6() {
    let Some(mut pipeline) = Pipeline::new(PROGRAMS, || Scene::linked(false)) else { return };
    let count = scale().datagrams;
    // A port each: a client's port that comes again soon is the same flow to one server.
    for (port, count, size) in [(53, count, 100), (54, count / 10, 5000)] {
        pipeline.run(
            &format!("serve-udp 10.9.0.2:{port}"),
            &format!("send-udp 10.9.0.2:{port} {count} {size} 16"),
        );
    }
    let bytes = scale().transfer_bytes / 8;
    pipeline.run("serve-tcp [fd09::2]:80 1", &format!("connect-tcp [fd09::2]:80 3 {bytes} 1000 1"));
    pipeline.finish();
    pipeline.assert_exact("udp", "UDP", 32, &["10.9.0.1", "10.9.0.2"]);
    pipeline.assert_named("udp", "UDP");
    pipeline.assert_exact("tcp", "TCP over IPv6", 3, &["fd09::1", "fd09::2"]);
    pipeline.assert_named("tcp", "TCP over IPv6");
}

#[test]
fn many_short_connections_of_pre_forked_servers() {
    let Some(mut pipeline) = Pipeline::new(PROGRAMS, || Scene::linked(false)) else { return };
    let count = scale().connections;
    pipeline.run("serve-tcp 10.9.0.2:80 4", &format!("connect-tcp 10.9.0.2:80 {count} 200 1000 8"));
    pipeline.finish();
    pipeline.assert_exact("tcp", "short connections", count, &["10.9.0.1", "10.9.0.2"]);
    let records = pipeline.assert_named("tcp", "short connections");
    assert!(records >= 2 * i128::from(count), "{records} records");
}

#[test]
fn behind_snat() {
    let Some(mut pipeline) = Pipeline::new(PROGRAMS, Scene::behind_snat) else { return };
    pipeline.run("serve-tcp 10.9.2.2:80 1", "connect-tcp 10.9.2.2:80 50 5000 20000 4");
    pipeline.finish();
    pipeline.assert_exact("tcp", "SNAT", 50, &["10.9.1.1", "10.9.2.1", "10.9.2.2"]);
    pipeline.assert_named("tcp", "SNAT");
}

#[test]
fn behind_dnat() {
    let Some(mut pipeline) = Pipeline::new(PROGRAMS, Scene::behind_dnat) else { return };
    pipeline.run("serve-tcp 10.9.2.2:80 1", "connect-tcp 10.9.1.254:8080 50 5000 20000 4");
    pipeline.finish();
    pipeline.assert_exact("tcp", "DNAT", 50, &["10.9.1.1", "10.9.1.254", "10.9.2.2"]);
    pipeline.assert_named("tcp", "DNAT");
}

#[test]
fn translated_on_the_clients_own_host() {
    let Some(mut pipeline) = Pipeline::new(PROGRAMS, Scene::translated_by_the_client) else { return };
    pipeline.run("serve-tcp 10.9.0.2:80 1", "connect-tcp 10.96.0.1:443 30 5000 20000 2");
    pipeline.finish();
    pipeline.assert_exact("tcp", "DNAT on the client's host", 30, &["10.9.0.1", "10.9.0.2"]);
    pipeline.assert_named("tcp", "DNAT on the client's host");
    let asked =
        pipeline.sums("tcp", "reporter = 'source' AND nat_dst_ip = '10.96.0.1' AND nat_dst_port = 443");
    assert_eq!(asked.opened, 30, "each has the address that was asked for beside the one it went to");
}

#[test]
fn through_vxlan() {
    let Some(mut pipeline) = Pipeline::new(PROGRAMS, Scene::in_vxlan) else { return };
    let bytes = scale().transfer_bytes / 16;
    pipeline.run("serve-tcp 10.8.0.2:80 1", &format!("connect-tcp 10.8.0.2:80 4 {bytes} {bytes} 2"));
    pipeline.finish();
    pipeline.assert_exact("tcp", "VXLAN", 4, &["10.8.0.1", "10.8.0.2"]);
    pipeline.assert_named("tcp", "VXLAN");
}

#[test]
fn loopback_in_one_pod() {
    let Some(mut pipeline) = Pipeline::new(PROGRAMS, Scene::one_pod) else { return };
    pipeline.run("serve-tcp 127.0.0.1:80 1", "connect-tcp 127.0.0.1:80 20 100000 100000 2");
    pipeline.finish();
    pipeline.assert_exact("tcp", "loopback in one pod", 20, &["127.0.0.1"]);
    pipeline.assert_named("tcp", "loopback in one pod");
}
