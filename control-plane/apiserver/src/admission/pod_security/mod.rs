//! PodSecurity: namespaces say by their labels how much their pods may do.
//!
//! Rules: KEP-2579, upstream `pod-security-admission/admission`.

pub mod checks;
pub mod levels;

use std::sync::Arc;

use async_trait::async_trait;
use balsa_api::kinds::walk::Walk;
use balsa_api::object;
use balsa_api::status::Status;
use serde_json::Value;

use self::checks::{Finding, Pod, findings};
use self::levels::{Level, LevelVersion, Policy, policy};
use super::{patiently, refuse};
use crate::seam::{Admission, AdmissionRequest, ObjectReader, Operation};

const PREFIX: &str = levels::PREFIX;
/// Pods of a namespace that are looked at when its level is raised.
const MOST_PODS: usize = 3000;

/// See the module.
pub struct PodSecurity {
    reader: Arc<dyn ObjectReader>,
}

impl PodSecurity {
    /// Over the namespaces and pods of a reader.
    #[must_use]
    pub fn new(reader: Arc<dyn ObjectReader>) -> Self {
        Self { reader }
    }

    fn namespace(&self, request: &AdmissionRequest<'_>) -> Result<(), Status> {
        let (Operation::Create | Operation::Update, Some(new)) =
            (request.operation, request.object.as_deref())
        else {
            return Ok(());
        };
        if !request.subresource.is_empty() {
            return Ok(());
        }
        let (wanted, errors) = policy(new);
        let before = request.old.map(|old| (policy(old).0, policy(old).1));
        // A namespace that was wrong before may stay so.
        let was_wrong = before.as_ref().is_some_and(|(_, e)| !e.is_empty());
        if !errors.is_empty() && !was_wrong {
            return Err(Status::invalid("Namespace", "", object::name(new), &errors));
        }
        let old = before.map(|(policy, _)| policy.enforce);
        let Some(old) = old.filter(|old| *old != wanted.enforce) else {
            return Ok(());
        };
        if wanted.enforce.level > Level::Privileged && wanted.enforce.level >= old.level {
            self.warn_of_existing(request, wanted.enforce);
        }
        Ok(())
    }

    /// Pods that are there stay; whoever raises the level hears which of them would not come in again.
    fn warn_of_existing(&self, request: &AdmissionRequest<'_>, enforce: LevelVersion) {
        let name = request.name;
        let pods = self.reader.list("", "pods", Some(name));
        let mut warnings: Vec<String> = pods
            .iter()
            .take(MOST_PODS)
            .filter_map(|pod| {
                let found = evaluate(enforce, &pod["metadata"], &pod["spec"]);
                if found.is_empty() {
                    return None;
                }
                let reasons: Vec<&str> = found.iter().map(|f| f.reason).collect();
                Some(format!("{}: {}", object::name(pod), reasons.join(", ")))
            })
            .collect();
        if warnings.is_empty() {
            return;
        }
        warnings.sort();
        (request.warn)(format!(
            "existing pods in namespace {name:?} violate the new PodSecurity enforce level \"{enforce}\""
        ));
        for warning in warnings {
            (request.warn)(warning);
        }
    }

    async fn policy_of(&self, namespace: &str) -> Policy {
        patiently(|| self.reader.get("", "namespaces", "", namespace))
            .await
            .map_or_else(Policy::default, |namespace| policy(&namespace).0)
    }
}

fn evaluate(wanted: LevelVersion, metadata: &Value, spec: &Value) -> Vec<Finding> {
    let pod = Pod {
        metadata,
        spec,
        minor: wanted.minor(),
    };
    findings(wanted.level, &pod)
}

fn told(verb: &str, wanted: LevelVersion, found: &[Finding]) -> String {
    let all: Vec<String> = found
        .iter()
        .map(|f| format!("{} ({})", f.reason, f.detail))
        .collect();
    format!("{verb} PodSecurity \"{wanted}\": {}", all.join(", "))
}

/// The pod template inside an object that makes pods.
fn template<'a>(group: &str, plural: &str, object: &'a Value) -> Option<&'a Value> {
    let template = match (group, plural) {
        ("", "podtemplates") => &object["template"],
        ("", "replicationcontrollers")
        | ("apps", "daemonsets" | "deployments" | "replicasets" | "statefulsets")
        | ("batch", "jobs") => &object["spec"]["template"],
        ("batch", "cronjobs") => &object["spec"]["jobTemplate"]["spec"]["template"],
        _ => return None,
    };
    template.is_object().then_some(template)
}

/// Whether an update changes what the standards look at: only images can change, and containers be added for debugging.
fn is_significant(new: &Value, old: &Value) -> bool {
    let images = |pod: &Value| -> Vec<(String, String)> {
        ["initContainers", "containers", "ephemeralContainers"]
            .into_iter()
            .flat_map(|list| pod["spec"][list].items())
            .map(|c| (c["name"].text().to_owned(), c["image"].text().to_owned()))
            .collect()
    };
    images(new) != images(old) || new["metadata"]["annotations"] != old["metadata"]["annotations"]
}

#[async_trait]
impl Admission for PodSecurity {
    async fn mutate(&self, _request: &mut AdmissionRequest<'_>) -> Result<(), Status> {
        Ok(())
    }

    async fn validate(&self, request: &AdmissionRequest<'_>) -> Result<(), Status> {
        let (group, plural) = (&*request.kind.group, &*request.kind.plural);
        if (group, plural) == ("", "namespaces") {
            return self.namespace(request);
        }
        if !matches!(request.operation, Operation::Create | Operation::Update) {
            return Ok(());
        }
        let Some(object) = request.object.as_deref() else {
            return Ok(());
        };
        let is_pod = (group, plural) == ("", "pods");
        let (metadata, spec) = match (is_pod, request.subresource) {
            (true, "" | "ephemeralcontainers") => (&object["metadata"], &object["spec"]),
            (false, "") => match template(group, plural, object) {
                Some(template) => (&template["metadata"], &template["spec"]),
                None => return Ok(()),
            },
            _ => return Ok(()),
        };
        if is_pod && request.old.is_some_and(|old| !is_significant(object, old)) {
            return Ok(());
        }
        let policy = self.policy_of(request.namespace).await;
        if is_pod {
            (request.annotate)(
                format!("{PREFIX}enforce-policy"),
                policy.enforce.to_string(),
            );
            let found = evaluate(policy.enforce, metadata, spec);
            if !found.is_empty() {
                return Err(refuse(request, &told("violates", policy.enforce, &found)));
            }
        }
        let found = evaluate(policy.audit, metadata, spec);
        if !found.is_empty() {
            (request.annotate)(
                format!("{PREFIX}audit-violations"),
                told("would violate", policy.audit, &found),
            );
        }
        // A pod that complies with what is enforced needs no warning of the same.
        let found = if is_pod && policy.warn == policy.enforce {
            Vec::new()
        } else {
            evaluate(policy.warn, metadata, spec)
        };
        if !found.is_empty() {
            (request.warn)(told("would violate", policy.warn, &found));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
