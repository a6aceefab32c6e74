//! What is done to data folders while no member runs on them: check one, begin a new cluster from one that
//! lost its majority, or from a snapshot's file.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use openraft::BasicNode;
use rocksdb::Cache;
use tokio_util::sync::CancellationToken;

use crate::archive::{Archive, ArchiveError, SnapshotInfo};
use crate::command::Origin;
use crate::config::{Config, Tuning};
use crate::error::OpenError;
use crate::folder::Folder;
use crate::log::{Log, Rebirth};
use crate::pending::Pending;
use crate::raft::{Membership, StoredMembership, Vote};
use crate::state::{Context, State};
use crate::types::{MemberId, Revision};

/// Why an offline change of a data folder failed.
#[derive(Debug, thiserror::Error)]
pub enum OfflineError {
    /// The folder cannot be opened.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// The snapshot's file cannot be read.
    #[error(transparent)]
    Archive(#[from] ArchiveError),
    /// The folder for a restored member must be empty.
    #[error("{0} holds data already: restore into an empty or new folder")]
    NotEmpty(PathBuf),
    /// The folder has never been part of a cluster.
    #[error("{0} holds no data of a cluster: there is nothing to recover")]
    Blank(PathBuf),
    /// The data cannot be carried over.
    #[error("{path}: {detail}")]
    Failed {
        /// The folder.
        path: PathBuf,
        /// Why.
        detail: String,
    },
}

/// What came of [`recover`] or [`restore`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reborn {
    /// The new cluster's id. Members of the old one are refused by it.
    pub cluster: String,
    /// The member that is its only one.
    pub member: MemberId,
    /// Its newest revision.
    pub revision: Revision,
}

/// Which member a new cluster begins with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Founder {
    /// Its data folder.
    pub dir: PathBuf,
    /// Its id.
    pub member: MemberId,
    /// Where other members will reach it, `host:port`.
    pub advertise: String,
}

/// More revisions than lost members can have been ahead: writes of minutes.
const AHEAD: Revision = 1_000_000;

/// Makes the data of one member, which is not running, a cluster of its own: for when a majority of the old
/// one is gone for good. Everything in this member's log is kept, also what no majority is known to have:
/// so nothing is lost that was acknowledged and reached this member. Start the member, then add others with
/// empty folders. Harmless to repeat; each time makes another cluster.
///
/// Revisions go on later than any that the lost members can have told, and history before is given up: clients that
/// were ahead of this member begin anew, rather than miss changes.
///
/// # Errors
/// [`OfflineError`].
pub fn recover(founder: &Founder) -> Result<Reborn, OfflineError> {
    let opened = Opened::open(founder)?;
    if opened.folder.cluster().is_none() {
        return Err(OfflineError::Blank(founder.dir.clone()));
    }
    opened.apply_all()?;
    opened.rebear(founder, AHEAD)
}

/// Makes a new cluster of one member from a snapshot's file, in an empty folder. Revisions go on `bump` after
/// the snapshot's, and history before is given up: clients that have seen later revisions of the old cluster
/// than the snapshot has then notice that they must begin anew, rather than miss changes.
///
/// # Errors
/// [`OfflineError`].
pub fn restore(file: &Path, founder: &Founder, bump: Revision) -> Result<Reborn, OfflineError> {
    let (head, mut archive) = Archive::open(file)?;
    clear(&founder.dir)?;
    let opened = Opened::open(founder)?;
    let failed = |error: &dyn std::fmt::Display| OfflineError::Failed {
        path: founder.dir.clone(),
        detail: error.to_string(),
    };
    let mut incoming = opened.state.incoming()?;
    while let Some(part) = archive.next()? {
        incoming.write(&part).map_err(|error| failed(&error))?;
    }
    incoming.write(&[]).map_err(|error| failed(&error))?;
    opened.state.install(&head.meta, incoming)?;
    opened.rebear(founder, bump)
}

/// Makes sure that a folder is empty, but for what a restore left that did not come to its end: what it writes last is
/// which cluster it made.
fn clear(dir: &Path) -> Result<(), OfflineError> {
    let parts = [dir.join("log"), dir.join("state")];
    if !parts.iter().any(|part| part.exists()) {
        return Ok(());
    }
    if !matches!(Folder::look(dir), Ok((_, None))) {
        return Err(OfflineError::NotEmpty(dir.to_owned()));
    }
    for part in parts.iter().filter(|part| part.exists()) {
        std::fs::remove_dir_all(part).map_err(|error| OfflineError::Failed {
            path: part.clone(),
            detail: error.to_string(),
        })?;
    }
    Ok(())
}

/// Reads a snapshot's file to its end and checks it.
///
/// # Errors
/// [`ArchiveError`].
pub fn check_snapshot(file: &Path) -> Result<SnapshotInfo, ArchiveError> {
    let (head, mut archive) = Archive::open(file)?;
    let mut records = 0;
    while let Some(part) = archive.next()? {
        records += crate::state::count_pairs(&part);
    }
    let bytes = std::fs::metadata(file).map_or(0, |metadata| metadata.len());
    Ok(SnapshotInfo {
        cluster: head.cluster,
        revision: head.revision,
        records,
        bytes,
    })
}

/// A member's data, without Raft.
struct Opened {
    folder: Folder,
    log: Log,
    state: Arc<State>,
}

impl Opened {
    fn open(founder: &Founder) -> Result<Self, OpenError> {
        let listen = ([127, 0, 0, 1], 0).into();
        let config = Config::new(
            founder.dir.clone(),
            founder.member,
            founder.advertise.clone(),
            listen,
            None,
        );
        config.check()?;
        let folder = Folder::open(&config)?;
        // Little is written.
        let tuning = Tuning {
            log_files: 0,
            ..Tuning::default()
        };
        let cache = Cache::new_lru_cache(tuning.cache_bytes);
        let me = Origin {
            member: founder.member,
            life: folder.life(),
        };
        let log = Log::open(
            &folder.log(),
            &tuning,
            &cache,
            Arc::default(),
            Arc::default(),
        )?;
        let context = Context {
            tuning,
            cache,
            disk: Arc::default(),
            metrics: Arc::default(),
            pending: Arc::new(Pending::new(me, Arc::default())),
            stop: CancellationToken::new(),
        };
        let state = State::open(&folder.state(), context, Arc::new(()))?;
        Ok(Self { folder, log, state })
    }

    /// Applies what the log has beyond the state.
    fn apply_all(&self) -> Result<(), OfflineError> {
        let failed = |error: &dyn std::fmt::Display| OfflineError::Failed {
            path: self.folder.log(),
            detail: error.to_string(),
        };
        loop {
            let next = self
                .state
                .applied()
                .0
                .map_or(0, |applied| applied.index + 1);
            let entries = self.log.read_part(next);
            let entries = entries.map_err(|error| failed(&error))?;
            match entries.first() {
                None => return Ok(()),
                Some(first) if first.log_id.index > next && next > 0 => {
                    return Err(failed(&format!(
                        "entry {next} is missing: this member's log cannot be joined to its state"
                    )));
                }
                Some(_) => self.state.apply(&entries).map_err(|error| failed(&error))?,
            }
        }
    }

    /// Makes the member the only one of a new cluster.
    fn rebear(self, founder: &Founder, bump: Revision) -> Result<Reborn, OfflineError> {
        let failed = |error: &dyn std::fmt::Display| OfflineError::Failed {
            path: founder.dir.clone(),
            detail: error.to_string(),
        };
        let applied = self.state.applied().0;
        let nodes = [(founder.member, BasicNode::new(&founder.advertise))];
        let voters = vec![std::collections::BTreeSet::from([founder.member])];
        let membership = Membership::new(voters, std::collections::BTreeMap::from(nodes))
            .map_err(|error| failed(&error))?;
        let membership = StoredMembership::new(applied, membership);
        let revision = self
            .state
            .rebear(membership, bump)
            .map_err(|error| failed(&error))?;
        // A vote of the log's last term: the next leader's term is later than every entry's.
        let term = applied.map_or(0, |applied| crate::raft::term_of(&applied));
        let term = term.max(self.log.vote_term());
        self.log
            .rebear(Rebirth {
                applied,
                vote: Vote::new(term, founder.member),
            })
            .map_err(|error| failed(&error))?;
        // Last: until then the folder is what it was, and this can be done again.
        let cluster = self.folder.found_anew().map_err(|error| failed(&error))?;
        Ok(Reborn {
            cluster,
            member: founder.member,
            revision,
        })
    }
}
