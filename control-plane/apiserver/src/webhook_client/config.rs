//! `WebhookClientConfig`: where a webhook is, and by what CA its certificate is verified.

use std::time::Duration;

use base64::Engine as _;
use http::Uri;
use serde_json::Value;

use super::CallError;

/// Where a webhook is.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Place {
    /// A Service of the cluster.
    Service {
        /// Its namespace.
        namespace: String,
        /// Its name.
        name: String,
        /// Its port.
        port: u16,
    },
    /// A host that the server itself reaches.
    Host {
        /// Name or address.
        host: String,
        /// Port.
        port: u16,
    },
}

/// See the module.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ClientConfig {
    /// Where it is.
    pub place: Place,
    /// Path and query of the URL.
    path: String,
    /// Host as the URL has it, port included where it is written.
    authority: String,
    /// PEM; empty for the roots that the machine trusts.
    pub ca_bundle: Vec<u8>,
}

impl ClientConfig {
    /// Reads a `clientConfig`.
    ///
    /// # Errors
    /// [`CallError::Config`].
    pub fn from_json(config: &Value) -> Result<Self, CallError> {
        let ca_bundle = base64::engine::general_purpose::STANDARD
            .decode(config["caBundle"].as_str().unwrap_or_default())
            .map_err(|_| CallError::Config("caBundle is not base64".to_owned()))?;
        if let Some(url) = config["url"].as_str().filter(|url| !url.is_empty()) {
            return Self::from_url(url, ca_bundle);
        }
        let service = &config["service"];
        let (Some(name), Some(namespace)) =
            (service["name"].as_str(), service["namespace"].as_str())
        else {
            return Err(CallError::Config(
                "webhook configuration must have either service or URL".to_owned(),
            ));
        };
        let port = service["port"].as_u64().unwrap_or(443);
        let port = u16::try_from(port)
            .map_err(|_| CallError::Config(format!("invalid service port {port}")))?;
        let path = service["path"].as_str().unwrap_or("/");
        let slash = if path.starts_with('/') { "" } else { "/" };
        Ok(Self {
            authority: format!("{name}.{namespace}.svc:{port}"),
            place: Place::Service {
                namespace: namespace.to_owned(),
                name: name.to_owned(),
                port,
            },
            path: format!("{slash}{path}"),
            ca_bundle,
        })
    }

    fn from_url(url: &str, ca_bundle: Vec<u8>) -> Result<Self, CallError> {
        let bad = |why: &str| CallError::Config(format!("invalid webhook URL {url:?}: {why}"));
        let uri: Uri = url.parse().map_err(|_| bad("it does not parse"))?;
        if uri.scheme_str() != Some("https") {
            return Err(bad("its scheme must be https"));
        }
        let authority = uri.authority().ok_or_else(|| bad("it has no host"))?;
        let host = authority.host().trim_matches(['[', ']']).to_owned();
        Ok(Self {
            place: Place::Host {
                host,
                port: authority.port_u16().unwrap_or(443),
            },
            path: uri.path_and_query().map_or("/", |p| p.as_str()).to_owned(),
            authority: authority.as_str().to_owned(),
            ca_bundle,
        })
    }

    /// What is called, with the time that the webhook has.
    pub(super) fn url(&self, timeout: Duration) -> String {
        let mark = if self.path.contains('?') { '&' } else { '?' };
        // Part of a second counts as a whole one.
        let seconds = timeout.as_secs() + u64::from(timeout.subsec_nanos() > 0);
        format!(
            "https://{}{}{mark}timeout={seconds}s",
            self.authority, self.path
        )
    }

    /// Host and port of the URL.
    pub(super) fn authority(&self) -> &str {
        &self.authority
    }

    /// The name that the certificate must be for.
    pub(super) fn server_name(&self) -> String {
        match &self.place {
            Place::Service {
                namespace, name, ..
            } => format!("{name}.{namespace}.svc"),
            Place::Host { host, .. } => host.clone(),
        }
    }

    /// What calls that may share a connection have in common.
    pub(super) fn key(&self) -> (Place, Vec<u8>) {
        (self.place.clone(), self.ca_bundle.clone())
    }
}
