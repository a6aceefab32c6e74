//! Admission webhooks and policies, with webhooks that are servers on the loopback.

use std::sync::Arc;

use base64::Engine as _;
use http::Method;
use parking_lot::Mutex;
use serde_json::{Value, json};

use super::{Answer, Ask, Door, Gatekeeper, admin, ask, config_map};
use crate::admission::webhook::configured;
use crate::backend::Backend;
use crate::seam::{Admission, Authorizer, ObjectReader};
use crate::testing::MemoryBackend;
use crate::webhook_client::WebhookClient;
use crate::webhook_client::tests::{Answers, Loopback, Server};
use crate::{ApiServer, Cache, Config, Kinds};

const CONFIG_MAPS: &str = "/api/v1/namespaces/default/configmaps";
const REGISTRATION: &str = "/apis/admissionregistration.k8s.io/v1";

/// An API server with admission that is configured by objects, and a webhook server.
struct World {
    api: ApiServer,
    hooks: Server,
    /// Questions that were asked, by path.
    asked: Arc<Mutex<Vec<(String, Value)>>>,
}

impl World {
    /// `answer` makes the response to a request that came to a path.
    async fn new(answer: fn(&str, &Value) -> Option<Value>) -> Self {
        let asked: Arc<Mutex<Vec<(String, Value)>>> = Arc::default();
        let log = Arc::clone(&asked);
        let answers: Answers = Arc::new(move |path, review| {
            let request = &review["request"];
            log.lock().push((path.to_owned(), request.clone()));
            let mut response = answer(path, request)?;
            response["uid"] = request["uid"].clone();
            Some((
                200,
                json!({"kind": "AdmissionReview", "apiVersion": "admission.k8s.io/v1",
                        "response": response}),
            ))
        });
        let hooks = Server::start(&["localhost"], true, answers).await;
        let kinds = Arc::new(Kinds::new(balsa_api::kinds::builtin()));
        let cache = Cache::new(kinds.all());
        let backend = MemoryBackend::new(Arc::clone(&cache));
        let reader: Arc<dyn ObjectReader> = Arc::clone(&cache) as _;
        let client = Arc::new(WebhookClient::over(Arc::new(Loopback(hooks.address))));
        let chain: Arc<dyn Admission> = Arc::new(crate::admission::Chain::of(Vec::new()));
        let authz: Arc<dyn Authorizer> = Arc::new(Gatekeeper);
        let mut builder = ApiServer::builder(
            Config::default(),
            Arc::clone(&kinds),
            cache,
            backend as Arc<dyn Backend>,
        )
        .authenticator(Arc::new(Door))
        .authorizer(Arc::clone(&authz))
        .admission(Arc::clone(&chain));
        for plugin in configured(&chain, &client, &kinds, &reader, &authz) {
            builder = builder.admission(plugin);
        }
        let world = Self {
            api: builder.build().unwrap(),
            hooks,
            asked,
        };
        let namespace = json!({"apiVersion": "v1", "kind": "Namespace",
            "metadata": {"name": "default", "labels": {"env": "test"}}});
        world
            .post("/api/v1/namespaces", namespace)
            .await
            .expect(201);
        world
    }

    fn ask(&self, method: Method, path: &str) -> Ask<'_> {
        ask(&self.api, method, path)
    }

    async fn post(&self, path: &str, body: Value) -> Answer {
        self.ask(Method::POST, path).body(body).send().await
    }

    /// A webhook at a path; `more` replaces fields.
    fn hook(&self, path: &str, more: Value) -> Value {
        let mut hook = json!({
            "name": format!("{}.example.com", path.trim_start_matches('/')),
            "clientConfig": self.hooks.config(path),
            "rules": [{"operations": ["*"], "apiGroups": [""], "apiVersions": ["v1"], "resources": ["configmaps"]}],
            "sideEffects": "None", "admissionReviewVersions": ["v1"], "timeoutSeconds": 5,
        });
        for (key, value) in more.as_object().unwrap() {
            hook[key] = value.clone();
        }
        hook
    }

    async fn register(&self, kind: &str, name: &str, hooks: Value) {
        let plural = format!("{}s", kind.to_lowercase());
        let body = json!({"apiVersion": "admissionregistration.k8s.io/v1", "kind": kind,
                          "metadata": {"name": name}, "webhooks": hooks});
        self.post(&format!("{REGISTRATION}/{plural}"), body)
            .await
            .expect(201);
    }

    async fn policy(&self, spec: Value, binding: Value) {
        let mut whole = json!({"matchConstraints": {"resourceRules": [
            {"operations": ["*"], "apiGroups": [""], "apiVersions": ["v1"], "resources": ["configmaps"]}]}});
        for (key, value) in spec.as_object().unwrap() {
            whole[key] = value.clone();
        }
        let body = json!({"apiVersion": "admissionregistration.k8s.io/v1",
            "kind": "ValidatingAdmissionPolicy", "metadata": {"name": "p"}, "spec": whole});
        self.post(&format!("{REGISTRATION}/validatingadmissionpolicies"), body)
            .await
            .expect(201);
        let mut spec = json!({"policyName": "p", "validationActions": ["Deny"]});
        for (key, value) in binding.as_object().unwrap() {
            spec[key] = value.clone();
        }
        let body = json!({"apiVersion": "admissionregistration.k8s.io/v1",
            "kind": "ValidatingAdmissionPolicyBinding", "metadata": {"name": "b"}, "spec": spec});
        self.post(
            &format!("{REGISTRATION}/validatingadmissionpolicybindings"),
            body,
        )
        .await
        .expect(201);
    }

    fn paths(&self) -> Vec<String> {
        self.asked.lock().iter().map(|(p, _)| p.clone()).collect()
    }
}

fn patch(operations: Value) -> Value {
    let patch = base64::engine::general_purpose::STANDARD.encode(operations.to_string());
    json!({"allowed": true, "patch": patch, "patchType": "JSONPatch"})
}

const MUTATING: &str = "MutatingWebhookConfiguration";
const VALIDATING: &str = "ValidatingWebhookConfiguration";

#[tokio::test]
async fn mutating_webhooks_run_in_order_and_are_asked_again_when_they_want_to() {
    let world = World::new(|path, request| {
        let data = &request["object"]["data"];
        Some(match path {
            "/first" if data["start"] == "yes" && data["one"].is_null() => {
                patch(json!([{"op": "add", "path": "/data/one", "value": "1"}]))
            }
            "/second" if data["one"] == "1" && data["two"].is_null() => {
                patch(json!([{"op": "add", "path": "/data/two", "value": "2"},
                             {"op": "add", "path": "/unknown", "value": "gone"}]))
            }
            _ => json!({"allowed": true, "warnings": ["seen"]}),
        })
    })
    .await;
    let again = json!({"reinvocationPolicy": "IfNeeded"});
    let hooks = json!([
        world.hook("/first", again),
        world.hook("/second", json!({}))
    ]);
    world.register(MUTATING, "m", hooks).await;
    let answer = world
        .post(CONFIG_MAPS, config_map("a", json!({"start": "yes"})))
        .await;
    assert!(answer.headers["warning"].to_str().unwrap().contains("seen"));
    let made = answer.expect(201);
    assert_eq!(
        made["data"],
        json!({"start": "yes", "one": "1", "two": "2"})
    );
    assert!(made["unknown"].is_null());
    assert_eq!(world.paths(), ["/first", "/second", "/first"]);
    let (_, question) = world.asked.lock()[0].clone();
    assert_eq!(
        question["kind"],
        json!({"group": "", "version": "v1", "kind": "ConfigMap"})
    );
    assert_eq!(question["resource"]["resource"], "configmaps");
    assert_eq!(question["userInfo"]["username"], "admin");
    assert_eq!(
        (
            &question["operation"],
            &question["name"],
            &question["namespace"]
        ),
        (&json!("CREATE"), &json!("a"), &json!("default"))
    );
    assert_eq!(question["options"]["kind"], "CreateOptions");
    assert!(question["oldObject"].is_null());
}

#[tokio::test]
async fn validating_webhooks_refuse_in_upstreams_words() {
    let world = World::new(|path, request| {
        Some(match path {
            "/deny" if request["operation"] == "DELETE" && request["oldObject"]["data"]["keep"] == "yes" => {
                json!({"allowed": false, "status": {"message": "it is kept", "code": 403, "reason": "Forbidden"}})
            }
            "/deny" if request["object"]["data"]["bad"] == "yes" => {
                json!({"allowed": false, "status": {"reason": "the configmap contains unwanted key and value"}})
            }
            _ => json!({"allowed": true}),
        })
    })
    .await;
    let hooks = json!([world.hook("/deny", json!({}))]);
    world.register(VALIDATING, "v", hooks).await;
    let refused = world
        .post(CONFIG_MAPS, config_map("a", json!({"bad": "yes"})))
        .await;
    assert_eq!(
        refused.message(400),
        "admission webhook \"deny.example.com\" denied the request: the configmap contains unwanted key and value"
    );
    world
        .post(CONFIG_MAPS, config_map("a", json!({"keep": "yes"})))
        .await
        .expect(201);
    let path = format!("{CONFIG_MAPS}/a");
    let change = json!({"data": {"bad": "yes"}});
    let patched = world
        .ask(Method::PATCH, &path)
        .body(change)
        .header("content-type", "application/merge-patch+json")
        .send()
        .await;
    patched.expect(400);
    let kept = world.ask(Method::DELETE, &path).send().await;
    assert_eq!(
        kept.message(403),
        "admission webhook \"deny.example.com\" denied the request: it is kept"
    );
}

#[tokio::test]
async fn selectors_conditions_and_failure_policies_decide_who_is_asked() {
    let world = World::new(|path, _| match path {
        "/hangs" => None,
        _ => Some(json!({"allowed": false})),
    })
    .await;
    let create = async |name: &str| world.post(CONFIG_MAPS, config_map(name, json!({}))).await;
    let remove = async || {
        let all = format!("{REGISTRATION}/validatingwebhookconfigurations");
        world.ask(Method::DELETE, &all).send().await.expect(200);
        world.asked.lock().clear();
    };
    for (i, more) in [
        json!({"namespaceSelector": {"matchLabels": {"env": "other"}}}),
        json!({"objectSelector": {"matchLabels": {"app": "x"}}}),
        json!({"matchConditions": [{"name": "c", "expression": "object.metadata.name == 'other'"}]}),
        json!({"matchConditions": [{"name": "c", "expression": "object.nothing == 1"}], "failurePolicy": "Ignore"}),
        json!({"rules": [{"operations": ["UPDATE"], "apiGroups": ["*"], "apiVersions": ["*"], "resources": ["*/*"]}]}),
    ]
    .into_iter()
    .enumerate()
    {
        let hooks = json!([world.hook("/deny", more)]);
        world.register(VALIDATING, "v", hooks).await;
        create(&format!("free-{i}")).await.expect(201);
        assert!(world.paths().is_empty());
        remove().await;
    }
    for (more, code, text) in [
        (json!({}), 400, "denied the request without explanation"),
        (
            json!({"matchConditions": [{"name": "c", "expression": "object.nothing == 1"}]}),
            403,
            "match condition \"c\" failed: no such key: nothing",
        ),
    ] {
        let hooks = json!([world.hook("/deny", more)]);
        world.register(VALIDATING, "v", hooks).await;
        let message = create("refused").await.message(code);
        assert!(message.contains(text), "{message}");
        remove().await;
    }
    let slow = |policy: &str| json!({"timeoutSeconds": 1, "failurePolicy": policy});
    let hooks = json!([world.hook("/hangs", slow("Fail"))]);
    world.register(VALIDATING, "v", hooks).await;
    let message = create("late").await.message(500);
    assert!(
        message
            .starts_with("Internal error occurred: failed calling webhook \"hangs.example.com\"")
    );
    assert!(
        message.ends_with("/hangs?timeout=1s\": context deadline exceeded"),
        "{message}"
    );
    remove().await;
    let hooks = json!([world.hook("/hangs", slow("Ignore"))]);
    world.register(VALIDATING, "v", hooks).await;
    create("late").await.expect(201);
}

#[tokio::test]
async fn webhooks_are_never_asked_about_webhooks() {
    let world = World::new(|_, _| Some(json!({"allowed": false}))).await;
    let rules = json!({"rules": [{"operations": ["*"], "apiGroups": ["*"], "apiVersions": ["*"], "resources": ["*/*"]}]});
    let hooks = json!([world.hook("/deny", rules)]);
    world.register(VALIDATING, "all", hooks).await;
    world.register(MUTATING, "other", json!([])).await;
    let path = format!("{REGISTRATION}/validatingwebhookconfigurations/all");
    world.ask(Method::DELETE, &path).send().await.expect(200);
    assert!(world.paths().is_empty());
}

#[tokio::test]
async fn a_webhook_for_another_version_sees_that_version() {
    let world = World::new(|_, request| {
        let version = request["object"]["apiVersion"].clone();
        assert_eq!(request["requestKind"]["version"], "v2");
        Some(patch(
            json!([{"op": "add", "path": "/metadata/labels", "value": {"seen": version}}]),
        ))
    })
    .await;
    let rules = json!({"rules": [{"operations": ["*"], "apiGroups": ["autoscaling"], "apiVersions": ["v1"],
                                  "resources": ["horizontalpodautoscalers"]}]});
    let hooks = json!([world.hook("/old", rules)]);
    world.register(MUTATING, "m", hooks).await;
    let autoscaler = json!({"apiVersion": "autoscaling/v2", "kind": "HorizontalPodAutoscaler",
        "metadata": {"name": "a"},
        "spec": {"maxReplicas": 3, "scaleTargetRef": {"kind": "Deployment", "name": "d", "apiVersion": "apps/v1"}}});
    let path = "/apis/autoscaling/v2/namespaces/default/horizontalpodautoscalers";
    let made = world.post(path, autoscaler).await;
    // `/` cannot be in a label's value, and that is what says what the webhook saw.
    assert!(made.message(422).contains("autoscaling/v1"));
}

#[tokio::test]
async fn expressions_that_do_not_compile_are_refused() {
    let world = World::new(|_, _| None).await;
    let hook = world.hook(
        "/x",
        json!({"matchConditions": [{"name": "c", "expression": "objct.a == "}]}),
    );
    let body = json!({"apiVersion": "admissionregistration.k8s.io/v1", "kind": VALIDATING,
                      "metadata": {"name": "v"}, "webhooks": [hook]});
    let path = format!("{REGISTRATION}/validatingwebhookconfigurations");
    let message = world.post(&path, body).await.message(422);
    assert!(
        message.contains("webhooks[0].matchConditions[0].expression"),
        "{message}"
    );
    assert!(
        message.contains("compilation failed: ERROR: <input>:1:12: Syntax error"),
        "{message}"
    );
}

#[tokio::test]
async fn policies_refuse_with_variables_parameters_and_messages() {
    let world = World::new(|_, _| None).await;
    world
        .post(CONFIG_MAPS, config_map("limits", json!({"max": "2"})))
        .await
        .expect(201);
    let spec = json!({
        "paramKind": {"apiVersion": "v1", "kind": "ConfigMap"},
        "matchConditions": [{"name": "not-limits", "expression": "object.metadata.name != 'limits'"}],
        "variables": [{"name": "count", "expression": "size(object.?data.orValue({}))"}],
        "validations": [{
            "expression": "variables.count <= int(params.data.max)",
            "messageExpression": "'%d keys in %s, at most %s'.format([dyn(variables.count), namespaceObject.metadata.name, params.data.max])",
        }],
    });
    let binding = json!({"paramRef": {"name": "limits", "parameterNotFoundAction": "Deny"}});
    world.policy(spec, binding).await;
    let few = config_map("few", json!({"a": "1"}));
    world.post(CONFIG_MAPS, few).await.expect(201);
    let many = config_map("many", json!({"a": "1", "b": "2", "c": "3"}));
    assert_eq!(
        world.post(CONFIG_MAPS, many).await.message(422),
        "configmaps \"many\" is forbidden: ValidatingAdmissionPolicy 'p' with binding 'b' denied request: 3 keys in default, at most 2"
    );
}

#[tokio::test]
async fn policies_can_warn_and_ask_what_the_user_may() {
    let world = World::new(|_, _| None).await;
    let spec = json!({"validations": [
        {"expression": "authorizer.requestResource.check('approve').allowed()", "message": "not allowed"},
        {"expression": "object.data.missing == 'x'"},
    ]});
    let binding = json!({"validationActions": ["Warn"]});
    world.policy(spec, binding).await;
    let answer = world
        .post(CONFIG_MAPS, config_map("a", json!({"k": "v"})))
        .await;
    let warning = answer.headers["warning"].to_str().unwrap().to_owned();
    answer.expect(201);
    assert_eq!(
        warning,
        "299 - \"Validation failed for ValidatingAdmissionPolicy 'p' with binding 'b': expression 'object.data.missing == 'x'' resulted in error: no such key: missing\""
    );
    // Who may do nothing does not even get here; the admin may approve.
    assert_eq!(admin().name, "admin");
}

#[tokio::test]
async fn mutating_policies_merge_and_patch() {
    let world = World::new(|_, _| None).await;
    let path = "/apis/admissionregistration.k8s.io/v1beta1";
    let policy = json!({"apiVersion": "admissionregistration.k8s.io/v1beta1", "kind": "MutatingAdmissionPolicy",
    "metadata": {"name": "p"}, "spec": {
        "matchConstraints": {"resourceRules": [{"operations": ["CREATE"], "apiGroups": [""],
            "apiVersions": ["v1"], "resources": ["configmaps"]}]},
        "reinvocationPolicy": "Never",
        "mutations": [
            {"patchType": "ApplyConfiguration", "applyConfiguration": {"expression":
                "Object{metadata: Object.metadata{labels: Object.metadata.labels{by: 'policy'}}}"}},
            {"patchType": "JSONPatch", "jsonPatch": {"expression":
                "[JSONPatch{op: 'add', path: '/data/made', value: object.metadata.labels.by}]"}},
        ]}});
    world
        .post(&format!("{path}/mutatingadmissionpolicies"), policy)
        .await
        .expect(201);
    let binding = json!({"apiVersion": "admissionregistration.k8s.io/v1beta1", "kind": "MutatingAdmissionPolicyBinding",
        "metadata": {"name": "b"}, "spec": {"policyName": "p"}});
    world
        .post(&format!("{path}/mutatingadmissionpolicybindings"), binding)
        .await
        .expect(201);
    let made = world
        .post(CONFIG_MAPS, config_map("a", json!({"k": "v"})))
        .await
        .expect(201);
    assert_eq!(made["metadata"]["labels"]["by"], "policy");
    assert_eq!(made["data"], json!({"k": "v", "made": "policy"}));
    let managers = made["metadata"]["managedFields"].as_array().unwrap();
    assert!(
        managers
            .iter()
            .all(|m| m["manager"] != "mutating-admission-policy")
    );
}
