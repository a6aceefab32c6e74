//! Sockets: UDP and TCP, queries in, answers out.

use std::net::SocketAddr;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use hickory_proto::op::{Message, Query, ResponseCode};
use hickory_proto::rr::{Name, RecordType};
use nix::sys::socket::{
    self, AddressFamily, SockFlag, SockType, SockaddrStorage, setsockopt, sockopt,
};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::Semaphore;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tracing::Instrument;

use crate::answer::{self, Decision};
use crate::forward::{Forwarder, read_message, write_message};
use crate::packet;
use crate::resolv::parse_resolv_conf;
use crate::zone::Zone;

/// TCP connections at once; more wait in the kernel's queue.
const MOST_CONNECTIONS: usize = 128;
/// UDP queries that wait for upstream servers at once; more are answered SERVFAIL.
const MOST_WAITING: usize = 1024;
/// How long a TCP client may be silent, or slow to take its answer.
const IDLE: Duration = Duration::from_secs(10);
const BACKLOG: i32 = 128;
const RESOLV_CONF: &str = "/etc/resolv.conf";

/// Settings of a node's DNS server.
#[derive(Debug, Clone)]
pub struct Config {
    /// Addresses to answer at, by UDP and TCP. An address may be added to the host later.
    pub listen: Vec<SocketAddr>,
    /// Servers for all other names; empty takes those of the host's `/etc/resolv.conf`.
    pub upstreams: Vec<SocketAddr>,
}

impl Config {
    /// Settings with the host's own servers as upstreams.
    pub fn new(listen: Vec<SocketAddr>) -> Self {
        Self {
            listen,
            upstreams: Vec::new(),
        }
    }
}

/// Why the server cannot start.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// An address cannot be listened at.
    #[error(
        "cannot answer DNS at {address}: {source}; is another DNS server running on this node?"
    )]
    Listen {
        /// The address.
        address: SocketAddr,
        /// The operating system's error.
        #[source]
        source: std::io::Error,
    },
}

/// A running server.
#[derive(Debug, Clone)]
pub struct Handle {
    addresses: Vec<SocketAddr>,
}

impl Handle {
    /// The addresses it answers at, with ports chosen by the kernel filled in.
    pub fn addresses(&self) -> &[SocketAddr] {
        &self.addresses
    }
}

/// The DNS server of a node.
#[derive(Debug)]
pub struct Dns;

impl Dns {
    /// Starts answering from whatever `zone` holds at the time of each query. Needs a tokio runtime.
    pub fn start(
        config: Config,
        zone: Arc<ArcSwap<Zone>>,
        stop: CancellationToken,
    ) -> Result<Handle, Error> {
        let forwarder = Forwarder::new(upstreams(&config));
        let server = Arc::new(Server {
            zone,
            forwarder,
            waiting: Arc::new(Semaphore::new(MOST_WAITING)),
        });
        let mut addresses = Vec::new();
        for address in config.listen {
            let fail = |source| Error::Listen { address, source };
            let udp = udp_socket(address).map_err(fail)?;
            // The kernel chose the port, if none was given: TCP takes the same.
            let address = udp.local_addr().map_err(fail)?;
            let tcp = tcp_listener(address).map_err(fail)?;
            addresses.push(address);
            let span = tracing::info_span!("dns", %address);
            tokio::spawn(
                server
                    .clone()
                    .serve_udp(Arc::new(udp), stop.clone())
                    .instrument(span.clone()),
            );
            tokio::spawn(server.clone().serve_tcp(tcp, stop.clone()).instrument(span));
        }
        Ok(Handle { addresses })
    }
}

/// Upstream servers without ourselves: asking ourselves would be a loop.
fn upstreams(config: &Config) -> Vec<SocketAddr> {
    let mut servers = config.upstreams.clone();
    if servers.is_empty() {
        match std::fs::read_to_string(RESOLV_CONF) {
            Ok(text) => servers = parse_resolv_conf(&text).servers,
            Err(error) => {
                tracing::warn!(%error, "cannot read {RESOLV_CONF}; names outside the cluster will fail")
            }
        }
    }
    servers.retain(|s| !config.listen.contains(s));
    if servers.is_empty() {
        tracing::warn!("no upstream DNS server is known; names outside the cluster will fail");
    }
    servers
}

struct Server {
    zone: Arc<ArcSwap<Zone>>,
    forwarder: Arc<Forwarder>,
    waiting: Arc<Semaphore>,
}

impl Server {
    async fn serve_udp(self: Arc<Self>, socket: Arc<UdpSocket>, stop: CancellationToken) {
        let mut buffer = vec![0; 4096];
        loop {
            let received = tokio::select! {
                () = stop.cancelled() => return,
                received = socket.recv_from(&mut buffer) => received,
            };
            // Errors here are ICMP answers to earlier packets; the socket itself is fine.
            let Ok((length, client)) = received else {
                continue;
            };
            let Ok(query) = Message::from_vec(&buffer[..length]) else {
                continue;
            };
            let limit = answer::udp_limit(&query);
            match answer::decide(&self.zone.load(), &query) {
                Decision::Ignore => {}
                Decision::Answer(message) => {
                    send_udp(&socket, client, &encode(&message), limit).await
                }
                decision => {
                    let Ok(permit) = self.waiting.clone().try_acquire_owned() else {
                        let busy = answer::failure(&query, ResponseCode::ServFail);
                        send_udp(&socket, client, &encode(&busy), limit).await;
                        continue;
                    };
                    let (server, socket, bytes) =
                        (self.clone(), socket.clone(), buffer[..length].to_vec());
                    let work = async move {
                        let answer = server.outside(decision, &query, &bytes, false).await;
                        send_udp(&socket, client, &answer, limit).await;
                        drop(permit);
                    };
                    tokio::spawn(work.in_current_span());
                }
            }
        }
    }

    async fn serve_tcp(self: Arc<Self>, listener: TcpListener, stop: CancellationToken) {
        let connections = Arc::new(Semaphore::new(MOST_CONNECTIONS));
        loop {
            let Ok(permit) = connections.clone().acquire_owned().await else {
                return;
            };
            let accepted = tokio::select! {
                () = stop.cancelled() => return,
                accepted = listener.accept() => accepted,
            };
            let Ok((stream, _)) = accepted else {
                // Out of file descriptors, most likely: give others time to close theirs.
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            };
            let (server, stop) = (self.clone(), stop.clone());
            let work = async move {
                tokio::select! {
                    () = stop.cancelled() => {}
                    // The client's end of the connection is the client's business.
                    _ = server.converse(stream) => {}
                }
                drop(permit);
            };
            tokio::spawn(work.in_current_span());
        }
    }

    async fn converse(&self, mut stream: TcpStream) -> std::io::Result<()> {
        loop {
            let bytes = timeout(IDLE, read_message(&mut stream)).await??;
            let Ok(query) = Message::from_vec(&bytes) else {
                return Ok(());
            };
            let decision = answer::decide(&self.zone.load(), &query);
            let answer = match decision {
                Decision::Ignore => return Ok(()),
                Decision::Answer(message) => encode(&message),
                decision => self.outside(decision, &query, &bytes, true).await,
            };
            timeout(IDLE, write_message(&mut stream, &answer)).await??;
        }
    }

    /// Carries out a decision that needs an upstream server.
    async fn outside(
        &self,
        decision: Decision,
        query: &Message,
        bytes: &[u8],
        over_tcp: bool,
    ) -> Vec<u8> {
        match decision {
            Decision::Forward => match self.forwarder.ask(bytes, over_tcp).await {
                Some(answer) => answer,
                None => encode(&answer::failure(query, ResponseCode::ServFail)),
            },
            Decision::Chase(message, target) => {
                encode(&self.chase(message, target, query, over_tcp).await)
            }
            Decision::Answer(message) => encode(&message),
            Decision::Ignore => Vec::new(),
        }
    }

    /// Completes an alias with the records of its target. Without them the alias alone is still true.
    async fn chase(
        &self,
        mut message: Message,
        target: Name,
        query: &Message,
        over_tcp: bool,
    ) -> Message {
        let mut ask = Message::query();
        ask.metadata.recursion_desired = true;
        let wanted = query
            .queries
            .first()
            .map_or(RecordType::A, Query::query_type);
        ask.add_query(Query::query(target, wanted));
        let answer = self.forwarder.ask(&encode(&ask), over_tcp).await;
        match answer.and_then(|bytes| Message::from_vec(&bytes).ok()) {
            Some(answer) => {
                message.add_answers(answer.answers);
            }
            None => message.metadata.response_code = ResponseCode::ServFail,
        }
        message
    }
}

fn encode(message: &Message) -> Vec<u8> {
    message.to_vec().unwrap_or_else(|error| {
        // Our own records always encode; a name of the cluster that is too long for DNS does not.
        tracing::warn!(%error, "cannot encode a DNS answer");
        answer::failure(message, ResponseCode::ServFail)
            .to_vec()
            .unwrap_or_default()
    })
}

async fn send_udp(socket: &UdpSocket, client: SocketAddr, message: &[u8], limit: usize) {
    if message.is_empty() {
        return;
    }
    let sent = if message.len() > limit {
        socket.send_to(&packet::truncate(message), client).await
    } else {
        socket.send_to(message, client).await
    };
    if let Err(error) = sent {
        tracing::debug!(%client, %error, "cannot send a DNS answer");
    }
}

/// Sockets may be bound to an address that the host gets only later (`IP_FREEBIND`): the overlay adds the
/// cluster's DNS address to the host, and neither has to wait for the other.
fn bound(address: SocketAddr, kind: SockType) -> std::io::Result<std::os::fd::OwnedFd> {
    let family = if address.is_ipv4() {
        AddressFamily::Inet
    } else {
        AddressFamily::Inet6
    };
    let fd = socket::socket(
        family,
        kind,
        SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK,
        None,
    )?;
    setsockopt(&fd, sockopt::IpFreebind, &true)?;
    if kind == SockType::Stream {
        setsockopt(&fd, sockopt::ReuseAddr, &true)?;
    }
    socket::bind(fd.as_raw_fd(), &SockaddrStorage::from(address))?;
    Ok(fd)
}

fn udp_socket(address: SocketAddr) -> std::io::Result<UdpSocket> {
    UdpSocket::from_std(std::net::UdpSocket::from(bound(
        address,
        SockType::Datagram,
    )?))
}

fn tcp_listener(address: SocketAddr) -> std::io::Result<TcpListener> {
    let fd = bound(address, SockType::Stream)?;
    socket::listen(&fd, socket::Backlog::new(BACKLOG)?)?;
    TcpListener::from_std(std::net::TcpListener::from(fd))
}
