//! What kubectl's less common commands and other people's tools ask of the API.

use std::io::{Read as _, Write as _};

use anyhow::ensure;
use balsa_e2e::{Local, Namespace, Proxy, eventually};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

/// Ports of the nodes that nothing else in the scenarios has.
const HTTP_PORT: u16 = 18_765;
const UPGRADE_PORT: u16 = 18_766;

/// A server on a node's own address, and one that answers an upgrade and then says what it hears.
fn node_servers(ns: &Namespace, node: &str) -> anyhow::Result<()> {
    let pod = |name: &str, container: &str| {
        format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}}}\nspec: {{nodeName: {node}, hostNetwork: true, \
             terminationGracePeriodSeconds: 0, containers: [{{name: c, imagePullPolicy: IfNotPresent, {container}}}]}}\n"
        )
    };
    let http = format!("image: testserver, args: ['--port', '{HTTP_PORT}']");
    let script = "printf 'HTTP/1.1 101 Switching Protocols\\r\\nConnection: Upgrade\\r\\nUpgrade: echo\\r\\n\\r\\n'; \
                  while read line; do [ ${#line} -gt 1 ] || break; done; exec cat";
    let upgrade = format!(
        "image: busybox, command: [nc, '-ll', '-p', '{UPGRADE_PORT}', '-e', sh, '-c', {}]",
        json!(script)
    );
    ns.kubectl().apply(&pod("http", &http))?;
    ns.kubectl().apply(&pod("upgrade", &upgrade))?;
    ns.kubectl().wait_ready("http", 40)?;
    ns.kubectl().wait_ready("upgrade", 40)
}

#[test]
fn the_nodes_proxy_passes_every_method_and_upgrades() -> anyhow::Result<()> {
    let ns = Namespace::new("nodeproxy")?;
    let node = Local.agents()?.remove(0);
    node_servers(&ns, &node)?;
    let proxy = Proxy::start(ns.kubectl())?;
    let path = |port: u16, tail: &str| format!("/api/v1/nodes/{node}:{port}/proxy{tail}");
    for method in ["GET", "POST", "PUT", "PATCH", "DELETE"] {
        let line = format!("{method} {}", path(HTTP_PORT, "/headers?a=b"));
        let answer = proxy.send(&line, &["X-Mine: yes"], "hello")?;
        ensure!(answer.code == 200, "{method}: {answer:?}");
        let (head, wanted) = (answer.body.to_lowercase(), format!("{method} /headers?a=b"));
        ensure!(
            answer.body.contains(&wanted) && head.contains("x-mine: yes"),
            "{answer:?}"
        );
    }
    let mut stream = proxy.upgrade(&path(UPGRADE_PORT, "/talk"), "echo")?;
    stream.write_all(b"ahoy\n")?;
    let mut echo = [0; 5];
    stream.read_exact(&mut echo)?;
    ensure!(&echo == b"ahoy\n", "{echo:?}");
    // Under the kubelet's own port there is the agent.
    let metrics = proxy.send(&format!("GET /api/v1/nodes/{node}/proxy/metrics"), &[], "")?;
    ensure!(
        metrics.code == 200 && metrics.body.contains("# TYPE"),
        "{metrics:?}"
    );
    Ok(())
}

#[test]
fn a_scale_is_applied_and_keeps_what_others_own() -> anyhow::Result<()> {
    let ns = Namespace::new("scaleapply")?;
    let kubectl = ns.kubectl();
    kubectl.ok(&[
        "create",
        "deployment",
        "web",
        "--image=testserver",
        "--replicas=0",
    ])?;
    let proxy = Proxy::start(kubectl)?;
    let deployment = format!("/apis/apps/v1/namespaces/{}/deployments/web", ns.name());
    let apply = |manager: &str, replicas: u32, force: bool| {
        let body = json!({"apiVersion": "autoscaling/v1", "kind": "Scale", "metadata": {"name": "web"}, "spec": {"replicas": replicas}});
        let line = format!("PATCH {deployment}/scale?fieldManager={manager}&force={force}");
        proxy.send(
            &line,
            &["Content-Type: application/apply-patch+yaml"],
            &body.to_string(),
        )
    };
    // kubectl wrote the field when it made the Deployment.
    let refused = apply("scaler", 1, false)?;
    ensure!(
        refused.code == 409 && refused.body.contains("conflict"),
        "{refused:?}"
    );
    let taken = apply("scaler", 1, true)?;
    ensure!(taken.code == 200, "{taken:?}");
    let scale: Value = serde_json::from_str(&taken.body)?;
    ensure!(
        scale["kind"] == "Scale" && scale["spec"]["replicas"] == 1,
        "{scale}"
    );
    let object = kubectl.json(&["get", "deployment", "web", "--show-managed-fields"])?;
    let owner = object["metadata"]["managedFields"]
        .as_array()
        .into_iter()
        .flatten()
        .find(|m| m["manager"] == "scaler");
    let fields = owner.map(|m| m["fieldsV1"]["f:spec"].clone());
    ensure!(fields == Some(json!({"f:replicas": {}})), "{object}");
    ensure!(object["spec"]["replicas"] == 1, "{object}");
    Ok(())
}

#[test]
fn a_field_that_is_there_twice_is_refused_reported_or_taken() -> anyhow::Result<()> {
    let ns = Namespace::new("twice")?;
    let kubectl = ns.kubectl();
    // kubectl itself keeps the last of two; the bytes have to come as they are.
    let create = |validation: &str| {
        let path = format!(
            "/api/v1/namespaces/{}/configmaps?fieldValidation={validation}",
            ns.name()
        );
        let body = format!(
            "{{\"apiVersion\": \"v1\", \"kind\": \"ConfigMap\", \"metadata\": {{\"name\": \"{}\"}}, \
             \"data\": {{\"k\": \"one\"}}, \"data\": {{\"k\": \"two\"}}, \"dats\": 1}}",
            validation.to_lowercase()
        );
        kubectl.run_with(&["create", "--raw", &path, "-f", "-"], &body)
    };
    let refused = create("Strict")?.failed()?;
    ensure!(
        refused.contains("strict decoding error")
            && refused.contains("duplicate field \"data\"")
            && refused.contains("unknown field \"dats\""),
        "{refused}"
    );
    let warned = create("Warn")?;
    ensure!(
        warned.code == 0 && warned.stderr.contains("Warning: duplicate field \"data\""),
        "{warned:?}"
    );
    let taken = create("Ignore")?;
    ensure!(taken.code == 0 && taken.stderr.is_empty(), "{taken:?}");
    for name in ["warn", "ignore"] {
        ensure!(kubectl.field(&format!("configmap/{name}"), "{.data.k}")? == "two");
    }
    Ok(())
}

#[test]
fn the_controls_state_is_shown_as_before() -> anyhow::Result<()> {
    let kubectl = balsa_e2e::Kubectl::from_env()?;
    let shown = kubectl.run(&["get", "componentstatuses"])?;
    ensure!(
        shown.stderr.contains("ComponentStatus is deprecated"),
        "{shown:?}"
    );
    for line in ["NAME", "scheduler", "controller-manager", "etcd-0"] {
        ensure!(
            shown.stdout.lines().any(|l| l.starts_with(line)),
            "no {line} in {shown:?}"
        );
    }
    ensure!(shown.stdout.matches("Healthy").count() >= 3, "{shown:?}");
    Ok(())
}

#[test]
fn a_certificate_is_requested_approved_and_lets_its_owner_in() -> anyhow::Result<()> {
    let ns = Namespace::new("approve")?;
    let kubectl = ns.kubectl();
    let key = rcgen::KeyPair::generate()?;
    let mut parameters = rcgen::CertificateParams::new(Vec::new())?;
    let name = format!("{}-user", ns.name());
    parameters
        .distinguished_name
        .push(rcgen::DnType::CommonName, &name);
    let request = STANDARD.encode(parameters.serialize_request(&key)?.pem()?);
    let object = json!({"apiVersion": "certificates.k8s.io/v1", "kind": "CertificateSigningRequest", "metadata": {"name": name},
        "spec": {"request": request, "signerName": "kubernetes.io/kube-apiserver-client", "usages": ["client auth"]}});
    kubectl.apply(&object.to_string())?;
    ensure!(kubectl.ok(&["get", "csr", &name])?.contains("Pending"));
    let approved = kubectl.ok(&["certificate", "approve", &name])?;
    ensure!(
        approved.trim() == format!("certificatesigningrequest.certificates.k8s.io/{name} approved"),
        "{approved}"
    );
    eventually("the certificate", 10, || {
        Ok(kubectl
            .ok(&["get", "csr", &name])?
            .contains("Approved,Issued"))
    })?;
    let folder = tempfile::tempdir()?;
    let issued = kubectl.field(&format!("csr/{name}"), "{.status.certificate}")?;
    let (certificate, secret) = (folder.path().join("crt"), folder.path().join("key"));
    std::fs::write(&certificate, STANDARD.decode(issued)?)?;
    std::fs::write(&secret, key.serialize_pem())?;
    let as_owner = [
        format!("--client-certificate={}", certificate.display()),
        format!("--client-key={}", secret.display()),
    ];
    let who = kubectl.ok(&[
        "auth",
        "whoami",
        "-o",
        "jsonpath={.status.userInfo}",
        &as_owner[0],
        &as_owner[1],
    ])?;
    let who: Value = serde_json::from_str(&who)?;
    ensure!(who["username"] == name.as_str(), "{who}");
    ensure!(who["groups"] == json!(["system:authenticated"]), "{who}");
    kubectl.ok(&["delete", "csr", &name])?;
    Ok(())
}

#[test]
fn what_is_asked_for_raw_comes_as_it_is() -> anyhow::Result<()> {
    let ns = Namespace::new("raw")?;
    let kubectl = ns.kubectl();
    ensure!(kubectl.ok(&["get", "--raw", "/livez"])? == "ok");
    let ready = kubectl.ok(&["get", "--raw", "/readyz?verbose"])?;
    ensure!(
        ready.contains("[+]ping ok") && ready.contains("readyz check passed"),
        "{ready}"
    );
    let version: Value = serde_json::from_str(&kubectl.ok(&["get", "--raw", "/version"])?)?;
    ensure!(
        version["major"] == "1" && version["minor"] == "35",
        "{version}"
    );
    kubectl.ok(&["create", "configmap", "a"])?;
    // A watch that begins with what is there, and says where that ends.
    let path = format!(
        "/api/v1/namespaces/{}/configmaps?watch=1&sendInitialEvents=true&allowWatchBookmarks=true\
         &resourceVersionMatch=NotOlderThan&timeoutSeconds=1&fieldSelector=metadata.name%3Da",
        ns.name()
    );
    let lines = kubectl.ok(&["get", "--raw", &path])?;
    let events: Vec<Value> = lines
        .lines()
        .map(serde_json::from_str)
        .collect::<Result<_, _>>()?;
    ensure!(
        events[0]["type"] == "ADDED" && events[0]["object"]["metadata"]["name"] == "a",
        "{lines}"
    );
    let closing = &events[1]["object"]["metadata"]["annotations"]["k8s.io/initial-events-end"];
    ensure!(
        events[1]["type"] == "BOOKMARK" && closing == "true",
        "{lines}"
    );
    let missing = kubectl.fails(&["get", "--raw", "/apis/none.example/v1"])?;
    ensure!(missing.contains("NotFound"), "{missing}");
    Ok(())
}

#[test]
fn kubectl_proxy_serves_the_api_to_this_machine() -> anyhow::Result<()> {
    let ns = Namespace::new("proxied")?;
    let proxy = Proxy::start(ns.kubectl())?;
    let path = format!("/api/v1/namespaces/{}/configmaps", ns.name());
    let json = ["Content-Type: application/json"];
    let made = proxy.send(
        &format!("POST {path}"),
        &json,
        "{\"metadata\": {\"name\": \"m\"}, \"data\": {\"k\": \"v\"}}",
    )?;
    ensure!(made.code == 201, "{made:?}");
    let read: Value = serde_json::from_str(&proxy.send(&format!("GET {path}/m"), &[], "")?.body)?;
    ensure!(read["data"]["k"] == "v", "{read}");
    let gone = proxy.send(&format!("DELETE {path}/m"), &[], "")?;
    ensure!(gone.code == 200, "{gone:?}");
    let absent = proxy.send(&format!("GET {path}/m"), &[], "")?;
    ensure!(
        absent.code == 404 && absent.body.contains("configmaps \\\"m\\\" not found"),
        "{absent:?}"
    );
    Ok(())
}

#[test]
fn kubectl_events_tells_what_happened_to_an_object() -> anyhow::Result<()> {
    let ns = Namespace::new("events")?;
    let kubectl = ns.kubectl();
    ensure!(kubectl.run(&["events"])?.stderr.contains("No events found"));
    kubectl.ok(&[
        "create",
        "deployment",
        "web",
        "--image=testserver",
        "--replicas=1",
    ])?;
    eventually("the event", 10, || {
        let told = kubectl.ok(&["events", "--for", "deployment/web"])?;
        Ok(told.starts_with("LAST SEEN")
            && told.contains("ScalingReplicaSet")
            && told.contains("from 0 to 1"))
    })?;
    let warnings = kubectl.run(&["events", "--types=Warning"])?;
    ensure!(
        !warnings.stdout.contains("ScalingReplicaSet"),
        "{warnings:?}"
    );
    Ok(())
}
