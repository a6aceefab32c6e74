//! Why an agent can't start.

use std::path::PathBuf;

/// Why an agent can't start.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file or folder.
    #[error("cannot {what} {}: {source}", path.display())]
    File {
        /// What was being done.
        what: &'static str,
        /// To what.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// The data folder's path is too long for the sockets in it.
    #[error(
        "the data folder {} is too long a path: sockets in it may have at most 107 bytes; choose a shorter one with --data-dir",
        path.display()
    )]
    PathTooLong {
        /// The folder.
        path: PathBuf,
    },
    /// No containerd program.
    #[error(
        "cannot find {program}: install containerd and runc (Debian: apt-get install containerd runc), or use a running runtime with --cri-endpoint"
    )]
    NoContainerd {
        /// What was looked for.
        program: String,
    },
    /// containerd did not come up.
    #[error("containerd does not answer at {}: {message}; its log is {}", socket.display(), log.display())]
    Containerd {
        /// Its socket.
        socket: PathBuf,
        /// Its log.
        log: PathBuf,
        /// What happened.
        message: String,
    },
    /// The kernel refused something that the node's network needs.
    #[error("the node's network cannot be set up: {0}")]
    Network(#[from] balsa_netlink::Error),
    /// Not root.
    #[error("the node agent must run as root: it makes namespaces, mounts and cgroups")]
    NotRoot,
    /// The runtime refused something.
    #[error("the container runtime failed to {what}: {source}")]
    Runtime {
        /// What.
        what: &'static str,
        /// Why.
        source: balsa_cri::Error,
    },
}

impl Error {
    pub(crate) fn file(
        what: &'static str,
        path: impl Into<PathBuf>,
    ) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.into();
        move |source| Self::File { what, path, source }
    }
}
