//! Pods that change while they run.

use balsa_pod::Rejection;

use super::*;

fn sized(cpu: &str) -> Value {
    json!({"containers": [{"name": "c", "image": "app:1",
        "resources": {"requests": {"cpu": cpu}, "limits": {"cpu": cpu}}}]})
}

fn pending(pod: &Value) -> String {
    let all = pod["status"]["conditions"].as_array().cloned();
    let all = all.unwrap_or_default();
    let mut found = all.iter().filter(|c| c["type"] == "PodResizePending");
    found
        .next()
        .and_then(|condition| condition["reason"].as_str())
        .unwrap_or_default()
        .to_owned()
}

impl Rig {
    fn change_spec(&self, spec: Value) {
        let changed = self.cluster.change(|pod| {
            let generation = pod["metadata"]["generation"].as_i64().unwrap();
            pod["metadata"]["generation"] = json!(generation + 1);
            pod["spec"] = spec;
        });
        self.tell(changed.unwrap());
    }
}

#[tokio::test]
async fn a_resize_reaches_the_runtime_and_one_too_big_waits() {
    let rig = Rig::start(sized("500m")).await;
    rig.until_ready().await;
    rig.change_spec(sized("1"));
    let pod = rig
        .until("the resize", |pod| {
            pod["status"]["containerStatuses"][0]["resources"]["limits"]["cpu"] == "1"
        })
        .await;
    assert_eq!(rig.count("update_resources"), 1);
    assert_eq!(pod["status"]["containerStatuses"][0]["restartCount"], 0);
    rig.change_spec(sized("9"));
    let pod = rig
        .until("the refusal", |pod| pending(pod) == "Infeasible")
        .await;
    assert_eq!(pod["status"]["observedGeneration"], 3);
    let status = &pod["status"]["containerStatuses"][0];
    assert_eq!(status["allocatedResources"]["cpu"], "1");
    assert_eq!(rig.count("update_resources"), 1);
}

#[tokio::test]
async fn a_container_that_restarts_to_get_more_finds_room_in_its_pod() {
    let sized = |cpu: &str| {
        let mut spec = sized(cpu);
        spec["containers"][0]["resizePolicy"] =
            json!([{"resourceName": "cpu", "restartPolicy": "RestartContainer"}]);
        spec
    };
    let rig = Rig::new(pod(sized("500m")));
    let group = rig.dir.path().join("cpu/balsa/burstable/podu1");
    let quota = group.join("cpu.cfs_quota_us");
    std::fs::create_dir_all(group).unwrap();
    std::fs::write(&quota, "").unwrap();
    rig.spawn(Snapshot::default()).await;
    rig.until_ready().await;
    rig.change_spec(sized("1"));
    rig.until("the restart", |pod| {
        pod["status"]["containerStatuses"][0]["restartCount"] == 1
    })
    .await;
    let quota = rig
        .dir
        .path()
        .join("cpu/balsa/burstable/podu1/cpu.cfs_quota_us");
    assert_eq!(std::fs::read_to_string(quota).unwrap(), "100000");
    assert_eq!(rig.count("update_resources"), 0);
}

#[tokio::test]
async fn a_container_that_is_replaced_at_once_is_not_told_to_be_unready_between() {
    let with = |image: &str| json!({"containers": [{"name": "c", "image": image}]});
    let rig = Rig::start(with("app:1")).await;
    rig.until_ready().await;
    rig.runtime.add_image("app:2");
    rig.cluster.patches.lock().clear();
    rig.change_spec(with("app:2"));
    rig.until("the replacement", |pod| {
        pod["status"]["containerStatuses"][0]["restartCount"] == 1
    })
    .await;
    let patches = rig.cluster.patches.lock().clone();
    let told = serde_json::to_string(&patches).unwrap();
    assert!(!told.contains("ContainersNotReady"), "{told}");
}

#[tokio::test]
async fn what_was_granted_outlives_the_agent() {
    let rig = Rig::start(sized("500m")).await;
    rig.until_ready().await;
    rig.change_spec(sized("9"));
    rig.until("the refusal", |pod| pending(pod) == "Infeasible")
        .await;
    rig.stop.cancel();
    let snapshot = Snapshot {
        sandboxes: rig.runtime.list_sandboxes().await.unwrap(),
        containers: rig.runtime.list_containers().await.unwrap(),
    };
    let next = rig.successor();
    next.spawn(snapshot).await;
    next.change_spec(sized("500m"));
    let pod = next
        .until("peace", |pod| pod["status"]["observedGeneration"] == 3)
        .await;
    assert_eq!(pending(&pod), "");
    assert_eq!(rig.count("update_resources"), 0);
}

#[tokio::test]
async fn an_ephemeral_container_sees_the_processes_of_its_target() {
    let rig = Rig::start(json!({"containers": [{"name": "c", "image": "app:1"}]})).await;
    rig.until_ready().await;
    rig.change_spec(json!({"containers": [{"name": "c", "image": "app:1"}],
        "ephemeralContainers": [{"name": "debug", "image": "app:1", "targetContainerName": "c"}]}));
    rig.until("the debugger", |pod| {
        pod["status"]["ephemeralContainerStatuses"][0]["state"]["running"].is_object()
    })
    .await;
    let own = rig.runtime.container_named("debug").unwrap();
    let config = rig.runtime.container_config(&own).unwrap();
    let target = rig.runtime.container_named("c").unwrap();
    assert_eq!(config.security.namespaces.target, target);
}

#[tokio::test]
async fn a_pod_thrown_out_fails_with_the_reason_and_keeps_its_conditions() {
    let rig = Rig::start(json!({"containers": [{"name": "c", "image": "app:1"}]})).await;
    rig.until_ready().await;
    rig.mailbox.tell(|news| {
        news.evict = Some(Rejection {
            reason: "Evicted".to_owned(),
            message: "The node was low on resource: memory. ".to_owned(),
            disruption: true,
            grace: Some(Duration::from_secs(1)),
        });
    });
    let pod = rig
        .until("the end", |pod| pod["status"]["phase"] == "Failed")
        .await;
    assert_eq!(pod["status"]["reason"], "Evicted");
    assert_eq!(condition(&pod, "DisruptionTarget"), "True");
    assert_eq!(condition(&pod, "PodScheduled"), "True");
}
