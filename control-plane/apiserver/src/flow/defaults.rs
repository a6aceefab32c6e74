//! The FlowSchemas and PriorityLevelConfigurations that every cluster starts with: those that must be (`exempt`
//! and `catch-all`) and those that upstream suggests. The values are apiserver's `apis/flowcontrol/bootstrap`.

use serde_json::{Value, json};

const VERSION: &str = "flowcontrol.apiserver.k8s.io/v1";
const GROUPS: [&str; 2] = ["system:unauthenticated", "system:authenticated"];

fn object(kind: &str, name: &str, spec: Value) -> Value {
    json!({"apiVersion": VERSION, "kind": kind,
        "metadata": {"name": name, "annotations": {"apf.kubernetes.io/autoupdate-spec": "true"}},
        "spec": spec})
}

fn queued(name: &str, shares: u32, lendable: u32, queues: u32, hand: u32) -> Value {
    let response = json!({"type": "Queue",
        "queuing": {"queues": queues, "handSize": hand, "queueLengthLimit": 50}});
    let limited = json!({"nominalConcurrencyShares": shares, "lendablePercent": lendable,
        "limitResponse": response});
    object(
        "PriorityLevelConfiguration",
        name,
        json!({"type": "Limited", "limited": limited}),
    )
}

/// All PriorityLevelConfigurations.
pub(super) fn levels() -> Vec<Value> {
    let exempt = json!({"type": "Exempt",
        "exempt": {"nominalConcurrencyShares": 0, "lendablePercent": 0}});
    let catch_all = json!({"type": "Limited", "limited": {"nominalConcurrencyShares": 5,
        "lendablePercent": 0, "limitResponse": {"type": "Reject"}}});
    vec![
        object("PriorityLevelConfiguration", "exempt", exempt),
        object("PriorityLevelConfiguration", "catch-all", catch_all),
        queued("system", 30, 33, 64, 6),
        queued("node-high", 40, 25, 64, 6),
        queued("leader-election", 10, 0, 16, 4),
        queued("workload-high", 40, 50, 128, 6),
        queued("workload-low", 100, 90, 128, 6),
        queued("global-default", 20, 50, 128, 6),
    ]
}

fn users(names: &[&str]) -> Vec<Value> {
    names
        .iter()
        .map(|name| json!({"kind": "User", "user": {"name": name}}))
        .collect()
}

fn groups(names: &[&str]) -> Vec<Value> {
    names
        .iter()
        .map(|name| json!({"kind": "Group", "group": {"name": name}}))
        .collect()
}

fn accounts(names: &[&str]) -> Vec<Value> {
    names
        .iter()
        .map(|name| {
            json!({"kind": "ServiceAccount",
                "serviceAccount": {"namespace": "kube-system", "name": name}})
        })
        .collect()
}

fn on(verbs: &[&str], group: &str, resources: &[&str], cluster: bool) -> Value {
    json!({"verbs": verbs, "apiGroups": [group], "resources": resources, "clusterScope": cluster,
        "namespaces": ["*"]})
}

fn everything() -> (Vec<Value>, Vec<Value>) {
    let paths = json!({"verbs": ["*"], "nonResourceURLs": ["*"]});
    (vec![on(&["*"], "*", &["*"], true)], vec![paths])
}

fn schema(
    (name, level, precedence): (&str, &str, u32),
    by: Option<&str>,
    subjects: Vec<Value>,
    (resources, paths): (Vec<Value>, Vec<Value>),
) -> Value {
    let mut rule = json!({"subjects": subjects});
    if !resources.is_empty() {
        rule["resourceRules"] = resources.into();
    }
    if !paths.is_empty() {
        rule["nonResourceRules"] = paths.into();
    }
    let mut spec = json!({"matchingPrecedence": precedence,
        "priorityLevelConfiguration": {"name": level}, "rules": [rule]});
    if let Some(by) = by {
        spec["distinguisherMethod"] = json!({"type": by});
    }
    object("FlowSchema", name, spec)
}

/// All FlowSchemas.
pub(super) fn schemas() -> Vec<Value> {
    const USER: Option<&str> = Some("ByUser");
    const NAMESPACE: Option<&str> = Some("ByNamespace");
    const MANAGER: &str = "system:kube-controller-manager";
    const SCHEDULER: &str = "system:kube-scheduler";
    let use_leases = || {
        let lease = on(
            &["get", "create", "update"],
            "coordination.k8s.io",
            &["leases"],
            false,
        );
        (vec![lease], vec![])
    };
    let endpoints = on(&["get", "create", "update"], "", &["endpoints"], false);
    let heartbeats = vec![
        on(&["*"], "", &["nodes", "nodes/status"], true),
        on(&["*"], "coordination.k8s.io", &["leases"], false),
    ];
    let probes = json!({"verbs": ["get"], "nonResourceURLs": ["/healthz", "/readyz", "/livez"]});
    let both = |names: &[&str], of: &[&str]| [users(names), accounts(of)].concat();
    vec![
        schema(
            ("exempt", "exempt", 1),
            None,
            groups(&["system:masters"]),
            everything(),
        ),
        schema(
            ("probes", "exempt", 2),
            None,
            groups(&GROUPS),
            (vec![], vec![probes]),
        ),
        schema(
            ("system-leader-election", "leader-election", 100),
            USER,
            both(&[MANAGER, SCHEDULER], &["*"]),
            use_leases(),
        ),
        schema(
            ("endpoint-controller", "workload-high", 150),
            USER,
            both(
                &[MANAGER],
                &["endpoint-controller", "endpointslicemirroring-controller"],
            ),
            (vec![endpoints], vec![]),
        ),
        schema(
            ("workload-leader-election", "leader-election", 200),
            USER,
            accounts(&["*"]),
            use_leases(),
        ),
        schema(
            ("system-node-high", "node-high", 400),
            USER,
            groups(&["system:nodes"]),
            (heartbeats, vec![]),
        ),
        schema(
            ("system-nodes", "system", 500),
            USER,
            groups(&["system:nodes"]),
            everything(),
        ),
        schema(
            ("kube-controller-manager", "workload-high", 800),
            NAMESPACE,
            users(&[MANAGER]),
            everything(),
        ),
        schema(
            ("kube-scheduler", "workload-high", 800),
            NAMESPACE,
            users(&[SCHEDULER]),
            everything(),
        ),
        schema(
            ("kube-system-service-accounts", "workload-high", 900),
            NAMESPACE,
            accounts(&["*"]),
            everything(),
        ),
        schema(
            ("service-accounts", "workload-low", 9000),
            USER,
            groups(&["system:serviceaccounts"]),
            everything(),
        ),
        schema(
            ("global-default", "global-default", 9900),
            USER,
            groups(&GROUPS),
            everything(),
        ),
        schema(
            ("catch-all", "catch-all", 10_000),
            USER,
            groups(&GROUPS),
            everything(),
        ),
    ]
}
