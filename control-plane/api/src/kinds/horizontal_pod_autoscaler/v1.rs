//! autoscaling/v1 HorizontalPodAutoscalers, which know only CPU: stored as v2, with what v1 has no fields for in
//! annotations (the names and shapes of upstream's conversion).

use std::borrow::Cow;
use std::sync::Arc;

use jiff::Timestamp;
use serde_json::{Map, Value, json};

use super::{Autoscalers, SOURCES};
use crate::kind::{Column, Kind, Strategy};
use crate::kinds::convert::Convert;
use crate::kinds::declare::{Declaration, keep_generation, update_only_status};
use crate::kinds::walk::{Walk, carry_over, child, fill, get_mut, remove, set};
use crate::status::FieldErrors;

const METRICS: &str = "autoscaling.alpha.kubernetes.io/metrics";
const CURRENT_METRICS: &str = "autoscaling.alpha.kubernetes.io/current-metrics";
const CONDITIONS: &str = "autoscaling.alpha.kubernetes.io/conditions";
const BEHAVIOR: &str = "autoscaling.alpha.kubernetes.io/behavior";
const CPU_TARGET: &str = "targetCPUUtilizationPercentage";
const CPU_CURRENT: &str = "currentCPUUtilizationPercentage";

pub(in crate::kinds) fn kind() -> Arc<Kind> {
    Declaration::namespaced(
        "autoscaling",
        "v1",
        "HorizontalPodAutoscaler",
        "horizontalpodautoscalers",
        OldAutoscalers,
    )
    .short_names(&["hpa"])
    .categories(&["all"])
    .status()
    .build()
}

/// Autoscalers of autoscaling/v1.
struct OldAutoscalers;

impl Strategy for OldAutoscalers {
    fn default(&self, object: &mut Value) {
        let others = !object["metadata"]["annotations"][METRICS].is_null();
        let Some(spec) = child(object, "spec") else {
            return;
        };
        fill(spec, "minReplicas", 1);
        if !others {
            fill(spec, CPU_TARGET, 80);
        }
    }

    fn prepare_create(&self, object: &mut Value) {
        set(
            object,
            "status",
            json!({"currentReplicas": 0, "desiredReplicas": 0}),
        );
        for name in [CURRENT_METRICS, CONDITIONS] {
            annotate(object, name, None);
        }
    }

    fn prepare_update(&self, object: &mut Value, old: &Value) {
        carry_over(object, old, "status");
        // These stand for status, too.
        for name in [CURRENT_METRICS, CONDITIONS] {
            let text = old["metadata"]["annotations"][name].as_str();
            annotate(object, name, text.map(str::to_owned));
        }
        keep_generation(object, old);
    }

    fn prepare_status_update(&self, object: &mut Value, old: &Value) {
        update_only_status(object, old);
    }

    fn validate_create(&self, object: &Value) -> FieldErrors {
        Autoscalers.validate_create(&AutoscalerShapes.to_stored(object.clone()))
    }

    fn validate_update(&self, object: &Value, _old: &Value) -> FieldErrors {
        self.validate_create(object)
    }

    fn validate_status_update(&self, object: &Value, old: &Value) -> FieldErrors {
        Autoscalers.validate_status_update(object, old)
    }

    fn columns(&self) -> Vec<Column> {
        Autoscalers.columns()
    }

    fn row(&self, object: &Value, now: Timestamp) -> Vec<Value> {
        Autoscalers.row(&AutoscalerShapes.to_stored(object.clone()), now)
    }
}

/// autoscaling/v1, stored as autoscaling/v2.
pub(in crate::kinds) struct AutoscalerShapes;

impl Convert for AutoscalerShapes {
    fn stored_as(&self) -> [&'static str; 3] {
        ["autoscaling", "v2", "HorizontalPodAutoscaler"]
    }

    fn to_stored(&self, mut object: Value) -> Value {
        set(&mut object, "apiVersion", "autoscaling/v2");
        let metrics = take_json(&mut object, METRICS);
        let behavior = take_json(&mut object, BEHAVIOR);
        let current = take_json(&mut object, CURRENT_METRICS);
        let conditions = take_json(&mut object, CONDITIONS);
        if let Some(spec) = get_mut(&mut object, "spec") {
            let mut list: Vec<Value> = remove(spec, CPU_TARGET)
                .filter(Value::is_number)
                .map(|percent| cpu_metric("target", percent))
                .into_iter()
                .collect();
            list.extend(metrics.items().iter().map(|m| from_v1(m, "target")));
            if !list.is_empty() {
                set(spec, "metrics", list);
            }
            if behavior.is_object() {
                set(spec, "behavior", behavior);
            }
        }
        if let Some(status) = get_mut(&mut object, "status") {
            let cpu = remove(status, CPU_CURRENT).filter(Value::is_number);
            let mut list: Vec<Value> = current
                .items()
                .iter()
                .map(|m| from_v1(m, "current"))
                .collect();
            if let (true, Some(percent)) = (list.is_empty(), cpu) {
                list.push(cpu_metric("current", percent));
            }
            if !list.is_empty() {
                set(status, "currentMetrics", list);
            }
            if conditions.is_array() {
                set(status, "conditions", conditions);
            }
        }
        object
    }

    fn from_stored(&self, mut object: Value) -> Value {
        set(&mut object, "apiVersion", "autoscaling/v1");
        let (mut notes, mut cpu) = (Vec::new(), None);
        if let Some(spec) = get_mut(&mut object, "spec") {
            let mut others = Vec::new();
            for metric in remove(spec, "metrics").unwrap_or_default().items() {
                match cpu_percent(metric, "target").filter(|_| cpu.is_none()) {
                    Some(percent) => cpu = Some(percent.clone()),
                    None => others.push(to_v1(metric, "target")),
                }
            }
            if let Some(percent) = cpu {
                set(spec, CPU_TARGET, percent);
            }
            if !others.is_empty() {
                notes.push((METRICS, Value::from(others)));
            }
            notes.extend(remove(spec, "behavior").map(|b| (BEHAVIOR, b)));
        }
        if let Some(status) = get_mut(&mut object, "status") {
            let current = remove(status, "currentMetrics").unwrap_or_default();
            if let Some(percent) = current
                .items()
                .iter()
                .find_map(|m| cpu_percent(m, "current"))
            {
                set(status, CPU_CURRENT, percent.clone());
            }
            let list: Vec<Value> = current
                .items()
                .iter()
                .map(|m| to_v1(m, "current"))
                .collect();
            if !list.is_empty() {
                notes.push((CURRENT_METRICS, list.into()));
            }
            notes.extend(remove(status, "conditions").map(|c| (CONDITIONS, c)));
        }
        for (name, value) in notes {
            annotate(&mut object, name, Some(value.to_string()));
        }
        object
    }

    fn stored_field<'a>(&self, field: &'a str) -> Cow<'a, str> {
        Cow::Borrowed(field)
    }
}

/// Sets or removes an annotation; a map that becomes empty goes, too.
fn annotate(object: &mut Value, name: &str, text: Option<String>) {
    let Some(text) = text else {
        if let Some(metadata) = get_mut(object, "metadata") {
            if let Some(annotations) = get_mut(metadata, "annotations") {
                remove(annotations, name);
            }
            if metadata["annotations"]
                .as_object()
                .is_some_and(Map::is_empty)
            {
                remove(metadata, "annotations");
            }
        }
        return;
    };
    if let Some(annotations) = child(object, "metadata").and_then(|m| child(m, "annotations")) {
        set(annotations, name, text);
    }
}

/// Removes an annotation and reads it; null when it is none or no JSON.
fn take_json(object: &mut Value, name: &str) -> Value {
    let text = object["metadata"]["annotations"][name].text().to_owned();
    let value = serde_json::from_str(&text).unwrap_or_default();
    annotate(object, name, None);
    value
}

/// The CPU metric that v1 has a field for; `place` is `target` or `current`.
fn cpu_metric(place: &str, percent: Value) -> Value {
    let mut amount = json!({"averageUtilization": percent});
    if place == "target" {
        set(&mut amount, "type", "Utilization");
    }
    json!({"type": "Resource", "resource": {"name": "cpu", place: amount}})
}

fn cpu_percent<'a>(metric: &'a Value, place: &str) -> Option<&'a Value> {
    let resource = &metric["resource"];
    let is_cpu = metric["type"] == "Resource" && resource["name"] == "cpu";
    let percent = &resource[place]["averageUtilization"];
    (is_cpu && percent.is_number()).then_some(percent)
}

fn source_of(metric: &Value) -> Option<&'static str> {
    SOURCES
        .iter()
        .find(|(type_, _)| metric["type"] == *type_)
        .map(|(_, field)| *field)
}

/// v1's name of an amount of a source: `targetAverageValue`.
fn amount_name(source: &str, place: &str, amount: &str) -> String {
    if source == "object" && amount == "averageValue" {
        return amount.to_owned();
    }
    let (first, rest) = amount.split_at(1);
    format!("{place}{}{rest}", first.to_uppercase())
}

const AMOUNTS: [&str; 3] = ["averageUtilization", "averageValue", "value"];

fn selector_name(source: &str) -> &'static str {
    if source == "external" {
        "metricSelector"
    } else {
        "selector"
    }
}

/// A v2 metric in v1's shape.
fn to_v1(metric: &Value, place: &str) -> Value {
    let Some(field) = source_of(metric) else {
        return metric.clone();
    };
    let source = &metric[field];
    let mut old = Map::new();
    let mut put = |name: &str, value: &Value| {
        if value.present() {
            old.insert(name.to_owned(), value.clone());
        }
    };
    put("name", &source["name"]);
    put("container", &source["container"]);
    put("target", &source["describedObject"]);
    put("metricName", &source["metric"]["name"]);
    put(selector_name(field), &source["metric"]["selector"]);
    for amount in AMOUNTS {
        put(&amount_name(field, place, amount), &source[place][amount]);
    }
    json!({"type": metric["type"], field: old})
}

/// A metric in v1's shape as v2.
fn from_v1(metric: &Value, place: &str) -> Value {
    let Some(field) = source_of(metric) else {
        return metric.clone();
    };
    let old = &metric[field];
    let mut source = json!({});
    for (name, new) in [
        ("name", "name"),
        ("container", "container"),
        ("target", "describedObject"),
    ] {
        if old[name].present() {
            set(&mut source, new, old[name].clone());
        }
    }
    if old["metricName"].present() {
        let mut identifier = json!({"name": old["metricName"]});
        let selector = &old[selector_name(field)];
        if selector.present() {
            set(&mut identifier, "selector", selector.clone());
        }
        set(&mut source, "metric", identifier);
    }
    let mut amounts = json!({});
    for amount in AMOUNTS {
        let value = &old[amount_name(field, place, amount)];
        if value.present() {
            set(&mut amounts, amount, value.clone());
        }
    }
    if place == "target" {
        let type_ = if amounts["averageUtilization"].present() {
            "Utilization"
        } else if amounts["averageValue"].present() {
            "AverageValue"
        } else {
            "Value"
        };
        set(&mut amounts, "type", type_);
    }
    set(&mut source, place, amounts);
    json!({"type": metric["type"], field: source})
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_v1_cannot_say_survives_in_annotations() {
        let stored = json!({
            "apiVersion": "autoscaling/v2", "kind": "HorizontalPodAutoscaler",
            "metadata": {"name": "h", "annotations": {"own": "x"}},
            "spec": {
                "maxReplicas": 5, "minReplicas": 1, "scaleTargetRef": {"kind": "Deployment", "name": "web"},
                "metrics": [
                    {"type": "Resource", "resource": {"name": "cpu", "target": {"type": "Utilization", "averageUtilization": 70}}},
                    {"type": "Resource", "resource": {"name": "memory", "target": {"type": "AverageValue", "averageValue": "1Gi"}}},
                    {"type": "External", "external": {"metric": {"name": "q", "selector": {"matchLabels": {"a": "b"}}}, "target": {"type": "Value", "value": "30"}}},
                    {"type": "Object", "object": {"metric": {"name": "rps"}, "describedObject": {"kind": "Ingress", "name": "i"}, "target": {"type": "Value", "value": "2k"}}},
                ],
                "behavior": {"scaleUp": {"selectPolicy": "Max"}},
            },
            "status": {
                "currentReplicas": 1, "desiredReplicas": 2,
                "currentMetrics": [{"type": "Resource", "resource": {"name": "cpu", "current": {"averageUtilization": 90, "averageValue": "90m"}}}],
                "conditions": [{"type": "AbleToScale", "status": "True"}],
            },
        });
        let served = AutoscalerShapes.from_stored(stored.clone());
        assert_eq!(served["spec"][CPU_TARGET], 70);
        assert_eq!(served["status"][CPU_CURRENT], 90);
        assert_eq!(served["spec"]["metrics"], Value::Null);
        assert_eq!(AutoscalerShapes.to_stored(served), stored);
    }

    #[test]
    fn a_minimal_v1_autoscaler_aims_at_four_fifths_of_cpu() {
        let mut object = json!({"metadata": {"name": "h"}, "spec": {"maxReplicas": 5, "scaleTargetRef": {"kind": "Deployment", "name": "web"}}});
        OldAutoscalers.default(&mut object);
        assert!(OldAutoscalers.validate_create(&object).is_empty());
        let stored = AutoscalerShapes.to_stored(object);
        assert_eq!(
            stored["spec"]["metrics"][0]["resource"]["target"],
            json!({"type": "Utilization", "averageUtilization": 80})
        );
        assert_eq!(stored["metadata"]["annotations"], Value::Null);
    }
}
