#![allow(clippy::unwrap_used)]

use std::sync::Arc;

use balsa_api::selector::FieldSelector;
use serde_json::{Value, json};

use super::bootstrap::Ensure;
use super::escalation::{Write, check};
use super::rules::{Rule, uncovered};
use super::*;
use crate::authz::fake::Objects;

fn user(name: &str, groups: &[&str]) -> User {
    User {
        name: name.into(),
        groups: groups.iter().map(|g| (*g).to_owned()).collect(),
        ..User::default()
    }
}

fn ask(user: &User, verb: &str, resource: &str, namespace: &str, name: &str) -> Attributes {
    let (group, resource) = resource.rsplit_once(':').unwrap_or(("", resource));
    let (resource, subresource) = resource.split_once('/').unwrap_or((resource, ""));
    Attributes {
        user: Arc::new(user.clone()),
        verb: verb.into(),
        namespace: namespace.into(),
        group: group.into(),
        version: "v1".into(),
        resource: resource.into(),
        subresource: subresource.into(),
        name: name.into(),
        ..Attributes::default()
    }
}

/// The bootstrap objects and some bindings of a made-up cluster.
fn cluster() -> Objects {
    let mut objects = Objects::new();
    for object in bootstrap_objects() {
        let resource = if object["kind"] == "ClusterRole" {
            "clusterroles"
        } else {
            "clusterrolebindings"
        };
        objects = objects.with(rbac::GROUP, resource, object);
    }
    let bind = |name: &str, role: Value, subject: Value| json!({"metadata": {"namespace": "default", "name": name}, "roleRef": role, "subjects": [subject]});
    let cluster_role = |name: &str| json!({"kind": "ClusterRole", "name": name});
    objects
        .with(rbac::GROUP, "rolebindings", bind("v", cluster_role("view"), json!({"kind": "User", "name": "jane"})))
        .with(rbac::GROUP, "rolebindings", bind("a", cluster_role("admin"), json!({"kind": "Group", "name": "dev"})))
        .with(
            rbac::GROUP,
            "rolebindings",
            bind("l", json!({"kind": "Role", "name": "one-secret"}), json!({"kind": "ServiceAccount", "name": "robot"})),
        )
        .with(
            rbac::GROUP,
            "roles",
            json!({"metadata": {"namespace": "default", "name": "one-secret"}, "rules": [
                {"verbs": ["get"], "apiGroups": [""], "resources": ["secrets"], "resourceNames": ["mine"]}]}),
        )
        .with("", "persistentvolumes", json!({"metadata": {"name": "disk"}, "spec": {
            "claimRef": {"namespace": "default", "name": "data"},
            "csi": {"nodeStageSecretRef": {"namespace": "storage", "name": "key"}}}}))
        .with("", "pods", json!({"metadata": {"namespace": "default", "name": "web"}, "spec": {
            "nodeName": "a1", "serviceAccountName": "default",
            "volumes": [{"secret": {"secretName": "tls"}}, {"persistentVolumeClaim": {"claimName": "data"}}, {"projected": {"sources": [{"configMap": {"name": "kube-root-ca.crt"}}]}}],
            "containers": [{"envFrom": [{"configMapRef": {"name": "env"}}]}]}}))
}

async fn allowed(attributes: &Attributes) -> bool {
    matches!(
        Authz::new(Arc::new(cluster())).authorize(attributes).await,
        Decision::Allow(_)
    )
}

#[tokio::test]
async fn a_role_binding_allows_in_its_namespace_only() {
    let jane = user("jane", &["system:authenticated"]);
    assert!(allowed(&ask(&jane, "list", "pods", "default", "")).await);
    assert!(allowed(&ask(&jane, "get", "pods/log", "default", "web")).await);
    assert!(!allowed(&ask(&jane, "list", "pods", "kube-system", "")).await);
    assert!(!allowed(&ask(&jane, "list", "pods", "", "")).await);
    assert!(!allowed(&ask(&jane, "delete", "pods", "default", "web")).await);
    assert!(!allowed(&ask(&jane, "get", "secrets", "default", "tls")).await);
}

#[tokio::test]
async fn aggregated_roles_hold_what_they_select() {
    let dev = user("joe", &["dev"]);
    assert!(allowed(&ask(&dev, "create", "apps:deployments", "default", "")).await);
    assert!(
        allowed(&ask(
            &dev,
            "create",
            "rbac.authorization.k8s.io:roles",
            "default",
            ""
        ))
        .await
    );
    assert!(allowed(&ask(&dev, "create", "pods/exec", "default", "web")).await);
    assert!(!allowed(&ask(&dev, "create", "nodes", "", "")).await);
}

#[tokio::test]
async fn a_service_account_may_read_only_the_named_object() {
    let robot = user("system:serviceaccount:default:robot", &[]);
    assert!(allowed(&ask(&robot, "get", "secrets", "default", "mine")).await);
    assert!(!allowed(&ask(&robot, "get", "secrets", "default", "other")).await);
    assert!(!allowed(&ask(&robot, "list", "secrets", "default", "")).await);
}

#[tokio::test]
async fn paths_are_open_by_group() {
    let path = |u: User, path: &str| Attributes {
        user: Arc::new(u),
        verb: "get".into(),
        path: path.into(),
        ..Attributes::default()
    };
    assert!(allowed(&path(user("x", &["system:authenticated"]), "/apis/apps/v1")).await);
    assert!(
        allowed(&path(
            user("system:anonymous", &["system:unauthenticated"]),
            "/readyz"
        ))
        .await
    );
    assert!(
        !allowed(&path(
            user("system:anonymous", &["system:unauthenticated"]),
            "/api"
        ))
        .await
    );
    assert!(!allowed(&path(user("x", &["system:authenticated"]), "/metrics")).await);
}

#[tokio::test]
async fn the_reason_names_binding_and_role() {
    let authz = Authz::new(Arc::new(cluster()));
    let decision = authz
        .authorize(&ask(&user("jane", &[]), "get", "pods", "default", "web"))
        .await;
    let text =
        "RBAC: allowed by RoleBinding \"v/default\" of ClusterRole \"view\" to User \"jane\"";
    assert_eq!(decision, Decision::Allow(text.into()));
}

#[tokio::test]
async fn a_changed_binding_counts_at_once() {
    let objects = Arc::new(cluster());
    let authz = Authz::new(objects.clone());
    let request = ask(&user("late", &[]), "get", "nodes", "", "n");
    assert!(matches!(
        authz.authorize(&request).await,
        Decision::NoOpinion(_)
    ));
    objects.put(
        rbac::GROUP,
        "clusterrolebindings",
        json!({"metadata": {"name": "late"}, "roleRef": {"kind": "ClusterRole", "name": "cluster-admin"},
               "subjects": [{"kind": "User", "name": "late"}]}),
    );
    assert!(matches!(
        authz.authorize(&request).await,
        Decision::Allow(_)
    ));
}

#[tokio::test]
async fn a_node_reads_what_its_pods_refer_to_and_nothing_else() {
    let node = user("system:node:a1", &["system:nodes"]);
    for (verb, resource, name) in [
        ("get", "secrets", "tls"),
        ("watch", "configmaps", "kube-root-ca.crt"),
        ("list", "configmaps", "env"),
        ("create", "serviceaccounts/token", "default"),
        ("get", "pods", "web"),
        ("patch", "pods/status", "web"),
    ] {
        assert!(
            allowed(&ask(&node, verb, resource, "default", name)).await,
            "{verb} {resource} {name}"
        );
    }
    for (verb, resource, name) in [
        ("get", "secrets", "other"),
        ("list", "secrets", ""),
        ("update", "secrets", "tls"),
        ("create", "serviceaccounts/token", "other"),
        ("create", "apps:deployments", ""),
    ] {
        assert!(
            !allowed(&ask(&node, verb, resource, "default", name)).await,
            "{verb} {resource} {name}"
        );
    }
    let other = user("system:node:a2", &["system:nodes"]);
    assert!(!allowed(&ask(&other, "get", "secrets", "default", "tls")).await);
    assert!(!allowed(&ask(&other, "get", "pods", "default", "web")).await);
    let lease = |name: &str, namespace: &str| {
        ask(
            &node,
            "update",
            "coordination.k8s.io:leases",
            namespace,
            name,
        )
    };
    assert!(allowed(&lease("a1", "kube-node-lease")).await);
    assert!(!allowed(&lease("a2", "kube-node-lease")).await);
    assert!(!allowed(&lease("a1", "default")).await);
}

#[tokio::test]
async fn a_node_keeps_what_drivers_need_for_its_pods_volumes() {
    let node = user("system:node:a1", &["system:nodes"]);
    let other = user("system:node:a2", &["system:nodes"]);
    for (verb, resource, namespace, name) in [
        ("get", "secrets", "storage", "key"),
        ("patch", "persistentvolumeclaims/status", "default", "data"),
        ("update", "storage.k8s.io:csinodes", "", "a1"),
    ] {
        let asked = |user| ask(user, verb, resource, namespace, name);
        assert!(allowed(&asked(&node)).await, "{verb} {resource}");
        assert!(!allowed(&asked(&other)).await, "{verb} {resource}");
    }
    assert!(!allowed(&ask(&node, "get", "secrets", "default", "key")).await);
    assert!(
        !allowed(&ask(
            &node,
            "patch",
            "persistentvolumeclaims",
            "default",
            "data"
        ))
        .await
    );
}

#[tokio::test]
async fn a_node_lists_its_own_pods_only() {
    let node = user("system:node:a1", &["system:nodes"]);
    for (selector, wanted) in [
        ("spec.nodeName=a1", true),
        ("spec.nodeName=a1,status.phase!=Failed", true),
        ("spec.nodeName=a2", false),
        ("spec.nodeName!=a1", false),
        ("", false),
    ] {
        for verb in ["list", "watch"] {
            let asked = Attributes {
                fields: FieldSelector::parse(selector).unwrap(),
                ..ask(&node, verb, "pods", "", "")
            };
            assert_eq!(allowed(&asked).await, wanted, "{verb} {selector}");
        }
    }
}

#[test]
fn refusals_read_as_upstream() {
    let x = user("x", &[]);
    let text = |a: Attributes| forbidden(&a, "").message;
    assert_eq!(
        text(ask(&x, "list", "pods", "default", "")),
        r#"pods is forbidden: User "x" cannot list resource "pods" in API group "" in the namespace "default""#
    );
    assert_eq!(
        text(ask(&x, "get", "apps:deployments/scale", "default", "web")),
        r#"deployments.apps "web" is forbidden: User "x" cannot get resource "deployments/scale" in API group "apps" in the namespace "default""#
    );
    assert_eq!(
        text(ask(&x, "get", "nodes", "", "n")),
        r#"nodes "n" is forbidden: User "x" cannot get resource "nodes" in API group "" at the cluster scope"#
    );
    let path = Attributes {
        user: Arc::new(x),
        verb: "get".into(),
        path: "/metrics".into(),
        ..Attributes::default()
    };
    assert_eq!(
        text(path),
        r#"forbidden: User "x" cannot get path "/metrics""#
    );
}

#[test]
fn wildcards_in_rules() {
    let x = user("x", &[]);
    let rule = |r: Value| Rule::from_json(&r);
    let scale = rule(json!({"verbs": ["*"], "apiGroups": ["*"], "resources": ["*/scale"]}));
    assert!(scale.allows(&ask(&x, "get", "apps:deployments/scale", "d", "w")));
    assert!(!scale.allows(&ask(&x, "get", "apps:deployments", "d", "w")));
    let pods = rule(json!({"verbs": ["get"], "apiGroups": [""], "resources": ["pods"]}));
    assert!(!pods.allows(&ask(&x, "get", "pods/log", "d", "w")));
    let all = rule(json!({"verbs": ["*"], "apiGroups": ["*"], "resources": ["*"]}));
    assert!(all.allows(&ask(&x, "get", "pods/log", "d", "w")));
}

#[test]
fn what_is_not_held_is_found() {
    let rules = |v: Value| Rule::all_of(&json!({ "rules": v }));
    let held = rules(
        json!([{"verbs": ["get", "list"], "apiGroups": [""], "resources": ["pods", "*/status"]},
                            {"verbs": ["get"], "apiGroups": [""], "resources": ["secrets"], "resourceNames": ["a"]}]),
    );
    let missing = |v: Value| uncovered(&held, &rules(v)).len();
    assert_eq!(
        missing(
            json!([{"verbs": ["get"], "apiGroups": [""], "resources": ["pods", "nodes/status"]}])
        ),
        0
    );
    assert_eq!(
        missing(json!([{"verbs": ["get", "delete"], "apiGroups": [""], "resources": ["pods"]}])),
        1
    );
    assert_eq!(
        missing(json!([{"verbs": ["get"], "apiGroups": [""], "resources": ["secrets"]}])),
        1
    );
    assert_eq!(
        missing(
            json!([{"verbs": ["get"], "apiGroups": [""], "resources": ["secrets"], "resourceNames": ["a"]}])
        ),
        0
    );
    assert_eq!(
        missing(json!([{"verbs": ["*"], "apiGroups": [""], "resources": ["pods"]}])),
        1
    );
    assert_eq!(
        missing(json!([{"verbs": ["get"], "nonResourceURLs": ["/metrics"]}])),
        1
    );
}

#[tokio::test]
async fn nobody_grants_what_he_does_not_hold() {
    let authz = Authz::new(Arc::new(cluster()));
    let dev = user("joe", &["dev"]);
    let role = |resource: &str| json!({"rules": [{"verbs": ["get"], "apiGroups": [""], "resources": [resource]}]});
    let write = |object: &'static Value| Write {
        resource: "roles",
        namespace: "default",
        name: "r",
        object,
        old: None,
    };
    let (fine, too_much): (&'static Value, &'static Value) = (
        Box::leak(Box::new(role("secrets"))),
        Box::leak(Box::new(role("nodes"))),
    );
    check(&authz, &dev, write(fine)).await.unwrap();
    let refused = check(&authz, &dev, write(too_much)).await.unwrap_err();
    assert_eq!(
        refused.message,
        "roles.rbac.authorization.k8s.io \"r\" is forbidden: user \"joe\" (groups=[\"dev\"]) is attempting to grant \
         RBAC permissions not currently held:\n{APIGroups:[\"\"], Resources:[\"nodes\"], Verbs:[\"get\"]}"
    );
    // Unchanged rules may be written again, and masters may write anything.
    check(
        &authz,
        &dev,
        Write {
            old: Some(too_much),
            ..write(too_much)
        },
    )
    .await
    .unwrap();
    check(&authz, &user("root", &["system:masters"]), write(too_much))
        .await
        .unwrap();
    let bind = json!({"roleRef": {"kind": "ClusterRole", "name": "cluster-admin"}, "subjects": []});
    let binding = Write {
        resource: "rolebindings",
        namespace: "default",
        name: "b",
        object: &bind,
        old: None,
    };
    assert_eq!(check(&authz, &dev, binding).await.unwrap_err().code, 403);
}

#[test]
fn bootstrap_objects_are_created_completed_and_left_alone_on_request() {
    let wanted = bootstrap_objects()
        .into_iter()
        .find(|o| o["metadata"]["name"] == "system:basic-user")
        .unwrap();
    assert!(matches!(reconcile(None, &wanted), Ensure::Create(_)));
    assert_eq!(reconcile(Some(&wanted), &wanted), Ensure::Nothing);
    let mut less = wanted.clone();
    less["rules"].as_array_mut().unwrap().pop();
    less["rules"]
        .as_array_mut()
        .unwrap()
        .push(json!({"verbs": ["get"], "apiGroups": ["x"], "resources": ["y"]}));
    let Ensure::Update(repaired) = reconcile(Some(&less), &wanted) else {
        panic!("not repaired")
    };
    assert_eq!(reconcile(Some(&repaired), &wanted), Ensure::Nothing);
    assert_eq!(repaired["rules"].as_array().unwrap().len(), 3);
    less["metadata"]["annotations"] =
        json!({"rbac.authorization.kubernetes.io/autoupdate": "false"});
    assert_eq!(reconcile(Some(&less), &wanted), Ensure::Nothing);
}
