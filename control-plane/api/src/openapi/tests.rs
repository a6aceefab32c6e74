#![allow(clippy::unwrap_used)]
use std::sync::Arc;

use serde_json::{Value, json};

use super::*;
use crate::kind::{ALL_VERBS, Column, Scope, Strategy, Subresource};
use crate::status::FieldErrors;

struct Plain;
impl Strategy for Plain {
    fn prepare_create(&self, _: &mut Value) {}
    fn prepare_update(&self, _: &mut Value, _: &Value) {}
    fn prepare_status_update(&self, _: &mut Value, _: &Value) {}
    fn validate_create(&self, _: &Value) -> FieldErrors {
        FieldErrors::default()
    }
    fn validate_update(&self, _: &Value, _: &Value) -> FieldErrors {
        FieldErrors::default()
    }
    fn columns(&self) -> Vec<Column> {
        Vec::new()
    }
    fn row(&self, _: &Value, _: jiff::Timestamp) -> Vec<Value> {
        Vec::new()
    }
}

fn kind(
    group: &'static str,
    kind: &'static str,
    plural: &'static str,
    scope: Scope,
    sub: &[Subresource],
) -> Arc<Kind> {
    Arc::new(Kind {
        group: group.into(),
        version: "v1".into(),
        kind: kind.into(),
        plural: plural.into(),
        singular: kind.to_lowercase().into(),
        short_names: Vec::new(),
        categories: Vec::new(),
        scope,
        verbs: ALL_VERBS,
        subresources: sub.to_vec(),
        strategy: Box::new(Plain),
    })
}

fn kinds() -> Vec<Arc<Kind>> {
    let sub = |group: &'static str, name: &'static str, kind: &'static str| Subresource {
        name: name.into(),
        group: group.into(),
        version: "v1".into(),
        kind: kind.into(),
        verbs: &["get", "patch", "update"],
    };
    vec![
        kind(
            "",
            "Pod",
            "pods",
            Scope::Namespaced,
            &[sub("", "status", "Pod"), sub("", "log", "Pod")],
        ),
        kind("", "Node", "nodes", Scope::Cluster, &[]),
        kind(
            "apps",
            "Deployment",
            "deployments",
            Scope::Namespaced,
            &[sub("autoscaling", "scale", "Scale")],
        ),
        kind(
            "apiextensions.k8s.io",
            "CustomResourceDefinition",
            "customresourcedefinitions",
            Scope::Cluster,
            &[],
        ),
    ]
}

fn v3(group: &str) -> Value {
    let kinds = kinds();
    serde_json::from_slice(&v3_document(&Served::builtin(&kinds), group, "v1").unwrap()).unwrap()
}

/// Every `$ref` in a document leads somewhere.
fn assert_closed(document: &Value, value: &Value) {
    match value {
        Value::Object(map) => {
            if let Some(reference) = map.get("$ref").and_then(Value::as_str) {
                assert!(document.pointer(&reference[1..]).is_some(), "{reference}");
            }
            map.values().for_each(|v| assert_closed(document, v));
        }
        Value::Array(list) => list.iter().for_each(|v| assert_closed(document, v)),
        _ => {}
    }
}

#[test]
fn the_index_names_each_version_and_its_hash_follows_the_kinds() {
    let kinds = kinds();
    let served = Served::builtin(&kinds);
    let index = v3_index(&served);
    let url = index["paths"]["apis/apps/v1"]["serverRelativeURL"]
        .as_str()
        .unwrap();
    assert!(url.starts_with("/openapi/v3/apis/apps/v1?hash="));
    assert!(index["paths"].get("api/v1").is_some());
    assert_ne!(v3_hash(&served, "", "v1"), v3_hash(&served[1..], "", "v1"));
    assert!(v3_document(&served, "batch", "v1").is_none());
}

#[test]
fn v3_documents_are_closed_and_say_what_kubectl_looks_for() {
    for group in ["", "apps", "apiextensions.k8s.io"] {
        let document = v3(group);
        assert_closed(&document, &document);
    }
    let document = v3("apps");
    let patch =
        &document["paths"]["/apis/apps/v1/namespaces/{namespace}/deployments/{name}"]["patch"];
    assert_eq!(
        patch["x-kubernetes-group-version-kind"],
        json!({"group": "apps", "version": "v1", "kind": "Deployment"})
    );
    let parameters = patch["parameters"].as_array().unwrap();
    for name in ["fieldValidation", "dryRun"] {
        assert!(
            parameters
                .iter()
                .any(|p| p["name"] == name && p["in"] == "query"),
            "{name}"
        );
    }
    assert!(
        patch["requestBody"]["content"]
            .get("application/strategic-merge-patch+json")
            .is_some()
    );
    let scale =
        &document["paths"]["/apis/apps/v1/namespaces/{namespace}/deployments/{name}/scale"]["get"];
    assert_eq!(scale["x-kubernetes-group-version-kind"]["kind"], "Scale");
    let spec = &document["components"]["schemas"]["io.k8s.api.core.v1.PodSpec"];
    assert_eq!(
        spec["properties"]["containers"]["x-kubernetes-patch-merge-key"],
        "name"
    );
    assert_eq!(spec["required"], json!(["containers"]));
    let list = &document["components"]["schemas"]["io.k8s.api.apps.v1.DeploymentList"];
    assert_eq!(
        list["x-kubernetes-group-version-kind"][0]["kind"],
        "DeploymentList"
    );
    assert!(document["paths"].get("/apis/apps/v1/deployments").is_some());
}

#[test]
fn cluster_scoped_kinds_have_no_namespace_in_their_paths() {
    let document = v3("");
    assert!(document["paths"].get("/api/v1/nodes/{name}").is_some());
    assert!(
        document["paths"]
            .get("/api/v1/namespaces/{namespace}/nodes")
            .is_none()
    );
    let log = &document["paths"]["/api/v1/namespaces/{namespace}/pods/{name}/log"]["get"];
    assert!(
        log["responses"]["200"]["content"]
            .get("text/plain")
            .is_some()
    );
}

#[test]
fn operation_ids_are_unique() {
    let kinds = kinds();
    let document: Value =
        serde_json::from_slice(&v2_document(&Served::builtin(&kinds), &[])).unwrap();
    let mut ids = std::collections::BTreeSet::new();
    for (path, item) in document["paths"].as_object().unwrap() {
        for (_, operation) in item
            .as_object()
            .unwrap()
            .iter()
            .filter(|(m, _)| *m != "parameters")
        {
            let id = operation["operationId"].as_str().unwrap();
            assert!(ids.insert(id.to_owned()), "{path} {id}");
        }
    }
}

#[test]
fn the_v2_document_is_closed() {
    let kinds = kinds();
    let document: Value =
        serde_json::from_slice(&v2_document(&Served::builtin(&kinds), &[])).unwrap();
    assert_closed(&document, &document);
    let spec = &document["definitions"]["io.k8s.api.core.v1.Pod"]["properties"]["spec"];
    assert_eq!(spec["$ref"], "#/definitions/io.k8s.api.core.v1.PodSpec");
    assert!(spec["description"].is_string());
}

/// Reads the fields of a protobuf message: number and payload of the length-delimited ones.
fn fields(mut bytes: &[u8]) -> Vec<(u64, &[u8])> {
    fn varint(bytes: &mut &[u8]) -> u64 {
        let (mut value, mut shift) = (0, 0);
        loop {
            let byte = bytes[0];
            *bytes = &bytes[1..];
            value |= u64::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                return value;
            }
            shift += 7;
        }
    }
    let mut found = Vec::new();
    while !bytes.is_empty() {
        let tag = varint(&mut bytes);
        let length = varint(&mut bytes);
        if tag & 7 == 2 {
            let (payload, rest) = bytes.split_at(length as usize);
            found.push((tag >> 3, payload));
            bytes = rest;
        }
    }
    found
}

#[test]
fn the_protobuf_form_carries_every_definition_and_path() {
    let kinds = kinds();
    let served = Served::builtin(&kinds);
    let document: Value = serde_json::from_slice(&v2_document(&served, &[])).unwrap();
    let bytes = v2_protobuf(&served, &[]);
    let top = fields(&bytes);
    let count = |number, inner| {
        let list = top.iter().find(|(n, _)| *n == number).unwrap().1;
        fields(list).iter().filter(|(n, _)| *n == inner).count()
    };
    assert_eq!(count(8, 2), document["paths"].as_object().unwrap().len());
    assert_eq!(
        count(9, 1),
        document["definitions"].as_object().unwrap().len()
    );
}

#[test]
fn a_custom_kind_brings_its_own_schema() {
    let openapi = json!({"type": "object", "properties": {"spec": {"type": "object", "description": "Wishes.",
        "properties": {"size": {"type": "integer"}}}}});
    let schema = Schema::for_custom("example.com", "v1", "Widget", &openapi);
    let kind = kind("example.com", "Widget", "widgets", Scope::Namespaced, &[]);
    let served = [Served {
        kind: &kind,
        schema: &schema,
        custom: None,
    }];
    let document: Value =
        serde_json::from_slice(&v3_document(&served, "example.com", "v1").unwrap()).unwrap();
    assert_closed(&document, &document);
    let widget = &document["components"]["schemas"]["com.example.v1.Widget"];
    assert_eq!(widget["properties"]["spec"]["description"], "Wishes.");
    assert_eq!(
        widget["x-kubernetes-group-version-kind"][0]["kind"],
        "Widget"
    );
}

#[test]
fn every_builtin_kind_is_described_and_all_documents_are_closed() {
    let kinds = crate::kinds::builtin();
    let served = Served::builtin(&kinds);
    for kind in &kinds {
        let found = Schema::builtin().kind(&kind.group, &kind.version, &kind.kind);
        assert!(
            found.is_some(),
            "{}/{} {}",
            kind.group,
            kind.version,
            kind.kind
        );
        let bytes = v3_document(&served, &kind.group, &kind.version).unwrap();
        let document: Value = serde_json::from_slice(&bytes).unwrap();
        assert_closed(&document, &document);
    }
    let document: Value = serde_json::from_slice(&v2_document(&served, &[])).unwrap();
    assert_closed(&document, &document);
    let mut ids = std::collections::BTreeSet::new();
    for (path, item) in document["paths"].as_object().unwrap() {
        for (_, operation) in item
            .as_object()
            .unwrap()
            .iter()
            .filter(|(m, _)| *m != "parameters")
        {
            assert!(
                ids.insert(operation["operationId"].as_str().unwrap().to_owned()),
                "{path}"
            );
        }
    }
}
