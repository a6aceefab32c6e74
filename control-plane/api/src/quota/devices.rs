//! What ResourceClaims cost: devices by class (`CLASS.deviceclass.resource.k8s.io/devices`, KEP-4381).

use std::collections::BTreeMap;

use serde_json::Value;

use super::Usage;
use crate::quantity::Quantity;

const SUFFIX: &str = ".deviceclass.resource.k8s.io/devices";
/// A request for all devices of a class may be given so many (`AllocationResultsMaxSize`).
const ALL: i64 = 32;

/// Is this what quotas call the devices of a class?
pub(super) fn is_name(name: &str) -> bool {
    name.len() > SUFFIX.len() && name.ends_with(SUFFIX)
}

/// What a claim may be given at most. Of the alternatives of a request only one is: the largest of each class counts.
pub(super) fn usage(claim: &Value) -> Usage {
    let requests = claim.pointer("/spec/devices/requests");
    let requests = requests.and_then(Value::as_array).into_iter().flatten();
    let mut total: BTreeMap<&str, i64> = BTreeMap::new();
    for request in requests {
        let alternatives = request["firstAvailable"].as_array().into_iter().flatten();
        let mut most: BTreeMap<&str, i64> = BTreeMap::new();
        for one in std::iter::once(&request["exactly"]).chain(alternatives) {
            if let Some(class) = one["deviceClassName"].as_str() {
                let most = most.entry(class).or_default();
                *most = (*most).max(devices(one));
            }
        }
        for (class, count) in most {
            let total = total.entry(class).or_default();
            *total = total.saturating_add(count);
        }
    }
    let total = total.into_iter();
    total
        .map(|(class, count)| (format!("{class}{SUFFIX}"), Quantity::from_units(count)))
        .collect()
}

fn devices(request: &Value) -> i64 {
    match request["allocationMode"].as_str() {
        Some("All") => ALL,
        _ => request["count"].as_i64().unwrap_or(1).max(0),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_claim_costs_the_most_that_it_may_be_given() {
        let claim = json!({"spec": {"devices": {"requests": [
            {"name": "a", "exactly": {"deviceClassName": "gpu", "allocationMode": "ExactCount", "count": 2}},
            {"name": "b", "exactly": {"deviceClassName": "nic", "allocationMode": "All"}},
            {"name": "c", "firstAvailable": [
                {"name": "x", "deviceClassName": "gpu", "count": 1},
                {"name": "y", "deviceClassName": "gpu", "count": 3},
                {"name": "z", "deviceClassName": "tpu"}]},
        ]}}});
        let wanted = [("gpu", 5), ("nic", 32), ("tpu", 1)];
        let wanted =
            wanted.map(|(class, count)| (format!("{class}{SUFFIX}"), Quantity::from_units(count)));
        assert_eq!(usage(&claim), Usage::from(wanted));
        assert_eq!(
            usage(&json!({"spec": {"devices": {"requests": 7}}})),
            Usage::new()
        );
    }
}
