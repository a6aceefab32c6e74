//! All objects of one resource, its recent changes, and who watches them.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::ops::Bound;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use balsa_api::kind::Kind;
use parking_lot::RwLock;
use tokio::sync::mpsc;

use super::event::WatchEvent;
use super::stored::Stored;

/// Changes that are kept for watchers that come back with an older resourceVersion.
const RING_EVENTS: usize = 16_384;
const RING_BYTES: usize = 16 << 20;
const RING_AGE: Duration = Duration::from_secs(300);
/// Changes that may wait for one watcher before it is cut off.
const WATCHER_QUEUE: usize = 8192;

/// What a watcher can see at most; narrow scopes keep changes elsewhere from waking it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Scope {
    /// All objects.
    All,
    /// One namespace.
    Namespace(String),
    /// One object, by key.
    Object(String),
    /// All objects with a selectable field of this value.
    Field(String, String),
}

/// One resource.
pub struct Resource {
    /// Its kind.
    pub kind: Arc<Kind>,
    /// Prefix of its keys in the store.
    pub prefix: String,
    state: RwLock<State>,
    generation: AtomicU64,
}

/// A watcher's number and its queue.
type Listener = (u64, mpsc::Sender<Arc<WatchEvent>>);

#[derive(Default)]
struct State {
    objects: BTreeMap<Arc<str>, Arc<Stored>>,
    ring: VecDeque<Arc<WatchEvent>>,
    ring_bytes: usize,
    /// All changes after this revision are in the ring.
    floor: u64,
    /// Revision of the latest change.
    changed: u64,
    watchers: HashMap<Scope, Vec<Listener>>,
    /// While the first objects are being read: keys that have changed since, which count more than what is read.
    touched: Option<HashSet<Box<str>>>,
    next_watcher: u64,
}

/// The objects at one moment.
pub struct Snapshot {
    /// In key order.
    pub objects: Vec<Arc<Stored>>,
    /// Latest change of the resource as of the snapshot.
    pub changed: u64,
}

/// A resourceVersion that is gone: the oldest one that still works is given.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TooOld(pub u64);

/// A registered watcher.
pub struct Subscription {
    resource: Arc<Resource>,
    scope: Scope,
    namespace: String,
    id: u64,
    /// Changes after the registration. Closed when the watcher was too slow or the cache was reset.
    pub changes: mpsc::Receiver<Arc<WatchEvent>>,
}

impl Subscription {
    /// Is an object within the watcher's namespace? (Narrower scopes are the filter's business.)
    #[must_use]
    pub fn covers(&self, stored: &Stored) -> bool {
        self.namespace.is_empty() || stored.namespace() == self.namespace
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        self.resource.unsubscribe(&self.scope, self.id);
    }
}

impl Resource {
    pub(super) fn new(kind: Arc<Kind>) -> Self {
        let prefix = super::keys::resource_prefix(&kind.group, &kind.plural);
        Self {
            kind,
            prefix,
            state: RwLock::default(),
            generation: AtomicU64::new(0),
        }
    }

    /// A resource whose objects [`Resource::fill`] brings; changes may come before.
    pub(super) fn filling(kind: Arc<Kind>) -> Self {
        let resource = Self::new(kind);
        resource.state.write().touched = Some(HashSet::new());
        resource
    }

    /// Takes the objects that there were at a revision, but for those that have changed since.
    pub(super) fn fill(&self, objects: Vec<Stored>, revision: u64) {
        let mut state = self.state.write();
        // A reset in between has brought everything already.
        let Some(touched) = state.touched.take() else {
            return;
        };
        for stored in objects {
            if !touched.contains(&*stored.key) {
                state
                    .objects
                    .insert(Arc::clone(&stored.key), Arc::new(stored));
            }
        }
        state.floor = state.floor.max(revision);
        state.changed = state.changed.max(revision);
        drop(state);
        self.generation.fetch_add(1, Ordering::AcqRel);
    }

    /// One object, by its key.
    #[must_use]
    pub fn get(&self, key: &str) -> Option<Arc<Stored>> {
        self.state.read().objects.get(key).cloned()
    }

    /// A number that grows with each change.
    #[must_use]
    pub fn generation(&self) -> u64 {
        self.generation.load(Ordering::Acquire)
    }

    /// How many objects there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.state.read().objects.len()
    }

    /// How many watchers there are.
    #[must_use]
    pub fn watchers(&self) -> usize {
        self.state.read().watchers.values().map(Vec::len).sum()
    }

    /// True when there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Objects of a namespace (or of all, when empty) from `start` (inclusive) on.
    #[must_use]
    pub fn snapshot(&self, namespace: &str, start: Option<&str>) -> Snapshot {
        let state = self.state.read();
        Snapshot {
            objects: select(&state.objects, namespace, start),
            changed: state.changed,
        }
    }

    /// Registers a watcher and takes the objects of its namespace in the same moment.
    #[must_use]
    pub fn subscribe_with_state(
        self: &Arc<Self>,
        scope: Scope,
        namespace: &str,
    ) -> (Subscription, Vec<Arc<Stored>>) {
        let mut state = self.state.write();
        let objects = select(&state.objects, namespace, None);
        (self.register(&mut state, scope, namespace), objects)
    }

    /// Registers a watcher for changes from now on.
    #[must_use]
    pub fn subscribe(self: &Arc<Self>, scope: Scope, namespace: &str) -> Subscription {
        self.register(&mut self.state.write(), scope, namespace)
    }

    /// Registers a watcher for changes from now on; also says after which change that is.
    #[must_use]
    pub fn subscribe_now(self: &Arc<Self>, scope: Scope, namespace: &str) -> (Subscription, u64) {
        let mut state = self.state.write();
        let changed = state.changed;
        (self.register(&mut state, scope, namespace), changed)
    }

    /// Registers a watcher for changes after `revision`; those that happened already come in the second part.
    ///
    /// # Errors
    /// [`TooOld`] when some of them are no longer kept.
    pub fn subscribe_from(
        self: &Arc<Self>,
        scope: Scope,
        namespace: &str,
        revision: u64,
    ) -> Result<(Subscription, Vec<Arc<WatchEvent>>), TooOld> {
        let mut state = self.state.write();
        if revision < state.floor {
            return Err(TooOld(state.floor));
        }
        let first = state.ring.partition_point(|e| e.revision <= revision);
        let missed = state.ring.range(first..).cloned().collect();
        Ok((self.register(&mut state, scope, namespace), missed))
    }

    fn register(
        self: &Arc<Self>,
        state: &mut State,
        scope: Scope,
        namespace: &str,
    ) -> Subscription {
        let (sender, changes) = mpsc::channel(WATCHER_QUEUE);
        state.next_watcher += 1;
        let id = state.next_watcher;
        state
            .watchers
            .entry(scope.clone())
            .or_default()
            .push((id, sender));
        Subscription {
            resource: Arc::clone(self),
            scope,
            namespace: namespace.to_owned(),
            id,
            changes,
        }
    }

    fn unsubscribe(&self, scope: &Scope, id: u64) {
        let mut state = self.state.write();
        if let Some(watchers) = state.watchers.get_mut(scope) {
            watchers.retain(|(other, _)| *other != id);
            if watchers.is_empty() {
                state.watchers.remove(scope);
            }
        }
    }

    /// Takes a change from the store. `new` is `None` for a deletion.
    pub(super) fn apply(&self, key: &str, revision: u64, new: Option<Stored>) {
        let new = new.map(Arc::new);
        let mut state = self.state.write();
        if let Some(touched) = &mut state.touched {
            touched.insert(key.into());
        }
        let old = match &new {
            Some(stored) => state
                .objects
                .insert(Arc::clone(&stored.key), Arc::clone(stored)),
            None => state.objects.remove(key),
        };
        if new.is_none() && old.is_none() {
            return;
        }
        state.changed = revision;
        self.generation.fetch_add(1, Ordering::AcqRel);
        let event = Arc::new(WatchEvent::new(revision, new, old));
        state.publish(&event);
        state.remember(event);
    }

    /// Replaces everything: at start and after a snapshot was installed. Watchers are cut off, for what
    /// happened in between is not known.
    pub(super) fn replace(&self, objects: Vec<Stored>, revision: u64) {
        let objects = objects
            .into_iter()
            .map(|s| (Arc::clone(&s.key), Arc::new(s)))
            .collect();
        let mut state = self.state.write();
        state.objects = objects;
        state.touched = None;
        state.ring.clear();
        state.ring_bytes = 0;
        state.floor = revision;
        state.changed = revision;
        state.watchers.clear();
        drop(state);
        self.generation.fetch_add(1, Ordering::AcqRel);
    }
}

impl State {
    fn publish(&mut self, event: &Arc<WatchEvent>) {
        if self.watchers.is_empty() {
            return;
        }
        let mut scopes = vec![Scope::All];
        let stored = event.new.as_ref().or(event.old.as_ref());
        if let Some(stored) = stored {
            scopes.push(Scope::Namespace(stored.namespace().to_owned()));
            scopes.push(Scope::Object(stored.key.to_string()));
        }
        for stored in event.new.iter().chain(event.old.iter()) {
            for (field, value) in stored
                .fields
                .iter()
                .filter(|(f, _)| INDEXED_FIELDS.contains(&f.as_ref()))
            {
                let scope = Scope::Field(field.to_string(), value.clone());
                if !scopes.contains(&scope) {
                    scopes.push(scope);
                }
            }
        }
        for scope in scopes {
            if let Some(watchers) = self.watchers.get_mut(&scope) {
                watchers.retain(|(_, sender)| sender.try_send(Arc::clone(event)).is_ok());
            }
        }
    }

    fn remember(&mut self, event: Arc<WatchEvent>) {
        self.ring_bytes += event.weight();
        let now = event.seen;
        self.ring.push_back(event);
        while let Some(first) = self.ring.front() {
            let old = now.saturating_duration_since(first.seen) > RING_AGE;
            if !(old || self.ring.len() > RING_EVENTS || self.ring_bytes > RING_BYTES)
                || self.ring.len() == 1
            {
                break;
            }
            self.ring_bytes = self.ring_bytes.saturating_sub(first.weight());
            self.floor = first.revision;
            self.ring.pop_front();
        }
    }
}

/// Fields with many watchers that each want one value: every node agent watches the pods of its node.
pub const INDEXED_FIELDS: [&str; 1] = ["spec.nodeName"];

fn select(
    objects: &BTreeMap<Arc<str>, Arc<Stored>>,
    namespace: &str,
    start: Option<&str>,
) -> Vec<Arc<Stored>> {
    let prefix = if namespace.is_empty() {
        String::new()
    } else {
        format!("{namespace}/")
    };
    let from = start.map_or(prefix.as_str(), |s| s.max(prefix.as_str()));
    objects
        .range::<str, _>((Bound::Included(from), Bound::Unbounded))
        .take_while(|(key, _)| key.starts_with(&prefix))
        .map(|(_, stored)| Arc::clone(stored))
        .collect()
}
