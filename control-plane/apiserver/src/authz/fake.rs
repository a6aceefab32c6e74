//! An [`ObjectReader`] over a map, for tests.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::RwLock;
use serde_json::Value;

use crate::seam::ObjectReader;

/// (group, resource, namespace, name)
type Key = (String, String, String, String);

/// Objects as a test put them.
#[derive(Default)]
pub(crate) struct Objects {
    objects: RwLock<BTreeMap<Key, Arc<Value>>>,
    generation: AtomicU64,
}

impl Objects {
    pub(crate) fn new() -> Self {
        Self::default()
    }

    /// Adds or replaces an object, by its metadata.
    pub(crate) fn put(&self, group: &str, resource: &str, object: Value) {
        let text = |field: &str| {
            object["metadata"][field]
                .as_str()
                .unwrap_or_default()
                .to_owned()
        };
        let key = (
            group.into(),
            resource.into(),
            text("namespace"),
            text("name"),
        );
        self.objects.write().insert(key, Arc::new(object));
        self.generation.fetch_add(1, Ordering::SeqCst);
    }

    pub(crate) fn with(self, group: &str, resource: &str, object: Value) -> Self {
        self.put(group, resource, object);
        self
    }
}

impl ObjectReader for Objects {
    fn get(&self, group: &str, resource: &str, namespace: &str, name: &str) -> Option<Arc<Value>> {
        let key = (group.into(), resource.into(), namespace.into(), name.into());
        self.objects.read().get(&key).cloned()
    }

    fn list(&self, group: &str, resource: &str, namespace: Option<&str>) -> Vec<Arc<Value>> {
        self.objects
            .read()
            .iter()
            .filter(|((g, r, n, _), _)| {
                g == group && r == resource && namespace.is_none_or(|x| x == n)
            })
            .map(|(_, object)| Arc::clone(object))
            .collect()
    }

    fn generation(&self, _group: &str, _resource: &str) -> u64 {
        self.generation.load(Ordering::SeqCst)
    }
}
