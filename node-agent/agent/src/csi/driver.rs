//! A registered driver: what it can do, and its calls with their deadlines.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use balsa_csi::v1::node_client::NodeClient;
use balsa_csi::v1::node_service_capability::rpc::Type as Able;
use balsa_csi::v1::{
    NodeExpandVolumeRequest, NodeGetCapabilitiesRequest, NodeGetInfoRequest,
    NodeGetVolumeStatsRequest, NodeGetVolumeStatsResponse, NodePublishVolumeRequest,
    NodeServiceCapability, NodeStageVolumeRequest, NodeUnpublishVolumeRequest,
    NodeUnstageVolumeRequest, node_service_capability,
};
use tonic::transport::Channel;
use tonic::{Code, Response, Status};

/// Time allowed to a driver for work on a volume, as upstream.
const WORK: Duration = Duration::from_secs(120);

/// Time allowed to a driver for telling something.
const TELL: Duration = Duration::from_secs(10);

/// Why a driver's call failed; shown in the words that Go's gRPC has for it, which events upstream show.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("rpc error: code = {code:?} desc = {message}")]
pub(super) struct CallError {
    pub(super) code: Code,
    pub(super) message: String,
}

impl From<Status> for CallError {
    fn from(status: Status) -> Self {
        Self {
            code: status.code(),
            message: status.message().to_owned(),
        }
    }
}

type Result<T> = std::result::Result<T, CallError>;

async fn within<T>(
    deadline: Duration,
    call: impl Future<Output = std::result::Result<Response<T>, Status>>,
) -> Result<T> {
    match tokio::time::timeout(deadline, call).await {
        Ok(answer) => Ok(answer?.into_inner()),
        Err(_) => Err(CallError {
            code: Code::DeadlineExceeded,
            message: "context deadline exceeded".to_owned(),
        }),
    }
}

/// What a driver's node part can do beyond publishing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Abilities {
    /// Volumes are made ready for the node first, then for pods.
    pub(super) stage: bool,
    pub(super) stats: bool,
    pub(super) expand: bool,
    /// It tells when something is wrong with a volume.
    pub(super) condition: bool,
    /// It tells several writers on one node from a single one.
    pub(super) multi_writer: bool,
    /// It gives files to a group by itself.
    pub(super) mount_group: bool,
}

impl Abilities {
    fn of(capabilities: &[NodeServiceCapability]) -> Self {
        let has = |able: Able| {
            capabilities.iter().any(|capability| {
                let Some(node_service_capability::Type::Rpc(rpc)) = &capability.r#type else {
                    return false;
                };
                rpc.r#type == able as i32
            })
        };
        Self {
            stage: has(Able::StageUnstageVolume),
            stats: has(Able::GetVolumeStats),
            expand: has(Able::ExpandVolume),
            condition: has(Able::VolumeCondition),
            multi_writer: has(Able::SingleNodeMultiWriter),
            mount_group: has(Able::VolumeMountGroup),
        }
    }
}

/// How a driver knows this node.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Identity {
    pub(super) node_id: String,
    /// Most volumes on the node; no limit when `None`.
    pub(super) limit: Option<i32>,
    /// Where the node is, in the driver's terms.
    pub(super) topology: BTreeMap<String, String>,
}

/// A driver that has registered.
#[derive(Debug, Clone)]
pub(crate) struct Driver {
    pub(super) able: Abilities,
    pub(super) identity: Identity,
    client: NodeClient<Channel>,
}

impl Driver {
    /// Asks the driver at a socket what it can do and how it knows the node.
    ///
    /// # Errors
    /// When it does not answer, or answers nonsense; the error is for people.
    pub(super) async fn meet(socket: &Path) -> std::result::Result<Self, String> {
        let mut client = NodeClient::new(balsa_csi::channel(socket));
        let able = client.node_get_capabilities(NodeGetCapabilitiesRequest {});
        let able = within(TELL, able).await;
        let able = able.map_err(|error| format!("NodeGetCapabilities failed: {error}"))?;
        let mut driver = Self {
            able: Abilities::of(&able.capabilities),
            identity: Identity::default(),
            client,
        };
        driver.identity = driver.identify().await?;
        Ok(driver)
    }

    /// Asks how the driver knows the node.
    ///
    /// # Errors
    /// As for [`Driver::meet`].
    pub(super) async fn identify(&self) -> std::result::Result<Identity, String> {
        let mut client = self.client.clone();
        let info = within(TELL, client.node_get_info(NodeGetInfoRequest {})).await;
        let info = info.map_err(|error| format!("NodeGetInfo failed: {error}"))?;
        if info.node_id.is_empty() {
            return Err("NodeGetInfo returned an empty node ID".to_owned());
        }
        if info.max_volumes_per_node < 0 {
            return Err("NodeGetInfo returned a negative volume limit".to_owned());
        }
        let limit = i32::try_from(info.max_volumes_per_node).unwrap_or(i32::MAX);
        let topology = info.accessible_topology.unwrap_or_default().segments;
        Ok(Identity {
            node_id: info.node_id,
            limit: Some(limit).filter(|limit| *limit > 0),
            topology: topology.into_iter().collect(),
        })
    }

    pub(super) async fn stage(&self, request: NodeStageVolumeRequest) -> Result<()> {
        let mut client = self.client.clone();
        within(WORK, client.node_stage_volume(request)).await?;
        Ok(())
    }

    pub(super) async fn unstage(&self, handle: &str, staging: &Path) -> Result<()> {
        let mut client = self.client.clone();
        let request = NodeUnstageVolumeRequest {
            volume_id: handle.to_owned(),
            staging_target_path: text(staging),
        };
        within(WORK, client.node_unstage_volume(request)).await?;
        Ok(())
    }

    pub(super) async fn publish(&self, request: NodePublishVolumeRequest) -> Result<()> {
        let mut client = self.client.clone();
        within(WORK, client.node_publish_volume(request)).await?;
        Ok(())
    }

    pub(super) async fn unpublish(&self, handle: &str, target: &Path) -> Result<()> {
        let mut client = self.client.clone();
        let request = NodeUnpublishVolumeRequest {
            volume_id: handle.to_owned(),
            target_path: text(target),
        };
        within(WORK, client.node_unpublish_volume(request)).await?;
        Ok(())
    }

    pub(super) async fn expand(&self, request: NodeExpandVolumeRequest) -> Result<()> {
        let mut client = self.client.clone();
        within(WORK, client.node_expand_volume(request)).await?;
        Ok(())
    }

    pub(super) async fn stats(
        &self,
        handle: &str,
        target: &Path,
    ) -> Result<NodeGetVolumeStatsResponse> {
        let mut client = self.client.clone();
        let request = NodeGetVolumeStatsRequest {
            volume_id: handle.to_owned(),
            volume_path: text(target),
            staging_target_path: String::new(),
        };
        within(TELL, client.node_get_volume_stats(request)).await
    }
}

pub(super) fn text(path: &Path) -> String {
    path.display().to_string()
}

/// Where a driver's services are: on the socket it names, or on the one it registered by.
pub(super) fn endpoint(named: &str, registered: &Path) -> PathBuf {
    let named = named.strip_prefix("unix://").unwrap_or(named);
    let named = named.strip_prefix("unix:").unwrap_or(named);
    if named.is_empty() {
        return registered.to_owned();
    }
    PathBuf::from(named)
}
