//! A plugin in this process, on real sockets.
#![allow(clippy::unwrap_used)]

use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use balsa_device_plugin::v1beta1 as api;
use balsa_device_plugin::v1beta1::device_plugin_server::{DevicePlugin, DevicePluginServer};
use balsa_device_plugin::v1beta1::registration_client::RegistrationClient;
use balsa_device_plugin::{HEALTHY, NODE_SOCKET, VERSION};
use k8s_openapi::api::core::v1::Pod;
use parking_lot::Mutex;
use serde_json::json;
use tokio::net::UnixListener;
use tokio::sync::watch;
use tokio_stream::wrappers::{UnixListenerStream, WatchStream};
use tokio_stream::{Stream, StreamExt};
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status};

use super::{Amount, Devices};

const GPU: &str = "example.com/gpu";
const PATIENCE: Duration = Duration::from_secs(10);

/// A plugin whose devices the test decides on; it prefers the last ones, and goes when it has none.
#[derive(Clone)]
struct Fake {
    devices: watch::Sender<Vec<(&'static str, &'static str)>>,
    prepared: Arc<Mutex<Vec<String>>>,
}

type List = Pin<Box<dyn Stream<Item = Result<api::ListAndWatchResponse, Status>> + Send>>;

#[tonic::async_trait]
impl DevicePlugin for Fake {
    async fn get_device_plugin_options(
        &self,
        _: Request<api::Empty>,
    ) -> Result<Response<api::DevicePluginOptions>, Status> {
        Ok(Response::new(api::DevicePluginOptions {
            pre_start_required: true,
            get_preferred_allocation_available: true,
        }))
    }

    type ListAndWatchStream = List;

    async fn list_and_watch(&self, _: Request<api::Empty>) -> Result<Response<List>, Status> {
        let lists = WatchStream::new(self.devices.subscribe());
        let lists = lists
            .take_while(|devices| !devices.is_empty())
            .map(|devices| {
                let devices = devices.into_iter().map(|(id, health)| api::Device {
                    id: id.to_owned(),
                    health: health.to_owned(),
                    topology: None,
                });
                Ok(api::ListAndWatchResponse {
                    devices: devices.collect(),
                })
            });
        Ok(Response::new(Box::pin(lists)))
    }

    async fn get_preferred_allocation(
        &self,
        request: Request<api::PreferredAllocationRequest>,
    ) -> Result<Response<api::PreferredAllocationResponse>, Status> {
        let wanted = request.into_inner().container_requests.remove(0);
        let mut ids = wanted.available_device_i_ds;
        ids.sort();
        ids.reverse();
        ids.truncate(usize::try_from(wanted.allocation_size).unwrap());
        Ok(Response::new(api::PreferredAllocationResponse {
            container_responses: vec![api::ContainerPreferredAllocationResponse {
                device_i_ds: ids,
            }],
        }))
    }

    async fn allocate(
        &self,
        request: Request<api::AllocateRequest>,
    ) -> Result<Response<api::AllocateResponse>, Status> {
        let ids = request
            .into_inner()
            .container_requests
            .remove(0)
            .devices_ids;
        if ids.iter().any(|id| id == "broken") {
            return Err(Status::unknown("it is broken"));
        }
        Ok(Response::new(api::AllocateResponse {
            container_responses: vec![api::ContainerAllocateResponse {
                envs: [("GPUS".to_owned(), ids.join(","))].into(),
                ..Default::default()
            }],
        }))
    }

    async fn pre_start_container(
        &self,
        request: Request<api::PreStartContainerRequest>,
    ) -> Result<Response<api::PreStartContainerResponse>, Status> {
        self.prepared
            .lock()
            .extend(request.into_inner().devices_ids);
        Ok(Response::new(api::PreStartContainerResponse {}))
    }
}

impl Fake {
    fn new(devices: &[(&'static str, &'static str)]) -> Self {
        Self {
            devices: watch::channel(devices.to_vec()).0,
            prepared: Arc::default(),
        }
    }

    /// Serves and registers; it goes with the token.
    async fn join(&self, folder: &Path, stop: &CancellationToken) {
        let socket = folder.join("gpu.sock");
        let _ = std::fs::remove_file(&socket);
        let listener = UnixListener::bind(&socket).unwrap();
        let serve = tonic::transport::Server::builder()
            .add_service(DevicePluginServer::new(self.clone()))
            .serve_with_incoming_shutdown(
                UnixListenerStream::new(listener),
                stop.clone().cancelled_owned(),
            );
        tokio::spawn(serve);
        let mut desk = RegistrationClient::new(balsa_csi::channel(&folder.join(NODE_SOCKET)));
        let request = api::RegisterRequest {
            version: VERSION.to_owned(),
            endpoint: "gpu.sock".to_owned(),
            resource_name: GPU.to_owned(),
            options: None,
        };
        desk.register(request).await.unwrap();
    }
}

async fn start(folder: &Path, stop: &CancellationToken) -> Arc<Devices> {
    let devices = Devices::new(folder.to_owned());
    tokio::spawn(Arc::clone(&devices).serve(stop.clone()));
    let socket = folder.join(NODE_SOCKET);
    let open = async {
        while tokio::net::UnixStream::connect(&socket).await.is_err() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(PATIENCE, open).await.unwrap();
    devices
}

async fn until(devices: &Devices, capacity: usize, allocatable: usize) {
    let wanted = Amount {
        capacity,
        allocatable,
    };
    let wait = async {
        while devices.amounts().get(GPU) != Some(&wanted) {
            devices.changed().await;
        }
    };
    tokio::time::timeout(PATIENCE, wait).await.unwrap();
}

fn pod(uid: &str, init: u32, app: u32) -> Pod {
    let container = |name: &str, count: u32| json!({"name": name, "resources": {"limits": {GPU: count.to_string()}}});
    serde_json::from_value(json!({"metadata": {"uid": uid}, "spec": {
        "initContainers": [container("init", init)], "containers": [container("app", app)]}}))
    .unwrap()
}

#[tokio::test]
async fn a_pod_gets_what_its_plugin_prefers_and_gives_it_back_when_it_ends() {
    let (dir, stop) = (tempfile::tempdir().unwrap(), CancellationToken::new());
    let _guard = stop.clone().drop_guard();
    let devices = start(dir.path(), &stop).await;
    let fake = Fake::new(&[
        ("a", HEALTHY),
        ("b", HEALTHY),
        ("c", HEALTHY),
        ("d", "Unhealthy"),
    ]);
    fake.join(dir.path(), &stop).await;
    until(&devices, 4, 3).await;
    let one = pod("u1", 1, 2);
    assert!(devices.wanted_by(&one));
    devices.admit(&one).await.unwrap();
    let init = devices.prepare("u1", "init").await.unwrap();
    let app = devices.prepare("u1", "app").await.unwrap();
    // The init container's device is used again.
    assert_eq!((&*init.envs["GPUS"], &*app.envs["GPUS"]), ("c", "b,c"));
    assert_eq!(*fake.prepared.lock(), ["c", "b", "c"]);
    let (reason, message) = devices.admit(&pod("u2", 0, 2)).await.unwrap_err();
    assert_eq!(reason, "UnexpectedAdmissionError");
    assert_eq!(
        message,
        "Pod was rejected: Allocate failed due to requested number of devices unavailable for \
         example.com/gpu. Requested: 2, Available: 1, which is unexpected"
    );
    devices.release("u1");
    devices.admit(&pod("u2", 0, 2)).await.unwrap();
}

#[tokio::test]
async fn a_new_agent_knows_who_holds_what_and_takes_the_plugin_on_again() {
    let (dir, first) = (tempfile::tempdir().unwrap(), CancellationToken::new());
    let second = CancellationToken::new();
    let _guard = second.clone().drop_guard();
    let before = start(dir.path(), &first).await;
    let fake = Fake::new(&[("a", HEALTHY), ("b", HEALTHY)]);
    fake.join(dir.path(), &first).await;
    until(&before, 2, 2).await;
    before.admit(&pod("u1", 0, 1)).await.unwrap();
    before.admit(&pod("gone", 0, 1)).await.unwrap();
    first.cancel();

    let after = start(dir.path(), &second).await;
    after.retain(|uid| uid == "u1");
    // Its containers may restart before the plugin is back.
    let app = after.prepare("u1", "app").await.unwrap();
    assert_eq!(app.envs["GPUS"], "b");
    assert!(after.admit(&pod("u2", 0, 1)).await.is_err());
    fake.join(dir.path(), &second).await;
    until(&after, 2, 2).await;
    after.admit(&pod("u2", 0, 1)).await.unwrap();
    assert_eq!(after.prepare("u2", "app").await.unwrap().envs["GPUS"], "a");
    fake.devices
        .send_replace(vec![("a", HEALTHY), ("b", "sick")]);
    until(&after, 2, 1).await;
}

#[tokio::test]
async fn a_refusal_of_the_plugin_fails_the_pod_and_frees_the_rest() {
    let (dir, stop) = (tempfile::tempdir().unwrap(), CancellationToken::new());
    let _guard = stop.clone().drop_guard();
    let devices = start(dir.path(), &stop).await;
    let fake = Fake::new(&[("broken", HEALTHY)]);
    fake.join(dir.path(), &stop).await;
    until(&devices, 1, 1).await;
    let (_, message) = devices.admit(&pod("u", 0, 1)).await.unwrap_err();
    assert!(
        message.contains("rpc error: code = Unknown desc = it is broken, which is unexpected"),
        "{message}"
    );
    fake.devices.send_replace(Vec::new());
    until(&devices, 1, 0).await;
}
