//! How this member answers the others.

use std::sync::Arc;

use futures::StreamExt;
use futures::stream::{self, BoxStream};
use openraft::raft::{AppendEntriesResponse, SnapshotResponse, StreamAppendError};
use parking_lot::Mutex;
use tonic::{Request, Response, Status, Streaming};

use super::proto::Message;
use super::proto::peer_server::Peer;
use super::wire::{self, Hello, Manage, Managed, SnapshotHead};
use super::{CLUSTER, FROM, TO};
use crate::barrier::leader_read_index;
use crate::failover::Heard;
use crate::folder::Folder;
use crate::log::Log;
use crate::members::Members;
use crate::raft::{AppendRequest, Raft, Snapshot, Types};
use crate::sequencer::Sequencer;
use crate::state::{Incoming, SnapshotData, State};
use crate::threads;

type Reply = Result<Response<Message>, Status>;
type Replies = BoxStream<'static, Result<Message, Status>>;

/// See the module. A cheap handle.
#[derive(Clone)]
pub(crate) struct Service {
    pub raft: Raft,
    pub folder: Arc<Folder>,
    pub log: Log,
    pub state: Arc<State>,
    pub sequencer: Sequencer,
    pub members: Arc<Members>,
    pub heard: Arc<Heard>,
    /// A snapshot whose sender was interrupted, and its id.
    pub partial: Arc<Mutex<Option<(u64, Incoming)>>>,
}

impl Service {
    /// Refuses calls that are meant for another member or come from another cluster.
    fn check<T>(&self, request: &Request<T>) -> Result<(), Status> {
        self.check_target(request)?;
        let theirs = text(request, CLUSTER);
        match self.folder.cluster() {
            Some(mine) if theirs == Some(mine.as_str()) => Ok(()),
            Some(mine) => Err(Status::failed_precondition(format!(
                "member {} belongs to cluster {mine}, and member {} called for cluster {}",
                self.folder.member(),
                text(request, FROM).unwrap_or("?"),
                theirs.unwrap_or("none"),
            ))),
            None => Err(Status::failed_precondition(format!(
                "member {} has an empty folder and must be added to the cluster first",
                self.folder.member()
            ))),
        }
    }

    fn check_target<T>(&self, request: &Request<T>) -> Result<(), Status> {
        let mine = self.folder.member();
        match text(request, TO).and_then(|to| to.parse::<u64>().ok()) {
            Some(to) if mine == to => Ok(()),
            to => Err(Status::failed_precondition(format!(
                "this is member {mine}, not {}",
                to.map_or_else(|| "one without an id".to_owned(), |to| to.to_string())
            ))),
        }
    }

    async fn receive_snapshot(
        &self,
        mut parts: Streaming<Message>,
    ) -> Result<SnapshotResponse<Types>, Status> {
        let first = parts
            .message()
            .await?
            .ok_or_else(|| Status::invalid_argument("an empty snapshot"))?;
        let head: SnapshotHead = wire::decode(&first)?;
        let state = self.state.clone();
        let begun = self.take_partial(head.id);
        let mut incoming = match begun {
            Some(incoming) if incoming.last() == head.after => incoming,
            _ if head.after.is_none() => {
                blocking(move || state.incoming().map_err(internal)).await?
            }
            _ => return Err(Status::aborted("the beginning of the snapshot is gone")),
        };
        while !incoming.is_complete() {
            let message = match parts.message().await {
                Ok(Some(message)) => message,
                ended => {
                    *self.partial.lock() = Some((head.id, incoming));
                    ended?;
                    return Err(Status::aborted("the snapshot ended before its last part"));
                }
            };
            incoming = blocking(move || {
                for part in &message.parts {
                    incoming.write(part).map_err(internal)?;
                }
                Ok(incoming)
            })
            .await?;
        }
        let snapshot = Snapshot {
            meta: head.meta,
            snapshot: SnapshotData::Incoming(incoming),
        };
        self.raft
            .install_full_snapshot(head.vote, snapshot)
            .await
            .map_err(internal)
    }

    /// What has been received of a snapshot; what was received of others is deleted.
    fn take_partial(&self, id: u64) -> Option<Incoming> {
        let partial = self.partial.lock().take();
        partial
            .filter(|(begun, _)| *begun == id)
            .map(|(_, incoming)| incoming)
    }
}

fn text<'a, T>(request: &'a Request<T>, name: &str) -> Option<&'a str> {
    request.metadata().get(name)?.to_str().ok()
}

fn internal(error: impl std::fmt::Display) -> Status {
    Status::internal(error.to_string())
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Status> + Send + 'static,
) -> Result<T, Status> {
    threads::blocking(work).await.map_err(internal)?
}

/// The requests up to the first that cannot be read.
fn readable(
    inbound: Streaming<Message>,
) -> impl futures::Stream<Item = AppendRequest> + Send + 'static {
    stream::unfold(inbound, |mut inbound| async move {
        let message = inbound.message().await.ok().flatten()?;
        match wire::decode_append(message) {
            Ok(request) => Some((request, inbound)),
            Err(status) => {
                tracing::error!(error = status.message(), "an append cannot be read");
                None
            }
        }
    })
}

#[tonic::async_trait]
impl Peer for Service {
    type AppendStream = Replies;
    type ForwardStream = Replies;

    async fn append(
        &self,
        request: Request<Streaming<Message>>,
    ) -> Result<Response<Replies>, Status> {
        self.check(&request)?;
        let replies = self.raft.stream_append(readable(request.into_inner()));
        let replies = replies.map(|reply| reply.map(wire::encode_append_reply).map_err(internal));
        Ok(Response::new(replies.boxed()))
    }

    async fn heartbeat(&self, request: Request<Message>) -> Reply {
        self.check(&request)?;
        self.heard.now();
        let append = wire::decode_append(request.into_inner())?;
        let previous = append.prev_log_id;
        let response = self.raft.append_entries(append).await.map_err(internal)?;
        let reply = match response {
            AppendEntriesResponse::Success => Ok(previous),
            AppendEntriesResponse::PartialSuccess(matched) => Ok(matched),
            // The beginning of the log conflicts with nothing.
            AppendEntriesResponse::Conflict => Err(StreamAppendError::Conflict(
                previous.ok_or_else(|| internal("a conflict with nothing"))?,
            )),
            AppendEntriesResponse::HigherVote(vote) => Err(StreamAppendError::HigherVote(vote)),
        };
        Ok(Response::new(wire::encode_append_reply(reply)))
    }

    async fn vote(&self, request: Request<Message>) -> Reply {
        self.check(&request)?;
        let response = self
            .raft
            .vote(wire::decode(request.get_ref())?)
            .await
            .map_err(internal)?;
        Ok(Response::new(wire::encode(&response)))
    }

    async fn pre_vote(&self, request: Request<Message>) -> Reply {
        self.check(&request)?;
        let response = self
            .raft
            .pre_vote(wire::decode(request.get_ref())?)
            .await
            .map_err(internal)?;
        Ok(Response::new(wire::encode(&response)))
    }

    async fn transfer_leader(&self, request: Request<Message>) -> Reply {
        self.check(&request)?;
        let response = self
            .raft
            .handle_transfer_leader(wire::decode(request.get_ref())?)
            .await
            .map_err(internal)?;
        Ok(Response::new(wire::encode(&response)))
    }

    async fn snapshot_offset(&self, request: Request<Message>) -> Reply {
        self.check(&request)?;
        let head: SnapshotHead = wire::decode(request.get_ref())?;
        let partial = self.partial.lock();
        let begun = partial.as_ref().filter(|(id, _)| *id == head.id);
        let after = begun.and_then(|(_, incoming)| incoming.last());
        Ok(Response::new(wire::encode(&after)))
    }

    async fn snapshot(&self, request: Request<Streaming<Message>>) -> Reply {
        self.check(&request)?;
        let response = self.receive_snapshot(request.into_inner()).await?;
        Ok(Response::new(wire::encode(&response)))
    }

    async fn forward(
        &self,
        request: Request<Streaming<Message>>,
    ) -> Result<Response<Replies>, Status> {
        self.check(&request)?;
        let (sequencer, inbound) = (self.sequencer.clone(), request.into_inner());
        // Yields nothing; ends when the sender must send everything again.
        let relayed = async move {
            let broken = sequencer.broken();
            let mut inbound = inbound;
            loop {
                tokio::select! {
                    () = broken.cancelled() => return Err(Status::unavailable("this member does not lead now")),
                    message = inbound.message() => {
                        let Some(message) = message? else { return Err(Status::cancelled("done")) };
                        for batch in message.parts {
                            if !sequencer.submit(batch).await {
                                return Err(Status::unavailable("this member stops"));
                            }
                        }
                    }
                }
            }
        };
        Ok(Response::new(stream::once(relayed).boxed()))
    }

    async fn read_index(&self, request: Request<Message>) -> Reply {
        self.check(&request)?;
        let index = leader_read_index(&self.raft)
            .await
            .map_err(Status::unavailable)?;
        Ok(Response::new(wire::encode(&index)))
    }

    async fn manage(&self, request: Request<Message>) -> Reply {
        let ask: Manage = wire::decode(request.get_ref())?;
        match &ask {
            Manage::Hello | Manage::Admit { .. } => self.check_target(&request)?,
            Manage::Add { .. } | Manage::Remove { .. } | Manage::Transfer { .. } => {
                self.check(&request)?
            }
        }
        let managed = match ask {
            Manage::Hello => Managed::Hello(Hello {
                id: self.folder.member(),
                cluster: self.folder.cluster(),
                blank: self.log.is_blank() && self.state.is_blank(),
            }),
            Manage::Admit { cluster } => match self.folder.join(&cluster) {
                Ok(()) => Managed::Done,
                Err(reason) => Managed::Refused(reason),
            },
            Manage::Add { id, address } => self.members.add_here(id, address).await.into(),
            Manage::Remove { id } => self.members.remove_here(id).await.into(),
            Manage::Transfer { to } => self.members.transfer_here(to).await.into(),
        };
        Ok(Response::new(wire::encode(&managed)))
    }
}
