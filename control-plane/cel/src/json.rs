//! Values as JSON.

use base64::Engine as _;
use serde_json::{Map, Value as Json};

use crate::error::EvalError;
use crate::library::time;
use crate::value::Val;

impl Val<'_> {
    /// As JSON: times and durations as text, bytes in base64, an empty optional as null.
    ///
    /// # Errors
    /// For values that have no JSON: types, library values, numbers that are not finite.
    pub fn to_json(&self) -> Result<Json, EvalError> {
        let unfit = || EvalError::failed(format!("type '{}' has no JSON form", self.type_name()));
        Ok(match self {
            Self::Null | Self::Optional(None) => Json::Null,
            Self::Bool(value) => Json::Bool(*value),
            Self::Int(value) => (*value).into(),
            Self::Uint(value) => (*value).into(),
            Self::Double(value) => whole_or_float(*value).ok_or_else(unfit)?,
            Self::String(text) => text.as_str().into(),
            Self::Bytes(bytes) => base64::engine::general_purpose::STANDARD
                .encode(bytes)
                .into(),
            Self::Duration(nanos) => time::format_duration(*nanos).into(),
            Self::Timestamp(time) => time.to_string().into(),
            Self::List(items) => items
                .iter()
                .filter(|item| !matches!(item, Self::Optional(None)))
                .map(Self::to_json)
                .collect::<Result<_, _>>()?,
            Self::Map(entries) => {
                let mut object = Map::new();
                for (key, value) in entries.iter() {
                    object.insert(key.to_string(), value.to_json()?);
                }
                Json::Object(object)
            }
            Self::Struct(_, fields) => {
                let mut object = Map::new();
                for (key, value) in fields.iter() {
                    object.insert(key.to_string(), value.to_json()?);
                }
                Json::Object(object)
            }
            Self::Json(json, _) => (*json).clone(),
            Self::Optional(Some(inner)) => inner.to_json()?,
            Self::Type(_) | Self::Opaque(_) | Self::Authorization(_) | Self::Variables => {
                return Err(unfit());
            }
        })
    }
}

fn whole_or_float(value: f64) -> Option<Json> {
    serde_json::Number::from_f64(value).map(Json::Number)
}
