//! Quality-of-service classes, from requests and limits.

use std::collections::BTreeMap;

use balsa_api::quantity::Quantity;
use k8s_openapi::api::core::v1::{Container, PodSpec};

/// How well a pod is protected when the node runs out of something.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Qos {
    /// Limits equal requests for CPU and memory in every container.
    Guaranteed,
    /// Some request or limit.
    Burstable,
    /// None.
    BestEffort,
}

impl Qos {
    /// As in `status.qosClass`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Guaranteed => "Guaranteed",
            Self::Burstable => "Burstable",
            Self::BestEffort => "BestEffort",
        }
    }
}

const COMPUTE: [&str; 2] = ["cpu", "memory"];

/// The class of a pod. Resources of the pod itself, when given, decide alone (KEP-2837).
pub fn class(spec: &PodSpec) -> Qos {
    let own = spec.resources.as_ref().filter(|own| {
        let given = |list: &Option<_>| {
            list.as_ref()
                .is_some_and(|list: &BTreeMap<_, _>| !list.is_empty())
        };
        given(&own.requests) || given(&own.limits)
    });
    if let Some(own) = own {
        let whole = Container {
            resources: Some(own.clone()),
            ..Container::default()
        };
        return class_of(&[&whole]);
    }
    let containers: Vec<_> = spec
        .init_containers
        .iter()
        .flatten()
        .chain(&spec.containers)
        .collect();
    class_of(&containers)
}

fn class_of(containers: &[&Container]) -> Qos {
    let any = containers
        .iter()
        .any(|container| COMPUTE.iter().any(|name| bounded(container, name)));
    if !any {
        return Qos::BestEffort;
    }
    let all = containers
        .iter()
        .all(|container| COMPUTE.iter().all(|name| exact(container, name)));
    if all { Qos::Guaranteed } else { Qos::Burstable }
}

fn quantity(container: &Container, limits: bool, name: &str) -> Option<Quantity> {
    let resources = container.resources.as_ref()?;
    let list = if limits {
        &resources.limits
    } else {
        &resources.requests
    };
    let amount: Quantity = list.as_ref()?.get(name)?.0.parse().ok()?;
    (!amount.is_zero()).then_some(amount)
}

fn bounded(container: &Container, name: &str) -> bool {
    quantity(container, true, name).is_some() || quantity(container, false, name).is_some()
}

fn exact(container: &Container, name: &str) -> bool {
    // Requests default to limits in the API, so a missing request counts as equal.
    quantity(container, true, name).is_some_and(|limit| {
        quantity(container, false, name).is_none_or(|request| request == limit)
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn spec(resources: &str) -> PodSpec {
        let json = format!(r#"{{"containers":[{{"name":"a","resources":{resources}}}]}}"#);
        serde_json::from_str(&json).unwrap()
    }

    #[test]
    fn the_class_follows_requests_and_limits() {
        assert_eq!(class(&spec("{}")), Qos::BestEffort);
        assert_eq!(class(&spec(r#"{"requests":{"cpu":"0"}}"#)), Qos::BestEffort);
        assert_eq!(class(&spec(r#"{"requests":{"cpu":"1"}}"#)), Qos::Burstable);
        assert_eq!(
            class(&spec(r#"{"limits":{"cpu":"1","memory":"1Gi"}}"#)),
            Qos::Guaranteed
        );
        let equal =
            r#"{"limits":{"cpu":"1","memory":"1Gi"},"requests":{"cpu":"1000m","memory":"1024Mi"}}"#;
        assert_eq!(class(&spec(equal)), Qos::Guaranteed);
        let less = r#"{"limits":{"cpu":"1","memory":"1Gi"},"requests":{"cpu":"500m"}}"#;
        assert_eq!(class(&spec(less)), Qos::Burstable);
        let mut whole = spec("{}");
        whole.resources = serde_json::from_str(equal).ok();
        assert_eq!(class(&whole), Qos::Guaranteed);
    }
}
