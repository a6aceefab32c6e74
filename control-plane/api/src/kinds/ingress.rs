//! Ingresses: HTTP hosts and paths to Services.

use std::sync::Arc;

use jiff::Timestamp;
use serde_json::{Value, json};

use super::declare::{Declaration, keep_generation, set_generation, update_with_status};
use super::service::points_of_entry;
use super::walk::{Walk, carry_over, set};
use crate::kind::{Column, Kind, Strategy};
use crate::status::FieldErrors;
use crate::table::{age, age_column, column, name, name_column, or_none};
use crate::validation::{Path, each_invalid, names};

/// The annotation that named the class before there was a field for it.
const CLASS: &str = "kubernetes.io/ingress.class";

pub(super) fn kind() -> Arc<Kind> {
    Declaration::namespaced("networking.k8s.io", "v1", "Ingress", "ingresses", Ingresses)
        .short_names(&["ing"])
        .status()
        .build()
}

struct Ingresses;

impl Strategy for Ingresses {
    fn prepare_create(&self, object: &mut Value) {
        set(object, "status", json!({ "loadBalancer": {} }));
        set_generation(object, 1);
    }

    fn prepare_update(&self, object: &mut Value, old: &Value) {
        update_with_status(object, old);
    }

    fn prepare_status_update(&self, object: &mut Value, old: &Value) {
        carry_over(object, old, "spec");
        keep_generation(object, old);
    }

    fn validate_create(&self, object: &Value) -> FieldErrors {
        let mut errors = validate(object);
        validate_class(object, &mut errors);
        errors
    }

    fn validate_update(&self, object: &Value, _old: &Value) -> FieldErrors {
        validate(object)
    }

    fn validate_status_update(&self, object: &Value, _old: &Value) -> FieldErrors {
        let mut errors = FieldErrors::default();
        let path = Path::new("status").child("loadBalancer").child("ingress");
        points_of_entry(
            &object["status"]["loadBalancer"]["ingress"],
            &path,
            &mut errors,
        );
        errors
    }

    fn warnings(&self, object: &Value, old: Option<&Value>) -> Vec<String> {
        if old.is_some() || object["metadata"]["annotations"][CLASS].is_null() {
            return Vec::new();
        }
        vec![format!(
            "annotation {CLASS:?} is deprecated, please use 'spec.ingressClassName' instead"
        )]
    }

    fn columns(&self) -> Vec<Column> {
        vec![
            name_column(),
            column("Class", "string", "Class of the controller that serves it."),
            column("Hosts", "string", "Hosts of its rules."),
            column("Address", "string", "Where it is reached."),
            column("Ports", "string", "Ports that are open."),
            age_column(),
        ]
    }

    fn row(&self, object: &Value, now: Timestamp) -> Vec<Value> {
        let spec = &object["spec"];
        let addresses: Vec<&str> = object["status"]["loadBalancer"]["ingress"]
            .items()
            .iter()
            .map(|i| {
                if i["ip"].is_empty() {
                    i["hostname"].text()
                } else {
                    i["ip"].text()
                }
            })
            .collect();
        vec![
            name(object),
            or_none(spec["ingressClassName"].text()),
            hosts(spec).into(),
            addresses.join(",").into(),
            if spec["tls"].is_empty() {
                "80"
            } else {
                "80, 443"
            }
            .into(),
            age(object, now),
        ]
    }
}

fn hosts(spec: &Value) -> String {
    let all: Vec<&str> = spec["rules"]
        .items()
        .iter()
        .map(|r| r["host"].text())
        .filter(|h| !h.is_empty())
        .collect();
    match all.len() {
        0 => "*".into(),
        n if n <= 3 => all.join(","),
        n => format!("{} + {} more...", all[..3].join(","), n - 3),
    }
}

fn host_messages(host: &str) -> Vec<String> {
    if host.contains('*') {
        names::wildcard_dns1123_subdomain(host)
    } else {
        names::dns1123_subdomain(host)
    }
}

fn validate(object: &Value) -> FieldErrors {
    let mut errors = FieldErrors::default();
    let (spec, path) = (&object["spec"], Path::new("spec"));
    if spec["rules"].is_empty() && spec["defaultBackend"].is_null() {
        errors.invalid(
            &path,
            spec["rules"].clone(),
            "either `defaultBackend` or `rules` must be specified",
        );
    }
    if spec["defaultBackend"].present() {
        validate_backend(
            &spec["defaultBackend"],
            &path.child("defaultBackend"),
            &mut errors,
        );
    }
    for (i, rule) in spec["rules"].items().iter().enumerate() {
        validate_rule(rule, &path.child("rules").index(i), &mut errors);
    }
    for (i, tls) in spec["tls"].items().iter().enumerate() {
        for (j, host) in tls["hosts"].items().iter().enumerate() {
            let path = path.child("tls").index(i).child("hosts").index(j);
            each_invalid(&path, host.text(), host_messages(host.text()), &mut errors);
        }
    }
    let class = spec["ingressClassName"].text();
    if !class.is_empty() {
        each_invalid(
            &path.child("ingressClassName"),
            class,
            names::dns1123_subdomain(class),
            &mut errors,
        );
    }
    errors
}

/// An annotation beside the field names the same class, or two controllers would serve the Ingress.
fn validate_class(object: &Value, errors: &mut FieldErrors) {
    let annotation = &object["metadata"]["annotations"][CLASS];
    let class = &object["spec"]["ingressClassName"];
    if annotation.present() && class.present() && annotation != class {
        errors.invalid(
            Path::new("annotations").child(CLASS),
            annotation.text(),
            "must match `ingressClassName` when both are specified",
        );
    }
}

fn validate_rule(rule: &Value, path: &Path, errors: &mut FieldErrors) {
    let host = rule["host"].text();
    if !host.is_empty() {
        let host_path = path.child("host");
        if host.parse::<std::net::IpAddr>().is_ok() {
            errors.invalid(&host_path, host, "must be a DNS name, not an IP address");
        }
        each_invalid(&host_path, host, host_messages(host), errors);
    }
    let http = &rule["http"];
    if http.is_null() {
        return;
    }
    let list = path.child("http").child("paths");
    if http["paths"].is_empty() {
        errors.required(&list, "");
    }
    for (i, entry) in http["paths"].items().iter().enumerate() {
        let path = list.index(i);
        let target = entry["path"].text();
        match entry["pathType"].text() {
            "" => errors.required(path.child("pathType"), "pathType must be specified"),
            "Exact" | "Prefix" => validate_path(target, &path.child("path"), errors),
            "ImplementationSpecific" => {
                if !target.is_empty() && !target.starts_with('/') {
                    errors.invalid(path.child("path"), target, "must be an absolute path");
                }
            }
            other => errors.not_supported(
                path.child("pathType"),
                other,
                &["Exact", "ImplementationSpecific", "Prefix"],
            ),
        }
        validate_backend(&entry["backend"], &path.child("backend"), errors);
    }
}

fn validate_path(target: &str, path: &Path, errors: &mut FieldErrors) {
    if !target.starts_with('/') {
        errors.invalid(path, target, "must be an absolute path");
    }
    for sequence in ["//", "/./", "/../", "%2f", "%2F"] {
        if target.contains(sequence) {
            errors.invalid(path, target, format!("must not contain '{sequence}'"));
        }
    }
    for suffix in ["/..", "/."] {
        if target.ends_with(suffix) {
            errors.invalid(path, target, format!("cannot end with '{suffix}'"));
        }
    }
}

fn validate_backend(backend: &Value, path: &Path, errors: &mut FieldErrors) {
    let (service, resource) = (&backend["service"], &backend["resource"]);
    if service.present() && resource.present() {
        errors.invalid(path, "", "cannot set both resource and service backends");
    } else if service.present() {
        let path = path.child("service");
        match service["name"].text() {
            "" => errors.required(path.child("name"), ""),
            name => each_invalid(
                &path.child("name"),
                name,
                names::dns1035_label(name),
                errors,
            ),
        }
        let (port_name, number) = (
            service["port"]["name"].text(),
            service["port"]["number"].int().unwrap_or_default(),
        );
        if !port_name.is_empty() && number != 0 {
            errors.invalid(path, "", "cannot set both port name & port number");
        } else if !port_name.is_empty() {
            each_invalid(
                &path.child("port").child("name"),
                port_name,
                names::port_name(port_name),
                errors,
            );
        } else if number == 0 {
            errors.required(path, "port name or number is required");
        } else {
            for message in names::port_number(number) {
                errors.invalid(path.child("port").child("number"), number, message);
            }
        }
    } else if resource.is_null() {
        errors.required(
            path,
            "a valid backend must be specified: either `service` or `resource`",
        );
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_status_names_addresses_and_hosts() {
        let said = |entry: Value| {
            let object = json!({"status": {"loadBalancer": {"ingress": [entry]}}});
            let errors = Ingresses.validate_status_update(&object, &json!({}));
            errors.0.len()
        };
        assert_eq!(
            said(json!({"ip": "192.0.2.1", "hostname": "lb.example.com"})),
            0
        );
        assert_eq!(said(json!({"ip": "lb.example.com"})), 1);
        assert_eq!(said(json!({"hostname": "192.0.2.1"})), 1);
    }

    #[test]
    fn a_new_class_annotation_names_the_class_of_the_field() {
        let said = |annotation: &str, class: Value| {
            let object = json!({
                "metadata": {"name": "i", "annotations": {CLASS: annotation}},
                "spec": {"ingressClassName": class, "defaultBackend": {"service": {"name": "s", "port": {"number": 80}}}},
            });
            let updated = Ingresses.validate_update(&object, &object);
            assert!(updated.0.is_empty());
            let errors = Ingresses.validate_create(&object);
            errors
                .0
                .iter()
                .map(crate::status::FieldError::text)
                .collect::<Vec<_>>()
        };
        assert!(said("a", json!("a")).is_empty());
        assert!(said("a", Value::Null).is_empty());
        assert_eq!(
            said("a", json!("b")),
            [
                "annotations.kubernetes.io/ingress.class: Invalid value: \"a\": must match `ingressClassName` when both are specified"
            ]
        );
    }

    #[test]
    fn a_rule_needs_a_path_type_and_a_backend() {
        let object = json!({"metadata": {"name": "i"}, "spec": {"rules": [{"host": "a.example.com", "http": {"paths": [{"path": "/", "backend": {"service": {"name": "s"}}}]}}]}});
        let texts: Vec<String> = Ingresses
            .validate_create(&object)
            .0
            .iter()
            .map(crate::status::FieldError::text)
            .collect();
        assert_eq!(
            texts,
            [
                "spec.rules[0].http.paths[0].pathType: Required value: pathType must be specified",
                "spec.rules[0].http.paths[0].backend.service: Required value: port name or number is required",
            ]
        );
        let row = Ingresses.row(&object, "2026-01-01T00:00:00Z".parse().unwrap());
        assert_eq!(row, ["i", "<none>", "a.example.com", "", "80", "<unknown>"]);
    }
}
