//! Volumes whose content comes from elsewhere: persistent ones, NFS, images, CSI. What their objects say
//! becomes an [`Outside`], and that a folder on the node.

use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use balsa_api::scheduling::selects_node;
use k8s_openapi::api::core::v1::{Node, PersistentVolume, PersistentVolumeSpec, Pod, Volume};

use super::table;

/// The cluster's own provisioner of folders on nodes.
const LOCAL_PATH: &str = "balsa.io/local-path";

/// Time allowed to a mount of a network file system.
const MOUNT_TIMEOUT: Duration = Duration::from_secs(60);

/// Where a volume comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Outside {
    pub(crate) source: Source,
    /// Nothing may be written to it.
    pub(crate) read_only: bool,
    /// Its files are given to the pod's `fsGroup`.
    pub(crate) owned: bool,
}

/// Where a volume comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Source {
    /// A path on the node, of a hostPath type.
    Path { path: PathBuf, kind: String },
    /// A folder of the node for one claim, made here when missing and open to any user, as claims expect.
    Folder { path: PathBuf },
    /// A folder or block device of the node that somebody made.
    Local { path: PathBuf },
    /// An export of an NFS server.
    Nfs {
        server: String,
        path: String,
        options: Vec<String>,
    },
    /// Mounted already.
    Mounted { path: PathBuf },
    /// An image, mounted already. Do its files belong to the ids of the pod's own user namespace?
    Image { path: PathBuf, mapped: bool },
}

/// The name of the claim that a volume refers to, and whether it may only be read.
pub(crate) fn claim_of(pod_name: &str, volume: &Volume) -> Option<(String, bool)> {
    if let Some(source) = &volume.persistent_volume_claim {
        return Some((source.claim_name.clone(), source.read_only.unwrap_or(false)));
    }
    volume.ephemeral.as_ref()?;
    Some((format!("{pod_name}-{}", volume.name), false))
}

/// Is a persistent volume what the pod's containers take it for, a device or a file system? The error is for people.
pub(crate) fn is_used_as_it_is(
    pod: &Pod,
    name: &str,
    volume: &PersistentVolume,
) -> Result<(), String> {
    let spec = volume.spec.as_ref();
    let mode = spec.and_then(|spec| spec.volume_mode.as_deref());
    let mode = mode.unwrap_or("Filesystem");
    let pod = pod.spec.as_ref();
    let inits = pod
        .iter()
        .flat_map(|spec| spec.init_containers.iter().flatten());
    let apps = pod.iter().flat_map(|spec| &spec.containers);
    for container in inits.chain(apps) {
        let mut mounts = container.volume_mounts.iter().flatten();
        let mut devices = container.volume_devices.iter().flatten();
        let wrong = match mode {
            "Block" => mounts
                .any(|mount| mount.name == name)
                .then_some("volumeMounts"),
            _ => devices
                .any(|device| device.name == name)
                .then_some("volumeDevices"),
        };
        if let Some(wrong) = wrong {
            return Err(format!(
                "volume {name} has volumeMode {mode}, but is specified in {wrong}"
            ));
        }
    }
    Ok(())
}

/// What a persistent volume's spec comes to on this node; `None` if a CSI driver must mount it. The error is for
/// people.
pub(crate) fn of_persistent(
    volume: &PersistentVolume,
    node: &Node,
    read_only: bool,
) -> Result<Option<Outside>, String> {
    let spec = volume.spec.clone().unwrap_or_default();
    let required = spec
        .node_affinity
        .as_ref()
        .and_then(|affinity| affinity.required.as_ref());
    if required.is_some_and(|required| !selects_node(required, node)) {
        return Err("no matching NodeSelectorTerms".to_owned());
    }
    if spec.csi.is_some() {
        return Ok(None);
    }
    let made = |source, owned| {
        Ok(Some(Outside {
            source,
            read_only,
            owned,
        }))
    };
    if let Some(local) = &spec.local {
        let path = PathBuf::from(&local.path);
        return made(Source::Local { path }, true);
    }
    if let Some(host) = &spec.host_path {
        let kind = host.type_.clone().unwrap_or_default();
        let path = PathBuf::from(&host.path);
        if provisioner(volume) == Some(LOCAL_PATH) {
            return made(Source::Folder { path }, true);
        }
        return made(Source::Path { path, kind }, false);
    }
    if let Some(nfs) = &spec.nfs {
        let source = Source::Nfs {
            server: nfs.server.clone(),
            path: nfs.path.clone(),
            options: nfs_options(&spec, nfs.read_only.unwrap_or(false) || read_only),
        };
        return made(source, false);
    }
    Err("no volume plugin matched".to_owned())
}

/// Who made the volume, if a provisioner did.
fn provisioner(volume: &PersistentVolume) -> Option<&str> {
    let annotations = volume.metadata.annotations.as_ref()?;
    let by = annotations.get("pv.kubernetes.io/provisioned-by")?;
    Some(by)
}

fn make_folder(path: &Path) -> Result<(), String> {
    if path.is_dir() {
        return Ok(());
    }
    let made = std::fs::create_dir_all(path)
        .and_then(|()| std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o777)));
    made.map_err(|error| format!("cannot make {}: {error}", path.display()))
}

fn nfs_options(spec: &PersistentVolumeSpec, read_only: bool) -> Vec<String> {
    let mut options = spec.mount_options.clone().unwrap_or_default();
    if read_only {
        options.push("ro".to_owned());
    }
    options
}

/// What a volume's own source comes to, if it is one of these kinds.
pub(crate) fn of_volume(volume: &Volume) -> Option<Outside> {
    let nfs = volume.nfs.as_ref()?;
    let read_only = nfs.read_only.unwrap_or(false);
    Some(Outside {
        source: Source::Nfs {
            server: nfs.server.clone(),
            path: nfs.path.clone(),
            options: read_only.then(|| "ro".to_owned()).into_iter().collect(),
        },
        read_only,
        owned: false,
    })
}

/// Makes it a path on the node; network file systems are mounted at `dir`. Blocking; the error is for people.
pub(super) fn place(outside: &Outside, dir: &Path) -> Result<PathBuf, String> {
    match &outside.source {
        Source::Path { path, kind } => {
            super::host_path::prepare(path, kind)?;
            Ok(path.clone())
        }
        Source::Folder { path } => {
            make_folder(path)?;
            Ok(path.clone())
        }
        Source::Local { path } => {
            if path.exists() {
                Ok(path.clone())
            } else {
                Err(format!("path \"{}\" does not exist", path.display()))
            }
        }
        Source::Nfs {
            server,
            path,
            options,
        } => {
            mount_nfs(server, path, options, dir)?;
            Ok(dir.to_owned())
        }
        Source::Mounted { path } | Source::Image { path, .. } => Ok(path.clone()),
    }
}

fn mount_nfs(server: &str, path: &str, options: &[String], dir: &Path) -> Result<(), String> {
    let io = |error: io::Error| error.to_string();
    std::fs::create_dir_all(dir).map_err(io)?;
    if table::is_mounted(dir).map_err(io)? {
        return Ok(());
    }
    let host = if server.contains(':') {
        format!("[{server}]")
    } else {
        server.to_owned()
    };
    let mut command = Command::new("mount");
    command.args(["-t", "nfs"]);
    if !options.is_empty() {
        command.args(["-o", &options.join(",")]);
    }
    command.arg(format!("{host}:{path}")).arg(dir);
    let child = command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn();
    let mut child = child.map_err(|error| format!("mount failed: {error}"))?;
    let began = Instant::now();
    let status = loop {
        match child.try_wait().map_err(io)? {
            Some(status) => break status,
            None if began.elapsed() > MOUNT_TIMEOUT => {
                let _ = child.kill();
                let _ = child.wait();
                return Err(format!(
                    "mount failed: {host}:{path} did not answer within {MOUNT_TIMEOUT:?}"
                ));
            }
            None => std::thread::sleep(Duration::from_millis(50)),
        }
    };
    if status.success() {
        return Ok(());
    }
    let mut output = String::new();
    if let Some(mut stderr) = child.stderr.take() {
        let _ = io::Read::read_to_string(&mut stderr, &mut output);
    }
    Err(format!("mount failed: {status}\nOutput: {}", output.trim()))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use serde_json::{Value, json};

    use super::*;

    fn resolve(spec: Value) -> Result<Option<Outside>, String> {
        let volume = serde_json::from_value(json!({"spec": spec})).unwrap();
        let node = json!({"metadata": {"name": "a", "labels": {"kubernetes.io/hostname": "a"}}});
        of_persistent(&volume, &serde_json::from_value(node).unwrap(), false)
    }

    #[test]
    fn a_local_volume_is_only_had_on_its_node() {
        let on = |host: &str| {
            json!({"local": {"path": "/x"}, "nodeAffinity": {"required": {"nodeSelectorTerms": [
                {"matchExpressions": [{"key": "kubernetes.io/hostname", "operator": "In", "values": [host]}]}]}}})
        };
        let found = resolve(on("a")).unwrap().unwrap();
        assert!(found.owned && found.source == Source::Local { path: "/x".into() });
        assert_eq!(
            resolve(on("b")),
            Err("no matching NodeSelectorTerms".to_owned())
        );
    }

    #[test]
    fn a_device_is_no_file_system_nor_the_other_way_round() {
        let container = |used: &str| json!({"name": "c", used: [{"name": "v", "mountPath": "/v", "devicePath": "/v"}]});
        let check = |mode: Value, used: &str| {
            let pod = json!({"spec": {"containers": [container(used)]}});
            let volume = json!({"spec": {"volumeMode": mode}});
            is_used_as_it_is(
                &serde_json::from_value(pod).unwrap(),
                "v",
                &serde_json::from_value(volume).unwrap(),
            )
        };
        assert!(check(json!("Block"), "volumeDevices").is_ok());
        assert!(check(json!(null), "volumeMounts").is_ok());
        assert_eq!(
            check(json!("Block"), "volumeMounts").unwrap_err(),
            "volume v has volumeMode Block, but is specified in volumeMounts"
        );
        assert!(check(json!("Filesystem"), "volumeDevices").is_err());
    }

    #[test]
    fn a_provisioned_folder_is_made_for_any_user() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a/b");
        let volume = json!({"metadata": {"annotations": {"pv.kubernetes.io/provisioned-by": LOCAL_PATH}},
            "spec": {"hostPath": {"path": path, "type": "DirectoryOrCreate"}}});
        let volume = serde_json::from_value(volume).unwrap();
        let outside = of_persistent(&volume, &Node::default(), false).unwrap();
        let placed = place(&outside.unwrap(), dir.path()).unwrap();
        assert_eq!(placed, path);
        let mode = std::fs::metadata(path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o777);
    }

    #[test]
    fn drivers_mount_their_own_and_unknown_kinds_are_refused() {
        let csi = json!({"csi": {"driver": "d", "volumeHandle": "h"}});
        assert_eq!(resolve(csi), Ok(None));
        assert!(resolve(json!({"rbd": {"image": "i", "monitors": []}})).is_err());
    }
}
