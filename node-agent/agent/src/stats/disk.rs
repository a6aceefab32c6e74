//! Counting what files take.

use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// What files take.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct DiskUse {
    pub(crate) bytes: u64,
    pub(crate) inodes: u64,
}

impl std::ops::Add for DiskUse {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self {
            bytes: self.bytes.saturating_add(other.bytes),
            inodes: self.inodes.saturating_add(other.inodes),
        }
    }
}

impl std::iter::Sum for DiskUse {
    fn sum<I: Iterator<Item = Self>>(all: I) -> Self {
        all.fold(Self::default(), |sum, one| sum + one)
    }
}

/// What a folder with everything in it takes, other file systems not counted. Blocking.
pub(super) fn count(root: &Path) -> DiskUse {
    let Ok(top) = std::fs::symlink_metadata(root) else {
        return DiskUse::default();
    };
    let mut used = one(&top);
    let mut folders = vec![root.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
            let Ok(metadata) = entry.metadata() else {
                continue;
            };
            if metadata.dev() != top.dev() {
                continue;
            }
            // A file with several names would be counted for each: rare, and never too little.
            used = used + one(&metadata);
            if metadata.is_dir() {
                folders.push(entry.path());
            }
        }
    }
    used
}

fn one(metadata: &std::fs::Metadata) -> DiskUse {
    DiskUse {
        bytes: metadata.blocks().saturating_mul(512),
        inodes: 1,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn everything_below_is_counted_once() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("d")).unwrap();
        std::fs::write(dir.path().join("d/f"), vec![1_u8; 100_000]).unwrap();
        std::os::unix::fs::symlink("/usr", dir.path().join("link")).unwrap();
        let used = count(dir.path());
        assert_eq!(used.inodes, 4);
        assert!(used.bytes >= 100_000 && used.bytes < 300_000, "{used:?}");
        assert_eq!(count(&dir.path().join("none")), DiskUse::default());
    }
}
