"""The official Python client against a cluster: typed objects, watches, streams, errors.

usage: python_client.py NAMESPACE   (KUBECONFIG names the cluster)
"""

import sys
import threading
import time

from kubernetes import client, config, dynamic, utils, watch
from kubernetes.client.rest import ApiException
from kubernetes.stream import portforward, stream


def pod(name, labels=None):
    container = client.V1Container(
        name="c", image="testserver", image_pull_policy="IfNotPresent",
        ports=[client.V1ContainerPort(container_port=8080)])
    return client.V1Pod(
        metadata=client.V1ObjectMeta(name=name, labels=labels or {}),
        spec=client.V1PodSpec(containers=[container], termination_grace_period_seconds=0))


def expect_code(code, call):
    try:
        call()
    except ApiException as error:
        assert error.status == code, f"expected {code}, got {error.status}: {error.body}"
        return
    raise AssertionError(f"expected {code}, but it succeeded")


def objects(core, namespace):
    made = core.create_namespaced_config_map(
        namespace, client.V1ConfigMap(metadata=client.V1ObjectMeta(name="m"), data={"k": "v"}))
    assert made.metadata.uid and made.metadata.resource_version
    expect_code(409, lambda: core.create_namespaced_config_map(
        namespace, client.V1ConfigMap(metadata=client.V1ObjectMeta(name="m"))))
    expect_code(404, lambda: core.read_namespaced_config_map("absent", namespace))
    expect_code(422, lambda: core.create_namespaced_config_map(
        namespace, client.V1ConfigMap(metadata=client.V1ObjectMeta(name="Not Valid"))))
    core.patch_namespaced_config_map("m", namespace, {"data": {"k": "w", "n": "1"}})
    read = core.read_namespaced_config_map("m", namespace)
    assert read.data == {"k": "w", "n": "1"}, read.data
    read.data = {"only": "this"}
    core.replace_namespaced_config_map("m", namespace, read)
    expect_code(409, lambda: core.replace_namespaced_config_map("m", namespace, read))
    first = core.list_namespaced_config_map(namespace, limit=1)
    rest = core.list_namespaced_config_map(namespace, _continue=first.metadata._continue)
    assert len(first.items) == 1 and len(rest.items) >= 1


def watched(core, namespace):
    seen = []
    at = core.list_namespaced_pod(namespace).metadata.resource_version

    def follow():
        watcher = watch.Watch()
        for event in watcher.stream(core.list_namespaced_pod, namespace, resource_version=at,
                                    label_selector="watched=yes", timeout_seconds=30):
            seen.append((event["type"], event["object"].metadata.name))
            if event["type"] == "DELETED":
                watcher.stop()

    follower = threading.Thread(target=follow)
    follower.start()
    core.create_namespaced_pod(namespace, pod("seen", {"watched": "yes"}))
    core.create_namespaced_pod(namespace, pod("unseen"))
    until(lambda: core.read_namespaced_pod("seen", namespace).status.phase == "Running", "the pod to run")
    core.delete_namespaced_pod("seen", namespace)
    follower.join(30)
    assert seen[0] == ("ADDED", "seen") and seen[-1] == ("DELETED", "seen"), seen
    assert all(name == "seen" for _, name in seen), seen


def streams(core, namespace):
    until(lambda: core.read_namespaced_pod("unseen", namespace).status.phase == "Running", "the pod to run")
    said = stream(core.connect_get_namespaced_pod_exec, "unseen", namespace,
                  command=["sh", "-c", "echo out; echo err >&2; cat"],
                  stdin=True, stdout=True, stderr=True, tty=False, _preload_content=False)
    said.write_stdin("typed\n")
    out = ""
    deadline = time.time() + 10
    while "typed" not in out and time.time() < deadline:
        said.update(timeout=1)
        out += said.read_stdout() if said.peek_stdout() else ""
    assert out == "out\ntyped\n", out
    assert said.read_stderr() == "err\n"
    said.close()
    ended = stream(core.connect_get_namespaced_pod_exec, "unseen", namespace, command=["sh", "-c", "exit 3"],
                   stdout=True, stderr=True, _preload_content=False)
    ended.run_forever(timeout=10)
    assert ended.returncode == 3, ended.returncode
    forward = portforward(core.connect_get_namespaced_pod_portforward, "unseen", namespace, ports="8080")
    socket = forward.socket(8080)
    socket.setblocking(True)
    socket.sendall(b"GET /hostname HTTP/1.0\r\n\r\n")
    answer = b""
    while not answer.endswith(b"unseen"):
        part = socket.recv(4096)
        assert part, f"the answer ended early: {answer}"
        answer += part
    assert b"200" in answer, answer
    socket.close()
    assert "listening on 8080" in core.read_namespaced_pod_log("unseen", namespace)


def workloads(namespace):
    apps = client.AppsV1Api()
    labels = {"app": "py"}
    template = client.V1PodTemplateSpec(metadata=client.V1ObjectMeta(labels=labels), spec=pod("x").spec)
    template.spec.termination_grace_period_seconds = 0
    apps.create_namespaced_deployment(namespace, client.V1Deployment(
        metadata=client.V1ObjectMeta(name="py"),
        spec=client.V1DeploymentSpec(replicas=1, selector=client.V1LabelSelector(match_labels=labels), template=template)))
    until(lambda: apps.read_namespaced_deployment_status("py", namespace).status.available_replicas == 1, "the deployment")
    apps.patch_namespaced_deployment_scale("py", namespace, {"spec": {"replicas": 2}})
    until(lambda: apps.read_namespaced_deployment("py", namespace).status.available_replicas == 2, "the second replica")
    apps.delete_namespaced_deployment("py", namespace, propagation_policy="Foreground")


def discovered(namespace):
    every = dynamic.DynamicClient(client.ApiClient())
    jobs = every.resources.get(api_version="batch/v1", kind="Job")
    assert jobs.namespaced and jobs.get(namespace=namespace).items == []
    utils.create_from_dict(client.ApiClient(), {
        "apiVersion": "v1", "kind": "Secret", "metadata": {"name": "s", "namespace": namespace},
        "stringData": {"a": "b"}})
    review = client.AuthorizationV1Api().create_self_subject_access_review({
        "spec": {"resourceAttributes": {"verb": "list", "resource": "secrets", "namespace": namespace}}})
    assert review.status.allowed
    assert client.VersionApi().get_code().git_version.startswith("v1.35")


def until(done, what, seconds=40):
    deadline = time.time() + seconds
    while not done():
        assert time.time() < deadline, f"gave up waiting for {what}"
        time.sleep(0.1)


def main():
    config.load_kube_config()
    namespace = sys.argv[1]
    core = client.CoreV1Api()
    objects(core, namespace)
    watched(core, namespace)
    streams(core, namespace)
    workloads(namespace)
    discovered(namespace)
    print("all of it works")


main()
