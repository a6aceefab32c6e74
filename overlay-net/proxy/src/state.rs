//! What the maps hold, and what a new snapshot changes in them.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::SocketAddr;
use std::sync::Arc;

use balsa_netlink::nft::{Chain, Element, Family, Inventory, Op, Value};
use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::EndpointSlice;

use crate::config::{Config, HostPort, Snapshot};
use crate::key::SetId;
use crate::render::{self, Rendered, UdpFront};
use crate::rules::{self, Balancer};
use crate::service::{ServiceKey, service_key, slice_owner, virtual_service};

/// What a snapshot changes.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Change {
    /// One transaction, in an order that the kernel accepts.
    pub ops: Vec<Op>,
    /// UDP destinations that lost an endpoint, with that endpoint; `None` where the first endpoint came.
    pub stale_udp: Vec<(UdpFront, Option<SocketAddr>)>,
}

/// Who put an element into a map: a Service (`namespace/name`), or [`HOST_PORTS`].
type Owner = Arc<str>;

/// The owner of all host ports; no Service is called so.
const HOST_PORTS: &str = "";

struct Entry {
    service: Option<Arc<Service>>,
    slices: Vec<Arc<EndpointSlice>>,
    rendered: Arc<Rendered>,
    /// The update that named it last.
    round: u64,
}

/// The maps as they are (or as they will be once the last [`Change`] is in the kernel).
pub(crate) struct State {
    config: Config,
    family: Family,
    entries: HashMap<Owner, Entry>,
    /// Counts updates.
    round: u64,
    /// This node's zone.
    zone: Option<String>,
    host_ports: Vec<HostPort>,
    /// Who each element is from. Two Services may claim one external address: the first keeps it.
    owners: HashMap<(SetId, Value), Owner>,
    /// Who waits for an element that another one has.
    waiting: HashMap<(SetId, Value), BTreeSet<Owner>>,
    balancers: HashMap<Balancer, usize>,
}

impl State {
    pub fn new(config: Config, family: Family) -> Self {
        Self {
            config,
            family,
            entries: HashMap::new(),
            round: 0,
            zone: None,
            host_ports: Vec::new(),
            owners: HashMap::new(),
            waiting: HashMap::new(),
            balancers: HashMap::new(),
        }
    }

    /// Takes over a snapshot. Only Services whose objects are other than last time are looked at.
    pub fn update(&mut self, snapshot: &Snapshot) -> Change {
        let mut slices: HashMap<ServiceKey<'_>, Vec<&Arc<EndpointSlice>>> =
            HashMap::with_capacity(snapshot.services.len());
        for slice in &snapshot.slices {
            if let Some(owner) = slice_owner(slice) {
                slices.entry(owner).or_default().push(slice);
            }
        }
        self.round += 1;
        let moved = self.zone != snapshot.zone;
        self.zone.clone_from(&snapshot.zone);
        let mut edit = Edit::default();
        let mut name = String::new();
        for service in &snapshot.services {
            let key = service_key(service);
            let mut slices = slices.remove(&key).unwrap_or_default();
            slices.sort_by(|a, b| a.metadata.name.cmp(&b.metadata.name));
            name.clear();
            name.extend([key.0, "/", key.1]);
            if !self.keep_current(&name, service, &slices) || moved {
                let slices: Vec<Arc<EndpointSlice>> = slices.into_iter().cloned().collect();
                let rendered = self.render(service, &slices);
                self.replace(
                    name.as_str().into(),
                    Some(service.clone()),
                    slices,
                    rendered,
                    &mut edit,
                );
            }
        }
        if self.host_ports != snapshot.host_ports {
            self.host_ports.clone_from(&snapshot.host_ports);
            let rendered = Arc::new(render::host_ports(self.family, &self.host_ports));
            self.replace(HOST_PORTS.into(), None, Vec::new(), rendered, &mut edit);
        }
        let round = self.round;
        let is_gone = |name: &Arc<str>, e: &Entry| e.round != round && name.as_ref() != HOST_PORTS;
        let gone: Vec<Owner> = self
            .entries
            .iter()
            .filter(|(n, e)| is_gone(n, e))
            .map(|(n, _)| n.clone())
            .collect();
        for owner in gone {
            self.replace(owner.clone(), None, Vec::new(), Arc::default(), &mut edit);
            self.entries.remove(&owner);
        }
        self.finish(edit)
    }

    /// The whole table from nothing, replacing whatever there is.
    pub fn rebuild(&self) -> Vec<Op> {
        let mut ops = rules::base(&self.config, self.family);
        let balancers: BTreeSet<Balancer> = self.balancers.keys().cloned().collect();
        for balancer in &balancers {
            ops.extend(self.add_balancer(balancer));
        }
        let mut elements: BTreeMap<SetId, Vec<Element>> = BTreeMap::new();
        for (owner, entry) in &self.entries {
            for (set, element) in &entry.rendered.elements {
                if self.owners.get(&(*set, element.key.clone())) == Some(owner) {
                    elements.entry(*set).or_default().push(element.clone());
                }
            }
        }
        ops.extend(
            elements
                .into_iter()
                .map(|(set, elements)| add_elements(set, elements)),
        );
        ops
    }

    /// What the kernel must hold; the handle is left out.
    pub fn inventory(&self) -> Inventory {
        let mut inventory = Inventory::default();
        for chain in rules::fixed_chains() {
            inventory.rules.insert(chain.name, 0);
        }
        for rule in rules::fixed_rules(&self.config, self.family) {
            *inventory.rules.entry(rule.chain).or_default() += 1;
        }
        for balancer in self.balancers.keys() {
            let rules = rules::balancer_rules(balancer, &self.config, self.family).len();
            inventory.rules.insert(balancer.name(), rules);
        }
        for set in SetId::ALL
            .iter()
            .filter(|s| !s.declare(self.family).flags.timeout)
        {
            inventory.elements.insert(set.name().to_owned(), 0);
        }
        for (set, _) in self.owners.keys() {
            *inventory.elements.entry(set.name().to_owned()).or_default() += 1;
        }
        inventory
    }

    /// Whether a Service is as it was last time; notes that it is still there.
    fn keep_current(
        &mut self,
        name: &str,
        service: &Arc<Service>,
        slices: &[&Arc<EndpointSlice>],
    ) -> bool {
        let round = self.round;
        self.entries.get_mut(name).is_some_and(|e| {
            e.round = round;
            e.service.as_ref().is_some_and(|s| Arc::ptr_eq(s, service))
                && e.slices.len() == slices.len()
                && e.slices.iter().zip(slices).all(|(a, b)| Arc::ptr_eq(a, b))
        })
    }

    fn render(&self, service: &Service, slices: &[Arc<EndpointSlice>]) -> Arc<Rendered> {
        let Some(virtual_service) = virtual_service(service) else {
            return Arc::default();
        };
        let slices: Vec<&EndpointSlice> = slices.iter().map(Arc::as_ref).collect();
        Arc::new(render::service(
            &self.config,
            self.family,
            self.zone.as_deref(),
            &virtual_service,
            &slices,
        ))
    }

    /// Exchanges what an owner has in the maps.
    fn replace(
        &mut self,
        owner: Owner,
        service: Option<Arc<Service>>,
        slices: Vec<Arc<EndpointSlice>>,
        new: Arc<Rendered>,
        edit: &mut Edit,
    ) {
        let entry = Entry {
            service,
            slices,
            rendered: new.clone(),
            round: self.round,
        };
        let old = self
            .entries
            .insert(owner.clone(), entry)
            .map(|e| e.rendered)
            .unwrap_or_default();
        if old == new {
            return;
        }
        stale_udp(&old, &new, &mut edit.stale_udp);
        for balancer in new.balancers.difference(&old.balancers) {
            let users = self.balancers.entry(balancer.clone()).or_default();
            edit.balancers.entry(balancer.clone()).or_insert(*users > 0);
            *users += 1;
        }
        for balancer in old.balancers.difference(&new.balancers) {
            if let Some(users) = self.balancers.get_mut(balancer) {
                *users -= 1;
            }
            edit.balancers.entry(balancer.clone()).or_insert(true);
        }
        let kept: HashMap<(SetId, &Value), &Element> = new
            .elements
            .iter()
            .map(|(s, e)| ((*s, &e.key), e))
            .collect();
        let had: HashMap<(SetId, &Value), &Element> = old
            .elements
            .iter()
            .map(|(s, e)| ((*s, &e.key), e))
            .collect();
        for (set, element) in &old.elements {
            if kept.get(&(*set, &element.key)) != Some(&element) {
                self.release(
                    &owner,
                    *set,
                    element,
                    kept.contains_key(&(*set, &element.key)),
                    edit,
                );
            }
        }
        for (set, element) in &new.elements {
            if had.get(&(*set, &element.key)) != Some(&element) {
                self.claim(&owner, *set, element, edit);
            }
        }
    }

    /// Puts an element into a map, or queues for it if somebody else has that key.
    fn claim(&mut self, owner: &Owner, set: SetId, element: &Element, edit: &mut Edit) {
        let key = (set, element.key.clone());
        match self.owners.get(&key) {
            Some(holder) if holder != owner => {
                self.waiting.entry(key).or_default().insert(owner.clone());
            }
            _ => {
                self.owners.insert(key, owner.clone());
                edit.add(set, element.clone());
            }
        }
    }

    /// Takes an element out of a map; who waited for the key gets it. With `comes_back`, the owner keeps the key.
    fn release(
        &mut self,
        owner: &Owner,
        set: SetId,
        element: &Element,
        comes_back: bool,
        edit: &mut Edit,
    ) {
        let key = (set, element.key.clone());
        if self.owners.get(&key) != Some(owner) {
            if let Some(waiting) = self.waiting.get_mut(&key) {
                waiting.remove(owner);
                if waiting.is_empty() {
                    self.waiting.remove(&key);
                }
            }
            return;
        }
        edit.remove(set, element.clone());
        if comes_back {
            return;
        }
        self.owners.remove(&key);
        let Some(mut waiting) = self.waiting.remove(&key) else {
            return;
        };
        let Some(next) = waiting.pop_first() else {
            return;
        };
        if !waiting.is_empty() {
            self.waiting.insert(key.clone(), waiting);
        }
        let rendered = self.entries.get(&next).map(|e| &e.rendered.elements);
        let wanted = rendered.and_then(|es| es.iter().find(|(s, e)| *s == set && e.key == key.1));
        if let Some((_, element)) = wanted.cloned() {
            self.owners.insert(key, next);
            edit.add(set, element);
        }
    }

    /// Orders the operations: chains before the elements that name them, removal of chains after.
    fn finish(&mut self, edit: Edit) -> Change {
        let mut ops = Vec::new();
        let mut obsolete = Vec::new();
        for (balancer, existed) in &edit.balancers {
            let used = self.balancers.get(balancer).is_some_and(|users| *users > 0);
            match (existed, used) {
                (false, true) => ops.extend(self.add_balancer(balancer)),
                (true, false) => obsolete.push(Op::DeleteChain(balancer.name())),
                _ => {}
            }
        }
        self.balancers.retain(|_, users| *users > 0);
        let (mut deletes, mut adds) = (Vec::new(), Vec::new());
        for (set, changes) in edit.elements {
            let (mut gone, mut new) = (Vec::new(), Vec::new());
            for change in changes.into_values().filter(|c| c.before != c.after) {
                gone.extend(change.before);
                new.extend(change.after);
            }
            if !gone.is_empty() {
                deletes.push(Op::DeleteElements {
                    set: set.name().to_owned(),
                    elements: gone,
                });
            }
            if !new.is_empty() {
                adds.push(add_elements(set, new));
            }
        }
        ops.extend(deletes);
        ops.extend(adds);
        // A chain that leads to another goes before it.
        ops.extend(obsolete.into_iter().rev());
        Change {
            ops,
            stale_udp: edit.stale_udp,
        }
    }

    fn add_balancer(&self, balancer: &Balancer) -> Vec<Op> {
        let mut ops = vec![Op::AddChain(Chain {
            name: balancer.name(),
            base: None,
        })];
        ops.extend(
            rules::balancer_rules(balancer, &self.config, self.family)
                .into_iter()
                .map(Op::AddRule),
        );
        ops
    }
}

fn add_elements(set: SetId, elements: Vec<Element>) -> Op {
    Op::AddElements {
        set: set.name().to_owned(),
        elements,
    }
}

/// One key's element before and after all edits.
#[derive(Default)]
struct KeyChange {
    before: Option<Element>,
    after: Option<Element>,
}

/// Edits of one update, folded so that each key appears once.
#[derive(Default)]
struct Edit {
    elements: BTreeMap<SetId, BTreeMap<Value, KeyChange>>,
    /// Balancers touched, and whether the kernel had them before.
    balancers: BTreeMap<Balancer, bool>,
    stale_udp: Vec<(UdpFront, Option<SocketAddr>)>,
}

impl Edit {
    fn add(&mut self, set: SetId, element: Element) {
        let change = self
            .elements
            .entry(set)
            .or_default()
            .entry(element.key.clone())
            .or_default();
        change.after = Some(element);
    }

    fn remove(&mut self, set: SetId, element: Element) {
        let change = self
            .elements
            .entry(set)
            .or_default()
            .entry(element.key.clone())
            .or_default();
        match change.after.take() {
            // Added in this very update: the kernel never had it.
            Some(_) => {}
            None => change.before = Some(element),
        }
    }
}

fn stale_udp(old: &Rendered, new: &Rendered, out: &mut Vec<(UdpFront, Option<SocketAddr>)>) {
    out.extend(
        old.udp
            .difference(&new.udp)
            .map(|(front, endpoint)| (*front, Some(*endpoint))),
    );
    let served: BTreeSet<UdpFront> = old.udp.iter().map(|(front, _)| *front).collect();
    let fresh: BTreeSet<UdpFront> = new
        .udp
        .iter()
        .map(|(front, _)| *front)
        .filter(|f| !served.contains(f))
        .collect();
    out.extend(fresh.into_iter().map(|front| (front, None)));
}
