//! ResourceQuota: what an object costs is added to the usage of its namespace's quotas in the very transaction that
//! writes the object, so that no two writes can both take what is left. What is given back (deletions, pods that have
//! finished) the quota controller counts.
//!
//! Rules: upstream `apiserver/pkg/admission/plugin/resourcequota`.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use balsa_api::kinds::amounts::amounts;
use balsa_api::object;
use balsa_api::quantity::Quantity;
use balsa_api::quota;
use balsa_api::status::Status;
use jiff::Timestamp;
use parking_lot::Mutex;
use serde_json::{Value, json};

use super::{Allocator, Plan, Target};
use crate::backend::{Compare, Op};
use crate::cache::stored::encode_for_store;
use crate::cache::{Cache, Resource, Stored};

type Amounts = BTreeMap<String, Quantity>;

/// Namespaces whose turns are remembered before idle ones are forgotten.
const MOST_TURNS: usize = 1024;

/// See the module.
pub struct Quotas {
    cache: Arc<Cache>,
    /// Writes of one namespace plan and commit one after the other: at once, all but one would be refused for the
    /// quota's revision and have to try again.
    turns: Mutex<HashMap<String, Arc<tokio::sync::Mutex<()>>>>,
}

/// What a write costs one quota.
#[derive(Debug, PartialEq, Eq)]
enum Cost {
    /// Nothing.
    Nothing,
    /// The quota's usage becomes this.
    Used(Amounts),
}

impl Quotas {
    /// Over the quotas of a cache.
    #[must_use]
    pub fn new(cache: Arc<Cache>) -> Self {
        Self {
            cache,
            turns: Mutex::default(),
        }
    }

    fn quotas(&self, namespace: &str) -> Option<(Arc<Resource>, Vec<Arc<Stored>>)> {
        if namespace.is_empty() {
            return None;
        }
        let resource = self.cache.resource("", "resourcequotas")?;
        // Most clusters have none, and each write asks.
        if resource.is_empty() {
            return None;
        }
        let found = resource.snapshot(namespace, None).objects;
        (!found.is_empty()).then_some((resource, found))
    }
}

/// Whether a write can cost anything.
fn counts((target, subresource): (&Target, &str), is_update: bool) -> bool {
    if !is_update {
        return subresource.is_empty();
    }
    match subresource {
        "" => target.is("", "services") || target.is("", "persistentvolumeclaims"),
        "resize" => target.is("", "pods"),
        _ => false,
    }
}

/// `cpu=1,pods=2`, as messages show amounts.
fn shown(amounts: &Amounts) -> String {
    let parts: Vec<String> = amounts.iter().map(|(k, v)| format!("{k}={v}")).collect();
    parts.join(",")
}

/// What a write costs a quota.
fn cost(
    quota: &Value,
    (group, plural): (&str, &str),
    new: &Value,
    old: Option<&Value>,
    now: Timestamp,
) -> Result<Cost, String> {
    let name = object::name(quota);
    let status = &quota["status"];
    // What the controller has taken note of counts, as upstream.
    let mut spec = quota["spec"].clone();
    if !spec.is_object() {
        spec = json!({});
    }
    spec["hard"] = status["hard"].clone();
    if !quota::matches(&spec, group, plural, new) {
        return Ok(Cost::Nothing);
    }
    let hard = amounts(&status["hard"]);
    if group.is_empty()
        && plural == "pods"
        && let Some(why) = quota::unspecified(hard.keys().map(String::as_str), new)
    {
        return Err(format!("failed quota: {name}: {why}"));
    }
    let mut wanted = quota::charge(&spec, group, plural, new, now);
    if let Some(old) = old {
        for (name, amount) in quota::charge(&spec, group, plural, old, now) {
            if let Some(wanted) = wanted.get_mut(&name) {
                *wanted -= amount;
            }
        }
    }
    wanted.retain(|_, amount| !amount.is_zero() && !amount.is_negative());
    if wanted.is_empty() {
        return Ok(Cost::Nothing);
    }
    let mut used = amounts(&status["used"]);
    let unknown: Vec<&str> = wanted
        .keys()
        .filter(|k| !used.contains_key(*k))
        .map(String::as_str)
        .collect();
    if !unknown.is_empty() {
        return Err(format!(
            "status unknown for quota: {name}, resources: {}",
            unknown.join(",")
        ));
    }
    let mut over: (Amounts, Amounts, Amounts) = Default::default();
    for (resource, amount) in &wanted {
        let before = used.get(resource).copied().unwrap_or_default();
        let limit = hard.get(resource).copied().unwrap_or_default();
        if before + *amount > limit {
            over.0.insert(resource.clone(), *amount);
            over.1.insert(resource.clone(), before);
            over.2.insert(resource.clone(), limit);
        }
        used.insert(resource.clone(), before + *amount);
    }
    if over.0.is_empty() {
        return Ok(Cost::Used(used));
    }
    Err(format!(
        "exceeded quota: {name}, requested: {}, used: {}, limited: {}",
        shown(&over.0),
        shown(&over.1),
        shown(&over.2)
    ))
}

impl Allocator for Quotas {
    fn concerns(&self, group: &str, plural: &str) -> bool {
        // Events come and go by themselves, and nobody counts them.
        plural != "events" || !matches!(group, "" | "events.k8s.io")
    }

    fn plan(
        &self,
        about: (&Target, &str),
        new: Option<&mut Value>,
        old: Option<&Value>,
        _attempt: usize,
    ) -> Result<Plan, Status> {
        let mut plan = Plan::default();
        let Some(new) = new else { return Ok(plan) };
        let target = about.0;
        if !counts(about, old.is_some()) {
            return Ok(plan);
        }
        let Some((resource, quotas)) = self.quotas(&target.namespace) else {
            return Ok(plan);
        };
        let kind = (&*target.kind.group, &*target.kind.plural);
        let now = Timestamp::now();
        for stored in quotas {
            let mut quota = stored.decode();
            let cost = cost(&quota, kind, new, old, now).map_err(|why| {
                let mut status = Status::forbidden(kind.0, kind.1, object::name(new), &why);
                if let Some(details) = &mut status.details {
                    details.causes.clear();
                }
                status
            })?;
            let Cost::Used(used) = cost else { continue };
            for (name, amount) in used {
                quota["status"]["used"][name] = amount.to_string().into();
            }
            let key = bytes::Bytes::from(format!(
                "{}{}/{}",
                resource.prefix,
                target.namespace,
                object::name(&quota)
            ));
            plan.compares
                .push((Compare::ModRevision(key.clone(), stored.revision), None));
            plan.ops.push(Op::Put {
                key,
                value: encode_for_store(&quota).into(),
                lease: None,
            });
        }
        Ok(plan)
    }

    fn changes_objects(&self) -> bool {
        false
    }

    fn turn(&self, target: &Target) -> Option<Arc<tokio::sync::Mutex<()>>> {
        self.quotas(&target.namespace)?;
        let mut turns = self.turns.lock();
        if turns.len() > MOST_TURNS {
            turns.retain(|_, turn| Arc::strong_count(turn) > 1);
        }
        Some(Arc::clone(
            turns.entry(target.namespace.clone()).or_default(),
        ))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn quota(hard: Value, used: Value) -> Value {
        json!({"metadata": {"name": "q"}, "spec": {"hard": hard}, "status": {"hard": hard, "used": used}})
    }

    fn pod(cpu: &str) -> Value {
        json!({"metadata": {"name": "p"}, "spec": {"containers": [
            {"name": "c", "resources": {"requests": {"cpu": cpu}}}]}})
    }

    fn charge(quota: &Value, pod: &Value) -> Result<Cost, String> {
        cost(quota, ("", "pods"), pod, None, Timestamp::UNIX_EPOCH)
    }

    #[test]
    fn what_fits_is_added_and_what_does_not_is_refused_in_upstreams_words() {
        let quota = quota(
            json!({"pods": "2", "requests.cpu": "1"}),
            json!({"pods": "1", "requests.cpu": "600m"}),
        );
        let Ok(Cost::Used(used)) = charge(&quota, &pod("400m")) else {
            panic!("refused")
        };
        assert_eq!(shown(&used), "pods=2,requests.cpu=1");
        assert_eq!(
            charge(&quota, &pod("500m")).unwrap_err(),
            "exceeded quota: q, requested: requests.cpu=500m, used: requests.cpu=600m, limited: requests.cpu=1"
        );
    }

    #[test]
    fn pods_must_say_what_is_limited() {
        let quota = quota(
            json!({"limits.memory": "1Gi"}),
            json!({"limits.memory": "0"}),
        );
        let why = charge(&quota, &pod("1")).unwrap_err();
        assert_eq!(why, "failed quota: q: must specify limits.memory for: c");
    }

    #[test]
    fn a_quota_that_the_controller_has_not_seen_limits_nothing() {
        let quota = json!({"metadata": {"name": "q"}, "spec": {"hard": {"pods": "0"}}});
        assert_eq!(charge(&quota, &pod("1")), Ok(Cost::Nothing));
    }

    #[test]
    fn an_update_costs_the_difference() {
        let service = |type_: &str| json!({"metadata": {"name": "s"}, "spec": {"type": type_, "ports": [{"port": 1}]}});
        let hard = json!({"services": "1", "services.nodeports": "1"});
        let full = quota(hard, json!({"services": "1", "services.nodeports": "0"}));
        let cost = |new: &str, old: &str| {
            cost(
                &full,
                ("", "services"),
                &service(new),
                Some(&service(old)),
                Timestamp::UNIX_EPOCH,
            )
        };
        assert_eq!(cost("ClusterIP", "ClusterIP"), Ok(Cost::Nothing));
        let Ok(Cost::Used(used)) = cost("NodePort", "ClusterIP") else {
            panic!("refused")
        };
        assert_eq!(shown(&used), "services=1,services.nodeports=1");
    }
}
