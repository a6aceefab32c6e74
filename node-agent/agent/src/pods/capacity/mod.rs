//! What the node has granted to its pods: the check of pods bound to it (the scheduler's view may have been
//! stale, and some bind past it), and of pods that want to be resized.

mod gates;

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Weak};

use balsa_api::kinds::amounts::Amounts;
use balsa_api::kinds::pod_requests;
use balsa_api::scheduling::{untolerated, wants_node};
use balsa_pod::ResizePending;
use balsa_pod::qos::{self, Qos};
use k8s_openapi::api::core::v1::{Node, Pod, PodSpec};
use parking_lot::Mutex;

use super::Mailbox;
pub(crate) use gates::{Gates, apparmor_enabled, dotted};

/// Annotation of pods that come from files of the node.
pub(crate) const SOURCE: &str = "kubernetes.io/config.source";

/// Least priority of pods that the cluster can't do without (`system-cluster-critical`).
const CRITICAL: i32 = 2_000_000_000;

/// What the node offers.
#[derive(Debug, Clone, Default)]
pub(crate) struct Offer {
    /// Amounts that pods may use together.
    pub(crate) amounts: Amounts,
    /// The Node object, for its labels and taints.
    pub(crate) node: Node,
    /// Conditions under which some pods are refused: `MemoryPressure`, `DiskPressure`, `PIDPressure`.
    pub(crate) pressure: Vec<&'static str>,
}

/// A refusal as reason and message.
pub(crate) type Refusal = (String, String);

/// What one pod holds.
#[derive(Debug, Clone, Default)]
struct Held {
    amounts: Amounts,
    burstable: bool,
    ports: Vec<HostPort>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct HostPort {
    port: i32,
    protocol: String,
    ip: String,
}

/// The node's books. Check and entry are one step, so that two pods never get the same room.
#[derive(Default)]
pub(crate) struct Capacity {
    books: Mutex<Books>,
    gates: Gates,
}

#[derive(Default)]
struct Books {
    offer: Offer,
    held: HashMap<String, Held>,
    /// Resources whose amounts are counted elsewhere: those of device plugins.
    elsewhere: BTreeSet<String>,
    /// The machine goes down: no pod is taken on any more.
    closed: bool,
    /// Pods whose resize waits for room.
    waiting: HashMap<String, Weak<Mailbox>>,
}

impl Capacity {
    /// Empty books; `gates` are checks that need no counting.
    pub(crate) fn new(offer: Offer, gates: Gates) -> Self {
        Self {
            books: Mutex::new(Books {
                offer,
                ..Books::default()
            }),
            gates,
        }
    }

    /// The Node object has changed.
    pub(crate) fn node_is(&self, node: &Node) {
        let status = node.status.as_ref();
        let allocatable = status.and_then(|status| status.allocatable.as_ref());
        let mut books = self.books.lock();
        if let Some(list) = allocatable {
            books.offer.amounts = list
                .iter()
                .filter_map(|(name, amount)| Some((name.clone(), amount.0.parse().ok()?)))
                .collect();
        }
        books.offer.node = node.clone();
        drop(books);
        self.wake();
    }

    /// The node runs short of something, or no longer.
    pub(crate) fn pressure_is(&self, conditions: Vec<&'static str>) {
        self.books.lock().offer.pressure = conditions;
    }

    /// The machine goes down: refuses all further pods.
    pub(crate) fn close(&self) {
        self.books.lock().closed = true;
    }

    /// These resources are counted elsewhere.
    pub(crate) fn leave_out(&self, resources: BTreeSet<String>) {
        self.books.lock().elsewhere = resources;
    }

    /// An allocatable amount of the node, for containers that set no limit.
    pub(crate) fn allocatable(&self, name: &str) -> Option<balsa_api::quantity::Quantity> {
        self.books.lock().offer.amounts.get(name).copied()
    }

    /// The Node object as last seen.
    pub(crate) fn node(&self) -> Node {
        self.books.lock().offer.node.clone()
    }

    /// CPU in thousandths that the burstable pods ask for together.
    pub(crate) fn burstable_cpu(&self) -> i64 {
        let books = self.books.lock();
        let burstable = books.held.values().filter(|held| held.burstable);
        burstable.map(|held| number("cpu", &held.amounts)).sum()
    }

    /// Enters a pod if there is room; else says why not.
    pub(crate) fn admit(&self, pod: &Pod) -> Result<(), Refusal> {
        let Some(spec) = &pod.spec else { return Ok(()) };
        let mut books = self.books.lock();
        let held = Held::of(pod);
        let checked = books
            .check_open()
            .and_then(|()| self.gates.check(pod, spec))
            .and_then(|()| books.check_pressure(pod))
            .and_then(|()| books.check_node(pod, spec))
            .and_then(|()| books.check_ports(pod, &held))
            .and_then(|()| books.check_amounts(pod, &held));
        checked.map_err(|(reason, message)| (reason, format!("Pod was rejected: {message}")))?;
        books.held.insert(uid(pod), held);
        Ok(())
    }

    /// Enters a pod that runs already.
    pub(crate) fn adopt(&self, pod: &Pod) {
        self.books.lock().held.insert(uid(pod), Held::of(pod));
    }

    /// Enters a pod with other resources if there is room; else says why it waits. Its worker is told when
    /// there may be.
    pub(crate) fn resize(&self, pod: &Pod, mailbox: &Arc<Mailbox>) -> Result<(), ResizePending> {
        let mut books = self.books.lock();
        let held = Held::of(pod);
        if pod_source(pod) == Some("file") {
            return Err(ResizePending {
                reason: "Infeasible",
                message: "In-place resize of static-pods is not supported".to_owned(),
            });
        }
        for name in ["cpu", "memory"] {
            let requested = number(name, &held.amounts);
            let capacity = number(name, &books.offer.amounts);
            if requested > capacity {
                return Err(ResizePending {
                    reason: "Infeasible",
                    message: format!(
                        "Node didn't have enough capacity: {name}, requested: {requested}, capacity: {capacity}"
                    ),
                });
            }
        }
        if let Err((_, message)) = books.check_amounts(pod, &held) {
            books.waiting.insert(uid(pod), Arc::downgrade(mailbox));
            return Err(ResizePending {
                reason: "Deferred",
                message,
            });
        }
        books.waiting.remove(&uid(pod));
        books.held.insert(uid(pod), held);
        drop(books);
        self.wake();
        Ok(())
    }

    /// A pod uses nothing any more.
    pub(crate) fn release(&self, uid: &str) {
        let mut books = self.books.lock();
        let held = books.held.remove(uid);
        books.waiting.remove(uid);
        drop(books);
        if held.is_some() {
            self.wake();
        }
    }

    /// Tells pods whose resize waits to try again.
    fn wake(&self) {
        let waiting: Vec<_> = self.books.lock().waiting.drain().collect();
        for (_, mailbox) in waiting {
            if let Some(mailbox) = mailbox.upgrade() {
                mailbox.tell(|news| news.resize_again = true);
            }
        }
    }
}

impl Books {
    fn check_open(&self) -> Result<(), Refusal> {
        if !self.closed {
            return Ok(());
        }
        let message = "Pod was rejected as the node is shutting down.";
        Err(("NodeShutdown".to_owned(), message.to_owned()))
    }

    fn check_pressure(&self, pod: &Pod) -> Result<(), Refusal> {
        if self.offer.pressure.is_empty() || critical(pod) {
            return Ok(());
        }
        let spec = pod.spec.as_ref();
        let best_effort = spec.is_some_and(|spec| qos::class(spec) == Qos::BestEffort);
        if self.offer.pressure == ["MemoryPressure"] {
            let taint = k8s_openapi::api::core::v1::Taint {
                key: "node.kubernetes.io/memory-pressure".to_owned(),
                effect: "NoSchedule".to_owned(),
                ..Default::default()
            };
            let tolerations = spec.and_then(|spec| spec.tolerations.as_deref());
            let endures =
                untolerated(&[taint], tolerations.unwrap_or_default(), &["NoSchedule"]).is_none();
            if !best_effort || endures {
                return Ok(());
            }
        }
        let conditions = self.offer.pressure.join(" ");
        Err((
            "Evicted".to_owned(),
            format!("The node had condition: [{conditions}]. "),
        ))
    }

    fn check_node(&self, pod: &Pod, spec: &PodSpec) -> Result<(), Refusal> {
        let node = &self.offer.node;
        let static_pod = pod_source(pod) == Some("file");
        if !static_pod && !wants_node(spec, node) {
            return Err((
                "NodeAffinity".to_owned(),
                "Predicate NodeAffinity failed: node(s) didn't match Pod's node affinity/selector"
                    .to_owned(),
            ));
        }
        let taints = node.spec.as_ref().and_then(|spec| spec.taints.as_deref());
        let tolerations = spec.tolerations.as_deref().unwrap_or_default();
        let stopped = untolerated(taints.unwrap_or_default(), tolerations, &["NoExecute"]);
        if !static_pod && stopped.is_some() {
            return Err((
                "TaintToleration".to_owned(),
                "Predicate TaintToleration failed: node(s) had taints that the pod didn't tolerate"
                    .to_owned(),
            ));
        }
        Ok(())
    }

    fn check_ports(&self, pod: &Pod, held: &Held) -> Result<(), Refusal> {
        let own = uid(pod);
        let others = self.held.iter().filter(|(uid, _)| **uid != own);
        let taken: Vec<&HostPort> = others.flat_map(|(_, other)| &other.ports).collect();
        let any = |ip: &str| ip.is_empty() || ip == "0.0.0.0" || ip == "::";
        let clashes = |a: &HostPort, b: &HostPort| {
            a.port == b.port
                && a.protocol == b.protocol
                && (any(&a.ip) || any(&b.ip) || a.ip == b.ip)
        };
        let mut clashing = held
            .ports
            .iter()
            .filter(|port| taken.iter().any(|other| clashes(port, other)));
        match clashing.next() {
            None => Ok(()),
            Some(_) => Err((
                "NodePorts".to_owned(),
                "Predicate NodePorts failed: node(s) didn't have free ports for the requested pod ports"
                    .to_owned(),
            )),
        }
    }

    fn check_amounts(&self, pod: &Pod, held: &Held) -> Result<(), Refusal> {
        let own = uid(pod);
        let others: Vec<&Held> = self
            .held
            .iter()
            .filter(|(uid, _)| **uid != own)
            .map(|(_, other)| other)
            .collect();
        let lacking = |name: &str, requested: i64, used: i64, capacity: i64| {
            let message = format!(
                "Node didn't have enough resource: {name}, requested: {requested}, used: {used}, capacity: {capacity}"
            );
            Err((format!("OutOf{name}"), message))
        };
        let (count, most) = (others.len() as i64, number("pods", &self.offer.amounts));
        if count + 1 > most {
            return lacking("pods", 1, count, most);
        }
        for name in held.amounts.keys() {
            // What the node does not know it cannot count: extended resources of others.
            if !self.offer.amounts.contains_key(name) || self.elsewhere.contains(name) {
                continue;
            }
            let requested = number(name, &held.amounts);
            let used: i64 = others
                .iter()
                .map(|other| number(name, &other.amounts))
                .sum();
            let capacity = number(name, &self.offer.amounts);
            if requested > 0 && requested.saturating_add(used) > capacity {
                return lacking(name, requested, used, capacity);
            }
        }
        Ok(())
    }
}

impl Held {
    fn of(pod: &Pod) -> Self {
        let value = serde_json::to_value(pod).unwrap_or_default();
        Self {
            amounts: pod_requests(&value),
            burstable: pod
                .spec
                .as_ref()
                .is_some_and(|spec| qos::class(spec) == Qos::Burstable),
            ports: pod.spec.as_ref().map(host_ports).unwrap_or_default(),
        }
    }
}

/// Thousandths of CPU, whole units of everything else.
fn number(name: &str, amounts: &Amounts) -> i64 {
    let amount = amounts.get(name).copied().unwrap_or_default();
    if name == "cpu" {
        amount.milli_value()
    } else {
        amount.value()
    }
}

fn host_ports(spec: &PodSpec) -> Vec<HostPort> {
    let host_network = balsa_pod::spec::host_network(spec);
    let sidecars = spec.init_containers.iter().flatten();
    let sidecars = sidecars.filter(|init| init.restart_policy.as_deref() == Some("Always"));
    let ports = sidecars
        .chain(&spec.containers)
        .flat_map(|container| container.ports.iter().flatten());
    let taken = ports.filter_map(|port| {
        let own = port
            .host_port
            .filter(|port| *port > 0)
            .or_else(|| host_network.then_some(port.container_port))?;
        Some(HostPort {
            port: own,
            protocol: port.protocol.clone().unwrap_or_else(|| "TCP".to_owned()),
            ip: port.host_ip.clone().unwrap_or_default(),
        })
    });
    taken.collect()
}

/// Where the pod comes from, if not from the API.
pub(crate) fn pod_source(pod: &Pod) -> Option<&str> {
    let annotations = pod.metadata.annotations.as_ref()?;
    annotations.get(SOURCE).map(String::as_str)
}

/// Can the cluster not do without it? Such pods are never thrown out.
pub(crate) fn critical(pod: &Pod) -> bool {
    let priority = pod.spec.as_ref().and_then(|spec| spec.priority);
    pod_source(pod) == Some("file") || priority.is_some_and(|priority| priority >= CRITICAL)
}

/// Does it use nothing any more?
pub(crate) fn ended(pod: &Pod) -> bool {
    let phase = pod
        .status
        .as_ref()
        .and_then(|status| status.phase.as_deref());
    matches!(phase, Some("Succeeded" | "Failed"))
}

fn uid(pod: &Pod) -> String {
    pod.metadata.uid.clone().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use serde_json::{Value, json};

    use super::*;

    fn pod(uid: &str, container: Value) -> Pod {
        serde_json::from_value(
            json!({"metadata": {"uid": uid}, "spec": {"containers": [container]}}),
        )
        .unwrap()
    }

    fn capacity() -> Capacity {
        let amounts = json!({"cpu": "1", "memory": "1Gi", "pods": "2"});
        let offer = Offer {
            amounts: balsa_api::kinds::amounts::amounts(&amounts),
            ..Offer::default()
        };
        Capacity::new(offer, Gates::default())
    }

    fn cpu(amount: &str) -> Value {
        json!({"name": "c", "resources": {"requests": {"cpu": amount}}})
    }

    #[test]
    fn a_machine_that_goes_down_takes_no_pods() {
        let capacity = capacity();
        capacity.close();
        let (reason, message) = capacity.admit(&pod("a", cpu("1m"))).unwrap_err();
        assert_eq!(reason, "NodeShutdown");
        assert!(
            message.ends_with("as the node is shutting down."),
            "{message}"
        );
    }

    #[test]
    fn too_much_cpu_or_too_many_pods_are_refused() {
        let capacity = capacity();
        capacity.admit(&pod("a", cpu("600m"))).unwrap();
        let (reason, message) = capacity.admit(&pod("b", cpu("600m"))).unwrap_err();
        assert_eq!(reason, "OutOfcpu");
        assert!(message.ends_with("cpu, requested: 600, used: 600, capacity: 1000"));
        capacity.admit(&pod("b", json!({"name": "c"}))).unwrap();
        assert_eq!(
            capacity
                .admit(&pod("c", json!({"name": "c"})))
                .unwrap_err()
                .0,
            "OutOfpods"
        );
        capacity.release("a");
        capacity.admit(&pod("c", cpu("1"))).unwrap();
    }

    #[test]
    fn a_taken_port_is_refused_unless_address_or_protocol_differ() {
        let port = |ip: &str, protocol: &str| {
            json!({"name": "c", "ports": [
                {"containerPort": 1, "hostPort": 80, "hostIP": ip, "protocol": protocol}]})
        };
        let capacity = capacity();
        capacity.admit(&pod("a", port("127.0.0.1", "TCP"))).unwrap();
        for (ip, protocol, fine) in [
            ("127.0.0.1", "TCP", false),
            ("", "TCP", false),
            ("10.0.0.1", "TCP", true),
            ("127.0.0.1", "UDP", true),
        ] {
            let admitted = capacity.admit(&pod("b", port(ip, protocol)));
            assert_eq!(admitted.is_ok(), fine, "{ip} {protocol}");
            capacity.release("b");
        }
    }

    #[test]
    fn a_resize_waits_for_room_or_is_refused_for_good() {
        let capacity = capacity();
        let mailbox = Arc::new(Mailbox::default());
        capacity.admit(&pod("a", cpu("500m"))).unwrap();
        capacity.admit(&pod("b", cpu("400m"))).unwrap();
        let want = |amount| {
            capacity
                .resize(&pod("a", cpu(amount)), &mailbox)
                .map_err(|pending| pending.reason)
        };
        assert_eq!(want("2"), Err("Infeasible"));
        assert_eq!(want("700m"), Err("Deferred"));
        capacity.release("b");
        assert!(mailbox.take().resize_again);
        assert_eq!(want("700m"), Ok(()));
    }

    #[test]
    fn only_best_effort_pods_are_refused_under_memory_pressure() {
        let capacity = capacity();
        capacity.pressure_is(vec!["MemoryPressure"]);
        capacity.admit(&pod("a", cpu("1m"))).unwrap();
        let (reason, message) = capacity.admit(&pod("b", json!({"name": "c"}))).unwrap_err();
        assert_eq!(reason, "Evicted");
        assert!(message.contains("The node had condition: [MemoryPressure]. "));
    }
}
