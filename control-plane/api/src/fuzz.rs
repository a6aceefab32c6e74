//! What strangers send, through everything that reads it: nothing panics, hangs or takes memory without limit.
#![allow(clippy::unwrap_used)]

use std::fmt::Debug;

use balsa_fuzz::Fuzz;
use jiff::Timestamp;
use serde_json::{Value, json};

use crate::apply::{self, Manager};
use crate::kind::Kind;
use crate::patch::{Patch, PatchType};
use crate::schema::conform::conform;
use crate::schema::decode::{Expected, FieldValidation, decode, parse_json, parse_yaml};
use crate::schema::{Schema, Shape, Type};
use crate::selector::{FieldSelector, Selector};
use crate::status::{FieldErrors, Status};
use crate::{crd, duration, kinds, object, openapi, quota, validation};

#[global_allocator]
static ALLOCATOR: balsa_fuzz::Counting = balsa_fuzz::Counting;

/// What is said of an input: how it ended, without what differs from input to input.
fn outcome<T>(result: &Result<T, impl Debug>) -> String {
    match result {
        Ok(_) => "ok".to_owned(),
        Err(why) => {
            let text = format!("{why:?}");
            let known = text
                .chars()
                .filter(|c| c.is_ascii_alphabetic() || *c == ' ');
            known.take(60).collect()
        }
    }
}

fn fields_of(errors: &FieldErrors) -> String {
    let names = errors.0.iter().take(6).map(|e| e.field.as_str());
    let text: String = names.collect::<Vec<_>>().join(" ");
    text.chars().filter(|c| !c.is_ascii_digit()).collect()
}

/// A value with every field of a type; types within themselves once.
fn filled(type_: Type<'_>, within: &mut Vec<String>) -> Value {
    match type_.shape() {
        Shape::Any => json!({"a": [1, "b", null]}),
        Shape::Boolean => json!(true),
        Shape::Integer { .. } => json!(7),
        Shape::Number => json!(1.5),
        Shape::Text { base64: false } => json!("a"),
        Shape::Text { base64: true } => json!("AP8="),
        Shape::IntOrString => json!("25%"),
        Shape::Quantity => json!("100m"),
        Shape::Time => json!("2026-01-02T03:04:05Z"),
        Shape::MicroTime => json!("2026-01-02T03:04:05.678901Z"),
        Shape::List(list) => json!([filled(list.item(), within)]),
        Shape::Map { value, .. } => json!({"k": filled(value, within)}),
        Shape::SchemaOr(schema, _) => filled(schema, within),
        Shape::Struct(fields) => {
            let name = type_.definition().map_or("", |d| d.name()).to_owned();
            if within.len() > 7 || within.contains(&name) {
                return json!({});
            }
            within.push(name);
            let fields = fields.fields();
            let object = fields.map(|f| (f.name().to_owned(), filled(f.type_(), within)));
            let object = Value::Object(object.collect());
            within.pop();
            object
        }
    }
}

fn seed(kind: &Kind, type_: Type<'_>) -> Value {
    let mut value = filled(type_, &mut Vec::new());
    value["apiVersion"] = object::join_api_version(&kind.group, &kind.version).into();
    value["kind"] = (*kind.kind).into();
    value
}

/// An object on its way through a create and all updates, as the registry takes it.
fn live(kind: &Kind, type_: Type<'_>, bytes: &[u8], old: &Value) -> Result<String, Status> {
    let expected = Expected {
        group: &kind.group,
        version: &kind.version,
        kind: &kind.kind,
    };
    let parsed = parse_json(bytes)?;
    let (mut new, _) = decode(expected, type_, parsed, FieldValidation::Warn)?;
    object::metadata_mut(&mut new);
    let strategy = &kind.strategy;
    strategy.default(&mut new);
    let mut created = new.clone();
    strategy.prepare_create(&mut created);
    let mut errors = validation::metadata::validate_metadata_create(kind, &created);
    errors.extend(strategy.validate_create(&created));
    let told = fields_of(&errors);
    for subresource in std::iter::once("").chain(kind.subresources.iter().map(|s| &*s.name)) {
        let mut updated = new.clone();
        if subresource.is_empty() {
            strategy.prepare_update(&mut updated, old);
            let _ = validation::metadata::validate_metadata_update(kind, &updated, old);
            let _ = strategy.validate_update(&updated, old);
        } else {
            strategy.prepare_subresource_update(subresource, &mut updated, old);
            let _ = strategy.validate_subresource_update(subresource, &updated, old);
        }
    }
    // Both may be what is stored: of an older version, say.
    for object in [&new, &created] {
        let _ = strategy.warnings(object, Some(old));
        let _ = strategy.selectable_fields(object);
        let _ = strategy.grace_period_seconds(object);
        assert_eq!(
            strategy.row(object, Timestamp::UNIX_EPOCH).len(),
            strategy.columns().len()
        );
        let _ = quota::usage(&kind.group, &kind.plural, object, Timestamp::UNIX_EPOCH);
    }
    if let Some(convert) = kinds::converter(&kind.group, &kind.version, &kind.kind) {
        let _ = convert.from_stored(convert.to_stored(new.clone()));
    }
    let manager = Manager {
        name: "m",
        api_version: object::api_version(&new),
        subresource: "",
        time: Timestamp::UNIX_EPOCH,
    };
    apply::update_managed_fields(type_, &mut created, Some(old), &manager, &["status"]);
    let applied = apply::apply(type_, Some(old), &new, &manager, true, &[]);
    Ok(format!("{told} {}", outcome(&applied)))
}

#[test]
fn objects_of_every_kind() {
    for kind in kinds::builtin() {
        let Some(type_) = Schema::builtin().kind(&kind.group, &kind.version, &kind.kind) else {
            continue;
        };
        let full = seed(&kind, type_);
        let mut old = full.clone();
        kind.strategy.default(&mut old);
        let small = json!({"metadata": {"name": "a"}, "spec": {}, "status": {}});
        let name: &'static str = kind.kind.to_string().leak();
        Fuzz::new(name)
            .seeds([full.to_string(), small.to_string()])
            .trees()
            .runs(60)
            .run(|bytes| match live(&kind, type_, bytes, &old) {
                Ok(told) => told,
                refused => outcome(&refused),
            });
    }
}

#[test]
fn documents() {
    let pod = r#"{"apiVersion":"v1","kind":"Pod","metadata":{"name":"a","labels":{"a":"b"}},"spec":{"containers":[{"name":"c","image":"i"}],"x":1,"x":2}}"#;
    Fuzz::new("json")
        .seeds([pod])
        .tokens([
            "\"a\":", "null", "\\u0000", "\\ud800", "[[", "1e5", "{}", ",",
        ])
        .run(|bytes| outcome(&parse_json(bytes)));
    let yaml = "apiVersion: v1\nkind: Pod\nmetadata: {name: a}\nspec:\n  containers:\n  - name: c\n    command: [\"a\", 'b']\n    args: |\n      text\n  x: &x {a: 1}\n  y: *x\n";
    Fuzz::new("yaml")
        .seeds([pod, yaml])
        .tokens([
            "&a",
            "*a",
            "<<: *a",
            "---\n",
            "...\n",
            "? ",
            "- ",
            ": ",
            "!!str ",
            "!!binary ",
            "|+2\n",
            ">-\n",
            "%YAML 1.1\n",
            "\t",
            "0x1F",
            "0o17",
            ".inf",
            ".nan",
            "~",
            "yes",
            "2026-01-01",
            "'",
            "[*a,*a]",
            "&b [*a,*a,*a,*a,*a,*a,*a,*a,*a]",
            "&c [*b,*b,*b,*b,*b,*b,*b,*b,*b]",
        ])
        .run(|bytes| outcome(&parse_yaml(bytes)));
}

#[test]
fn patches() {
    let type_ = Schema::builtin().kind("apps", "v1", "Deployment").unwrap();
    let kinds = kinds::builtin();
    let kind = kinds.iter().find(|k| k.kind == "Deployment").unwrap();
    let old = seed(kind, type_);
    let strategic = r#"{"metadata":{"labels":{"a":null},"$patch":"replace"},"spec":{"$retainKeys":["template"],"template":{"spec":{"$setElementOrder/containers":[{"name":"a"}],"containers":[{"name":"a","$patch":"delete","ports":[{"containerPort":7,"protocol":"TCP"}]}],"$deleteFromPrimitiveList/finalizers":["a"]}}}}"#;
    let operations = r#"[{"op":"test","path":"/spec/replicas","value":7},{"op":"move","from":"/spec","path":"/metadata/a~1b"},{"op":"add","path":"/spec/template/spec/containers/-","value":{}},{"op":"copy","from":"","path":"/a"},{"op":"remove","path":"/b/0"},{"op":"replace","path":"","value":1}]"#;
    for (form, name, seeds) in [
        (
            PatchType::Strategic,
            "strategic merge patch",
            vec![strategic.to_owned(), old.to_string()],
        ),
        (
            PatchType::Merge,
            "merge patch",
            vec![strategic.to_owned(), old.to_string()],
        ),
        (PatchType::Json, "JSON patch", vec![operations.to_owned()]),
    ] {
        Fuzz::new(name)
            .seeds(seeds)
            .tokens([
                "\"$patch\":\"merge\"",
                "\"path\":\"/",
                "~0",
                "/-",
                "/00",
                "\"from\":\"\"",
                "null",
            ])
            .trees()
            .run(|bytes| {
                let patched =
                    Patch::read(form, bytes).and_then(|p| p.apply(Some(type_), old.clone()));
                if let Ok(patched) = &patched {
                    let patch = Patch::read(form, bytes).unwrap();
                    let _ = patch.refuse(Some(patched), "why");
                }
                outcome(&patched)
            });
    }
    let applied = json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "a", "managedFields": null},
        "spec": {"template": {"spec": {"containers": [{"name": "a", "ports": [{"containerPort": 1}]}, {"name": "a"}]}}}});
    let mut owned = old;
    owned["metadata"]["managedFields"] = json!([{"manager": "other", "operation": "Apply", "apiVersion": "apps/v1",
        "fieldsType": "FieldsV1", "fieldsV1": {"f:spec": {"f:template": {"f:spec": {"f:containers": {
            "k:{\"name\":\"a\"}": {".": {}, "f:image": {}}, "v:1": {}, "i:0": {}}}}}}}]);
    let manager = Manager {
        name: "m",
        api_version: "apps/v1",
        subresource: "",
        time: Timestamp::UNIX_EPOCH,
    };
    // The live object is stored; but whose fields it has was said by a client once.
    Fuzz::new("managed fields")
        .seeds([owned.to_string()])
        .tokens(["\"f:", "\"k:{", "\"v:", "\"i:", "\".\":{}"])
        .trees()
        .run(|bytes| {
            let Ok(live) = serde_json::from_slice::<Value>(bytes) else {
                return "no JSON".to_owned();
            };
            if !live.is_object() {
                return "no object".to_owned();
            }
            outcome(&apply::apply(
                type_,
                Some(&live),
                &applied,
                &manager,
                false,
                &["status"],
            ))
        });
}

#[test]
fn small_languages() {
    Fuzz::new("label selector")
        .seeds([
            "a=b,c!=d,e in (f,g),h notin (i),j,!k,x>1,y<2",
            "example.com/a==b",
        ])
        .tokens([
            " in ", " notin ", "(", ")", ",", "!", "==", "!=", ">", "a/b", "(,)",
        ])
        .run(|bytes| {
            let Ok(text) = std::str::from_utf8(bytes) else {
                return "no text".to_owned();
            };
            let parsed = Selector::parse(text);
            if let Ok(selector) = &parsed {
                let again = Selector::parse(&selector.to_string()).unwrap();
                assert_eq!(again.to_string(), selector.to_string());
            }
            outcome(&parsed)
        });
    Fuzz::new("field selector")
        .seeds(["metadata.name=a,status.phase!=Running,spec.x==a\\,b\\=c\\\\"])
        .tokens(["=", "!=", "==", "\\", ",", "\\,"])
        .run(|bytes| {
            let Ok(text) = std::str::from_utf8(bytes) else {
                return "no text".to_owned();
            };
            let parsed = FieldSelector::parse(text);
            if let Ok(selector) = &parsed {
                assert_eq!(
                    FieldSelector::parse(&selector.to_string()).unwrap(),
                    *selector
                );
            }
            outcome(&parsed)
        });
    Fuzz::new("quantity")
        .seeds(["1.5Gi", "100m", "-1e3", "12E", "0.000000001n"])
        .tokens([
            "Ki",
            "Ei",
            "e-9",
            "E9",
            "m",
            "n",
            ".",
            "-",
            "+",
            "999999999999",
        ])
        .longest(2_000)
        .run(|bytes| {
            let text = String::from_utf8_lossy(bytes);
            let parsed = text.parse::<crate::quantity::Quantity>();
            if let Ok(quantity) = &parsed {
                let again: crate::quantity::Quantity = quantity.to_string().parse().unwrap();
                // What is larger than all that can be counted is the largest number.
                if quantity.nanos().unsigned_abs() < i128::MAX.unsigned_abs() / 2 {
                    assert_eq!(again.nanos(), quantity.nanos(), "{text}");
                }
                let _ = (quantity.value(), quantity.milli_value(), quantity.as_f64());
            }
            outcome(&parsed)
        });
    Fuzz::new("duration")
        .seeds(["1h2m3.5s", "-1.5ms", "300us", "0"])
        .tokens(["h", "m", "ms", "µs", "ns", ".", "-", "9999999999999"])
        .run(|bytes| outcome(&duration::parse_nanos(&String::from_utf8_lossy(bytes))));
    Fuzz::new("JSON path")
        .seeds([".spec.a['b'][0].c[-1:]", "{.items[*].metadata.name}", ".a[?(@.b==\"c\")].d", "..a"])
        .tokens(["[", "]", "..", "*", "?(@", "==", "'", "\"", "-1", ":", "{", "range"])
        .run(|bytes| {
            let path = crd::jsonpath::JsonPath::parse(&String::from_utf8_lossy(bytes));
            if let Ok(path) = &path {
                let _ = path.find(&json!({"spec": {"a": {"b": [{"c": [1, 2]}]}}, "items": [{"metadata": {"name": 1}}]}));
            }
            outcome(&path)
        });
}

#[test]
fn custom_resources() {
    let schema = json!({"type": "object", "properties": {"spec": {"type": "object", "required": ["a"],
        "x-kubernetes-preserve-unknown-fields": true, "additionalProperties": {"type": "string"},
        "properties": {"a": {"type": "string", "pattern": "^a+$", "maxLength": 5, "default": "a", "format": "ipv4", "enum": ["a"]},
            "l": {"type": "array", "maxItems": 3, "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["k"],
                "items": {"type": "object", "properties": {"k": {"type": "integer", "minimum": 1, "multipleOf": 2}}}},
            "e": {"x-kubernetes-embedded-resource": true, "type": "object"},
            "i": {"x-kubernetes-int-or-string": true, "anyOf": [{"type": "integer"}, {"type": "string"}]},
            "n": {"type": "number", "nullable": true, "not": {"minimum": 3}, "oneOf": [{"maximum": 2}]}},
        "x-kubernetes-validations": [{"rule": "self.a == 'a'", "message": "m", "fieldPath": ".a"}]}}});
    let definition = json!({"apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": {"name": "things.example.com"}, "spec": {"group": "example.com", "scope": "Namespaced",
        "names": {"plural": "things", "kind": "Thing", "shortNames": ["th"], "categories": ["all"]},
        "versions": [{"name": "v1", "served": true, "storage": true, "schema": {"openAPIV3Schema": schema},
            "subresources": {"status": {}, "scale": {"specReplicasPath": ".spec.r", "statusReplicasPath": ".status.r"}},
            "selectableFields": [{"jsonPath": ".spec.a"}],
            "additionalPrinterColumns": [{"name": "A", "type": "string", "jsonPath": ".spec.a"}]}]},
        "status": {"storedVersions": ["v1"], "acceptedNames": {"plural": "things"}, "conditions": []}});
    Fuzz::new("custom resource definition")
        .seeds([definition.to_string()])
        .trees()
        .run(|bytes| {
            let Ok(given) = serde_json::from_slice::<Value>(bytes) else {
                return "no JSON".to_owned();
            };
            let _ = crd::definition::check_update(&given, &definition);
            let _ = crd::definition::check_status(&given);
            let _ = crd::naming::status(&given, &[&definition], "2026-01-01T00:00:00Z");
            fields_of(&crd::definition::check_new(&given))
        });
    let thing = json!({"apiVersion": "example.com/v1", "kind": "Thing", "metadata": {"name": "a", "labels": {"a": "b"}},
        "spec": {"a": "a", "l": [{"k": 2}], "e": {"apiVersion": "v1", "kind": "Pod", "metadata": {}}, "i": "1", "n": null, "x": 1}});
    let custom = |schema: &Value, object: &mut Value| {
        let node = crd::schema::Node::parse(schema);
        let _ = crd::embedded::conform_metadata(&node, object);
        crd::prune::prune(&node, object);
        crd::defaults::fill(&node, object);
        let mut errors = crd::validate::check(&node, object, Some(&thing));
        crd::lists::check(&node, object, None, &mut errors);
        crd::embedded::check(&node, object, None, &mut errors);
        fields_of(&errors)
    };
    Fuzz::new("custom resource")
        .seeds([thing.to_string()])
        .trees()
        .run(|bytes| match serde_json::from_slice::<Value>(bytes) {
            Ok(mut object) => custom(&schema, &mut object),
            Err(_) => "no JSON".to_owned(),
        });
    // A schema has the right types when it is used; but not all that is odd is refused.
    let props = "io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1.JSONSchemaProps";
    let props = Schema::builtin().definition(props).unwrap();
    Fuzz::new("schema of a custom resource")
        .seeds([schema.to_string()])
        .trees()
        .run(|bytes| {
            let Ok(mut schema) = serde_json::from_slice::<Value>(bytes) else {
                return "no JSON".to_owned();
            };
            if let Err(why) = conform(props, &mut schema) {
                return why.chars().take(60).collect();
            }
            let _ = crd::publish::publish(&schema, &schema["selectableFields"]);
            let _ = Schema::for_custom("example.com", "v1", "Thing", &schema);
            custom(&schema, &mut thing.clone())
        });
    Fuzz::new("OpenAPI of another server")
        .seeds([r##"{"swagger":"2.0","paths":{"/apis/a/v1/b":{"get":{"responses":{"200":{"schema":{"$ref":"#/definitions/a.b"}}}}}},"definitions":{"a.b":{"type":"object","properties":{"c":{"$ref":"#/definitions/a.b"}}}}}"##])
        .trees()
        .run(|bytes| match serde_json::from_slice::<Value>(bytes) {
            Ok(document) => {
                let theirs = openapi::Foreign::of(&document, "a", "v1");
                openapi::v2_protobuf(&[], &[&theirs]).len().to_string()
            }
            Err(_) => "no JSON".to_owned(),
        });
}
