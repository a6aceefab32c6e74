//! Security contexts to what the runtime wants.

use std::path::Path;

use balsa_cri::{AppArmor, ContainerSecurity, Image, NamespaceMode, Namespaces, SeLinux, Seccomp};
use k8s_openapi::api::core::v1::{
    AppArmorProfile, Container, Pod, PodSpec, SELinuxOptions, SeccompProfile, SecurityContext,
};

/// Hidden from containers that are not privileged.
const MASKED: [&str; 11] = [
    "/proc/asound",
    "/proc/acpi",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/sys/firmware",
    "/sys/devices/virtual/powercap",
];

/// Read-only to containers that are not privileged.
const READONLY: [&str; 5] = [
    "/proc/bus",
    "/proc/fs",
    "/proc/irq",
    "/proc/sys",
    "/proc/sysrq-trigger",
];

/// Namespaces of the pod's sandbox.
pub(crate) fn sandbox_namespaces(spec: &PodSpec) -> Namespaces {
    let host = |wanted: Option<bool>, otherwise| {
        if wanted == Some(true) {
            NamespaceMode::Node
        } else {
            otherwise
        }
    };
    let pid = if spec.share_process_namespace == Some(true) {
        NamespaceMode::Pod
    } else {
        NamespaceMode::Container
    };
    Namespaces {
        network: host(spec.host_network, NamespaceMode::Pod),
        pid: host(spec.host_pid, pid),
        ipc: host(spec.host_ipc, NamespaceMode::Pod),
        target: String::new(),
        users: None,
    }
}

/// Does any container want all rights?
pub(crate) fn any_privileged(spec: &PodSpec) -> bool {
    let privileged = |container: &Container| {
        container
            .security_context
            .as_ref()
            .and_then(|context| context.privileged)
            .unwrap_or(false)
    };
    spec.init_containers
        .iter()
        .flatten()
        .chain(&spec.containers)
        .any(privileged)
}

/// A seccomp profile; those of the node lie in `folder`.
pub(crate) fn seccomp(profile: Option<&SeccompProfile>, folder: &Path) -> Seccomp {
    match profile {
        Some(profile) if profile.type_ == "RuntimeDefault" => Seccomp::RuntimeDefault,
        Some(profile) if profile.type_ == "Localhost" => {
            let name = profile.localhost_profile.as_deref().unwrap_or_default();
            Seccomp::Localhost(folder.join(name).display().to_string())
        }
        _ => Seccomp::Unconfined,
    }
}

fn apparmor(profile: &AppArmorProfile) -> AppArmor {
    match profile.type_.as_str() {
        "Unconfined" => AppArmor::Unconfined,
        "Localhost" => AppArmor::Localhost(profile.localhost_profile.clone().unwrap_or_default()),
        _ => AppArmor::RuntimeDefault,
    }
}

/// SELinux labels.
pub(crate) fn selinux(options: &SELinuxOptions) -> SeLinux {
    let text = |value: &Option<String>| value.clone().unwrap_or_default();
    SeLinux {
        user: text(&options.user),
        role: text(&options.role),
        kind: text(&options.type_),
        level: text(&options.level),
    }
}

/// What a container's process may; the error is for people (`CreateContainerConfigError`).
pub(crate) fn container(
    pod: &Pod,
    spec: &PodSpec,
    container: &Container,
    image: &Image,
    profiles: &Path,
) -> Result<ContainerSecurity, String> {
    let whole = spec.security_context.clone().unwrap_or_default();
    let own = container.security_context.clone().unwrap_or_default();
    let user = own.run_as_user.or(whole.run_as_user);
    let non_root = own
        .run_as_non_root
        .or(whole.run_as_non_root)
        .unwrap_or(false);
    if non_root {
        let at = format!(
            "(pod: {:?}, container: {})",
            balsa_pod::spec::event_name(pod),
            container.name
        );
        check_non_root(user, image, &at)?;
    }
    let privileged = own.privileged.unwrap_or(false);
    let user_from_image = user.is_none();
    let mut groups = whole.supplemental_groups.clone().unwrap_or_default();
    groups.extend(whole.fs_group);
    let seccomp_profile = own
        .seccomp_profile
        .as_ref()
        .or(whole.seccomp_profile.as_ref());
    let unmasked = privileged || own.proc_mount.as_deref() == Some("Unmasked");
    let paths = |list: &[&str]| {
        if unmasked {
            Vec::new()
        } else {
            list.iter().map(|path| (*path).to_owned()).collect()
        }
    };
    let (add_capabilities, drop_capabilities) = capabilities(&own);
    Ok(ContainerSecurity {
        privileged,
        add_capabilities,
        drop_capabilities,
        namespaces: sandbox_namespaces(spec),
        run_as_user: user.or_else(|| image.uid.filter(|_| user_from_image)),
        run_as_group: own.run_as_group.or(whole.run_as_group),
        run_as_username: if user_from_image {
            image.username.clone()
        } else {
            String::new()
        },
        readonly_rootfs: own.read_only_root_filesystem.unwrap_or(false),
        supplemental_groups: groups,
        strict_groups: whole.supplemental_groups_policy.as_deref() == Some("Strict"),
        no_new_privileges: own.allow_privilege_escalation == Some(false) && !privileged,
        masked_paths: paths(&MASKED),
        readonly_paths: paths(&READONLY),
        seccomp: if privileged {
            Seccomp::Unconfined
        } else {
            seccomp(seccomp_profile, profiles)
        },
        apparmor: own
            .app_armor_profile
            .as_ref()
            .or(whole.app_armor_profile.as_ref())
            .map(apparmor),
        selinux: own
            .se_linux_options
            .as_ref()
            .or(whole.se_linux_options.as_ref())
            .map(selinux),
    })
}

fn capabilities(context: &SecurityContext) -> (Vec<String>, Vec<String>) {
    let strip = |names: &Option<Vec<String>>| {
        let names = names.iter().flatten();
        names
            .map(|name| name.strip_prefix("CAP_").unwrap_or(name).to_owned())
            .collect()
    };
    match &context.capabilities {
        Some(capabilities) => (strip(&capabilities.add), strip(&capabilities.drop)),
        None => Default::default(),
    }
}

/// `at` says where, in the words of upstream.
fn check_non_root(user: Option<i64>, image: &Image, at: &str) -> Result<(), String> {
    match (user, image.uid) {
        (Some(0), _) => Err(format!("container's runAsUser breaks non-root policy {at}")),
        (Some(_), _) => Ok(()),
        (None, Some(uid)) if uid != 0 => Ok(()),
        (None, None) if !image.username.is_empty() => Err(format!(
            "container has runAsNonRoot and image has non-numeric user ({}), cannot verify user is non-root {at}",
            image.username
        )),
        (None, _) => Err(format!(
            "container has runAsNonRoot and image will run as root {at}"
        )),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn spec(json: serde_json::Value) -> PodSpec {
        serde_json::from_value(json).unwrap()
    }

    #[test]
    fn the_containers_own_context_beats_the_pods() {
        let spec = spec(
            serde_json::json!({"securityContext": {"runAsUser": 1, "fsGroup": 7},
            "containers": [{"name": "c", "securityContext": {"runAsUser": 2,
                "capabilities": {"add": ["CAP_NET_ADMIN"], "drop": ["ALL"]}, "allowPrivilegeEscalation": false}}]}),
        );
        let got = container(
            &Pod::default(),
            &spec,
            &spec.containers[0],
            &Image::default(),
            Path::new("/p"),
        )
        .unwrap();
        assert_eq!(got.run_as_user, Some(2));
        assert_eq!(got.supplemental_groups, [7]);
        assert_eq!(
            (got.add_capabilities, got.drop_capabilities),
            (vec!["NET_ADMIN".into()], vec!["ALL".into()])
        );
        assert!(got.no_new_privileges && !got.masked_paths.is_empty());
    }

    #[test]
    fn a_root_image_is_refused_where_root_is_forbidden() {
        let spec = spec(
            serde_json::json!({"securityContext": {"runAsNonRoot": true}, "containers": [{"name": "c"}]}),
        );
        let pod: Pod = serde_json::from_value(
            serde_json::json!({"metadata": {"name": "p", "namespace": "n", "uid": "u"}}),
        )
        .unwrap();
        let with =
            |image: Image| container(&pod, &spec, &spec.containers[0], &image, Path::new("/p"));
        assert_eq!(
            with(Image::default()).unwrap_err(),
            "container has runAsNonRoot and image will run as root (pod: \"p_n(u)\", container: c)"
        );
        assert!(
            with(Image {
                uid: Some(0),
                ..Image::default()
            })
            .is_err()
        );
        assert!(
            with(Image {
                username: "app".to_owned(),
                ..Image::default()
            })
            .is_err()
        );
        assert!(
            with(Image {
                uid: Some(9),
                ..Image::default()
            })
            .is_ok()
        );
    }
}
