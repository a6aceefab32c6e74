//! Writes that others limit: quotas, disruption budgets, and the signer of certificate requests.

use futures::future::join_all;

use super::*;

const QUOTAS: &str = "/api/v1/namespaces/d/resourcequotas";
const BUDGETS: &str = "/apis/policy/v1/namespaces/d/poddisruptionbudgets";

async fn quota(h: &Harness, hard: Value, used: Value) {
    let quota = json!({"metadata": {"name": "q"}, "spec": {"hard": hard}});
    let mut quota = h.post(QUOTAS, quota).await.expect(201);
    quota["status"] = json!({"hard": hard, "used": used});
    h.put(&format!("{QUOTAS}/q/status"), quota)
        .await
        .expect(200);
}

async fn used(h: &Harness, resource: &str) -> Value {
    let quota = h.get(&format!("{QUOTAS}/q")).await.expect(200);
    quota["status"]["used"][resource].clone()
}

#[tokio::test]
async fn no_two_writes_take_what_is_left_of_a_quota() {
    let h = Harness::new();
    quota(&h, json!({"configmaps": "5"}), json!({"configmaps": "0"})).await;
    let names: Vec<String> = (0..20).map(|i| format!("m{i}")).collect();
    let answers = join_all(
        names
            .iter()
            .map(|name| h.post(MAPS, config_map(name, json!({})))),
    )
    .await;
    let made = answers.iter().filter(|a| a.code == 201).count();
    assert_eq!(made, 5);
    let refused = answers.into_iter().find(|a| a.code != 201).unwrap();
    let message = refused.message(403);
    assert!(
        message.ends_with(
            "is forbidden: exceeded quota: q, requested: configmaps=1, used: configmaps=5, limited: configmaps=5"
        ),
        "{message}"
    );
    assert_eq!(used(&h, "configmaps").await, "5");
}

#[tokio::test]
async fn a_dry_run_and_a_refused_write_cost_nothing() {
    let h = Harness::new();
    quota(&h, json!({"configmaps": "5"}), json!({"configmaps": "0"})).await;
    h.post(&format!("{MAPS}?dryRun=All"), config_map("a", json!({})))
        .await
        .expect(201);
    assert_eq!(used(&h, "configmaps").await, "0");
    h.post(MAPS, config_map("a", json!({}))).await.expect(201);
    h.post(MAPS, config_map("a", json!({}))).await.expect(409);
    assert_eq!(used(&h, "configmaps").await, "1");
}

async fn running(h: &Harness, name: &str) {
    let mut made = pod(name);
    made["metadata"]["labels"] = json!({"app": "web"});
    made["spec"]["nodeName"] = "n".into();
    let mut made = h.post(PODS, made).await.expect(201);
    made["status"] =
        json!({"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]});
    h.put(&format!("{PODS}/{name}/status"), made)
        .await
        .expect(200);
}

async fn budget(h: &Harness, status: Value) {
    let budget = json!({"metadata": {"name": "b"}, "spec": {"minAvailable": 1, "selector": {"matchLabels": {"app": "web"}}}});
    let mut budget = h.post(BUDGETS, budget).await.expect(201);
    budget["status"] = status;
    h.put(&format!("{BUDGETS}/b/status"), budget)
        .await
        .expect(200);
}

fn eviction(name: &str) -> Value {
    json!({"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": name}})
}

async fn evict(h: &Harness, name: &str) -> Answer {
    h.post(&format!("{PODS}/{name}/eviction"), eviction(name))
        .await
}

#[tokio::test]
async fn an_eviction_takes_from_the_budget_and_stops_at_its_end() {
    let h = Harness::new();
    running(&h, "a").await;
    running(&h, "b").await;
    budget(
        &h,
        json!({"observedGeneration": 1, "disruptionsAllowed": 1, "currentHealthy": 2, "desiredHealthy": 1, "expectedPods": 2}),
    )
    .await;
    let dry = format!("{PODS}/a/eviction?dryRun=All");
    h.post(&dry, eviction("a")).await.expect(201);
    evict(&h, "a").await.expect(201);
    let gone = h.get(&format!("{PODS}/a")).await.expect(200);
    assert!(gone["metadata"]["deletionTimestamp"].is_string());
    let conditions = gone["status"]["conditions"].as_array().unwrap().clone();
    assert!(
        conditions
            .iter()
            .any(|c| c["type"] == "DisruptionTarget" && c["reason"] == "EvictionByEvictionAPI")
    );
    let budget = h.get(&format!("{BUDGETS}/b")).await.expect(200);
    assert_eq!(budget["status"]["disruptionsAllowed"], 0);
    assert!(budget["status"]["disruptedPods"]["a"].is_string());
    let answer = evict(&h, "b").await;
    assert_eq!(
        answer.headers.get("retry-after"),
        None,
        "clients would wait"
    );
    let refused = answer.expect(429);
    assert_eq!(refused["reason"], "TooManyRequests");
    assert_eq!(
        refused["message"],
        "Cannot evict pod as it would violate the pod's disruption budget."
    );
    assert_eq!(
        refused["details"]["causes"][0],
        json!({"reason": "DisruptionBudget", "message": "The disruption budget b needs 1 healthy pods and has 2 currently"})
    );
}

#[tokio::test]
async fn a_budget_does_not_hold_pods_that_are_done_or_not_ready_in_excess() {
    let h = Harness::new();
    running(&h, "a").await;
    budget(
        &h,
        json!({"observedGeneration": 1, "disruptionsAllowed": 0, "currentHealthy": 1, "desiredHealthy": 1, "expectedPods": 1}),
    )
    .await;
    evict(&h, "a").await.expect(429);
    let mut pod = h.get(&format!("{PODS}/a")).await.expect(200);
    pod["status"]["conditions"][0]["status"] = "False".into();
    h.put(&format!("{PODS}/a/status"), pod).await.expect(200);
    evict(&h, "a").await.expect(201);
}

#[tokio::test]
async fn a_certificate_request_names_who_made_it_and_only_approval_approves_it() {
    const PATH: &str = "/apis/certificates.k8s.io/v1/certificatesigningrequests";
    let key = rcgen::KeyPair::generate().unwrap();
    let params = rcgen::CertificateParams::default();
    let pem = params.serialize_request(&key).unwrap().pem().unwrap();
    use base64::Engine as _;
    let encoded = base64::engine::general_purpose::STANDARD.encode(pem);
    let h = Harness::new();
    let request = json!({"metadata": {"name": "r"}, "spec": {"request": encoded, "usages": ["client auth"],
        "signerName": "example.com/mine", "username": "root"}});
    let mut made = h.post(PATH, request).await.expect(201);
    assert_eq!(made["spec"]["username"], "admin");
    assert_eq!(made["spec"]["groups"], json!(["system:masters"]));
    let approved = json!({"conditions": [{"type": "Approved", "status": "True", "reason": "r", "message": "m"}]});
    made["status"] = approved;
    let refused = h.put(&format!("{PATH}/r/status"), made.clone()).await;
    assert!(refused.message(422).contains("may not add a condition"));
    let approval = h.put(&format!("{PATH}/r/approval"), made).await.expect(200);
    let condition = &approval["status"]["conditions"][0];
    assert_eq!(condition["type"], "Approved");
    assert!(condition["lastUpdateTime"].is_string());
}
