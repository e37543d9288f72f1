//! `weir-shipper unload`: the capture leaves the kernel, and what it had counted does not get lost, though no shipper was
//! there to drain it. What is lost on demand is said.

use std::process::Output;

use weir_integration_tests::pipeline::{Pipeline, Programs};
use weir_integration_tests::scene::Scene;

const PROGRAMS: Programs = Programs {
    traffic: env!("CARGO_BIN_EXE_traffic"),
    shipper: env!("CARGO_BIN_EXE_sut_shipper"),
    aggregator: env!("CARGO_BIN_EXE_sut_aggregator"),
};
const SERVE: &str = "serve-tcp 10.9.0.2:80 1";

/// `weir-shipper unload …`, as the pipeline's shipper is configured.
fn unload(pipeline: &Pipeline, more: &[&str]) -> Output {
    let output = pipeline.shipper.command().arg("unload").args(more).output();
    output.unwrap_or_else(|error| panic!("run weir-shipper unload: {error}"))
}

fn text(output: &Output) -> String {
    let Output { stdout, stderr, status } = output;
    format!("{status}\n{}{}", String::from_utf8_lossy(stdout), String::from_utf8_lossy(stderr))
}

#[test]
fn what_nobody_drained_is_in_the_spool_and_the_next_shipper_sends_it() {
    let Some(mut pipeline) = Pipeline::new(PROGRAMS, || Scene::linked(false)) else { return };
    pipeline.run(SERVE, "connect-tcp 10.9.0.2:80 20 5000 20000 2");
    let refused = unload(&pipeline, &[]);
    assert_eq!(refused.status.code(), Some(1), "a shipper runs: {}", text(&refused));

    pipeline.shipping.kill_9();
    pipeline.run(SERVE, "connect-tcp 10.9.0.2:80 30 5000 20000 2");
    let elsewhere = unload(&pipeline, &["--spool", "/nonexistent/spool"]);
    assert_eq!(elsewhere.status.code(), Some(1), "{}", text(&elsewhere));
    assert!(text(&elsewhere).contains("/nonexistent/spool is not there"), "{}", text(&elsewhere));
    assert!(pipeline.shipper.pins.exists(), "a refusal removes nothing");

    let unloaded = unload(&pipeline, &[]);
    assert!(
        unloaded.status.success() && text(&unloaded).contains("the spool has what they counted last"),
        "{}",
        text(&unloaded)
    );
    assert!(!pipeline.shipper.pins.exists(), "{}", text(&unloaded));
    let again = unload(&pipeline, &[]);
    assert!(again.status.success() && text(&again).contains("nothing is pinned"), "{}", text(&again));

    pipeline.shipping = pipeline.shipper.start(None);
    pipeline.run(SERVE, "connect-tcp 10.9.0.2:80 10 5000 20000 2");
    pipeline.finish();
    pipeline.assert_exact("tcp", "unloaded between two shippers", 60, &["10.9.0.1", "10.9.0.2"]);
}

#[test]
fn a_shipper_unloads_as_it_ends_when_it_is_told_to() {
    let Some(mut pipeline) = Pipeline::new(PROGRAMS, || Scene::linked(false)) else { return };
    pipeline.run(SERVE, "connect-tcp 10.9.0.2:80 20 5000 20000 2");
    pipeline.shipping.terminate();
    pipeline.shipping.wait_success();
    assert!(pipeline.shipper.pins.exists(), "the default is to count on");

    pipeline.shipper.set = vec!["capture.unload_on_exit=true".to_owned(), "capture.interval=1h".to_owned()];
    for _ in 0..2 {
        pipeline.shipping = pipeline.shipper.start(None);
        pipeline.run(SERVE, "connect-tcp 10.9.0.2:80 20 5000 20000 2");
        pipeline.shipping.terminate();
        pipeline.shipping.wait_success();
        assert!(!pipeline.shipper.pins.exists(), "{}", pipeline.shipping.log_tail());
    }
    pipeline.finish();
    pipeline.assert_exact("tcp", "unloaded at the end", 60, &["10.9.0.1", "10.9.0.2"]);
}

#[test]
fn killed_while_it_unloads_a_shipper_loses_no_byte() {
    let Some(mut pipeline) = Pipeline::new(PROGRAMS, || Scene::linked(false)) else { return };
    pipeline.shipping.terminate();
    pipeline.shipping.wait_success();
    pipeline.shipper.set = vec!["capture.unload_on_exit=true".to_owned(), "capture.interval=1h".to_owned()];
    for point in ["capture.detached", "capture.drained", "capture.unloaded"] {
        pipeline.shipping = pipeline.shipper.start(Some(&format!("{point}:1")));
        pipeline.run(SERVE, "connect-tcp 10.9.0.2:80 20 5000 20000 2");
        pipeline.shipping.terminate();
        pipeline.shipping.wait_killed();
    }
    pipeline.shipping = pipeline.shipper.start(None);
    pipeline.run(SERVE, "connect-tcp 10.9.0.2:80 20 5000 20000 2");
    pipeline.finish();
    // The last point alone: everything is there, but nothing said so.
    let losses = pipeline.losses();
    assert_eq!(losses.len(), 1, "{losses:?}");
    assert_eq!((&losses[0]["reason"], &losses[0]["count"]), (&"unloaded".into(), &serde_json::Value::Null));
    pipeline.assert_sums("tcp", "killed while unloading", 80, &["10.9.0.1", "10.9.0.2"]);
}

#[test]
fn what_is_discarded_is_a_loss_row() {
    let Some(mut pipeline) = Pipeline::new(PROGRAMS, || Scene::linked(false)) else { return };
    pipeline.run(SERVE, "connect-tcp 10.9.0.2:80 5 100 100 1");
    pipeline.shipping.terminate();
    pipeline.shipping.wait_success();
    let discarded = unload(&pipeline, &["--discard"]);
    assert!(discarded.status.success() && text(&discarded).contains("is lost"), "{}", text(&discarded));
    assert!(!pipeline.shipper.pins.exists());
    pipeline.shipping = pipeline.shipper.start(None);
    pipeline.finish();
    let losses = pipeline.losses();
    assert_eq!(losses.len(), 1, "{losses:?}");
    assert_eq!((&losses[0]["stage"], &losses[0]["reason"]), (&"capture".into(), &"unloaded".into()));
    assert!(losses[0]["count"].is_null(), "nobody can know how much it was: {losses:?}");
}
