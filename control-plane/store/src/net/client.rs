//! How openraft calls the other members.

use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use futures::stream::BoxStream;
use futures::{Stream, StreamExt};
use openraft::errors::{
    NetworkError, RPCError, ReplicationClosed, StreamingError, Timeout, Unreachable,
};
use openraft::network::{RPCOption, stream_append_sequential};
use openraft::raft::{AppendEntriesResponse, StreamAppendError, StreamAppendResult};
use openraft::{BasicNode, OptionalSend, RPCTypes, RaftNetworkFactory, RaftNetworkV2};
use parking_lot::Mutex;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Response, Status};

use super::appends::{Flow, outbox};
use super::peers::{Client, Peers};
use super::pipe::{Purpose, Reading};
use super::proto::Message;
use super::wire::{self, SnapshotHead};
use crate::raft::{
    AppendRequest, Snapshot, SnapshotResponse, TransferRequest, TransferResponse, Types, Vote,
    VoteRequest, VoteResponse,
};
use crate::state::{SnapshotData, View, last_key};
use crate::types::MemberId;

/// Votes and the like take at most this long; shorter than an election's timeout matters less than that a
/// slow machine can answer at all.
const CALL_TIMEOUT: Duration = Duration::from_secs(1);
/// The pause after a stream could not be opened; it doubles a few times.
const REOPEN_FIRST: Duration = Duration::from_millis(10);
const REOPEN_DOUBLINGS: u32 = 4;
/// A snapshot takes at most this long, to be sent and installed.
const SNAPSHOT_TIMEOUT: Duration = Duration::from_secs(1_800);

/// Makes the connections that openraft asks for.
pub(crate) struct Network {
    peers: Arc<Peers>,
}

impl Network {
    pub fn new(peers: Arc<Peers>) -> Self {
        Self { peers }
    }

    fn link(&self, target: MemberId, node: &BasicNode, urgent: bool) -> Link {
        self.peers.learn(target, &node.addr);
        Link {
            peers: self.peers.clone(),
            target,
            urgent,
            failures: 0,
        }
    }
}

impl RaftNetworkFactory<Types> for Network {
    type Network = Link;

    async fn new_client(&mut self, target: u64, node: &BasicNode) -> Link {
        self.link(target, node, false)
    }

    async fn new_heartbeat_client(&mut self, target: u64, node: &BasicNode) -> Link {
        self.link(target, node, true)
    }
}

/// Calls to one member.
pub(crate) struct Link {
    peers: Arc<Peers>,
    target: MemberId,
    /// For heartbeats: single calls instead of a stream.
    urgent: bool,
    /// Streams in a row that could not be opened.
    failures: u32,
}

impl Link {
    /// Makes a call with a deadline.
    async fn call<F>(
        &self,
        kind: RPCTypes,
        within: Duration,
        call: impl FnOnce(Client) -> F,
    ) -> Result<Message, RPCError<Types>>
    where
        F: Future<Output = Result<Response<Message>, Status>>,
    {
        let peer = self.peers.get(self.target).map_err(rpc_error)?;
        match tokio::time::timeout(within, call(peer.pulse.clone())).await {
            Ok(Ok(response)) => Ok(response.into_inner()),
            Ok(Err(status)) => Err(rpc_error(status)),
            Err(_) => Err(self.timeout(kind, within)),
        }
    }

    fn timeout(&self, action: RPCTypes, timeout: Duration) -> RPCError<Types> {
        RPCError::Timeout(Timeout {
            action,
            id: self.peers.me(),
            target: self.target,
            timeout,
        })
    }

    async fn open_append<S>(
        &self,
        input: S,
    ) -> Result<
        BoxStream<'static, Result<StreamAppendResult<Types>, RPCError<Types>>>,
        RPCError<Types>,
    >
    where
        S: Stream<Item = AppendRequest> + Send + Unpin + 'static,
    {
        let pipe = self.peers.open(self.target, Purpose::Append).await;
        let (reading, writing) = pipe.map_err(rpc_error)?.split();
        let flow = Arc::new(Mutex::new(Flow::new(self.peers.me())));
        let outbound = outbox(input, flow.clone()).map(|request| wire::encode_append(&request));
        let replies = Replies {
            reading,
            sending: Some(Box::pin(writing.pump(outbound))),
        };
        let replies = replies.stream().filter_map(move |message| {
            let reply = message
                .map_err(|error| Status::unavailable(error.to_string()))
                .and_then(|message| wire::decode_append_reply(&message))
                .map_err(rpc_error);
            let counts = match &reply {
                Ok(Ok(matched)) => flow.lock().answered(*matched),
                Ok(Err(_)) | Err(_) => true,
            };
            futures::future::ready(counts.then_some(reply))
        });
        Ok(replies.boxed())
    }

    /// Sends what the other member does not have yet of a snapshot.
    async fn send_snapshot(
        &self,
        mut head: SnapshotHead,
        view: &View,
    ) -> Result<SnapshotResponse, RPCError<Types>> {
        let mut client = self.peers.get(self.target).map_err(rpc_error)?.bulk.clone();
        let asked = client.snapshot_offset(self.peers.request(self.target, wire::encode(&head)));
        let offset = match tokio::time::timeout(CALL_TIMEOUT, asked).await {
            Ok(offset) => offset.map_err(rpc_error)?,
            Err(_) => return Err(self.timeout(RPCTypes::InstallSnapshot, CALL_TIMEOUT)),
        };
        head.after = wire::decode(offset.get_ref()).map_err(rpc_error)?;
        tracing::info!(
            to = self.target,
            resumed = head.after.is_some(),
            "sending a snapshot"
        );
        let (sender, queue) = mpsc::channel(2);
        let sending = async {
            let mut after = head.after.clone();
            if sender.send(wire::encode(&head)).await.is_err() {
                return Ok(());
            }
            loop {
                let part = view.part(after.take()).await;
                let part = part.map_err(|error| RPCError::Network(NetworkError::new(&error)))?;
                after = last_key(&part);
                // If the call has ended, its result says why.
                if sender.send(wire::bytes(part.into())).await.is_err() || after.is_none() {
                    break;
                }
            }
            drop(sender);
            Ok(())
        };
        let request = self.peers.request(self.target, ReceiverStream::new(queue));
        let calling = async { client.snapshot(request).await.map_err(rpc_error) };
        let ((), response) = futures::try_join!(sending, calling)?;
        wire::decode(response.get_ref()).map_err(rpc_error)
    }
}

/// Answers as they come. Who waits for them sends the requests meanwhile: a task for that would have to be woken for
/// each of them.
struct Replies {
    reading: Reading,
    sending: Option<BoxFuture<'static, std::io::Result<()>>>,
}

impl Replies {
    fn stream(self) -> impl Stream<Item = std::io::Result<Message>> + Send {
        futures::stream::unfold(Some(self), |replies| async {
            let mut replies = replies?;
            match replies.next().await {
                Ok(Some(message)) => Some((Ok(message), Some(replies))),
                Ok(None) => None,
                Err(error) => Some((Err(error), None)),
            }
        })
    }

    async fn next(&mut self) -> std::io::Result<Option<Message>> {
        while let Some(sending) = &mut self.sending {
            tokio::select! {
                biased;
                message = self.reading.next() => return message,
                sent = sending => {
                    sent?;
                    self.sending = None;
                }
            }
        }
        self.reading.next().await
    }
}

/// How openraft sees a failed call: whether to wait before the next.
fn rpc_error(status: Status) -> RPCError<Types> {
    match status.code() {
        Code::Unavailable | Code::FailedPrecondition | Code::Unauthenticated => {
            RPCError::Unreachable(Unreachable::new(&status))
        }
        _ => RPCError::Network(NetworkError::new(&status)),
    }
}

impl RaftNetworkV2<Types> for Link {
    type SnapshotData = SnapshotData;

    async fn append_entries(
        &mut self,
        rpc: AppendRequest,
        option: RPCOption,
    ) -> Result<AppendEntriesResponse<Types>, RPCError<Types>> {
        let request = self.peers.request(self.target, wire::encode_append(&rpc));
        let call = |mut client: Client| async move { client.heartbeat(request).await };
        let message = self
            .call(RPCTypes::AppendEntries, option.hard_ttl(), call)
            .await?;
        Ok(
            match wire::decode_append_reply(&message).map_err(rpc_error)? {
                Ok(_) => AppendEntriesResponse::Success,
                Err(StreamAppendError::Conflict(_)) => AppendEntriesResponse::Conflict,
                Err(StreamAppendError::HigherVote(vote)) => AppendEntriesResponse::HigherVote(vote),
            },
        )
    }

    fn stream_append<'s, S>(
        &'s mut self,
        input: S,
        option: RPCOption,
    ) -> BoxFuture<
        's,
        Result<BoxStream<'s, Result<StreamAppendResult<Types>, RPCError<Types>>>, RPCError<Types>>,
    >
    where
        S: Stream<Item = AppendRequest> + OptionalSend + Unpin + 'static,
    {
        if self.urgent {
            return stream_append_sequential(self, input, option);
        }
        Box::pin(async move {
            let opened = self.open_append(input).await;
            if opened.is_ok() {
                self.failures = 0;
            } else {
                // openraft waits between requests of a stream, but not between streams.
                tokio::time::sleep(REOPEN_FIRST * 2_u32.pow(self.failures.min(REOPEN_DOUBLINGS)))
                    .await;
                self.failures = self.failures.saturating_add(1);
            }
            opened
        })
    }

    async fn vote(
        &mut self,
        rpc: VoteRequest,
        _option: RPCOption,
    ) -> Result<VoteResponse, RPCError<Types>> {
        let request = self.peers.request(self.target, wire::encode(&rpc));
        let call = |mut client: Client| async move { client.vote(request).await };
        let message = self.call(RPCTypes::Vote, CALL_TIMEOUT, call).await?;
        wire::decode(&message).map_err(rpc_error)
    }

    async fn pre_vote(
        &mut self,
        rpc: VoteRequest,
        _option: RPCOption,
    ) -> Result<VoteResponse, RPCError<Types>> {
        let request = self.peers.request(self.target, wire::encode(&rpc));
        let call = |mut client: Client| async move { client.pre_vote(request).await };
        let message = self.call(RPCTypes::Vote, CALL_TIMEOUT, call).await?;
        wire::decode(&message).map_err(rpc_error)
    }

    async fn full_snapshot(
        &mut self,
        vote: Vote,
        snapshot: Snapshot,
        cancel: impl Future<Output = ReplicationClosed> + OptionalSend + 'static,
        _option: RPCOption,
    ) -> Result<SnapshotResponse, StreamingError<Types>> {
        let SnapshotData::Outgoing(view) = snapshot.snapshot else {
            let error = std::io::Error::other("a snapshot that is being received cannot be sent");
            return Err(StreamingError::Network(NetworkError::new(&error)));
        };
        let head = SnapshotHead {
            vote,
            meta: snapshot.meta,
            id: view.id,
            after: None,
        };
        let sending = tokio::time::timeout(SNAPSHOT_TIMEOUT, self.send_snapshot(head, &view));
        tokio::select! {
            closed = pin!(cancel) => Err(StreamingError::Closed(closed)),
            sent = sending => match sent {
                Ok(result) => Ok(result?),
                Err(_) => Err(self.timeout(RPCTypes::InstallSnapshot, SNAPSHOT_TIMEOUT).into()),
            },
        }
    }

    async fn transfer_leader(
        &mut self,
        req: TransferRequest,
        _option: RPCOption,
    ) -> Result<TransferResponse, RPCError<Types>> {
        let request = self.peers.request(self.target, wire::encode(&req));
        let call = |mut client: Client| async move { client.transfer_leader(request).await };
        let message = self
            .call(RPCTypes::TransferLeader, CALL_TIMEOUT, call)
            .await?;
        wire::decode(&message).map_err(rpc_error)
    }
}
