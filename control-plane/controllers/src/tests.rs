//! All controllers together against an API server in memory.
#![allow(clippy::unwrap_used)]

mod api;
mod attach;

use std::collections::HashMap;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use serde_json::{Value, json};

use self::api::{FakeApi, text};
use super::*;

/// Links of nodes that are listed are alive.
struct Links(Mutex<HashMap<String, Option<Instant>>>);

impl NodeHeartbeats for Links {
    fn last_seen(&self, node: &str) -> Option<Instant> {
        match self.0.lock().get(node)? {
            None => Some(Instant::now()),
            died => *died,
        }
    }
}

/// A cluster: two nodes, one namespace.
struct Cluster {
    api: FakeApi,
    links: Arc<Links>,
    stop: CancellationToken,
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

impl Cluster {
    fn start() -> Self {
        let api = FakeApi::default();
        for node in ["a", "b"] {
            api.put(
                "nodes",
                json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": node},
                "status": {"conditions": [{"type": "Ready", "status": "True"}]}}),
            );
        }
        api.put(
            "namespaces",
            json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "shop"},
            "spec": {"finalizers": ["kubernetes"]}, "status": {"phase": "Active"}}),
        );
        let alive = ["a", "b"].map(|node| (node.to_owned(), None));
        let links = Arc::new(Links(Mutex::new(HashMap::from(alive))));
        let stop = CancellationToken::new();
        let config = Config {
            cluster_ca_pem: "ca".into(),
            failover: Failover::Fast,
            ..Config::default()
        };
        let pods = balsa_client::pods(api.client(), stop.clone());
        Controllers::start(
            api.client(),
            pods,
            config,
            Arc::clone(&links) as _,
            stop.clone(),
        );
        let (nodes, heartbeats, stopped) = (api.clone(), Arc::clone(&links), stop.clone());
        tokio::spawn(async move {
            while !stopped.is_cancelled() {
                let alive: Vec<String> = heartbeats
                    .0
                    .lock()
                    .iter()
                    .filter(|l| l.1.is_none())
                    .map(|l| l.0.clone())
                    .collect();
                nodes.run_pods(&alive.iter().map(String::as_str).collect::<Vec<_>>());
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        });
        Self { api, links, stop }
    }

    fn kill(&self, node: &str) {
        self.links
            .0
            .lock()
            .insert(node.to_owned(), Some(Instant::now()));
    }

    async fn apply(&self, method: http::Method, path: &str, body: Value) -> Value {
        let mut request = http::Request::builder().method(method).uri(path);
        request = request.header("content-type", "application/merge-patch+json");
        let body = if body.is_null() {
            Vec::new()
        } else {
            body.to_string().into_bytes()
        };
        self.api
            .client()
            .request(request.body(body).unwrap())
            .await
            .unwrap()
    }

    async fn create(&self, path: &str, body: Value) -> Value {
        self.apply(http::Method::POST, path, body).await
    }

    fn names(&self, plural: &str) -> Vec<String> {
        self.api
            .list(plural, "shop")
            .iter()
            .map(|object| text(object, "/metadata/name"))
            .collect()
    }

    /// Ready pods whose image is this.
    fn ready(&self, image: &str) -> usize {
        let pods = self.api.list("pods", "shop");
        let ready = |pod: &&Value| {
            text(pod, "/status/conditions/0/status") == "True"
                && pod.pointer("/metadata/deletionTimestamp").is_none()
                && text(pod, "/spec/containers/0/image") == image
        };
        pods.iter().filter(ready).count()
    }

    fn messages(&self) -> Vec<String> {
        self.api
            .list("events", "shop")
            .iter()
            .map(|event| text(event, "/message"))
            .collect()
    }
}

/// Waits until it is so; what is awaited takes milliseconds, the limit is for broken builds.
async fn eventually(cluster: &Cluster, what: &str, so: impl Fn() -> bool) {
    for _ in 0..2000 {
        if so() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    for plural in [
        "deployments",
        "replicasets",
        "jobs",
        "pods",
        "events",
        "nodes",
        "namespaces",
    ] {
        for object in cluster
            .api
            .list(plural, "shop")
            .into_iter()
            .chain(cluster.api.list(plural, ""))
        {
            println!("{plural} {object}");
        }
    }
    panic!("never happened: {what}");
}

fn template(image: &str, command: &str) -> Value {
    json!({"metadata": {"labels": {"app": "web"}}, "spec": {
        "restartPolicy": "Always",
        "containers": [{"name": "web", "image": image, "command": [command]}],
        "tolerations": [
            {"key": "node.kubernetes.io/unreachable", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 300},
            {"key": "node.kubernetes.io/not-ready", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 300},
        ],
    }})
}

const DEPLOYMENTS: &str = "/apis/apps/v1/namespaces/shop/deployments";
const WEB: &str = "/apis/apps/v1/namespaces/shop/deployments/web";

async fn deploy(cluster: &Cluster, replicas: i32) {
    let deployment = json!({"metadata": {"name": "web"}, "spec": {
        "replicas": replicas, "progressDeadlineSeconds": 600, "revisionHistoryLimit": 10,
        "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": "25%", "maxUnavailable": "25%"}},
        "selector": {"matchLabels": {"app": "web"}}, "template": template("v1", "serve"),
    }});
    cluster.create(DEPLOYMENTS, deployment).await;
    let replicas = usize::try_from(replicas).unwrap();
    eventually(cluster, "all replicas ready", || {
        cluster.ready("v1") == replicas
    })
    .await;
    eventually(cluster, "the rollout is complete", || {
        condition(cluster, "Progressing").0 == "NewReplicaSetAvailable"
    })
    .await;
}

fn condition(cluster: &Cluster, type_: &str) -> (String, String) {
    let deployment = cluster
        .api
        .get("deployments", "shop", "web")
        .unwrap_or_default();
    let all = deployment
        .pointer("/status/conditions")
        .and_then(Value::as_array)
        .cloned()
        .unwrap_or_default();
    let found = all
        .into_iter()
        .find(|condition| condition["type"] == type_)
        .unwrap_or_default();
    (text(&found, "/reason"), text(&found, "/status"))
}

#[tokio::test]
async fn a_deployment_rolls_out_updates_and_rolls_back() {
    let cluster = Cluster::start();
    deploy(&cluster, 4).await;
    let first = cluster.names("replicasets").remove(0);
    cluster
        .apply(
            http::Method::PATCH,
            WEB,
            json!({"spec": {"template": template("v2", "serve")}}),
        )
        .await;
    eventually(&cluster, "the new version runs", || {
        cluster.ready("v2") == 4 && cluster.ready("v1") == 0
    })
    .await;
    assert_eq!(cluster.names("replicasets").len(), 2);
    cluster
        .apply(
            http::Method::PATCH,
            WEB,
            json!({"spec": {"template": template("v1", "serve")}}),
        )
        .await;
    eventually(&cluster, "the old version runs again", || {
        cluster.ready("v1") == 4 && cluster.ready("v2") == 0
    })
    .await;
    // In its old set, under a new revision.
    assert_eq!(cluster.names("replicasets").len(), 2);
    let revision = |plural: &str, name: &str| {
        let object = cluster.api.get(plural, "shop", name).unwrap();
        text(
            &object,
            "/metadata/annotations/deployment.kubernetes.io~1revision",
        )
    };
    eventually(&cluster, "revisions agree", || {
        revision("deployments", "web") == "3" && revision("replicasets", &first) == "3"
    })
    .await;
    let first_up = format!("Scaled up replica set {first} from 0 to 4");
    eventually(&cluster, "events tell of it", || {
        cluster.messages().contains(&first_up)
    })
    .await;
}

#[tokio::test]
async fn a_deleted_pod_is_replaced_and_traffic_follows() {
    let cluster = Cluster::start();
    let service = json!({"metadata": {"name": "web"}, "spec": {
        "selector": {"app": "web"}, "ports": [{"port": 80, "protocol": "TCP"}], "clusterIP": "10.96.0.5",
    }});
    cluster
        .create("/api/v1/namespaces/shop/services", service)
        .await;
    deploy(&cluster, 2).await;
    let targets = || -> Vec<String> {
        let slices = cluster.api.list("endpointslices", "shop");
        let all = slices
            .iter()
            .flat_map(|slice| slice["endpoints"].as_array().cloned().unwrap_or_default());
        all.filter(|endpoint| endpoint["conditions"]["ready"] == true)
            .map(|e| text(&e, "/targetRef/name"))
            .collect()
    };
    eventually(&cluster, "both pods in the slice", || targets().len() == 2).await;
    let victim = cluster.names("pods").remove(0);
    cluster
        .apply(
            http::Method::DELETE,
            &format!("/api/v1/namespaces/shop/pods/{victim}"),
            Value::Null,
        )
        .await;
    eventually(&cluster, "a replacement in the slice", || {
        targets().len() == 2 && !targets().contains(&victim)
    })
    .await;
    eventually(&cluster, "the old Endpoints agree", || {
        let endpoints = cluster
            .api
            .get("endpoints", "shop", "web")
            .unwrap_or_default();
        let addresses = endpoints
            .pointer("/subsets/0/addresses")
            .and_then(Value::as_array)
            .cloned();
        addresses.is_some_and(|all| {
            all.len() == 2 && all.iter().all(|a| text(a, "/targetRef/name") != victim)
        })
    })
    .await;
    assert_eq!(cluster.api.list("endpointslices", "shop").len(), 1);
}

#[tokio::test]
async fn deleting_a_deployment_takes_its_sets_and_pods_or_sets_them_free() {
    for policy in ["Background", "Foreground"] {
        let cluster = Cluster::start();
        deploy(&cluster, 2).await;
        cluster
            .apply(
                http::Method::DELETE,
                WEB,
                json!({"propagationPolicy": policy}),
            )
            .await;
        eventually(&cluster, "all is gone", || {
            ["deployments", "replicasets", "pods"]
                .iter()
                .all(|plural| cluster.names(plural).is_empty())
        })
        .await;
    }
    let cluster = Cluster::start();
    deploy(&cluster, 2).await;
    cluster
        .apply(
            http::Method::DELETE,
            WEB,
            json!({"propagationPolicy": "Orphan"}),
        )
        .await;
    eventually(&cluster, "only the deployment is gone", || {
        cluster.names("deployments").is_empty()
    })
    .await;
    let sets = cluster.api.list("replicasets", "shop");
    assert_eq!(sets.len(), 1);
    assert!(sets[0].pointer("/metadata/ownerReferences").is_none());
    assert_eq!(cluster.ready("v1"), 2);
}

fn image_of(cluster: &Cluster, pod: &str) -> String {
    let pod = cluster.api.get("pods", "shop", pod).unwrap_or_default();
    text(&pod, "/spec/containers/0/image")
}

#[tokio::test]
async fn a_daemon_set_runs_everywhere_and_rolls_back_to_its_old_revision() {
    let cluster = Cluster::start();
    let path = "/apis/apps/v1/namespaces/shop/daemonsets";
    let set = json!({"metadata": {"name": "web"}, "spec": {
        "updateStrategy": {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": 1}},
        "selector": {"matchLabels": {"app": "web"}}, "template": template("v1", "serve"),
    }});
    cluster.create(path, set).await;
    eventually(&cluster, "a pod on each node", || cluster.ready("v1") == 2).await;
    let path = format!("{path}/web");
    for image in ["v2", "v1"] {
        let change = json!({"spec": {"template": template(image, "serve")}});
        cluster.apply(http::Method::PATCH, &path, change).await;
        eventually(&cluster, "the other version on each node", || {
            cluster.ready(image) == 2
        })
        .await;
    }
    let revisions = cluster.api.list("controllerrevisions", "shop");
    assert_eq!(revisions.len(), 2);
    assert!(revisions.iter().any(|revision| revision["revision"] == 3));
    eventually(&cluster, "status agrees", || {
        let set = cluster.api.get("daemonsets", "shop", "web").unwrap();
        set["status"]["numberAvailable"] == 2 && set["status"]["updatedNumberScheduled"] == 2
    })
    .await;
}

#[tokio::test]
async fn a_stateful_set_keeps_names_and_claims_through_an_update() {
    let cluster = Cluster::start();
    let path = "/apis/apps/v1/namespaces/shop/statefulsets";
    let set = json!({"metadata": {"name": "web"}, "spec": {
        "replicas": 2, "serviceName": "web",
        "updateStrategy": {"type": "RollingUpdate", "rollingUpdate": {"partition": 0}},
        "selector": {"matchLabels": {"app": "web"}}, "template": template("v1", "serve"),
        "volumeClaimTemplates": [{"metadata": {"name": "data"}, "spec": {}}],
    }});
    cluster.create(path, set).await;
    eventually(&cluster, "both run", || cluster.ready("v1") == 2).await;
    assert_eq!(cluster.names("pods"), ["web-0", "web-1"]);
    assert_eq!(
        cluster.names("persistentvolumeclaims"),
        ["data-web-0", "data-web-1"]
    );
    let change = json!({"spec": {"template": template("v2", "serve")}});
    let path = format!("{path}/web");
    cluster.apply(http::Method::PATCH, &path, change).await;
    eventually(&cluster, "both are new", || cluster.ready("v2") == 2).await;
    assert_eq!(image_of(&cluster, "web-0"), "v2");
    eventually(&cluster, "the update is complete", || {
        let set = cluster.api.get("statefulsets", "shop", "web").unwrap();
        set["status"]["currentRevision"] == set["status"]["updateRevision"]
            && set["status"]["currentReplicas"] == 2
    })
    .await;
    cluster
        .apply(http::Method::PATCH, &path, json!({"spec": {"replicas": 1}}))
        .await;
    eventually(&cluster, "the highest is gone", || {
        cluster.names("pods") == ["web-0"]
    })
    .await;
    assert_eq!(cluster.names("persistentvolumeclaims").len(), 2);
}

async fn run_job(cluster: &Cluster, spec: Value) -> Value {
    cluster
        .create(
            "/apis/batch/v1/namespaces/shop/jobs",
            json!({"metadata": {"name": "work"}, "spec": spec}),
        )
        .await;
    let ended = || {
        let job = cluster.api.get("jobs", "shop", "work")?;
        let all = job.pointer("/status/conditions")?.as_array()?;
        let ended = all
            .iter()
            .any(|condition| condition["type"] == "Complete" || condition["type"] == "Failed");
        ended.then_some(job)
    };
    eventually(cluster, "the job ends", || ended().is_some()).await;
    assert_eq!(cluster.api.refused(), Vec::<String>::new());
    ended().unwrap()
}

fn job_spec(command: &str) -> Value {
    let mut template = template("v1", command);
    template["spec"]["restartPolicy"] = json!("Never");
    json!({"parallelism": 2, "completions": 5, "backoffLimit": 0, "template": template,
        "selector": {"matchLabels": {"app": "web"}}})
}

#[tokio::test]
async fn a_job_counts_each_pod_once_and_completes() {
    let cluster = Cluster::start();
    let mut spec = job_spec("exit 0");
    spec["completionMode"] = json!("Indexed");
    let job = run_job(&cluster, spec).await;
    assert_eq!(job["status"]["succeeded"], 5);
    assert_eq!(job["status"]["completedIndexes"], "0-4");
    let types: Vec<String> = job["status"]["conditions"]
        .as_array()
        .unwrap()
        .iter()
        .map(|c| text(c, "/type"))
        .collect();
    assert_eq!(types, ["SuccessCriteriaMet", "Complete"]);
    let pods = cluster.api.list("pods", "shop");
    assert_eq!(pods.len(), 5);
    assert!(
        pods.iter()
            .all(|pod| pod.pointer("/metadata/finalizers").is_none())
    );
}

#[tokio::test]
async fn failed_indexes_do_not_hold_up_the_others() {
    let cluster = Cluster::start();
    let mut spec = job_spec("exit 1");
    spec["completionMode"] = json!("Indexed");
    spec["backoffLimit"] = json!(100);
    spec["backoffLimitPerIndex"] = json!(0);
    let job = run_job(&cluster, spec).await;
    assert_eq!(job["status"]["failedIndexes"], "0-4");
    assert_eq!(job["status"]["failed"], 5);
    let conditions = job["status"]["conditions"].as_array().unwrap();
    assert_eq!(conditions.last().unwrap()["reason"], "FailedIndexes");
}

#[tokio::test]
async fn a_failing_job_reaches_its_limit() {
    let cluster = Cluster::start();
    let job = run_job(&cluster, job_spec("exit 1")).await;
    let last = job["status"]["conditions"]
        .as_array()
        .unwrap()
        .last()
        .unwrap()
        .clone();
    assert_eq!(
        (text(&last, "/type"), text(&last, "/reason")),
        ("Failed".into(), "BackoffLimitExceeded".into())
    );
    assert!(job["status"].get("active").is_none());
}

#[tokio::test]
async fn a_job_is_suspended_resumed_made_smaller_and_ends() {
    const WORK: &str = "/apis/batch/v1/namespaces/shop/jobs/work";
    let cluster = Cluster::start();
    let mut spec = job_spec("run");
    spec["completionMode"] = json!("Indexed");
    spec["parallelism"] = json!(5);
    // Pods that a suspension ends count as failed.
    spec["backoffLimit"] = json!(100);
    cluster
        .create(
            "/apis/batch/v1/namespaces/shop/jobs",
            json!({"metadata": {"name": "work"}, "spec": spec}),
        )
        .await;
    let status = |field: &str| {
        let job = cluster.api.get("jobs", "shop", "work");
        job.map_or(Value::Null, |job| job["status"][field].clone())
    };
    let spec = |spec: Value| cluster.apply(http::Method::PATCH, WORK, json!({"spec": spec}));
    eventually(&cluster, "its pods run", || status("ready") == 5).await;
    spec(json!({"suspend": true})).await;
    eventually(&cluster, "it stops", || {
        status("active").is_null() && status("terminating") == 0 && status("startTime").is_null()
    })
    .await;
    spec(json!({"suspend": false})).await;
    eventually(&cluster, "it goes on", || status("ready") == 5).await;
    spec(json!({"completions": 0, "parallelism": 0})).await;
    eventually(&cluster, "it is done", || {
        status("completionTime").is_string()
    })
    .await;
    assert_eq!(cluster.api.refused(), Vec::<String>::new());
}

#[tokio::test]
async fn a_claim_gets_a_folder_on_its_pods_node_and_takes_it_along() {
    let cluster = Cluster::start();
    let class = json!({"metadata": {"name": "local-path"}, "provisioner": "balsa.io/local-path",
        "volumeBindingMode": "WaitForFirstConsumer", "reclaimPolicy": "Delete"});
    cluster
        .create("/apis/storage.k8s.io/v1/storageclasses", class)
        .await;
    let claims = "/api/v1/namespaces/shop/persistentvolumeclaims";
    let claim = json!({"metadata": {"name": "data"}, "spec": {
        "storageClassName": "local-path", "accessModes": ["ReadWriteOnce"],
        "resources": {"requests": {"storage": "1Gi"}},
    }});
    cluster.create(claims, claim).await;
    let phase = || {
        let claim = cluster
            .api
            .get("persistentvolumeclaims", "shop", "data")
            .unwrap_or_default();
        text(&claim, "/status/phase")
    };
    eventually(&cluster, "it waits", || phase() == "Pending").await;
    let chosen = json!({"metadata": {"annotations": {"volume.kubernetes.io/selected-node": "b"}}});
    let data = format!("{claims}/data");
    cluster.apply(http::Method::PATCH, &data, chosen).await;
    eventually(&cluster, "it is bound", || phase() == "Bound").await;
    let volumes = cluster.api.list("persistentvolumes", "");
    assert_eq!(volumes.len(), 1);
    assert!(
        volumes[0]
            .pointer("/spec/nodeAffinity")
            .unwrap()
            .to_string()
            .contains("\"b\"")
    );
    cluster
        .apply(http::Method::DELETE, &data, Value::Null)
        .await;
    eventually(&cluster, "both are gone", || {
        cluster.names("persistentvolumeclaims").is_empty()
            && cluster.api.list("persistentvolumes", "").is_empty()
    })
    .await;
}

#[tokio::test]
async fn budgets_and_quotas_follow_the_pods() {
    let cluster = Cluster::start();
    let quota = json!({"metadata": {"name": "q"}, "spec": {"hard": {
        "pods": "10", "count/replicasets.apps": "5",
    }}});
    cluster
        .create("/api/v1/namespaces/shop/resourcequotas", quota)
        .await;
    let budget = json!({"metadata": {"name": "web"}, "spec": {
        "maxUnavailable": 1, "selector": {"matchLabels": {"app": "web"}},
    }});
    cluster
        .create(
            "/apis/policy/v1/namespaces/shop/poddisruptionbudgets",
            budget,
        )
        .await;
    deploy(&cluster, 3).await;
    let used = || {
        let quota = cluster
            .api
            .get("resourcequotas", "shop", "q")
            .unwrap_or_default();
        quota.pointer("/status/used").cloned().unwrap_or_default()
    };
    let all = json!({"pods": "3", "count/replicasets.apps": "1"});
    eventually(&cluster, "all is counted", || used() == all).await;
    eventually(&cluster, "one may go", || {
        let budget = cluster
            .api
            .get("poddisruptionbudgets", "shop", "web")
            .unwrap_or_default();
        let status = &budget["status"];
        status["disruptionsAllowed"] == 1 && status["expectedPods"] == 3
    })
    .await;
    cluster
        .apply(http::Method::PATCH, WEB, json!({"spec": {"replicas": 1}}))
        .await;
    eventually(&cluster, "what is gone is given back", || {
        used()["pods"] == "1"
    })
    .await;
}

#[tokio::test]
async fn a_namespace_is_furnished_and_emptied() {
    let cluster = Cluster::start();
    eventually(&cluster, "its account and CA", || {
        cluster.names("serviceaccounts") == ["default"]
            && cluster.names("configmaps") == ["kube-root-ca.crt"]
    })
    .await;
    deploy(&cluster, 2).await;
    cluster
        .apply(http::Method::DELETE, "/api/v1/namespaces/shop", Value::Null)
        .await;
    eventually(&cluster, "it is gone", || {
        cluster.api.get("namespaces", "", "shop").is_none()
    })
    .await;
    for plural in [
        "deployments",
        "replicasets",
        "pods",
        "configmaps",
        "serviceaccounts",
    ] {
        assert_eq!(cluster.names(plural), Vec::<String>::new(), "{plural}");
    }
}

#[tokio::test]
async fn nodes_get_ranges_of_their_own() {
    let cluster = Cluster::start();
    let range = |node: &str| {
        text(
            &cluster.api.get("nodes", "", node).unwrap(),
            "/spec/podCIDR",
        )
    };
    eventually(&cluster, "ranges", || {
        !range("a").is_empty() && !range("b").is_empty()
    })
    .await;
    let mut ranges = [range("a"), range("b")];
    ranges.sort();
    assert_eq!(ranges, ["10.244.0.0/24", "10.244.1.0/24"]);
}

#[tokio::test]
async fn pods_of_a_dead_node_run_elsewhere() {
    let cluster = Cluster::start();
    deploy(&cluster, 4).await;
    cluster.kill("a");
    let node = || cluster.api.get("nodes", "", "a").unwrap();
    eventually(&cluster, "it is unreachable", || {
        node()
            .to_string()
            .contains("node.kubernetes.io/unreachable")
            && text(&node(), "/status/conditions/0/reason") == "NodeStatusUnknown"
    })
    .await;
    eventually(&cluster, "its pods run on the other node", || {
        let pods = cluster.api.list("pods", "shop");
        let on_b = pods.iter().filter(|pod| text(pod, "/spec/nodeName") == "b");
        on_b.filter(|pod| text(pod, "/status/phase") == "Running")
            .count()
            == 4
    })
    .await;
    // The dead node's pods wait for it, terminating and not ready.
    let pods = cluster.api.list("pods", "shop");
    let left: Vec<&Value> = pods
        .iter()
        .filter(|pod| text(pod, "/spec/nodeName") == "a")
        .collect();
    assert!(!left.is_empty());
    assert!(
        left.iter()
            .all(|pod| pod.pointer("/metadata/deletionTimestamp").is_some())
    );
    assert!(
        left.iter()
            .all(|pod| text(pod, "/status/conditions/0/status") == "False")
    );
    // And go when the node is removed for good.
    cluster
        .apply(http::Method::DELETE, "/api/v1/nodes/a", Value::Null)
        .await;
    eventually(&cluster, "no pod of it is left", || {
        cluster.names("pods").len() == 4
    })
    .await;
}
