//! What the store counts and measures.

use std::sync::atomic::AtomicU64;
use std::time::Duration;

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Registry, Unit};

type Level = Gauge<u64, AtomicU64>;

/// Cheap to clone parts; shared by all of a store.
#[derive(Debug)]
pub(crate) struct Metrics {
    /// From sending a batch to its outcome, in seconds.
    pub proposal: Histogram,
    /// Commands in a batch.
    pub batch_commands: Histogram,
    /// One synced write of the log, in seconds.
    pub fsync: Histogram,
    /// Entries: from being queued for the log to being synced, in seconds.
    pub append: Histogram,
    /// From a revision's being applied to a watch's taking it, in seconds.
    pub watch_lag: Histogram,
    append_bytes: Counter,
    apply: Histogram,
    applied_entries: Counter,
    revision: Level,
    /// Changes of leader seen.
    pub leader_changes: Counter,
    /// 1 while this member leads.
    pub is_leader: Level,
    /// Linearizable reads: from asking to being ready, in seconds.
    pub read_barrier: Histogram,
    /// Raft's thread did not run though it was its turn, in seconds; counted from 0.1 s on.
    pub standstill: Histogram,
    /// Batches sent again.
    pub resent: Counter,
    /// Bytes of files.
    pub log_bytes: Level,
    /// Bytes of files.
    pub state_bytes: Level,
}

impl Default for Metrics {
    fn default() -> Self {
        // 0.1 ms to about 6.5 s.
        let seconds = || Histogram::new(exponential_buckets(0.000_1, 2.0, 17));
        Self {
            proposal: seconds(),
            batch_commands: Histogram::new(exponential_buckets(1.0, 2.0, 13)),
            fsync: seconds(),
            append: seconds(),
            watch_lag: seconds(),
            append_bytes: Counter::default(),
            apply: seconds(),
            applied_entries: Counter::default(),
            revision: Level::default(),
            leader_changes: Counter::default(),
            is_leader: Level::default(),
            read_barrier: seconds(),
            standstill: seconds(),
            resent: Counter::default(),
            log_bytes: Level::default(),
            state_bytes: Level::default(),
        }
    }
}

impl Metrics {
    pub fn log_batch_bytes(&self, bytes: usize) {
        self.append_bytes.inc_by(bytes as u64);
    }

    pub fn applied(&self, entries: usize, took: Duration, revision: u64) {
        self.apply.observe(took.as_secs_f64());
        self.applied_entries.inc_by(entries as u64);
        self.revision.set(revision);
    }

    pub fn register(&self, registry: &mut Registry) {
        let registry = registry.sub_registry_with_prefix("balsa_store");
        let seconds = || Unit::Seconds;
        registry.register_with_unit(
            "proposal_duration",
            "From sending a batch to its outcome",
            seconds(),
            self.proposal.clone(),
        );
        registry.register(
            "proposal_batch_commands",
            "Commands in a batch",
            self.batch_commands.clone(),
        );
        registry.register_with_unit(
            "log_sync_duration",
            "One synced write of the log",
            seconds(),
            self.fsync.clone(),
        );
        registry.register_with_unit(
            "log_append_duration",
            "From queueing entries for the log to their being synced",
            seconds(),
            self.append.clone(),
        );
        registry.register_with_unit(
            "watch_lag_duration",
            "From applying a revision to a watch's taking it",
            seconds(),
            self.watch_lag.clone(),
        );
        registry.register_with_unit(
            "log_appended",
            "Written to the log",
            Unit::Bytes,
            self.append_bytes.clone(),
        );
        registry.register_with_unit(
            "apply_duration",
            "Applying some entries",
            seconds(),
            self.apply.clone(),
        );
        registry.register(
            "applied_entries",
            "Entries applied",
            self.applied_entries.clone(),
        );
        registry.register("revision", "Newest revision here", self.revision.clone());
        registry.register(
            "leader_changes",
            "Changes of leader seen",
            self.leader_changes.clone(),
        );
        registry.register(
            "is_leader",
            "1 while this member leads",
            self.is_leader.clone(),
        );
        registry.register_with_unit(
            "read_barrier_duration",
            "Waiting for a linearizable read",
            seconds(),
            self.read_barrier.clone(),
        );
        registry.register_with_unit(
            "standstill_duration",
            "Raft's thread got no processor, or was blocked, for 0.1 s and more",
            seconds(),
            self.standstill.clone(),
        );
        registry.register("proposal_resent", "Batches sent again", self.resent.clone());
        registry.register_with_unit(
            "log_size",
            "Files of the log",
            Unit::Bytes,
            self.log_bytes.clone(),
        );
        registry.register_with_unit(
            "state_size",
            "Files of the state",
            Unit::Bytes,
            self.state_bytes.clone(),
        );
    }
}
