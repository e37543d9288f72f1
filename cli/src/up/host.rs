//! What this host's addresses are: they decide which reports are `primary`.
//!
//! A conversation counts once: by its source's report where the source's sockets are on this host, else by the
//! destination's. So this lists the host's own addresses, and the networks behind its bridges and veth pairs, whose
//! containers share this kernel. A bridge with a tap is a virtual machine's, whose sockets are in another kernel.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::process::{Command, Stdio};

use anyhow::Context;
use ipnet::IpNet;
use serde_json::Value;

/// Address blocks, CIDR notation, sorted.
pub(super) fn local_networks() -> anyhow::Result<Vec<String>> {
    let addresses = ip(&["-details", "-json", "address", "show"])?;
    // A host without IPv6 has no such routes.
    let routes: Vec<Value> = ["-4", "-6"]
        .iter()
        .filter_map(|family| ip(&[family, "-json", "route", "show", "default"]).ok())
        .flat_map(|routes| routes.as_array().cloned().unwrap_or_default())
        .collect();
    Ok(networks(&addresses, &routes).into_iter().map(|network| network.to_string()).collect())
}

/// The name of this host.
pub(super) fn name() -> String {
    rustix::system::uname().nodename().to_string_lossy().into_owned()
}

fn networks(addresses: &Value, default_routes: &[Value]) -> BTreeSet<IpNet> {
    let uplinks: BTreeSet<&str> = default_routes.iter().filter_map(|route| route["dev"].as_str()).collect();
    let links = addresses.as_array().map(Vec::as_slice).unwrap_or_default();
    let of_machines: BTreeSet<&str> =
        links.iter().filter(|link| kind(link) == "tun").filter_map(|link| link["master"].as_str()).collect();
    let mut networks = BTreeSet::new();
    for link in links {
        let name = link["ifname"].as_str().unwrap_or_default();
        let of_containers =
            matches!(kind(link), "bridge" | "veth") && !uplinks.contains(name) && !of_machines.contains(name);
        for address in link["addr_info"].as_array().into_iter().flatten() {
            let Some(local) = address["local"].as_str().and_then(|local| local.parse::<IpAddr>().ok()) else {
                continue;
            };
            networks.insert(IpNet::from(local));
            let length = address["prefixlen"].as_u64().and_then(|length| u8::try_from(length).ok());
            // fe80::/10 is on every link, so it says nothing about where an address is.
            let link_local = matches!(local, IpAddr::V6(v6) if v6.is_unicast_link_local());
            if let Some(Ok(network)) =
                length.filter(|_| of_containers && !link_local).map(|length| IpNet::new(local, length))
            {
                networks.insert(network.trunc());
            }
        }
    }
    networks
}

/// `bridge`, `veth`, `tun`, …; empty for hardware.
fn kind(link: &Value) -> &str {
    link["linkinfo"]["info_kind"].as_str().unwrap_or_default()
}

fn ip(arguments: &[&str]) -> anyhow::Result<Value> {
    let output = Command::new("ip")
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .context("start ip, which Debian's package iproute2 has")?;
    let words = String::from_utf8_lossy(&output.stderr);
    anyhow::ensure!(output.status.success(), "ip {}: {}", arguments.join(" "), words.trim());
    serde_json::from_slice(&output.stdout)
        .with_context(|| format!("read the answer of ip {}", arguments.join(" ")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn container_networks_are_local_and_those_of_machines_and_uplinks_are_not() {
        let link = |name: &str, kind: &str, master: &str, local: &str, length: u8| {
            serde_json::json!({
                "ifname": name, "master": master, "linkinfo": {"info_kind": kind},
                "addr_info": [{"family": "inet", "local": local, "prefixlen": length}],
            })
        };
        let addresses = serde_json::json!([
            link("lo", "", "", "127.0.0.1", 8),
            link("eth0", "", "", "10.1.2.3", 24),
            link("docker0", "bridge", "", "172.17.0.1", 16),
            link("virbr0", "bridge", "", "192.168.122.1", 24),
            {"ifname": "vnet0", "master": "virbr0", "linkinfo": {"info_kind": "tun"}, "addr_info": []},
            link("br0", "bridge", "", "10.9.0.5", 24),
            link("veth1", "veth", "", "fe80::1", 64),
        ]);
        let routes = [serde_json::json!({"dst": "default", "dev": "br0"})];
        let texts: Vec<String> = networks(&addresses, &routes).iter().map(ToString::to_string).collect();
        assert_eq!(
            texts,
            [
                "10.1.2.3/32",
                "10.9.0.5/32",
                "127.0.0.1/32",
                "172.17.0.0/16",
                "172.17.0.1/32",
                "192.168.122.1/32",
                "fe80::1/128"
            ]
        );
    }
}
