//! Closed sets of values: what stands in the columns, and their codes on the wire.
//!
//! A code never changes its meaning; 0 always means "not set". Shipper and aggregator both use these types.

/// Declares an enum whose variants have a wire code and the catalogue's text.
macro_rules! values {
    ($(#[$meta:meta])* $name:ident { $($(#[$vmeta:meta])* $variant:ident = $code:literal => $text:literal,)+ }) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum $name {
            $($(#[$vmeta])* $variant = $code,)+
        }

        impl $name {
            /// Every value, in the order of the codes.
            pub const ALL: &[Self] = &[$(Self::$variant,)+];

            /// The text that stands in the column.
            pub const fn as_str(self) -> &'static str {
                match self {
                    $(Self::$variant => $text,)+
                }
            }

            /// The wire's code; never 0.
            pub const fn code(self) -> u32 {
                self as u32
            }

            /// The value of a wire code; `None` for 0 and for codes that this version does not know.
            pub const fn from_code(code: u32) -> Option<Self> {
                match code {
                    $($code => Some(Self::$variant),)+
                    _ => None,
                }
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.pad(self.as_str())
            }
        }
    };
}

values! {
    /// Which end of the conversation the record was made at.
    Reporter {
        /// On the socket that opened the conversation.
        Source = 1 => "source",
        /// On the socket that accepted it.
        Destination = 2 => "destination",
        /// On the way between: neither socket is here.
        Transit = 3 => "transit",
    }
}

values! {
    /// Where packets were counted. The two are never added up.
    Vantage {
        /// In the socket's own view, at the root of cgroup v2.
        Socket = 1 => "socket",
        /// At a network interface.
        Interface = 2 => "interface",
    }
}

values! {
    /// How it is known which side is `src`.
    Orientation {
        /// The opening was seen.
        Observed = 1 => "observed",
        /// The connection is older than the capture; one side listens on its port.
        Listener = 2 => "listener",
        /// A guess: the connection is older than the capture and no listener is known.
        Inferred = 3 => "inferred",
        /// Not a flow: what the flow map could not take, by protocol and direction; addresses are unspecified,
        /// `src_*` counts what left, `dst_*` what arrived.
        Overflow = 4 => "overflow",
    }
}

values! {
    /// How far the event's time may be trusted.
    TimeQuality {
        /// The node's clock agreed with the aggregator's.
        Ok = 1 => "ok",
        /// Too far ahead, or beyond retention: filed under the hour of its receipt.
        Skewed = 2 => "skewed",
        /// From a capture file, with the capture's own time.
        Replayed = 3 => "replayed",
    }
}

values! {
    /// What carried a packet that was found inside another. An id is part of VXLAN, Geneve and GRE with a key.
    TunnelType {
        /// RFC 7348.
        Vxlan = 1 => "vxlan",
        /// RFC 8926.
        Geneve = 2 => "geneve",
        /// RFC 2784, with a key or without.
        Gre = 3 => "gre",
        /// IP in IP, of any two families.
        Ipip = 4 => "ipip",
    }
}

values! {
    /// State of the reporting side's TCP socket at the end of the record (RFC 9293, section 3.3.2).
    TcpState {
        /// ESTABLISHED.
        Established = 1 => "established",
        /// SYN-SENT.
        SynSent = 2 => "syn_sent",
        /// SYN-RECEIVED.
        SynReceived = 3 => "syn_received",
        /// FIN-WAIT-1.
        FinWait1 = 4 => "fin_wait_1",
        /// FIN-WAIT-2.
        FinWait2 = 5 => "fin_wait_2",
        /// TIME-WAIT.
        TimeWait = 6 => "time_wait",
        /// CLOSED.
        Closed = 7 => "closed",
        /// CLOSE-WAIT.
        CloseWait = 8 => "close_wait",
        /// LAST-ACK.
        LastAck = 9 => "last_ack",
        /// LISTEN.
        Listen = 10 => "listen",
        /// CLOSING.
        Closing = 11 => "closing",
    }
}

values! {
    /// How a conversation ended; stands on its last record only.
    EndReason {
        /// Both sides finished (FIN), or the datagram socket was closed.
        Closed = 1 => "closed",
        /// The other side sent RST on an established connection.
        Reset = 2 => "reset",
        /// This side sent RST on an established connection.
        Aborted = 3 => "aborted",
        /// No answer to data or keep-alives until the kernel gave up.
        TimedOut = 4 => "timed_out",
        /// It was never established: see `connect_error`.
        ConnectFailed = 5 => "connect_failed",
        /// No packet for the idle time (protocols without an end).
        Idle = 6 => "idle",
    }
}

values! {
    /// Why a connection was never established.
    ConnectError {
        /// RST in answer to the SYN.
        Refused = 1 => "refused",
        /// No answer to any SYN.
        TimedOut = 2 => "timed_out",
        /// The SYN never left: the next hop's link address could not be resolved.
        NoNeighbour = 3 => "no_neighbour",
        /// This side gave up before an answer came.
        Aborted = 4 => "aborted",
        /// ICMP said that host, network or port can't be reached.
        Unreachable = 5 => "unreachable",
    }
}

values! {
    /// What stands behind an address.
    Identity {
        /// A pod.
        Pod = 1 => "pod",
        /// A service's virtual address.
        Service = 2 => "service",
        /// A node of the cluster itself, host-network processes included.
        Node = 3 => "node",
        /// Known to be outside of the cluster.
        External = 4 => "external",
        /// Hidden behind an address translation.
        Masked = 5 => "masked",
        /// Not known.
        Unknown = 6 => "unknown",
    }
}

values! {
    /// Where events were lost.
    LossStage {
        /// In the kernel.
        Capture = 1 => "capture",
        /// In the shipper's spool.
        Spool = 2 => "spool",
        /// Between shipper and aggregator.
        Delivery = 3 => "delivery",
        /// In the aggregator's journal.
        Journal = 4 => "journal",
        /// In a sink.
        Sink = 5 => "sink",
    }
}

values! {
    /// Why events were lost.
    LossReason {
        /// The disk budget was spent.
        Budget = 1 => "budget",
        /// The node restarted with counters not yet drained; `count` is null.
        Reboot = 2 => "reboot",
        /// A damaged file: torn, truncated or with flipped bits.
        Corrupt = 3 => "corrupt",
        /// The shipper was bound to another aggregator by command: events may be doubled, none is known lost.
        Rebind = 4 => "rebind",
        /// A bounded kernel map was full: `count` is how often a socket, flow or cgroup could not be noted. Their packets
        /// are counted, without owner, opening or path.
        MapFull = 5 => "map_full",
        /// The sink refused the event.
        Rejected = 6 => "rejected",
        /// The sink was passed over, to keep the journal in its budget.
        Skipped = 7 => "skipped",
        /// The kernel's maps were removed or left with counters not yet drained; `count` is null.
        Unloaded = 8 => "unloaded",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_round_trip_and_zero_means_unset() {
        for value in EndReason::ALL {
            assert_eq!(EndReason::from_code(value.code()), Some(*value));
        }
        assert_eq!(EndReason::from_code(0), None);
        assert_eq!(Reporter::from_code(99), None);
    }
}
