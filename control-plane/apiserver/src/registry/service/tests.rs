#![allow(clippy::unwrap_used)]
use super::*;
use crate::testing::MemoryBackend;

fn allocator(cidr: &str) -> ServiceAllocator {
    let cache = Cache::new([]);
    let backend = MemoryBackend::new(Arc::clone(&cache));
    ServiceAllocator::new(cidr.parse().unwrap(), 30_000..=30_002, cache, backend)
}

fn service(spec: Value) -> Value {
    json!({"metadata": {"name": "s", "namespace": "d"}, "spec": spec})
}

fn puts(plan: &Plan) -> Vec<String> {
    let key = |op: &Op| match op {
        Op::Put { key, .. } => Some(String::from_utf8_lossy(key).into_owned()),
        Op::Delete { .. } => None,
    };
    plan.ops.iter().filter_map(key).collect()
}

fn deletes(plan: &Plan) -> Vec<String> {
    let key = |op: &Op| match op {
        Op::Delete { key } => Some(String::from_utf8_lossy(key).into_owned()),
        Op::Put { .. } => None,
    };
    plan.ops.iter().filter_map(key).collect()
}

#[test]
fn a_service_gets_an_address_and_claims_it() {
    let mut new = service(json!({"ports": [{"port": 80, "nodePort": 0}]}));
    let plan = allocator("10.96.0.0/16")
        .plan(Some(&mut new), None, 0)
        .unwrap();
    let address = new["spec"]["clusterIP"].as_str().unwrap().to_owned();
    assert_eq!(new["spec"]["clusterIPs"], json!([address]));
    assert_eq!(puts(&plan), [format!("{ADDRESSES}{address}")]);
    assert!(
        plan.compares[0].1.is_none(),
        "an address that was drawn is drawn again"
    );
}

#[test]
fn headless_and_external_services_get_none() {
    let allocator = allocator("10.96.0.0/16");
    let mut headless = service(json!({"clusterIP": "None", "clusterIPs": ["None"]}));
    assert!(
        allocator
            .plan(Some(&mut headless), None, 0)
            .unwrap()
            .ops
            .is_empty()
    );
    let mut external = service(json!({"type": "ExternalName", "externalName": "a.b"}));
    assert!(
        allocator
            .plan(Some(&mut external), None, 0)
            .unwrap()
            .ops
            .is_empty()
    );
    assert!(external["spec"].get("clusterIP").is_none());
}

#[test]
fn a_chosen_address_must_be_in_range_and_free() {
    let allocator = allocator("10.96.0.0/16");
    let mut outside = service(json!({"clusterIP": "192.168.0.1"}));
    let status = allocator.plan(Some(&mut outside), None, 0).err().unwrap();
    assert_eq!(status.code, 422);
    assert!(
        status.message.contains("is not in the valid range"),
        "{}",
        status.message
    );
    let mut inside = service(json!({"clusterIP": "10.96.0.10"}));
    let plan = allocator.plan(Some(&mut inside), None, 0).unwrap();
    let taken = plan.compares[0].1.as_ref().unwrap();
    assert!(taken.message.contains("provided IP is already allocated"));
}

#[test]
fn node_ports_are_kept_drawn_and_given_back() {
    let allocator = allocator("10.96.0.0/16");
    let old = service(
        json!({"clusterIP": "10.96.1.1", "type": "NodePort", "ports": [{"port": 80, "nodePort": 30001}]}),
    );
    let mut new = service(json!({"type": "NodePort", "ports": [{"port": 80}, {"port": 81}]}));
    let plan = allocator.plan(Some(&mut new), Some(&old), 5).unwrap();
    assert_eq!(new["spec"]["clusterIP"], "10.96.1.1");
    assert_eq!(new["spec"]["ports"][0]["nodePort"], 30_001);
    assert_eq!(new["spec"]["ports"][1]["nodePort"], 30_000);
    assert_eq!(puts(&plan), [format!("{PORTS}30000")]);
    let mut plain = service(
        json!({"type": "ClusterIP", "clusterIP": "10.96.1.1", "ports": [{"port": 80, "nodePort": 30001}]}),
    );
    let plan = allocator.plan(Some(&mut plain), Some(&old), 0).unwrap();
    assert_eq!(deletes(&plan), [format!("{PORTS}30001")]);
    let plan = allocator.plan(None, Some(&old), 0).unwrap();
    assert_eq!(
        deletes(&plan),
        [format!("{ADDRESSES}10.96.1.1"), format!("{PORTS}30001")]
    );
}

#[test]
fn a_full_range_says_so() {
    let allocator = allocator("10.96.0.0/30");
    let mut new = service(json!({}));
    allocator.plan(Some(&mut new), None, 5).unwrap();
    assert_eq!(new["spec"]["clusterIP"], "10.96.0.2");
    let mut odd = service(json!({"type": "NodePort", "ports": [{"port": 80, "nodePort": 80}]}));
    assert!(
        allocator
            .plan(Some(&mut odd), None, 0)
            .err()
            .unwrap()
            .message
            .contains("30000-30002")
    );
}

#[test]
fn a_balancer_that_keeps_clients_addresses_claims_a_health_port() {
    let allocator = allocator("10.96.0.0/16");
    let spec = json!({"type": "LoadBalancer", "externalTrafficPolicy": "Local", "clusterIP": "10.96.1.1",
        "allocateLoadBalancerNodePorts": false, "ports": [{"port": 80}]});
    let mut new = service(spec);
    let plan = allocator.plan(Some(&mut new), None, 5).unwrap();
    assert_eq!(new["spec"]["healthCheckNodePort"], 30_000);
    assert!(puts(&plan).contains(&format!("{PORTS}30000")));
    let mut kept = new.clone();
    let plan = allocator.plan(Some(&mut kept), Some(&new), 0).unwrap();
    assert!(plan.ops.is_empty());
    let mut cluster = new.clone();
    cluster["spec"]["externalTrafficPolicy"] = json!("Cluster");
    cluster["spec"]["healthCheckNodePort"] = Value::Null;
    let plan = allocator.plan(Some(&mut cluster), Some(&new), 0).unwrap();
    assert_eq!(deletes(&plan), [format!("{PORTS}30000")]);
}

#[test]
fn families_that_the_cluster_lacks_are_refused_where_an_address_is_wanted() {
    let allocator = allocator("10.96.0.0/16");
    let refused = |spec: Value, old: Option<Value>| {
        let (mut new, old) = (service(spec), old.map(service));
        let outcome = allocator.plan(Some(&mut new), old.as_ref(), 0);
        outcome.err().map(|status| status.message)
    };
    let both = json!({"ports": [], "ipFamilyPolicy": "RequireDualStack", "ipFamilies": ["IPv4"]});
    assert!(
        refused(both.clone(), None)
            .unwrap()
            .contains("this cluster is not configured for dual-stack services")
    );
    let six = json!({"ports": [], "ipFamilies": ["IPv6"]});
    assert!(
        refused(six, None)
            .unwrap()
            .contains("not configured on this cluster")
    );
    let manual = json!({"ports": [], "clusterIP": "None", "ipFamilyPolicy": "RequireDualStack", "ipFamilies": ["IPv4", "IPv6"]});
    assert_eq!(refused(manual, None), None);
    // What is there already may be changed in other ways.
    assert_eq!(refused(both.clone(), Some(both)), None);
}
