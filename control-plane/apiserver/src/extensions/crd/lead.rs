//! The leader's part: which names definitions get, and the end of the objects of deleted definitions.

use std::sync::Arc;
use std::time::Duration;

use balsa_api::crd::{CLEANUP_FINALIZER, GROUP, PLURAL, naming};
use balsa_api::object;
use bytes::Bytes;
use http::{Method, Request};
use serde_json::Value;
use tokio_util::sync::CancellationToken;

use crate::cache::Scope;
use crate::http::context::Context;
use crate::http::query::Query;
use crate::http::request_info::RequestInfo;
use crate::http::respond;
use crate::registry::Target;
use crate::seam::{Fence, User};
use crate::server::ApiServer;

/// While objects wait for finalizers of their own, or something could not be written.
const AGAIN: Duration = Duration::from_secs(1);
const SOON: Duration = Duration::from_millis(50);

/// Works while this server leads, until `stop`.
pub(crate) async fn lead(api: &ApiServer, stop: CancellationToken) {
    let Some(resource) = api.core.cache.resource(GROUP, PLURAL) else {
        return;
    };
    while !stop.is_cancelled() {
        let mut subscription = resource.subscribe(Scope::All, "");
        loop {
            let lead = api.core.registry.backend.lead();
            let wait = if lead.is_me && api.core.cache.is_synced() {
                let leader = Leader {
                    api,
                    term: lead.term,
                };
                match leader.reconcile().await {
                    Ok(true) => Duration::MAX,
                    Ok(false) => AGAIN,
                    Err(why) => {
                        tracing::debug!(why, "custom resource definitions will be looked at again");
                        AGAIN
                    }
                }
            } else {
                SOON
            };
            tokio::select! {
                () = stop.cancelled() => return,
                change = subscription.changes.recv() => {
                    while subscription.changes.try_recv().is_ok() {}
                    if change.is_none() {
                        break;
                    }
                }
                () = super::sleep(wait) => {}
            }
        }
    }
}

struct Leader<'a> {
    api: &'a ApiServer,
    term: u64,
}

fn user() -> User {
    User {
        name: "system:apiserver".into(),
        groups: vec!["system:masters".into(), "system:authenticated".into()],
        ..User::default()
    }
}

impl Leader<'_> {
    /// False when something has to be looked at again without a change of a definition.
    async fn reconcile(&self) -> Result<bool, String> {
        let Some(resource) = self.api.core.cache.resource(GROUP, PLURAL) else {
            return Ok(true);
        };
        let mut definitions: Vec<Arc<Value>> = resource
            .snapshot("", None)
            .objects
            .iter()
            .map(|stored| stored.value())
            .collect();
        // Who came first has the names.
        definitions.sort_by(|a, b| {
            let key = |d: &Value| {
                (
                    object::creation_timestamp(d).to_owned(),
                    object::name(d).to_owned(),
                )
            };
            key(a).cmp(&key(b))
        });
        let mut done = true;
        for index in 0..definitions.len() {
            let definition = Arc::clone(&definitions[index]);
            if object::is_deleting(&definition) {
                done &= self.clear_up(&definition).await?;
                continue;
            }
            let all: Vec<&Value> = definitions.iter().map(AsRef::as_ref).collect();
            let now = object::format_time(jiff::Timestamp::now());
            if let Some(status) = naming::status(&definition, &all, &now) {
                let mut changed = Value::clone(&definition);
                changed["status"] = status;
                self.put(&changed, "/status").await?;
                // Those that come after must see it.
                definitions[index] = Arc::new(changed);
            }
        }
        Ok(done)
    }

    /// Deletes the objects of a definition, and lets it go when there are none. False when there still are.
    async fn clear_up(&self, definition: &Value) -> Result<bool, String> {
        if !object::finalizers(definition).contains(&CLEANUP_FINALIZER) {
            return Ok(true);
        }
        let custom = &self.api.core.custom;
        custom.sync();
        if let Some(target) = custom.all_objects(definition)
            && !target.resource.is_empty()
        {
            if !has_reason(definition, "InstanceDeletionInProgress") {
                let mut changed = definition.clone();
                terminating(
                    &mut changed,
                    "True",
                    "InstanceDeletionInProgress",
                    "CustomResource deletion is in progress",
                );
                self.put(&changed, "/status").await?;
            }
            self.delete_all(&target).await?;
            // Finalizers of theirs may hold them; and the definition has changed meanwhile.
            return Ok(false);
        }
        let mut changed = definition.clone();
        terminating(
            &mut changed,
            "False",
            "InstanceDeletionCompleted",
            "removed all instances",
        );
        object::remove_finalizer(&mut changed, CLEANUP_FINALIZER);
        self.put(&changed, "").await?;
        Ok(true)
    }

    async fn delete_all(&self, target: &Target) -> Result<(), String> {
        let request = Request::builder()
            .method(Method::DELETE)
            .body(())
            .map_err(|e| e.to_string())?;
        let (mut parts, ()) = request.into_parts();
        parts.extensions.insert(Fence(self.term));
        let info = RequestInfo {
            is_resource: true,
            verb: "deletecollection",
            group: target.kind.group.to_string(),
            version: target.kind.version.to_string(),
            resource: target.kind.plural.to_string(),
            ..RequestInfo::default()
        };
        let cx = Context::new(
            Arc::new(info),
            Query::default(),
            &mut parts,
            Arc::new(user()),
        );
        let registry = &self.api.core.registry;
        let deleted = registry.delete_collection(&cx, target, &Bytes::new()).await;
        deleted.map(|_| ()).map_err(|status| status.message)
    }

    async fn put(&self, definition: &Value, subresource: &str) -> Result<(), String> {
        let path = format!(
            "/apis/{GROUP}/v1/{PLURAL}/{}{subresource}",
            object::name(definition)
        );
        let mut request = Request::new(respond::full(definition.to_string().into()));
        *request.method_mut() = Method::PUT;
        *request.uri_mut() = path.parse().map_err(|e| format!("{path}: {e}"))?;
        request.headers_mut().insert(
            http::header::USER_AGENT,
            http::HeaderValue::from_static("kube-apiserver"),
        );
        request.extensions_mut().insert(Fence(self.term));
        let response = self.api.call(request, user()).await;
        let code = response.status();
        if code.is_success() {
            Ok(())
        } else {
            Err(format!("{path}: {code}"))
        }
    }
}

fn has_reason(definition: &Value, reason: &str) -> bool {
    let conditions = definition["status"]["conditions"].as_array();
    conditions
        .into_iter()
        .flatten()
        .any(|c| c["type"] == "Terminating" && c["reason"] == reason)
}

fn terminating(definition: &mut Value, holds: &str, reason: &str, message: &str) {
    let now = object::format_time(jiff::Timestamp::now());
    naming::set_condition(
        &mut definition["status"],
        "Terminating",
        holds,
        reason,
        message,
        &now,
    );
}
