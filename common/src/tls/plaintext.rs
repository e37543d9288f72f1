//! Which addresses may go without TLS: this host's own, unless the configuration asks for more by name.

use std::net::IpAddr;

/// Whether `host:port` cannot leave this host. A name but `localhost` may lead anywhere.
pub fn is_loopback(address: &str) -> bool {
    let Some((host, _)) = address.rsplit_once(':') else { return false };
    let host = host.trim_start_matches('[').trim_end_matches(']');
    host == "localhost" || host.parse().is_ok_and(is_loopback_ip)
}

/// The same of an address.
pub fn is_loopback_ip(address: IpAddr) -> bool {
    address.to_canonical().is_loopback()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_this_host_is_this_host() {
        for own in ["127.0.0.1:1", "127.9.9.9:1", "[::1]:1", "localhost:1", "[::ffff:127.0.0.1]:1"] {
            assert!(is_loopback(own), "{own}");
        }
        for other in ["0.0.0.0:1", "[::]:1", "10.0.0.1:1", "weir:1", "localhost.example:1", "127.0.0.1", ""] {
            assert!(!is_loopback(other), "{other}");
        }
    }
}
