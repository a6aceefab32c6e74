//! Values of expressions. JSON that is bound to a variable is read in place, by the variable's declared type.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use jiff::Timestamp;
use serde_json::Value as Json;

use crate::library::authorizer::Authorization;
use crate::library::opaque::Opaque;
use crate::types::Type;

/// A text, borrowed from JSON or made by the expression.
#[derive(Clone)]
pub enum Text<'a> {
    /// Part of a bound document.
    Borrowed(&'a str),
    /// Made.
    Shared(Arc<str>),
}

impl Text<'_> {
    /// As text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        match self {
            Self::Borrowed(text) => text,
            Self::Shared(text) => text,
        }
    }
}

/// A key of a map that the expression made.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
#[allow(missing_docs)]
pub enum Key {
    Bool(bool),
    /// Also for uints and doubles that are whole: `{1: x}[1u]` finds.
    Int(i64),
    Uint(u64),
    String(Arc<str>),
}

/// A value. `'a` is the life of the bound documents.
#[derive(Clone)]
#[allow(missing_docs)]
pub enum Val<'a> {
    Null,
    Bool(bool),
    Int(i64),
    Uint(u64),
    Double(f64),
    String(Text<'a>),
    Bytes(Arc<[u8]>),
    /// Nanoseconds.
    Duration(i64),
    Timestamp(Timestamp),
    List(Arc<Vec<Val<'a>>>),
    Map(Arc<BTreeMap<Key, Val<'a>>>),
    /// An array or object of a document, with its type.
    Json(&'a Json, Type),
    /// An object that the expression made, with its type's name.
    Struct(Arc<str>, Arc<BTreeMap<Arc<str>, Val<'a>>>),
    Optional(Option<Arc<Val<'a>>>),
    Type(Arc<str>),
    /// A value of a library.
    Opaque(Arc<Opaque>),
    /// `authorizer` and what is made from it.
    Authorization(Authorization<'a>),
    /// `variables`: the composed variables, each evaluated when it is first used.
    Variables,
}

impl<'a> Val<'a> {
    /// A text.
    #[must_use]
    pub fn string(text: impl Into<Arc<str>>) -> Self {
        Self::String(Text::Shared(text.into()))
    }

    /// A list.
    #[must_use]
    pub fn list(items: Vec<Self>) -> Self {
        Self::List(Arc::new(items))
    }

    /// A full optional.
    #[must_use]
    pub fn some(value: Self) -> Self {
        Self::Optional(Some(Arc::new(value)))
    }

    /// A library's value.
    #[must_use]
    pub fn opaque(value: Opaque) -> Self {
        Self::Opaque(Arc::new(value))
    }

    /// A part of a document.
    #[must_use]
    pub fn from_json(json: &'a Json, type_: &Type) -> Self {
        if let Type::Optional(inner) = type_ {
            return Self::some(Self::from_json(json, inner));
        }
        match json {
            Json::Null => Self::Null,
            Json::Bool(value) => Self::Bool(*value),
            Json::Number(number) => match (number.as_i64(), type_) {
                (Some(number), Type::Double) => Self::Double(number as f64),
                (Some(number), _) => Self::Int(number),
                (None, _) => Self::Double(number.as_f64().unwrap_or(f64::NAN)),
            },
            Json::String(text) => Self::typed_text(text, type_),
            Json::Array(_) | Json::Object(_) => Self::Json(json, type_.clone()),
        }
    }

    /// A text of a document; those that are not what their type says stay text.
    fn typed_text(text: &'a str, type_: &Type) -> Self {
        use base64::Engine as _;
        let typed = match type_ {
            Type::Timestamp => crate::library::time::parse_timestamp(text).map(Self::Timestamp),
            Type::Duration => crate::library::time::parse_duration(text).map(Self::Duration),
            Type::Bytes(_) => base64::engine::general_purpose::STANDARD
                .decode(text)
                .ok()
                .map(|bytes| Self::Bytes(bytes.into())),
            _ => None,
        };
        typed.unwrap_or(Self::String(Text::Borrowed(text)))
    }

    /// As a bool.
    #[must_use]
    pub fn as_bool(&self) -> Option<bool> {
        match self {
            Self::Bool(value) => Some(*value),
            _ => None,
        }
    }

    /// As an int.
    #[must_use]
    pub fn as_int(&self) -> Option<i64> {
        match self {
            Self::Int(value) => Some(*value),
            _ => None,
        }
    }

    /// As text.
    #[must_use]
    pub fn as_str(&self) -> Option<&str> {
        match self {
            Self::String(text) => Some(text.as_str()),
            _ => None,
        }
    }

    /// As a list.
    #[must_use]
    pub fn as_list(&self) -> Option<ListView<'_, 'a>> {
        match self {
            Self::List(items) => Some(ListView::Made(items)),
            Self::Json(Json::Array(items), type_) => Some(ListView::Json(
                items,
                match type_ {
                    Type::List(item, _) => item,
                    _ => &Type::Dyn,
                },
            )),
            _ => None,
        }
    }

    /// As a map; objects of documents are maps too.
    #[must_use]
    pub fn as_map(&self) -> Option<MapView<'_, 'a>> {
        match self {
            Self::Map(entries) => Some(MapView::Made(entries)),
            Self::Json(Json::Object(entries), type_) => Some(MapView::Json(entries, type_)),
            Self::Struct(_, fields) => Some(MapView::Struct(fields)),
            _ => None,
        }
    }

    /// As a key of a map.
    #[must_use]
    pub fn as_key(&self) -> Option<Key> {
        Some(match self {
            Self::Bool(value) => Key::Bool(*value),
            Self::Int(value) => Key::Int(*value),
            Self::Uint(value) => i64::try_from(*value).map_or(Key::Uint(*value), Key::Int),
            Self::Double(value) if value.fract() == 0.0 && value.abs() < 9e15 => {
                Key::Int(*value as i64)
            }
            Self::String(Text::Shared(text)) => Key::String(Arc::clone(text)),
            Self::String(Text::Borrowed(text)) => Key::String((*text).into()),
            _ => return None,
        })
    }

    /// The name of its type, as `type(x)` prints it.
    #[must_use]
    pub fn type_name(&self) -> Arc<str> {
        match self {
            Self::Null => "null_type".into(),
            Self::Bool(_) => "bool".into(),
            Self::Int(_) => "int".into(),
            Self::Uint(_) => "uint".into(),
            Self::Double(_) => "double".into(),
            Self::String(_) => "string".into(),
            Self::Bytes(_) => "bytes".into(),
            Self::Duration(_) => "google.protobuf.Duration".into(),
            Self::Timestamp(_) => "google.protobuf.Timestamp".into(),
            Self::List(_) | Self::Json(Json::Array(_), _) => "list".into(),
            Self::Json(_, Type::Object(fields)) => fields.name().into(),
            Self::Map(_) | Self::Json(..) => "map".into(),
            Self::Struct(name, _) => Arc::clone(name),
            Self::Optional(_) => "optional_type".into(),
            Self::Type(_) => "type".into(),
            Self::Opaque(value) => value.type_name().into(),
            Self::Authorization(value) => value.type_name().into(),
            Self::Variables => "kubernetes.variables".into(),
        }
    }
}

impl Key {
    /// As a value.
    #[must_use]
    pub fn to_val<'a>(&self) -> Val<'a> {
        match self {
            Self::Bool(value) => Val::Bool(*value),
            Self::Int(value) => Val::Int(*value),
            Self::Uint(value) => Val::Uint(*value),
            Self::String(text) => Val::String(Text::Shared(Arc::clone(text))),
        }
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Bool(value) => write!(f, "{value}"),
            Self::Int(value) => write!(f, "{value}"),
            Self::Uint(value) => write!(f, "{value}"),
            Self::String(text) => f.write_str(text),
        }
    }
}

/// A list, wherever its items are.
#[derive(Clone, Copy)]
#[allow(missing_docs)]
pub enum ListView<'v, 'a> {
    Made(&'v [Val<'a>]),
    Json(&'a [Json], &'v Type),
}

impl<'a> ListView<'_, 'a> {
    /// Number of items.
    #[must_use]
    pub fn len(&self) -> usize {
        match self {
            Self::Made(items) => items.len(),
            Self::Json(items, _) => items.len(),
        }
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// An item.
    #[must_use]
    pub fn get(&self, index: usize) -> Option<Val<'a>> {
        match self {
            Self::Made(items) => items.get(index).cloned(),
            Self::Json(items, type_) => items.get(index).map(|item| Val::from_json(item, type_)),
        }
    }

    /// All items.
    pub fn iter(&self) -> impl Iterator<Item = Val<'a>> + '_ {
        (0..self.len()).filter_map(|i| self.get(i))
    }
}

/// A map, wherever its entries are.
#[derive(Clone, Copy)]
#[allow(missing_docs)]
pub enum MapView<'v, 'a> {
    Made(&'v BTreeMap<Key, Val<'a>>),
    Struct(&'v BTreeMap<Arc<str>, Val<'a>>),
    Json(&'a serde_json::Map<String, Json>, &'v Type),
}

impl<'a> MapView<'_, 'a> {
    /// Number of entries.
    #[must_use]
    pub fn len(&self) -> usize {
        match self {
            Self::Made(entries) => entries.len(),
            Self::Struct(entries) => entries.len(),
            Self::Json(entries, _) => entries.len(),
        }
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The value of a field by its name in expressions.
    #[must_use]
    pub fn field(&self, name: &str) -> Option<Val<'a>> {
        match self {
            Self::Made(entries) => entries.get(&Key::String(name.into())).cloned(),
            Self::Struct(entries) => entries.get(name).cloned(),
            Self::Json(entries, Type::Object(fields)) => {
                let field = fields.field(name)?;
                let json = entries.get(&*field.json_name)?;
                Some(Val::from_json(json, &field.type_))
            }
            Self::Json(entries, Type::Map(_, value, _)) => {
                Some(Val::from_json(entries.get(name)?, value))
            }
            Self::Json(entries, _) => Some(Val::from_json(entries.get(name)?, &Type::Dyn)),
        }
    }

    /// The value of a key.
    #[must_use]
    pub fn get(&self, key: &Val<'_>) -> Option<Val<'a>> {
        match (self, key.as_key()?) {
            (Self::Made(entries), key) => entries.get(&key).cloned(),
            (_, Key::String(name)) => self.field(&name),
            _ => None,
        }
    }

    /// All keys, in order.
    #[must_use]
    pub fn keys(&self) -> Vec<Val<'a>> {
        match self {
            Self::Made(entries) => entries.keys().map(Key::to_val).collect(),
            Self::Struct(entries) => entries
                .keys()
                .map(|k| Val::String(Text::Shared(Arc::clone(k))))
                .collect(),
            Self::Json(entries, _) => entries
                .keys()
                .map(|k| Val::String(Text::Borrowed(k)))
                .collect(),
        }
    }

    /// All entries, in order of the keys.
    #[must_use]
    pub fn entries(&self) -> Vec<(Val<'a>, Val<'a>)> {
        self.keys()
            .into_iter()
            .filter_map(|key| {
                let value = match (self, key.as_str()) {
                    // Keys of a document are its own names, not those in expressions.
                    (Self::Json(entries, Type::Object(_)), Some(name)) => {
                        Val::from_json(entries.get(name)?, &Type::Dyn)
                    }
                    _ => self.get(&key)?,
                };
                Some((key, value))
            })
            .collect()
    }
}

impl fmt::Debug for Val<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.to_json() {
            Ok(json) => write!(f, "{}({json})", self.type_name()),
            Err(_) => f.write_str(&self.type_name()),
        }
    }
}
