//! Workers with a runtime and an API in memory.
#![allow(clippy::unwrap_used)]

mod changes;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use balsa_client::EventRecorder;
use balsa_cri::fake::FakeRuntime;
use balsa_cri::{Dns, ExecOutput, Runtime, RuntimeEvent, SandboxConfig};
use k8s_openapi::api::core::v1::Pod;
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::sync::{Notify, Semaphore, mpsc};
use tokio_util::sync::CancellationToken;

use super::capacity::{Capacity, Gates, Offer};
use super::mailbox::Snapshot;
use super::worker::Worker;
use super::{Context, Mailbox, Routes};
use crate::cgroups::Cgroups;
use crate::cluster::{ApiError, Bound, Cluster, Token};
use crate::config::AgentConfig;
use crate::devices::Devices;
use crate::images::Images;
use crate::objects::Sources;
use crate::volumes::payload::TokenWant;

const PATIENCE: Duration = Duration::from_secs(10);

/// An API with one pod.
#[derive(Default)]
struct FakeCluster {
    pod: Mutex<Option<Pod>>,
    sources: Mutex<Sources>,
    /// All statuses that were written.
    patches: Mutex<Vec<Value>>,
    changed: Notify,
}

impl FakeCluster {
    fn change(&self, change: impl FnOnce(&mut Value)) -> Result<Pod, ApiError> {
        let mut pod = self.pod.lock();
        let Some(current) = pod.as_ref() else {
            return Err(ApiError::Gone);
        };
        let mut value = serde_json::to_value(current).unwrap();
        change(&mut value);
        let version: u64 = value["metadata"]["resourceVersion"]
            .as_str()
            .unwrap()
            .parse()
            .unwrap();
        value["metadata"]["resourceVersion"] = json!((version + 1).to_string());
        let changed: Pod = serde_json::from_value(value).unwrap();
        *pod = Some(changed.clone());
        drop(pod);
        self.changed.notify_waiters();
        Ok(changed)
    }
}

/// As far as strategic merge matters here: conditions by type, everything else replaced.
fn merge_status(pod: &mut Value, patch: &Value) {
    for (key, value) in patch["status"].as_object().unwrap() {
        let status = &mut pod["status"];
        if key != "conditions" {
            let list = value.as_array().map(|list| {
                list.iter()
                    .filter(|item| item.get("$patch").is_none())
                    .cloned()
            });
            status[key] = list.map_or_else(|| value.clone(), |list| list.collect());
            continue;
        }
        for condition in value.as_array().unwrap() {
            let all = status["conditions"].as_array().cloned().unwrap_or_default();
            let mut all: Vec<Value> = all
                .into_iter()
                .filter(|known| known["type"] != condition["type"])
                .collect();
            all.push(condition.clone());
            status["conditions"] = Value::Array(all);
        }
    }
}

#[async_trait]
impl Cluster for FakeCluster {
    async fn patch_status(&self, _: &str, _: &str, patch: &Value) -> Result<Pod, ApiError> {
        self.patches.lock().push(patch.clone());
        self.change(|pod| merge_status(pod, patch))
    }

    async fn delete(&self, _: &str, _: &str, uid: &str) -> Result<(), ApiError> {
        let mut pod = self.pod.lock();
        if pod.as_ref().and_then(|pod| pod.metadata.uid.as_deref()) != Some(uid) {
            return Err(ApiError::Gone);
        }
        *pod = None;
        drop(pod);
        self.changed.notify_waiters();
        Ok(())
    }

    async fn sources(&self, _: &Pod) -> Result<Sources, String> {
        Ok(self.sources.lock().clone())
    }

    fn release(&self, _: &str) {}

    async fn service_variables(&self, _: &str, _: bool) -> BTreeMap<String, String> {
        BTreeMap::new()
    }

    async fn runtime_handler(&self, class: &str) -> Result<String, String> {
        Ok(class.to_owned())
    }

    async fn claim(&self, _: &str, name: &str) -> Result<Bound, String> {
        Err(format!("no claim {name}"))
    }

    async fn create_mirror(&self, _: &Pod) -> Result<(), ApiError> {
        Ok(())
    }

    async fn token(&self, _: &Pod, _: &TokenWant) -> Result<Token, String> {
        Ok(Token {
            text: "token".to_owned(),
            expires: jiff::Timestamp::MAX,
        })
    }
}

struct Rig {
    runtime: FakeRuntime,
    cluster: Arc<FakeCluster>,
    context: Arc<Context>,
    mailbox: Arc<Mailbox>,
    stop: CancellationToken,
    dir: Arc<tempfile::TempDir>,
}

fn pod(spec: Value) -> Pod {
    serde_json::from_value(json!({
        "metadata": {"name": "web", "namespace": "shop", "uid": "u1", "resourceVersion": "1", "generation": 1},
        "spec": spec, "status": {"phase": "Pending", "conditions": [{"type": "PodScheduled", "status": "True"}]},
    }))
    .unwrap()
}

impl Rig {
    async fn start(spec: Value) -> Self {
        let rig = Self::new(pod(spec));
        rig.spawn(Snapshot::default()).await;
        rig
    }

    fn new(pod: Pod) -> Self {
        let runtime = FakeRuntime::new();
        runtime.add_image("app:1");
        let cluster = Arc::new(FakeCluster::default());
        *cluster.pod.lock() = Some(pod);
        let dir = tempfile::tempdir().unwrap();
        let config = AgentConfig::new("a1", [10, 0, 0, 1].into(), dir.path());
        let shared: Arc<dyn Runtime> = Arc::new(runtime.clone());
        let amounts = json!({"cpu": "2", "memory": "1Gi", "pods": "10"});
        let offer = Offer {
            amounts: balsa_api::kinds::amounts::amounts(&amounts),
            ..Offer::default()
        };
        let context = Arc::new(Context {
            paths: config.paths(),
            config,
            runtime: Arc::clone(&shared),
            cluster: Arc::clone(&cluster) as _,
            recorder: EventRecorder::discard(),
            images: Images::new(shared, 1),
            sandbox_slots: Semaphore::new(1),
            routes: Routes::default(),
            relist: Notify::new(),
            node_dns: Dns::default(),
            host_ips: vec!["10.0.0.1".to_owned()],
            host: crate::pods::resources::Host {
                memory: 1 << 30,
                ..Default::default()
            },
            capacity: Capacity::new(offer, Gates::default()),
            cgroups: Cgroups::at(dir.path(), "/balsa"),
            users: Default::default(),
            features: Default::default(),
            csi: crate::csi::tests::none(dir.path()),
            devices: Devices::new(dir.path().join("device-plugins")),
            stop: CancellationToken::new(),
        });
        Self {
            runtime,
            cluster,
            context,
            mailbox: Arc::default(),
            stop: CancellationToken::new(),
            dir: Arc::new(dir),
        }
    }

    /// A new agent with the same folder, runtime and API.
    fn successor(&self) -> Self {
        Self {
            runtime: self.runtime.clone(),
            cluster: Arc::clone(&self.cluster),
            context: Arc::clone(&self.context),
            mailbox: Arc::default(),
            stop: CancellationToken::new(),
            dir: Arc::clone(&self.dir),
        }
    }

    async fn spawn(&self, snapshot: Snapshot) {
        let pod = Arc::new(self.cluster.pod.lock().clone().unwrap());
        let mut worker = Worker::new(
            Arc::clone(&self.context),
            Arc::clone(&self.mailbox),
            pod,
            None,
        );
        let stop = self.stop.clone();
        tokio::spawn(async move {
            worker.adopt(snapshot).await;
            worker.run(stop).await;
        });
        // What the manager does: hand over the runtime's events.
        let (events_tx, mut events) = mpsc::channel(64);
        let (runtime, stop, mailbox) = (
            self.runtime.clone(),
            self.stop.clone(),
            Arc::clone(&self.mailbox),
        );
        tokio::spawn(async move { runtime.watch_events(events_tx, stop).await });
        assert_eq!(events.recv().await, Some(RuntimeEvent::Resync));
        tokio::spawn(async move {
            while let Some(event) = events.recv().await {
                if let RuntimeEvent::Exited { id, code, at } = event {
                    mailbox.tell(|news| {
                        news.exits.insert(id, (code, at));
                    });
                }
            }
        });
    }

    /// Waits until the pod in the API is as wanted (`Null` when it is gone).
    async fn until(&self, what: &str, wanted: impl Fn(&Value) -> bool) -> Value {
        let wait = async {
            loop {
                let mut changed = Box::pin(self.cluster.changed.notified());
                changed.as_mut().enable();
                let pod = serde_json::to_value(&*self.cluster.pod.lock()).unwrap();
                if wanted(&pod) {
                    return pod;
                }
                changed.await;
            }
        };
        match tokio::time::timeout(PATIENCE, wait).await {
            Ok(pod) => pod,
            Err(_) => panic!(
                "{what} did not come; calls {:#?}, pod {:#?}",
                self.runtime.calls(),
                self.cluster.pod.lock()
            ),
        }
    }

    async fn until_ready(&self) -> Value {
        self.until("ready", |pod| condition(pod, "Ready") == "True")
            .await
    }

    fn delete_pod(&self, grace: i64) {
        let changed = self.cluster.change(|pod| {
            pod["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
            pod["metadata"]["deletionGracePeriodSeconds"] = json!(grace);
        });
        self.tell(changed.unwrap());
    }

    fn tell(&self, pod: Pod) {
        self.mailbox.tell(|news| news.pod = Some(Arc::new(pod)));
    }

    fn count(&self, call: &str) -> usize {
        self.runtime
            .calls()
            .iter()
            .filter(|made| made.starts_with(call))
            .count()
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

fn condition(pod: &Value, kind: &str) -> String {
    let all = pod["status"]["conditions"]
        .as_array()
        .cloned()
        .unwrap_or_default();
    let found = all.iter().find(|condition| condition["type"] == kind);
    found
        .and_then(|condition| condition["status"].as_str())
        .unwrap_or_default()
        .to_owned()
}

fn state(pod: &Value) -> &Value {
    &pod["status"]["containerStatuses"][0]["state"]
}

#[tokio::test]
async fn a_pod_becomes_ready_and_reports_its_address() {
    let rig = Rig::start(json!({"containers": [{"name": "c", "image": "app:1"}]})).await;
    let pod = rig.until_ready().await;
    assert_eq!(pod["status"]["phase"], "Running");
    assert_eq!(pod["status"]["hostIP"], "10.0.0.1");
    assert!(
        pod["status"]["podIP"]
            .as_str()
            .unwrap()
            .starts_with("10.244.0.")
    );
    assert!(pod["status"]["startTime"].is_string());
    assert_eq!(condition(&pod, "PodScheduled"), "True");
    assert_eq!(rig.count("create_container"), 1);
}

#[tokio::test]
async fn a_deleted_pod_stops_in_order_and_leaves_nothing() {
    let rig = Rig::start(json!({"containers": [{"name": "c", "image": "app:1"}]})).await;
    rig.until_ready().await;
    rig.delete_pod(30);
    rig.until("the end", Value::is_null).await;
    let steps: Vec<_> = rig
        .runtime
        .calls()
        .into_iter()
        .filter(|call| call.starts_with("stop_"))
        .collect();
    assert!(
        steps[0].starts_with("stop_container") && steps[1].starts_with("stop_sandbox"),
        "{steps:?}"
    );
    // The clean-up goes on beside the removal from the API.
    let folder = rig.dir.path().join("pods/u1");
    let gone = async {
        while folder.exists() || rig.count("remove_sandbox") == 0 {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, gone).await.unwrap();
}

#[tokio::test]
async fn a_failed_container_restarts_and_counts() {
    let rig = Rig::start(json!({"containers": [{"name": "c", "image": "app:1"}]})).await;
    rig.until_ready().await;
    let id = rig.runtime.container_named("c").unwrap();
    rig.runtime.exit(&id, 3);
    let pod = rig
        .until("the restart", |pod| {
            pod["status"]["containerStatuses"][0]["restartCount"] == 1
                && condition(pod, "Ready") == "True"
        })
        .await;
    assert_eq!(
        pod["status"]["containerStatuses"][0]["lastState"]["terminated"]["exitCode"],
        3
    );
    let id = rig.runtime.container_named("c").unwrap();
    rig.runtime.exit(&id, 3);
    let pod = rig
        .until("the backoff", |pod| {
            state(pod)["waiting"]["reason"] == "CrashLoopBackOff"
        })
        .await;
    assert!(
        state(&pod)["waiting"]["message"]
            .as_str()
            .unwrap()
            .starts_with("back-off 10s restarting failed")
    );
}

#[tokio::test]
async fn a_job_like_pod_succeeds_and_its_sandbox_stops() {
    let spec = json!({"restartPolicy": "Never", "containers": [{"name": "c", "image": "app:1"}]});
    let rig = Rig::start(spec).await;
    rig.until_ready().await;
    rig.runtime
        .exit(&rig.runtime.container_named("c").unwrap(), 0);
    let pod = rig
        .until("success", |pod| pod["status"]["phase"] == "Succeeded")
        .await;
    assert_eq!(state(&pod)["terminated"]["reason"], "Completed");
    assert_eq!(rig.count("create_container"), 1);
}

#[tokio::test]
async fn an_adopted_pod_is_not_touched() {
    let rig = Rig::start(json!({"containers": [{"name": "c", "image": "app:1"}]})).await;
    rig.until_ready().await;
    rig.stop.cancel();
    let before = rig.runtime.calls().len();
    let snapshot = Snapshot {
        sandboxes: rig.runtime.list_sandboxes().await.unwrap(),
        containers: rig.runtime.list_containers().await.unwrap(),
    };
    let next = rig.successor();
    next.spawn(snapshot).await;
    next.delete_pod(0);
    next.until("the end", Value::is_null).await;
    let calls = rig.runtime.calls().split_off(before);
    assert!(
        !calls
            .iter()
            .any(|call| call.starts_with("run_sandbox") || call.starts_with("create_")),
        "{calls:?}"
    );
    assert!(calls.iter().any(|call| call.starts_with("stop_container")));
}

#[tokio::test]
async fn a_removal_that_the_runtime_refuses_is_tried_again_after_a_pause() {
    let rig = Rig::start(json!({"containers": [{"name": "c", "image": "app:1"}]})).await;
    rig.until_ready().await;
    rig.stop.cancel();
    // Two more instances: the oldest is one too many.
    let first = rig.runtime.container_named("c").unwrap();
    rig.runtime.exit(&first, 1);
    let sandboxes = rig.runtime.list_sandboxes().await.unwrap();
    let mut config = rig.runtime.container_config(&first).unwrap();
    for attempt in 1..3 {
        config.attempt = attempt;
        let (id, sandbox) = (&sandboxes[0].id, SandboxConfig::default());
        let created = rig.runtime.create_container(id, &config, &sandbox).await;
        created.unwrap();
    }
    let refusal = balsa_cri::Error::Rpc {
        code: "Unknown",
        message: "container is already in removing state".to_owned(),
    };
    rig.runtime.fail_next("remove_container", refusal);
    let snapshot = Snapshot {
        sandboxes,
        containers: rig.runtime.list_containers().await.unwrap(),
    };
    let next = rig.successor();
    next.spawn(snapshot).await;
    let removal = format!("remove_container {first}");
    let tried = async |times: usize| {
        let tries = async {
            while next.count(&removal) < times {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(PATIENCE, tries).await.unwrap();
        std::time::Instant::now()
    };
    let (refused, removed) = (tried(1).await, tried(2).await);
    let pause = removed - refused;
    assert!(pause > Duration::from_millis(900), "{pause:?}");
}

#[tokio::test]
async fn what_was_put_off_is_done_at_once_when_the_clock_was_set() {
    let spec =
        json!({"containers": [{"name": "c", "image": "none:1", "imagePullPolicy": "Never"}]});
    let rig = Rig::start(spec).await;
    rig.until("the failure", |pod| {
        state(pod)["waiting"]["reason"] == "ErrImageNeverPull"
    })
    .await;
    rig.runtime.add_image("none:1");
    let began = std::time::Instant::now();
    rig.mailbox.tell(|news| news.clock_set = true);
    rig.until_ready().await;
    // It would have been tried again after ten seconds.
    assert!(began.elapsed() < Duration::from_secs(5));
}

#[tokio::test]
async fn a_missing_image_waits_with_its_reason() {
    let spec = json!({"containers": [{"name": "c", "image": "none:1", "imagePullPolicy": "IfNotPresent"}]});
    let rig = Rig::start(spec).await;
    let pod = rig
        .until("the failure", |pod| {
            state(pod)["waiting"]["reason"] == "ErrImagePull"
        })
        .await;
    assert_eq!(pod["status"]["phase"], "Pending");
    rig.until("the backoff", |pod| {
        state(pod)["waiting"]["reason"] == "ImagePullBackOff"
    })
    .await;
    rig.delete_pod(30);
    rig.until("the end", Value::is_null).await;
}

#[tokio::test]
async fn a_missing_config_map_holds_the_pod_until_it_comes() {
    let spec = json!({"containers": [{"name": "c", "image": "app:1",
        "env": [{"name": "A", "valueFrom": {"configMapKeyRef": {"name": "m", "key": "k"}}}]}]});
    let rig = Rig::start(spec).await;
    let wanted = "CreateContainerConfigError";
    let pod = rig
        .until("the failure", |pod| {
            state(pod)["waiting"]["reason"] == wanted
        })
        .await;
    assert_eq!(
        state(&pod)["waiting"]["message"],
        "configmap \"m\" not found"
    );
    let map = serde_json::from_value(json!({"data": {"k": "v"}})).unwrap();
    rig.cluster
        .sources
        .lock()
        .config_maps
        .insert("m".to_owned(), Arc::new(map));
    rig.mailbox.tell(|news| news.objects_changed = true);
    rig.until_ready().await;
    let config = rig
        .runtime
        .container_config(&rig.runtime.container_named("c").unwrap())
        .unwrap();
    assert_eq!(config.env, [("A".to_owned(), "v".to_owned())]);
}

#[tokio::test]
async fn readiness_follows_its_probe() {
    let spec = json!({"containers": [{"name": "c", "image": "app:1",
        "readinessProbe": {"exec": {"command": ["check"]}, "failureThreshold": 1, "periodSeconds": 1}}]});
    let rig = Rig::start(spec).await;
    rig.until_ready().await;
    rig.runtime.on_exec(
        "check",
        ExecOutput {
            exit_code: 1,
            ..ExecOutput::default()
        },
    );
    let pod = rig
        .until("not ready", |pod| condition(pod, "Ready") == "False")
        .await;
    assert_eq!(pod["status"]["phase"], "Running");
}

#[tokio::test]
async fn a_dead_sandbox_is_replaced_with_its_containers() {
    let rig = Rig::start(json!({"containers": [{"name": "c", "image": "app:1"}]})).await;
    let first = rig.until_ready().await["status"]["podIP"].clone();
    let container = rig.runtime.container_named("c").unwrap();
    let sandbox = rig.runtime.list_sandboxes().await.unwrap()[0].id.clone();
    rig.runtime.kill_sandbox(&sandbox);
    rig.runtime.exit(&container, 137);
    let again = |pod: &Value| pod["status"]["podIP"] != first && condition(pod, "Ready") == "True";
    rig.until("a new sandbox", again).await;
    assert_eq!(rig.count("run_sandbox"), 2);
}

#[tokio::test]
async fn a_pod_removed_from_the_api_at_once_is_ended_too() {
    let rig = Rig::start(json!({"containers": [{"name": "c", "image": "app:1"}]})).await;
    rig.until_ready().await;
    *rig.cluster.pod.lock() = None;
    rig.mailbox.tell(|news| news.gone = true);
    let gone = async {
        while rig.count("remove_sandbox") == 0 {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, gone).await.unwrap();
}
