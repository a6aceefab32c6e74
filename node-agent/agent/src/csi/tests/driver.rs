//! A driver that mounts nothing and tells what it was asked.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use balsa_csi::registration::registration_server::{Registration, RegistrationServer};
use balsa_csi::registration::{
    InfoRequest, PluginInfo, RegistrationStatus, RegistrationStatusResponse,
};
use balsa_csi::v1::node_server::{Node, NodeServer};
use balsa_csi::v1::node_service_capability::{Rpc, Type, rpc};
use balsa_csi::v1::*;
use parking_lot::Mutex;
use tokio::net::UnixListener;
use tokio::sync::mpsc;
use tokio_stream::wrappers::UnixListenerStream;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status};

use super::PATIENCE;

type Answer<T> = Result<Response<T>, Status>;

struct Inner {
    calls: mpsc::UnboundedSender<String>,
    refusal: Mutex<Option<String>>,
    endpoint: PathBuf,
}

impl Inner {
    fn note(&self, call: String) -> Result<(), Status> {
        let refusal = self.refusal.lock().clone();
        let _ = self.calls.send(call);
        match refusal {
            Some(why) => Err(Status::internal(why)),
            None => Ok(()),
        }
    }
}

pub(super) struct FakeDriver {
    inner: Arc<Inner>,
    heard: tokio::sync::Mutex<mpsc::UnboundedReceiver<String>>,
    socket: PathBuf,
    stop: CancellationToken,
}

impl FakeDriver {
    pub(super) async fn start(dir: &Path) -> Self {
        let (calls, heard) = mpsc::unbounded_channel();
        let endpoint = dir.join("plugins/d/csi.sock");
        std::fs::create_dir_all(endpoint.parent().unwrap()).unwrap();
        let socket = dir.join("plugins_registry/d-reg.sock");
        let inner = Arc::new(Inner {
            calls,
            refusal: Mutex::default(),
            endpoint: endpoint.clone(),
        });
        let stop = CancellationToken::new();
        let node = NodeServer::from_arc(Arc::new(Serve(Arc::clone(&inner))));
        let registration = RegistrationServer::from_arc(Arc::new(Serve(Arc::clone(&inner))));
        let server = tonic::transport::Server::builder().add_service(node);
        let incoming = UnixListenerStream::new(UnixListener::bind(&endpoint).unwrap());
        let ended = stop.clone().cancelled_owned();
        tokio::spawn(server.serve_with_incoming_shutdown(incoming, ended));
        let server = tonic::transport::Server::builder().add_service(registration);
        let incoming = UnixListenerStream::new(UnixListener::bind(&socket).unwrap());
        let ended = stop.clone().cancelled_owned();
        tokio::spawn(server.serve_with_incoming_shutdown(incoming, ended));
        Self {
            inner,
            heard: tokio::sync::Mutex::new(heard),
            socket,
            stop,
        }
    }

    pub(super) async fn next_call(&self) -> String {
        let mut heard = self.heard.lock().await;
        let call = tokio::time::timeout(PATIENCE, heard.recv()).await;
        call.expect("the driver was not called").unwrap()
    }

    /// Forgets what it was asked so far.
    pub(super) fn drain(&self) {
        let mut heard = self.heard.try_lock().unwrap();
        while heard.try_recv().is_ok() {}
    }

    pub(super) fn refuse(&self, why: &str) {
        *self.inner.refusal.lock() = Some(why.to_owned());
    }

    pub(super) fn leave(&self) {
        self.stop.cancel();
        std::fs::remove_file(&self.socket).unwrap();
    }
}

struct Serve(Arc<Inner>);

#[tonic::async_trait]
impl Registration for Serve {
    async fn get_info(&self, _: Request<InfoRequest>) -> Answer<PluginInfo> {
        Ok(Response::new(PluginInfo {
            r#type: balsa_csi::PLUGIN_TYPE.to_owned(),
            name: "d".to_owned(),
            endpoint: self.0.endpoint.display().to_string(),
            supported_versions: vec!["1.0.0".to_owned()],
        }))
    }

    async fn notify_registration_status(
        &self,
        request: Request<RegistrationStatus>,
    ) -> Answer<RegistrationStatusResponse> {
        let status = request.into_inner();
        let call = if status.plugin_registered {
            "registered".to_owned()
        } else {
            status.error
        };
        self.0.note(call)?;
        Ok(Response::new(RegistrationStatusResponse {}))
    }
}

/// The pod of a path below `pods`.
fn pod_of(path: &str) -> String {
    let mut steps = path.split('/').skip_while(|step| *step != "pods").skip(1);
    steps.next().unwrap().to_owned()
}

#[tonic::async_trait]
impl Node for Serve {
    async fn node_stage_volume(
        &self,
        request: Request<NodeStageVolumeRequest>,
    ) -> Answer<NodeStageVolumeResponse> {
        let request = request.into_inner();
        assert!(Path::new(&request.staging_target_path).is_dir());
        let secret = request.secrets.get("key").cloned().unwrap_or_default();
        self.0
            .note(format!("stage {} secret={secret}", request.volume_id))?;
        Ok(Response::new(NodeStageVolumeResponse {}))
    }

    async fn node_unstage_volume(
        &self,
        request: Request<NodeUnstageVolumeRequest>,
    ) -> Answer<NodeUnstageVolumeResponse> {
        let request = request.into_inner();
        self.0.note(format!("unstage {}", request.volume_id))?;
        Ok(Response::new(NodeUnstageVolumeResponse {}))
    }

    async fn node_publish_volume(
        &self,
        request: Request<NodePublishVolumeRequest>,
    ) -> Answer<NodePublishVolumeResponse> {
        let request = request.into_inner();
        std::fs::create_dir_all(&request.target_path)?;
        let pod = request.volume_context.get("csi.storage.k8s.io/pod.name");
        self.0.note(format!(
            "publish {} {} pod={}",
            request.volume_id,
            pod_of(&request.target_path),
            pod.cloned().unwrap_or_default()
        ))?;
        Ok(Response::new(NodePublishVolumeResponse {}))
    }

    async fn node_unpublish_volume(
        &self,
        request: Request<NodeUnpublishVolumeRequest>,
    ) -> Answer<NodeUnpublishVolumeResponse> {
        let request = request.into_inner();
        let pod = pod_of(&request.target_path);
        self.0
            .note(format!("unpublish {} {pod}", request.volume_id))?;
        Ok(Response::new(NodeUnpublishVolumeResponse {}))
    }

    async fn node_get_volume_stats(
        &self,
        _: Request<NodeGetVolumeStatsRequest>,
    ) -> Answer<NodeGetVolumeStatsResponse> {
        Ok(Response::new(NodeGetVolumeStatsResponse::default()))
    }

    async fn node_expand_volume(
        &self,
        request: Request<NodeExpandVolumeRequest>,
    ) -> Answer<NodeExpandVolumeResponse> {
        let request = request.into_inner();
        let bytes = request.capacity_range.unwrap().required_bytes;
        self.0
            .note(format!("expand {} {bytes}", request.volume_id))?;
        Ok(Response::new(NodeExpandVolumeResponse {
            capacity_bytes: bytes,
        }))
    }

    async fn node_get_capabilities(
        &self,
        _: Request<NodeGetCapabilitiesRequest>,
    ) -> Answer<NodeGetCapabilitiesResponse> {
        let able = [rpc::Type::StageUnstageVolume, rpc::Type::ExpandVolume];
        let capabilities = able.map(|able| NodeServiceCapability {
            r#type: Some(Type::Rpc(Rpc {
                r#type: able as i32,
            })),
        });
        Ok(Response::new(NodeGetCapabilitiesResponse {
            capabilities: capabilities.into(),
        }))
    }

    async fn node_get_info(&self, _: Request<NodeGetInfoRequest>) -> Answer<NodeGetInfoResponse> {
        Ok(Response::new(NodeGetInfoResponse {
            node_id: "id-n1".to_owned(),
            max_volumes_per_node: 0,
            accessible_topology: Some(Topology {
                segments: [("zone".to_owned(), "z1".to_owned())].into(),
            }),
        }))
    }
}
