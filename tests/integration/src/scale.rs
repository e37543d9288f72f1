//! Every size of every test, at two scales: `WEIR_SCALE=ci` (the default, minutes on two cores) and `WEIR_SCALE=soak`
//! (the full numbers). The code is the same.

use std::time::Duration;

/// The sizes.
#[derive(Clone, Copy, Debug)]
pub struct Scale {
    /// `ci` or `soak`.
    pub name: &'static str,
    /// Events that the generators publish while processes are killed.
    pub kill_events: u64,
    /// Kills at random moments, for each of shipper and aggregator; every named crash point comes on top.
    pub kill_random: u32,
    /// Events per second and generator meanwhile.
    pub kill_rate: u64,
    /// How long the aggregator stays away under load.
    pub outage: Duration,
    /// Events per second meanwhile.
    pub outage_rate: u64,
    /// Bytes of the large TCP transfer.
    pub transfer_bytes: u64,
    /// UDP datagrams sent.
    pub datagrams: u64,
    /// Short connections made.
    pub connections: u64,
    /// Connections opened against the aggregator by strangers.
    pub hostile_connections: u64,
    /// Events of the tests that damage files or fill disks.
    pub disk_events: u64,
    /// Flows of the benchmark's pipeline.
    pub bench_flows: u64,
    /// Journal that the benchmark recovers, bytes.
    pub bench_backlog: u64,
    /// Packets that it sends past the kernel programs.
    pub bench_packets: u64,
    /// Flows that its shipper has in one interval.
    pub bench_captured: u64,
}

const CI: Scale = Scale {
    name: "ci",
    kill_events: 200_000,
    kill_random: 3,
    kill_rate: 1_500,
    outage: Duration::from_secs(10),
    outage_rate: 20_000,
    transfer_bytes: 100 << 20,
    datagrams: 10_000,
    connections: 2_000,
    hostile_connections: 1_000,
    disk_events: 20_000,
    bench_flows: 200_000,
    bench_backlog: 16 << 20,
    bench_packets: 100_000,
    bench_captured: 20_000,
};

const SOAK: Scale = Scale {
    name: "soak",
    kill_events: 1_000_000,
    kill_random: 20,
    kill_rate: 4_000,
    outage: Duration::from_secs(60),
    outage_rate: 20_000,
    transfer_bytes: 1_000_000_000,
    datagrams: 500_000,
    connections: 50_000,
    hostile_connections: 10_000,
    disk_events: 200_000,
    bench_flows: 4_000_000,
    bench_backlog: 1 << 30,
    bench_packets: 2_000_000,
    bench_captured: 100_000,
};

/// The scale that `WEIR_SCALE` names.
///
/// # Panics
/// When it names none.
pub fn scale() -> Scale {
    match std::env::var("WEIR_SCALE").as_deref() {
        Err(_) | Ok("" | "ci") => CI,
        Ok("soak") => SOAK,
        Ok(other) => panic!("WEIR_SCALE is `{other}`: expected ci or soak"),
    }
}
