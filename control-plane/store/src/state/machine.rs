//! The state as openraft drives it.

use std::io;
use std::sync::Arc;

use futures::{Stream, StreamExt};
use openraft::storage::{EntryResponder, RaftStateMachine};
use openraft::{EntryPayload, OptionalSend, RaftSnapshotBuilder};

use super::{Incoming, State, View};
use crate::raft::{Applied, Entry, LogId, Snapshot, SnapshotMeta, StoredMembership, Types};
use crate::threads;

/// Entries are applied together up to this many bytes.
const APPLY_BYTES: usize = 2 << 20;
/// Work up to this many bytes is done on Raft's own threads; more would hold up its heartbeats.
const INLINE_BYTES: usize = 64 << 10;

/// A snapshot on its way out or in.
#[derive(Debug)]
pub(crate) enum SnapshotData {
    Outgoing(View),
    Incoming(Incoming),
}

/// What openraft owns of the state.
#[derive(Clone)]
pub(crate) struct Machine {
    state: Arc<State>,
}

impl Machine {
    pub fn new(state: Arc<State>) -> Self {
        Self { state }
    }

    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Arc<State>) -> io::Result<T> + Send + 'static,
    ) -> io::Result<T> {
        let state = self.state.clone();
        threads::blocking(move || work(&state)).await?
    }

    async fn apply_part(&self, entries: Vec<Entry>, bytes: usize) -> io::Result<()> {
        if bytes <= INLINE_BYTES {
            return self.state.apply(&entries).map_err(io::Error::other);
        }
        self.blocking(move |state| state.apply(&entries).map_err(io::Error::other))
            .await
    }
}

impl RaftSnapshotBuilder<Types> for Machine {
    type SnapshotData = SnapshotData;

    async fn build_snapshot(&mut self) -> Result<Snapshot, io::Error> {
        let (meta, view) = self.blocking(|state| state.view()).await?;
        // Flushes at least what the view covers: the log up to there may be cut.
        self.blocking(|state| state.make_durable().map_err(io::Error::other))
            .await?;
        Ok(Snapshot {
            meta,
            snapshot: SnapshotData::Outgoing(view),
        })
    }
}

impl RaftStateMachine<Types> for Machine {
    type SnapshotData = SnapshotData;
    type SnapshotBuilder = Self;

    async fn applied_state(&mut self) -> Result<(Option<LogId>, StoredMembership), io::Error> {
        Ok(self.state.applied())
    }

    async fn apply<Strm>(&mut self, mut entries: Strm) -> Result<(), io::Error>
    where
        Strm: Stream<Item = Result<EntryResponder<Types>, io::Error>> + Unpin + OptionalSend,
    {
        let mut ended = false;
        while !ended {
            let (mut part, mut responders, mut bytes) = (Vec::new(), Vec::new(), 0);
            while bytes < APPLY_BYTES {
                let Some(item) = entries.next().await else {
                    ended = true;
                    break;
                };
                let (entry, responder) = item?;
                if let EntryPayload::Normal(pack) = &entry.payload {
                    bytes += pack.0.len();
                }
                part.push(entry);
                responders.extend(responder);
            }
            if !part.is_empty() {
                self.apply_part(part, bytes).await?;
            }
            for responder in responders {
                responder.send(Applied);
            }
        }
        Ok(())
    }

    async fn get_snapshot_builder(&mut self) -> Self {
        self.clone()
    }

    async fn install_snapshot(
        &mut self,
        meta: &SnapshotMeta,
        snapshot: SnapshotData,
    ) -> Result<(), io::Error> {
        let meta = meta.clone();
        let received = match snapshot {
            SnapshotData::Incoming(received) => received,
            SnapshotData::Outgoing(view) => self.copy(&view).await?,
        };
        self.blocking(move |state| state.install(&meta, received).map_err(io::Error::other))
            .await
    }

    async fn get_current_snapshot(&mut self) -> Result<Option<Snapshot>, io::Error> {
        let (meta, view) = self.blocking(|state| state.view_to_send()).await?;
        if meta.last_log_id.is_none() {
            return Ok(None);
        }
        self.blocking(|state| state.make_durable().map_err(io::Error::other))
            .await?;
        Ok(Some(Snapshot {
            meta,
            snapshot: SnapshotData::Outgoing(view),
        }))
    }
}

impl Machine {
    /// Receives a view of this process.
    async fn copy(&self, view: &View) -> io::Result<Incoming> {
        let incoming = self
            .blocking(|state| state.incoming().map_err(io::Error::other))
            .await?;
        fill(incoming, view).await
    }
}

/// Writes what is left of a view into a folder.
async fn fill(mut incoming: Incoming, view: &View) -> io::Result<Incoming> {
    while !incoming.is_complete() {
        let part = view.part(incoming.last()).await?;
        incoming = threads::blocking(move || {
            incoming.write(&part).map_err(io::Error::other)?;
            io::Result::Ok(incoming)
        })
        .await??;
    }
    Ok(incoming)
}
