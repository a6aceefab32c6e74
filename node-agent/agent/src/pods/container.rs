//! What a container is made from.

use std::path::{Path, PathBuf};

use balsa_cri::{ContainerConfig, Device, IdRange, Image, Map, Mount, NamespaceMode};
use k8s_openapi::api::core::v1::{Container, Pod, PodSpec};

use super::env::expand_all;
use super::sandbox::labels;
use super::{resources, sandbox, security};
use crate::devices::Extras;

/// Where a container may write why it ended, unless it says otherwise.
const DEFAULT_MESSAGE_PATH: &str = "/dev/termination-log";

/// What a container is made from, besides its spec.
pub(crate) struct Ingredients<'a> {
    pub(crate) pod: &'a Pod,
    pub(crate) spec: &'a PodSpec,
    pub(crate) container: &'a Container,
    pub(crate) attempt: u32,
    pub(crate) image: &'a Image,
    pub(crate) env: Vec<(String, String)>,
    /// Mounts of its volumes.
    pub(crate) mounts: Vec<Mount>,
    /// Folder of the pod on the node.
    pub(crate) pod_dir: &'a Path,
    /// What its settings depend on beside the pod.
    pub(crate) host: &'a resources::Host,
    /// Folder of the node's seccomp profiles.
    pub(crate) profiles: &'a Path,
    /// Devices of its volumes.
    pub(crate) devices: Vec<Device>,
    /// What comes with devices of plugins.
    pub(crate) extras: Extras,
    /// The running instance whose processes it is to see.
    pub(crate) target: Option<String>,
    /// Ids of the pod's own user namespace.
    pub(crate) users: Option<IdRange>,
}

/// Log file of an instance, relative to the pod's log folder.
pub(crate) fn log_path(container: &str, attempt: u32) -> String {
    format!("{container}/{attempt}.log")
}

/// File on the node that an instance may write its termination message to.
pub(crate) fn message_file(pod_dir: &Path, container: &str, attempt: u32) -> PathBuf {
    pod_dir
        .join("containers")
        .join(container)
        .join(format!("{attempt}.message"))
}

/// The configuration; the error is for people (`CreateContainerConfigError`).
pub(crate) fn config(from: Ingredients<'_>) -> Result<ContainerConfig, String> {
    let Ingredients {
        pod,
        spec,
        container,
        attempt,
        image,
        mut env,
        mut mounts,
        pod_dir,
        host,
        profiles,
        mut devices,
        extras,
        target,
        users,
    } = from;
    if users.is_some() && !devices.is_empty() {
        return Err(
            "volumes in block mode cannot be used with a user namespace (spec.hostUsers: false)"
                .to_owned(),
        );
    }
    let mut security = security::container(pod, spec, container, image, profiles)?;
    if let Some(target) = target {
        security.namespaces.pid = NamespaceMode::Target;
        security.namespaces.target = target;
    }
    security.namespaces.users = users;
    let of_volumes = mounts.len();
    let mounted =
        |mounts: &[Mount], path: &str| mounts.iter().any(|mount| mount.container_path == path);
    let own_hosts = !balsa_pod::spec::host_network(spec) || spec.host_aliases.is_some();
    if own_hosts && !mounted(&mounts, "/etc/hosts") {
        let host_path = pod_dir.join("etc-hosts").display().to_string();
        mounts.push(Mount {
            container_path: "/etc/hosts".to_owned(),
            host_path,
            ..Mount::default()
        });
    }
    let message_path = container
        .termination_message_path
        .as_deref()
        .unwrap_or(DEFAULT_MESSAGE_PATH);
    let message_file = message_file(pod_dir, &container.name, attempt)
        .display()
        .to_string();
    if !message_path.is_empty() && !mounted(&mounts, message_path) {
        let container_path = message_path.to_owned();
        mounts.push(Mount {
            container_path,
            host_path: message_file.clone(),
            ..Mount::default()
        });
    }
    mounts.extend(extras.mounts.into_iter().map(|mount| Mount {
        container_path: mount.container_path,
        host_path: mount.host_path,
        readonly: mount.read_only,
        ..Mount::default()
    }));
    for mount in &mut mounts[of_volumes..] {
        mount.users = users;
    }
    devices.extend(extras.devices.into_iter().map(|device| Device {
        container_path: device.container_path,
        host_path: device.host_path,
        permissions: device.permissions,
    }));
    let (command, args) = (
        expand_all(container.command.as_ref(), &env),
        expand_all(container.args.as_ref(), &env),
    );
    // The container's own variables come later, and so prevail.
    env.splice(0..0, extras.envs);
    let mut annotations = annotations(container, attempt, message_file);
    annotations.extend(extras.annotations);
    let mut labels = sandbox::pod_labels(pod);
    labels.insert(labels::CONTAINER_NAME.to_owned(), container.name.clone());
    Ok(ContainerConfig {
        name: container.name.clone(),
        attempt,
        image: image.id.clone(),
        user_image: container.image.clone().unwrap_or_default(),
        command,
        args,
        working_dir: container.working_dir.clone().unwrap_or_default(),
        mounts,
        devices,
        cdi_devices: extras.cdi,
        labels,
        annotations,
        log_path: log_path(&container.name, attempt),
        stdin: container.stdin.unwrap_or(false),
        stdin_once: container.stdin_once.unwrap_or(false),
        tty: container.tty.unwrap_or(false),
        resources: resources::container(spec, container, host),
        huge_pages: resources::huge_pages(container, host),
        security,
        env,
    })
}

fn annotations(container: &Container, attempt: u32, message_file: String) -> Map {
    let policy = container
        .termination_message_policy
        .as_deref()
        .unwrap_or("File");
    Map::from([
        (labels::RESTART_COUNT.to_owned(), attempt.to_string()),
        (
            labels::HASH.to_owned(),
            balsa_pod::spec::spec_hash(container),
        ),
        (labels::MESSAGE_PATH.to_owned(), message_file),
        (labels::MESSAGE_POLICY.to_owned(), policy.to_owned()),
    ])
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn words_expand_and_the_managed_files_are_mounted() {
        let pod: Pod =
            serde_json::from_value(serde_json::json!({"metadata": {"name": "p", "uid": "u"},
            "spec": {"containers": [{"name": "c", "image": "i", "command": ["echo", "$(A)"]}]}}))
            .unwrap();
        let spec = pod.spec.as_ref().unwrap();
        let users = IdRange {
            first: 65_536,
            length: 65_536,
        };
        let config = config(Ingredients {
            pod: &pod,
            spec,
            container: &spec.containers[0],
            attempt: 2,
            image: &Image {
                id: "sha256:1".to_owned(),
                ..Image::default()
            },
            env: vec![("A".to_owned(), "1".to_owned())],
            mounts: Vec::new(),
            pod_dir: Path::new("/d/pods/u"),
            host: &resources::Host::default(),
            profiles: Path::new("/d/seccomp"),
            devices: Vec::new(),
            extras: Extras {
                envs: [("A", "0"), ("B", "2")]
                    .map(|(name, value)| (name.to_owned(), value.to_owned()))
                    .into(),
                ..Extras::default()
            },
            target: None,
            users: Some(users),
        })
        .unwrap();
        assert_eq!(config.command, ["echo", "1"]);
        assert_eq!(config.env.last(), Some(&("A".to_owned(), "1".to_owned())));
        assert_eq!(config.env.len(), 3);
        assert_eq!(config.log_path, "c/2.log");
        let paths: Vec<_> = config
            .mounts
            .iter()
            .map(|mount| mount.container_path.as_str())
            .collect();
        assert_eq!(paths, ["/etc/hosts", "/dev/termination-log"]);
        let mut mounts = config.mounts.iter();
        assert!(mounts.all(|mount| mount.users == Some(users)));
        assert_eq!(config.security.namespaces.users, Some(users));
        assert_eq!(config.labels[labels::CONTAINER_NAME], "c");
    }
}
