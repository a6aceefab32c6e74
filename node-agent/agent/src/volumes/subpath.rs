//! Parts of volumes. A container could replace a folder of its volume by a link while the node looks at it, so
//! the part is opened once, in a way that the kernel keeps inside the volume, and what was opened is mounted
//! where no container can reach.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use nix::fcntl::{OFlag, OpenHow, ResolveFlag, open, openat2};
use nix::mount::{MntFlags, MsFlags};
use nix::sys::stat::{Mode, mkdirat};

use super::table;

/// Pins a part of a volume at `target` and answers with that. Blocking; the error is for people.
pub(super) fn pin(root: &Path, part: &str, target: &Path) -> Result<PathBuf, String> {
    let fd = open_inside(root, part)
        .map_err(|error| format!("cannot open {part:?} inside the volume: {error}"))?;
    bind(&fd, target).map_err(|error| format!("failed to bind subPath {part:?}: {error}"))?;
    Ok(target.to_owned())
}

/// Makes a folder of a volume if it is missing, with the permissions of the volume's top, never following a link
/// out of it.
pub(super) fn make(root: &Path, part: &str) -> io::Result<()> {
    let mode = Mode::from_bits_truncate(std::fs::metadata(root)?.mode() & 0o3777);
    let mut at = PathBuf::new();
    for step in part
        .split('/')
        .filter(|step| !step.is_empty() && *step != ".")
    {
        let parent = open_inside(root, &at.display().to_string())?;
        at.push(step);
        match mkdirat(&parent, step, mode) {
            Ok(()) => {
                // Again, because the process has a mask; by descriptor, because it may be a link by now.
                let made = open_inside(root, &at.display().to_string())?;
                let made = format!("/proc/self/fd/{}", made.as_raw_fd());
                std::fs::set_permissions(made, std::fs::Permissions::from_mode(mode.bits()))?;
            }
            Err(nix::errno::Errno::EEXIST) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// Does the part exist?
pub(super) fn exists(root: &Path, part: &str) -> bool {
    open_inside(root, part).is_ok()
}

/// Reads a plain file of a volume, never following a link out of it.
pub(super) fn read(root: &Path, part: &str, most: u64) -> io::Result<Vec<u8>> {
    use std::io::Read;
    let fd = open_inside(root, part)?;
    let path = format!("/proc/self/fd/{}", fd.as_raw_fd());
    // A pipe would never end.
    if !std::fs::metadata(&path)?.is_file() {
        return Err(io::Error::other("it is not a plain file"));
    }
    let mut bytes = Vec::new();
    std::fs::File::open(path)?
        .take(most + 1)
        .read_to_end(&mut bytes)?;
    if bytes.len() as u64 > most {
        return Err(io::Error::other(format!("it is larger than {most} bytes")));
    }
    Ok(bytes)
}

fn open_inside(root: &Path, part: &str) -> io::Result<OwnedFd> {
    let flags = OFlag::O_PATH | OFlag::O_CLOEXEC;
    let root = open(root, flags | OFlag::O_DIRECTORY, Mode::empty())?;
    if part.is_empty() {
        return Ok(root);
    }
    let how = OpenHow::new()
        .flags(flags)
        .resolve(ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_MAGICLINKS);
    Ok(openat2(&root, part, how)?)
}

fn bind(fd: &OwnedFd, target: &Path) -> io::Result<()> {
    let source = format!("/proc/self/fd/{}", fd.as_raw_fd());
    let folder = std::fs::metadata(&source)?.is_dir();
    if target.exists() && table::is_mounted(target)? {
        // From an earlier instance of the container; the part may be another one by now.
        nix::mount::umount2(target, MntFlags::MNT_DETACH)?;
    }
    if let Some(parent) = target.parent() {
        std::fs::create_dir_all(parent)?;
    }
    if target.exists() && target.is_dir() != folder {
        if target.is_dir() {
            std::fs::remove_dir(target)?;
        } else {
            std::fs::remove_file(target)?;
        }
    }
    if folder {
        std::fs::create_dir_all(target)?;
    } else if !target.exists() {
        std::fs::File::create(target)?;
    }
    let flags = MsFlags::MS_BIND | MsFlags::MS_REC;
    nix::mount::mount(
        Some(source.as_str()),
        target,
        None::<&str>,
        flags,
        None::<&str>,
    )?;
    Ok(())
}
