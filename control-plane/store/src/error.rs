//! What can go wrong, and what to do about it.

use std::path::PathBuf;

use crate::types::{LeaseId, MemberId, Revision, Term};

/// Why a request to an open store failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// Not carried out, and trying again later may work: no leader, no majority, a disk that does not take
    /// writes, or too much in flight.
    #[error("the store cannot do this now: {reason}; try again")]
    Unavailable {
        /// What is missing.
        reason: String,
    },
    /// The write was handed to a leader, and no answer came before the deadline: it may be carried out or
    /// not. Read before writing again.
    #[error("no answer within {waited_ms} ms: the write may or may not have been carried out")]
    Unknown {
        /// How long was waited, in milliseconds.
        waited_ms: u64,
    },
    /// The revision is older than the history that is kept.
    #[error("revision {requested} has been compacted: history starts after {compacted}")]
    Compacted {
        /// What was asked for.
        requested: Revision,
        /// The last revision that is gone: reads from this revision and watches from the next one work.
        compacted: Revision,
    },
    /// The revision has not happened yet on this member.
    #[error("revision {requested} is ahead of this member's {current}")]
    Future {
        /// What was asked for.
        requested: Revision,
        /// The newest revision here.
        current: Revision,
    },
    /// The write was fenced to a term whose leader no longer leads.
    #[error("fenced to term {fence}, but term {current} leads")]
    Fenced {
        /// The transaction's term.
        fence: Term,
        /// The term that ordered it.
        current: Term,
    },
    /// There is no such lease: it expired or was revoked.
    #[error("lease {0} does not exist")]
    LeaseNotFound(LeaseId),
    /// The request itself is wrong, for example too large.
    #[error("{0}")]
    Invalid(String),
    /// A change of membership was refused.
    #[error("membership: {0}")]
    Membership(String),
    /// The local disk failed.
    #[error("the store's disk failed: {0}")]
    Storage(String),
    /// The store was shut down.
    #[error("the store is shut down")]
    Closed,
}

impl Error {
    pub(crate) fn unavailable(reason: impl Into<String>) -> Self {
        Self::Unavailable {
            reason: reason.into(),
        }
    }

    /// Nothing was done, and the same request may work later.
    #[must_use]
    pub fn is_retriable(&self) -> bool {
        matches!(self, Self::Unavailable { .. })
    }
}

impl From<rocksdb::Error> for Error {
    fn from(error: rocksdb::Error) -> Self {
        Self::Storage(error.into_string())
    }
}

/// Why a store could not be opened. Each says what to do.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The configuration is wrong.
    #[error("store configuration: {0}")]
    Config(String),
    /// The folder belongs to another member.
    #[error(
        "{dir} holds the data of member {found}, but this member is {expected}: start with that id, or point at an empty folder to join as a new member"
    )]
    OtherMember {
        /// The data folder.
        dir: PathBuf,
        /// The id in the folder.
        found: MemberId,
        /// The id in the configuration.
        expected: MemberId,
    },
    /// The folder belongs to another cluster.
    #[error(
        "{dir} holds data of cluster {found}, but cluster {expected} was asked for: move the folder away to join that cluster as a new member"
    )]
    OtherCluster {
        /// The data folder.
        dir: PathBuf,
        /// The cluster in the folder.
        found: String,
        /// The cluster in the configuration.
        expected: String,
    },
    /// The folder was written by a newer version.
    #[error(
        "{dir} has format {found}, and this version knows formats up to {known}: run the newer version again"
    )]
    Newer {
        /// The data folder.
        dir: PathBuf,
        /// The format in the folder.
        found: u32,
        /// The newest format known here.
        known: u32,
    },
    /// Another process has the folder open.
    #[error("{dir} is in use by another process: stop it first ({detail})")]
    Locked {
        /// The data folder.
        dir: PathBuf,
        /// What the lock said.
        detail: String,
    },
    /// A file in the folder is damaged or missing.
    #[error(
        "{path} is damaged: {detail}; if the other members are well, move the folder away and join again as an empty member"
    )]
    Damaged {
        /// Which file or folder.
        path: PathBuf,
        /// What is wrong with it.
        detail: String,
    },
    /// The file system failed.
    #[error("{path}: {source}")]
    Io {
        /// Which file or folder.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The Raft address could not be bound.
    #[error("cannot listen on {address} for Raft: {source}; is another server running?")]
    Listen {
        /// The address.
        address: std::net::SocketAddr,
        /// What the system said.
        source: std::io::Error,
    },
    /// Raft did not start.
    #[error("Raft did not start: {0}")]
    Raft(String),
}
