//! Making the driver known to the node's agent.

use balsa_csi::registration::registration_server::Registration;
use balsa_csi::registration::{
    InfoRequest, PluginInfo, RegistrationStatus, RegistrationStatusResponse,
};
use tonic::{Request, Response, Status};

/// Answers the agent's question who this is.
pub(crate) struct Register {
    pub(crate) driver: String,
    /// The driver's socket as the agent knows it.
    pub(crate) endpoint: String,
}

#[tonic::async_trait]
impl Registration for Register {
    async fn get_info(&self, _: Request<InfoRequest>) -> Result<Response<PluginInfo>, Status> {
        Ok(Response::new(PluginInfo {
            r#type: balsa_csi::PLUGIN_TYPE.to_owned(),
            name: self.driver.clone(),
            endpoint: self.endpoint.clone(),
            supported_versions: vec!["1.0.0".to_owned()],
        }))
    }

    async fn notify_registration_status(
        &self,
        request: Request<RegistrationStatus>,
    ) -> Result<Response<RegistrationStatusResponse>, Status> {
        let status = request.into_inner();
        if status.plugin_registered {
            println!("registered");
        } else {
            eprintln!("not registered: {}", status.error);
            // The usual registrar does the same: the container starts again and so does the registration.
            std::process::exit(1);
        }
        Ok(Response::new(RegistrationStatusResponse {}))
    }
}
