#![allow(clippy::unwrap_used)]

use std::sync::Arc;

use balsa_api::kind::{Column, Kind, Scope, Strategy};
use balsa_api::status::FieldErrors;
use serde_json::{Value, json};

use super::*;
use crate::authz::fake::Objects;
use crate::seam::{Operation, User};

struct Plain;

impl Strategy for Plain {
    fn prepare_create(&self, _object: &mut Value) {}
    fn prepare_update(&self, _object: &mut Value, _old: &Value) {}
    fn prepare_status_update(&self, _object: &mut Value, _old: &Value) {}
    fn validate_create(&self, _object: &Value) -> FieldErrors {
        FieldErrors::default()
    }
    fn validate_update(&self, _object: &Value, _old: &Value) -> FieldErrors {
        FieldErrors::default()
    }
    fn columns(&self) -> Vec<Column> {
        Vec::new()
    }
    fn row(&self, _object: &Value, _now: jiff::Timestamp) -> Vec<Value> {
        Vec::new()
    }
}

fn kind(group: &'static str, plural: &'static str, scope: Scope) -> Kind {
    Kind {
        group: group.into(),
        version: "v1".into(),
        kind: plural.into(),
        plural: plural.into(),
        singular: plural.into(),
        short_names: Vec::new(),
        categories: Vec::new(),
        scope,
        verbs: &[],
        subresources: Vec::new(),
        strategy: Box::new(Plain),
    }
}

/// A request under construction, run through the whole chain.
struct Try {
    objects: Objects,
    kind: Kind,
    operation: Operation,
    subresource: &'static str,
    name: &'static str,
    object: Option<Value>,
    old: Option<Value>,
    user: User,
}

impl Try {
    fn new(operation: Operation, group: &'static str, plural: &'static str, object: Value) -> Self {
        let scope = if ["nodes", "namespaces", "priorityclasses"].contains(&plural) {
            Scope::Cluster
        } else {
            Scope::Namespaced
        };
        Self {
            objects: Objects::new()
                .with(
                    "",
                    "namespaces",
                    json!({"metadata": {"name": "default"}, "status": {"phase": "Active"}}),
                )
                .with(
                    "",
                    "namespaces",
                    json!({"metadata": {"name": "kube-node-lease"}}),
                )
                .with(
                    "",
                    "serviceaccounts",
                    json!({"metadata": {"namespace": "default", "name": "default"}}),
                ),
            kind: kind(group, plural, scope),
            operation,
            subresource: "",
            name: "x",
            object: (!object.is_null()).then_some(object),
            old: None,
            user: User {
                name: "joe".into(),
                groups: vec!["system:masters".into()],
                ..User::default()
            },
        }
    }

    fn node(mut self, name: &str) -> Self {
        self.user = User {
            name: format!("system:node:{name}"),
            groups: vec!["system:nodes".into()],
            ..User::default()
        };
        self
    }

    fn with(mut self, group: &str, resource: &str, object: Value) -> Self {
        self.objects = self.objects.with(group, resource, object);
        self
    }

    async fn run_in(mut self, namespace: &str) -> Result<Value, Status> {
        let reader: Arc<dyn ObjectReader> = Arc::new(self.objects);
        let authz = Arc::new(Authz::new(Arc::clone(&reader)));
        let chain = Chain::new(&reader, &authz, &AdmissionConfig::default());
        let mut request = AdmissionRequest {
            operation: self.operation,
            kind: &self.kind,
            subresource: self.subresource,
            namespace,
            name: self.name,
            object: self.object.as_mut(),
            old: self.old.as_ref(),
            user: &self.user,
            dry_run: false,
            object_kind: (&*self.kind.group, &*self.kind.version, &*self.kind.kind),
            options: &Value::Null,
            warn: &|_| {},
            annotate: &|_, _| {},
            renormalise: &|_| Ok(()),
        };
        chain.mutate(&mut request).await?;
        chain.validate(&request).await?;
        Ok(self.object.unwrap_or_default())
    }

    async fn run(self) -> Result<Value, Status> {
        let namespace = if self.kind.scope == Scope::Cluster {
            ""
        } else {
            "default"
        };
        self.run_in(namespace).await
    }
}

fn pod() -> Value {
    json!({"metadata": {"name": "x"}, "spec": {"containers": [{"name": "a"}, {"name": "b"}], "initContainers": [{"name": "i"}]}})
}

#[tokio::test]
async fn a_missing_namespace_is_not_found() {
    let status = Try::new(Operation::Create, "", "configmaps", json!({}))
        .run_in("nowhere")
        .await
        .unwrap_err();
    assert_eq!(
        (status.code, status.message.as_str()),
        (404, "namespaces \"nowhere\" not found")
    );
}

#[tokio::test]
async fn a_terminating_namespace_takes_updates_but_no_creates() {
    let gone = json!({"metadata": {"name": "gone", "deletionTimestamp": "2026-01-01T00:00:00Z"}, "status": {"phase": "Terminating"}});
    let attempt = |operation| {
        Try::new(operation, "", "configmaps", json!({})).with("", "namespaces", gone.clone())
    };
    let status = attempt(Operation::Create).run_in("gone").await.unwrap_err();
    assert_eq!(
        status.message,
        "configmaps \"x\" is forbidden: unable to create new content in namespace gone because it is being terminated"
    );
    assert_eq!(
        status.details.unwrap().causes[0].reason,
        "NamespaceTerminating"
    );
    attempt(Operation::Update).run_in("gone").await.unwrap();
}

#[tokio::test]
async fn system_namespaces_are_not_deleted() {
    let delete = |name| Try {
        name,
        ..Try::new(Operation::Delete, "", "namespaces", Value::Null)
    };
    let status = delete("kube-system").run().await.unwrap_err();
    assert_eq!(
        status.message,
        "namespaces \"kube-system\" is forbidden: this namespace may not be deleted"
    );
    delete("mine").run().await.unwrap();
}

#[tokio::test]
async fn a_pod_gets_its_account_token_and_tolerations() {
    let made = Try::new(Operation::Create, "", "pods", pod())
        .run()
        .await
        .unwrap();
    let spec = &made["spec"];
    assert_eq!(spec["serviceAccountName"], "default");
    assert_eq!(spec["serviceAccount"], "default");
    let volume = &spec["volumes"][0];
    assert!(
        volume["name"]
            .as_str()
            .unwrap()
            .starts_with("kube-api-access-")
    );
    assert_eq!(
        volume["projected"]["sources"][0]["serviceAccountToken"]["expirationSeconds"],
        3607
    );
    for container in ["/containers/0", "/containers/1", "/initContainers/0"] {
        let mount = &spec.pointer(container).unwrap()["volumeMounts"][0];
        assert_eq!(mount["mountPath"], service_account::MOUNT_PATH);
        assert_eq!(mount["name"], volume["name"]);
    }
    let keys: Vec<&str> = spec["tolerations"]
        .as_array()
        .unwrap()
        .iter()
        .map(|t| t["key"].as_str().unwrap())
        .collect();
    assert_eq!(
        keys,
        [
            "node.kubernetes.io/not-ready",
            "node.kubernetes.io/unreachable"
        ]
    );
    assert_eq!(spec["tolerations"][0]["tolerationSeconds"], 300);
    assert_eq!(
        (&spec["priority"], &spec["preemptionPolicy"]),
        (&json!(0), &json!("PreemptLowerPriority"))
    );
}

#[tokio::test]
async fn automounting_can_be_switched_off_by_account_or_pod() {
    let quiet = json!({"metadata": {"namespace": "default", "name": "q"}, "automountServiceAccountToken": false,
                       "imagePullSecrets": [{"name": "registry"}]});
    let mut object = pod();
    object["spec"]["serviceAccountName"] = "q".into();
    let attempt = |object: &Value| {
        Try::new(Operation::Create, "", "pods", object.clone()).with(
            "",
            "serviceaccounts",
            quiet.clone(),
        )
    };
    let made = attempt(&object).run().await.unwrap();
    assert_eq!(made["spec"]["volumes"], Value::Null);
    assert_eq!(
        made["spec"]["imagePullSecrets"],
        json!([{"name": "registry"}])
    );
    object["spec"]["automountServiceAccountToken"] = true.into();
    assert!(attempt(&object).run().await.unwrap()["spec"]["volumes"].is_array());
}

#[tokio::test]
async fn a_container_that_mounts_something_there_is_left_alone() {
    let mut object = pod();
    object["spec"]["initContainers"] = Value::Null;
    let own = json!([{"name": "own", "mountPath": service_account::MOUNT_PATH}]);
    for i in 0..2 {
        object["spec"]["containers"][i]["volumeMounts"] = own.clone();
    }
    let made = Try::new(Operation::Create, "", "pods", object)
        .run()
        .await
        .unwrap();
    assert_eq!(made["spec"]["volumes"], Value::Null);
    assert_eq!(made["spec"]["containers"][0]["volumeMounts"], own);
}

#[tokio::test]
async fn a_missing_account_is_refused_in_known_words() {
    let mut object = pod();
    object["spec"]["serviceAccountName"] = "foo".into();
    let status = Try::new(Operation::Create, "", "pods", object)
        .run()
        .await
        .unwrap_err();
    assert_eq!(
        status.message,
        "pods \"x\" is forbidden: error looking up service account default/foo: serviceaccount \"foo\" not found"
    );
}

#[tokio::test]
async fn priority_comes_from_the_class() {
    let mut object = pod();
    object["spec"]["priorityClassName"] = "system-node-critical".into();
    let made = Try::new(Operation::Create, "", "pods", object.clone())
        .run()
        .await
        .unwrap();
    assert_eq!(made["spec"]["priority"], 2_000_001_000);
    object["spec"]["priorityClassName"] = "foo".into();
    let status = Try::new(Operation::Create, "", "pods", object)
        .run()
        .await
        .unwrap_err();
    assert_eq!(
        status.message,
        "pods \"x\" is forbidden: no PriorityClass with name foo was found"
    );

    let default = json!({"metadata": {"name": "mine"}, "value": 7, "globalDefault": true, "preemptionPolicy": "Never"});
    let made = Try::new(Operation::Create, "", "pods", pod())
        .with("scheduling.k8s.io", "priorityclasses", default.clone())
        .run()
        .await
        .unwrap();
    assert_eq!(
        (
            &made["spec"]["priorityClassName"],
            &made["spec"]["preemptionPolicy"]
        ),
        (&json!("mine"), &json!("Never"))
    );
    let mut wrong = pod();
    wrong["spec"]["priority"] = 9.into();
    let status = Try::new(Operation::Create, "", "pods", wrong)
        .run()
        .await
        .unwrap_err();
    assert!(
        status.message.contains(
            "(9) must not be provided in pod spec; priority admission controller computed 0"
        ),
        "{status}"
    );
    let second = json!({"metadata": {"name": "x"}, "value": 1, "globalDefault": true});
    let status = Try::new(
        Operation::Create,
        "scheduling.k8s.io",
        "priorityclasses",
        second,
    )
    .with("scheduling.k8s.io", "priorityclasses", default)
    .run()
    .await
    .unwrap_err();
    assert!(
        status
            .message
            .contains("PriorityClass mine is already marked as default"),
        "{status}"
    );
}

#[tokio::test]
async fn a_wildcard_toleration_is_enough() {
    let mut object = pod();
    object["spec"]["tolerations"] = json!([{"operator": "Exists"}]);
    let made = Try::new(Operation::Create, "", "pods", object)
        .run()
        .await
        .unwrap();
    assert_eq!(made["spec"]["tolerations"].as_array().unwrap().len(), 1);
}

#[tokio::test]
async fn a_new_node_starts_tainted() {
    let made = Try::new(
        Operation::Create,
        "",
        "nodes",
        json!({"metadata": {"name": "x"}}),
    )
    .run()
    .await
    .unwrap();
    assert_eq!(
        made["spec"]["taints"],
        json!([{"key": "node.kubernetes.io/not-ready", "effect": "NoSchedule"}])
    );
}

#[tokio::test]
async fn a_node_writes_itself_and_its_pods_only() {
    let node = |labels: Value| json!({"metadata": {"name": "a1", "labels": labels}});
    let update = |name, labels: Value| Try {
        name,
        old: Some(node(json!({}))),
        ..Try::new(Operation::Update, "", "nodes", node(labels)).node("a1")
    };
    update("a1", json!({"kubernetes.io/os": "linux", "mine": "1"}))
        .run()
        .await
        .unwrap();
    let text = |r: Result<Value, Status>| r.unwrap_err().message;
    assert_eq!(
        text(update("a2", json!({})).run().await),
        "nodes \"a2\" is forbidden: node \"a1\" is not allowed to modify node \"a2\""
    );
    assert_eq!(
        text(
            update("a1", json!({"node-role.kubernetes.io/control-plane": ""}))
                .run()
                .await
        ),
        "nodes \"a1\" is forbidden: is not allowed to modify labels: node-role.kubernetes.io/control-plane"
    );
    let status = |node: &str| Try {
        subresource: "status",
        old: Some(json!({"spec": {"nodeName": node}})),
        ..Try::new(Operation::Update, "", "pods", pod()).node("a1")
    };
    status("a1").run().await.unwrap();
    assert!(
        text(status("a2").run().await)
            .contains("can only update pod status for pods with spec.nodeName set to itself")
    );
    let lease = |name: &str| {
        Try::new(
            Operation::Create,
            "coordination.k8s.io",
            "leases",
            json!({"metadata": {"name": name}}),
        )
        .node("a1")
    };
    lease("a1").run_in("kube-node-lease").await.unwrap();
    lease("a2").run_in("kube-node-lease").await.unwrap_err();
    lease("a1").run().await.unwrap_err();
}
