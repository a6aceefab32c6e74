//! API priority and fairness: how many requests are worked on at once, and whose turn it is. A flood of one
//! kind of client waits in its own queues, so that node heartbeats, leader election and administrators get
//! through.
//!
//! What belongs where is said by FlowSchema and PriorityLevelConfiguration objects (`config.rs`); until those are
//! in the cache, the defaults (`defaults.rs`) are followed. Who runs and who waits is decided by `engine.rs`.

mod config;
mod defaults;
mod engine;
mod keep;

#[cfg(test)]
mod tests;

use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use arc_swap::ArcSwap;
use balsa_api::status::{Details, Status};
use parking_lot::Mutex;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use serde_json::Value;
use tokio::sync::oneshot;

use crate::http::metrics::Metrics;
use crate::http::request_info::RequestInfo;
use crate::seam::{ObjectReader, User};
pub(crate) use config::Uids;
use config::{Class, Compiled};
use engine::{Engine, Granted, Verdict};

pub(crate) use keep::keep;

const GROUP: &str = "flowcontrol.apiserver.k8s.io";
const SCHEMAS: &str = "flowschemas";
const LEVELS: &str = "prioritylevelconfigurations";
/// Objects of a list that count as one seat, and the most seats that one request takes.
const OBJECTS_PER_SEAT: usize = 100;
const WIDEST: u32 = 10;

type Waker = oneshot::Sender<Permit>;

/// See the module.
pub struct Flow {
    reader: Arc<dyn ObjectReader>,
    seats: u32,
    patience: Duration,
    compiled: ArcSwap<Compiled>,
    /// The objects' generation that `compiled` was made from, plus one.
    generation: AtomicU64,
    shared: Arc<Shared>,
    hasher: RandomState,
}

struct Shared {
    engine: Mutex<Engine<Waker>>,
    counts: Counts,
}

/// A seat; free again when it is dropped.
#[must_use]
pub struct Permit {
    shared: Arc<Shared>,
    level: Arc<str>,
    width: u32,
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.shared.finish(&self.level, self.width);
    }
}

/// A request that was let in.
pub struct Entered {
    /// To be held while it is worked on.
    pub permit: Permit,
    /// UIDs of its FlowSchema and of its level, for the response's headers; empty while they are not known.
    pub uids: Uids,
}

impl Flow {
    /// Shares `seats` among the levels; a request waits at most `patience` for one.
    #[must_use]
    pub fn new(
        reader: Arc<dyn ObjectReader>,
        seats: usize,
        patience: Duration,
        metrics: &Metrics,
    ) -> Self {
        let shared = Shared {
            engine: Mutex::new(Engine::new()),
            counts: Counts::new(metrics),
        };
        Self {
            reader,
            seats: u32::try_from(seats).unwrap_or(u32::MAX).max(1),
            patience,
            compiled: ArcSwap::default(),
            generation: AtomicU64::new(0),
            shared: Arc::new(shared),
            hasher: RandomState::new(),
        }
    }

    /// Lets a request in that takes `width` seats, maybe after a while.
    ///
    /// # Errors
    /// 429 with Retry-After when its level is full.
    pub async fn enter(
        &self,
        info: &RequestInfo,
        user: &User,
        width: u32,
    ) -> Result<Option<Entered>, Status> {
        self.refresh();
        let Some(class) = self.compiled.load().classify(info, user) else {
            return Ok(None);
        };
        let permit = self.seat(&class, width).await?;
        Ok(Some(Entered {
            permit,
            uids: class.place.uids.clone(),
        }))
    }

    async fn seat(&self, class: &Class, width: u32) -> Result<Permit, Status> {
        let place = &class.place;
        let flow = self.hasher.hash_one((&place.schema, &class.flow));
        let mut receiver = None;
        let verdict = self
            .shared
            .engine
            .lock()
            .admit(&place.level, flow, width, || {
                let (sender, waiting) = oneshot::channel();
                receiver = Some(waiting);
                sender
            });
        let (id, waiting) = match (verdict, receiver) {
            (Verdict::Run, _) => {
                return Ok(Permit {
                    shared: Arc::clone(&self.shared),
                    level: Arc::clone(&place.level),
                    width,
                });
            }
            (Verdict::Wait(id), Some(waiting)) => (id, waiting),
            (Verdict::Refuse(why), _) => return Err(self.refuse(class, why)),
            (Verdict::Wait(_), None) => return Err(self.refuse(class, "queue-full")),
        };
        let _leaves = Leaves {
            shared: &self.shared,
            level: &place.level,
            id,
        };
        match tokio::time::timeout(self.patience, waiting).await {
            Ok(Ok(permit)) => Ok(permit),
            _ => Err(self.refuse(class, "time-out")),
        }
    }

    fn refuse(&self, class: &Class, why: &'static str) -> Status {
        let labels = RefusedLabels {
            flow_schema: class.place.schema.clone(),
            priority_level: class.place.level.to_string(),
            reason: why,
        };
        self.shared.counts.refused.get_or_create(&labels).inc();
        let mut status = Status::new(
            429,
            "TooManyRequests",
            "Too many requests, please try again later.",
        );
        status.details = Some(Details {
            retry_after_seconds: Some(1),
            ..Details::default()
        });
        status
    }

    /// How many seats a request takes: a list of many objects is worth several.
    #[must_use]
    pub fn width(info: &RequestInfo, objects: impl FnOnce() -> usize, limit: Option<usize>) -> u32 {
        if info.verb != "list" || !info.name.is_empty() {
            return 1;
        }
        let objects = objects();
        let seen = limit.unwrap_or(objects).min(objects);
        u32::try_from(seen.div_ceil(OBJECTS_PER_SEAT))
            .unwrap_or(WIDEST)
            .clamp(1, WIDEST)
    }

    /// Follows changes of the objects.
    fn refresh(&self) {
        let generation =
            1 + self.reader.generation(GROUP, SCHEMAS) + self.reader.generation(GROUP, LEVELS);
        if self.generation.swap(generation, Ordering::AcqRel) == generation {
            return;
        }
        let with_defaults = |resource: &str, defaults: Vec<Value>| {
            let mut all: Vec<Arc<Value>> = self.reader.list(GROUP, resource, None);
            let must = |name: &str| matches!(name, "exempt" | "catch-all");
            let empty = all.is_empty();
            for default in defaults {
                let name = balsa_api::object::name(&default).to_owned();
                let there = all.iter().any(|o| balsa_api::object::name(o) == name);
                if !there && (empty || must(&name)) {
                    all.push(Arc::new(default));
                }
            }
            all
        };
        let schemas = with_defaults(SCHEMAS, defaults::schemas());
        let levels = with_defaults(LEVELS, defaults::levels());
        let compiled = Compiled::new(
            schemas.iter().map(AsRef::as_ref),
            levels.iter().map(AsRef::as_ref),
            self.seats,
        );
        let granted = self.shared.engine.lock().configure(&compiled.levels);
        self.compiled.store(Arc::new(compiled));
        self.shared.wake(granted);
    }

    /// Brings the gauges up to date, before they are read.
    pub fn observe(&self) {
        let counts = &self.shared.counts;
        for (level, executing, waiting, nominal) in self.shared.engine.lock().usage() {
            let labels = LevelLabels {
                priority_level: level.to_owned(),
            };
            let set = |family: &Family<LevelLabels, Gauge>, value: i64| {
                family.get_or_create(&labels).set(value);
            };
            set(&counts.executing, executing.into());
            set(&counts.waiting, i64::try_from(waiting).unwrap_or(i64::MAX));
            set(&counts.nominal, nominal.into());
        }
    }
}

impl Shared {
    fn finish(self: &Arc<Self>, level: &str, width: u32) {
        let granted = self.engine.lock().finish(level, width);
        self.wake(granted);
    }

    /// Hands out seats. Those whose requests have gone come back at once, by the permit's own end.
    fn wake(self: &Arc<Self>, granted: Vec<Granted<Waker>>) {
        for Granted {
            level,
            width,
            waiter,
        } in granted
        {
            let permit = Permit {
                shared: Arc::clone(self),
                level: level.into(),
                width,
            };
            // An error gives the permit back, which ends here.
            drop(waiter.send(permit));
        }
    }
}

/// Takes a request out of its queue when it is no longer awaited.
struct Leaves<'a> {
    shared: &'a Arc<Shared>,
    level: &'a str,
    id: u64,
}

impl Drop for Leaves<'_> {
    fn drop(&mut self) {
        self.shared.engine.lock().forget(self.level, self.id);
    }
}

#[derive(Debug, Clone, Hash, PartialEq, Eq, EncodeLabelSet)]
struct LevelLabels {
    priority_level: String,
}

#[derive(Debug, Clone, Hash, PartialEq, Eq, EncodeLabelSet)]
struct RefusedLabels {
    flow_schema: String,
    priority_level: String,
    reason: &'static str,
}

struct Counts {
    refused: Family<RefusedLabels, Counter>,
    executing: Family<LevelLabels, Gauge>,
    waiting: Family<LevelLabels, Gauge>,
    nominal: Family<LevelLabels, Gauge>,
}

impl Counts {
    fn new(metrics: &Metrics) -> Self {
        let counts = Self {
            refused: Family::default(),
            executing: Family::default(),
            waiting: Family::default(),
            nominal: Family::default(),
        };
        metrics.register(|registry| {
            registry.register(
                "apiserver_flowcontrol_rejected_requests",
                "Requests refused by API Priority and Fairness",
                counts.refused.clone(),
            );
            registry.register(
                "apiserver_flowcontrol_current_executing_seats",
                "Seats in use",
                counts.executing.clone(),
            );
            registry.register(
                "apiserver_flowcontrol_current_inqueue_requests",
                "Requests that wait for a seat",
                counts.waiting.clone(),
            );
            registry.register(
                "apiserver_flowcontrol_nominal_limit_seats",
                "Seats that a priority level has of its own",
                counts.nominal.clone(),
            );
        });
        counts
    }
}
