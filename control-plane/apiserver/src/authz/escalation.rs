//! Nobody may grant what he does not hold: checks on writes of roles and bindings.
//!
//! Whoever has the verb `escalate` on a role, or `bind` on the role of a binding, is exempt.

use std::sync::Arc;

use balsa_api::status::Status;
use serde_json::Value;

use super::rbac::{GROUP, Rbac};
use super::rules::{Rule, describe, uncovered};
use super::{Authz, privileged};
use crate::seam::{Attributes, Authorizer, Decision, User};

/// A role or binding about to be written.
#[derive(Debug, Clone, Copy)]
pub struct Write<'a> {
    /// `roles`, `clusterroles`, `rolebindings` or `clusterrolebindings`.
    pub resource: &'a str,
    /// Namespace or empty.
    pub namespace: &'a str,
    /// Name.
    pub name: &'a str,
    /// The new object.
    pub object: &'a Value,
    /// The old one on update.
    pub old: Option<&'a Value>,
}

/// Refuses a write that grants more than the user holds.
///
/// # Errors
/// 403 with the rules that the user lacks.
pub async fn check(authz: &Authz, user: &User, write: Write<'_>) -> Result<(), Status> {
    if privileged(user) {
        return Ok(());
    }
    let (wanted, exempt) = match write.resource {
        "roles" | "clusterroles" => {
            if write.old.is_some_and(|old| {
                old["rules"] == write.object["rules"]
                    && old["aggregationRule"] == write.object["aggregationRule"]
            }) {
                return Ok(());
            }
            let escalate = attributes(
                user,
                "escalate",
                write.resource,
                write.namespace,
                write.name,
            );
            (role_rules(write.object), escalate)
        }
        "rolebindings" | "clusterrolebindings" => {
            if write.old.is_some_and(|old| {
                old["roleRef"] == write.object["roleRef"]
                    && old["subjects"] == write.object["subjects"]
            }) {
                return Ok(());
            }
            bound_rules(&authz.rbac, user, &write)?
        }
        _ => return Ok(()),
    };
    if matches!(authz.authorize(&exempt).await, Decision::Allow(_)) {
        return Ok(());
    }
    let missing = uncovered(&authz.rbac.rules_of(user, write.namespace), &wanted);
    if missing.is_empty() {
        return Ok(());
    }
    Err(refusal(user, &write, &missing))
}

/// An aggregated role may come to hold any rule, so writing one asks for all.
fn role_rules(role: &Value) -> Vec<Rule> {
    let mut rules = Rule::all_of(role);
    if !role["aggregationRule"].is_null() {
        let all = || vec!["*".to_owned()];
        rules.push(Rule {
            verbs: all(),
            groups: all(),
            resources: all(),
            ..Rule::default()
        });
        rules.push(Rule {
            verbs: all(),
            urls: all(),
            ..Rule::default()
        });
    }
    rules
}

fn bound_rules(
    rbac: &Rbac,
    user: &User,
    write: &Write<'_>,
) -> Result<(Vec<Rule>, Attributes), Status> {
    let kind = write.object["roleRef"]["kind"].as_str().unwrap_or_default();
    let name = write.object["roleRef"]["name"].as_str().unwrap_or_default();
    let resource = if kind == "ClusterRole" {
        "clusterroles"
    } else {
        "roles"
    };
    let rules = rbac
        .rules_of_role(kind, write.namespace, name)
        .ok_or_else(|| Status::not_found(GROUP, resource, name))?;
    Ok((
        rules,
        attributes(user, "bind", resource, write.namespace, name),
    ))
}

fn attributes(user: &User, verb: &str, resource: &str, namespace: &str, name: &str) -> Attributes {
    Attributes {
        user: Arc::new(user.clone()),
        verb: verb.into(),
        namespace: namespace.into(),
        group: GROUP.into(),
        version: "v1".into(),
        resource: resource.into(),
        name: name.into(),
        ..Attributes::default()
    }
}

fn refusal(user: &User, write: &Write<'_>, missing: &[Rule]) -> Status {
    let groups: Vec<String> = user.groups.iter().map(|g| format!("{g:?}")).collect();
    let rules: Vec<String> = missing.iter().map(describe).collect();
    let why = format!(
        "user {:?} (groups=[{}]) is attempting to grant RBAC permissions not currently held:\n{}",
        user.name,
        groups.join(" "),
        rules.join("\n")
    );
    Status::forbidden(GROUP, write.resource, write.name, &why)
}
