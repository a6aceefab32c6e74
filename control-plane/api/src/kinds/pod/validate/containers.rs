//! Containers of all three sorts, their ports, mounts and resources.

use std::collections::BTreeSet;

use serde_json::Value;

use super::volumes::Volumes;
use super::{env, probes, security};
use crate::kinds::amounts;
use crate::kinds::pod::resources::is_sidecar;
use crate::kinds::walk::Walk;
use crate::quantity::Quantity;
use crate::status::FieldErrors;
use crate::validation::{Path, each_invalid, names, one_of, one_of_or_none};

const PROTOCOLS: &[&str] = &["SCTP", "TCP", "UDP"];

/// What the checks of one container need to know of its pod.
struct Pod<'a> {
    volumes: &'a Volumes,
    host_network: bool,
    grace_seconds: i64,
}

/// All containers of a pod's spec.
pub(super) fn validate_all(spec: &Value, volumes: &Volumes, path: &Path, errors: &mut FieldErrors) {
    let pod = Pod {
        volumes,
        host_network: spec["hostNetwork"].is_true(),
        grace_seconds: spec["terminationGracePeriodSeconds"].int().unwrap_or(30),
    };
    let containers = spec["containers"].items();
    let list = path.child("containers");
    if containers.is_empty() {
        errors.required(&list, "");
    }
    let mut seen = BTreeSet::new();
    for (i, container) in containers.iter().enumerate() {
        let path = list.index(i);
        validate_container(container, &pod, &path, errors);
        unique_name(container, &mut seen, &path, errors);
        validate_running(container, &pod, &path, errors);
    }
    host_ports(containers, &list, errors);
    let list = path.child("initContainers");
    for (i, container) in spec["initContainers"].items().iter().enumerate() {
        let path = list.index(i);
        validate_container(container, &pod, &path, errors);
        unique_name(container, &mut seen, &path, errors);
        if is_sidecar(container) {
            validate_running(container, &pod, &path, errors);
        } else {
            validate_init(container, &path, errors);
        }
        host_ports(std::slice::from_ref(container), &list, errors);
    }
    let targets: Vec<&str> = containers
        .iter()
        .chain(spec["initContainers"].items())
        .map(|c| c["name"].text())
        .collect();
    let ephemeral = (&spec["ephemeralContainers"], targets.as_slice());
    validate_ephemeral(ephemeral, &pod, &mut seen, path, errors);
    if spec["resources"].present() {
        validate_pod_resources(spec, path, errors);
    }
}

/// Resources of the pod as a whole (KEP-2837): no less than its containers ask for, no limit below theirs.
fn validate_pod_resources(spec: &Value, spec_path: &Path, errors: &mut FieldErrors) {
    let (resources, path) = (&spec["resources"], &spec_path.child("resources"));
    validate_resources(resources, path, errors);
    if resources["claims"].present() {
        errors.forbidden(
            path.child("claims"),
            "claims may not be set for Resources at pod-level",
        );
    }
    for side in ["limits", "requests"] {
        for (name, _) in resources[side].entries() {
            if !matches!(name.as_str(), "cpu" | "memory") && !name.starts_with("hugepages-") {
                errors.not_supported(
                    path.child(side).key(name),
                    name.as_str(),
                    &["cpu", "memory", "hugepages-"],
                );
            }
        }
    }
    let mut containers_only = serde_json::json!({"spec": spec});
    if let Some(spec) = crate::kinds::walk::get_mut(&mut containers_only, "spec") {
        crate::kinds::walk::remove(spec, "resources");
        crate::kinds::walk::remove(spec, "overhead");
    }
    for (name, sum) in crate::kinds::pod::resources::pod_requests(&containers_only) {
        let Some(own) = amounts::amount(&resources["requests"][name.as_str()]) else {
            continue;
        };
        if own < sum {
            errors.invalid(
                path.child("requests").key(&name),
                own.to_string(),
                format!("must be greater than or equal to aggregate container requests of {sum}"),
            );
        }
    }
    for (i, container) in spec["containers"].items().iter().enumerate() {
        for (name, value) in container["resources"]["limits"].entries() {
            let limits = (
                amounts::amount(value),
                amounts::amount(&resources["limits"][name.as_str()]),
            );
            if let (Some(limit), Some(whole)) = limits
                && limit > whole
            {
                errors.invalid(
                    spec_path
                        .child("containers")
                        .index(i)
                        .child("resources")
                        .child("limits")
                        .key(name),
                    limit.to_string(),
                    format!("must be less than or equal to pod limits of {whole}"),
                );
            }
        }
    }
}

fn unique_name<'a>(
    container: &'a Value,
    seen: &mut BTreeSet<&'a str>,
    path: &Path,
    errors: &mut FieldErrors,
) {
    let name = container["name"].text();
    if !name.is_empty() && !seen.insert(name) {
        errors.duplicate(path.child("name"), name);
    }
}

/// What all sorts of containers have.
fn validate_container(container: &Value, pod: &Pod<'_>, path: &Path, errors: &mut FieldErrors) {
    match container["name"].text() {
        "" => errors.required(path.child("name"), ""),
        name => each_invalid(
            &path.child("name"),
            name,
            names::dns1123_label(name),
            errors,
        ),
    }
    if container["image"].is_empty() {
        errors.required(path.child("image"), "");
    }
    one_of(
        &container["terminationMessagePolicy"],
        &["FallbackToLogsOnError", "File"],
        &path.child("terminationMessagePolicy"),
        errors,
    );
    ports(
        &container["ports"],
        pod.host_network,
        &path.child("ports"),
        errors,
    );
    env::validate_env(&container["env"], &path.child("env"), errors);
    env::validate_env_from(&container["envFrom"], &path.child("envFrom"), errors);
    mounts(container, pod, path, errors);
    one_of(
        &container["imagePullPolicy"],
        &["Always", "IfNotPresent", "Never"],
        &path.child("imagePullPolicy"),
        errors,
    );
    validate_resources(&container["resources"], &path.child("resources"), errors);
    resize_policy(
        &container["resizePolicy"],
        &path.child("resizePolicy"),
        errors,
    );
    security::validate_container(
        &container["securityContext"],
        &path.child("securityContext"),
        errors,
    );
    one_of_or_none(
        &container["restartPolicy"],
        &["Always", "OnFailure", "Never"],
        &path.child("restartPolicy"),
        errors,
    );
    restart_rules(container, path, errors);
}

/// When a container is restarted in spite of its pod's policy (KEP-5307).
fn restart_rules(container: &Value, path: &Path, errors: &mut FieldErrors) {
    const RULES_LIMIT: usize = 20;
    const VALUES_LIMIT: usize = 255;
    let (rules, list) = (
        container["restartPolicyRules"].items(),
        path.child("restartPolicyRules"),
    );
    if !rules.is_empty() && container["restartPolicy"].is_null() {
        errors.required(
            path.child("restartPolicy"),
            "must specify restartPolicy when restart rules are used",
        );
    }
    if rules.len() > RULES_LIMIT {
        errors.too_long(&list, RULES_LIMIT);
    }
    for (i, rule) in rules.iter().enumerate() {
        let path = list.index(i);
        one_of(&rule["action"], &["Restart"], &path.child("action"), errors);
        let (codes, path) = (&rule["exitCodes"], path.child("exitCodes"));
        if codes.is_null() {
            errors.required(path, "must be specified");
            continue;
        }
        one_of(
            &codes["operator"],
            &["In", "NotIn"],
            &path.child("operator"),
            errors,
        );
        if codes["values"].items().len() > VALUES_LIMIT {
            errors.too_long(path.child("values"), VALUES_LIMIT);
        }
    }
}

/// What templates may have, as a mark for others to fill in, and pods may not.
pub(super) fn validate_images(spec: &Value, path: &Path, errors: &mut FieldErrors) {
    for list in ["containers", "initContainers", "ephemeralContainers"] {
        for (i, container) in spec[list].items().iter().enumerate() {
            let image = container["image"].text();
            if image.trim() != image {
                errors.invalid(
                    path.child(list).index(i).child("image"),
                    image,
                    "must not have leading or trailing whitespace",
                );
            }
        }
    }
    for (i, volume) in spec["volumes"].items().iter().enumerate() {
        if volume["image"].present() && volume["image"]["reference"].is_empty() {
            let at = path.child("volumes").index(i).child("image");
            errors.required(at.child("reference"), "");
        }
    }
}

/// Containers that keep running have hooks and probes.
fn validate_running(container: &Value, pod: &Pod<'_>, path: &Path, errors: &mut FieldErrors) {
    probes::validate_lifecycle(
        &container["lifecycle"],
        pod.grace_seconds,
        &path.child("lifecycle"),
        errors,
    );
    probes::validate_probes(container, path, errors);
}

fn validate_init(container: &Value, path: &Path, errors: &mut FieldErrors) {
    for field in [
        "lifecycle",
        "livenessProbe",
        "readinessProbe",
        "startupProbe",
    ] {
        if container[field].present() {
            errors.forbidden(
                path.child(field),
                "may not be set for init containers without restartPolicy=Always",
            );
        }
    }
}

fn validate_ephemeral<'a>(
    (list, targets): (&'a Value, &[&str]),
    pod: &Pod<'_>,
    seen: &mut BTreeSet<&'a str>,
    path: &Path,
    errors: &mut FieldErrors,
) {
    for (i, container) in list.items().iter().enumerate() {
        let path = path.child("ephemeralContainers").index(i);
        validate_container(container, pod, &path, errors);
        unique_name(container, seen, &path, errors);
        let target = container["targetContainerName"].text();
        if !target.is_empty() && !targets.contains(&target) {
            errors.not_found(path.child("targetContainerName"), target);
        }
        for (j, mount) in container["volumeMounts"].items().iter().enumerate() {
            for field in ["subPath", "subPathExpr"] {
                if !mount[field].is_empty() {
                    errors.forbidden(
                        path.child("volumeMounts").index(j).child(field),
                        "cannot be set for an Ephemeral Container",
                    );
                }
            }
        }
        for field in [
            "ports",
            "livenessProbe",
            "readinessProbe",
            "startupProbe",
            "lifecycle",
            "resizePolicy",
        ] {
            if !container[field].is_empty() {
                errors.forbidden(
                    path.child(field),
                    "cannot be set for an Ephemeral Container",
                );
            }
        }
        if !container["resources"].is_empty() {
            errors.forbidden(
                path.child("resources"),
                "cannot be set for an Ephemeral Container",
            );
        }
    }
}

fn ports(list: &Value, host_network: bool, path: &Path, errors: &mut FieldErrors) {
    let mut seen = BTreeSet::new();
    for (i, port) in list.items().iter().enumerate() {
        let path = path.index(i);
        let name = port["name"].text();
        if !name.is_empty() {
            let messages = names::port_name(name);
            let bad = !messages.is_empty();
            each_invalid(&path.child("name"), name, messages, errors);
            if !bad && !seen.insert(name) {
                errors.duplicate(path.child("name"), name);
            }
        }
        let number = port["containerPort"].int().unwrap_or_default();
        if number == 0 {
            errors.required(path.child("containerPort"), "");
        }
        for (field, number) in [
            ("containerPort", number),
            ("hostPort", port["hostPort"].int().unwrap_or_default()),
        ] {
            if number != 0 {
                for message in names::port_number(number) {
                    errors.invalid(path.child(field), number, message);
                }
            }
        }
        let host_port = port["hostPort"].int().unwrap_or_default();
        if host_network && host_port != 0 && host_port != number {
            let detail = "must match `hostPort` when `hostNetwork` is true";
            errors.invalid(path.child("containerPort"), number, detail);
        }
        one_of(
            &port["protocol"],
            PROTOCOLS,
            &path.child("protocol"),
            errors,
        );
        let host_ip = port["hostIP"].text();
        if !host_ip.is_empty() {
            each_invalid(&path.child("hostIP"), host_ip, names::ip(host_ip), errors);
        }
    }
}

/// No two containers of a pod can have the same port of the host.
fn host_ports(containers: &[Value], path: &Path, errors: &mut FieldErrors) {
    let mut seen = BTreeSet::new();
    for (i, container) in containers.iter().enumerate() {
        for (j, port) in container["ports"].items().iter().enumerate() {
            let number = port["hostPort"].int().unwrap_or_default();
            if number == 0 {
                continue;
            }
            let text = format!(
                "{}/{}/{number}",
                port["protocol"].text(),
                port["hostIP"].text()
            );
            if !seen.insert(text.clone()) {
                errors.duplicate(
                    path.index(i).child("ports").index(j).child("hostPort"),
                    text,
                );
            }
        }
    }
}

fn mounts(container: &Value, pod: &Pod<'_>, path: &Path, errors: &mut FieldErrors) {
    let list = path.child("volumeMounts");
    let mut seen = BTreeSet::new();
    for (i, mount) in container["volumeMounts"].items().iter().enumerate() {
        let path = list.index(i);
        let (name, target) = (mount["name"].text(), mount["mountPath"].text());
        if name.is_empty() {
            errors.required(path.child("name"), "");
        }
        if !pod.volumes.contains_key(name) {
            errors.not_found(path.child("name"), name);
        }
        if target.is_empty() {
            errors.required(path.child("mountPath"), "");
        }
        if !seen.insert(target) {
            errors.invalid(path.child("mountPath"), target, "must be unique");
        }
        if !mount["subPath"].is_empty() {
            local_path(mount["subPath"].text(), &path.child("subPath"), errors);
        }
        if !mount["subPathExpr"].is_empty() {
            if !mount["subPath"].is_empty() {
                let expression = mount["subPathExpr"].clone();
                errors.invalid(
                    path.child("subPathExpr"),
                    expression,
                    "subPathExpr and subPath are mutually exclusive",
                );
            }
            local_path(
                mount["subPathExpr"].text(),
                &path.child("subPathExpr"),
                errors,
            );
        }
        propagation(mount, container, &path, errors);
        recursive_read_only(mount, &path, errors);
    }
    devices(container, pod, &seen, path, errors);
}

fn propagation(mount: &Value, container: &Value, path: &Path, errors: &mut FieldErrors) {
    let path = path.child("mountPropagation");
    one_of_or_none(
        &mount["mountPropagation"],
        &["Bidirectional", "HostToContainer", "None"],
        &path,
        errors,
    );
    if mount["mountPropagation"] == "Bidirectional"
        && !container["securityContext"]["privileged"].is_true()
    {
        errors.forbidden(
            path,
            "Bidirectional mount propagation is available only to privileged containers",
        );
    }
}

fn recursive_read_only(mount: &Value, path: &Path, errors: &mut FieldErrors) {
    let path = path.child("recursiveReadOnly");
    let mode = mount["recursiveReadOnly"].text();
    one_of_or_none(
        &mount["recursiveReadOnly"],
        &["Disabled", "Enabled", "IfPossible"],
        &path,
        errors,
    );
    if !matches!(mode, "Enabled" | "IfPossible") {
        return;
    }
    if !mount["readOnly"].is_true() {
        errors.forbidden(&path, "may only be specified when readOnly is true");
    }
    if !matches!(mount["mountPropagation"].text(), "" | "None") {
        errors.forbidden(
            &path,
            "may only be specified when mountPropagation is None or not specified",
        );
    }
}

fn devices(
    container: &Value,
    pod: &Pod<'_>,
    mounted: &BTreeSet<&str>,
    path: &Path,
    errors: &mut FieldErrors,
) {
    let mut seen = BTreeSet::new();
    for (i, device) in container["volumeDevices"].items().iter().enumerate() {
        let path = path.child("volumeDevices").index(i);
        let (name, target) = (device["name"].text(), device["devicePath"].text());
        if name.is_empty() {
            errors.required(path.child("name"), "");
        }
        match pod.volumes.get(name) {
            None => errors.not_found(path.child("name"), name),
            Some(source) if !matches!(source.as_str(), "persistentVolumeClaim" | "ephemeral") => {
                errors.invalid(path.child("name"), name, "can only use volume source type of PersistentVolumeClaim or Ephemeral for block mode");
            }
            Some(_) => {}
        }
        if target.is_empty() {
            errors.required(path.child("devicePath"), "");
        }
        if !seen.insert(target) {
            errors.invalid(path.child("devicePath"), target, "must be unique");
        }
        if mounted.contains(target) {
            errors.invalid(
                path.child("devicePath"),
                target,
                "must not already exist as a path in volumeMounts",
            );
        }
    }
}

/// A relative path that stays below where it starts.
pub(super) fn local_path(value: &str, path: &Path, errors: &mut FieldErrors) {
    if value.starts_with('/') {
        errors.invalid(path, value, "must be a relative path");
    }
    no_backsteps(value, path, errors);
}

pub(super) fn no_backsteps(value: &str, path: &Path, errors: &mut FieldErrors) {
    if value.split('/').any(|part| part == "..") {
        errors.invalid(path, value, "must not contain '..'");
    }
}

fn resize_policy(list: &Value, path: &Path, errors: &mut FieldErrors) {
    let mut seen = BTreeSet::new();
    for policy in list.items() {
        one_of(&policy["resourceName"], &["cpu", "memory"], path, errors);
        one_of(
            &policy["restartPolicy"],
            &["NotRequired", "RestartContainer"],
            path,
            errors,
        );
        if !seen.insert(policy["resourceName"].text()) {
            errors.duplicate(path, policy["resourceName"].text());
        }
    }
}

/// `resources` of a container or of a pod.
pub(super) fn validate_resources(resources: &Value, path: &Path, errors: &mut FieldErrors) {
    let (limits_path, requests_path) = (path.child("limits"), path.child("requests"));
    for (name, value) in resources["limits"].entries() {
        validate_amount(name, value, &limits_path.key(name), errors);
    }
    for (name, value) in resources["requests"].entries() {
        let path = requests_path.key(name);
        let Some(request) = validate_amount(name, value, &path, errors) else {
            continue;
        };
        let whole_only = !overcommits(name);
        match amounts::amount(&resources["limits"][name.as_str()]) {
            Some(limit) if whole_only && request != limit => errors.invalid(
                &requests_path,
                request.to_string(),
                format!("must be equal to {name} limit of {limit}"),
            ),
            Some(limit) if request > limit => errors.invalid(
                &requests_path,
                request.to_string(),
                format!("must be less than or equal to {name} limit of {limit}"),
            ),
            None if whole_only => {
                errors.required(
                    &limits_path,
                    "Limit must be set for non overcommitable resources",
                );
            }
            _ => {}
        }
    }
}

fn validate_amount(
    name: &str,
    value: &Value,
    path: &Path,
    errors: &mut FieldErrors,
) -> Option<Quantity> {
    let messages = names::qualified_name(name);
    let bad = !messages.is_empty();
    each_invalid(path, name, messages, errors);
    let huge = name.starts_with("hugepages-");
    if !bad
        && !name.contains('/')
        && !huge
        && !matches!(name, "cpu" | "memory" | "ephemeral-storage")
    {
        errors.invalid(
            path,
            name,
            "must be a standard resource type or fully qualified",
        );
        errors.invalid(path, name, "must be a standard resource for containers");
    }
    let amount = amounts::validate_non_negative(value, path, errors)?;
    if (extended(name) || huge) && amount.nanos() % 1_000_000_000 != 0 {
        errors.invalid(path, amount.to_string(), "must be an integer");
    }
    Some(amount)
}

/// Resources of other domains, such as `example.com/gpu`.
fn extended(name: &str) -> bool {
    name.contains('/')
        && !name
            .split('/')
            .next()
            .is_some_and(|d| d == "kubernetes.io" || d.ends_with(".kubernetes.io"))
}

fn overcommits(name: &str) -> bool {
    !extended(name) && !name.starts_with("hugepages-")
}
