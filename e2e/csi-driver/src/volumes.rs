//! Volumes as folders, and mounts of them.

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount, umount2};

/// The folder with all volumes.
#[derive(Debug, Clone)]
pub(crate) struct Volumes {
    root: PathBuf,
}

impl Volumes {
    pub(crate) fn new(root: PathBuf) -> io::Result<Self> {
        fs::create_dir_all(root.join(".sizes"))?;
        Ok(Self { root })
    }

    /// The folder of a volume; nothing for names that would lead elsewhere.
    pub(crate) fn folder(&self, handle: &str) -> Option<PathBuf> {
        let plain = !handle.is_empty() && !handle.starts_with('.') && !handle.contains('/');
        plain.then(|| self.root.join(handle))
    }

    pub(crate) fn create(&self, handle: &str) -> io::Result<()> {
        use std::os::unix::fs::PermissionsExt;
        let folder = self.folder(handle).ok_or(io::ErrorKind::InvalidInput)?;
        fs::create_dir_all(&folder)?;
        fs::set_permissions(folder, fs::Permissions::from_mode(0o777))
    }

    pub(crate) fn delete(&self, handle: &str) -> io::Result<()> {
        let folder = self.folder(handle).ok_or(io::ErrorKind::InvalidInput)?;
        let _ = fs::remove_file(self.root.join(".sizes").join(handle));
        match fs::remove_dir_all(folder) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    /// Notes how large a volume is.
    pub(crate) fn set_size(&self, handle: &str, bytes: i64) -> io::Result<()> {
        fs::write(self.root.join(".sizes").join(handle), bytes.to_string())
    }

    pub(crate) fn size(&self, handle: &str) -> Option<i64> {
        let text = fs::read_to_string(self.root.join(".sizes").join(handle)).ok()?;
        text.trim().parse().ok()
    }

    /// The file behind the device of a volume, as large as the volume.
    pub(crate) fn disk(&self, handle: &str) -> io::Result<PathBuf> {
        let folder = self.folder(handle).ok_or(io::ErrorKind::InvalidInput)?;
        let path = folder.join("disk");
        let file = fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(&path)?;
        let size = self.size(handle).unwrap_or(1 << 20);
        file.set_len(u64::try_from(size).unwrap_or(0))?;
        Ok(path)
    }

    /// The device of a volume on a node.
    pub(crate) fn device(&self, node: &str, handle: &str) -> Option<PathBuf> {
        let text = fs::read_to_string(self.device_note(node, handle)).ok()?;
        Some(PathBuf::from(text))
    }

    /// Notes the device of a volume on a node, or that it has none.
    pub(crate) fn set_device(
        &self,
        node: &str,
        handle: &str,
        device: Option<&Path>,
    ) -> io::Result<()> {
        let note = self.device_note(node, handle);
        let Some(device) = device else {
            return fs::remove_file(note);
        };
        fs::create_dir_all(self.root.join(".devices"))?;
        fs::write(note, device.display().to_string())
    }

    fn device_note(&self, node: &str, handle: &str) -> PathBuf {
        self.root.join(".devices").join(format!("{node}.{handle}"))
    }

    /// What is wrong with a volume: tests write it into `.broken/HANDLE`.
    pub(crate) fn trouble(&self, handle: &str) -> Option<String> {
        fs::read_to_string(self.root.join(".broken").join(handle)).ok()
    }

    /// Notes a call, for people and tests to read.
    pub(crate) fn note(&self, call: &str) {
        let file = fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(self.root.join(".calls"));
        if let Ok(mut file) = file {
            let _ = writeln!(file, "{call}");
        }
        println!("{call}");
    }
}

/// Shows a folder at another place as well. Again is fine.
pub(crate) fn bind(source: &Path, target: &Path, read_only: bool) -> io::Result<()> {
    fs::create_dir_all(target)?;
    if is_mounted(target)? {
        return Ok(());
    }
    let none = None::<&str>;
    mount(Some(source), target, none, MsFlags::MS_BIND, none)?;
    if read_only {
        let flags = MsFlags::MS_BIND | MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY;
        mount(none, target, none, flags, none)?;
    }
    Ok(())
}

/// Undoes [`bind`]. Again is fine.
pub(crate) fn unbind(target: &Path) -> io::Result<()> {
    while target.exists() && is_mounted(target)? {
        match umount2(target, MntFlags::empty()) {
            Ok(()) => {}
            Err(Errno::EINVAL | Errno::ENOENT) => break,
            Err(error) => return Err(error.into()),
        }
    }
    match fs::remove_dir(target) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Is something mounted there?
pub(crate) fn is_mounted(target: &Path) -> io::Result<bool> {
    let target = fs::canonicalize(target)?;
    let table = fs::read_to_string("/proc/self/mountinfo")?;
    let mut points = table.lines().filter_map(|line| line.split(' ').nth(4));
    Ok(points.any(|point| Path::new(point) == target))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn volumes_stay_in_their_folder() {
        let dir = tempfile::tempdir().unwrap();
        let volumes = Volumes::new(dir.path().to_owned()).unwrap();
        for bad in ["", ".sizes", "../x", "a/b"] {
            assert!(volumes.folder(bad).is_none() && volumes.create(bad).is_err());
        }
        volumes.create("v").unwrap();
        volumes.set_size("v", 7).unwrap();
        assert_eq!(volumes.size("v"), Some(7));
        volumes.delete("v").unwrap();
        volumes.delete("v").unwrap();
        assert!(!dir.path().join("v").exists());
    }
}
