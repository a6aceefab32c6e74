//! The kernel's table of mounts.

use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use nix::mount::MntFlags;

const TABLE: &str = "/proc/self/mountinfo";

/// All mount points at or below a folder, outermost first.
pub(crate) fn below(dir: &Path) -> io::Result<Vec<PathBuf>> {
    // The table has real paths.
    let dir = match std::fs::canonicalize(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        found => found?,
    };
    let text = std::fs::read(TABLE)?;
    Ok(parse(&text)
        .into_iter()
        .filter(|point| point.starts_with(&dir))
        .collect())
}

/// Is something mounted there?
pub(crate) fn is_mounted(dir: &Path) -> io::Result<bool> {
    let real = std::fs::canonicalize(dir)?;
    Ok(below(dir)?.contains(&real))
}

/// The layers of the overlay that is mounted at a folder, topmost first; `None` for any other file system.
pub(crate) fn layers(dir: &Path) -> io::Result<Option<Vec<PathBuf>>> {
    let dir = std::fs::canonicalize(dir)?;
    Ok(overlay(&std::fs::read(TABLE)?, &dir))
}

fn overlay(text: &[u8], dir: &Path) -> Option<Vec<PathBuf>> {
    let fields = |line: &[u8]| {
        line.split(|byte| *byte == b' ')
            .map(<[u8]>::to_vec)
            .collect::<Vec<_>>()
    };
    let lines = text.split(|byte| *byte == b'\n').map(fields);
    // Of several at one place the last is on top.
    let top = lines
        .rev()
        .find(|fields| fields.get(4).is_some_and(|point| unescape(point) == dir))?;
    let kind = top.iter().skip(6).position(|field| field == b"-")? + 7;
    if top.get(kind)? != b"overlay" {
        return None;
    }
    let mut layers = Vec::new();
    for option in top.get(kind + 2)?.split(|byte| *byte == b',') {
        if let Some(all) = option.strip_prefix(b"lowerdir=") {
            layers.extend(split_layers(&unescape(all)));
        } else if let Some(one) = option.strip_prefix(b"lowerdir+=") {
            layers.push(unescape(one));
        }
    }
    Some(layers)
}

/// Paths with colons between them; a backslash before a colon has it belong to the path.
fn split_layers(joined: &Path) -> Vec<PathBuf> {
    let mut layers = vec![Vec::new()];
    let mut bytes = joined.as_os_str().as_bytes().iter();
    while let Some(byte) = bytes.next() {
        let kept = match byte {
            b':' => {
                layers.push(Vec::new());
                continue;
            }
            b'\\' => bytes.next(),
            _ => Some(byte),
        };
        if let Some(layer) = layers.last_mut() {
            layer.extend(kept);
        }
    }
    let paths = layers.into_iter().map(std::ffi::OsString::from_vec);
    paths.map(PathBuf::from).collect()
}

/// Do mounts below a folder show wherever the folder is mounted too?
pub(crate) fn is_shared(dir: &Path) -> io::Result<bool> {
    let dir = std::fs::canonicalize(dir)?;
    Ok(shared(&std::fs::read(TABLE)?, &dir))
}

/// Is the mount that a path is on a shared one?
fn shared(text: &[u8], path: &Path) -> bool {
    let lines = text.split(|byte| *byte == b'\n');
    let around = lines.filter_map(|line| {
        let mut fields = line.split(|byte| *byte == b' ');
        let point = unescape(fields.nth(4)?);
        // Options, then tags until a hyphen.
        let mut tags = fields.skip(1).take_while(|tag| *tag != b"-");
        let shared = tags.any(|tag| tag.starts_with(b"shared:"));
        path.starts_with(&point).then_some((point, shared))
    });
    // Of several at one place the last is on top, and so is the last one that `max_by_key` finds.
    let top = around.max_by_key(|(point, _)| point.as_os_str().len());
    top.is_some_and(|(_, shared)| shared)
}

/// Unmounts everything at or below a folder, and fails if something is left: whoever removes the folder next
/// would remove what is mounted.
pub(super) fn unmount_below(dir: &Path) -> io::Result<()> {
    // Mounts may lie over each other, so one pass may lay bare another.
    for _ in 0..8 {
        let points = below(dir)?;
        if points.is_empty() {
            return Ok(());
        }
        for point in points.iter().rev() {
            match nix::mount::umount2(point, MntFlags::MNT_DETACH) {
                // Gone already, with the one it was in.
                Ok(()) | Err(nix::errno::Errno::EINVAL | nix::errno::Errno::ENOENT) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
    match below(dir)?.first() {
        None => Ok(()),
        Some(left) => Err(io::Error::other(format!(
            "{} cannot be unmounted",
            left.display()
        ))),
    }
}

/// The mount points of a table, in its order.
fn parse(text: &[u8]) -> Vec<PathBuf> {
    let lines = text.split(|byte| *byte == b'\n');
    // ID, parent, device, root, mount point, ...
    let points = lines.filter_map(|line| line.split(|byte| *byte == b' ').nth(4));
    points.map(unescape).collect()
}

/// Blanks, line feeds and backslashes are written as three octal digits.
fn unescape(text: &[u8]) -> PathBuf {
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some((first, after)) = rest.split_first() {
        let code = after
            .get(..3)
            .filter(|_| *first == b'\\')
            .and_then(|digits| std::str::from_utf8(digits).ok())
            .and_then(|digits| u8::from_str_radix(digits, 8).ok());
        match code {
            Some(code) => {
                out.push(code);
                rest = &after[3..];
            }
            None => {
                out.push(*first);
                rest = after;
            }
        }
    }
    std::ffi::OsString::from_vec(out).into()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn the_innermost_mount_says_whether_a_folder_is_shared() {
        let text = b"1 0 8:1 / / rw - ext4 /dev/x rw\n2 1 8:1 /d /d rw shared:7 - ext4 /dev/x rw\n\
            3 2 8:1 /d/e /d/e rw master:7 - ext4 /dev/x rw\n";
        let is = |path: &str| shared(text, Path::new(path));
        assert!(is("/d") && is("/d/x/y"));
        assert!(!is("/") && !is("/dx") && !is("/d/e/f"));
    }

    #[test]
    fn an_overlays_layers_are_read_topmost_first() {
        let text = b"1 0 0:4 / /i ro - ext4 /dev/x ro\n\
            2 1 0:5 / /i ro,relatime shared:1 - overlay overlay ro,lowerdir=/l/2:/l/a\\134:b\\040c,redirect_dir=on\n\
            3 1 0:6 / /j ro - overlay overlay ro,lowerdir+=/l/2,lowerdir+=/l/1\n";
        let of = |dir: &str| overlay(text, Path::new(dir));
        assert_eq!(of("/i"), Some(vec!["/l/2".into(), "/l/a:b c".into()]));
        assert_eq!(of("/j"), Some(vec!["/l/2".into(), "/l/1".into()]));
        assert_eq!(of("/k"), None);
        assert_eq!(
            overlay(b"1 0 0:4 / /i ro - ext4 /dev/x ro\n", Path::new("/i")),
            None
        );
    }

    #[test]
    fn mount_points_are_read_with_their_blanks() {
        let text =
            b"36 35 98:0 /r /mnt/a\\040b rw - ext4 /dev/x rw\n37 36 0:4 / /mnt/c rw - proc p rw\n";
        assert_eq!(
            parse(text),
            [PathBuf::from("/mnt/a b"), PathBuf::from("/mnt/c")]
        );
        assert!(is_mounted(Path::new("/proc")).unwrap());
    }
}
