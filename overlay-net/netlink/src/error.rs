//! What can go wrong when talking to the kernel.

use std::io;

/// Result of this crate.
pub type Result<T> = std::result::Result<T, Error>;

/// A failed netlink call.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The kernel refused.
    #[error("{what}: the kernel refused: {source}")]
    Kernel {
        /// What was asked, in words.
        what: String,
        /// The kernel's error number.
        #[source]
        source: io::Error,
    },
    /// The socket itself failed (not created, no answer in time, buffers too small).
    #[error("{what}: {source}")]
    Io {
        /// What was asked, in words.
        what: String,
        /// The operating system's error.
        #[source]
        source: io::Error,
    },
    /// A request does not fit the kernel's format.
    #[error("{what}: an attribute would exceed 64 KiB")]
    TooBig {
        /// What was asked, in words.
        what: String,
    },
}

impl Error {
    /// The error number, if the kernel or the operating system named one.
    pub fn errno(&self) -> Option<i32> {
        match self {
            Self::Kernel { source, .. } | Self::Io { source, .. } => source.raw_os_error(),
            Self::TooBig { .. } => None,
        }
    }

    /// Whether what was to be removed or changed does not exist.
    pub fn is_not_found(&self) -> bool {
        matches!(
            self.errno(),
            Some(libc::ENOENT | libc::ENODEV | libc::ESRCH | libc::EADDRNOTAVAIL | libc::ENXIO)
        )
    }

    /// Whether what was to be created exists.
    pub fn is_exists(&self) -> bool {
        self.errno() == Some(libc::EEXIST)
    }

    pub(crate) fn kernel(what: impl Into<String>, errno: i32) -> Self {
        Self::Kernel {
            what: what.into(),
            source: io::Error::from_raw_os_error(errno),
        }
    }

    pub(crate) fn io(what: impl Into<String>, source: io::Error) -> Self {
        Self::Io {
            what: what.into(),
            source,
        }
    }
}
