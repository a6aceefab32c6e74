#![allow(clippy::unwrap_used)]
//! The whole of joining, serving and renewing, over in-memory connections.

use std::os::unix::fs::PermissionsExt as _;
use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};
use rustls::{ClientConfig, ServerConfig};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::jwt::{ISSUER, KubernetesClaims, Reference};
use crate::*;

fn names() -> ServerNames {
    ServerNames {
        node: "s1".into(),
        dns: vec![],
        ips: vec!["10.96.0.1".parse().unwrap()],
    }
}

fn identity(dir: &std::path::Path) -> Identity {
    Identity::create(&dir.join("pki"), &names()).unwrap()
}

/// Shakes hands and passes a byte both ways; what the server learnt of the client, or an error text.
async fn talk(
    server: Arc<ServerConfig>,
    client: Arc<ClientConfig>,
    name: &str,
) -> Result<Option<String>, String> {
    let (a, b) = tokio::io::duplex(16 * 1024);
    let accept = async {
        let mut stream = tokio_rustls::TlsAcceptor::from(server)
            .accept(a)
            .await
            .map_err(|e| e.to_string())?;
        let user = stream
            .get_ref()
            .1
            .peer_certificates()
            .map(|c| PeerIdentity::from_certificate(&c[0]).unwrap().common_name);
        stream.write_all(b"x").await.map_err(|e| e.to_string())?;
        stream.flush().await.map_err(|e| e.to_string())?;
        Ok(user)
    };
    let name = ServerName::try_from(name.to_owned()).unwrap();
    let connect = async {
        let mut stream = tokio_rustls::TlsConnector::from(client)
            .connect(name, b)
            .await
            .map_err(|e| e.to_string())?;
        stream.read_u8().await.map_err(|e| e.to_string())
    };
    let (accepted, connected): (Result<_, String>, Result<_, String>) =
        tokio::join!(accept, connect);
    connected.and(accepted)
}

#[test]
fn a_created_identity_loads_again_with_the_same_keys_and_certificates() {
    let dir = tempfile::tempdir().unwrap();
    let made = identity(dir.path());
    let loaded = Identity::load(&dir.path().join("pki"), &names()).unwrap();
    assert_eq!(made.bundle(), loaded.bundle());
    let read = |f: &str| std::fs::read_to_string(dir.path().join("pki").join(f)).unwrap();
    assert!(read("api.pem").contains("BEGIN PRIVATE KEY"));
    let before = read("api.pem");
    Identity::load(&dir.path().join("pki"), &names()).unwrap();
    assert_eq!(before, read("api.pem"));
}

#[test]
fn secrets_are_readable_by_their_owner_only() {
    let dir = tempfile::tempdir().unwrap();
    identity(dir.path());
    for entry in std::fs::read_dir(dir.path().join("pki")).unwrap() {
        let entry = entry.unwrap();
        assert_eq!(
            entry.metadata().unwrap().permissions().mode() & 0o777,
            0o600,
            "{:?}",
            entry.path()
        );
    }
}

#[test]
fn a_folder_with_keys_is_not_overwritten() {
    let dir = tempfile::tempdir().unwrap();
    identity(dir.path());
    assert!(matches!(
        Identity::create(&dir.path().join("pki"), &names()),
        Err(Error::Exists(_))
    ));
}

#[test]
fn a_new_address_gives_a_new_api_certificate_and_leaves_the_raft_one() {
    let dir = tempfile::tempdir().unwrap();
    identity(dir.path());
    let pki = dir.path().join("pki");
    let read = |f: &str| std::fs::read_to_string(pki.join(f)).unwrap();
    let (api, raft) = (read("api.pem"), read("raft.pem"));
    let mut moved = names();
    moved.ips.push("192.0.2.7".parse().unwrap());
    Identity::load(&pki, &moved).unwrap();
    assert_ne!(api, read("api.pem"));
    assert_eq!(raft, read("raft.pem"));
}

#[test]
fn a_damaged_ca_file_is_reported_with_its_path() {
    let dir = tempfile::tempdir().unwrap();
    identity(dir.path());
    std::fs::write(dir.path().join("pki/ca.pem"), "nonsense").unwrap();
    let error = Identity::load(&dir.path().join("pki"), &names())
        .unwrap_err()
        .to_string();
    assert!(error.contains("pki/ca.pem"), "{error}");
}

#[tokio::test]
async fn servers_speak_raft_with_each_other_and_with_nobody_else() {
    let dir = tempfile::tempdir().unwrap();
    let one = identity(dir.path());
    let other_names = ServerNames {
        node: "s2".into(),
        ..names()
    };
    let two = Identity::from_bundle(&dir.path().join("pki2"), &other_names, &one.bundle()).unwrap();
    let tls = one.raft_tls().unwrap();
    let user = talk(
        tls.server.clone(),
        two.raft_tls().unwrap().client,
        RAFT_SERVER_NAME,
    )
    .await
    .unwrap();
    assert_eq!(user.as_deref(), Some("system:balsa:server:s2"));

    let node = one.node_client(&dir.path().join("node")).unwrap();
    talk(
        tls.server.clone(),
        node.api_client(&[b"h2"]).unwrap(),
        RAFT_SERVER_NAME,
    )
    .await
    .unwrap_err();
    let nobody = crate::tls::client(one.ca().certificate(), None, &[b"h2"]).unwrap();
    talk(tls.server, nobody, RAFT_SERVER_NAME)
        .await
        .unwrap_err();
}

#[tokio::test]
async fn the_api_takes_clients_with_and_without_certificate_but_none_of_another_cluster() {
    let dir = tempfile::tempdir().unwrap();
    let id = identity(dir.path());
    let server = id.api_server_tls().unwrap();
    let anonymous = crate::tls::client(id.ca().certificate(), None, &[b"h2"]).unwrap();
    assert_eq!(
        talk(server.clone(), anonymous, "kubernetes.default.svc")
            .await
            .unwrap(),
        None
    );
    let node = id.node_client(&dir.path().join("node")).unwrap();
    let user = talk(
        server.clone(),
        node.api_client(&[b"h2"]).unwrap(),
        "10.96.0.1",
    )
    .await
    .unwrap();
    assert_eq!(user.as_deref(), Some("system:node:s1"));

    let foreign = Identity::create(&dir.path().join("foreign"), &names()).unwrap();
    let stranger = foreign.node_client(&dir.path().join("stranger")).unwrap();
    talk(server, stranger.api_client(&[b"h2"]).unwrap(), "localhost")
        .await
        .unwrap_err();
}

/// A client that speaks nothing newer than TLS 1.2.
fn old_client(ca: &CertificateAuthority, shows: Option<&NodeIdentity>) -> Arc<ClientConfig> {
    let mut roots = rustls::RootCertStore::empty();
    roots.add(ca.certificate().clone()).unwrap();
    let builder = ClientConfig::builder_with_provider(crate::tls::provider())
        .with_protocol_versions(&[&rustls::version::TLS12])
        .unwrap()
        .with_root_certificates(roots);
    Arc::new(match shows.map(NodeIdentity::client_pem) {
        None => builder.with_no_client_auth(),
        Some(pem) => {
            let chain = CertificateDer::pem_slice_iter(pem.chain_pem.as_bytes());
            let key = PrivateKeyDer::from_pem_slice(pem.key_pem.as_bytes()).unwrap();
            builder
                .with_client_auth_cert(chain.map(Result::unwrap).collect(), key)
                .unwrap()
        }
    })
}

#[tokio::test]
async fn the_api_takes_clients_of_tls_1_2_and_the_other_ports_do_not() {
    let dir = tempfile::tempdir().unwrap();
    let id = identity(dir.path());
    let node = id.node_client(&dir.path().join("node")).unwrap();
    let api = id.api_server_tls().unwrap();
    let anonymous = talk(api.clone(), old_client(id.ca(), None), "10.96.0.1").await;
    assert_eq!(anonymous, Ok(None));
    let shown = talk(api, old_client(id.ca(), Some(&node)), "10.96.0.1").await;
    assert_eq!(shown, Ok(Some("system:node:s1".to_owned())));
    for (members, name) in [
        (id.raft_tls().unwrap().server, RAFT_SERVER_NAME),
        (id.link_tls().unwrap().server, LINK_SERVER_NAME),
    ] {
        let refused = talk(members, old_client(id.ca(), Some(&node)), name).await;
        assert!(refused.unwrap_err().contains("ProtocolVersion"), "{name}");
    }
}

#[test]
fn the_suites_of_tls_1_2_have_ephemeral_keys_and_authenticated_encryption() {
    for suite in &crate::tls::provider().cipher_suites {
        let name = format!("{:?}", suite.suite());
        let safe = name.contains("_GCM_") || name.contains("CHACHA20_POLY1305");
        let ephemeral = name.starts_with("TLS_ECDHE_") || name.starts_with("TLS13_");
        assert!(safe && ephemeral, "{name}");
    }
}

#[tokio::test]
async fn an_agent_joins_with_a_token_and_speaks_over_the_link() {
    let dir = tempfile::tempdir().unwrap();
    let id = identity(dir.path());
    let token = JoinToken::generate(&id.ca().sha256()).unwrap();
    let record = token.record(
        JoinRole::Agent,
        Some(SignedDuration::from_hours(1)),
        Timestamp::now(),
    );

    let pasted: JoinToken = token.to_string().parse().unwrap();
    let first = crate::tls::first_contact(&pasted.ca_sha256, &[b"http/1.1"]).unwrap();
    talk(id.api_server_tls().unwrap(), first, "203.0.113.9")
        .await
        .unwrap();

    let pending = PendingNode::new("a1").unwrap();
    let request = JoinRequest {
        token_id: pasted.id.clone(),
        secret: pasted.secret().into(),
        role: JoinRole::Agent,
        node: "a1".into(),
        request_pem: Some(pending.request_pem().into()),
    };
    let response = join::answer(&id, Some(&record), &request, Timestamp::now()).unwrap();
    assert_eq!(response.bundle, None);
    let node = pending
        .install(
            &dir.path().join("agent"),
            &response.ca_pem,
            &response.certificate_pem.unwrap(),
        )
        .unwrap();
    let link = id.link_tls().unwrap().server;
    let user = talk(link.clone(), node.link_client().unwrap(), LINK_SERVER_NAME)
        .await
        .unwrap();
    assert_eq!(user.as_deref(), Some("system:node:a1"));
    assert_eq!(
        NodeIdentity::load(&dir.path().join("agent"))
            .unwrap()
            .unwrap()
            .name(),
        "a1"
    );
    // A server's own certificate is no node's.
    talk(link, id.api_client(&[LINK_ALPN]).unwrap(), LINK_SERVER_NAME)
        .await
        .unwrap_err();
}

#[tokio::test]
async fn first_contact_refuses_another_cluster() {
    let dir = tempfile::tempdir().unwrap();
    let (ours, other) = (
        identity(dir.path()),
        Identity::create(&dir.path().join("b"), &names()).unwrap(),
    );
    let first = crate::tls::first_contact(&ours.ca().sha256(), &[b"http/1.1"]).unwrap();
    talk(other.api_server_tls().unwrap(), first, "localhost")
        .await
        .unwrap_err();
}

#[test]
fn tokens_are_refused_when_wrong_expired_or_of_the_other_role() {
    let now = Timestamp::now();
    let token = JoinToken::generate(&"ab".repeat(32)).unwrap();
    let record = token.record(JoinRole::Agent, Some(SignedDuration::from_hours(1)), now);
    record.check(token.secret(), JoinRole::Agent, now).unwrap();
    record.check("wrong", JoinRole::Agent, now).unwrap_err();
    record
        .check(token.secret(), JoinRole::Server, now)
        .unwrap_err();
    let later = now + SignedDuration::from_hours(1);
    assert!(
        record
            .check(token.secret(), JoinRole::Agent, later)
            .unwrap_err()
            .to_string()
            .contains("expired")
    );
    assert!(
        !serde_json::to_string(&record)
            .unwrap()
            .contains(token.secret())
    );
    for bad in [
        "",
        "balsa.x.y.z",
        "k3s.1.2",
        &format!("balsa.{}.a.", "ab".repeat(32)),
    ] {
        bad.parse::<JoinToken>().unwrap_err();
    }
}

#[test]
fn a_sealed_bundle_opens_with_its_token_only() {
    let dir = tempfile::tempdir().unwrap();
    let id = identity(dir.path());
    let token = JoinToken::generate(&id.ca().sha256()).unwrap();
    let sealed = id.bundle().seal(&token).unwrap();
    assert_eq!(Bundle::open(&sealed, &token).unwrap(), id.bundle());
    Bundle::open(&sealed, &JoinToken::generate(&id.ca().sha256()).unwrap()).unwrap_err();
    Bundle::open("AAAA", &token).unwrap_err();
}

#[test]
fn certificates_are_renewed_at_two_thirds_and_not_before() {
    let dir = tempfile::tempdir().unwrap();
    let id = identity(dir.path());
    let now = Timestamp::now();
    assert_eq!(
        id.renew(now + SignedDuration::from_hours(24 * 240))
            .unwrap(),
        0
    );
    assert_eq!(
        id.renew(now + SignedDuration::from_hours(24 * 245))
            .unwrap(),
        4
    );

    let node = id.node_client(&dir.path().join("node")).unwrap();
    assert!(!node.renewal_due(now) && node.renewal_due(now + SignedDuration::from_hours(24 * 245)));
    let before = node.client_pem();
    let pending = node.renewal().unwrap();
    let chain = id.sign_node_request(pending.request_pem(), "s1").unwrap();
    node.install_renewal(&pending, &chain).unwrap();
    assert_ne!(before, node.client_pem());
    let stolen = id.sign_node_request(pending.request_pem(), "s2").unwrap();
    node.install_renewal(&pending, &stolen).unwrap_err();
}

fn claims(now: i64) -> Claims {
    Claims {
        aud: vec![ISSUER.into()],
        exp: now + 3600,
        iat: now,
        iss: ISSUER.into(),
        jti: "j".into(),
        kubernetes: KubernetesClaims {
            namespace: "default".into(),
            node: None,
            pod: Some(Reference {
                name: "p".into(),
                uid: "u2".into(),
            }),
            secret: None,
            serviceaccount: Reference {
                name: "default".into(),
                uid: "u1".into(),
            },
            warnafter: Some(now + 3607),
        },
        nbf: now,
        sub: "system:serviceaccount:default:default".into(),
    }
}

#[test]
fn a_service_account_token_verifies_until_it_expires() {
    let keys = ServiceAccountKeys::generate().unwrap();
    let now = Timestamp::now();
    let given = claims(now.as_second());
    let token = keys.issue(&given).unwrap();
    assert_eq!(keys.verify(&token, now), Ok(given));
    assert_eq!(
        keys.verify(&token, now + SignedDuration::from_hours(2)),
        Err(TokenError::Expired)
    );
    assert_eq!(
        keys.verify(&token, now - SignedDuration::from_hours(2)),
        Err(TokenError::NotYet)
    );
}

#[test]
fn a_token_of_another_key_or_changed_or_unsigned_is_refused() {
    let (keys, others) = (
        ServiceAccountKeys::generate().unwrap(),
        ServiceAccountKeys::generate().unwrap(),
    );
    let now = Timestamp::now();
    let token = keys.issue(&claims(now.as_second())).unwrap();
    assert_eq!(others.verify(&token, now), Err(TokenError::Signature));
    let mut parts: Vec<&str> = token.split('.').collect();
    let forged = base64::Engine::encode(
        &base64::engine::general_purpose::URL_SAFE_NO_PAD,
        br#"{"alg":"none"}"#,
    );
    parts[0] = &forged;
    assert_eq!(
        keys.verify(&parts.join("."), now),
        Err(TokenError::Signature)
    );
    for bad in ["", "a.b", "a.b.c", "....", "abc"] {
        assert_eq!(keys.verify(bad, now), Err(TokenError::Malformed), "{bad}");
    }
}

#[test]
fn keys_before_a_rotation_still_verify() {
    let old = ServiceAccountKeys::generate().unwrap();
    let new = ServiceAccountKeys::generate().unwrap();
    let both = ServiceAccountKeys::from_pems(&[new.to_pems(), old.to_pems()].concat()).unwrap();
    let now = Timestamp::now();
    let token = old.issue(&claims(now.as_second())).unwrap();
    both.verify(&token, now).unwrap();
    assert_eq!(both.jwks()["keys"].as_array().unwrap().len(), 2);
    assert_eq!(both.jwks()["keys"][0]["x"].as_str().unwrap().len(), 43);
}

#[test]
fn a_kubeconfig_names_every_server_once() {
    let dir = tempfile::tempdir().unwrap();
    let servers = vec![
        ("s1".into(), "https://10.0.0.1:6443".into()),
        ("s2".into(), "https://10.0.0.2:6443".into()),
    ];
    let config = identity(dir.path()).admin_kubeconfig(&servers).unwrap();
    let text = config.render();
    assert!(text.contains("current-context: \"balsa\"\n"), "{text}");
    assert!(
        text.contains("- name: \"balsa-s2\"\n  cluster:\n    server: \"https://10.0.0.2:6443\"\n"),
        "{text}"
    );
    config.write(&dir.path().join("kubeconfig")).unwrap();
}

#[test]
fn node_names_are_checked() {
    for good in ["a", "node-1", "a.b-c.d0"] {
        join::check_node_name(good).unwrap();
    }
    for bad in ["", "A", "-a", "a-", "a..b", "a_b", "system:masters"] {
        join::check_node_name(bad).unwrap_err();
    }
}
