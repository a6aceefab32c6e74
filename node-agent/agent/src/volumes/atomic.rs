//! Writing a payload so that readers see either all of the old or all of the new: files go into a new folder,
//! the symbolic link `..data` is switched to it, and visible names are links through `..data`.

use std::collections::BTreeSet;
use std::io;
use std::os::unix::fs::{PermissionsExt, chown, symlink};
use std::path::Path;

use super::ownership::{self, ChangePolicy};
use super::payload::{File, Payload};

const DATA: &str = "..data";
const NEXT: &str = "..data_tmp";

/// Whom the files of a payload belong to.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Owner {
    /// The pod's `fsGroup`.
    pub(crate) group: Option<u32>,
    /// The user that all containers of the pod run as, if it is one.
    pub(crate) user: Option<u32>,
}

/// Makes `dir` show the payload; answers whether anything changed.
pub(crate) fn write(dir: &Path, payload: &Payload, owner: Owner) -> io::Result<bool> {
    let old = std::fs::read_link(dir.join(DATA)).ok();
    if let Some(old) = &old
        && same(&dir.join(old), payload)
    {
        return Ok(false);
    }
    let name = fresh_name(dir);
    let target = dir.join(&name);
    std::fs::create_dir(&target)?;
    std::fs::set_permissions(&target, std::fs::Permissions::from_mode(0o755))?;
    for (path, file) in payload {
        write_file(&target, path, file, owner)?;
    }
    if let Some(group) = owner.group {
        // Pods can't write to these volumes, whatever their files' modes say.
        ownership::apply(dir, group, true, ChangePolicy::Always)?;
    }
    let next = dir.join(NEXT);
    match std::fs::remove_file(&next) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    symlink(&name, &next)?;
    std::fs::rename(&next, dir.join(DATA))?;
    link_visible(dir, payload)?;
    if let Some(old) = old {
        std::fs::remove_dir_all(dir.join(old))?;
    }
    Ok(true)
}

fn fresh_name(dir: &Path) -> String {
    let stamp = jiff::Timestamp::now()
        .strftime("%Y_%m_%d_%H_%M_%S")
        .to_string();
    let names = (0_u64..).map(|number| format!("..{stamp}.{number}"));
    let mut free = names.filter(|name| !dir.join(name).exists());
    free.next().unwrap_or_default()
}

/// Does the folder hold just this payload?
fn same(dir: &Path, payload: &Payload) -> bool {
    let mut found = 0;
    let mut folders = vec![dir.to_owned()];
    while let Some(folder) = folders.pop() {
        let Ok(entries) = std::fs::read_dir(folder) else {
            return false;
        };
        for entry in entries.flatten() {
            if entry.path().is_dir() {
                folders.push(entry.path());
            } else {
                found += 1;
            }
        }
    }
    let equal = |path: &String, file: &File| {
        std::fs::read(dir.join(path)).is_ok_and(|bytes| bytes == file.bytes)
    };
    found == payload.len() && payload.iter().all(|(path, file)| equal(path, file))
}

fn write_file(dir: &Path, path: &str, file: &File, owner: Owner) -> io::Result<()> {
    let full = dir.join(path);
    if let Some(parent) = full.parent() {
        std::fs::create_dir_all(parent)?;
    }
    std::fs::write(&full, &file.bytes)?;
    let mut mode = file.mode;
    if file.private && (owner.group.is_some() || owner.user.is_some()) {
        mode = 0o600;
    }
    if let Some(user) = owner.user.filter(|_| file.private) {
        chown(&full, Some(user), None)?;
    }
    std::fs::set_permissions(&full, std::fs::Permissions::from_mode(mode))
}

/// Links each top-level name through `..data` and removes links to what is no more.
fn link_visible(dir: &Path, payload: &Payload) -> io::Result<()> {
    let wanted: BTreeSet<&str> = payload
        .keys()
        .map(|path| path.split('/').next().unwrap_or(path))
        .collect();
    for entry in std::fs::read_dir(dir)? {
        let entry = entry?;
        let name = entry.file_name();
        let name = name.to_string_lossy();
        if !name.starts_with("..") && !wanted.contains(&*name) {
            std::fs::remove_file(entry.path())?;
        }
    }
    for name in wanted {
        match symlink(Path::new(DATA).join(name), dir.join(name)) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            _ => {}
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn payload(files: &[(&str, &str)]) -> Payload {
        let file = |text: &str| File {
            bytes: text.as_bytes().to_vec(),
            mode: 0o640,
            private: false,
        };
        files
            .iter()
            .map(|(path, text)| ((*path).to_owned(), file(text)))
            .collect()
    }

    #[test]
    fn an_update_switches_all_files_and_removes_the_old_ones() {
        let dir = tempfile::tempdir().unwrap();
        let read = |path: &str| std::fs::read_to_string(dir.path().join(path)).ok();
        assert!(
            write(
                dir.path(),
                &payload(&[("a", "1"), ("d/b", "2")]),
                Owner::default()
            )
            .unwrap()
        );
        assert_eq!(
            (read("a").as_deref(), read("d/b").as_deref()),
            (Some("1"), Some("2"))
        );
        assert!(
            !write(
                dir.path(),
                &payload(&[("a", "1"), ("d/b", "2")]),
                Owner::default()
            )
            .unwrap()
        );
        assert!(
            write(
                dir.path(),
                &payload(&[("a", "3"), ("c", "4")]),
                Owner::default()
            )
            .unwrap()
        );
        assert_eq!(
            (read("a").as_deref(), read("d/b"), read("c").as_deref()),
            (Some("3"), None, Some("4"))
        );
        let left = std::fs::read_dir(dir.path()).unwrap().count();
        assert_eq!(left, 4, "a, c, ..data and one data folder");
    }

    #[test]
    fn permissions_are_those_asked_for() {
        let dir = tempfile::tempdir().unwrap();
        write(dir.path(), &payload(&[("a", "1")]), Owner::default()).unwrap();
        let mode = std::fs::metadata(dir.path().join("a"))
            .unwrap()
            .permissions()
            .mode();
        assert_eq!(mode & 0o777, 0o640);
    }

    #[test]
    fn folders_and_files_are_the_groups_to_read() {
        let dir = tempfile::tempdir().unwrap();
        let owner = Owner {
            group: Some(nix::unistd::getgid().as_raw()),
            user: None,
        };
        write(dir.path(), &payload(&[("d/a", "1")]), owner).unwrap();
        let mode = |path: &str| {
            let metadata = std::fs::metadata(dir.path().join(path)).unwrap();
            metadata.permissions().mode() & 0o7777
        };
        assert_eq!((mode("d/a"), mode("d") & 0o2550), (0o640, 0o2550));
        assert_eq!(mode("") & 0o2550, 0o2550);
    }
}
