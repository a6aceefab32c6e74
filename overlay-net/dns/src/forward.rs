//! Asking upstream servers: with time limits, a bound on what is under way, and a small memory.
//!
//! Equal questions that are under way are asked once. That also tames loops: if an upstream server asks us
//! back, its question waits for itself and fails, but never multiplies.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use futures::FutureExt;
use futures::future::{BoxFuture, Shared};
use parking_lot::Mutex;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};
use tokio::time::{Instant, timeout};

use crate::packet;

/// How long one server has. Clients commonly give up after 5 s, so two servers can be asked.
const SERVER_TIMEOUT: Duration = Duration::from_secs(2);
/// How long all servers together have.
const TOTAL_TIMEOUT: Duration = Duration::from_millis(4500);
/// Questions that may be under way at once.
const MOST_UNDER_WAY: usize = 512;
/// Answers that are remembered in each half of the memory.
const MEMORY: usize = 2048;
/// How long an answer is remembered at most, in seconds.
const MOST_SECONDS: u32 = 30;
const RCODE_SERVFAIL: u8 = 2;

/// What makes two questions equal: name in lower case, type, class, and the flags that change answers.
type Key = Vec<u8>;
type Answer = Option<Arc<[u8]>>;

/// Asks upstream servers.
pub(crate) struct Forwarder {
    servers: Vec<SocketAddr>,
    /// The server that answered last: asked first.
    favourite: AtomicUsize,
    under_way: Mutex<HashMap<Key, Shared<BoxFuture<'static, Answer>>>>,
    memory: Mutex<Memory>,
}

impl Forwarder {
    pub fn new(servers: Vec<SocketAddr>) -> Arc<Self> {
        let (favourite, under_way, memory) = Default::default();
        Arc::new(Self {
            servers,
            favourite,
            under_way,
            memory,
        })
    }

    /// The answer to `query` (a whole message), with its id and its spelling. `None`: nobody answered.
    pub async fn ask(self: &Arc<Self>, query: &[u8], over_tcp: bool) -> Option<Vec<u8>> {
        let key = key(query, over_tcp)?;
        if let Some(remembered) = self.memory.lock().get(&key) {
            return Some(personal(remembered, query));
        }
        let shared = self.join(&key, query, over_tcp)?;
        let answer = shared.await?;
        Some(personal(answer.to_vec(), query))
    }

    /// The question under way that is equal to this one, or this one.
    fn join(
        self: &Arc<Self>,
        key: &Key,
        query: &[u8],
        over_tcp: bool,
    ) -> Option<Shared<BoxFuture<'static, Answer>>> {
        let mut under_way = self.under_way.lock();
        if let Some(same) = under_way.get(key) {
            return Some(same.clone());
        }
        if under_way.len() >= MOST_UNDER_WAY {
            return None;
        }
        let (forwarder, key_inside, query) = (self.clone(), key.clone(), query.to_vec());
        let work = async move {
            let asked = timeout(TOTAL_TIMEOUT, forwarder.ask_servers(query, over_tcp)).await;
            let answer: Answer = asked.ok().flatten().map(Arc::from);
            if let Some(answer) = &answer {
                forwarder
                    .memory
                    .lock()
                    .put(key_inside.clone(), answer.clone());
            }
            forwarder.under_way.lock().remove(&key_inside);
            answer
        };
        // On a task of its own: it must end and clean up even if every client goes away.
        let task = tokio::spawn(work);
        let shared = async move { task.await.ok().flatten() }.boxed().shared();
        under_way.insert(key.clone(), shared.clone());
        Some(shared)
    }

    async fn ask_servers(&self, mut query: Vec<u8>, over_tcp: bool) -> Option<Vec<u8>> {
        let first = self.favourite.load(Ordering::Relaxed);
        let mut worse = None;
        for i in 0..self.servers.len() {
            let index = (first + i) % self.servers.len();
            let server = self.servers[index];
            // A fresh id and a fresh port for each try: hard to guess from outside.
            packet::set_id(&mut query, rand::random());
            let asked = async {
                if over_tcp {
                    ask_tcp(server, &query).await
                } else {
                    ask_udp(server, &query).await
                }
            };
            match timeout(SERVER_TIMEOUT, asked).await {
                Ok(Ok(answer)) if packet::rcode(&answer) != Some(RCODE_SERVFAIL) => {
                    self.favourite.store(index, Ordering::Relaxed);
                    return Some(answer);
                }
                Ok(Ok(answer)) => worse = Some(answer),
                Ok(Err(error)) => tracing::debug!(%server, %error, "an upstream DNS server failed"),
                Err(_) => tracing::debug!(%server, "an upstream DNS server did not answer in time"),
            }
        }
        worse
    }
}

async fn ask_udp(server: SocketAddr, query: &[u8]) -> std::io::Result<Vec<u8>> {
    let any: IpAddr = if server.is_ipv4() {
        Ipv4Addr::UNSPECIFIED.into()
    } else {
        Ipv6Addr::UNSPECIFIED.into()
    };
    let socket = UdpSocket::bind((any, 0)).await?;
    // Connected: the kernel drops what others send.
    socket.connect(server).await?;
    socket.send(query).await?;
    let mut buffer = vec![0; 4096];
    loop {
        let length = socket.recv(&mut buffer).await?;
        if packet::answers(&buffer[..length], query) {
            buffer.truncate(length);
            return Ok(buffer);
        }
    }
}

async fn ask_tcp(server: SocketAddr, query: &[u8]) -> std::io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect(server).await?;
    write_message(&mut stream, query).await?;
    let answer = read_message(&mut stream).await?;
    if packet::answers(&answer, query) {
        Ok(answer)
    } else {
        Err(std::io::ErrorKind::InvalidData.into())
    }
}

/// Reads a message with its length before it, as over TCP.
pub(crate) async fn read_message(stream: &mut TcpStream) -> std::io::Result<Vec<u8>> {
    let length = stream.read_u16().await?;
    let mut message = vec![0; usize::from(length)];
    stream.read_exact(&mut message).await?;
    Ok(message)
}

/// Writes a message with its length before it.
pub(crate) async fn write_message(stream: &mut TcpStream, message: &[u8]) -> std::io::Result<()> {
    let length = u16::try_from(message.len()).map_err(|_| std::io::ErrorKind::InvalidData)?;
    let mut bytes = Vec::with_capacity(message.len() + 2);
    bytes.extend(length.to_be_bytes());
    bytes.extend(message);
    stream.write_all(&bytes).await
}

fn key(query: &[u8], over_tcp: bool) -> Option<Key> {
    let question = packet::question(query)?;
    let mut key = question.name.to_ascii_lowercase();
    key.extend(question.kind);
    // Recursion desired, checking disabled, and EDNS with its DNSSEC flag (the last bytes of a bare query).
    key.push(query[2] & 0x01);
    key.push(query[3] & 0x10);
    key.extend(packet::edns(query));
    key.push(u8::from(over_tcp));
    Some(key)
}

/// An answer for this client: its id, its spelling.
fn personal(mut answer: Vec<u8>, query: &[u8]) -> Vec<u8> {
    packet::set_id(&mut answer, packet::id(query).unwrap_or_default());
    packet::copy_spelling(&mut answer, query);
    answer
}

/// Remembered answers in two halves: when the new half is full it becomes the old one, and the old one is
/// forgotten. So it is bounded, and nothing needs sorting.
#[derive(Default)]
struct Memory {
    new: HashMap<Key, (Arc<[u8]>, Instant, u32)>,
    old: HashMap<Key, (Arc<[u8]>, Instant, u32)>,
}

impl Memory {
    fn put(&mut self, key: Key, answer: Arc<[u8]>) {
        let Some(seconds) = packet::lifetime(&answer)
            .map(|s| s.min(MOST_SECONDS))
            .filter(|s| *s > 0)
        else {
            return;
        };
        if packet::is_truncated(&answer) {
            return;
        }
        if self.new.len() >= MEMORY {
            self.old = std::mem::take(&mut self.new);
        }
        self.new.insert(key, (answer, Instant::now(), seconds));
    }

    fn get(&self, key: &Key) -> Option<Vec<u8>> {
        let (answer, since, seconds) = self.new.get(key).or_else(|| self.old.get(key))?;
        let age = u32::try_from(since.elapsed().as_secs())
            .ok()
            .filter(|age| age < seconds)?;
        let mut answer = answer.to_vec();
        packet::age(&mut answer, age);
        Some(answer)
    }
}
