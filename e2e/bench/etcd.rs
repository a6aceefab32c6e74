//! The peer: etcd on loopback, put and read through its gRPC API by the same client that drives Balsa.
//!
//! It is a store only: no TLS, no objects, no validation, no watch cache. Balsa's creates do all of that for
//! every request, so a ratio to these figures is what the whole of Balsa costs beside a bare store.

use std::fs::File;
use std::net::TcpListener;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use bytes::{BufMut, Bytes, BytesMut};
use hyper::Method;
use tempfile::TempDir;
use tokio::process::{Child, Command};

use crate::drive::{Outcome, drive};
use crate::http::{Endpoint, GRPC, Line, Lines};
use crate::processes;

/// Which etcd, and how it is driven.
#[derive(Debug, Clone, clap::Args)]
pub struct Peer {
    /// The etcd program
    #[arg(long, default_value = "etcd", env = "BENCH_ETCD")]
    pub etcd: PathBuf,
    /// Folder for the members' data; must be on the disk that Balsa's is on
    #[arg(long, default_value = "/var/tmp")]
    pub dir: PathBuf,
    /// Members
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=7))]
    pub members: u32,
    /// Puts and reads
    #[arg(long, default_value_t = 20_000, value_parser = clap::value_parser!(u32).range(1..=10_000_000))]
    pub count: u32,
    /// Requests in flight
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..=4096))]
    pub in_flight: u32,
    /// Bytes of each value
    #[arg(long, default_value_t = 1024, value_parser = clap::value_parser!(u32).range(1..=900_000))]
    pub size: u32,
}

/// What the peer came to.
#[derive(Debug, Clone)]
pub struct PeerFigures {
    /// What `etcd --version` says first.
    pub version: String,
    /// Puts of new keys.
    pub put: Outcome,
    /// Linearizable reads of one key.
    pub get: Outcome,
    /// Resident memory of the largest member before the load.
    pub idle_megabytes: f64,
}

/// Members that end, and whose folders go, when this is dropped.
struct Members {
    children: Vec<Child>,
    endpoints: Vec<Endpoint>,
    dir: TempDir,
}

const START: Duration = Duration::from_secs(20);
const PUT: &str = "/etcdserverpb.KV/Put";
const RANGE: &str = "/etcdserverpb.KV/Range";

/// A running cluster and connections to its members.
pub struct Etcd {
    members: Members,
    lines: Lines,
    value: Bytes,
}

impl Etcd {
    /// Starts the members and waits until each takes a put.
    ///
    /// # Errors
    /// When etcd is not installed or does not work.
    pub async fn start(peer: &Peer, connections: usize) -> anyhow::Result<Self> {
        let members = start(peer)?;
        members.serve().await?;
        let lines = Lines::open(&members.endpoints, connections).await?;
        let value = Bytes::from(vec![b'x'; peer.size as usize]);
        Ok(Self {
            members,
            lines,
            value,
        })
    }

    /// The members' processes.
    pub fn pids(&self) -> Vec<i32> {
        let children = self.members.children.iter();
        children.filter_map(|c| c.id()?.try_into().ok()).collect()
    }

    /// Puts keys, so many in flight; they are new unless there are more than `keys`.
    ///
    /// # Errors
    /// When a put fails.
    pub async fn put(
        &self,
        keys: usize,
        count: usize,
        in_flight: usize,
    ) -> anyhow::Result<Outcome> {
        let (lines, value) = (self.lines.clone(), self.value.clone());
        let putting = drive(count, in_flight, move |index| {
            let (lines, request) = (lines.clone(), frame(&[&key(index % keys), &value]));
            async move { ask(lines.next(), PUT, request).await }
        });
        putting.await?.whole()
    }

    /// Reads keys, linearizably.
    ///
    /// # Errors
    /// When a read fails.
    pub async fn get(
        &self,
        keys: usize,
        count: usize,
        in_flight: usize,
    ) -> anyhow::Result<Outcome> {
        let lines = self.lines.clone();
        let reading = drive(count, in_flight, move |index| {
            let key = key(index.wrapping_mul(7919) % keys);
            let (lines, request) = (lines.clone(), frame(&[&key]));
            async move { ask(lines.next(), RANGE, request).await }
        });
        reading.await?.whole()
    }

    /// Ends the members.
    ///
    /// # Errors
    /// When one cannot be ended.
    pub async fn end(mut self) -> anyhow::Result<()> {
        for child in &mut self.members.children {
            child.kill().await.context("cannot end an etcd")?;
        }
        Ok(())
    }
}

/// Starts the members, puts, reads, and takes everything away again.
///
/// # Errors
/// When etcd is not installed or does not work.
pub async fn measure(peer: &Peer) -> anyhow::Result<PeerFigures> {
    let version = version(peer).await?;
    let etcd = Etcd::start(peer, 8).await?;
    let idle_megabytes = processes::largest_megabytes(&etcd.pids())?;
    let (count, in_flight) = (peer.count as usize, peer.in_flight as usize);
    let put = etcd.put(count, count, in_flight).await?;
    let get = etcd.get(count, count, in_flight).await?;
    etcd.end().await?;
    Ok(PeerFigures {
        version,
        put,
        get,
        idle_megabytes,
    })
}

/// What the program says of itself.
///
/// # Errors
/// When it cannot be started.
pub async fn version(peer: &Peer) -> anyhow::Result<String> {
    let output = Command::new(&peer.etcd).arg("--version").output().await;
    let output = output.with_context(|| format!("cannot start {}", peer.etcd.display()))?;
    Ok(String::from_utf8_lossy(&output.stdout)
        .lines()
        .next()
        .unwrap_or("etcd")
        .to_owned())
}

fn start(peer: &Peer) -> anyhow::Result<Members> {
    let dir = tempfile::Builder::new()
        .prefix("balsa-bench-etcd-")
        .tempdir_in(&peer.dir);
    let dir = dir.with_context(|| format!("cannot make a folder in {}", peer.dir.display()))?;
    let ports = free_ports(2 * peer.members as usize)?;
    let (clients, peers) = ports.split_at(peer.members as usize);
    let names: Vec<String> = (1..=peer.members).map(|i| format!("m{i}")).collect();
    let cluster: Vec<String> = names
        .iter()
        .zip(peers)
        .map(|(n, p)| format!("{n}={}", url(*p)))
        .collect();
    let mut children = Vec::new();
    for (name, (client, peer_port)) in names.iter().zip(clients.iter().zip(peers)) {
        let log = File::create(dir.path().join(format!("{name}.log")))?;
        let child = Command::new(&peer.etcd)
            .args([
                "--name",
                name,
                "--log-level",
                "error",
                "--initial-cluster",
                &cluster.join(","),
            ])
            .arg("--data-dir")
            .arg(dir.path().join(name))
            .args([
                "--listen-client-urls",
                &url(*client),
                "--advertise-client-urls",
                &url(*client),
            ])
            .args([
                "--listen-peer-urls",
                &url(*peer_port),
                "--initial-advertise-peer-urls",
                &url(*peer_port),
            ])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .kill_on_drop(true)
            .spawn()
            .with_context(|| format!("cannot start {}", peer.etcd.display()))?;
        children.push(child);
    }
    let endpoints = clients.iter().map(|port| Endpoint::plain(*port)).collect();
    Ok(Members {
        children,
        endpoints,
        dir,
    })
}

impl Members {
    /// Waits until each member takes a put.
    async fn serve(&self) -> anyhow::Result<()> {
        let began = Instant::now();
        for endpoint in &self.endpoints {
            while let Err(error) = first_put(endpoint).await {
                if began.elapsed() > START {
                    bail!(
                        "etcd does not serve after {} s: {error:#}\n{}",
                        START.as_secs(),
                        self.logs()
                    );
                }
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
        Ok(())
    }

    fn logs(&self) -> String {
        let log = |i| {
            std::fs::read_to_string(self.dir.path().join(format!("m{i}.log"))).unwrap_or_default()
        };
        (1..=self.children.len()).map(log).collect()
    }
}

async fn first_put(endpoint: &Endpoint) -> anyhow::Result<()> {
    ask(&endpoint.connect().await?, PUT, frame(&[b"/first", b"x"])).await
}

async fn ask(line: &Line, method: &str, request: Bytes) -> anyhow::Result<()> {
    line.call(Method::POST, method, GRPC, request)
        .await
        .map(drop)
}

/// Ports that nobody listens on now.
fn free_ports(count: usize) -> anyhow::Result<Vec<u16>> {
    let held: Vec<TcpListener> = (0..count)
        .map(|_| TcpListener::bind("127.0.0.1:0"))
        .collect::<Result<_, _>>()?;
    Ok(held
        .iter()
        .map(|l| l.local_addr().map(|a| a.port()))
        .collect::<Result<_, _>>()?)
}

fn url(port: u16) -> String {
    format!("http://127.0.0.1:{port}")
}

fn key(index: usize) -> Vec<u8> {
    format!("/registry/configmaps/bench/cm-{index:07}").into_bytes()
}

/// A gRPC frame around a protobuf message whose fields 1, 2, ... are these bytes: a RangeRequest is its key,
/// a PutRequest key and value.
fn frame(fields: &[&[u8]]) -> Bytes {
    let mut message = BytesMut::new();
    for (number, field) in (1u8..).zip(fields) {
        message.put_u8(number << 3 | 2);
        put_length(&mut message, field.len());
        message.extend_from_slice(field);
    }
    let mut framed = BytesMut::with_capacity(message.len() + 5);
    framed.put_u8(0);
    framed.put_u32(message.len() as u32);
    framed.extend_from_slice(&message);
    framed.freeze()
}

fn put_length(into: &mut BytesMut, mut length: usize) {
    while length >= 0x80 {
        into.put_u8(length as u8 | 0x80);
        length >>= 7;
    }
    into.put_u8(length as u8);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_put_is_a_frame_with_its_length_around_key_and_value() {
        assert_eq!(
            &frame(&[b"k", b"vw"])[..],
            b"\0\0\0\0\x07\x0a\x01k\x12\x02vw"
        );
    }

    #[test]
    fn lengths_beyond_seven_bits_take_two_bytes() {
        let framed = frame(&[&[b'x'; 300]]);
        assert_eq!(&framed[5..8], b"\x0a\xac\x02");
        assert_eq!(framed.len(), 5 + 3 + 300);
    }
}
