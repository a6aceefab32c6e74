//! Devices of a plugin: this program is the plugin, on the node's own socket. It runs alone, as it restarts an agent.

use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::time::Duration;

use anyhow::ensure;
use balsa_device_plugin::v1beta1 as api;
use balsa_device_plugin::v1beta1::device_plugin_server::{DevicePlugin, DevicePluginServer};
use balsa_device_plugin::v1beta1::registration_client::RegistrationClient;
use balsa_device_plugin::{HEALTHY, NODE_SOCKET, VERSION};
use balsa_e2e::{Kubectl, Local, Namespace, eventually};
use tokio::net::UnixListener;
use tokio::runtime::Runtime;
use tokio::sync::watch;
use tokio_stream::wrappers::{UnixListenerStream, WatchStream};
use tokio_stream::{Stream, StreamExt};
use tonic::{Request, Response, Status};

use crate::loss_runtime::{folder, kill_agent};

const RESOURCE: &str = "e2e.balsa.io/zero";

type Devices = Vec<(&'static str, &'static str)>;
type List = Pin<Box<dyn Stream<Item = Result<api::ListAndWatchResponse, Status>> + Send>>;

/// Gives containers the node's `/dev/zero` under another name; none ends the list, and so the plugin.
#[derive(Clone)]
struct Plugin {
    devices: watch::Sender<Devices>,
    /// A file that every container with a device sees.
    shared: PathBuf,
}

#[tonic::async_trait]
impl DevicePlugin for Plugin {
    async fn get_device_plugin_options(
        &self,
        _: Request<api::Empty>,
    ) -> Result<Response<api::DevicePluginOptions>, Status> {
        Ok(Response::new(api::DevicePluginOptions::default()))
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
        _: Request<api::PreferredAllocationRequest>,
    ) -> Result<Response<api::PreferredAllocationResponse>, Status> {
        Err(Status::unimplemented("any device will do"))
    }

    async fn allocate(
        &self,
        request: Request<api::AllocateRequest>,
    ) -> Result<Response<api::AllocateResponse>, Status> {
        let requests = request.into_inner().container_requests.into_iter();
        let answers = requests.map(|request| api::ContainerAllocateResponse {
            envs: [("ZEROES".to_owned(), request.devices_ids.join(","))].into(),
            mounts: vec![api::Mount {
                container_path: "/etc/zeroes".to_owned(),
                host_path: self.shared.display().to_string(),
                read_only: true,
            }],
            devices: vec![api::DeviceSpec {
                container_path: "/dev/nothing".to_owned(),
                host_path: "/dev/zero".to_owned(),
                permissions: "r".to_owned(),
            }],
            ..Default::default()
        });
        Ok(Response::new(api::AllocateResponse {
            container_responses: answers.collect(),
        }))
    }

    async fn pre_start_container(
        &self,
        _: Request<api::PreStartContainerRequest>,
    ) -> Result<Response<api::PreStartContainerResponse>, Status> {
        Err(Status::unimplemented("nothing to prepare"))
    }
}

impl Plugin {
    fn new(folder: &Path) -> anyhow::Result<Self> {
        let shared = folder.join("e2e-zeroes");
        std::fs::write(&shared, "two of them\n")?;
        Ok(Self {
            devices: watch::channel(vec![("zero-0", HEALTHY), ("zero-1", HEALTHY)]).0,
            shared,
        })
    }

    /// Serves, and registers with the agent of that folder.
    fn join(&self, tasks: &Runtime, folder: &Path) -> anyhow::Result<()> {
        let socket = folder.join("e2e.sock");
        let _ = std::fs::remove_file(&socket);
        let plugin = self.clone();
        let register = async move {
            let listener = UnixListenerStream::new(UnixListener::bind(socket)?);
            let server =
                tonic::transport::Server::builder().add_service(DevicePluginServer::new(plugin));
            tokio::spawn(server.serve_with_incoming(listener));
            let mut desk = RegistrationClient::new(balsa_csi::channel(&folder.join(NODE_SOCKET)));
            let request = api::RegisterRequest {
                version: VERSION.to_owned(),
                endpoint: "e2e.sock".to_owned(),
                resource_name: RESOURCE.to_owned(),
                options: None,
            };
            desk.register(request).await?;
            anyhow::Ok(())
        };
        tasks.block_on(async { tokio::time::timeout(Duration::from_secs(20), register).await })?
    }
}

impl Drop for Plugin {
    fn drop(&mut self) {
        self.devices.send_replace(Vec::new());
        let _ = std::fs::remove_file(&self.shared);
    }
}

fn pod(name: &str, node: &str, count: u32) -> String {
    format!(
        "
apiVersion: v1
kind: Pod
metadata: {{name: {name}}}
spec:
  nodeName: {node}
  terminationGracePeriodSeconds: 0
  containers:
  - name: c
    image: busybox
    imagePullPolicy: IfNotPresent
    command: [sleep, \"100000\"]
    resources: {{limits: {{{RESOURCE}: {count}}}}}
---"
    )
}

/// What the node tells monitoring agents: pods of a namespace with containers and their devices.
fn holders(tasks: &Runtime, node: &str, namespace: &str) -> anyhow::Result<Vec<String>> {
    use balsa_device_plugin::pod_resources as api;
    use balsa_device_plugin::pod_resources::pod_resources_lister_client::PodResourcesListerClient;
    let socket = crate::loss_runtime::folder(node).join("pod-resources/kubelet.sock");
    let ask = async move {
        let mut lister = PodResourcesListerClient::new(balsa_csi::channel(&socket));
        let all = lister.get_allocatable_resources(api::AllocatableResourcesRequest {});
        let all = all.await?.into_inner().devices.len();
        ensure!(all >= 2, "only {all} devices may be given to pods");
        let listed = lister.list(api::ListPodResourcesRequest {}).await?;
        let mut told = Vec::new();
        for pod in listed.into_inner().pod_resources {
            for container in pod.containers.iter().filter(|_| pod.namespace == namespace) {
                for device in &container.devices {
                    let (resource, ids) = (&device.resource_name, device.device_ids.join(","));
                    told.push(format!("{} {} {resource} {ids}", pod.name, container.name));
                }
            }
        }
        Ok(told)
    };
    tasks.block_on(async { tokio::time::timeout(Duration::from_secs(20), ask).await })?
}

/// Waits until the node offers so many of so many.
fn offers(kubectl: &Kubectl, node: &str, allocatable: u32, capacity: u32) -> anyhow::Result<()> {
    let key = RESOURCE.replace('.', "\\.");
    let path = format!("{{.status.allocatable.{key}}} of {{.status.capacity.{key}}}");
    let wanted = format!("{allocatable} of {capacity}");
    eventually(&format!("{wanted} devices"), 20, || {
        Ok(kubectl.field(&format!("node/{node}"), &path)? == wanted)
    })
    .map(|_| ())
}

#[test]
fn pods_get_the_devices_of_a_plugin_and_keep_them_over_a_restart_of_the_agent() -> anyhow::Result<()>
{
    let (ns, local) = (Namespace::new("devices")?, Local);
    let kubectl = ns.kubectl();
    let node = local.agents()?.remove(0);
    let folder = folder(&node).join("device-plugins");
    let tasks = Runtime::new()?;
    let plugin = Plugin::new(&folder)?;
    plugin.join(&tasks, &folder)?;
    offers(kubectl, &node, 2, 2)?;

    kubectl.apply(&pod("one", &node, 1))?;
    kubectl.wait_ready("one", 40)?;
    let look = "cat /etc/zeroes; echo $ZEROES; head -c 3 /dev/nothing | od -An -tx1";
    let seen = kubectl.ok(&["exec", "one", "--", "sh", "-c", look])?;
    let seen: Vec<&str> = seen.lines().map(str::trim).collect();
    ensure!(seen == ["two of them", "zero-0", "00 00 00"], "{seen:?}");

    let told = holders(&tasks, &node, ns.name())?;
    ensure!(told == ["one c e2e.balsa.io/zero zero-0"], "{told:?}");

    // It is bound by hand: the scheduler would not.
    kubectl.apply(&pod("greedy", &node, 2))?;
    eventually("the refusal of one who asks for too much", 20, || {
        let said = kubectl.field(
            "pod/greedy",
            "{.status.phase} {.status.reason} {.status.message}",
        )?;
        Ok(
            said.starts_with("Failed UnexpectedAdmissionError Pod was rejected: Allocate failed")
                && said.contains("Requested: 2, Available: 1"),
        )
    })?;

    let container = "{.status.containerStatuses[0].containerID}";
    let before = kubectl.field("pod/one", container)?;
    kill_agent(&local, &node)?;
    local.ok(&["start", &node])?;
    // As plugins do that see the node's socket made anew.
    eventually("the plugin at the new agent", 20, || {
        plugin.join(&tasks, &folder).map(|()| true)
    })?;
    offers(kubectl, &node, 2, 2)?;
    kubectl.apply(&pod("two", &node, 1))?;
    kubectl.wait_ready("two", 40)?;
    let other = kubectl.ok(&["exec", "two", "--", "sh", "-c", "echo $ZEROES"])?;
    ensure!(other.trim() == "zero-1", "{other}");
    ensure!(kubectl.field("pod/one", container)? == before, "restarted");

    plugin
        .devices
        .send_replace(vec![("zero-0", HEALTHY), ("zero-1", "Unhealthy")]);
    offers(kubectl, &node, 1, 2)?;
    plugin.devices.send_replace(Vec::new());
    offers(kubectl, &node, 0, 2)?;
    Ok(())
}
