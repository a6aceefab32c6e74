//! Checks of Services.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use super::{external, has_cluster_ip, needs_health_check};
use crate::kinds::walk::Walk;
use crate::status::FieldErrors;
use crate::validation::metadata::validate_labels;
use crate::validation::{Path, each_invalid, names, one_of, one_of_or_none};

const TYPES: &[&str] = &["ClusterIP", "ExternalName", "LoadBalancer", "NodePort"];

pub(super) fn service(object: &Value) -> FieldErrors {
    let mut errors = FieldErrors::default();
    let (spec, path) = (&object["spec"], Path::new("spec"));
    let headless = spec["clusterIP"] == "None";
    let type_ = spec["type"].text();
    if spec["ports"].is_empty() && !headless && type_ != "ExternalName" {
        errors.required(path.child("ports"), "");
    }
    match type_ {
        "NodePort" | "LoadBalancer" if headless => errors.invalid(
            path.child("clusterIPs").index(0),
            "None",
            format!("may not be set to 'None' for {type_} services"),
        ),
        "ExternalName" => external_name(spec, &path, &mut errors),
        _ => {}
    }
    ports(spec, &path, &mut errors);
    validate_labels(&spec["selector"], &path.child("selector"), &mut errors);
    affinity(spec, &path, &mut errors);
    one_of(&spec["type"], TYPES, &path.child("type"), &mut errors);
    if has_cluster_ip(object) {
        cluster_ips(spec, &path, &mut errors);
    }
    for (i, ip) in spec["externalIPs"].items().iter().enumerate() {
        each_invalid(
            &path.child("externalIPs").index(i),
            ip.text(),
            names::ip(ip.text()),
            &mut errors,
        );
    }
    traffic(spec, &path, &mut errors);
    load_balancer(spec, &path, &mut errors);
    errors
}

fn external_name(spec: &Value, path: &Path, errors: &mut FieldErrors) {
    if !spec["clusterIPs"].is_empty() {
        errors.forbidden(
            path.child("clusterIPs"),
            "may not be set for ExternalName services",
        );
    }
    let name = spec["externalName"].text();
    if name.is_empty() {
        errors.required(path.child("externalName"), "");
    } else {
        let bare = name.strip_suffix('.').unwrap_or(name);
        each_invalid(
            &path.child("externalName"),
            name,
            names::dns1123_subdomain(bare),
            errors,
        );
    }
}

fn ports(spec: &Value, path: &Path, errors: &mut FieldErrors) {
    let list = spec["ports"].items();
    let path = path.child("ports");
    let mut seen_names = BTreeSet::new();
    let (mut pairs, mut node_ports) = (BTreeSet::new(), BTreeSet::new());
    for (i, port) in list.iter().enumerate() {
        let path = path.index(i);
        let name = port["name"].text();
        if name.is_empty() {
            if list.len() > 1 {
                errors.required(path.child("name"), "");
            }
        } else {
            each_invalid(
                &path.child("name"),
                name,
                names::dns1123_label(name),
                errors,
            );
            if !seen_names.insert(name) {
                errors.duplicate(path.child("name"), name);
            }
        }
        one_port(spec, port, &path, errors);
        let protocol = port["protocol"].text();
        if !pairs.insert((protocol, port["port"].int())) {
            errors.duplicate(&path, json!({ "protocol": protocol, "port": port["port"] }));
        }
        let node_port = port["nodePort"].int().unwrap_or_default();
        if node_port != 0 && !node_ports.insert((protocol, node_port)) {
            errors.duplicate(path.child("nodePort"), node_port);
        }
    }
}

fn one_port(spec: &Value, port: &Value, path: &Path, errors: &mut FieldErrors) {
    let number = port["port"].int().unwrap_or_default();
    for message in names::port_number(number) {
        errors.invalid(path.child("port"), number, message);
    }
    one_of(
        &port["protocol"],
        &["SCTP", "TCP", "UDP"],
        &path.child("protocol"),
        errors,
    );
    match &port["targetPort"] {
        Value::String(name) => each_invalid(
            &path.child("targetPort"),
            name,
            names::port_name(name),
            errors,
        ),
        target => {
            let target = target.int().unwrap_or_default();
            for message in names::port_number(target) {
                errors.invalid(path.child("targetPort"), target, message);
            }
        }
    }
    let app = port["appProtocol"].text();
    if !app.is_empty() {
        each_invalid(
            &path.child("appProtocol"),
            app,
            names::qualified_name(app),
            errors,
        );
    }
    let node_port = port["nodePort"].int().unwrap_or_default();
    if node_port == 0 {
        return;
    }
    match spec["type"].text() {
        type_ @ ("ClusterIP" | "ExternalName") => {
            errors.forbidden(
                path.child("nodePort"),
                format!("may not be used when `type` is '{type_}'"),
            );
        }
        _ => {
            for message in names::port_number(node_port) {
                errors.invalid(path.child("nodePort"), node_port, message);
            }
        }
    }
}

fn affinity(spec: &Value, path: &Path, errors: &mut FieldErrors) {
    one_of(
        &spec["sessionAffinity"],
        &["ClientIP", "None"],
        &path.child("sessionAffinity"),
        errors,
    );
    let config = &spec["sessionAffinityConfig"];
    let path = path.child("sessionAffinityConfig");
    if spec["sessionAffinity"] == "ClientIP" {
        let seconds = config["clientIP"]["timeoutSeconds"]
            .int()
            .unwrap_or_default();
        if !(1..=86_400).contains(&seconds) {
            errors.invalid(
                path.child("clientIP").child("timeoutSeconds"),
                seconds,
                "must be greater than 0 and less than 86400",
            );
        }
    } else if config.present() {
        errors.forbidden(path, "must not be set when session affinity is None");
    }
}

fn cluster_ips(spec: &Value, path: &Path, errors: &mut FieldErrors) {
    let ips = spec["clusterIPs"].items();
    let path_of = path.child("clusterIPs");
    if let Some(first) = ips.first()
        && *first != spec["clusterIP"]
    {
        errors.invalid(
            &path_of,
            spec["clusterIPs"].clone(),
            "first value must match `clusterIP`",
        );
    }
    if ips.len() > 2 {
        errors.invalid(
            &path_of,
            spec["clusterIPs"].clone(),
            "may only hold up to 2 values",
        );
    }
    for (i, ip) in ips.iter().enumerate() {
        match ip.text() {
            "None" if i > 0 || ips.len() > 1 => {
                errors.invalid(
                    path_of.index(i),
                    "None",
                    "must be the first and only value when set to \"None\"",
                );
            }
            "None" => {}
            text => each_invalid(&path_of.index(i), text, names::ip(text), errors),
        }
    }
    one_of_or_none(
        &spec["ipFamilyPolicy"],
        &["SingleStack", "PreferDualStack", "RequireDualStack"],
        &path.child("ipFamilyPolicy"),
        errors,
    );
    for (i, family) in spec["ipFamilies"].items().iter().enumerate() {
        one_of(
            family,
            &["IPv4", "IPv6"],
            &path.child("ipFamilies").index(i),
            errors,
        );
    }
}

fn traffic(spec: &Value, path: &Path, errors: &mut FieldErrors) {
    let policy_path = path.child("externalTrafficPolicy");
    let policy = spec["externalTrafficPolicy"].text();
    if external(spec) {
        one_of(
            &spec["externalTrafficPolicy"],
            &["Cluster", "Local"],
            &policy_path,
            errors,
        );
    } else if !policy.is_empty() {
        errors.invalid(
            policy_path,
            policy,
            "may only be set for externally-accessible services",
        );
    }
    if has_internal_policy(spec) {
        let path = path.child("internalTrafficPolicy");
        one_of(
            &spec["internalTrafficPolicy"],
            &["Cluster", "Local"],
            &path,
            errors,
        );
    }
    one_of_or_none(
        &spec["trafficDistribution"],
        &["PreferClose", "PreferSameNode", "PreferSameZone"],
        &path.child("trafficDistribution"),
        errors,
    );
}

fn has_internal_policy(spec: &Value) -> bool {
    spec["internalTrafficPolicy"].present()
        || matches!(
            spec["type"].text(),
            "ClusterIP" | "NodePort" | "LoadBalancer"
        )
}

fn load_balancer(spec: &Value, path: &Path, errors: &mut FieldErrors) {
    let balanced = spec["type"] == "LoadBalancer";
    for field in [
        "loadBalancerSourceRanges",
        "allocateLoadBalancerNodePorts",
        "loadBalancerClass",
    ] {
        if !balanced && !spec[field].is_empty() {
            errors.forbidden(
                path.child(field),
                "may only be used when `type` is 'LoadBalancer'",
            );
        }
    }
    for (i, range) in spec["loadBalancerSourceRanges"].items().iter().enumerate() {
        let path = path.child("loadBalancerSourceRanges").index(i);
        each_invalid(
            &path,
            range.text(),
            names::cidr(range.text().trim()),
            errors,
        );
    }
    let health = spec["healthCheckNodePort"].int().unwrap_or_default();
    if health != 0 && !(balanced && spec["externalTrafficPolicy"] == "Local") {
        errors.invalid(
            path.child("healthCheckNodePort"),
            health,
            "may only be set when `type` is 'LoadBalancer' and `externalTrafficPolicy` is 'Local'",
        );
    }
}

pub(super) fn service_update(object: &Value, old: &Value) -> FieldErrors {
    let mut errors = FieldErrors::default();
    if has_cluster_ip(object) && has_cluster_ip(old) {
        let (new, before) = (&object["spec"]["clusterIPs"], &old["spec"]["clusterIPs"]);
        let path = Path::new("spec").child("clusterIPs").index(0);
        match (new.items().first(), before.items().first()) {
            (None, Some(_)) => {
                errors.invalid(path, new.clone(), "primary clusterIP can not be unset")
            }
            (Some(new_first), Some(first)) if new_first != first => {
                errors.invalid(path, new.clone(), "may not change once set");
            }
            _ => {}
        }
    }
    let class = "loadBalancerClass";
    if object["spec"]["type"] == "LoadBalancer"
        && old["spec"]["type"] == "LoadBalancer"
        && object["spec"][class] != old["spec"][class]
    {
        errors.invalid(
            Path::new("spec").child(class),
            object["spec"][class].clone(),
            "may not change once set",
        );
    }
    let health = "healthCheckNodePort";
    if needs_health_check(object)
        && needs_health_check(old)
        && object["spec"][health] != old["spec"][health]
    {
        errors.invalid(
            Path::new("spec").child(health),
            object["spec"][health].clone(),
            "cannot change healthCheckNodePort on loadBalancer service with externalTraffic=Local during update",
        );
    }
    errors.extend(service(object));
    errors
}

/// What a load balancer says of itself.
pub(super) fn service_status(object: &Value) -> FieldErrors {
    let mut errors = FieldErrors::default();
    let ingress = &object["status"]["loadBalancer"]["ingress"];
    let path = Path::new("status").child("loadBalancer").child("ingress");
    if object["spec"]["type"] != "LoadBalancer" && !ingress.is_empty() {
        let why = "may only be used when `spec.type` is \"LoadBalancer\"";
        errors.forbidden(path, why);
        return errors;
    }
    for (i, one) in ingress.items().iter().enumerate() {
        let path = path.index(i);
        let mode = &one["ipMode"];
        let mode_path = path.child("ipMode");
        entry_address(one, &path, &mut errors);
        if !one["ip"].is_empty() {
            if mode.is_empty() {
                errors.required(mode_path, "must be specified when `ip` is set");
            } else {
                one_of(mode, &["Proxy", "VIP"], &mode_path, &mut errors);
            }
        } else if mode.present() {
            errors.forbidden(mode_path, "may not be specified when `ip` is not set");
        }
        entry_host(one, &path, &mut errors);
    }
    errors
}

/// Where an Ingress is reached.
pub(in crate::kinds) fn points_of_entry(list: &Value, path: &Path, errors: &mut FieldErrors) {
    for (i, one) in list.items().iter().enumerate() {
        entry_address(one, &path.index(i), errors);
        entry_host(one, &path.index(i), errors);
    }
}

fn entry_address(entry: &Value, path: &Path, errors: &mut FieldErrors) {
    let ip = entry["ip"].text();
    if !ip.is_empty() {
        each_invalid(&path.child("ip"), ip, names::ip(ip), errors);
    }
}

fn entry_host(entry: &Value, path: &Path, errors: &mut FieldErrors) {
    let (host, path) = (entry["hostname"].text(), path.child("hostname"));
    if host.is_empty() {
        return;
    }
    each_invalid(&path, host, names::dns1123_subdomain(host), errors);
    if host.parse::<std::net::IpAddr>().is_ok() {
        errors.invalid(path, host, "must be a DNS name, not an IP address");
    }
}
