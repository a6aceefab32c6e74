//! Cgroups of pods. runc makes them; nobody removes the pod's own one, so the agent does.

use std::io;
use std::path::{Path, PathBuf};

/// Where cgroup file systems are mounted.
const MOUNT: &str = "/sys/fs/cgroup";

/// Removes a pod's cgroup from every hierarchy (the unified one, or each of version 1).
pub(crate) fn remove(cgroup: &str) -> io::Result<()> {
    remove_under(Path::new(MOUNT), cgroup)
}

fn remove_under(mount: &Path, cgroup: &str) -> io::Result<()> {
    let relative = cgroup.trim_start_matches('/');
    if relative.is_empty() || relative.split('/').any(|part| part == "..") {
        return Ok(());
    }
    let mut result = Ok(());
    for root in roots(mount)? {
        let done = remove_tree(&root.join(relative));
        result = result.and(done);
    }
    result
}

/// The mount itself when it is version 2, else each controller's folder.
fn roots(mount: &Path) -> io::Result<Vec<PathBuf>> {
    if mount.join("cgroup.controllers").exists() {
        return Ok(vec![mount.to_owned()]);
    }
    let mut roots = Vec::new();
    for entry in std::fs::read_dir(mount)? {
        let entry = entry?;
        // Links are other names of the same hierarchies (`cpu` of `cpu,cpuacct`).
        if entry.file_type()?.is_dir() {
            roots.push(entry.path());
        }
    }
    Ok(roots)
}

/// Removes a cgroup and those below it; their files go with them.
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
    fn a_cgroup_is_removed_from_every_hierarchy() {
        let dir = tempfile::tempdir().unwrap();
        for controller in ["cpu", "memory"] {
            std::fs::create_dir_all(dir.path().join(controller).join("balsa/podx/inner")).unwrap();
        }
        remove_under(dir.path(), "/balsa/podx").unwrap();
        remove_under(dir.path(), "/balsa/podx").unwrap();
        for controller in ["cpu", "memory"] {
            assert!(!dir.path().join(controller).join("balsa/podx").exists());
            assert!(dir.path().join(controller).join("balsa").exists());
        }
    }

    #[test]
    fn nothing_outside_is_touched() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(dir.path().join("cpu/x")).unwrap();
        remove_under(dir.path(), "/../cpu/x").unwrap();
        remove_under(dir.path(), "/").unwrap();
        assert!(dir.path().join("cpu/x").exists());
    }
}
