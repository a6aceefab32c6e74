//! How this member answers the others.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use futures::stream::{self, Stream};
use openraft::raft::{AppendEntriesResponse, SnapshotResponse, StreamAppendError};
use parking_lot::Mutex;
use tonic::{Request, Response, Status, Streaming};

use super::listen::Conn;
use super::pipe::{Opened, Opening, Pipe, Purpose, Reading};
use super::proto::Message;
use super::proto::peer_server::Peer;
use super::wire::{self, Hello, Manage, Managed, SnapshotHead};
use super::{CLUSTER, FROM, TO};
use crate::confirm::Confirm;
use crate::failover::Heard;
use crate::folder::Folder;
use crate::log::Log;
use crate::members::Members;
use crate::patience::Standing;
use crate::raft::{AppendRequest, Raft, Snapshot, Types};
use crate::sequencer::Sequencer;
use crate::state::{Incoming, SnapshotData, State};
use crate::threads;
use crate::types::MemberId;

/// What a pipe is for is said within this.
const OPENING: Duration = Duration::from_secs(5);

/// A heartbeat is answered within this by a member that follows, however slow its disk is. Less than what leaders
/// wait for it ([`crate::Timings::heartbeat`]).
const SLOW_DISK: Duration = Duration::from_millis(20);

type Reply = Result<Response<Message>, Status>;

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
    pub confirm: Arc<Confirm>,
    pub standing: Standing,
    /// A snapshot whose sender was interrupted, and its id.
    pub partial: Arc<Mutex<Option<(u64, Incoming)>>>,
}

impl Service {
    /// Refuses calls that are meant for another member or come from another cluster.
    fn check<T>(&self, request: &Request<T>) -> Result<(), Status> {
        self.check_target(request)?;
        let from = text(request, FROM).unwrap_or("?");
        self.check_cluster(from, text(request, CLUSTER))
            .map_err(Status::failed_precondition)
    }

    fn check_target<T>(&self, request: &Request<T>) -> Result<(), Status> {
        let to = text(request, TO).and_then(|to| to.parse::<u64>().ok());
        self.check_member(to).map_err(Status::failed_precondition)
    }

    fn check_member(&self, to: Option<MemberId>) -> Result<(), String> {
        let mine = self.folder.member();
        match to {
            Some(to) if mine == to => Ok(()),
            to => Err(format!(
                "this is member {mine}, not {}",
                to.map_or_else(|| "one without an id".to_owned(), |to| to.to_string())
            )),
        }
    }

    fn check_cluster(
        &self,
        from: impl std::fmt::Display,
        theirs: Option<&str>,
    ) -> Result<(), String> {
        match self.folder.cluster() {
            Some(mine) if theirs == Some(mine.as_str()) => Ok(()),
            Some(mine) => Err(format!(
                "member {} belongs to cluster {mine}, and member {from} called for cluster {}",
                self.folder.member(),
                theirs.unwrap_or("none"),
            )),
            None => Err(format!(
                "member {} has an empty folder and must be added to the cluster first",
                self.folder.member()
            )),
        }
    }

    /// Serves a pipe to its end.
    pub(super) async fn pipe(&self, conn: Conn) {
        if let Err(error) = self.serve_pipe(Pipe::new(conn)).await {
            tracing::debug!(%error, "a pipe broke");
        }
    }

    async fn serve_pipe(&self, mut pipe: Pipe) -> io::Result<()> {
        let opening = tokio::time::timeout(OPENING, pipe.next()).await??;
        let Some(opening) = opening else {
            return Ok(());
        };
        let Opening {
            purpose,
            cluster,
            from,
            to,
        } = wire::decode(&opening).map_err(io::Error::other)?;
        let opened: Opened = self
            .check_member(Some(to))
            .and_then(|()| self.check_cluster(from, cluster.as_deref()));
        pipe.send(&wire::encode(&opened)).await?;
        if opened.is_err() {
            return Ok(());
        }
        match purpose {
            Purpose::Append => self.take_appends(pipe).await,
            Purpose::Forward => self.take_batches(pipe).await,
            Purpose::Read => {
                while let Some(_question) = pipe.next().await? {
                    let index = self.confirm.index().await;
                    pipe.send(&wire::encode(&index)).await?;
                }
                Ok(())
            }
            Purpose::Confirm => {
                while let Some(_question) = pipe.next().await? {
                    pipe.send(&wire::encode(&self.log.vote_term())).await?;
                }
                Ok(())
            }
        }
    }

    async fn take_appends(&self, pipe: Pipe) -> io::Result<()> {
        let (reading, writing) = pipe.split();
        let replies = self.raft.stream_append(readable(reading));
        let encoded = |reply: Result<_, _>| reply.ok().map(wire::encode_append_reply);
        writing
            .pump(tokio_stream::StreamExt::map_while(replies, encoded))
            .await
    }

    /// Takes batches until the sender must send all of them again.
    async fn take_batches(&self, mut pipe: Pipe) -> io::Result<()> {
        let broken = self.sequencer.broken();
        loop {
            let message = tokio::select! {
                () = broken.cancelled() => return Ok(()),
                message = pipe.next() => message?,
            };
            let Some(message) = message else {
                return Ok(());
            };
            for batch in message.parts {
                if !self.sequencer.submit(batch).await {
                    return Ok(());
                }
            }
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
fn readable(reading: Reading) -> impl Stream<Item = AppendRequest> + Send + 'static {
    stream::unfold(reading, |mut reading| async {
        let request = match reading.next().await {
            Ok(message) => wire::decode_append(message?),
            Err(error) => {
                tracing::debug!(%error, "the appends broke off");
                return None;
            }
        };
        match request {
            Ok(request) => Some((request, reading)),
            Err(error) => {
                tracing::error!(error = error.message(), "an append cannot be read");
                None
            }
        }
    })
}

#[tonic::async_trait]
impl Peer for Service {
    async fn heartbeat(&self, request: Request<Message>) -> Reply {
        self.check(&request)?;
        self.heard.now();
        let append = wire::decode_append(request.into_inner())?;
        let (vote, previous) = (append.vote, append.prev_log_id);
        let mut answering = std::pin::pin!(self.raft.append_entries(append));
        let response = tokio::select! {
            biased;
            response = &mut answering => response,
            // Raft answers once the disk has all that it was given before. That a disk is slow must not look as if
            // its member were gone: the leader would give way, to no better one.
            () = tokio::time::sleep(SLOW_DISK) => {
                if self.log.follows(&vote, previous) {
                    return Ok(Response::new(wire::encode_append_reply(Ok(previous))));
                }
                answering.await
            }
        };
        let response = response.map_err(internal)?;
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

    async fn manage(&self, request: Request<Message>) -> Reply {
        let ask: Manage = wire::decode(request.get_ref())?;
        match &ask {
            Manage::Hello | Manage::Admit { .. } => self.check_target(&request)?,
            Manage::Add { .. }
            | Manage::Remove { .. }
            | Manage::Transfer { .. }
            | Manage::MayLead => self.check(&request)?,
        }
        let managed = match ask {
            Manage::Hello => Managed::Hello(Hello {
                id: self.folder.member(),
                cluster: self.folder.cluster(),
                blank: self.log.is_blank() && self.state.is_blank(),
            }),
            Manage::Admit { cluster, index } => match self.folder.join(&cluster, index) {
                Ok(()) => {
                    // At once: `Patience` allows it again.
                    self.raft.runtime_config().elect(false);
                    Managed::Done
                }
                Err(reason) => Managed::Refused(reason),
            },
            Manage::Add { id, address } => self.members.add_here(id, address).await.into(),
            Manage::Remove { id } => self.members.remove_here(id).await.into(),
            Manage::Transfer { to } => self.members.transfer_here(to).await.into(),
            Manage::MayLead if self.standing.allowed() => Managed::Done,
            Manage::MayLead => {
                Managed::Unavailable("its log or its disk keeps it from that".into())
            }
        };
        Ok(Response::new(wire::encode(&managed)))
    }
}
