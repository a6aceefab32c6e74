//! Removes network namespaces that nobody knows any more.
//!
//! containerd makes a sandbox's network namespace before it writes down that there is such a sandbox. One that is
//! killed in between leaves the namespace, with the pod's end of its link in it, and the next one never hears of it.
//! What is there while no containerd runs is being made by none: so whatever of that no sandbox has is nobody's.

use std::collections::HashSet;
use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};

use balsa_cri::{Error, Runtime};
use nix::errno::Errno;
use nix::mount::{MntFlags, umount2};
use tracing::{info, warn};

/// Where containerd's plugins keep network namespaces, each below its own folder in the state folder.
const FOLDER: &str = "netns";

/// The network namespaces that there were before a containerd was started.
#[derive(Debug)]
pub(super) struct Namespaces {
    files: Vec<PathBuf>,
}

impl Namespaces {
    /// Those in containerd's state folder. No containerd may be running.
    pub(super) fn left(state: &Path) -> Self {
        let below = |dir: &Path| std::fs::read_dir(dir).into_iter().flatten().flatten();
        let files = below(state)
            .flat_map(|plugin| below(&plugin.path().join(FOLDER)))
            .map(|file| file.path())
            .collect();
        Self { files }
    }

    /// Removes those that no sandbox of the containerd has that was started then. What can't be removed stays until
    /// another one is started.
    pub(super) async fn remove_unknown(self, runtime: impl Runtime) {
        if self.files.is_empty() {
            return;
        }
        let unknown = match in_use(&runtime).await {
            Ok(used) => without(self.files, &used),
            Err(why) => {
                return warn!(%why, "network namespaces of an earlier containerd stay");
            }
        };
        for file in unknown {
            match remove(&file) {
                Ok(()) => {
                    info!(file = %file.display(), "removed a network namespace that no pod has")
                }
                Err(error) => {
                    warn!(%error, file = %file.display(), "cannot remove a network namespace that no pod has");
                }
            }
        }
    }
}

/// The files that are not in use. Their names alone are compared, which are unique: the same folder has many paths.
fn without(files: Vec<PathBuf>, used: &HashSet<OsString>) -> Vec<PathBuf> {
    let in_use = |file: &PathBuf| file.file_name().is_some_and(|name| used.contains(name));
    files.into_iter().filter(|file| !in_use(file)).collect()
}

/// The names of the network namespaces of all sandboxes, or why they can't be told.
async fn in_use(runtime: &impl Runtime) -> Result<HashSet<OsString>, String> {
    let failed = |error: Error| error.to_string();
    let mut used = HashSet::new();
    for sandbox in runtime.list_sandboxes().await.map_err(failed)? {
        let status = match runtime.sandbox_status(&sandbox.id).await {
            Ok(status) => status,
            Err(error) if error.is_not_found() => continue,
            Err(error) => return Err(failed(error)),
        };
        match status.netns {
            Some(path) => used.extend(Path::new(&path).file_name().map(OsString::from)),
            // It has the node's network, or none any more, or never came so far that a process could be in one.
            None if status.ips.is_empty() => {}
            None => {
                let id = sandbox.id;
                return Err(format!("containerd does not tell that of sandbox {id}"));
            }
        }
    }
    Ok(used)
}

/// The namespace goes with the mount, unless a process is in it.
fn remove(file: &Path) -> io::Result<()> {
    match umount2(file, MntFlags::MNT_DETACH) {
        // The mount was not made any more.
        Ok(()) | Err(Errno::EINVAL) => std::fs::remove_file(file),
        // containerd has removed it.
        Err(Errno::ENOENT) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use balsa_cri::SandboxConfig;
    use balsa_cri::fake::FakeRuntime;

    use super::*;

    /// A state folder with these namespaces, which are plain files.
    fn state(names: &[&str]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(dir.path().join("io.containerd.grpc.v1.cri/sandboxes")).unwrap();
        let folder = dir.path().join("io.containerd.grpc.v1.cri").join(FOLDER);
        std::fs::create_dir(&folder).unwrap();
        for name in names {
            std::fs::write(folder.join(name), "").unwrap();
        }
        dir
    }

    #[test]
    fn only_namespaces_of_the_state_folder_that_no_sandbox_has_are_unknown() {
        let dir = state(&["cni-1", "cni-2"]);
        let left = Namespaces::left(dir.path());
        assert_eq!(left.files.len(), 2);
        let folder = dir.path().join("io.containerd.grpc.v1.cri/netns");
        let used = HashSet::from(["cni-1".into(), "cni-3".into()]);
        assert_eq!(without(left.files, &used), [folder.join("cni-2")]);
        let none = Namespaces::left(Path::new("/nowhere"));
        assert!(none.files.is_empty());
    }

    #[tokio::test]
    async fn a_namespace_that_no_sandbox_has_is_removed_and_one_in_use_is_not() {
        let dir = state(&["cni-lost", "cni-used"]);
        let folder = dir.path().join("io.containerd.grpc.v1.cri/netns");
        let runtime = FakeRuntime::new();
        let id = runtime
            .run_sandbox(&SandboxConfig::default())
            .await
            .unwrap();
        // As a runtime may spell it.
        let used = dir
            .path()
            .join("io.containerd.grpc.v1.cri/../other/netns/cni-used");
        runtime.set_netns(&id, &used.display().to_string());
        Namespaces::left(dir.path())
            .remove_unknown(runtime.clone())
            .await;
        assert!(folder.join("cni-used").exists());
        assert!(!folder.join("cni-lost").exists());
    }

    #[tokio::test]
    async fn nothing_is_removed_when_the_runtime_does_not_tell_what_is_in_use() {
        let dir = state(&["cni-1"]);
        let runtime = FakeRuntime::new();
        runtime
            .run_sandbox(&SandboxConfig::default())
            .await
            .unwrap();
        Namespaces::left(dir.path())
            .remove_unknown(runtime.clone())
            .await;
        assert_eq!(Namespaces::left(dir.path()).files.len(), 1);
    }
}
