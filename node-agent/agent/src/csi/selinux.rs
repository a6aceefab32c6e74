//! Volumes that are mounted with the pod's SELinux label, in place of every file being given it (KEP-1710). Pure but
//! for the look at the node.

use k8s_openapi::api::core::v1::{Pod, SELinuxOptions};

/// Where the node's policy says how files of containers are labelled.
const CONTEXTS: &str = "/etc/selinux/targeted/contexts/lxc_contexts";

/// What a policy without such a file means.
const USUAL: &str = "system_u:object_r:container_file_t:s0";

/// How the node labels files of containers; nothing when it has no SELinux.
pub(super) fn file_label() -> Option<String> {
    std::fs::metadata("/sys/fs/selinux/enforce").ok()?;
    let text = std::fs::read_to_string(CONTEXTS).unwrap_or_default();
    let label = parse_file_label(&text).unwrap_or_else(|| USUAL.to_owned());
    Some(label)
}

fn parse_file_label(text: &str) -> Option<String> {
    let mut values = text.lines().filter_map(|line| {
        let (name, value) = line.split_once('=')?;
        (name.trim() == "file").then(|| value.trim().trim_matches('"').to_owned())
    });
    values.next()
}

/// The mount option for a volume of a pod; none when its containers do not say how they are labelled. `usual` is how
/// files of containers are labelled on the node.
///
/// # Errors
/// When containers that mount it are labelled differently; for people.
pub(super) fn mount_option(pod: &Pod, volume: &str, usual: &str) -> Result<Option<String>, String> {
    let Some(spec) = &pod.spec else {
        return Ok(None);
    };
    let context = spec.security_context.as_ref();
    let change = context.and_then(|context| context.se_linux_change_policy.as_deref());
    if change == Some("Recursive") {
        return Ok(None);
    }
    let of_pod = context.and_then(|context| context.se_linux_options.as_ref());
    let inits = spec.init_containers.iter().flatten();
    let users = inits.chain(&spec.containers).filter(|container| {
        let mut mounts = container.volume_mounts.iter().flatten();
        mounts.any(|mount| mount.name == volume)
    });
    let mut labels = users.map(|container| {
        let own = container.security_context.as_ref();
        let own = own.and_then(|own| own.se_linux_options.as_ref());
        own.or(of_pod).and_then(|options| label(options, usual))
    });
    let Some(first) = labels.next() else {
        return Ok(None);
    };
    if let Some(other) = labels.find(|other| *other != first) {
        let (first, other) = (first.unwrap_or_default(), other.unwrap_or_default());
        return Err(format!(
            "conflicting SELinux labels of volume {volume}: {first:?} and {other:?}"
        ));
    }
    Ok(first.map(|label| format!("context={label:?}")))
}

/// The files' label: role and type are the policy's, and without a level the runtime would choose one.
fn label(options: &SELinuxOptions, usual: &str) -> Option<String> {
    let level = options.level.as_deref().filter(|level| !level.is_empty())?;
    let mut parts = usual.splitn(4, ':');
    let (user, role, kind) = (parts.next()?, parts.next()?, parts.next()?);
    let user = options
        .user
        .as_deref()
        .filter(|user| !user.is_empty())
        .unwrap_or(user);
    Some(format!("{user}:{role}:{kind}:{level}"))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use serde_json::{Value, json};

    use super::*;

    fn option(context: Value, containers: Value) -> Result<Option<String>, String> {
        let pod = json!({"spec": {"securityContext": context, "containers": containers}});
        mount_option(&serde_json::from_value(pod).unwrap(), "data", USUAL)
    }

    fn container(context: Value) -> Value {
        json!({"name": "c", "securityContext": context, "volumeMounts": [{"name": "data", "mountPath": "/d"}]})
    }

    #[test]
    fn a_volume_is_mounted_with_the_label_that_its_containers_share() {
        let pod = json!({"seLinuxOptions": {"level": "s0:c1,c2"}});
        let plain = container(json!({}));
        let wanted = "context=\"system_u:object_r:container_file_t:s0:c1,c2\"";
        assert_eq!(
            option(pod.clone(), json!([plain])).unwrap().unwrap(),
            wanted
        );
        let other = container(json!({"seLinuxOptions": {"level": "s0:c9", "user": "u"}}));
        let error = option(pod.clone(), json!([plain, other])).unwrap_err();
        assert!(
            error.starts_with("conflicting SELinux labels of volume data: "),
            "{error}"
        );
        let beside =
            json!({"name": "x", "securityContext": {"seLinuxOptions": {"level": "s0:c9"}}});
        assert_eq!(
            option(pod, json!([plain, beside])).unwrap().unwrap(),
            wanted
        );
    }

    #[test]
    fn without_a_level_or_by_the_pods_wish_files_are_labelled_one_by_one() {
        let plain = container(json!({}));
        let no_level = json!({"seLinuxOptions": {"type": "spc_t"}});
        assert_eq!(option(no_level, json!([plain])), Ok(None));
        let recursive =
            json!({"seLinuxOptions": {"level": "s0"}, "seLinuxChangePolicy": "Recursive"});
        assert_eq!(option(recursive, json!([plain])), Ok(None));
    }

    #[test]
    fn the_policys_label_of_files_is_read() {
        let text = "process = \"system_u:system_r:container_t:s0\"\nfile = \"system_u:object_r:my_file_t:s0\"\n";
        assert_eq!(
            parse_file_label(text).unwrap(),
            "system_u:object_r:my_file_t:s0"
        );
        assert_eq!(parse_file_label(""), None);
    }
}
