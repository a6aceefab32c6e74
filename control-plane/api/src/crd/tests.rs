#![allow(clippy::unwrap_used)]
use serde_json::{Value, json};

use super::schema::Node;
use super::{columns, defaults, definition, lists, naming, prune, publish, validate};
use crate::status::FieldErrors;

fn texts(errors: &FieldErrors) -> Vec<String> {
    errors.0.iter().map(|e| e.text()).collect()
}

fn spec(schema: Value) -> Node {
    Node::parse(&json!({"type": "object", "properties": {"spec": schema}}))
}

#[test]
fn unknown_fields_are_removed_and_named_but_not_where_they_are_kept() {
    let node = spec(json!({"type": "object", "properties": {
        "known": {"type": "string"},
        "open": {"type": "object", "x-kubernetes-preserve-unknown-fields": true, "properties": {"shut": {"type": "object"}}},
        "map": {"type": "object", "additionalProperties": {"type": "object", "properties": {"a": {"type": "string"}}}},
        "list": {"type": "array", "items": {"type": "object", "properties": {"a": {"type": "string"}}}},
        "embedded": {"type": "object", "x-kubernetes-embedded-resource": true, "properties": {"spec": {"type": "object"}}},
    }}));
    let mut object = json!({"apiVersion": "v1", "kind": "A", "metadata": {"name": "a"}, "bad": 1, "spec": {
        "known": "x", "bad": 1, "open": {"any": 1, "shut": {"bad": 1}}, "map": {"k": {"a": "", "bad": 1}},
        "list": [{"a": ""}, {"bad": 1}], "embedded": {"apiVersion": "v1", "metadata": {"x": 1}, "bad": 1}}});
    let unknown = prune::prune(&node, &mut object);
    let want = [
        "bad",
        "spec.bad",
        "spec.embedded.bad",
        "spec.list[1].bad",
        "spec.map.k.bad",
        "spec.open.shut.bad",
    ];
    let mut unknown: Vec<String> = unknown;
    unknown.sort();
    assert_eq!(unknown, want.map(|p| format!("unknown field \"{p}\"")));
    assert_eq!(object["spec"]["open"], json!({"any": 1, "shut": {}}));
    assert_eq!(
        object["spec"]["embedded"],
        json!({"apiVersion": "v1", "metadata": {"x": 1}})
    );
}

#[test]
fn defaults_fill_what_is_missing_or_null_and_nulls_that_may_not_be_vanish() {
    let node = spec(json!({"type": "object", "default": {}, "properties": {
        "a": {"type": "string", "default": "A"}, "b": {"type": "string", "nullable": true, "default": "B"},
        "c": {"type": "string"}, "l": {"type": "array", "items": {"type": "object", "properties": {"d": {"type": "integer", "default": 5}}}}}}));
    let mut object = json!({});
    defaults::fill(&node, &mut object);
    assert_eq!(object, json!({"spec": {"a": "A", "b": "B"}}));
    let mut object = json!({"spec": {"a": null, "b": null, "c": null, "l": [{}]}});
    defaults::fill(&node, &mut object);
    assert_eq!(
        object,
        json!({"spec": {"a": "A", "b": null, "l": [{"d": 5}]}})
    );
}

#[test]
fn wrong_values_are_reported_in_the_validators_words() {
    let node = spec(
        json!({"type": "object", "required": ["name"], "properties": {
        "size": {"type": "integer", "minimum": 1, "maximum": 5}, "kind": {"type": "string", "enum": ["A", "B"]},
        "text": {"type": "string", "pattern": "^a+$", "maxLength": 3}, "port": {"x-kubernetes-int-or-string": true},
        "when": {"type": "string", "format": "date-time"}}}),
    );
    let object =
        json!({"spec": {"size": 9, "kind": "C", "text": "bbbb", "port": true, "when": "now"}});
    let found = texts(&validate::check(&node, &object, None));
    for want in [
        "spec.name: Required value",
        "spec.size: Invalid value: 9: spec.size in body should be less than or equal to 5",
        "spec.kind: Unsupported value: \"C\": supported values: \"A\", \"B\"",
        "spec.text: Too long: may not be more than 3 bytes",
        "spec.text: Invalid value: \"bbbb\": spec.text in body should match '^a+$'",
        "spec.port: Invalid value: \"\": \"spec.port\" must validate at least one schema (anyOf)",
        "spec.when: Invalid value: \"now\": spec.when in body must be of type date-time: \"now\"",
    ] {
        assert!(found.iter().any(|f| f == want), "{want}\n{found:#?}");
    }
    let wrong = texts(&validate::check(
        &node,
        &json!({"spec": {"name": "", "size": "1"}}),
        None,
    ));
    assert_eq!(
        wrong,
        [
            "spec.size: Invalid value: \"string\": spec.size in body must be of type integer: \"string\""
        ]
    );
}

#[test]
fn what_has_not_changed_is_not_checked_again() {
    let node = spec(
        json!({"type": "object", "properties": {"a": {"type": "string", "maxLength": 1}, "b": {"type": "string"}}}),
    );
    let old = json!({"spec": {"a": "long", "b": "1"}});
    assert!(
        validate::check(&node, &json!({"spec": {"a": "long", "b": "2"}}), Some(&old)).is_empty()
    );
    assert!(
        !validate::check(
            &node,
            &json!({"spec": {"a": "longer", "b": "1"}}),
            Some(&old)
        )
        .is_empty()
    );
}

#[test]
fn exactly_one_of_several_schemas_must_fit() {
    let node = spec(
        json!({"type": "object", "properties": {"a": {"type": "string"}, "b": {"type": "string"}},
        "oneOf": [{"required": ["a"]}, {"required": ["b"]}], "not": {"required": ["c"]}}),
    );
    assert!(validate::check(&node, &json!({"spec": {"a": ""}}), None).is_empty());
    let none = texts(&validate::check(&node, &json!({"spec": {}}), None));
    assert!(
        none[0].ends_with("must validate one and only one schema (oneOf). Found none valid"),
        "{none:?}"
    );
    let both = texts(&validate::check(
        &node,
        &json!({"spec": {"a": "", "b": ""}}),
        None,
    ));
    assert!(both[0].contains("Found 2 valid alternatives"), "{both:?}");
}

#[test]
fn sets_and_map_lists_have_no_two_items_alike() {
    let node = spec(json!({"type": "object", "properties": {
        "set": {"type": "array", "x-kubernetes-list-type": "set", "items": {"type": "string"}},
        "map": {"type": "array", "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["n"],
            "items": {"type": "object", "properties": {"n": {"type": "string"}}}}}}));
    let mut errors = FieldErrors::default();
    let object = json!({"spec": {"set": ["a", "b", "a"], "map": [{"n": "x"}, {"n": "x", "o": 1}]}});
    lists::check(&node, &object, None, &mut errors);
    let mut found = texts(&errors);
    found.sort();
    assert_eq!(
        found,
        [
            "spec.map[1]: Duplicate value: {\"n\":\"x\"}",
            "spec.set[2]: Duplicate value: \"a\""
        ]
    );
}

fn crd(schema: Value) -> Value {
    json!({"metadata": {"name": "foos.example.com"}, "spec": {"group": "example.com", "scope": "Namespaced",
        "names": {"plural": "foos", "singular": "foo", "kind": "Foo", "listKind": "FooList", "shortNames": ["f"]},
        "conversion": {"strategy": "None"},
        "versions": [{"name": "v1", "served": true, "storage": true, "schema": {"openAPIV3Schema": schema}}]}})
}

#[test]
fn a_plain_definition_is_fine_and_an_odd_one_is_told_why_not() {
    let good = crd(
        json!({"type": "object", "properties": {"spec": {"type": "object", "x-kubernetes-preserve-unknown-fields": true}}}),
    );
    assert_eq!(texts(&definition::check_new(&good)), Vec::<String>::new());
    for (schema, want) in [
        (
            json!({"properties": {}}),
            "spec.versions[0].schema.openAPIV3Schema.type: Required value: must not be empty at the root",
        ),
        (
            json!({"type": "object", "properties": {"a": {"type": "array"}}}),
            "spec.versions[0].schema.openAPIV3Schema.properties[a].items: Required value: must be specified",
        ),
        (
            json!({"type": "object", "properties": {"a": {"type": "integer", "default": "x"}}}),
            "spec.versions[0].schema.openAPIV3Schema.properties[a].default: Invalid value: \"string\": spec.versions[0].schema.openAPIV3Schema.properties[a].default in body must be of type integer: \"string\"",
        ),
        (
            json!({"type": "object", "properties": {"a": {"type": "object", "properties": {"b": {"type": "string"}}, "anyOf": [{"properties": {"c": {"pattern": "x"}}}]}}}),
            "spec.versions[0].schema.openAPIV3Schema.properties[a].properties[c]: Required value: because it is defined in spec.versions[0].schema.openAPIV3Schema.properties[a].anyOf[0].properties[c]",
        ),
    ] {
        let found = texts(&definition::check_new(&crd(schema)));
        assert!(found.iter().any(|f| f == want), "{want}\n{found:#?}");
    }
    let mut two = good;
    two["spec"]["versions"][0]["storage"] = false.into();
    two["metadata"]["name"] = "x".into();
    let found = texts(&definition::check_new(&two));
    assert!(
        found[0].contains("must be spec.names.plural+\".\"+spec.group"),
        "{found:?}"
    );
    assert!(
        found
            .iter()
            .any(|f| f.contains("must have exactly one version marked as storage version"))
    );
}

#[test]
fn texts_of_rules_may_end_with_a_line_break_and_flags_that_are_off_may_be_said() {
    let of = |rule: Value| {
        let spec = json!({"type": "object", "properties": {"a": {"type": "integer"}},
            "x-kubernetes-validations": [rule]});
        let mut definition = crd(json!({"type": "object", "nullable": false,
            "properties": {"metadata": {"type": "object", "nullable": false}, "spec": spec}}));
        definition["spec"]["versions"][0]["subresources"] = json!({"status": {}});
        texts(&definition::check_new(&definition))
    };
    let none = Vec::<String>::new();
    assert_eq!(of(json!({"rule": "self.a > 0\n"})), none);
    assert_eq!(
        of(json!({"rule": "self.a > 0\n&& self.a < 9\n", "message": "from 1 to 8\n"})),
        none
    );
    let at = "spec.versions[0].schema.openAPIV3Schema.properties[spec].x-kubernetes-validations[0]";
    assert_eq!(
        of(json!({"rule": "self.a > 0\n&& self.a < 9"})),
        [format!(
            "{at}.message: Required value: message must be specified if rule contains line breaks"
        )]
    );
    assert_eq!(
        of(json!({"rule": "true", "message": "a\nb"})),
        [format!(
            "{at}.message: Invalid value: \"a\\nb\": message must not contain line breaks"
        )]
    );
}

#[test]
fn names_that_another_definition_has_are_refused_and_the_rest_is_accepted() {
    let first = crd(json!({"type": "object"}));
    let status = naming::status(&first, &[&first], "t").unwrap();
    assert_eq!(status["acceptedNames"]["plural"], "foos");
    let mut first = first;
    first["status"] = status;
    assert!(naming::is_true(&first, "Established"));
    assert_eq!(naming::status(&first, &[&first], "later"), None);
    let mut second = crd(json!({"type": "object"}));
    second["metadata"]["name"] = "bars.example.com".into();
    second["spec"]["names"] =
        json!({"plural": "bars", "singular": "bar", "kind": "Foo", "listKind": "BarList"});
    let status = naming::status(&second, &[&first, &second], "t").unwrap();
    assert_eq!(status["conditions"][0]["reason"], "KindConflict");
    assert_eq!(status["conditions"][1]["status"], "False");
    assert_eq!(
        status["acceptedNames"],
        json!({"plural": "bars", "singular": "bar", "listKind": "BarList"})
    );
}

#[test]
fn columns_show_what_their_paths_lead_to() {
    let columns = columns::Columns::parse(&json!([
        {"name": "Ready", "type": "string", "jsonPath": ".status.conditions[?(@.type==\"Ready\")].status"},
        {"name": "N", "type": "integer", "jsonPath": ".spec.n"},
        {"name": "Names", "type": "string", "jsonPath": ".spec.list[*].name"},
        {"name": "Dotted", "type": "string", "jsonPath": ".metadata.labels['a\\.b']"},
        {"name": "Several", "type": "string", "jsonPath": ".spec.list[0, 1]['name', 'none']"}]));
    let object = json!({"metadata": {"name": "x", "labels": {"a.b": "c"}}, "spec": {"n": 3, "list": [{"name": "p"}, {"name": "q"}]},
        "status": {"conditions": [{"type": "Other", "status": "False"}, {"type": "Ready", "status": "True"}]}});
    let row = columns.row(&object, jiff::Timestamp::UNIX_EPOCH);
    assert_eq!(
        row,
        [
            json!("x"),
            json!("True"),
            json!(3),
            json!("p q"),
            json!("c"),
            json!("p q")
        ]
    );
    let ages = columns::Columns::parse(&Value::Null);
    assert_eq!(ages.definitions()[1].name, "Age");
}

#[test]
fn published_schemas_leave_out_for_v2_what_kubectl_breaks_on() {
    let schema = json!({"type": "object", "properties": {"spec": {"type": "object", "description": "Wishes.", "required": ["a", "n"], "properties": {
        "a": {"type": "string", "format": "unheard-of", "default": "x"}, "n": {"type": "string", "nullable": true},
        "open": {"type": "object", "x-kubernetes-preserve-unknown-fields": true, "properties": {"p": {"type": "string"}}},
        "port": {"x-kubernetes-int-or-string": true, "anyOf": [{"type": "integer"}, {"type": "string"}]}}}}});
    let published = publish::publish(&schema, &json!([{"jsonPath": ".spec.a"}]));
    for shown in [&published.v2, &published.v3] {
        assert_eq!(
            shown["x-kubernetes-selectable-fields"],
            json!([{"fieldPath": "spec.a"}])
        );
    }
    let spec = &published.v2["properties"]["spec"];
    assert_eq!(spec["required"], json!(["a"]));
    assert_eq!(
        spec["properties"]["a"],
        json!({"type": "string", "default": "x"})
    );
    assert_eq!(spec["properties"]["n"], json!({}));
    assert_eq!(
        spec["properties"]["open"],
        json!({"x-kubernetes-preserve-unknown-fields": true})
    );
    assert_eq!(
        spec["properties"]["port"],
        json!({"x-kubernetes-int-or-string": true})
    );
    assert_eq!(
        published.v3["properties"]["spec"]["properties"]["n"]["nullable"],
        true
    );
    assert!(published.v2["properties"]["metadata"]["$ref"].is_string());
    let open = publish::publish(
        &json!({"type": "object", "x-kubernetes-preserve-unknown-fields": true}),
        &Value::Null,
    );
    assert_eq!(open.v2, json!({"type": "object"}));
}
