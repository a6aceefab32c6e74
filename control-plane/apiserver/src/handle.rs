//! The path of a request: who, may they, is there room, what for, and the answer.

use std::sync::Arc;
use std::time::Instant;

use balsa_api::kind::Scope;
use balsa_api::selector::FieldSelector;
use balsa_api::status::Status;
use bytes::Bytes;
use futures::future::BoxFuture;
use http::header::USER_AGENT;
use http::{HeaderName, HeaderValue, Method, Request, Response, StatusCode};
use hyper::upgrade::OnUpgrade;
use tracing::Instrument;

use crate::audit::{Notes, Opening};
use crate::authn::{impersonate, websocket_token};
use crate::authz::forbidden;
use crate::extensions::aggregation::Remote;
use crate::flow::{Flow, Permit};
use crate::http::context::Context;
use crate::http::query::Query;
use crate::http::request_info::RequestInfo;
use crate::http::{decode, negotiate, respond};
use crate::metrics_api;
use crate::registry::Target;
use crate::registry::admit::{self, Question};
use crate::registry::options::Freshness;
use crate::seam::{
    Attributes, ConnectContext, Decision, Operation, Peer, RequestBody, ResponseBody, User,
};
use crate::server::{ApiServer, Core};
use crate::streams::{node_proxy, watch_ws};

type Answer = Result<Response<ResponseBody>, Status>;

const AUDIT_ID: HeaderName = HeaderName::from_static("audit-id");
const FLOW_SCHEMA_UID: HeaderName = HeaderName::from_static("x-kubernetes-pf-flowschema-uid");
const PRIORITY_LEVEL_UID: HeaderName = HeaderName::from_static("x-kubernetes-pf-prioritylevel-uid");

/// Paths that probes read without credentials.
const PROBES: [&str; 3] = ["/healthz", "/livez", "/readyz"];

impl ApiServer {
    /// Answers a request; `identity` is set for callers inside the process.
    pub(crate) async fn handle(
        &self,
        request: Request<RequestBody>,
        peer: &Peer,
        identity: Option<User>,
    ) -> Response<ResponseBody> {
        let started = Instant::now();
        let query = Query::parse(request.uri().query().unwrap_or_default());
        let info = Arc::new(RequestInfo::parse(
            request.method(),
            request.uri().path(),
            &query,
        ));
        let inflight = (!info.is_long_running()).then(|| self.core.metrics.inflight(&info));
        if let Some(gauge) = &inflight {
            gauge.inc();
        }
        // Decrements even when the client goes away and this future is dropped.
        let _guard = inflight.map(Decrement);
        let course = Course::new(&request, &info, peer, self.core.audit.is_some());
        let span = tracing::debug_span!("request", verb = info.verb, path = %info.path);
        let head = request.method() == Method::HEAD;
        // What came from elsewhere by the proxy is passed on as it is.
        let gzip = !(info.verb == "watch" || info.subresource == "proxy")
            && respond::accepts_gzip(request.headers());
        let mut response = self
            .limited(request, Arc::clone(&info), query, peer, identity, &course)
            .instrument(span)
            .await;
        if let (Some(audit), Some(opening)) = (&self.core.audit, course.opening) {
            response = audit.answered(opening, &course.notes, response).await;
        }
        if gzip {
            response = respond::maybe_gzip(response).await;
        }
        if head {
            *response.body_mut() = respond::full(Bytes::new());
        }
        let known = self
            .core
            .kinds
            .set()
            .get(&info.group, &info.version, &info.resource)
            .is_some();
        self.core
            .metrics
            .finished(&info, known, response.status().as_u16(), started.elapsed());
        let headers = response.headers_mut();
        if let Ok(mut id) = HeaderValue::from_str(&course.id) {
            // Another one comes with each answer: not for HTTP/2's table of headers that are sent again.
            id.set_sensitive(true);
            headers.insert(AUDIT_ID, id);
        }
        if let Some(uids) = course.notes.take_flow() {
            for (name, uid) in [FLOW_SCHEMA_UID, PRIORITY_LEVEL_UID].into_iter().zip(uids) {
                if let Some(uid) = uid {
                    headers.insert(name, uid);
                }
            }
        }
        response
    }

    async fn limited(
        &self,
        request: Request<RequestBody>,
        info: Arc<RequestInfo>,
        query: Query,
        peer: &Peer,
        identity: Option<User>,
        course: &Course,
    ) -> Response<ResponseBody> {
        let lasts = info.is_long_running();
        let allowed = match query.timeout() {
            Ok(wanted) => wanted.map_or(self.core.config.request_timeout, |wanted| {
                wanted.min(self.core.config.request_timeout)
            }),
            Err(_) if lasts => self.core.config.request_timeout,
            Err(status) => return respond::status(&status),
        };
        let answer = self
            .core
            .answer(request, info, query, peer, identity, course);
        if lasts {
            return answer.await;
        }
        match tokio::time::timeout(allowed, answer).await {
            Ok(response) => response,
            Err(_) => respond::status(&Status::new(
                504,
                "Timeout",
                format!("the request did not finish within {} s", allowed.as_secs()),
            )),
        }
    }
}

/// What is remembered of a request on its way.
struct Course {
    /// Its `Audit-ID`: the client's, or a new one.
    id: String,
    notes: Notes,
    /// Set when there is an audit log.
    opening: Option<Opening>,
}

impl Course {
    fn new(request: &Request<RequestBody>, info: &RequestInfo, peer: &Peer, audited: bool) -> Self {
        let header = |name: &HeaderName| {
            let value = request.headers().get(name).and_then(|v| v.to_str().ok());
            value.unwrap_or_default().to_owned()
        };
        // As upstream, so that one's own log can be joined with the server's; not more than a name.
        let mut id = header(&AUDIT_ID);
        if id.is_empty() || id.len() > 64 {
            id = uuid::Uuid::new_v4().to_string();
        }
        let opening = audited.then(|| Opening {
            id: id.clone(),
            uri: request
                .uri()
                .path_and_query()
                .map_or_else(String::new, ToString::to_string),
            info: info.clone(),
            source: peer.address.map(|a| a.ip()),
            agent: header(&USER_AGENT),
            received: jiff::Timestamp::now(),
        });
        Self {
            id,
            notes: Notes::new(audited),
            opening,
        }
    }
}

struct Decrement(prometheus_client::metrics::gauge::Gauge);

impl Drop for Decrement {
    fn drop(&mut self) {
        self.0.dec();
    }
}

impl Core {
    /// Boxed: the future is as large as the largest handler's.
    fn answer<'a>(
        &'a self,
        request: Request<RequestBody>,
        info: Arc<RequestInfo>,
        query: Query,
        peer: &'a Peer,
        identity: Option<User>,
        course: &'a Course,
    ) -> BoxFuture<'a, Response<ResponseBody>> {
        let protobuf = negotiate::prefers_protobuf(request.headers());
        Box::pin(async move {
            let answer = self.try_answer(request, info, query, peer, identity, course);
            let response = match answer.await {
                Ok(response) => response,
                Err(status) => respond::status(&status),
            };
            if protobuf {
                respond::as_protobuf(response)
            } else {
                response
            }
        })
    }

    async fn try_answer(
        &self,
        request: Request<RequestBody>,
        info: Arc<RequestInfo>,
        query: Query,
        peer: &Peer,
        identity: Option<User>,
        course: &Course,
    ) -> Answer {
        let (mut parts, body) = request.into_parts();
        if let Some(mounted) = self
            .extensions
            .iter()
            .find(|m| m.open && info.path.starts_with(&m.prefix))
        {
            let request = Request::from_parts(parts, body);
            return Ok(mounted
                .extension
                .handle(request, &User::default(), peer)
                .await);
        }
        if PROBES.iter().any(|p| {
            info.path
                .strip_prefix(p)
                .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
        }) {
            return Ok(self.probe(&info, &query));
        }
        let user = match identity {
            Some(user) => Arc::new(user),
            None => self.authn.authenticate(&parts, peer).await?,
        };
        websocket_token::hide(&mut parts.headers);
        course.notes.user(&user);
        let asked_by = Arc::clone(&user);
        let user = impersonate(&parts.headers, user, &*self.authz).await?;
        if user.name != asked_by.name {
            course.notes.impersonated(&user);
        }
        if let (Some(audit), Some(opening)) = (&self.audit, &course.opening) {
            audit.received(opening, &course.notes);
        }
        let attributes = attributes(&info, &query, &user);
        self.authorize_noted(&attributes, &course.notes).await?;
        let _permit = self.enter(&info, &user, &query, &course.notes).await?;
        if let Some(remote) = self.remote_of(&info) {
            let request = Request::from_parts(parts, body);
            return self.aggregation.pass(&remote, &user, request).await;
        }
        if info.is_resource
            && info.group == metrics_api::GROUP
            && info.version == metrics_api::VERSION
            && let Some(metrics) = &self.metrics_api
        {
            return metrics.answer(&info, &query, &parts.headers).await;
        }
        if !info.is_resource {
            if let Some(mounted) = self
                .extensions
                .iter()
                .find(|m| info.path.starts_with(&m.prefix))
            {
                return Ok(mounted
                    .extension
                    .handle(Request::from_parts(parts, body), &user, peer)
                    .await);
            }
            if info.path.starts_with("/apis/") && !self.documents.knows(&info.path) {
                // Another server may have told the client that the group is served.
                self.custom.catch_up(self.config.patience).await;
            }
            return self.document(&info, &query, &parts);
        }
        let target = match self.target(&info) {
            Some(target) => target,
            None => match self.late_target(&info).await {
                Some(target) => target,
                None => return self.unknown(&info),
            },
        };
        if self.is_stream(&info) {
            return self
                .stream(target, info, user, Request::from_parts(parts, body))
                .await;
        }
        let socket = if info.verb == "watch" && watch_ws::is_wanted(&parts.headers) {
            parts.extensions.remove::<OnUpgrade>()
        } else {
            None
        };
        let mut cx = Context::new(info, query, &mut parts, user);
        cx.protobuf = cx.info.subresource == "scale" || target.protobuf;
        let cx = cx;
        let body = if cx.info.is_read_only() {
            Bytes::new()
        } else {
            decode::read(body).await?
        };
        if course.opening.is_some() {
            let format = negotiate::body_format(&cx.headers).ok();
            course.notes.request(&body, format);
        }
        let mut response = self
            .dispatch(&cx, &target, &body)
            .await
            .unwrap_or_else(|status| respond::status(&status));
        if let (Some(socket), StatusCode::OK) = (socket, response.status()) {
            response = watch_ws::upgraded(&cx.headers, socket, response)?;
        }
        for warning in cx.take_warnings() {
            respond::warn(response.headers_mut(), &warning);
        }
        for (key, value) in cx.take_annotations() {
            course.notes.annotate(&key, value);
        }
        Ok(response)
    }

    /// A seat for the request, where seats are counted: streams last as long as their clients like and have none,
    /// watches have one while they begin.
    async fn enter(
        &self,
        info: &RequestInfo,
        user: &User,
        query: &Query,
        notes: &Notes,
    ) -> Result<Option<Permit>, Status> {
        if info.is_long_running() && info.verb != "watch" {
            return Ok(None);
        }
        let limit = query
            .get("limit")
            .and_then(|l| l.parse().ok())
            .filter(|l| *l > 0);
        let objects = || {
            let resource = self.cache.resource(&info.group, &info.resource);
            resource.map_or(0, |r| r.len())
        };
        let width = Flow::width(info, objects, limit);
        let entered = self.flow.enter(info, user, width).await?;
        Ok(entered.map(|entered| {
            notes.flow(entered.uids);
            entered.permit
        }))
    }

    async fn authorize_noted(&self, attributes: &Attributes, notes: &Notes) -> Result<(), Status> {
        const DECISION: &str = "authorization.k8s.io/decision";
        const REASON: &str = "authorization.k8s.io/reason";
        match self.authz.authorize(attributes).await {
            Decision::Allow(reason) => {
                notes.annotate(DECISION, "allow".into());
                notes.annotate(REASON, reason);
                Ok(())
            }
            Decision::NoOpinion(reason) => {
                notes.annotate(DECISION, "forbid".into());
                notes.annotate(REASON, reason.clone());
                Err(forbidden(attributes, &reason))
            }
        }
    }

    async fn authorize(&self, attributes: &Attributes) -> Result<(), Status> {
        match self.authz.authorize(attributes).await {
            Decision::Allow(_) => Ok(()),
            Decision::NoOpinion(reason) => Err(forbidden(attributes, &reason)),
        }
    }

    fn target(&self, info: &RequestInfo) -> Option<Target> {
        let kinds = self.kinds.set();
        let served = kinds.get(&info.group, &info.version, &info.resource)?;
        let namespaced = served.kind.scope == Scope::Namespaced;
        // A namespace in the path of a cluster-scoped resource (other than namespaces/x itself) is no path.
        let own = info.group.is_empty() && info.resource == "namespaces";
        if !namespaced && !info.namespace.is_empty() && !own {
            return None;
        }
        if namespaced
            && info.namespace.is_empty()
            && !info.name.is_empty()
            && !matches!(info.verb, "list" | "watch" | "deletecollection")
        {
            return None;
        }
        // The name that a field selector gives is for authorization only.
        let collection = matches!(info.verb, "list" | "watch" | "deletecollection");
        let namespace = if namespaced {
            info.namespace.as_str()
        } else {
            ""
        };
        served.target(
            &self.cache,
            namespace,
            if collection { "" } else { &info.name },
        )
    }

    /// The other server that a path is served by, if any.
    fn remote_of(&self, info: &RequestInfo) -> Option<Remote> {
        if info.is_resource {
            return self.aggregation.find(&info.group, &info.version);
        }
        let parts: Vec<&str> = info.path.split('/').filter(|p| !p.is_empty()).collect();
        match parts.as_slice() {
            ["apis", group, version] | ["openapi", "v3", "apis", group, version] => {
                self.aggregation.find(group, version)
            }
            _ => None,
        }
    }

    /// The target of a path that is not known: a definition made through another server may only not have come
    /// here yet.
    async fn late_target(&self, info: &RequestInfo) -> Option<Target> {
        let known = self
            .kinds
            .set()
            .get(&info.group, &info.version, &info.resource)
            .is_some();
        if info.group.is_empty() || known {
            return None;
        }
        self.custom.catch_up(self.config.patience).await;
        self.target(info)
    }

    /// The answer to a path that nothing is served under.
    fn unknown(&self, info: &RequestInfo) -> Answer {
        if info.group.is_empty() || self.kinds.is_complete() {
            return Ok(not_found());
        }
        let mut status = Status::new(
            503,
            "ServiceUnavailable",
            "the request has been made before all known HTTP paths have been installed, please try again",
        );
        status.details = Some(balsa_api::status::Details {
            retry_after_seconds: Some(1),
            ..balsa_api::status::Details::default()
        });
        Err(status)
    }

    fn is_stream(&self, info: &RequestInfo) -> bool {
        info.group.is_empty()
            && !info.subresource.is_empty()
            && self
                .connect
                .contains_key(&(info.resource.clone(), info.subresource.clone()))
    }

    async fn stream(
        &self,
        target: Target,
        info: Arc<RequestInfo>,
        user: Arc<User>,
        request: Request<RequestBody>,
    ) -> Answer {
        let Some(connect) = self
            .connect
            .get(&(info.resource.clone(), info.subresource.clone()))
        else {
            return Ok(not_found());
        };
        // A stream opened by GET (WebSocket) acts on the pod as one opened by POST does.
        let acts = match info.subresource.as_str() {
            "exec" | "attach" | "portforward" => true,
            "proxy" => info.resource == "nodes" && node_proxy::acts(&info.tail),
            _ => false,
        };
        if acts && info.verb == "get" {
            let create = Attributes {
                verb: "create".into(),
                ..attributes(&info, &Query::default(), &user)
            };
            self.authorize(&create).await?;
        }
        let query = Query::parse(request.uri().query().unwrap_or_default());
        self.registry
            .admit_connect(&target, &info.subresource, &user, (&query, &info.tail))
            .await?;
        let info = Arc::unwrap_or_clone(info);
        let context = ConnectContext {
            user: Arc::unwrap_or_clone(user),
            namespace: info.namespace,
            resource: info.resource,
            name: info.name,
            subresource: info.subresource,
            tail: info.tail,
        };
        connect.connect(context, request).await
    }

    async fn dispatch(&self, cx: &Context, target: &Target, body: &Bytes) -> Answer {
        let info = &cx.info;
        let computed = self.computed.iter().find(|(place, _)| {
            let [group, resource, subresource] = place;
            *resource == info.resource && *group == info.group && *subresource == info.subresource
        });
        if let Some((_, computed)) = computed {
            return self.compute(cx, target, &**computed, body).await;
        }
        let deprecation = match &target.custom {
            Some(custom) => custom.deprecation(),
            None => target.kind.strategy.deprecation(),
        };
        if let Some(text) = deprecation {
            cx.warn(text);
        }
        let registry = &self.registry;
        match info.subresource.as_str() {
            "" => {}
            "status" | "approval" | "ephemeralcontainers" | "resize"
                if has_subresource(target, &info.subresource) =>
            {
                return match info.verb {
                    "get" => registry.get(cx, target).await,
                    "update" => registry.update(cx, target, body).await,
                    "patch" => registry.patch(cx, target, body).await,
                    _ => Err(not_allowed()),
                };
            }
            "scale" if has_subresource(target, "scale") => {
                return match info.verb {
                    "get" => registry.get_scale(cx, target).await,
                    "update" | "patch" => registry.put_scale(cx, target, body).await,
                    _ => Err(not_allowed()),
                };
            }
            "binding" if target.is("", "pods") && info.verb == "create" => {
                return registry.bind(cx, target, body).await;
            }
            "eviction" if target.is("", "pods") && info.verb == "create" => {
                return registry.evict(cx, target, body).await;
            }
            "finalize" if target.is("", "namespaces") && info.verb == "update" => {
                return registry.finalize(cx, target, body).await;
            }
            _ => return Ok(not_found()),
        }
        if target.is("", "bindings") && info.verb == "create" {
            let pods = registry.target("", "pods", &target.namespace, "")?;
            return registry.bind(cx, &pods, body).await;
        }
        if !target.kind.verbs.contains(&info.verb) {
            return Err(not_allowed());
        }
        if target.is("", "componentstatuses") {
            return registry.component_statuses(cx, target);
        }
        match info.verb {
            "get" => registry.get(cx, target).await,
            "list" => registry.list(cx, target).await,
            "watch" => registry.watch(cx, target).await,
            // POST belongs to the collection.
            "create" if info.name.is_empty() => registry.create(cx, target, body).await,
            "update" if !info.name.is_empty() => registry.update(cx, target, body).await,
            "patch" if !info.name.is_empty() => registry.patch(cx, target, body).await,
            "delete" => registry.delete(cx, target, body).await,
            "deletecollection" => registry.delete_collection(cx, target, body).await,
            _ => Err(not_allowed()),
        }
    }

    async fn compute(
        &self,
        cx: &Context,
        target: &Target,
        computed: &dyn crate::seam::Computed,
        body: &Bytes,
    ) -> Answer {
        if cx.info.verb != "create" {
            return Err(not_allowed());
        }
        let accepted = cx.accepted(false)?;
        let mut question = Question::new(cx, target, Operation::Create, cx.dry_run()?);
        let mut object = if cx.info.subresource.is_empty() {
            admit::object_of(cx, target, body)?
        } else {
            let declared = target
                .kind
                .subresources
                .iter()
                .find(|s| s.name == cx.info.subresource.as_str());
            let declared = declared.ok_or_else(not_allowed)?;
            question = question.on(&cx.info.subresource).of_kind(
                &declared.group,
                &declared.version,
                &declared.kind,
            );
            admit::body_of(cx, &declared.group, &declared.version, &declared.kind, body)?
        };
        self.registry
            .mutate(question, Some(&mut object), None)
            .await?;
        self.registry
            .validate_admission(question, Some(&mut object), None)
            .await?;
        let create = |object| computed.create(&cx.user, &target.namespace, &target.name, object);
        let answer = match create(object.clone()).await {
            // What it is about may have been made through another server a moment ago.
            Err(status) if matches!(status.code, 403 | 404 | 409) => {
                self.registry.freshen(Freshness::Latest).await?;
                create(object).await?
            }
            answer => answer?,
        };
        let bytes = serde_json::to_vec(&answer).map_err(Status::internal)?;
        crate::registry::shape::document(201, bytes.into(), accepted.format)
    }
}

fn has_subresource(target: &Target, name: &str) -> bool {
    target.kind.subresources.iter().any(|s| s.name == name)
}

fn attributes(info: &RequestInfo, query: &Query, user: &Arc<User>) -> Attributes {
    let narrows = matches!(info.verb, "list" | "watch" | "deletecollection");
    let fields = query.get("fieldSelector").filter(|_| narrows);
    Attributes {
        fields: fields
            .and_then(|text| FieldSelector::parse(text).ok())
            .unwrap_or_default(),
        user: Arc::clone(user),
        verb: info.verb.to_owned(),
        namespace: info.namespace.clone(),
        group: info.group.clone(),
        version: info.version.clone(),
        resource: info.resource.clone(),
        subresource: info.subresource.clone(),
        name: info.name.clone(),
        path: if info.is_resource {
            String::new()
        } else {
            info.path.clone()
        },
    }
}

/// What upstream's router says of a path that it does not know.
pub(crate) fn not_found() -> Response<ResponseBody> {
    respond::text(404, "404 page not found\n")
}

/// 405.
pub(crate) fn not_allowed() -> Status {
    Status::new(
        405,
        "MethodNotAllowed",
        "the server does not allow this method on the requested resource",
    )
}
