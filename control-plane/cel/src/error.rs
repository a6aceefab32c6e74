//! What can be wrong with an expression, before it runs and while it does.

use std::fmt;
use std::fmt::Write as _;

/// One thing that is wrong with a source.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Issue {
    /// Byte offset in the source.
    pub at: usize,
    /// What is wrong.
    pub message: String,
}

impl Issue {
    pub(crate) fn new(at: usize, message: String) -> Self {
        Self { at, message }
    }
}

/// An expression that does not compile. Displays as cel-go's errors: place, message, the line, a mark under it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub struct CompileError {
    source_text: String,
    issues: Vec<Issue>,
    /// It compiles, but gives a value of another type than is wanted.
    result_only: bool,
}

impl CompileError {
    pub(crate) fn new(source: &str, mut issues: Vec<Issue>) -> Self {
        issues.sort_by_key(|issue| issue.at);
        issues.truncate(MAX_ISSUES);
        Self {
            source_text: source.to_owned(),
            issues,
            result_only: false,
        }
    }

    /// For an expression whose value has the wrong type.
    pub(crate) fn of_result(source: &str, message: String) -> Self {
        Self {
            result_only: true,
            ..Self::new(source, vec![Issue::new(0, message)])
        }
    }

    /// What is wrong as API servers word it: `compilation failed: ERROR: ...`, or `must evaluate to bool` alone.
    #[must_use]
    pub fn complaint(&self) -> String {
        match self.issues.first() {
            Some(issue) if self.result_only => issue.message.clone(),
            _ => format!("compilation failed: {self}"),
        }
    }

    /// What is wrong, in the order of the source.
    #[must_use]
    pub fn issues(&self) -> &[Issue] {
        &self.issues
    }

    /// Line and column of an issue, counted from 1.
    #[must_use]
    pub fn position(&self, issue: &Issue) -> (usize, usize) {
        let (line, column, _) = locate(&self.source_text, issue.at);
        (line, column)
    }
}

/// Issues that are shown; cel-go's limit.
const MAX_ISSUES: usize = 100;

/// Line and column from 1, and the line's text.
fn locate(source: &str, at: usize) -> (usize, usize, &str) {
    let before = source.get(..at.min(source.len())).unwrap_or(source);
    let line = before.matches('\n').count();
    let start = before.rfind('\n').map_or(0, |i| i + 1);
    let column = before[start..].chars().count();
    let text = source[start..].lines().next().unwrap_or_default();
    (line + 1, column + 1, text)
}

impl fmt::Display for CompileError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, issue) in self.issues.iter().enumerate() {
            if i > 0 {
                f.write_char('\n')?;
            }
            let (line, column, text) = locate(&self.source_text, issue.at);
            write!(f, "ERROR: <input>:{line}:{column}: {}", issue.message)?;
            write!(f, "\n | {text}\n | {}^", ".".repeat(column - 1))?;
        }
        Ok(())
    }
}

/// Why an evaluation gave no value.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EvalError {
    /// A field or key that is not there.
    #[error("no such key: {0}")]
    NoSuchKey(String),
    /// A name that nothing is bound to.
    #[error("no such attribute(s): {0}")]
    NoSuchAttribute(String),
    /// Operands of types that an operator or function does not take.
    #[error("no such overload")]
    NoSuchOverload,
    /// An index outside a list.
    #[error("index out of bounds: {0}")]
    OutOfBounds(i64),
    /// Arithmetic that does not fit.
    #[error("{0} overflow")]
    Overflow(&'static str),
    /// Anything else that a function refuses.
    #[error("{0}")]
    Failed(String),
    /// The budget is used up. Nothing absorbs it.
    #[error("operation cancelled: actual cost limit exceeded")]
    CostExceeded,
}

impl EvalError {
    pub(crate) fn failed(message: impl Into<String>) -> Self {
        Self::Failed(message.into())
    }
}
