//! Short forms for declaring kinds and for what most strategies do alike.

use std::sync::Arc;

use serde_json::{Value, json};

use super::walk::{Walk, carry_over, child, same, set};
use crate::kind::{ALL_VERBS, Kind, Name, Scope, Strategy, Subresource};

/// Verbs of a kind whose objects are answers to a question and are not stored.
pub(crate) const CREATE_ONLY: &[&str] = &["create"];
/// Verbs of `/status` and `/scale`.
const READ_WRITE: &[&str] = &["get", "patch", "update"];

/// Builds a [`Kind`] step by step.
pub(crate) struct Declaration(Kind);

impl Declaration {
    pub fn namespaced(
        group: &'static str,
        version: &'static str,
        kind: &'static str,
        plural: &'static str,
        strategy: impl Strategy + 'static,
    ) -> Self {
        Self(Kind {
            group: group.into(),
            version: version.into(),
            kind: kind.into(),
            plural: plural.into(),
            singular: kind.to_lowercase().into(),
            short_names: Vec::new(),
            categories: Vec::new(),
            scope: Scope::Namespaced,
            verbs: ALL_VERBS,
            subresources: Vec::new(),
            strategy: Box::new(strategy),
        })
    }

    pub fn cluster(
        group: &'static str,
        version: &'static str,
        kind: &'static str,
        plural: &'static str,
        strategy: impl Strategy + 'static,
    ) -> Self {
        let mut declaration = Self::namespaced(group, version, kind, plural, strategy);
        declaration.0.scope = Scope::Cluster;
        declaration
    }

    pub fn short_names(mut self, names: &[&'static str]) -> Self {
        self.0.short_names = names.iter().map(|n| Name::Borrowed(n)).collect();
        self
    }

    pub fn categories(mut self, names: &[&'static str]) -> Self {
        self.0.categories = names.iter().map(|n| Name::Borrowed(n)).collect();
        self
    }

    pub fn verbs(mut self, verbs: &'static [&'static str]) -> Self {
        self.0.verbs = verbs;
        self
    }

    /// A subresource whose body is of another kind; `gvk` is group, version, kind.
    pub fn sub(
        mut self,
        name: &'static str,
        gvk: [&'static str; 3],
        verbs: &'static [&'static str],
    ) -> Self {
        let [group, version, kind] = gvk.map(Name::Borrowed);
        self.0.subresources.push(Subresource {
            name: name.into(),
            group,
            version,
            kind,
            verbs,
        });
        self
    }

    /// A subresource whose body is the object itself.
    pub fn own_sub(mut self, name: &'static str, verbs: &'static [&'static str]) -> Self {
        let (group, version, kind) = (
            self.0.group.clone(),
            self.0.version.clone(),
            self.0.kind.clone(),
        );
        self.0.subresources.push(Subresource {
            name: name.into(),
            group,
            version,
            kind,
            verbs,
        });
        self
    }

    pub fn status(self) -> Self {
        self.own_sub("status", READ_WRITE)
    }

    pub fn scale(self) -> Self {
        self.sub("scale", ["autoscaling", "v1", "Scale"], READ_WRITE)
    }

    pub fn build(self) -> Arc<Kind> {
        Arc::new(self.0)
    }
}

/// Sets `metadata.generation`.
pub(crate) fn set_generation(object: &mut Value, generation: i64) {
    if let Some(metadata) = child(object, "metadata") {
        set(metadata, "generation", generation);
    }
}

/// Makes the generation what it was.
pub(crate) fn keep_generation(object: &mut Value, old: &Value) {
    if let Some(metadata) = child(object, "metadata") {
        carry_over(metadata, &old["metadata"], "generation");
    }
}

/// Makes the generation what it was, or one more when `changed`.
pub(crate) fn advance_generation(object: &mut Value, old: &Value, changed: bool) {
    let before = old["metadata"]["generation"].int().unwrap_or_default();
    if changed {
        set_generation(object, before + 1);
    } else {
        keep_generation(object, old);
    }
}

/// Create of a kind with spec, status and generation.
pub(crate) fn create_with_status(object: &mut Value) {
    set(object, "status", json!({}));
    set_generation(object, 1);
}

/// Update of a kind with spec, status and generation.
pub(crate) fn update_with_status(object: &mut Value, old: &Value) {
    carry_over(object, old, "status");
    let changed = !same(&object["spec"], &old["spec"]);
    advance_generation(object, old, changed);
}

/// Status update: the spec and generation stay.
pub(crate) fn update_only_status(object: &mut Value, old: &Value) {
    carry_over(object, old, "spec");
    keep_generation(object, old);
}

/// Status update of workloads, which also leaves labels alone.
pub(crate) fn update_only_workload_status(object: &mut Value, old: &Value) {
    update_only_status(object, old);
    if let Some(metadata) = child(object, "metadata") {
        carry_over(metadata, &old["metadata"], "labels");
    }
}

/// Lifecycle of kinds without status: nothing to drop or carry over.
macro_rules! without_status {
    () => {
        fn prepare_create(&self, _object: &mut serde_json::Value) {}

        fn prepare_update(&self, object: &mut serde_json::Value, old: &serde_json::Value) {
            $crate::kinds::declare::keep_generation(object, old);
        }

        fn prepare_status_update(&self, object: &mut serde_json::Value, old: &serde_json::Value) {
            *object = old.clone();
        }
    };
}
pub(crate) use without_status;

/// Lifecycle of kinds with spec, status and generation.
macro_rules! with_status {
    () => {
        fn prepare_create(&self, object: &mut serde_json::Value) {
            $crate::kinds::declare::create_with_status(object);
        }

        fn prepare_update(&self, object: &mut serde_json::Value, old: &serde_json::Value) {
            $crate::kinds::declare::update_with_status(object, old);
        }

        fn prepare_status_update(&self, object: &mut serde_json::Value, old: &serde_json::Value) {
            $crate::kinds::declare::update_only_status(object, old);
        }
    };
}
pub(crate) use with_status;

/// Table of kinds that upstream gives no columns of their own: name and time of creation.
macro_rules! default_table {
    () => {
        fn columns(&self) -> Vec<$crate::kind::Column> {
            $crate::table::default_columns()
        }

        fn row(&self, object: &serde_json::Value, _now: jiff::Timestamp) -> Vec<serde_json::Value> {
            $crate::table::default_row(object)
        }
    };
}
pub(crate) use default_table;
