//! ServiceCIDRs: ranges from which Services get their addresses (KEP-1880).

use std::sync::Arc;

use ipnet::IpNet;
use jiff::Timestamp;
use serde_json::{Value, json};

use super::declare::{Declaration, keep_generation, update_only_status};
use super::walk::{Walk, carry_over, set};
use crate::kind::{Column, Kind, Strategy};
use crate::status::FieldErrors;
use crate::table::{age, age_column, column, name, name_column};
use crate::validation::Path;

pub(super) fn kind() -> Arc<Kind> {
    Declaration::cluster(
        "networking.k8s.io",
        "v1",
        "ServiceCIDR",
        "servicecidrs",
        Ranges,
    )
    .status()
    .build()
}

struct Ranges;

impl Strategy for Ranges {
    fn prepare_create(&self, object: &mut Value) {
        set(object, "status", json!({}));
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
        let path = Path::new("spec").child("cidrs");
        let cidrs = object["spec"]["cidrs"].items();
        if cidrs.is_empty() {
            errors.required(&path, "at least one CIDR required");
            return errors;
        }
        if cidrs.len() > 2 {
            errors.invalid(
                &path,
                object["spec"]["cidrs"].clone(),
                "may only hold up to 2 values",
            );
            return errors;
        }
        for (i, cidr) in cidrs.iter().map(Walk::text).enumerate() {
            validate_range(cidr, &path.index(i), &mut errors);
        }
        let nets: Vec<IpNet> = cidrs.iter().filter_map(|c| c.text().parse().ok()).collect();
        if let [IpNet::V4(_), IpNet::V4(_)] | [IpNet::V6(_), IpNet::V6(_)] = nets.as_slice() {
            errors.invalid(
                &path,
                object["spec"]["cidrs"].clone(),
                "may specify no more than one IP for each IP family, i.e 192.168.0.0/24 and 2001:db8::/64",
            );
        }
        errors
    }

    fn validate_update(&self, object: &Value, old: &Value) -> FieldErrors {
        let mut errors = FieldErrors::default();
        let path = Path::new("spec").child("cidrs");
        let (new, before) = (
            object["spec"]["cidrs"].items(),
            old["spec"]["cidrs"].items(),
        );
        // A range of the other family may be added; nothing else changes.
        let added = before.len() == 1 && new.len() == 2 && new.first() == before.first();
        if added {
            errors.extend(self.validate_create(object));
        } else if new != before {
            for (i, cidr) in new.iter().enumerate() {
                if before.get(i) != Some(cidr) {
                    errors.invalid(path.index(i), cidr.clone(), "field is immutable");
                }
            }
            if new.len() < before.len() {
                errors.invalid(&path, object["spec"]["cidrs"].clone(), "field is immutable");
            }
        }
        errors
    }

    fn columns(&self) -> Vec<Column> {
        vec![
            name_column(),
            column("CIDRs", "string", "Ranges of addresses."),
            age_column(),
        ]
    }

    fn row(&self, object: &Value, now: Timestamp) -> Vec<Value> {
        let cidrs: Vec<&str> = object["spec"]["cidrs"]
            .items()
            .iter()
            .map(Walk::text)
            .collect();
        vec![name(object), cidrs.join(",").into(), age(object, now)]
    }
}

fn validate_range(cidr: &str, path: &Path, errors: &mut FieldErrors) {
    match cidr.parse::<IpNet>() {
        Err(_) => errors.invalid(
            path,
            cidr,
            "must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)",
        ),
        Ok(net) if net.trunc().to_string() != cidr => errors.invalid(
            path,
            cidr,
            format!("must be in canonical form ({:?})", net.trunc().to_string()),
        ),
        Ok(_) => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(cidrs: Value) -> Value {
        json!({"metadata": {"name": "extra"}, "spec": {"cidrs": cidrs}})
    }

    #[test]
    fn one_range_per_family_in_canonical_form() {
        assert!(
            Ranges
                .validate_create(&range(json!(["10.1.0.0/16", "2001:db8::/112"])))
                .is_empty()
        );
        for wrong in [
            json!([]),
            json!(["10.1.0.7/16"]),
            json!(["10.1.0.0/16", "10.2.0.0/16"]),
            json!(["x"]),
        ] {
            assert!(!Ranges.validate_create(&range(wrong)).is_empty());
        }
    }

    #[test]
    fn a_second_family_may_be_added_and_nothing_else() {
        let old = range(json!(["10.1.0.0/16"]));
        let both = range(json!(["10.1.0.0/16", "2001:db8::/112"]));
        assert!(Ranges.validate_update(&both, &old).is_empty());
        let other = range(json!(["10.2.0.0/16"]));
        assert_eq!(
            Ranges.validate_update(&other, &old).0[0].text(),
            "spec.cidrs[0]: Invalid value: \"10.2.0.0/16\": field is immutable"
        );
    }
}
