//! How a store is set up. All of it is checked before the first file or socket is opened.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use crate::error::OpenError;
use crate::types::MemberId;

/// Everything that [`Store::open`](crate::Store::open) needs.
#[derive(Debug, Clone)]
pub struct Config {
    /// The data folder; made if missing.
    pub dir: PathBuf,
    /// This member's id, not 0.
    pub node_id: MemberId,
    /// Where the other members reach this one, `host:port`.
    pub advertise: String,
    /// Where to listen for the other members.
    pub listen: SocketAddr,
    /// Mutual TLS between members; `None` is plain TCP, for tests.
    pub tls: Option<Tls>,
    /// Refuse to open a folder of another cluster than this (its [`Store::cluster_id`](crate::Store::cluster_id)).
    pub cluster_id: Option<String>,
    /// Timeouts.
    pub timings: Timings,
    /// Sizes and history.
    pub tuning: Tuning,
}

/// Mutual TLS between members. Both sides must demand and verify certificates of the cluster's CA: whoever
/// passes them may write anything.
#[derive(Debug, Clone)]
pub struct Tls {
    /// For connections from other members. A resolver inside may change certificates live.
    pub server: Arc<rustls::ServerConfig>,
    /// For connections to other members.
    pub client: Arc<rustls::ClientConfig>,
    /// The name that every member's certificate carries.
    pub server_name: String,
}

/// Timeouts.
#[derive(Debug, Clone)]
pub struct Timings {
    /// The leader makes itself heard this often, and waits this long for the answer, so members may be this far apart,
    /// there and back. Twice this is less than `election_max`, within which a majority must have answered.
    pub heartbeat: Duration,
    /// A follower waits `election_max` and then a random time between the two before it stands for
    /// election: a leader that falls silent is replaced after about a second. (One whose process ended is noticed at
    /// once, by its closed connection.)
    pub election_min: Duration,
    /// See `election_min`.
    pub election_max: Duration,
    /// How long a write or a linearizable read waits for its answer.
    pub request: Duration,
}

impl Default for Timings {
    fn default() -> Self {
        Self {
            heartbeat: Duration::from_millis(250),
            election_min: Duration::from_millis(400),
            election_max: Duration::from_millis(700),
            request: Duration::from_secs(10),
        }
    }
}

/// Sizes and history.
#[derive(Debug, Clone)]
pub struct Tuning {
    /// History is kept this long for reads and watches at old revisions.
    pub history_age: Duration,
    /// And at least this many revisions of it. Few: a client that asks for an old revision must be told at
    /// last that it is gone, also by a cluster where little happens (Kubernetes' conformance suite waits ten
    /// minutes for that).
    pub history_revisions: u64,
    /// Proposals that wait for their order, in number, before writers are held back.
    pub queue: usize,
    /// Raft entries that the leader has in flight; each packs everything that queued meanwhile. One gives
    /// the largest packs and was the fastest in measurements.
    pub entries_in_flight: usize,
    /// Take a snapshot, so that the log can be cut, after this many Raft entries.
    pub snapshot_entries: u64,
    /// Raft entries kept after a snapshot, for followers that lag a little.
    pub keep_entries: u64,
    /// Recent changes kept in memory for watches, in bytes.
    pub window_bytes: usize,
    /// Block cache shared by both databases, in bytes.
    pub cache_bytes: usize,
    /// Write buffer of each database, in bytes.
    pub write_buffer_bytes: usize,
    /// Files that the log makes at each start to write into; see `log/prime.rs`.
    pub log_files: usize,
    /// Threads for Raft, its network and applying. One: a write's way crosses a dozen tasks, and each that is
    /// woken on another thread costs more than it does itself. What takes long runs on further threads anyway.
    pub threads: usize,
}

impl Default for Tuning {
    fn default() -> Self {
        Self {
            history_age: Duration::from_secs(300),
            history_revisions: 20,
            queue: 16_384,
            entries_in_flight: 1,
            snapshot_entries: 10_000,
            keep_entries: 5_000,
            window_bytes: 8 << 20,
            cache_bytes: 16 << 20,
            write_buffer_bytes: 8 << 20,
            // While one is written to, the one before it waits for its contents to reach a table.
            log_files: 2,
            threads: 1,
        }
    }
}

impl Config {
    /// A configuration with the usual timings and sizes.
    #[must_use]
    pub fn new(
        dir: impl Into<PathBuf>,
        node_id: MemberId,
        advertise: impl Into<String>,
        listen: SocketAddr,
        tls: Option<Tls>,
    ) -> Self {
        Self {
            dir: dir.into(),
            node_id,
            advertise: advertise.into(),
            listen,
            tls,
            cluster_id: None,
            timings: Timings::default(),
            tuning: Tuning::default(),
        }
    }

    pub(crate) fn check(&self) -> Result<(), OpenError> {
        let wrong = |what: &str| Err(OpenError::Config(what.to_owned()));
        if self.node_id == 0 {
            return wrong("node_id must not be 0");
        }
        if self
            .advertise
            .rsplit_once(':')
            .is_none_or(|(host, port)| host.is_empty() || port.parse::<u16>().is_err())
        {
            return wrong("advertise must be host:port");
        }
        if self.timings.election_min >= self.timings.election_max {
            return wrong("timings.election_min must be less than timings.election_max");
        }
        let (heartbeat, timings) = (self.timings.heartbeat, &self.timings);
        if heartbeat >= timings.election_min || heartbeat * 2 >= timings.election_max {
            return wrong(
                "timings.election_min must be longer than timings.heartbeat, and timings.election_max than twice that",
            );
        }
        if self.tuning.queue == 0 || self.tuning.entries_in_flight == 0 || self.tuning.threads == 0
        {
            return wrong(
                "tuning.queue, tuning.entries_in_flight and tuning.threads must not be 0",
            );
        }
        Ok(())
    }
}
