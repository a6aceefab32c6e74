//! Types of expressions and of the variables they use.

use std::fmt;
use std::sync::Arc;

/// The largest size that values of a type can have: characters of a text, items of a list, entries of a map.
/// Only cost estimates look at it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Size(pub u64);

impl Size {
    /// Nothing is known.
    pub const UNBOUNDED: Self = Self(u64::MAX);
}

/// A field of an object type.
#[derive(Clone)]
pub struct Field {
    /// The key in JSON, which may differ from the name in expressions where that is escaped.
    pub json_name: Arc<str>,
    /// Its type.
    pub type_: Type,
}

/// The fields of an object type. Looked up lazily, so that types may contain themselves.
pub trait Fields: Send + Sync {
    /// The type's name, for messages.
    fn name(&self) -> &str;
    /// A field by its name in expressions.
    fn field(&self, name: &str) -> Option<Field>;
}

/// A type.
#[derive(Clone)]
pub enum Type {
    /// Anything; checked when it runs.
    Dyn,
    /// `null`
    Null,
    /// `bool`
    Bool,
    /// `int`
    Int,
    /// `uint`
    Uint,
    /// `double`
    Double,
    /// `string`
    String(Size),
    /// `bytes`
    Bytes(Size),
    /// `google.protobuf.Duration`
    Duration,
    /// `google.protobuf.Timestamp`
    Timestamp,
    /// `list(item)`
    List(Arc<Type>, Size),
    /// `map(key, value)`
    Map(Arc<Type>, Arc<Type>, Size),
    /// `optional_type(inner)`
    Optional(Arc<Type>),
    /// An object with known fields.
    Object(Arc<dyn Fields>),
    /// The type of a type.
    Type(Arc<Type>),
    /// A type of a library, by name, for example `kubernetes.Quantity`.
    Opaque(&'static str),
    /// A type parameter in a function's declaration.
    Param(char),
}

impl Type {
    /// A text of any length.
    pub const STRING: Self = Self::String(Size::UNBOUNDED);
    /// Bytes of any length.
    pub const BYTES: Self = Self::Bytes(Size::UNBOUNDED);

    /// A list of any length.
    #[must_use]
    pub fn list(item: Self) -> Self {
        Self::List(Arc::new(item), Size::UNBOUNDED)
    }

    /// A map of any size.
    #[must_use]
    pub fn map(key: Self, value: Self) -> Self {
        Self::Map(Arc::new(key), Arc::new(value), Size::UNBOUNDED)
    }

    /// Something or nothing.
    #[must_use]
    pub fn optional(inner: Self) -> Self {
        Self::Optional(Arc::new(inner))
    }

    /// An object with the given fields.
    #[must_use]
    pub fn object(name: &str, fields: Vec<(&str, Self)>) -> Self {
        Self::Object(Arc::new(KnownFields {
            name: name.to_owned(),
            fields: fields
                .into_iter()
                .map(|(name, type_)| (name.to_owned(), name.into(), type_))
                .collect(),
        }))
    }

    /// An object whose fields have names of their own in JSON: name in expressions, name in JSON, type.
    #[must_use]
    pub fn object_of(name: &str, fields: Vec<(String, Arc<str>, Self)>) -> Self {
        Self::Object(Arc::new(KnownFields {
            name: name.to_owned(),
            fields,
        }))
    }

    /// Whether it is the type that anything fits.
    #[must_use]
    pub fn is_dyn(&self) -> bool {
        matches!(self, Self::Dyn)
    }

    /// The size of its largest values.
    #[must_use]
    pub fn size(&self) -> Size {
        match self {
            Self::String(size)
            | Self::Bytes(size)
            | Self::List(_, size)
            | Self::Map(_, _, size) => *size,
            Self::Dyn | Self::Param(_) => Size::UNBOUNDED,
            _ => Size(1),
        }
    }

    /// The same type with another size.
    #[must_use]
    pub fn sized(self, size: Size) -> Self {
        match self {
            Self::String(_) => Self::String(size),
            Self::Bytes(_) => Self::Bytes(size),
            Self::List(item, _) => Self::List(item, size),
            Self::Map(key, value, _) => Self::Map(key, value, size),
            other => other,
        }
    }

    /// Whether values of this type can stand where `wanted` is expected. Sizes do not count.
    #[must_use]
    pub fn fits(&self, wanted: &Self) -> bool {
        match (self, wanted) {
            (Self::Dyn, _) | (_, Self::Dyn) => true,
            (Self::List(a, _), Self::List(b, _)) | (Self::Optional(a), Self::Optional(b)) => {
                a.fits(b)
            }
            (Self::Type(_), Self::Type(_)) => true,
            (Self::Map(ak, av, _), Self::Map(bk, bv, _)) => ak.fits(bk) && av.fits(bv),
            (Self::Object(a), Self::Object(b)) => a.name() == b.name(),
            // Null stands for objects, times and library types that are not there.
            (
                Self::Null,
                Self::Object(_) | Self::Duration | Self::Timestamp | Self::Opaque(_) | Self::Null,
            ) => true,
            (Self::Opaque(a), Self::Opaque(b)) => a == b,
            (Self::Param(a), Self::Param(b)) => a == b,
            _ => std::mem::discriminant(self) == std::mem::discriminant(wanted),
        }
    }

    /// A type that both fit: the first, with the larger size, or `dyn`.
    #[must_use]
    pub fn join(self, other: &Self) -> Self {
        if matches!(self, Self::Null) && !matches!(other, Self::Null) {
            return if self.fits(other) {
                other.clone()
            } else {
                Self::Dyn
            };
        }
        if self.is_dyn() || other.is_dyn() || !other.fits(&self) {
            return Self::Dyn;
        }
        match (self, other) {
            (Self::List(a, s), Self::List(b, t)) => {
                Self::List(Arc::new((*a).clone().join(b)), s.max(*t))
            }
            (Self::Map(ak, av, s), Self::Map(bk, bv, t)) => Self::Map(
                Arc::new((*ak).clone().join(bk)),
                Arc::new((*av).clone().join(bv)),
                s.max(*t),
            ),
            (Self::Optional(a), Self::Optional(b)) => Self::optional((*a).clone().join(b)),
            (mine, other) => {
                let size = mine.size().max(other.size());
                mine.sized(size)
            }
        }
    }
}

impl fmt::Display for Type {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Dyn => f.write_str("dyn"),
            Self::Null => f.write_str("null"),
            Self::Bool => f.write_str("bool"),
            Self::Int => f.write_str("int"),
            Self::Uint => f.write_str("uint"),
            Self::Double => f.write_str("double"),
            Self::String(_) => f.write_str("string"),
            Self::Bytes(_) => f.write_str("bytes"),
            Self::Duration => f.write_str("duration"),
            Self::Timestamp => f.write_str("timestamp"),
            Self::List(item, _) => write!(f, "list({item})"),
            Self::Map(key, value, _) => write!(f, "map({key}, {value})"),
            Self::Optional(inner) => write!(f, "optional_type({inner})"),
            Self::Object(fields) => f.write_str(fields.name()),
            Self::Type(inner) => write!(f, "type({inner})"),
            Self::Opaque(name) => f.write_str(name),
            Self::Param(name) => write!(f, "{name}"),
        }
    }
}

impl fmt::Debug for Type {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

struct KnownFields {
    name: String,
    fields: Vec<(String, Arc<str>, Type)>,
}

impl Fields for KnownFields {
    fn name(&self) -> &str {
        &self.name
    }

    fn field(&self, name: &str) -> Option<Field> {
        self.fields
            .iter()
            .find(|(known, ..)| known == name)
            .map(|(_, json_name, type_)| Field {
                json_name: Arc::clone(json_name),
                type_: type_.clone(),
            })
    }
}
