//! Fields that a document has twice, told as upstream tells them: JSON's by their path and in the order of the
//! document, YAML's by their line.

use std::collections::HashSet;
use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_saphyr::Spanned;

/// Fields that a document has twice.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Duplicates(Found);

#[derive(Debug, Clone, PartialEq, Default)]
enum Found {
    #[default]
    None,
    /// The paths that came again, and the paths of all keys in the order of the document.
    Json {
        fields: Vec<String>,
        keys: Vec<String>,
    },
    /// `line 11: key "foo" already set in map`
    Yaml(Vec<String>),
}

impl Duplicates {
    /// Paths that came again, and the paths of all keys in order.
    pub(super) fn of_json(fields: Vec<String>, keys: Vec<String>) -> Self {
        Self(Found::Json { fields, keys })
    }

    /// Reads a YAML document, in which there are some, once more for their lines.
    pub(super) fn of_yaml(text: &str) -> Self {
        let options = serde_saphyr::options! {
            duplicate_keys: serde_saphyr::options::DuplicateKeyPolicy::LastWins,
            with_snippet: false,
        };
        let mut lines = Vec::new();
        // It was read before; what cannot be read in this way is left untold.
        let _ = serde_saphyr::with_deserializer_from_str_with_options(text, options, |reader| {
            Lines(&mut lines).deserialize(reader)
        });
        Self(Found::Yaml(lines))
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0 == Found::None
    }

    /// All problems of a document, one text for each error of upstream's decoder.
    pub(crate) fn problems(&self, unknown: Vec<String>) -> Vec<String> {
        match &self.0 {
            Found::None => unknown,
            Found::Json { fields, keys } => in_order(fields, keys, unknown),
            Found::Yaml(lines) => std::iter::once(unmarshal_errors(lines))
                .chain(unknown)
                .collect(),
        }
    }

    /// The same, one text for each warning.
    pub(super) fn warnings(&self, unknown: Vec<String>) -> Vec<String> {
        match &self.0 {
            Found::Yaml(lines) => lines.iter().cloned().chain(unknown).collect(),
            _ => self.problems(unknown),
        }
    }

    /// What an apply patch with duplicates is refused for under strict validation, and the warnings that it earns
    /// otherwise; `None` when it has no duplicates.
    #[must_use]
    pub fn in_apply_patch(&self) -> Option<(String, Vec<String>)> {
        let Found::Yaml(lines) = &self.0 else {
            return None;
        };
        let refusal = format!(
            "error strict decoding YAML: error converting YAML to JSON: {}",
            unmarshal_errors(lines)
        );
        Some((refusal, lines.clone()))
    }
}

fn unmarshal_errors(lines: &[String]) -> String {
    format!("yaml: unmarshal errors:\n  {}", lines.join("\n  "))
}

/// Unknown and duplicate fields as they follow each other in the document.
fn in_order(fields: &[String], keys: &[String], unknown: Vec<String>) -> Vec<String> {
    let nth = |path: &str, n: usize| {
        let found = keys.iter().enumerate().filter(|(_, key)| *key == path);
        found.map(|(at, _)| at).nth(n).unwrap_or(usize::MAX)
    };
    let mut problems: Vec<(usize, String)> = Vec::new();
    let mut told = HashSet::new();
    for path in fields.iter().filter(|path| told.insert(path.as_str())) {
        problems.push((nth(path, 1), format!("duplicate field {path:?}")));
    }
    for text in unknown {
        let path = text.trim_start_matches("unknown field ").trim_matches('"');
        problems.push((nth(path, 0), text));
    }
    problems.sort_by_key(|(at, _)| *at);
    problems.into_iter().map(|(_, text)| text).collect()
}

/// Walks a YAML document and notes the lines of keys that came before.
struct Lines<'n>(&'n mut Vec<String>);

impl<'de> DeserializeSeed<'de> for Lines<'_> {
    type Value = ();
    fn deserialize<D: Deserializer<'de>>(self, reader: D) -> Result<(), D::Error> {
        reader.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Lines<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("any value")
    }

    fn visit_bool<E>(self, _: bool) -> Result<(), E> {
        Ok(())
    }

    fn visit_i64<E>(self, _: i64) -> Result<(), E> {
        Ok(())
    }

    fn visit_u64<E>(self, _: u64) -> Result<(), E> {
        Ok(())
    }

    fn visit_f64<E>(self, _: f64) -> Result<(), E> {
        Ok(())
    }

    fn visit_str<E>(self, _: &str) -> Result<(), E> {
        Ok(())
    }

    fn visit_unit<E>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_none<E>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_some<D: Deserializer<'de>>(self, reader: D) -> Result<(), D::Error> {
        reader.deserialize_any(self)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<(), A::Error> {
        while list.next_element_seed(Lines(self.0))?.is_some() {}
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<(), A::Error> {
        let mut seen = HashSet::new();
        while let Some(key) = entries.next_key::<Spanned<String>>()? {
            let line = key.referenced.line();
            if seen.contains(&key.value) {
                self.0.push(format!(
                    "line {line}: key {:?} already set in map",
                    key.value
                ));
                entries.next_value::<IgnoredAny>()?;
            } else {
                seen.insert(key.value);
                entries.next_value_seed(Lines(self.0))?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::super::decode::{parse_json, parse_yaml};

    #[test]
    fn problems_of_json_come_in_the_order_of_the_document() {
        let parsed = parse_json(br#"{"b":{"x":1,"a":2,"a":3},"z":1}"#).unwrap();
        let unknown = vec![
            "unknown field \"z\"".to_owned(),
            "unknown field \"b.x\"".to_owned(),
        ];
        assert_eq!(
            parsed.duplicates.problems(unknown),
            [
                "unknown field \"b.x\"",
                "duplicate field \"b.a\"",
                "unknown field \"z\""
            ]
        );
    }

    #[test]
    fn duplicates_of_yaml_are_told_by_their_lines() {
        let parsed =
            parse_yaml(b"\na: 1\nspec:\n  foo: 1\n  list:\n  - {k: 1, k: 2}\n  foo: 2\n").unwrap();
        assert_eq!(
            parsed.duplicates.problems(Vec::new()),
            [
                "yaml: unmarshal errors:\n  line 6: key \"k\" already set in map\n  line 7: key \"foo\" already set in map"
            ]
        );
        assert_eq!(parsed.duplicates.warnings(Vec::new()).len(), 2);
        assert_eq!(parsed.value["spec"]["foo"], 2);
    }
}
