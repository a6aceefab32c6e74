//! CustomResourceDefinitions at run time. Every server serves what the definitions in its own cache say, as soon as
//! they say it; the leader writes which names are accepted and clears up after deleted definitions.

pub mod admission;
pub mod convert;
mod known;
mod lead;
mod rules;
mod strategy;
mod version;

use std::sync::Arc;
use std::time::Duration;

use balsa_api::crd::{CLEANUP_FINALIZER, GROUP, PLURAL, naming};
use balsa_api::object;
use parking_lot::Mutex;
use serde_json::Value;
use tokio_util::sync::CancellationToken;

use crate::backend::{Backend, BackendError, KeyValue};
use crate::cache::{Cache, Scope};
use crate::kinds::{Kinds, Served};
use crate::registry::Target;
use known::Known;

pub use convert::ConversionCaller;
pub(crate) use lead::lead;

/// Keys read from the store at once.
const PAGE: usize = 1024;
/// Until the cache has been filled.
const SOON: Duration = Duration::from_millis(20);
/// Definitions that could not be served are tried again after this.
const AGAIN: Duration = Duration::from_secs(1);

/// The custom resources of one server.
pub struct CustomResources {
    kinds: Arc<Kinds>,
    cache: Arc<Cache>,
    backend: Arc<dyn Backend>,
    conversion: Arc<dyn ConversionCaller>,
    /// Ends all watches of custom resources.
    stop: CancellationToken,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// Generation of the definitions that `known` was made from.
    generation: Option<u64>,
    known: Vec<Known>,
}

impl CustomResources {
    /// For one server. Nothing is served before the first [`CustomResources::sync`].
    #[must_use]
    pub fn new(
        kinds: Arc<Kinds>,
        cache: Arc<Cache>,
        backend: Arc<dyn Backend>,
        conversion: Arc<dyn ConversionCaller>,
        stop: CancellationToken,
    ) -> Self {
        Self {
            kinds,
            cache,
            backend,
            conversion,
            stop,
            state: Mutex::default(),
        }
    }

    /// Serves what the definitions in the cache say now. Cheap when nothing has changed. False when it has to be
    /// tried again.
    pub fn sync(&self) -> bool {
        let Some(resource) = self.cache.resource(GROUP, PLURAL) else {
            self.kinds.set_complete();
            return true;
        };
        if !self.cache.is_synced() {
            return false;
        }
        let mut state = self.state.lock();
        // Read before the objects: what comes in between is looked at again.
        let generation = resource.generation();
        if state.generation == Some(generation) {
            return true;
        }
        let definitions: Vec<Arc<Value>> = resource
            .snapshot("", None)
            .objects
            .iter()
            .map(|stored| stored.value())
            .filter(|definition| naming::is_true(definition, "Established"))
            .collect();
        let (next, whole, changed) = self.next(&state.known, &definitions);
        if changed {
            let served: Vec<Served> = next.iter().flat_map(|k| k.served.clone()).collect();
            self.kinds.replace_custom(served);
            for old in &state.known {
                if !next.iter().any(|k| k.is(old)) {
                    old.retired.cancel();
                }
                if !next.iter().any(|k| k.uid == old.uid) {
                    self.cache.remove_resource(&old.group, &old.plural);
                }
            }
            state.known = next;
        }
        state.generation = whole.then_some(generation);
        self.kinds.set_complete();
        whole
    }

    /// What should be known; whether that is all of it; whether it is another state than before.
    fn next(&self, known: &[Known], definitions: &[Arc<Value>]) -> (Vec<Known>, bool, bool) {
        let mut next = Vec::with_capacity(definitions.len());
        let mut whole = true;
        let mut changed = known.len() != definitions.len();
        for definition in definitions {
            let fingerprint = known::fingerprint(definition);
            if let Some(same) = known
                .iter()
                .find(|k| k.uid == object::uid(definition) && k.fingerprint == fingerprint)
            {
                next.push(same.clone());
                continue;
            }
            changed = true;
            // Made again under the same name: the objects of the earlier one are gone.
            if let Some(earlier) = known
                .iter()
                .find(|k| k.is_named(definition) && k.uid != object::uid(definition))
            {
                self.cache.remove_resource(&earlier.group, &earlier.plural);
            }
            let made = Known::new(definition, &self.conversion, self.stop.child_token());
            let range = |prefix: &str, at: u64| self.range(prefix, at);
            match self.cache.add_resource(&made.storage.kind, range) {
                Ok(_) => next.push(made),
                Err(error) => {
                    let name = object::name(definition);
                    tracing::warn!(name, %error, "the objects of a custom resource could not be read; trying again");
                    whole = false;
                }
            }
        }
        (next, whole, changed)
    }

    /// All keys under a prefix at a revision.
    fn range(&self, prefix: &str, at: u64) -> Result<Vec<KeyValue>, BackendError> {
        let mut all: Vec<KeyValue> = Vec::new();
        let mut start = Vec::new();
        loop {
            let page = self.backend.range(prefix.as_bytes(), &start, PAGE, at)?;
            let last = page.kvs.last().map(|kv| kv.key.clone());
            all.extend(page.kvs);
            match last {
                Some(last) if page.more => start = [last.as_ref(), b"\0"].concat(),
                _ => return Ok(all),
            }
        }
    }

    /// Makes sure that every definition acknowledged anywhere before the call is served here, as far as that is
    /// known within `patience`.
    pub async fn catch_up(&self, patience: Duration) {
        if let Ok(revision) = self.backend.read_barrier().await {
            // Behind: then the answer is of the state that there is.
            let _ = self.cache.wait_for(revision, patience).await;
        }
        self.sync();
    }

    /// Keeps serving what the definitions say, until `stop`.
    pub async fn run(&self, stop: CancellationToken) {
        let Some(resource) = self.cache.resource(GROUP, PLURAL) else {
            return;
        };
        while !stop.is_cancelled() {
            let mut subscription = resource.subscribe(Scope::All, "");
            loop {
                let wait = match (self.sync(), self.cache.is_synced()) {
                    (true, _) => Duration::MAX,
                    (false, true) => AGAIN,
                    (false, false) => SOON,
                };
                tokio::select! {
                    () = stop.cancelled() => return,
                    change = subscription.changes.recv() => {
                        // The queue is bounded, and the state is read as a whole: what has come meanwhile is in.
                        while subscription.changes.try_recv().is_ok() {}
                        if change.is_none() {
                            break;
                        }
                    }
                    () = sleep(wait) => {}
                }
            }
        }
    }

    /// All objects of a definition's resource, in the stored version, whether that is served or not.
    fn all_objects(&self, definition: &Value) -> Option<Target> {
        let state = self.state.lock();
        let known = state
            .known
            .iter()
            .find(|k| k.uid == object::uid(definition))?;
        known.storage.target(&self.cache, "", "")
    }
}

/// Sleeps; forever for [`Duration::MAX`].
async fn sleep(time: Duration) {
    if time == Duration::MAX {
        std::future::pending::<()>().await;
    }
    tokio::time::sleep(time).await;
}

/// Is it the resource of definitions?
#[must_use]
pub fn is_definition(target: &Target) -> bool {
    target.is(GROUP, PLURAL)
}

/// A definition that is about to be deleted: it stays until its objects are gone. One that was never served has
/// none.
#[must_use]
pub fn begin_deletion(definition: &Value, now: jiff::Timestamp) -> Value {
    let mut definition = definition.clone();
    if object::is_deleting(&definition) || !naming::is_true(&definition, "Established") {
        return definition;
    }
    object::add_finalizer(&mut definition, CLEANUP_FINALIZER);
    naming::set_condition(
        &mut definition["status"],
        "Terminating",
        "True",
        "InstanceDeletionPending",
        "CustomResourceDefinition marked for deletion; CustomResource deletion will begin soon",
        &object::format_time(now),
    );
    definition
}
