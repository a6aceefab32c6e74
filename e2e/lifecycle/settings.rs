//! What administrators set in files: objects encrypted at rest, and users of other systems.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, ensure};
use balsa_e2e::eventually;
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use serde_json::{Value, json};

/// A server on loopback without a node; ends with this value.
pub(crate) struct Server {
    process: Child,
    folder: PathBuf,
    log: PathBuf,
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn command(folder: &Path, arguments: &[&str]) -> anyhow::Result<Command> {
    let program = std::env::var("E2E_BALSA").context("E2E_BALSA names no program")?;
    let mut command = Command::new(program);
    command.args(["server", "--no-agent"]);
    if !arguments.contains(&"--address") {
        command.args(["--address", "127.0.0.1"]);
    }
    command.arg("--data-dir").arg(folder.join("data"));
    command.args(arguments);
    Ok(command)
}

impl Server {
    /// Starts one and waits until it is ready.
    pub(crate) fn start(folder: &Path, arguments: &[&str]) -> anyhow::Result<Self> {
        let log = folder.join("log");
        let out = File::create(&log)?;
        let process = command(folder, arguments)?
            .stdout(out.try_clone()?)
            .stderr(out)
            .stdin(Stdio::null())
            .spawn()?;
        let server = Self {
            process,
            folder: folder.to_owned(),
            log,
        };
        eventually("the server to be ready", 30, || {
            Ok(server.kubectl(&["get", "--raw", "/readyz"]).is_ok()
                && server.kubectl(&["get", "namespace", "default"]).is_ok())
        })?;
        Ok(server)
    }

    pub(crate) fn kubectl(&self, arguments: &[&str]) -> anyhow::Result<String> {
        let program = std::env::var_os("E2E_KUBECTL").unwrap_or_else(|| "kubectl".into());
        let mut command = Command::new(program);
        command.arg("--kubeconfig");
        command.arg(self.folder.join("data/admin.kubeconfig"));
        command.args(arguments);
        balsa_e2e::run(&mut command, "", Duration::from_secs(20))?.ok()
    }

    pub(crate) fn said(&self, text: &str) -> anyhow::Result<bool> {
        Ok(fs::read_to_string(&self.log)?.contains(text))
    }
}

/// Whether any file below a folder has a text in it.
fn on_disk(folder: &Path, text: &str) -> anyhow::Result<bool> {
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() {
            if on_disk(&path, text)? {
                return Ok(true);
            }
        } else {
            let bytes = fs::read(&path).unwrap_or_default();
            if bytes.windows(text.len()).any(|w| w == text.as_bytes()) {
                return Ok(true);
            }
        }
    }
    Ok(false)
}

fn encryption(folder: &Path, keys: &[(&str, u8)]) -> anyhow::Result<String> {
    let keys: Vec<Value> = keys
        .iter()
        .map(|(name, byte)| json!({"name": name, "secret": STANDARD.encode([*byte; 32])}))
        .collect();
    let config = json!({"apiVersion": "apiserver.config.k8s.io/v1", "kind": "EncryptionConfiguration",
        "resources": [{"resources": ["secrets"], "providers": [{"aesgcm": {"keys": keys}}, {"identity": {}}]}]});
    let path = folder.join("encryption.yaml");
    fs::write(&path, config.to_string())?;
    Ok(path.to_string_lossy().into_owned())
}

#[test]
fn secrets_lie_encrypted_on_the_disk_and_outlive_their_keys() -> anyhow::Result<()> {
    const SECRET: &str = "plain-marker-4711";
    let folder = tempfile::tempdir()?;
    let folder = folder.path();
    let read = |server: &Server| -> anyhow::Result<()> {
        let data = server.kubectl(&["get", "secret", "s", "-o", "jsonpath={.data.k}"])?;
        ensure!(data == STANDARD.encode(SECRET), "{data}");
        Ok(())
    };
    {
        let path = encryption(folder, &[("one", 1)])?;
        let server = Server::start(folder, &["--encryption-provider-config", &path])?;
        // Endpoints cannot have such an address, and nothing is tried again and again.
        eventually("a word on the address", 10, || {
            server.said("pods cannot reach these addresses of servers")
        })?;
        let literal = format!("--from-literal=k={SECRET}");
        server.kubectl(&["create", "secret", "generic", "s", &literal])?;
        server.kubectl(&[
            "create",
            "configmap",
            "c",
            "--from-literal=k=open-marker-0815",
        ])?;
        read(&server)?;
    }
    let data = folder.join("data");
    ensure!(
        on_disk(&data, "open-marker-0815")?,
        "the search finds nothing"
    );
    ensure!(
        !on_disk(&data, &STANDARD.encode(SECRET))?,
        "it lies there in plain text"
    );
    {
        let path = encryption(folder, &[("two", 2), ("one", 1)])?;
        let server = Server::start(folder, &["--encryption-provider-config", &path])?;
        read(&server)?;
        eventually("the secret to be written with the new key", 20, || {
            server.said("all objects are encrypted as configured")
        })?;
    }
    {
        let path = encryption(folder, &[("two", 2)])?;
        let server = Server::start(folder, &["--encryption-provider-config", &path])?;
        read(&server)?;
    }
    let without = balsa_e2e::run(&mut command(folder, &[])?, "", Duration::from_secs(20))?;
    let said = without.failed()?;
    ensure!(
        said.contains("encryptionProviderConfig") && said.contains("\"two\""),
        "{said}"
    );
    Ok(())
}

/// Runs openssl in a folder.
fn openssl(folder: &Path, arguments: &[&str]) -> anyhow::Result<String> {
    let mut command = Command::new("openssl");
    command.args(arguments).current_dir(folder);
    balsa_e2e::run(&mut command, "", Duration::from_secs(30))?.ok()
}

const PORT: u16 = 16_443;

/// An issuer: documents in a folder that openssl serves, and an RSA key.
struct Issuer {
    folder: PathBuf,
    process: Child,
}

impl Drop for Issuer {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl Issuer {
    fn start(folder: &Path) -> anyhow::Result<Self> {
        let url = format!("https://localhost:{PORT}");
        openssl(
            folder,
            &[
                "req",
                "-x509",
                "-newkey",
                "rsa:2048",
                "-nodes",
                "-days",
                "2",
                "-keyout",
                "tls.key",
                "-out",
                "tls.crt",
                "-subj",
                "/CN=localhost",
                "-addext",
                "subjectAltName=DNS:localhost",
                "-addext",
                "basicConstraints=critical,CA:FALSE",
            ],
        )?;
        openssl(folder, &["genrsa", "-out", "sign.key", "2048"])?;
        let modulus = openssl(folder, &["rsa", "-in", "sign.key", "-noout", "-modulus"])?;
        let digits = modulus.trim().trim_start_matches("Modulus=");
        let n: Vec<u8> = (0..digits.len() / 2)
            .filter_map(|i| u8::from_str_radix(&digits[2 * i..2 * i + 2], 16).ok())
            .collect();
        fs::create_dir(folder.join(".well-known"))?;
        let discovery = json!({"issuer": url, "jwks_uri": format!("{url}/keys")});
        fs::write(
            folder.join(".well-known/openid-configuration"),
            discovery.to_string(),
        )?;
        let keys = json!({"keys": [{"kty": "RSA", "kid": "k", "use": "sig", "e": "AQAB", "n": URL_SAFE_NO_PAD.encode(n)}]});
        fs::write(folder.join("keys"), keys.to_string())?;
        let process = Command::new("openssl")
            .args(["s_server", "-quiet", "-WWW", "-accept", &PORT.to_string()])
            .args(["-cert", "tls.crt", "-key", "tls.key"])
            .current_dir(folder)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()?;
        Ok(Self {
            folder: folder.to_owned(),
            process,
        })
    }

    fn token(&self, claims: &Value) -> anyhow::Result<String> {
        let part = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
        let header = json!({"alg": "RS256", "kid": "k"});
        let signed = format!("{}.{}", part(&header), part(claims));
        fs::write(self.folder.join("signed"), &signed)?;
        let made = [
            "dgst",
            "-sha256",
            "-sign",
            "sign.key",
            "-out",
            "signature",
            "signed",
        ];
        openssl(&self.folder, &made)?;
        let signature = fs::read(self.folder.join("signature"))?;
        Ok(format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature)))
    }
}

#[test]
fn users_of_an_issuer_log_in_with_its_tokens() -> anyhow::Result<()> {
    let folder = tempfile::tempdir()?;
    let folder = folder.path();
    let issuer = Issuer::start(folder)?;
    let url = format!("https://localhost:{PORT}");
    let config = json!({"apiVersion": "apiserver.config.k8s.io/v1", "kind": "AuthenticationConfiguration",
    "anonymous": {"enabled": true, "conditions": [{"path": "/version"}]},
    "jwt": [{
        "issuer": {"url": url, "audiences": ["balsa"], "certificateAuthority": fs::read_to_string(folder.join("tls.crt"))?},
        "claimMappings": {"username": {"expression": "'oidc:' + claims.sub"}, "groups": {"claim": "groups", "prefix": "oidc:"}},
        "userValidationRules": [{"expression": "!user.username.startsWith('oidc:evil')", "message": "not wanted"}],
    }]});
    let path = folder.join("authentication.yaml");
    fs::write(&path, config.to_string())?;
    let server = Server::start(
        folder,
        &["--authentication-config", &path.to_string_lossy()],
    )?;
    let claims = |sub: &str, audience: &str| json!({"iss": url, "aud": audience, "sub": sub, "groups": ["dev"], "exp": 4_000_000_000_u64});
    // Without the administrator's certificate.
    let ask = |token: &str| -> anyhow::Result<balsa_e2e::Output> {
        let program = std::env::var_os("E2E_KUBECTL").unwrap_or_else(|| "kubectl".into());
        let mut command = Command::new(program);
        command.args([
            "--kubeconfig",
            "/dev/null",
            "--server",
            "https://127.0.0.1:6443",
        ]);
        command.args(["--insecure-skip-tls-verify", "--token", token]);
        command.args(["auth", "whoami", "-o", "jsonpath={.status.userInfo}"]);
        balsa_e2e::run(&mut command, "", Duration::from_secs(20))
    };
    let user: Value = serde_json::from_str(&ask(&issuer.token(&claims("ann", "balsa"))?)?.ok()?)?;
    ensure!(user["username"] == "oidc:ann", "{user}");
    ensure!(user["groups"][0] == "oidc:dev", "{user}");
    for (sub, audience) in [("ann", "another"), ("evil", "balsa")] {
        let said = ask(&issuer.token(&claims(sub, audience))?)?.failed()?;
        ensure!(
            said.contains("Unauthorized") || said.contains("logged in"),
            "{said}"
        );
    }
    drop(server);
    Ok(())
}
