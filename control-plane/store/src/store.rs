//! The handle that everybody holds.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use prometheus_client::registry::Registry;
use tokio::sync::watch;

use crate::archive::{self, SnapshotInfo};
use crate::config::Config;
use crate::error::{Error, OpenError};
use crate::observer::Observer;
use crate::running::Running;
use crate::state::Reader;
use crate::types::{
    Health, KeyValue, Leadership, LeaseId, Member, MemberId, RangeOutcome, Revision, Txn,
    TxnOutcome,
};
use crate::watch::Watch;

/// One member of a replicated store. A cheap handle: clone it freely. The store stops when
/// [`Self::shutdown`] is called or the last handle is dropped; only the former hands leadership over first.
#[derive(Clone)]
pub struct Store {
    running: Arc<Running>,
}

impl std::fmt::Debug for Store {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "Store(member {}, revision {})",
            self.node_id(),
            self.revision()
        )
    }
}

impl Store {
    /// Opens the data folder, starts Raft on threads of its own and listens for the other members. A folder
    /// that is empty waits to be [initialized](Self::initialize) or [added](Self::add_member).
    ///
    /// # Errors
    /// [`OpenError`]; each says what to do.
    pub async fn open(config: Config, observer: Arc<dyn Observer>) -> Result<Self, OpenError> {
        Ok(Self {
            running: Arc::new(Running::start(config, observer).await?),
        })
    }

    /// Makes a new cluster with this member as its only one. Nothing happens if it is one already.
    ///
    /// # Errors
    /// [`Error::Membership`] if this member belongs to a cluster that others made.
    pub async fn initialize(&self) -> Result<(), Error> {
        self.running.initialize().await
    }

    /// The cluster's id, made by [`Self::initialize`]; `None` while this member belongs to none.
    #[must_use]
    pub fn cluster_id(&self) -> Option<String> {
        self.running.folder.cluster()
    }

    /// The data folder.
    #[must_use]
    pub fn data_dir(&self) -> &std::path::Path {
        self.running.folder.dir()
    }

    /// This member's id.
    #[must_use]
    pub fn node_id(&self) -> MemberId {
        self.running.folder.member()
    }

    /// Adds a member that is running with an empty folder, or tells the cluster that a member has another
    /// address: learner, caught up, voter; returns when it is a voter. Any member may be asked. Asking again
    /// is harmless, and goes on where it stopped. A member that is known but came back with an empty folder
    /// is removed first.
    ///
    /// # Errors
    /// [`Error::Unavailable`], [`Error::Membership`] (for example if another member answers at the address).
    pub async fn add_member(&self, id: MemberId, address: String) -> Result<(), Error> {
        let members = self.running.members.clone();
        self.running
            .on_raft(async move { members.add(id, address).await })
            .await
    }

    /// Removes a member, running or not. Any member may be asked; asking again is harmless.
    ///
    /// # Errors
    /// [`Error::Unavailable`], [`Error::Membership`] for the last voter.
    pub async fn remove_member(&self, id: MemberId) -> Result<(), Error> {
        let members = self.running.members.clone();
        self.running
            .on_raft(async move { members.remove(id).await })
            .await
    }

    /// The members, by id.
    #[must_use]
    pub fn members(&self) -> Vec<Member> {
        self.running.members.list()
    }

    /// Carries out a transaction, on any member; returns once this member has applied it, so that a read
    /// here sees it. It is carried out once, even if leaders die meanwhile.
    ///
    /// # Errors
    /// [`Error::Unavailable`] (not carried out), [`Error::Unknown`] (the deadline passed in between),
    /// [`Error::Fenced`], [`Error::LeaseNotFound`], [`Error::Invalid`], [`Error::Closed`].
    pub async fn txn(&self, txn: Txn) -> Result<TxnOutcome, Error> {
        self.running.check_open()?;
        self.running.writer.txn(txn).await
    }

    /// Local reads; see [`Self::read_barrier`] for linearizable ones.
    #[must_use]
    pub fn reader(&self) -> &Reader {
        &self.running.reader
    }

    /// See [`Reader::revision`].
    #[must_use]
    pub fn revision(&self) -> Revision {
        self.reader().revision()
    }

    /// See [`Reader::compacted`].
    #[must_use]
    pub fn compacted(&self) -> Revision {
        self.reader().compacted()
    }

    /// See [`Reader::get`].
    ///
    /// # Errors
    /// [`Error::Storage`].
    pub fn get(&self, key: &[u8]) -> Result<Option<KeyValue>, Error> {
        self.reader().get(key)
    }

    /// See [`Reader::range`].
    ///
    /// # Errors
    /// [`Error::Compacted`], [`Error::Future`], [`Error::Storage`].
    pub fn range(
        &self,
        prefix: &[u8],
        start: Option<&[u8]>,
        limit: usize,
        at: Option<Revision>,
    ) -> Result<RangeOutcome, Error> {
        self.reader().range(prefix, start, limit, at)
    }

    /// Waits until this member's state holds every write that was acknowledged, by any member, before the
    /// call; local reads after it are linearizable. Returns a revision that the state has reached. Readers
    /// that wait together share one round to the majority.
    ///
    /// # Errors
    /// [`Error::Unavailable`] without a leader and a majority, [`Error::Closed`].
    pub async fn read_barrier(&self) -> Result<Revision, Error> {
        tokio::select! {
            () = self.running.stop.cancelled() => Err(Error::Closed),
            revision = self.running.barrier.wait() => revision,
        }
    }

    /// Follows the changes of keys with a prefix, those of revision `from` included; 0 means from now on.
    ///
    /// # Errors
    /// [`Error::Compacted`].
    pub fn watch(&self, prefix: Bytes, from: Revision) -> Result<Watch, Error> {
        Watch::new(self.reader().clone(), prefix, from)
    }

    /// Makes a lease. When it ends, the keys that were put with it are deleted.
    ///
    /// # Errors
    /// Those of [`Self::txn`].
    pub async fn lease_grant(&self, ttl: Duration) -> Result<LeaseId, Error> {
        self.running.check_open()?;
        self.running.writer.lease_grant(ttl).await
    }

    /// Ends a lease now. Nothing happens if it ended already.
    ///
    /// # Errors
    /// Those of [`Self::txn`].
    pub async fn lease_revoke(&self, lease: LeaseId) -> Result<(), Error> {
        self.running.check_open()?;
        self.running.writer.lease_revoke(lease).await
    }

    /// Follows who leads.
    #[must_use]
    pub fn leadership(&self) -> watch::Receiver<Leadership> {
        self.running.leadership.clone()
    }

    /// How this member is doing.
    #[must_use]
    pub fn health(&self) -> Health {
        self.running.health()
    }

    /// How long ago a member answered this one, which leads. `None` if it never has, or if this one does not lead.
    #[must_use]
    pub fn silence(&self, member: MemberId) -> Option<Duration> {
        self.running.silence(member)
    }

    /// Hands leadership to a voter, or to the most advanced other voter. Nothing happens if this member does
    /// not lead, or is alone.
    ///
    /// # Errors
    /// [`Error::Unavailable`] if nobody took it in time.
    pub async fn transfer_leadership(&self, to: Option<MemberId>) -> Result<(), Error> {
        let members = self.running.members.clone();
        self.running
            .on_raft(async move { members.transfer(to).await })
            .await
    }

    /// Writes everything, as it is on this member now, to a file, while reads and writes go on. The file is
    /// there only once it is whole and synced; [`restore`](crate::restore) makes a new cluster of it.
    ///
    /// # Errors
    /// [`Error::Unavailable`] without a leader and a majority, [`Error::Membership`] before this member belongs
    /// to a cluster, [`Error::Storage`] if the file cannot be written.
    pub async fn save_snapshot(&self, path: &std::path::Path) -> Result<SnapshotInfo, Error> {
        self.read_barrier().await?;
        let cluster = self
            .cluster_id()
            .ok_or_else(|| Error::Membership("this member belongs to no cluster yet".into()))?;
        let (state, path) = (self.reader().state().clone(), path.to_owned());
        self.running
            .on_raft(async move {
                let failed = |error: std::io::Error| Error::Storage(error.to_string());
                let viewed = crate::threads::blocking(move || {
                    let view = state.view()?;
                    Ok::<_, std::io::Error>((view, state.revision()))
                });
                let ((meta, view), revision) = viewed.await.and_then(|v| v).map_err(failed)?;
                let head = archive::Head {
                    cluster,
                    revision,
                    meta,
                };
                archive::save(&path, &head, &view)
                    .await
                    .map_err(|error| Error::Storage(error.to_string()))
            })
            .await
    }

    /// Adds this store's metrics to a registry, with the prefix `balsa_store`.
    pub fn register_metrics(&self, registry: &mut Registry) {
        self.running.metrics.register(registry);
    }

    /// Hands leadership over, stops, and closes the files. Other handles get [`Error::Closed`] from then on;
    /// the folder can be opened again once they, and every [`Reader`] and [`Watch`], are dropped.
    pub async fn shutdown(self) {
        self.running.shutdown(true).await;
    }

    /// The last entry that was cut from this member's log.
    #[cfg(test)]
    pub(crate) fn purged(&self) -> u64 {
        self.running.purged()
    }

    /// What this member's disk says, and is made to do.
    #[cfg(test)]
    pub(crate) fn disk(&self) -> &crate::db::Disk {
        &self.running.disk
    }

    /// Makes what is applied survive without the log.
    #[cfg(test)]
    pub(crate) fn make_durable(self) {
        self.running.reader.state().make_durable().ok();
    }

    /// This member's log.
    #[cfg(test)]
    pub(crate) fn log(&self) -> crate::log::Log {
        self.running.log.clone()
    }

    /// The last entry that this member applied.
    #[cfg(test)]
    pub(crate) fn applied_index(&self) -> u64 {
        self.running.reader.state().progress().borrow().index
    }

    /// Stops without handing leadership over, as if the process had been killed.
    #[cfg(test)]
    pub(crate) async fn crash(self) {
        self.running.shutdown(false).await;
    }
}
