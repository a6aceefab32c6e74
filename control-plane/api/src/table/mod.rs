//! Parts of server-side Tables: column definitions and the cells that many kinds share.

use jiff::Timestamp;
use serde_json::{Value, json};

use crate::duration::human;
use crate::kind::Column;
use crate::kinds::walk::Walk;
use crate::validation::selector::format_label_selector;

/// A column that is always shown.
#[must_use]
pub fn column(name: &'static str, type_: &'static str, description: &'static str) -> Column {
    Column {
        name: name.into(),
        type_: type_.into(),
        format: "".into(),
        description: description.into(),
        priority: 0,
    }
}

/// A column that only `-o wide` shows.
#[must_use]
pub fn wide(name: &'static str, type_: &'static str, description: &'static str) -> Column {
    Column {
        priority: 1,
        ..column(name, type_, description)
    }
}

/// The column of the object's name.
#[must_use]
pub fn name_column() -> Column {
    Column {
        format: "name".into(),
        ..column(
            "Name",
            "string",
            "Name of the object, unique in its namespace.",
        )
    }
}

/// The column of the object's age.
#[must_use]
pub fn age_column() -> Column {
    column("Age", "string", "Time since the object was created.")
}

/// `Name` and `Created At`, for kinds without columns of their own.
#[must_use]
pub fn default_columns() -> Vec<Column> {
    vec![
        name_column(),
        column(
            "Created At",
            "date",
            "When the object was created (RFC 3339, UTC).",
        ),
    ]
}

/// The cells of [`default_columns`].
#[must_use]
pub fn default_row(object: &Value) -> Vec<Value> {
    vec![
        name(object),
        object["metadata"]["creationTimestamp"].clone(),
    ]
}

/// Whole seconds from one time to another.
#[must_use]
pub fn seconds_between(from: Timestamp, to: Timestamp) -> i64 {
    to.duration_since(from).as_secs()
}

/// How long ago an RFC 3339 time was; `<unknown>` for none.
#[must_use]
pub fn since(time: &str, now: Timestamp) -> String {
    match time.parse::<Timestamp>() {
        Ok(time) => human(seconds_between(time, now)),
        Err(_) => "<unknown>".into(),
    }
}

/// The object's name.
#[must_use]
pub fn name(object: &Value) -> Value {
    object["metadata"]["name"].text().into()
}

/// The object's age.
#[must_use]
pub fn age(object: &Value, now: Timestamp) -> Value {
    since(object["metadata"]["creationTimestamp"].text(), now).into()
}

/// A text, or `<none>`.
#[must_use]
pub fn or_none(text: &str) -> Value {
    if text.is_empty() {
        "<none>".into()
    } else {
        text.into()
    }
}

/// A count; absent is 0.
#[must_use]
pub fn count(value: &Value) -> Value {
    value.int().unwrap_or_default().into()
}

/// Names and images of a pod template's containers and the owner's selector: the wide columns of workloads.
#[must_use]
pub fn workload_columns() -> [Column; 3] {
    [
        wide(
            "Containers",
            "string",
            "Names of each container in the template.",
        ),
        wide(
            "Images",
            "string",
            "Images referenced by each container in the template.",
        ),
        wide(
            "Selector",
            "string",
            "Labels of the pods that belong to this object.",
        ),
    ]
}

/// The cells of [`workload_columns`].
#[must_use]
pub fn workload_cells(pod_template: &Value, selector: &Value) -> [Value; 3] {
    let [names, images] = container_cells(pod_template);
    let selector = if selector.is_null() {
        json!("<none>")
    } else {
        format_label_selector(selector).into()
    };
    [names, images, selector]
}

/// Names and images of a pod template's containers.
#[must_use]
pub fn container_cells(pod_template: &Value) -> [Value; 2] {
    ["name", "image"].map(|field| {
        let texts: Vec<&str> = pod_template["spec"]["containers"]
            .items()
            .iter()
            .map(|c| c[field].text())
            .collect();
        texts.join(",").into()
    })
}

/// A map of labels as `a=b,c=d`, or `<none>`.
#[must_use]
pub fn labels(labels: &Value) -> Value {
    let mut parts: Vec<String> = labels
        .entries()
        .map(|(k, v)| format!("{k}={}", v.text()))
        .collect();
    parts.sort_unstable();
    or_none(&parts.join(","))
}
