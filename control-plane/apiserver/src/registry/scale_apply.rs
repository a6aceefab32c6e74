//! Server-side apply of a Scale: who owns the object's replicas owns the Scale's, and the other way round.
//!
//! Source: apiserver `util/managedfields/scalehandler.go`.

use balsa_api::apply::{self, Manager};
use balsa_api::kind::ScalePaths;
use balsa_api::object;
use balsa_api::schema::Schema;
use balsa_api::status::Status;
use jiff::Timestamp;
use serde_json::{Map, Value, json};

const API_VERSION: &str = "autoscaling/v1";
/// What tells one manager's entry from another's.
const IDENTITY: [&str; 3] = ["manager", "operation", "subresource"];

/// Applies a Scale to the live one of an object. Returns the Scale, and the object's managed fields as they become.
///
/// # Errors
/// 400 for what is no Scale, 409 when others own the replicas.
pub(super) fn apply(
    object: &Value,
    mut live: Value,
    applied: &Value,
    paths: &ScalePaths,
    (manager, force): (&str, bool),
) -> Result<(Value, Vec<Value>), Status> {
    let type_ = Schema::builtin()
        .kind("autoscaling", "v1", "Scale")
        .ok_or_else(|| Status::internal("there is no schema of Scale"))?;
    let path = field_path(&paths.spec_replicas);
    let before = entries(object);
    live["metadata"]["managedFields"] = before
        .iter()
        .filter(|entry| owns(&entry["fieldsV1"], &path))
        .map(entry_of_scale)
        .collect();
    let manager = Manager {
        name: manager,
        api_version: API_VERSION,
        subresource: "scale",
        time: Timestamp::now(),
    };
    let scale = apply::apply(type_, Some(&live), applied, &manager, force, &["status"])?;
    let after = merged(&before, entries(&scale), &path, object::api_version(object));
    Ok((scale, after))
}

fn entries(object: &Value) -> Vec<Value> {
    let entries = object["metadata"]["managedFields"].as_array();
    entries.cloned().unwrap_or_default()
}

/// `/spec/replicas` as managed fields name it.
fn field_path(pointer: &str) -> Vec<String> {
    let parts = pointer.split('/').filter(|part| !part.is_empty());
    parts.map(|part| format!("f:{part}")).collect()
}

fn owns(fields: &Value, path: &[String]) -> bool {
    let found = path.iter().try_fold(fields, |at, part| at.get(part));
    found.is_some()
}

fn entry_of_scale(entry: &Value) -> Value {
    let mut entry = entry.clone();
    entry["apiVersion"] = API_VERSION.into();
    entry["fieldsV1"] = json!({"f:spec": {"f:replicas": {}}});
    entry
}

/// The object's entries with the ownership of its replicas as the Scale's entries have it.
fn merged(before: &[Value], scale: Vec<Value>, path: &[String], api_version: &str) -> Vec<Value> {
    let replicas = ["f:spec".to_owned(), "f:replicas".to_owned()];
    let owners: Vec<Value> = scale
        .into_iter()
        .filter(|entry| owns(&entry["fieldsV1"], &replicas))
        .collect();
    let same = |a: &Value, b: &Value| IDENTITY.iter().all(|field| a[*field] == b[*field]);
    let mut after = Vec::new();
    for entry in before {
        let mut entry = entry.clone();
        let owner = owners.iter().find(|owner| same(owner, &entry));
        if owner.is_none() {
            disown(&mut entry["fieldsV1"], path);
        }
        if entry["fieldsV1"].as_object().is_some_and(|f| !f.is_empty()) {
            after.push(entry);
        }
    }
    for mut owner in owners {
        match after.iter_mut().find(|entry| same(entry, &owner)) {
            Some(entry) => own(&mut entry["fieldsV1"], path),
            None => {
                owner["apiVersion"] = api_version.into();
                owner["fieldsV1"] = json!({});
                own(&mut owner["fieldsV1"], path);
                after.push(owner);
            }
        }
    }
    after
}

fn own(fields: &mut Value, path: &[String]) {
    let mut at = fields;
    for part in path {
        if !at.is_object() {
            *at = Value::Object(Map::new());
        }
        at = &mut at[part.as_str()];
    }
    if !at.is_object() {
        *at = json!({});
    }
}

/// Takes a path out, with what becomes empty by that.
fn disown(fields: &mut Value, path: &[String]) {
    let (Some((first, rest)), Some(map)) = (path.split_first(), fields.as_object_mut()) else {
        return;
    };
    let Some(child) = map.get_mut(first) else {
        return;
    };
    disown(child, rest);
    if rest.is_empty() || child.as_object().is_some_and(Map::is_empty) {
        map.remove(first);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn paths() -> ScalePaths {
        ScalePaths {
            spec_replicas: "/spec/replicas".into(),
            status_replicas: "/status/replicas".into(),
            selector: None,
        }
    }

    fn deployment() -> Value {
        let fields = json!({"f:spec": {"f:replicas": {}, "f:paused": {}}});
        json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "a", "managedFields": [
            {"manager": "one", "operation": "Apply", "apiVersion": "apps/v1", "fieldsType": "FieldsV1", "fieldsV1": fields,
                "time": "2026-01-01T00:00:00Z"}]}, "spec": {"replicas": 1, "paused": true}})
    }

    fn scale(replicas: i64) -> Value {
        json!({"apiVersion": "autoscaling/v1", "kind": "Scale", "metadata": {"name": "a"}, "spec": {"replicas": replicas}})
    }

    fn apply_as(manager: &str, force: bool) -> Result<(Value, Vec<Value>), Status> {
        let options = (manager, force);
        apply(&deployment(), scale(1), &scale(3), &paths(), options)
    }

    #[test]
    fn replicas_of_others_are_a_conflict_and_taken_by_force() {
        let conflict = apply_as("two", false).unwrap_err();
        assert_eq!(conflict.code, 409);
        assert!(conflict.message.contains("\"one\""), "{}", conflict.message);
        let (scale, managed) = apply_as("two", true).unwrap();
        assert_eq!(scale["spec"]["replicas"], 3);
        assert_eq!(managed.len(), 2);
        assert_eq!(managed[0]["fieldsV1"], json!({"f:spec": {"f:paused": {}}}));
        assert_eq!(managed[1]["manager"], "two");
        assert_eq!(managed[1]["subresource"], "scale");
        assert_eq!(managed[1]["apiVersion"], "apps/v1");
        assert_eq!(
            managed[1]["fieldsV1"],
            json!({"f:spec": {"f:replicas": {}}})
        );
    }

    #[test]
    fn a_scale_of_the_same_number_is_owned_together() {
        let (_, managed) =
            apply(&deployment(), scale(1), &scale(1), &paths(), ("two", false)).unwrap();
        assert_eq!(managed[0], deployment()["metadata"]["managedFields"][0]);
        assert_eq!(managed[1]["manager"], "two");
    }
}
