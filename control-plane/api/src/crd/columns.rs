//! The Table of a custom kind: `additionalPrinterColumns`.

use jiff::Timestamp;
use serde_json::Value;

use super::jsonpath::JsonPath;
use crate::kind::Column;
use crate::kinds::walk::Walk;
use crate::table;

/// The columns of one version.
#[derive(Debug, Clone)]
pub struct Columns(Vec<Printer>);

#[derive(Debug, Clone)]
struct Printer {
    column: Column,
    path: Option<JsonPath>,
}

impl Columns {
    /// From a version's `additionalPrinterColumns`; none at all means the age.
    #[must_use]
    pub fn parse(columns: &Value) -> Self {
        let mut list: Vec<Printer> = columns.items().iter().map(Printer::parse).collect();
        if columns.is_null() || list.is_empty() {
            list = vec![Printer {
                column: Column {
                    name: "Age".into(),
                    type_: "date".into(),
                    format: "".into(),
                    description: "Time since the object was created.".into(),
                    priority: 0,
                },
                path: JsonPath::parse(".metadata.creationTimestamp").ok(),
            }];
        }
        Self(list)
    }

    /// Column definitions, the name first.
    #[must_use]
    pub fn definitions(&self) -> Vec<Column> {
        std::iter::once(table::name_column())
            .chain(self.0.iter().map(|p| p.column.clone()))
            .collect()
    }

    /// The cells of one object.
    #[must_use]
    pub fn row(&self, object: &Value, now: Timestamp) -> Vec<Value> {
        std::iter::once(table::name(object))
            .chain(self.0.iter().map(|p| p.cell(object, now)))
            .collect()
    }
}

impl Printer {
    fn parse(value: &Value) -> Self {
        let text = |key: &str| value[key].text().to_owned();
        Self {
            column: Column {
                name: text("name").into(),
                type_: text("type").into(),
                format: text("format").into(),
                description: text("description").into(),
                priority: value["priority"]
                    .int()
                    .and_then(|p| i32::try_from(p).ok())
                    .unwrap_or_default(),
            },
            path: JsonPath::parse(value["jsonPath"].text()).ok(),
        }
    }

    /// The first thing that the path leads to, if it is of the column's type; null otherwise.
    fn cell(&self, object: &Value, now: Timestamp) -> Value {
        let found = self
            .path
            .as_ref()
            .map(|p| p.find(object))
            .unwrap_or_default();
        let Some(first) = found.first() else {
            return Value::Null;
        };
        match &*self.column.type_ {
            "integer" => match first {
                Value::Number(n) => n
                    .as_i64()
                    .or_else(|| n.as_f64().map(|f| f as i64))
                    .map_or(Value::Null, Value::from),
                Value::String(text) => text.parse::<i64>().map_or(Value::Null, Value::from),
                _ => Value::Null,
            },
            "number" => match first {
                Value::Number(_) => (*first).clone(),
                Value::String(text) => text.parse::<f64>().map_or(Value::Null, Value::from),
                _ => Value::Null,
            },
            "boolean" => match first {
                Value::Bool(_) => (*first).clone(),
                Value::String(text) => text.parse::<bool>().map_or(Value::Null, Value::from),
                _ => Value::Null,
            },
            "string" => text_of(&found).into(),
            "date" => match first {
                Value::String(text) => match crate::object::parse_time(text) {
                    Some(_) => table::since(text, now).into(),
                    None => "<invalid>".into(),
                },
                _ => "<unknown>".into(),
            },
            _ => Value::Null,
        }
    }
}

/// What kubectl prints of the values that a path leads to: separated by spaces, composite ones as JSON.
fn text_of(found: &[&Value]) -> String {
    let texts: Vec<String> = found
        .iter()
        .map(|value| match value {
            Value::String(text) => text.clone(),
            Value::Null => String::new(),
            other => other.to_string(),
        })
        .collect();
    texts.join(" ")
}
