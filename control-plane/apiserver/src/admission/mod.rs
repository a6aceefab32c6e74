//! Admission: one file per plugin, chained. All mutate first, then all validate.

pub mod certificates;
pub mod default_ingress_class;
pub mod default_tolerations;
pub mod limit_ranger;
pub mod namespace_lifecycle;
pub mod node_restriction;
pub mod pod_security;
pub mod pod_topology;
pub mod policy;
pub mod priority;
pub mod rbac_escalation;
pub mod runtime_class;
pub mod service_account;
pub mod storage;
pub mod taint_nodes;
pub mod webhook;

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use balsa_api::object;
use balsa_api::status::Status;
use serde_json::Value;

use crate::authz::Authz;
use crate::seam::{Admission, AdmissionRequest, ObjectReader};

/// What of admission is configurable.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AdmissionConfig {
    /// Seconds a pod stays bound to a node that is not ready, unless the pod says otherwise.
    pub not_ready_toleration_seconds: i64,
    /// The same for a node that cannot be reached.
    pub unreachable_toleration_seconds: i64,
}

impl Default for AdmissionConfig {
    fn default() -> Self {
        Self {
            not_ready_toleration_seconds: 300,
            unreachable_toleration_seconds: 300,
        }
    }
}

/// Plugins in their order.
pub struct Chain(Vec<Box<dyn Admission>>);

impl Chain {
    /// All plugins of this folder, in upstream's order.
    #[must_use]
    pub fn new(
        reader: &Arc<dyn ObjectReader>,
        authz: &Arc<Authz>,
        config: &AdmissionConfig,
    ) -> Self {
        let reader = || Arc::clone(reader);
        Self(vec![
            Box::new(namespace_lifecycle::NamespaceLifecycle::new(reader())),
            Box::new(limit_ranger::LimitRanger::new(reader())),
            Box::new(service_account::ServiceAccount::new(reader())),
            Box::new(node_restriction::NodeRestriction::new(reader())),
            Box::new(taint_nodes::TaintNodesByCondition),
            Box::new(pod_security::PodSecurity::new(reader())),
            Box::new(priority::Priority::new(reader())),
            Box::new(default_tolerations::DefaultTolerationSeconds::new(config)),
            Box::new(storage::Storage::new(reader())),
            Box::new(runtime_class::RuntimeClass::new(reader())),
            Box::new(certificates::Certificates::new(Arc::clone(authz))),
            Box::new(default_ingress_class::DefaultIngressClass::new(reader())),
            Box::new(pod_topology::PodTopologyLabels::new(reader())),
            Box::new(rbac_escalation::RbacEscalation::new(Arc::clone(authz))),
        ])
    }

    /// A chain of other plugins.
    #[must_use]
    pub fn of(plugins: Vec<Box<dyn Admission>>) -> Self {
        Self(plugins)
    }
}

#[async_trait]
impl Admission for Chain {
    async fn mutate(&self, request: &mut AdmissionRequest<'_>) -> Result<(), Status> {
        for plugin in &self.0 {
            plugin.mutate(request).await?;
        }
        Ok(())
    }

    async fn validate(&self, request: &AdmissionRequest<'_>) -> Result<(), Status> {
        for plugin in &self.0 {
            plugin.validate(request).await?;
        }
        Ok(())
    }
}

/// Whether a request is about a resource itself (not a subresource) of a group.
fn is(request: &AdmissionRequest<'_>, group: &str, resource: &str) -> bool {
    request.kind.group == group && request.kind.plural == resource && request.subresource.is_empty()
}

/// How long something is looked for that this server may only not have seen yet: made a moment ago through another.
const PATIENCE: [Duration; 3] = [
    Duration::from_millis(10),
    Duration::from_millis(40),
    Duration::from_millis(100),
];

/// Looks again a few times for what is not there.
async fn patiently<T>(look: impl Fn() -> Option<T>) -> Option<T> {
    let mut found = look();
    for wait in PATIENCE {
        if found.is_some() {
            break;
        }
        tokio::time::sleep(wait).await;
        found = look();
    }
    found
}

/// Several problems in one text, as apimachinery's aggregate prints them.
fn aggregate(problems: &[String]) -> String {
    let mut all: Vec<&str> = Vec::new();
    for problem in problems {
        if !all.contains(&problem.as_str()) {
            all.push(problem);
        }
    }
    match all.as_slice() {
        [one] => (*one).to_owned(),
        many => format!("[{}]", many.join(", ")),
    }
}

/// Of the classes marked as default the one made last; of several made in one second the first by name.
fn newest_default<'a>(classes: &'a [Arc<Value>], annotations: &[&str]) -> Option<&'a Value> {
    classes
        .iter()
        .map(|class| &**class)
        .filter(|class| {
            annotations
                .iter()
                .any(|key| object::annotation(class, key) == Some("true"))
        })
        .max_by(|a, b| {
            object::creation_timestamp(a)
                .cmp(object::creation_timestamp(b))
                .then_with(|| object::name(b).cmp(object::name(a)))
        })
}

/// The 403 of a plugin, about the request's object.
fn refuse(request: &AdmissionRequest<'_>, why: &str) -> Status {
    Status::forbidden(
        &request.kind.group,
        &request.kind.plural,
        shown_name(request),
        why,
    )
}

/// The name as messages show it; a generateName stands in for a name not made yet.
fn shown_name<'a>(request: &'a AdmissionRequest<'_>) -> &'a str {
    if !request.name.is_empty() {
        return request.name;
    }
    let metadata = request.object.as_ref().map(|o| &o["metadata"]);
    let text = |field: &str| {
        metadata
            .and_then(|m| m[field].as_str())
            .filter(|n| !n.is_empty())
    };
    text("name")
        .or_else(|| text("generateName"))
        .unwrap_or_default()
}

#[cfg(test)]
mod tests;
