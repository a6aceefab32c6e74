//! The driver's part on each node.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Context;
use balsa_csi::registration::registration_server::RegistrationServer;
use balsa_csi::v1::identity_server::{Identity, IdentityServer};
use balsa_csi::v1::node_server::{Node, NodeServer};
use balsa_csi::v1::node_service_capability::{Rpc, Type, rpc};
use balsa_csi::v1::*;
use clap::Args;
use tokio::net::UnixListener;
use tokio_stream::wrappers::UnixListenerStream;
use tonic::transport::Server;
use tonic::{Request, Response, Status};

use crate::devices;
use crate::register::Register;
use crate::volumes::{Volumes, bind, is_mounted, unbind};

/// What the part on a node is told.
#[derive(Args)]
pub(crate) struct Options {
    /// Socket to serve on.
    #[arg(long, default_value = "/csi/csi.sock")]
    endpoint: PathBuf,
    /// The same socket as the agent knows it.
    #[arg(long)]
    registered_endpoint: String,
    /// Socket to register by.
    #[arg(long)]
    registration: PathBuf,
    /// Name of the node.
    #[arg(long, env = "NODE_NAME")]
    node: String,
    /// Most volumes on the node; 0 is no limit.
    #[arg(long, default_value_t = 0)]
    limit: i64,
}

/// Serves until stopped.
pub(crate) async fn run(driver: String, volumes: Volumes, options: Options) -> anyhow::Result<()> {
    let services = Services {
        driver: driver.clone(),
        node: options.node,
        limit: options.limit,
        volumes,
    };
    let register = Register {
        driver,
        endpoint: options.registered_endpoint,
    };
    let own = Server::builder()
        .add_service(IdentityServer::new(services.clone()))
        .add_service(NodeServer::new(services))
        .serve_with_incoming_shutdown(listen(&options.endpoint)?, crate::stopped());
    let registration = Server::builder()
        .add_service(RegistrationServer::new(register))
        .serve_with_incoming_shutdown(listen(&options.registration)?, crate::stopped());
    let ended = tokio::try_join!(own, registration);
    // What is gone must not look as if it were there.
    let _ = fs::remove_file(&options.registration);
    let _ = fs::remove_file(&options.endpoint);
    ended?;
    Ok(())
}

fn listen(socket: &Path) -> anyhow::Result<UnixListenerStream> {
    let at = || format!("cannot listen on {}", socket.display());
    if let Some(folder) = socket.parent() {
        fs::create_dir_all(folder).with_context(at)?;
    }
    // Of an earlier process.
    let _ = fs::remove_file(socket);
    let listener = UnixListener::bind(socket).with_context(at)?;
    Ok(UnixListenerStream::new(listener))
}

#[derive(Clone)]
struct Services {
    driver: String,
    node: String,
    limit: i64,
    volumes: Volumes,
}

type Answer<T> = Result<Response<T>, Status>;

fn done<T>(answer: T) -> Answer<T> {
    Ok(Response::new(answer))
}

fn is_block(capability: &VolumeCapability) -> bool {
    use volume_capability::AccessType;
    matches!(capability.access_type, Some(AccessType::Block(_)))
}

fn need(what: &str, value: &str) -> Result<(), Status> {
    if value.is_empty() {
        return Err(Status::invalid_argument(format!("{what} is missing")));
    }
    Ok(())
}

impl Services {
    fn note(&self, call: &str, handle: &str, path: &str) {
        self.volumes
            .note(&format!("{} {call} {handle} {path}", self.node));
    }

    /// The folder of a volume, which must exist.
    fn folder(&self, handle: &str) -> Result<PathBuf, Status> {
        let folder = self.volumes.folder(handle);
        let folder = folder.filter(|folder| folder.is_dir());
        folder.ok_or_else(|| Status::not_found(format!("there is no volume {handle}")))
    }

    /// Makes a volume a device of this node. Again is fine.
    fn stage_device(&self, handle: &str) -> Result<(), Status> {
        if self.volumes.device(&self.node, handle).is_some() {
            return Ok(());
        }
        let device = devices::attach(&self.volumes.disk(handle)?)?;
        self.volumes.set_device(&self.node, handle, Some(&device))?;
        Ok(())
    }

    /// Volumes that live and die with their pod start with this.
    fn is_own(handle: &str) -> bool {
        handle.starts_with("csi-")
    }
}

#[tonic::async_trait]
impl Identity for Services {
    async fn get_plugin_info(
        &self,
        _: Request<GetPluginInfoRequest>,
    ) -> Answer<GetPluginInfoResponse> {
        done(GetPluginInfoResponse {
            name: self.driver.clone(),
            vendor_version: env!("CARGO_PKG_VERSION").to_owned(),
            ..GetPluginInfoResponse::default()
        })
    }

    async fn get_plugin_capabilities(
        &self,
        _: Request<GetPluginCapabilitiesRequest>,
    ) -> Answer<GetPluginCapabilitiesResponse> {
        done(GetPluginCapabilitiesResponse::default())
    }

    async fn probe(&self, _: Request<ProbeRequest>) -> Answer<ProbeResponse> {
        done(ProbeResponse {
            ready: Some(BoolValue { value: true }),
        })
    }
}

#[tonic::async_trait]
impl Node for Services {
    async fn node_stage_volume(
        &self,
        request: Request<NodeStageVolumeRequest>,
    ) -> Answer<NodeStageVolumeResponse> {
        let request = request.into_inner();
        need("volume_id", &request.volume_id)?;
        need("staging_target_path", &request.staging_target_path)?;
        let Some(capability) = &request.volume_capability else {
            return Err(Status::invalid_argument("volume_capability is missing"));
        };
        self.note("stage", &request.volume_id, &request.staging_target_path);
        let folder = self.folder(&request.volume_id)?;
        if is_block(capability) {
            self.stage_device(&request.volume_id)?;
        } else {
            bind(&folder, Path::new(&request.staging_target_path), false)?;
        }
        done(NodeStageVolumeResponse {})
    }

    async fn node_unstage_volume(
        &self,
        request: Request<NodeUnstageVolumeRequest>,
    ) -> Answer<NodeUnstageVolumeResponse> {
        let request = request.into_inner();
        need("staging_target_path", &request.staging_target_path)?;
        self.note("unstage", &request.volume_id, &request.staging_target_path);
        match self.volumes.device(&self.node, &request.volume_id) {
            Some(device) => {
                devices::detach(&device)?;
                self.volumes
                    .set_device(&self.node, &request.volume_id, None)?;
            }
            None => unbind(Path::new(&request.staging_target_path))?,
        }
        done(NodeUnstageVolumeResponse {})
    }

    async fn node_publish_volume(
        &self,
        request: Request<NodePublishVolumeRequest>,
    ) -> Answer<NodePublishVolumeResponse> {
        let request = request.into_inner();
        need("volume_id", &request.volume_id)?;
        need("target_path", &request.target_path)?;
        self.note("publish", &request.volume_id, &request.target_path);
        if request.volume_capability.as_ref().is_some_and(is_block) {
            let device = self.volumes.device(&self.node, &request.volume_id);
            let device =
                device.ok_or_else(|| Status::failed_precondition("the volume is not staged"))?;
            devices::bind(&device, Path::new(&request.target_path))?;
            return done(NodePublishVolumeResponse {});
        }
        let source = if Self::is_own(&request.volume_id) {
            self.volumes.create(&request.volume_id)?;
            let folder = self.folder(&request.volume_id)?;
            for (key, value) in &request.volume_context {
                let name = key.rsplit('/').next().unwrap_or(key);
                fs::write(folder.join(name), value)?;
            }
            folder
        } else {
            self.folder(&request.volume_id)?;
            need("staging_target_path", &request.staging_target_path)?;
            let staged = PathBuf::from(&request.staging_target_path);
            if !is_mounted(&staged).unwrap_or(false) {
                return Err(Status::failed_precondition("the volume is not staged"));
            }
            staged
        };
        bind(&source, Path::new(&request.target_path), request.readonly)?;
        done(NodePublishVolumeResponse {})
    }

    async fn node_unpublish_volume(
        &self,
        request: Request<NodeUnpublishVolumeRequest>,
    ) -> Answer<NodeUnpublishVolumeResponse> {
        let request = request.into_inner();
        need("target_path", &request.target_path)?;
        self.note("unpublish", &request.volume_id, &request.target_path);
        let target = Path::new(&request.target_path);
        if target.is_dir() {
            unbind(target)?;
        } else {
            devices::unbind(target)?;
        }
        if Self::is_own(&request.volume_id) {
            self.volumes.delete(&request.volume_id)?;
        }
        done(NodeUnpublishVolumeResponse {})
    }

    async fn node_get_volume_stats(
        &self,
        request: Request<NodeGetVolumeStatsRequest>,
    ) -> Answer<NodeGetVolumeStatsResponse> {
        let request = request.into_inner();
        let stat = nix::sys::statvfs::statvfs(Path::new(&request.volume_path));
        let stat = stat.map_err(|error| Status::not_found(error.to_string()))?;
        let trouble = self.volumes.trouble(&request.volume_id);
        let block = i64::try_from(stat.fragment_size()).unwrap_or_default();
        let number = |count| i64::try_from(count).unwrap_or(i64::MAX);
        let usage = |unit: volume_usage::Unit, total: i64, free: i64| VolumeUsage {
            available: free,
            total,
            used: total - free,
            unit: unit as i32,
        };
        let total = number(stat.blocks()).saturating_mul(block);
        let total = self.volumes.size(&request.volume_id).unwrap_or(total);
        let free = number(stat.blocks_available()).saturating_mul(block);
        done(NodeGetVolumeStatsResponse {
            usage: vec![
                usage(volume_usage::Unit::Bytes, total, free.min(total)),
                usage(
                    volume_usage::Unit::Inodes,
                    number(stat.files()),
                    number(stat.files_free()),
                ),
            ],
            volume_condition: Some(VolumeCondition {
                abnormal: trouble.is_some(),
                message: trouble.unwrap_or_default(),
            }),
        })
    }

    async fn node_expand_volume(
        &self,
        request: Request<NodeExpandVolumeRequest>,
    ) -> Answer<NodeExpandVolumeResponse> {
        let request = request.into_inner();
        self.note("expand", &request.volume_id, &request.volume_path);
        self.folder(&request.volume_id)?;
        let bytes = request
            .capacity_range
            .map_or(0, |range| range.required_bytes);
        self.volumes.set_size(&request.volume_id, bytes)?;
        done(NodeExpandVolumeResponse {
            capacity_bytes: bytes,
        })
    }

    async fn node_get_capabilities(
        &self,
        _: Request<NodeGetCapabilitiesRequest>,
    ) -> Answer<NodeGetCapabilitiesResponse> {
        let able = [
            rpc::Type::StageUnstageVolume,
            rpc::Type::GetVolumeStats,
            rpc::Type::ExpandVolume,
            rpc::Type::VolumeCondition,
        ];
        let capabilities = able.map(|able| NodeServiceCapability {
            r#type: Some(Type::Rpc(Rpc {
                r#type: able as i32,
            })),
        });
        done(NodeGetCapabilitiesResponse {
            capabilities: capabilities.into(),
        })
    }

    async fn node_get_info(&self, _: Request<NodeGetInfoRequest>) -> Answer<NodeGetInfoResponse> {
        let segment = (format!("topology.{}/node", self.driver), self.node.clone());
        done(NodeGetInfoResponse {
            node_id: self.node.clone(),
            max_volumes_per_node: self.limit,
            accessible_topology: Some(Topology {
                segments: [segment].into(),
            }),
        })
    }
}
