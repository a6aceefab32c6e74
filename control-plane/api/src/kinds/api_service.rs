//! APIServices: who serves a group version, this server or another one behind a Service.

use std::sync::Arc;

use jiff::Timestamp;
use serde_json::{Value, json};

use super::declare::{Declaration, keep_generation, update_only_status};
use super::walk::{Walk, carry_over, fill, get_mut, set};
use crate::kind::{Column, Kind, Strategy};
use crate::status::FieldErrors;
use crate::table::{age, age_column, column, name, name_column};
use crate::validation::{Path, names};

/// Greatest `groupPriorityMinimum`.
const GROUP_PRIORITY: i64 = 20_000;
/// Greatest `versionPriority`.
const VERSION_PRIORITY: i64 = 1000;

pub(super) fn kind() -> Arc<Kind> {
    Declaration::cluster(
        "apiregistration.k8s.io",
        "v1",
        "APIService",
        "apiservices",
        ApiServices,
    )
    .categories(&["api-extensions"])
    .status()
    .build()
}

struct ApiServices;

impl Strategy for ApiServices {
    fn default(&self, object: &mut Value) {
        if let Some(service) = get_mut(object, "spec").and_then(|spec| get_mut(spec, "service")) {
            fill(service, "port", 443);
        }
    }

    /// One that is served here is available from the start.
    fn prepare_create(&self, object: &mut Value) {
        let status = if object["spec"]["service"].is_null() {
            json!({"conditions": [local_condition(&object["metadata"]["creationTimestamp"])]})
        } else {
            json!({})
        };
        set(object, "status", status);
    }

    fn prepare_update(&self, object: &mut Value, old: &Value) {
        carry_over(object, old, "status");
        keep_generation(object, old);
    }

    fn prepare_status_update(&self, object: &mut Value, old: &Value) {
        update_only_status(object, old);
    }

    fn validate_create(&self, object: &Value) -> FieldErrors {
        let mut errors = FieldErrors::default();
        let (spec, path) = (&object["spec"], Path::new("spec"));
        let (group, version) = (spec["group"].text(), spec["version"].text());
        let name = object["metadata"]["name"].text();
        let required = format!("{version}.{group}");
        if name != required {
            errors.invalid(
                "metadata.name",
                name,
                format!("must be `spec.version+\".\"+spec.group`: {required:?}"),
            );
        }
        if !group.is_empty() {
            for message in names::dns1123_subdomain(group) {
                errors.invalid(path.child("group"), group, message);
            }
        } else if version != "v1" {
            errors.invalid(
                path.child("group"),
                group,
                "only v1 may have an empty group and it better be legacy kube",
            );
        }
        for message in names::dns1035_label(version) {
            errors.invalid(path.child("version"), version, message);
        }
        for (field, greatest) in [
            ("groupPriorityMinimum", GROUP_PRIORITY),
            ("versionPriority", VERSION_PRIORITY),
        ] {
            let priority = spec[field].int().unwrap_or_default();
            if !(1..=greatest).contains(&priority) {
                errors.invalid(
                    path.child(field),
                    priority,
                    format!("must be positive and less than {greatest}"),
                );
            }
        }
        validate_service(spec, &path, &mut errors);
        errors
    }

    fn validate_update(&self, object: &Value, _old: &Value) -> FieldErrors {
        self.validate_create(object)
    }

    fn validate_status_update(&self, object: &Value, _old: &Value) -> FieldErrors {
        let mut errors = FieldErrors::default();
        let path = Path::new("status").child("conditions");
        for (i, condition) in object["status"]["conditions"].items().iter().enumerate() {
            crate::validation::one_of(
                &condition["status"],
                &["False", "True", "Unknown"],
                &path.index(i).child("status"),
                &mut errors,
            );
        }
        errors
    }

    fn columns(&self) -> Vec<Column> {
        vec![
            name_column(),
            column("Service", "string", "Where the group version is served."),
            column("Available", "string", "Whether it answers."),
            age_column(),
        ]
    }

    fn row(&self, object: &Value, now: Timestamp) -> Vec<Value> {
        let service = &object["spec"]["service"];
        let place = if service.is_null() {
            "Local".to_owned()
        } else {
            format!("{}/{}", service["namespace"].text(), service["name"].text())
        };
        let condition = object["status"]["conditions"]
            .items()
            .iter()
            .find(|c| c["type"] == "Available");
        let available = match condition {
            None => "Unknown".to_owned(),
            Some(c) if c["status"] == "True" => "True".to_owned(),
            Some(c) => format!("{} ({})", c["status"].text(), c["reason"].text()),
        };
        vec![
            name(object),
            place.into(),
            available.into(),
            age(object, now),
        ]
    }
}

fn local_condition(now: &Value) -> Value {
    let mut condition = json!({
        "type": "Available", "status": "True", "reason": "Local",
        "message": "Local APIServices are always available",
    });
    if now.present() {
        set(&mut condition, "lastTransitionTime", now.clone());
    }
    condition
}

fn validate_service(spec: &Value, path: &Path, errors: &mut FieldErrors) {
    let service = &spec["service"];
    let verified = !spec["caBundle"].is_empty();
    let insecure = spec["insecureSkipTLSVerify"].is_true();
    if service.is_null() {
        if verified {
            errors.invalid(
                path.child("caBundle"),
                spec["caBundle"].clone(),
                "local APIServices may not have a caBundle",
            );
        }
        if insecure {
            errors.invalid(
                path.child("insecureSkipTLSVerify"),
                true,
                "local APIServices may not have insecureSkipTLSVerify",
            );
        }
        return;
    }
    let service_path = path.child("service");
    for field in ["namespace", "name"] {
        if service[field].is_empty() {
            errors.required(service_path.child(field), "");
        }
    }
    if let Some(port) = service["port"].int() {
        for message in names::port_number(port) {
            errors.invalid(
                service_path.child("port"),
                port,
                format!("port is not valid: {message}"),
            );
        }
    }
    if insecure && verified {
        errors.invalid(
            path.child("insecureSkipTLSVerify"),
            true,
            "may not be true if caBundle is present",
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_name_is_version_and_group() {
        let mut object = json!({
            "metadata": {"name": "v1.example.com"},
            "spec": {"group": "example.com", "version": "v1", "groupPriorityMinimum": 100, "versionPriority": 10, "service": {"namespace": "n", "name": "s"}},
        });
        ApiServices.default(&mut object);
        assert_eq!(object["spec"]["service"]["port"], 443);
        assert!(ApiServices.validate_create(&object).is_empty());
        object["metadata"]["name"] = json!("other");
        assert_eq!(
            ApiServices.validate_create(&object).0[0].field,
            "metadata.name"
        );
    }
}
