#![allow(clippy::unwrap_used)]
use std::collections::HashMap;

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

/// A value with every field of a type set; types within themselves once.
fn filled(type_: Type<'_>, within: &mut Vec<String>) -> Value {
    match type_.shape() {
        Shape::Any if is_empty_message(type_) => json!({}),
        Shape::Any => json!({"f:a": {"b": [1, null, "x"]}}),
        Shape::Boolean => json!(true),
        Shape::Integer { bits: 32 } => json!(-7),
        Shape::Integer { .. } => json!(1_i64 << 40),
        Shape::Number => json!(1.5),
        Shape::Text { base64: false } => json!("tëxt"),
        Shape::Text { base64: true } => json!("AP8="),
        Shape::IntOrString => json!("25%"),
        Shape::Quantity => json!("100m"),
        Shape::Time => json!("2026-01-02T03:04:05Z"),
        Shape::MicroTime => json!("2026-01-02T03:04:05.678901Z"),
        Shape::List(list) => {
            let item = filled(list.item(), within);
            json!([item, item])
        }
        Shape::Map { value, .. } => json!({"k": filled(value, within), "l": filled(value, within)}),
        Shape::SchemaOr(schema, other) => {
            if within.len().is_multiple_of(2) {
                filled(schema, within)
            } else {
                filled(other, within)
            }
        }
        Shape::Struct(fields) => filled_struct(type_, fields, within),
    }
}

fn filled_struct(type_: Type<'_>, fields: Struct<'_>, within: &mut Vec<String>) -> Value {
    let name = type_.definition().unwrap().name().to_owned();
    if within.iter().filter(|n| **n == name).count() >= 2 {
        return json!({});
    }
    let own = |field: &str| MESSAGES[&name].values().any(|e| e.name == field);
    within.push(name.clone());
    let mut out = Map::new();
    for field in fields.fields() {
        // The type of an object within an object has no field.
        if !matches!(field.name(), "apiVersion" | "kind") || own(field.name()) {
            out.insert(field.name().to_owned(), filled(field.type_(), within));
        }
    }
    within.pop();
    Value::Object(out)
}

fn filled_kind(group: &str, version: &str, kind: &str, type_: Type<'_>) -> Value {
    let mut value = filled(type_, &mut Vec::new());
    value["apiVersion"] = balsa_api::object::join_api_version(group, version).into();
    value["kind"] = kind.into();
    value
}

#[test]
fn every_field_of_every_kind_comes_back_as_it_went() {
    for (group, version, kind, type_) in Schema::builtin().kinds() {
        let value = filled_kind(group, version, kind, type_);
        let written = object(value.to_string().as_bytes());
        let written = written.unwrap_or_else(|| panic!("{group} {version} {kind} is not written"));
        let back = parse(&written).unwrap().value;
        if kind == "APIResourceList" || kind.starts_with("APIGroup") || kind == "APIVersions" {
            // Written only; their lists of verbs are messages of their own.
            continue;
        }
        assert!(
            back == value,
            "{group} {version} {kind} came back as {back}"
        );
    }
}

#[test]
fn a_number_or_a_text_is_told_apart() {
    let service = json!({"apiVersion": "v1", "kind": "Service",
        "spec": {"ports": [{"port": 80, "targetPort": 8080}, {"port": 81, "targetPort": "http"}]}});
    let written = object(service.to_string().as_bytes()).unwrap();
    assert_eq!(read_ok(&written), service);
}

#[test]
fn a_watch_frame_is_length_type_and_a_wrapped_object() {
    let map = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "a"}});
    let object = object(map.to_string().as_bytes()).unwrap();
    let frame = watch_frame("ADDED", &object);
    let (length, event) = frame.split_at(4);
    assert_eq!(length, u32::try_from(event.len()).unwrap().to_be_bytes());
    assert_eq!(text_field(event, 1).unwrap(), "ADDED");
    let raw = bytes_field(bytes_field(event, 2).unwrap(), 1).unwrap();
    assert_eq!(read_ok(raw), map);
}

#[test]
fn lists_and_metadata_are_written_from_objects_bytes() {
    let item =
        br#"{"kind":"Pod","apiVersion":"v1","metadata":{"name":"p"},"spec":{"nodeName":"n"}}"#;
    let meta = crate::render::ListMeta {
        revision: 300,
        continue_: Some("more".into()),
        remaining: Some(4),
    };
    let items = || [item.as_slice(), item].into_iter();
    let kinds = balsa_api::kinds::builtin();
    let pod = kinds.iter().find(|k| k.kind == "Pod").unwrap();
    let messages = items().map(|i| message_of(pod, i).unwrap()).collect();
    let list = ListBody::new(pod, &meta, messages);
    let length = http_body::Body::size_hint(&list).exact().unwrap();
    let list = list.whole();
    assert_eq!(list.len() as u64, length);
    let list = read_ok(&list);
    assert_eq!(list["kind"], "PodList");
    assert_eq!(
        list["metadata"],
        json!({"resourceVersion": "300", "continue": "more", "remainingItemCount": 4})
    );
    assert_eq!(
        list["items"][1],
        json!({"metadata": {"name": "p"}, "spec": {"nodeName": "n"}})
    );
    let only = metadata(item).unwrap();
    let raw = bytes_field(&only[MAGIC.len()..], 2).unwrap();
    assert_eq!(text_field(bytes_field(raw, 1).unwrap(), 1).unwrap(), "p");
    let many = metadata_list(&meta, items()).unwrap();
    let raw = bytes_field(&many[MAGIC.len()..], 2).unwrap();
    assert_eq!(Fields(raw).count(), 3);
}

proptest::proptest! {
    #[test]
    fn no_bytes_make_the_reader_panic(bytes: Vec<u8>, kind in 0..3_usize) {
        let kind = ["Pod", "Deployment", "CustomResourceDefinition"][kind];
        let version = ["v1", "apps/v1", "apiextensions.k8s.io/v1"][usize::from(bytes.first().copied().unwrap_or(0)) % 3];
        let mut body = body(version, kind, vec![]);
        // The object's bytes are the envelope's second field, here once more.
        body.push(2 << 3 | 2);
        number(&mut body, bytes.len() as u64);
        body.extend_from_slice(&bytes);
        let _ = parse(&body);
        let _ = parse(&[MAGIC, &bytes].concat());
        let _ = object(&bytes);
    }
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
