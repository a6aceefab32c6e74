//! Events, in both shapes: core/v1, which is stored, and events.k8s.io/v1.

mod shapes;

use std::sync::Arc;

use jiff::Timestamp;
use serde_json::Value;

use super::convert::Convert as _;
use super::declare::{Declaration, without_status};
use super::walk::{Walk, same};
use crate::kind::{Column, Kind, Name, Strategy};
use crate::status::{ErrorKind, FieldError, FieldErrors};
use crate::table::{column, name, name_column, since, wide};
use crate::validation::{Path, each_invalid, names};

pub(super) use shapes::EventShapes;

const FIELDS: &[&str] = &[
    "involvedObject.kind",
    "involvedObject.namespace",
    "involvedObject.name",
    "involvedObject.uid",
    "involvedObject.apiVersion",
    "involvedObject.resourceVersion",
    "involvedObject.fieldPath",
    "reason",
    "reportingComponent",
    "source",
    "type",
];

pub(super) fn core_kind() -> Arc<Kind> {
    Declaration::namespaced("", "v1", "Event", "events", CoreEvents)
        .short_names(&["ev"])
        .build()
}

pub(super) fn events_kind() -> Arc<Kind> {
    Declaration::namespaced("events.k8s.io", "v1", "Event", "events", NewEvents)
        .short_names(&["ev"])
        .build()
}

/// Events of core/v1.
struct CoreEvents;

impl Strategy for CoreEvents {
    without_status!();

    fn validate_create(&self, object: &Value) -> FieldErrors {
        let mut errors = FieldErrors::default();
        validate_place(
            object,
            &object["involvedObject"],
            "involvedObject",
            &mut errors,
        );
        errors
    }

    fn validate_update(&self, object: &Value, _old: &Value) -> FieldErrors {
        self.validate_create(object)
    }

    fn selectable_fields(&self, object: &Value) -> Vec<(Name, String)> {
        let about = &object["involvedObject"];
        let source = object["source"]["component"].text();
        let reporter = object["reportingComponent"].text();
        let mut fields: Vec<(Name, String)> = [
            "kind",
            "namespace",
            "name",
            "uid",
            "apiVersion",
            "resourceVersion",
            "fieldPath",
        ]
        .map(|f| {
            (
                format!("involvedObject.{f}").into(),
                about[f].text().to_owned(),
            )
        })
        .into();
        fields.extend([
            ("reason".into(), object["reason"].text().to_owned()),
            ("reportingComponent".into(), reporter.to_owned()),
            (
                "source".into(),
                if source.is_empty() { reporter } else { source }.to_owned(),
            ),
            ("type".into(), object["type"].text().to_owned()),
        ]);
        fields
    }

    fn selectable_field_names(&self) -> &'static [&'static str] {
        FIELDS
    }

    fn columns(&self) -> Vec<Column> {
        columns()
    }

    fn row(&self, object: &Value, now: Timestamp) -> Vec<Value> {
        row(object, now)
    }
}

/// Events of events.k8s.io/v1.
struct NewEvents;

impl Strategy for NewEvents {
    without_status!();

    fn validate_create(&self, object: &Value) -> FieldErrors {
        let mut errors = FieldErrors::default();
        validate_place(object, &object["regarding"], "regarding", &mut errors);
        if object["eventTime"].is_empty() {
            errors.required("eventTime", "");
        }
        validate_texts(object, &mut errors);
        if object["series"].present() {
            validate_series(&object["series"], &mut errors);
        }
        for field in ["deprecatedFirstTimestamp", "deprecatedLastTimestamp"] {
            if object[field].present() {
                errors.invalid(field, object[field].clone(), "needs to be unset");
            }
        }
        if object["deprecatedCount"].int().unwrap_or_default() != 0 {
            errors.invalid(
                "deprecatedCount",
                object["deprecatedCount"].clone(),
                "needs to be unset",
            );
        }
        if !object["deprecatedSource"].is_empty() {
            errors.invalid(
                "deprecatedSource",
                object["deprecatedSource"].clone(),
                "needs to be unset",
            );
        }
        errors
    }

    fn validate_update(&self, object: &Value, old: &Value) -> FieldErrors {
        let mut errors = FieldErrors::default();
        validate_place(object, &object["regarding"], "regarding", &mut errors);
        for field in [
            "regarding",
            "reason",
            "note",
            "type",
            "eventTime",
            "action",
            "related",
            "reportingController",
            "reportingInstance",
        ] {
            if !same(&object[field], &old[field]) {
                errors.invalid(field, object[field].clone(), "field is immutable");
            }
        }
        if object["series"].present() {
            validate_series(&object["series"], &mut errors);
        }
        errors
    }

    fn selectable_fields(&self, object: &Value) -> Vec<(Name, String)> {
        let rename = |field: Name| match field.strip_prefix("involvedObject.") {
            Some(rest) => format!("regarding.{rest}").into(),
            None if field == "reportingComponent" => Name::Borrowed("reportingController"),
            None => field,
        };
        let stored = EventShapes.to_stored(object.clone());
        CoreEvents
            .selectable_fields(&stored)
            .into_iter()
            .map(|(field, value)| (rename(field), value))
            .collect()
    }

    fn selectable_field_names(&self) -> &'static [&'static str] {
        &[
            "regarding.kind",
            "regarding.namespace",
            "regarding.name",
            "regarding.uid",
            "regarding.apiVersion",
            "regarding.resourceVersion",
            "regarding.fieldPath",
            "reason",
            "reportingController",
            "source",
            "type",
        ]
    }

    fn columns(&self) -> Vec<Column> {
        columns()
    }

    fn row(&self, object: &Value, now: Timestamp) -> Vec<Value> {
        row(&EventShapes.to_stored(object.clone()), now)
    }
}

/// An Event is in its object's namespace; Events of cluster-wide objects are in `default`.
fn validate_place(object: &Value, about: &Value, field: &str, errors: &mut FieldErrors) {
    let place = object["metadata"]["namespace"].text();
    let namespace = about["namespace"].text();
    let fits = if namespace.is_empty() {
        matches!(place, "" | "default")
    } else {
        place == namespace
    };
    if !fits {
        errors.invalid(
            Path::new(field).child("namespace"),
            namespace,
            "does not match event.namespace",
        );
    }
}

fn validate_texts(object: &Value, errors: &mut FieldErrors) {
    let controller = object["reportingController"].text();
    if controller.is_empty() {
        errors.required("reportingController", "");
    }
    each_invalid(
        &Path::new("reportingController"),
        controller,
        names::qualified_name(controller),
        errors,
    );
    for field in ["reportingInstance", "action", "reason"] {
        let text = object[field].text();
        if text.is_empty() {
            errors.required(field, "");
        }
        if text.len() > 128 {
            errors.invalid(field, "", "can have at most 128 characters");
        }
    }
    if object["note"].text().len() > 1024 {
        errors.invalid("note", "", "can have at most 1024 characters");
    }
    if !matches!(object["type"].text(), "Normal" | "Warning") {
        errors.invalid(
            "type",
            "",
            "has invalid value: ".to_owned() + object["type"].text(),
        );
    }
}

fn validate_series(series: &Value, errors: &mut FieldErrors) {
    if series["count"].int().unwrap_or_default() < 2 {
        errors.0.push(FieldError {
            kind: ErrorKind::Invalid,
            field: "series.count".into(),
            value: Some("".into()),
            detail: "should be at least 2".into(),
        });
    }
    if series["lastObservedTime"].is_empty() {
        errors.required("series.lastObservedTime", "");
    }
}

fn columns() -> Vec<Column> {
    vec![
        column("Last Seen", "string", "When it happened last."),
        column("Type", "string", "Normal or Warning."),
        column("Reason", "string", "One word for what happened."),
        column("Object", "string", "The object that it happened to."),
        wide("Subobject", "string", "The part of the object."),
        wide("Source", "string", "Who says so."),
        column("Message", "string", "What happened."),
        wide("First Seen", "string", "When it happened first."),
        wide("Count", "string", "How often it happened."),
        Column {
            priority: 1,
            ..name_column()
        },
    ]
}

fn row(event: &Value, now: Timestamp) -> Vec<Value> {
    let or_event_time = |field: &str| match event[field].text() {
        "" => event["eventTime"].text(),
        time => time,
    };
    let first = since(or_event_time("firstTimestamp"), now);
    let series = &event["series"];
    let (last, count) = if series.present() {
        (
            since(series["lastObservedTime"].text(), now),
            series["count"].int().unwrap_or_default(),
        )
    } else {
        (
            since(or_event_time("lastTimestamp"), now),
            event["count"].int().filter(|c| *c > 0).unwrap_or(1),
        )
    };
    let about = &event["involvedObject"];
    let kind = about["kind"].text().to_lowercase();
    let object = match about["name"].text() {
        "" => kind,
        name => format!("{kind}/{name}"),
    };
    vec![
        last.into(),
        event["type"].text().into(),
        event["reason"].text().into(),
        object.into(),
        about["fieldPath"].text().into(),
        source(event).into(),
        event["message"].text().trim().into(),
        first.into(),
        count.into(),
        name(event),
    ]
}

fn source(event: &Value) -> String {
    let pick = |old: &str, new: &str| match event["source"][old].text() {
        "" => event[new].text().to_owned(),
        text => text.to_owned(),
    };
    let (component, host) = (
        pick("component", "reportingComponent"),
        pick("host", "reportingInstance"),
    );
    if host.is_empty() {
        component
    } else {
        format!("{component}, {host}")
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use serde_json::json;

    fn event() -> Value {
        json!({
            "apiVersion": "v1", "kind": "Event",
            "metadata": {"name": "p.1", "namespace": "default"},
            "involvedObject": {"kind": "Pod", "name": "p", "namespace": "default"},
            "reason": "Started", "message": "Started container c\n", "type": "Normal", "count": 3,
            "firstTimestamp": "2026-01-01T00:00:00Z", "lastTimestamp": "2026-01-01T00:00:50Z",
            "source": {"component": "kubelet", "host": "a1"},
        })
    }

    #[test]
    fn the_row_says_what_happened_to_what() {
        let now = "2026-01-01T00:01:00Z".parse().unwrap();
        let expected = json!([
            "10s",
            "Normal",
            "Started",
            "pod/p",
            "",
            "kubelet, a1",
            "Started container c",
            "60s",
            3,
            "p.1"
        ]);
        assert_eq!(Value::from(CoreEvents.row(&event(), now)), expected);
        let new = EventShapes.from_stored(event());
        assert_eq!(Value::from(NewEvents.row(&new, now)), expected);
    }

    #[test]
    fn an_event_lives_beside_its_object() {
        let mut other = event();
        other["involvedObject"]["namespace"] = json!("kube-system");
        assert_eq!(
            CoreEvents.validate_create(&other).0[0].text(),
            "involvedObject.namespace: Invalid value: \"kube-system\": does not match event.namespace"
        );
        other["involvedObject"] = json!({"kind": "Node", "name": "a1"});
        assert!(CoreEvents.validate_create(&other).is_empty());
    }

    #[test]
    fn new_events_need_time_action_and_reporter() {
        let object = json!({"metadata": {"namespace": "default"}, "regarding": {"kind": "Node"}, "reason": "R", "type": "Normal"});
        let fields: Vec<String> = NewEvents
            .validate_create(&object)
            .0
            .into_iter()
            .map(|e| e.field)
            .collect();
        assert_eq!(
            fields,
            [
                "eventTime",
                "reportingController",
                "reportingController",
                "reportingController",
                "reportingInstance",
                "action"
            ]
        );
    }

    #[test]
    fn both_shapes_select_by_the_same_fields() {
        let new = EventShapes.from_stored(event());
        let fields = NewEvents.selectable_fields(&new);
        assert!(fields.contains(&("regarding.name".into(), "p".to_owned())));
        assert_eq!(fields.len(), NewEvents.selectable_field_names().len());
    }
}
