//! The audit log: who did what, when, and how it ended, as audit.k8s.io/v1 events. What is recorded is said by a
//! [`Policy`]; without one nothing is.

mod body;
mod log;
mod policy;

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;

use balsa_api::object::format_micro_time;
use bytes::Bytes;
use http::Response;
use jiff::Timestamp;
use parking_lot::Mutex;
use prometheus_client::metrics::counter::Counter;
use serde_json::{Map, Value, json};

use crate::flow::Uids;
use crate::http::metrics::Metrics;
use crate::http::negotiate::BodyFormat;
use crate::http::request_info::RequestInfo;
use crate::http::{decode, protobuf};
use crate::seam::{ResponseBody, User};
use log::Log;
use policy::{Level, Stage, Verdict};

pub use log::LogConfig;
pub use policy::{Policy, PolicyError};

/// Bodies beyond this many bytes are left out of events.
const LARGEST_BODY: u64 = 1 << 20;

/// What to record and where.
#[derive(Debug, Clone)]
pub struct AuditConfig {
    /// What.
    pub policy: Policy,
    /// Where.
    pub log: LogConfig,
}

/// Why auditing could not be started.
#[derive(Debug, thiserror::Error)]
pub enum AuditError {
    /// The policy file cannot be read.
    #[error("the audit policy {path} cannot be read: {error}")]
    Read {
        /// Its path.
        path: PathBuf,
        /// Why.
        error: std::io::Error,
    },
    /// It is no policy.
    #[error(transparent)]
    Policy(#[from] PolicyError),
    /// The log cannot be written.
    #[error("the audit log {path} cannot be opened: {error}")]
    Log {
        /// Its path.
        path: PathBuf,
        /// Why.
        error: std::io::Error,
    },
}

impl AuditConfig {
    /// Reads a policy file.
    ///
    /// # Errors
    /// [`AuditError::Read`], [`AuditError::Policy`].
    pub fn load(policy: PathBuf, log: LogConfig) -> Result<Self, AuditError> {
        let text = std::fs::read_to_string(&policy).map_err(|error| AuditError::Read {
            path: policy,
            error,
        })?;
        Ok(Self {
            policy: Policy::parse(&text)?,
            log,
        })
    }
}

/// What is noted of a request while it is worked on: next to nothing where there is no audit log.
pub(crate) struct Notes {
    audited: bool,
    noted: Mutex<Noted>,
}

#[derive(Default)]
struct Noted {
    user: User,
    impersonated: Option<User>,
    annotations: BTreeMap<String, String>,
    request: Option<(Bytes, Option<BodyFormat>)>,
    flow: Option<Uids>,
}

impl Notes {
    /// Nothing is noted yet.
    pub fn new(audited: bool) -> Self {
        Self {
            audited,
            noted: Mutex::default(),
        }
    }

    fn note(&self, add: impl FnOnce(&mut Noted)) {
        if self.audited {
            add(&mut self.noted.lock());
        }
    }

    /// Who asks.
    pub fn user(&self, user: &User) {
        self.note(|noted| noted.user = user.clone());
    }

    /// As whom.
    pub fn impersonated(&self, user: &User) {
        self.note(|noted| noted.impersonated = Some(user.clone()));
    }

    /// Adds an annotation; the first value of a key stays.
    pub fn annotate(&self, key: &str, value: String) {
        self.note(|noted| {
            noted.annotations.entry(key.to_owned()).or_insert(value);
        });
    }

    /// The body of the request.
    pub fn request(&self, body: &Bytes, format: Option<BodyFormat>) {
        self.note(|noted| noted.request = Some((body.clone(), format)));
    }

    /// UIDs of the request's FlowSchema and priority level; kept in any case, responses tell them.
    pub fn flow(&self, uids: Uids) {
        self.noted.lock().flow = Some(uids);
    }

    /// See [`Notes::flow`].
    pub fn take_flow(&self) -> Option<Uids> {
        self.noted.lock().flow.take()
    }
}

/// What is known of a request at its beginning.
pub(crate) struct Opening {
    /// Its `Audit-ID`.
    pub id: String,
    /// Path and query.
    pub uri: String,
    /// What it is about.
    pub info: RequestInfo,
    /// Where it comes from; `None` from inside the process.
    pub source: Option<IpAddr>,
    /// Its User-Agent.
    pub agent: String,
    /// When it came.
    pub received: Timestamp,
}

/// See the module.
pub(crate) struct Audit {
    policy: Policy,
    log: Log,
    events: Counter,
}

impl Audit {
    /// Opens the log.
    ///
    /// # Errors
    /// [`AuditError::Log`].
    pub fn new(config: AuditConfig, metrics: &Metrics) -> Result<Self, AuditError> {
        let (events, lost) = (Counter::default(), Counter::default());
        let log = Log::open(&config.log, lost.clone()).map_err(|error| AuditError::Log {
            path: config.log.path.clone(),
            error,
        })?;
        metrics.register(|registry| {
            registry.register("apiserver_audit_event", "Audit events", events.clone());
            registry.register("apiserver_audit_error", "Audit events that were lost", lost);
        });
        Ok(Self {
            policy: config.policy,
            log,
            events,
        })
    }

    /// Records that a request came, once it is known who asks.
    pub fn received(&self, opening: &Opening, notes: &Notes) {
        let verdict = self.verdict(opening, notes);
        if verdict.records(Stage::RequestReceived) {
            let event = event(opening, notes, &verdict, Stage::RequestReceived);
            self.write(&event);
        }
    }

    /// Records how a request ended; of one that lasts, its beginning now and its end when its body is over.
    pub async fn answered(
        self: &Arc<Self>,
        opening: Opening,
        notes: &Notes,
        response: Response<ResponseBody>,
    ) -> Response<ResponseBody> {
        let verdict = self.verdict(&opening, notes);
        if verdict.level == Level::None {
            return response;
        }
        let code = response.status().as_u16();
        let lasts = opening.info.is_long_running();
        let (response, object) = if verdict.level >= Level::RequestResponse && !lasts {
            body::peek(response, LARGEST_BODY).await
        } else {
            (response, None)
        };
        let stage = if lasts {
            Stage::ResponseStarted
        } else {
            Stage::ResponseComplete
        };
        let mut event = event(&opening, notes, &verdict, stage);
        event["responseStatus"] = response_status(code, object.as_ref());
        if let Some(object) = object {
            event["responseObject"] = trimmed(object, &verdict);
        }
        if verdict.records(stage) {
            self.write(&event);
        }
        if !lasts || !verdict.records(Stage::ResponseComplete) {
            return response;
        }
        let audit = Arc::clone(self);
        body::at_end(response, move || {
            event["stage"] = Stage::ResponseComplete.name().into();
            event["stageTimestamp"] = format_micro_time(Timestamp::now()).into();
            audit.write(&event);
        })
    }

    fn verdict(&self, opening: &Opening, notes: &Notes) -> Verdict {
        self.policy.decide(&opening.info, &notes.noted.lock().user)
    }

    fn write(&self, event: &Value) {
        let mut line = event.to_string().into_bytes();
        line.push(b'\n');
        self.events.inc();
        self.log.line(line);
    }
}

fn event(opening: &Opening, notes: &Notes, verdict: &Verdict, stage: Stage) -> Value {
    let noted = notes.noted.lock();
    let mut event = json!({
        "kind": "Event", "apiVersion": "audit.k8s.io/v1",
        "level": verdict.level.name(), "auditID": opening.id, "stage": stage.name(),
        "requestURI": opening.uri, "verb": opening.info.verb, "user": user(&noted.user),
        "userAgent": opening.agent,
        "requestReceivedTimestamp": format_micro_time(opening.received),
        "stageTimestamp": format_micro_time(Timestamp::now()),
    });
    if let Some(impersonated) = &noted.impersonated {
        event["impersonatedUser"] = user(impersonated);
    }
    if let Some(source) = opening.source {
        event["sourceIPs"] = json!([source.to_string()]);
    }
    if opening.info.is_resource {
        event["objectRef"] = object_ref(&opening.info);
    }
    if !noted.annotations.is_empty() {
        event["annotations"] = json!(noted.annotations);
    }
    if verdict.level >= Level::Request
        && stage != Stage::RequestReceived
        && let Some((body, format)) = &noted.request
        && let Some(object) = object(body, *format)
    {
        event["requestObject"] = trimmed(object, verdict);
    }
    event
}

fn object(body: &[u8], format: Option<BodyFormat>) -> Option<Value> {
    if body.is_empty() {
        return None;
    }
    match format {
        Some(format) => decode::parse(body, format).ok().map(|p| p.value),
        // A patch: JSON or YAML.
        None => decode::parse(body, BodyFormat::Yaml).ok().map(|p| p.value),
    }
}

fn user(user: &User) -> Value {
    let mut out = Map::new();
    let mut put = |key: &str, value: Value| {
        out.insert(key.to_owned(), value);
    };
    put("username", user.name.as_str().into());
    if !user.uid.is_empty() {
        put("uid", user.uid.as_str().into());
    }
    if !user.groups.is_empty() {
        put("groups", json!(user.groups));
    }
    if !user.extra.is_empty() {
        put("extra", json!(user.extra));
    }
    out.into()
}

fn object_ref(info: &RequestInfo) -> Value {
    let all = [
        ("resource", &info.resource),
        ("namespace", &info.namespace),
        ("name", &info.name),
        ("apiGroup", &info.group),
        ("apiVersion", &info.version),
        ("subresource", &info.subresource),
    ];
    let said = all.into_iter().filter(|(_, value)| !value.is_empty());
    said.map(|(key, value)| (key.to_owned(), Value::from(value.as_str())))
        .collect::<Map<_, _>>()
        .into()
}

fn response_status(code: u16, object: Option<&Value>) -> Value {
    let mut status = json!({"metadata": {}, "code": code});
    if let Some(object) = object.filter(|o| o["kind"] == "Status") {
        for key in ["status", "message", "reason"] {
            if let Some(value) = object.get(key) {
                status[key] = value.clone();
            }
        }
    }
    status
}

/// An object as events show it.
fn trimmed(mut object: Value, verdict: &Verdict) -> Value {
    if verdict.omit_managed_fields {
        let drop = |object: &mut Value| {
            if let Some(metadata) = object.get_mut("metadata").and_then(Value::as_object_mut) {
                metadata.remove("managedFields");
            }
        };
        drop(&mut object);
        if let Some(items) = object.get_mut("items").and_then(Value::as_array_mut) {
            items.iter_mut().for_each(drop);
        }
    }
    object
}

/// A body of a response as a value.
fn value_of(content_type: &str, body: &[u8]) -> Option<Value> {
    if content_type.starts_with(protobuf::MEDIA_TYPE) {
        return protobuf::parse(body).ok().map(|p| p.value);
    }
    if content_type.starts_with("application/json") {
        return serde_json::from_slice(body).ok();
    }
    None
}
