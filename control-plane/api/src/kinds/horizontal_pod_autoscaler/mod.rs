//! HorizontalPodAutoscalers (autoscaling/v2, which is stored).

pub(super) mod v1;

use std::sync::Arc;

use jiff::Timestamp;
use serde_json::{Value, json};

use crate::kind::{Column, Kind, Strategy};
use crate::kinds::declare::{Declaration, keep_generation};
use crate::kinds::walk::{Walk, carry_over, child, fill, get_mut, set};
use crate::status::FieldErrors;
use crate::table::{age, age_column, column, count, name, name_column};
use crate::validation::{Path, non_negative, one_of, one_of_or_none};

/// The source of each metric type, and where its target's name stands.
const SOURCES: [(&str, &str); 5] = [
    ("ContainerResource", "containerResource"),
    ("External", "external"),
    ("Object", "object"),
    ("Pods", "pods"),
    ("Resource", "resource"),
];

pub(super) fn kind() -> Arc<Kind> {
    Declaration::namespaced(
        "autoscaling",
        "v2",
        "HorizontalPodAutoscaler",
        "horizontalpodautoscalers",
        Autoscalers,
    )
    .short_names(&["hpa"])
    .categories(&["all"])
    .status()
    .build()
}

struct Autoscalers;

impl Strategy for Autoscalers {
    fn default(&self, object: &mut Value) {
        let Some(spec) = child(object, "spec") else {
            return;
        };
        fill(spec, "minReplicas", 1);
        if spec["metrics"].is_empty() {
            set(
                spec,
                "metrics",
                json!([{"type": "Resource", "resource": {"name": "cpu", "target": {"type": "Utilization", "averageUtilization": 80}}}]),
            );
        }
        if let Some(behavior) = get_mut(spec, "behavior") {
            default_behavior(behavior);
        }
    }

    fn prepare_create(&self, object: &mut Value) {
        set(object, "status", json!({ "desiredReplicas": 0 }));
    }

    fn prepare_update(&self, object: &mut Value, old: &Value) {
        carry_over(object, old, "status");
        keep_generation(object, old);
    }

    fn prepare_status_update(&self, object: &mut Value, old: &Value) {
        carry_over(object, old, "spec");
        keep_generation(object, old);
    }

    fn validate_create(&self, object: &Value) -> FieldErrors {
        let mut errors = FieldErrors::default();
        let (spec, path) = (&object["spec"], Path::new("spec"));
        let least = spec["minReplicas"].int().unwrap_or(1);
        let greatest = spec["maxReplicas"].int().unwrap_or_default();
        if least < 1 {
            errors.invalid(
                path.child("minReplicas"),
                least,
                "must be greater than or equal to 1",
            );
        }
        if greatest < 1 {
            errors.invalid(
                path.child("maxReplicas"),
                greatest,
                "must be greater than 0",
            );
        }
        if greatest < least {
            errors.invalid(
                path.child("maxReplicas"),
                greatest,
                "must be greater than or equal to `minReplicas`",
            );
        }
        for field in ["kind", "name"] {
            if spec["scaleTargetRef"][field].is_empty() {
                errors.required(path.child("scaleTargetRef").child(field), "");
            }
        }
        for (i, metric) in spec["metrics"].items().iter().enumerate() {
            validate_metric(metric, &path.child("metrics").index(i), &mut errors);
        }
        let path = path.child("behavior");
        for side in ["scaleUp", "scaleDown"] {
            let rules = &spec["behavior"][side];
            if rules.present() {
                validate_rules(rules, &path.child(side), &mut errors);
            }
        }
        errors
    }

    fn validate_update(&self, object: &Value, _old: &Value) -> FieldErrors {
        self.validate_create(object)
    }

    fn validate_status_update(&self, object: &Value, _old: &Value) -> FieldErrors {
        let mut errors = FieldErrors::default();
        for field in ["currentReplicas", "desiredReplicas"] {
            non_negative(
                &object["status"][field],
                &Path::new("status").child(field),
                &mut errors,
            );
        }
        errors
    }

    fn columns(&self) -> Vec<Column> {
        vec![
            name_column(),
            column("Reference", "string", "What is scaled."),
            column("Targets", "string", "Metrics: current value and target."),
            column("MinPods", "string", "Fewest pods."),
            column("MaxPods", "string", "Most pods."),
            column("Replicas", "string", "Pods now."),
            age_column(),
        ]
    }

    fn row(&self, object: &Value, now: Timestamp) -> Vec<Value> {
        let (spec, status) = (&object["spec"], &object["status"]);
        let target = &spec["scaleTargetRef"];
        let least = spec["minReplicas"]
            .int()
            .map_or_else(|| "<unset>".to_owned(), |n| n.to_string());
        vec![
            name(object),
            format!("{}/{}", target["kind"].text(), target["name"].text()).into(),
            targets(&spec["metrics"], &status["currentMetrics"]).into(),
            least.into(),
            count(&spec["maxReplicas"]),
            count(&status["currentReplicas"]),
            age(object, now),
        ]
    }
}

fn default_behavior(behavior: &mut Value) {
    let up = json!([
        {"type": "Pods", "value": 4, "periodSeconds": 15},
        {"type": "Percent", "value": 100, "periodSeconds": 15},
    ]);
    let down = json!([{"type": "Percent", "value": 100, "periodSeconds": 15}]);
    let Some(rules) = child(behavior, "scaleUp") else {
        return;
    };
    fill(rules, "stabilizationWindowSeconds", 0);
    fill(rules, "selectPolicy", "Max");
    fill(rules, "policies", up);
    let Some(rules) = child(behavior, "scaleDown") else {
        return;
    };
    fill(rules, "selectPolicy", "Max");
    fill(rules, "policies", down);
}

/// How fast and how far to scale in one direction.
fn validate_rules(rules: &Value, path: &Path, errors: &mut FieldErrors) {
    const LONGEST_WINDOW: i64 = 3600;
    const LONGEST_PERIOD: i64 = 1800;
    if let Some(window) = rules["stabilizationWindowSeconds"].int() {
        let path = path.child("stabilizationWindowSeconds");
        if window < 0 {
            errors.invalid(&path, window, "must be greater than or equal to zero");
        }
        if window > LONGEST_WINDOW {
            errors.invalid(
                &path,
                window,
                format!("must be less than or equal to {LONGEST_WINDOW}"),
            );
        }
    }
    one_of_or_none(
        &rules["selectPolicy"],
        &["Disabled", "Max", "Min"],
        &path.child("selectPolicy"),
        errors,
    );
    let (policies, path) = (rules["policies"].items(), path.child("policies"));
    if policies.is_empty() {
        errors.required(&path, "must specify at least one Policy");
    }
    for (i, policy) in policies.iter().enumerate() {
        let path = path.index(i);
        one_of(
            &policy["type"],
            &["Percent", "Pods"],
            &path.child("type"),
            errors,
        );
        for field in ["value", "periodSeconds"] {
            let number = policy[field].int().unwrap_or_default();
            if number <= 0 {
                errors.invalid(path.child(field), number, "must be greater than zero");
            }
        }
        if let Some(period) = policy["periodSeconds"]
            .int()
            .filter(|p| *p > LONGEST_PERIOD)
        {
            errors.invalid(
                path.child("periodSeconds"),
                period,
                format!("must be less than or equal to {LONGEST_PERIOD}"),
            );
        }
    }
}

fn validate_metric(metric: &Value, path: &Path, errors: &mut FieldErrors) {
    let types = SOURCES.map(|(type_, _)| type_);
    one_of(&metric["type"], &types, &path.child("type"), errors);
    let Some((type_, field)) = SOURCES.iter().find(|(type_, _)| metric["type"] == *type_) else {
        return;
    };
    let source = &metric[*field];
    if source.is_null() {
        errors.required(
            path.child(field),
            format!("must populate information for the given metric source of type {type_}"),
        );
        return;
    }
    let target = &source["target"];
    let path = path.child(field).child("target");
    one_of(
        &target["type"],
        &["AverageValue", "Utilization", "Value"],
        &path.child("type"),
        errors,
    );
    for field in ["averageUtilization", "averageValue", "value"] {
        if target[field].int().is_some_and(|n| n < 1) {
            errors.invalid(
                path.child(field),
                target[field].clone(),
                "must be greater than 0",
            );
        }
    }
}

/// `cpu: 40%/80%, 12/20`, two at most.
fn targets(metrics: &Value, current: &Value) -> String {
    let list = metrics.items();
    if list.is_empty() {
        return "<none>".into();
    }
    let texts: Vec<String> = list
        .iter()
        .enumerate()
        .take(2)
        .map(|(i, metric)| target(metric, current.items().get(i).unwrap_or(&Value::Null)))
        .collect();
    match list.len() {
        n if n > 2 => format!("{} + {} more...", texts.join(", "), n - 2),
        _ => texts.join(", "),
    }
}

fn target(metric: &Value, current: &Value) -> String {
    let Some((_, field)) = SOURCES.iter().find(|(type_, _)| metric["type"] == *type_) else {
        return "<unknown type>".into();
    };
    let (source, now) = (&metric[*field], &current[*field]["current"]);
    let wanted = &source["target"];
    let prefix = match metric["type"].text() {
        "Resource" => format!("{}: ", source["name"].text()),
        "ContainerResource" => format!("{}: ", source["name"].text()),
        _ => String::new(),
    };
    let shown = |value: &Value, unit: &str| match value {
        Value::Null => "<unknown>".to_owned(),
        Value::String(text) => format!("{text}{unit}"),
        other => format!("{other}{unit}"),
    };
    if wanted["averageUtilization"].present() {
        format!(
            "{prefix}{}/{}",
            shown(&now["averageUtilization"], "%"),
            shown(&wanted["averageUtilization"], "%")
        )
    } else if wanted["averageValue"].present() {
        let average = if matches!(metric["type"].text(), "External" | "Object") {
            " (avg)"
        } else {
            ""
        };
        format!(
            "{prefix}{}/{}{average}",
            shown(&now["averageValue"], ""),
            shown(&wanted["averageValue"], "")
        )
    } else {
        format!(
            "{prefix}{}/{}",
            shown(&now["value"], ""),
            shown(&wanted["value"], "")
        )
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_minimal_autoscaler_aims_at_four_fifths_of_cpu() {
        let mut object = json!({"metadata": {"name": "h"}, "spec": {"maxReplicas": 5, "scaleTargetRef": {"kind": "Deployment", "name": "web"}}});
        Autoscalers.default(&mut object);
        assert!(Autoscalers.validate_create(&object).is_empty());
        let row = Autoscalers.row(&object, "2026-01-01T00:00:00Z".parse().unwrap());
        assert_eq!(
            Value::from(row),
            json!([
                "h",
                "Deployment/web",
                "cpu: <unknown>/80%",
                "1",
                5,
                0,
                "<unknown>"
            ])
        );
    }

    #[test]
    fn bounds_are_in_order() {
        let errors = Autoscalers.validate_create(&json!({"spec": {"minReplicas": 3, "maxReplicas": 2, "scaleTargetRef": {"kind": "a", "name": "b"}}}));
        assert_eq!(
            errors.0[0].text(),
            "spec.maxReplicas: Invalid value: 2: must be greater than or equal to `minReplicas`"
        );
    }
}
