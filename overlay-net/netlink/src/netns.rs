//! Network namespaces: running code in one, without leaving a name behind.

use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;

use nix::sched::{CloneFlags, setns, unshare};

use crate::error::{Error, Result};

/// An open network namespace. It lives as long as somebody holds it open or runs in it.
#[derive(Debug)]
pub struct Namespace {
    file: File,
}

impl Namespace {
    /// Opens a namespace by its path (`/run/netns/NAME`, `/proc/PID/ns/net`).
    pub fn open(path: &Path) -> Result<Self> {
        let file = File::open(path)
            .map_err(|e| Error::io(format!("opening network namespace {}", path.display()), e))?;
        Ok(Self { file })
    }

    /// The namespace of the calling thread.
    pub fn current() -> Result<Self> {
        Self::open(Path::new("/proc/thread-self/ns/net"))
    }

    /// A new namespace without a name: it vanishes when its last holder does, whatever happens.
    pub fn anonymous() -> Result<Self> {
        on_thread(|| {
            unshare(CloneFlags::CLONE_NEWNET)
                .map_err(|e| Error::io("creating a network namespace", e.into()))?;
            Self::current()
        })?
    }

    /// Runs `work` in the namespace, on a thread of its own, and waits for it.
    ///
    /// Sockets opened inside stay in the namespace for good.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T> {
        on_thread(|| {
            setns(&self.file, CloneFlags::CLONE_NEWNET)
                .map_err(|e| Error::io("entering a network namespace", e.into()))?;
            Ok(work())
        })?
    }
}

impl AsFd for Namespace {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

fn on_thread<T: Send>(work: impl FnOnce() -> T + Send) -> Result<T> {
    std::thread::scope(|scope| match scope.spawn(work).join() {
        Ok(value) => Ok(value),
        // A panic inside is the caller's panic.
        Err(panic) => std::panic::resume_unwind(panic),
    })
}
