//! Macros: calls that the parser turns into forms of their own.

use std::sync::Arc;

use super::ast::{Expr, Fold, FoldKind, Node};
use crate::error::Issue;

/// A macro's expansion; gives the call's parts back when it is none.
pub enum Expansion {
    /// The call is a macro.
    Done(Expr),
    /// It is an ordinary call.
    Call(Option<Node>, Vec<Node>),
}

/// Expands `function(args)` or `target.function(args)` if it is a macro.
///
/// # Errors
/// When a macro's argument has the wrong form.
pub fn expand(
    function: &str,
    target: Option<Node>,
    mut args: Vec<Node>,
) -> Result<Expansion, Issue> {
    let Some(target) = target else {
        if function == "has" && args.len() == 1 {
            return has(args.remove(0)).map(Expansion::Done);
        }
        return Ok(Expansion::Call(None, args));
    };
    let shape = match (function, args.len()) {
        ("all", 2) => (FoldKind::All, 1, false),
        ("exists", 2) => (FoldKind::Exists, 1, false),
        ("exists_one" | "existsOne", 2) => (FoldKind::ExistsOne, 1, false),
        ("filter", 2) => (FoldKind::Filter, 1, false),
        ("map", 2) => (FoldKind::Map, 1, false),
        ("map", 3) => (FoldKind::Map, 1, true),
        ("all", 3) => (FoldKind::All, 2, false),
        ("exists", 3) => (FoldKind::Exists, 2, false),
        ("existsOne", 3) => (FoldKind::ExistsOne, 2, false),
        ("transformList", 3) => (FoldKind::Map, 2, false),
        ("transformList", 4) => (FoldKind::Map, 2, true),
        ("transformMap", 3) => (FoldKind::TransformMap, 2, false),
        ("transformMap", 4) => (FoldKind::TransformMap, 2, true),
        ("transformMapEntry", 3) => (FoldKind::TransformEntries, 2, false),
        ("transformMapEntry", 4) => (FoldKind::TransformEntries, 2, true),
        ("optMap", 2) => return opt_map(target, args, false).map(Expansion::Done),
        ("optFlatMap", 2) => return opt_map(target, args, true).map(Expansion::Done),
        _ => return Ok(Expansion::Call(Some(target), args)),
    };
    fold(target, args, shape).map(Expansion::Done)
}

fn has(arg: Node) -> Result<Expr, Issue> {
    match arg.expr {
        Expr::Select {
            of,
            field,
            optional: false,
            test: false,
        } => Ok(Expr::Select {
            of,
            field,
            optional: false,
            test: true,
        }),
        _ => Err(Issue::new(
            arg.at as usize,
            "invalid argument to has() macro".to_owned(),
        )),
    }
}

fn variable(node: &Node) -> Result<Arc<str>, Issue> {
    match &node.expr {
        Expr::Ident(name) => Ok(Arc::clone(name)),
        _ => Err(Issue::new(
            node.at as usize,
            "argument must be a simple name".to_owned(),
        )),
    }
}

fn fold(
    range: Node,
    args: Vec<Node>,
    (kind, variables, filtered): (FoldKind, usize, bool),
) -> Result<Expr, Issue> {
    let mut args = args.into_iter();
    let mut next = || {
        args.next()
            .ok_or_else(|| Issue::new(range.at as usize, "too few arguments".to_owned()))
    };
    let first = variable(&next()?)?;
    let second = if variables == 2 {
        Some(variable(&next()?)?)
    } else {
        None
    };
    if second.as_ref() == Some(&first) {
        return Err(Issue::new(
            range.at as usize,
            format!("duplicate iteration variable name: {first}"),
        ));
    }
    let filter = if filtered { Some(next()?) } else { None };
    let body = next()?;
    Ok(Expr::Fold(Box::new(Fold {
        kind,
        range,
        variable: first,
        second,
        filter,
        body,
    })))
}

fn opt_map(target: Node, args: Vec<Node>, flat: bool) -> Result<Expr, Issue> {
    let at = target.at as usize;
    let mut args = args.into_iter();
    match (args.next(), args.next()) {
        (Some(name), Some(body)) => Ok(Expr::OptMap {
            target: Box::new(target),
            variable: variable(&name)?,
            body: Box::new(body),
            flat,
        }),
        _ => Err(Issue::new(at, "too few arguments".to_owned())),
    }
}
