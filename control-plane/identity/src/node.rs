//! What a node agent holds: the CA certificate and one client certificate `system:node:NAME`.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use jiff::Timestamp;
use rcgen::{CertificateParams, DnType, KeyPair};
use rustls::ClientConfig;
use rustls_pki_types::CertificateDer;

use crate::ca::{CertificateAuthority, KeyAndChain, fingerprint, node_profile};
use crate::error::Error;
use crate::kubeconfig::Kubeconfig;
use crate::live::{LiveCertificate, certificates};
use crate::{LINK_ALPN, files, peer, tls};

const CA_FILE: &str = "ca.crt";
const NODE_FILE: &str = "node.pem";

/// A key made by a node that waits for its certificate.
pub struct PendingNode {
    node: String,
    key_pem: String,
    request_pem: String,
}

impl std::fmt::Debug for PendingNode {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PendingNode")
            .field("node", &self.node)
            .finish_non_exhaustive()
    }
}

impl PendingNode {
    /// Makes a key and a certificate request for it. The key never leaves the machine.
    ///
    /// # Errors
    /// When the name is not fit for a certificate or the random source fails.
    pub fn new(node: &str) -> Result<Self, Error> {
        crate::join::check_node_name(node)?;
        let key = KeyPair::generate()?;
        let profile = node_profile(node);
        let mut params = CertificateParams::default();
        params.distinguished_name = rcgen::DistinguishedName::new();
        if let Some(organization) = &profile.organization {
            params
                .distinguished_name
                .push(DnType::OrganizationName, organization.as_str());
        }
        params
            .distinguished_name
            .push(DnType::CommonName, profile.common_name.as_str());
        let request_pem = params.serialize_request(&key)?.pem()?;
        Ok(Self {
            node: node.to_owned(),
            key_pem: key.serialize_pem(),
            request_pem,
        })
    }

    /// To be sent to a server.
    #[must_use]
    pub fn request_pem(&self) -> &str {
        &self.request_pem
    }

    /// Writes CA and certificate to the folder and uses them.
    ///
    /// # Errors
    /// When the certificate does not belong to the key, the CA certificate is unusable, or a file cannot be
    /// written.
    pub fn install(
        self,
        dir: &Path,
        ca_pem: &str,
        certificate_pem: &str,
    ) -> Result<NodeIdentity, Error> {
        let pem = KeyAndChain {
            key_pem: self.key_pem,
            chain_pem: certificate_pem.to_owned(),
        };
        NodeIdentity::store(dir, ca_pem, &pem)
    }
}

/// A node agent's credentials.
#[derive(Debug)]
pub struct NodeIdentity {
    dir: PathBuf,
    name: String,
    ca_pem: String,
    ca: CertificateDer<'static>,
    certificate: Arc<LiveCertificate>,
}

impl NodeIdentity {
    /// Reads the folder; `None` when the machine has not joined yet.
    ///
    /// # Errors
    /// When files are unreadable or damaged.
    pub fn load(dir: &Path) -> Result<Option<Self>, Error> {
        let Some(certificate) = LiveCertificate::load(&dir.join(NODE_FILE))? else {
            return Ok(None);
        };
        let ca_pem =
            files::read(&dir.join(CA_FILE))?.ok_or_else(|| Error::Missing(dir.join(CA_FILE)))?;
        Self::assemble(dir, ca_pem, certificate).map(Some)
    }

    /// For a machine that holds the CA: makes and keeps a certificate for its own agent.
    ///
    /// # Errors
    /// When it cannot be made or written.
    pub fn issue(
        dir: &Path,
        ca: &CertificateAuthority,
        node: &str,
        now: Timestamp,
    ) -> Result<Self, Error> {
        crate::join::check_node_name(node)?;
        Self::store(
            dir,
            ca.certificate_pem(),
            &ca.issue(&node_profile(node), now)?,
        )
    }

    fn store(dir: &Path, ca_pem: &str, pem: &KeyAndChain) -> Result<Self, Error> {
        files::make_dir(dir)?;
        // The node's file goes last: it is what tells that the folder is complete.
        certificates(ca_pem)?;
        files::write_secret(&dir.join(CA_FILE), ca_pem.as_bytes())?;
        let certificate = LiveCertificate::store(&dir.join(NODE_FILE), pem)?;
        Self::assemble(dir, ca_pem.to_owned(), certificate)
    }

    fn assemble(dir: &Path, ca_pem: String, certificate: LiveCertificate) -> Result<Self, Error> {
        let ca = certificates(&ca_pem)?.swap_remove(0);
        let leaf = certificate.current();
        let subject = peer::PeerIdentity::from_certificate(leaf.key.end_entity_cert()?)?;
        let name = subject
            .node()
            .ok_or_else(|| {
                Error::invalid(dir.display().to_string(), "the certificate is not a node's")
            })?
            .to_owned();
        Ok(Self {
            dir: dir.to_owned(),
            name,
            ca_pem,
            ca,
            certificate: Arc::new(certificate),
        })
    }

    /// The node's name, from its certificate.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The cluster's CA certificate.
    #[must_use]
    pub fn ca_pem(&self) -> &str {
        &self.ca_pem
    }

    /// Fingerprint of the cluster, see [`CertificateAuthority::sha256`].
    #[must_use]
    pub fn ca_sha256(&self) -> String {
        fingerprint(&self.ca)
    }

    /// For requests to API servers (ALPN as given, for example `h2`).
    ///
    /// # Errors
    /// When the CA certificate is unusable.
    pub fn api_client(&self, alpn: &[&[u8]]) -> Result<Arc<ClientConfig>, Error> {
        tls::client(&self.ca, Some(Arc::clone(&self.certificate)), alpn)
    }

    /// For the node link; the server's name is [`crate::LINK_SERVER_NAME`].
    ///
    /// # Errors
    /// When the CA certificate is unusable.
    pub fn link_client(&self) -> Result<Arc<ClientConfig>, Error> {
        tls::client(&self.ca, Some(Arc::clone(&self.certificate)), &[LINK_ALPN])
    }

    /// Key and certificate chain as they are now, for clients that take PEM.
    #[must_use]
    pub fn client_pem(&self) -> KeyAndChain {
        self.certificate.current().pem.clone()
    }

    /// A kubeconfig with the node's rights.
    #[must_use]
    pub fn kubeconfig(&self, servers: &[(String, String)]) -> Kubeconfig {
        Kubeconfig {
            name: "balsa".into(),
            servers: servers.to_vec(),
            ca_pem: self.ca_pem.clone(),
            user: format!("system:node:{}", self.name),
            client: self.client_pem(),
        }
    }

    /// True from two thirds of the certificate's life on: send a [`Self::renewal`] to a server.
    #[must_use]
    pub fn renewal_due(&self, now: Timestamp) -> bool {
        self.certificate.current().renewal_due(now)
    }

    /// A new key and request for the same name.
    ///
    /// # Errors
    /// When the random source fails.
    pub fn renewal(&self) -> Result<PendingNode, Error> {
        PendingNode::new(&self.name)
    }

    /// Uses the renewed certificate from now on, in all configurations made before, too.
    ///
    /// # Errors
    /// When it does not belong to the request's key, names another node, or cannot be written.
    pub fn install_renewal(
        &self,
        pending: &PendingNode,
        certificate_pem: &str,
    ) -> Result<(), Error> {
        let leaf = certificates(certificate_pem)?.swap_remove(0);
        if peer::PeerIdentity::from_certificate(&leaf)?.node() != Some(self.name.as_str()) {
            return Err(Error::invalid("renewed certificate", "names another node"));
        }
        let pem = KeyAndChain {
            key_pem: pending.key_pem.clone(),
            chain_pem: certificate_pem.to_owned(),
        };
        self.certificate.replace(&pem)
    }

    /// The folder it lives in.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }
}
