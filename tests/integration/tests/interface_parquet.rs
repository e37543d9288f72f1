//! Both vantages through the whole pipeline: the interface's records are in the files, exact, and no byte of them is in a
//! sum over `primary`.

use weir_integration_tests::pipeline::{Pipeline, Programs};
use weir_integration_tests::scene::Scene;

const PROGRAMS: Programs = Programs {
    traffic: env!("CARGO_BIN_EXE_traffic"),
    shipper: env!("CARGO_BIN_EXE_sut_shipper"),
    aggregator: env!("CARGO_BIN_EXE_sut_aggregator"),
};

#[test]
fn no_byte_of_an_interface_is_added_to_the_primary_sums() {
    let Some(mut pipeline) = Pipeline::at_links(PROGRAMS, Scene::forwarded_in_vxlan) else { return };
    pipeline.run("serve-tcp 10.8.0.2:80 2", "connect-tcp 10.8.0.2:80 100 20000 40000 4");
    pipeline.finish();
    // The sums over `primary`, over the sources' and over the destinations' reports are those of the sockets alone.
    pipeline.assert_exact("tcp", "VXLAN, both vantages", 100, &["10.8.0.1", "10.8.0.2"]);
    let primary = pipeline.sums("tcp", "\"primary\"");
    let router = pipeline.scene.router.as_ref().unwrap();
    for device in [&router.inside, &router.outside] {
        let link = format!("vantage = 'interface' AND interface = '{}/{device}'", router.host.name());
        assert_eq!(pipeline.sums("tcp", &link), primary, "what passed {device} is what the sockets saw");
        let tunnel = "tunnel_type = 'vxlan' AND tunnel_id = 7 AND tunnel_src_ip = '10.9.1.1' AND tunnel_dst_ip = '10.9.2.2'";
        assert_eq!(pipeline.sums("tcp", &format!("{link} AND {tunnel} AND src_ip = '10.8.0.1'")), primary);
    }
    let never = pipeline.sums("tcp", "\"primary\" AND (vantage = 'interface' OR reporter = 'transit')");
    assert_eq!((never.src.packets, never.dst.packets, never.opened), (0, 0, 0));
    let sockets = pipeline.sums("tcp", "vantage = 'socket' AND interface IS NULL AND tunnel_type IS NULL");
    assert_eq!(sockets.opened, 200, "both ends report");
}
