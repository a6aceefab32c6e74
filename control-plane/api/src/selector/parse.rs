//! Grammar of label selectors, and what a label key and value may be.

use std::collections::BTreeSet;

use super::lexer::{Token, scan};
use super::{Operator, Requirement, SelectorError};

/// Where a word stands decides whether `in` and `notin` are operators or plain words.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Context {
    KeyAndOperator,
    Values,
}

struct Parser {
    words: Vec<(Token, String)>,
    position: usize,
}

fn fail<T>(message: String) -> Result<T, SelectorError> {
    Err(SelectorError(message))
}

pub(super) fn parse(text: &str) -> Result<Vec<Requirement>, SelectorError> {
    Parser {
        words: scan(text),
        position: 0,
    }
    .selector()
}

impl Parser {
    fn lookahead(&self, context: Context) -> (Token, &str) {
        let (token, literal) = &self.words[self.position.min(self.words.len() - 1)];
        let token = match token {
            Token::In | Token::NotIn if context == Context::Values => Token::Identifier,
            other => *other,
        };
        (token, literal)
    }

    fn consume(&mut self, context: Context) -> (Token, String) {
        let (token, literal) = self.lookahead(context);
        let word = (token, literal.to_owned());
        self.position += 1;
        word
    }

    fn selector(mut self) -> Result<Vec<Requirement>, SelectorError> {
        let mut requirements = Vec::new();
        loop {
            match self.lookahead(Context::Values) {
                (Token::Identifier | Token::Not, _) => {}
                (Token::End, _) => return Ok(requirements),
                (_, literal) => {
                    return fail(format!(
                        "found '{literal}', expected: !, identifier, or 'end of string'"
                    ));
                }
            }
            let requirement = self
                .requirement()
                .map_err(|e| SelectorError(format!("unable to parse requirement: {e}")))?;
            requirements.push(requirement);
            match self.consume(Context::Values) {
                (Token::End, _) => return Ok(requirements),
                (Token::Comma, _) => {
                    let (token, literal) = self.lookahead(Context::Values);
                    if !matches!(token, Token::Identifier | Token::Not) {
                        return fail(format!("found '{literal}', expected: identifier after ','"));
                    }
                }
                (_, literal) => {
                    return fail(format!(
                        "found '{literal}', expected: ',' or 'end of string'"
                    ));
                }
            }
        }
    }

    fn requirement(&mut self) -> Result<Requirement, SelectorError> {
        let (mut token, mut key) = self.consume(Context::Values);
        let negated = token == Token::Not;
        if negated {
            (token, key) = self.consume(Context::Values);
        }
        if token != Token::Identifier {
            return fail(format!("found '{key}', expected: identifier"));
        }
        check_key(&key)?;
        if negated {
            return requirement(&key, Operator::DoesNotExist, BTreeSet::new());
        }
        if matches!(self.lookahead(Context::Values).0, Token::End | Token::Comma) {
            return requirement(&key, Operator::Exists, BTreeSet::new());
        }
        let operator = self.operator()?;
        let values = match operator {
            Operator::In | Operator::NotIn => self.values()?,
            _ => BTreeSet::from([self.exact_value()?]),
        };
        requirement(&key, operator, values)
    }

    fn operator(&mut self) -> Result<Operator, SelectorError> {
        Ok(match self.consume(Context::KeyAndOperator) {
            (Token::In, _) => Operator::In,
            (Token::NotIn, _) => Operator::NotIn,
            (Token::Equals | Token::DoubleEquals, _) => Operator::Equals,
            (Token::NotEquals, _) => Operator::NotEquals,
            (Token::Greater, _) => Operator::GreaterThan,
            (Token::Less, _) => Operator::LessThan,
            (_, literal) => {
                return fail(format!(
                    "found '{literal}', expected: in, notin, =, ==, !=, gt, lt"
                ));
            }
        })
    }

    fn values(&mut self) -> Result<BTreeSet<String>, SelectorError> {
        let (token, literal) = self.consume(Context::Values);
        if token != Token::Open {
            return fail(format!("found '{literal}' expected: '('"));
        }
        match self.lookahead(Context::Values) {
            (Token::Identifier | Token::Comma, _) => {}
            (Token::Close, _) => {
                self.consume(Context::Values);
                return Ok(BTreeSet::new());
            }
            (_, literal) => {
                return fail(format!(
                    "found '{literal}', expected: ',', ')' or identifier"
                ));
            }
        }
        let values = self.identifiers()?;
        let (token, literal) = self.consume(Context::Values);
        if token != Token::Close {
            return fail(format!("found '{literal}', expected: ')'"));
        }
        Ok(values)
    }

    /// Values up to the closing parenthesis; an empty place between commas is an empty value.
    fn identifiers(&mut self) -> Result<BTreeSet<String>, SelectorError> {
        let mut values = BTreeSet::new();
        loop {
            match self.consume(Context::Values) {
                (Token::Identifier, literal) => {
                    values.insert(literal);
                    match self.lookahead(Context::Values) {
                        (Token::Comma, _) => {}
                        (Token::Close, _) => return Ok(values),
                        (_, literal) => {
                            return fail(format!("found '{literal}', expected: ',' or ')'"));
                        }
                    }
                }
                (Token::Comma, _) => {
                    if values.is_empty() {
                        values.insert(String::new());
                    }
                    match self.lookahead(Context::Values).0 {
                        Token::Close => {
                            values.insert(String::new());
                            return Ok(values);
                        }
                        Token::Comma => {
                            self.consume(Context::Values);
                            values.insert(String::new());
                        }
                        _ => {}
                    }
                }
                (_, literal) => {
                    return fail(format!("found '{literal}', expected: ',', or identifier"));
                }
            }
        }
    }

    fn exact_value(&mut self) -> Result<String, SelectorError> {
        if matches!(self.lookahead(Context::Values).0, Token::End | Token::Comma) {
            return Ok(String::new());
        }
        match self.consume(Context::Values) {
            (Token::Identifier, literal) => Ok(literal),
            (_, literal) => fail(format!("found '{literal}', expected: identifier")),
        }
    }
}

/// Checks the parts and makes a condition of them.
pub(super) fn requirement(
    key: &str,
    operator: Operator,
    values: BTreeSet<String>,
) -> Result<Requirement, SelectorError> {
    check_key(key)?;
    let shown = || {
        let list: Vec<String> = values.iter().map(|v| format!("{v:?}")).collect();
        format!("[{}]", list.join(","))
    };
    let problem = match operator {
        Operator::In | Operator::NotIn if values.is_empty() => {
            Some("for 'in', 'notin' operators, values set can't be empty")
        }
        Operator::Equals | Operator::NotEquals if values.len() != 1 => {
            Some("exact-match compatibility requires one single value")
        }
        Operator::Exists | Operator::DoesNotExist if !values.is_empty() => {
            Some("values set must be empty for exists and does not exist")
        }
        Operator::GreaterThan | Operator::LessThan if values.len() != 1 => {
            Some("for 'Gt', 'Lt' operators, exactly one value is required")
        }
        _ => None,
    };
    if let Some(problem) = problem {
        return fail(format!("values: Invalid value: {}: {problem}", shown()));
    }
    if matches!(operator, Operator::GreaterThan | Operator::LessThan)
        && let Some(bad) = values.iter().find(|v| v.parse::<i64>().is_err())
    {
        let why = "for 'Gt', 'Lt' operators, the value must be an integer";
        return fail(format!("values[0]: Invalid value: {bad:?}: {why}"));
    }
    for (index, value) in values.iter().enumerate() {
        if let Some(problem) = check_label_value(value) {
            return fail(format!(
                "values[{index}][{key}]: Invalid value: {value:?}: {problem}"
            ));
        }
    }
    Ok(Requirement {
        key: key.to_owned(),
        operator,
        values,
    })
}

fn check_key(key: &str) -> Result<(), SelectorError> {
    match check_label_key(key) {
        Some(problem) => fail(format!("key: Invalid value: {key:?}: {problem}")),
        None => Ok(()),
    }
}

const NAME_RULE: &str = "must consist of alphanumeric characters, '-', '_' or '.', and must start and end \
     with an alphanumeric character (e.g. 'MyName',  or 'my.name',  or '123-abc', regex used for validation \
     is '([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]')";
const VALUE_RULE: &str = "a valid label must be an empty string or consist of alphanumeric characters, '-', \
     '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyValue',  or 'my_value',  or \
     '12345', regex used for validation is '(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?')";
const SUBDOMAIN_RULE: &str = "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric \
     characters, '-' or '.', and must start and end with an alphanumeric character (e.g. 'example.com', regex \
     used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')";

fn is_name(text: &str) -> bool {
    let bytes = text.as_bytes();
    let inner = |b: &u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
    bytes.iter().all(inner)
        && bytes.first().is_some_and(u8::is_ascii_alphanumeric)
        && bytes.last().is_some_and(u8::is_ascii_alphanumeric)
}

fn is_subdomain(text: &str) -> bool {
    text.split('.').all(|part| {
        let bytes = part.as_bytes();
        let edge = |b: &u8| b.is_ascii_lowercase() || b.is_ascii_digit();
        bytes.iter().all(|b| edge(b) || *b == b'-')
            && bytes.first().is_some_and(edge)
            && bytes.last().is_some_and(edge)
    })
}

/// What is wrong with a label (or annotation) key, as upstream lists it; `None` when nothing is.
///
/// Source: `validation.IsQualifiedName`.
#[must_use]
pub fn check_label_key(key: &str) -> Option<String> {
    let mut problems = Vec::new();
    let mut parts = key.split('/');
    let (name, prefix) = match (parts.next(), parts.next(), parts.next()) {
        (Some(name), None, _) => (name, None),
        (Some(prefix), Some(name), None) => (name, Some(prefix)),
        _ => {
            return Some(format!(
                "a qualified name {NAME_RULE} with an optional DNS subdomain prefix and '/' (e.g. 'example.com/MyName')"
            ));
        }
    };
    if let Some(prefix) = prefix {
        if prefix.is_empty() {
            problems.push("prefix part must be non-empty".to_owned());
        } else {
            if prefix.len() > 253 {
                problems.push("prefix part must be no more than 253 bytes".to_owned());
            }
            if !is_subdomain(prefix) {
                problems.push(format!("prefix part {SUBDOMAIN_RULE}"));
            }
        }
    }
    if name.is_empty() {
        problems.push("name part must be non-empty".to_owned());
    } else if name.len() > 63 {
        problems.push("name part must be no more than 63 bytes".to_owned());
    }
    if !is_name(name) {
        problems.push(format!("name part {NAME_RULE}"));
    }
    (!problems.is_empty()).then(|| problems.join("; "))
}

/// What is wrong with a label value, as upstream lists it; `None` when nothing is.
///
/// Source: `validation.IsValidLabelValue`.
#[must_use]
pub fn check_label_value(value: &str) -> Option<String> {
    let mut problems = Vec::new();
    if value.len() > 63 {
        problems.push("must be no more than 63 bytes".to_owned());
    }
    if !value.is_empty() && !is_name(value) {
        problems.push(VALUE_RULE.to_owned());
    }
    (!problems.is_empty()).then(|| problems.join("; "))
}
