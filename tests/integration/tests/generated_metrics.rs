//! docs/metrics.md is what the tables of metrics give, and both programs' registries are in it; docs/delivery.md lists
//! every crash point with the tests that kill there. `WEIR_REGENERATE=1` renews docs/metrics.md.
#![expect(clippy::unwrap_used, reason = "tests panic where they fail")]

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::{env, fs};

use prometheus_client::encoding::text::encode;
use prometheus_client::registry::Registry;
use weir_aggregator::journal::{SinkCursors, SinkSpec};
use weir_aggregator::metrics::{KindLabel, LossLabel, METRICS, Metrics, Reason};
use weir_aggregator::sink::parquet::{self, ParquetMetrics};
use weir_shipper::metrics::{METRICS as SHIPPER_METRICS, Metrics as ShipperMetrics};

const HEAD: &str = "\
# Metrics

Generated from the tables of metrics by `make generate`. Both programs serve them at `/metrics` of `admin.listen`
([configuration.md](configuration.md)) in the OpenMetrics text format. A name in `_total` is a counter and starts at 0 with
its process; `_seconds` and `_group_events` are histograms (`_bucket`, `_sum`, `_count`); everything else is a gauge. Stages
and reasons of losses are those of `kind=loss` ([fields.md](fields.md)).
";

/// An equation: where it holds, its terms, and what else is to be known of it.
struct Equation {
    title: &'static str,
    left: &'static [&'static str],
    right: &'static [&'static str],
    note: &'static str,
}

const EQUATIONS: &[Equation] = &[
    Equation {
        title: "On each node: `captured + recovered = journaled + dropped + in flight`",
        left: &["weir_shipper_captured_events_total", "weir_shipper_recovered_events_total"],
        right: &[
            "weir_shipper_journaled_events_total",
            "weir_shipper_dropped_events_total",
            "weir_shipper_in_flight_events",
        ],
        note: "Counters begin at 0 with each process, so what the spool held at its start has a term of its own: \
               `recovered`.\n`dropped` is the sum over `reason`.",
    },
    Equation {
        title: "For each sink: `journaled = delivered + rejected + skipped + in flight`",
        left: &["weir_aggregator_sink_journaled_events_total"],
        right: &[
            "weir_aggregator_sink_delivered_events_total",
            "weir_aggregator_sink_rejected_events_total",
            "weir_aggregator_sink_skipped_events_total",
            "weir_aggregator_sink_in_flight_events",
        ],
        note: "Each `sink` by itself. `journaled` begins with the sink's backlog at the start of the process.",
    },
    Equation {
        title: "In between, at the aggregator's door: `received = journaled + duplicate + refused + in flight`",
        left: &["weir_aggregator_received_batches_total"],
        right: &[
            "weir_aggregator_journaled_batches_total",
            "weir_aggregator_duplicate_batches_total",
            "weir_aggregator_refused_batches_total",
            "weir_aggregator_in_flight_batches",
        ],
        note: "In batches, a skip being one; `refused` is the sum over `reason`. In events it holds too, but for \
               the aggregator's own\nloss rows, which are journaled and were never received.",
    },
];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// Name as it is scraped, labels, meaning.
type Row = (String, &'static str, &'static str);

fn shipper_rows() -> Vec<Row> {
    let name = |name: &str, kind| if kind == "counter" { format!("{name}_total") } else { name.to_owned() };
    SHIPPER_METRICS.iter().map(|metric| (name(metric.name, metric.kind), metric.label, metric.help)).collect()
}

fn aggregator_rows() -> Vec<Row> {
    let rows = METRICS.iter().chain(parquet::METRICS);
    rows.map(|row| (row.name.to_owned(), row.labels, row.help)).collect()
}

fn page() -> String {
    let mut page = HEAD.to_owned();
    page.push_str("\n## The equations\n\n");
    page.push_str(
        "What they mean is in [delivery.md](delivery.md). A scrape that comes between the counters of one step sees that \
         step half\ndone; at rest they are exact.\n",
    );
    for Equation { title, left, right, note } in EQUATIONS {
        writeln!(page, "\n{title}\n\n```").unwrap();
        writeln!(page, "  {}\n= {}\n```\n\n{note}", left.join("\n+ "), right.join("\n+ ")).unwrap();
    }
    for (title, rows) in [("weir-shipper", shipper_rows()), ("weir-aggregator", aggregator_rows())] {
        writeln!(page, "\n## {title}\n\n| metric | labels | meaning |\n|---|---|---|").unwrap();
        for (name, labels, help) in rows {
            let labels: Vec<String> = labels
                .split(',')
                .filter(|label| !label.is_empty())
                .map(|label| format!("`{label}`"))
                .collect();
            writeln!(page, "| `{name}` | {} | {help} |", labels.join(", ")).unwrap();
        }
    }
    page
}

#[test]
fn the_page_of_metrics_is_current() {
    let (path, fresh) = (root().join("docs/metrics.md"), page());
    if env::var_os("WEIR_REGENERATE").is_some() {
        fs::write(&path, &fresh).unwrap();
    }
    let current = fs::read_to_string(&path).unwrap_or_default();
    assert!(current == fresh, "{} is stale: run make generate", path.display());
    let names: BTreeSet<String> =
        shipper_rows().into_iter().chain(aggregator_rows()).map(|(name, ..)| name).collect();
    for term in EQUATIONS.iter().flat_map(|equation| equation.left.iter().chain(equation.right)) {
        assert!(names.contains(*term), "{term} stands in an equation and is no metric");
    }
}

#[test]
fn every_registered_metric_is_in_the_page() {
    // The file is this text, by the test above.
    let page = page();
    for (program, registry, rows) in [
        ("shipper", shipper_registry(), shipper_rows()),
        ("aggregator", aggregator_registry(), aggregator_rows()),
    ] {
        let mut text = String::new();
        encode(&mut text, &registry).unwrap();
        let scraped = scraped(&text);
        for (name, help) in &scraped {
            let row = page.lines().find(|line| line.starts_with(&format!("| `{name}` |")));
            assert!(
                row.is_some_and(|row| row.ends_with(&format!("| {help} |"))),
                "{program}: {name}: {row:?}"
            );
        }
        for (name, labels, _) in rows {
            // A family is scraped once it has a sample; the sink's own tests give these theirs.
            let unseen = name.starts_with("weir_aggregator_parquet_") && !labels.is_empty();
            let found = scraped.iter().any(|(scraped, _)| *scraped == name);
            assert!(found || unseen, "{program} does not register {name}: {text}");
        }
    }
}

/// Names and helps of a scrape; counters with the `_total` that their samples have.
fn scraped(text: &str) -> Vec<(String, &str)> {
    let helps = text.lines().filter_map(|line| line.strip_prefix("# HELP ")?.split_once(' '));
    let names = helps.map(|(name, help)| {
        let counter = text.contains(&format!("# TYPE {name} counter\n"));
        let name = if counter { format!("{name}_total") } else { name.to_owned() };
        (name, help.trim_end_matches('.'))
    });
    names.collect()
}

fn shipper_registry() -> Registry {
    let mut registry = Registry::default();
    let metrics = ShipperMetrics::default();
    metrics.register(&mut registry);
    metrics.any_aggregator();
    let ShipperMetrics { dropped_events, dropped_batches, dropped_bytes, disconnects, epochs, .. } = metrics;
    // A family without a sample is left out of a scrape.
    for family in [dropped_events, dropped_batches, dropped_bytes, disconnects, epochs] {
        drop(family.get_or_create(&[("reason", "any")]));
    }
    drop(metrics.tls_reloads.get_or_create(&[("result", "any")]));
    drop(metrics.kernel_map_full.get_or_create(&[("map", "any")]));
    registry
}

fn aggregator_registry() -> Registry {
    let mut registry = Registry::default();
    let cursors = SinkCursors::default();
    cursors.register(SinkSpec { name: parquet::NAME, required: true });
    let metrics = Metrics::new(&mut registry, &cursors);
    let reason = Reason { reason: "any" };
    drop((
        metrics.refused_batches.get_or_create(&reason),
        metrics.refused_events.get_or_create(&reason),
        metrics.streams_refused.get_or_create(&reason),
        metrics.connections_refused.get_or_create(&reason),
        metrics.connections_revoked.get_or_create(&reason),
        metrics.lost_events.get_or_create(&LossLabel { stage: "any", reason: "any" }),
        metrics.journaled_events.get_or_create(&KindLabel { kind: "any" }),
    ));
    ParquetMetrics::register(&mut registry);
    registry
}

#[test]
fn every_crash_point_is_explained_and_killed_at() {
    let page = fs::read_to_string(root().join("docs/delivery.md")).unwrap();
    let (_, section) =
        page.split_once("\n## Crash points\n").expect("docs/delivery.md has a section Crash points");
    let section = section.split("\n## ").next().unwrap();
    let mut listed = BTreeSet::new();
    for line in section.lines().filter(|line| line.starts_with("| `")) {
        let cells: Vec<&str> = line.trim_matches('|').split('|').map(str::trim).collect();
        let [point, between, tests] = cells[..] else { panic!("three cells: {line}") };
        let point = point.trim_matches('`');
        assert!(listed.insert(point.to_owned()), "{point} is listed twice");
        assert!(!between.is_empty(), "{point} is not explained");
        for test in tests.split(", ") {
            let path = root().join("tests/integration/tests").join(test).with_extension("rs");
            let text =
                fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
            // As a name, or with the number of the pass.
            let named =
                [format!("\"{point}\""), format!("\"{point}:")].iter().any(|name| text.contains(name));
            assert!(named, "{} does not kill at {point}", path.display());
        }
    }
    let points = [
        weir_shipper::spool::CRASH_POINTS,
        weir_shipper::source::CRASH_POINTS,
        weir_shipper::client::CRASH_POINTS,
    ];
    let points = points.into_iter().flatten();
    let points = points.chain(&weir_aggregator::CRASH_POINTS).chain(&parquet::CRASH_POINTS);
    let points: BTreeSet<String> = points.map(|point| (*point).to_owned()).collect();
    assert_eq!(listed, points, "docs/delivery.md lists other crash points than the programs have");
}
