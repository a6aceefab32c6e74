//! Services: a stable address and name for a changing set of pods.
//!
//! Cluster IPs and node ports are given out by the API server; what it gave stays through updates.

mod validate;

use std::sync::Arc;

use jiff::Timestamp;
use serde_json::{Value, json};

use super::declare::{Declaration, keep_generation};
use super::pod::PROXY;
use super::walk::{Walk, carry_over, child, fill, fill_zero, list_mut, remove, set};
use crate::kind::{Column, Kind, Name, Strategy};
use crate::status::FieldErrors;
use crate::table::{age, age_column, column, labels, name, name_column, wide};

pub(super) use validate::points_of_entry;

pub(super) fn kind() -> Arc<Kind> {
    Declaration::namespaced("", "v1", "Service", "services", Services)
        .short_names(&["svc"])
        .categories(&["all"])
        .sub("proxy", ["", "v1", "ServiceProxyOptions"], PROXY)
        .status()
        .build()
}

/// Whether ports of the Service need a node port where they name none.
fn needs_node_ports(service: &Value) -> bool {
    let spec = &service["spec"];
    match spec["type"].text() {
        "NodePort" => true,
        "LoadBalancer" => spec["allocateLoadBalancerNodePorts"] != false,
        _ => false,
    }
}

fn has_cluster_ip(service: &Value) -> bool {
    matches!(
        service["spec"]["type"].text(),
        "ClusterIP" | "NodePort" | "LoadBalancer"
    )
}

/// Whether load balancers ask each node at a port of its own whether it has endpoints.
fn needs_health_check(service: &Value) -> bool {
    let spec = &service["spec"];
    spec["type"] == "LoadBalancer" && spec["externalTrafficPolicy"] == "Local"
}

/// Whether the Service is reached from outside and so has an external traffic policy.
fn external(spec: &Value) -> bool {
    match spec["type"].text() {
        "NodePort" | "LoadBalancer" => true,
        "ClusterIP" => !spec["externalIPs"].is_empty(),
        _ => false,
    }
}

struct Services;

impl Strategy for Services {
    fn default(&self, object: &mut Value) {
        let Some(spec) = child(object, "spec") else {
            return;
        };
        fill_zero(spec, "sessionAffinity", "None");
        fill_zero(spec, "type", "ClusterIP");
        if spec["sessionAffinity"] == "None" {
            remove(spec, "sessionAffinityConfig");
        } else if spec["sessionAffinity"] == "ClientIP"
            && let Some(client_ip) =
                child(spec, "sessionAffinityConfig").and_then(|c| child(c, "clientIP"))
        {
            fill(client_ip, "timeoutSeconds", 10_800);
        }
        for port in list_mut(spec, "ports") {
            fill_zero(port, "protocol", "TCP");
            let number = port["port"].clone();
            fill_zero(port, "targetPort", number);
        }
        if external(spec) {
            fill_zero(spec, "externalTrafficPolicy", "Cluster");
        }
        if matches!(
            spec["type"].text(),
            "ClusterIP" | "NodePort" | "LoadBalancer"
        ) {
            fill(spec, "internalTrafficPolicy", "Cluster");
        }
        if spec["type"] == "LoadBalancer" {
            fill(spec, "allocateLoadBalancerNodePorts", true);
        }
        mirror_cluster_ip(spec);
        default_families(spec);
        default_ip_modes(object);
    }

    fn prepare_create(&self, object: &mut Value) {
        set(object, "status", json!({ "loadBalancer": {} }));
    }

    fn prepare_update(&self, object: &mut Value, old: &Value) {
        carry_over(object, old, "status");
        keep_generation(object, old);
        keep_allocated(object, old);
        drop_unused(object, old);
    }

    fn prepare_status_update(&self, object: &mut Value, old: &Value) {
        carry_over(object, old, "spec");
        keep_generation(object, old);
    }

    fn validate_create(&self, object: &Value) -> FieldErrors {
        validate::service(object)
    }

    fn validate_update(&self, object: &Value, old: &Value) -> FieldErrors {
        validate::service_update(object, old)
    }

    fn validate_status_update(&self, object: &Value, _old: &Value) -> FieldErrors {
        validate::service_status(object)
    }

    fn selectable_fields(&self, object: &Value) -> Vec<(Name, String)> {
        ["clusterIP", "type"]
            .map(|field| {
                (
                    format!("spec.{field}").into(),
                    object["spec"][field].text().to_owned(),
                )
            })
            .into()
    }

    fn selectable_field_names(&self) -> &'static [&'static str] {
        &["spec.clusterIP", "spec.type"]
    }

    fn columns(&self) -> Vec<Column> {
        vec![
            name_column(),
            column("Type", "string", "How the Service is exposed."),
            column(
                "Cluster-IP",
                "string",
                "Virtual address inside the cluster.",
            ),
            column("External-IP", "string", "Addresses outside the cluster."),
            column(
                "Port(s)",
                "string",
                "Ports, with node ports behind a colon.",
            ),
            age_column(),
            wide(
                "Selector",
                "string",
                "Labels of the pods behind the Service.",
            ),
        ]
    }

    fn row(&self, object: &Value, now: Timestamp) -> Vec<Value> {
        let spec = &object["spec"];
        let address = match spec["clusterIPs"].items().first().map_or("", Walk::text) {
            "" => spec["clusterIP"].text(),
            first => first,
        };
        vec![
            name(object),
            spec["type"].text().into(),
            if address.is_empty() {
                "<none>".into()
            } else {
                address.into()
            },
            external_ips(object).into(),
            ports(spec).into(),
            age(object, now),
            labels(&spec["selector"]),
        ]
    }
}

/// An address of a load balancer is taken for a virtual one (KEP-1860).
fn default_ip_modes(object: &mut Value) {
    if object["spec"]["type"] != "LoadBalancer" {
        return;
    }
    let ingress = object.pointer_mut("/status/loadBalancer/ingress");
    let ingress = ingress.and_then(Value::as_array_mut);
    for one in ingress.into_iter().flatten() {
        if !one["ip"].is_empty() {
            fill(one, "ipMode", "VIP");
        }
    }
}

/// `clusterIP` is the first of `clusterIPs`.
fn mirror_cluster_ip(spec: &mut Value) {
    let (one, many) = (
        spec["clusterIP"].clone(),
        spec["clusterIPs"].items().first().cloned(),
    );
    match many {
        None if !one.is_empty() => set(spec, "clusterIPs", json!([one])),
        Some(first) if one.is_empty() => set(spec, "clusterIP", first),
        _ => {}
    }
}

fn default_families(spec: &mut Value) {
    if spec["type"] == "ExternalName" {
        return;
    }
    fill_zero(spec, "ipFamilyPolicy", "SingleStack");
    if spec["ipFamilies"].is_empty() {
        let of = |ip: &Value| {
            if ip.text().contains(':') {
                "IPv6"
            } else {
                "IPv4"
            }
        };
        let families: Vec<&str> = match spec["clusterIPs"].items() {
            [] => vec!["IPv4"],
            ips => ips.iter().map(of).collect(),
        };
        set(spec, "ipFamilies", json!(families));
    }
}

/// An update that leaves out what the server gave out keeps it, as `kubectl replace` needs.
fn keep_allocated(object: &mut Value, old: &Value) {
    if has_cluster_ip(object) && has_cluster_ip(old) {
        let spec = &mut object["spec"];
        if spec["clusterIP"].is_empty() && spec["clusterIPs"].is_empty() {
            carry_over(spec, &old["spec"], "clusterIP");
            carry_over(spec, &old["spec"], "clusterIPs");
            carry_over(spec, &old["spec"], "ipFamilies");
        }
    }
    if needs_node_ports(object) && needs_node_ports(old) {
        let before = old["spec"]["ports"].items();
        let taken: Vec<Value> = object["spec"]["ports"]
            .items()
            .iter()
            .map(|p| p["nodePort"].clone())
            .collect();
        for port in list_mut(&mut object["spec"], "ports") {
            let same = before
                .iter()
                .find(|b| b["port"] == port["port"] && b["protocol"] == port["protocol"]);
            if let Some(same) =
                same.filter(|s| s["nodePort"].present() && !taken.contains(&s["nodePort"]))
            {
                let number = same["nodePort"].clone();
                fill_zero(port, "nodePort", number);
            }
        }
    }
    if needs_health_check(object)
        && needs_health_check(old)
        && object["spec"]["healthCheckNodePort"].is_empty()
    {
        carry_over(&mut object["spec"], &old["spec"], "healthCheckNodePort");
    }
}

/// A change of type takes away what the new type has no use for, where the client only left it in place.
fn drop_unused(object: &mut Value, old: &Value) {
    let (had_ip, had_ports) = (has_cluster_ip(old), needs_node_ports(old));
    let (has_ip, has_ports) = (has_cluster_ip(object), needs_node_ports(object));
    let was_external = external(&old["spec"]);
    let unchecked = needs_health_check(old) && !needs_health_check(object);
    let Some(spec) = object.get_mut("spec") else {
        return;
    };
    if had_ip && !has_ip && spec["clusterIPs"] == old["spec"]["clusterIPs"] {
        for field in [
            "clusterIP",
            "clusterIPs",
            "ipFamilies",
            "ipFamilyPolicy",
            "internalTrafficPolicy",
        ] {
            remove(spec, field);
        }
    }
    if had_ports && !has_ports {
        let before: Vec<&Value> = old["spec"]["ports"]
            .items()
            .iter()
            .map(|p| &p["nodePort"])
            .collect();
        for port in list_mut(spec, "ports") {
            if before.contains(&&port["nodePort"]) {
                remove(port, "nodePort");
            }
        }
    }
    if was_external
        && !external(spec)
        && spec["externalTrafficPolicy"] == old["spec"]["externalTrafficPolicy"]
    {
        remove(spec, "externalTrafficPolicy");
    }
    if unchecked && spec["healthCheckNodePort"] == old["spec"]["healthCheckNodePort"] {
        remove(spec, "healthCheckNodePort");
    }
    if old["spec"]["type"] == "LoadBalancer" && spec["type"] != "LoadBalancer" {
        for field in ["allocateLoadBalancerNodePorts", "loadBalancerClass"] {
            if spec[field] == old["spec"][field] {
                remove(spec, field);
            }
        }
    }
}

fn ports(spec: &Value) -> String {
    let texts: Vec<String> = spec["ports"]
        .items()
        .iter()
        .map(|p| {
            let (port, protocol) = (p["port"].int().unwrap_or_default(), p["protocol"].text());
            match p["nodePort"].int().unwrap_or_default() {
                0 => format!("{port}/{protocol}"),
                node => format!("{port}:{node}/{protocol}"),
            }
        })
        .collect();
    if texts.is_empty() {
        "<none>".into()
    } else {
        texts.join(",")
    }
}

fn external_ips(service: &Value) -> String {
    let spec = &service["spec"];
    let named: Vec<&str> = spec["externalIPs"].items().iter().map(Walk::text).collect();
    match spec["type"].text() {
        "ExternalName" => spec["externalName"].text().to_owned(),
        "LoadBalancer" => {
            let mut all: Vec<&str> = service["status"]["loadBalancer"]["ingress"]
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
            all.extend(named);
            if all.is_empty() {
                "<pending>".into()
            } else {
                all.join(",")
            }
        }
        _ if named.is_empty() => "<none>".into(),
        _ => named.join(","),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::status::FieldError;

    fn service(spec: Value) -> Value {
        let mut service = json!({"metadata": {"name": "s", "creationTimestamp": "2026-01-01T00:00:00Z"}, "spec": spec});
        Services.default(&mut service);
        service
    }

    fn texts(errors: &FieldErrors) -> Vec<String> {
        errors.0.iter().map(FieldError::text).collect()
    }

    #[test]
    fn a_minimal_service_is_a_cluster_ip() {
        assert_eq!(
            service(json!({"ports": [{"port": 80}]}))["spec"],
            json!({
                "type": "ClusterIP", "sessionAffinity": "None", "internalTrafficPolicy": "Cluster",
                "ipFamilies": ["IPv4"], "ipFamilyPolicy": "SingleStack",
                "ports": [{"port": 80, "protocol": "TCP", "targetPort": 80}],
            })
        );
    }

    #[test]
    fn a_service_needs_ports_with_names_that_differ() {
        assert_eq!(
            texts(&Services.validate_create(&service(json!({})))),
            ["spec.ports: Required value"]
        );
        assert_eq!(
            texts(&Services.validate_create(&service(
                json!({"ports": [{"port": 80}, {"port": 0, "name": "b"}]})
            ))),
            [
                "spec.ports[0].name: Required value",
                "spec.ports[1].port: Invalid value: 0: must be between 1 and 65535, inclusive",
                "spec.ports[1].targetPort: Invalid value: 0: must be between 1 and 65535, inclusive",
            ]
        );
        assert!(
            Services
                .validate_create(&service(json!({"clusterIP": "None"})))
                .is_empty()
        );
    }

    #[test]
    fn the_cluster_ip_and_node_ports_survive_a_replace() {
        let old = service(
            json!({"type": "NodePort", "clusterIP": "10.96.0.7", "ports": [{"port": 80, "nodePort": 30125}]}),
        );
        let mut new =
            service(json!({"type": "NodePort", "ports": [{"port": 80, "targetPort": 8080}]}));
        Services.prepare_update(&mut new, &old);
        assert_eq!(new["spec"]["clusterIPs"], json!(["10.96.0.7"]));
        assert_eq!(new["spec"]["ports"][0]["nodePort"], 30125);
        assert!(Services.validate_update(&new, &old).is_empty());
    }

    #[test]
    fn the_cluster_ip_never_changes() {
        let old = service(json!({"clusterIP": "10.96.0.7", "ports": [{"port": 80}]}));
        let new = service(json!({"clusterIP": "10.96.0.8", "ports": [{"port": 80}]}));
        assert_eq!(
            texts(&Services.validate_update(&new, &old)),
            ["spec.clusterIPs[0]: Invalid value: [\"10.96.0.8\"]: may not change once set"]
        );
    }

    #[test]
    fn leaving_node_port_drops_the_node_ports() {
        let old = service(
            json!({"type": "NodePort", "clusterIP": "10.96.0.7", "ports": [{"port": 80, "nodePort": 30125}]}),
        );
        let mut new = old.clone();
        new["spec"]["type"] = json!("ClusterIP");
        Services.prepare_update(&mut new, &old);
        assert!(new["spec"]["ports"][0]["nodePort"].is_null());
        assert!(Services.validate_update(&new, &old).is_empty());
        let mut renamed = old.clone();
        renamed["spec"]["type"] = json!("ExternalName");
        renamed["spec"]["externalName"] = json!("example.com");
        Services.prepare_update(&mut renamed, &old);
        assert!(renamed["spec"]["clusterIP"].is_null());
        assert_eq!(
            texts(&Services.validate_update(&renamed, &old)),
            Vec::<String>::new()
        );
    }

    #[test]
    fn load_balancers_that_keep_clients_addresses_keep_their_health_port() {
        let local = json!({"type": "LoadBalancer", "externalTrafficPolicy": "Local", "clusterIP": "10.96.0.7",
            "healthCheckNodePort": 30_200, "ports": [{"port": 80}]});
        let old = service(local.clone());
        let mut left_out = local;
        left_out["healthCheckNodePort"] = Value::Null;
        let mut left_out = service(left_out);
        Services.prepare_update(&mut left_out, &old);
        assert_eq!(left_out["spec"]["healthCheckNodePort"], 30_200);
        let mut other = old.clone();
        other["spec"]["healthCheckNodePort"] = json!(30_201);
        assert_eq!(
            texts(&Services.validate_update(&other, &old)),
            [
                "spec.healthCheckNodePort: Invalid value: 30201: cannot change healthCheckNodePort on loadBalancer service with externalTraffic=Local during update"
            ]
        );
        let mut cluster = old.clone();
        cluster["spec"]["externalTrafficPolicy"] = json!("Cluster");
        Services.prepare_update(&mut cluster, &old);
        assert!(cluster["spec"]["healthCheckNodePort"].is_null());
        assert!(Services.validate_update(&cluster, &old).is_empty());
    }

    #[test]
    fn an_address_of_a_load_balancer_is_virtual_unless_it_says_otherwise() {
        let mut service = service(json!({"type": "LoadBalancer", "ports": [{"port": 80}]}));
        service["status"] = json!({"loadBalancer": {"ingress": [
            {"ip": "192.0.2.1"}, {"ip": "192.0.2.2", "ipMode": "Proxy"}, {"hostname": "lb.example"}]}});
        Services.default(&mut service);
        let ingress = &service["status"]["loadBalancer"]["ingress"];
        assert_eq!(ingress[0]["ipMode"], "VIP");
        assert_eq!(ingress[1]["ipMode"], "Proxy");
        assert!(ingress[2]["ipMode"].is_null());
        assert!(
            Services
                .validate_status_update(&service, &service)
                .is_empty()
        );
        service["status"] = json!({"loadBalancer": {"ingress": [
            {"ip": "x", "ipMode": "Odd"}, {"hostname": "192.0.2.1", "ipMode": "VIP"}]}});
        let errors = Services.validate_status_update(&service, &service);
        let fields: Vec<&str> = errors.0.iter().map(|e| e.field.as_str()).collect();
        let at = |i: usize, field: &str| format!("status.loadBalancer.ingress[{i}].{field}");
        assert_eq!(
            fields,
            [
                at(0, "ip"),
                at(0, "ipMode"),
                at(1, "ipMode"),
                at(1, "hostname")
            ]
        );
    }

    #[test]
    fn the_row_shows_addresses_and_ports() {
        let now = "2026-01-01T00:01:00Z".parse().unwrap();
        let spec = json!({"type": "NodePort", "clusterIP": "10.96.0.7", "selector": {"b": "2", "a": "1"}, "ports": [{"port": 80, "nodePort": 30125}, {"port": 53, "protocol": "UDP"}]});
        assert_eq!(
            Services.row(&service(spec), now),
            [
                "s",
                "NodePort",
                "10.96.0.7",
                "<none>",
                "80:30125/TCP,53/UDP",
                "60s",
                "a=1,b=2"
            ]
        );
        assert_eq!(
            Services.row(&service(json!({"type": "LoadBalancer"})), now)[3],
            "<pending>"
        );
        assert_eq!(
            Services.row(&service(json!({"clusterIP": "None"})), now)[2..5],
            ["None", "<none>", "<none>"]
        );
    }
}
