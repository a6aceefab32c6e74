//! Who the other members are and how to call them. Addresses are data: they may change at any time, and the
//! next call uses the new one.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use parking_lot::RwLock;
use serde::de::DeserializeOwned;
use tonic::transport::Channel;
use tonic::{Request, Status};

use super::connect::{channel, connect, is_refused};
use super::pipe::{Opening, Pipe, Purpose};
use super::proto::Message;
use super::proto::peer_client::PeerClient;
use super::wire::{self, Manage, Managed};
use super::{CLUSTER, FROM, MAX_MESSAGE, TO};
use crate::config::Tls;
use crate::error::Error;
use crate::folder::Folder;
use crate::types::MemberId;

/// Opening a pipe takes at most this long.
pub(super) const OPEN_TIMEOUT: Duration = Duration::from_secs(3);

pub(super) type Client = PeerClient<Channel>;

/// Connections to one member. Separate ones, because what is small and urgent must not queue behind what is
/// large.
pub(super) struct Peer {
    address: String,
    /// Heartbeats and votes.
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

    /// Opens a pipe to a member.
    pub async fn open(&self, to: MemberId, purpose: Purpose) -> Result<Pipe, Status> {
        let peer = self.get(to)?;
        let opening = Opening {
            purpose,
            cluster: self.folder.cluster(),
            from: self.me(),
            to,
        };
        let opened = tokio::time::timeout(OPEN_TIMEOUT, async {
            let conn = connect(&peer.address, self.tls.as_ref()).await?;
            Pipe::open(conn, &opening).await
        });
        opened
            .await
            .unwrap_or_else(|elapsed| Err(elapsed.into()))
            .map_err(|error| Status::unavailable(error.to_string()))
    }

    /// Asks a member a question without words over a line, which is opened if it is not open, and closed on failure.
    pub async fn call<T: DeserializeOwned>(
        &self,
        to: MemberId,
        purpose: Purpose,
        line: &mut Line,
    ) -> Result<T, String> {
        let mut pipe = match line.open.take() {
            Some((other, pipe)) if other == to => pipe,
            _ => {
                let opened = self.open(to, purpose).await;
                opened.map_err(|status| status.message().to_owned())?
            }
        };
        let answer = pipe.call(&Message::default()).await;
        let answer = answer.map_err(|error| error.to_string())?;
        let answer = wire::decode(&answer).map_err(|status| status.message().to_owned())?;
        line.open = Some((to, pipe));
        Ok(answer)
    }

    /// Opens a pipe for batches to the leader.
    pub async fn forward(&self, leader: MemberId) -> Result<Forwarding, String> {
        let opened = self.open(leader, Purpose::Forward).await;
        opened
            .map(|pipe| Forwarding { pipe })
            .map_err(|status| status.message().to_owned())
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

/// A pipe for questions that is opened when there is one, and kept open between them.
#[derive(Default)]
pub(crate) struct Line {
    open: Option<(MemberId, Pipe)>,
}

impl Line {
    /// Waits, and keeps the pipe open meanwhile.
    pub async fn keep_until<T>(&mut self, wanted: impl Future<Output = T>) -> T {
        let mut wanted = std::pin::pin!(wanted);
        if let Some((_, pipe)) = &mut self.open {
            tokio::select! {
                biased;
                came = &mut wanted => return came,
                // Nothing comes unasked, so this is its end.
                _ = pipe.next() => self.open = None,
            }
        }
        wanted.await
    }
}

/// An open pipe for batches to the leader.
pub(crate) struct Forwarding {
    pipe: Pipe,
}

impl Forwarding {
    /// Queues a batch, to be sent by [`Self::ended`]; `false` if it cannot be sent at all.
    pub fn send(&mut self, batch: Bytes) -> bool {
        self.pipe.push(&wire::bytes(batch)).is_ok()
    }

    /// Sends what is queued, and waits until the pipe ends. Cancel-safe.
    pub async fn ended(&mut self) {
        while let Ok(Some(_)) = self.pipe.next().await {}
    }
}
