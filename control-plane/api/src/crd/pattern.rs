//! Patterns of schemas, and of CEL. They are written for Go's regular expressions, which differ in small things from
//! the ones here: `\d`, `\w` and `\s` are ASCII, a brace that counts nothing stands for itself, and so does everything
//! in brackets that Rust's syntax has a use for (`[`, `&&`, `--`, `~~`).

use std::iter::Peekable;
use std::str::Chars;

use regex::{Regex, RegexBuilder};

/// Compiles a pattern, within bounds of memory.
///
/// # Errors
/// When it is no regular expression, or too large.
pub fn compile(pattern: &str) -> Result<Regex, regex::Error> {
    compile_within(pattern, 4 << 20)
}

/// Compiles a pattern into so many bytes at most.
///
/// # Errors
/// When it is no regular expression, or too large.
pub fn compile_within(pattern: &str, bytes: usize) -> Result<Regex, regex::Error> {
    RegexBuilder::new(&translate(pattern))
        .size_limit(bytes)
        .dfa_size_limit(1 << 20)
        .build()
}

/// The pattern in this crate's syntax. What is no pattern in Go stays none.
fn translate(pattern: &str) -> String {
    let mut out = String::with_capacity(pattern.len());
    let mut rest = pattern.chars().peekable();
    while let Some(c) = rest.next() {
        match c {
            '\\' => escape(&mut rest, &mut out),
            '[' => class(&mut rest, &mut out),
            '{' => match count(&rest) {
                Some(length) => {
                    out.push('{');
                    out.extend(rest.by_ref().take(length));
                }
                None => out.push_str("\\{"),
            },
            '}' | ']' => literal(c, &mut out),
            c => out.push(c),
        }
    }
    out
}

/// A character that stands for itself.
fn literal(c: char, out: &mut String) {
    // Escaped, these two are word boundaries.
    if c.is_ascii_punctuation() && !matches!(c, '<' | '>') {
        out.push('\\');
    }
    out.push(c);
}

/// How many characters follow a brace up to its partner, when it counts: `{2}`, `{2,}`, `{2,3}`.
fn count(rest: &Peekable<Chars<'_>>) -> Option<usize> {
    let inner: String = rest.clone().take_while(|c| *c != '}').collect();
    let closed = rest.clone().nth(inner.chars().count()) == Some('}');
    let number = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    let counts = match inner.split_once(',') {
        None => number(&inner),
        Some((low, high)) => number(low) && (high.is_empty() || number(high)),
    };
    (closed && counts).then(|| inner.len() + 1)
}

/// The members of `\d`, `\w` and `\s`.
fn members(class: char) -> Option<&'static str> {
    Some(match class {
        'd' | 'D' => "0-9",
        'w' | 'W' => "0-9A-Za-z_",
        's' | 'S' => "\\t\\n\\f\\r ",
        _ => return None,
    })
}

fn escape(rest: &mut Peekable<Chars<'_>>, out: &mut String) {
    let Some(c) = rest.next() else {
        out.push('\\');
        return;
    };
    match (c, members(c)) {
        ('Q', _) => quoted(rest, out),
        ('b', _) => out.push_str("(?-u:\\b)"),
        (_, Some(members)) => {
            let not = if c.is_ascii_uppercase() { "^" } else { "" };
            out.push_str(&format!("[{not}{members}]"));
        }
        _ => plain_escape(c, rest, out),
    }
}

/// An escape that means the same in both: punctuation, `\n`, `\x{1F}`, `\pL`, `\p{Greek}`.
fn plain_escape(c: char, rest: &mut Peekable<Chars<'_>>, out: &mut String) {
    if c.is_ascii_punctuation() {
        literal(c, out);
        return;
    }
    out.extend(['\\', c]);
    if matches!(c, 'p' | 'P' | 'x') && rest.peek() == Some(&'{') {
        while let Some(c) = rest.next_if(|c| *c != '}') {
            out.push(c);
        }
        out.extend(rest.next());
    }
}

/// All up to `\E` stands for itself.
fn quoted(rest: &mut Peekable<Chars<'_>>, out: &mut String) {
    while let Some(c) = rest.next() {
        if c == '\\' && rest.next_if_eq(&'E').is_some() {
            return;
        }
        literal(c, out);
    }
}

/// What stands in brackets; the opening one is read.
fn class(rest: &mut Peekable<Chars<'_>>, out: &mut String) {
    out.push('[');
    if rest.next_if_eq(&'^').is_some() {
        out.push('^');
    }
    let mut first = true;
    while let Some(c) = rest.next() {
        let next = rest.peek().copied();
        match (c, next) {
            (']', _) if !first => {
                out.push(']');
                return;
            }
            ('[', Some(':')) => named_class(rest, out),
            ('\\', Some(class)) if members(class).is_some() => {
                rest.next();
                let members = members(class).unwrap_or_default();
                out.push_str(&if class.is_ascii_uppercase() {
                    format!("[^{members}]")
                } else {
                    members.to_owned()
                });
            }
            _ => range(c, rest, out),
        }
        first = false;
    }
}

/// `[:alpha:]`, of which the opening bracket is read; else the bracket stands for itself.
fn named_class(rest: &mut Peekable<Chars<'_>>, out: &mut String) {
    let name: String = rest.clone().take_while(|c| *c != ']').collect();
    let length = name.chars().count() + 1;
    if name.len() > 2 && name.ends_with(':') && rest.clone().nth(length - 1).is_some() {
        out.push('[');
        out.extend(rest.by_ref().take(length));
    } else {
        literal('[', out);
    }
}

/// A member of a class, or two with all that is between them.
fn range(first: char, rest: &mut Peekable<Chars<'_>>, out: &mut String) {
    member(first, rest, out);
    let mut ahead = rest.clone();
    let is_range = ahead.next() == Some('-') && ahead.next().is_some_and(|c| c != ']');
    if !is_range {
        return;
    }
    rest.next();
    out.push('-');
    if let Some(last) = rest.next() {
        member(last, rest, out);
    }
}

fn member(c: char, rest: &mut Peekable<Chars<'_>>, out: &mut String) {
    match (c, rest.peek().copied()) {
        ('\\', Some(escaped)) => {
            rest.next();
            plain_escape(escaped, rest, out);
            // Two digits, when they stand without braces.
            if escaped == 'x' && !out.ends_with('}') {
                out.extend(rest.by_ref().take(2));
            }
        }
        _ => literal(c, out),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn matches(pattern: &str, text: &str) -> bool {
        compile(pattern).unwrap().is_match(text)
    }

    #[test]
    fn patterns_of_common_definitions_are_read() {
        for (pattern, good, bad) in [
            (
                r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$",
                "a.b-c",
                "a..b",
            ),
            (
                r"^(\+|-)?(([0-9]+(\.[0-9]*)?)|(\.[0-9]+))(([KMGTPE]i)|[numkMGTPE])?$",
                "1.5Gi",
                "1X",
            ),
            (r"^[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?$", "A:b", "1"),
            (
                r"^((2[0-4][0-9]|25[0-5]|1[0-9]{2}|[1-9]?[0-9])(\.|$)){4}$",
                "10.0.0.1",
                "10.0.0",
            ),
            (
                r"^https?:\/\/[^\s\/$.?#].[^\s]*$",
                "https://a.b/c",
                "https:// a",
            ),
        ] {
            assert!(matches(pattern, good), "{pattern}");
            assert!(!matches(pattern, bad), "{pattern}");
        }
    }

    #[test]
    fn braces_that_count_nothing_stand_for_themselves() {
        assert!(matches("^{{[a-z]+}}$", "{{name}}"));
        assert!(matches("^a{,2}$", "a{,2}"));
        assert!(matches("^a{2}b{1,}c{0,3}$", "aabbc"));
        assert!(!matches("^a{2}$", "a{2}"));
        assert!(matches(r"^\x{1F600}\p{Greek}\pL$", "\u{1F600}αb"));
    }

    #[test]
    fn brackets_hold_what_they_show() {
        assert!(matches(r"^[^[\]]+$", "a-b"));
        assert!(!matches(r"^[^[\]]+$", "a[b"));
        assert!(matches("^[&&|~~]+$", "&|~"));
        assert!(matches("^[+--]+$", "+,-"));
        assert!(matches("^[]a]+$", "]a"));
        assert!(matches("^[[:alpha:][:digit:]-]+$", "a-1"));
        assert!(matches(r"^[\x00-\x7F\x{20AC}]+$", "a€"));
        assert!(matches(r"^[^\S]\Q[a]+\E$", " [a]+"));
        assert!(matches(r"^\<a\_b\>$", "<a_b>"));
    }

    #[test]
    fn letters_and_digits_are_ascii_and_long_repetitions_small() {
        assert!(!matches(r"^\d+$", "١"));
        assert!(!matches(r"^\w+$", "é"));
        assert!(matches(r"^\W$", "é"));
        assert!(matches(r"^\ba\b$", "a"));
        assert!(matches(r"^[\w\-]{1,1000}$", "a-b"));
    }

    #[test]
    fn what_is_no_pattern_is_refused() {
        for bad in [
            "(", "[", "[a", "*", "\\", "a(?=b)", r"(a)\1", "[z-a]", "(?P<n",
        ] {
            assert!(compile(bad).is_err(), "{bad}");
        }
    }
}
