//! Each way in which TLS between shipper and aggregator can fail has its own name, on both sides; and who may do what.
#![expect(clippy::unwrap_used, reason = "tests panic where they fail")]

use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tempfile::TempDir;
use tokio::io::AsyncReadExt as _;
use tokio_rustls::TlsConnector;
use weir::certs::{Authority, Pair};
use weir_common::tls::client::{DialError, Dialer};
use weir_common::tls::config::TlsConfig;
use weir_common::tls::failure::Failure;
use weir_integration_tests::certs::{self, Secret, expired, future, valid};
use weir_integration_tests::process::{Process, free_address, http_get, metric_sum, wait_for};
use weir_integration_tests::system::{Aggregator, Generator};

/// An aggregator with TLS.
struct Server {
    home: TempDir,
    authority: Authority,
    secret: Secret,
    aggregator: Aggregator,
    process: Process,
}

impl Server {
    fn start(pair: impl FnOnce(&Authority) -> Pair) -> Self {
        let home = tempfile::tempdir().unwrap();
        let authority = certs::authority();
        let secret = Secret::new(&home.path().join("server"), &pair(&authority), &[&authority]);
        let aggregator = Aggregator {
            program: env!("CARGO_BIN_EXE_sut_aggregator").into(),
            home: home.path().to_owned(),
            address: free_address(),
            admin: free_address(),
            set: secret.settings(),
        };
        let process = aggregator.start(None);
        let server = Self { home, authority, secret, aggregator, process };
        wait_for(
            "the aggregator to be up",
            || server.process.log_tail(),
            || http_get(server.aggregator.admin, "/healthz").is_ok(),
        );
        server
    }

    fn refused(&self, reason: &str) -> f64 {
        let labels = format!("reason=\"{reason}\"");
        metric(self.aggregator.admin, "weir_aggregator_connections_refused_total", &labels)
    }

    fn client(&self, pair: &Pair, authority: &Authority) -> Secret {
        let dir = tempfile::tempdir_in(self.home.path()).unwrap().keep();
        Secret::new(&dir, pair, &[authority])
    }

    fn generator(&self, name: &str, secret: &Secret) -> Generator {
        Generator {
            program: env!("CARGO_BIN_EXE_weir-gen").into(),
            home: self.home.path().join(name),
            aggregator: self.aggregator.address,
            admin: Some(free_address()),
            index: 0,
            events: 1000,
            interval_events: 100,
            rate: 0,
            stay: true,
            realistic: false,
            set: secret.settings(),
        }
    }

    fn end(mut self) {
        self.process.terminate();
        self.process.wait_success();
    }
}

fn metric(address: SocketAddr, name: &str, labels: &str) -> f64 {
    http_get(address, "/metrics").ok().and_then(|(_, text)| metric_sum(&text, name, labels)).unwrap_or(0.0)
}

/// Why a connection ends; `None` if it is served.
async fn refusal(secret: &Secret, address: SocketAddr, name: Option<&str>) -> Option<Failure> {
    let config = TlsConfig::Files { files: secret.files(), reload_interval: Duration::from_secs(60) };
    let name = name.map(|name| ServerName::try_from(name.to_owned()).unwrap());
    let dialer = Dialer::open(&config, name, |_| {}).unwrap();
    match dialer.dial(&address.to_string(), Duration::from_secs(10)).await {
        Err(DialError::Tls { failure, .. }) => Some(failure),
        Err(error) => panic!("{error}"),
        Ok(mut link) => {
            // A server that accepts speaks first: its SETTINGS.
            let failure = link.failure();
            let read = link.read_u8().await;
            assert_eq!(read.is_err(), failure.met().is_some(), "{read:?}");
            failure.met()
        }
    }
}

#[tokio::test]
async fn each_fault_of_a_clients_certificate_has_its_name_on_both_sides() {
    let server = Server::start(|authority| certs::server(authority, valid()));
    let own = &server.authority;
    let stranger = certs::authority();
    let good = certs::node(own, "n", valid());
    let address = server.aggregator.address;
    assert_eq!(refusal(&server.client(&good, own), address, None).await, None);
    assert_eq!(refusal(&server.client(&good, own), address, Some("weir.test")).await, None);
    for (what, pair, ours, theirs) in [
        ("expired", certs::node(own, "n", expired()), Failure::PeerExpired, Failure::Expired),
        ("future", certs::node(own, "n", future()), Failure::PeerExpired, Failure::NotYetValid),
        ("unknown", certs::node(&stranger, "n", valid()), Failure::PeerUnknownCa, Failure::UnknownCa),
        ("a server's", certs::server(own, valid()), Failure::PeerBadCertificate, Failure::WrongPurpose),
    ] {
        assert_eq!(refusal(&server.client(&pair, own), address, None).await, Some(ours), "{what}");
        assert_eq!(server.refused(theirs.label()), 1.0, "{what}");
        let log = server.process.log_tail();
        assert!(log.contains(theirs.label()) && log.contains(&theirs.to_string()), "{what}: {log}");
    }
    // Without a certificate.
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(own.certificate().as_bytes()).unwrap()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let stream = tokio::net::TcpStream::connect(address).await.unwrap();
    let name = ServerName::try_from("127.0.0.1").unwrap();
    let mut stream = TlsConnector::from(Arc::new(config)).connect(name, stream).await.unwrap();
    let error = stream.read_u8().await.unwrap_err();
    assert_eq!(Failure::of_io(&error), Some(Failure::PeerNoCertificate), "{error}");
    assert_eq!(server.refused("tls_no_certificate"), 1.0);
    server.end();
}

#[tokio::test]
async fn each_fault_of_a_servers_certificate_has_its_name_on_both_sides() {
    let mut server = Server::start(|authority| certs::server(authority, expired()));
    let stranger = certs::authority();
    let client = server.client(&certs::node(&server.authority, "node-0", valid()), &server.authority);
    let address = server.aggregator.address;
    // What a real shipper says of it.
    let generator = server.generator("expired", &client);
    let mut shipper = generator.start(None);
    let disconnects = |reason: &str| {
        metric(generator.admin.unwrap(), "weir_shipper_disconnects_total", &format!("reason=\"{reason}\""))
    };
    wait_for("the shipper to see it", || shipper.log_tail(), || disconnects("tls_expired") > 0.0);
    assert!(shipper.log_tail().contains("has expired"), "{}", shipper.log_tail());
    let (status, body) = http_get(generator.admin.unwrap(), "/readyz").unwrap();
    assert!(status == 503 && body.contains("certificate has expired"), "{status} {body}");
    assert!(server.refused("tls_peer_says_expired") > 0.0);

    let mut used = 0.0;
    for (what, pair, ca, name, ours, theirs) in [
        (
            "future",
            certs::server(&server.authority, future()),
            &server.authority,
            None,
            Failure::NotYetValid,
            Failure::PeerExpired,
        ),
        (
            "unknown",
            certs::server(&stranger, valid()),
            &server.authority,
            None,
            Failure::UnknownCa,
            Failure::PeerUnknownCa,
        ),
        (
            "another name",
            certs::server(&server.authority, valid()),
            &server.authority,
            Some("other.test"),
            Failure::WrongName,
            Failure::PeerBadCertificate,
        ),
        (
            "a client's",
            certs::node(&server.authority, "n", valid()),
            &server.authority,
            None,
            Failure::WrongPurpose,
            Failure::PeerBadCertificate,
        ),
    ] {
        server.secret.put(&pair, &[ca]);
        used += 1.0;
        let admin = server.aggregator.admin;
        let reloads = || metric(admin, "weir_aggregator_tls_reloads_total", "used");
        wait_for("the new certificate", || server.process.log_tail(), || reloads() == used);
        let before = server.refused(theirs.label());
        assert_eq!(refusal(&client, address, name).await, Some(ours), "{what}");
        wait_for(what, || server.process.log_tail(), || server.refused(theirs.label()) > before);
    }
    // The shipper has waited for this, with all its events.
    server.secret.put(&certs::server(&server.authority, valid()), &[&server.authority]);
    let journaled = || metric(generator.admin.unwrap(), "weir_shipper_journaled_events_total", "");
    wait_for("the shipper to be served", || shipper.log_tail(), || journaled() == 1000.0);
    shipper.terminate();
    shipper.wait_success();
    server.end();
}

#[test]
fn the_names_are_the_certificates() {
    let server = Server::start(|authority| certs::server(authority, valid()));
    // The generator says it is node-0 of default.
    for (what, pair) in [
        ("another", certs::node(&server.authority, "node-1", valid())),
        ("an-observer", certs::observer(&server.authority, valid())),
    ] {
        let secret = server.client(&pair, &server.authority);
        let generator = server.generator(what, &secret);
        let mut shipper = generator.start(None);
        let refused = || {
            metric(generator.admin.unwrap(), "weir_shipper_disconnects_total", "reason=\"REASON_IDENTITY\"")
        };
        wait_for(what, || shipper.log_tail(), || refused() > 0.0);
        assert!(shipper.log_tail().contains("the certificate is"), "{}", shipper.log_tail());
        shipper.kill_9();
    }
    let secret = server.client(&certs::node(&server.authority, "node-0", valid()), &server.authority);
    let generator = Generator { stay: false, ..server.generator("itself", &secret) };
    generator.start(None).wait_success();

    let observe = |pair: &Pair| {
        let files = server.client(pair, &server.authority).files();
        let mut command = Command::new(env!("CARGO_BIN_EXE_sut_weir"));
        command.args(["observe", "--output", "json", "--aggregator", &server.aggregator.address.to_string()]);
        for (flag, path) in
            [("--tls-certificate", &files.certificate), ("--tls-key", &files.key), ("--tls-ca", &files.ca)]
        {
            command.arg(flag).arg(path);
        }
        let output = command.output().unwrap();
        (
            output.status.success(),
            String::from_utf8_lossy(&output.stdout).into_owned(),
            String::from_utf8_lossy(&output.stderr).into_owned(),
        )
    };
    let (seen, stdout, stderr) = observe(&certs::observer(&server.authority, valid()));
    assert!(seen && stdout.lines().count() == 20, "{stdout}\n{stderr}");
    let (seen, _, stderr) = observe(&certs::node(&server.authority, "node-0", valid()));
    assert!(!seen && stderr.contains("it may send, not watch"), "{stderr}");
    let (seen, _, stderr) = observe(&certs::observer(&certs::authority(), valid()));
    assert!(!seen && stderr.contains("not from an authority that it knows"), "{stderr}");
    server.end();
}

#[test]
fn files_that_cannot_be_used_are_told_at_the_start() {
    let home = tempfile::tempdir().unwrap();
    let authority = certs::authority();
    let pair = certs::server(&authority, valid());
    let other = certs::server(&authority, valid());
    let start = |name: &str, secret: &Secret| {
        let dir = home.path().join(name);
        std::fs::create_dir_all(&dir).unwrap();
        let aggregator = Aggregator {
            program: env!("CARGO_BIN_EXE_sut_aggregator").into(),
            home: dir,
            address: free_address(),
            admin: free_address(),
            set: secret.settings(),
        };
        let mut process = aggregator.start(None);
        let status = process.wait();
        (status.code(), process.log_tail())
    };
    let secret = |name: &str| Secret::new(&home.path().join(format!("{name}-files")), &pair, &[&authority]);
    let mut mismatch = secret("mismatch");
    mismatch.put_raw(&pair.certificate, &other.key, authority.certificate());
    let mut garbage = secret("garbage");
    garbage.put_raw(&pair.certificate, &pair.key, "-----BEGIN CERTIFICATE-----\nAAAA\n");
    let mut swapped = secret("swapped");
    swapped.put_raw(&pair.key, &pair.certificate, authority.certificate());
    let mut missing = secret("missing");
    missing.put(&pair, &[&authority]);
    std::fs::remove_file(missing.files().key).unwrap();
    for (name, secret, words) in [
        ("mismatch", &mismatch, "the key (tls.key) does not belong to the certificate"),
        ("garbage", &garbage, "authorities (tls.ca) are not PEM"),
        ("swapped", &swapped, "no certificate is in the file of the certificate (tls.certificate)"),
        ("missing", &missing, "tls.key, the file of the key (tls.key): No such file"),
    ] {
        let (code, log) = start(name, secret);
        assert!(code == Some(1) && log.contains(words), "{name}: {code:?} {log}");
    }
    let plain = Command::new(env!("CARGO_BIN_EXE_sut_aggregator"))
        .args(["--check-config", "--set", "grpc.listen=0.0.0.0:0"])
        .output()
        .unwrap();
    assert_eq!(plain.status.code(), Some(64));
    let words = String::from_utf8_lossy(&plain.stderr).into_owned();
    assert!(words.contains("tls.mode: insecure-plaintext"), "{words}");
    assert!(Path::new(&home.path().join("mismatch")).exists());
}
