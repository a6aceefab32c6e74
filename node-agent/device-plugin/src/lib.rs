//! The protocol between nodes and the plugins that offer their devices to pods, and the one in which nodes tell
//! monitoring agents who has which: messages, clients and servers.

/// Version v1beta1, the only one there is.
#[allow(missing_docs, clippy::pedantic, clippy::all)]
pub mod v1beta1 {
    tonic::include_proto!("v1beta1");
}

/// Who has which devices (PodResources, v1).
#[allow(missing_docs, clippy::pedantic, clippy::all)]
pub mod pod_resources {
    tonic::include_proto!("v1");
}

/// What both sides call this version.
pub const VERSION: &str = "v1beta1";

/// Name of the node's socket, in the folder that the plugins' lie in.
pub const NODE_SOCKET: &str = "kubelet.sock";

/// How a plugin calls a device that may be used.
pub const HEALTHY: &str = "Healthy";
