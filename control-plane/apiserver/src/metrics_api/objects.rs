//! NodeMetrics and PodMetrics from usages and the objects they are of.

use std::collections::HashMap;
use std::time::Duration;

use balsa_api::quantity::Quantity;
use balsa_api::{duration, object};
use jiff::Timestamp;
use serde_json::{Value, json};

use super::samples::Usage;
use super::{GROUP, VERSION};

fn amounts(usage: &Usage) -> Value {
    let memory = i64::try_from(usage.memory).unwrap_or(i64::MAX);
    json!({
        "cpu": format!("{}n", usage.nano_cores),
        "memory": binary(memory),
    })
}

/// Bytes in the largest unit that loses nothing, not above Ki, as clients know it from metrics-server.
fn binary(bytes: i64) -> String {
    if bytes % 1024 == 0 && bytes > 0 {
        format!("{}Ki", bytes / 1024)
    } else {
        bytes.to_string()
    }
}

/// The sum of quantities, null when there are none.
pub(super) fn sum<'a>(quantities: impl Iterator<Item = &'a Value>) -> Value {
    let mut total: Option<Quantity> = None;
    for quantity in quantities.filter_map(|q| Quantity::from_value(q).ok()) {
        total = Some(match total {
            Some(total) => total + quantity,
            None => quantity,
        });
    }
    total.map_or(Value::Null, |total| total.to_string().into())
}

fn metadata(of: &Value) -> Value {
    let mut metadata = json!({
        "name": object::name(of),
        "creationTimestamp": object::format_time(Timestamp::now()),
    });
    if !object::namespace(of).is_empty() {
        metadata["namespace"] = object::namespace(of).into();
    }
    if let Some(labels) = object::labels(of).filter(|l| !l.is_empty()) {
        metadata["labels"] = Value::Object(labels.clone());
    }
    metadata
}

fn frame(kind: &str, of: &Value, at: i64, window: Duration) -> Value {
    let at = Timestamp::from_millisecond(at).unwrap_or_default();
    json!({
        "kind": kind,
        "apiVersion": format!("{GROUP}/{VERSION}"),
        "metadata": metadata(of),
        "timestamp": object::format_time(at),
        "window": duration::format(window),
    })
}

/// NodeMetrics of a node.
pub(super) fn node(node: &Value, usage: &Usage) -> Value {
    let mut object = frame("NodeMetrics", node, usage.at, usage.window);
    object["usage"] = amounts(usage);
    object
}

/// PodMetrics of a pod; `None` until all of its running containers have been measured.
pub(super) fn pod(pod: &Value, containers: &HashMap<String, Option<Usage>>) -> Option<Value> {
    let mut measured = Vec::with_capacity(containers.len());
    for (name, usage) in containers {
        measured.push((name.as_str(), (*usage)?));
    }
    measured.sort_by_key(|(name, _)| *name);
    // The pod's time is that of the container that was looked at first.
    let (_, first) = measured.iter().min_by_key(|(_, usage)| usage.at)?;
    let mut object = frame("PodMetrics", pod, first.at, first.window);
    object["containers"] = measured
        .iter()
        .map(|(name, usage)| json!({"name": name, "usage": amounts(usage)}))
        .collect();
    Some(object)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_pod_is_shown_once_all_its_containers_are_measured() {
        let of = json!({"metadata": {"name": "p", "namespace": "d", "labels": {"a": "b"}}});
        let usage = Usage {
            at: 1_700_000_000_000,
            window: Duration::from_secs(15),
            nano_cores: 1_234_567,
            memory: 4096 * 3,
        };
        let mut containers = HashMap::from([("web".to_owned(), Some(usage))]);
        let shown = pod(&of, &containers).unwrap();
        assert_eq!(
            shown["containers"],
            json!([{"name": "web", "usage": {"cpu": "1234567n", "memory": "12Ki"}}])
        );
        assert_eq!(
            (&shown["window"], &shown["metadata"]["labels"]["a"]),
            (&json!("15s"), &json!("b"))
        );
        containers.insert("side".to_owned(), None);
        assert_eq!(pod(&of, &containers), None);
        assert_eq!(pod(&of, &HashMap::new()), None);
    }
}
