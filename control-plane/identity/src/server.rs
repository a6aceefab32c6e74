//! What a server holds: the CA, the ServiceAccount keys, and its own certificates made from them.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use rustls::{ClientConfig, ServerConfig};
use tokio_util::sync::CancellationToken;
use x509_parser::extensions::GeneralName;

use crate::ca::{CertificateAuthority, Profile};
use crate::error::Error;
use crate::join::Bundle;
use crate::jwt::ServiceAccountKeys;
use crate::kubeconfig::Kubeconfig;
use crate::live::LiveCertificate;
use crate::node::NodeIdentity;
use crate::tls::{self, LinkTls, RaftTls};
use crate::{
    FRONT_PROXY_USER, GROUP_MASTERS, GROUP_NODES, GROUP_SERVERS, LINK_ALPN, LINK_SERVER_NAME,
    RAFT_SERVER_NAME, files,
};

const CA_FILE: &str = "ca.pem";
const CA_PUBLIC_FILE: &str = "ca.crt";
const FRONT_PROXY_CA_FILE: &str = "front-proxy-ca.pem";
const ACCOUNT_KEYS_FILE: &str = "sa.pem";
/// How often certificates are looked at for renewal.
const RENEWAL_CHECK: Duration = Duration::from_secs(3600);

/// By which names and addresses clients reach a server.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ServerNames {
    /// Node name.
    pub node: String,
    /// Further DNS names beside `kubernetes...`, `localhost` and the node's.
    pub dns: Vec<String>,
    /// Own addresses, the `kubernetes` Service's included. Loopback is added.
    pub ips: Vec<IpAddr>,
}

impl ServerNames {
    fn api_profile(&self) -> Profile {
        let mut dns: BTreeSet<String> = self.dns.iter().cloned().collect();
        for name in [
            "kubernetes",
            "kubernetes.default",
            "kubernetes.default.svc",
            "kubernetes.default.svc.cluster.local",
            "localhost",
            self.node.as_str(),
        ] {
            dns.insert(name.to_owned());
        }
        let mut ips: BTreeSet<IpAddr> = self.ips.iter().copied().collect();
        ips.extend([
            IpAddr::from([127, 0, 0, 1]),
            IpAddr::from([0, 0, 0, 0, 0, 0, 0, 1]),
        ]);
        Profile {
            common_name: "kube-apiserver".into(),
            dns: dns.into_iter().collect(),
            ips: ips.into_iter().collect(),
            server: true,
            ..Profile::default()
        }
    }

    fn raft_profile(&self) -> Profile {
        Profile {
            common_name: format!("system:balsa:server:{}", self.node),
            organization: Some(GROUP_SERVERS.to_owned()),
            dns: vec![RAFT_SERVER_NAME.to_owned()],
            server: true,
            client: true,
            ..Profile::default()
        }
    }

    fn link_profile(&self) -> Profile {
        Profile {
            common_name: format!("system:balsa:link:{}", self.node),
            dns: vec![LINK_SERVER_NAME.to_owned()],
            server: true,
            ..Profile::default()
        }
    }
}

/// A server's keys and certificates, in a folder and in use.
#[derive(Debug)]
pub struct Identity {
    dir: PathBuf,
    names: ServerNames,
    ca: CertificateAuthority,
    accounts: Arc<ServiceAccountKeys>,
    api: Arc<LiveCertificate>,
    raft: Arc<LiveCertificate>,
    link: Arc<LiveCertificate>,
    front_proxy_ca: CertificateAuthority,
    front_proxy: Arc<LiveCertificate>,
}

impl Identity {
    /// Whether the folder holds a cluster's keys.
    #[must_use]
    pub fn exists(dir: &Path) -> bool {
        dir.join(CA_FILE).exists()
    }

    /// Makes the keys of a new cluster.
    ///
    /// # Errors
    /// [`Error::Exists`] when the folder has some already; others when it cannot be written.
    pub fn create(dir: &Path, names: &ServerNames) -> Result<Self, Error> {
        let bundle = Bundle {
            ca_pem: CertificateAuthority::generate(Timestamp::now())?.to_pem(),
            service_account_keys_pem: ServiceAccountKeys::generate()?.to_pems(),
            front_proxy_ca_pem: CertificateAuthority::generate(Timestamp::now())?.to_pem(),
        };
        Self::from_bundle(dir, names, &bundle)
    }

    /// Keeps the keys of the cluster this machine joins.
    ///
    /// # Errors
    /// As [`Self::create`].
    pub fn from_bundle(dir: &Path, names: &ServerNames, bundle: &Bundle) -> Result<Self, Error> {
        if Self::exists(dir) {
            return Err(Error::Exists(dir.to_owned()));
        }
        CertificateAuthority::from_pem(&bundle.ca_pem)?;
        ServiceAccountKeys::from_pems(&bundle.service_account_keys_pem)?;
        CertificateAuthority::from_pem(&bundle.front_proxy_ca_pem)?;
        files::make_dir(dir)?;
        let front = dir.join(FRONT_PROXY_CA_FILE);
        files::write_secret(&front, bundle.front_proxy_ca_pem.as_bytes())?;
        let keys = bundle.service_account_keys_pem.concat();
        files::write_secret(&dir.join(ACCOUNT_KEYS_FILE), keys.as_bytes())?;
        // The CA's file goes last: it is what tells that the folder is complete.
        files::write_secret(&dir.join(CA_FILE), bundle.ca_pem.as_bytes())?;
        Self::load(dir, names)
    }

    /// Reads the folder. Certificates that are missing, due, or lack one of the names are made anew.
    ///
    /// # Errors
    /// [`Error::Missing`] when there is no CA; others when files are unreadable or damaged.
    pub fn load(dir: &Path, names: &ServerNames) -> Result<Self, Error> {
        crate::join::check_node_name(&names.node)?;
        let now = Timestamp::now();
        let read = |name: &str| files::read(&dir.join(name));
        let ca_pem = read(CA_FILE)?.ok_or_else(|| Error::Missing(dir.to_owned()))?;
        let keys =
            read(ACCOUNT_KEYS_FILE)?.ok_or_else(|| Error::Missing(dir.join(ACCOUNT_KEYS_FILE)))?;
        let ca = CertificateAuthority::from_pem(&ca_pem)
            .map_err(|e| Error::invalid(dir.join(CA_FILE).display().to_string(), e))?;
        let path = dir.join(FRONT_PROXY_CA_FILE);
        let front_proxy_ca = match files::read(&path)? {
            Some(text) => CertificateAuthority::from_pem(&text)
                .map_err(|e| Error::invalid(path.display().to_string(), e))?,
            // A folder from before there was one.
            None => {
                let made = CertificateAuthority::generate(now)?;
                files::write_secret(&path, made.to_pem().as_bytes())?;
                made
            }
        };
        files::write_secret(&dir.join(CA_PUBLIC_FILE), ca.certificate_pem().as_bytes())?;
        let own =
            |file: &str, profile: &Profile| own_certificate(&dir.join(file), &ca, profile, now);
        Ok(Self {
            api: own("api.pem", &names.api_profile())?,
            raft: own("raft.pem", &names.raft_profile())?,
            link: own("link.pem", &names.link_profile())?,
            front_proxy: own_certificate(
                &dir.join("front-proxy.pem"),
                &front_proxy_ca,
                &front_proxy_profile(),
                now,
            )?,
            front_proxy_ca,
            dir: dir.to_owned(),
            names: names.clone(),
            accounts: Arc::new(ServiceAccountKeys::from_pems(&split_keys(&keys))?),
            ca,
        })
    }

    /// All secrets, for a server that joins. Show it to nobody else.
    #[must_use]
    pub fn bundle(&self) -> Bundle {
        Bundle {
            ca_pem: self.ca.to_pem(),
            service_account_keys_pem: self.accounts.to_pems(),
            front_proxy_ca_pem: self.front_proxy_ca.to_pem(),
        }
    }

    /// The CA of the front proxy: aggregated API servers believe user names only of who shows a certificate by it.
    /// It signs nothing but [`Self::front_proxy`]'s.
    #[must_use]
    pub fn front_proxy_ca(&self) -> &CertificateAuthority {
        &self.front_proxy_ca
    }

    /// What servers show to aggregated API servers; fits rustls's `with_client_cert_resolver`.
    #[must_use]
    pub fn front_proxy(&self) -> Arc<LiveCertificate> {
        Arc::clone(&self.front_proxy)
    }

    /// The CA.
    #[must_use]
    pub fn ca(&self) -> &CertificateAuthority {
        &self.ca
    }

    /// Signs and verifies ServiceAccount tokens.
    #[must_use]
    pub fn service_accounts(&self) -> Arc<ServiceAccountKeys> {
        Arc::clone(&self.accounts)
    }

    /// For the API's port: TLS 1.3 and 1.2, HTTP/2 and 1.1, client certificates optional.
    ///
    /// # Errors
    /// When the CA certificate is unusable.
    pub fn api_server_tls(&self) -> Result<Arc<ServerConfig>, Error> {
        tls::server(
            self.ca.certificate(),
            Arc::clone(&self.api),
            None,
            tls::CLIENTS,
            &[b"h2", b"http/1.1"],
        )
    }

    /// For the Raft port and for dialling it: only servers, both ways.
    ///
    /// # Errors
    /// When the CA certificate is unusable.
    pub fn raft_tls(&self) -> Result<RaftTls, Error> {
        let ca = self.ca.certificate();
        Ok(RaftTls {
            server: tls::server(
                ca,
                Arc::clone(&self.raft),
                Some(GROUP_SERVERS),
                tls::MEMBERS,
                &[b"h2"],
            )?,
            client: tls::client(ca, Some(Arc::clone(&self.raft)), &[b"h2"])?,
        })
    }

    /// For the node link's port: only node agents.
    ///
    /// # Errors
    /// When the CA certificate is unusable.
    pub fn link_tls(&self) -> Result<LinkTls, Error> {
        let certificate = Arc::clone(&self.link);
        Ok(LinkTls {
            server: tls::server(
                self.ca.certificate(),
                certificate,
                Some(GROUP_NODES),
                tls::MEMBERS,
                &[LINK_ALPN],
            )?,
        })
    }

    /// For requests to other servers' APIs, as [`GROUP_SERVERS`].
    ///
    /// # Errors
    /// When the CA certificate is unusable.
    pub fn api_client(&self, alpn: &[&[u8]]) -> Result<Arc<ClientConfig>, Error> {
        tls::client(self.ca.certificate(), Some(Arc::clone(&self.raft)), alpn)
    }

    /// Credentials for an agent that runs on this machine, kept in its own folder. Those there are used
    /// while they are this cluster's and this node's.
    ///
    /// # Errors
    /// When they cannot be made or written.
    pub fn node_client(&self, dir: &Path) -> Result<NodeIdentity, Error> {
        match NodeIdentity::load(dir)? {
            Some(node)
                if node.name() == self.names.node
                    && node.ca_sha256() == self.ca.sha256()
                    && !node.renewal_due(Timestamp::now()) =>
            {
                Ok(node)
            }
            _ => NodeIdentity::issue(dir, &self.ca, &self.names.node, Timestamp::now()),
        }
    }

    /// A kubeconfig for the cluster's administrator, with a new certificate. `servers` are names and URLs;
    /// the first is the current context's.
    ///
    /// # Errors
    /// When the certificate cannot be made.
    pub fn admin_kubeconfig(&self, servers: &[(String, String)]) -> Result<Kubeconfig, Error> {
        let profile = Profile {
            common_name: "kubernetes-admin".into(),
            organization: Some(GROUP_MASTERS.to_owned()),
            client: true,
            ..Profile::default()
        };
        Ok(Kubeconfig {
            name: "balsa".into(),
            servers: servers.to_vec(),
            ca_pem: self.ca.certificate_pem().to_owned(),
            user: "balsa-admin".into(),
            client: self.ca.issue(&profile, Timestamp::now())?,
        })
    }

    /// Signs the renewal of a node's certificate; the caller has verified that the node asks for its own.
    ///
    /// # Errors
    /// When the request is malformed.
    pub fn sign_node_request(&self, request_pem: &str, node: &str) -> Result<String, Error> {
        crate::join::check_node_name(node)?;
        self.ca
            .sign_node_request(request_pem, node, Timestamp::now())
    }

    /// Makes those certificates anew that have passed two thirds of their life; returns how many.
    /// Connections made from then on use them, in all configurations made before, too.
    ///
    /// # Errors
    /// When one cannot be made or written; it then stays in use.
    pub fn renew(&self, now: Timestamp) -> Result<usize, Error> {
        let all = [
            (&self.api, self.names.api_profile()),
            (&self.raft, self.names.raft_profile()),
            (&self.link, self.names.link_profile()),
        ];
        let mut renewed = 0;
        for (certificate, profile) in all {
            if certificate.current().renewal_due(now) {
                certificate.replace(&self.ca.issue(&profile, now)?)?;
                renewed += 1;
            }
        }
        if self.front_proxy.current().renewal_due(now) {
            let pem = self.front_proxy_ca.issue(&front_proxy_profile(), now)?;
            self.front_proxy.replace(&pem)?;
            renewed += 1;
        }
        Ok(renewed)
    }

    /// Runs [`Self::renew`] every hour until `stop`. A failure is logged and tried again the next hour.
    pub async fn keep_renewed(self: Arc<Self>, stop: CancellationToken) {
        while stop
            .run_until_cancelled(tokio::time::sleep(RENEWAL_CHECK))
            .await
            .is_some()
        {
            match self.renew(Timestamp::now()) {
                Ok(0) => {}
                Ok(count) => tracing::info!(count, "renewed certificates"),
                Err(error) => {
                    tracing::error!(%error, dir = %self.dir.display(), "cannot renew certificates; will try again in an hour");
                }
            }
        }
    }
}

fn front_proxy_profile() -> Profile {
    Profile {
        common_name: FRONT_PROXY_USER.into(),
        client: true,
        ..Profile::default()
    }
}

fn split_keys(text: &str) -> Vec<String> {
    text.split_inclusive("-----END PRIVATE KEY-----\n")
        .filter(|p| !p.trim().is_empty())
        .map(str::to_owned)
        .collect()
}

/// Loads a certificate of ours, or makes it anew when it does not do.
fn own_certificate(
    path: &Path,
    ca: &CertificateAuthority,
    profile: &Profile,
    now: Timestamp,
) -> Result<Arc<LiveCertificate>, Error> {
    if let Some(found) = LiveCertificate::load(path)? {
        let current = found.current();
        let ours = current.key.cert.last() == Some(ca.certificate());
        if ours && !current.renewal_due(now) && names_cover(current.key.end_entity_cert()?, profile)
        {
            return Ok(Arc::new(found));
        }
    }
    Ok(Arc::new(LiveCertificate::store(
        path,
        &ca.issue(profile, now)?,
    )?))
}

/// Whether a certificate has the profile's common name and all its names and addresses.
fn names_cover(der: &[u8], profile: &Profile) -> bool {
    let Ok((_, parsed)) = x509_parser::parse_x509_certificate(der) else {
        return false;
    };
    let same_name = parsed
        .subject()
        .iter_common_name()
        .any(|name| name.as_str().is_ok_and(|n| n == profile.common_name));
    let mut dns = BTreeSet::new();
    let mut ips = BTreeSet::new();
    if let Ok(Some(extension)) = parsed.subject_alternative_name() {
        for name in &extension.value.general_names {
            match name {
                GeneralName::DNSName(name) => {
                    dns.insert((*name).to_owned());
                }
                GeneralName::IPAddress(bytes) => {
                    ips.extend(<[u8; 4]>::try_from(*bytes).map(IpAddr::from));
                    ips.extend(<[u8; 16]>::try_from(*bytes).map(IpAddr::from));
                }
                _ => {}
            }
        }
    }
    same_name
        && profile.dns.iter().all(|n| dns.contains(n))
        && profile.ips.iter().all(|ip| ips.contains(ip))
}
