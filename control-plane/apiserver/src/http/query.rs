//! Query parameters, parsed once per request.

use std::time::Duration;

use balsa_api::status::Status;

/// The query of a request.
#[derive(Debug, Clone, Default)]
pub struct Query(Vec<(String, String)>);

impl Query {
    /// Parses what follows the `?`.
    #[must_use]
    pub fn parse(query: &str) -> Self {
        if query.is_empty() {
            return Self::default();
        }
        Self(
            form_urlencoded::parse(query.as_bytes())
                .into_owned()
                .collect(),
        )
    }

    /// First value of a parameter.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0
            .iter()
            .find(|(n, _)| n == name)
            .map(|(_, v)| v.as_str())
    }

    /// First value of a parameter, where an empty one counts as absent.
    #[must_use]
    pub fn some(&self, name: &str) -> Option<&str> {
        self.get(name).filter(|v| !v.is_empty())
    }

    /// All values of a parameter.
    pub fn all<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a str> {
        self.0
            .iter()
            .filter(move |(n, _)| n == name)
            .map(|(_, v)| v.as_str())
    }

    /// A boolean as Kubernetes reads it: present and not `false` or `0`.
    #[must_use]
    pub fn flag(&self, name: &str) -> bool {
        self.tristate(name).unwrap_or(false)
    }

    /// A boolean that may be absent.
    #[must_use]
    pub fn tristate(&self, name: &str) -> Option<bool> {
        self.get(name)
            .map(|v| !matches!(v.to_ascii_lowercase().as_str(), "false" | "0" | "f"))
    }

    /// An integer.
    ///
    /// # Errors
    /// 400 when it is none.
    pub fn integer(&self, name: &str) -> Result<Option<i64>, Status> {
        self.some(name)
            .map(|v| {
                v.parse().map_err(|_| {
                    Status::bad_request(format!(
                        "unable to parse query parameter {name}: \"{v}\" is no integer"
                    ))
                })
            })
            .transpose()
    }

    /// `timeout`: how long the client lets the server work, as Go writes durations. None, or zero, when it does
    /// not say.
    ///
    /// # Errors
    /// 400 when it is no duration.
    pub fn timeout(&self) -> Result<Option<Duration>, Status> {
        let Some(text) = self.some("timeout") else {
            return Ok(None);
        };
        let parsed = go_duration(text).ok_or_else(|| {
            Status::bad_request(format!(
                "invalid timeout specified in the request URL - time: invalid duration {text:?}"
            ))
        })?;
        Ok(Some(parsed).filter(|d| !d.is_zero()))
    }
}

/// A duration as Go writes it: `34s`, `1m30s`, `1.5h`, `500ms`, `0`.
fn go_duration(text: &str) -> Option<Duration> {
    if text == "0" {
        return Some(Duration::ZERO);
    }
    let mut rest = text;
    let mut seconds = 0.0;
    while !rest.is_empty() {
        let end = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let (number, unit) = rest.split_at(end);
        let number: f64 = number.parse().ok()?;
        let length = unit
            .find(|c: char| c.is_ascii_digit() || c == '.')
            .unwrap_or(unit.len());
        let (unit, next) = unit.split_at(length);
        seconds += number
            * match unit {
                "h" => 3600.0,
                "m" => 60.0,
                "s" => 1.0,
                "ms" => 1e-3,
                "us" | "µs" => 1e-6,
                "ns" => 1e-9,
                _ => return None,
            };
        rest = next;
    }
    if text.is_empty() {
        return None;
    }
    Duration::try_from_secs_f64(seconds).ok()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn timeouts_are_read_as_go_writes_them() {
        let timeout = |text: &str| Query::parse(&format!("timeout={text}")).timeout();
        assert_eq!(timeout("1m30s").unwrap(), Some(Duration::from_secs(90)));
        assert_eq!(timeout("500ms").unwrap(), Some(Duration::from_millis(500)));
        assert_eq!(timeout("0s").unwrap(), None);
        assert_eq!(timeout("").unwrap(), None);
        for bad in ["5", "s", "1x", "-1s", "1s2"] {
            assert_eq!(timeout(bad).unwrap_err().code, 400, "{bad}");
        }
    }
}
