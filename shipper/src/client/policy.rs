//! What to do when a stream ended: every reason decided on purpose, in one match.

use weir_common::tls::client::DialError;
use weir_common::tls::failure::Failure;
use weir_proto::v1::refusal::Reason;

use super::session::SessionError;

/// The answer to an end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Come back after the backoff.
    Retry,
    /// Only a person can help: say so, be not ready, and ask again now and then.
    Hold(&'static str),
    /// Give what waits to a new epoch, then come back.
    NewEpoch,
    /// This batch was refused; after some tries it becomes a loss.
    Rejected(u64),
}

/// Decides.
pub(super) fn verdict(error: &SessionError) -> Verdict {
    match error {
        SessionError::Refused { reason, number, .. } => match reason {
            Reason::ProtocolVersion => Verdict::Hold("upgrade the aggregator first, then the shippers"),
            Reason::SchemaVersion => {
                Verdict::Hold("upgrade the aggregator: it knows an older schema_version only")
            }
            // Its journal is the right one (else OTHER_JOURNAL) and has aged this epoch out.
            Reason::UnknownEpoch => Verdict::NewEpoch,
            Reason::OtherJournal => Verdict::Hold(REBIND),
            Reason::BadBatch if *number > 0 => Verdict::Rejected(*number),
            Reason::Identity => {
                Verdict::Hold("node or cluster name is not allowed there: see node and cluster")
            }
            // Ours or the aggregator's mistake: the next Hello and Welcome settle where things are. Superseded: by our
            // own newer connection, or by a second process with a copy of this spool. Draining: it comes back.
            Reason::Unspecified
            | Reason::Protocol
            | Reason::Gap
            | Reason::BadBatch
            | Reason::Superseded
            | Reason::Draining => Verdict::Retry,
        },
        SessionError::OtherJournal { .. } => Verdict::Hold(REBIND),
        SessionError::SameAs { .. } => {
            Verdict::Hold("name each aggregator once: see aggregator.addresses and aggregator.others")
        }
        SessionError::Limits { .. } => {
            Verdict::Hold("the aggregator takes smaller batches than the spool holds: raise its limit")
        }
        SessionError::Dial(DialError::Address { .. } | DialError::NotLoopback { .. }) => {
            Verdict::Hold("correct aggregator.addresses or aggregator.others")
        }
        SessionError::Dial(DialError::Tls { failure, .. }) | SessionError::Tls(failure) => tls(*failure),
        SessionError::Dial(DialError::Connect { .. } | DialError::Timeout { .. })
        | SessionError::Channel { .. }
        | SessionError::Status(_)
        | SessionError::Timeout { .. }
        | SessionError::Closed
        | SessionError::Unexpected { .. }
        | SessionError::NotSent(_)
        | SessionError::Outbox(_)
        | SessionError::Reader => Verdict::Retry,
    }
}

fn tls(failure: Failure) -> Verdict {
    match failure {
        Failure::Expired
        | Failure::NotYetValid
        | Failure::UnknownCa
        | Failure::WrongName
        | Failure::WrongPurpose
        | Failure::BadCertificate => Verdict::Hold("correct the aggregator's certificate, or tls.ca here"),
        Failure::PeerExpired
        | Failure::PeerUnknownCa
        | Failure::PeerNoCertificate
        | Failure::PeerBadCertificate => {
            Verdict::Hold("correct tls.certificate here, or tls.ca of the aggregator")
        }
        Failure::Version | Failure::NotTls => {
            Verdict::Hold("this is no aggregator that speaks TLS: see tls.mode on both sides")
        }
        Failure::NoCertificate
        | Failure::PeerAlert
        | Failure::Timeout
        | Failure::Closed
        | Failure::Protocol => Verdict::Retry,
    }
}

const REBIND: &str =
    "the journal is not the one that batches went to: if that one is lost, run `weir-shipper rebind`";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refused_batch_is_named_and_a_foreign_journal_needs_a_person() {
        let refused = |reason, number| SessionError::Refused { reason, message: String::new(), number };
        assert_eq!(verdict(&refused(Reason::BadBatch, 4)), Verdict::Rejected(4));
        assert_eq!(verdict(&refused(Reason::BadBatch, 0)), Verdict::Retry);
        assert_eq!(verdict(&refused(Reason::OtherJournal, 0)), Verdict::Hold(REBIND));
        assert_eq!(verdict(&refused(Reason::UnknownEpoch, 0)), Verdict::NewEpoch);
    }
}
