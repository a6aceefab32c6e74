//! A driver on a unix socket and an API in memory.
#![allow(clippy::unwrap_used)]

mod driver;
mod fake_api;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use balsa_client::EventRecorder;
use k8s_openapi::api::core::v1::{Pod, Volume};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use super::{Csi, Layout, Wish};
use crate::cluster::Bound;
use driver::FakeDriver;
use fake_api::FakeApi;

const PATIENCE: Duration = Duration::from_secs(10);

/// For tests of other things: no driver, no API.
pub(crate) fn none(dir: &Path) -> Arc<Csi> {
    rig_with(dir, Arc::default())
}

fn rig_with(dir: &Path, api: Arc<FakeApi>) -> Arc<Csi> {
    // The driver of the tests is on the node itself, so it knows its folders by the node's names.
    Arc::new(Csi::new(
        Layout::new(dir, dir),
        "n1".to_owned(),
        Arc::clone(&api) as _,
        api,
        EventRecorder::discard(),
    ))
}

/// A node with one driver, and what the test says about it.
struct Rig {
    dir: tempfile::TempDir,
    api: Arc<FakeApi>,
    csi: Arc<Csi>,
    driver: FakeDriver,
    stop: CancellationToken,
}

impl Rig {
    async fn start(driver_object: Value) -> Self {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(dir.path().join("plugins_registry")).unwrap();
        let api = Arc::new(FakeApi::default());
        api.drivers
            .lock()
            .insert("d".into(), Arc::new(object(driver_object)));
        let csi = rig_with(dir.path(), Arc::clone(&api));
        let stop = CancellationToken::new();
        tokio::spawn(Arc::clone(&csi.registry).run(stop.clone()));
        let driver = FakeDriver::start(dir.path()).await;
        let rig = Self {
            dir,
            api,
            csi,
            driver,
            stop,
        };
        assert_eq!(rig.driver.next_call().await, "registered");
        rig
    }

    /// A new agent on the same node.
    async fn restart(&mut self) {
        self.stop.cancel();
        self.stop = CancellationToken::new();
        self.csi = rig_with(self.dir.path(), Arc::clone(&self.api));
        tokio::spawn(Arc::clone(&self.csi.registry).run(self.stop.clone()));
        self.driver.drain();
        assert_eq!(self.driver.next_call().await, "registered");
    }

    async fn mount(&self, uid: &str, persistent: bool) -> Result<(), String> {
        let going = CancellationToken::new();
        let pod: Box<Pod> = object(
            json!({"metadata": {"name": "p", "namespace": "s", "uid": uid},
            "spec": {"containers": [], "serviceAccountName": "sa"}}),
        );
        let bound = Box::new(bound());
        let volume: Box<Volume> = if persistent {
            object(json!({"name": "v", "persistentVolumeClaim": {"claimName": "c"}}))
        } else {
            object(json!({"name": "v", "csi": {"driver": "d", "volumeAttributes": {"k": "x"}}}))
        };
        let wish = Wish {
            pod: &pod,
            uid,
            volume: &volume,
            bound: persistent.then_some((&*bound, false)),
            going: &going,
        };
        Box::pin(self.csi.mount(&wish)).await.map(|_| ())
    }

    fn in_use(&self) -> Value {
        self.api.status.lock()["status"]["volumesInUse"].clone()
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

fn object<T: serde::de::DeserializeOwned>(value: Value) -> T {
    serde_json::from_value(value).unwrap()
}

fn bound() -> Bound {
    Bound {
        claim: object(
            json!({"metadata": {"name": "c", "namespace": "s"}, "spec": {"volumeName": "pv"},
            "status": {"capacity": {"storage": "1Gi"}}}),
        ),
        volume: object(
            json!({"metadata": {"name": "pv"}, "spec": {"accessModes": ["ReadWriteOnce"],
            "capacity": {"storage": "2Gi"}, "csi": {"driver": "d", "volumeHandle": "h",
            "nodeStageSecretRef": {"namespace": "x", "name": "key"}}}}),
        ),
    }
}

fn plain() -> Value {
    json!({"metadata": {"name": "d"}, "spec": {"attachRequired": false,
        "volumeLifecycleModes": ["Persistent", "Ephemeral"], "podInfoOnMount": true}})
}

#[tokio::test]
async fn a_driver_is_known_to_the_api_while_its_socket_is_there() {
    let rig = Rig::start(plain()).await;
    let entry = rig.api.csi_node.lock().clone().unwrap().spec.drivers[0].clone();
    assert_eq!(
        (entry.name.as_str(), entry.node_id.as_str()),
        ("d", "id-n1")
    );
    assert_eq!(entry.topology_keys, Some(vec!["zone".to_owned()]));
    rig.driver.leave();
    let gone = async {
        while !rig
            .api
            .csi_node
            .lock()
            .clone()
            .unwrap()
            .spec
            .drivers
            .is_empty()
        {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(PATIENCE, gone).await.unwrap();
    assert!(rig.csi.registry.get("d").is_none());
}

#[tokio::test]
async fn a_volume_is_staged_once_for_the_node_and_published_for_each_pod() {
    let rig = Rig::start(plain()).await;
    rig.mount("u1", true).await.unwrap();
    rig.mount("u2", true).await.unwrap();
    assert_eq!(rig.driver.next_call().await, "stage h secret=s3cret");
    assert_eq!(rig.driver.next_call().await, "publish h u1 pod=p");
    // The fake mounts nothing, so staging is asked for again: drivers are to bear that.
    assert_eq!(rig.driver.next_call().await, "stage h secret=s3cret");
    assert_eq!(rig.driver.next_call().await, "publish h u2 pod=p");
    rig.csi.tear_down("u1").await.unwrap();
    assert_eq!(rig.driver.next_call().await, "unpublish h u1");
    rig.csi.tear_down("u2").await.unwrap();
    assert_eq!(rig.driver.next_call().await, "unpublish h u2");
    assert_eq!(rig.driver.next_call().await, "unstage h");
    assert!(!rig.csi.has_volumes("u1") && !rig.csi.has_volumes("u2"));
    assert!(rig.csi.layout.records_of_node().is_empty());
}

#[tokio::test]
async fn a_new_agent_takes_back_what_its_predecessor_had_mounted() {
    let mut rig = Rig::start(plain()).await;
    rig.mount("u1", true).await.unwrap();
    rig.restart().await;
    assert!(rig.csi.has_volumes("u1"));
    rig.csi.tear_down("u1").await.unwrap();
    assert_eq!(rig.driver.next_call().await, "unpublish h u1");
    assert_eq!(rig.driver.next_call().await, "unstage h");
}

#[tokio::test]
async fn a_volume_that_was_left_staged_is_taken_off_the_node() {
    let mut rig = Rig::start(plain()).await;
    rig.mount("u1", true).await.unwrap();
    let target = rig.csi.layout.published("u1", "pv", false);
    std::fs::remove_dir_all(target).unwrap();
    rig.restart().await;
    rig.csi.unstage_orphans().await;
    assert_eq!(rig.driver.next_call().await, "unstage h");
}

#[tokio::test]
async fn a_volume_that_must_be_attached_is_waited_for_and_held() {
    let rig = Rig::start(json!({"metadata": {"name": "d"}, "spec": {}})).await;
    let name = super::plan::attachment_name("h", "d", "n1");
    let api = Arc::clone(&rig.api);
    let attach = async move {
        tokio::time::sleep(Duration::from_millis(100)).await;
        let attachment = json!({"metadata": {"name": name}, "spec": {"attacher": "d", "nodeName": "n1", "source": {}},
            "status": {"attached": true, "attachmentMetadata": {"device": "/dev/x"}}});
        api.attachments.lock().insert(name, object(attachment));
    };
    let (mounted, ()) = tokio::join!(rig.mount("u1", true), attach);
    mounted.unwrap();
    assert_eq!(rig.in_use(), json!(["kubernetes.io/csi/d^h"]));
    rig.csi.tear_down("u1").await.unwrap();
    assert_eq!(rig.in_use(), json!([]));
}

#[tokio::test]
async fn a_pods_own_volume_is_published_without_staging() {
    let rig = Rig::start(plain()).await;
    rig.mount("u1", false).await.unwrap();
    let call = rig.driver.next_call().await;
    assert!(
        call.starts_with("publish csi-") && call.ends_with("u1 pod=p"),
        "{call}"
    );
    rig.csi.tear_down("u1").await.unwrap();
    assert!(rig.driver.next_call().await.starts_with("unpublish csi-"));
}

#[tokio::test]
async fn a_drivers_refusal_is_told_in_the_words_of_a_failed_mount() {
    let rig = Rig::start(plain()).await;
    rig.driver.refuse("no such disk");
    let error = rig.mount("u1", true).await.unwrap_err();
    assert_eq!(
        error,
        "MountVolume.MountDevice failed for volume \"pv\" : rpc error: code = Internal desc = no such disk"
    );
    // What may have begun is taken back all the same.
    assert!(rig.csi.has_volumes("u1"));
}

#[tokio::test]
async fn a_pod_that_is_going_gets_no_volume() {
    let rig = Rig::start(plain()).await;
    rig.csi.tear_down("u1").await.unwrap();
    let error = rig.mount("u1", true).await.unwrap_err();
    assert!(error.contains("the pod is going"), "{error}");
    assert!(!rig.csi.has_volumes("u1"));
}

#[tokio::test]
async fn a_larger_volume_is_grown_and_its_claim_told() {
    let rig = Rig::start(plain()).await;
    rig.mount("u1", true).await.unwrap();
    rig.driver.drain();
    let stop = CancellationToken::new();
    let upkeep = tokio::spawn(Arc::clone(&rig.csi).keep(stop.clone()));
    assert_eq!(rig.driver.next_call().await, "expand h 2147483648");
    let told = async {
        while rig.api.claim_patch.lock()["status"]["capacity"]["storage"] != "2Gi" {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(PATIENCE, told).await.unwrap();
    stop.cancel();
    upkeep.await.unwrap();
}
