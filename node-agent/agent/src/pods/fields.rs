//! The downward API: fields and resources of a pod as text.

use balsa_api::quantity::Quantity;
use k8s_openapi::api::core::v1::{Container, ObjectFieldSelector, Pod, ResourceFieldSelector};

/// What is known of the pod's place and not in its object.
#[derive(Debug, Clone, Default)]
pub(crate) struct Facts {
    /// Addresses of the pod, primary first.
    pub(crate) pod_ips: Vec<String>,
    /// Addresses of the node, primary first.
    pub(crate) host_ips: Vec<String>,
    /// What the node has to give, by name: the limit of those that set none.
    pub(crate) allocatable: std::collections::BTreeMap<&'static str, Quantity>,
}

/// A field of the pod as `fieldRef` names it; the error is for people.
pub(crate) fn field(
    pod: &Pod,
    facts: &Facts,
    selector: &ObjectFieldSelector,
) -> Result<String, String> {
    let path = selector.field_path.as_str();
    let metadata = &pod.metadata;
    let spec = pod.spec.as_ref();
    let text = |value: &Option<String>| value.clone().unwrap_or_default();
    let value = match path {
        "metadata.name" => text(&metadata.name),
        "metadata.namespace" => text(&metadata.namespace),
        "metadata.uid" => text(&metadata.uid),
        "metadata.labels" => format_map(metadata.labels.as_ref()),
        "metadata.annotations" => format_map(metadata.annotations.as_ref()),
        "spec.nodeName" => text(&spec.and_then(|spec| spec.node_name.clone())),
        "spec.serviceAccountName" => text(&spec.and_then(|spec| spec.service_account_name.clone())),
        "status.hostIP" => facts.host_ips.first().cloned().unwrap_or_default(),
        "status.hostIPs" => facts.host_ips.join(","),
        "status.podIP" => facts.pod_ips.first().cloned().unwrap_or_default(),
        "status.podIPs" => facts.pod_ips.join(","),
        _ => return subscript(pod, path).ok_or_else(|| format!("unsupported fieldPath: {path}")),
    };
    Ok(value)
}

/// `metadata.labels['key']` and `metadata.annotations['key']`; a missing key is empty.
fn subscript(pod: &Pod, path: &str) -> Option<String> {
    let (map, key) = path.split_once("['")?;
    let key = key.strip_suffix("']")?;
    let map = match map {
        "metadata.labels" => &pod.metadata.labels,
        "metadata.annotations" => &pod.metadata.annotations,
        _ => return None,
    };
    Some(
        map.as_ref()
            .and_then(|map| map.get(key))
            .cloned()
            .unwrap_or_default(),
    )
}

/// `key="value"` lines, sorted, with Go's quoting.
fn format_map(map: Option<&std::collections::BTreeMap<String, String>>) -> String {
    let lines = map
        .into_iter()
        .flatten()
        .map(|(key, value)| format!("{key}={}", quote(value)));
    lines.collect::<Vec<_>>().join("\n")
}

fn quote(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 2);
    out.push('"');
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            c if c.is_control() => out.push_str(&format!("\\x{:02x}", c as u32)),
            c => out.push(c),
        }
    }
    out.push('"');
    out
}

/// A container's request or limit as `resourceFieldRef` names it, divided and rounded up.
pub(crate) fn resource(
    container: &Container,
    facts: &Facts,
    selector: &ResourceFieldSelector,
) -> Result<String, String> {
    let (list, name) = selector
        .resource
        .split_once('.')
        .unwrap_or(("", &selector.resource));
    let resources = container.resources.as_ref();
    let of = |limits: bool| -> Option<Quantity> {
        let resources = resources?;
        let list = if limits {
            &resources.limits
        } else {
            &resources.requests
        };
        list.as_ref()?.get(name)?.0.parse().ok()
    };
    let set = match list {
        "limits" => of(true),
        "requests" => of(false),
        _ => {
            return Err(format!(
                "unsupported container resource : {}",
                selector.resource
            ));
        }
    };
    let cpu = name == "cpu";
    let amount = match (set, list) {
        (Some(amount), _) => amount,
        // No limit: all that the node has.
        (None, "limits") => facts.allocatable.get(name).copied().unwrap_or_default(),
        (None, _) => Quantity::default(),
    };
    let amount_milli = if cpu {
        amount.milli_value()
    } else {
        amount.value()
    };
    let divisor = selector
        .divisor
        .as_ref()
        .and_then(|divisor| divisor.0.parse::<Quantity>().ok());
    let divisor = divisor.filter(|divisor| !divisor.is_zero());
    let divisor = match divisor {
        Some(divisor) if cpu => divisor.milli_value(),
        Some(divisor) => divisor.value(),
        None if cpu => 1000,
        None => 1,
    };
    let divisor = divisor.max(1);
    Ok((amount_milli / divisor + i64::from(amount_milli % divisor > 0)).to_string())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn container() -> Container {
        let json =
            r#"{"name":"c","resources":{"requests":{"cpu":"15m"},"limits":{"memory":"4Mi"}}}"#;
        serde_json::from_str(json).unwrap()
    }

    fn selector(resource: &str, divisor: Option<&str>) -> ResourceFieldSelector {
        serde_json::from_value(serde_json::json!({"resource": resource, "divisor": divisor}))
            .unwrap()
    }

    #[test]
    fn resources_are_divided_and_rounded_up() {
        let facts = Facts {
            allocatable: [("cpu", "2".parse().unwrap())].into(),
            ..Facts::default()
        };
        let get = |resource, divisor| resource_text(&facts, resource, divisor);
        assert_eq!(get("requests.cpu", Some("1m")), "15");
        assert_eq!(get("requests.cpu", None), "1");
        assert_eq!(get("limits.memory", Some("1Ki")), "4096");
        assert_eq!(get("limits.cpu", None), "2");
        assert_eq!(get("requests.memory", None), "0");
    }

    fn resource_text(facts: &Facts, resource_name: &str, divisor: Option<&str>) -> String {
        resource(&container(), facts, &selector(resource_name, divisor)).unwrap()
    }

    #[test]
    fn labels_come_as_quoted_lines_or_one_by_one() {
        let pod = serde_json::json!({"metadata": {"labels": {"b": "x\"y", "a": "1\n2"}}, "spec": {"containers": []}});
        let pod: Pod = serde_json::from_value(pod).unwrap();
        let get = |path: &str| {
            let selector = ObjectFieldSelector {
                field_path: path.to_owned(),
                ..Default::default()
            };
            field(&pod, &Facts::default(), &selector)
        };
        assert_eq!(get("metadata.labels").unwrap(), "a=\"1\\n2\"\nb=\"x\\\"y\"");
        assert_eq!(get("metadata.labels['b']").unwrap(), "x\"y");
        assert_eq!(get("metadata.labels['none']").unwrap(), "");
        assert!(get("spec.magic").is_err());
    }
}
