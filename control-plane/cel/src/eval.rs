//! The interpreter: walks a checked tree. Every step is charged to the budget.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use serde_json::Value as Json;

use crate::budget::Budget;
use crate::error::EvalError;
use crate::ops;
use crate::program::Program;
use crate::syntax::ast::{Call, Entry, Expr, Fold, FoldKind, Literal, Node};
use crate::types::Type;
use crate::value::{Key, Text, Val};

type Outcome<'a> = Result<Val<'a>, EvalError>;

/// What the variables of an evaluation stand for.
#[derive(Default)]
pub struct Bindings<'a> {
    values: Vec<(&'a str, Val<'a>)>,
    composed: Vec<(&'a str, &'a Program)>,
    /// Outcomes of composed variables that have been asked for.
    cache: RefCell<HashMap<String, Outcome<'a>>>,
    /// Calls of the interpreter that are open now, over all composed variables.
    depth: Cell<usize>,
}

/// Open calls at once. Variables that use variables could otherwise use up the stack.
const MAX_DEPTH: usize = 400;

impl<'a> Bindings<'a> {
    /// None.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Binds a value.
    #[must_use]
    pub fn value(mut self, name: &'a str, value: Val<'a>) -> Self {
        self.values.push((name, value));
        self
    }

    /// Binds a document, read as its type says.
    #[must_use]
    pub fn json(self, name: &'a str, json: &'a Json, type_: &Type) -> Self {
        self.value(name, Val::from_json(json, type_))
    }

    /// Binds a document that may be missing to a variable of an optional type.
    #[must_use]
    pub fn optional_json(self, name: &'a str, json: Option<&'a Json>, inner: &Type) -> Self {
        let value = match json {
            Some(json) => Val::some(Val::from_json(json, inner)),
            None => Val::Optional(None),
        };
        self.value(name, value)
    }

    /// Adds `variables.NAME`, evaluated with these bindings when it is first used.
    #[must_use]
    pub fn composed(mut self, name: &'a str, program: &'a Program) -> Self {
        self.composed.push((name, program));
        self
    }

    fn get(&self, name: &str) -> Option<Val<'a>> {
        self.values
            .iter()
            .rev()
            .find(|(bound, _)| *bound == name)
            .map(|(_, value)| value.clone())
    }
}

/// Evaluates a tree.
pub fn evaluate<'a>(node: &Node, bindings: &Bindings<'a>, budget: &mut Budget) -> Outcome<'a> {
    Evaluator {
        bindings,
        locals: Vec::new(),
        budget,
    }
    .eval(node)
}

struct Evaluator<'e, 'a> {
    bindings: &'e Bindings<'a>,
    /// Variables of the folds around, innermost last.
    locals: Vec<(Arc<str>, Val<'a>)>,
    budget: &'e mut Budget,
}

impl<'a> Evaluator<'_, 'a> {
    fn eval(&mut self, node: &Node) -> Outcome<'a> {
        let depth = self.bindings.depth.get();
        if depth >= MAX_DEPTH {
            return Err(EvalError::failed("evaluation is nested too deeply"));
        }
        self.bindings.depth.set(depth + 1);
        let outcome = self.eval_at(node);
        self.bindings.depth.set(depth);
        outcome
    }

    fn eval_at(&mut self, node: &Node) -> Outcome<'a> {
        match &node.expr {
            Expr::Literal(literal) => Ok(constant(literal)),
            Expr::Ident(name) => self.ident(name),
            Expr::Select {
                of,
                field,
                optional,
                test,
            } => self.select(of, field, *optional, *test),
            Expr::Index {
                of,
                index,
                optional,
            } => self.index(of, index, *optional),
            Expr::Call(call) => self.call(call),
            Expr::Not(operand) => {
                self.budget.charge(1)?;
                match self.eval(operand)? {
                    Val::Bool(value) => Ok(Val::Bool(!value)),
                    _ => Err(EvalError::NoSuchOverload),
                }
            }
            Expr::Negate(operand) => {
                self.budget.charge(1)?;
                ops::negate(&self.eval(operand)?)
            }
            Expr::And(terms) => self.junction(terms, false),
            Expr::Or(terms) => self.junction(terms, true),
            Expr::Conditional(parts) => {
                let [condition, yes, no] = &**parts;
                match self.eval(condition)? {
                    Val::Bool(true) => self.eval(yes),
                    Val::Bool(false) => self.eval(no),
                    _ => Err(EvalError::NoSuchOverload),
                }
            }
            Expr::Binary(operator, operands) => {
                self.budget.charge(1)?;
                let left = self.eval(&operands[0])?;
                let right = self.eval(&operands[1])?;
                ops::binary(*operator, &left, &right, self.budget)
            }
            Expr::List(items) => self.list(items),
            Expr::Map(entries) => self.map(entries),
            Expr::Struct(name, fields) => self.object(name, fields),
            Expr::Fold(fold) => self.fold(fold),
            Expr::OptMap {
                target,
                variable,
                body,
                flat,
            } => self.opt_map(target, variable, body, *flat),
        }
    }

    fn ident(&mut self, name: &Arc<str>) -> Outcome<'a> {
        self.budget.charge(1)?;
        let local = self.locals.iter().rev().find(|(bound, _)| bound == name);
        if let Some((_, value)) = local {
            return Ok(value.clone());
        }
        if let Some(value) = self.bindings.get(name) {
            return Ok(value);
        }
        if &**name == "variables" && !self.bindings.composed.is_empty() {
            return Ok(Val::Variables);
        }
        crate::library::type_value(name)
            .map(Val::Type)
            .ok_or_else(|| EvalError::NoSuchAttribute(name.to_string()))
    }

    /// A composed variable.
    fn composed(&mut self, name: &str) -> Option<Outcome<'a>> {
        if let Some(known) = self.bindings.cache.borrow().get(name) {
            return Some(known.clone());
        }
        let (_, program) = *self.bindings.composed.iter().find(|(n, _)| *n == name)?;
        // Not under the borrow: a variable may use those before it.
        let outcome = evaluate(program.root(), self.bindings, self.budget);
        if !matches!(outcome, Err(EvalError::CostExceeded)) {
            self.bindings
                .cache
                .borrow_mut()
                .insert(name.to_owned(), outcome.clone());
        }
        Some(outcome)
    }

    fn select(&mut self, of: &Node, field: &Arc<str>, optional: bool, test: bool) -> Outcome<'a> {
        let operand = self.eval(of)?;
        if !test {
            self.budget.charge(1)?;
        }
        // Once optional, a chain of selections stays so.
        let (operand, optional) = match operand {
            Val::Optional(None) if test => return Ok(Val::Bool(false)),
            Val::Optional(None) => return Ok(Val::Optional(None)),
            Val::Optional(Some(inner)) => ((*inner).clone(), true),
            other => (other, optional),
        };
        let found = match &operand {
            Val::Variables => self.composed(field).transpose()?,
            _ => match operand.as_map() {
                Some(map) => map.field(field),
                // Nothing is in null, but asking is not wrong where it may be missing.
                None if matches!(operand, Val::Null) && (optional || test) => None,
                None => return Err(EvalError::NoSuchOverload),
            },
        };
        match (found, test, optional) {
            (found, true, _) => Ok(Val::Bool(found.is_some())),
            (Some(value), false, true) => Ok(Val::some(value)),
            (None, false, true) => Ok(Val::Optional(None)),
            (Some(value), false, false) => Ok(value),
            (None, false, false) => Err(EvalError::NoSuchKey(field.to_string())),
        }
    }

    fn index(&mut self, of: &Node, index: &Node, optional: bool) -> Outcome<'a> {
        let operand = self.eval(of)?;
        let index = self.eval(index)?;
        self.budget.charge(1)?;
        let (operand, optional) = match operand {
            Val::Optional(None) => return Ok(Val::Optional(None)),
            Val::Optional(Some(inner)) => ((*inner).clone(), true),
            other => (other, optional),
        };
        let found = if let Some(list) = operand.as_list() {
            let at = position(&index)?;
            let found = usize::try_from(at).ok().and_then(|at| list.get(at));
            found.ok_or(EvalError::OutOfBounds(at))
        } else if let Some(map) = operand.as_map() {
            let shown = || index.as_key().map(|k| k.to_string()).unwrap_or_default();
            map.get(&index).ok_or_else(|| EvalError::NoSuchKey(shown()))
        } else {
            return Err(EvalError::NoSuchOverload);
        };
        match (found, optional) {
            (Ok(value), true) => Ok(Val::some(value)),
            (Err(_), true) => Ok(Val::Optional(None)),
            (found, false) => found,
        }
    }

    fn call(&mut self, call: &Call) -> Outcome<'a> {
        let builtin = call
            .builtin
            .ok_or_else(|| EvalError::failed(format!("unbound function: {}", call.function)))?;
        let mut args = Vec::with_capacity(call.args.len() + 1);
        // `a.or(b)` and `a.orValue(b)` look at b only when a is empty.
        if let ("or" | "orValue", Some(target)) = (&*call.function, &call.target) {
            let target = self.eval(target)?;
            if let (Val::Optional(Some(inner)), true) = (&target, &*call.function == "orValue") {
                return Ok((**inner).clone());
            }
            if matches!(target, Val::Optional(Some(_))) {
                return Ok(target);
            }
            args.push(target);
        } else if let Some(target) = &call.target {
            args.push(self.eval(target)?);
        }
        for arg in &call.args {
            args.push(self.eval(arg)?);
        }
        self.budget.charge(1)?;
        builtin(&args, self.budget)
    }

    /// `&&` (`decisive` false) and `||` (true): a decisive operand wins over an error on the other side.
    fn junction(&mut self, terms: &[Node], decisive: bool) -> Outcome<'a> {
        let mut failure = None;
        for term in terms {
            match self.eval(term) {
                Ok(Val::Bool(value)) if value == decisive => return Ok(Val::Bool(decisive)),
                Ok(Val::Bool(_)) => {}
                Ok(_) => failure = failure.or(Some(EvalError::NoSuchOverload)),
                Err(EvalError::CostExceeded) => return Err(EvalError::CostExceeded),
                Err(error) => failure = failure.or(Some(error)),
            }
        }
        failure.map_or(Ok(Val::Bool(!decisive)), Err)
    }

    fn list(&mut self, items: &[Entry<()>]) -> Outcome<'a> {
        self.budget.charge(10)?;
        let mut made = Vec::with_capacity(items.len());
        for item in items {
            if let Some(value) = self.entry(&item.value, item.optional)? {
                made.push(value);
            }
        }
        Ok(Val::list(made))
    }

    fn entry(&mut self, node: &Node, optional: bool) -> Result<Option<Val<'a>>, EvalError> {
        let value = self.eval(node)?;
        match (value, optional) {
            (Val::Optional(inner), true) => Ok(inner.map(|v| (*v).clone())),
            (_, true) => Err(EvalError::NoSuchOverload),
            (value, false) => Ok(Some(value)),
        }
    }

    fn map(&mut self, entries: &[Entry<Node>]) -> Outcome<'a> {
        self.budget.charge(30)?;
        let mut made = BTreeMap::new();
        for entry in entries {
            let key = self.eval(&entry.key)?;
            let key = key.as_key().ok_or(EvalError::NoSuchOverload)?;
            if let Some(value) = self.entry(&entry.value, entry.optional)?
                && let Some(_) = made.insert(key.clone(), value)
            {
                return Err(EvalError::failed(format!(
                    "Failed with repeated key: {key}"
                )));
            }
        }
        Ok(Val::Map(Arc::new(made)))
    }

    fn object(&mut self, name: &Arc<str>, fields: &[Entry<Arc<str>>]) -> Outcome<'a> {
        self.budget.charge(40)?;
        let mut made = BTreeMap::new();
        for field in fields {
            if let Some(value) = self.entry(&field.value, field.optional)? {
                made.insert(Arc::clone(&field.key), value);
            }
        }
        Ok(Val::Struct(Arc::clone(name), Arc::new(made)))
    }

    fn opt_map(
        &mut self,
        target: &Node,
        variable: &Arc<str>,
        body: &Node,
        flat: bool,
    ) -> Outcome<'a> {
        self.budget.charge(1)?;
        match self.eval(target)? {
            Val::Optional(None) => Ok(Val::Optional(None)),
            Val::Optional(Some(inner)) => {
                self.locals.push((Arc::clone(variable), (*inner).clone()));
                let value = self.eval(body);
                self.locals.pop();
                match (value?, flat) {
                    (value @ Val::Optional(_), true) => Ok(value),
                    (_, true) => Err(EvalError::NoSuchOverload),
                    (value, false) => Ok(Val::some(value)),
                }
            }
            _ => Err(EvalError::NoSuchOverload),
        }
    }

    /// What a fold goes over: for each step the value of the first variable and of the second.
    fn steps(&mut self, fold: &Fold) -> Result<Vec<(Val<'a>, Val<'a>)>, EvalError> {
        let range = self.eval(&fold.range)?;
        let two = fold.second.is_some();
        if let Some(list) = range.as_list() {
            self.budget.charge(list.len() as u64)?;
            let step = |(i, item)| match two {
                true => (Val::Int(i as i64), item),
                false => (item, Val::Null),
            };
            return Ok(list.iter().enumerate().map(step).collect());
        }
        let map = range.as_map().ok_or(EvalError::NoSuchOverload)?;
        self.budget.charge(map.len() as u64)?;
        if two {
            return Ok(map.entries());
        }
        Ok(map.keys().into_iter().map(|k| (k, Val::Null)).collect())
    }

    fn with_step(
        &mut self,
        fold: &Fold,
        (first, second): (Val<'a>, Val<'a>),
        node: &Node,
    ) -> Outcome<'a> {
        let depth = self.locals.len();
        self.locals.push((Arc::clone(&fold.variable), first));
        if let Some(name) = &fold.second {
            self.locals.push((Arc::clone(name), second));
        }
        let value = self.eval(node);
        self.locals.truncate(depth);
        value
    }

    fn fold(&mut self, fold: &Fold) -> Outcome<'a> {
        let steps = self.steps(fold)?;
        match fold.kind {
            FoldKind::All => self.quantify(fold, steps, false),
            FoldKind::Exists => self.quantify(fold, steps, true),
            FoldKind::ExistsOne => {
                let mut count = 0;
                for step in steps {
                    self.budget.charge(2)?;
                    count += u64::from(self.predicate(fold, step, &fold.body)?);
                }
                Ok(Val::Bool(count == 1))
            }
            FoldKind::Filter => {
                let mut kept = Vec::new();
                for step in steps {
                    self.budget.charge(2)?;
                    if self.predicate(fold, step.clone(), &fold.body)? {
                        kept.push(step.0);
                    }
                }
                Ok(Val::list(kept))
            }
            FoldKind::Map => {
                let mut made = Vec::new();
                for step in steps {
                    self.budget.charge(12)?;
                    if self.passes(fold, &step)? {
                        made.push(self.with_step(fold, step, &fold.body)?);
                    }
                }
                Ok(Val::list(made))
            }
            FoldKind::TransformMap | FoldKind::TransformEntries => self.transform(fold, steps),
        }
    }

    fn transform(&mut self, fold: &Fold, steps: Vec<(Val<'a>, Val<'a>)>) -> Outcome<'a> {
        let mut made: BTreeMap<Key, Val<'a>> = BTreeMap::new();
        for step in steps {
            self.budget.charge(2)?;
            if !self.passes(fold, &step)? {
                continue;
            }
            let key = step.0.as_key().ok_or(EvalError::NoSuchOverload)?;
            let value = self.with_step(fold, step, &fold.body)?;
            if fold.kind == FoldKind::TransformMap {
                made.insert(key, value);
                continue;
            }
            for (key, value) in value.as_map().ok_or(EvalError::NoSuchOverload)?.entries() {
                let key = key.as_key().ok_or(EvalError::NoSuchOverload)?;
                if made.insert(key.clone(), value).is_some() {
                    return Err(EvalError::failed(format!(
                        "insert failed: key {key} already exists"
                    )));
                }
            }
        }
        Ok(Val::Map(Arc::new(made)))
    }

    fn predicate(
        &mut self,
        fold: &Fold,
        step: (Val<'a>, Val<'a>),
        node: &Node,
    ) -> Result<bool, EvalError> {
        self.with_step(fold, step, node)?
            .as_bool()
            .ok_or(EvalError::NoSuchOverload)
    }

    fn passes(&mut self, fold: &Fold, step: &(Val<'a>, Val<'a>)) -> Result<bool, EvalError> {
        match &fold.filter {
            Some(filter) => self.predicate(fold, step.clone(), filter),
            None => Ok(true),
        }
    }

    /// `all` and `exists`, with the tolerance of errors that `&&` and `||` have.
    fn quantify(
        &mut self,
        fold: &Fold,
        steps: Vec<(Val<'a>, Val<'a>)>,
        decisive: bool,
    ) -> Outcome<'a> {
        let mut failure = None;
        for step in steps {
            self.budget.charge(3)?;
            match self.predicate(fold, step, &fold.body) {
                Ok(value) if value == decisive => return Ok(Val::Bool(decisive)),
                Ok(_) => {}
                Err(EvalError::CostExceeded) => return Err(EvalError::CostExceeded),
                Err(error) => failure = failure.or(Some(error)),
            }
        }
        failure.map_or(Ok(Val::Bool(!decisive)), Err)
    }
}

/// A literal's value.
fn constant<'a>(literal: &Literal) -> Val<'a> {
    match literal {
        Literal::Null => Val::Null,
        Literal::Bool(value) => Val::Bool(*value),
        Literal::Int(value) => Val::Int(*value),
        Literal::Uint(value) => Val::Uint(*value),
        Literal::Double(value) => Val::Double(*value),
        Literal::String(text) => Val::String(Text::Shared(Arc::clone(text))),
        Literal::Bytes(bytes) => Val::Bytes(Arc::clone(bytes)),
    }
}

/// A list's index.
fn position(index: &Val<'_>) -> Result<i64, EvalError> {
    match index.as_key() {
        Some(Key::Int(at)) if !matches!(index, Val::Bool(_)) => Ok(at),
        _ => Err(EvalError::NoSuchOverload),
    }
}
