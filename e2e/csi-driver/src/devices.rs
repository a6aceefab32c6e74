//! Volumes as devices: a file of the volume behind one of the machine's loop devices.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;

use nix::mount::{MntFlags, MsFlags, mount, umount2};

use crate::volumes::is_mounted;

/// Attempts to get a free device: other nodes of the same machine take them too.
const ATTEMPTS: usize = 20;

fn losetup(arguments: &[&str]) -> io::Result<String> {
    let output = Command::new("/bin/losetup").args(arguments).output()?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned());
    }
    let words = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    Err(io::Error::other(words))
}

/// Puts a file behind a free device and tells which.
pub(crate) fn attach(file: &Path) -> io::Result<PathBuf> {
    let name = file.display().to_string();
    let mut last = io::Error::other("there is no loop device");
    for _ in 0..ATTEMPTS {
        let device = losetup(&["-f"])?;
        match losetup(&[&device, &name]) {
            Ok(_) => return Ok(PathBuf::from(device)),
            Err(error) => last = error,
        }
    }
    Err(last)
}

/// Undoes [`attach`].
pub(crate) fn detach(device: &Path) -> io::Result<()> {
    losetup(&["-d", &device.display().to_string()]).map(|_| ())
}

/// Shows a device at another place as well. Again is fine.
pub(crate) fn bind(device: &Path, target: &Path) -> io::Result<()> {
    if let Some(folder) = target.parent() {
        fs::create_dir_all(folder)?;
    }
    fs::OpenOptions::new()
        .create(true)
        .append(true)
        .open(target)?;
    if is_mounted(target)? {
        return Ok(());
    }
    let none = None::<&str>;
    mount(Some(device), target, none, MsFlags::MS_BIND, none)?;
    Ok(())
}

/// Undoes [`bind`]. Again is fine.
pub(crate) fn unbind(target: &Path) -> io::Result<()> {
    if target.exists() && is_mounted(target)? {
        umount2(target, MntFlags::empty())?;
    }
    match fs::remove_file(target) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}
