//! What is written beside a volume before a driver is asked to mount it, so that whoever comes after a crash
//! knows whom to ask to unmount it. The file and its keys are kubelet's (`vol_data.json`).

use std::io;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::paths::RECORD;
use crate::durable;

/// A volume's record.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct Record {
    /// The persistent volume's name, or that of the pod's volume.
    #[serde(rename = "specVolID")]
    pub(super) volume: String,
    /// The driver's own name of it.
    #[serde(rename = "volumeHandle")]
    pub(super) handle: String,
    #[serde(rename = "driverName")]
    pub(super) driver: String,
    pub(super) node_name: String,
    /// The VolumeAttachment that it needs; empty when it needs none.
    #[serde(rename = "attachmentID")]
    pub(super) attachment: String,
    /// `Persistent` or `Ephemeral`.
    #[serde(rename = "volumeLifecycleMode")]
    pub(super) lifecycle: String,
    /// It is a device and not a file system.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub(super) block: bool,
}

impl Record {
    /// What the API calls the volume in a Node's status.
    pub(super) fn unique_name(&self) -> String {
        format!("kubernetes.io/csi/{}^{}", self.driver, self.handle)
    }

    /// Is it the same volume?
    pub(super) fn is_same(&self, other: &Self) -> bool {
        self.driver == other.driver && self.handle == other.handle
    }

    /// Reads the record of a folder. Blocking.
    pub(super) fn read(folder: &Path) -> io::Result<Self> {
        let bytes = std::fs::read(folder.join(RECORD))?;
        serde_json::from_slice(&bytes).map_err(io::Error::other)
    }

    /// Writes the record into a folder, made if need be; whole or not at all. Blocking.
    pub(super) fn write(&self, folder: &Path) -> io::Result<()> {
        durable::write(&folder.join(RECORD), &serde_json::to_vec(self)?)
    }

    /// Removes the record and its folder, which must be empty otherwise. Again is fine. Blocking.
    pub(super) fn remove(folder: &Path) -> io::Result<()> {
        let gone = |result: io::Result<()>| match result {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            other => other,
        };
        gone(std::fs::remove_file(folder.join(RECORD)))?;
        gone(std::fs::remove_dir(folder))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_record_has_the_keys_that_kubelet_writes() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("pv");
        let record = Record {
            volume: "pv".into(),
            handle: "h".into(),
            driver: "d".into(),
            lifecycle: "Persistent".into(),
            ..Record::default()
        };
        record.write(&folder).unwrap();
        let text = std::fs::read_to_string(folder.join(RECORD)).unwrap();
        assert!(text.contains(r#""specVolID":"pv""#) && text.contains(r#""volumeHandle":"h""#));
        assert_eq!(Record::read(&folder).unwrap(), record);
        assert_eq!(record.unique_name(), "kubernetes.io/csi/d^h");
        Record::remove(&folder).unwrap();
        Record::remove(&folder).unwrap();
        assert!(!folder.exists());
    }
}
