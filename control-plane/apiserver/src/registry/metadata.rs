//! What the registry does to every object's metadata.
//!
//! Rules: apiserver `registry/rest.BeforeCreate`, `BeforeUpdate`.

use balsa_api::kind::{Kind, Scope};
use balsa_api::object;
use balsa_api::status::Status;
use serde_json::Value;

/// Checks that a body of a kind without schema is of the kind that the path says; fills in apiVersion and
/// kind where absent.
///
/// # Errors
/// 400 when it is of another kind.
pub fn check_type_as(kind: &str, api_version: &str, value: &mut Value) -> Result<(), Status> {
    let Some(map) = value.as_object_mut() else {
        return Err(Status::bad_request(
            "the body must be an object with apiVersion and kind",
        ));
    };
    for (field, want) in [("apiVersion", api_version), ("kind", kind)] {
        match map.get(field).and_then(Value::as_str) {
            None | Some("") => {
                map.insert(field.into(), want.into());
            }
            Some(got) if got == want => {}
            Some(got) if field == "apiVersion" => {
                return Err(Status::bad_request(format!(
                    "the API version in the data ({got}) does not match the expected API version ({want})"
                )));
            }
            Some(got) => {
                return Err(Status::bad_request(format!(
                    "{got} in version \"{api_version}\" cannot be handled as a {want}: the kind of the object does not match the resource of the path"
                )));
            }
        }
    }
    if !map.get("metadata").is_some_and(Value::is_object) {
        map.insert("metadata".into(), Value::Object(serde_json::Map::new()));
    }
    Ok(())
}

/// Checks that what is applied says itself of what kind and version it is: unlike the body of another write, whose
/// path says it.
///
/// # Errors
/// 400 when it does not, or is of another version.
pub fn check_type_applied(api_version: &str, applied: &Value) -> Result<(), Status> {
    let text = |field: &str| applied.get(field).and_then(Value::as_str).unwrap_or("");
    let got = text("apiVersion");
    if got != api_version {
        return Err(Status::bad_request(format!(
            "Incorrect version specified in apply patch. Specified patch version: {got}, expected: {api_version}"
        )));
    }
    if text("kind").is_empty() {
        return Err(Status::bad_request("an apply patch must have a kind"));
    }
    Ok(())
}

/// Checks the namespace of a body against the request's, and sets it where absent.
///
/// # Errors
/// 400 when they differ.
pub fn check_namespace(kind: &Kind, value: &mut Value, namespace: &str) -> Result<(), Status> {
    if kind.scope == Scope::Cluster {
        object::set_namespace(value, "");
        return Ok(());
    }
    match object::namespace(value) {
        "" => object::set_namespace(value, namespace),
        same if same == namespace => {}
        _ => {
            return Err(Status::bad_request(
                "the namespace of the provided object does not match the namespace sent on the request",
            ));
        }
    }
    Ok(())
}

/// Checks the name of a body against the URL's, and sets it where absent.
///
/// # Errors
/// 400 when they differ.
pub fn check_name(value: &mut Value, name: &str) -> Result<(), Status> {
    match object::name(value) {
        "" => object::set_name(value, name),
        same if same == name => {}
        other => {
            return Err(Status::bad_request(format!(
                "the name of the object ({other}) does not match the name on the URL ({name})"
            )));
        }
    }
    Ok(())
}

/// Metadata of a new object: what the server sets is set, what clients may not set is dropped.
pub fn before_create(value: &mut Value, now: jiff::Timestamp) {
    let metadata = object::metadata_mut(value);
    for field in [
        "deletionTimestamp",
        "deletionGracePeriodSeconds",
        "selfLink",
        "generation",
        "resourceVersion",
    ] {
        metadata.remove(field);
    }
    drop_empty(metadata);
    metadata.insert("uid".into(), object::new_uid().into());
    metadata.insert("creationTimestamp".into(), object::format_time(now).into());
}

/// Metadata of a changed object: what the client left out of the server's fields comes from the old one.
pub fn before_update(value: &mut Value, old: &Value) {
    let metadata = object::metadata_mut(value);
    metadata.remove("selfLink");
    drop_empty(metadata);
    let empty = object::Object::new();
    let before = object::metadata(old).unwrap_or(&empty);
    for field in [
        "uid",
        "creationTimestamp",
        "deletionTimestamp",
        "deletionGracePeriodSeconds",
    ] {
        if metadata.get(field).is_none_or(Value::is_null)
            && let Some(v) = before.get(field)
        {
            metadata.insert(field.into(), v.clone());
        }
    }
    for field in ["generation", "resourceVersion"] {
        match before.get(field) {
            Some(v) => metadata.insert(field.into(), v.clone()),
            None => metadata.remove(field),
        };
    }
}

/// Null and empty members are not stored: typed clients drop them, and comparisons must not see them.
fn drop_empty(metadata: &mut object::Object) {
    metadata.retain(|_, v| match v {
        Value::Null => false,
        Value::Object(map) => !map.is_empty(),
        Value::Array(list) => !list.is_empty(),
        Value::String(text) => !text.is_empty(),
        _ => true,
    });
}

/// Are two states of an object the same to a client? The times in managedFields and the resourceVersion do
/// not count.
#[must_use]
pub fn same(a: &Value, b: &Value) -> bool {
    let (Some(a), Some(b)) = (a.as_object(), b.as_object()) else {
        return a == b;
    };
    let rest = |map: &object::Object| map.iter().filter(|(k, _)| *k != "metadata").count();
    if rest(a) != rest(b)
        || !a
            .iter()
            .filter(|(k, _)| *k != "metadata")
            .all(|(k, v)| b.get(k) == Some(v))
    {
        return false;
    }
    match (
        a.get("metadata").and_then(Value::as_object),
        b.get("metadata").and_then(Value::as_object),
    ) {
        (Some(a), Some(b)) => same_metadata(a, b),
        (a, b) => a == b,
    }
}

fn same_metadata(a: &object::Object, b: &object::Object) -> bool {
    let counts = |name: &str| name != "resourceVersion" && name != "managedFields";
    let plain = |map: &object::Object| map.keys().filter(|k| counts(k)).count();
    plain(a) == plain(b)
        && a.iter()
            .filter(|(k, _)| counts(k))
            .all(|(k, v)| b.get(k) == Some(v))
        && same_managers(a.get("managedFields"), b.get("managedFields"))
}

fn same_managers(a: Option<&Value>, b: Option<&Value>) -> bool {
    let timeless = |entries: Option<&Value>| -> Vec<Value> {
        let mut list = entries
            .and_then(Value::as_array)
            .cloned()
            .unwrap_or_default();
        for entry in &mut list {
            if let Some(map) = entry.as_object_mut() {
                map.remove("time");
            }
        }
        list
    };
    a == b || timeless(a) == timeless(b)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use serde_json::json;

    #[test]
    fn an_update_keeps_the_identity_that_the_client_left_out() {
        let old = json!({"metadata": {"name": "a", "uid": "1", "creationTimestamp": "t", "generation": 3, "resourceVersion": "9"}});
        let mut new = json!({"metadata": {"name": "a", "generation": 99, "labels": {}, "creationTimestamp": null}});
        before_update(&mut new, &old);
        assert_eq!(new, old);
    }

    #[test]
    fn times_of_managers_do_not_make_a_change() {
        let a = json!({"metadata": {"resourceVersion": "1", "managedFields": [{"manager": "m", "time": "1"}]}, "spec": 1});
        let mut b = json!({"metadata": {"resourceVersion": "2", "managedFields": [{"manager": "m", "time": "2"}]}, "spec": 1});
        assert!(same(&a, &b));
        b["metadata"]["managedFields"][0]["manager"] = "n".into();
        assert!(!same(&a, &b));
        let c = json!({"metadata": {"resourceVersion": "1", "managedFields": [{"manager": "m", "time": "1"}]}, "spec": 1, "x": 1});
        assert!(!same(&a, &c) && !same(&c, &a));
    }

    #[test]
    fn what_is_applied_says_what_it_is() {
        let refused = |applied: Value| check_type_applied("apps/v1", &applied).unwrap_err();
        assert_eq!(
            refused(json!({"kind": "Deployment"})).message,
            "Incorrect version specified in apply patch. Specified patch version: , expected: apps/v1"
        );
        assert_eq!(refused(json!({"apiVersion": "apps/v1"})).code, 400);
        let whole = json!({"apiVersion": "apps/v1", "kind": "Deployment"});
        assert!(check_type_applied("apps/v1", &whole).is_ok());
    }

    #[test]
    fn bodies_of_another_kind_name_or_namespace_are_refused() {
        let mut pod = json!({"kind": "Service", "apiVersion": "v1", "metadata": {"name": "a", "namespace": "n"}});
        assert_eq!(check_type_as("Pod", "v1", &mut pod).unwrap_err().code, 400);
        assert_eq!(
            check_type_as("Service", "v2", &mut pod).unwrap_err().code,
            400
        );
        assert!(check_type_as("Service", "v1", &mut pod).is_ok());
        assert!(check_name(&mut pod, "b").is_err());
        let mut empty = json!({});
        check_type_as("Pod", "v1", &mut empty).unwrap();
        assert_eq!(
            empty,
            json!({"kind": "Pod", "apiVersion": "v1", "metadata": {}})
        );
    }
}
