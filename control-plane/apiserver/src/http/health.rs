//! `/healthz`, `/livez` and `/readyz` with their single checks.

use std::fmt::Write;

use http::Response;

use super::query::Query;
use super::respond;
use crate::seam::ResponseBody;

/// One check and what it found.
pub struct Check {
    /// Its name, as in `/readyz/<name>`.
    pub name: &'static str,
    /// Why it fails.
    pub result: Result<(), String>,
}

/// Answers `/{endpoint}` or `/{endpoint}/{single}`.
#[must_use]
pub fn answer(
    endpoint: &str,
    single: Option<&str>,
    query: &Query,
    checks: Vec<Check>,
) -> Response<ResponseBody> {
    let excluded: Vec<&str> = query.all("exclude").collect();
    let asked = |check: &&Check| match single {
        Some(name) => check.name == name,
        None => !excluded.contains(&check.name),
    };
    let chosen: Vec<&Check> = checks.iter().filter(asked).collect();
    if let (Some(_), true) = (single, chosen.is_empty()) {
        return respond::text(404, "404 page not found\n");
    }
    let failed = chosen.iter().any(|c| c.result.is_err());
    if !failed && !query.flag("verbose") && query.get("verbose").is_none() {
        return respond::text(200, "ok");
    }
    let mut out = String::new();
    let shown = checks.iter().filter(|c| single.is_none_or(|s| s == c.name));
    for check in shown {
        let _ = match &check.result {
            _ if single.is_none() && excluded.contains(&check.name) => {
                writeln!(out, "[+]{} excluded: ok", check.name)
            }
            Ok(()) => writeln!(out, "[+]{} ok", check.name),
            Err(why) => writeln!(out, "[-]{} failed: {why}", check.name),
        };
    }
    let verdict = if failed { "failed" } else { "passed" };
    let _ = writeln!(out, "{endpoint} check {verdict}");
    respond::text(if failed { 500 } else { 200 }, out)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn checks(result: Result<(), String>) -> Vec<Check> {
        vec![
            Check {
                name: "ping",
                result: Ok(()),
            },
            Check {
                name: "store",
                result,
            },
        ]
    }

    #[test]
    fn one_failed_check_fails_all_unless_excluded() {
        let down = || checks(Err("no quorum".into()));
        assert_eq!(
            answer("readyz", None, &Query::default(), down()).status(),
            500
        );
        assert_eq!(
            answer("readyz", None, &Query::parse("exclude=store"), down()).status(),
            200
        );
        assert_eq!(
            answer("readyz", Some("ping"), &Query::default(), down()).status(),
            200
        );
        assert_eq!(
            answer("readyz", Some("store"), &Query::default(), down()).status(),
            500
        );
        assert_eq!(
            answer("readyz", Some("nonsense"), &Query::default(), down()).status(),
            404
        );
        assert_eq!(
            answer("readyz", None, &Query::default(), checks(Ok(()))).status(),
            200
        );
    }
}
