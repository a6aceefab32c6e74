//! Keeping logs small: a file that has grown too big is renamed, and the runtime opens a new one.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use balsa_cri::{ContainerState, Runtime};
use tokio_util::sync::CancellationToken;
use tracing::warn;

/// Size in bytes at which a file is rotated.
const MAX_SIZE: u64 = 10 << 20;

/// Most files of one instance, the current one included.
const MAX_FILES: usize = 5;

/// How often sizes are looked at.
const PERIOD: Duration = Duration::from_secs(10);

/// Rotates the logs of running containers.
pub(crate) struct Rotator {
    pub(crate) runtime: Arc<dyn Runtime>,
    /// Folder of all logs.
    pub(crate) folder: PathBuf,
}

impl Rotator {
    /// Runs until stopped.
    pub(crate) async fn run(self, stop: CancellationToken) {
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(PERIOD) => {}
            }
            if let Err(error) = self.look(MAX_SIZE).await {
                warn!(%error, "log rotation failed");
            }
        }
    }

    /// The runtime is only asked when some file is too big: most of the time this costs a few system calls.
    async fn look(&self, max_size: u64) -> balsa_cri::Result<()> {
        let big = big_logs(&self.folder, max_size).unwrap_or_default();
        if big.is_empty() {
            return Ok(());
        }
        for container in self.runtime.list_containers().await? {
            if container.state != ContainerState::Running {
                continue;
            }
            let status = self.runtime.container_status(&container.id).await?;
            let path = Path::new(&status.log_path);
            if !big.iter().any(|big| big == path) {
                continue;
            }
            let old = rename(path).map_err(|error| local(path, &error))?;
            if let Err(error) = self.runtime.reopen_log(&container.id).await {
                // The runtime still writes to the old file: give it its name back.
                std::fs::rename(&old, path).map_err(|error| local(path, &error))?;
                return Err(error);
            }
            prune(path).map_err(|error| local(path, &error))?;
        }
        Ok(())
    }
}

fn local(path: &Path, error: &io::Error) -> balsa_cri::Error {
    balsa_cri::Error::Local {
        what: format!("rotating {}", path.display()),
        message: error.to_string(),
    }
}

fn big_logs(folder: &Path, max_size: u64) -> io::Result<Vec<PathBuf>> {
    let mut big = Vec::new();
    for pod in std::fs::read_dir(folder)?.flatten() {
        for container in std::fs::read_dir(pod.path())
            .into_iter()
            .flatten()
            .flatten()
        {
            for file in std::fs::read_dir(container.path())
                .into_iter()
                .flatten()
                .flatten()
            {
                let path = file.path();
                let current = path.extension().is_some_and(|extension| extension == "log");
                if current
                    && file
                        .metadata()
                        .is_ok_and(|metadata| metadata.len() >= max_size)
                {
                    big.push(path);
                }
            }
        }
    }
    Ok(big)
}

/// Renames to `NAME.TIME`, where times sort as text.
fn rename(path: &Path) -> io::Result<PathBuf> {
    let stamp = jiff::Timestamp::now().strftime("%Y%m%d-%H%M%S-%f");
    let old = PathBuf::from(format!("{}.{stamp}", path.display()));
    std::fs::rename(path, &old)?;
    Ok(old)
}

/// Removes the oldest of the renamed files.
fn prune(path: &Path) -> io::Result<()> {
    let (Some(dir), Some(name)) = (path.parent(), path.file_name()) else {
        return Ok(());
    };
    let prefix = format!("{}.", name.to_string_lossy());
    let files = std::fs::read_dir(dir)?.flatten().map(|entry| entry.path());
    let is_old = |path: &PathBuf| {
        path.file_name()
            .is_some_and(|name| name.to_string_lossy().starts_with(&prefix))
    };
    let mut old: Vec<_> = files.filter(is_old).collect();
    old.sort();
    let surplus = old.len().saturating_sub(MAX_FILES - 1);
    old.into_iter()
        .take(surplus)
        .try_for_each(std::fs::remove_file)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn big_files_are_found_renamed_and_the_oldest_removed() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("ns_pod_uid/c");
        std::fs::create_dir_all(&folder).unwrap();
        let path = folder.join("0.log");
        for number in 0..7 {
            std::fs::write(&path, number.to_string()).unwrap();
            assert_eq!(
                big_logs(dir.path(), 1).unwrap(),
                std::slice::from_ref(&path)
            );
            rename(&path).unwrap();
            prune(&path).unwrap();
        }
        let mut left: Vec<_> = std::fs::read_dir(&folder)
            .unwrap()
            .flatten()
            .map(|entry| entry.path())
            .collect();
        left.sort();
        let texts: Vec<_> = left
            .iter()
            .map(|path| std::fs::read_to_string(path).unwrap())
            .collect();
        assert_eq!(texts, ["3", "4", "5", "6"]);
    }
}
