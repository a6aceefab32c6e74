//! The generic registry: verbs on stored resources. It knows kinds only through what they declare; the few
//! that need more work in the store (addresses of Services, leases of Events) hang on as [`Allocator`]s.

use std::sync::Arc;
use std::time::Duration;

use balsa_api::kind::{Kind, Scope};
use balsa_api::kinds::Convert;
use balsa_api::schema::Type;
use balsa_api::status::Status;
use bytes::Bytes;
use serde_json::Value;
use tokio_util::sync::CancellationToken;

use crate::backend::{Backend, Compare, Op};
use crate::cache::resource::Resource;
use crate::cache::stored::encode_for_store;
use crate::cache::{Cache, Stored, keys};
use crate::http::metrics::Metrics;
use crate::seam::{Admission, Custom};

pub mod admit;
pub mod binding;
mod component_status;
pub mod connect;
pub mod create;
pub mod csr;
pub mod delete;
pub mod deletion;
pub mod eviction;
pub mod leases;
pub mod metadata;
pub mod namespace;
pub mod options;
pub mod patch;
pub mod quota;
pub mod reach;
pub mod read;
pub mod scale;
mod scale_apply;
mod scale_table;
pub mod select;
pub mod service;
pub mod shape;
pub mod update;
pub mod watch;

/// What a request is addressed to.
#[derive(Clone)]
pub struct Target {
    /// The kind in the version of the request.
    pub kind: Arc<Kind>,
    /// Its objects.
    pub resource: Arc<Resource>,
    /// The type of a built-in kind's objects.
    pub builtin_type: Option<Type<'static>>,
    /// How its objects are stored, when as another kind.
    pub convert: Option<&'static dyn Convert>,
    /// The version of a custom resource that it is.
    pub custom: Option<Arc<dyn Custom>>,
    /// Its objects can be written in protobuf.
    pub protobuf: bool,
    /// Namespace or empty.
    pub namespace: String,
    /// Name or empty.
    pub name: String,
}

impl Target {
    /// The type of its objects, where there is one.
    #[must_use]
    pub fn type_(&self) -> Option<Type<'_>> {
        match &self.custom {
            Some(custom) => custom.type_(),
            None => self.builtin_type,
        }
    }

    /// Stored objects as the target's version shows them. Only custom resources have more than one shape here;
    /// built-in kinds that are stored as others go through [`Target::decode`] and [`Target::view`].
    ///
    /// # Errors
    /// 500 when a conversion fails.
    pub async fn present_all(&self, stored: Vec<Arc<Stored>>) -> Result<Vec<Arc<Stored>>, Status> {
        match &self.custom {
            Some(custom) => custom.present(stored).await,
            None => Ok(stored),
        }
    }

    /// One stored object as the target's version shows it.
    ///
    /// # Errors
    /// As [`Target::present_all`].
    pub async fn present(&self, stored: &Arc<Stored>) -> Result<Arc<Stored>, Status> {
        if self.custom.is_none() {
            return Ok(Arc::clone(stored));
        }
        let shown = self.present_all(vec![Arc::clone(stored)]).await?;
        shown
            .into_iter()
            .next()
            .ok_or_else(|| Status::internal("a conversion lost its object"))
    }

    /// Key within the resource.
    #[must_use]
    pub fn key(&self) -> String {
        keys::object_key(&self.namespace, &self.name)
    }

    /// Key in the store.
    #[must_use]
    pub fn store_key(&self) -> Bytes {
        let prefix = self.resource.prefix.as_str();
        if self.namespace.is_empty() {
            return [prefix, &self.name].concat().into();
        }
        [prefix, &self.namespace, "/", &self.name].concat().into()
    }

    /// A stored object as a value of the target's kind.
    #[must_use]
    pub fn decode(&self, stored: &Stored) -> Value {
        match self.convert {
            Some(convert) => convert.from_stored(stored.decode()),
            None => stored.decode(),
        }
    }

    /// A stored object's bytes as those of the target's kind.
    #[must_use]
    pub fn view(&self, bytes: Bytes) -> Bytes {
        match self.convert {
            Some(convert) => converted(convert, &bytes),
            None => bytes,
        }
    }

    /// The store's bytes of an object of the target's kind.
    #[must_use]
    pub fn encode(&self, object: &Value) -> Bytes {
        match self.convert {
            Some(convert) => encode_for_store(&convert.to_stored(object.clone())).into(),
            None => encode_for_store(object).into(),
        }
    }

    /// The same resource, another object.
    #[must_use]
    pub fn named(&self, name: &str) -> Self {
        Self {
            name: name.to_owned(),
            ..self.clone()
        }
    }

    fn is_namespaced(&self) -> bool {
        self.kind.scope == Scope::Namespaced
    }

    /// 404.
    #[must_use]
    pub fn not_found(&self) -> Status {
        Status::not_found(&self.kind.group, &self.kind.plural, &self.name)
    }

    /// 409 with a reason.
    #[must_use]
    pub fn conflict(&self, why: &str) -> Status {
        Status::conflict(&self.kind.group, &self.kind.plural, &self.name, why)
    }

    /// Is it this resource?
    #[must_use]
    pub fn is(&self, group: &str, plural: &str) -> bool {
        self.kind.group == group && self.kind.plural == plural
    }
}

/// A stored object's bytes in the shape that is served.
#[must_use]
pub(crate) fn converted(convert: &dyn Convert, bytes: &[u8]) -> Bytes {
    let value: Value = serde_json::from_slice(bytes).unwrap_or_default();
    convert.from_stored(value).to_string().into()
}

/// What a write carries beside the object itself.
#[derive(Default)]
pub struct Plan {
    /// Conditions; each with the error that a client gets when it does not hold, or `None` when another plan
    /// may work.
    pub compares: Vec<(Compare, Option<Status>)>,
    /// Further changes.
    pub ops: Vec<Op>,
}

/// Allocates something in the same transaction that writes an object, and frees it with its deletion.
pub trait Allocator: Send + Sync {
    /// Whether it has to do with a resource.
    fn concerns(&self, group: &str, plural: &str) -> bool;
    /// May change `new` (`None`: deletion). `about` is the object and the subresource (or empty) that is written.
    /// `attempt` counts plans that were refused. Must be pure but for its choice among what is free.
    ///
    /// # Errors
    /// 422 and the like when there is nothing to allocate.
    fn plan(
        &self,
        about: (&Target, &str),
        new: Option<&mut Value>,
        old: Option<&Value>,
        attempt: usize,
    ) -> Result<Plan, Status>;
    /// Whether plans may change objects.
    fn changes_objects(&self) -> bool {
        true
    }
    /// What writes have to hold from before the plan until after the commit, when many of them would refuse each
    /// other's plans; `None` when they may run at once.
    fn turn(&self, _target: &Target) -> Option<Arc<tokio::sync::Mutex<()>>> {
        None
    }
}

/// Everything the verbs need.
pub struct Registry {
    /// The store.
    pub backend: Arc<dyn Backend>,
    /// Its contents.
    pub cache: Arc<Cache>,
    /// Admission, in order.
    pub admission: Vec<Arc<dyn Admission>>,
    /// Kinds with more work.
    pub allocators: Vec<Arc<dyn Allocator>>,
    /// Leases of Events.
    pub leases: leases::MinuteLeases,
    /// Metrics.
    pub metrics: Arc<Metrics>,
    /// Ends watches.
    pub stop: CancellationToken,
    /// Ends and refuses them while this server would have nothing to tell.
    pub reach: reach::Reach,
    /// How long a request waits for a revision that this server has not applied yet.
    pub patience: Duration,
    /// Time between the bookmarks of a watch.
    pub bookmark_every: Duration,
    /// Kinds by resource, for subresources that write another kind.
    pub kinds: Arc<crate::kinds::Kinds>,
}

impl Registry {
    /// A target in another resource than the request's.
    ///
    /// # Errors
    /// 404 when the resource is not served.
    pub fn target(
        &self,
        group: &str,
        plural: &str,
        namespace: &str,
        name: &str,
    ) -> Result<Target, Status> {
        self.kinds
            .target(&self.cache, group, plural, namespace, name)
            .ok_or_else(|| Status::new(404, "NotFound", format!("{plural} are not served")))
    }

    fn allocators_of<'a>(
        &'a self,
        target: &'a Target,
    ) -> impl Iterator<Item = &'a Arc<dyn Allocator>> {
        let kind = &target.kind;
        self.allocators
            .iter()
            .filter(|a| a.concerns(&kind.group, &kind.plural))
    }
}

/// Small table of what upstream decides kind by kind and the kinds' declarations do not carry.
pub(crate) mod rules {
    use super::Target;

    const CREATE_ON_UPDATE: [(&str, &str); 9] = [
        ("", "endpoints"),
        ("", "services"),
        ("", "events"),
        ("", "limitranges"),
        ("coordination.k8s.io", "leases"),
        ("rbac.authorization.k8s.io", "roles"),
        ("rbac.authorization.k8s.io", "rolebindings"),
        ("rbac.authorization.k8s.io", "clusterroles"),
        ("rbac.authorization.k8s.io", "clusterrolebindings"),
    ];
    const NEEDS_VERSION: [(&str, &str); 22] = [
        ("", "serviceaccounts"),
        ("admissionregistration.k8s.io", "mutatingadmissionpolicies"),
        (
            "admissionregistration.k8s.io",
            "mutatingadmissionpolicybindings",
        ),
        (
            "admissionregistration.k8s.io",
            "mutatingwebhookconfigurations",
        ),
        (
            "admissionregistration.k8s.io",
            "validatingadmissionpolicies",
        ),
        (
            "admissionregistration.k8s.io",
            "validatingadmissionpolicybindings",
        ),
        (
            "admissionregistration.k8s.io",
            "validatingwebhookconfigurations",
        ),
        ("apiextensions.k8s.io", "customresourcedefinitions"),
        ("apiregistration.k8s.io", "apiservices"),
        ("coordination.k8s.io", "leases"),
        ("flowcontrol.apiserver.k8s.io", "flowschemas"),
        (
            "flowcontrol.apiserver.k8s.io",
            "prioritylevelconfigurations",
        ),
        ("networking.k8s.io", "servicecidrs"),
        ("node.k8s.io", "runtimeclasses"),
        ("policy", "poddisruptionbudgets"),
        ("resource.k8s.io", "deviceclasses"),
        ("resource.k8s.io", "resourceclaims"),
        ("resource.k8s.io", "resourceclaimtemplates"),
        ("storage.k8s.io", "csidrivers"),
        ("storage.k8s.io", "csinodes"),
        ("storage.k8s.io", "volumeattachments"),
        ("storage.k8s.io", "volumeattributesclasses"),
    ];
    const RETURNS_DELETED: [(&str, &str); 6] = [
        ("", "pods"),
        ("", "services"),
        ("", "serviceaccounts"),
        ("", "resourcequotas"),
        ("", "persistentvolumeclaims"),
        ("", "persistentvolumes"),
    ];

    fn has(table: &[(&str, &str)], target: &Target) -> bool {
        table.iter().any(|(group, plural)| target.is(group, plural))
    }

    /// PUT to a name that is not there creates (`AllowCreateOnUpdate`).
    pub fn creates_on_update(target: &Target) -> bool {
        has(&CREATE_ON_UPDATE, target)
    }

    /// PUT without resourceVersion is refused (`AllowUnconditionalUpdate` is false).
    pub fn needs_version(target: &Target) -> bool {
        has(&NEEDS_VERSION, target) || target.custom.is_some()
    }

    /// DELETE answers with the object instead of a Status (`ReturnDeletedObject`).
    pub fn returns_deleted(target: &Target) -> bool {
        has(&RETURNS_DELETED, target)
    }
}
