//! Control groups of pods, in both of the kernel's versions. A pod's own group lies below that of its
//! quality-of-service class and holds it to what its containers may use together; those of its containers,
//! inside, are the runtime's.

mod settings;
mod usage;

use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};

use balsa_pod::qos::Qos;

pub(crate) use settings::{Settings, pod_settings, whole_settings};
pub(crate) use usage::{Swap, Usage};

/// Where control group file systems are mounted.
const MOUNT: &str = "/sys/fs/cgroup";

/// All classes of pods.
const CLASSES: [Qos; 3] = [Qos::Guaranteed, Qos::Burstable, Qos::BestEffort];

/// Which of the kernel's two interfaces.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Version {
    /// One hierarchy per controller.
    One,
    /// One for all.
    Two,
}

/// The node's control groups.
#[derive(Debug, Clone)]
pub(crate) struct Cgroups {
    mount: PathBuf,
    version: Version,
    /// Group that all of ours are in, for example `/balsa`.
    root: String,
}

impl Cgroups {
    /// Those of this machine, below `root`.
    pub(crate) fn new(root: &str) -> Self {
        Self::at(Path::new(MOUNT), root)
    }

    /// Those below another mount point.
    pub(crate) fn at(mount: &Path, root: &str) -> Self {
        let version = if mount.join("cgroup.controllers").exists() {
            Version::Two
        } else {
            Version::One
        };
        Self {
            mount: mount.to_owned(),
            version,
            root: root.trim_end_matches('/').to_owned(),
        }
    }

    /// Are they of version 2?
    pub(crate) fn unified(&self) -> bool {
        self.version == Version::Two
    }

    /// Do they limit swap (version 2)? Known once [`Self::make_classes`] has made ours.
    pub(crate) fn limits_swap(&self) -> bool {
        self.unified()
            && self
                .dir("memory", &self.root)
                .join("memory.swap.max")
                .exists()
    }

    /// The group of a class.
    fn class(&self, qos: Qos) -> String {
        match qos {
            Qos::Guaranteed => self.root.clone(),
            Qos::Burstable => format!("{}/burstable", self.root),
            Qos::BestEffort => format!("{}/besteffort", self.root),
        }
    }

    /// The group of a pod.
    pub(crate) fn pod(&self, qos: Qos, uid: &str) -> String {
        format!("{}/pod{uid}", self.class(qos))
    }

    /// UIDs of the pods that have a group, of whatever class, in any hierarchy.
    pub(crate) fn pods(&self) -> BTreeSet<String> {
        let mut uids = BTreeSet::new();
        for root in self.hierarchies().unwrap_or_default() {
            for qos in CLASSES {
                let class = root.join(self.class(qos).trim_start_matches('/'));
                let groups = std::fs::read_dir(class).into_iter().flatten().flatten();
                uids.extend(groups.filter_map(|group| {
                    let name = group.file_name().into_string().ok()?;
                    Some(name.strip_prefix("pod")?.to_owned())
                }));
            }
        }
        uids
    }

    /// Removes the group of a pod, of whatever class, from every hierarchy. Again is fine.
    pub(crate) fn remove_pod(&self, uid: &str) -> io::Result<()> {
        let mut result = Ok(());
        for qos in CLASSES {
            let done = self.remove(&self.pod(qos, uid));
            result = result.and(done);
        }
        result
    }

    fn remove(&self, cgroup: &str) -> io::Result<()> {
        let relative = cgroup.trim_start_matches('/');
        if relative.is_empty() || relative.split('/').any(|part| part == "..") {
            return Ok(());
        }
        let mut result = Ok(());
        for root in self.hierarchies()? {
            let done = remove_tree(&root.join(relative));
            result = result.and(done);
        }
        result
    }

    /// The mount itself when it is version 2, else each controller's folder.
    fn hierarchies(&self) -> io::Result<Vec<PathBuf>> {
        if self.version == Version::Two {
            return Ok(vec![self.mount.clone()]);
        }
        let mut roots = Vec::new();
        for entry in std::fs::read_dir(&self.mount)? {
            let entry = entry?;
            // Links are other names of the same hierarchies (`cpu` of `cpu,cpuacct`).
            if entry.file_type()?.is_dir() {
                roots.push(entry.path());
            }
        }
        Ok(roots)
    }

    /// Folder of a group in a controller's hierarchy.
    fn dir(&self, controller: &str, cgroup: &str) -> PathBuf {
        let relative = cgroup.trim_start_matches('/');
        match self.version {
            Version::One => self.mount.join(controller).join(relative),
            Version::Two => self.mount.join(relative),
        }
    }
}

/// Removes a group and those below it; their files go with them.
fn remove_tree(dir: &Path) -> io::Result<()> {
    let entries = match std::fs::read_dir(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        entries => entries?,
    };
    for entry in entries {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            remove_tree(&entry.path())?;
        }
    }
    match std::fs::remove_dir(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        done => done,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_pods_group_is_removed_from_every_hierarchy_and_class() {
        let dir = tempfile::tempdir().unwrap();
        for controller in ["cpu", "memory"] {
            let root = dir.path().join(controller).join("balsa");
            std::fs::create_dir_all(root.join("burstable/podx/inner")).unwrap();
            std::fs::create_dir_all(root.join("pody")).unwrap();
        }
        let cgroups = Cgroups::at(dir.path(), "/balsa");
        cgroups.remove_pod("x").unwrap();
        cgroups.remove_pod("x").unwrap();
        for controller in ["cpu", "memory"] {
            let root = dir.path().join(controller).join("balsa");
            assert!(!root.join("burstable/podx").exists());
            assert!(root.join("burstable").exists() && root.join("pody").exists());
        }
    }

    #[test]
    fn pods_are_known_by_their_groups_wherever_one_is_left() {
        let dir = tempfile::tempdir().unwrap();
        for group in [
            "cpu/balsa/podx",
            "cpu/balsa/burstable/pody/inner",
            "memory/balsa/besteffort/podz",
            "memory/balsa/podx",
            "memory/podelsewhere",
        ] {
            std::fs::create_dir_all(dir.path().join(group)).unwrap();
        }
        let pods = Cgroups::at(dir.path(), "/balsa").pods();
        assert_eq!(pods.into_iter().collect::<Vec<_>>(), ["x", "y", "z"]);
    }

    #[test]
    fn nothing_outside_is_touched() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(dir.path().join("cpu/x")).unwrap();
        let cgroups = Cgroups::at(dir.path(), "/balsa");
        cgroups.remove("/../cpu/x").unwrap();
        cgroups.remove("/").unwrap();
        assert!(dir.path().join("cpu/x").exists());
    }
}
