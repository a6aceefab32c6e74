//! An issuer of our own, whose keys change.

#![allow(clippy::unwrap_used)]

use std::sync::atomic::{AtomicUsize, Ordering};

use serde_json::json;

use super::jwt::tests::Signer;
use super::*;

const URL: &str = "https://issuer.example";
const CONFIG: &str = "apiVersion: apiserver.config.k8s.io/v1\nkind: AuthenticationConfiguration\n\
    jwt:\n- issuer: {url: 'https://issuer.example', audiences: [me]}\n  claimMappings: {username: {claim: sub, prefix: 'x:'}}\n";

/// Serves an issuer's documents.
struct Issuing {
    jwks: Mutex<Value>,
    fetched: AtomicUsize,
    named: &'static str,
}

#[async_trait]
impl Fetch for Issuing {
    async fn fetch(&self, url: &str, _ca: &[u8]) -> Result<Value, String> {
        self.fetched.fetch_add(1, Ordering::Relaxed);
        match url {
            "https://issuer.example/.well-known/openid-configuration" => {
                Ok(json!({"issuer": self.named, "jwks_uri": "https://issuer.example/keys"}))
            }
            "https://issuer.example/keys" => Ok(json!({"keys": *self.jwks.lock()})),
            _ => Err("404".to_owned()),
        }
    }
}

fn issuing(signer: &Signer, named: &'static str) -> (Oidc, Arc<Issuing>) {
    let issuing = Arc::new(Issuing {
        jwks: Mutex::new(json!([signer.jwk()])),
        fetched: AtomicUsize::new(0),
        named,
    });
    let oidc = Oidc::of(config::parse(CONFIG).unwrap(), issuing.clone());
    (oidc, issuing)
}

fn claims(change: Value) -> Value {
    let mut claims = json!({"iss": URL, "aud": "me", "exp": 2_000_000_000, "sub": "ann"});
    for (key, value) in change.as_object().unwrap() {
        claims[key] = value.clone();
    }
    claims
}

async fn ask(oidc: &Oidc, token: &str) -> Option<Result<String, String>> {
    let now = Timestamp::from_second(1_900_000_000).unwrap();
    let user = oidc.authenticate(token, now).await?;
    Some(user.map(|user| user.name))
}

#[tokio::test(start_paused = true)]
async fn tokens_of_the_issuer_make_users_and_all_others_do_not() {
    let signer = Signer::new("k");
    let (oidc, issuing) = issuing(&signer, URL);
    let good = ask(&oidc, &signer.sign(&claims(json!({})))).await;
    assert_eq!(good.unwrap().unwrap(), "x:ann");
    let refused = async |change: Value| {
        let token = signer.sign(&claims(change));
        ask(&oidc, &token).await.unwrap().unwrap_err()
    };
    assert!(refused(json!({"aud": "you"})).await.contains("audience"));
    assert!(refused(json!({"exp": 1})).await.contains("expired"));
    assert!(refused(json!({"nbf": 1_999_999_999})).await.contains("nbf"));
    // Not of this issuer: somebody else may know it.
    let other = signer.sign(&claims(json!({"iss": "https://other"})));
    assert!(ask(&oidc, &other).await.is_none());
    assert!(ask(&oidc, "abc").await.is_none());
    let forged = Signer::new("k").sign(&claims(json!({})));
    assert!(ask(&oidc, &forged).await.unwrap().is_err());
    // Two documents at first; the forged one cannot make us ask again so soon.
    assert_eq!(issuing.fetched.load(Ordering::Relaxed), 2);
}

#[tokio::test(start_paused = true)]
async fn new_keys_are_fetched_when_a_token_names_one() {
    let (old, new) = (Signer::new("old"), Signer::new("new"));
    let (oidc, issuing) = issuing(&old, URL);
    assert!(
        ask(&oidc, &old.sign(&claims(json!({}))))
            .await
            .unwrap()
            .is_ok()
    );
    *issuing.jwks.lock() = json!([new.jwk()]);
    tokio::time::advance(Duration::from_secs(11)).await;
    assert!(
        ask(&oidc, &new.sign(&claims(json!({}))))
            .await
            .unwrap()
            .is_ok()
    );
    assert!(
        ask(&oidc, &old.sign(&claims(json!({}))))
            .await
            .unwrap()
            .is_err()
    );
}

#[tokio::test(start_paused = true)]
async fn a_provider_that_names_another_issuer_is_not_believed() {
    let signer = Signer::new("k");
    let (oidc, _) = issuing(&signer, "https://evil.example");
    assert!(
        ask(&oidc, &signer.sign(&claims(json!({}))))
            .await
            .unwrap()
            .is_err()
    );
}

#[tokio::test]
async fn keys_come_over_https_by_the_issuers_own_ca() {
    use base64::Engine as _;

    use crate::webhook_client::tests::{Loopback, Server};

    let signer = Signer::new("k");
    let jwk = signer.jwk();
    let answers = move |path: &str, _| {
        let base = "https://issuer.example";
        Some(match path {
            "/.well-known/openid-configuration" => (
                200,
                json!({"issuer": base, "jwks_uri": format!("{base}/keys")}),
            ),
            "/keys" => (200, json!({"keys": [jwk]})),
            _ => (404, json!({})),
        })
    };
    for h2 in [false, true] {
        let server = Server::start(&["issuer.example"], h2, Arc::new(answers.clone())).await;
        let client = Arc::new(WebhookClient::over(Arc::new(Loopback(server.address))));
        let ca = base64::engine::general_purpose::STANDARD
            .decode(&server.ca_bundle)
            .unwrap();
        let mut parsed = config::parse(CONFIG).unwrap();
        parsed.issuers[0].ca = ca;
        let oidc = Oidc::of(parsed, client.clone());
        let token = signer.sign(&claims(json!({})));
        assert_eq!(ask(&oidc, &token).await.unwrap().unwrap(), "x:ann");
        // Without its CA the issuer is not believed.
        let oidc = Oidc::of(config::parse(CONFIG).unwrap(), client);
        assert!(ask(&oidc, &token).await.unwrap().is_err());
    }
}
