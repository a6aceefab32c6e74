//! Kubeconfig files.

use std::fmt::Write as _;
use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use crate::ca::KeyAndChain;
use crate::error::Error;
use crate::files;

/// A kubeconfig: one user, one context per server. The first server's context is current.
#[derive(Debug, Clone)]
pub struct Kubeconfig {
    /// Name of the current context, for example `balsa`.
    pub name: String,
    /// Name and URL of each server (`s1`, `https://10.0.0.1:6443`).
    pub servers: Vec<(String, String)>,
    /// CA certificate.
    pub ca_pem: String,
    /// User name for the file, for example `balsa-admin`.
    pub user: String,
    /// Client key and certificate.
    pub client: KeyAndChain,
}

impl Kubeconfig {
    /// The file's text, YAML.
    #[must_use]
    pub fn render(&self) -> String {
        let ca = STANDARD.encode(&self.ca_pem);
        let mut clusters = String::new();
        let mut contexts = String::new();
        let quote = |s: &str| serde_json::Value::from(s).to_string();
        for (i, (server, url)) in self.servers.iter().enumerate() {
            let name = quote(&self.context_name(i, server));
            // Writing to a String cannot fail.
            let _ = write!(
                clusters,
                "- name: {name}\n  cluster:\n    server: {}\n    certificate-authority-data: {ca}\n",
                quote(url)
            );
            let _ = write!(
                contexts,
                "- name: {name}\n  context:\n    cluster: {name}\n    user: {}\n",
                quote(&self.user)
            );
        }
        format!(
            "apiVersion: v1\nkind: Config\ncurrent-context: {}\nclusters:\n{clusters}contexts:\n{contexts}users:\n\
             - name: {}\n  user:\n    client-certificate-data: {}\n    client-key-data: {}\n",
            quote(&self.name),
            quote(&self.user),
            STANDARD.encode(&self.client.chain_pem),
            STANDARD.encode(&self.client.key_pem),
        )
    }

    /// The first server's context has the plain name, the others are told apart by the server's.
    fn context_name(&self, index: usize, server: &str) -> String {
        if index == 0 {
            self.name.clone()
        } else {
            format!("{}-{server}", self.name)
        }
    }

    /// Writes the file with mode 0600.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn write(&self, path: &Path) -> Result<(), Error> {
        files::write_secret(path, self.render().as_bytes())
    }
}
