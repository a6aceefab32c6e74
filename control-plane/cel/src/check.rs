//! The checker: resolves names and functions, finds the type of every expression, and bounds what it costs.
//!
//! What is known of a variable's type is checked, fields and overloads included; `dyn` is left to the run. Costs
//! follow cel-go's estimator: an upper bound by the largest sizes that declared types allow.

use std::collections::BTreeSet;
use std::sync::Arc;

use crate::cost;
use crate::error::Issue;
use crate::library::{self, Overload};
use crate::program::Environment;
use crate::syntax::ast::{Call, Entry, Expr, Fold, FoldKind, Literal, Node, Operator};
use crate::types::{Size, Type};

/// What checking finds.
pub struct Checked {
    /// Type of the whole.
    pub result: Type,
    /// Upper bound of the cost.
    pub cost: u64,
    /// Variables that are used.
    pub references: BTreeSet<String>,
    /// What is wrong.
    pub issues: Vec<Issue>,
}

/// Checks a tree, and binds its calls to functions.
pub fn check(environment: &Environment, root: &mut Node) -> Checked {
    let mut checker = Checker {
        environment,
        scopes: Vec::new(),
        references: BTreeSet::new(),
        issues: Vec::new(),
    };
    let typed = checker.node(root);
    Checked {
        result: typed.type_,
        cost: typed.cost,
        references: checker.references,
        issues: checker.issues,
    }
}

/// Type and cost of an expression.
#[derive(Clone)]
struct Typed {
    type_: Type,
    cost: u64,
}

impl Typed {
    fn new(type_: Type, cost: u64) -> Self {
        Self { type_, cost }
    }
}

struct Checker<'e> {
    environment: &'e Environment,
    /// Variables of the folds around, innermost last.
    scopes: Vec<(Arc<str>, Type)>,
    references: BTreeSet<String>,
    issues: Vec<Issue>,
}

impl Checker<'_> {
    fn issue(&mut self, at: u32, message: impl Into<String>) {
        self.issues.push(Issue::new(at as usize, message.into()));
    }

    fn node(&mut self, node: &mut Node) -> Typed {
        let at = node.at;
        if let Some(variable) = self.dotted_variable(node) {
            node.expr = Expr::Ident(variable);
        }
        match &mut node.expr {
            Expr::Literal(literal) => Typed::new(literal_type(literal), 0),
            Expr::Ident(name) => {
                let name = Arc::clone(name);
                Typed::new(self.ident(at, &name), 1)
            }
            Expr::Select {
                of,
                field,
                optional,
                test,
            } => {
                let (optional, test) = (*optional, *test);
                if let Expr::Ident(root) = &of.expr
                    && !self.is_local(root)
                {
                    self.references.insert(format!("{root}.{field}"));
                }
                let operand = self.node(of);
                let type_ = self.select(at, &operand.type_, field, optional || test);
                let cost = operand.cost.saturating_add(u64::from(!test));
                match test {
                    true => Typed::new(Type::Bool, cost),
                    false => Typed::new(type_, cost),
                }
            }
            Expr::Index {
                of,
                index,
                optional,
            } => {
                let optional = *optional;
                let (operand, index) = (self.node(of), self.node(index));
                let type_ = self.index(at, &operand.type_, &index.type_, optional);
                let cost = operand.cost.saturating_add(index.cost).saturating_add(1);
                Typed::new(type_, cost)
            }
            Expr::Call(call) => self.call(at, call),
            Expr::Not(operand) => {
                let operand = self.node(operand);
                self.operands(at, "!_", &[&operand], &[&Type::Bool]);
                Typed::new(Type::Bool, operand.cost.saturating_add(1))
            }
            Expr::Negate(operand) => {
                let operand = self.node(operand);
                let fits = matches!(
                    operand.type_,
                    Type::Int | Type::Double | Type::Duration | Type::Dyn
                );
                if !fits {
                    self.no_overload(at, "-_", None, &[&operand.type_]);
                }
                Typed::new(operand.type_, operand.cost.saturating_add(1))
            }
            Expr::And(terms) => self.junction(at, terms, "_&&_"),
            Expr::Or(terms) => self.junction(at, terms, "_||_"),
            Expr::Conditional(parts) => self.conditional(at, parts),
            Expr::Binary(operator, operands) => {
                let operator = *operator;
                let [left, right] = &mut **operands;
                let (left, right) = (self.node(left), self.node(right));
                self.binary(at, operator, &left, &right)
            }
            Expr::List(items) => self.list(items),
            Expr::Map(entries) => self.map(entries),
            Expr::Struct(name, fields) => {
                let name = Arc::clone(name);
                self.object(at, &name, fields)
            }
            Expr::Fold(fold) => self.fold(fold),
            Expr::OptMap {
                target,
                variable,
                body,
                flat,
            } => {
                let (variable, flat) = (Arc::clone(variable), *flat);
                let target = self.node(target);
                let inner = match &target.type_ {
                    Type::Optional(inner) => (**inner).clone(),
                    Type::Dyn => Type::Dyn,
                    other => {
                        let name = if flat { "optFlatMap" } else { "optMap" };
                        self.no_overload(at, name, Some(&other.clone()), &[]);
                        Type::Dyn
                    }
                };
                self.scopes.push((variable, inner));
                let body = self.node(body);
                self.scopes.pop();
                let type_ = match flat {
                    true => body.type_,
                    false => Type::optional(body.type_),
                };
                Typed::new(
                    type_,
                    target.cost.saturating_add(body.cost).saturating_add(2),
                )
            }
        }
    }

    fn is_local(&self, name: &str) -> bool {
        self.scopes.iter().any(|(local, _)| &**local == name)
    }

    /// The declared variable that a dotted name spells.
    fn dotted_variable(&self, node: &Node) -> Option<Arc<str>> {
        let Expr::Select { of, .. } = &node.expr else {
            return None;
        };
        let Expr::Ident(root) = &of.expr else {
            // Declared names have two parts at most, or are names of types.
            let name = node.dotted()?;
            return library::type_value(&name).map(|_| name.into());
        };
        if self.is_local(root) {
            return None;
        }
        let name = node.dotted()?;
        let known =
            self.environment.variable(&name).is_some() || library::type_value(&name).is_some();
        known.then(|| name.into())
    }

    fn ident(&mut self, at: u32, name: &Arc<str>) -> Type {
        let local = self.scopes.iter().rev().find(|(local, _)| local == name);
        if let Some((_, type_)) = local {
            return type_.clone();
        }
        if let Some(type_) = self.environment.variable(name) {
            self.references.insert(name.to_string());
            return type_.clone();
        }
        if library::type_value(name).is_some() {
            return Type::Type(Arc::new(Type::Dyn));
        }
        self.issue(
            at,
            format!("undeclared reference to '{name}' (in container '')"),
        );
        Type::Dyn
    }

    fn select(&mut self, at: u32, of: &Type, field: &str, optional: bool) -> Type {
        let found = match of {
            Type::Optional(inner) => {
                let inner = self.select(at, inner, field, false);
                return match inner {
                    Type::Optional(_) => inner,
                    other => Type::optional(other),
                };
            }
            Type::Dyn => Type::Dyn,
            Type::Map(_, value, _) => (**value).clone(),
            Type::Object(fields) => match fields.field(field) {
                Some(field) => field.type_,
                None => {
                    self.issue(at, format!("undefined field '{field}'"));
                    Type::Dyn
                }
            },
            other => {
                self.issue(
                    at,
                    format!("type '{other}' does not support field selection"),
                );
                Type::Dyn
            }
        };
        if optional {
            Type::optional(found)
        } else {
            found
        }
    }

    fn index(&mut self, at: u32, of: &Type, index: &Type, optional: bool) -> Type {
        let found = match of {
            Type::Optional(inner) => {
                let inner = self.index(at, inner, index, false);
                return match inner {
                    Type::Optional(_) => inner,
                    other => Type::optional(other),
                };
            }
            Type::Dyn => Some(Type::Dyn),
            Type::List(item, _) => {
                matches!(index, Type::Int | Type::Uint | Type::Double | Type::Dyn)
                    .then(|| (**item).clone())
            }
            Type::Map(key, value, _) => index.fits(key).then(|| (**value).clone()),
            _ => None,
        };
        let found = found.unwrap_or_else(|| {
            self.no_overload(at, "_[_]", None, &[of, index]);
            Type::Dyn
        });
        if optional {
            Type::optional(found)
        } else {
            found
        }
    }

    fn no_overload(&mut self, at: u32, function: &str, target: Option<&Type>, args: &[&Type]) {
        let args: Vec<String> = args.iter().map(ToString::to_string).collect();
        let applied = match target {
            Some(target) => format!("{target}.({})", args.join(", ")),
            None => format!("({})", args.join(", ")),
        };
        self.issue(
            at,
            format!("found no matching overload for '{function}' applied to '{applied}'"),
        );
    }

    fn operands(&mut self, at: u32, function: &str, given: &[&Typed], wanted: &[&Type]) {
        if given.iter().zip(wanted).all(|(g, w)| g.type_.fits(w)) {
            return;
        }
        let types: Vec<&Type> = given.iter().map(|g| &g.type_).collect();
        self.no_overload(at, function, None, &types);
    }

    fn junction(&mut self, at: u32, terms: &mut [Node], name: &str) -> Typed {
        let mut cost = 0_u64;
        for term in terms {
            let term = self.node(term);
            cost = cost.saturating_add(term.cost);
            if !term.type_.fits(&Type::Bool) {
                self.issue(
                    at,
                    format!(
                        "expected type 'bool' but found '{}' in '{name}'",
                        term.type_
                    ),
                );
            }
        }
        Typed::new(Type::Bool, cost)
    }

    fn conditional(&mut self, at: u32, parts: &mut [Node; 3]) -> Typed {
        let [condition, yes, no] = parts;
        let (condition, yes, no) = (self.node(condition), self.node(yes), self.node(no));
        let alike = yes.type_.fits(&no.type_) || no.type_.fits(&yes.type_);
        if !condition.type_.fits(&Type::Bool) || !alike {
            let types = [&condition.type_, &yes.type_, &no.type_];
            self.no_overload(at, "_?_:_", None, &types);
        }
        let cost = condition.cost.saturating_add(yes.cost.max(no.cost));
        Typed::new(yes.type_.join(&no.type_), cost)
    }

    fn binary(&mut self, at: u32, operator: Operator, left: &Typed, right: &Typed) -> Typed {
        let (a, b) = (&left.type_, &right.type_);
        let cost = left
            .cost
            .saturating_add(right.cost)
            .saturating_add(cost::operator(operator, a, b));
        match operator_type(operator, a, b) {
            Some(type_) => Typed::new(type_, cost),
            None => {
                self.no_overload(at, operator.name(), None, &[a, b]);
                Typed::new(Type::Dyn, cost)
            }
        }
    }

    /// The common type of literals' items, which upstream wants to be of one type.
    fn unite(&mut self, at: u32, known: Option<Type>, more: Type) -> Type {
        let Some(known) = known else { return more };
        if !more.fits(&known) && !known.fits(&more) {
            self.issue(at, format!("expected type '{known}' but found '{more}'"));
        }
        known.join(&more)
    }

    fn value(&mut self, node: &mut Node, optional: bool) -> Typed {
        let at = node.at;
        let typed = self.node(node);
        match (&typed.type_, optional) {
            (Type::Optional(inner), true) => Typed::new((**inner).clone(), typed.cost),
            (Type::Dyn, true) | (_, false) => typed,
            (other, true) => {
                let message = format!("expected type 'optional_type' but found '{other}'");
                self.issue(at, message);
                typed
            }
        }
    }

    fn list(&mut self, items: &mut [Entry<()>]) -> Typed {
        let (mut cost, mut type_) = (10_u64, None);
        let size = Size(items.len() as u64);
        for item in items {
            let at = item.value.at;
            let typed = self.value(&mut item.value, item.optional);
            cost = cost.saturating_add(typed.cost);
            type_ = Some(self.unite(at, type_, typed.type_));
        }
        let item = Arc::new(type_.unwrap_or(Type::Dyn));
        Typed::new(Type::List(item, size), cost)
    }

    fn map(&mut self, entries: &mut [Entry<Node>]) -> Typed {
        let (mut cost, mut key_type, mut value_type) = (30_u64, None, None);
        let size = Size(entries.len() as u64);
        for entry in entries {
            let (key_at, value_at) = (entry.key.at, entry.value.at);
            let key = self.node(&mut entry.key);
            let is_key = matches!(
                key.type_,
                Type::Bool | Type::Int | Type::Uint | Type::String(_) | Type::Dyn
            );
            if !is_key {
                self.issue(key_at, format!("unsupported map key type: {}", key.type_));
            }
            let value = self.value(&mut entry.value, entry.optional);
            cost = cost.saturating_add(key.cost).saturating_add(value.cost);
            key_type = Some(self.unite(key_at, key_type, key.type_));
            value_type = Some(self.unite(value_at, value_type, value.type_));
        }
        let key = Arc::new(key_type.unwrap_or(Type::Dyn));
        let value = Arc::new(value_type.unwrap_or(Type::Dyn));
        Typed::new(Type::Map(key, value, size), cost)
    }

    fn object(&mut self, at: u32, name: &str, fields: &mut [Entry<Arc<str>>]) -> Typed {
        let mut cost = 40_u64;
        let Some(type_) = self.environment.struct_type(name) else {
            self.issue(
                at,
                format!("undeclared reference to '{name}' (in container '')"),
            );
            return Typed::new(Type::Dyn, cost);
        };
        for field in fields {
            let value_at = field.value.at;
            let typed = self.value(&mut field.value, field.optional);
            cost = cost.saturating_add(typed.cost);
            let wanted = match &type_ {
                Type::Object(known) => known.field(&field.key).map(|f| f.type_),
                _ => Some(Type::Dyn),
            };
            match wanted {
                None => self.issue(value_at, format!("undefined field '{}'", field.key)),
                Some(wanted) if !typed.type_.fits(&wanted) => self.issue(
                    value_at,
                    format!(
                        "expected type of field '{}' is '{wanted}' but provided type is '{}'",
                        field.key, typed.type_
                    ),
                ),
                Some(_) => {}
            }
        }
        Typed::new(type_, cost)
    }

    fn fold(&mut self, fold: &mut Fold) -> Typed {
        let range_at = fold.range.at;
        let range = self.node(&mut fold.range);
        let (key, item) = match &range.type_ {
            Type::List(item, _) => (Type::Int, (**item).clone()),
            Type::Map(key, value, _) => ((**key).clone(), (**value).clone()),
            Type::Dyn => (Type::Dyn, Type::Dyn),
            other => {
                let message = format!(
                    "expression of type '{other}' cannot be range of a comprehension (must be list, map, or dynamic)"
                );
                self.issue(range_at, message);
                (Type::Dyn, Type::Dyn)
            }
        };
        let is_map = matches!(range.type_, Type::Map(..));
        let depth = self.scopes.len();
        let single = if is_map { key.clone() } else { item.clone() };
        match &fold.second {
            Some(second) => {
                let second = Arc::clone(second);
                self.scopes.push((Arc::clone(&fold.variable), key.clone()));
                self.scopes.push((second, item));
            }
            None => self
                .scopes
                .push((Arc::clone(&fold.variable), single.clone())),
        }
        let mut step = 0_u64;
        if let Some(filter) = &mut fold.filter {
            let at = filter.at;
            let typed = self.node(filter);
            step = typed.cost;
            self.want_bool(at, &typed.type_);
        }
        let body_at = fold.body.at;
        let body = self.node(&mut fold.body);
        self.scopes.truncate(depth);
        let size = range.type_.size();
        let (type_, per_step) = match fold.kind {
            FoldKind::All => (Type::Bool, 3),
            FoldKind::Exists => (Type::Bool, 4),
            FoldKind::ExistsOne => (Type::Bool, 2),
            FoldKind::Filter => (Type::List(Arc::new(single), size), 12),
            FoldKind::Map => (Type::List(Arc::new(body.type_.clone()), size), 12),
            FoldKind::TransformMap => (
                Type::Map(Arc::new(key), Arc::new(body.type_.clone()), size),
                12,
            ),
            FoldKind::TransformEntries => (body.type_.clone().sized(size), 12),
        };
        let is_predicate = matches!(
            fold.kind,
            FoldKind::All | FoldKind::Exists | FoldKind::ExistsOne | FoldKind::Filter
        );
        if is_predicate {
            self.want_bool(body_at, &body.type_);
        }
        let each = step.saturating_add(body.cost).saturating_add(per_step);
        let cost = range
            .cost
            .saturating_add(size.0.saturating_mul(each))
            .saturating_add(1);
        Typed::new(type_, cost)
    }

    fn want_bool(&mut self, at: u32, type_: &Type) {
        if !type_.fits(&Type::Bool) {
            self.issue(at, format!("expected type 'bool' but found '{type_}'"));
        }
    }

    fn call(&mut self, at: u32, call: &mut Call) -> Typed {
        // `sets.contains(a, b)`: what looks like a target is the function's namespace.
        if let Some(target) = &call.target
            && let Some(namespace) = target.dotted()
        {
            let name = format!("{namespace}.{}", call.function);
            if library::function(&name).is_some() {
                call.function = name.into();
                call.target = None;
            }
        }
        let member = call.target.is_some();
        let mut cost = 0_u64;
        let mut types = Vec::with_capacity(call.args.len() + 1);
        for node in call.target.iter_mut().chain(&mut call.args) {
            let typed = self.node(node);
            cost = cost.saturating_add(typed.cost);
            types.push(typed.type_);
        }
        let Some(function) = library::function(&call.function) else {
            self.issue(
                at,
                format!(
                    "undeclared reference to '{}' (in container '')",
                    call.function
                ),
            );
            return Typed::new(Type::Dyn, cost);
        };
        call.builtin = Some(function.builtin);
        let mut result: Option<Type> = None;
        for overload in function.overloads.iter().filter(|o| o.member == member) {
            if let Some(found) = apply(overload, &types) {
                result = Some(match result {
                    None => found,
                    Some(known) => known.join(&found),
                });
            }
        }
        let Some(result) = result else {
            let (target, args) = types.split_at(usize::from(member));
            let args: Vec<&Type> = args.iter().collect();
            self.no_overload(at, &call.function, target.first(), &args);
            return Typed::new(Type::Dyn, cost);
        };
        self.literals(call);
        let (own, size) = cost::call(&call.function, &types);
        let result = match size {
            Some(size) => result.sized(Size(size)),
            None => result,
        };
        Typed::new(result, cost.saturating_add(own))
    }

    /// Literal arguments that could only fail.
    fn literals(&mut self, call: &Call) {
        let literal = |node: Option<&Node>| match node.map(|n| (&n.expr, n.at)) {
            Some((Expr::Literal(Literal::String(text)), at)) => Some((Arc::clone(text), at)),
            _ => None,
        };
        let problem = match &*call.function {
            "matches" | "find" | "findAll" => {
                let pattern = call.args.get(usize::from(call.target.is_none()));
                literal(pattern).and_then(|(text, at)| {
                    let error = library::compile_regex(&text).err()?;
                    Some((at, format!("invalid {} argument: {error}", call.function)))
                })
            }
            "duration" => literal(call.args.first()).and_then(|(text, at)| {
                library::time::parse_duration(&text)
                    .is_none()
                    .then(|| (at, "invalid duration argument".to_owned()))
            }),
            "timestamp" => literal(call.args.first()).and_then(|(text, at)| {
                library::time::parse_timestamp(&text)
                    .is_none()
                    .then(|| (at, "invalid timestamp argument".to_owned()))
            }),
            _ => None,
        };
        if let Some((at, message)) = problem {
            self.issue(at, message);
        }
    }
}

fn literal_type(literal: &Literal) -> Type {
    match literal {
        Literal::Null => Type::Null,
        Literal::Bool(_) => Type::Bool,
        Literal::Int(_) => Type::Int,
        Literal::Uint(_) => Type::Uint,
        Literal::Double(_) => Type::Double,
        Literal::String(text) => Type::String(Size(text.chars().count() as u64)),
        Literal::Bytes(bytes) => Type::Bytes(Size(bytes.len() as u64)),
    }
}

fn is_number(type_: &Type) -> bool {
    matches!(type_, Type::Int | Type::Uint | Type::Double | Type::Dyn)
}

/// The type of `a operator b`; `None` when there is no such operator.
fn operator_type(operator: Operator, a: &Type, b: &Type) -> Option<Type> {
    use Operator as O;
    match operator {
        O::Equal | O::NotEqual => {
            // Anything may be missing, and so compared with null.
            let alike = a.fits(b) || b.fits(a) || (is_number(a) && is_number(b));
            let null = matches!(a, Type::Null) || matches!(b, Type::Null);
            (alike || null).then_some(Type::Bool)
        }
        O::Less | O::LessEqual | O::Greater | O::GreaterEqual => {
            let ordered = |t: &Type| {
                matches!(
                    t,
                    Type::Bool
                        | Type::String(_)
                        | Type::Bytes(_)
                        | Type::Duration
                        | Type::Timestamp
                        | Type::Dyn
                )
            };
            let fit = (is_number(a) && is_number(b)) || (ordered(a) && ordered(b) && a.fits(b));
            let half_dyn = (a.is_dyn() && (is_number(b) || ordered(b)))
                || (b.is_dyn() && (is_number(a) || ordered(a)));
            (fit || half_dyn).then_some(Type::Bool)
        }
        O::In => match b {
            Type::Dyn => Some(Type::Bool),
            Type::List(item, _) => {
                let numbers = is_number(a) && is_number(item);
                (a.fits(item) || numbers).then_some(Type::Bool)
            }
            Type::Map(key, ..) => a.fits(key).then_some(Type::Bool),
            _ => None,
        },
        O::Add | O::Subtract | O::Multiply | O::Divide | O::Modulo => arithmetic(operator, a, b),
    }
}

fn arithmetic(operator: Operator, a: &Type, b: &Type) -> Option<Type> {
    use Operator as O;
    let sizes = Size(a.size().0.saturating_add(b.size().0));
    match (a, b) {
        (Type::Dyn, _) | (_, Type::Dyn) => Some(match (operator, a, b) {
            (O::Add, Type::String(_) | Type::List(..) | Type::Bytes(_), _) => {
                a.clone().sized(Size::UNBOUNDED)
            }
            (O::Add, _, Type::String(_) | Type::List(..) | Type::Bytes(_)) => {
                b.clone().sized(Size::UNBOUNDED)
            }
            (_, Type::Int | Type::Uint | Type::Double, _) => a.clone(),
            (_, _, Type::Int | Type::Uint | Type::Double) => b.clone(),
            (O::Add | O::Subtract, ..) => Type::Dyn,
            (_, Type::Dyn, Type::Dyn) => Type::Dyn,
            _ => return None,
        }),
        (Type::Int, Type::Int) => Some(Type::Int),
        (Type::Uint, Type::Uint) => Some(Type::Uint),
        (Type::Double, Type::Double) => (operator != O::Modulo).then_some(Type::Double),
        (Type::String(_), Type::String(_)) | (Type::Bytes(_), Type::Bytes(_)) => {
            (operator == O::Add).then(|| a.clone().sized(sizes))
        }
        (Type::List(x, _), Type::List(y, _)) => {
            let fit = operator == O::Add && (x.fits(y) || y.fits(x));
            fit.then(|| Type::List(Arc::new((**x).clone().join(y)), sizes))
        }
        (Type::Duration, Type::Duration) => {
            matches!(operator, O::Add | O::Subtract).then_some(Type::Duration)
        }
        (Type::Timestamp, Type::Duration) => {
            matches!(operator, O::Add | O::Subtract).then_some(Type::Timestamp)
        }
        (Type::Duration, Type::Timestamp) => (operator == O::Add).then_some(Type::Timestamp),
        (Type::Timestamp, Type::Timestamp) => (operator == O::Subtract).then_some(Type::Duration),
        _ => None,
    }
}

/// Type parameters that are bound so far.
type Bound = Vec<(char, Type)>;

/// The result's type when an overload takes arguments of some types.
fn apply(overload: &Overload, args: &[Type]) -> Option<Type> {
    if overload.params.len() != args.len() {
        return None;
    }
    let mut bound = Bound::new();
    overload
        .params
        .iter()
        .zip(args)
        .all(|(param, arg)| unify(param, arg, &mut bound))
        .then(|| substitute(&overload.result, &bound))
}

fn unify(param: &Type, arg: &Type, bound: &mut Bound) -> bool {
    match (param, arg) {
        (Type::Param(name), _) => {
            let Some(slot) = bound.iter_mut().find(|(known, _)| known == name) else {
                bound.push((*name, arg.clone()));
                return true;
            };
            let fits = arg.fits(&slot.1) || slot.1.fits(arg);
            slot.1 = slot.1.clone().join(arg);
            fits
        }
        (_, Type::Dyn) => true,
        (Type::List(p, _), Type::List(a, _)) | (Type::Optional(p), Type::Optional(a)) => {
            unify(p, a, bound)
        }
        (Type::Map(pk, pv, _), Type::Map(ak, av, _)) => {
            unify(pk, ak, bound) && unify(pv, av, bound)
        }
        _ => arg.fits(param),
    }
}

fn substitute(type_: &Type, bound: &Bound) -> Type {
    match type_ {
        Type::Param(name) => bound
            .iter()
            .find(|(known, _)| known == name)
            .map_or(Type::Dyn, |(_, type_)| type_.clone()),
        Type::List(item, size) => Type::List(Arc::new(substitute(item, bound)), *size),
        Type::Map(key, value, size) => Type::Map(
            Arc::new(substitute(key, bound)),
            Arc::new(substitute(value, bound)),
            *size,
        ),
        Type::Optional(inner) => Type::optional(substitute(inner, bound)),
        Type::Type(inner) => Type::Type(Arc::new(substitute(inner, bound))),
        other => other.clone(),
    }
}
