//! Probes, lifecycle hooks and what they do.

use serde_json::Value;

use crate::kinds::walk::Walk;
use crate::status::FieldErrors;
use crate::validation::{Path, each_invalid, names, non_negative, one_of};

const HANDLERS: [&str; 5] = ["exec", "httpGet", "tcpSocket", "grpc", "sleep"];

/// The three probes of a container.
pub(super) fn validate_probes(container: &Value, path: &Path, errors: &mut FieldErrors) {
    for name in ["livenessProbe", "readinessProbe", "startupProbe"] {
        let probe = &container[name];
        if probe.is_null() {
            continue;
        }
        let path = path.child(name);
        validate_handler(
            probe,
            &["exec", "httpGet", "tcpSocket", "grpc"],
            0,
            &path,
            errors,
        );
        for field in [
            "initialDelaySeconds",
            "timeoutSeconds",
            "periodSeconds",
            "successThreshold",
            "failureThreshold",
        ] {
            non_negative(&probe[field], &path.child(field), errors);
        }
        let grace = &probe["terminationGracePeriodSeconds"];
        if let Some(seconds) = grace.int() {
            if name == "readinessProbe" {
                errors.invalid(
                    path.child("terminationGracePeriodSeconds"),
                    seconds,
                    "must not be set for readinessProbes",
                );
            } else if seconds <= 0 {
                errors.invalid(
                    path.child("terminationGracePeriodSeconds"),
                    seconds,
                    "must be greater than 0",
                );
            }
        }
        if let Some(threshold) = probe["successThreshold"].int()
            && name != "readinessProbe"
            && threshold != 1
        {
            errors.invalid(path.child("successThreshold"), threshold, "must be 1");
        }
    }
}

/// `lifecycle` of a container; `grace` is the pod's termination grace period in seconds.
pub(super) fn validate_lifecycle(
    lifecycle: &Value,
    grace: i64,
    path: &Path,
    errors: &mut FieldErrors,
) {
    for hook in ["postStart", "preStop"] {
        if lifecycle[hook].present() {
            let path = path.child(hook);
            validate_handler(
                &lifecycle[hook],
                &["exec", "httpGet", "tcpSocket", "sleep"],
                grace,
                &path,
                errors,
            );
        }
    }
}

fn validate_handler(
    handler: &Value,
    allowed: &[&str],
    grace: i64,
    path: &Path,
    errors: &mut FieldErrors,
) {
    let mut found = 0;
    for name in HANDLERS {
        if handler[name].is_null() || !allowed.contains(&name) {
            continue;
        }
        let path = path.child(name);
        found += 1;
        if found > 1 {
            errors.forbidden(path, "may not specify more than 1 handler type");
            continue;
        }
        match name {
            "exec" => {
                if handler[name]["command"].is_empty() {
                    errors.required(path.child("command"), "");
                }
            }
            "httpGet" => validate_http(&handler[name], &path, errors),
            "tcpSocket" => validate_port(&handler[name]["port"], &path.child("port"), errors),
            "grpc" => {
                let port = handler[name]["port"].int().unwrap_or_default();
                for message in names::port_number(port) {
                    errors.invalid(path.child("port"), port, message);
                }
            }
            _ => validate_sleep(&handler[name], grace, &path, errors),
        }
    }
    if found == 0 {
        errors.required(path, "must specify a handler type");
    }
}

fn validate_sleep(sleep: &Value, grace: i64, path: &Path, errors: &mut FieldErrors) {
    let seconds = sleep["seconds"].int().unwrap_or_default();
    if seconds < 0 || seconds > grace {
        errors.invalid(
            path,
            seconds,
            format!("must be non-negative and less than terminationGracePeriodSeconds ({grace})"),
        );
    }
}

fn validate_http(http: &Value, path: &Path, errors: &mut FieldErrors) {
    if http["path"].is_empty() {
        errors.required(path.child("path"), "");
    }
    validate_port(&http["port"], &path.child("port"), errors);
    one_of(
        &http["scheme"],
        &["HTTP", "HTTPS"],
        &path.child("scheme"),
        errors,
    );
    for header in http["httpHeaders"].items() {
        let name = header["name"].text();
        each_invalid(
            &path.child("httpHeaders"),
            name,
            names::http_header_name(name),
            errors,
        );
    }
}

/// A port by number or by name.
pub(super) fn validate_port(port: &Value, path: &Path, errors: &mut FieldErrors) {
    match port {
        Value::String(name) => each_invalid(path, name, names::port_name(name), errors),
        _ => {
            let number = port.int().unwrap_or_default();
            for message in names::port_number(number) {
                errors.invalid(path, number, message);
            }
        }
    }
}
