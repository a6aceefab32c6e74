//! Talking with one plugin.

use std::path::Path;
use std::time::Duration;

use balsa_device_plugin::v1beta1::device_plugin_client::DevicePluginClient;
use balsa_device_plugin::v1beta1::{
    AllocateRequest, ContainerAllocateRequest, ContainerAllocateResponse,
    ContainerPreferredAllocationRequest, DevicePluginOptions, Empty, ListAndWatchResponse,
    PreStartContainerRequest, PreferredAllocationRequest,
};
use tonic::transport::Channel;
use tonic::{Code, Status, Streaming};

use super::book::{Choice, ExtraDevice, ExtraMount, Extras, Ids};

/// Time allowed to a plugin for a call.
const DEADLINE: Duration = Duration::from_secs(30);

/// A plugin that has registered.
#[derive(Clone)]
pub(super) struct Plugin {
    client: DevicePluginClient<Channel>,
    options: DevicePluginOptions,
}

impl Plugin {
    /// Connects to the plugin on that socket and asks what it can do; `said` is what it told when it registered.
    pub(super) async fn connect(
        socket: &Path,
        said: Option<DevicePluginOptions>,
    ) -> Result<Self, Status> {
        let mut client = DevicePluginClient::new(balsa_csi::channel(socket));
        let options = match within(client.get_device_plugin_options(Empty {})).await {
            Ok(options) => options,
            Err(status) if status.code() == Code::Unimplemented => said.unwrap_or_default(),
            Err(status) => return Err(status),
        };
        Ok(Self { client, options })
    }

    /// Its devices, now and whenever they change. The stream has no deadline: it lasts as long as the plugin.
    pub(super) async fn list_and_watch(
        &mut self,
    ) -> Result<Streaming<ListAndWatchResponse>, Status> {
        within(self.client.list_and_watch(Empty {})).await
    }

    /// Which devices of a choice the plugin would take; empty if it does not care.
    pub(super) async fn prefer(&mut self, choice: &Choice) -> Result<Vec<String>, Status> {
        if !self.options.get_preferred_allocation_available || !choice.open() {
            return Ok(Vec::new());
        }
        let request = ContainerPreferredAllocationRequest {
            available_device_i_ds: choice.free.union(&choice.reused).cloned().collect(),
            must_include_device_i_ds: choice.reused.iter().cloned().collect(),
            allocation_size: i32::try_from(choice.count).unwrap_or(i32::MAX),
        };
        let request = PreferredAllocationRequest {
            container_requests: vec![request],
        };
        let answer = within(self.client.get_preferred_allocation(request)).await?;
        let first = answer.container_responses.into_iter().next();
        Ok(first.map(|first| first.device_i_ds).unwrap_or_default())
    }

    /// What a container needs to use these devices.
    pub(super) async fn allocate(&mut self, devices: &Ids) -> Result<Extras, Status> {
        let request = AllocateRequest {
            container_requests: vec![ContainerAllocateRequest {
                devices_ids: devices.iter().cloned().collect(),
            }],
        };
        let answer = within(self.client.allocate(request)).await?;
        let first = answer.container_responses.into_iter().next();
        first
            .map(extras)
            .ok_or_else(|| Status::internal("no containers return in allocation response"))
    }

    /// Has the plugin make these devices ready for a container that is about to start, if it wants to.
    pub(super) async fn pre_start(&mut self, devices: &Ids) -> Result<(), Status> {
        if !self.options.pre_start_required {
            return Ok(());
        }
        let request = PreStartContainerRequest {
            devices_ids: devices.iter().cloned().collect(),
        };
        within(self.client.pre_start_container(request))
            .await
            .map(|_| ())
    }
}

async fn within<T>(
    call: impl Future<Output = Result<tonic::Response<T>, Status>>,
) -> Result<T, Status> {
    match tokio::time::timeout(DEADLINE, call).await {
        Ok(answer) => answer.map(tonic::Response::into_inner),
        Err(_) => Err(Status::deadline_exceeded("context deadline exceeded")),
    }
}

fn extras(answer: ContainerAllocateResponse) -> Extras {
    let mounts = answer.mounts.into_iter().map(|mount| ExtraMount {
        container_path: mount.container_path,
        host_path: mount.host_path,
        read_only: mount.read_only,
    });
    let devices = answer.devices.into_iter().map(|device| ExtraDevice {
        container_path: device.container_path,
        host_path: device.host_path,
        permissions: device.permissions,
    });
    Extras {
        envs: answer.envs.into_iter().collect(),
        mounts: mounts.collect(),
        devices: devices.collect(),
        annotations: answer.annotations.into_iter().collect(),
        cdi: answer.cdi_devices.into_iter().map(|cdi| cdi.name).collect(),
    }
}

/// A failed call in the words of the Go library, which is what people know from upstream.
pub(super) fn words(status: &Status) -> String {
    format!(
        "rpc error: code = {:?} desc = {}",
        status.code(),
        status.message()
    )
}
