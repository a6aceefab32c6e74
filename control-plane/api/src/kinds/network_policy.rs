//! NetworkPolicies: who may talk to which pods.

use std::sync::Arc;

use jiff::Timestamp;
use serde_json::{Value, json};

use super::declare::{Declaration, advance_generation, set_generation};
use super::walk::{Walk, child, fill, fill_zero, list_mut, same};
use crate::kind::{Column, Kind, Strategy};
use crate::status::FieldErrors;
use crate::table::{age, age_column, column, name, name_column};
use crate::validation::selector::{format_label_selector, validate_label_selector};
use crate::validation::{Path, each_invalid, names, one_of};

pub(super) fn kind() -> Arc<Kind> {
    Declaration::namespaced(
        "networking.k8s.io",
        "v1",
        "NetworkPolicy",
        "networkpolicies",
        NetworkPolicies,
    )
    .short_names(&["netpol"])
    .build()
}

struct NetworkPolicies;

impl Strategy for NetworkPolicies {
    fn default(&self, object: &mut Value) {
        let Some(spec) = child(object, "spec") else {
            return;
        };
        for direction in ["ingress", "egress"] {
            for rule in list_mut(spec, direction) {
                for port in list_mut(rule, "ports") {
                    fill_zero(port, "protocol", "TCP");
                }
            }
        }
        if spec["policyTypes"].is_empty() {
            let both = !spec["egress"].is_empty();
            crate::kinds::walk::remove(spec, "policyTypes");
            fill(
                spec,
                "policyTypes",
                if both {
                    json!(["Ingress", "Egress"])
                } else {
                    json!(["Ingress"])
                },
            );
        }
        fill(spec, "podSelector", json!({}));
    }

    fn prepare_create(&self, object: &mut Value) {
        set_generation(object, 1);
    }

    fn prepare_update(&self, object: &mut Value, old: &Value) {
        let changed = !same(&object["spec"], &old["spec"]);
        advance_generation(object, old, changed);
    }

    fn prepare_status_update(&self, object: &mut Value, old: &Value) {
        *object = old.clone();
    }

    fn validate_create(&self, object: &Value) -> FieldErrors {
        let mut errors = FieldErrors::default();
        let (spec, path) = (&object["spec"], Path::new("spec"));
        validate_label_selector(
            &spec["podSelector"],
            &path.child("podSelector"),
            &mut errors,
        );
        for (direction, peers) in [("ingress", "from"), ("egress", "to")] {
            for (i, rule) in spec[direction].items().iter().enumerate() {
                let path = path.child(direction).index(i);
                validate_ports(&rule["ports"], &path.child("ports"), &mut errors);
                for (j, peer) in rule[peers].items().iter().enumerate() {
                    validate_peer(peer, &path.child(peers).index(j), &mut errors);
                }
            }
        }
        for (i, type_) in spec["policyTypes"].items().iter().enumerate() {
            one_of(
                type_,
                &["Egress", "Ingress"],
                &path.child("policyTypes").index(i),
                &mut errors,
            );
        }
        errors
    }

    fn validate_update(&self, object: &Value, _old: &Value) -> FieldErrors {
        self.validate_create(object)
    }

    fn columns(&self) -> Vec<Column> {
        vec![
            name_column(),
            column("Pod-Selector", "string", "Labels of the pods it is for."),
            age_column(),
        ]
    }

    fn row(&self, object: &Value, now: Timestamp) -> Vec<Value> {
        vec![
            name(object),
            format_label_selector(&object["spec"]["podSelector"]).into(),
            age(object, now),
        ]
    }
}

fn validate_ports(ports: &Value, path: &Path, errors: &mut FieldErrors) {
    for (i, entry) in ports.items().iter().enumerate() {
        let path = path.index(i);
        one_of(
            &entry["protocol"],
            &["SCTP", "TCP", "UDP"],
            &path.child("protocol"),
            errors,
        );
        let (port, end) = (&entry["port"], entry["endPort"].int());
        match port {
            Value::Null => {
                if end.is_some() {
                    errors.required(
                        path.child("port"),
                        "must be specified when `endPort` is specified",
                    );
                }
            }
            Value::String(name) => {
                each_invalid(&path.child("port"), name, names::port_name(name), errors);
                if end.is_some() {
                    errors.invalid(
                        path.child("endPort"),
                        end,
                        "may not be specified when `port` is non-numeric",
                    );
                }
            }
            _ => {
                let number = port.int().unwrap_or_default();
                for message in names::port_number(number) {
                    errors.invalid(path.child("port"), number, message);
                }
                if let Some(end) = end.filter(|e| *e < number) {
                    errors.invalid(
                        path.child("endPort"),
                        end,
                        "must be greater than or equal to `port`",
                    );
                }
            }
        }
    }
}

fn validate_peer(peer: &Value, path: &Path, errors: &mut FieldErrors) {
    let mut given = 0;
    for field in ["podSelector", "namespaceSelector"] {
        if peer[field].present() {
            given += 1;
            validate_label_selector(&peer[field], &path.child(field), errors);
        }
    }
    let block = &peer["ipBlock"];
    if block.present() {
        validate_block(block, &path.child("ipBlock"), errors);
        if given > 0 {
            errors.forbidden(path, "may not specify both ipBlock and another peer");
        }
    } else if given == 0 {
        errors.required(path, "must specify a peer");
    }
}

fn validate_block(block: &Value, path: &Path, errors: &mut FieldErrors) {
    let text = block["cidr"].text();
    if text.is_empty() {
        errors.required(path.child("cidr"), "");
        return;
    }
    each_invalid(&path.child("cidr"), text, names::cidr(text), errors);
    let Ok(outer) = text.parse::<ipnet::IpNet>() else {
        return;
    };
    for (i, except) in block["except"].items().iter().enumerate() {
        let (path, text) = (path.child("except").index(i), except.text());
        match text.parse::<ipnet::IpNet>() {
            Err(_) => each_invalid(&path, text, names::cidr(text), errors),
            Ok(inner) if outer == inner || !outer.contains(&inner) => errors.invalid(
                path,
                text,
                format!(
                    "must be a strict subset of `cidr`: {}",
                    block["cidr"].text()
                ),
            ),
            Ok(_) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn types_follow_the_rules_given() {
        let mut policy = json!({"spec": {"egress": [{"ports": [{"port": 53}]}]}});
        NetworkPolicies.default(&mut policy);
        assert_eq!(policy["spec"]["policyTypes"], json!(["Ingress", "Egress"]));
        assert_eq!(policy["spec"]["egress"][0]["ports"][0]["protocol"], "TCP");
        assert!(NetworkPolicies.validate_create(&policy).is_empty());
    }

    #[test]
    fn exceptions_lie_within_their_block() {
        let policy = json!({"spec": {"ingress": [{"from": [{"ipBlock": {"cidr": "10.0.0.0/8", "except": ["11.0.0.0/16"]}}, {}]}]}});
        let texts: Vec<String> = NetworkPolicies
            .validate_create(&policy)
            .0
            .iter()
            .map(crate::status::FieldError::text)
            .collect();
        assert_eq!(
            texts,
            [
                "spec.ingress[0].from[0].ipBlock.except[0]: Invalid value: \"11.0.0.0/16\": must be a strict subset of `cidr`: 10.0.0.0/8",
                "spec.ingress[0].from[1]: Required value: must specify a peer",
            ]
        );
    }
}
