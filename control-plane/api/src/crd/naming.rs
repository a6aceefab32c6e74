//! Which names a definition gets, and the conditions that say so. The leader writes them; every server serves by
//! them.
//!
//! Rules: apiextensions-apiserver `controller/status/naming_controller.go`.

use serde_json::{Map, Value, json};

use crate::kinds::walk::Walk;
use crate::object;

/// Names that are taken in one group, each with the definition that has it.
#[derive(Debug, Default)]
struct Taken {
    resources: Vec<(String, String)>,
    kinds: Vec<(String, String)>,
}

impl Taken {
    fn of(group: &str, own: &str, definitions: &[&Value]) -> Self {
        let mut taken = Self::default();
        for definition in definitions {
            let name = object::name(definition);
            if name == own || definition["spec"]["group"].text() != group {
                continue;
            }
            let names = &definition["status"]["acceptedNames"];
            let mut resource = |text: &str| {
                if !text.is_empty() {
                    taken.resources.push((text.to_owned(), name.to_owned()));
                }
            };
            resource(names["plural"].text());
            resource(names["singular"].text());
            names["shortNames"]
                .items()
                .iter()
                .for_each(|n| resource(n.text()));
            for key in ["kind", "listKind"] {
                if !names[key].text().is_empty() {
                    taken
                        .kinds
                        .push((names[key].text().to_owned(), name.to_owned()));
                }
            }
        }
        taken
    }

    fn resource(&self, name: &str) -> bool {
        self.resources.iter().any(|(taken, _)| taken == name)
    }

    fn kind(&self, name: &str) -> bool {
        self.kinds.iter().any(|(taken, _)| taken == name)
    }
}

/// Sets a condition; its time changes with its status only.
pub fn set_condition(
    status: &mut Value,
    type_: &str,
    holds: &str,
    reason: &str,
    message: &str,
    now: &str,
) {
    let Some(status) = status.as_object_mut() else {
        return;
    };
    let list = status
        .entry("conditions")
        .or_insert_with(|| Value::Array(Vec::new()));
    if !list.is_array() {
        *list = Value::Array(Vec::new());
    }
    let Some(list) = list.as_array_mut() else {
        return;
    };
    let found = list.iter_mut().find(|c| c["type"].text() == type_);
    let time = match &found {
        Some(old) if old["status"].text() == holds => old["lastTransitionTime"].clone(),
        _ => now.into(),
    };
    let condition = json!({"type": type_, "status": holds, "reason": reason, "message": message, "lastTransitionTime": time});
    match found {
        Some(slot) => *slot = condition,
        None => list.push(condition),
    }
}

/// Is a condition of a definition true?
#[must_use]
pub fn is_true(definition: &Value, type_: &str) -> bool {
    definition["status"]["conditions"]
        .items()
        .iter()
        .any(|c| c["type"].text() == type_ && c["status"].text() == "True")
}

/// The status that a definition should have among others, of which `definitions` are all. `None` when it has it
/// already. `now` is RFC 3339.
#[must_use]
pub fn status(definition: &Value, definitions: &[&Value], now: &str) -> Option<Value> {
    let spec = &definition["spec"];
    let wanted = &spec["names"];
    let mut status = definition["status"].clone();
    if !status.is_object() {
        status = json!({});
    }
    let taken = Taken::of(spec["group"].text(), object::name(definition), definitions);
    let mut accepted = status["acceptedNames"]
        .as_object()
        .cloned()
        .unwrap_or_default();
    let mut conflict: Option<(&str, String)> = None;
    let mut note = |reason: &'static str, why: String| conflict = Some((reason, why));
    for (key, reason) in [
        ("plural", "PluralConflict"),
        ("singular", "SingularConflict"),
    ] {
        let name = wanted[key].text();
        if taken.resource(name) {
            note(reason, format!("\"{name}\" is already in use"));
        } else {
            set(&mut accepted, key, &wanted[key]);
        }
    }
    let clashing: Vec<String> = wanted["shortNames"]
        .items()
        .iter()
        .filter(|n| taken.resource(n.text()))
        .map(|n| format!("\"{}\" is already in use", n.text()))
        .collect();
    if clashing.is_empty() {
        set(&mut accepted, "shortNames", &wanted["shortNames"]);
    } else {
        note("ShortNamesConflict", clashing.join(", "));
    }
    for (key, reason) in [("kind", "KindConflict"), ("listKind", "ListKindConflict")] {
        let name = wanted[key].text();
        if taken.kind(name) {
            note(reason, format!("\"{name}\" is already in use"));
        } else {
            set(&mut accepted, key, &wanted[key]);
        }
    }
    set(&mut accepted, "categories", &wanted["categories"]);
    status["acceptedNames"] = accepted.into();
    let established = is_true(definition, "Established");
    match conflict {
        Some((reason, why)) => {
            set_condition(&mut status, "NamesAccepted", "False", reason, &why, now);
            if !established {
                let why = "not all names are accepted";
                set_condition(&mut status, "Established", "False", "NotAccepted", why, now);
            }
        }
        None => {
            let why = "no conflicts found";
            set_condition(
                &mut status,
                "NamesAccepted",
                "True",
                "NoConflicts",
                why,
                now,
            );
            let why = "the initial names have been accepted";
            set_condition(
                &mut status,
                "Established",
                "True",
                "InitialNamesAccepted",
                why,
                now,
            );
        }
    }
    (status != definition["status"]).then_some(status)
}

fn set(names: &mut Map<String, Value>, key: &str, value: &Value) {
    if value.is_empty() {
        names.remove(key);
    } else {
        names.insert(key.to_owned(), value.clone());
    }
}
