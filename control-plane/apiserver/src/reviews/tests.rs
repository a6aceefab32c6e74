#![allow(clippy::unwrap_used)]

use std::sync::Arc;

use balsa_api::status::Status;
use serde_json::{Value, json};

use super::*;
use crate::authn::token::Refusal;
use crate::authz::fake::Objects;
use crate::authz::{bootstrap_objects, rbac};

struct Cluster {
    served: Vec<Served>,
    verifier: TokenVerifier,
}

fn cluster() -> Cluster {
    let mut objects = Objects::new()
        .with(
            "",
            "serviceaccounts",
            json!({"metadata": {"namespace": "default", "name": "robot", "uid": "u1"}}),
        )
        .with(
            "",
            "nodes",
            json!({"metadata": {"name": "a1", "uid": "u3"}}),
        )
        .with(
            "",
            "pods",
            json!({"metadata": {"namespace": "default", "name": "p", "uid": "u2"},
                                 "spec": {"serviceAccountName": "robot", "nodeName": "a1", "volumes": [
                                     {"projected": {"sources": [{"serviceAccountToken": {"path": "token"}}]}}]}}),
        );
    for object in bootstrap_objects() {
        let resource = if object["kind"] == "ClusterRole" {
            "clusterroles"
        } else {
            "clusterrolebindings"
        };
        objects = objects.with(rbac::GROUP, resource, object);
    }
    let reader: Arc<dyn ObjectReader> = Arc::new(objects);
    let keys = Arc::new(ServiceAccountKeys::generate().unwrap());
    let authz = Arc::new(Authz::new(Arc::clone(&reader)));
    Cluster {
        served: all(&authz, &keys, &reader, None),
        verifier: TokenVerifier::new(keys, reader),
    }
}

impl Cluster {
    async fn post(&self, user: &User, path: &str, body: Value) -> Result<Value, Status> {
        let (resource, name) = path.split_once('/').unwrap_or((path, ""));
        let served = self.served.iter().find(|s| s.resource == resource).unwrap();
        served.handler.create(user, "default", name, body).await
    }
}

fn admin() -> User {
    User {
        name: "root".into(),
        groups: vec!["system:masters".into(), "system:authenticated".into()],
        ..User::default()
    }
}

fn guest() -> User {
    User {
        name: "guest".into(),
        groups: vec!["system:authenticated".into()],
        ..User::default()
    }
}

#[tokio::test]
async fn can_i_answers_for_oneself_and_for_others() {
    let cluster = cluster();
    let delete = json!({"resourceAttributes": {"verb": "delete", "resource": "nodes"}});
    let own = |user: User| {
        let body = json!({"spec": delete.clone()});
        let cluster = &cluster;
        async move {
            cluster
                .post(&user, "selfsubjectaccessreviews", body)
                .await
                .unwrap()["status"]["allowed"]
                .clone()
        }
    };
    assert_eq!(own(admin()).await, true);
    assert_eq!(own(guest()).await, false);
    let mut spec = delete.clone();
    spec["user"] = "x".into();
    spec["groups"] = json!(["system:masters"]);
    let answer = cluster
        .post(&guest(), "subjectaccessreviews", json!({"spec": spec}))
        .await
        .unwrap();
    assert_eq!(
        (&answer["status"]["allowed"], &answer["kind"]),
        (&json!(true), &json!("SubjectAccessReview"))
    );
    let refused = cluster
        .post(&admin(), "subjectaccessreviews", json!({"spec": delete}))
        .await
        .unwrap_err();
    assert!(
        refused
            .message
            .contains("at least one of user or group must be specified"),
        "{refused}"
    );
    let local = json!({"spec": {"user": "x", "resourceAttributes": {"verb": "get", "resource": "pods", "namespace": "other"}}});
    assert_eq!(
        cluster
            .post(&admin(), "localsubjectaccessreviews", local)
            .await
            .unwrap_err()
            .code,
        400
    );
}

#[tokio::test]
async fn the_list_of_rules_is_what_roles_give() {
    let cluster = cluster();
    let body = json!({"spec": {"namespace": "default"}});
    let answer = cluster
        .post(&guest(), "selfsubjectrulesreviews", body.clone())
        .await
        .unwrap();
    let status = &answer["status"];
    assert_eq!(status["incomplete"], false);
    assert!(
        status["resourceRules"]
            .as_array()
            .unwrap()
            .iter()
            .any(|r| r["resources"] == json!(["selfsubjectreviews"]))
    );
    assert!(!status["nonResourceRules"].as_array().unwrap().is_empty());
    let answer = cluster
        .post(&admin(), "selfsubjectrulesreviews", body)
        .await
        .unwrap();
    assert!(
        answer["status"]["resourceRules"]
            .as_array()
            .unwrap()
            .iter()
            .any(|r| r["resources"] == json!(["*"]))
    );
}

#[tokio::test]
async fn whoami_shows_the_user() {
    let answer = cluster()
        .post(&guest(), "selfsubjectreviews", json!({}))
        .await
        .unwrap();
    assert_eq!(
        answer["status"]["userInfo"],
        json!({"username": "guest", "groups": ["system:authenticated"]})
    );
}

#[tokio::test]
async fn a_requested_token_is_accepted_until_its_binding_changes() {
    let cluster = cluster();
    let spec = json!({"expirationSeconds": 3607, "boundObjectRef": {"kind": "Pod", "apiVersion": "v1", "name": "p", "uid": "u2"}});
    let answer = cluster
        .post(&admin(), "serviceaccounts/robot", json!({"spec": spec}))
        .await
        .unwrap();
    let token = answer["status"]["token"].as_str().unwrap().to_owned();
    assert_eq!(answer["metadata"]["name"], "robot");
    let user = cluster
        .verifier
        .verify(&token, &[], jiff::Timestamp::now())
        .unwrap();
    assert_eq!(user.extra["authentication.kubernetes.io/node-uid"], ["u3"]);
    // Mounted tokens live longer than they say.
    let later = jiff::Timestamp::now() + jiff::SignedDuration::from_hours(24);
    cluster.verifier.verify(&token, &[], later).unwrap();

    let review = cluster
        .post(&admin(), "tokenreviews", json!({"spec": {"token": token}}))
        .await
        .unwrap();
    assert_eq!(
        review["status"]["user"]["username"],
        "system:serviceaccount:default:robot"
    );
    let foreign = json!({"spec": {"token": token, "audiences": ["vault"]}});
    let review = cluster
        .post(&admin(), "tokenreviews", foreign)
        .await
        .unwrap();
    assert_eq!(review["status"]["authenticated"], false);
    assert!(matches!(
        cluster.verifier.verify("a.b.c", &[], later),
        Err(Refusal::Token(_))
    ));
}

#[tokio::test]
async fn bad_token_requests_are_refused() {
    let cluster = cluster();
    let post = |user: User, path: &'static str, spec: Value| {
        let cluster = &cluster;
        async move {
            cluster
                .post(&user, path, json!({"spec": spec}))
                .await
                .map(|_| ())
                .unwrap_err()
        }
    };
    let short = post(
        admin(),
        "serviceaccounts/robot",
        json!({"expirationSeconds": 1}),
    )
    .await;
    assert_eq!(short.code, 422);
    assert!(
        short
            .message
            .contains("may not specify a duration less than 10 minutes"),
        "{short}"
    );
    let missing = post(admin(), "serviceaccounts/none", json!({})).await;
    assert_eq!(missing.message, "serviceaccounts \"none\" not found");
    let pod = |uid: &str| json!({"boundObjectRef": {"kind": "Pod", "apiVersion": "v1", "name": "p", "uid": uid}});
    assert_eq!(
        post(admin(), "serviceaccounts/robot", pod("old"))
            .await
            .code,
        409
    );
    let node = |name: &str| User {
        name: format!("system:node:{name}"),
        groups: vec!["system:nodes".into()],
        ..User::default()
    };
    assert!(
        post(node("a1"), "serviceaccounts/robot", json!({}))
            .await
            .message
            .contains("not bound to a pod")
    );
    assert!(
        post(node("a2"), "serviceaccounts/robot", pod("u2"))
            .await
            .message
            .contains("different node")
    );
    let mut foreign = pod("u2");
    foreign["audiences"] = json!(["bank"]);
    let refused = post(node("a1"), "serviceaccounts/robot", foreign).await;
    assert!(
        refused.message.contains("audience \"bank\" not found"),
        "{refused}"
    );
    let ok = cluster
        .post(
            &node("a1"),
            "serviceaccounts/robot",
            json!({"spec": pod("u2")}),
        )
        .await;
    ok.unwrap();
}
