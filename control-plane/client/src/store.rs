//! The local copy of one kind, and indexes over it.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::Arc;

use kube::Resource;
use parking_lot::RwLock;

use crate::key::Key;

/// One change of one object.
#[derive(Debug)]
pub enum Delta<K> {
    /// Seen for the first time.
    Added(Arc<K>),
    /// Changed (or listed again).
    Updated {
        /// As it was.
        old: Arc<K>,
        /// As it is.
        new: Arc<K>,
    },
    /// Gone; its last known state.
    Deleted(Arc<K>),
}

impl<K> Clone for Delta<K> {
    fn clone(&self) -> Self {
        match self {
            Delta::Added(object) => Delta::Added(Arc::clone(object)),
            Delta::Updated { old, new } => Delta::Updated {
                old: Arc::clone(old),
                new: Arc::clone(new),
            },
            Delta::Deleted(object) => Delta::Deleted(Arc::clone(object)),
        }
    }
}

impl<K> Delta<K> {
    /// The object in its newest known state.
    pub fn object(&self) -> &Arc<K> {
        match self {
            Delta::Added(object) | Delta::Updated { new: object, .. } | Delta::Deleted(object) => {
                object
            }
        }
    }

    /// The object as it was before, for updates.
    pub fn old(&self) -> Option<&Arc<K>> {
        match self {
            Delta::Updated { old, .. } => Some(old),
            _ => None,
        }
    }

    /// True when the object is gone.
    pub fn is_delete(&self) -> bool {
        matches!(self, Delta::Deleted(_))
    }
}

/// Objects by namespace, then name: a namespace is listed without looking at the others.
pub(crate) struct Store<K> {
    namespaces: HashMap<String, HashMap<String, Arc<K>>>,
}

impl<K: Resource> Store<K> {
    pub(crate) fn new() -> Self {
        Self {
            namespaces: HashMap::new(),
        }
    }

    pub(crate) fn get(&self, namespace: &str, name: &str) -> Option<Arc<K>> {
        self.namespaces.get(namespace)?.get(name).cloned()
    }

    pub(crate) fn list(&self) -> Vec<Arc<K>> {
        self.namespaces
            .values()
            .flat_map(HashMap::values)
            .cloned()
            .collect()
    }

    pub(crate) fn list_namespace(&self, namespace: &str) -> Vec<Arc<K>> {
        self.namespaces
            .get(namespace)
            .map(|objects| objects.values().cloned().collect())
            .unwrap_or_default()
    }

    pub(crate) fn len(&self) -> usize {
        self.namespaces.values().map(HashMap::len).sum()
    }

    /// Puts an object in. A namesake with another uid counts as deleted first, so that nobody takes the
    /// newcomer for a changed version of it.
    pub(crate) fn apply(&mut self, object: K) -> Vec<Delta<K>> {
        let key = Key::of(&object);
        let new = Arc::new(object);
        let old = self
            .namespaces
            .entry(key.namespace)
            .or_default()
            .insert(key.name, Arc::clone(&new));
        match old {
            None => vec![Delta::Added(new)],
            Some(old) if old.meta().uid != new.meta().uid => {
                vec![Delta::Deleted(old), Delta::Added(new)]
            }
            Some(old) if same_version(&*old, &*new) => Vec::new(),
            Some(old) => vec![Delta::Updated { old, new }],
        }
    }

    pub(crate) fn delete(&mut self, object: K) -> Vec<Delta<K>> {
        let key = Key::of(&object);
        let Some(objects) = self.namespaces.get_mut(&key.namespace) else {
            return Vec::new();
        };
        let removed = objects.remove(&key.name);
        if objects.is_empty() {
            self.namespaces.remove(&key.namespace);
        }
        // The event carries the last state, which may be newer than what is stored.
        removed
            .map(|_| Delta::Deleted(Arc::new(object)))
            .into_iter()
            .collect()
    }

    /// Makes the store equal to a full list.
    pub(crate) fn replace(&mut self, objects: Vec<K>) -> Vec<Delta<K>> {
        let mut before = std::mem::take(&mut self.namespaces);
        let mut deltas = Vec::new();
        for object in objects {
            let key = Key::of(&object);
            let old = before
                .get_mut(&key.namespace)
                .and_then(|objects| objects.remove(&key.name));
            if let Some(old) = old {
                self.namespaces
                    .entry(key.namespace)
                    .or_default()
                    .insert(key.name, old);
            }
            deltas.extend(self.apply(object));
        }
        deltas.extend(
            before
                .into_values()
                .flat_map(HashMap::into_values)
                .map(Delta::Deleted),
        );
        deltas
    }
}

fn same_version<K: Resource>(old: &K, new: &K) -> bool {
    let version = &new.meta().resource_version;
    version.is_some() && *version == old.meta().resource_version
}

type Extract<K, V> = Box<dyn Fn(&K) -> Vec<V> + Send + Sync>;

/// Objects found by a value computed from them (owner uid, node name, label). Made by
/// [`Informer::index`](crate::Informer::index), kept current by it, and cheap to clone.
pub struct Index<K, V> {
    inner: Arc<IndexInner<K, V>>,
}

struct IndexInner<K, V> {
    extract: Extract<K, V>,
    objects: RwLock<HashMap<V, HashMap<Key, Arc<K>>>>,
}

impl<K, V> Clone for Index<K, V> {
    fn clone(&self) -> Self {
        Self {
            inner: Arc::clone(&self.inner),
        }
    }
}

impl<K: Resource, V: Hash + Eq> Index<K, V> {
    pub(crate) fn new(extract: impl Fn(&K) -> Vec<V> + Send + Sync + 'static) -> Self {
        Self {
            inner: Arc::new(IndexInner {
                extract: Box::new(extract),
                objects: RwLock::default(),
            }),
        }
    }

    /// Objects with this value, in no particular order.
    pub fn get<Q>(&self, value: &Q) -> Vec<Arc<K>>
    where
        V: std::borrow::Borrow<Q>,
        Q: Hash + Eq + ?Sized,
    {
        let objects = self.inner.objects.read();
        objects
            .get(value)
            .map(|found| found.values().cloned().collect())
            .unwrap_or_default()
    }

    pub(crate) fn observe(&self, delta: &Delta<K>) {
        let mut objects = self.inner.objects.write();
        let (remove, insert) = match delta {
            Delta::Added(new) => (None, Some(new)),
            Delta::Updated { old, new } => (Some(old), Some(new)),
            Delta::Deleted(old) => (Some(old), None),
        };
        if let Some(old) = remove {
            let key = Key::of(&**old);
            for value in (self.inner.extract)(old) {
                if let Some(found) = objects.get_mut(&value) {
                    found.remove(&key);
                    if found.is_empty() {
                        objects.remove(&value);
                    }
                }
            }
        }
        if let Some(new) = insert {
            let key = Key::of(&**new);
            for value in (self.inner.extract)(new) {
                objects
                    .entry(value)
                    .or_default()
                    .insert(key.clone(), Arc::clone(new));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use k8s_openapi::api::core::v1::Pod;

    use super::*;

    fn pod(name: &str, uid: &str, version: &str) -> Pod {
        let mut pod = Pod::default();
        pod.metadata.namespace = Some("default".into());
        pod.metadata.name = Some(name.into());
        pod.metadata.uid = Some(uid.into());
        pod.metadata.resource_version = Some(version.into());
        pod
    }

    #[test]
    fn a_namesake_with_another_uid_is_a_delete_and_an_add() {
        let mut store = Store::new();
        store.apply(pod("a", "1", "1"));
        let deltas = store.apply(pod("a", "2", "5"));
        assert!(
            matches!(&deltas[..], [Delta::Deleted(old), Delta::Added(new)]
            if old.metadata.uid.as_deref() == Some("1") && new.metadata.uid.as_deref() == Some("2"))
        );
    }

    #[test]
    fn the_same_version_again_is_no_change() {
        let mut store = Store::new();
        store.apply(pod("a", "1", "1"));
        assert!(store.apply(pod("a", "1", "1")).is_empty());
    }

    #[test]
    fn a_full_list_yields_what_was_missed() {
        let mut store = Store::new();
        store.apply(pod("kept", "1", "1"));
        store.apply(pod("changed", "2", "2"));
        store.apply(pod("gone", "3", "3"));
        let mut deltas: Vec<String> = store
            .replace(vec![
                pod("kept", "1", "1"),
                pod("changed", "2", "7"),
                pod("new", "4", "8"),
            ])
            .iter()
            .map(|delta| match delta {
                Delta::Added(o) => format!("add {}", Key::of(&**o)),
                Delta::Updated { new, .. } => format!("update {}", Key::of(&**new)),
                Delta::Deleted(o) => format!("delete {}", Key::of(&**o)),
            })
            .collect();
        deltas.sort();
        assert_eq!(
            deltas,
            [
                "add default/new",
                "delete default/gone",
                "update default/changed"
            ]
        );
        assert_eq!(store.len(), 3);
    }

    #[test]
    fn a_deleted_pod_leaves_the_index() {
        let index = Index::new(|pod: &Pod| pod.metadata.uid.iter().cloned().collect());
        let object = Arc::new(pod("a", "1", "1"));
        index.observe(&Delta::Added(Arc::clone(&object)));
        assert_eq!(index.get("1").len(), 1);
        index.observe(&Delta::Deleted(object));
        assert!(index.get("1").is_empty());
        assert!(index.inner.objects.read().is_empty());
    }
}
