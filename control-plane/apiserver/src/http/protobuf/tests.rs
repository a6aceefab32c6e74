#![allow(clippy::unwrap_used)]
use serde_json::json;

use super::*;

/// Writes messages for the tests: `(number, value)` in order.
enum Part {
    N(u64),
    S(&'static str),
    M(Vec<(u32, Part)>),
}
use Part::{M, N, S};

fn number(out: &mut Vec<u8>, mut n: u64) {
    while n >= 0x80 {
        out.push((n & 0x7f) as u8 | 0x80);
        n >>= 7;
    }
    out.push(n as u8);
}

fn encode(parts: &[(u32, Part)]) -> Vec<u8> {
    let mut out = Vec::new();
    for (field, part) in parts {
        let (wire, bytes) = match part {
            N(n) => {
                number(&mut out, u64::from(*field) << 3);
                number(&mut out, *n);
                continue;
            }
            S(text) => (2, text.as_bytes().to_vec()),
            M(parts) => (2, encode(parts)),
        };
        number(&mut out, u64::from(*field) << 3 | wire);
        number(&mut out, bytes.len() as u64);
        out.extend(bytes);
    }
    out
}

fn body(api_version: &'static str, kind: &'static str, raw: Vec<(u32, Part)>) -> Vec<u8> {
    let envelope = [
        (1, M(vec![(1, S(api_version)), (2, S(kind))])),
        (2, M(raw)),
        (3, S("")),
        (4, S("")),
    ];
    [MAGIC.to_vec(), encode(&envelope)].concat()
}

fn read_ok(body: &[u8]) -> Value {
    parse(body).unwrap().value
}

#[test]
fn every_message_of_the_table_is_one_that_the_schema_knows_or_inlines() {
    let inlined: Vec<&str> = MESSAGES
        .values()
        .flat_map(HashMap::values)
        .filter_map(|e| e.inline.as_deref())
        .collect();
    for name in [
        "io.k8s.api.core.v1.Pod",
        "io.k8s.api.core.v1.PodSpec",
        DELETE_OPTIONS,
    ] {
        assert!(MESSAGES.contains_key(name), "{name}");
    }
    for name in inlined {
        assert!(MESSAGES.contains_key(name), "{name}");
    }
}

#[test]
fn fields_of_the_schema_have_numbers() {
    // What came after the table was made; clients of such versions lose these fields.
    let mut missing = Vec::new();
    for name in [
        "io.k8s.api.core.v1.Service",
        "io.k8s.api.core.v1.ConfigMap",
        "io.k8s.api.apps.v1.DeploymentSpec",
        "io.k8s.api.core.v1.Container",
        "io.k8s.api.core.v1.ObjectReference",
        "io.k8s.api.rbac.v1.PolicyRule",
        "io.k8s.api.authorization.v1.SelfSubjectAccessReviewSpec",
        "io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta",
    ] {
        let fields = Schema::builtin()
            .definition(name)
            .unwrap()
            .as_struct()
            .unwrap();
        let known = &MESSAGES[name];
        let lacks =
            |f: &str| !known.values().any(|e| e.name == f) && !matches!(f, "apiVersion" | "kind");
        missing.extend(
            fields
                .fields()
                .map(Field::name)
                .filter(|f| lacks(f))
                .map(|f| format!("{name} {f}")),
        );
    }
    missing.retain(|f| !f.ends_with("restartPolicyRules"));
    assert!(missing.is_empty(), "{missing:?}");
}

#[test]
fn a_namespace_reads_as_its_json() {
    let metadata = vec![
        (1, S("a")),
        (2, S("")),
        (3, S("")),
        (5, S("")),
        (6, S("")),
        (7, N(0)),
        (8, M(vec![])),
        (11, M(vec![(1, S("x")), (2, S("y"))])),
    ];
    let value = read_ok(&body(
        "v1",
        "Namespace",
        vec![(1, M(metadata)), (2, M(vec![])), (3, M(vec![(1, S(""))]))],
    ));
    let want = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "a", "labels": {"x": "y"}},
        "spec": {}, "status": {}});
    assert_eq!(value, want);
}

#[test]
fn zeros_that_were_meant_stay() {
    let spec = vec![(1, N(0)), (5, N(0)), (6, N(0))];
    let value = read_ok(&body("apps/v1", "Deployment", vec![(2, M(spec))]));
    assert_eq!(
        value["spec"],
        json!({"replicas": 0, "revisionHistoryLimit": 0})
    );
}

#[test]
fn inlined_messages_join_their_parent() {
    let volume = vec![(1, S("v")), (2, M(vec![(2, M(vec![(1, S(""))]))]))];
    let port = M(vec![(1, N(1)), (2, N(0)), (3, S("http"))]);
    let probe = M(vec![
        (1, M(vec![(2, M(vec![(1, S("/x")), (2, port)]))])),
        (2, N(u64::MAX)),
    ]);
    let container = vec![(1, S("c")), (10, probe)];
    let value = read_ok(&body(
        "v1",
        "Pod",
        vec![(2, M(vec![(1, M(volume)), (2, M(container))]))],
    ));
    assert_eq!(
        value["spec"]["volumes"],
        json!([{"name": "v", "emptyDir": {}}])
    );
    let probe = &value["spec"]["containers"][0]["livenessProbe"];
    assert_eq!(
        probe,
        &json!({"httpGet": {"path": "/x", "port": "http"}, "initialDelaySeconds": -1})
    );
}

#[test]
fn bytes_quantities_times_and_lists_in_maps_are_read() {
    let secret = read_ok(&body(
        "v1",
        "Secret",
        vec![(2, M(vec![(1, S("k")), (2, S("v"))])), (3, S("Opaque"))],
    ));
    assert_eq!(secret["data"], json!({"k": "dg=="}));
    let limits = M(vec![(1, S("cpu")), (2, M(vec![(1, S("100m"))]))]);
    let container = M(vec![(1, S("c")), (8, M(vec![(1, limits)]))]);
    let pod = read_ok(&body(
        "v1",
        "Pod",
        vec![
            (1, M(vec![(8, M(vec![(1, N(1_767_225_600))]))])),
            (2, M(vec![(2, container)])),
        ],
    ));
    assert_eq!(
        pod["spec"]["containers"][0]["resources"]["limits"]["cpu"],
        "100m"
    );
    assert_eq!(pod["metadata"]["creationTimestamp"], "2026-01-01T00:00:00Z");
    let extra = M(vec![
        (1, S("scopes")),
        (2, M(vec![(1, S("a")), (1, S("b"))])),
    ]);
    let review = body(
        "authorization.k8s.io/v1",
        "SubjectAccessReview",
        vec![(2, M(vec![(3, S("me")), (5, extra)]))],
    );
    assert_eq!(
        read_ok(&review)["spec"],
        json!({"user": "me", "extra": {"scopes": ["a", "b"]}})
    );
}

#[test]
fn rubbish_is_refused_without_a_fuss() {
    assert_eq!(parse(b"{}").unwrap_err().code, 400);
    let whole = body("v1", "Pod", vec![(1, M(vec![(1, S("a"))]))]);
    for end in 0..whole.len() {
        // Cut anywhere: an error or less, never a panic.
        let _ = parse(&whole[..end]);
    }
    assert!(
        parse(&body("v9", "Nothing", vec![]))
            .unwrap_err()
            .message
            .contains("no kind \"Nothing\"")
    );
    assert_eq!(parse(&[MAGIC, &[0xff; 32]].concat()).unwrap_err().code, 400);
}
