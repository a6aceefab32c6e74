//! In-place resize (KEP-1287): what a container is given may change while it runs.
//!
//! Three states of the same numbers: what the spec asks for, what the node has granted (allocated), and what
//! the runtime was told (actuated). The reducer sees a pod whose spec says what is granted, and brings the last
//! in line with it.

use std::collections::BTreeMap;

use balsa_api::quantity::Quantity;
use k8s_openapi::api::core::v1::{Container, PodSpec, ResourceRequirements};

/// What each container of a pod was granted, by its name.
pub type Allocation = BTreeMap<String, ResourceRequirements>;

/// The resources that may be resized, as numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Bounds {
    /// CPU asked for, in thousandths.
    pub cpu_request: Option<i64>,
    /// Most CPU, in thousandths.
    pub cpu_limit: Option<i64>,
    /// Memory asked for, in bytes.
    pub memory_request: Option<i64>,
    /// Most memory, in bytes.
    pub memory_limit: Option<i64>,
}

impl Bounds {
    /// The numbers of a container's resources. A limit without a request is a request too.
    pub fn of(resources: Option<&ResourceRequirements>) -> Self {
        let amount = |limits: bool, name: &str| -> Option<Quantity> {
            let resources = resources?;
            let list = if limits {
                &resources.limits
            } else {
                &resources.requests
            };
            list.as_ref()?.get(name)?.0.parse().ok()
        };
        let cpu_limit = amount(true, "cpu").map(|cpu| cpu.milli_value());
        let memory_limit = amount(true, "memory").map(|memory| memory.value());
        Self {
            cpu_request: amount(false, "cpu")
                .map(|cpu| cpu.milli_value())
                .or(cpu_limit),
            cpu_limit,
            memory_request: amount(false, "memory")
                .map(|memory| memory.value())
                .or(memory_limit),
            memory_limit,
        }
    }

    fn cpu(&self) -> (Option<i64>, Option<i64>) {
        (self.cpu_request, self.cpu_limit)
    }

    fn memory(&self) -> (Option<i64>, Option<i64>) {
        (self.memory_request, self.memory_limit)
    }
}

fn resizable(spec: &PodSpec) -> impl Iterator<Item = &Container> {
    let sidecars = spec.init_containers.iter().flatten();
    sidecars.chain(&spec.containers)
}

/// What the spec asks for.
pub fn wanted(spec: &PodSpec) -> Allocation {
    resizable(spec)
        .filter_map(|container| Some((container.name.clone(), container.resources.clone()?)))
        .collect()
}

/// Does the spec ask for something else than what was granted?
pub fn differs(spec: &PodSpec, granted: &Allocation) -> bool {
    resizable(spec).any(|container| {
        Bounds::of(container.resources.as_ref()) != Bounds::of(granted.get(&container.name))
    })
}

/// Makes a spec say what was granted where it asks for something else.
pub fn apply(spec: &mut PodSpec, granted: &Allocation) {
    let inits = spec.init_containers.iter_mut().flatten();
    for container in inits.chain(&mut spec.containers) {
        let own = granted.get(&container.name);
        if Bounds::of(container.resources.as_ref()) != Bounds::of(own) {
            container.resources = own.cloned();
        }
    }
}

/// Was something else granted since the newest instance was started? Then its end is no crash to wait after.
pub(crate) fn outdated(container: &Container, actuated: Option<&ResourceRequirements>) -> bool {
    actuated.is_some_and(|actuated| {
        Bounds::of(Some(actuated)) != Bounds::of(container.resources.as_ref())
    })
}

/// Must the container be restarted to go from the one to the other, by its `resizePolicy`?
pub(crate) fn needs_restart(container: &Container, from: &Bounds, to: &Bounds) -> bool {
    let restarts = |name: &str| {
        let mut policies = container.resize_policy.iter().flatten();
        policies.any(|policy| {
            policy.resource_name == name && policy.restart_policy == "RestartContainer"
        })
    };
    (from.cpu() != to.cpu() && restarts("cpu"))
        || (from.memory() != to.memory() && restarts("memory"))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn spec(cpu: &str) -> PodSpec {
        serde_json::from_value(serde_json::json!({"containers": [{"name": "c",
            "resources": {"requests": {"cpu": cpu}, "limits": {"memory": "1Gi"}},
            "resizePolicy": [{"resourceName": "memory", "restartPolicy": "RestartContainer"}]}]}))
        .unwrap()
    }

    #[test]
    fn the_same_amount_written_otherwise_is_no_resize() {
        assert!(!differs(&spec("1"), &wanted(&spec("1000m"))));
        assert!(differs(&spec("1"), &wanted(&spec("900m"))));
    }

    #[test]
    fn what_was_granted_replaces_what_is_asked_for() {
        let mut asked = spec("2");
        apply(&mut asked, &wanted(&spec("1")));
        assert_eq!(asked, spec("1"));
    }

    #[test]
    fn only_a_resource_whose_policy_says_so_needs_a_restart() {
        let container = spec("1").containers.remove(0);
        let from = Bounds::of(container.resources.as_ref());
        let more = |cpu, memory| Bounds {
            cpu_request: Some(cpu),
            memory_limit: Some(memory),
            ..from
        };
        assert!(!needs_restart(&container, &from, &more(2000, 1 << 30)));
        assert!(needs_restart(&container, &from, &more(1000, 2 << 30)));
    }
}
