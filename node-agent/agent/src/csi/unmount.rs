//! Having drivers take volumes back.

use std::io;
use std::path::Path;

use tonic::Code;
use tracing::warn;

use super::driver::{CallError, Driver};
use super::mount::is_mounted;
use super::record::Record;
use super::registry::unknown;
use super::{Csi, blocking};

impl Csi {
    /// Has drivers take back all volumes of a pod whose containers have ended. Again is fine; the error is for
    /// people, and then something is left.
    pub(crate) async fn tear_down(&self, uid: &str) -> Result<(), String> {
        self.leaving.lock().insert(uid.to_owned());
        self.published.lock().retain(|(pod, _), _| pod != uid);
        self.tokens.lock().retain(|(pod, _), _| pod != uid);
        let mut result = Ok(());
        for folder in self.layout.records_of_pod(uid) {
            if let Err(error) = self.take_back(uid, &folder).await {
                warn!(error, uid, "could not take a volume back");
                result = Err(error);
            }
        }
        result
    }

    async fn take_back(&self, uid: &str, folder: &Path) -> Result<(), String> {
        let at = folder.to_owned();
        let record = blocking(move || Record::read(&at)).await?;
        let name = record.volume.clone();
        let failed = |error: String| {
            format!("UnmountVolume.TearDown failed for volume \"{name}\" : {error}")
        };
        let _busy = self.claim_volume(&record).await;
        let driver = self.registry.get(&record.driver);
        let driver = driver.ok_or_else(|| failed(unknown(&record.driver)))?;
        let target = self.layout.target(uid, &record.volume, record.block);
        let known = self.layout.as_known(&target);
        let done = driver.unpublish(&record.handle, &known).await;
        settle(done, &target).await.map_err(failed)?;
        let at = folder.to_owned();
        let block = record.block;
        let removed = blocking(move || {
            remove_target(&target)?;
            if block && let Some(own) = target.parent() {
                // That of the device, once no other pod has it.
                let _ = std::fs::remove_dir(own);
            }
            Record::remove(&at)
        });
        removed.await.map_err(failed)?;
        self.unstage_unused(&driver, &record).await
    }

    /// Has the driver take a volume off the node unless some pod still has it. The volume is claimed.
    async fn unstage_unused(&self, driver: &Driver, record: &Record) -> Result<(), String> {
        if self.is_published(record).await? {
            return Ok(());
        }
        let folder =
            self.layout
                .staged(&record.driver, &record.handle, &record.volume, record.block);
        if folder.join(super::paths::RECORD).exists() {
            let name = record.volume.clone();
            let failed = |error: String| {
                format!("UnmountVolume.UnmountDevice failed for volume \"{name}\" : {error}")
            };
            let staging =
                self.layout
                    .staging(&record.driver, &record.handle, &record.volume, record.block);
            let known = self.layout.as_known(&staging);
            let done = driver.unstage(&record.handle, &known).await;
            settle(done, &staging).await.map_err(failed)?;
            let block = record.block;
            let removed = blocking(move || {
                remove_target(&staging)?;
                Record::remove(&folder)?;
                if block && let Some(own) = folder.parent() {
                    // That of the volume, which had only the record's.
                    let _ = std::fs::remove_dir(own);
                }
                Ok(())
            });
            removed.await.map_err(failed)?;
        }
        self.let_go(record).await;
        Ok(())
    }

    async fn is_published(&self, record: &Record) -> Result<bool, String> {
        let (layout, record) = (self.layout.clone(), record.clone());
        blocking(move || {
            let pods = layout.pods_with_folders();
            let mut folders = pods.iter().flat_map(|uid| layout.records_of_pod(uid));
            Ok(folders
                .any(|folder| Record::read(&folder).is_ok_and(|known| known.is_same(&record))))
        })
        .await
    }

    /// Has drivers take volumes off the node that no pod has: an agent died before it came to that.
    pub(super) async fn unstage_orphans(&self) {
        let layout = self.layout.clone();
        let records = blocking(move || {
            let folders = layout.records_of_node().into_iter();
            Ok(folders
                .filter_map(|folder| Record::read(&folder).ok())
                .collect::<Vec<_>>())
        });
        for record in records.await.unwrap_or_default() {
            let Some(driver) = self.registry.get(&record.driver) else {
                continue;
            };
            let _busy = self.claim_volume(&record).await;
            if let Err(error) = self.unstage_unused(&driver, &record).await {
                warn!(error, "could not take a volume off the node");
            }
        }
    }
}

/// A driver that does not know the volume any more has nothing to take back, if nothing is mounted.
async fn settle(done: Result<(), CallError>, target: &Path) -> Result<(), String> {
    match done {
        Ok(()) => Ok(()),
        Err(error) if error.code == Code::NotFound && !is_mounted(target).await => Ok(()),
        Err(error) => Err(error.to_string()),
    }
}

/// Removes what a driver made, or left: never what is still mounted.
fn remove_target(target: &Path) -> io::Result<()> {
    let metadata = match std::fs::symlink_metadata(target) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        found => found?,
    };
    if crate::volumes::table::is_mounted(target)? {
        return Err(io::Error::other(format!(
            "{} is still mounted, though the driver says it is not",
            target.display()
        )));
    }
    if metadata.is_dir() {
        return std::fs::remove_dir(target);
    }
    std::fs::remove_file(target)
}
