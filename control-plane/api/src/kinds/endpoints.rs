//! Endpoints: the old form of EndpointSlices, one object per Service.

use std::sync::Arc;

use jiff::Timestamp;
use serde_json::Value;

use super::declare::{Declaration, without_status};
use super::walk::{Walk, fill_zero, list_mut};
use crate::kind::{Column, Kind, Strategy};
use crate::status::FieldErrors;
use crate::table::{age, age_column, column, name, name_column};
use crate::validation::{Path, each_invalid, names, one_of};

pub(super) fn kind() -> Arc<Kind> {
    Declaration::namespaced("", "v1", "Endpoints", "endpoints", EndpointsLists)
        .short_names(&["ep"])
        .build()
}

struct EndpointsLists;

impl Strategy for EndpointsLists {
    fn deprecation(&self) -> Option<&'static str> {
        Some("v1 Endpoints is deprecated in v1.33+; use discovery.k8s.io/v1 EndpointSlice")
    }

    fn default(&self, object: &mut Value) {
        for subset in list_mut(object, "subsets") {
            for port in list_mut(subset, "ports") {
                fill_zero(port, "protocol", "TCP");
            }
        }
    }

    without_status!();

    fn validate_create(&self, object: &Value) -> FieldErrors {
        let mut errors = FieldErrors::default();
        for (i, subset) in object["subsets"].items().iter().enumerate() {
            validate_subset(subset, &Path::new("subsets").index(i), &mut errors);
        }
        errors
    }

    fn validate_update(&self, object: &Value, _old: &Value) -> FieldErrors {
        self.validate_create(object)
    }

    fn warnings(&self, _object: &Value, _old: Option<&Value>) -> Vec<String> {
        vec![
            "v1 Endpoints is deprecated in v1.33+; use discovery.k8s.io/v1 EndpointSlice"
                .to_owned(),
        ]
    }

    fn columns(&self) -> Vec<Column> {
        vec![
            name_column(),
            column("Endpoints", "string", "Addresses and ports that are ready."),
            age_column(),
        ]
    }

    fn row(&self, object: &Value, now: Timestamp) -> Vec<Value> {
        vec![
            name(object),
            format_endpoints(object).into(),
            age(object, now),
        ]
    }
}

fn validate_subset(subset: &Value, path: &Path, errors: &mut FieldErrors) {
    if subset["addresses"].is_empty() && subset["notReadyAddresses"].is_empty() {
        errors.required(path, "must specify `addresses` or `notReadyAddresses`");
    }
    for list in ["addresses", "notReadyAddresses"] {
        for (i, address) in subset[list].items().iter().enumerate() {
            let path = path.child(list).index(i);
            let hostname = address["hostname"].text();
            validate_endpoint_ip(address["ip"].text(), &path.child("ip"), errors);
            if !hostname.is_empty() {
                each_invalid(
                    &path.child("hostname"),
                    hostname,
                    names::dns1123_label(hostname),
                    errors,
                );
            }
        }
    }
    let ports = subset["ports"].items();
    for (i, port) in ports.iter().enumerate() {
        let path = path.child("ports").index(i);
        match port["name"].text() {
            "" if ports.len() > 1 => errors.required(path.child("name"), ""),
            "" => {}
            name => each_invalid(
                &path.child("name"),
                name,
                names::dns1123_label(name),
                errors,
            ),
        }
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
    }
}

/// An address that traffic can be sent to: not unspecified, loopback or link-local.
pub(super) fn validate_endpoint_ip(text: &str, path: &Path, errors: &mut FieldErrors) {
    let Ok(ip) = text.parse::<std::net::IpAddr>() else {
        each_invalid(path, text, names::ip(text), errors);
        return;
    };
    let (link_local, link_local_multicast) = match ip {
        std::net::IpAddr::V4(v4) => (v4.is_link_local(), v4.octets()[..3] == [224, 0, 0]),
        std::net::IpAddr::V6(v6) => (
            v6.is_unicast_link_local(),
            v6.segments()[0] & 0xff0f == 0xff02,
        ),
    };
    let problems = [
        (
            ip.is_unspecified(),
            "may not be unspecified (0.0.0.0 or ::)",
        ),
        (
            ip.is_loopback(),
            "may not be in the loopback range (127.0.0.0/8, ::1/128)",
        ),
        (
            link_local,
            "may not be in the link-local range (169.254.0.0/16, fe80::/10)",
        ),
        (
            link_local_multicast,
            "may not be in the link-local multicast range (224.0.0.0/24, ff02::/10)",
        ),
    ];
    for (_, message) in problems.iter().filter(|(bad, _)| *bad) {
        errors.invalid(path, text, *message);
    }
}

/// The first three ready endpoints and how many more there are.
fn format_endpoints(object: &Value) -> String {
    let mut all = Vec::new();
    for subset in object["subsets"].items() {
        let addresses = subset["addresses"].items();
        if subset["ports"].is_empty() {
            all.extend(addresses.iter().map(|a| a["ip"].text().to_owned()));
        }
        for port in subset["ports"].items() {
            let number = port["port"].int().unwrap_or_default();
            all.extend(addresses.iter().map(|a| match a["ip"].text() {
                ip if ip.contains(':') => format!("[{ip}]:{number}"),
                ip => format!("{ip}:{number}"),
            }));
        }
    }
    more_than_three(&all, "<none>")
}

/// Three of a list, and `+ N more...`.
pub(super) fn more_than_three(list: &[String], none: &str) -> String {
    match list.len() {
        0 => none.to_owned(),
        n if n <= 3 => list.join(","),
        n => format!("{} + {} more...", list[..3].join(","), n - 3),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use serde_json::json;

    #[test]
    fn three_endpoints_are_shown_and_the_rest_counted() {
        let addresses: Vec<Value> = (1..=5)
            .map(|i| json!({"ip": format!("10.0.0.{i}")}))
            .collect();
        let object = json!({"metadata": {"name": "e"}, "subsets": [{"addresses": addresses, "ports": [{"port": 80}]}]});
        let row = EndpointsLists.row(&object, "2026-01-01T00:00:00Z".parse().unwrap());
        assert_eq!(
            row,
            [
                "e",
                "10.0.0.1:80,10.0.0.2:80,10.0.0.3:80 + 2 more...",
                "<unknown>"
            ]
        );
        assert_eq!(format_endpoints(&json!({})), "<none>");
    }

    #[test]
    fn addresses_are_real_ones() {
        let object = json!({"subsets": [{"addresses": [{"ip": "127.0.0.1"}, {"ip": "x"}], "ports": [{"port": 0, "protocol": "TCP"}]}, {}]});
        let texts: Vec<String> = EndpointsLists
            .validate_create(&object)
            .0
            .iter()
            .map(crate::status::FieldError::text)
            .collect();
        assert_eq!(
            texts,
            [
                "subsets[0].addresses[0].ip: Invalid value: \"127.0.0.1\": may not be in the loopback range (127.0.0.0/8, ::1/128)",
                "subsets[0].addresses[1].ip: Invalid value: \"x\": must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)",
                "subsets[0].ports[0].port: Invalid value: 0: must be between 1 and 65535, inclusive",
                "subsets[1]: Required value: must specify `addresses` or `notReadyAddresses`",
            ]
        );
    }
}
