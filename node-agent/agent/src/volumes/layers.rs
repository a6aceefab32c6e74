//! Images mounted as volumes of pods with user namespaces of their own: their files are to belong to the pod's ids.
//!
//! An image of one layer is mounted as that layer's folder, which the runtime shows with other owners like any. An
//! image of several is an overlay, whose mount the kernel can't show so. Its layers it can: an overlay of layers that
//! show the pod's ids is mounted over the first.

use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;

use balsa_cri::IdRange;
use nix::mount::MntFlags;

use super::table;

/// Has the files of what is mounted at `at` belong to a pod's ids, by way of mounts in `folder`. False if the runtime
/// has yet to do so. Again is fine. Blocking.
pub(crate) fn give_to(at: &Path, folder: &Path, users: IdRange) -> io::Result<bool> {
    let Some(layers) = table::layers(at)? else {
        return Ok(false);
    };
    if are_ours(&layers) {
        return Ok(true);
    }
    if let Some(layer) = layers.iter().find(|layer| !layer.is_absolute()) {
        let layer = layer.display();
        return Err(io::Error::other(format!(
            "the image has too many layers for a pod with hostUsers: false: the runtime mounted {layer} by a relative path"
        )));
    }
    let mapped = map_all(&layers, folder, users).and_then(|names| overlay(&names, folder, at));
    // The overlay holds them for itself.
    for name in names(layers.len()) {
        let _ = nix::mount::umount2(&folder.join(name), MntFlags::MNT_DETACH);
    }
    mapped.map(|()| true)
}

/// The folders of so many layers. Short and relative, as the kernel takes all names together in one page.
fn names(count: usize) -> impl Iterator<Item = String> {
    (0..count).map(|index| index.to_string())
}

/// Are these the layers of an overlay that was made here?
fn are_ours(layers: &[PathBuf]) -> bool {
    let known = layers.iter().map(PathBuf::as_path);
    !layers.is_empty()
        && known.eq(names(layers.len())
            .collect::<Vec<_>>()
            .iter()
            .map(Path::new))
}

/// Mounts each layer so that its files belong to the pod's ids.
fn map_all(layers: &[PathBuf], folder: &Path, users: IdRange) -> io::Result<Vec<String>> {
    let option = format!("X-mount.idmap=b:0:{}:{}", users.first, users.length);
    let names: Vec<String> = names(layers.len()).collect();
    for (layer, name) in layers.iter().zip(&names) {
        let at = folder.join(name);
        std::fs::create_dir_all(&at)?;
        let mut command = Command::new("mount");
        command.args(["--bind", "-o", &option]).arg(layer).arg(&at);
        run(command)?;
    }
    Ok(names)
}

fn overlay(names: &[String], folder: &Path, at: &Path) -> io::Result<()> {
    let option = format!("ro,lowerdir={}", names.join(":"));
    let mut command = Command::new("mount");
    command.args(["-t", "overlay", "overlay", "-o", &option]);
    // The newer of the kernel's interfaces takes 256 bytes for an option only.
    command.env("LIBMOUNT_FORCE_MOUNT2", "always");
    command.arg(at).current_dir(folder);
    run(command)
}

fn run(mut command: Command) -> io::Result<()> {
    let output = command.output()?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(io::Error::other(format!(
        "{} (pods with hostUsers: false need util-linux 2.39 or newer for this)",
        said.trim()
    )))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn an_overlay_of_ours_is_known_again() {
        let ours =
            |layers: &[&str]| are_ours(&layers.iter().map(PathBuf::from).collect::<Vec<_>>());
        assert!(ours(&["0", "1"]));
        assert!(!ours(&["1", "0"]) && !ours(&["7/fs", "6/fs"]) && !ours(&["/x/0"]) && !ours(&[]));
    }

    #[test]
    fn what_is_no_overlay_is_left_to_the_runtime() {
        let users = IdRange {
            first: 65_536,
            length: 65_536,
        };
        assert!(!give_to(Path::new("/proc"), Path::new("/nowhere"), users).unwrap());
    }
}
