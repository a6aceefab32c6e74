//! IPAddresses: an address of a Service, with the Service that has it (KEP-1880).

use std::net::IpAddr;
use std::sync::Arc;

use jiff::Timestamp;
use serde_json::Value;

use super::declare::{Declaration, without_status};
use super::walk::{Walk, same};
use crate::kind::{Column, Kind, Name, Strategy};
use crate::status::FieldErrors;
use crate::table::{age, age_column, column, name, name_column};
use crate::validation::{Path, names};

pub(super) fn kind() -> Arc<Kind> {
    Declaration::cluster(
        "networking.k8s.io",
        "v1",
        "IPAddress",
        "ipaddresses",
        Addresses,
    )
    .short_names(&["ip"])
    .build()
}

struct Addresses;

impl Strategy for Addresses {
    without_status!();

    fn validate_create(&self, object: &Value) -> FieldErrors {
        let mut errors = FieldErrors::default();
        let name = object["metadata"]["name"].text();
        // An address has one canonical text, or there could be two objects for it.
        let canonical = name.parse::<IpAddr>().map(|ip| ip.to_string());
        if canonical.as_deref() != Ok(name) {
            errors.invalid(
                "metadata.name",
                name,
                "must be a valid IP address in canonical form, (e.g. 10.9.8.7 or 2001:db8::ffff)",
            );
        }
        validate_parent(&object["spec"]["parentRef"], &mut errors);
        errors
    }

    fn validate_update(&self, object: &Value, old: &Value) -> FieldErrors {
        let mut errors = self.validate_create(object);
        let parent = &object["spec"]["parentRef"];
        if !same(parent, &old["spec"]["parentRef"]) {
            errors.invalid("spec.parentRef", parent.clone(), "field is immutable");
        }
        errors
    }

    fn selectable_fields(&self, object: &Value) -> Vec<(Name, String)> {
        let parent = &object["spec"]["parentRef"];
        ["group", "resource", "namespace", "name"]
            .map(|field| {
                let value = parent[field].text().to_owned();
                (format!("spec.parentRef.{field}").into(), value)
            })
            .into()
    }

    fn selectable_field_names(&self) -> &'static [&'static str] {
        &[
            "spec.parentRef.group",
            "spec.parentRef.resource",
            "spec.parentRef.namespace",
            "spec.parentRef.name",
        ]
    }

    fn columns(&self) -> Vec<Column> {
        vec![
            name_column(),
            column("ParentRef", "string", "What has the address."),
            age_column(),
        ]
    }

    fn row(&self, object: &Value, now: Timestamp) -> Vec<Value> {
        vec![
            name(object),
            parent_text(&object["spec"]["parentRef"]).into(),
            age(object, now),
        ]
    }
}

/// `services/default/web`, with the group before when there is one; `<none>` without a parent.
fn parent_text(parent: &Value) -> String {
    if parent.is_null() {
        return "<none>".into();
    }
    let resource = match parent["group"].text() {
        "" => parent["resource"].text().to_owned(),
        group => format!("{}.{group}", parent["resource"].text()),
    };
    match parent["namespace"].text() {
        "" => format!("{resource}/{}", parent["name"].text()),
        namespace => format!("{resource}/{namespace}/{}", parent["name"].text()),
    }
}

fn validate_parent(parent: &Value, errors: &mut FieldErrors) {
    let path = Path::new("spec").child("parentRef");
    if parent.is_null() {
        errors.required(path, "");
        return;
    }
    let group = parent["group"].text();
    if !group.is_empty() {
        for message in names::dns1123_subdomain(group) {
            errors.invalid(path.child("group"), group, message);
        }
    }
    for field in ["resource", "name"] {
        let text = parent[field].text();
        if text.is_empty() {
            errors.required(path.child(field), "");
        }
        for message in names::path_segment(text, false) {
            errors.invalid(path.child(field), text, message);
        }
    }
    for message in names::path_segment(parent["namespace"].text(), false) {
        errors.invalid(path.child("namespace"), parent["namespace"].text(), message);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_name_is_the_address_and_the_parent_stays() {
        let parent = json!({"resource": "services", "namespace": "default", "name": "web"});
        let object = json!({"metadata": {"name": "10.0.0.7"}, "spec": {"parentRef": parent}});
        assert!(Addresses.validate_create(&object).is_empty());
        assert_eq!(
            parent_text(&object["spec"]["parentRef"]),
            "services/default/web"
        );
        let mut other = object.clone();
        other["metadata"]["name"] = json!("2001:DB8::1");
        other["spec"]["parentRef"]["name"] = json!("api");
        let fields: Vec<String> = Addresses
            .validate_update(&other, &object)
            .0
            .into_iter()
            .map(|e| e.field)
            .collect();
        assert_eq!(fields, ["metadata.name", "spec.parentRef"]);
    }
}
