//! Creating, changing and removing: what newcomers type first.

use anyhow::ensure;
use balsa_e2e::{Namespace, eventually};

const SIMPLE_POD: &str = r#"
apiVersion: v1
kind: Pod
metadata: {name: nginx}
spec:
  terminationGracePeriodSeconds: 0
  containers:
  - {name: nginx, image: nginx, imagePullPolicy: IfNotPresent, ports: [{containerPort: 80}]}
"#;

#[test]
fn a_simple_pod_runs_and_tells_what_happened_to_it() -> anyhow::Result<()> {
    let ns = Namespace::new("simple")?;
    let kubectl = ns.kubectl();
    ensure!(kubectl.apply(SIMPLE_POD)?.trim() == "pod/nginx created");
    kubectl.wait_ready("nginx", 40)?;
    ensure!(kubectl.apply(SIMPLE_POD)?.trim() == "pod/nginx unchanged");
    let wide = kubectl.ok(&["get", "pods", "-o", "wide"])?;
    for column in ["IP", "NODE", "NOMINATED NODE", "READINESS GATES", "10.244."] {
        ensure!(wide.contains(column), "no {column} in\n{wide}");
    }
    let described = kubectl.ok(&["describe", "po", "nginx"])?;
    for words in [
        "Successfully assigned",
        "default-scheduler",
        "already present on machine",
        "kubelet",
        "Created",
        "Started",
    ] {
        ensure!(described.contains(words), "no {words} in\n{described}");
    }
    let wrong = kubectl.run(&["logs", "nginx", "-c", "nobody"])?.failed()?;
    ensure!(
        wrong.contains("container nobody is not valid for pod nginx"),
        "{wrong}"
    );
    let status = kubectl.ok(&["exec", "nginx", "--", "service", "nginx", "status"])?;
    ensure!(status.trim() == "nginx is running.", "{status}");
    let said = kubectl.ok(&["delete", "pod", "nginx"])?;
    let wanted = format!("pod \"nginx\" deleted from {} namespace", ns.name());
    ensure!(said.contains(&wanted), "{said}");
    let gone = kubectl.run(&["logs", "nginx"])?.failed()?;
    ensure!(gone.contains("pods \"nginx\" not found"), "{gone}");
    let none = kubectl.run(&["get", "pods"])?;
    ensure!(
        none.stderr.contains("No resources found in"),
        "{}",
        none.stderr
    );
    Ok(())
}

#[test]
fn kubectl_run_makes_a_pod_with_the_fields_of_its_flags() -> anyhow::Result<()> {
    let ns = Namespace::new("run")?;
    let kubectl = ns.kubectl();
    let said = kubectl.ok(&[
        "run",
        "nginx",
        "--image=nginx:latest",
        "--image-pull-policy=IfNotPresent",
        "--port=8080",
    ])?;
    ensure!(said.trim() == "pod/nginx created", "{said}");
    kubectl.wait_ready("nginx", 40)?;
    let fields = kubectl.field(
        "pod/nginx",
        "{.spec.containers[0].image} {.spec.containers[0].imagePullPolicy} {.spec.containers[0].ports[0].containerPort} {.metadata.labels.run}",
    )?;
    ensure!(fields == "nginx:latest IfNotPresent 8080 nginx", "{fields}");
    Ok(())
}

#[test]
fn a_jobs_template_is_immutable_and_its_pod_says_hello() -> anyhow::Result<()> {
    let ns = Namespace::new("hello")?;
    let kubectl = ns.kubectl();
    let job = |text: &str| {
        format!(
            r#"
apiVersion: batch/v1
kind: Job
metadata: {{name: hello}}
spec:
  template:
    spec:
      restartPolicy: OnFailure
      containers:
      - name: hello
        image: busybox
        imagePullPolicy: IfNotPresent
        command: [sh, -c, 'echo "{text}" && sleep 1']
"#
        )
    };
    ensure!(kubectl.apply(&job("Hello, Kubernetes!"))?.trim() == "job.batch/hello created");
    kubectl.ok(&[
        "wait",
        "--for=condition=Complete",
        "job/hello",
        "--timeout=30s",
    ])?;
    ensure!(kubectl.ok(&["logs", "job/hello"])?.trim() == "Hello, Kubernetes!");
    let refused = kubectl
        .run_with(&["apply", "-f", "-"], &job("Hello, others!"))?
        .failed()?;
    ensure!(refused.contains("field is immutable"), "{refused}");
    Ok(())
}

const ANNOTATED: &str = r#"
kind: Deployment
metadata:
  name: mean
  labels: {app: mean}
  annotations: {deployment.kubernetes.io/description: every field set}
spec:
  replicas: 1
  revisionHistoryLimit: 10
  progressDeadlineSeconds: 600
  strategy: {type: RollingUpdate, rollingUpdate: {maxSurge: 25%, maxUnavailable: 25%}}
  selector: {matchLabels: {app: mean}}
  template:
    metadata: {labels: {app: mean}}
    spec:
      dnsPolicy: ClusterFirst
      restartPolicy: Always
      schedulerName: default-scheduler
      terminationGracePeriodSeconds: 3
      containers:
      - name: mean
        image: busybox
        imagePullPolicy: IfNotPresent
        command: [sleep, "100000"]
        workingDir: /data
        securityContext: {privileged: false}
        terminationMessagePath: /dev/termination-log
        terminationMessagePolicy: File
        ports: [{containerPort: 8080, protocol: TCP}]
        volumeMounts: [{name: data, mountPath: /data, readOnly: true}]
      volumes: [{name: data, emptyDir: {}}]
"#;

#[test]
fn a_deployment_with_every_field_set_keeps_them_and_tells_its_state() -> anyhow::Result<()> {
    let ns = Namespace::new("mean")?;
    let kubectl = ns.kubectl();
    let old = kubectl
        .run_with(
            &["apply", "-f", "-"],
            &format!("apiVersion: extensions/v1beta1{ANNOTATED}"),
        )?
        .failed()?;
    ensure!(
        old.contains("no matches for kind \"Deployment\" in version \"extensions/v1beta1\""),
        "{old}"
    );
    kubectl.apply(&format!("apiVersion: apps/v1{ANNOTATED}"))?;
    kubectl.ok(&["rollout", "status", "deployment/mean", "--timeout=40s"])?;
    let deployment = kubectl.json(&["get", "deployment", "mean"])?;
    let (spec, pod) = (&deployment["spec"], &deployment["spec"]["template"]["spec"]);
    ensure!(spec["strategy"]["rollingUpdate"]["maxSurge"] == "25%");
    ensure!(spec["revisionHistoryLimit"] == 10 && spec["progressDeadlineSeconds"] == 600);
    ensure!(pod["dnsPolicy"] == "ClusterFirst" && pod["schedulerName"] == "default-scheduler");
    ensure!(pod["terminationGracePeriodSeconds"] == 3);
    let container = &pod["containers"][0];
    ensure!(container["workingDir"] == "/data");
    ensure!(container["terminationMessagePolicy"] == "File");
    ensure!(container["volumeMounts"][0]["readOnly"] == true);
    let status = &deployment["status"];
    ensure!(
        status["observedGeneration"] == 1 && status["availableReplicas"] == 1,
        "{status}"
    );
    let reasons: Vec<&str> = status["conditions"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|c| c["reason"].as_str())
        .collect();
    ensure!(
        reasons.contains(&"MinimumReplicasAvailable")
            && reasons.contains(&"NewReplicaSetAvailable"),
        "{reasons:?}"
    );
    ensure!(deployment["metadata"]["annotations"]["deployment.kubernetes.io/revision"] == "1");
    let described = kubectl.ok(&["describe", "deployment", "mean"])?;
    for words in [
        "ScalingReplicaSet",
        "deployment-controller",
        "Scaled up replica set mean-",
    ] {
        ensure!(described.contains(words), "no {words} in\n{described}");
    }
    Ok(())
}

#[test]
fn manifests_that_mix_things_up_are_refused_with_the_field_named() -> anyhow::Result<()> {
    let ns = Namespace::new("mixed")?;
    let kubectl = ns.kubectl();
    let apply = |text: &str| kubectl.run_with(&["create", "-f", "-"], text)?.failed();
    let replicas = apply(
        "{apiVersion: v1, kind: Pod, metadata: {name: p}, spec: {replicas: 2, containers: [{name: c, image: busybox}]}}",
    )?;
    ensure!(
        replicas.contains("unknown field \"spec.replicas\""),
        "{replicas}"
    );
    let sources = apply(
        "{apiVersion: v1, kind: Pod, metadata: {name: p}, spec: {containers: [{name: c, image: busybox}], volumes: [{name: v, emptyDir: {}, hostPath: {path: /x}}]}}",
    )?;
    ensure!(
        sources.contains("may not specify more than 1 volume type"),
        "{sources}"
    );
    let nameless = apply(
        "{apiVersion: v1, kind: Pod, metadata: {}, spec: {containers: [{name: c, image: busybox}]}}",
    )?;
    ensure!(
        nameless.contains("name or generateName is required"),
        "{nameless}"
    );
    let kindless = apply("{apiVersion: v1, metadata: {name: p}}")?;
    ensure!(kindless.contains("kind not set"), "{kindless}");
    let generated = kubectl
        .run_with(
            &["create", "-f", "-"],
            "{apiVersion: v1, kind: Pod, metadata: {generateName: gen-}, spec: {terminationGracePeriodSeconds: 0, containers: [{name: c, image: busybox, imagePullPolicy: IfNotPresent, command: [sleep, '1000']}]}}",
        )?
        .ok()?;
    ensure!(generated.starts_with("pod/gen-"), "{generated}");
    Ok(())
}

#[test]
fn only_the_mutable_fields_of_a_pod_can_be_changed() -> anyhow::Result<()> {
    let ns = Namespace::new("mutable")?;
    let kubectl = ns.kubectl();
    kubectl.apply(SIMPLE_POD)?;
    let patch = |patch: &str| kubectl.run(&["patch", "pod", "nginx", "-p", patch]);
    for forbidden in [
        r#"{"spec":{"terminationGracePeriodSeconds":9}}"#,
        r#"{"spec":{"hostNetwork":true}}"#,
        r#"{"spec":{"nodeSelector":{"a":"b"}}}"#,
    ] {
        let said = patch(forbidden)?.failed()?;
        ensure!(
            said.contains("pod updates may not change fields other than"),
            "{forbidden}: {said}"
        );
    }
    patch(r#"{"spec":{"activeDeadlineSeconds":600}}"#)?.ok()?;
    let raised = patch(r#"{"spec":{"activeDeadlineSeconds":700}}"#)?.failed()?;
    ensure!(
        raised.contains("must be less than or equal to previous value"),
        "{raised}"
    );
    patch(r#"{"spec":{"tolerations":[{"key":"k","operator":"Exists"}]}}"#)?.ok()?;
    let generation = kubectl.field("pod/nginx", "{.metadata.generation}")?;
    ensure!(
        generation == "3",
        "generation {generation} after two changes"
    );
    eventually("the node's word for it", 20, || {
        Ok(kubectl.field("pod/nginx", "{.status.observedGeneration}")? == "3")
    })?;
    patch(r#"{"spec":{"activeDeadlineSeconds":1}}"#)?.ok()?;
    eventually("DeadlineExceeded", 20, || {
        Ok(
            kubectl.field("pod/nginx", "{.status.phase} {.status.reason}")?
                == "Failed DeadlineExceeded",
        )
    })?;
    Ok(())
}
