//! A local copy of one kind that follows the API server, shared by everybody in the process.

use std::collections::VecDeque;
use std::fmt::Debug;
use std::hash::Hash;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures::StreamExt;
use kube::Resource;
use kube::api::{Api, ListParams, WatchEvent, WatchParams};
use parking_lot::{Mutex, RwLock};
use serde::de::DeserializeOwned;
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;
use tracing::Instrument;

use crate::source::{ApiSource, Source, WatchStream};
use crate::store::{Delta, Index, Store};

/// What to watch, and how.
#[derive(Debug, Clone)]
pub struct InformerOptions {
    /// Only objects with these labels.
    pub labels: Option<String>,
    /// Only objects with these fields, for example `spec.nodeName=a1`.
    pub fields: Option<String>,
    /// Get the first state through the watch itself (`sendInitialEvents`) instead of a list. Falls back to
    /// a list when the server does not do it.
    pub watch_list: bool,
    /// Keep `metadata.managedFields`, which nearly nobody reads and which is often half of an object.
    pub managed_fields: bool,
}

impl Default for InformerOptions {
    fn default() -> Self {
        Self {
            labels: None,
            fields: None,
            watch_list: true,
            managed_fields: false,
        }
    }
}

impl InformerOptions {
    /// Only objects with these fields.
    #[must_use]
    pub fn fields(fields: impl Into<String>) -> Self {
        Self {
            fields: Some(fields.into()),
            ..Self::default()
        }
    }
}

type Handler<K> = Box<dyn Fn(&Delta<K>) + Send + Sync>;

struct Shared<K> {
    /// Lock order: `handlers`, then `store`. Handlers run under `handlers` alone, so they may read the store.
    handlers: Mutex<Vec<Handler<K>>>,
    store: RwLock<Store<K>>,
    synced: watch::Sender<bool>,
}

/// A shared, indexed, always-current copy of one kind. Cheap to clone.
///
/// Handlers run in the informer's task, in the order of registration, and must be quick: map the change to
/// keys and put them into a [`WorkQueue`](crate::WorkQueue). A handler registered late is first shown all
/// objects as [`Delta::Added`]. A handler must not register handlers on the same informer.
pub struct Informer<K> {
    shared: Arc<Shared<K>>,
}

impl<K> Clone for Informer<K> {
    fn clone(&self) -> Self {
        Self {
            shared: Arc::clone(&self.shared),
        }
    }
}

impl<K> Informer<K>
where
    K: Resource + Clone + DeserializeOwned + Debug + Send + Sync + 'static,
{
    /// Starts to follow whole objects through `api`, until `stop`.
    pub fn start(api: Api<K>, options: InformerOptions, stop: CancellationToken) -> Self {
        Self::start_trimmed(api, options, |_| {}, stop)
    }

    /// As [`Self::start`]; `trim` takes out of each object what nobody here reads, before anybody sees it.
    pub fn start_trimmed(
        api: Api<K>,
        options: InformerOptions,
        trim: fn(&mut K),
        stop: CancellationToken,
    ) -> Self {
        let name = api.resource_url().to_owned();
        Self::follow(ApiSource(api), name, options, trim, stop)
    }
}

impl<K> Informer<K>
where
    K: Resource + Clone + Send + Sync + 'static,
{
    /// Starts to follow any [`Source`]; `name` is for logs.
    pub fn start_from(
        source: impl Source<K>,
        name: String,
        options: InformerOptions,
        stop: CancellationToken,
    ) -> Self {
        Self::follow(source, name, options, |_| {}, stop)
    }

    fn follow(
        source: impl Source<K>,
        name: String,
        options: InformerOptions,
        trim: fn(&mut K),
        stop: CancellationToken,
    ) -> Self {
        let shared = Arc::new(Shared {
            handlers: Mutex::default(),
            store: RwLock::new(Store::new()),
            synced: watch::channel(false).0,
        });
        let follower = Follower {
            source,
            options,
            trim,
            shared: Arc::clone(&shared),
            list_only: AtomicBool::new(false),
        };
        let span = tracing::info_span!("informer", resource = %name);
        tokio::spawn(
            async move {
                tokio::select! {
                    () = stop.cancelled() => {}
                    () = follower.run() => {}
                }
            }
            .instrument(span),
        );
        Self { shared }
    }

    /// One object; `namespace` is empty for cluster-scoped kinds.
    #[must_use]
    pub fn get(&self, namespace: &str, name: &str) -> Option<Arc<K>> {
        self.shared.store.read().get(namespace, name)
    }

    /// All objects, in no particular order.
    #[must_use]
    pub fn list(&self) -> Vec<Arc<K>> {
        self.shared.store.read().list()
    }

    /// All objects of a namespace, in no particular order.
    #[must_use]
    pub fn list_namespace(&self, namespace: &str) -> Vec<Arc<K>> {
        self.shared.store.read().list_namespace(namespace)
    }

    /// How many objects there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.shared.store.read().len()
    }

    /// True when there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// True once the first complete state is here.
    #[must_use]
    pub fn is_synced(&self) -> bool {
        *self.shared.synced.borrow()
    }

    /// Waits for the first complete state.
    pub async fn synced(&self) {
        let mut synced = self.shared.synced.subscribe();
        // The sender lives in `shared`, which we hold: this cannot fail.
        let _ = synced.wait_for(|synced| *synced).await;
    }

    /// Calls `handler` for all objects now, then for every change.
    pub fn on_change(&self, handler: impl Fn(&Delta<K>) + Send + Sync + 'static) {
        let mut handlers = self.shared.handlers.lock();
        for object in self.list() {
            handler(&Delta::Added(object));
        }
        handlers.push(Box::new(handler));
    }

    /// An index by values computed from objects. Register indexes before handlers that lead to their use.
    pub fn index<V>(&self, extract: impl Fn(&K) -> Vec<V> + Send + Sync + 'static) -> Index<K, V>
    where
        V: Hash + Eq + Send + Sync + 'static,
    {
        let index = Index::new(extract);
        let observer = index.clone();
        self.on_change(move |delta| observer.observe(delta));
        index
    }

    /// Changes as a stream of at most `capacity` waiting deltas, all objects first. A subscriber that lags
    /// costs only itself: it gets `None` in place of what it missed and reads the store again.
    #[must_use]
    pub fn subscribe(&self, capacity: usize) -> Subscription<K> {
        let queue = Arc::new(SubscriptionQueue {
            state: Mutex::new(SubscriptionState {
                deltas: VecDeque::new(),
                lagged: false,
            }),
            capacity: capacity.max(1),
            ready: Notify::new(),
            closed: AtomicBool::new(false),
        });
        let sender = Arc::clone(&queue);
        self.on_change(move |delta| sender.push(delta));
        Subscription { queue }
    }
}

struct SubscriptionState<K> {
    deltas: VecDeque<Delta<K>>,
    lagged: bool,
}

struct SubscriptionQueue<K> {
    state: Mutex<SubscriptionState<K>>,
    capacity: usize,
    ready: Notify,
    closed: AtomicBool,
}

impl<K> SubscriptionQueue<K> {
    fn push(&self, delta: &Delta<K>) {
        if self.closed.load(Ordering::Relaxed) {
            return;
        }
        let mut state = self.state.lock();
        if state.deltas.len() >= self.capacity {
            state.deltas.clear();
            state.lagged = true;
        }
        if !state.lagged {
            state.deltas.push_back(delta.clone());
        }
        drop(state);
        self.ready.notify_one();
    }
}

/// A bounded stream of changes; see [`Informer::subscribe`].
pub struct Subscription<K> {
    queue: Arc<SubscriptionQueue<K>>,
}

impl<K> Subscription<K> {
    /// The next change; `None` means that some were lost: read the whole store again. Cancel-safe.
    pub async fn next(&mut self) -> Option<Delta<K>> {
        loop {
            {
                let mut state = self.queue.state.lock();
                if std::mem::take(&mut state.lagged) {
                    return None;
                }
                if let Some(delta) = state.deltas.pop_front() {
                    return Some(delta);
                }
            }
            self.queue.ready.notified().await;
        }
    }
}

impl<K> Drop for Subscription<K> {
    fn drop(&mut self) {
        self.queue.closed.store(true, Ordering::Relaxed);
        self.queue.state.lock().deltas.clear();
    }
}

/// How long a watch lasts before the server ends it; varied so that watches do not end together.
const WATCH_SECONDS: std::ops::Range<u32> = 300..600;
/// A server that has not finished the initial events by then does not know `sendInitialEvents`.
const WATCH_LIST_DEADLINE: Duration = Duration::from_secs(60);
/// A server that has sent nothing at all by then does not either (it sends at least the closing bookmark).
const WATCH_LIST_IDLE: Duration = Duration::from_secs(10);
const LIST_DEADLINE: Duration = Duration::from_secs(60);
const PAGE_SIZE: u32 = 5000;
const RETRY_FIRST: Duration = Duration::from_millis(20);
const RETRY_MAX: Duration = Duration::from_secs(2);

/// The task behind an informer: one loop of "get the whole state, then follow it".
struct Follower<K, S> {
    source: S,
    options: InformerOptions,
    trim: fn(&mut K),
    shared: Arc<Shared<K>>,
    list_only: AtomicBool,
}

/// Where a follower is.
enum Position<K> {
    /// It knows nothing, or too little to go on.
    Unknown,
    /// It has everything up to this revision, but no watch.
    At(String),
    /// It follows.
    Watching(String, WatchStream<K>),
}

impl<K, S> Follower<K, S>
where
    K: Resource + Clone + Send + Sync + 'static,
    S: Source<K>,
{
    async fn run(self) {
        let mut position = Position::Unknown;
        let mut retry = RETRY_FIRST;
        loop {
            let step = match position {
                Position::Unknown => self.start().await,
                Position::At(version) => self.resume(version).await,
                Position::Watching(version, stream) => self.follow(version, stream).await,
            };
            position = match step {
                Ok(next) => {
                    retry = RETRY_FIRST;
                    next
                }
                Err((error, next)) => {
                    log_error(&error);
                    let jitter = rand::random_range(0.5..1.0);
                    tokio::time::sleep(retry.mul_f64(jitter)).await;
                    retry = (retry * 2).min(RETRY_MAX);
                    next
                }
            };
        }
    }

    async fn start(&self) -> Step<K> {
        if self.options.watch_list && !self.list_only.load(Ordering::Relaxed) {
            match self.watch_list().await {
                Err((StepError::NoWatchList, _)) => {
                    tracing::debug!("the server does not stream initial events; listing instead");
                    self.list_only.store(true, Ordering::Relaxed);
                }
                other => return other,
            }
        }
        self.list().await
    }

    async fn watch_list(&self) -> Step<K> {
        let unknown = |error| (error, Position::Unknown);
        let params = WatchParams {
            send_initial_events: true,
            ..self.watch_params()
        };
        let stream = self.source.watch(params, String::new()).await;
        let mut stream = match stream {
            Err(kube::Error::Api(status)) if matches!(status.code, 400 | 422) => {
                return Err(unknown(StepError::NoWatchList));
            }
            other => other.map_err(|error| unknown(error.into()))?,
        };
        let mut objects = Vec::new();
        let deadline = tokio::time::Instant::now() + WATCH_LIST_DEADLINE;
        loop {
            let until = deadline.min(tokio::time::Instant::now() + WATCH_LIST_IDLE);
            let Ok(event) = tokio::time::timeout_at(until, stream.next()).await else {
                return Err(unknown(StepError::NoWatchList));
            };
            match event {
                Some(Ok(WatchEvent::Added(object) | WatchEvent::Modified(object))) => {
                    objects.push(self.trim(object));
                }
                Some(Ok(WatchEvent::Deleted(_))) => return Err(unknown(StepError::NoWatchList)),
                Some(Ok(WatchEvent::Bookmark(bookmark))) => {
                    if bookmark
                        .metadata
                        .annotations
                        .contains_key("k8s.io/initial-events-end")
                    {
                        self.replace(objects);
                        return Ok(Position::Watching(
                            bookmark.metadata.resource_version,
                            stream,
                        ));
                    }
                }
                Some(Ok(WatchEvent::Error(status))) => {
                    return Err(unknown(kube::Error::Api(status).into()));
                }
                Some(Err(error)) if is_undecodable(&error) => skip_undecodable(&error),
                Some(Err(error)) => return Err(unknown(error.into())),
                None => return Err(unknown(StepError::Ended)),
            }
        }
    }

    async fn list(&self) -> Step<K> {
        let unknown = |error| (error, Position::Unknown);
        let mut params = ListParams {
            label_selector: self.options.labels.clone(),
            field_selector: self.options.fields.clone(),
            limit: Some(PAGE_SIZE),
            ..ListParams::default()
        };
        let mut objects = Vec::new();
        loop {
            let page = tokio::time::timeout(LIST_DEADLINE, self.source.list(params.clone()))
                .await
                .map_err(|_| unknown(StepError::Timeout))?
                .map_err(|error| unknown(error.into()))?;
            objects.extend(page.items.into_iter().map(|object| self.trim(object)));
            if page.continue_token.is_empty() {
                self.replace(objects);
                return Ok(Position::At(page.resource_version));
            }
            params.continue_token = Some(page.continue_token);
        }
    }

    async fn resume(&self, version: String) -> Step<K> {
        match self
            .source
            .watch(self.watch_params(), version.clone())
            .await
        {
            Ok(stream) => Ok(Position::Watching(version, stream)),
            Err(kube::Error::Api(status)) if is_expired(&status) => Ok(Position::Unknown),
            Err(error) => Err((error.into(), Position::At(version))),
        }
    }

    /// Follows until the stream ends, keeping the last revision seen.
    async fn follow(&self, mut version: String, mut stream: WatchStream<K>) -> Step<K> {
        loop {
            match stream.next().await {
                Some(Ok(WatchEvent::Added(object) | WatchEvent::Modified(object))) => {
                    remember(&mut version, &object);
                    let object = self.trim(object);
                    self.change(|store| store.apply(object));
                }
                Some(Ok(WatchEvent::Deleted(object))) => {
                    remember(&mut version, &object);
                    let object = self.trim(object);
                    self.change(|store| store.delete(object));
                }
                Some(Ok(WatchEvent::Bookmark(bookmark))) => {
                    version = bookmark.metadata.resource_version
                }
                Some(Ok(WatchEvent::Error(status))) if is_expired(&status) => {
                    return Ok(Position::Unknown);
                }
                Some(Ok(WatchEvent::Error(status))) => {
                    return Err((kube::Error::Api(status).into(), Position::At(version)));
                }
                Some(Err(error)) if is_undecodable(&error) => skip_undecodable(&error),
                Some(Err(error)) => return Err((error.into(), Position::At(version))),
                // Also a dead server's doing: go on elsewhere after the shortest pause.
                None => return Err((StepError::Ended, Position::At(version))),
            }
        }
    }

    fn watch_params(&self) -> WatchParams {
        WatchParams {
            label_selector: self.options.labels.clone(),
            field_selector: self.options.fields.clone(),
            timeout: Some(rand::random_range(WATCH_SECONDS)),
            bookmarks: true,
            send_initial_events: false,
        }
    }

    fn trim(&self, mut object: K) -> K {
        if !self.options.managed_fields {
            object.meta_mut().managed_fields = None;
        }
        (self.trim)(&mut object);
        object
    }

    fn replace(&self, objects: Vec<K>) {
        self.change(|store| store.replace(objects));
        self.shared.synced.send_replace(true);
    }

    fn change(&self, change: impl FnOnce(&mut Store<K>) -> Vec<Delta<K>>) {
        let handlers = self.shared.handlers.lock();
        let deltas = change(&mut self.shared.store.write());
        for delta in &deltas {
            for handler in handlers.iter() {
                handler(delta);
            }
        }
    }
}

type Step<K> = Result<Position<K>, (StepError, Position<K>)>;

#[derive(Debug, thiserror::Error)]
enum StepError {
    #[error("the server does not stream initial events")]
    NoWatchList,
    #[error("the list took longer than {LIST_DEADLINE:?}")]
    Timeout,
    #[error("the watch ended")]
    Ended,
    #[error(transparent)]
    Kube(#[from] kube::Error),
}

fn remember<K: Resource>(version: &mut String, object: &K) {
    if let Some(newer) = &object.meta().resource_version {
        version.clone_from(newer);
    }
}

fn is_expired(status: &kube::core::Status) -> bool {
    status.code == 410
}

/// True for an event that the type cannot take. kube tries to read such a line as a Status, of which every field is
/// optional, and so hands out a failure that says nothing. Asking again from the same revision would bring the same
/// event for ever.
fn is_undecodable(error: &kube::Error) -> bool {
    match error {
        kube::Error::SerdeError(_) => true,
        kube::Error::Api(status) => status.code == 0 && status.reason.is_empty(),
        _ => false,
    }
}

fn skip_undecodable(error: &kube::Error) {
    tracing::warn!(%error, "skipping an event that this version cannot decode");
}

/// A refused watch needs a person; anything else heals by itself.
fn log_error(error: &StepError) {
    match error {
        StepError::Kube(kube::Error::Api(status)) if matches!(status.code, 401 | 403) => {
            tracing::warn!(error = %status.message, "may not watch; trying again");
        }
        error => tracing::debug!(%error, "watch interrupted; trying again"),
    }
}

#[cfg(test)]
mod tests;
