//! The JSON paths of printer columns, selectable fields and scale subresources.
//!
//! Columns know child access (`.a.b`, `['a.b']`), indices (`[0]`, `[-1]`, `[*]`, slices) and filters
//! (`[?(@.type=="Ready")]`); the other two only child access.

use serde_json::Value;

/// A parsed path.
#[derive(Debug, Clone, PartialEq)]
pub struct JsonPath(Vec<Step>);

#[derive(Debug, Clone, PartialEq)]
enum Step {
    Member(String),
    Index(i64),
    All,
    Slice(Option<i64>, Option<i64>),
    Filter(Vec<Step>, Comparison, Value),
    Exists(Vec<Step>),
    /// `..name`: at any depth.
    Anywhere(String),
    /// `['a','b']` or `[0,2]`: what each leads to.
    Union(Vec<Step>),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Comparison {
    Equal,
    NotEqual,
    Less,
    LessOrEqual,
    Greater,
    GreaterOrEqual,
}

/// Why a text is no path.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct BadPath(String);

fn bad(why: impl Into<String>) -> BadPath {
    BadPath(why.into())
}

impl JsonPath {
    /// Reads a path: `.spec.size`, with or without braces around it and `$` before it.
    ///
    /// # Errors
    /// [`BadPath`].
    pub fn parse(text: &str) -> Result<Self, BadPath> {
        let text = text.trim();
        let inner = text
            .strip_prefix('{')
            .and_then(|t| t.strip_suffix('}'))
            .unwrap_or(text);
        let inner = inner.strip_prefix('$').unwrap_or(inner);
        let (steps, rest) = steps(inner)?;
        if rest.is_empty() {
            Ok(Self(steps))
        } else {
            Err(bad(format!("unrecognized character in action: {rest:?}")))
        }
    }

    /// Reads a path of member names only, as selectable fields and scale subresources have them. The answer is a
    /// JSON pointer.
    ///
    /// # Errors
    /// [`BadPath`] in upstream's words.
    pub fn simple(text: &str) -> Result<String, BadPath> {
        if text.is_empty() || !text.starts_with('.') {
            return Err(bad(
                "must be a json path under an object, starting with a dot",
            ));
        }
        let mut pointer = String::new();
        for step in Self::parse(text)?.0 {
            match step {
                Step::Member(name) => {
                    pointer.push('/');
                    pointer.push_str(&name.replace('~', "~0").replace('/', "~1"));
                }
                _ => return Err(bad("array notation, filters and wildcards are not allowed")),
            }
        }
        Ok(pointer)
    }

    /// Everything that the path leads to.
    #[must_use]
    pub fn find<'v>(&self, value: &'v Value) -> Vec<&'v Value> {
        walk(&self.0, vec![value])
    }
}

fn walk<'v>(steps: &[Step], from: Vec<&'v Value>) -> Vec<&'v Value> {
    steps.iter().fold(from, |values, step| {
        values.into_iter().flat_map(|v| apply(step, v)).collect()
    })
}

fn position(index: i64, length: usize) -> Option<usize> {
    let length = i64::try_from(length).ok()?;
    let at = if index < 0 { length + index } else { index };
    usize::try_from(at).ok()
}

fn apply<'v>(step: &Step, value: &'v Value) -> Vec<&'v Value> {
    let items = value.as_array().map(Vec::as_slice).unwrap_or_default();
    match step {
        Step::Member(name) => value.get(name).into_iter().collect(),
        Step::Index(index) => position(*index, items.len())
            .and_then(|at| items.get(at))
            .into_iter()
            .collect(),
        Step::All => match value {
            Value::Object(map) => map.values().collect(),
            _ => items.iter().collect(),
        },
        Step::Slice(from, to) => {
            let start = position(from.unwrap_or(0), items.len()).unwrap_or(0);
            let end = to
                .map_or(Some(items.len()), |to| position(to, items.len()))
                .unwrap_or(0)
                .min(items.len());
            items
                .get(start..end.max(start))
                .unwrap_or_default()
                .iter()
                .collect()
        }
        Step::Filter(path, comparison, wanted) => items
            .iter()
            .filter(|item| {
                walk(path, vec![item])
                    .first()
                    .is_some_and(|found| holds(*comparison, found, wanted))
            })
            .collect(),
        Step::Exists(path) => items
            .iter()
            .filter(|item| !walk(path, vec![item]).is_empty())
            .collect(),
        Step::Union(steps) => steps.iter().flat_map(|step| apply(step, value)).collect(),
        Step::Anywhere(name) => {
            let mut found = Vec::new();
            anywhere(name, value, &mut found);
            found
        }
    }
}

fn anywhere<'v>(name: &str, value: &'v Value, found: &mut Vec<&'v Value>) {
    match value {
        Value::Object(map) => {
            found.extend(map.get(name));
            map.values().for_each(|v| anywhere(name, v, found));
        }
        Value::Array(items) => items.iter().for_each(|v| anywhere(name, v, found)),
        _ => {}
    }
}

fn holds(comparison: Comparison, found: &Value, wanted: &Value) -> bool {
    use std::cmp::Ordering;
    let order = match (found, wanted) {
        (Value::Number(a), Value::Number(b)) => a.as_f64().partial_cmp(&b.as_f64()),
        (Value::String(a), Value::String(b)) => Some(a.cmp(b)),
        (a, b) if a == b => Some(Ordering::Equal),
        _ => None,
    };
    match comparison {
        Comparison::Equal => order == Some(Ordering::Equal),
        Comparison::NotEqual => order != Some(Ordering::Equal),
        Comparison::Less => order == Some(Ordering::Less),
        Comparison::LessOrEqual => matches!(order, Some(Ordering::Less | Ordering::Equal)),
        Comparison::Greater => order == Some(Ordering::Greater),
        Comparison::GreaterOrEqual => {
            matches!(order, Some(Ordering::Greater | Ordering::Equal))
        }
    }
}

/// Reads steps until something else comes.
fn steps(mut text: &str) -> Result<(Vec<Step>, &str), BadPath> {
    let mut steps = Vec::new();
    loop {
        if let Some(rest) = text.strip_prefix("..") {
            let (name, rest) = name(rest);
            if name.is_empty() {
                return Err(bad("a name must follow .."));
            }
            steps.push(Step::Anywhere(name));
            text = rest;
        } else if let Some(rest) = text.strip_prefix('.') {
            if let Some(rest) = rest.strip_prefix('*') {
                steps.push(Step::All);
                text = rest;
                continue;
            }
            let (name, rest) = name(rest);
            if name.is_empty() && !rest.starts_with('[') && !rest.is_empty() {
                return Err(bad(format!(
                    "unexpected path string, expected one of identifier or '[': {text:?}"
                )));
            }
            if !name.is_empty() {
                steps.push(Step::Member(name));
            }
            text = rest;
        } else if text.starts_with('[') {
            let (step, rest) = bracket(text)?;
            steps.push(step);
            text = rest;
        } else {
            return Ok((steps, text));
        }
    }
}

/// A name; a backslash takes the next character as it is.
fn name(text: &str) -> (String, &str) {
    let mut out = String::new();
    let mut chars = text.char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            '\\' => match chars.next() {
                Some((_, next)) => out.push(next),
                None => return (out, ""),
            },
            '.' | '[' | ']' | ' ' | '=' | '!' | '<' | '>' | ')' | '(' | '{' | '}' | '"' | '\'' => {
                return (out, &text[at..]);
            }
            c => out.push(c),
        }
    }
    (out, "")
}

fn bracket(text: &str) -> Result<(Step, &str), BadPath> {
    let body = &text[1..];
    if let Some(rest) = body.strip_prefix("?(") {
        return filter(rest);
    }
    if body.starts_with(['\'', '"']) {
        return quoted_names(body);
    }
    let end = body.find(']').ok_or_else(|| bad("unterminated array"))?;
    let (inner, rest) = (body[..end].trim(), &body[end + 1..]);
    if inner == "*" {
        return Ok((Step::All, rest));
    }
    let number = |text: &str| -> Result<Option<i64>, BadPath> {
        let text = text.trim();
        if text.is_empty() {
            return Ok(None);
        }
        text.parse()
            .map(Some)
            .map_err(|_| bad(format!("invalid array index {text}")))
    };
    if inner.contains(',') {
        let index = |text| number(text)?.ok_or_else(|| bad("invalid array index"));
        let each = inner.split(',').map(|text| index(text).map(Step::Index));
        return Ok((Step::Union(each.collect::<Result<_, _>>()?), rest));
    }
    if let Some((from, to)) = inner.split_once(':') {
        return Ok((Step::Slice(number(from)?, number(to)?), rest));
    }
    match number(inner)? {
        Some(index) => Ok((Step::Index(index), rest)),
        None => Err(bad("invalid array index")),
    }
}

/// After `[?(`: a path below `@`, and what it is compared with.
/// `'a']` or `'a', 'b']`, after the bracket.
fn quoted_names(text: &str) -> Result<(Step, &str), BadPath> {
    let (mut names, mut text) = (Vec::new(), text);
    loop {
        let (name, rest) = quoted(text)?;
        names.push(Step::Member(name));
        let rest = rest.trim_start();
        if let Some(rest) = rest.strip_prefix(']') {
            let step = match names.len() {
                1 => names.remove(0),
                _ => Step::Union(names),
            };
            return Ok((step, rest));
        }
        let next = rest.strip_prefix(',').map(str::trim_start);
        text = next
            .filter(|next| next.starts_with(['\'', '"']))
            .ok_or_else(|| bad("unterminated array"))?;
    }
}

fn filter(text: &str) -> Result<(Step, &str), BadPath> {
    let text = text.trim_start();
    let text = text.strip_prefix('@').unwrap_or(text);
    let (path, rest) = steps(text)?;
    let rest = rest.trim_start();
    let end = |rest: &str| -> Result<usize, BadPath> {
        if rest.starts_with(")]") {
            Ok(2)
        } else {
            Err(bad("unterminated filter"))
        }
    };
    if let Ok(length) = end(rest) {
        return Ok((Step::Exists(path), &rest[length..]));
    }
    const OPERATORS: [(&str, Comparison); 6] = [
        ("==", Comparison::Equal),
        ("!=", Comparison::NotEqual),
        ("<=", Comparison::LessOrEqual),
        (">=", Comparison::GreaterOrEqual),
        ("<", Comparison::Less),
        (">", Comparison::Greater),
    ];
    let (operator, comparison) = OPERATORS
        .iter()
        .find(|(text, _)| rest.starts_with(text))
        .ok_or_else(|| bad("unrecognized filter operator"))?;
    let rest = rest[operator.len()..].trim_start();
    let (wanted, rest) = if rest.starts_with(['\'', '"']) {
        let (text, rest) = quoted(rest)?;
        (Value::String(text), rest)
    } else {
        let stop = rest.find([')', ' ']).unwrap_or(rest.len());
        let literal = serde_json::from_str(&rest[..stop])
            .map_err(|_| bad(format!("cannot parse {:?}", &rest[..stop])))?;
        (literal, &rest[stop..])
    };
    let rest = rest.trim_start();
    let length = end(rest)?;
    Ok((Step::Filter(path, *comparison, wanted), &rest[length..]))
}

fn quoted(text: &str) -> Result<(String, &str), BadPath> {
    let quote = if text.starts_with('"') { '"' } else { '\'' };
    let mut out = String::new();
    let mut chars = text.char_indices().skip(1);
    while let Some((at, c)) = chars.next() {
        match c {
            '\\' => out.extend(chars.next().map(|(_, c)| c)),
            c if c == quote => return Ok((out, &text[at + 1..])),
            c => out.push(c),
        }
    }
    Err(bad("unterminated quoted string"))
}
