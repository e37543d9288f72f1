//! What a replay derives from the packets of a connection: handshake, state, end, errors, round-trip times, segments sent
//! again.

use crate::captures::*;
use weir_schema::values::{ConnectError, EndReason, Orientation, TcpState};

#[test]
fn a_whole_connection_is_one_record() {
    let mut talk = Talk::default();
    talk.handshake()
        .a(20 * MS, 101, 501, ACK, 100)
        .b(32 * MS, 501, 201, ACK, 0)
        .b(40 * MS, 501, 201, ACK, 1000)
        .a(41 * MS, 201, 1501, ACK, 0)
        .a(50 * MS, 201, 1501, FIN | ACK, 0)
        .b(60 * MS, 1501, 202, FIN | ACK, 0)
        .a(61 * MS, 202, 1502, ACK, 0);
    let record = talk.record();
    assert_eq!((record.src_ip, record.src_port, record.dst_ip, record.dst_port), (A, 40_000, B, 80));
    assert_eq!((record.orientation, record.opened), (Orientation::Observed, 1));
    assert_eq!(sums(&record), [(6, 6 * 40 + 100), (4, 4 * 40 + 1000)]);
    assert_eq!((record.tcp_flags_src, record.tcp_flags_dst), (SYN | ACK | FIN, SYN | ACK | FIN));
    assert_eq!(record.handshake_us, Some(11_000));
    assert_eq!((record.tcp_state, record.end_reason), (Some(TcpState::Closed), Some(EndReason::Closed)));
    assert_eq!(record.connect_error, None);
    assert_eq!((record.src_retransmits, record.dst_retransmits), (Some(0), Some(0)));
    // To B and back 10, 12 and 10 ms, to A and back 1 ms each time: smoothed by an eighth.
    let to_b = 10_000.0 * 49.0 / 64.0 + 12_000.0 * 7.0 / 64.0 + 10_000.0 / 8.0;
    assert_eq!(record.rtt_us, Some(to_b as u32 + 1_000));
    assert_eq!(record.rtt_min_us, Some(11_000));
    assert_eq!(record.rtt_max_us, Some(10_250 + 1_000));
}

#[test]
fn states_are_the_openers() {
    let state = |build: &dyn Fn(&mut Talk)| {
        let mut talk = Talk::default();
        talk.handshake();
        build(&mut talk);
        talk.record().tcp_state
    };
    let fin_a = |talk: &mut Talk| {
        talk.a(20 * MS, 101, 501, FIN | ACK, 0);
    };
    let ack_a = |talk: &mut Talk| {
        talk.b(21 * MS, 501, 102, ACK, 0);
    };
    let fin_b = |talk: &mut Talk, ack| {
        talk.b(22 * MS, 501, ack, FIN | ACK, 0);
    };
    assert_eq!(state(&|_| {}), Some(TcpState::Established));
    assert_eq!(state(&fin_a), Some(TcpState::FinWait1));
    let both = |first: &dyn Fn(&mut Talk), second: &dyn Fn(&mut Talk)| {
        state(&|talk| {
            first(talk);
            second(talk);
        })
    };
    assert_eq!(both(&fin_a, &ack_a), Some(TcpState::FinWait2));
    assert_eq!(state(&|talk| fin_b(talk, 101)), Some(TcpState::CloseWait));
    let mut asked = Talk::default();
    asked.a(0, 100, 0, SYN, 0);
    assert_eq!(asked.record().tcp_state, Some(TcpState::SynSent));
    asked.b(MS, 500, 101, SYN | ACK, 0);
    let half_open = asked.record();
    assert_eq!((half_open.tcp_state, half_open.end_reason), (Some(TcpState::SynReceived), None));
    assert_eq!((half_open.handshake_us, half_open.opened), (None, 1));
}

#[test]
fn a_refused_connection_says_so() {
    let mut talk = Talk::default();
    talk.a(0, 100, 0, SYN, 0).b(MS, 0, 101, RST | ACK, 0);
    let record = talk.record();
    assert_eq!(record.connect_error, Some(ConnectError::Refused));
    assert_eq!((record.end_reason, record.opened), (Some(EndReason::ConnectFailed), 1));
    assert_eq!(record.tcp_state, Some(TcpState::Closed));
    // Only the answer was captured: who sent it had been asked.
    let mut answer = Talk::default();
    answer.b(MS, 0, 101, RST | ACK, 0);
    let record = answer.record();
    assert_eq!((record.src_ip, record.dst_ip, record.opened), (A, B, 0));
}

#[test]
fn a_half_open_scan_is_given_up_by_who_asked() {
    let mut talk = Talk::default();
    talk.a(0, 100, 0, SYN, 0).b(MS, 500, 101, SYN | ACK, 0).a(2 * MS, 101, 0, RST, 0);
    let record = talk.record();
    assert_eq!(record.connect_error, Some(ConnectError::Aborted));
    assert_eq!(record.end_reason, Some(EndReason::ConnectFailed));
}

#[test]
fn syns_without_an_answer_time_out_and_those_at_the_captures_end_do_not() {
    let mut talk = Talk::default();
    talk.a(0, 100, 0, SYN, 0).a(S, 100, 0, SYN, 0).a(3 * S, 100, 0, SYN, 0);
    let late = Frame::new(5 * S, framed(&ip(A, B, 17, &udp(1, 2, b""))));
    let open = talk.record();
    assert_eq!((open.connect_error, open.end_reason, open.src_retransmits), (None, None, Some(2)));
    talk.frames.push(late);
    let records = talk.replay();
    assert_eq!(records[0].connect_error, Some(ConnectError::TimedOut));
    assert_eq!((records[0].end_reason, records[0].opened), (Some(EndReason::ConnectFailed), 1));
}

#[test]
fn an_icmp_error_makes_a_connection_unreachable() {
    let mut talk = Talk::default();
    talk.a(0, 100, 0, SYN, 0);
    // What Linux and old routers quote: all of the packet, or eight bytes after its IP header.
    let syn = talk.frames[0].data[14..].to_vec();
    for quoted in [&syn[..], &syn[..28]] {
        for code in [1, 3, 13] {
            let error = [&[3, code, 0, 0, 0, 0, 0, 0], quoted].concat();
            let mut talk = Talk { frames: talk.frames.clone() };
            talk.frames.push(Frame::new(MS, framed(&ip(B, A, 1, &error))));
            let records = talk.replay();
            let record = records.iter().find(|record| record.protocol == 6);
            let record = record.unwrap_or_else(|| panic!("{records:?}"));
            assert_eq!(record.connect_error, Some(ConnectError::Unreachable));
            assert_eq!(record.end_reason, Some(EndReason::ConnectFailed));
        }
    }
    let too_big = [&[3, 4, 0, 0, 0, 0, 0, 0], &syn[..]].concat();
    talk.frames.push(Frame::new(MS, framed(&ip(B, A, 1, &too_big))));
    assert!(talk.replay().iter().all(|record| record.connect_error.is_none()));
}

#[test]
fn a_reset_ends_a_connection_and_after_both_fins_it_is_closed_all_the_same() {
    for from_a in [true, false] {
        let mut talk = Talk::default();
        talk.handshake().a(20 * MS, 101, 501, ACK, 10);
        if from_a {
            talk.a(30 * MS, 111, 501, RST | ACK, 0);
        } else {
            talk.b(30 * MS, 501, 111, RST | ACK, 0);
        }
        let record = talk.record();
        assert_eq!((record.end_reason, record.connect_error), (Some(EndReason::Reset), None));
    }
    let mut talk = Talk::default();
    talk.handshake().a(20 * MS, 101, 501, FIN | ACK, 0).b(21 * MS, 501, 102, FIN | ACK, 0).a(
        22 * MS,
        102,
        0,
        RST,
        0,
    );
    assert_eq!(talk.record().end_reason, Some(EndReason::Closed));
}

#[test]
fn what_was_seen_before_is_a_retransmission_and_what_was_not_is_out_of_order() {
    let mut talk = Talk::default();
    talk.handshake()
        .a(20 * MS, 101, 501, ACK, 100)
        .a(21 * MS, 301, 501, ACK, 100)
        .a(22 * MS, 201, 501, ACK, 100)
        .a(300 * MS, 101, 501, ACK, 100)
        .a(301 * MS, 301, 501, ACK, 200)
        .b(302 * MS, 501, 501, ACK, 50)
        .b(600 * MS, 501, 501, ACK, 50);
    let (records, report) = replayed(usual(1, &talk.frames));
    assert_eq!((records[0].src_retransmits, records[0].dst_retransmits), (Some(2), Some(1)));
    assert_eq!((report.totals.retransmits, report.totals.out_of_order), (3, 1));
}

#[test]
fn keep_alives_and_window_probes_are_no_retransmissions() {
    let mut talk = Talk::default();
    talk.handshake()
        .a(20 * MS, 101, 501, ACK, 100)
        .b(30 * MS, 501, 201, ACK, 0)
        // Keep-alives: without payload, and with the last byte.
        .a(S, 200, 501, ACK, 0)
        .b(S + MS, 501, 201, ACK, 0)
        .a(2 * S, 200, 501, ACK, 1)
        // B's window closes; A asks for it by the next byte, twice; then it opens.
        .window(false, 2 * S + MS, 501, 201, ACK, 0, 0)
        .a(3 * S, 201, 501, ACK, 1)
        .window(false, 3 * S + MS, 501, 201, ACK, 0, 0)
        .a(4 * S, 201, 501, ACK, 1)
        .b(5 * S, 501, 201, ACK, 0)
        .a(5 * S + MS, 201, 501, ACK, 500);
    assert_eq!(talk.record().src_retransmits, Some(0));
    // The last byte, of which no acknowledgement was seen, is sent again.
    talk.a(6 * S, 700, 501, ACK, 1);
    assert_eq!(talk.record().src_retransmits, Some(1));
}

#[test]
fn sequence_numbers_wrap() {
    let mut talk = Talk::default();
    let isn = u32::MAX - 150;
    let at = |offset: u32| isn.wrapping_add(offset);
    talk.a(0, isn, 0, SYN, 0)
        .b(MS, 500, at(1), SYN | ACK, 0)
        .a(2 * MS, at(1), 501, ACK, 0)
        .a(3 * MS, at(1), 501, ACK, 100)
        .a(4 * MS, at(201), 501, ACK, 100)
        .a(5 * MS, at(101), 501, ACK, 100)
        .a(6 * MS, at(101), 501, ACK, 100)
        .b(7 * MS, 501, at(301), ACK, 0)
        .a(8 * MS, at(301), 501, FIN | ACK, 0)
        .b(9 * MS, 501, at(302), FIN | ACK, 0)
        .a(10 * MS, at(302), 502, ACK, 0);
    let (records, report) = replayed(usual(1, &talk.frames));
    assert_eq!((report.totals.retransmits, report.totals.out_of_order), (1, 1));
    assert_eq!(records[0].end_reason, Some(EndReason::Closed));
}

#[test]
fn a_port_that_is_used_again_is_another_connection() {
    let mut talk = Talk::default();
    talk.handshake()
        .a(20 * MS, 101, 501, FIN | ACK, 0)
        .b(21 * MS, 501, 102, FIN | ACK, 0)
        .a(22 * MS, 102, 502, ACK, 0)
        .a(100 * MS, 9000, 0, SYN, 0)
        .b(101 * MS, 7000, 9001, SYN | ACK, 0)
        .a(102 * MS, 9001, 7001, ACK, 0);
    let records = talk.replay();
    let seen: Vec<_> = records.iter().map(|r| (r.opened, r.src_packets, r.end_reason)).collect();
    assert_eq!(seen, [(1, 4, Some(EndReason::Closed)), (1, 2, None)]);
    assert_ne!(records[0].flow_id, records[1].flow_id);
}

#[test]
fn a_connection_older_than_the_capture_is_oriented_by_its_ports() {
    for from_a in [true, false] {
        let mut talk = Talk::default();
        talk.window(from_a, 0, 1000, 2000, ACK, 100, 10);
        let record = talk.record();
        assert_eq!((record.src_port, record.dst_port), (40_000, 80));
        assert_eq!((record.orientation, record.opened), (Orientation::Inferred, 0));
        assert_eq!(record.tcp_state, Some(TcpState::Established));
    }
}

#[test]
fn a_silent_connection_times_out_on_a_record_without_packets() {
    let mut talk = Talk::default();
    talk.handshake();
    for at_s in [30, 4000, 4060] {
        talk.frames.push(Frame::new(at_s * S, framed(&ip(A, B, 17, &udp(1, 2, b"")))));
    }
    let records: Vec<_> = talk.replay().into_iter().filter(|record| record.protocol == 6).collect();
    let seen: Vec<_> = records.iter().map(|r| (r.src_packets, r.opened, r.end_reason)).collect();
    assert_eq!(seen, [(2, 1, None), (0, 0, Some(EndReason::TimedOut))]);
    assert_eq!((records[0].flow_id, records[1].end_ns), (records[1].flow_id, START_NS + 11 * MS));
}

#[test]
fn one_side_alone_is_enough() {
    let mut asked = Talk::default();
    asked.a(0, 100, 0, SYN, 0).a(11 * MS, 101, 501, ACK, 0).a(12 * MS, 101, 501, ACK, 10).a(
        13 * MS,
        111,
        501,
        FIN | ACK,
        0,
    );
    let record = asked.record();
    assert_eq!((record.opened, record.handshake_us, record.rtt_us), (1, None, None));
    assert_eq!(record.tcp_state, Some(TcpState::FinWait1));
    let mut answered = Talk::default();
    answered.b(0, 500, 101, SYN | ACK, 0).b(12 * MS, 501, 101, ACK, 10);
    let record = answered.record();
    assert_eq!((record.src_ip, record.opened, record.orientation), (A, 1, Orientation::Observed));
    assert_eq!((record.tcp_state, record.dst_retransmits), (Some(TcpState::Established), Some(0)));
}
