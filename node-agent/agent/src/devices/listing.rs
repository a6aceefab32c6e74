//! Which devices pods have, told to monitoring agents over a socket (PodResources, v1).

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use balsa_device_plugin::pod_resources as api;
use balsa_device_plugin::pod_resources::pod_resources_lister_server::{
    PodResourcesLister, PodResourcesListerServer,
};
use k8s_openapi::api::core::v1::Pod;
use tokio_stream::wrappers::UnixListenerStream;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status};
use tracing::warn;

use super::book::Book;
use super::register::listen;
use super::{Devices, containers};
use crate::pods::Manager;
use crate::pods::capacity::ended;

/// Pause before the socket is opened again that could not be, or failed.
const RETRY: Duration = Duration::from_secs(5);

/// Answers monitoring agents.
#[derive(Clone)]
pub(crate) struct Listing {
    pub(crate) devices: Arc<Devices>,
    pub(crate) manager: Arc<Manager>,
    pub(crate) socket: PathBuf,
}

impl Listing {
    /// Answers until stopped.
    pub(crate) async fn serve(self, stop: CancellationToken) {
        loop {
            let served = self.try_serve(&stop).await;
            if stop.is_cancelled() {
                return;
            }
            if let Err(error) = served {
                warn!(error, socket = %self.socket.display(), "cannot tell of pods' devices, trying again");
            }
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(RETRY) => {}
            }
        }
    }

    async fn try_serve(&self, stop: &CancellationToken) -> Result<(), String> {
        let listener = listen(&self.socket).map_err(|error| error.to_string())?;
        let server = tonic::transport::Server::builder()
            .add_service(PodResourcesListerServer::new(self.clone()));
        server
            .serve_with_incoming_shutdown(
                UnixListenerStream::new(listener),
                stop.clone().cancelled_owned(),
            )
            .await
            .map_err(|error| error.to_string())
    }

    /// Pods that have not ended.
    fn pods(&self) -> Vec<(String, Arc<Pod>)> {
        let mut pods = self.manager.own_pods();
        pods.retain(|(_, pod)| !ended(pod));
        pods
    }
}

#[tonic::async_trait]
impl PodResourcesLister for Listing {
    async fn list(
        &self,
        _: Request<api::ListPodResourcesRequest>,
    ) -> Result<Response<api::ListPodResourcesResponse>, Status> {
        let pods = self.pods();
        let state = self.devices.state.lock();
        let pods = pods.iter().map(|(uid, pod)| of_pod(&state.book, uid, pod));
        Ok(Response::new(api::ListPodResourcesResponse {
            pod_resources: pods.collect(),
        }))
    }

    async fn get_allocatable_resources(
        &self,
        _: Request<api::AllocatableResourcesRequest>,
    ) -> Result<Response<api::AllocatableResourcesResponse>, Status> {
        Ok(Response::new(allocatable(&self.devices.state.lock().book)))
    }

    async fn get(
        &self,
        request: Request<api::GetPodResourcesRequest>,
    ) -> Result<Response<api::GetPodResourcesResponse>, Status> {
        let api::GetPodResourcesRequest {
            pod_name,
            pod_namespace,
        } = request.into_inner();
        let pods = self.pods();
        let found = pods.iter().find(|(_, pod)| {
            pod.metadata.name.as_ref() == Some(&pod_name)
                && pod.metadata.namespace.as_ref() == Some(&pod_namespace)
        });
        let Some((uid, pod)) = found else {
            return Err(Status::unknown(format!(
                "pod {pod_name} in namespace {pod_namespace} not found"
            )));
        };
        let state = self.devices.state.lock();
        Ok(Response::new(api::GetPodResourcesResponse {
            pod_resources: Some(of_pod(&state.book, uid, pod)),
        }))
    }
}

/// What a pod's containers hold; init containers that end hold nothing for long, and are left out.
fn of_pod(book: &Book, uid: &str, pod: &Pod) -> api::PodResources {
    let containers = containers(pod).filter(|(_, ends)| !ends);
    let containers = containers.map(|(container, _)| {
        let held = book.held(uid, &container.name).into_iter().flatten();
        let devices = held.flat_map(|(resource, grant)| {
            let ids = grant.devices.iter();
            ids.map(move |id| device(book, resource, id))
        });
        api::ContainerResources {
            name: container.name.clone(),
            devices: devices.collect(),
            ..api::ContainerResources::default()
        }
    });
    api::PodResources {
        name: pod.metadata.name.clone().unwrap_or_default(),
        namespace: pod.metadata.namespace.clone().unwrap_or_default(),
        containers: containers.collect(),
    }
}

/// No container has CPUs or memory of its own here, so there are only devices.
fn allocatable(book: &Book) -> api::AllocatableResourcesResponse {
    let devices = book
        .usable()
        .map(|(resource, id)| device(book, resource, id));
    api::AllocatableResourcesResponse {
        devices: devices.collect(),
        ..api::AllocatableResourcesResponse::default()
    }
}

/// One device: those of a resource may be near to different NUMA nodes.
fn device(book: &Book, resource: &str, id: &str) -> api::ContainerDevices {
    let near = book.near(resource, id);
    let nodes = near.iter().map(|node| api::NumaNode { id: *node });
    api::ContainerDevices {
        resource_name: resource.to_owned(),
        device_ids: vec![id.to_owned()],
        topology: (!near.is_empty()).then(|| api::TopologyInfo {
            nodes: nodes.collect(),
        }),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use serde_json::json;

    use super::super::book::Grant;
    use super::*;

    #[test]
    fn devices_are_told_with_who_has_them_and_what_they_are_near_to() {
        let mut book = Book::default();
        let devices = [("a", true), ("b", true), ("c", false)];
        book.update("x/y", devices.map(|(id, ok)| (id.to_owned(), ok)));
        book.place("x/y", [("a".to_owned(), vec![1])].into());
        let grant = Grant {
            devices: ["a".to_owned()].into(),
            ..Grant::default()
        };
        book.grant(("u", "main"), "x/y", grant);
        let pod = json!({"metadata": {"name": "p", "namespace": "n"}, "spec": {
            "initContainers": [{"name": "first"}, {"name": "side", "restartPolicy": "Always"}],
            "containers": [{"name": "main"}]}});
        let told = of_pod(&book, "u", &serde_json::from_value(pod).unwrap());
        let names: Vec<_> = told
            .containers
            .iter()
            .map(|own| own.name.as_str())
            .collect();
        assert_eq!(names, ["side", "main"]);
        assert!(told.containers[0].devices.is_empty());
        let held = &told.containers[1].devices;
        assert_eq!((held.len(), held[0].device_ids[0].as_str()), (1, "a"));
        assert_eq!(held[0].topology.as_ref().unwrap().nodes[0].id, 1);
        let all = allocatable(&book).devices;
        let all: Vec<_> = all.iter().map(|own| own.device_ids[0].as_str()).collect();
        assert_eq!(all, ["a", "b"]);
    }
}
