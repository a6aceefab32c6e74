//! Giving a volume's files to the pod's `fsGroup`.

use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt, lchown};
use std::path::Path;

/// When files of a volume that was there before are changed (`fsGroupChangePolicy`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ChangePolicy {
    /// Every time.
    Always,
    /// When the top folder does not have the group already.
    OnRootMismatch,
}

/// Gives all files below a folder to a group, which may read and write what the owner may; new files inherit it.
/// Blocking, and slow for many files.
pub(super) fn apply(
    root: &Path,
    group: u32,
    read_only: bool,
    policy: ChangePolicy,
) -> io::Result<()> {
    if policy == ChangePolicy::OnRootMismatch {
        let metadata = std::fs::metadata(root)?;
        let wanted = wanted_mode(metadata.mode(), true, read_only);
        if metadata.gid() == group && metadata.mode() & 0o7777 == wanted {
            return Ok(());
        }
    }
    let mut folders = vec![root.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder)? {
            let entry = entry?;
            let kind = entry.file_type()?;
            if kind.is_dir() {
                folders.push(entry.path());
            } else {
                change(&entry.path(), group, kind.is_symlink(), false, read_only)?;
            }
        }
        change(&folder, group, false, true, read_only)?;
    }
    Ok(())
}

fn change(path: &Path, group: u32, link: bool, folder: bool, read_only: bool) -> io::Result<()> {
    lchown(path, None, Some(group))?;
    if link {
        return Ok(());
    }
    let mode = std::fs::symlink_metadata(path)?.mode();
    let wanted = wanted_mode(mode, folder, read_only);
    if mode & 0o7777 == wanted {
        return Ok(());
    }
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(wanted))
}

fn wanted_mode(mode: u32, folder: bool, read_only: bool) -> u32 {
    let rights = if read_only { 0o440 } else { 0o660 };
    let own = if folder { 0o2110 } else { 0 };
    (mode & 0o7777) | rights | own
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn files_become_the_groups_and_folders_hand_it_on() {
        let dir = tempfile::tempdir().unwrap();
        let group = nix::unistd::getgid().as_raw();
        std::fs::create_dir(dir.path().join("d")).unwrap();
        std::fs::write(dir.path().join("d/f"), "").unwrap();
        std::fs::set_permissions(
            dir.path().join("d/f"),
            std::fs::Permissions::from_mode(0o600),
        )
        .unwrap();
        apply(dir.path(), group, false, ChangePolicy::Always).unwrap();
        let mode = |name: &str| std::fs::metadata(dir.path().join(name)).unwrap().mode() & 0o7777;
        assert_eq!(mode("d/f"), 0o660);
        assert_eq!(mode("d") & 0o2070, 0o2070);
    }
}
