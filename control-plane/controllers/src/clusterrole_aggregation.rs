//! ClusterRoles with an `aggregationRule` have the rules of all ClusterRoles it selects.

use std::sync::Arc;

use balsa_client::{Key, Outcome, WorkQueue};
use k8s_openapi::api::rbac::v1::{ClusterRole, PolicyRule};
use kube::ResourceExt;
use kube::api::{Patch, PatchParams};
use serde_json::json;

use crate::context::Shared;
use crate::error::{Result, unless_gone};
use crate::support::selector::Labels;

pub(crate) async fn run(context: Shared) {
    let queue = WorkQueue::default();
    let this = Arc::clone(&context);
    let roles = queue.clone();
    context.informers.cluster_roles.on_change(move |delta| {
        roles.add(Key::of(&**delta.object()));
        // There are few aggregating roles; each change of any role may concern all of them.
        for role in this.informers.cluster_roles.list() {
            if role.aggregation_rule.is_some() {
                roles.add(Key::of(&*role));
            }
        }
    });
    context.informers.cluster_roles.synced().await;
    let this = Arc::clone(&context);
    context
        .work("clusterrole-aggregation", queue, move |key| {
            let this = Arc::clone(&this);
            async move { reconcile(&this, &key.name).await }
        })
        .await;
}

async fn reconcile(context: &Shared, name: &str) -> Result<Outcome> {
    let Some(role) = context.informers.cluster_roles.get("", name) else {
        return Ok(Outcome::Done);
    };
    let Some(rules) = aggregate(&role, &context.informers.cluster_roles.list())? else {
        return Ok(Outcome::Done);
    };
    if role.rules.as_deref().unwrap_or_default() == rules {
        return Ok(Outcome::Done);
    }
    let patch = json!({"metadata": {"resourceVersion": role.resource_version()}, "rules": rules});
    let api = context.cluster_api::<ClusterRole>();
    unless_gone(
        api.patch(name, &PatchParams::default(), &Patch::Merge(&patch))
            .await,
    )?;
    Ok(Outcome::Done)
}

/// The rules that an aggregating role should have, each once, in the order of role names.
fn aggregate(role: &ClusterRole, all: &[Arc<ClusterRole>]) -> Result<Option<Vec<PolicyRule>>> {
    let Some(rule) = &role.aggregation_rule else {
        return Ok(None);
    };
    let selectors = rule
        .cluster_role_selectors
        .iter()
        .flatten()
        .map(Labels::parse)
        .collect::<Result<Vec<_>>>()?;
    let mut selected: Vec<&Arc<ClusterRole>> = all
        .iter()
        .filter(|other| other.metadata.name != role.metadata.name)
        .filter(|other| {
            selectors
                .iter()
                .any(|labels| labels.matches(other.metadata.labels.as_ref()))
        })
        .collect();
    selected.sort_by_key(|role| role.name_any());
    let mut rules: Vec<PolicyRule> = Vec::new();
    for rule in selected.iter().flat_map(|role| role.rules.iter().flatten()) {
        if !rules.contains(rule) {
            rules.push(rule.clone());
        }
    }
    Ok(Some(rules))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use k8s_openapi::api::rbac::v1::AggregationRule;
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;

    use super::*;

    fn role(name: &str, label: Option<&str>, verbs: &[&str]) -> Arc<ClusterRole> {
        let mut role = ClusterRole::default();
        role.metadata.name = Some(name.into());
        if let Some(label) = label {
            role.labels_mut().insert(label.into(), "true".into());
        }
        role.rules = Some(
            verbs
                .iter()
                .map(|verb| PolicyRule {
                    verbs: vec![(*verb).into()],
                    ..PolicyRule::default()
                })
                .collect(),
        );
        Arc::new(role)
    }

    #[test]
    fn rules_of_selected_roles_are_joined_without_repeats_and_not_its_own() {
        let labels = [("to-view".to_owned(), "true".to_owned())].into();
        let view = ClusterRole {
            aggregation_rule: Some(AggregationRule {
                cluster_role_selectors: Some(vec![LabelSelector {
                    match_labels: Some(labels),
                    ..LabelSelector::default()
                }]),
            }),
            ..(*role("view", Some("to-view"), &["own"])).clone()
        };
        let all = [
            role("b", Some("to-view"), &["list", "get"]),
            role("a", Some("to-view"), &["get"]),
            role("c", None, &["delete"]),
            Arc::new(view.clone()),
        ];
        let rules = aggregate(&view, &all).unwrap().unwrap();
        let verbs: Vec<&str> = rules.iter().map(|rule| rule.verbs[0].as_str()).collect();
        assert_eq!(verbs, ["get", "list"]);
    }
}
