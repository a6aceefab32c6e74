#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;

use serde_json::json;

use super::*;

#[test]
fn every_kind_has_its_own_path_and_as_many_cells_as_columns() {
    let now = "2026-01-01T00:00:00Z".parse().unwrap();
    let mut seen = BTreeSet::new();
    for kind in builtin() {
        assert!(
            seen.insert((
                kind.group.clone(),
                kind.version.clone(),
                kind.plural.clone()
            )),
            "{} stands twice",
            kind.plural
        );
        let columns = kind.strategy.columns();
        assert_eq!(
            columns.len(),
            kind.strategy.row(&json!({}), now).len(),
            "{}",
            kind.kind
        );
    }
}

#[test]
fn selectable_fields_are_the_ones_that_are_named() {
    for kind in builtin() {
        let fields = kind.strategy.selectable_fields(&json!({}));
        let names: Vec<&str> = fields.iter().map(|(name, _)| name.as_ref()).collect();
        assert_eq!(
            names,
            kind.strategy.selectable_field_names(),
            "{}",
            kind.kind
        );
    }
}

/// Foreign bytes of any shape must not make a strategy panic.
#[test]
fn no_strategy_fails_on_values_of_odd_shapes() {
    let odd = [
        json!(null),
        json!(3),
        json!([]),
        json!("text"),
        json!({}),
        json!({"metadata": 1, "spec": [], "status": "x", "data": 3, "subjects": {"a": 1}, "rules": [1]}),
        json!({"metadata": {"labels": 3}, "spec": {"template": 5, "containers": [1, {"ports": {}, "env": [null]}], "volumes": [[]], "ports": [0]}, "status": {"conditions": [7]}}),
    ];
    let now = "2026-01-01T00:00:00Z".parse().unwrap();
    for kind in builtin() {
        for value in &odd {
            let mut object = value.clone();
            kind.strategy.default(&mut object);
            kind.strategy.prepare_create(&mut object);
            kind.strategy.prepare_update(&mut object, value);
            kind.strategy.prepare_status_update(&mut object, value);
            let _ = kind.strategy.validate_create(&object);
            let _ = kind.strategy.validate_update(&object, value);
            let _ = kind.strategy.validate_status_update(&object, value);
            let _ = kind.strategy.selectable_fields(&object);
            let _ = kind.strategy.row(&object, now);
            let _ = crate::validation::validate_metadata_create(&kind, &object);
            let _ = crate::validation::validate_metadata_update(&kind, &object, value);
        }
    }
}

#[test]
fn defaulting_twice_changes_nothing() {
    let object = json!({
        "metadata": {"name": "a"},
        "spec": {"containers": [{"name": "c", "image": "i"}], "ports": [{"port": 1}], "template": {"spec": {"containers": [{"name": "c"}]}}},
    });
    for kind in builtin() {
        let mut once = object.clone();
        kind.strategy.default(&mut once);
        let mut twice = once.clone();
        kind.strategy.default(&mut twice);
        assert_eq!(once, twice, "{}", kind.kind);
    }
}
