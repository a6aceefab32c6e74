//! Who may pass through the agent's folders.

use std::fs::Permissions;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use tracing::warn;

/// Lets the root users of pods with user namespaces of their own, who are nobody on the node, reach their containers'
/// root file systems below `open`, a folder in `folder`. Its other folders are closed to them.
///
/// # Errors
/// When a mode can't be read or set.
pub(crate) fn let_pods_through(folder: &Path, open: &Path) -> io::Result<()> {
    for entry in std::fs::read_dir(folder)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() && entry.path() != open {
            change(&entry.path(), |mode| mode & !0o007)?;
        }
    }
    change(open, |mode| mode | 0o011)?;
    change(folder, |mode| mode | 0o011)?;
    for above in folder.ancestors().skip(1) {
        if std::fs::metadata(above)?.permissions().mode() & 0o001 == 0 {
            warn!(
                folder = %above.display(),
                "pods with user namespaces (hostUsers: false) cannot be started: others may not search this folder (chmod o+x)"
            );
        }
    }
    Ok(())
}

fn change(path: &Path, wanted: impl Fn(u32) -> u32) -> io::Result<()> {
    let mode = std::fs::metadata(path)?.permissions().mode() & 0o7777;
    if wanted(mode) == mode {
        return Ok(());
    }
    std::fs::set_permissions(path, Permissions::from_mode(wanted(mode)))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn the_way_to_containers_is_open_and_nothing_beside_it() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("data");
        for (path, mode) in [
            ("", 0o700),
            ("containerd", 0o700),
            ("pods", 0o755),
            ("keys", 0o700),
        ] {
            std::fs::create_dir(folder.join(path)).unwrap();
            change(&folder.join(path), |_| mode).unwrap();
        }
        let_pods_through(&folder, &folder.join("containerd")).unwrap();
        let mode = |path: &str| {
            let found = std::fs::metadata(folder.join(path)).unwrap();
            found.permissions().mode() & 0o777
        };
        assert_eq!((mode(""), mode("containerd")), (0o711, 0o711));
        assert_eq!((mode("pods"), mode("keys")), (0o750, 0o700));
    }
}
