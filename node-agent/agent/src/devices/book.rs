//! Which devices there are and which containers hold them. Pure: plugins are asked by who calls this.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

/// How long a resource is still told of whose plugin went away, as upstream: it may only be restarting.
const MEMORY: Duration = Duration::from_secs(300);

/// Ids of devices.
pub(super) type Ids = BTreeSet<String>;

/// What a container is given along with its devices.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Extras {
    /// Environment variables.
    pub(crate) envs: BTreeMap<String, String>,
    /// Files and folders of the node.
    pub(crate) mounts: Vec<ExtraMount>,
    /// Device files of the node.
    pub(crate) devices: Vec<ExtraDevice>,
    /// Annotations for the runtime.
    pub(crate) annotations: BTreeMap<String, String>,
    /// Devices that the runtime knows by name (`vendor.com/gpu=0`).
    pub(crate) cdi: Vec<String>,
}

/// A file or folder of the node for a container.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub(crate) struct ExtraMount {
    pub(crate) container_path: String,
    pub(crate) host_path: String,
    pub(crate) read_only: bool,
}

/// A device file of the node for a container.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub(crate) struct ExtraDevice {
    pub(crate) container_path: String,
    pub(crate) host_path: String,
    pub(crate) permissions: String,
}

impl Extras {
    /// Adds those of another resource; what is there already stays as it is.
    pub(super) fn join(&mut self, other: Self) {
        for (name, value) in other.envs {
            self.envs.entry(name).or_insert(value);
        }
        for (name, value) in other.annotations {
            self.annotations.entry(name).or_insert(value);
        }
        for mount in other.mounts {
            let path = &mount.container_path;
            if !self
                .mounts
                .iter()
                .any(|known| known.container_path == *path)
            {
                self.mounts.push(mount);
            }
        }
        for device in other.devices {
            let path = &device.container_path;
            if !self
                .devices
                .iter()
                .any(|known| known.container_path == *path)
            {
                self.devices.push(device);
            }
        }
        for name in other.cdi {
            if !self.cdi.contains(&name) {
                self.cdi.push(name);
            }
        }
    }
}

/// What a container holds of one resource.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub(super) struct Grant {
    pub(super) devices: Ids,
    pub(super) extras: Extras,
}

/// What a pod's containers hold: by container, by resource.
pub(super) type Grants = BTreeMap<String, BTreeMap<String, Grant>>;

/// What a restarted agent must know.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct Record {
    /// By pod UID.
    pub(super) grants: BTreeMap<String, Grants>,
    /// Resources that had plugins.
    pub(super) resources: BTreeSet<String>,
}

/// How many devices of a resource there are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Amount {
    /// All of them.
    pub(crate) capacity: usize,
    /// Those that may be used.
    pub(crate) allocatable: usize,
}

#[derive(Debug, Default)]
struct Resource {
    /// Whether each may be used.
    devices: BTreeMap<String, bool>,
    /// The NUMA nodes that devices are near to, if their plugin tells.
    near: BTreeMap<String, Vec<i64>>,
    /// Since when there is no plugin.
    lost: Option<Instant>,
}

impl Resource {
    fn healthy(&self) -> impl Iterator<Item = &String> {
        let usable = self.devices.iter().filter(|(_, healthy)| **healthy);
        usable.map(|(id, _)| id)
    }
}

/// Devices to choose from for a container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Choice {
    /// Those that an ended init container of the pod had: they come first.
    pub(super) reused: Ids,
    /// Those that nobody has.
    pub(super) free: Ids,
    /// How many in all.
    pub(super) count: usize,
}

impl Choice {
    /// Takes as many as are needed: those reused, then those that the plugin prefers, then any.
    pub(super) fn take(&self, preferred: &[String]) -> Ids {
        let preferred = preferred.iter().filter(|id| self.free.contains(*id));
        let mut taken = Ids::new();
        for id in self.reused.iter().chain(preferred).chain(&self.free) {
            if taken.len() == self.count {
                break;
            }
            taken.insert(id.clone());
        }
        taken
    }

    /// Is there anything to prefer?
    pub(super) fn open(&self) -> bool {
        self.reused.len() < self.count && self.reused.len() + self.free.len() > self.count
    }
}

/// Which devices there are and who holds them.
#[derive(Debug, Default)]
pub(super) struct Book {
    resources: BTreeMap<String, Resource>,
    grants: BTreeMap<String, Grants>,
}

impl Book {
    /// As a former agent left it. Its plugins are expected to come back.
    pub(super) fn recall(record: Record, now: Instant) -> Self {
        let lost = |name| {
            let resource = Resource {
                lost: Some(now),
                ..Resource::default()
            };
            (name, resource)
        };
        Self {
            resources: record.resources.into_iter().map(lost).collect(),
            grants: record.grants,
        }
    }

    /// What a successor must know.
    pub(super) fn record(&self, now: Instant) -> Record {
        let told = self.resources.iter().filter(|(_, own)| !own.forgotten(now));
        Record {
            grants: self.grants.clone(),
            resources: told.map(|(name, _)| name.clone()).collect(),
        }
    }

    /// A plugin tells of its devices: id, and whether it may be used.
    pub(super) fn update(
        &mut self,
        resource: &str,
        devices: impl IntoIterator<Item = (String, bool)>,
    ) {
        let known = self.resources.entry(resource.to_owned()).or_default();
        known.devices = devices.into_iter().collect();
        known.lost = None;
    }

    /// A plugin tells which NUMA nodes its devices are near to.
    pub(super) fn place(&mut self, resource: &str, near: BTreeMap<String, Vec<i64>>) {
        if let Some(known) = self.resources.get_mut(resource) {
            known.near = near;
        }
    }

    /// The NUMA nodes that a device is near to.
    pub(super) fn near(&self, resource: &str, device: &str) -> &[i64] {
        let known = self.resources.get(resource);
        let near = known.and_then(|known| known.near.get(device));
        near.map(Vec::as_slice).unwrap_or_default()
    }

    /// All devices that may be given to pods, whoever has them: resource and id.
    pub(super) fn usable(&self) -> impl Iterator<Item = (&String, &String)> {
        let all = self.resources.iter();
        all.flat_map(|(name, resource)| resource.healthy().map(move |id| (name, id)))
    }

    /// A plugin is gone: its devices may not be given to anybody until it is back.
    pub(super) fn lose(&mut self, resource: &str, now: Instant) {
        let known = self.resources.entry(resource.to_owned()).or_default();
        known
            .devices
            .values_mut()
            .for_each(|healthy| *healthy = false);
        known.lost = Some(now);
    }

    /// What the node has. Resources whose plugins are long gone are told with zero.
    pub(super) fn amounts(&self, now: Instant) -> BTreeMap<String, Amount> {
        let amount = |resource: &Resource| {
            if resource.forgotten(now) {
                return Amount::default();
            }
            Amount {
                capacity: resource.devices.len(),
                allocatable: resource.healthy().count(),
            }
        };
        let all = self.resources.iter();
        all.map(|(name, resource)| (name.clone(), amount(resource)))
            .collect()
    }

    /// Is it a resource of a plugin?
    pub(super) fn knows(&self, resource: &str) -> bool {
        self.resources.contains_key(resource) || self.in_use(resource).next().is_some()
    }

    /// Names of all resources of plugins.
    pub(super) fn names(&self) -> BTreeSet<String> {
        self.resources.keys().cloned().collect()
    }

    fn in_use<'a>(&'a self, resource: &'a str) -> impl Iterator<Item = &'a String> {
        let containers = self.grants.values().flat_map(BTreeMap::values);
        let grants = containers.filter_map(move |container| container.get(resource));
        grants.flat_map(|grant| &grant.devices)
    }

    /// What a container can choose from; `None` if it has what it needs. The error is for people, in upstream's words.
    pub(super) fn choices(
        &self,
        (uid, container): (&str, &str),
        resource: &str,
        count: usize,
        reusable: &Ids,
    ) -> Result<Option<Choice>, String> {
        let held = self.held(uid, container);
        if let Some(held) = held.and_then(|held| held.get(resource)) {
            let had = held.devices.len();
            return if had == count {
                Ok(None)
            } else {
                Err(format!(
                    "pod \"{uid}\" container \"{container}\" changed request for resource \"{resource}\" from {had} to {count}"
                ))
            };
        }
        if count == 0 {
            return Ok(None);
        }
        let Some(known) = self
            .resources
            .get(resource)
            .filter(|own| !own.devices.is_empty())
        else {
            return Err(format!("cannot allocate unregistered device {resource}"));
        };
        if known.healthy().next().is_none() {
            return Err(format!(
                "no healthy devices present; cannot allocate unhealthy devices {resource}"
            ));
        }
        let taken: BTreeSet<&String> = self.in_use(resource).collect();
        let free = known.healthy().filter(|id| !taken.contains(id));
        let free: Ids = free.cloned().collect();
        let reused: Ids = reusable.iter().take(count).cloned().collect();
        let lacking = count - reused.len();
        if free.len() < lacking {
            return Err(format!(
                "requested number of devices unavailable for {resource}. Requested: {lacking}, Available: {}",
                free.len()
            ));
        }
        Ok(Some(Choice {
            reused,
            free,
            count,
        }))
    }

    /// What a container holds, by resource.
    pub(super) fn held(&self, uid: &str, container: &str) -> Option<&BTreeMap<String, Grant>> {
        self.grants.get(uid)?.get(container)
    }

    /// A container has been given devices.
    pub(super) fn grant(&mut self, (uid, container): (&str, &str), resource: &str, grant: Grant) {
        let pod = self.grants.entry(uid.to_owned()).or_default();
        let held = pod.entry(container.to_owned()).or_default();
        held.insert(resource.to_owned(), grant);
    }

    /// A pod holds nothing any more; false if it did not.
    pub(super) fn release(&mut self, uid: &str) -> bool {
        self.grants.remove(uid).is_some()
    }

    /// Only these pods hold anything; false if that is nothing new.
    pub(super) fn retain(&mut self, alive: impl Fn(&str) -> bool) -> bool {
        let before = self.grants.len();
        self.grants.retain(|uid, _| alive(uid));
        self.grants.len() != before
    }
}

impl Resource {
    fn forgotten(&self, now: Instant) -> bool {
        self.lost
            .is_some_and(|since| now.saturating_duration_since(since) >= MEMORY)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const GPU: &str = "example.com/gpu";

    fn ids(list: &[&str]) -> Ids {
        list.iter().map(|id| (*id).to_owned()).collect()
    }

    fn book(devices: &[(&str, bool)]) -> Book {
        let mut book = Book::default();
        let devices = devices.iter().map(|(id, ok)| ((*id).to_owned(), *ok));
        book.update(GPU, devices);
        book
    }

    fn give(book: &mut Book, uid: &str, container: &str, list: &[&str]) {
        let grant = Grant {
            devices: ids(list),
            ..Grant::default()
        };
        book.grant((uid, container), GPU, grant);
    }

    #[test]
    fn only_healthy_devices_that_nobody_has_can_be_chosen() {
        let mut book = book(&[("a", true), ("b", false), ("c", true), ("d", true)]);
        give(&mut book, "u1", "c", &["a"]);
        let choice = book.choices(("u2", "c"), GPU, 1, &Ids::new());
        assert_eq!(choice.unwrap().unwrap().free, ids(&["c", "d"]));
        let error = book.choices(("u2", "c"), GPU, 3, &Ids::new()).unwrap_err();
        assert_eq!(
            error,
            "requested number of devices unavailable for example.com/gpu. Requested: 3, Available: 2"
        );
        assert!(book.release("u1"));
        assert!(book.choices(("u2", "c"), GPU, 3, &Ids::new()).is_ok());
    }

    #[test]
    fn an_init_containers_devices_come_first_and_then_the_plugins_wish() {
        let mut book = book(&[("a", true), ("b", true), ("c", true), ("d", true)]);
        give(&mut book, "u", "init", &["b"]);
        let choice = book.choices(("u", "app"), GPU, 2, &ids(&["b"]));
        let choice = choice.unwrap().unwrap();
        assert!(choice.open());
        let wish = ["x".to_owned(), "d".to_owned()];
        assert_eq!(choice.take(&wish), ids(&["b", "d"]));
        assert_eq!(choice.take(&[]), ids(&["a", "b"]));
    }

    #[test]
    fn a_container_keeps_its_devices_and_cannot_ask_for_more() {
        let mut book = book(&[("a", true), ("b", true)]);
        give(&mut book, "u", "c", &["a"]);
        assert_eq!(book.choices(("u", "c"), GPU, 1, &Ids::new()), Ok(None));
        assert!(book.choices(("u", "c"), GPU, 2, &Ids::new()).is_err());
    }

    #[test]
    fn a_lost_plugins_devices_count_as_unhealthy_and_are_forgotten_after_a_while() {
        let now = Instant::now();
        let mut book = book(&[("a", true), ("b", true)]);
        book.lose(GPU, now);
        let amount = |book: &Book, now| book.amounts(now)[GPU];
        let (capacity, allocatable) = (2, 0);
        assert_eq!(
            amount(&book, now),
            Amount {
                capacity,
                allocatable
            }
        );
        let error = book.choices(("u", "c"), GPU, 1, &Ids::new()).unwrap_err();
        assert!(error.starts_with("no healthy devices present"), "{error}");
        assert_eq!(amount(&book, now + MEMORY), Amount::default());
        assert!(book.record(now + MEMORY).resources.is_empty());
    }

    #[test]
    fn a_successor_knows_who_holds_what_and_waits_for_the_plugins() {
        let now = Instant::now();
        let mut before = book(&[("a", true)]);
        give(&mut before, "u", "c", &["a"]);
        let mut after = Book::recall(before.record(now), now);
        assert!(after.knows(GPU));
        assert_eq!(after.held("u", "c").unwrap()[GPU].devices, ids(&["a"]));
        assert_eq!(
            after.choices(("v", "c"), GPU, 1, &Ids::new()).unwrap_err(),
            "cannot allocate unregistered device example.com/gpu"
        );
        after.update(GPU, [("a".to_owned(), true)]);
        assert!(after.choices(("v", "c"), GPU, 1, &Ids::new()).is_err());
        assert!(after.retain(|uid| uid == "v"));
        assert!(after.choices(("v", "c"), GPU, 1, &Ids::new()).is_ok());
    }

    #[test]
    fn what_two_resources_bring_is_joined_and_the_first_wins() {
        let extras = |path: &str, value: &str| Extras {
            envs: BTreeMap::from([("A".to_owned(), value.to_owned())]),
            devices: vec![ExtraDevice {
                container_path: path.to_owned(),
                host_path: value.to_owned(),
                ..ExtraDevice::default()
            }],
            cdi: vec!["v/c=1".to_owned()],
            ..Extras::default()
        };
        let mut all = extras("/dev/a", "1");
        all.join(extras("/dev/a", "2"));
        all.join(extras("/dev/b", "3"));
        assert_eq!((all.envs["A"].as_str(), all.devices.len()), ("1", 2));
        assert_eq!(all.cdi, ["v/c=1"]);
    }
}
