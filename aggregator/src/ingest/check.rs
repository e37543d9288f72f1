//! Checks every column's length, index and code, so that what comes after can trust them.
//!
//! A batch that lies in one value is refused whole: nothing of it is journaled. The messages are destructured, so that
//! a new field of the wire format breaks the build here.

use prost::Message as _;
use weir_proto::v1::{AnomalyEvent, BatchBody, DnsEvent, FlowColumns, LossEvent};
use weir_schema::values::{
    ConnectError, EndReason, LossReason, LossStage, Orientation, Reporter, TcpState, TimeQuality, TunnelType,
    Vantage,
};

use super::error::{BatchError, Expected};
use super::limits::Limits;

/// A body whose every column is empty or full, whose indices and codes are valid.
#[derive(Debug)]
pub struct CheckedBody {
    body: BatchBody,
    /// Of the body, encoded.
    bytes: u64,
}

impl CheckedBody {
    /// Checks `body` against its envelope's `events`.
    pub fn check(body: BatchBody, events: u32, limits: &Limits) -> Result<Self, BatchError> {
        let bytes = body.encoded_len() as u64;
        Self::check_sized(body, bytes, events, limits)
    }

    /// The same of a body that was decoded from so many bytes.
    pub(super) fn check_sized(
        body: BatchBody,
        bytes: u64,
        events: u32,
        limits: &Limits,
    ) -> Result<Self, BatchError> {
        let BatchBody { flows, dns, anomalies, losses } = &body;
        if let Some(flows) = flows {
            check_flows(flows)?;
        }
        for (row, event) in dns.iter().enumerate() {
            check_dns(row, event, limits)?;
        }
        for (row, event) in anomalies.iter().enumerate() {
            check_anomaly(row, event, limits)?;
        }
        for (row, event) in losses.iter().enumerate() {
            check_loss(row, event)?;
        }
        let checked = Self { body, bytes };
        if checked.events() != u64::from(events) {
            return Err(BatchError::Events { stated: events, found: checked.events() });
        }
        Ok(checked)
    }

    /// The messages.
    pub fn get(&self) -> &BatchBody {
        &self.body
    }

    /// Bytes of the body, encoded and not compressed.
    pub fn decoded_bytes(&self) -> u64 {
        self.bytes
    }

    /// Rows over all kinds.
    pub fn events(&self) -> u64 {
        let BatchBody { flows, dns, anomalies, losses } = &self.body;
        let flows = flows.as_ref().map_or(0, |flows| u64::from(flows.rows));
        flows + (dns.len() + anomalies.len() + losses.len()) as u64
    }
}

fn check_flows(flows: &FlowColumns) -> Result<(), BatchError> {
    let FlowColumns {
        rows,
        strings,
        addresses,
        base_time_ns,
        flow_id_high,
        flow_id_low,
        record_seq,
        opened,
        reporter,
        vantage,
        orientation,
        time_quality,
        end_delta_ns,
        duration_ns,
        src_ip,
        dst_ip,
        src_port,
        dst_port,
        protocol,
        src_bytes,
        dst_bytes,
        src_packets,
        dst_packets,
        tcp_flags_src,
        tcp_flags_dst,
        tcp_state,
        end_reason,
        connect_error,
        handshake_us,
        rtt_us,
        rtt_min_us,
        rtt_max_us,
        src_retransmits,
        dst_retransmits,
        interface,
        vlan_id,
        inner_vlan_id,
        tunnel_type,
        tunnel_id,
        tunnel_src_ip,
        tunnel_dst_ip,
        local_process,
        local_pid,
        local_cgroup,
        local_container_id,
        local_pod_uid,
        nat_src_ip,
        nat_src_port,
        nat_dst_ip,
        nat_dst_port,
    } = flows;
    let check = Check { rows: *rows as usize };
    if strings.first().is_some_and(|first| !first.is_empty()) {
        return Err(BatchError::Malformed { what: "flows.strings does not begin with the empty text" });
    }
    if addresses.len() % 16 != 0 {
        let (value, expected) = (addresses.len() as u64, Expected::Bytes("a multiple of 16"));
        return Err(BatchError::Value { field: "flows.addresses", row: 0, value, expected });
    }
    let wide = [
        ("flow_id_high", flow_id_high),
        ("flow_id_low", flow_id_low),
        ("record_seq", record_seq),
        ("src_bytes", src_bytes),
        ("dst_bytes", dst_bytes),
        ("src_packets", src_packets),
        ("dst_packets", dst_packets),
    ];
    for (field, values) in wide {
        check.length(field, values)?;
    }
    let narrow = [
        ("protocol", protocol, 255),
        ("tcp_flags_src", tcp_flags_src, 255),
        ("tcp_flags_dst", tcp_flags_dst, 255),
        ("src_port", src_port, 65_535),
        ("dst_port", dst_port, 65_535),
        ("nat_src_port", nat_src_port, 65_535),
        ("nat_dst_port", nat_dst_port, 65_535),
        ("vlan_id", vlan_id, 4095),
        ("inner_vlan_id", inner_vlan_id, 4095),
    ];
    for (field, values, max) in narrow {
        check.at_most(field, values, max)?;
    }
    for (field, values) in [
        ("opened", opened),
        ("handshake_us", handshake_us),
        ("rtt_us", rtt_us),
        ("rtt_min_us", rtt_min_us),
        ("rtt_max_us", rtt_max_us),
        ("src_retransmits", src_retransmits),
        ("dst_retransmits", dst_retransmits),
        ("local_pid", local_pid),
    ] {
        check.length(field, values)?;
    }
    check.code("reporter", reporter, "reporter", |code| Reporter::from_code(code).is_some())?;
    check.code("vantage", vantage, "vantage", |code| Vantage::from_code(code).is_some())?;
    check.code("orientation", orientation, "orientation", |code| Orientation::from_code(code).is_some())?;
    check.code("time_quality", time_quality, "time_quality or 0", |code| {
        code == 0 || TimeQuality::from_code(code).is_some()
    })?;
    check.code("tcp_state", tcp_state, "tcp_state or 0", |code| {
        code == 0 || TcpState::from_code(code).is_some()
    })?;
    check.code("end_reason", end_reason, "end_reason or 0", |code| {
        code == 0 || EndReason::from_code(code).is_some()
    })?;
    check.code("connect_error", connect_error, "connect_error or 0", |code| {
        code == 0 || ConnectError::from_code(code).is_some()
    })?;
    check.code("tunnel_type", tunnel_type, "tunnel_type or 0", |code| {
        code == 0 || TunnelType::from_code(code).is_some()
    })?;
    check.wide_at_most("tunnel_id", tunnel_id, 1 << 32)?;
    for (field, values) in [
        ("interface", interface),
        ("local_process", local_process),
        ("local_cgroup", local_cgroup),
        ("local_container_id", local_container_id),
        ("local_pod_uid", local_pod_uid),
    ] {
        // Index 0 means null, also where there is no table.
        check.index(field, values, strings.len().max(1))?;
    }
    let table = addresses.len() / 16;
    check.index("src_ip", src_ip, table)?;
    check.index("dst_ip", dst_ip, table)?;
    check.index("nat_src_ip", nat_src_ip, table + 1)?;
    check.index("nat_dst_ip", nat_dst_ip, table + 1)?;
    check.index("tunnel_src_ip", tunnel_src_ip, table + 1)?;
    check.index("tunnel_dst_ip", tunnel_dst_ip, table + 1)?;
    check.times(*base_time_ns, end_delta_ns, duration_ns)
}

struct Check {
    rows: usize,
}

impl Check {
    fn length<T>(&self, field: &'static str, values: &[T]) -> Result<(), BatchError> {
        if values.is_empty() || values.len() == self.rows {
            return Ok(());
        }
        Err(BatchError::Length { field, found: values.len(), rows: self.rows })
    }

    fn at_most(&self, field: &'static str, values: &[u32], max: u32) -> Result<(), BatchError> {
        let expected = Expected::AtMost(u64::from(max));
        self.length(field, values)?;
        self.all(field, values, expected, |value| value <= max)
    }

    fn wide_at_most(&self, field: &'static str, values: &[u64], max: u64) -> Result<(), BatchError> {
        self.length(field, values)?;
        match values.iter().position(|value| *value > max) {
            None => Ok(()),
            Some(row) => {
                Err(BatchError::Value { field, row, value: values[row], expected: Expected::AtMost(max) })
            }
        }
    }

    /// Every value, also the 0 of a column that is left out, is an index into a table of `length`.
    fn index(&self, field: &'static str, values: &[u32], length: usize) -> Result<(), BatchError> {
        self.length(field, values)?;
        self.all_or_default(field, values, Expected::Below(length), |index| (index as usize) < length)
    }

    fn code(
        &self,
        field: &'static str,
        values: &[u32],
        set: &'static str,
        known: impl Fn(u32) -> bool,
    ) -> Result<(), BatchError> {
        self.length(field, values)?;
        self.all_or_default(field, values, Expected::Code(set), known)
    }

    fn all_or_default(
        &self,
        field: &'static str,
        values: &[u32],
        expected: Expected,
        good: impl Fn(u32) -> bool,
    ) -> Result<(), BatchError> {
        if values.is_empty() && self.rows > 0 {
            return self.all(field, &[0], expected, good);
        }
        self.all(field, values, expected, good)
    }

    fn all(
        &self,
        field: &'static str,
        values: &[u32],
        expected: Expected,
        good: impl Fn(u32) -> bool,
    ) -> Result<(), BatchError> {
        match values.iter().position(|value| !good(*value)) {
            None => Ok(()),
            Some(row) => Err(BatchError::Value { field, row, value: u64::from(values[row]), expected }),
        }
    }

    /// `base + delta` and `base + delta - duration` stay within 64 bits.
    fn times(&self, base: i64, deltas: &[i64], durations: &[u64]) -> Result<(), BatchError> {
        self.length("end_delta_ns", deltas)?;
        self.length("duration_ns", durations)?;
        for row in 0..deltas.len().max(durations.len()) {
            let delta = deltas.get(row).copied().unwrap_or_default();
            let end = base.checked_add(delta).ok_or(BatchError::Time { field: "end_delta_ns", row })?;
            let duration = durations.get(row).copied().unwrap_or_default();
            end.checked_sub_unsigned(duration).ok_or(BatchError::Time { field: "duration_ns", row })?;
        }
        Ok(())
    }
}

fn check_dns(row: usize, event: &DnsEvent, limits: &Limits) -> Result<(), BatchError> {
    let DnsEvent {
        time_ns: _,
        reporter,
        client_ip,
        client_port,
        server_ip,
        server_port,
        transport,
        query_name,
        query_type,
        rcode,
        answers,
        answer_ttl_s: _,
        latency_us: _,
        timed_out: _,
        truncated: _,
        retries,
        local_process,
        local_pid: _,
        local_cgroup,
        local_container_id,
        local_pod_uid,
    } = event;
    one(
        row,
        "dns.reporter",
        *reporter,
        Expected::Code("reporter"),
        Reporter::from_code(*reporter).is_some(),
    )?;
    let protocols = Expected::Code("transport: 6 (tcp) or 17 (udp)");
    one(row, "dns.transport", *transport, protocols, matches!(transport, 6 | 17))?;
    for (field, bytes) in [("dns.client_ip", client_ip), ("dns.server_ip", server_ip)] {
        fixed(row, field, bytes, bytes.is_empty() || bytes.len() == 16, "0 or 16")?;
    }
    let narrow = [
        ("dns.client_port", *client_port),
        ("dns.server_port", *server_port),
        ("dns.query_type", *query_type),
        ("dns.rcode", rcode.unwrap_or_default()),
        ("dns.retries", *retries),
    ];
    for (field, value) in narrow {
        one(row, field, value, Expected::AtMost(65_535), value <= 65_535)?;
    }
    let texts = [
        ("dns.query_name", query_name),
        ("dns.local_process", local_process),
        ("dns.local_cgroup", local_cgroup),
        ("dns.local_container_id", local_container_id),
        ("dns.local_pod_uid", local_pod_uid),
    ];
    for (field, text) in texts.into_iter().chain(answers.iter().map(|answer| ("dns.answers", answer))) {
        text_fits(row, field, text, limits)?;
    }
    Ok(())
}

fn check_anomaly(row: usize, event: &AnomalyEvent, limits: &Limits) -> Result<(), BatchError> {
    let AnomalyEvent {
        finding_id,
        r#type,
        severity,
        confidence: _,
        scope,
        subject,
        state,
        first_seen_ns: _,
        last_seen_ns: _,
        observed: _,
        threshold: _,
        unit,
        evidence,
        summary,
    } = event;
    fixed(row, "anomalies.finding_id", finding_id, finding_id.len() == 16, "16")?;
    for id in evidence {
        fixed(row, "anomalies.evidence", id, id.len() == 16, "16")?;
    }
    for (field, text) in [
        ("anomalies.type", r#type),
        ("anomalies.severity", severity),
        ("anomalies.scope", scope),
        ("anomalies.subject", subject),
        ("anomalies.state", state),
        ("anomalies.unit", unit),
        ("anomalies.summary", summary),
    ] {
        text_fits(row, field, text, limits)?;
    }
    Ok(())
}

/// Checks a loss event, also that of a skip.
pub fn check_loss(row: usize, event: &LossEvent) -> Result<(), BatchError> {
    let LossEvent { stage, reason, count: _, bytes: _, first_time_ns: _, last_time_ns: _ } = event;
    one(row, "losses.stage", *stage, Expected::Code("stage"), LossStage::from_code(*stage).is_some())?;
    one(row, "losses.reason", *reason, Expected::Code("reason"), LossReason::from_code(*reason).is_some())
}

fn one(
    row: usize,
    field: &'static str,
    value: u32,
    expected: Expected,
    good: bool,
) -> Result<(), BatchError> {
    if good { Ok(()) } else { Err(BatchError::Value { field, row, value: u64::from(value), expected }) }
}

fn fixed(
    row: usize,
    field: &'static str,
    bytes: &[u8],
    good: bool,
    lengths: &'static str,
) -> Result<(), BatchError> {
    let (value, expected) = (bytes.len() as u64, Expected::Bytes(lengths));
    if good { Ok(()) } else { Err(BatchError::Value { field, row, value, expected }) }
}

fn text_fits(row: usize, field: &'static str, text: &str, limits: &Limits) -> Result<(), BatchError> {
    let (value, max) = (text.len() as u64, limits.string_bytes_max);
    if value <= max {
        return Ok(());
    }
    Err(BatchError::Value { field, row, value, expected: Expected::AtMost(max) })
}
