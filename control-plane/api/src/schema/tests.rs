#![allow(clippy::unwrap_used)]
use serde_json::{Value, json};

use super::decode::{Expected, FieldValidation, decode, parse_json, parse_yaml};
use super::*;
use crate::status::Status;

const DEPLOYMENT: Expected<'static> = Expected {
    group: "apps",
    version: "v1",
    kind: "Deployment",
};

fn deployment() -> Type<'static> {
    Schema::builtin().kind("apps", "v1", "Deployment").unwrap()
}

fn read(text: &str, validation: FieldValidation) -> Result<(Value, Vec<String>), Status> {
    decode(
        DEPLOYMENT,
        deployment(),
        parse_json(text.as_bytes())?,
        validation,
    )
}

#[test]
fn the_builtin_schema_knows_types_and_merge_rules() {
    let spec = Schema::builtin()
        .definition("io.k8s.api.core.v1.PodSpec")
        .unwrap()
        .as_struct()
        .unwrap();
    let containers = spec.field("containers").unwrap();
    assert!(containers.required() && containers.patch_merge());
    assert_eq!(containers.patch_merge_key(), Some("name"));
    let list = containers.type_().as_list().unwrap();
    assert_eq!(list.kind, ListKind::Map);
    assert_eq!(list.keys().collect::<Vec<_>>(), ["name"]);
    assert_eq!(containers.type_().go_name(), "[]v1.Container");
    let ports = list
        .item()
        .as_struct()
        .unwrap()
        .field("ports")
        .unwrap()
        .type_()
        .as_list()
        .unwrap();
    assert_eq!(
        ports.keys().collect::<Vec<_>>(),
        ["containerPort", "protocol"]
    );
    let port = ports.item().as_struct().unwrap();
    assert_eq!(port.field("protocol").unwrap().key_default(), Some("TCP"));
    assert!(matches!(
        port.field("containerPort").unwrap().type_().shape(),
        Shape::Integer { bits: 32 }
    ));
    assert!(matches!(
        spec.field("nodeSelector").unwrap().type_().shape(),
        Shape::Map { atomic: true, .. }
    ));
    assert!(spec.field("volumes").unwrap().patch_retain_keys());
}

#[test]
fn every_kind_has_a_list_and_metadata_is_never_required() {
    let schema = Schema::builtin();
    let pod = schema.kind("", "v1", "Pod").unwrap().as_struct().unwrap();
    assert!(!pod.field("metadata").unwrap().required());
    let list = schema.kind("", "v1", "PodList").unwrap();
    assert_eq!(
        list.definition().unwrap().name(),
        "io.k8s.api.core.v1.PodList"
    );
    assert!(list.as_struct().unwrap().field("items").unwrap().required());
    assert!(schema.kind("", "v1", "BindingList").is_none());
}

#[test]
fn every_merge_rule_belongs_to_a_field_of_its_shape() {
    let schema = Schema::builtin();
    for rule in lists::all() {
        let found = schema
            .definitions()
            .find(|d| d.name().ends_with(&format!(".{}", rule.definition)));
        let fields = found.and_then(|d| d.as_type().as_struct());
        let field = fields.and_then(|f| f.field(rule.field));
        assert!(field.is_some(), "{} {}", rule.definition, rule.field);
        if let lists::Merge::Map(keys) = rule.merge {
            let item = field.unwrap().type_().as_list().unwrap().item();
            for key in keys {
                assert!(
                    item.field_type(key).is_some(),
                    "{} {} {key}",
                    rule.definition,
                    rule.field
                );
            }
        }
    }
}

#[test]
fn unknown_and_duplicate_fields_are_refused_under_strict() {
    let text = r#"{"metadata":{"name":"a"},"spec":{"replicas":1,"replicas":2,"foo":1,
        "template":{"spec":{"containers":[{"name":"c","imagee":"x"}]}}}}"#;
    let status = read(text, FieldValidation::Strict).unwrap_err();
    assert_eq!(status.code, 400);
    assert_eq!(
        status.message,
        "Deployment in version \"v1\" cannot be handled as a Deployment: strict decoding error: duplicate field \
         \"spec.replicas\", unknown field \"spec.foo\", unknown field \"spec.template.spec.containers[0].imagee\""
    );
    let (object, warnings) = read(text, FieldValidation::Warn).unwrap();
    assert_eq!(warnings.len(), 3);
    assert_eq!(object["spec"]["replicas"], 2);
    assert!(object["spec"].get("foo").is_none());
    assert!(read(text, FieldValidation::Ignore).unwrap().1.is_empty());
}

#[test]
fn wrong_types_are_reported_in_gos_words() {
    for (text, message) in [
        (
            r#"{"spec":{"replicas":"2"}}"#,
            "json: cannot unmarshal string into Go struct field DeploymentSpec.spec.replicas of type int32",
        ),
        (
            r#"{"spec":{"template":{"spec":{"containers":"x"}}}}"#,
            "json: cannot unmarshal string into Go struct field PodSpec.spec.template.spec.containers of type []v1.Container",
        ),
        (
            r#"{"spec":{"template":{"spec":{"containers":[{"env":[{"name":"a","value":1}]}]}}}}"#,
            "json: cannot unmarshal number into Go struct field EnvVar.spec.template.spec.containers.env.value of type string",
        ),
        (
            r#"{"spec":{"replicas":99999999999}}"#,
            "json: cannot unmarshal number 99999999999 into Go struct field DeploymentSpec.spec.replicas of type int32",
        ),
        (
            r#"{"spec":{"template":{"spec":{"containers":[{"resources":{"limits":{"cpu":"x"}}}]}}}}"#,
            "quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'",
        ),
    ] {
        let status = read(text, FieldValidation::Strict).unwrap_err();
        let prefix = "Deployment in version \"v1\" cannot be handled as a Deployment: ";
        assert_eq!(status.message, format!("{prefix}{message}"));
    }
}

#[test]
fn another_kind_or_version_is_refused() {
    let status = read(r#"{"apiVersion":"v1","kind":"Pod"}"#, FieldValidation::Warn).unwrap_err();
    assert_eq!(
        status.message,
        "the API version in the data (v1) does not match the expected API version (apps/v1)"
    );
    let status = read(
        r#"{"apiVersion":"apps/v1","kind":"DaemonSet"}"#,
        FieldValidation::Warn,
    )
    .unwrap_err();
    assert!(
        status
            .message
            .starts_with("DaemonSet in version \"v1\" cannot be handled as a Deployment: ")
    );
    assert!(read("[1]", FieldValidation::Warn).is_err());
    assert_eq!(read("{", FieldValidation::Warn).unwrap_err().code, 400);
}

#[test]
fn values_become_canonical_and_nulls_go() {
    let text = r#"{"metadata":{"name":"a","creationTimestamp":null,"labels":{"x":null}},
        "spec":{"template":{"spec":{"nodeName":null,"containers":[{"name":"c","resources":{"limits":{"cpu":0.5,"memory":"1024Ki"}},
        "livenessProbe":{"httpGet":{"port":"http"}}}]}}}}"#;
    let (object, _) = read(text, FieldValidation::Strict).unwrap();
    assert_eq!(object["apiVersion"], "apps/v1");
    assert_eq!(
        object["metadata"],
        json!({"name": "a", "labels": {"x": ""}})
    );
    let spec = &object["spec"]["template"]["spec"];
    assert!(spec.get("nodeName").is_none());
    assert_eq!(
        spec["containers"][0]["resources"]["limits"],
        json!({"cpu": "500m", "memory": "1Mi"})
    );
}

#[test]
fn secrets_must_be_base64_and_times_rfc_3339() {
    let secret = Schema::builtin().kind("", "v1", "Secret").unwrap();
    let mut good = json!({"data": {"a": "aGVs\nbG8="}});
    conform::conform(secret, &mut good).unwrap();
    assert_eq!(good["data"]["a"], "aGVsbG8=");
    let error = conform::conform(secret, &mut json!({"data": {"a": "hell*"}})).unwrap_err();
    assert_eq!(error, "illegal base64 data at input byte 4");
    let lease = Schema::builtin()
        .kind("coordination.k8s.io", "v1", "Lease")
        .unwrap();
    let mut object = json!({"metadata": {"deletionTimestamp": "2026-01-02T03:04:05+02:00"},
        "spec": {"renewTime": "2026-01-02T03:04:05.12Z"}});
    conform::conform(lease, &mut object).unwrap();
    assert_eq!(
        object["metadata"]["deletionTimestamp"],
        "2026-01-02T01:04:05Z"
    );
    assert_eq!(object["spec"]["renewTime"], "2026-01-02T03:04:05.120000Z");
    assert!(conform::conform(lease, &mut json!({"spec": {"renewTime": "soon"}})).is_err());
}

#[test]
fn yaml_reads_like_json() {
    let parsed = parse_yaml(
        b"kind: Pod\nspec:\n  containers:\n  - name: a\n    ports: [{containerPort: 80}]\n",
    )
    .unwrap();
    assert_eq!(
        parsed.value,
        json!({"kind": "Pod", "spec": {"containers": [{"name": "a", "ports": [{"containerPort": 80}]}]}})
    );
    assert_eq!(
        parse_yaml(b"a: 1\nb: 2\na: 3\n").unwrap().value,
        json!({"a": 3, "b": 2})
    );
    assert_eq!(parse_yaml(b"a: [").unwrap_err().code, 400);
}

#[test]
fn a_custom_schema_prunes_and_merges_as_it_says() {
    let openapi = json!({"type": "object", "properties": {
        "spec": {"type": "object", "properties": {
            "size": {"x-kubernetes-int-or-string": true},
            "tags": {"type": "array", "x-kubernetes-list-type": "set", "items": {"type": "string"}},
            "parts": {"type": "array", "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["id"],
                "items": {"type": "object", "properties": {"id": {"type": "string"}}}},
            "free": {"type": "object", "x-kubernetes-preserve-unknown-fields": true},
        }},
    }});
    let schema = Schema::for_custom("example.com", "v1", "Widget", &openapi);
    let type_ = schema.kind("example.com", "v1", "Widget").unwrap();
    let mut object = json!({"apiVersion": "example.com/v1", "kind": "Widget", "metadata": {"name": "a", "bad": 1},
        "spec": {"size": 3, "free": {"any": {"thing": 1}}, "parts": [{"id": "a", "no": 1}], "gone": true}});
    let unknown = conform::conform(type_, &mut object).unwrap();
    assert_eq!(
        unknown,
        [
            "unknown field \"metadata.bad\"",
            "unknown field \"spec.gone\"",
            "unknown field \"spec.parts[0].no\""
        ]
    );
    assert_eq!(object["spec"]["free"]["any"]["thing"], 1);
    let parts = type_
        .field_type("spec")
        .unwrap()
        .field_type("parts")
        .unwrap()
        .as_list()
        .unwrap();
    assert_eq!(parts.keys().collect::<Vec<_>>(), ["id"]);
    assert_eq!(type_.definition().unwrap().name(), "com.example.v1.Widget");
}

#[test]
fn field_validation_is_read_from_its_parameter() {
    assert_eq!(
        FieldValidation::parse(None, "CreateOptions").unwrap(),
        FieldValidation::Warn
    );
    let status = FieldValidation::parse(Some("Never"), "CreateOptions").unwrap_err();
    assert_eq!(status.code, 422);
}

/// A value of a type with every field set, as it would be stored. Types may contain themselves: below a depth
/// only scalars are set.
fn full(type_: Type<'_>, depth: usize) -> Option<Value> {
    let deep = depth == 0;
    Some(match type_.shape() {
        Shape::Any => json!({"any": 1}),
        Shape::Boolean => json!(true),
        Shape::Integer { .. } | Shape::IntOrString => json!(7),
        Shape::Number => json!(0.5),
        Shape::Text { base64: true } => json!("dGV4dA=="),
        Shape::Text { base64: false } => json!("text"),
        Shape::Quantity => json!("10m"),
        Shape::Time => json!("2026-01-02T03:04:05Z"),
        Shape::MicroTime => json!("2026-01-02T03:04:05.000006Z"),
        Shape::Struct(_) | Shape::Map { .. } | Shape::List(_) | Shape::SchemaOr(..) if deep => {
            return None;
        }
        Shape::Struct(fields) => fields
            .fields()
            .filter_map(|f| Some((f.name().to_owned(), full(f.type_(), depth - 1)?)))
            .collect::<serde_json::Map<_, _>>()
            .into(),
        Shape::Map { value, .. } => json!({"key": full(value, depth - 1)?}),
        Shape::List(list) => json!([full(list.item(), depth - 1)?]),
        Shape::SchemaOr(schema, _) => full(schema, depth - 1)?,
    })
}

#[test]
fn every_field_of_every_kind_survives_decoding() {
    for (group, version, kind, type_) in Schema::builtin().kinds() {
        let mut object = full(type_, 12).unwrap();
        object["apiVersion"] = crate::object::join_api_version(group, version).into();
        object["kind"] = kind.into();
        let expected = Expected {
            group,
            version,
            kind,
        };
        let parsed = parse_json(object.to_string().as_bytes()).unwrap();
        let (mut read, _) = decode(expected, type_, parsed, FieldValidation::Strict)
            .unwrap_or_else(|status| panic!("{kind}: {status}"));
        assert!(conform::conform(type_, &mut read).unwrap().is_empty());
        assert!(read == object, "{group} {version} {kind} loses something");
    }
}

#[test]
fn a_condition_without_a_time_gets_gos_zero_time() {
    let service = Schema::builtin().kind("", "v1", "Service").unwrap();
    let mut value = json!({"status": {"conditions": [
        {"type": "A", "status": "True", "reason": "R", "message": "", "lastTransitionTime": null},
        {"type": "B", "status": "True", "lastTransitionTime": "2026-01-02T03:04:05Z"},
    ]}});
    conform::conform_whole(service, &mut value).unwrap();
    let conditions = &value["status"]["conditions"];
    assert_eq!(conditions[0]["lastTransitionTime"], "0001-01-01T00:00:00Z");
    assert_eq!(conditions[1]["lastTransitionTime"], "2026-01-02T03:04:05Z");
    assert!(crate::object::parse_time(crate::object::ZERO_TIME).is_some());
    // What somebody applies is theirs alone: nothing is added to it.
    let mut applied = json!({"status": {"conditions": [{"type": "A", "status": "True"}]}});
    conform::conform(service, &mut applied).unwrap();
    assert!(applied["status"]["conditions"][0]["lastTransitionTime"].is_null());
}
