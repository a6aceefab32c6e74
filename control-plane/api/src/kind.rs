//! The declaration of a kind: its names, scope, subresources and [`Strategy`].
//!
//! The registry of the API server is generic and reads only what is declared here. Built-in kinds are
//! declared one file each under `kinds/`; a CustomResourceDefinition makes the same value at run time.

use std::borrow::Cow;

use serde_json::Value;

use crate::status::FieldErrors;

/// Whether objects of a kind live in a namespace.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    /// Objects belong to a namespace.
    Namespaced,
    /// Objects belong to the cluster.
    Cluster,
}

/// A text that is usually static, and owned for kinds made from a CustomResourceDefinition.
pub type Name = Cow<'static, str>;

/// A part of an object that is served under its own path.
#[derive(Debug, Clone)]
pub struct Subresource {
    /// The path element: `status`, `scale`, `log`, `exec`, `binding`, `eviction`, `token`, ...
    pub name: Name,
    /// Group, version and kind of its body, as discovery shows it.
    pub group: Name,
    /// See `group`.
    pub version: Name,
    /// See `group`.
    pub kind: Name,
    /// Verbs as discovery shows them (`get`, `patch`, `update`, `create`).
    pub verbs: &'static [&'static str],
}

/// One column of a server-side Table (meta.k8s.io/v1 TableColumnDefinition).
#[derive(Debug, Clone)]
pub struct Column {
    /// Column header as upstream prints it, in mixed case (`Ready`, `Nominated Node`).
    pub name: Name,
    /// `string`, `integer`, `number`, `boolean` or `date`.
    pub type_: Name,
    /// `name` for the name column, else empty.
    pub format: Name,
    /// Help text.
    pub description: Name,
    /// 0 is shown always, 1 and more only with `-o wide`.
    pub priority: i32,
}

/// A kind as it is served and stored.
pub struct Kind {
    /// API group; empty for the core group.
    pub group: Name,
    /// API version, for example `v1`.
    pub version: Name,
    /// Kind, for example `Pod`.
    pub kind: Name,
    /// Resource name in paths, for example `pods`.
    pub plural: Name,
    /// Singular resource name.
    pub singular: Name,
    /// Short names, for example `po`.
    pub short_names: Vec<Name>,
    /// Categories, for example `all`.
    pub categories: Vec<Name>,
    /// Whether objects live in a namespace.
    pub scope: Scope,
    /// Verbs of the resource as discovery shows them. A kind with only `create` (reviews) is not stored.
    pub verbs: &'static [&'static str],
    /// Subresources in the order of discovery.
    pub subresources: Vec<Subresource>,
    /// What is particular to the kind.
    pub strategy: Box<dyn Strategy>,
}

/// All verbs of an ordinary stored resource.
pub const ALL_VERBS: &[&str] = &[
    "create",
    "delete",
    "deletecollection",
    "get",
    "list",
    "patch",
    "update",
    "watch",
];

/// What is particular to a kind. Values are whole objects with apiVersion and kind, as JSON.
///
/// Order in a create: `default`, admission, `prepare_create`, `validate_create`. In an update: `default`,
/// admission, `prepare_update`, `validate_update`. Metadata common to all kinds (uid, creationTimestamp,
/// names, labels, managedFields) is the registry's work, not the strategy's.
pub trait Strategy: Send + Sync {
    /// Fills in defaults. Idempotent; runs on what clients send and on what is read from the store.
    fn default(&self, _object: &mut Value) {}

    /// Drops what a client may not set on create (status), and sets `metadata.generation` where the kind has one.
    fn prepare_create(&self, object: &mut Value);

    /// Carries over from `old` what an update to the main resource may not change (status), and raises
    /// `metadata.generation` when the spec changed.
    fn prepare_update(&self, object: &mut Value, old: &Value);

    /// For an update through `/status`: everything but status (and what upstream lets through) from `old`.
    fn prepare_status_update(&self, object: &mut Value, old: &Value);

    /// What everybody who reads or writes the kind is warned of, when it is deprecated.
    fn deprecation(&self) -> Option<&'static str> {
        None
    }

    /// Problems of a new object, in upstream's words and field paths.
    fn validate_create(&self, object: &Value) -> FieldErrors;

    /// Problems of a changed object, including changes of immutable fields.
    fn validate_update(&self, object: &Value, old: &Value) -> FieldErrors;

    /// Problems of a changed status.
    fn validate_status_update(&self, _object: &Value, _old: &Value) -> FieldErrors {
        FieldErrors::default()
    }

    /// For an update through another subresource whose body is the object itself (`approval`,
    /// `ephemeralcontainers`, `resize`): everything but its part from `old`. Also called for `status`.
    fn prepare_subresource_update(&self, _subresource: &str, object: &mut Value, old: &Value) {
        self.prepare_status_update(object, old);
    }

    /// Problems of what [`Strategy::prepare_subresource_update`] let through.
    fn validate_subresource_update(
        &self,
        _subresource: &str,
        object: &Value,
        old: &Value,
    ) -> FieldErrors {
        self.validate_status_update(object, old)
    }

    /// What is allowed and yet seldom what the client wants; sent as `Warning` headers. `old` is the state
    /// before an update.
    fn warnings(&self, _object: &Value, _old: Option<&Value>) -> Vec<String> {
        Vec::new()
    }

    /// Values for field selectors beside `metadata.name` and `metadata.namespace`, which all kinds have.
    fn selectable_fields(&self, _object: &Value) -> Vec<(Name, String)> {
        Vec::new()
    }

    /// Names that a field selector may use for this kind (so an unknown one can be refused even for an
    /// empty list).
    fn selectable_field_names(&self) -> &'static [&'static str] {
        &[]
    }

    /// Lists that the selectable fields are read from too, by the name of the list, wherever it stands. Whoever asks for
    /// the fields of many objects leaves all others out, and the annotations and nulls.
    fn selectable_lists(&self) -> &'static [&'static str] {
        &[]
    }

    /// Whether a field selector may use a field.
    fn selects(&self, field: &str) -> bool {
        self.selectable_field_names().contains(&field)
    }

    /// The kind of lists, when it is not the kind with `List` after it.
    fn list_kind(&self) -> Option<&str> {
        None
    }

    /// Columns of the Table.
    fn columns(&self) -> Vec<Column>;

    /// Cells of one object, as many as `columns`. `now` is for ages.
    fn row(&self, object: &Value, now: jiff::Timestamp) -> Vec<Value>;

    /// Where `/scale` finds its numbers, for kinds that have it.
    fn scale(&self) -> Option<ScalePaths> {
        None
    }

    /// Seconds between a graceful delete and the object's removal by default; `None` when objects of the
    /// kind are removed at once. Pods answer from their spec.
    fn grace_period_seconds(&self, _object: &Value) -> Option<i64> {
        None
    }

    /// Whether a delete that does not say what becomes of the object's dependents leaves them alone, as the first
    /// versions of some kinds do (upstream's `DefaultGarbageCollectionPolicy`).
    fn orphans_by_default(&self) -> bool {
        false
    }

    /// What a client is told whose delete does not say what becomes of the object's dependents.
    fn unsaid_propagation_warning(&self) -> Option<&'static str> {
        None
    }
}

/// JSON pointers for the scale subresource.
#[derive(Debug, Clone)]
pub struct ScalePaths {
    /// For example `/spec/replicas`.
    pub spec_replicas: Name,
    /// For example `/status/replicas`.
    pub status_replicas: Name,
    /// A label selector object or string, for example `/spec/selector`.
    pub selector: Option<Name>,
}
