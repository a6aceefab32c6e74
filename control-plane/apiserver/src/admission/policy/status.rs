//! `status` of ValidatingAdmissionPolicies: whether their expressions fit the types that they are about. Works on
//! the leader.

use std::sync::Arc;
use std::time::Duration;

use balsa_api::object;
use balsa_cel::{Environment, Type, schema};
use http::{Method, Request};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use super::environment;
use crate::admission::webhook::GROUP;
use crate::admission::webhook::rules::Rule;
use crate::cache::Scope;
use crate::http::respond;
use crate::kinds::{KindSet, Served};
use crate::seam::{Fence, User};
use crate::server::ApiServer;

const PLURAL: &str = "validatingadmissionpolicies";
/// Types that one policy is checked against, at most.
const MAX_TYPES: usize = 10;
/// After a write that failed, and while another server leads.
const AGAIN: Duration = Duration::from_secs(1);

/// Works while this server leads, until `stop`.
pub(crate) async fn lead(api: &ApiServer, stop: CancellationToken) {
    let Some(resource) = api.core.cache.resource(GROUP, PLURAL) else {
        return;
    };
    while !stop.is_cancelled() {
        let mut subscription = resource.subscribe(Scope::All, "");
        loop {
            let lead = api.core.registry.backend.lead();
            let done = lead.is_me && api.core.cache.is_synced() && reconcile(api, lead.term).await;
            let pause = if done {
                Duration::from_secs(3600)
            } else {
                AGAIN
            };
            tokio::select! {
                () = stop.cancelled() => return,
                change = subscription.changes.recv() => {
                    while subscription.changes.try_recv().is_ok() {}
                    if change.is_none() {
                        break;
                    }
                }
                () = tokio::time::sleep(pause) => {}
            }
        }
    }
}

/// Brings every status up to date; false when a write failed.
async fn reconcile(api: &ApiServer, term: u64) -> bool {
    // A policy may come right after the definition of what it is for.
    if !api.core.custom.sync() {
        return false;
    }
    let mut done = true;
    let kinds = api.core.kinds.set();
    let policies: Vec<Arc<Value>> = api.reader().list(GROUP, PLURAL, None);
    for policy in policies {
        let generation = object::generation(&policy);
        if policy["status"]["observedGeneration"].as_i64() == Some(generation) {
            continue;
        }
        let mut changed = Value::clone(&policy);
        changed["status"]["observedGeneration"] = generation.into();
        changed["status"]["typeChecking"] = json!({});
        let warnings = warnings(&policy, &kinds);
        if !warnings.is_empty() {
            changed["status"]["typeChecking"]["expressionWarnings"] = warnings.into();
        }
        done &= put(api, term, &changed).await;
    }
    done
}

async fn put(api: &ApiServer, term: u64, policy: &Value) -> bool {
    let path = format!("/apis/{GROUP}/v1/{PLURAL}/{}/status", object::name(policy));
    let request = Request::builder()
        .method(Method::PUT)
        .uri(path)
        .header("content-type", "application/json")
        .extension(Fence(term))
        .body(respond::full(policy.to_string().into_bytes().into()));
    let Ok(request) = request else {
        return true;
    };
    let user = User {
        name: "system:apiserver".into(),
        groups: vec!["system:masters".into(), "system:authenticated".into()],
        ..User::default()
    };
    let response = api.call(request, user).await;
    // A conflict or a deletion comes with a change of its own.
    response.status().is_success() || matches!(response.status().as_u16(), 404 | 409)
}

/// What does not fit, one entry per expression.
fn warnings(policy: &Value, kinds: &KindSet) -> Vec<Value> {
    let types = types(policy, kinds);
    let spec = &policy["spec"];
    let mut found = Vec::new();
    let params = params_type(spec, kinds);
    let variables = &spec["variables"];
    for (i, validation) in items(&spec["validations"]) {
        for (field, wanted) in [
            ("expression", Type::Bool),
            ("messageExpression", Type::STRING),
        ] {
            let Some(expression) = validation[field].as_str() else {
                continue;
            };
            let mut texts = Vec::new();
            for (name, type_) in &types {
                let environment = typed(type_, params.as_ref(), variables);
                if let Err(error) =
                    environment.compile_to(expression, std::slice::from_ref(&wanted))
                {
                    texts.push(format!("{name}: {error}"));
                }
            }
            if !texts.is_empty() {
                found.push(json!({
                    "fieldRef": format!("spec.validations[{i}].{field}"),
                    "warning": texts.join("\n"),
                }));
            }
        }
    }
    found
}

fn items(value: &Value) -> impl Iterator<Item = (usize, &Value)> {
    value.as_array().into_iter().flatten().enumerate()
}

/// The environment in which the objects are of a type.
fn typed(object: &Type, params: Option<&Type>, variables: &Value) -> Environment {
    let mut base = environment::policy(params.is_some())
        .with("object", object.clone())
        .with("oldObject", object.clone());
    if let Some(params) = params {
        base = base.with("params", params.clone());
    }
    let mut types: Vec<(String, Type)> = Vec::new();
    let mut environment = environment::with_variables(&base, &types);
    for (_, variable) in items(variables) {
        let name = variable["name"].as_str().unwrap_or_default();
        let expression = variable["expression"].as_str().unwrap_or_default();
        let type_ = environment
            .compile(expression)
            .map_or(Type::Dyn, |program| program.result_type().clone());
        types.push((name.to_owned(), type_));
        environment = environment::with_variables(&base, &types);
    }
    environment
}

/// The types that a policy names, with what to call them.
fn types(policy: &Value, kinds: &KindSet) -> Vec<(String, Type)> {
    let rules = Rule::list(&policy["spec"]["matchConstraints"]["resourceRules"]);
    let mut found: Vec<(String, Type)> = Vec::new();
    for rule in &rules {
        for (group, version, plural) in rule.named() {
            let Some(served) = kinds.get(group, version, plural) else {
                continue;
            };
            let api_version = object::join_api_version(group, version);
            let name = format!("{api_version}, Kind={}", served.kind.kind);
            if found.len() < MAX_TYPES && found.iter().all(|(known, _)| *known != name) {
                found.push((name, type_of(served)));
            }
        }
    }
    found
}

fn type_of(served: &Served) -> Type {
    let kind = &served.kind;
    if let Some(custom) = &served.custom {
        return schema::declared(&custom.openapi().v3, true);
    }
    balsa_api::schema::Schema::builtin()
        .kind(&kind.group, &kind.version, &kind.kind)
        .map_or(Type::Dyn, schema::builtin)
}

fn params_type(spec: &Value, kinds: &KindSet) -> Option<Type> {
    let kind = &spec["paramKind"];
    let (group, version) = object::split_api_version(kind["apiVersion"].as_str()?);
    let name = kind["kind"].as_str()?;
    let served = kinds
        .served()
        .find(|s| s.kind.group == group && s.kind.version == version && s.kind.kind == name);
    Some(served.map_or(Type::Dyn, type_of))
}
