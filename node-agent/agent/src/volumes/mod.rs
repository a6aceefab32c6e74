//! Volumes of pods: emptyDir, hostPath, configMap, secret, downwardAPI, projected.
//!
//! They lie in `<data>/pods/<uid>/volumes/<name>`. Preparing is idempotent: it runs again after a restart of
//! the agent, when an object that a volume shows has changed, and when a token wants renewal.

mod atomic;
mod host_path;
pub(crate) mod payload;

use std::collections::BTreeMap;
use std::io;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};

use balsa_api::quantity::Quantity;
use balsa_cri::{Mount, Propagation};
use k8s_openapi::api::core::v1::{
    Container, EmptyDirVolumeSource, Pod, PodSpec, Volume, VolumeMount,
};
use nix::mount::{MntFlags, MsFlags};

use atomic::Owner;
use payload::Inputs;

/// Where each volume of a pod lies on the node.
pub(crate) type Prepared = BTreeMap<String, PathBuf>;

/// A volume that can't be had; the message is in upstream's words, for a `FailedMount` event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct VolumeError(pub(crate) String);

fn failed(volume: &Volume, message: impl std::fmt::Display) -> VolumeError {
    VolumeError(format!(
        "MountVolume.SetUp failed for volume \"{}\" : {message}",
        volume.name
    ))
}

/// Makes all volumes of a pod ready. Blocking: system calls only.
pub(crate) fn prepare(pod_dir: &Path, inputs: &Inputs<'_>) -> Result<Prepared, VolumeError> {
    let mut prepared = Prepared::new();
    let Some(spec) = &inputs.pod.spec else {
        return Ok(prepared);
    };
    let owner = owner(spec);
    for volume in spec.volumes.iter().flatten() {
        prepared.insert(
            volume.name.clone(),
            prepare_one(pod_dir, volume, inputs, owner)?,
        );
    }
    Ok(prepared)
}

/// Writes the files of volumes anew whose sources have changed.
pub(crate) fn refresh(pod_dir: &Path, inputs: &Inputs<'_>) -> Result<(), VolumeError> {
    let Some(spec) = &inputs.pod.spec else {
        return Ok(());
    };
    for volume in spec.volumes.iter().flatten() {
        if let Some(files) = payload::of(volume, inputs).map_err(|error| failed(volume, error))? {
            let dir = volume_dir(pod_dir, volume);
            atomic::write(&dir, &files, owner(spec)).map_err(|error| failed(volume, error))?;
        }
    }
    Ok(())
}

fn volume_dir(pod_dir: &Path, volume: &Volume) -> PathBuf {
    pod_dir.join("volumes").join(&volume.name)
}

fn owner(spec: &PodSpec) -> Owner {
    let context = spec.security_context.clone().unwrap_or_default();
    let user_of = |container: &Container| {
        let own = container
            .security_context
            .as_ref()
            .and_then(|context| context.run_as_user);
        own.or(context.run_as_user)
    };
    let mut users = spec
        .init_containers
        .iter()
        .flatten()
        .chain(&spec.containers)
        .map(user_of);
    let first = users.next().flatten();
    let user = first.filter(|first| users.all(|user| user == Some(*first)));
    let narrow = |id: i64| u32::try_from(id).ok();
    Owner {
        group: context.fs_group.and_then(narrow),
        user: user.and_then(narrow),
    }
}

fn prepare_one(
    pod_dir: &Path,
    volume: &Volume,
    inputs: &Inputs<'_>,
    owner: Owner,
) -> Result<PathBuf, VolumeError> {
    let dir = volume_dir(pod_dir, volume);
    let io = |error: io::Error| failed(volume, error);
    if let Some(source) = &volume.host_path {
        let path = PathBuf::from(&source.path);
        let kind = source.type_.as_deref().unwrap_or_default();
        host_path::prepare(&path, kind).map_err(|error| failed(volume, error))?;
        return Ok(path);
    }
    if let Some(source) = &volume.empty_dir {
        empty_dir(&dir, source, owner).map_err(io)?;
        return Ok(dir);
    }
    match payload::of(volume, inputs).map_err(|error| failed(volume, error))? {
        Some(files) => {
            std::fs::create_dir_all(&dir).map_err(io)?;
            // Credentials must not reach the disk.
            let secret = volume.secret.is_some() || files.values().any(|file| file.private);
            if secret {
                mount_tmpfs(&dir, None).map_err(io)?;
            }
            let mode = std::fs::Permissions::from_mode(if secret { 0o1777 } else { 0o755 });
            std::fs::set_permissions(&dir, mode).map_err(io)?;
            atomic::write(&dir, &files, owner).map_err(io)?;
            Ok(dir)
        }
        None => Err(failed(volume, "this kind of volume is not supported")),
    }
}

fn empty_dir(dir: &Path, source: &EmptyDirVolumeSource, owner: Owner) -> io::Result<()> {
    std::fs::create_dir_all(dir)?;
    if source.medium.as_deref() == Some("Memory") {
        let limit = source
            .size_limit
            .as_ref()
            .and_then(|limit| limit.0.parse::<Quantity>().ok());
        mount_tmpfs(
            dir,
            limit.map(|limit| limit.value()).filter(|limit| *limit > 0),
        )?;
    }
    let mode = if owner.group.is_some() { 0o2777 } else { 0o777 };
    if owner.group.is_some() {
        chown(dir, None, owner.group)?;
    }
    std::fs::set_permissions(dir, std::fs::Permissions::from_mode(mode))
}

/// Mounts a tmpfs there unless something is mounted already.
fn mount_tmpfs(dir: &Path, size: Option<i64>) -> io::Result<()> {
    if is_mount_point(dir)? {
        return Ok(());
    }
    let options = size.map(|size| format!("size={size}"));
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    nix::mount::mount(Some("tmpfs"), dir, Some("tmpfs"), flags, options.as_deref())
        .map_err(io::Error::from)
}

fn is_mount_point(dir: &Path) -> io::Result<bool> {
    use std::os::unix::fs::MetadataExt;
    let Some(parent) = dir.parent() else {
        return Ok(true);
    };
    Ok(std::fs::metadata(dir)?.dev() != std::fs::metadata(parent)?.dev())
}

/// Unmounts and removes everything of a pod. Again is fine. Blocking.
pub(crate) fn cleanup(pod_dir: &Path) -> io::Result<()> {
    let volumes = pod_dir.join("volumes");
    let subpaths = pod_dir.join("volume-subpaths");
    for dir in [volumes, subpaths] {
        let entries = match std::fs::read_dir(&dir) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            entries => entries?,
        };
        for entry in entries {
            let path = entry?.path();
            if is_mount_point(&path).unwrap_or(false) {
                nix::mount::umount2(&path, MntFlags::MNT_DETACH)?;
            }
        }
    }
    match std::fs::remove_dir_all(pod_dir) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// The mounts of a container; the error is for people (`CreateContainerConfigError`).
pub(crate) fn mounts(
    container: &Container,
    pod: &Pod,
    prepared: &Prepared,
    env: &[(String, String)],
) -> Result<Vec<Mount>, String> {
    let volumes = pod
        .spec
        .as_ref()
        .and_then(|spec| spec.volumes.as_deref())
        .unwrap_or_default();
    let mut mounts = Vec::new();
    for mount in container.volume_mounts.iter().flatten() {
        let missing = || {
            format!(
                "cannot find volume \"{}\" to mount into container \"{}\"",
                mount.name, container.name
            )
        };
        let root = prepared.get(&mount.name).ok_or_else(missing)?;
        let volume = volumes
            .iter()
            .find(|volume| volume.name == mount.name)
            .ok_or_else(missing)?;
        mounts.push(Mount {
            container_path: absolute(&mount.mount_path),
            host_path: source(root, volume, mount, env)?.display().to_string(),
            readonly: mount.read_only == Some(true) || read_only_kind(volume),
            propagation: match mount.mount_propagation.as_deref() {
                Some("HostToContainer") => Propagation::HostToContainer,
                Some("Bidirectional") => Propagation::Bidirectional,
                _ => Propagation::Private,
            },
        });
    }
    Ok(mounts)
}

fn absolute(path: &str) -> String {
    if path.starts_with('/') {
        path.to_owned()
    } else {
        format!("/{path}")
    }
}

/// Volumes that show objects of the API can't be written by containers.
fn read_only_kind(volume: &Volume) -> bool {
    volume.config_map.is_some()
        || volume.secret.is_some()
        || volume.downward_api.is_some()
        || volume.projected.is_some()
}

/// What is mounted: the volume, or a path in it.
fn source(
    root: &Path,
    volume: &Volume,
    mount: &VolumeMount,
    env: &[(String, String)],
) -> Result<PathBuf, String> {
    let lookup = |name: &str| {
        env.iter()
            .find(|(known, _)| known == name)
            .map(|(_, value)| value.clone())
    };
    let sub = match (&mount.sub_path, &mount.sub_path_expr) {
        (Some(path), _) if !path.is_empty() => path.clone(),
        (_, Some(expr)) if !expr.is_empty() => crate::pods::env::expand(expr, lookup),
        _ => return Ok(root.to_owned()),
    };
    if sub.starts_with('/') || sub.split('/').any(|part| part == "..") {
        return Err(format!(
            "invalid subPath {sub:?} of volume \"{}\"",
            volume.name
        ));
    }
    let path = root.join(&sub);
    if !path.exists() && !read_only_kind(volume) {
        std::fs::create_dir_all(&path)
            .map_err(|error| format!("failed to create subPath directory: {error}"))?;
    }
    // Links in the volume must not lead out of it.
    let real = std::fs::canonicalize(&path)
        .map_err(|error| format!("failed to prepare subPath {sub:?}: {error}"))?;
    let real_root = std::fs::canonicalize(root).map_err(|error| error.to_string())?;
    if real.starts_with(real_root) {
        Ok(real)
    } else {
        Err(format!("subPath {sub:?} leads out of its volume"))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use serde_json::json;

    use super::*;
    use crate::objects::Sources;
    use crate::pods::fields::Facts;

    fn with_pod<T>(spec: serde_json::Value, test: impl FnOnce(&Path, &Inputs<'_>) -> T) -> T {
        let dir = tempfile::tempdir().unwrap();
        let pod: Pod =
            serde_json::from_value(json!({"metadata": {"name": "p"}, "spec": spec})).unwrap();
        let inputs = Inputs {
            pod: &pod,
            sources: &Sources::default(),
            facts: &Facts::default(),
            tokens: &Default::default(),
        };
        test(dir.path(), &inputs)
    }

    #[test]
    fn an_empty_dir_keeps_its_files_when_prepared_again_and_loses_them_with_the_pod() {
        let spec = json!({"containers": [], "volumes": [{"name": "v", "emptyDir": {}}]});
        with_pod(spec, |dir, inputs| {
            let pod_dir = dir.join("uid");
            let path = prepare(&pod_dir, inputs).unwrap()["v"].clone();
            std::fs::write(path.join("f"), "x").unwrap();
            prepare(&pod_dir, inputs).unwrap();
            assert!(path.join("f").exists());
            cleanup(&pod_dir).unwrap();
            cleanup(&pod_dir).unwrap();
            assert!(!pod_dir.exists());
        });
    }

    #[test]
    fn a_missing_config_map_is_told_in_the_words_of_a_failed_mount() {
        let spec =
            json!({"containers": [], "volumes": [{"name": "v", "configMap": {"name": "m"}}]});
        with_pod(spec, |dir, inputs| {
            let error = prepare(dir, inputs).unwrap_err();
            assert_eq!(
                error.0,
                "MountVolume.SetUp failed for volume \"v\" : configmap \"m\" not found"
            );
        });
    }

    #[test]
    fn sub_paths_are_made_and_stay_inside() {
        let mounts_of = |sub: &str| {
            let spec = json!({"containers": [{"name": "c", "volumeMounts": [
                {"name": "v", "mountPath": "data", "subPath": sub}]}], "volumes": [{"name": "v", "emptyDir": {}}]});
            with_pod(spec, |dir, inputs| {
                let prepared = prepare(dir, inputs).unwrap();
                std::os::unix::fs::symlink("/etc", dir.join("volumes/v/out")).unwrap();
                let spec = inputs.pod.spec.as_ref().unwrap();
                mounts(&spec.containers[0], inputs.pod, &prepared, &[])
            })
        };
        let mounts = mounts_of("a/b").unwrap();
        assert_eq!(mounts[0].container_path, "/data");
        assert!(mounts[0].host_path.ends_with("/volumes/v/a/b"));
        assert!(mounts_of("../x").is_err());
        assert!(mounts_of("out").is_err(), "a link out of the volume");
    }
}
