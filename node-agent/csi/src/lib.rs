//! The Container Storage Interface, version 1, as far as nodes speak it: messages, clients and servers, both for
//! the agent and for drivers, and the protocol by which plugins register with an agent.

mod dial;

pub use dial::channel;

/// CSI version 1: identity and node services.
#[allow(missing_docs, clippy::pedantic, clippy::all)]
pub mod v1 {
    tonic::include_proto!("csi.v1");
}

/// Registration of plugins, version 1.
#[allow(missing_docs, clippy::pedantic, clippy::all)]
pub mod registration {
    tonic::include_proto!("pluginregistration");
}

/// What a CSI driver calls itself when it registers.
pub const PLUGIN_TYPE: &str = "CSIPlugin";
