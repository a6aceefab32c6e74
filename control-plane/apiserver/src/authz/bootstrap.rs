//! The roles and bindings every cluster has, as data, and how they are kept.
//!
//! Names, rules and groups are those that users of Kubernetes v1.35 know. Controllers and scheduler run as
//! one user each here (not one per controller), so one role each covers them.

use serde_json::{Map, Value, json};

use super::rbac::GROUP;
use super::rules::{Rule, uncovered};

const READ: &str = "get,list,watch";
const WRITE: &str = "create,delete,deletecollection,patch,update";
const ALL: &str = "create,delete,deletecollection,get,list,patch,update,watch";
const AUTOUPDATE: &str = "rbac.authorization.kubernetes.io/autoupdate";
const HEALTH: &str = "/healthz,/livez,/readyz,/version,/version/";

fn words(list: &str) -> Vec<String> {
    list.split(',').map(str::to_owned).collect()
}

/// A rule about resources; each argument is a comma-separated list.
fn on(verbs: &str, groups: &str, resources: &str) -> Rule {
    Rule {
        verbs: words(verbs),
        groups: words(groups),
        resources: words(resources),
        ..Rule::default()
    }
}

/// A rule about paths.
fn path(urls: &str) -> Rule {
    Rule {
        verbs: words("get"),
        urls: words(urls),
        ..Rule::default()
    }
}

fn metadata(name: &str, labels: &[&str]) -> Value {
    let mut map = Map::new();
    map.insert("kubernetes.io/bootstrapping".into(), "rbac-defaults".into());
    for aggregate in labels {
        map.insert(
            format!("rbac.authorization.k8s.io/aggregate-to-{aggregate}"),
            "true".into(),
        );
    }
    json!({"name": name, "labels": map, "annotations": {AUTOUPDATE: "true"}})
}

fn role(name: &str, labels: &[&str], rules: &[Rule]) -> Value {
    json!({
        "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole",
        "metadata": metadata(name, labels),
        "rules": rules.iter().map(Rule::to_json).collect::<Vec<_>>(),
    })
}

/// A role whose rules are those of all roles labelled `aggregate-to-NAME`. They are also written out, so
/// that `kubectl describe` shows them.
fn aggregated(name: &str, labels: &[&str], rules: &[Rule]) -> Value {
    let mut object = role(name, labels, rules);
    let label = format!("rbac.authorization.k8s.io/aggregate-to-{name}");
    object["aggregationRule"] = json!({"clusterRoleSelectors": [{"matchLabels": {label: "true"}}]});
    object
}

fn binding(name: &str, role: &str, subjects: &[(&str, &str)]) -> Value {
    let subjects: Vec<Value> = subjects
        .iter()
        .map(|(kind, name)| json!({"kind": kind, "name": name, "apiGroup": GROUP}))
        .collect();
    json!({
        "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding",
        "metadata": metadata(name, &[]),
        "roleRef": {"apiGroup": GROUP, "kind": "ClusterRole", "name": role},
        "subjects": subjects,
    })
}

fn view_rules() -> Vec<Rule> {
    vec![
        on(
            READ,
            "",
            "configmaps,endpoints,persistentvolumeclaims,persistentvolumeclaims/status,pods,\
             replicationcontrollers,replicationcontrollers/scale,serviceaccounts,services,services/status",
        ),
        on(
            READ,
            "",
            "bindings,events,limitranges,namespaces/status,pods/log,pods/status,\
             replicationcontrollers/status,resourcequotas,resourcequotas/status",
        ),
        on(READ, "", "namespaces"),
        on(READ, "discovery.k8s.io", "endpointslices"),
        on(
            READ,
            "apps",
            "controllerrevisions,daemonsets,daemonsets/status,deployments,deployments/scale,deployments/status,\
             replicasets,replicasets/scale,replicasets/status,statefulsets,statefulsets/scale,statefulsets/status",
        ),
        on(
            READ,
            "autoscaling",
            "horizontalpodautoscalers,horizontalpodautoscalers/status",
        ),
        on(READ, "batch", "cronjobs,cronjobs/status,jobs,jobs/status"),
        on(
            READ,
            "policy",
            "poddisruptionbudgets,poddisruptionbudgets/status",
        ),
        on(
            READ,
            "networking.k8s.io",
            "ingresses,ingresses/status,networkpolicies",
        ),
    ]
}

fn edit_rules() -> Vec<Rule> {
    vec![
        on(
            READ,
            "",
            "pods/attach,pods/exec,pods/portforward,pods/proxy,secrets,services/proxy",
        ),
        on("impersonate", "", "serviceaccounts"),
        on(
            WRITE,
            "",
            "pods,pods/attach,pods/exec,pods/portforward,pods/proxy",
        ),
        on("create", "", "pods/eviction"),
        on(
            WRITE,
            "",
            "configmaps,events,persistentvolumeclaims,replicationcontrollers,replicationcontrollers/scale,\
             secrets,serviceaccounts,services,services/proxy",
        ),
        on("create", "", "serviceaccounts/token"),
        on(
            WRITE,
            "apps",
            "daemonsets,deployments,deployments/rollback,deployments/scale,replicasets,replicasets/scale,\
             statefulsets,statefulsets/scale",
        ),
        on(WRITE, "autoscaling", "horizontalpodautoscalers"),
        on(WRITE, "batch", "cronjobs,jobs"),
        on(WRITE, "policy", "poddisruptionbudgets"),
        on(WRITE, "networking.k8s.io", "ingresses,networkpolicies"),
        on(ALL, "coordination.k8s.io", "leases"),
    ]
}

fn admin_rules() -> Vec<Rule> {
    vec![
        on(
            "create",
            "authorization.k8s.io",
            "localsubjectaccessreviews",
        ),
        on(ALL, GROUP, "rolebindings,roles"),
    ]
}

/// What every node agent may do beside what depends on its own pods. The agent is also the node's Service
/// proxy, DNS server and network policy engine.
pub(super) fn node_rules() -> Vec<Rule> {
    vec![
        on("create", "authentication.k8s.io", "tokenreviews"),
        on(
            "create",
            "authorization.k8s.io",
            "localsubjectaccessreviews,subjectaccessreviews",
        ),
        on(READ, "", "services,endpoints,namespaces"),
        on(READ, "discovery.k8s.io", "endpointslices"),
        on(READ, "networking.k8s.io", "networkpolicies"),
        on("create,get,list,patch,update,watch", "", "nodes"),
        on("patch,update", "", "nodes/status"),
        on("create,patch,update", ",events.k8s.io", "events"),
        on(READ, "", "pods"),
        on("create,delete", "", "pods"),
        on("patch,update", "", "pods/status"),
        on("create", "", "pods/eviction"),
        on(
            "create,get,list,watch",
            "certificates.k8s.io",
            "certificatesigningrequests",
        ),
        on(READ, "node.k8s.io", "runtimeclasses"),
        on(READ, "storage.k8s.io", "csidrivers,volumeattachments"),
        on("create,get,patch,update", "storage.k8s.io", "csinodes"),
    ]
}

fn scheduler_rules() -> Vec<Rule> {
    vec![
        on("create,patch,update", ",events.k8s.io", "events"),
        on(
            "create,get,list,patch,update,watch",
            "coordination.k8s.io",
            "leases",
        ),
        on("delete,get,list,patch,update,watch", "", "pods"),
        on("create", "", "bindings,pods/binding"),
        on("patch,update", "", "pods/status"),
        on(READ, "", "namespaces,nodes,replicationcontrollers,services"),
        on(READ, "apps", "replicasets,statefulsets"),
        on(READ, "policy", "poddisruptionbudgets"),
        on(
            "get,list,patch,update,watch",
            "",
            "persistentvolumeclaims,persistentvolumes",
        ),
        on(
            READ,
            "storage.k8s.io",
            "csidrivers,csinodes,csistoragecapacities,storageclasses,volumeattachments",
        ),
        on(READ, "scheduling.k8s.io", "priorityclasses"),
        on(READ, "resource.k8s.io", "deviceclasses,resourceslices"),
        on(
            "get,list,patch,update,watch",
            "resource.k8s.io",
            "resourceclaims,resourceclaims/status",
        ),
        on("create", "authentication.k8s.io", "tokenreviews"),
        on("create", "authorization.k8s.io", "subjectaccessreviews"),
    ]
}

fn controller_rules() -> Vec<Rule> {
    vec![
        on("approve,sign", "certificates.k8s.io", "signers"),
        // Aggregation writes roles with more rights than this user has.
        on("escalate", "rbac.authorization.k8s.io", "clusterroles"),
        // Garbage collection and namespace deletion meet objects of every kind.
        on(
            "delete,deletecollection,get,list,patch,update,watch",
            "*",
            "*",
        ),
        on(
            "create",
            "",
            "configmaps,endpoints,events,namespaces,nodes,persistentvolumeclaims,persistentvolumes,pods,\
             pods/eviction,secrets,serviceaccounts,serviceaccounts/token",
        ),
        on("create", "events.k8s.io", "events"),
        on("create", "apps", "controllerrevisions,replicasets"),
        on("create", "batch", "jobs"),
        on("create", "discovery.k8s.io", "endpointslices"),
        on("create", "coordination.k8s.io", "leases"),
        // A new cluster starts with a class for folders on nodes.
        on("create", "storage.k8s.io", "storageclasses"),
        on("create", "storage.k8s.io", "volumeattachments"),
        on("create", "authentication.k8s.io", "tokenreviews"),
        on("create", "authorization.k8s.io", "subjectaccessreviews"),
        path("*"),
    ]
}

/// All of them, roles before bindings. The leader ensures them at start, see [`reconcile`].
#[must_use]
pub fn bootstrap_objects() -> Vec<Value> {
    let mut objects = roles();
    objects.extend(certificate_roles());
    objects.extend(bindings());
    objects.extend(namespaced());
    objects
}

fn roles() -> Vec<Value> {
    let (view, edit, admin) = (view_rules(), edit_rules(), admin_rules());
    let metrics = on(READ, "metrics.k8s.io", "nodes,pods");
    let edit_all = [edit.clone(), view.clone()].concat();
    let admin_all = [admin.clone(), edit_all.clone()].concat();
    let everything = [
        on("*", "*", "*"),
        Rule {
            verbs: words("*"),
            urls: words("*"),
            ..Rule::default()
        },
    ];
    let paths = format!("{HEALTH},/api,/api/*,/apis,/apis/*,/openapi,/openapi/*");
    vec![
        role("cluster-admin", &[], &everything),
        role("system:discovery", &[], &[path(&paths)]),
        role("system:public-info-viewer", &[], &[path(HEALTH)]),
        role(
            "system:monitoring",
            &[],
            &[path(
                "/healthz,/healthz/*,/livez,/livez/*,/metrics,/metrics/slis,/readyz,/readyz/*",
            )],
        ),
        role(
            "system:basic-user",
            &[],
            &[
                on(
                    "create",
                    "authorization.k8s.io",
                    "selfsubjectaccessreviews,selfsubjectrulesreviews",
                ),
                on("create", "authentication.k8s.io", "selfsubjectreviews"),
            ],
        ),
        role(
            "system:service-account-issuer-discovery",
            &[],
            &[path(
                "/.well-known/openid-configuration,/.well-known/openid-configuration/,\
                 /openid/v1/jwks,/openid/v1/jwks/",
            )],
        ),
        role("system:aggregate-to-view", &["view"], &view),
        role("system:aggregate-to-edit", &["edit"], &edit),
        role("system:aggregate-to-admin", &["admin"], &admin),
        role(
            "system:aggregated-metrics-reader",
            &["view", "edit", "admin"],
            &[metrics],
        ),
        aggregated("view", &["edit"], &view),
        aggregated("edit", &["admin"], &edit_all),
        aggregated("admin", &[], &admin_all),
        role(
            "system:auth-delegator",
            &[],
            &[
                on("create", "authentication.k8s.io", "tokenreviews"),
                on("create", "authorization.k8s.io", "subjectaccessreviews"),
            ],
        ),
        role(
            "system:node-proxier",
            &[],
            &[
                on("list,watch", "", "services,endpoints"),
                on(READ, "", "nodes"),
                on("create,patch,update", ",events.k8s.io", "events"),
                on("list,watch", "discovery.k8s.io", "endpointslices"),
            ],
        ),
        role(
            "system:node-bootstrapper",
            &[],
            &[on(
                "create,get,list,watch",
                "certificates.k8s.io",
                "certificatesigningrequests",
            )],
        ),
        role("system:node", &[], &node_rules()),
        role(
            "system:kubelet-api-admin",
            &[],
            &[
                on(READ, "", "nodes"),
                on("proxy", "", "nodes"),
                on(
                    "*",
                    "",
                    "nodes/configz,nodes/healthz,nodes/log,nodes/metrics,nodes/pods,nodes/proxy,nodes/stats",
                ),
            ],
        ),
        role(
            "system:node-problem-detector",
            &[],
            &[
                on("get", "", "nodes"),
                on("patch", "", "nodes/status"),
                on("create,patch,update", ",events.k8s.io", "events"),
            ],
        ),
        role(
            "system:kube-dns",
            &[],
            &[on("list,watch", "", "endpoints,services")],
        ),
        role(
            "system:kube-aggregator",
            &[],
            &[on(READ, "", "endpoints,services")],
        ),
        role(
            "system:heapster",
            &[],
            &[
                on(READ, "", "events,namespaces,nodes,pods"),
                on(READ, "extensions", "deployments"),
            ],
        ),
        role(
            "system:persistent-volume-provisioner",
            &[],
            &[
                on("create,delete,get,list,watch", "", "persistentvolumes"),
                on("get,list,update,watch", "", "persistentvolumeclaims"),
                on(READ, "storage.k8s.io", "storageclasses"),
                on("watch", "", "events"),
                on("create,patch,update", ",events.k8s.io", "events"),
            ],
        ),
        role(
            "system:volume-scheduler",
            &[],
            &[
                on("get,list,patch,update,watch", "", "persistentvolumes"),
                on(READ, "storage.k8s.io", "storageclasses"),
                on("get,list,patch,update,watch", "", "persistentvolumeclaims"),
            ],
        ),
        role("system:kube-scheduler", &[], &scheduler_rules()),
        role("system:kube-controller-manager", &[], &controller_rules()),
    ]
}

/// A rule about objects with these names.
fn on_named(verbs: &str, groups: &str, resources: &str, names: &str) -> Rule {
    Rule {
        names: words(names),
        ..on(verbs, groups, resources)
    }
}

/// Who may have client and serving certificates, and who may approve and sign requests for them.
fn certificate_roles() -> Vec<Value> {
    const GROUP: &str = "certificates.k8s.io";
    let own = |name: &str, part: &str| {
        let resource = format!("certificatesigningrequests/{part}");
        role(
            &format!("system:certificates.k8s.io:certificatesigningrequests:{name}"),
            &[],
            &[on("create", GROUP, &resource)],
        )
    };
    let mut all = vec![
        own("nodeclient", "nodeclient"),
        own("selfnodeclient", "selfnodeclient"),
    ];
    for (name, signer) in [
        (
            "kube-apiserver-client-approver",
            "kubernetes.io/kube-apiserver-client",
        ),
        (
            "kube-apiserver-client-kubelet-approver",
            "kubernetes.io/kube-apiserver-client-kubelet",
        ),
        ("kubelet-serving-approver", "kubernetes.io/kubelet-serving"),
        ("legacy-unknown-approver", "kubernetes.io/legacy-unknown"),
    ] {
        all.push(role(
            &format!("system:certificates.k8s.io:{name}"),
            &[],
            &[on_named("approve", GROUP, "signers", signer)],
        ));
    }
    all
}

/// Roles in one namespace, with their bindings.
fn namespaced() -> Vec<Value> {
    const READER: &str = "extension-apiserver-authentication-reader";
    const NAMESPACE: &str = "kube-system";
    let mut reader = role(
        READER,
        &[],
        &[on_named(
            READ,
            "",
            "configmaps",
            "extension-apiserver-authentication",
        )],
    );
    reader["kind"] = "Role".into();
    let users = [
        ("User", "system:kube-controller-manager"),
        ("User", "system:kube-scheduler"),
    ];
    let mut bound = binding(&format!("system::{READER}"), READER, &users);
    bound["kind"] = "RoleBinding".into();
    bound["roleRef"]["kind"] = "Role".into();
    for object in [&mut reader, &mut bound] {
        object["metadata"]["namespace"] = NAMESPACE.into();
    }
    vec![reader, bound]
}

fn bindings() -> Vec<Value> {
    let everyone = [
        ("Group", "system:authenticated"),
        ("Group", "system:unauthenticated"),
    ];
    let known = [("Group", "system:authenticated")];
    let user = |name| [("User", name)];
    let issuer = "system:service-account-issuer-discovery";
    vec![
        binding(
            "cluster-admin",
            "cluster-admin",
            &[("Group", "system:masters")],
        ),
        binding("system:discovery", "system:discovery", &known),
        binding("system:basic-user", "system:basic-user", &known),
        binding(
            "system:public-info-viewer",
            "system:public-info-viewer",
            &everyone,
        ),
        binding(
            "system:monitoring",
            "system:monitoring",
            &[("Group", "system:monitoring")],
        ),
        binding(issuer, issuer, &[("Group", "system:serviceaccounts")]),
        binding(
            "system:node-proxier",
            "system:node-proxier",
            &user("system:kube-proxy"),
        ),
        // Without subjects: node agents are allowed by the node authorizer.
        binding("system:node", "system:node", &[]),
        binding(
            "system:kube-scheduler",
            "system:kube-scheduler",
            &user("system:kube-scheduler"),
        ),
        binding(
            "system:kube-controller-manager",
            "system:kube-controller-manager",
            &user("system:kube-controller-manager"),
        ),
    ]
}

/// What to do for one of [`bootstrap_objects`].
#[derive(Debug, Clone, PartialEq)]
pub enum Ensure {
    /// It is as it should be, or its owner has opted out.
    Nothing,
    /// It is missing.
    Create(Value),
    /// Write this over the existing object.
    Update(Value),
}

/// Compares an object with what it should be. Only adds (rules, subjects, labels): what an administrator
/// added stays. An annotation `autoupdate: "false"` on the existing object leaves it alone.
#[must_use]
pub fn reconcile(existing: Option<&Value>, wanted: &Value) -> Ensure {
    let Some(existing) = existing else {
        return Ensure::Create(wanted.clone());
    };
    if existing["metadata"]["annotations"][AUTOUPDATE] != "true" {
        return Ensure::Nothing;
    }
    let mut object = existing.clone();
    if let Some(labels) = wanted["metadata"]["labels"].as_object() {
        for (key, value) in labels {
            object["metadata"]["labels"][key] = value.clone();
        }
    }
    let is_role = wanted["kind"] == "ClusterRole" || wanted["kind"] == "Role";
    let missing: Vec<Value> = if is_role {
        // The rules of an aggregated role are the union of others', which are reconciled themselves.
        if wanted["aggregationRule"].is_null() {
            uncovered(&Rule::all_of(existing), &Rule::all_of(wanted))
                .iter()
                .map(Rule::to_json)
                .collect()
        } else {
            Vec::new()
        }
    } else {
        let has = |s: &Value| {
            existing["subjects"]
                .as_array()
                .is_some_and(|all| all.contains(s))
        };
        wanted["subjects"]
            .as_array()
            .into_iter()
            .flatten()
            .filter(|s| !has(s))
            .cloned()
            .collect()
    };
    let field = if is_role { "rules" } else { "subjects" };
    if !missing.is_empty() {
        let mut all = existing[field].as_array().cloned().unwrap_or_default();
        all.extend(missing);
        object[field] = Value::Array(all);
    }
    if object == *existing {
        Ensure::Nothing
    } else {
        Ensure::Update(object)
    }
}
