//! Volumes of pods: emptyDir, hostPath, configMap, secret, downwardAPI, projected, and those from outside
//! (persistent ones, NFS, images, CSI).
//!
//! They lie in `<data>/pods/<uid>/volumes/<name>`. Preparing is idempotent: it runs again after a restart of
//! the agent, when an object that a volume shows has changed, and when a token wants renewal.

mod atomic;
mod host_path;
mod huge;
pub(crate) mod layers;
pub(crate) mod outside;
mod ownership;
pub(crate) mod payload;
mod subpath;
pub(crate) mod table;

use std::collections::BTreeMap;
use std::io;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};

use balsa_api::quantity::Quantity;
use balsa_cri::{Device, IdRange, Mount, Propagation};
use k8s_openapi::api::core::v1::{
    Container, EmptyDirVolumeSource, Pod, PodSpec, Volume, VolumeMount,
};
use nix::mount::MsFlags;

use atomic::Owner;
use outside::Outside;
use payload::Inputs;

/// Where each volume of a pod lies on the node.
pub(crate) type Prepared = BTreeMap<String, Placed>;

/// Where a volume lies on the node.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Placed {
    pub(crate) path: PathBuf,
    /// Nothing may be written to it.
    pub(crate) read_only: bool,
    /// Its files belong to the ids of the pod's own user namespace already.
    pub(crate) mapped: bool,
}

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
    let mut users = balsa_pod::spec::ordinary(spec).map(user_of);
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
) -> Result<Placed, VolumeError> {
    if let Some(outside) = inputs.outside.get(&volume.name) {
        return place_outside(pod_dir, volume, inputs, outside);
    }
    let path = prepare_path(pod_dir, volume, inputs, owner)?;
    Ok(Placed {
        path,
        read_only: read_only_kind(volume),
        mapped: false,
    })
}

fn place_outside(
    pod_dir: &Path,
    volume: &Volume,
    inputs: &Inputs<'_>,
    outside: &Outside,
) -> Result<Placed, VolumeError> {
    let path = outside::place(outside, &volume_dir(pod_dir, volume))
        .map_err(|error| failed(volume, error))?;
    let context = inputs
        .pod
        .spec
        .as_ref()
        .and_then(|spec| spec.security_context.as_ref());
    let group = context
        .and_then(|context| context.fs_group)
        .and_then(|group| u32::try_from(group).ok());
    if let Some(group) = group.filter(|_| outside.owned && path.is_dir()) {
        let policy = context.and_then(|context| context.fs_group_change_policy.as_deref());
        let policy = match policy {
            Some("OnRootMismatch") => ownership::ChangePolicy::OnRootMismatch,
            _ => ownership::ChangePolicy::Always,
        };
        ownership::apply(&path, group, outside.read_only, policy)
            .map_err(|error| failed(volume, format!("applyFSGroup failed: {error}")))?;
    }
    Ok(Placed {
        path,
        read_only: outside.read_only,
        mapped: matches!(outside.source, outside::Source::Image { mapped: true, .. }),
    })
}

fn prepare_path(
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
        let spec = inputs.pod.spec.as_ref();
        empty_dir(&dir, spec, source, owner).map_err(io)?;
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

fn empty_dir(
    dir: &Path,
    spec: Option<&PodSpec>,
    source: &EmptyDirVolumeSource,
    owner: Owner,
) -> io::Result<()> {
    std::fs::create_dir_all(dir)?;
    let limit = source
        .size_limit
        .as_ref()
        .and_then(|limit| limit.0.parse::<Quantity>().ok())
        .map(|limit| limit.value())
        .filter(|limit| *limit > 0);
    match (source.medium.as_deref(), spec) {
        (Some("Memory"), _) => mount_tmpfs(dir, limit)?,
        (Some(medium), Some(spec)) if huge::is_medium(medium) => {
            huge::mount(dir, spec, medium, limit)?
        }
        _ => {}
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

/// Unmounts and removes the volumes of a pod whose containers have ended; its other files stay. Again is fine.
/// Blocking.
pub(crate) fn release(pod_dir: &Path) -> io::Result<()> {
    table::unmount_below(pod_dir)?;
    for name in ["volumes", SUBPATHS, IMAGES] {
        remove_dir(&pod_dir.join(name))?;
    }
    Ok(())
}

/// Unmounts the parts of volumes that containers of a pod had. Again is fine. Blocking.
pub(crate) fn unpin(pod_dir: &Path) -> io::Result<()> {
    table::unmount_below(&pod_dir.join(SUBPATHS))
}

/// Unmounts and removes everything of a pod. Again is fine. Blocking.
pub(crate) fn cleanup(pod_dir: &Path) -> io::Result<()> {
    table::unmount_below(pod_dir)?;
    remove_dir(pod_dir)
}

fn remove_dir(dir: &Path) -> io::Result<()> {
    match std::fs::remove_dir_all(dir) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Folder, in a pod's, of the mounts of parts of volumes.
const SUBPATHS: &str = "volume-subpaths";

/// Folder, in a pod's, of mounted images.
pub(crate) const IMAGES: &str = "image-volumes";

/// Folder, in a pod's, of the layers of mounted images while they are put together.
pub(crate) const LAYERS: &str = "image-layers";

/// The text of a file of a volume, which must be a plain file in it and not larger than `most`. Blocking.
pub(crate) fn read_file(root: &Path, part: &str, most: u64) -> io::Result<Vec<u8>> {
    subpath::read(root, part, most)
}

/// The devices of a container: volumes in block mode. The error is for people.
pub(crate) fn devices(container: &Container, prepared: &Prepared) -> Result<Vec<Device>, String> {
    let devices = container.volume_devices.iter().flatten().map(|device| {
        let placed = prepared.get(&device.name).ok_or_else(|| {
            format!(
                "cannot find volume \"{}\" to pass into container \"{}\"",
                device.name, container.name
            )
        })?;
        let permissions = if placed.read_only { "r" } else { "mrw" };
        Ok(Device {
            container_path: device.device_path.clone(),
            host_path: placed.path.display().to_string(),
            permissions: permissions.to_owned(),
        })
    });
    devices.collect()
}

/// The mounts of a container; the error is for people (`CreateContainerConfigError`). Blocking.
pub(crate) fn mounts(
    container: &Container,
    pod: &Pod,
    pod_dir: &Path,
    prepared: &Prepared,
    env: &[(String, String)],
    runtime: Abilities,
    users: Option<IdRange>,
) -> Result<Vec<Mount>, String> {
    let volumes = pod
        .spec
        .as_ref()
        .and_then(|spec| spec.volumes.as_deref())
        .unwrap_or_default();
    let mut mounts = Vec::new();
    for (index, mount) in container.volume_mounts.iter().flatten().enumerate() {
        let missing = || {
            format!(
                "cannot find volume \"{}\" to mount into container \"{}\"",
                mount.name, container.name
            )
        };
        let placed = prepared.get(&mount.name).ok_or_else(missing)?;
        let volume = volumes
            .iter()
            .find(|volume| volume.name == mount.name)
            .ok_or_else(missing)?;
        let pin = pod_dir
            .join(SUBPATHS)
            .join(&volume.name)
            .join(&container.name)
            .join(index.to_string());
        mounts.push(Mount {
            container_path: absolute(&mount.mount_path),
            host_path: source(placed, volume, &container.name, mount, env, &pin)?
                .display()
                .to_string(),
            readonly: mount.read_only == Some(true) || placed.read_only,
            propagation: match mount.mount_propagation.as_deref() {
                Some("HostToContainer") => Propagation::HostToContainer,
                Some("Bidirectional") => Propagation::Bidirectional,
                _ => Propagation::Private,
            },
            recursive_readonly: recursive_read_only(mount, runtime)?,
            users: users.filter(|_| !placed.mapped),
        });
    }
    Ok(mounts)
}

/// What a runtime can do with mounts.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Abilities {
    /// Makes them read-only with all that is mounted below them.
    pub(crate) recursive_read_only: bool,
}

/// Is what is mounted below a mount to be read-only too (KEP-3857)?
fn recursive_read_only(mount: &VolumeMount, runtime: Abilities) -> Result<bool, String> {
    match mount.recursive_read_only.as_deref() {
        Some("Enabled") if !runtime.recursive_read_only => Err(format!(
            "failed to resolve recursive read-only mode: volume \"{}\" requested recursive read-only mode, but it is not supported by the runtime",
            mount.name
        )),
        Some("Enabled" | "IfPossible") => Ok(runtime.recursive_read_only),
        _ => Ok(false),
    }
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

/// What is mounted: the volume, or a part of it.
fn source(
    placed: &Placed,
    volume: &Volume,
    container: &str,
    mount: &VolumeMount,
    env: &[(String, String)],
    pin: &Path,
) -> Result<PathBuf, String> {
    let root = &placed.path;
    let part = match (&mount.sub_path, &mount.sub_path_expr) {
        (Some(path), _) if !path.is_empty() => path.clone(),
        (_, Some(expression)) if !expression.is_empty() => expand_part(expression, env)?,
        _ => return Ok(root.clone()),
    };
    if part.starts_with('/') {
        return Err(format!(
            "error SubPath `{part}` must not be an absolute path"
        ));
    }
    if part.split('/').any(|step| step == "..") {
        return Err(format!(
            "unable to provision SubPath `{part}`: must not contain '..'"
        ));
    }
    // Objects of the API and images have what they have.
    let fixed = read_only_kind(volume) || volume.image.is_some();
    if !fixed && !subpath::exists(root, &part) {
        subpath::make(root, &part).map_err(|error| {
            format!(
                "failed to create subPath directory for volumeMount \"{}\" of container \"{container}\": {error}",
                mount.name
            )
        })?;
    }
    subpath::pin(root, &part, pin).map_err(|error| {
        format!(
            "failed to prepare subPath for volumeMount \"{}\" of container \"{container}\": {error}",
            mount.name
        )
    })
}

/// A `subPathExpr` with its variables; all of them must have values.
fn expand_part(expression: &str, env: &[(String, String)]) -> Result<String, String> {
    let missing = std::cell::RefCell::new(std::collections::BTreeSet::new());
    let part = crate::pods::env::expand(expression, |name| {
        let known = env.iter().find(|(known, _)| known == name);
        let value = known.map(|(_, value)| value.clone()).unwrap_or_default();
        if value.is_empty() {
            missing.borrow_mut().insert(name.to_owned());
        }
        Some(value)
    });
    let missing = missing.into_inner();
    if missing.is_empty() {
        return Ok(part);
    }
    let names: Vec<_> = missing.into_iter().collect();
    Err(format!("missing value for {}", names.join(", ")))
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
            outside: &BTreeMap::new(),
        };
        test(dir.path(), &inputs)
    }

    #[test]
    fn an_empty_dir_keeps_its_files_when_prepared_again_and_loses_them_with_the_pod() {
        let spec = json!({"containers": [], "volumes": [{"name": "v", "emptyDir": {}}]});
        with_pod(spec, |dir, inputs| {
            let pod_dir = dir.join("uid");
            let path = prepare(&pod_dir, inputs).unwrap()["v"].path.clone();
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

    fn with_part(mount: serde_json::Value, env: &[(&str, &str)]) -> Result<Vec<Mount>, String> {
        let spec = json!({"containers": [{"name": "c", "volumeMounts": [mount]}],
            "volumes": [{"name": "v", "emptyDir": {}}]});
        let env: Vec<_> = env
            .iter()
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
            .collect();
        with_pod(spec, |dir, inputs| {
            let prepared = prepare(dir, inputs).unwrap();
            std::os::unix::fs::symlink("/etc", dir.join("volumes/v/out")).unwrap();
            let spec = inputs.pod.spec.as_ref().unwrap();
            let mounts = mounts(
                &spec.containers[0],
                inputs.pod,
                dir,
                &prepared,
                &env,
                Abilities::default(),
                None,
            );
            if mounts.is_ok() {
                assert!(dir.join("volumes/v/a/b").is_dir());
            }
            release(dir).unwrap();
            mounts
        })
    }

    #[test]
    fn parts_of_volumes_are_made_and_stay_inside() {
        let sub = |path: &str| json!({"name": "v", "mountPath": "data", "subPath": path});
        let mounts = with_part(sub("a/b"), &[]).unwrap();
        assert_eq!(mounts[0].container_path, "/data");
        assert!(mounts[0].host_path.ends_with("/volume-subpaths/v/c/0"));
        assert!(with_part(sub("../x"), &[]).is_err());
        assert!(
            with_part(sub("out"), &[]).is_err(),
            "a link out of the volume"
        );
        assert!(with_part(sub("out/x"), &[]).is_err());
    }

    #[test]
    fn mounts_are_read_only_all_the_way_down_where_the_runtime_can() {
        let ask = |mode: &str, able: bool| {
            let mount = json!({"name": "v", "mountPath": "/v", "recursiveReadOnly": mode});
            let abilities = Abilities {
                recursive_read_only: able,
            };
            recursive_read_only(&serde_json::from_value(mount).unwrap(), abilities)
        };
        assert_eq!(ask("Enabled", true), Ok(true));
        assert!(ask("Enabled", false).is_err());
        assert_eq!(ask("IfPossible", true), Ok(true));
        assert_eq!(ask("IfPossible", false), Ok(false));
        assert_eq!(ask("Disabled", true), Ok(false));
    }

    #[test]
    fn an_expression_needs_a_value_for_each_of_its_variables() {
        let part = json!({"name": "v", "mountPath": "/d", "subPathExpr": "$(A)/b"});
        assert!(with_part(part.clone(), &[("A", "a")]).is_ok());
        let missing = Err("missing value for A".to_owned());
        assert_eq!(with_part(part.clone(), &[]), missing);
        assert_eq!(with_part(part.clone(), &[("A", "")]), missing);
        assert!(with_part(part, &[("A", "/abs")]).is_err());
    }
}
