//! Checks of pods and pod templates, in upstream's order, words and field paths.
//!
//! Source of rules: `pkg/apis/core/validation/validation.go`.

mod containers;
mod env;
mod probes;
mod scheduling;
mod security;
pub(in crate::kinds::pod) mod subresources;
mod update;
mod volumes;

pub(in crate::kinds) use scheduling::validate_tolerations;

use std::collections::BTreeSet;

use serde_json::Value;

use crate::kinds::amounts;
use crate::kinds::walk::Walk;
use crate::status::FieldErrors;
use crate::validation::metadata::{validate_annotations, validate_labels};
use crate::validation::selector::selector_matches;
use crate::validation::{Path, each_invalid, names, one_of, one_of_or_none};

pub use scheduling::validate_node_selector;
pub use subresources::{validate_ephemeral_containers_update, validate_resize};
pub use update::{validate_pod_status_update, validate_pod_update};

/// Problems of a new Pod, beside those of its metadata.
#[must_use]
pub fn validate_pod_create(pod: &Value) -> FieldErrors {
    let mut errors = FieldErrors::default();
    let path = Path::new("spec");
    validate_pod_spec(&pod["spec"], &path, &mut errors);
    containers::validate_images(&pod["spec"], &path, &mut errors);
    if !pod["spec"]["ephemeralContainers"].is_empty() {
        errors.forbidden(path.child("ephemeralContainers"), "cannot be set on create");
    }
    if !pod["spec"]["schedulingGates"].is_empty() && !pod["spec"]["nodeName"].is_empty() {
        errors.forbidden(
            path.child("nodeName"),
            "cannot be set until all schedulingGates have been cleared",
        );
    }
    errors
}

/// Problems of a pod template of a workload, beside what the workload itself demands of it.
pub fn validate_pod_template(template: &Value, path: &Path, errors: &mut FieldErrors) {
    let metadata = path.child("metadata");
    validate_labels(
        &template["metadata"]["labels"],
        &path.child("labels"),
        errors,
    );
    validate_annotations(
        &template["metadata"]["annotations"],
        &path.child("annotations"),
        errors,
    );
    for finalizer in template["metadata"]["finalizers"].items() {
        each_invalid(
            &metadata.child("finalizers"),
            finalizer.text(),
            names::qualified_name(finalizer.text()),
            errors,
        );
    }
    let spec = path.child("spec");
    validate_pod_spec(&template["spec"], &spec, errors);
    if !template["spec"]["ephemeralContainers"].is_empty() {
        errors.forbidden(
            spec.child("ephemeralContainers"),
            "ephemeral containers not allowed in pod template",
        );
    }
}

/// A template of a workload that keeps its pods running: labels selected, always restarted, without deadline.
pub fn validate_running_template(
    template: &Value,
    selector: &Value,
    kind: &str,
    path: &Path,
    errors: &mut FieldErrors,
) {
    let labels = &template["metadata"]["labels"];
    if selector.present() && !selector.is_empty() && !selector_matches(selector, labels) {
        let labels = if labels.is_null() {
            serde_json::json!({})
        } else {
            labels.clone()
        };
        errors.invalid(
            path.child("metadata").child("labels"),
            labels,
            "`selector` does not match template `labels`",
        );
    }
    validate_pod_template(template, path, errors);
    let spec = path.child("spec");
    let policy = template["spec"]["restartPolicy"].text();
    if policy != "Always" {
        errors.not_supported(spec.child("restartPolicy"), policy, &["Always"]);
    }
    if template["spec"]["activeDeadlineSeconds"].present() {
        errors.forbidden(
            spec.child("activeDeadlineSeconds"),
            format!("activeDeadlineSeconds in {kind} is not Supported"),
        );
    }
}

/// Problems of a pod's spec.
pub fn validate_pod_spec(spec: &Value, path: &Path, errors: &mut FieldErrors) {
    let volumes = volumes::validate_volumes(&spec["volumes"], &path.child("volumes"), errors);
    containers::validate_all(spec, &volumes, path, errors);
    one_of(
        &spec["restartPolicy"],
        &["Always", "OnFailure", "Never"],
        &path.child("restartPolicy"),
        errors,
    );
    one_of(
        &spec["dnsPolicy"],
        &["ClusterFirstWithHostNet", "ClusterFirst", "Default", "None"],
        &path.child("dnsPolicy"),
        errors,
    );
    validate_labels(&spec["nodeSelector"], &path.child("nodeSelector"), errors);
    security::validate_pod(spec, path, errors);
    scheduling::validate(spec, path, errors);
    validate_dns(spec, path, errors);
    validate_gates(spec, path, errors);
    validate_names(spec, path, errors);
    if let Some(deadline) = spec["activeDeadlineSeconds"].int()
        && !(1..=i64::from(i32::MAX)).contains(&deadline)
    {
        let path = path.child("activeDeadlineSeconds");
        errors.invalid(path, deadline, names::range_error(1, i64::from(i32::MAX)));
    }
    validate_host_aliases(spec, path, errors);
    one_of_or_none(
        &spec["preemptionPolicy"],
        &["PreemptLowerPriority", "Never"],
        &path.child("preemptionPolicy"),
        errors,
    );
    validate_overhead(&spec["overhead"], &path.child("overhead"), errors);
    validate_hostname_override(spec, path, errors);
    if spec["os"].present() {
        one_of(
            &spec["os"]["name"],
            &["linux", "windows"],
            &path.child("os").child("name"),
            errors,
        );
    }
}

/// What is wrong with a name.
type NameCheck = fn(&str) -> Vec<String>;

fn validate_names(spec: &Value, path: &Path, errors: &mut FieldErrors) {
    let rules: [(&str, NameCheck); 6] = [
        ("serviceAccountName", names::dns1123_subdomain),
        ("nodeName", names::dns1123_subdomain),
        ("hostname", names::dns1123_label),
        ("subdomain", names::dns1123_label),
        ("priorityClassName", names::dns1123_subdomain),
        ("runtimeClassName", names::dns1123_subdomain),
    ];
    for (field, rule) in rules {
        let name = spec[field].text();
        if !name.is_empty() {
            each_invalid(&path.child(field), name, rule(name), errors);
        }
    }
}

/// KEP-4762: the node's name, or that of the FQDN, cannot be overridden at once.
fn validate_hostname_override(spec: &Value, path: &Path, errors: &mut FieldErrors) {
    const LIMIT: usize = 64;
    let (Some(name), path) = (
        spec["hostnameOverride"].as_str(),
        path.child("hostnameOverride"),
    ) else {
        return;
    };
    if spec["setHostnameAsFQDN"].is_true() {
        errors.forbidden(&path, "must not be set when `setHostnameAsFQDN` is true");
    }
    if spec["hostNetwork"].is_true() {
        errors.forbidden(&path, "must not be set when `hostNetwork` is true");
    }
    if name.len() > LIMIT {
        errors.too_long(&path, LIMIT);
    }
    each_invalid(&path, name, names::dns1123_subdomain(name), errors);
}

fn validate_overhead(overhead: &Value, path: &Path, errors: &mut FieldErrors) {
    for (name, amount) in overhead.entries() {
        let path = path.key(name);
        each_invalid(&path, name, names::qualified_name(name), errors);
        amounts::validate_non_negative(amount, &path, errors);
    }
}

fn validate_gates(spec: &Value, path: &Path, errors: &mut FieldErrors) {
    for (i, gate) in spec["readinessGates"].items().iter().enumerate() {
        let condition = gate["conditionType"].text();
        let path = path.child("readinessGates").index(i).child("conditionType");
        each_invalid(&path, condition, names::qualified_name(condition), errors);
    }
    let mut seen = BTreeSet::new();
    for (i, gate) in spec["schedulingGates"].items().iter().enumerate() {
        let name = gate["name"].text();
        let path = path.child("schedulingGates").index(i);
        each_invalid(&path, name, names::qualified_name(name), errors);
        if !seen.insert(name) {
            errors.duplicate(path, name);
        }
    }
}

fn validate_host_aliases(spec: &Value, path: &Path, errors: &mut FieldErrors) {
    for (i, alias) in spec["hostAliases"].items().iter().enumerate() {
        let path = path.child("hostAliases").index(i);
        each_invalid(
            &path.child("ip"),
            alias["ip"].text(),
            names::ip(alias["ip"].text()),
            errors,
        );
        for hostname in alias["hostnames"].items() {
            let hostname = hostname.text();
            each_invalid(
                &path.child("hostnames"),
                hostname,
                names::dns1123_subdomain(hostname),
                errors,
            );
        }
    }
}

fn validate_dns(spec: &Value, path: &Path, errors: &mut FieldErrors) {
    let config = &spec["dnsConfig"];
    let path = path.child("dnsConfig");
    if spec["dnsPolicy"] == "None" {
        if config.is_null() {
            errors.required(&path, "must provide `dnsConfig` when `dnsPolicy` is None");
            return;
        }
        if config["nameservers"].is_empty() {
            errors.required(
                path.child("nameservers"),
                "must provide at least one DNS nameserver when `dnsPolicy` is None",
            );
            return;
        }
    }
    let servers = config["nameservers"].items();
    if servers.len() > 3 {
        let path = path.child("nameservers");
        errors.invalid(
            path,
            config["nameservers"].clone(),
            "must not have more than 3 nameservers",
        );
    }
    for (i, server) in servers.iter().enumerate() {
        each_invalid(
            &path.child("nameservers").index(i),
            server.text(),
            names::ip(server.text()),
            errors,
        );
    }
    validate_searches(config, &path, errors);
    for (i, option) in config["options"].items().iter().enumerate() {
        if option["name"].is_empty() {
            errors.required(path.child("options").index(i), "must not be empty");
        }
    }
}

fn validate_searches(config: &Value, path: &Path, errors: &mut FieldErrors) {
    let searches = config["searches"].items();
    let path_of = path.child("searches");
    if searches.len() > 32 {
        errors.invalid(
            &path_of,
            config["searches"].clone(),
            "must not have more than 32 search paths",
        );
    }
    let characters: usize = searches.iter().map(|s| s.text().len() + 1).sum();
    if characters > 2049 {
        errors.invalid(
            &path_of,
            config["searches"].clone(),
            "must not have more than 2048 characters (including spaces) in the search list",
        );
    }
    for (i, search) in searches.iter().enumerate() {
        // A lone dot and underscores are allowed since v1.34.
        let text = search.text();
        let name = text.strip_suffix('.').unwrap_or(text).replace('_', "a");
        if text != "." {
            each_invalid(
                &path_of.index(i),
                text,
                names::dns1123_subdomain(&name),
                errors,
            );
        }
    }
}
