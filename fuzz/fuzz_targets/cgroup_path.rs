//! Any text as a cgroup's path: ids of the right length and letters that stand in the path, or none.
#![no_main]

use libfuzzer_sys::fuzz_target;
use weir_shipper::cgroup::parse_cgroup_path;

fuzz_target!(|path: &str| {
    let identity = parse_cgroup_path(path);
    let hex = |text: &str| text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));

    let container = &identity.container_id;
    assert!(matches!(container.len(), 0 | 64) && hex(container) && path.contains(container));

    let pod = &identity.pod_uid;
    match pod.len() {
        0 | 32 => assert!(hex(pod)),
        36 => {
            let parts: Vec<&str> = pod.split('-').collect();
            assert!(parts.iter().all(|part| hex(part)));
            assert_eq!(parts.iter().map(|part| part.len()).collect::<Vec<_>>(), [8, 4, 4, 4, 12]);
        }
        length => panic!("a pod UID of {length} bytes"),
    }
    assert!(path.replace('_', "-").contains(pod));
});
