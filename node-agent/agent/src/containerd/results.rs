//! Removes answers of the network plugin that were never fully written.
//!
//! containerd's CNI library keeps what the plugin answered for a sandbox in a file, and reads it before it asks the
//! plugin to take the sandbox's network down. A containerd that is killed while it writes leaves an empty file or
//! a piece of one, and from then on the sandbox can't be removed. Without the file it can: the plugin is asked with
//! the configuration alone.

use std::path::{Path, PathBuf};
use std::time::SystemTime;

use serde::de::IgnoredAny;
use tracing::{info, warn};

/// Where the library keeps them (`libcni.CacheDir`), for all containerds of a machine together: it can't be set.
pub(super) const CACHE: &str = "/var/lib/cni/results";

/// The pieces that there were before a containerd was started.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Pieces {
    files: Vec<(PathBuf, SystemTime)>,
}

impl Pieces {
    /// Files of the folder that are no JSON, and when each was changed. Another containerd of the machine may be
    /// writing one of them just now.
    pub(super) fn left(cache: &Path) -> Self {
        let files = std::fs::read_dir(cache).into_iter().flatten().flatten();
        let files = files
            .map(|file| file.path())
            .filter(|file| is_piece(file))
            .filter_map(|file| Some((file.clone(), changed(&file)?)))
            .collect();
        Self { files }
    }

    /// Removes those that nobody went on writing. To be called once the new containerd answers, which takes it far
    /// longer than a write.
    pub(super) fn remove(self) {
        for (file, then) in self.files {
            if changed(&file) != Some(then) || !is_piece(&file) {
                continue;
            }
            let name = file.display();
            match std::fs::remove_file(&file) {
                Ok(()) => {
                    info!(file = %name, "removed a half-written answer of the network plugin")
                }
                Err(error) => {
                    warn!(%error, file = %name, "cannot remove a half-written answer of the network plugin, its pod stays");
                }
            }
        }
    }
}

fn changed(file: &Path) -> Option<SystemTime> {
    file.metadata().and_then(|data| data.modified()).ok()
}

/// Is this a file that can be read, but not as JSON?
fn is_piece(file: &Path) -> bool {
    std::fs::read(file).is_ok_and(|text| serde_json::from_slice::<IgnoredAny>(&text).is_err())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::time::Duration;

    use super::*;

    #[test]
    fn pieces_that_nobody_writes_on_are_removed_and_whole_answers_stay() {
        let dir = tempfile::tempdir().unwrap();
        let file = |name: &str| dir.path().join(name);
        std::fs::write(file("empty"), "").unwrap();
        std::fs::write(file("half"), r#"{"kind": "cniCacheV1", "con"#).unwrap();
        std::fs::write(file("whole"), r#"{"kind": "cniCacheV1"}"#).unwrap();
        std::fs::write(file("being-written"), "").unwrap();
        std::fs::write(file("written-on"), "").unwrap();
        std::fs::create_dir(file("folder")).unwrap();
        let pieces = Pieces::left(dir.path());
        assert_eq!(pieces.files.len(), 4);
        std::fs::write(file("being-written"), "{}").unwrap();
        let later = SystemTime::now() + Duration::from_secs(1);
        let other = std::fs::File::options()
            .write(true)
            .open(file("written-on"));
        other.unwrap().set_modified(later).unwrap();
        pieces.remove();
        let mut names: Vec<_> = std::fs::read_dir(dir.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name())
            .collect();
        names.sort();
        assert_eq!(names, ["being-written", "folder", "whole", "written-on"]);
    }

    #[test]
    fn there_may_be_no_folder() {
        assert_eq!(Pieces::left(Path::new("/nowhere")).files, []);
    }
}
