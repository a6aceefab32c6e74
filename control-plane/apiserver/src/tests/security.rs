//! Each identity tries what it must not do, against the real authentication, authorization and admission.

use std::net::Ipv4Addr;

use balsa_identity::jwt::{ISSUER, KubernetesClaims, Reference};
use balsa_identity::{Claims, ServiceAccountKeys};
use jiff::Timestamp;

use super::*;
use crate::admission::{AdmissionConfig, Chain};
use crate::authn::{Authn, IssuerDiscovery, issuer};
use crate::authz::{Authz, bootstrap_objects};
use crate::seam::ObjectReader;

struct Cluster {
    api: ApiServer,
    keys: Arc<ServiceAccountKeys>,
}

/// Path of the collection of a bootstrap object.
fn collection(object: &Value) -> String {
    let plural = format!("{}s", object["kind"].as_str().unwrap().to_lowercase());
    let base = "/apis/rbac.authorization.k8s.io/v1";
    match object["metadata"]["namespace"].as_str() {
        Some(namespace) => format!("{base}/namespaces/{namespace}/{plural}"),
        None => format!("{base}/{plural}"),
    }
}

impl Cluster {
    async fn new() -> Self {
        let kinds = Arc::new(Kinds::new(balsa_api::kinds::builtin()));
        let cache = Cache::new(kinds.all());
        let backend = MemoryBackend::new(Arc::clone(&cache));
        let reader: Arc<dyn ObjectReader> = Arc::clone(&cache) as _;
        let keys = Arc::new(ServiceAccountKeys::generate().unwrap());
        let authz = Arc::new(Authz::new(Arc::clone(&reader)));
        let chain = Chain::new(&reader, &authz, &AdmissionConfig::default());
        let discovery = IssuerDiscovery::new(Arc::clone(&keys));
        let mut builder = ApiServer::builder(Config::default(), kinds, cache, backend)
            .authenticator(Arc::new(Authn::new(Arc::clone(&keys), Arc::clone(&reader))))
            .authorizer(Arc::clone(&authz) as _)
            .admission(Arc::new(chain))
            .extension(issuer::KEYS, false, Arc::new(discovery));
        for served in crate::reviews::all(&authz, &keys, &reader, None) {
            builder = builder.computed(
                served.group,
                served.resource,
                served.subresource,
                served.handler,
            );
        }
        let cluster = Self {
            api: builder.build().unwrap(),
            keys,
        };
        cluster.fill().await;
        cluster
    }

    async fn fill(&self) {
        for namespace in ["kube-system", "a", "b"] {
            let object = json!({"metadata": {"name": namespace}});
            self.admin("/api/v1/namespaces", object).await;
        }
        for object in bootstrap_objects() {
            self.admin(&collection(&object), object).await;
        }
        for namespace in ["a", "b"] {
            let base = format!("/api/v1/namespaces/{namespace}");
            let named = |name: &str| json!({"metadata": {"name": name}});
            self.admin(&format!("{base}/serviceaccounts"), named("default"))
                .await;
            self.admin(&format!("{base}/secrets"), named("s")).await;
        }
        for node in ["n1", "n2"] {
            self.admin("/api/v1/nodes", json!({"metadata": {"name": node}}))
                .await;
        }
    }

    async fn admin(&self, path: &str, body: Value) -> Value {
        ask(&self.api, Method::POST, path)
            .body(body)
            .send()
            .await
            .expect(201)
    }

    async fn uid(&self, path: &str) -> String {
        let object = ask(&self.api, Method::GET, path).send().await.expect(200);
        object["metadata"]["uid"].as_str().unwrap().to_owned()
    }

    /// A token of an account, changed before it is signed.
    async fn token(&self, namespace: &str, change: impl FnOnce(&mut Claims)) -> String {
        let path = format!("/api/v1/namespaces/{namespace}/serviceaccounts/default");
        let now = Timestamp::now().as_second();
        let mut claims = Claims {
            aud: vec![ISSUER.into()],
            exp: now + 600,
            iat: now,
            iss: ISSUER.into(),
            jti: "1".into(),
            nbf: now,
            sub: format!("system:serviceaccount:{namespace}:default"),
            kubernetes: KubernetesClaims {
                namespace: namespace.into(),
                node: None,
                pod: None,
                secret: None,
                serviceaccount: Reference {
                    name: "default".into(),
                    uid: self.uid(&path).await,
                },
                warnafter: None,
            },
        };
        change(&mut claims);
        self.keys.issue(&claims).unwrap()
    }

    /// A request from outside with a bearer token (or none).
    async fn with(&self, token: &str, method: Method, path: &str, body: Value) -> u16 {
        let mut asked = ask(&self.api, method, path);
        if !token.is_empty() {
            asked = asked.header("authorization", &format!("Bearer {token}"));
        }
        if !body.is_null() {
            asked = asked.body(body);
        }
        let peer = Peer {
            address: Some((Ipv4Addr::LOCALHOST, 1).into()),
            ..Peer::default()
        };
        let response = self.api.handle(asked.request, &peer, None).await;
        response.status().as_u16()
    }

    async fn get(&self, token: &str, path: &str) -> u16 {
        self.with(token, Method::GET, path, Value::Null).await
    }

    /// A request of a node's agent.
    async fn node(&self, node: &str, method: Method, path: &str, body: Value) -> u16 {
        let mut asked = ask(&self.api, method, path);
        asked.user = User {
            name: format!("system:node:{node}"),
            groups: vec!["system:nodes".into(), "system:authenticated".into()],
            ..User::default()
        };
        if !body.is_null() {
            asked = asked.body(body);
        }
        asked.send().await.code
    }
}

const SECRET: &str = "/api/v1/namespaces/a/secrets/s";

#[tokio::test]
async fn only_a_whole_valid_token_of_an_account_that_exists_lets_in() {
    let cluster = Cluster::new().await;
    // Who is let in but may not do this hears 403, who is not let in 401.
    let good = cluster.token("a", |_| {}).await;
    assert_eq!(cluster.get(&good, SECRET).await, 403);
    let expired = cluster
        .token("a", |c| (c.exp, c.nbf, c.iat) = (1000, 0, 0))
        .await;
    let early = cluster.token("a", |c| c.nbf += 7200).await;
    let other = cluster.token("a", |c| c.aud = vec!["vault".into()]).await;
    let foreign = cluster
        .token("a", |c| c.iss = "https://elsewhere".into())
        .await;
    let reborn = cluster
        .token("a", |c| {
            c.kubernetes.serviceaccount.uid = "another".into();
        })
        .await;
    let gone_pod = cluster
        .token("a", |c| {
            c.kubernetes.pod = Some(Reference {
                name: "p".into(),
                uid: "1".into(),
            });
        })
        .await;
    let (signed, _) = good.rsplit_once('.').unwrap();
    let unsigned = format!("{signed}.");
    let (_, signature) = expired.rsplit_once('.').unwrap();
    let swapped = format!("{signed}.{signature}");
    for token in [
        &expired,
        &early,
        &other,
        &foreign,
        &reborn,
        &gone_pod,
        &unsigned,
        &swapped,
        "nonsense",
        "abcdef.0123456789abcdef",
    ] {
        assert_eq!(cluster.get(token, SECRET).await, 401, "{token}");
    }
    let path = "/api/v1/namespaces/a/serviceaccounts/default";
    ask(&cluster.api, Method::DELETE, path)
        .send()
        .await
        .expect(200);
    assert_eq!(cluster.get(&good, SECRET).await, 401);
}

#[tokio::test]
async fn an_editor_stays_in_his_namespace_and_does_not_rise() {
    let cluster = Cluster::new().await;
    let roles = "/apis/rbac.authorization.k8s.io/v1";
    let binding = json!({"metadata": {"name": "e"},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "admin"},
        "subjects": [{"kind": "ServiceAccount", "name": "default", "namespace": "a"}]});
    cluster
        .admin(&format!("{roles}/namespaces/a/rolebindings"), binding)
        .await;
    let token = cluster.token("a", |_| {}).await;
    let get = |path| cluster.get(&token, path);
    assert_eq!(get(SECRET).await, 200);
    assert_eq!(get("/api/v1/namespaces/b/secrets/s").await, 403);
    assert_eq!(get("/api/v1/secrets").await, 403);
    assert_eq!(get("/api/v1/nodes").await, 403);
    let bind = |role: &str| {
        json!({"metadata": {"name": "x"},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": role},
        "subjects": [{"kind": "ServiceAccount", "name": "default", "namespace": "a"}]})
    };
    let post =
        |path: String, body| cluster.with(&token, Method::POST, Box::leak(path.into()), body);
    let here = format!("{roles}/namespaces/a/rolebindings");
    assert_eq!(post(here.clone(), bind("cluster-admin")).await, 403);
    assert_eq!(
        post(format!("{roles}/clusterrolebindings"), bind("view")).await,
        403
    );
    let role = json!({"metadata": {"name": "x"}, "rules": [{"apiGroups": ["*"], "resources": ["*"], "verbs": ["*"]}]});
    assert_eq!(post(format!("{roles}/namespaces/a/roles"), role).await, 403);
    assert_eq!(post(here, bind("view")).await, 201);
    // An account of another namespace is not his to be.
    let request = json!({"spec": {}});
    let path = "/api/v1/namespaces/b/serviceaccounts/default/token".to_owned();
    assert_eq!(post(path, request).await, 403);
    let asked = ask(&cluster.api, Method::GET, SECRET)
        .header("authorization", &format!("Bearer {token}"))
        .header("impersonate-user", "system:admin")
        .header("impersonate-group", "system:masters");
    let response = cluster
        .api
        .handle(asked.request, &Peer::default(), None)
        .await;
    assert_eq!(response.status(), 403);
}

#[tokio::test]
async fn a_node_reads_and_writes_only_what_is_its_own() {
    let cluster = Cluster::new().await;
    let mut own = pod("p1");
    own["spec"]["nodeName"] = "n1".into();
    own["spec"]["volumes"] = json!([{"name": "v", "secret": {"secretName": "s"}}]);
    cluster.admin("/api/v1/namespaces/a/pods", own).await;
    let get = |node, path| cluster.node(node, Method::GET, path, Value::Null);
    assert_eq!(get("n1", SECRET).await, 200);
    assert_eq!(get("n2", SECRET).await, 403);
    assert_eq!(get("n1", "/api/v1/namespaces/b/secrets/s").await, 403);
    assert_eq!(get("n1", "/api/v1/namespaces/a/secrets").await, 403);
    assert_eq!(get("n1", "/api/v1/secrets").await, 403);
    assert_eq!(get("n1", "/api/v1/pods").await, 403);
    assert_eq!(
        get("n1", "/api/v1/pods?fieldSelector=spec.nodeName%3Dn1").await,
        200
    );
    assert_eq!(get("n2", "/api/v1/namespaces/a/pods/p1").await, 403);
    let delete = |node, path| cluster.node(node, Method::DELETE, path, Value::Null);
    assert_eq!(delete("n2", "/api/v1/namespaces/a/pods/p1").await, 403);
    assert_eq!(delete("n1", "/api/v1/nodes/n2").await, 403);
    let node = json!({"metadata": {"name": "n2"}, "spec": {"unschedulable": true}});
    let path = "/api/v1/nodes/n2";
    assert_eq!(cluster.node("n1", Method::PUT, path, node).await, 403);
    let path = "/api/v1/namespaces/a/pods";
    assert_eq!(
        cluster.node("n1", Method::POST, path, pod("mine")).await,
        403
    );
    let token = "/api/v1/namespaces/a/serviceaccounts/default/token";
    let request = |pod: &str| json!({"spec": {"boundObjectRef": {"kind": "Pod", "apiVersion": "v1", "name": pod, "uid": "1"}}});
    assert_eq!(
        cluster.node("n2", Method::POST, token, request("p1")).await,
        403
    );
    assert_eq!(
        cluster
            .node("n1", Method::POST, token, json!({"spec": {}}))
            .await,
        403
    );
}

#[tokio::test]
async fn strangers_see_health_and_version_and_no_path_leads_around_a_rule() {
    let cluster = Cluster::new().await;
    for path in ["/healthz", "/livez", "/readyz", "/version"] {
        assert_eq!(cluster.get("", path).await, 200, "{path}");
    }
    assert_eq!(cluster.get("", issuer::KEYS).await, 403);
    let token = cluster.token("a", |_| {}).await;
    assert_eq!(cluster.get(&token, issuer::KEYS).await, 200);
    for path in [
        SECRET,
        "/api/v1/secrets",
        "/api/v1/pods",
        "/metrics",
        "/apis/rbac.authorization.k8s.io/v1/clusterroles",
        "//api/v1/namespaces/a/secrets/s",
        "/api//v1/namespaces/a/secrets/s",
        "/healthz/../api/v1/namespaces/a/secrets/s",
        "/api/v1/namespaces/b/../a/secrets/s",
        "/api/v1/namespaces/a%2fsecrets/s",
        "/api/v1/namespaces/a/secrets/%2e%2e/secrets/s",
        "/api/v1/watch/namespaces/a/secrets",
        "/openid/v1/jwks/../../../api/v1/secrets",
        "/API/v1/namespaces/a/secrets/s",
    ] {
        for token in ["", &token] {
            let code = cluster.get(token, path).await;
            assert!(matches!(code, 400..=404), "{path}: {code}");
        }
    }
}
