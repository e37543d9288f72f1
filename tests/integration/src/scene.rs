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
    pub router: Option<Router>,
    /// Above both pods: what is to be captured. Goes after everything in it.
    pub pods: Cgroup,
}

/// What lies between two pods.
#[derive(Debug)]
pub struct Router {
    /// Its namespace.
    pub host: Namespace,
    /// Its device on the client's side.
    pub inside: String,
    /// Its device on the server's side.
    pub outside: String,
}

impl Scene {
    /// The hosts' first packets are counted from here on.
    fn new(client: Arc<Namespace>, server: Arc<Namespace>, router: Option<Router>) -> Self {
        let pods = Cgroup::new();
        let client_pod = Arc::new(pods.child("client"));
        let one_pod = Arc::ptr_eq(&client, &server);
        let server_pod = if one_pod { Arc::clone(&client_pod) } else { Arc::new(pods.child("server")) };
        client.count();
        if !one_pod {
            server.count();
        }
        Self { client, server, client_pod, server_pod, router, pods }
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

    /// 10.9.1.1 and 10.9.2.2 (fd09:1::1 and fd09:2::2) with a router between them that changes nothing.
    pub fn forwarded() -> Self {
        let scene = Self::routed("");
        let Some(Router { host, inside, outside }) = &scene.router else { unreachable!("it is routed") };
        for (host, device, address) in [
            (&*scene.client, scene.device(&scene.client), "fd09:1::1/64"),
            (host, inside.clone(), "fd09:1::fe/64"),
            (host, outside.clone(), "fd09:2::fe/64"),
            (&*scene.server, scene.device(&scene.server), "fd09:2::2/64"),
        ] {
            host.ip(&format!("addr add {address} dev {device} nodad"));
        }
        scene.client.ip("-6 route add default via fd09:1::fe");
        scene.server.ip("-6 route add default via fd09:2::fe");
        scene
    }

    /// 10.9.0.1 and 10.9.0.2 on the two ports of a bridge.
    pub fn bridged() -> Self {
        let (client, bridge, server) = (Namespace::new(), Namespace::new(), Namespace::new());
        let (a, inside) = veth(&client, &["10.9.0.1/24"], &bridge, &[]);
        let (outside, b) = veth(&bridge, &[], &server, &["10.9.0.2/24"]);
        bridge.ip("link add br0 type bridge");
        bridge.ip("link set br0 up");
        for (host, device) in [(&client, &a), (&bridge, &inside), (&bridge, &outside), (&server, &b)] {
            offloads_off(host, device);
        }
        for port in [&inside, &outside] {
            bridge.ip(&format!("link set {port} master br0"));
        }
        Self::new(Arc::new(client), Arc::new(server), Some(Router { host: bridge, inside, outside }))
    }

    /// 10.8.0.1 and 10.8.0.2 in a VXLAN (VNI 7) between the ends of [`Scene::forwarded`].
    pub fn forwarded_in_vxlan() -> Self {
        let scene = Self::forwarded();
        for (host, peer, inner) in
            [(&scene.client, "10.9.2.2", "10.8.0.1/24"), (&scene.server, "10.9.1.1", "10.8.0.2/24")]
        {
            let device = scene.device(host);
            host.ip(&format!("link add vx type vxlan id 7 remote {peer} dstport 4789 dev {device}"));
            host.ip(&format!("addr add {inner} dev vx"));
            host.ip("link set vx up");
            offloads_off(host, "vx");
        }
        scene
    }

    /// The one veth device of a host.
    pub fn device(&self, host: &Namespace) -> String {
        let output = host.exec("ls /sys/class/net");
        let names = String::from_utf8_lossy(&output.stdout).into_owned();
        names.split_whitespace().find(|name| name.starts_with('w')).expect("the host has a veth").to_owned()
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
        router.nft(&format!("table ip nat {{\n{}\n}}\n", nat.replace("outside", &format!("\"{outside}\""))));
        Self::new(Arc::new(client), Arc::new(server), Some(Router { host: router, inside, outside }))
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
