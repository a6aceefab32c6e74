//! Between core/v1 and events.k8s.io/v1: the same data under other names.

use std::borrow::Cow;

use serde_json::Value;

use crate::kinds::convert::Convert;
use crate::kinds::walk::set;

/// Member names in core/v1 and in events.k8s.io/v1, where they differ.
const NAMES: [(&str, &str); 7] = [
    ("involvedObject", "regarding"),
    ("message", "note"),
    ("source", "deprecatedSource"),
    ("firstTimestamp", "deprecatedFirstTimestamp"),
    ("lastTimestamp", "deprecatedLastTimestamp"),
    ("count", "deprecatedCount"),
    ("reportingComponent", "reportingController"),
];

/// events.k8s.io/v1 Events, stored as core/v1 Events.
pub(crate) struct EventShapes;

fn renamed(
    mut object: Value,
    api_version: &str,
    name: impl Fn(&str) -> Option<&'static str>,
) -> Value {
    if let Some(map) = object.as_object_mut() {
        *map = std::mem::take(map)
            .into_iter()
            .map(|(key, value)| (name(&key).map(str::to_owned).unwrap_or(key), value))
            .collect();
    }
    set(&mut object, "apiVersion", api_version);
    object
}

impl Convert for EventShapes {
    fn stored_as(&self) -> [&'static str; 3] {
        ["", "v1", "Event"]
    }

    fn to_stored(&self, object: Value) -> Value {
        renamed(object, "v1", |key| {
            NAMES
                .iter()
                .find(|(_, new)| *new == key)
                .map(|(core, _)| *core)
        })
    }

    fn from_stored(&self, object: Value) -> Value {
        renamed(object, "events.k8s.io/v1", |key| {
            NAMES
                .iter()
                .find(|(core, _)| *core == key)
                .map(|(_, new)| *new)
        })
    }

    fn stored_field<'a>(&self, field: &'a str) -> Cow<'a, str> {
        match field.strip_prefix("regarding.") {
            Some(rest) => Cow::Owned(format!("involvedObject.{rest}")),
            None if field == "reportingController" => Cow::Borrowed("reportingComponent"),
            None => Cow::Borrowed(field),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn there_and_back_nothing_is_lost() {
        let new = json!({
            "apiVersion": "events.k8s.io/v1", "kind": "Event", "metadata": {"name": "e"},
            "regarding": {"kind": "Pod"}, "note": "n", "reportingController": "c", "deprecatedCount": 2,
            "eventTime": "2026-01-01T00:00:00.000000Z", "series": {"count": 2},
        });
        let stored = EventShapes.to_stored(new.clone());
        assert_eq!(stored["apiVersion"], "v1");
        assert_eq!(stored["involvedObject"]["kind"], "Pod");
        assert_eq!(
            (&stored["message"], &stored["count"]),
            (&json!("n"), &json!(2))
        );
        assert_eq!(EventShapes.from_stored(stored), new);
        assert_eq!(
            EventShapes.stored_field("regarding.name"),
            "involvedObject.name"
        );
    }
}
