//! Addresses and node ports of Services: each is a key of its own in the store, put in the transaction that
//! writes the Service and deleted in the one that deletes it. Two Services can so never hold the same.
//!
//! Rules: `registry/core/service/storage/alloc.go`.

mod ranges;

use std::collections::HashSet;
use std::net::{IpAddr, Ipv4Addr};
use std::ops::RangeInclusive;
use std::sync::Arc;

use balsa_api::object;
use balsa_api::status::{FieldErrors, Status};
use bytes::Bytes;
use ipnet::Ipv4Net;
use serde_json::{Value, json};

use super::{Allocator, Plan, Target};
use crate::backend::{Backend, Compare, Op};
use crate::cache::Cache;
use crate::cache::stored::encode_for_store;
use crate::seam::ObjectReader as _;

const ADDRESSES: &str = "/balsa/allocated/addresses/";
const PORTS: &str = "/balsa/allocated/nodeports/";
/// Random candidates are tried so often before the free ones are counted out.
const RANDOM_TRIES: usize = 2;

/// See the module.
pub struct ServiceAllocator {
    cidr: Ipv4Net,
    ports: RangeInclusive<u16>,
    cache: Arc<Cache>,
    backend: Arc<dyn Backend>,
}

/// What a Service holds.
#[derive(Debug, Default, PartialEq, Eq)]
struct Held {
    addresses: Vec<String>,
    ports: Vec<u16>,
}

impl ServiceAllocator {
    /// Allocates from a range of addresses and one of ports.
    #[must_use]
    pub fn new(
        cidr: Ipv4Net,
        ports: RangeInclusive<u16>,
        cache: Arc<Cache>,
        backend: Arc<dyn Backend>,
    ) -> Self {
        Self {
            cidr,
            ports,
            cache,
            backend,
        }
    }

    /// The first address of the range, which is Service `kubernetes`'s.
    #[must_use]
    pub fn first(cidr: Ipv4Net) -> Ipv4Addr {
        Ipv4Addr::from(u32::from(cidr.network()).wrapping_add(1))
    }

    fn taken(&self, prefix: &str) -> HashSet<String> {
        let at = self.cache.revision();
        match self.backend.range(prefix.as_bytes(), b"", usize::MAX, at) {
            Ok(page) => page
                .kvs
                .iter()
                .filter_map(|kv| {
                    std::str::from_utf8(&kv.key)
                        .ok()?
                        .strip_prefix(prefix)
                        .map(str::to_owned)
                })
                .collect(),
            Err(_) => HashSet::new(),
        }
    }

    /// The ranges that addresses may be from, the cluster's own first.
    fn ranges(&self) -> Vec<Ipv4Net> {
        let all = self.cache.list("networking.k8s.io", "servicecidrs", None);
        ranges::ready(self.cidr, all.iter().map(|range| &**range))
    }

    /// A free address, from a further range when the cluster's own is full.
    fn address(&self, attempt: usize) -> Option<Ipv4Addr> {
        self.ranges()
            .into_iter()
            .find_map(|range| self.address_in(range, attempt))
    }

    /// A free address of a range: by chance at first, in the part above those that people choose themselves.
    fn address_in(&self, range: Ipv4Net, attempt: usize) -> Option<Ipv4Addr> {
        let network = u32::from(range.network());
        let size = u64::from(u32::from(range.broadcast()) - network) + 1;
        let size = u32::try_from(size).unwrap_or(u32::MAX);
        let reserved = (size / 16).clamp(16, 256).min(size / 2).max(2);
        // Neither the network's own address nor the broadcast address.
        let (low, high) = (2, size.checked_sub(1)?);
        if attempt < RANDOM_TRIES && reserved < high {
            return Some(Ipv4Addr::from(network + rand::random_range(reserved..high)));
        }
        let taken = self.taken(ADDRESSES);
        (reserved..high)
            .chain(low..reserved)
            .map(|offset| Ipv4Addr::from(network + offset))
            .find(|address| !taken.contains(&address.to_string()))
    }

    fn port(&self, attempt: usize, chosen: &[u16]) -> Option<u16> {
        if attempt < RANDOM_TRIES {
            let port = rand::random_range(self.ports.clone());
            if !chosen.contains(&port) {
                return Some(port);
            }
        }
        let taken = self.taken(PORTS);
        self.ports
            .clone()
            .find(|port| !chosen.contains(port) && !taken.contains(&port.to_string()))
    }

    /// Fills in addresses where the Service needs some and has none.
    fn fill_addresses(&self, new: &mut Value, old: &Held, attempt: usize) -> Result<(), Status> {
        let spec = &mut new["spec"];
        let asked = spec
            .get("clusterIP")
            .and_then(Value::as_str)
            .unwrap_or_default()
            .to_owned();
        let address = if !asked.is_empty() {
            asked
        } else if let Some(kept) = old.addresses.first() {
            kept.clone()
        } else {
            let Some(address) = self.address(attempt) else {
                return Err(Status::internal(format!(
                    "failed to allocate a serviceIP: range {} is full",
                    self.cidr
                )));
            };
            address.to_string()
        };
        spec["clusterIP"] = address.as_str().into();
        spec["clusterIPs"] = json!([address]);
        for (field, value) in [
            ("ipFamilies", json!(["IPv4"])),
            ("ipFamilyPolicy", json!("SingleStack")),
        ] {
            if spec
                .get(field)
                .is_none_or(|v| v.is_null() || v.as_array().is_some_and(Vec::is_empty))
            {
                spec[field] = value;
            }
        }
        Ok(())
    }

    fn fill_ports(
        &self,
        new: &mut Value,
        old: Option<&Value>,
        attempt: usize,
    ) -> Result<(), Status> {
        let mut chosen = held(Some(new)).ports;
        let Some(ports) = new.pointer_mut("/spec/ports").and_then(Value::as_array_mut) else {
            return Ok(());
        };
        for port in ports {
            if node_port(port).is_some() {
                continue;
            }
            let kept = old
                .and_then(|old| same_port(old, port))
                .filter(|p| !chosen.contains(p));
            let Some(number) = kept.or_else(|| self.port(attempt, &chosen)) else {
                return Err(Status::internal(
                    "failed to allocate a nodePort: range is full",
                ));
            };
            chosen.push(number);
            port["nodePort"] = number.into();
        }
        Ok(())
    }

    /// The port at which nodes tell load balancers whether they have endpoints.
    fn fill_health_port(&self, new: &mut Value, attempt: usize) -> Result<(), Status> {
        if health_port(new).is_some() {
            return Ok(());
        }
        let chosen = held(Some(new)).ports;
        let port = self.port(attempt, &chosen).ok_or_else(|| {
            Status::internal("failed to allocate a HealthCheck NodePort: range is full")
        })?;
        new["spec"]["healthCheckNodePort"] = port.into();
        Ok(())
    }

    fn claim_address(
        &self,
        service: &Value,
        address: &str,
        asked: bool,
        owner: &Bytes,
        plan: &mut Plan,
    ) -> Result<(), Status> {
        let refuse = |why: &str| {
            let mut errors = FieldErrors::default();
            let detail = format!("failed to allocate IP {address}: {why}");
            errors.invalid("spec.clusterIPs", json!([address]), detail);
            Status::invalid("Service", "", object::name(service), &errors)
        };
        let parsed: Option<IpAddr> = address.parse().ok();
        let inside =
            matches!(parsed, Some(IpAddr::V4(ip)) if self.ranges().iter().any(|r| r.contains(&ip)));
        if !inside {
            let why = format!(
                "the provided IP ({address}) is not in the valid range. The range of valid IPs is {}",
                self.cidr
            );
            return Err(refuse(&why));
        }
        let key = Bytes::from(format!("{ADDRESSES}{address}"));
        let taken = asked.then(|| refuse("provided IP is already allocated"));
        plan.compares
            .push((Compare::Absent(key.clone()), taken.clone()));
        // The address as an object, for people to see; one that they made keeps the address from being given out.
        if let Some(object_key) = self.address_key(address) {
            plan.compares
                .push((Compare::Absent(object_key.clone()), taken));
            plan.ops.push(Op::Put {
                key: object_key,
                value: encode_for_store(&address_object(address, service)).into(),
                lease: None,
            });
        }
        plan.ops.push(Op::Put {
            key,
            value: owner.clone(),
            lease: None,
        });
        Ok(())
    }

    /// Key of an address's IPAddress.
    fn address_key(&self, address: &str) -> Option<Bytes> {
        let resource = self.cache.resource("networking.k8s.io", "ipaddresses")?;
        Some(format!("{}{address}", resource.prefix).into())
    }

    fn claim_port(
        &self,
        service: &Value,
        port: u16,
        asked: bool,
        owner: &Bytes,
        plan: &mut Plan,
    ) -> Result<(), Status> {
        let refuse = |why: String| {
            let mut errors = FieldErrors::default();
            let ports = service.pointer("/spec/ports").and_then(Value::as_array);
            let index =
                ports.and_then(|ports| ports.iter().position(|p| node_port(p) == Some(port)));
            let field = match index {
                Some(index) => format!("spec.ports[{index}].nodePort"),
                None => "spec.healthCheckNodePort".to_owned(),
            };
            errors.invalid(field, port, why);
            Status::invalid("Service", "", object::name(service), &errors)
        };
        if !self.ports.contains(&port) {
            return Err(refuse(format!(
                "provided port is not in the valid range. The range of valid ports is {}-{}",
                self.ports.start(),
                self.ports.end()
            )));
        }
        let key = Bytes::from(format!("{PORTS}{port}"));
        let taken = asked.then(|| refuse("provided port is already allocated".into()));
        plan.compares.push((Compare::Absent(key.clone()), taken));
        plan.ops.push(Op::Put {
            key,
            value: owner.clone(),
            lease: None,
        });
        Ok(())
    }
}

/// What a Service says of IPv4 and IPv6.
fn families_asked(service: &Value) -> [Option<&Value>; 2] {
    let spec = service.get("spec");
    ["ipFamilyPolicy", "ipFamilies"].map(|field| spec?.get(field))
}

/// Services have IPv4 addresses here. Who asks for others is told; a headless Service without a selector leads where
/// its author says, in any family.
fn check_families(service: &Value) -> Result<(), Status> {
    let spec = &service["spec"];
    let selects = spec["selector"].as_object().is_some_and(|s| !s.is_empty());
    if type_of(service) == "ExternalName" || (spec["clusterIP"] == "None" && !selects) {
        return Ok(());
    }
    let mut errors = FieldErrors::default();
    for (i, family) in spec["ipFamilies"]
        .as_array()
        .into_iter()
        .flatten()
        .enumerate()
    {
        if family != "IPv4" {
            let field = format!("spec.ipFamilies[{i}]");
            errors.invalid(field, family.clone(), "not configured on this cluster");
        }
    }
    if spec["ipFamilyPolicy"] == "RequireDualStack" {
        let why = "this cluster is not configured for dual-stack services";
        errors.invalid("spec.ipFamilyPolicy", "RequireDualStack", why);
    }
    if errors.0.is_empty() {
        return Ok(());
    }
    Err(Status::invalid(
        "Service",
        "",
        object::name(service),
        &errors,
    ))
}

impl Allocator for ServiceAllocator {
    fn concerns(&self, group: &str, plural: &str) -> bool {
        group.is_empty() && plural == "services"
    }

    fn plan(
        &self,
        _about: (&Target, &str),
        new: Option<&mut Value>,
        old: Option<&Value>,
        attempt: usize,
    ) -> Result<Plan, Status> {
        self.plan(new, old, attempt)
    }
}

impl ServiceAllocator {
    fn plan(
        &self,
        new: Option<&mut Value>,
        old: Option<&Value>,
        attempt: usize,
    ) -> Result<Plan, Status> {
        let before = held(old);
        let mut plan = Plan::default();
        let mut after = Held::default();
        if let Some(new) = new {
            let asked = held(Some(new));
            if old.is_none_or(|old| families_asked(old) != families_asked(new)) {
                check_families(new)?;
            }
            if needs_address(new) {
                self.fill_addresses(new, &before, attempt)?;
            } else if type_of(new) == "ExternalName" {
                drop_addresses(new);
            }
            if needs_node_ports(new) {
                self.fill_ports(new, old, attempt)?;
            } else {
                drop_node_ports(new);
            }
            if needs_health_port(new) {
                self.fill_health_port(new, attempt)?;
            }
            after = held(Some(new));
            let owner = Bytes::from(format!("{}/{}", object::namespace(new), object::name(new)));
            for address in after
                .addresses
                .iter()
                .filter(|a| !before.addresses.contains(a))
            {
                self.claim_address(
                    new,
                    address,
                    asked.addresses.contains(address),
                    &owner,
                    &mut plan,
                )?;
            }
            for port in after.ports.iter().filter(|p| !before.ports.contains(p)) {
                self.claim_port(new, *port, asked.ports.contains(port), &owner, &mut plan)?;
            }
        }
        let freed = before
            .addresses
            .iter()
            .filter(|a| !after.addresses.contains(a))
            .map(|a| format!("{ADDRESSES}{a}"));
        let objects = before
            .addresses
            .iter()
            .filter(|a| !after.addresses.contains(a))
            .filter_map(|a| self.address_key(a));
        plan.ops.extend(objects.map(|key| Op::Delete { key }));
        let closed = before
            .ports
            .iter()
            .filter(|p| !after.ports.contains(p))
            .map(|p| format!("{PORTS}{p}"));
        plan.ops.extend(
            freed
                .chain(closed)
                .map(|key| Op::Delete { key: key.into() }),
        );
        Ok(plan)
    }
}

/// The addresses that a Service holds.
#[must_use]
pub fn addresses(service: &Value) -> Vec<String> {
    held(Some(service)).addresses
}

/// The IPAddress of an address that a Service holds (KEP-1880).
#[must_use]
pub fn address_object(address: &str, service: &Value) -> Value {
    let family = if address.contains(':') {
        "IPv6"
    } else {
        "IPv4"
    };
    json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "IPAddress",
        "metadata": {
            "name": address,
            "uid": object::new_uid(),
            "creationTimestamp": object::format_time(jiff::Timestamp::now()),
            "labels": {
                "ipaddress.kubernetes.io/ip-family": family,
                "ipaddress.kubernetes.io/managed-by": "ipallocator.k8s.io",
            },
        },
        "spec": {"parentRef": {"group": "", "resource": "services",
            "namespace": object::namespace(service), "name": object::name(service)}},
    })
}

fn type_of(service: &Value) -> &str {
    service
        .pointer("/spec/type")
        .and_then(Value::as_str)
        .unwrap_or("ClusterIP")
}

fn is_headless(service: &Value) -> bool {
    service.pointer("/spec/clusterIP").and_then(Value::as_str) == Some("None")
}

fn needs_address(service: &Value) -> bool {
    type_of(service) != "ExternalName" && !is_headless(service)
}

fn needs_node_ports(service: &Value) -> bool {
    match type_of(service) {
        "NodePort" => true,
        "LoadBalancer" => service
            .pointer("/spec/allocateLoadBalancerNodePorts")
            .and_then(Value::as_bool)
            .unwrap_or(true),
        _ => false,
    }
}

/// Nodes without endpoints refuse these Services' clients, so load balancers must know which nodes have some.
fn needs_health_port(service: &Value) -> bool {
    let policy = service.pointer("/spec/externalTrafficPolicy");
    type_of(service) == "LoadBalancer" && policy.and_then(Value::as_str) == Some("Local")
}

fn health_port(service: &Value) -> Option<u16> {
    let port = service.pointer("/spec/healthCheckNodePort")?.as_u64()?;
    u16::try_from(port).ok().filter(|p| *p != 0)
}

fn drop_addresses(service: &mut Value) {
    if let Some(spec) = service["spec"].as_object_mut() {
        for field in ["clusterIP", "clusterIPs", "ipFamilies", "ipFamilyPolicy"] {
            spec.remove(field);
        }
    }
}

fn drop_node_ports(service: &mut Value) {
    let given_away = matches!(type_of(service), "ClusterIP" | "ExternalName");
    let ports = service
        .pointer_mut("/spec/ports")
        .and_then(Value::as_array_mut)
        .filter(|_| given_away);
    for port in ports.into_iter().flatten().filter_map(Value::as_object_mut) {
        port.remove("nodePort");
    }
}

fn node_port(port: &Value) -> Option<u16> {
    port.get("nodePort")
        .and_then(Value::as_u64)
        .and_then(|p| u16::try_from(p).ok())
        .filter(|p| *p != 0)
}

/// The node port that the same port (by protocol and number) had before.
fn same_port(old: &Value, port: &Value) -> Option<u16> {
    let key = |p: &Value| {
        (
            p["protocol"].as_str().unwrap_or("TCP").to_owned(),
            p["port"].as_i64(),
        )
    };
    let ports = old.pointer("/spec/ports").and_then(Value::as_array)?;
    ports
        .iter()
        .find(|p| key(p) == key(port))
        .and_then(node_port)
}

fn held(service: Option<&Value>) -> Held {
    let Some(service) = service else {
        return Held::default();
    };
    let mut held = Held::default();
    let address = service
        .pointer("/spec/clusterIP")
        .and_then(Value::as_str)
        .unwrap_or_default();
    if !matches!(address, "" | "None") {
        held.addresses.push(address.to_owned());
    }
    for port in service
        .pointer("/spec/ports")
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
    {
        if let Some(number) = node_port(port).filter(|n| !held.ports.contains(n)) {
            held.ports.push(number);
        }
    }
    held.ports
        .extend(health_port(service).filter(|p| !held.ports.contains(p)));
    held
}

#[cfg(test)]
mod tests;
