#![allow(clippy::unwrap_used)]

use std::sync::Arc;

use balsa_identity::ca::{CertificateAuthority, Profile};
use balsa_identity::jwt::{Claims, ISSUER, KubernetesClaims, Reference};
use serde_json::json;

use super::*;
use crate::authz::fake::Objects;
use crate::seam::{Attributes, Authorizer, Decision};

fn objects() -> Objects {
    Objects::new()
        .with(
            "",
            "serviceaccounts",
            json!({"metadata": {"namespace": "default", "name": "robot", "uid": "u1"}}),
        )
        .with(
            "",
            "pods",
            json!({"metadata": {"namespace": "default", "name": "p", "uid": "u2"}}),
        )
}

fn token(keys: &ServiceAccountKeys, account_uid: &str, pod_uid: &str, audience: &str) -> String {
    let now = Timestamp::now().as_second();
    keys.issue(&Claims {
        aud: vec![audience.into()],
        exp: now + 600,
        iat: now,
        iss: ISSUER.into(),
        jti: "id-1".into(),
        kubernetes: KubernetesClaims {
            namespace: "default".into(),
            node: Some(Reference {
                name: "n".into(),
                uid: String::new(),
            }),
            pod: Some(Reference {
                name: "p".into(),
                uid: pod_uid.into(),
            }),
            secret: None,
            serviceaccount: Reference {
                name: "robot".into(),
                uid: account_uid.into(),
            },
            warnafter: None,
        },
        nbf: now,
        sub: "system:serviceaccount:default:robot".into(),
    })
    .unwrap()
}

fn parts(authorization: Option<&str>) -> http::request::Parts {
    let mut request = http::Request::builder().uri("/");
    if let Some(value) = authorization {
        request = request.header("authorization", value);
    }
    request.body(()).unwrap().into_parts().0
}

fn authn() -> (Authn, Arc<ServiceAccountKeys>) {
    let keys = Arc::new(ServiceAccountKeys::generate().unwrap());
    (Authn::new(Arc::clone(&keys), Arc::new(objects())), keys)
}

#[tokio::test]
async fn a_request_without_credentials_is_anonymous() {
    let (authn, _) = authn();
    for scheme in [None, Some("Basic YTpi"), Some("Bearer ")] {
        let user = authn
            .authenticate(&parts(scheme), &Peer::default())
            .await
            .unwrap();
        assert_eq!(
            (user.name.as_str(), user.groups.as_slice()),
            (ANONYMOUS, &[UNAUTHENTICATED.to_owned()][..])
        );
    }
}

#[tokio::test]
async fn a_client_certificate_names_user_and_group() {
    let (authn, _) = authn();
    let ca = CertificateAuthority::generate(Timestamp::now()).unwrap();
    let profile = Profile {
        common_name: "jane".into(),
        organization: Some("dev".into()),
        client: true,
        ..Profile::default()
    };
    let chain = ca.issue(&profile, Timestamp::now()).unwrap().chain_pem;
    use rustls::pki_types::pem::PemObject as _;
    let der = rustls::pki_types::CertificateDer::from_pem_slice(chain.as_bytes())
        .unwrap()
        .to_vec();
    let peer = Peer {
        address: None,
        certificates: vec![der],
    };
    let user = authn.authenticate(&parts(None), &peer).await.unwrap();
    assert_eq!(user.name, "jane");
    assert_eq!(user.groups, ["dev", AUTHENTICATED]);
    let garbage = Peer {
        address: None,
        certificates: vec![vec![1, 2, 3]],
    };
    assert_eq!(
        authn
            .authenticate(&parts(None), &garbage)
            .await
            .unwrap_err()
            .code,
        401
    );
}

#[tokio::test]
async fn a_service_account_token_gives_its_user_while_account_and_pod_are_the_same() {
    let (authn, keys) = authn();
    let bearer = format!("Bearer {}", token(&keys, "u1", "u2", ISSUER));
    let user = authn
        .authenticate(&parts(Some(&bearer)), &Peer::default())
        .await
        .unwrap();
    assert_eq!(user.name, "system:serviceaccount:default:robot");
    assert_eq!(
        user.groups,
        [
            "system:serviceaccounts",
            "system:serviceaccounts:default",
            AUTHENTICATED
        ]
    );
    assert_eq!(user.extra["authentication.kubernetes.io/pod-uid"], ["u2"]);
    assert_eq!(user.extra[CREDENTIAL_ID], ["JTI=id-1"]);

    for bad in [
        token(&keys, "other", "u2", ISSUER),
        token(&keys, "u1", "other", ISSUER),
        token(&keys, "u1", "u2", "vault"),
        "x.y.z".into(),
    ] {
        let status = authn
            .authenticate(&parts(Some(&format!("Bearer {bad}"))), &Peer::default())
            .await
            .unwrap_err();
        assert_eq!(
            (status.code, status.message.as_str()),
            (401, "Unauthorized")
        );
    }
}

/// Allows what is listed as `verb resource/subresource name`.
struct Only(Vec<&'static str>);

#[async_trait]
impl Authorizer for Only {
    async fn authorize(&self, a: &Attributes) -> Decision {
        let asked = format!("{} {} {}", a.resource, a.subresource, a.name);
        if self.0.contains(&asked.as_str()) {
            Decision::Allow(String::new())
        } else {
            Decision::NoOpinion(String::new())
        }
    }
}

fn headers(list: &[(&'static str, &str)]) -> http::HeaderMap {
    list.iter()
        .map(|(k, v)| (http::HeaderName::from_static(k), v.parse().unwrap()))
        .collect()
}

#[tokio::test]
async fn impersonation_asks_for_every_attribute() {
    let admin = Arc::new(User {
        name: "admin".into(),
        ..User::default()
    });
    let wanted = headers(&[
        ("impersonate-user", "jane"),
        ("impersonate-group", "dev"),
        ("impersonate-extra-a%2fb", "c"),
    ]);
    let allowed = Only(vec!["users  jane", "groups  dev", "userextras a/b c"]);
    let user = impersonate(&wanted, admin.clone(), &allowed).await.unwrap();
    assert_eq!(
        (user.name.as_str(), user.groups.clone()),
        ("jane", vec!["dev".to_owned(), AUTHENTICATED.to_owned()])
    );
    assert_eq!(user.extra["a/b"], ["c"]);

    let refused = impersonate(&wanted, admin.clone(), &Only(vec!["users  jane"]))
        .await
        .unwrap_err();
    assert_eq!(
        refused.message,
        "groups \"dev\" is forbidden: User \"admin\" cannot impersonate resource \"groups\" in API group \"\" at the cluster scope"
    );
    assert_eq!(
        impersonate(&headers(&[]), admin.clone(), &Only(vec![]))
            .await
            .unwrap(),
        admin
    );
    assert_eq!(
        impersonate(
            &headers(&[("impersonate-group", "g")]),
            admin,
            &Only(vec![])
        )
        .await
        .unwrap_err()
        .code,
        400
    );
}

#[tokio::test]
async fn an_impersonated_service_account_is_in_its_groups() {
    let wanted = headers(&[("impersonate-user", "system:serviceaccount:ns:sa")]);
    let user = impersonate(&wanted, Arc::default(), &Only(vec!["serviceaccounts  sa"]))
        .await
        .unwrap();
    assert_eq!(
        user.groups,
        [
            "system:serviceaccounts",
            "system:serviceaccounts:ns",
            AUTHENTICATED
        ]
    );
}
