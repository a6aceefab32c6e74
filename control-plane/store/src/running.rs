//! The wiring: what an open store consists of, in which order it starts and stops.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use openraft::async_runtime::WatchReceiver;
use openraft::errors::{InitializeError, RaftError};
use openraft::{BasicNode, Instant as _, SnapshotPolicy};
use parking_lot::Mutex;
use rocksdb::Cache;
use tokio::runtime::{Handle, Runtime};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::Instrument;

use crate::barrier::{Barrier, Rounds};
use crate::command::Origin;
use crate::config::Config;
use crate::confirm::{Confirm, Confirming};
use crate::db::Disk;
use crate::duties::{self, LeaderDuties, Leaders, LogCutter};
use crate::error::{Error, OpenError};
use crate::failover::{Failover, Heard};
use crate::folder::Folder;
use crate::give_way::GiveWay;
use crate::log::Log;
use crate::members::Members;
use crate::metrics::Metrics;
use crate::net::{self, Listener, Network, Peers, Service};
use crate::observer::Observer;
use crate::patience::{Patience, Standing};
use crate::pending::Pending;
use crate::proposer::{Linked, Proposer};
use crate::raft::Raft;
use crate::sequencer::{Clock, Sequencer, Work};
use crate::state::{Context, Machine, Reader, State};
use crate::types::{Health, Leadership, MemberId};
use crate::write::Writer;

/// How long tasks may take to stop.
const STOP: Duration = Duration::from_secs(5);
/// How long a new cluster's only member takes to lead at most.
const FIRST_LEADER: Duration = Duration::from_secs(10);

/// An open store.
pub(crate) struct Running {
    config: Config,
    pub folder: Arc<Folder>,
    pub reader: Reader,
    pub writer: Arc<Writer>,
    pub barrier: Arc<Barrier>,
    pub members: Arc<Members>,
    pub leadership: watch::Receiver<Leadership>,
    pub metrics: Arc<Metrics>,
    pub stop: CancellationToken,
    raft: Raft,
    pending: Arc<Pending>,
    pub disk: Arc<Disk>,
    /// For tests that look at what is in it.
    #[cfg(test)]
    pub log: Log,
    linked: watch::Receiver<Linked>,
    tasks: Mutex<JoinSet<()>>,
    handle: Handle,
    runtime: Mutex<Option<Runtime>>,
}

impl Running {
    pub async fn start(config: Config, observer: Arc<dyn Observer>) -> Result<Self, OpenError> {
        config.check()?;
        #[cfg(test)]
        if turmoil::in_simulation() {
            // A simulated member runs on the runtime of its simulated machine.
            return Self::start_here(config, observer, Handle::current()).await;
        }
        let runtime = runtime(config.tuning.threads)?;
        let handle = runtime.handle().clone();
        let started = handle
            .spawn(Self::start_here(config, observer, handle.clone()).in_current_span())
            .await;
        match started {
            Ok(Ok(running)) => {
                *running.runtime.lock() = Some(runtime);
                Ok(running)
            }
            Ok(Err(error)) => {
                runtime.shutdown_background();
                Err(error)
            }
            Err(panic) => {
                runtime.shutdown_background();
                Err(OpenError::Raft(panic.to_string()))
            }
        }
    }

    async fn start_here(
        config: Config,
        observer: Arc<dyn Observer>,
        handle: Handle,
    ) -> Result<Self, OpenError> {
        let (tuning, stop) = (config.tuning.clone(), CancellationToken::new());
        let (disk, metrics) = (Arc::new(Disk::default()), Arc::new(Metrics::default()));
        let folder = Arc::new(Folder::open(&config)?);
        let listener = Listener::bind(config.listen, config.tls.as_ref()).await?;
        let me = Origin {
            member: config.node_id,
            life: folder.life(),
        };
        let pending = Arc::new(Pending::new(me, metrics.clone()));
        let cache = Cache::new_lru_cache(tuning.cache_bytes);
        let log = Log::open(
            &folder.log(),
            &tuning,
            &cache,
            disk.clone(),
            metrics.clone(),
        )?;
        let context = Context {
            tuning: tuning.clone(),
            cache,
            disk: disk.clone(),
            metrics: metrics.clone(),
            pending: pending.clone(),
            stop: stop.clone(),
        };
        let state = State::open(&folder.state(), context, observer)?;
        let peers = Arc::new(Peers::new(folder.clone(), config.tls.clone()));
        let raft = start_raft(&config, &peers, &log, &state).await?;
        let (leadership_sender, leadership) = watch::channel(Leadership::default());
        let (linked_sender, linked) = watch::channel(Linked::default());
        let (sequencer, queue) = Sequencer::new();
        let clock = Arc::new(Clock::new(state.clone()));
        let writer = Arc::new(Writer::new(
            pending.clone(),
            disk.clone(),
            &tuning,
            config.timings.request,
        ));
        let members = Arc::new(Members {
            raft: raft.clone(),
            peers: peers.clone(),
            folder: folder.clone(),
            leadership: leadership.clone(),
            turn: tokio::sync::Mutex::default(),
        });
        let barrier = Arc::new(Barrier::default());
        let confirm = Arc::new(Confirm::default());
        let heard = Arc::new(Heard::default());
        let mut tasks = JoinSet::new();
        let mut spawn = |name: &'static str, task: futures::future::BoxFuture<'static, ()>| {
            tasks.spawn(task.instrument(tracing::info_span!(
                "store",
                task = name,
                member = me.member
            )));
        };
        let standing = Standing {
            folder: folder.clone(),
            log: log.clone(),
            disk: disk.clone(),
        };
        let service = Service {
            raft: raft.clone(),
            folder: folder.clone(),
            log: log.clone(),
            state: state.clone(),
            sequencer: sequencer.clone(),
            members: members.clone(),
            heard: heard.clone(),
            confirm: confirm.clone(),
            standing: standing.clone(),
            partial: Arc::default(),
        };
        spawn(
            "server",
            Box::pin(net::serve(listener, service, stop.clone())),
        );
        let leaders = Leaders {
            raft: raft.clone(),
            peers: peers.clone(),
            progress: state.progress(),
            leadership: leadership_sender,
            metrics: metrics.clone(),
            stop: stop.clone(),
        };
        spawn("leaders", Box::pin(leaders.run()));
        let work = Work {
            raft: raft.clone(),
            clock: clock.clone(),
            leadership: leadership.clone(),
            entries_in_flight: tuning.entries_in_flight,
            stop: stop.clone(),
        };
        spawn("sequencer", Box::pin(sequencer.clone().run(queue, work)));
        let patience = Patience {
            raft: raft.clone(),
            standing: standing.clone(),
            heard: heard.clone(),
            metrics: metrics.clone(),
            stop: stop.clone(),
        };
        spawn("patience", Box::pin(patience.run()));
        let give_way = GiveWay {
            me: me.member,
            disk: disk.clone(),
            members: members.clone(),
            leadership: leadership.clone(),
            stop: stop.clone(),
        };
        spawn("give-way", Box::pin(give_way.run()));
        let failover = Failover {
            heard,
            raft: raft.clone(),
            peers: peers.clone(),
            standing,
            stop: stop.clone(),
        };
        let proposer = Proposer {
            pending: pending.clone(),
            peers: peers.clone(),
            sequencer,
            leadership: leadership.clone(),
            failover,
            metrics: metrics.clone(),
            linked: linked_sender,
            stop: stop.clone(),
        };
        spawn("proposer", Box::pin(proposer.run()));
        let confirming = Confirming {
            confirm: confirm.clone(),
            raft: raft.clone(),
            peers: peers.clone(),
            stop: stop.clone(),
        };
        spawn("confirm", Box::pin(confirming.run()));
        let rounds = Rounds {
            confirm,
            peers,
            leadership: leadership.clone(),
            progress: state.progress(),
            patience: config.timings.request,
            metrics: metrics.clone(),
            stop: stop.clone(),
            line: net::Line::default(),
        };
        spawn("reads", Box::pin(barrier.clone().run(rounds)));
        let duties = LeaderDuties {
            writer: writer.clone(),
            state: state.clone(),
            clock,
            leadership: leadership.clone(),
            tuning: tuning.clone(),
            stop: stop.clone(),
        };
        spawn("duties", Box::pin(duties.run()));
        let cutter = LogCutter {
            raft: raft.clone(),
            log: log.clone(),
            state: state.clone(),
            metrics: metrics.clone(),
            tuning,
            stop: stop.clone(),
        };
        spawn("cutter", Box::pin(cutter.run()));
        spawn("sweeper", Box::pin(state.clone().sweep()));
        let advertise = config.advertise.clone();
        spawn(
            "address",
            Box::pin(duties::announce_address(
                members.clone(),
                me.member,
                advertise,
                stop.clone(),
            )),
        );
        Ok(Self {
            config,
            folder,
            reader: Reader::new(state),
            writer,
            barrier,
            members,
            leadership,
            metrics,
            stop,
            raft,
            pending,
            disk,
            #[cfg(test)]
            log,
            linked,
            tasks: Mutex::new(tasks),
            handle,
            runtime: Mutex::default(),
        })
    }

    /// Runs something on Raft's threads, which outlives its caller's patience but not the store.
    pub async fn on_raft<T: Send + 'static>(
        &self,
        work: impl Future<Output = Result<T, Error>> + Send + 'static,
    ) -> Result<T, Error> {
        self.check_open()?;
        let stop = self.stop.clone();
        let work = async move {
            tokio::select! {
                () = stop.cancelled() => Err(Error::Closed),
                result = work => result,
            }
        };
        self.handle
            .spawn(work.in_current_span())
            .await
            .unwrap_or(Err(Error::Closed))
    }

    pub fn check_open(&self) -> Result<(), Error> {
        if self.stop.is_cancelled() {
            Err(Error::Closed)
        } else {
            Ok(())
        }
    }

    pub async fn initialize(&self) -> Result<(), Error> {
        let (raft, folder) = (self.raft.clone(), self.folder.clone());
        let (me, advertise) = (self.config.node_id, self.config.advertise.clone());
        if folder.cluster().is_none() && !self.reader.state().is_blank() {
            return Err(Error::Membership(format!(
                "{} holds a part of a snapshot, whose restoring was interrupted: restore it again",
                folder.dir().display()
            )));
        }
        self.on_raft(async move {
            folder.found().map_err(Error::Membership)?;
            match raft
                .initialize(std::collections::BTreeMap::from([(
                    me,
                    BasicNode::new(advertise),
                )]))
                .await
            {
                Ok(()) | Err(RaftError::APIError(InitializeError::NotAllowed(_))) => Ok(()),
                Err(error) => Err(Error::unavailable(error.to_string())),
            }
        })
        .await?;
        let mut leadership = self.leadership.clone();
        let led = leadership.wait_for(|leadership| leadership.leader.is_some());
        match tokio::time::timeout(FIRST_LEADER, led).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(_)) => Err(Error::Closed),
            Err(_) => Err(Error::unavailable("the new cluster has no leader yet")),
        }
    }

    pub fn health(&self) -> Health {
        // Times are of the store's own clock, whoever asks.
        let _clock = self.handle.enter();
        let leadership = *self.leadership.borrow();
        let metrics = self.raft.metrics();
        let (fatal, silent_ms) = {
            let now = metrics.borrow_watched();
            (
                now.running_state.clone().err(),
                now.last_quorum_acked.map(|at| at.into_inner().elapsed()),
            )
        };
        let mut problems: Vec<String> = self.disk.complaints();
        problems
            .extend(fatal.map(|error| format!("Raft has stopped: {error}; restart this member")));
        let lease = self.config.timings.election_max * 2;
        // A lone voter is its own majority, and has nobody whose answers could be counted.
        let alone = self
            .members
            .list()
            .iter()
            .filter(|member| member.voter)
            .count()
            <= 1;
        if leadership.is_me && !alone && silent_ms.is_some_and(|silent| silent > lease) {
            problems.push("no majority of members answers".to_owned());
        }
        let linked = *self.linked.borrow();
        let missed = leadership.leader.filter(|leader| linked.misses(*leader));
        problems
            .extend(missed.map(|leader| format!("no connection to the leader, member {leader}")));
        Health {
            leader: leadership.leader,
            member: self.folder.cluster().is_some(),
            problems,
        }
    }

    /// How long ago a member answered this one, which leads.
    pub fn silence(&self, member: MemberId) -> Option<Duration> {
        // As in `health`.
        let _clock = self.handle.enter();
        let metrics = self.raft.metrics();
        let heard = {
            let now = metrics.borrow_watched();
            now.heartbeat.as_ref()?.get(&member).copied()?
        };
        Some(heard?.into_inner().elapsed())
    }

    #[cfg(test)]
    pub fn purged(&self) -> u64 {
        let metrics = self.raft.metrics();
        let purged = metrics.borrow_watched().purged;
        purged.map_or(0, |purged| purged.index)
    }

    /// Stops everything and closes the files.
    pub async fn shutdown(&self, graceful: bool) {
        if graceful {
            let members = self.members.clone();
            let handed_over = self
                .on_raft(async move { members.transfer(None).await })
                .await;
            if let Err(error) = handed_over {
                tracing::debug!(%error, "leadership is not handed over");
            }
        }
        self.stop.cancel();
        self.pending.close();
        let raft = self.raft.clone();
        let mut tasks = std::mem::take(&mut *self.tasks.lock());
        let stopping = self.handle.spawn(async move {
            let stopped = tokio::time::timeout(STOP, async {
                if let Err(error) = raft.shutdown().await {
                    tracing::warn!(%error, "Raft did not stop well");
                }
                while tasks.join_next().await.is_some() {}
            });
            if stopped.await.is_err() {
                tracing::warn!("some of the store's tasks did not stop in time");
            }
        });
        // An error means that the runtime is gone already.
        let _ = stopping.await;
        self.reader.state().close();
        let runtime = self.runtime.lock().take();
        if let Some(runtime) = runtime {
            // Waits for the threads, so that nothing holds the files afterwards.
            let waited = tokio::task::spawn_blocking(move || runtime.shutdown_timeout(STOP)).await;
            if let Err(error) = waited {
                tracing::warn!(%error, "the store's threads did not stop well");
            }
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.stop.cancel();
        self.pending.close();
        self.reader.state().close();
        if let Some(runtime) = self.runtime.lock().take() {
            runtime.shutdown_background();
        }
    }
}

fn runtime(threads: usize) -> Result<Runtime, OpenError> {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(threads)
        .max_blocking_threads(8)
        .thread_name("store-raft")
        .on_thread_start(crate::threads::raise_priority)
        .enable_all()
        .build()
        .map_err(|error| OpenError::Raft(error.to_string()))
}

async fn start_raft(
    config: &Config,
    peers: &Arc<Peers>,
    log: &Log,
    state: &Arc<State>,
) -> Result<Raft, OpenError> {
    let failed = |error: &dyn std::fmt::Display| OpenError::Raft(error.to_string());
    let raft_config = raft_config(config)
        .validate()
        .map_err(|error| failed(&error))?;
    let machine = Machine::new(state.clone());
    Raft::new(
        config.node_id,
        Arc::new(raft_config),
        Network::new(peers.clone()),
        log.clone(),
        machine,
    )
    .await
    .map_err(|error| failed(&error))
}

fn raft_config(config: &Config) -> openraft::Config {
    let millis = |duration: Duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
    let (timings, tuning) = (&config.timings, &config.tuning);
    openraft::Config {
        cluster_name: "store".to_owned(),
        heartbeat_interval: millis(timings.heartbeat),
        election_timeout_min: millis(timings.election_min),
        election_timeout_max: millis(timings.election_max),
        // Entries are packs: few and large. The log limits what is read at once by bytes as well.
        max_payload_entries: 64,
        max_append_entries: Some(64),
        // The log is cut by bytes too, so the cutter decides when to take snapshots and what to keep.
        snapshot_policy: SnapshotPolicy::Never,
        max_in_snapshot_log_to_keep: u64::MAX / 2,
        purge_batch_size: 1,
        replication_lag_threshold: tuning
            .snapshot_entries
            .saturating_add(tuning.keep_entries)
            .saturating_mul(2),
        install_snapshot_timeout: 1_800_000,
        enable_pre_vote: Some(true),
        // `Patience` says when.
        enable_elect: false,
        // The committed index is only a hint on disk (see the log's writer).
        enable_leader_restore: Some(false),
        // A leader that is heard but hears nobody gives way.
        quorum_loss_probe_interval: Some(millis(timings.election_max).saturating_mul(4)),
        backoff: "10ms 20ms 40ms ..200ms".to_owned(),
        ..openraft::Config::default()
    }
}
