//! Waiting for a log file to change, by inotify.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::{Semaphore, SemaphorePermit};

/// What is told of: writes to the file, and files that come and go beside it (rotation).
const FILE_EVENTS: u32 = libc::IN_MODIFY;
const FOLDER_EVENTS: u32 = libc::IN_CREATE | libc::IN_MOVED_TO | libc::IN_MOVED_FROM;

/// Most watchers at a time. The kernel gives a user some 128 in all, and those of root are shared with the
/// processes of pods; who gets none polls.
static WATCHERS: Semaphore = Semaphore::const_new(32);

/// Tells when a log file was written to, or was replaced.
pub(super) struct Watcher {
    fd: AsyncFd<OwnedFd>,
    /// Watch of the file, while there is one.
    file: Option<i32>,
    _one_of: SemaphorePermit<'static>,
}

impl Watcher {
    /// Watches the folder of a log file, and the file.
    ///
    /// # Errors
    /// When there are enough watchers already, or the node has no inotify instances or watches left.
    pub(super) fn new(path: &Path) -> io::Result<Self> {
        let permit = WATCHERS.try_acquire().map_err(io::Error::other)?;
        // SAFETY: a plain system call; the descriptor it answers with is ours.
        let fd = unsafe { libc::inotify_init1(libc::IN_NONBLOCK | libc::IN_CLOEXEC) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: checked to be a descriptor, owned by nobody else.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        let folder = path.parent().unwrap_or_else(|| Path::new("/"));
        add(&fd, folder, FOLDER_EVENTS | libc::IN_ONLYDIR)?;
        // SAFETY: an owned descriptor gives the same number until it is dropped, and this one is ours.
        let fd = unsafe { AsyncFd::register_with_interest(fd, Interest::READABLE) }?;
        let mut watcher = Self {
            fd,
            file: None,
            _one_of: permit,
        };
        watcher.renew(path)?;
        Ok(watcher)
    }

    /// Watches the file that is there now in place of an earlier one.
    pub(super) fn renew(&mut self, path: &Path) -> io::Result<()> {
        if let Some(old) = self.file.take() {
            // SAFETY: a plain system call on our own descriptor. It fails when the old file is gone: no matter.
            unsafe { libc::inotify_rm_watch(self.fd.as_raw_fd(), old) };
        }
        self.file = Some(add(self.fd.get_ref(), path, FILE_EVENTS)?);
        Ok(())
    }

    /// Waits until something has happened since the last call. Safe to give up.
    pub(super) async fn changed(&self) -> io::Result<()> {
        let mut ready = self.fd.readable().await?;
        let mut buffer = [0_u8; 4096];
        // All that is there: one look at the file is enough for any number of writes.
        loop {
            // SAFETY: the buffer is ours and as long as said.
            let read = unsafe {
                libc::read(
                    self.fd.as_raw_fd(),
                    buffer.as_mut_ptr().cast(),
                    buffer.len(),
                )
            };
            if read > 0 {
                continue;
            }
            let error = io::Error::last_os_error();
            if read < 0 && error.kind() != io::ErrorKind::WouldBlock {
                return Err(error);
            }
            ready.clear_ready();
            return Ok(());
        }
    }
}

fn add(fd: &OwnedFd, path: &Path, events: u32) -> io::Result<i32> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    // SAFETY: the path is NUL-terminated and lives through the call.
    let watch = unsafe { libc::inotify_add_watch(fd.as_raw_fd(), path.as_ptr(), events) };
    if watch < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(watch)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::io::Write;

    use super::*;

    #[tokio::test]
    async fn writes_and_replacements_are_told() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("0.log");
        let mut file = std::fs::File::create(&path).unwrap();
        let mut watcher = Watcher::new(&path).unwrap();
        file.write_all(b"one\n").unwrap();
        watcher.changed().await.unwrap();
        std::fs::rename(&path, dir.path().join("0.log.1")).unwrap();
        watcher.changed().await.unwrap();
        let mut file = std::fs::File::create(&path).unwrap();
        watcher.changed().await.unwrap();
        watcher.renew(&path).unwrap();
        file.write_all(b"two\n").unwrap();
        watcher.changed().await.unwrap();
    }
}
