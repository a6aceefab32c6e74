//! What CRI can't do and containerd's gRPC services only in pieces (before 1.7): loading image archives, and
//! mounting an image. The client program of the containerd package does both.

use std::ffi::OsStr;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use super::NAMESPACE;
use crate::error::{Error, Result};

/// Time allowed to an import.
const IMPORT_TIMEOUT: Duration = Duration::from_secs(600);

/// Time allowed to a mount.
const MOUNT_TIMEOUT: Duration = Duration::from_secs(60);

/// Loads an OCI layout or a `docker save` file.
pub(super) async fn import(ctr: &Path, socket: &Path, archive: &Path) -> Result<()> {
    let words = [OsStr::new("import"), archive.as_os_str()];
    run(ctr, socket, &words, IMPORT_TIMEOUT).await
}

/// Mounts an image's root file system read-only; the folder must exist.
pub(super) async fn mount(ctr: &Path, socket: &Path, image: &str, at: &Path) -> Result<()> {
    let words = [OsStr::new("mount"), OsStr::new(image), at.as_os_str()];
    run(ctr, socket, &words, MOUNT_TIMEOUT).await
}

/// Unmounts it and removes the snapshot that was mounted.
pub(super) async fn unmount(ctr: &Path, socket: &Path, at: &Path) -> Result<()> {
    let words = [OsStr::new("unmount"), OsStr::new("--rm"), at.as_os_str()];
    run(ctr, socket, &words, MOUNT_TIMEOUT).await
}

async fn run(ctr: &Path, socket: &Path, words: &[&OsStr], limit: Duration) -> Result<()> {
    let what = || {
        let words: Vec<_> = words.iter().map(|word| word.to_string_lossy()).collect();
        format!("{} images {}", ctr.display(), words.join(" "))
    };
    let mut command = tokio::process::Command::new(ctr);
    command
        .arg("--address")
        .arg(socket)
        .args(["--namespace", NAMESPACE, "images"])
        .args(words);
    command.stdin(Stdio::null()).kill_on_drop(true);
    let output = tokio::time::timeout(limit, command.output())
        .await
        .map_err(|_| Error::Timeout {
            call: "ctr images",
            after: limit,
        })?
        .map_err(|error| Error::local(what(), error))?;
    if output.status.success() {
        return Ok(());
    }
    Err(Error::local(
        what(),
        String::from_utf8_lossy(&output.stderr).trim(),
    ))
}
