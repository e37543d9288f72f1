//! The shipper's metrics: one table with names and meanings, one struct of handles.
//!
//! Owns names, labels and help texts; docs/metrics.md is generated from [`METRICS`]. Counted per batch, never per
//! event. For one process and at every moment, in events (rows of any kind):
//!
//! `captured + recovered = journaled + dropped + in flight`
//!
//! where `recovered` is what the spool held when the process started.

use std::sync::atomic::AtomicU64;

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use weir_schema::values::{LossReason, Vantage};

use crate::spool::Amount;

/// One metric, as it is documented. Counters end in `_total` when scraped.
#[derive(Clone, Copy, Debug)]
pub struct Metric {
    /// Name without the suffix `_total`.
    pub name: &'static str,
    /// `counter` or `gauge`.
    pub kind: &'static str,
    /// Its label, if it has one.
    pub label: &'static str,
    /// What it counts, with its unit.
    pub help: &'static str,
}

const fn counter(name: &'static str, label: &'static str, help: &'static str) -> Metric {
    Metric { name, kind: "counter", label, help }
}

const fn gauge(name: &'static str, help: &'static str) -> Metric {
    Metric { name, kind: "gauge", label: "", help }
}

const fn by_aggregator(name: &'static str, help: &'static str) -> Metric {
    Metric { name, kind: "gauge", label: "aggregator", help }
}

/// Every metric of the shipper's delivery.
pub const METRICS: &[Metric] = &[
    counter(
        "weir_shipper_captured_events",
        "",
        "Events read from the capture and given a place in the spool or counted as dropped",
    ),
    counter(
        "weir_shipper_captured_packets",
        "vantage",
        "Packets in these events, by the programs' own count; those of two vantages are the same packets in part",
    ),
    counter("weir_shipper_captured_bytes", "vantage", "IP bytes of these packets"),
    counter("weir_shipper_intervals", "", "Intervals drained from the capture"),
    counter("weir_shipper_recovered_events", "", "Events that waited in the spool when the process started"),
    counter("weir_shipper_spooled_batches", "", "Batches appended to the spool and synced"),
    counter("weir_shipper_spooled_bytes", "", "Encoded bytes of these batches"),
    counter("weir_shipper_sent_batches", "", "Batches given to the connection, repetitions included"),
    counter("weir_shipper_sent_bytes", "", "Encoded bytes of these batches"),
    counter("weir_shipper_skips_sent", "", "Skip frames given to the connection"),
    counter(
        "weir_shipper_journaled_events",
        "",
        "Events that the aggregator acknowledged as synced to its journal",
    ),
    counter("weir_shipper_journaled_batches", "", "Batches with these events"),
    counter("weir_shipper_journaled_bytes", "", "Encoded bytes of these batches"),
    counter(
        "weir_shipper_dropped_events",
        "reason",
        "Events that will never be delivered, by reason; each is in kind=loss too",
    ),
    counter("weir_shipper_dropped_batches", "reason", "Batches that will never be delivered, by reason"),
    counter("weir_shipper_dropped_bytes", "reason", "Encoded bytes of these batches, by reason"),
    gauge("weir_shipper_in_flight_events", "Events in the spool that are not yet acknowledged"),
    gauge("weir_shipper_in_flight_batches", "Batches in the spool that are not yet acknowledged"),
    gauge("weir_shipper_in_flight_bytes", "Encoded bytes of these batches"),
    gauge("weir_shipper_spool_bytes", "Bytes of the spool on disk"),
    gauge("weir_shipper_spool_budget_bytes", "Bytes that the spool may use: spool.bytes_max"),
    by_aggregator(
        "weir_shipper_unacked_batches",
        "Batches sent on the open connection to this aggregator and not yet acknowledged",
    ),
    by_aggregator("weir_shipper_connected", "1 while this aggregator has welcomed this shipper"),
    by_aggregator("weir_shipper_chosen", "1 for the aggregator that new batches go to"),
    by_aggregator(
        "weir_shipper_aggregator_in_flight_batches",
        "Batches and skips that belong to this aggregator, because they or those before them may have arrived there, \
         and are not acknowledged",
    ),
    counter(
        "weir_shipper_takeovers",
        "aggregator",
        "Times that this aggregator was out of reach for so long that what was never sent to it went to another one",
    ),
    counter("weir_shipper_connects", "", "Streams that were welcomed by an aggregator"),
    counter("weir_shipper_disconnects", "reason", "Streams that ended or could not be opened, by reason"),
    counter(
        "weir_shipper_tls_reloads",
        "result",
        "New states of the files of TLS: used, or failed and the last good one kept",
    ),
    counter("weir_shipper_epochs", "reason", "New epochs, by reason"),
    counter("weir_shipper_disk_full", "", "Appends that were put off because the disk was full"),
    counter(
        "weir_shipper_kernel_map_full",
        "map",
        "What a kernel map could not take, since the maps were made: packets of flows (they are in overflow records), \
         attempts to note sockets, flows without connection (meta) and cgroups",
    ),
    counter("weir_shipper_clock_steps", "", "Steps of the wall clock of over half a second"),
];

/// Kernel maps that can be full, by the name of the programs' counter.
const KERNEL_MAPS: [(&str, &str); 4] =
    [("flows_full", "flows"), ("socks_full", "sockets"), ("meta_full", "meta"), ("cgroups_full", "cgroups")];

/// A family with one label.
pub type ByLabel = Family<[(&'static str, &'static str); 1], Counter>;

/// A gauge of each aggregator, by its configured name.
pub type GaugeByAggregator = Family<[(&'static str, String); 1], Gauge<u64, AtomicU64>>;
/// A counter of each aggregator, by its configured name.
pub type CounterByAggregator = Family<[(&'static str, String); 1], Counter>;

/// Handles to the values; clones share them. Also what an embedding program shows of a running shipper.
#[derive(Clone, Debug, Default)]
#[expect(missing_docs, reason = "named and explained in METRICS")]
pub struct Metrics {
    pub captured_events: Counter,
    pub captured_packets: ByLabel,
    pub captured_bytes: ByLabel,
    pub intervals: Counter,
    pub recovered_events: Counter,
    pub spooled_batches: Counter,
    pub spooled_bytes: Counter,
    pub sent_batches: Counter,
    pub sent_bytes: Counter,
    pub skips_sent: Counter,
    pub journaled_events: Counter,
    pub journaled_batches: Counter,
    pub journaled_bytes: Counter,
    pub dropped_events: ByLabel,
    pub dropped_batches: ByLabel,
    pub dropped_bytes: ByLabel,
    pub in_flight_events: Gauge<u64, AtomicU64>,
    pub in_flight_batches: Gauge<u64, AtomicU64>,
    pub in_flight_bytes: Gauge<u64, AtomicU64>,
    pub spool_bytes: Gauge<u64, AtomicU64>,
    pub spool_budget_bytes: Gauge<u64, AtomicU64>,
    pub unacked_batches: GaugeByAggregator,
    pub connected: GaugeByAggregator,
    pub chosen: GaugeByAggregator,
    pub aggregator_in_flight_batches: GaugeByAggregator,
    pub takeovers: CounterByAggregator,
    pub connects: Counter,
    pub disconnects: ByLabel,
    pub tls_reloads: ByLabel,
    pub epochs: ByLabel,
    pub disk_full: Counter,
    pub kernel_map_full: ByLabel,
    pub clock_steps: Counter,
}

impl Metrics {
    /// Puts every metric into a registry.
    pub fn register(&self, registry: &mut Registry) {
        let Self {
            captured_events,
            captured_packets,
            captured_bytes,
            intervals,
            recovered_events,
            spooled_batches,
            spooled_bytes,
            sent_batches,
            sent_bytes,
            skips_sent,
            journaled_events,
            journaled_batches,
            journaled_bytes,
            dropped_events,
            dropped_batches,
            dropped_bytes,
            in_flight_events,
            in_flight_batches,
            in_flight_bytes,
            spool_bytes,
            spool_budget_bytes,
            unacked_batches,
            connected,
            chosen,
            aggregator_in_flight_batches,
            takeovers,
            connects,
            disconnects,
            tls_reloads,
            epochs,
            disk_full,
            kernel_map_full,
            clock_steps,
        } = self.clone();
        for vantage in Vantage::ALL {
            self.captured(*vantage, 0, 0);
        }
        let mut put = |name: &str, metric: Registered| {
            let full = format!("weir_shipper_{name}");
            let help = METRICS.iter().find(|metric| metric.name == full).map_or("", |metric| metric.help);
            match metric {
                Registered::Counter(counter) => registry.register(full, help, counter),
                Registered::Gauge(gauge) => registry.register(full, help, gauge),
                Registered::Family(family) => registry.register(full, help, family),
                Registered::Gauges(family) => registry.register(full, help, family),
                Registered::Counters(family) => registry.register(full, help, family),
            }
        };
        put("captured_events", Registered::Counter(captured_events));
        put("captured_packets", Registered::Family(captured_packets));
        put("captured_bytes", Registered::Family(captured_bytes));
        put("intervals", Registered::Counter(intervals));
        put("recovered_events", Registered::Counter(recovered_events));
        put("spooled_batches", Registered::Counter(spooled_batches));
        put("spooled_bytes", Registered::Counter(spooled_bytes));
        put("sent_batches", Registered::Counter(sent_batches));
        put("sent_bytes", Registered::Counter(sent_bytes));
        put("skips_sent", Registered::Counter(skips_sent));
        put("journaled_events", Registered::Counter(journaled_events));
        put("journaled_batches", Registered::Counter(journaled_batches));
        put("journaled_bytes", Registered::Counter(journaled_bytes));
        put("dropped_events", Registered::Family(dropped_events));
        put("dropped_batches", Registered::Family(dropped_batches));
        put("dropped_bytes", Registered::Family(dropped_bytes));
        put("in_flight_events", Registered::Gauge(in_flight_events));
        put("in_flight_batches", Registered::Gauge(in_flight_batches));
        put("in_flight_bytes", Registered::Gauge(in_flight_bytes));
        put("spool_bytes", Registered::Gauge(spool_bytes));
        put("spool_budget_bytes", Registered::Gauge(spool_budget_bytes));
        put("unacked_batches", Registered::Gauges(unacked_batches));
        put("connected", Registered::Gauges(connected));
        put("chosen", Registered::Gauges(chosen));
        put("aggregator_in_flight_batches", Registered::Gauges(aggregator_in_flight_batches));
        put("takeovers", Registered::Counters(takeovers));
        put("connects", Registered::Counter(connects));
        put("disconnects", Registered::Family(disconnects));
        put("tls_reloads", Registered::Family(tls_reloads));
        put("epochs", Registered::Family(epochs));
        put("disk_full", Registered::Counter(disk_full));
        put("kernel_map_full", Registered::Family(kernel_map_full));
        put("clock_steps", Registered::Counter(clock_steps));
    }

    /// Counts what will never be delivered.
    pub(crate) fn dropped(&self, reason: LossReason, amount: Amount) {
        let Amount { batches, events, bytes } = amount;
        let label = [("reason", reason.as_str())];
        self.dropped_events.get_or_create(&label).inc_by(events);
        self.dropped_batches.get_or_create(&label).inc_by(batches);
        self.dropped_bytes.get_or_create(&label).inc_by(bytes);
    }

    /// Counts what the aggregator has synced.
    pub(crate) fn journaled(&self, amount: Amount) {
        let Amount { batches, events, bytes } = amount;
        self.journaled_events.inc_by(events);
        self.journaled_batches.inc_by(batches);
        self.journaled_bytes.inc_by(bytes);
    }

    /// Counts what the programs have counted at a vantage.
    pub(crate) fn captured(&self, vantage: Vantage, packets: u64, bytes: u64) {
        let label = [("vantage", vantage.as_str())];
        self.captured_packets.get_or_create(&label).inc_by(packets);
        self.captured_bytes.get_or_create(&label).inc_by(bytes);
    }

    /// Takes over the programs' counters of full maps.
    pub(crate) fn kernel(&self, counters: &[(&'static str, u64)]) {
        for (name, map) in KERNEL_MAPS {
            let total = counters.iter().find(|(counter, _)| *counter == name).map_or(0, |(_, total)| *total);
            let counter = self.kernel_map_full.get_or_create(&[("map", map)]);
            counter.inc_by(total.saturating_sub(counter.get()));
        }
    }

    /// Sets what waits in the spool.
    pub(crate) fn in_flight(&self, amount: Amount) {
        let Amount { batches, events, bytes } = amount;
        self.in_flight_events.set(events);
        self.in_flight_batches.set(batches);
        self.in_flight_bytes.set(bytes);
    }

    /// Gives each family of aggregators a sample: one without is left out of a scrape.
    pub fn any_aggregator(&self) {
        let Self { unacked_batches, connected, chosen, aggregator_in_flight_batches, takeovers, .. } = self;
        let any = [("aggregator", "any".to_owned())];
        for family in [unacked_batches, connected, chosen, aggregator_in_flight_batches] {
            drop(family.get_or_create(&any));
        }
        drop(takeovers.get_or_create(&any));
    }

    /// Events dropped for any reason.
    pub fn dropped_events_sum(&self) -> u64 {
        LossReason::ALL.iter().map(|reason| self.dropped_events_of(*reason)).sum()
    }

    /// Events dropped for one reason.
    pub fn dropped_events_of(&self, reason: LossReason) -> u64 {
        self.dropped_events.get(&[("reason", reason.as_str())]).map_or(0, |counter| counter.get())
    }
}

enum Registered {
    Counter(Counter),
    Gauge(Gauge<u64, AtomicU64>),
    Family(ByLabel),
    Gauges(GaugeByAggregator),
    Counters(CounterByAggregator),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_what_a_scrape_shows() {
        let metrics = Metrics::default();
        metrics.dropped(LossReason::Budget, Amount { batches: 1, events: 2, bytes: 3 });
        metrics.captured(Vantage::Socket, 1, 2);
        for family in [&metrics.disconnects, &metrics.epochs] {
            family.get_or_create(&[("reason", "any")]).inc();
        }
        metrics.any_aggregator();
        drop(metrics.tls_reloads.get_or_create(&[("result", "used")]));
        for total in [4, 9] {
            metrics.kernel(&[("socks_full", total), ("parse_failed", 3)]);
        }
        let mut registry = Registry::default();
        metrics.register(&mut registry);
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
        for Metric { name, kind, help, .. } in METRICS {
            assert!(text.contains(&format!("# HELP {name} {help}.\n")), "{name}\n{text}");
            assert!(text.contains(&format!("# TYPE {name} {kind}\n")), "{name}");
        }
        assert_eq!(text.matches("# TYPE").count(), METRICS.len());
        assert!(text.contains("weir_shipper_dropped_events_total{reason=\"budget\"} 2\n"), "{text}");
        assert!(text.contains("weir_shipper_kernel_map_full_total{map=\"sockets\"} 9\n"), "{text}");
        assert!(text.contains("weir_shipper_kernel_map_full_total{map=\"meta\"} 0\n"), "{text}");
        assert_eq!(metrics.dropped_events_sum(), 2);
    }
}
