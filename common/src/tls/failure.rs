//! What a handshake that failed means: one name each for logs and metrics, and what to do about it.

use std::io;

use rustls::{AlertDescription, CertificateError, Error, PeerIncompatible};

/// Why there is no connection. The first seven are about the other side's certificate, the next about ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
pub enum Failure {
    /// Its time is over.
    #[error("the other side's certificate has expired")]
    Expired,
    /// Its time has not begun.
    #[error("the other side's certificate is not valid yet: compare the clocks")]
    NotYetValid,
    /// Signed by somebody else.
    #[error("the other side's certificate is not from an authority in tls.ca")]
    UnknownCa,
    /// Not for the name that was dialled.
    #[error("the other side's certificate is for another name than the one dialled: see tls.server_name")]
    WrongName,
    /// For servers, used by a client; or the other way round.
    #[error("the other side's certificate is not made for its role (extendedKeyUsage)")]
    WrongPurpose,
    /// It has none.
    #[error("the other side has no certificate")]
    NoCertificate,
    /// Anything else about it.
    #[error("the other side's certificate cannot be used")]
    BadCertificate,
    /// The other side says so.
    #[error("the other side says that our certificate has expired or is not valid yet")]
    PeerExpired,
    /// The other side says so.
    #[error("the other side says that our certificate is not from an authority that it knows")]
    PeerUnknownCa,
    /// The other side says so.
    #[error("the other side wants a certificate from us")]
    PeerNoCertificate,
    /// The other side says so.
    #[error("the other side does not accept our certificate")]
    PeerBadCertificate,
    /// The other side gave up for another reason.
    #[error("the other side ended the handshake")]
    PeerAlert,
    /// Older TLS, or nothing in common.
    #[error("the other side does not speak TLS 1.3 as it is spoken here")]
    Version,
    /// Bytes of something else.
    #[error("the other side does not speak TLS")]
    NotTls,
    /// No end of the handshake in time.
    #[error("the handshake did not end in time")]
    Timeout,
    /// The connection ended before the handshake.
    #[error("the connection was closed during the handshake")]
    Closed,
    /// Anything else.
    #[error("the other side breaks the rules of TLS")]
    Protocol,
}

impl Failure {
    /// All of them, for metrics.
    pub const ALL: &'static [Self] = &[
        Self::Expired,
        Self::NotYetValid,
        Self::UnknownCa,
        Self::WrongName,
        Self::WrongPurpose,
        Self::NoCertificate,
        Self::BadCertificate,
        Self::PeerExpired,
        Self::PeerUnknownCa,
        Self::PeerNoCertificate,
        Self::PeerBadCertificate,
        Self::PeerAlert,
        Self::Version,
        Self::NotTls,
        Self::Timeout,
        Self::Closed,
        Self::Protocol,
    ];

    /// The label in metrics.
    pub fn label(self) -> &'static str {
        match self {
            Self::Expired => "tls_expired",
            Self::NotYetValid => "tls_not_yet_valid",
            Self::UnknownCa => "tls_unknown_ca",
            Self::WrongName => "tls_wrong_name",
            Self::WrongPurpose => "tls_wrong_purpose",
            Self::NoCertificate => "tls_no_certificate",
            Self::BadCertificate => "tls_bad_certificate",
            Self::PeerExpired => "tls_peer_says_expired",
            Self::PeerUnknownCa => "tls_peer_says_unknown_ca",
            Self::PeerNoCertificate => "tls_peer_says_no_certificate",
            Self::PeerBadCertificate => "tls_peer_says_bad_certificate",
            Self::PeerAlert => "tls_peer_alert",
            Self::Version => "tls_version",
            Self::NotTls => "tls_not_tls",
            Self::Timeout => "tls_timeout",
            Self::Closed => "tls_closed",
            Self::Protocol => "tls_protocol",
        }
    }

    /// Of an error of the TLS library.
    pub fn of(error: &Error) -> Self {
        match error {
            Error::InvalidCertificate(error) => Self::of_certificate(error),
            Error::NoCertificatesPresented => Self::NoCertificate,
            Error::AlertReceived(alert) => match alert {
                AlertDescription::CertificateExpired => Self::PeerExpired,
                AlertDescription::UnknownCA => Self::PeerUnknownCa,
                AlertDescription::CertificateRequired | AlertDescription::NoCertificate => {
                    Self::PeerNoCertificate
                }
                AlertDescription::BadCertificate
                | AlertDescription::UnsupportedCertificate
                | AlertDescription::CertificateRevoked
                | AlertDescription::CertificateUnknown
                | AlertDescription::AccessDenied
                | AlertDescription::DecryptError => Self::PeerBadCertificate,
                AlertDescription::ProtocolVersion
                | AlertDescription::HandshakeFailure
                | AlertDescription::NoApplicationProtocol => Self::Version,
                _ => Self::PeerAlert,
            },
            // With no version but 1.3 a missing list of versions, groups or signatures is a client of before.
            Error::PeerIncompatible(PeerIncompatible::NoCertificateRequestSignatureSchemesInCommon) => {
                Self::BadCertificate
            }
            Error::PeerIncompatible(_) | Error::NoApplicationProtocol => Self::Version,
            Error::InvalidMessage(_) => Self::NotTls,
            _ => Self::Protocol,
        }
    }

    /// Of a certificate's check.
    pub fn of_certificate(error: &CertificateError) -> Self {
        match error {
            CertificateError::Expired | CertificateError::ExpiredContext { .. } => Self::Expired,
            CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => Self::NotYetValid,
            // A bad signature is that of an authority which was made anew under its old name.
            CertificateError::UnknownIssuer | CertificateError::BadSignature => Self::UnknownCa,
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
                Self::WrongName
            }
            CertificateError::InvalidPurpose | CertificateError::InvalidPurposeContext { .. } => {
                Self::WrongPurpose
            }
            _ => Self::BadCertificate,
        }
    }

    /// Of an error of a connection, if TLS has a word in it.
    pub fn of_io(error: &io::Error) -> Option<Self> {
        let mut source = error.get_ref().map(|inner| inner as &(dyn std::error::Error + 'static));
        while let Some(inner) = source {
            if let Some(error) = inner.downcast_ref::<Error>() {
                return Some(Self::of(error));
            }
            source = match inner.downcast_ref::<io::Error>() {
                Some(inner) => inner.get_ref().map(|inner| inner as &(dyn std::error::Error + 'static)),
                None => inner.source(),
            };
        }
        None
    }

    /// The same of an error during the handshake, where the end of the connection has a meaning too.
    pub fn of_handshake(error: &io::Error) -> Self {
        Self::of_io(error).unwrap_or(match error.kind() {
            io::ErrorKind::TimedOut => Self::Timeout,
            _ => Self::Closed,
        })
    }
}
