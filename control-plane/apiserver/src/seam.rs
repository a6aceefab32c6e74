//! The seams between the generic registry and what plugs into it: authentication, authorization,
//! admission, resources that are computed instead of stored, and streaming subresources.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;

use async_trait::async_trait;
use balsa_api::kind::Kind;
use balsa_api::schema::decode::{FieldValidation, Parsed};
use balsa_api::schema::{Schema, Type};
use balsa_api::selector::FieldSelector;
use balsa_api::status::Status;
use serde_json::Value;
use tokio_util::sync::CancellationToken;

use crate::cache::Stored;

pub use balsa_http::{Peer, RequestBody, ResponseBody};

/// Who makes a request.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct User {
    /// For example `system:node:a1`.
    pub name: String,
    /// Stable identity where there is one (a ServiceAccount's UID).
    pub uid: String,
    /// Groups, `system:authenticated` or `system:unauthenticated` included.
    pub groups: Vec<String>,
    /// Extra attributes, for example `authentication.kubernetes.io/pod-name`.
    pub extra: BTreeMap<String, Vec<String>>,
}

/// Turns credentials into a [`User`].
#[async_trait]
pub trait Authenticator: Send + Sync {
    /// The user, or 401 `Unauthorized` for credentials that are wrong. No credentials at all is
    /// `system:anonymous` in `system:unauthenticated`. Impersonation headers are honoured elsewhere, after
    /// authorization.
    async fn authenticate(
        &self,
        parts: &http::request::Parts,
        peer: &Peer,
    ) -> Result<Arc<User>, Status>;
}

/// What is asked to be done (`authorization.k8s.io` attributes).
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Attributes {
    /// Who asks.
    pub user: Arc<User>,
    /// `get`, `list`, `watch`, `create`, `update`, `patch`, `delete`, `deletecollection`, or for other paths
    /// the lower-case HTTP method.
    pub verb: String,
    /// Empty for cluster-scoped requests.
    pub namespace: String,
    /// API group; empty for core.
    pub group: String,
    /// API version.
    pub version: String,
    /// Resource; empty for non-resource requests.
    pub resource: String,
    /// Subresource or empty.
    pub subresource: String,
    /// Object name or empty.
    pub name: String,
    /// Path of a non-resource request.
    pub path: String,
    /// What a list, watch or deletecollection is narrowed to by its field selector (KEP-4601); empty when that
    /// cannot be read.
    pub fields: FieldSelector,
}

/// The outcome of authorization.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decision {
    /// Allowed, and by what rule.
    Allow(String),
    /// Nobody allows it (RBAC has no deny); the text is shown in reviews.
    NoOpinion(String),
}

/// Decides whether a request may proceed.
#[async_trait]
pub trait Authorizer: Send + Sync {
    /// See [`Decision`].
    async fn authorize(&self, attributes: &Attributes) -> Decision;
}

/// Operation as admission sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operation {
    /// POST.
    Create,
    /// PUT or PATCH.
    Update,
    /// DELETE.
    Delete,
    /// exec, attach, port-forward, proxy.
    Connect,
}

/// One object on its way into the store.
pub struct AdmissionRequest<'a> {
    /// What happens.
    pub operation: Operation,
    /// Its kind.
    pub kind: &'a Kind,
    /// Subresource or empty.
    pub subresource: &'a str,
    /// Namespace or empty.
    pub namespace: &'a str,
    /// Name; may be empty on create with generateName.
    pub name: &'a str,
    /// New object; `None` on delete.
    pub object: Option<&'a mut Value>,
    /// Object as it was; `None` on create.
    pub old: Option<&'a Value>,
    /// Who.
    pub user: &'a User,
    /// Nothing will be written.
    pub dry_run: bool,
    /// Group, version and kind of `object`: the kind's own, or those of a subresource's body (`Scale`, `Eviction`).
    pub object_kind: (&'a str, &'a str, &'a str),
    /// `CreateOptions`, `UpdateOptions`, `PatchOptions` or `DeleteOptions` as JSON; null where there are none.
    pub options: &'a Value,
    /// Adds a `Warning` header to the answer.
    pub warn: &'a (dyn Fn(String) + Send + Sync),
    /// Adds an annotation to the request's audit event.
    pub annotate: &'a (dyn Fn(String, String) + Send + Sync),
    /// Brings an object that was changed from outside back into the form that the kind's types give it: unknown
    /// fields go, defaults come.
    pub renormalise: &'a (dyn Fn(&mut Value) -> Result<(), Status> + Send + Sync),
}

/// Admission: all `mutate` run first, then all `validate`.
#[async_trait]
pub trait Admission: Send + Sync {
    /// May change the object.
    async fn mutate(&self, request: &mut AdmissionRequest<'_>) -> Result<(), Status>;
    /// May only refuse.
    async fn validate(&self, request: &AdmissionRequest<'_>) -> Result<(), Status>;
}

/// Objects as the watch cache has them now, for authorization and admission.
pub trait ObjectReader: Send + Sync {
    /// One object (decoded lazily, shared).
    fn get(&self, group: &str, resource: &str, namespace: &str, name: &str) -> Option<Arc<Value>>;
    /// All objects of a resource, of one namespace or of all.
    fn list(&self, group: &str, resource: &str, namespace: Option<&str>) -> Vec<Arc<Value>>;
    /// A number that grows whenever an object of the resource changes, to key derived caches.
    fn generation(&self, group: &str, resource: &str) -> u64;
}

/// A resource or subresource that is computed: reviews, `serviceaccounts/token`.
#[async_trait]
pub trait Computed: Send + Sync {
    /// Answers a create with a whole object.
    async fn create(
        &self,
        user: &User,
        namespace: &str,
        name: &str,
        body: Value,
    ) -> Result<Value, Status>;
}

/// A request after routing, authentication, authorization and admission, for streaming subresources.
#[derive(Debug, Clone)]
pub struct ConnectContext {
    /// Who.
    pub user: User,
    /// Namespace.
    pub namespace: String,
    /// Resource (`pods`, `services`, `nodes`).
    pub resource: String,
    /// Object name (for proxies possibly `scheme:name:port`).
    pub name: String,
    /// `exec`, `attach`, `portforward`, `log`, `proxy`.
    pub subresource: String,
    /// Path after `/proxy`, with leading slash, or empty.
    pub tail: String,
}

/// A streaming subresource. May take over the connection through `hyper::upgrade::on`.
#[async_trait]
pub trait Connect: Send + Sync {
    /// Answers the request, 101 included.
    async fn connect(
        &self,
        context: ConnectContext,
        request: http::Request<RequestBody>,
    ) -> Result<http::Response<ResponseBody>, Status>;
}

/// Opens streams to nodes; the node link implements it, tests fake it.
#[async_trait]
pub trait NodeStreams: Send + Sync {
    /// Opens a stream to a node. The status says why it could not (node not connected: 503).
    async fn open(
        &self,
        node: &str,
        request: balsa_link::protocol::StreamRequest,
    ) -> Result<NodeStream, Status>;
}

/// An open stream to a node, after its reply.
pub struct NodeStream {
    /// HTTP status for `StreamRequest::Http`, else 200.
    pub code: u16,
    /// From the node.
    pub reader: Box<dyn tokio::io::AsyncRead + Send + Unpin>,
    /// To the node; shutting it down half-closes.
    pub writer: Box<dyn tokio::io::AsyncWrite + Send + Unpin>,
}

/// One version of a custom resource, as the registry works with it. Objects lie in the store in the version that
/// they were written in, and every reader sees them in the version that it asks for.
#[async_trait]
pub trait Custom: Send + Sync {
    /// The schema that has its types.
    fn schema(&self) -> &Schema;

    /// The type of its objects.
    fn type_(&self) -> Option<Type<'_>>;

    /// From a document to an object of this version: unknown fields are removed and reported as `validation`
    /// says. Returns it with the warnings to send.
    ///
    /// # Errors
    /// 400 in upstream's words.
    fn conform(
        &self,
        parsed: Parsed,
        validation: FieldValidation,
    ) -> Result<(Value, Vec<String>), Status>;

    /// Stored objects as this version shows them: converted, pruned and with defaults.
    ///
    /// # Errors
    /// 500 when the conversion webhook fails.
    async fn present(&self, stored: Vec<Arc<Stored>>) -> Result<Vec<Arc<Stored>>, Status>;

    /// An object of this version in the version that is stored; `None` when that is this one.
    ///
    /// # Errors
    /// As [`Custom::present`].
    async fn to_storage(&self, object: &Value) -> Result<Option<Value>, Status>;

    /// Cancelled when this version is served no more, or with another definition: watches end then.
    fn retired(&self) -> &CancellationToken;

    /// Its part of an OpenAPI document.
    fn openapi(&self) -> &balsa_api::openapi::CustomSchema;

    /// What to warn clients of a deprecated version of.
    fn deprecation(&self) -> Option<&str>;
}

/// Put into a request's extensions by in-process callers that work only as Raft leader: their writes are
/// refused once the term has passed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fence(pub u64);

/// Serves paths of our own under a prefix (`/balsa/...`), after authentication and authorization (as a
/// non-resource URL) unless it was registered as open.
#[async_trait]
pub trait Extension: Send + Sync {
    /// Answers the request.
    async fn handle(
        &self,
        request: http::Request<RequestBody>,
        user: &User,
        peer: &Peer,
    ) -> http::Response<ResponseBody>;
}

/// Where the API servers that are alive can be reached, for the Endpoints of Service `kubernetes`.
pub trait ServerAddresses: Send + Sync {
    /// Advertised addresses; an empty answer means "not known", and leaves the endpoints alone.
    fn addresses(&self) -> Vec<SocketAddr>;
}
