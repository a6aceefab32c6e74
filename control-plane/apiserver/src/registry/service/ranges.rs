//! The ranges that Services get addresses from: the cluster's own, and those of further ServiceCIDRs (KEP-1880).

use balsa_api::kinds::walk::Walk;
use balsa_api::object;
use ipnet::Ipv4Net;
use serde_json::Value;

/// The cluster's own range first, then those of the ready ServiceCIDRs in the order of their names.
pub(super) fn ready<'a>(own: Ipv4Net, all: impl IntoIterator<Item = &'a Value>) -> Vec<Ipv4Net> {
    let mut ready: Vec<&Value> = all.into_iter().filter(|range| is_ready(range)).collect();
    ready.sort_by_key(|range| object::name(range));
    let mut nets = vec![own];
    for range in ready {
        let cidrs = range["spec"]["cidrs"].items();
        for net in cidrs.iter().filter_map(|cidr| cidr.text().parse().ok()) {
            if !nets.contains(&net) {
                nets.push(net);
            }
        }
    }
    nets
}

fn is_ready(range: &Value) -> bool {
    !object::is_deleting(range)
        && range["status"]["conditions"]
            .items()
            .iter()
            .any(|c| c["type"].text() == "Ready" && c["status"].text() == "True")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use serde_json::json;

    use super::*;

    #[test]
    fn only_ready_ranges_that_stay_are_used() {
        let range = |name: &str, cidr: &str, ready: &str| {
            json!({"metadata": {"name": name}, "spec": {"cidrs": [cidr, "fd00::/64"]},
                "status": {"conditions": [{"type": "Ready", "status": ready}]}})
        };
        let mut leaving = range("c", "10.3.0.0/24", "True");
        leaving["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z".into();
        let all = [
            range("b", "10.2.0.0/24", "True"),
            range("a", "10.1.0.0/24", "True"),
            range("n", "10.9.0.0/24", "False"),
            range("kubernetes", "10.96.0.0/16", "True"),
            leaving,
        ];
        let own = "10.96.0.0/16".parse().unwrap();
        let nets: Vec<String> = ready(own, &all).iter().map(ToString::to_string).collect();
        assert_eq!(nets, ["10.96.0.0/16", "10.1.0.0/24", "10.2.0.0/24"]);
    }
}
