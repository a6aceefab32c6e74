#![allow(clippy::unwrap_used)]
use super::*;
use crate::seam::ObjectReader;

/// A reader of nothing, so that the defaults are followed.
struct Nothing;

impl ObjectReader for Nothing {
    fn get(&self, _: &str, _: &str, _: &str, _: &str) -> Option<Arc<Value>> {
        None
    }

    fn list(&self, _: &str, _: &str, _: Option<&str>) -> Vec<Arc<Value>> {
        Vec::new()
    }

    fn generation(&self, _: &str, _: &str) -> u64 {
        0
    }
}

fn flow(seats: usize) -> Flow {
    Flow::new(
        Arc::new(Nothing),
        seats,
        Duration::from_secs(15),
        &Metrics::default(),
    )
}

fn user(name: &str, groups: &[&str]) -> User {
    User {
        name: name.into(),
        groups: groups.iter().map(|g| (*g).to_owned()).collect(),
        ..User::default()
    }
}

fn request(verb: &'static str, group: &str, resource: &str, namespace: &str) -> RequestInfo {
    RequestInfo {
        is_resource: true,
        verb,
        group: group.into(),
        version: "v1".into(),
        resource: resource.into(),
        namespace: namespace.into(),
        ..RequestInfo::default()
    }
}

fn class(info: &RequestInfo, user: &User) -> (String, String) {
    let flow = flow(600);
    flow.refresh();
    let class = flow.compiled.load().classify(info, user).unwrap();
    (class.place.schema.clone(), class.place.level.to_string())
}

#[test]
fn the_defaults_put_everybody_where_upstream_does() {
    let list = request("list", "", "pods", "d");
    let lease = request("update", "coordination.k8s.io", "leases", "kube-node-lease");
    let node = user("system:node:a", &["system:nodes", "system:authenticated"]);
    let is = |schema: &str, level: &str| (schema.to_owned(), level.to_owned());
    assert_eq!(
        class(&list, &user("root", &["system:masters"])),
        is("exempt", "exempt")
    );
    assert_eq!(class(&lease, &node), is("system-node-high", "node-high"));
    assert_eq!(class(&list, &node), is("system-nodes", "system"));
    assert_eq!(
        class(
            &list,
            &user(
                "system:serviceaccount:d:x",
                &["system:serviceaccounts", "system:authenticated"]
            )
        ),
        is("service-accounts", "workload-low")
    );
    assert_eq!(
        class(
            &list,
            &user(
                "system:serviceaccount:kube-system:x",
                &["system:authenticated"]
            )
        ),
        is("kube-system-service-accounts", "workload-high")
    );
    assert_eq!(
        class(&list, &user("ann", &["system:authenticated"])),
        is("global-default", "global-default")
    );
    let probe = RequestInfo {
        verb: "get",
        path: "/healthz".into(),
        ..RequestInfo::default()
    };
    assert_eq!(
        class(&probe, &user("", &["system:unauthenticated"])),
        is("probes", "exempt")
    );
}

#[tokio::test(start_paused = true)]
async fn a_flood_does_not_stop_heartbeats_and_its_rest_is_refused() {
    let flow = Arc::new(flow(20));
    let list = request("list", "", "pods", "d");
    let greedy = user("greedy", &["system:authenticated"]);
    let mut held = Vec::new();
    // More than all seats of the level and what it may borrow.
    while let Ok(Ok(entered)) =
        tokio::time::timeout(Duration::from_secs(1), flow.enter(&list, &greedy, 1)).await
    {
        held.push(entered);
    }
    assert!(held.len() < 20, "{}", held.len());
    let node = user("system:node:a", &["system:nodes"]);
    let lease = request("update", "coordination.k8s.io", "leases", "kube-node-lease");
    assert!(flow.enter(&lease, &node, 1).await.is_ok());
    let waiting = {
        let (flow, list, greedy) = (Arc::clone(&flow), list.clone(), greedy.clone());
        tokio::spawn(async move { flow.enter(&list, &greedy, 1).await.map(|_| ()) })
    };
    tokio::task::yield_now().await;
    held.pop();
    assert!(
        waiting.await.unwrap().is_ok(),
        "a seat that is given up goes to who waits"
    );
    let refused = flow.enter(&list, &greedy, 1).await;
    // That seat is free again; fill it, then nobody gives up one in time.
    held.push(refused.unwrap());
    let late = flow.enter(&list, &greedy, 1).await.err().unwrap();
    assert_eq!(late.code, 429);
    assert_eq!(late.details.unwrap().retry_after_seconds, Some(1));
}

#[tokio::test(start_paused = true)]
async fn a_small_flow_is_not_behind_all_of_a_large_one() {
    let flow = Arc::new(flow(12));
    let list = request("list", "", "pods", "d");
    let held: Vec<_> = {
        let mut held = Vec::new();
        let first = user("first", &["system:authenticated"]);
        while let Ok(Ok(entered)) =
            tokio::time::timeout(Duration::from_secs(1), flow.enter(&list, &first, 1)).await
        {
            held.push(entered);
        }
        held
    };
    let order = Arc::new(Mutex::new(Vec::new()));
    let mut tasks = Vec::new();
    for (name, count) in [("greedy", 40), ("modest", 1)] {
        for _ in 0..count {
            let (flow, list, order) = (Arc::clone(&flow), list.clone(), Arc::clone(&order));
            tasks.push(tokio::spawn(async move {
                let user = user(name, &["system:authenticated"]);
                let entered = flow.enter(&list, &user, 1).await;
                order.lock().push(name);
                tokio::time::sleep(Duration::from_millis(1)).await;
                drop(entered);
            }));
        }
        tokio::task::yield_now().await;
    }
    drop(held);
    for task in tasks {
        task.await.unwrap();
    }
    let at = order.lock().iter().position(|n| *n == "modest").unwrap();
    assert!(at < 30, "the modest one came {at}th");
}

#[tokio::test(start_paused = true)]
async fn requests_that_go_away_leave_no_seat_taken() {
    let flow = Arc::new(flow(1));
    let list = request("list", "", "pods", "d");
    let ann = user("ann", &["system:authenticated"]);
    let held = flow.enter(&list, &ann, 1).await.unwrap();
    for _ in 0..5 {
        let waited =
            tokio::time::timeout(Duration::from_millis(1), flow.enter(&list, &ann, 1)).await;
        assert!(waited.is_err());
    }
    drop(held);
    let engine = flow.shared.engine.lock();
    assert!(
        engine
            .usage()
            .all(|(_, executing, waiting, _)| executing == 0 && waiting == 0)
    );
}

#[test]
fn wide_lists_take_several_seats() {
    let list = request("list", "", "pods", "");
    assert_eq!(Flow::width(&list, || 5, None), 1);
    assert_eq!(Flow::width(&list, || 450, None), 5);
    assert_eq!(Flow::width(&list, || 100_000, None), 10);
    assert_eq!(Flow::width(&list, || 100_000, Some(10)), 1);
    assert_eq!(
        Flow::width(&request("get", "", "pods", "d"), || 100_000, None),
        1
    );
}

#[test]
fn a_changed_default_comes_back_unless_somebody_took_it_over() {
    let wanted = defaults::levels().pop().unwrap();
    let mut present = wanted.clone();
    assert!(keep::update(&present, &wanted).is_none());
    present["spec"]["limited"]["nominalConcurrencyShares"] = 7.into();
    assert_eq!(
        keep::update(&present, &wanted).unwrap()["spec"],
        wanted["spec"]
    );
    present["metadata"]["annotations"]["apf.kubernetes.io/autoupdate-spec"] = "false".into();
    assert!(keep::update(&present, &wanted).is_none());
}

#[test]
fn a_schema_without_its_level_is_dangling() {
    let schema = defaults::schemas().pop().unwrap();
    let lost = keep::dangling(&schema, "catch-all", false).unwrap();
    assert_eq!(lost["status"]["conditions"][0]["status"], "True");
    assert!(keep::dangling(&lost, "catch-all", false).is_none());
    let found = keep::dangling(&lost, "catch-all", true).unwrap();
    assert_eq!(found["status"]["conditions"][0]["reason"], "Found");
}
