//! Which node and container a request about a pod is for.

use balsa_api::status::Status;
use balsa_link::protocol::Target;
use serde_json::Value;

const DEFAULT_CONTAINER: &str = "kubectl.kubernetes.io/default-container";

/// Names of a list of containers.
fn names<'a>(pod: &'a Value, list: &str) -> Vec<&'a str> {
    pod["spec"][list]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|c| c["name"].as_str())
        .collect()
}

/// The container asked for, or the one meant when none is named.
///
/// # Errors
/// 400 in upstream's words.
pub(super) fn container(pod: &Value, wanted: &str) -> Result<String, Status> {
    let pod_name = pod["metadata"]["name"].as_str().unwrap_or_default();
    let (regular, init, ephemeral) = (
        names(pod, "containers"),
        names(pod, "initContainers"),
        names(pod, "ephemeralContainers"),
    );
    let exists = |name: &str| {
        [&regular, &init, &ephemeral]
            .iter()
            .any(|list| list.contains(&name))
    };
    if !wanted.is_empty() {
        if exists(wanted) {
            return Ok(wanted.to_owned());
        }
        return Err(Status::bad_request(format!(
            "container {wanted} is not valid for pod {pod_name}"
        )));
    }
    let annotated = pod["metadata"]["annotations"][DEFAULT_CONTAINER]
        .as_str()
        .filter(|name| exists(name));
    match (annotated, regular.as_slice()) {
        (Some(name), _) => Ok(name.to_owned()),
        (None, [only]) => Ok((*only).to_owned()),
        (None, []) => Err(Status::bad_request(format!(
            "a container name must be specified for pod {pod_name}"
        ))),
        (None, many) => {
            let mut text = format!(
                "a container name must be specified for pod {pod_name}, choose one of: [{}]",
                many.join(" ")
            );
            if !init.is_empty() {
                text.push_str(&format!(
                    " or one of the init containers: [{}]",
                    init.join(" ")
                ));
            }
            if !ephemeral.is_empty() {
                text.push_str(&format!(
                    " or one of the ephemeral containers: [{}]",
                    ephemeral.join(" ")
                ));
            }
            Err(Status::bad_request(text))
        }
    }
}

/// The pod's node, if it has one yet.
pub(super) fn node(pod: &Value) -> Option<&str> {
    pod["spec"]["nodeName"].as_str().filter(|n| !n.is_empty())
}

/// The pod's node, for requests that make no sense without.
///
/// # Errors
/// 400 in upstream's words.
pub(super) fn assigned_node(pod: &Value) -> Result<&str, Status> {
    node(pod).ok_or_else(|| {
        let name = pod["metadata"]["name"].as_str().unwrap_or_default();
        Status::bad_request(format!("pod {name} does not have a host assigned"))
    })
}

/// How the node is told which container.
pub(super) fn target(pod: &Value, container: String) -> Target {
    let text = |field: &str| {
        pod["metadata"][field]
            .as_str()
            .unwrap_or_default()
            .to_owned()
    };
    Target {
        namespace: text("namespace"),
        pod: text("name"),
        uid: text("uid"),
        container,
    }
}
