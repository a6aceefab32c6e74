//! Brings images to the disk. containerd notes durably that it has unpacked an image, but leaves the files to the
//! kernel: where power fails within its half minute, they are there and empty ("exec format error"), for good.
//! containerd 2 can see to that when it pulls, if its configuration says so; nothing sees to imports.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};
use crate::types::FilesystemUsage;

/// Waits until all that was written to the file systems of images is on their disks.
pub(super) async fn flush(filesystems: &[FilesystemUsage]) -> Result<()> {
    for folder in folders(filesystems) {
        let what = format!("bring the images in {} to the disk", folder.display());
        let done = tokio::task::spawn_blocking(move || sync_filesystem(&folder)).await;
        done.map_err(io::Error::other)
            .flatten()
            .map_err(|error| Error::local(what, error))?;
    }
    Ok(())
}

/// A folder in each file system, each once.
fn folders(filesystems: &[FilesystemUsage]) -> Vec<PathBuf> {
    let named = filesystems.iter().map(|each| each.mountpoint.as_str());
    let mut folders: Vec<_> = named
        .filter(|folder| !folder.is_empty())
        .map(PathBuf::from)
        .collect();
    folders.sort();
    folders.dedup();
    folders
}

fn sync_filesystem(folder: &Path) -> io::Result<()> {
    let open = File::open(folder)?;
    // SAFETY: a plain system call on a descriptor that is open for as long as it takes.
    if unsafe { libc::syncfs(open.as_raw_fd()) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn at(folder: &str) -> FilesystemUsage {
        FilesystemUsage {
            mountpoint: folder.to_owned(),
            ..FilesystemUsage::default()
        }
    }

    #[test]
    fn each_file_system_is_flushed_once() {
        let told = [at("/b"), at("/a"), at(""), at("/b")];
        assert_eq!(folders(&told), [Path::new("/a"), Path::new("/b")]);
    }

    #[tokio::test]
    async fn a_folder_is_flushed_and_one_that_is_not_there_is_named() {
        let here = std::env::temp_dir().display().to_string();
        flush(&[at(&here)]).await.unwrap();
        let error = flush(&[at("/nowhere/images")]).await.unwrap_err();
        assert!(error.to_string().contains("/nowhere/images"), "{error}");
    }
}
