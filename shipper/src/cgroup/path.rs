//! Container id and pod UID from a cgroup's path. A pure function over foreign text: any input gives an answer.
//!
//! Shapes: kubelet with the cgroupfs and systemd drivers; containerd, CRI-O, Docker, Podman; cgroup v1 and v2.

/// What a path says. Empty strings stand for what it does not say.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CgroupIdentity {
    /// 64 hexadecimal digits.
    pub container_id: String,
    /// The pod's UID with dashes; 32 digits without for a static pod.
    pub pod_uid: String,
}

/// Reads a cgroup path, absolute in its hierarchy, such as a line of `/proc/self/cgroup` ends with.
///
/// With several pods in a path (a cluster inside a pod) the outermost counts: it is the one that this node's API
/// server knows. Its container is the first one below it. Without a pod the innermost container counts.
pub fn parse_cgroup_path(path: &str) -> CgroupIdentity {
    let mut identity = CgroupIdentity::default();
    // containerd's systemd form on v1 puts slice, prefix and id into one name, with colons.
    for name in path.split(['/', ':']) {
        if identity.pod_uid.is_empty() {
            if let Some(uid) = pod_uid(name) {
                identity.pod_uid = uid;
                identity.container_id.clear();
                continue;
            }
        } else if !identity.container_id.is_empty() {
            break;
        }
        if let Some(id) = container_id(name) {
            identity.container_id = id.to_owned();
        }
    }
    identity
}

/// `pod<uid>`, `kubepods-burstable-pod<uid with underscores>.slice`.
fn pod_uid(name: &str) -> Option<String> {
    let name = name.strip_suffix(".slice").unwrap_or(name);
    let at = name.rfind("pod")?;
    let (before, uid) = (&name[..at], &name[at + 3..]);
    if !(before.is_empty() || before.ends_with('-')) {
        return None;
    }
    let bytes = uid.as_bytes();
    let dashed = bytes.len() == 36
        && bytes.iter().enumerate().all(|(index, byte)| match index {
            8 | 13 | 18 | 23 => matches!(byte, b'-' | b'_'),
            _ => is_hex(*byte),
        });
    let plain = bytes.len() == 32 && bytes.iter().all(|byte| is_hex(*byte));
    (dashed || plain).then(|| uid.replace('_', "-"))
}

/// `<id>`, `cri-containerd-<id>.scope`, `crio-<id>`, `docker-<id>.scope`, `libpod-<id>.scope`. Not `crio-conmon-<id>`:
/// that is the container's monitor, on the host.
fn container_id(name: &str) -> Option<&str> {
    let name = name.strip_suffix(".scope").unwrap_or(name);
    let (prefix, id) = name.rsplit_once('-').unwrap_or(("", name));
    let wanted = id.len() == 64 && id.bytes().all(is_hex) && !prefix.ends_with("conmon");
    wanted.then_some(id)
}

fn is_hex(byte: u8) -> bool {
    matches!(byte, b'0'..=b'9' | b'a'..=b'f')
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const ID: &str = "0fb3a7d3c1b2a49e8d7c6b5a493827160fb3a7d3c1b2a49e8d7c6b5a49382716";
    const OTHER: &str = "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaabbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb";
    const UID: &str = "8f9ed1d7-3c2e-4d6b-9a52-6e0f1c2d3e4f";

    fn check(path: &str, container: &str, pod: &str) {
        let path = path.replace("UID_", &UID.replace('-', "_")).replace("UID", UID);
        let path = path.replace("OTHER", OTHER).replace("ID", ID);
        let wanted = CgroupIdentity { container_id: container.to_owned(), pod_uid: pod.to_owned() };
        assert_eq!(parse_cgroup_path(&path), wanted, "{path}");
    }

    #[test]
    fn paths_of_the_field() {
        // cgroupfs driver: burstable, guaranteed, CRI-O
        check("/kubepods/burstable/podUID/OTHER", OTHER, UID);
        check("/kubepods/podUID/OTHER", OTHER, UID);
        check("/kubepods/besteffort/podUID/crio-OTHER", OTHER, UID);
        // systemd driver: containerd, CRI-O, cri-dockerd, and a service inside the container
        check(
            "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-podUID_.slice/cri-containerd-OTHER.scope",
            OTHER,
            UID,
        );
        check("/kubepods.slice/kubepods-podUID_.slice/crio-OTHER.scope/container", OTHER, UID);
        check("/kubepods.slice/kubepods-podUID_.slice/crio-conmon-OTHER.scope", "", UID);
        check(
            "/kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-podUID_.slice/docker-OTHER.scope",
            OTHER,
            UID,
        );
        // containerd without a systemd cgroup on v1
        check(
            "/system.slice/containerd.service/kubepods-burstable-podUID_.slice:cri-containerd:OTHER",
            OTHER,
            UID,
        );
        // kind: the node is a container, its pods are below it
        check(
            "/docker/OTHER/kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-podUID_.slice/cri-containerd-ID.scope",
            ID,
            UID,
        );
        // Docker in a pod: the pod's container, not the one inside it
        check("/kubepods/burstable/podUID/ID/docker/OTHER", ID, UID);
        // no Kubernetes
        check("/system.slice/docker-OTHER.scope", OTHER, "");
        check("/docker/OTHER", OTHER, "");
        check("/machine.slice/libpod-OTHER.scope/container", OTHER, "");
        check("/user.slice/user-1000.slice/session-3.scope", "", "");
        check("/", "", "");
        check("", "", "");
    }

    #[test]
    fn a_static_pod_has_a_hash_for_a_uid() {
        let hash = "8bbd5ae8b8ee6ccc9b0f9e5e7c2a2c3d";
        check(&format!("/kubepods/burstable/pod{hash}/OTHER"), OTHER, hash);
    }

    #[test]
    fn near_misses_are_nothing() {
        check("/kubepods/burstable/podcast", "", "");
        check("/kubepods/tripod8f9ed1d7-3c2e-4d6b-9a52-6e0f1c2d3e4f", "", "");
        check("/kubepods/podé8f9ed1d7-3c2e-4d6b-9a52-6e0f1c2d3e4", "", "");
        check(&format!("/docker/{}", &OTHER[1..]), "", "");
        check(&format!("/docker/{}g", &OTHER[1..]), "", "");
    }

    proptest! {
        #[test]
        fn any_text_gives_an_answer_made_of_its_own_parts(path in ".*") {
            let CgroupIdentity { container_id, pod_uid } = parse_cgroup_path(&path);
            prop_assert!(path.contains(&container_id));
            prop_assert!(container_id.is_empty() || container_id.len() == 64);
            prop_assert!(matches!(pod_uid.len(), 0 | 32 | 36));
            prop_assert!(path.replace('_', "-").contains(&pod_uid));
        }

        #[test]
        fn ids_are_found_between_any_neighbours(before in "[a-z./]{0,20}", id in "[0-9a-f]{64}", after in "/[a-z.]{0,20}") {
            let found = parse_cgroup_path(&format!("{before}/docker-{id}.scope{after}"));
            prop_assert_eq!(found.container_id, id);
        }
    }
}
