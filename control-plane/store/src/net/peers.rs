//! Who the other members are and how to call them. Addresses are data: they may change at any time, and the
//! next call uses the new one.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use parking_lot::RwLock;
use tokio::sync::mpsc;
use tokio_stream::StreamExt;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;
use tonic::{Request, Status};

use super::connect::{channel, is_refused};
use super::proto::Message;
use super::proto::peer_client::PeerClient;
use super::wire::{self, Manage, Managed};
use super::{CLUSTER, FROM, MAX_MESSAGE, TO};
use crate::config::Tls;
use crate::error::Error;
use crate::folder::Folder;
use crate::types::MemberId;

/// Opening a stream takes at most this long.
pub(super) const OPEN_TIMEOUT: Duration = Duration::from_secs(3);
/// Batches that wait for the network.
const FORWARD_QUEUE: usize = 16;

pub(super) type Client = PeerClient<Channel>;

/// Connections to one member. Separate ones, because what is small and urgent must not queue behind what is
/// large.
pub(super) struct Peer {
    address: String,
    /// Log entries and forwarded batches.
    pub log: Client,
    /// Heartbeats, votes and read indices.
    pub pulse: Client,
    /// Snapshots and changes of membership.
    pub bulk: Client,
}

/// All members that this one has heard of.
pub(crate) struct Peers {
    folder: Arc<Folder>,
    tls: Option<Tls>,
    known: RwLock<HashMap<MemberId, Arc<Peer>>>,
}

impl Peers {
    pub fn new(folder: Arc<Folder>, tls: Option<Tls>) -> Self {
        Self {
            folder,
            tls,
            known: RwLock::default(),
        }
    }

    /// Learns where a member is. Must be called on a runtime.
    pub fn learn(&self, id: MemberId, address: &str) {
        if self
            .known
            .read()
            .get(&id)
            .is_some_and(|peer| peer.address == address)
        {
            return;
        }
        match self.connect(address) {
            Ok(peer) => drop(self.known.write().insert(id, Arc::new(peer))),
            Err(error) => tracing::error!(id, %error, "a member cannot be reached"),
        }
    }

    fn connect(&self, address: &str) -> Result<Peer, String> {
        let client = || {
            channel(address, self.tls.as_ref()).map(|channel| {
                PeerClient::new(channel)
                    .max_decoding_message_size(MAX_MESSAGE)
                    .max_encoding_message_size(MAX_MESSAGE)
            })
        };
        Ok(Peer {
            address: address.to_owned(),
            log: client()?,
            pulse: client()?,
            bulk: client()?,
        })
    }

    pub(super) fn get(&self, id: MemberId) -> Result<Arc<Peer>, Status> {
        self.known
            .read()
            .get(&id)
            .cloned()
            .ok_or_else(|| Status::unavailable(format!("member {id} is not known")))
    }

    pub fn me(&self) -> MemberId {
        self.folder.member()
    }

    /// A call to a member, under this cluster's name.
    pub(super) fn request<M>(&self, to: MemberId, message: M) -> Request<M> {
        let mut request = Request::new(message);
        let metadata = request.metadata_mut();
        metadata.insert(FROM, self.me().into());
        metadata.insert(TO, to.into());
        if let Some(cluster) = self
            .folder
            .cluster()
            .and_then(|cluster| cluster.parse().ok())
        {
            metadata.insert(CLUSTER, cluster);
        }
        request
    }

    /// Opens a stream of batches to the leader.
    pub async fn forward(&self, leader: MemberId) -> Result<Forwarding, String> {
        let mut client = self
            .get(leader)
            .map_err(|status| status.message().to_owned())?
            .log
            .clone();
        let (batches, queue) = mpsc::channel::<Bytes>(FORWARD_QUEUE);
        let request = self.request(leader, ReceiverStream::new(queue).map(wire::bytes));
        let opened = tokio::time::timeout(OPEN_TIMEOUT, client.forward(request)).await;
        let inbound = match opened {
            Ok(Ok(response)) => response.into_inner(),
            Ok(Err(status)) => return Err(status.message().to_owned()),
            Err(_) => return Err("no answer".to_owned()),
        };
        Ok(Forwarding { batches, inbound })
    }

    /// The leader's log index that a linearizable read must wait for.
    pub async fn read_index(&self, leader: MemberId, within: Duration) -> Result<u64, String> {
        let mut client = self
            .get(leader)
            .map_err(|status| status.message().to_owned())?
            .pulse
            .clone();
        let call = client.read_index(self.request(leader, Message::default()));
        match tokio::time::timeout(within, call).await {
            Ok(Ok(response)) => {
                wire::decode(response.get_ref()).map_err(|status| status.message().to_owned())
            }
            Ok(Err(status)) => Err(status.message().to_owned()),
            Err(_) => Err("no answer".to_owned()),
        }
    }

    /// Asks a known member about, or for a change of, the membership.
    pub async fn manage(
        &self,
        to: MemberId,
        ask: &Manage,
        within: Duration,
    ) -> Result<Managed, Error> {
        let peer = self
            .get(to)
            .map_err(|status| Error::unavailable(status.message()))?;
        self.ask(peer.bulk.clone(), to, ask, within).await
    }

    /// The same for an address where a member is expected.
    pub async fn manage_at(
        &self,
        address: &str,
        to: MemberId,
        ask: &Manage,
        within: Duration,
    ) -> Result<Managed, Error> {
        let peer = self.connect(address).map_err(Error::Invalid)?;
        self.ask(peer.bulk, to, ask, within).await
    }

    async fn ask(
        &self,
        mut client: Client,
        to: MemberId,
        ask: &Manage,
        within: Duration,
    ) -> Result<Managed, Error> {
        let call = client.manage(self.request(to, wire::encode(ask)));
        match tokio::time::timeout(within, call).await {
            Ok(Ok(response)) => wire::decode(response.get_ref())
                .map_err(|status| Error::unavailable(status.message())),
            Ok(Err(status)) if status.code() == tonic::Code::FailedPrecondition => {
                Err(Error::Membership(status.message().to_owned()))
            }
            Ok(Err(status)) => Err(Error::unavailable(format!(
                "member {to}: {}",
                status.message()
            ))),
            Err(_) => Err(Error::unavailable(format!(
                "member {to} did not answer in time"
            ))),
        }
    }

    /// Whether a member's process has ended: its system refuses connections.
    pub async fn is_gone(&self, id: MemberId) -> bool {
        match self.get(id) {
            Ok(peer) => is_refused(&peer.address).await,
            Err(_) => false,
        }
    }
}

/// An open stream of batches to the leader.
pub(crate) struct Forwarding {
    batches: mpsc::Sender<Bytes>,
    inbound: tonic::Streaming<Message>,
}

impl Forwarding {
    /// Sends a batch; `false` if the stream has ended.
    pub async fn send(&self, batch: Bytes) -> bool {
        self.batches.send(batch).await.is_ok()
    }

    /// Waits until the stream ends. Cancel-safe.
    pub async fn ended(&mut self) {
        while let Ok(Some(_)) = self.inbound.message().await {}
    }
}
