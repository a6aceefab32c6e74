//! The syntax tree, with macros already expanded into forms of their own.

use std::sync::Arc;

use crate::library::Builtin;

/// A node with its place in the source.
#[derive(Debug, Clone)]
pub struct Node {
    /// Byte offset in the source.
    pub at: u32,
    /// Height of the tree under it, for the limit on nesting.
    pub depth: u32,
    /// What it is.
    pub expr: Expr,
}

/// A constant.
#[derive(Debug, Clone, PartialEq)]
pub enum Literal {
    /// `null`
    Null,
    /// `true`
    Bool(bool),
    /// `1`
    Int(i64),
    /// `1u`
    Uint(u64),
    /// `1.0`
    Double(f64),
    /// `'a'`
    String(Arc<str>),
    /// `b'a'`
    Bytes(Arc<[u8]>),
}

/// An operator between two values.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Operator {
    Add,
    Subtract,
    Multiply,
    Divide,
    Modulo,
    Equal,
    NotEqual,
    Less,
    LessEqual,
    Greater,
    GreaterEqual,
    In,
}

impl Operator {
    /// The name under which errors mention it, as cel-go does.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Add => "_+_",
            Self::Subtract => "_-_",
            Self::Multiply => "_*_",
            Self::Divide => "_/_",
            Self::Modulo => "_%_",
            Self::Equal => "_==_",
            Self::NotEqual => "_!=_",
            Self::Less => "_<_",
            Self::LessEqual => "_<=_",
            Self::Greater => "_>_",
            Self::GreaterEqual => "_>=_",
            Self::In => "@in",
        }
    }
}

/// What a fold over a list or map makes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FoldKind {
    /// `all`
    All,
    /// `exists`
    Exists,
    /// `exists_one`
    ExistsOne,
    /// `filter`
    Filter,
    /// `map`, with or without filter, and `transformList`
    Map,
    /// `transformMap`: same keys, new values
    TransformMap,
    /// `transformMapEntry`: maps merged
    TransformEntries,
}

/// A comprehension.
#[derive(Debug, Clone)]
pub struct Fold {
    /// What it makes.
    pub kind: FoldKind,
    /// What it goes over.
    pub range: Node,
    /// First variable: the element, or the index or key when there are two.
    pub variable: Arc<str>,
    /// Second variable: the element or value.
    pub second: Option<Arc<str>>,
    /// Elements that count, for the kinds that transform.
    pub filter: Option<Node>,
    /// Predicate or transformation.
    pub body: Node,
}

/// An entry of a map or list literal.
#[derive(Debug, Clone)]
pub struct Entry<K> {
    /// Key, or field name.
    pub key: K,
    /// Value.
    pub value: Node,
    /// `?key: value`: left out when the value is an empty optional.
    pub optional: bool,
}

/// A call of a function.
#[derive(Debug, Clone)]
pub struct Call {
    /// Its name; namespaced ones have their namespace once checked.
    pub function: Arc<str>,
    /// `target.function(...)`
    pub target: Option<Node>,
    /// Arguments.
    pub args: Vec<Node>,
    /// What runs; filled in by the checker.
    pub builtin: Option<Builtin>,
}

/// An expression.
#[derive(Debug, Clone)]
#[allow(missing_docs)]
pub enum Expr {
    Literal(Literal),
    Ident(Arc<str>),
    /// `of.field`, `of.?field`, `has(of.field)`
    Select {
        of: Box<Node>,
        field: Arc<str>,
        optional: bool,
        test: bool,
    },
    /// `of[index]`, `of[?index]`
    Index {
        of: Box<Node>,
        index: Box<Node>,
        optional: bool,
    },
    Call(Box<Call>),
    Not(Box<Node>),
    Negate(Box<Node>),
    And(Vec<Node>),
    Or(Vec<Node>),
    Conditional(Box<[Node; 3]>),
    Binary(Operator, Box<[Node; 2]>),
    List(Vec<Entry<()>>),
    Map(Vec<Entry<Node>>),
    Struct(Arc<str>, Vec<Entry<Arc<str>>>),
    Fold(Box<Fold>),
    /// `target.optMap(v, body)` and `optFlatMap`
    OptMap {
        target: Box<Node>,
        variable: Arc<str>,
        body: Box<Node>,
        flat: bool,
    },
}

impl Expr {
    /// The direct parts.
    #[must_use]
    pub fn children(&self) -> Vec<&Node> {
        match self {
            Self::Literal(_) | Self::Ident(_) => Vec::new(),
            Self::Select { of, .. } | Self::Not(of) | Self::Negate(of) => vec![of],
            Self::Index { of, index, .. } => vec![of, index],
            Self::Call(call) => call.target.iter().chain(&call.args).collect(),
            Self::And(terms) | Self::Or(terms) => terms.iter().collect(),
            Self::Conditional(parts) => parts.iter().collect(),
            Self::Binary(_, parts) => parts.iter().collect(),
            Self::List(items) => items.iter().map(|e| &e.value).collect(),
            Self::Map(entries) => entries.iter().flat_map(|e| [&e.key, &e.value]).collect(),
            Self::Struct(_, fields) => fields.iter().map(|e| &e.value).collect(),
            Self::Fold(fold) => [&fold.range, &fold.body]
                .into_iter()
                .chain(&fold.filter)
                .collect(),
            Self::OptMap { target, body, .. } => vec![target, body],
        }
    }
}

impl Node {
    /// The dotted name that it spells, when it is one: `a.b.c`.
    #[must_use]
    pub fn dotted(&self) -> Option<String> {
        match &self.expr {
            Expr::Ident(name) => Some(name.to_string()),
            Expr::Select {
                of,
                field,
                optional: false,
                test: false,
            } => Some(format!("{}.{field}", of.dotted()?)),
            _ => None,
        }
    }
}
