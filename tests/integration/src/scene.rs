//! Two pods, what lies between them, and nftables counters to judge by: what tests of exact bytes share. Who captures
//! is the test's own affair.

use std::{collections::HashSet, fs, sync::Arc};

use crate::{
    net::{Bytes, Cgroup, Namespace, offloads_off, veth},
    traffic::Traffic,
};

/// Two pods on two hosts, whose packets are counted where they leave and where they arrive.
#[derive(Debug)]
pub struct Scene {
    /// The client's host.
    pub client: Arc<Namespace>,
    /// The server's; of a pod that speaks to itself, the client's too.
    pub server: Arc<Namespace>,
    /// The client's pod.
    pub client_pod: Arc<Cgroup>,
    /// The server's.
    pub server_pod: Arc<Cgroup>,
    /// Between the two, if anything is.
    _router: Option<Namespace>,
    /// Above both pods: what is to be captured. Goes after everything in it.
    pub pods: Cgroup,
}

impl Scene {
    /// The hosts' first packets are counted from here on.
    fn new(client: Arc<Namespace>, server: Arc<Namespace>, router: Option<Namespace>) -> Self {
        let pods = Cgroup::new();
        let client_pod = Arc::new(pods.child("client"));
        let one_pod = Arc::ptr_eq(&client, &server);
        let server_pod = if one_pod { Arc::clone(&client_pod) } else { Arc::new(pods.child("server")) };
        client.count();
        if !one_pod {
            server.count();
        }
        Self { client, server, client_pod, server_pod, _router: router, pods }
    }

    /// 10.9.0.1 and fd09::1 on one link with 10.9.0.2 and fd09::2, segmentation on or off.
    pub fn linked(offloads: bool) -> Self {
        let (client, server) = (Namespace::new(), Namespace::new());
        let (a, b) = veth(&client, &["10.9.0.1/24", "fd09::1/64"], &server, &["10.9.0.2/24", "fd09::2/64"]);
        if !offloads {
            offloads_off(&client, &a);
            offloads_off(&server, &b);
        }
        Self::new(Arc::new(client), Arc::new(server), None)
    }

    /// 10.9.1.1 and 10.9.2.2 with a router between them. It has 10.9.2.1, and the server sees nobody else.
    pub fn behind_snat() -> Self {
        Self::routed("chain post { type nat hook postrouting priority 100; oifname outside masquerade\n}")
    }

    /// As there, but the router translates 10.9.1.254:8080 to 10.9.2.2:80.
    pub fn behind_dnat() -> Self {
        Self::routed(
            "chain pre { type nat hook prerouting priority -100; ip daddr 10.9.1.254 tcp dport 8080 dnat ip to 10.9.2.2:80\n}",
        )
    }

    fn routed(nat: &str) -> Self {
        let (client, router, server) = (Namespace::new(), Namespace::new(), Namespace::new());
        let (a, inside) = veth(&client, &["10.9.1.1/24"], &router, &["10.9.1.254/24"]);
        let (outside, b) = veth(&router, &["10.9.2.1/24"], &server, &["10.9.2.2/24"]);
        for (host, device) in [(&client, &a), (&router, &inside), (&router, &outside), (&server, &b)] {
            offloads_off(host, device);
        }
        client.ip("route add default via 10.9.1.254");
        server.ip("route add default via 10.9.2.1");
        router.nft(&format!("table ip nat {{\n{}\n}}\n", nat.replace("outside", &outside)));
        Self::new(Arc::new(client), Arc::new(server), Some(router))
    }

    /// As [`Scene::linked`]; the client's own host translates 10.96.0.1:443 to 10.9.0.2:80.
    pub fn translated_by_the_client() -> Self {
        let scene = Self::linked(false);
        scene.client.ip("route add default via 10.9.0.2");
        scene.client.nft(
            "table ip nat {\nchain o { type nat hook output priority -100; ip daddr 10.96.0.1 tcp dport 443 dnat ip to 10.9.0.2:80\n}\n}\n",
        );
        scene
    }

    /// 10.8.0.1 and 10.8.0.2 in a VXLAN between 10.9.0.1 and 10.9.0.2.
    pub fn in_vxlan() -> Self {
        let (client, server) = (Namespace::new(), Namespace::new());
        let (a, b) = veth(&client, &["10.9.0.1/24"], &server, &["10.9.0.2/24"]);
        for (host, device, peer, inner) in
            [(&client, &a, "10.9.0.2", "10.8.0.1/24"), (&server, &b, "10.9.0.1", "10.8.0.2/24")]
        {
            offloads_off(host, device);
            host.ip(&format!("link add vx type vxlan id 7 remote {peer} dstport 4789 dev {device}"));
            host.ip(&format!("addr add {inner} dev vx"));
            host.ip("link set vx up");
            offloads_off(host, "vx");
        }
        Self::new(Arc::new(client), Arc::new(server), None)
    }

    /// One pod that speaks to itself on 127.0.0.1.
    pub fn one_pod() -> Self {
        let host = Namespace::new();
        offloads_off(&host, "lo");
        let host = Arc::new(host);
        Self::new(Arc::clone(&host), host, None)
    }

    /// Starts a server in its pod, and returns when it listens.
    #[track_caller]
    pub fn serve(&self, program: &str, arguments: &str) -> Traffic {
        Traffic::server(program, &self.server_pod, &self.server, arguments)
    }

    /// Starts a client in its pod.
    #[track_caller]
    pub fn connect(&self, program: &str, arguments: &str) -> Traffic {
        Traffic::start(program, &self.client_pod, &self.client, arguments)
    }

    /// What the client sent and what the server sent, of a protocol (`tcp`, `udp`, …), by nftables. Each direction is
    /// judged where it arrives: at the sender's own hooks TCP's packets are not segmented yet, whatever the device can
    /// do. On loopback, where both are one, the sum of both stands in the first.
    #[track_caller]
    pub fn wire(&self, protocol: &str) -> (Bytes, Bytes) {
        let arrived = |host: &Namespace| host.counted(&format!("{protocol}_in"));
        if Arc::ptr_eq(&self.client, &self.server) {
            return (arrived(&self.client), Bytes::default());
        }
        (arrived(&self.server), arrived(&self.client))
    }
}

/// A process and its children.
///
/// # Panics
/// When it is gone.
pub fn family(pid: u32) -> HashSet<u32> {
    let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).expect("read children");
    children.split_whitespace().map(|child| child.parse().expect("a pid")).chain([pid]).collect()
}
