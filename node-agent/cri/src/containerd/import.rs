//! Image archives. CRI can't load them and containerd's gRPC services only in pieces (before 1.7), so the
//! client program of the containerd package does it: it reads OCI layouts and `docker save` files alike.

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use super::NAMESPACE;
use crate::error::{Error, Result};

/// Time allowed to an import.
const IMPORT_TIMEOUT: Duration = Duration::from_secs(600);

pub(super) async fn run(ctr: &Path, socket: &Path, archive: &Path) -> Result<()> {
    let what = || format!("importing {} with {}", archive.display(), ctr.display());
    let mut command = tokio::process::Command::new(ctr);
    command
        .arg("--address")
        .arg(socket)
        .args(["--namespace", NAMESPACE, "images", "import"])
        .arg(archive);
    command.stdin(Stdio::null()).kill_on_drop(true);
    let output = tokio::time::timeout(IMPORT_TIMEOUT, command.output())
        .await
        .map_err(|_| Error::Timeout {
            call: "image import",
            after: IMPORT_TIMEOUT,
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
