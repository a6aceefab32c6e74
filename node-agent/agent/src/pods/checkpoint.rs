//! What the node granted to a pod's containers and what they run with, kept in a file of the pod's folder: a
//! restarted agent must not take a resize that it refused for one that it granted.

use std::io;
use std::path::Path;

use balsa_pod::resize::Allocation;
use serde::{Deserialize, Serialize};

const FILE: &str = "resources.json";

/// The file's content.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Checkpoint {
    /// What was granted, by container.
    pub(crate) granted: Allocation,
    /// What the newest instances run with, by container.
    pub(crate) actuated: Allocation,
}

/// Reads it; `None` if there is none or none that can be read.
pub(crate) fn load(pod_dir: &Path) -> Option<Checkpoint> {
    let bytes = std::fs::read(pod_dir.join(FILE)).ok()?;
    serde_json::from_slice(&bytes).ok()
}

/// Writes it, whole or not at all.
pub(crate) fn save(pod_dir: &Path, checkpoint: &Checkpoint) -> io::Result<()> {
    std::fs::create_dir_all(pod_dir)?;
    let next = pod_dir.join(format!("{FILE}.next"));
    std::fs::write(&next, serde_json::to_vec(checkpoint)?)?;
    std::fs::rename(next, pod_dir.join(FILE))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn it_is_read_back_and_rubbish_is_none() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(load(dir.path()), None);
        let mut checkpoint = Checkpoint::default();
        let resources = serde_json::json!({"limits": {"cpu": "1"}});
        let resources = serde_json::from_value(resources).unwrap();
        checkpoint.granted.insert("c".to_owned(), resources);
        save(dir.path(), &checkpoint).unwrap();
        assert_eq!(load(dir.path()), Some(checkpoint));
        std::fs::write(dir.path().join(FILE), "{").unwrap();
        assert_eq!(load(dir.path()), None);
    }
}
