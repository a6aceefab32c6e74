//! The Node object's fields, from facts and configuration.

use std::collections::BTreeMap;

use balsa_cri::Image;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{
    ContainerImage, Node, NodeAddress, NodeCondition, NodeDaemonEndpoints, NodeFeatures,
    NodeRuntimeHandler, NodeRuntimeHandlerFeatures, NodeSpec, NodeStatus, NodeSwapStatus,
    NodeSystemInfo, Taint,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use serde_json::{Value, json};

use super::facts::{Facts, Pressure};
use crate::config::{AgentConfig, Signal, Threshold};
use crate::devices::Amount;

/// Version of Kubernetes whose node this is.
const VERSION: &str = "v1.35.0";

/// Most images that a status tells of.
const MAX_IMAGES: usize = 50;

/// Most names of an image that a status tells.
const MAX_NAMES: usize = 5;

pub(super) fn labels(config: &AgentConfig) -> BTreeMap<String, String> {
    let arch = match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    };
    let fixed = [
        ("beta.kubernetes.io/arch", arch),
        ("beta.kubernetes.io/os", "linux"),
        ("kubernetes.io/arch", arch),
        ("kubernetes.io/hostname", &config.node_name),
        ("kubernetes.io/os", "linux"),
    ];
    let fixed = fixed
        .into_iter()
        .map(|(key, value)| (key.to_owned(), value.to_owned()));
    config.node_labels.iter().cloned().chain(fixed).collect()
}

/// The object to register with. It starts with the taint of a node that is not ready, so that nothing is
/// scheduled to it before it is.
pub(super) fn node(config: &AgentConfig, facts: &Facts) -> Node {
    let annotations = [(
        "volumes.kubernetes.io/controller-managed-attach-detach".to_owned(),
        "true".to_owned(),
    )];
    let mut taints: Vec<Taint> = config
        .node_taints
        .iter()
        .filter_map(|text| taint(text))
        .collect();
    taints.push(Taint {
        key: "node.kubernetes.io/not-ready".to_owned(),
        effect: "NoSchedule".to_owned(),
        ..Taint::default()
    });
    let obstacle = Some("node is starting".to_owned());
    Node {
        metadata: ObjectMeta {
            name: Some(config.node_name.clone()),
            labels: Some(labels(config)),
            annotations: Some(annotations.into()),
            ..ObjectMeta::default()
        },
        spec: Some(NodeSpec {
            taints: Some(taints),
            ..NodeSpec::default()
        }),
        status: Some(status(
            Seen {
                config,
                facts,
                pressure: &Pressure::default(),
                devices: &BTreeMap::new(),
                images: &[],
                known: &NodeStatus::default(),
            },
            obstacle,
        )),
    }
}

/// `key=value:effect` or `key:effect`.
fn taint(text: &str) -> Option<Taint> {
    let (pair, effect) = text.rsplit_once(':')?;
    let (key, value) = match pair.split_once('=') {
        Some((key, value)) => (key, Some(value.to_owned())),
        None => (pair, None),
    };
    Some(Taint {
        key: key.to_owned(),
        value,
        effect: effect.to_owned(),
        time_added: None,
    })
}

/// What a status is made from.
pub(super) struct Seen<'a> {
    pub(super) config: &'a AgentConfig,
    pub(super) facts: &'a Facts,
    pub(super) pressure: &'a Pressure,
    /// Devices of plugins, by resource.
    pub(super) devices: &'a BTreeMap<String, Amount>,
    pub(super) images: &'a [Image],
    /// The status as the API has it.
    pub(super) known: &'a NodeStatus,
}

/// The status to report; `obstacle` is why the node can't run pods.
pub(super) fn status(seen: Seen<'_>, obstacle: Option<String>) -> NodeStatus {
    let Seen {
        config,
        facts,
        pressure,
        devices,
        images,
        known,
    } = seen;
    let old = known.conditions.as_deref().unwrap_or_default();
    let mut capacity = capacity(config, facts);
    let mut allocatable = allocatable(config, facts);
    for (name, amount) in devices {
        let count = |count: usize| Quantity(count.to_string());
        capacity.insert(name.clone(), count(amount.capacity));
        allocatable.insert(name.clone(), count(amount.allocatable));
    }
    allocatable.extend(extended(known.capacity.as_ref(), &capacity));
    let address = |kind: &str, address: String| NodeAddress {
        type_: kind.to_owned(),
        address,
    };
    NodeStatus {
        addresses: Some(vec![
            address("InternalIP", config.node_ip.to_string()),
            address("Hostname", config.node_name.clone()),
        ]),
        capacity: Some(capacity),
        allocatable: Some(allocatable),
        conditions: Some(conditions(pressure, obstacle, old)),
        daemon_endpoints: Some(NodeDaemonEndpoints::default()),
        features: Some(NodeFeatures {
            supplemental_groups_policy: Some(facts.features.supplemental_groups_policy),
        }),
        images: Some(image_list(images)),
        node_info: Some(NodeSystemInfo {
            architecture: facts.architecture.to_owned(),
            boot_id: facts.boot_id.clone(),
            container_runtime_version: facts.runtime.clone(),
            kernel_version: facts.kernel.clone(),
            kube_proxy_version: String::new(),
            kubelet_version: VERSION.to_owned(),
            machine_id: facts.machine_id.clone(),
            operating_system: "linux".to_owned(),
            os_image: facts.os_image.clone(),
            system_uuid: facts.system_uuid.clone(),
            swap: (facts.swap > 0).then_some(NodeSwapStatus {
                capacity: Some(facts.swap),
            }),
        }),
        runtime_handlers: Some(handlers(facts)).filter(|handlers| !handlers.is_empty()),
        ..NodeStatus::default()
    }
}

/// Resources that others entered into the node's capacity by hand: all of each may be used.
fn extended(
    entered: Option<&BTreeMap<String, Quantity>>,
    own: &BTreeMap<String, Quantity>,
) -> BTreeMap<String, Quantity> {
    let entered = entered.into_iter().flatten();
    entered
        .filter(|(name, _)| !own.contains_key(*name))
        .map(|(name, amount)| (name.clone(), amount.clone()))
        .collect()
}

/// Names of resources that may be used no more: they were taken out of the node's capacity.
pub(super) fn withdrawn(known: &NodeStatus, wanted: &NodeStatus) -> Vec<String> {
    let wanted = wanted.allocatable.as_ref();
    let names = known.allocatable.iter().flat_map(|list| list.keys());
    names
        .filter(|name| wanted.is_none_or(|wanted| !wanted.contains_key(*name)))
        .cloned()
        .collect()
}

fn handlers(facts: &Facts) -> Vec<NodeRuntimeHandler> {
    let all = facts.features.handlers.iter();
    all.map(|handler| NodeRuntimeHandler {
        name: Some(handler.name.clone()),
        features: Some(NodeRuntimeHandlerFeatures {
            recursive_read_only_mounts: Some(handler.recursive_read_only_mounts),
            user_namespaces: Some(handler.user_namespaces),
        }),
    })
    .collect()
}

fn capacity(config: &AgentConfig, facts: &Facts) -> BTreeMap<String, Quantity> {
    resources(
        config,
        facts.cpu_milli,
        facts.memory,
        facts.disk,
        "Ki",
        &facts.huge_pages,
    )
}

/// What is left for pods: without reservations and without what eviction keeps free.
fn allocatable(config: &AgentConfig, facts: &Facts) -> BTreeMap<String, Quantity> {
    let eviction = &config.eviction;
    let kept = |threshold: Threshold, whole: i64| {
        let whole = u64::try_from(whole).unwrap_or(0);
        i64::try_from(threshold.of(whole)).unwrap_or(i64::MAX)
    };
    let disk = facts.disk - kept(eviction.hard(Signal::Disk), facts.disk);
    let kept = kept(eviction.hard(Signal::Memory), facts.memory);
    resources(
        config,
        facts.cpu_milli - config.reserved_cpu_milli,
        // Huge pages are memory that nobody can have in any other way.
        facts.memory - kept - config.reserved_memory - facts.huge_pages.values().sum::<i64>(),
        disk.max(0),
        "",
        &facts.huge_pages,
    )
}

/// Disk is told in kibibytes, or in bytes with an empty `disk_unit`, as upstream does.
fn resources(
    config: &AgentConfig,
    cpu_milli: i64,
    memory: i64,
    disk: i64,
    disk_unit: &str,
    huge_pages: &BTreeMap<String, i64>,
) -> BTreeMap<String, Quantity> {
    let cpu = if cpu_milli % 1000 == 0 {
        (cpu_milli / 1000).to_string()
    } else {
        format!("{cpu_milli}m")
    };
    let disk = if disk_unit.is_empty() {
        disk
    } else {
        disk / 1024
    };
    let list = [
        ("cpu", cpu),
        ("ephemeral-storage", format!("{disk}{disk_unit}")),
        ("memory", format!("{}Ki", memory.max(0) / 1024)),
        ("pods", config.max_pods.to_string()),
    ];
    let huge = huge_pages.iter().map(|(name, bytes)| {
        let amount = match bytes % 1024 {
            0 if *bytes > 0 => format!("{}Ki", bytes / 1024),
            _ => bytes.to_string(),
        };
        (name.clone(), Quantity(amount))
    });
    list.into_iter()
        .map(|(name, amount)| (name.to_owned(), Quantity(amount)))
        .chain(huge)
        .collect()
}

fn conditions(
    pressure: &Pressure,
    obstacle: Option<String>,
    old: &[NodeCondition],
) -> Vec<NodeCondition> {
    let now = Time(Timestamp::now());
    let make = |kind: &str, status: bool, reason: &str, message: &str| {
        let status = if status { "True" } else { "False" };
        let before = old
            .iter()
            .find(|condition| condition.type_ == kind && condition.status == status);
        let since = before.and_then(|before| before.last_transition_time.clone());
        NodeCondition {
            last_heartbeat_time: Some(now.clone()),
            last_transition_time: since.or_else(|| Some(now.clone())),
            message: Some(message.to_owned()),
            reason: Some(reason.to_owned()),
            status: status.to_owned(),
            type_: kind.to_owned(),
        }
    };
    let choose = |bad: bool, kind: &str, when_bad: [&str; 2], when_good: [&str; 2]| {
        let [reason, message] = if bad { when_bad } else { when_good };
        make(kind, bad, reason, message)
    };
    let ready = match &obstacle {
        None => make(
            "Ready",
            true,
            "KubeletReady",
            "kubelet is posting ready status",
        ),
        Some(obstacle) => make("Ready", false, "KubeletNotReady", obstacle),
    };
    vec![
        choose(
            pressure.memory,
            "MemoryPressure",
            [
                "KubeletHasInsufficientMemory",
                "kubelet has insufficient memory available",
            ],
            [
                "KubeletHasSufficientMemory",
                "kubelet has sufficient memory available",
            ],
        ),
        choose(
            pressure.disk,
            "DiskPressure",
            ["KubeletHasDiskPressure", "kubelet has disk pressure"],
            ["KubeletHasNoDiskPressure", "kubelet has no disk pressure"],
        ),
        choose(
            pressure.pids,
            "PIDPressure",
            [
                "KubeletHasInsufficientPID",
                "kubelet has insufficient PID available",
            ],
            [
                "KubeletHasSufficientPID",
                "kubelet has sufficient PID available",
            ],
        ),
        ready,
    ]
}

fn image_list(images: &[Image]) -> Vec<ContainerImage> {
    let mut images: Vec<&Image> = images.iter().collect();
    images.sort_by(|a, b| b.size.cmp(&a.size).then_with(|| a.id.cmp(&b.id)));
    let list = images
        .into_iter()
        .take(MAX_IMAGES)
        .map(|image| ContainerImage {
            names: Some(
                image
                    .digests
                    .iter()
                    .chain(&image.tags)
                    .take(MAX_NAMES)
                    .cloned()
                    .collect(),
            ),
            size_bytes: i64::try_from(image.size).ok(),
        });
    list.collect()
}

/// Does the status say that the node is ready?
pub(super) fn is_ready(status: &NodeStatus) -> bool {
    let mut conditions = status.conditions.iter().flatten();
    conditions.any(|condition| condition.type_ == "Ready" && condition.status == "True")
}

/// A status without the times that change with every look.
pub(super) fn without_times(status: &Value) -> Value {
    let mut status = status.clone();
    for condition in status["conditions"].as_array_mut().into_iter().flatten() {
        if let Some(condition) = condition.as_object_mut() {
            condition.remove("lastHeartbeatTime");
            condition.remove("lastTransitionTime");
        }
    }
    status
}

/// Sets the heartbeat of all conditions to now.
pub(super) fn stamp(status: &mut Value) {
    let now = serde_json::to_value(Time(Timestamp::now())).unwrap_or_default();
    for condition in status["conditions"].as_array_mut().into_iter().flatten() {
        condition["lastHeartbeatTime"] = json!(now);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn config() -> AgentConfig {
        AgentConfig::new("a1", [10, 0, 0, 1].into(), "/d")
    }

    fn told(devices: &BTreeMap<String, Amount>, known: &NodeStatus) -> NodeStatus {
        let seen = Seen {
            config: &config(),
            facts: &Facts::default(),
            pressure: &Pressure::default(),
            devices,
            images: &[],
            known,
        };
        status(seen, None)
    }

    #[test]
    fn a_ready_node_says_so_in_kubelets_words() {
        let status = told(&BTreeMap::new(), &NodeStatus::default());
        assert!(is_ready(&status));
        let ready = status.conditions.unwrap().pop().unwrap();
        assert_eq!(ready.reason.as_deref(), Some("KubeletReady"));
        assert_eq!(
            ready.message.as_deref(),
            Some("kubelet is posting ready status")
        );
    }

    #[test]
    fn a_condition_keeps_the_time_of_its_last_change() {
        let since = Time(Timestamp::UNIX_EPOCH);
        let old = NodeCondition {
            type_: "Ready".to_owned(),
            status: "True".to_owned(),
            last_transition_time: Some(since.clone()),
            ..NodeCondition::default()
        };
        let times = |obstacle| {
            let all = conditions(&Pressure::default(), obstacle, std::slice::from_ref(&old));
            all.last().unwrap().last_transition_time.clone()
        };
        assert_eq!(times(None), Some(since.clone()));
        assert_ne!(times(Some("down".to_owned())), Some(since));
    }

    #[test]
    fn what_others_enter_into_the_capacity_may_be_used_until_it_is_taken_out() {
        let list = |name: &str, amount: &str| {
            Some(BTreeMap::from([(
                name.to_owned(),
                Quantity(amount.to_owned()),
            )]))
        };
        let entered = NodeStatus {
            capacity: list("example.com/dongle", "4"),
            ..NodeStatus::default()
        };
        let of = |known: &NodeStatus| told(&BTreeMap::new(), known);
        let status = of(&entered);
        assert_eq!(status.allocatable.unwrap()["example.com/dongle"].0, "4");
        // A plugin knows better.
        let (capacity, allocatable) = (2, 1);
        let amount = Amount {
            capacity,
            allocatable,
        };
        let devices = BTreeMap::from([("example.com/dongle".to_owned(), amount)]);
        let status = told(&devices, &entered);
        assert_eq!(status.capacity.unwrap()["example.com/dongle"].0, "2");
        assert_eq!(status.allocatable.unwrap()["example.com/dongle"].0, "1");
        let removed = NodeStatus {
            allocatable: list("example.com/dongle", "4"),
            ..NodeStatus::default()
        };
        assert_eq!(withdrawn(&removed, &of(&removed)), ["example.com/dongle"]);
        assert!(withdrawn(&entered, &of(&entered)).is_empty());
    }

    #[test]
    fn taints_are_parsed_with_and_without_a_value() {
        assert_eq!(taint("a=b:NoExecute").unwrap().value.as_deref(), Some("b"));
        assert_eq!(taint("a:NoSchedule").unwrap().key, "a");
        assert!(taint("a").is_none());
    }
}
