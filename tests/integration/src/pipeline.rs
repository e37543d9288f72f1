//! A scene whose traffic goes through a real shipper and a real aggregator, as processes, into Parquet; and the sums that
//! DuckDB makes of the files, held against nftables' counters.
//!
//! One shipper sees both pods, so both reports are there; the node that has all addresses is enrolled, so the source's is
//! `primary`.

use std::collections::HashSet;

use tempfile::TempDir;

use crate::capture::TRAFFIC_MAX;
use crate::duckdb::{DuckDb, Row, number};
use crate::net::{Bytes, kernel_tests_possible};
use crate::process::{Process, free_address};
use crate::scene::{Router, Scene, family};
use crate::system::{Aggregator, Shipper};

/// The programs under test, which cargo tells a test of.
#[derive(Clone, Copy, Debug)]
pub struct Programs {
    /// `CARGO_BIN_EXE_traffic`.
    pub traffic: &'static str,
    /// `CARGO_BIN_EXE_sut_shipper`.
    pub shipper: &'static str,
    /// `CARGO_BIN_EXE_sut_aggregator`.
    pub aggregator: &'static str,
}

/// A scene under the eyes of the whole pipeline.
#[derive(Debug)]
pub struct Pipeline {
    /// The running shipper. Ends before what it captures.
    pub shipping: Process,
    /// The running aggregator.
    pub aggregating: Process,
    /// How the shipper is started.
    pub shipper: Shipper,
    /// How the aggregator is started.
    pub aggregator: Aggregator,
    /// What is captured.
    pub scene: Scene,
    programs: Programs,
    duckdb: DuckDb,
    /// Process ids of all clients and all servers.
    clients: HashSet<u32>,
    servers: HashSet<u32>,
    _home: TempDir,
}

/// The shipper's configuration for the links of a router.
fn at_links(router: &Router) -> [String; 3] {
    [
        "capture.interfaces.enabled=true".to_owned(),
        r#"capture.interfaces.links=["w*"]"#.to_owned(),
        format!(r#"capture.interfaces.namespaces=["{}"]"#, router.host.path()),
    ]
}

/// What one report, or the primary one, sums up to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sums {
    /// What sources sent.
    pub src: Bytes,
    /// What destinations sent.
    pub dst: Bytes,
    /// Connections opened.
    pub opened: u64,
}

impl Pipeline {
    /// Starts both, so that all of the scene's traffic is captured. `None`, with the reason printed, where such a test cannot run.
    pub fn new(programs: Programs, scene: impl FnOnce() -> Scene) -> Option<Self> {
        Self::start(programs, scene, false)
    }

    /// As [`Pipeline::new`], and the links of the scene's router are captured too.
    pub fn at_links(programs: Programs, scene: impl FnOnce() -> Scene) -> Option<Self> {
        Self::start(programs, scene, true)
    }

    fn start(programs: Programs, scene: impl FnOnce() -> Scene, links: bool) -> Option<Self> {
        if !kernel_tests_possible() {
            return None;
        }
        let duckdb = DuckDb::find()?;
        let (scene, home) = (scene(), TempDir::new().unwrap());
        let aggregator = Aggregator {
            program: programs.aggregator.into(),
            home: home.path().to_owned(),
            address: free_address(),
            admin: free_address(),
            set: vec![
                r#"enrolment.nodes=[{"name":"here","cidrs":["10.8.0.0/15","fd09::/16"]}]"#.to_owned(),
                "parquet.roll_age=2s".to_owned(),
            ],
        };
        let shipper = Shipper {
            program: programs.shipper.into(),
            home: home.path().join("shipper"),
            node: "here".to_owned(),
            aggregator: aggregator.address,
            cgroup: scene.pods.path().to_owned(),
            pins: Shipper::pins(),
            set: scene.router.iter().filter(|_| links).flat_map(at_links).collect(),
        };
        let aggregating = aggregator.start(None);
        let shipping = shipper.start(None);
        let (clients, servers) = (HashSet::new(), HashSet::new());
        let _home = home;
        Some(Self {
            shipping,
            aggregating,
            shipper,
            aggregator,
            scene,
            programs,
            duckdb,
            clients,
            servers,
            _home,
        })
    }

    /// Runs a client against a server, to its end.
    pub fn run(&mut self, server: &str, client: &str) {
        let serving = self.scene.serve(self.programs.traffic, server);
        let connecting = self.scene.connect(self.programs.traffic, client);
        self.servers.extend(family(serving.pid()));
        self.clients.insert(connecting.pid());
        connecting.wait(TRAFFIC_MAX, || {});
    }

    /// Ends both in the order of the data: from then on everything is in the files.
    pub fn finish(&mut self) {
        for process in [&mut self.shipping, &mut self.aggregating] {
            // The test may have ended it already.
            if process.is_running() {
                process.terminate();
            }
            process.wait_success();
        }
    }

    /// Stage, reason and count of every loss row.
    #[track_caller]
    pub fn losses(&self) -> Vec<Row> {
        if !self.aggregator.has("loss") {
            return Vec::new();
        }
        let table = self.aggregator.table("loss");
        self.duckdb.query(&format!("SELECT stage, reason, count FROM {table} ORDER BY first_time"))
    }

    /// Sums of a protocol's rows that satisfy `condition`.
    #[track_caller]
    pub fn sums(&self, protocol: &str, condition: &str) -> Sums {
        let row = self.row(&format!(
            "SELECT coalesce(sum(src_packets), 0)::BIGINT AS src_packets, coalesce(sum(src_bytes), 0)::BIGINT AS src_bytes, \
             coalesce(sum(dst_packets), 0)::BIGINT AS dst_packets, coalesce(sum(dst_bytes), 0)::BIGINT AS dst_bytes, \
             coalesce(sum(opened), 0)::BIGINT AS opened \
             FROM {} WHERE protocol = '{protocol}' AND {condition}",
            self.aggregator.table("flow")
        ));
        let sum = |name: &str| u64::try_from(number(&row[name])).unwrap();
        let bytes = |side: &str| Bytes {
            packets: sum(&format!("{side}_packets")),
            bytes: sum(&format!("{side}_bytes")),
        };
        Sums { src: bytes("src"), dst: bytes("dst"), opened: sum("opened") }
    }

    #[track_caller]
    fn row(&self, sql: &str) -> Row {
        self.duckdb.query(sql).remove(0)
    }

    /// Nothing was lost, and each report equals the wire; the primary rows do, so each connection is primary once; `of` are the addresses
    /// that a source and a destination may have.
    #[track_caller]
    pub fn assert_exact(&self, protocol: &str, name: &str, opened: u64, of: &[&str]) {
        assert_eq!(self.losses(), Vec::<Row>::new(), "nothing is lost");
        self.assert_sums(protocol, name, opened, of);
    }

    /// As [`Pipeline::assert_exact`], whatever was said to be lost.
    #[track_caller]
    pub fn assert_sums(&self, protocol: &str, name: &str, opened: u64, of: &[&str]) {
        let (src, dst) = self.scene.wire(protocol);
        assert!(src.bytes > 0, "something was sent");
        let wire = Sums { src, dst, opened };
        let addresses: Vec<String> = of.iter().map(|address| format!("'{address}'")).collect();
        let own = format!("src_ip IN ({0}) AND dst_ip IN ({0})", addresses.join(", "));
        // On loopback nftables can't tell the ways apart.
        let of_wire = |sums: Sums| match wire.dst == Bytes::default() {
            false => sums,
            true => Sums {
                src: Bytes {
                    packets: sums.src.packets + sums.dst.packets,
                    bytes: sums.src.bytes + sums.dst.bytes,
                },
                dst: Bytes::default(),
                opened: sums.opened,
            },
        };
        for which in ["\"primary\"", "reporter = 'source'", "reporter = 'destination'"] {
            assert_eq!(of_wire(self.sums(protocol, &format!("{which} AND {own}"))), wire, "{name}: {which}");
            assert_eq!(of_wire(self.sums(protocol, which)), wire, "{name}: there is nothing else, {which}");
        }
        let Bytes { packets, bytes } = wire.src;
        println!(
            "SOAK bytes in Parquet, {name}: nftables and sum(…) where \"primary\" say {bytes} bytes in {packets} packets up, {} in \
             {} down; sum(opened) = {opened}",
            wire.dst.bytes, wire.dst.packets
        );
    }

    /// Every record names the reporter's own process and cgroup. Returns how many there are.
    #[track_caller]
    pub fn assert_named(&self, protocol: &str, name: &str) -> i128 {
        let mut records = 0;
        for (reporter, side, pids, pod) in [
            ("source", "src", &self.clients, &self.scene.client_pod),
            ("destination", "dst", &self.servers, &self.scene.server_pod),
        ] {
            let pids: Vec<String> = pids.iter().map(ToString::to_string).collect();
            let row = self.row(&format!(
                "SELECT count(*) AS records, count(*) FILTER ({side}_process = 'traffic') AS processes, \
                 count(*) FILTER ({side}_pid IN ({})) AS pids, count(*) FILTER ({side}_cgroup = '{}') AS cgroups \
                 FROM {} WHERE protocol = '{protocol}' AND reporter = '{reporter}'",
                pids.join(", "),
                pod.name(),
                self.aggregator.table("flow")
            ));
            let count = |column: &str| number(&row[column]);
            let all = count("records");
            assert!(all > 0, "{name}: no records of the {reporter}");
            assert_eq!(
                (count("processes"), count("pids"), count("cgroups")),
                (all, all, all),
                "{name}, {reporter}"
            );
            records += all;
        }
        println!(
            "SOAK identity in Parquet, {name}: process, pid and cgroup are right in {records} of {records} records"
        );
        records
    }
}
