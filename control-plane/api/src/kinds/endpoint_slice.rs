//! EndpointSlices: where the pods of a Service are, up to 1000 in an object.

use std::collections::BTreeSet;
use std::sync::Arc;

use jiff::Timestamp;
use serde_json::Value;

use super::declare::{Declaration, advance_generation, set_generation};
use super::endpoints::{more_than_three, validate_endpoint_ip};
use super::walk::{Walk, fill, fill_zero, list_mut, same};
use crate::kind::{Column, Kind, Strategy};
use crate::status::{ErrorKind, FieldError, FieldErrors};
use crate::table::{age, age_column, column, name, name_column};
use crate::validation::{Path, each_invalid, immutable, names, one_of};

pub(super) fn kind() -> Arc<Kind> {
    Declaration::namespaced(
        "discovery.k8s.io",
        "v1",
        "EndpointSlice",
        "endpointslices",
        EndpointSlices,
    )
    .build()
}

struct EndpointSlices;

impl Strategy for EndpointSlices {
    fn default(&self, object: &mut Value) {
        for port in list_mut(object, "ports") {
            fill(port, "name", "");
            fill_zero(port, "protocol", "TCP");
        }
    }

    fn prepare_create(&self, object: &mut Value) {
        set_generation(object, 1);
    }

    fn prepare_update(&self, object: &mut Value, old: &Value) {
        let changed = ["endpoints", "ports", "addressType"]
            .iter()
            .any(|f| !same(&object[*f], &old[*f]))
            || !same(&object["metadata"]["labels"], &old["metadata"]["labels"]);
        advance_generation(object, old, changed);
    }

    fn prepare_status_update(&self, object: &mut Value, old: &Value) {
        *object = old.clone();
    }

    fn validate_create(&self, object: &Value) -> FieldErrors {
        let mut errors = FieldErrors::default();
        one_of(
            &object["addressType"],
            &["FQDN", "IPv4", "IPv6"],
            &Path::new("addressType"),
            &mut errors,
        );
        let endpoints = object["endpoints"].items();
        if endpoints.len() > 1000 {
            too_many("endpoints", endpoints.len(), 1000, &mut errors);
        }
        for (i, endpoint) in endpoints.iter().enumerate() {
            let path = Path::new("endpoints").index(i);
            validate_endpoint(endpoint, object["addressType"].text(), &path, &mut errors);
        }
        validate_ports(&object["ports"], &mut errors);
        errors
    }

    fn validate_update(&self, object: &Value, old: &Value) -> FieldErrors {
        let mut errors = self.validate_create(object);
        let path = Path::new("addressType");
        immutable(
            &object["addressType"],
            &old["addressType"],
            &path,
            &mut errors,
        );
        errors
    }

    fn columns(&self) -> Vec<Column> {
        vec![
            name_column(),
            column(
                "AddressType",
                "string",
                "Sort of addresses: IPv4, IPv6 or FQDN.",
            ),
            column("Ports", "string", "Ports of every endpoint."),
            column("Endpoints", "string", "Addresses."),
            age_column(),
        ]
    }

    fn row(&self, object: &Value, now: Timestamp) -> Vec<Value> {
        let ports: Vec<String> = object["ports"]
            .items()
            .iter()
            .map(|p| {
                p["port"]
                    .int()
                    .map_or_else(|| "*".to_owned(), |n| n.to_string())
            })
            .collect();
        let addresses: Vec<String> = object["endpoints"]
            .items()
            .iter()
            .flat_map(|e| e["addresses"].items())
            .map(|a| a.text().to_owned())
            .collect();
        vec![
            name(object),
            object["addressType"].text().into(),
            more_than_three(&ports, "<unset>").into(),
            more_than_three(&addresses, "<unset>").into(),
            age(object, now),
        ]
    }
}

fn too_many(field: &str, count: usize, limit: usize, errors: &mut FieldErrors) {
    errors.0.push(FieldError {
        kind: ErrorKind::TooMany,
        field: field.to_owned(),
        value: None,
        detail: format!("{count}: must have at most {limit} items"),
    });
}

fn validate_endpoint(endpoint: &Value, type_: &str, path: &Path, errors: &mut FieldErrors) {
    let addresses = endpoint["addresses"].items();
    let list = path.child("addresses");
    if addresses.is_empty() {
        errors.required(&list, "must contain at least 1 address");
    } else if addresses.len() > 100 {
        too_many(&list.to_string(), addresses.len(), 100, errors);
    }
    for (i, address) in addresses.iter().enumerate() {
        let (path, text) = (list.index(i), address.text());
        let family = text.parse::<std::net::IpAddr>().ok().map(|ip| ip.is_ipv4());
        match (type_, family) {
            ("IPv4", Some(false)) => errors.invalid(path, text, "must be an IPv4 address"),
            ("IPv6", Some(true)) => errors.invalid(path, text, "must be an IPv6 address"),
            ("IPv4" | "IPv6", _) => validate_endpoint_ip(text, &path, errors),
            ("FQDN", _) => each_invalid(&path, text, names::dns1123_subdomain(text), errors),
            _ => {}
        }
    }
    let hostname = endpoint["hostname"].text();
    if !hostname.is_empty() {
        each_invalid(
            &path.child("hostname"),
            hostname,
            names::dns1123_label(hostname),
            errors,
        );
    }
}

fn validate_ports(ports: &Value, errors: &mut FieldErrors) {
    let mut seen = BTreeSet::new();
    for (i, port) in ports.items().iter().enumerate() {
        let path = Path::new("ports").index(i);
        let name = port["name"].text();
        if !name.is_empty() {
            each_invalid(
                &path.child("name"),
                name,
                names::dns1123_label(name),
                errors,
            );
        }
        if !seen.insert(name) {
            errors.duplicate(path.child("name"), name);
        }
        if let Some(number) = port["port"].int() {
            for message in names::port_number(number) {
                errors.invalid(path.child("port"), number, message);
            }
        }
        one_of(
            &port["protocol"],
            &["SCTP", "TCP", "UDP"],
            &path.child("protocol"),
            errors,
        );
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use serde_json::json;

    fn slice() -> Value {
        let mut slice = json!({
            "metadata": {"name": "s", "generation": 1}, "addressType": "IPv4",
            "endpoints": [{"addresses": ["10.0.0.1"]}], "ports": [{"port": 80}, {"name": "m"}],
        });
        EndpointSlices.default(&mut slice);
        slice
    }

    #[test]
    fn ports_and_addresses_are_shown() {
        let row = EndpointSlices.row(&slice(), "2026-01-01T00:00:00Z".parse().unwrap());
        assert_eq!(row, ["s", "IPv4", "80,*", "10.0.0.1", "<unknown>"]);
        assert!(EndpointSlices.validate_create(&slice()).is_empty());
    }

    #[test]
    fn the_address_type_stays_and_addresses_fit_it() {
        let mut new = slice();
        new["addressType"] = json!("IPv6");
        let texts: Vec<String> = EndpointSlices
            .validate_update(&new, &slice())
            .0
            .iter()
            .map(FieldError::text)
            .collect();
        assert_eq!(
            texts,
            [
                "endpoints[0].addresses[0]: Invalid value: \"10.0.0.1\": must be an IPv6 address",
                "addressType: Invalid value: \"IPv6\": field is immutable",
            ]
        );
    }

    #[test]
    fn changed_endpoints_raise_the_generation() {
        let mut new = slice();
        new["endpoints"] = json!([]);
        EndpointSlices.prepare_update(&mut new, &slice());
        assert_eq!(new["metadata"]["generation"], 2);
    }
}
