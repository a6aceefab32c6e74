//! Options of lists, watches and deletes: parsing and the rules of what goes together.
//!
//! Rules: apimachinery `metav1/validation`, `metainternalversion/validation`.

use balsa_api::status::{Cause, Details, FieldErrors, Status};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::{Deserialize, Serialize};

use crate::http::query::Query;

/// `resourceVersionMatch`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum VersionMatch {
    /// At least as new.
    NotOlderThan,
    /// Exactly.
    Exact,
}

/// Which state a read wants to see.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Freshness {
    /// Everything acknowledged before the request.
    Latest,
    /// Whatever is at hand.
    Any,
    /// At least this revision.
    NotOlderThan(u64),
    /// Exactly this revision.
    Exact(u64),
}

fn version(query: &Query) -> Result<Option<u64>, Status> {
    query
        .some("resourceVersion")
        .map(|text| {
            text.parse().map_err(|_| {
                let mut errors = FieldErrors::default();
                errors.invalid("resourceVersion", text, "must be a number");
                invalid_list_options(&errors)
            })
        })
        .transpose()
}

fn version_match(query: &Query, errors: &mut FieldErrors) -> Option<VersionMatch> {
    match query.some("resourceVersionMatch")? {
        "Exact" => Some(VersionMatch::Exact),
        "NotOlderThan" => Some(VersionMatch::NotOlderThan),
        other => {
            errors.not_supported(
                "resourceVersionMatch",
                other,
                &["Exact", "NotOlderThan", ""],
            );
            None
        }
    }
}

fn invalid_list_options(errors: &FieldErrors) -> Status {
    Status::invalid("ListOptions", "meta.k8s.io", "", errors)
}

/// Freshness of a GET: a resourceVersion means "not older than".
///
/// # Errors
/// 422 when it is no number.
pub fn get_freshness(query: &Query) -> Result<Freshness, Status> {
    Ok(match version(query)? {
        None => Freshness::Latest,
        Some(0) => Freshness::Any,
        Some(revision) => Freshness::NotOlderThan(revision),
    })
}

/// Options of a list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListOptions {
    /// What to see, when there is no token.
    pub freshness: Freshness,
    /// At most so many objects; `None` for all.
    pub limit: Option<usize>,
    /// Where to go on.
    pub token: Option<Token>,
}

impl ListOptions {
    /// From the query.
    ///
    /// # Errors
    /// 400 or 422 as upstream.
    pub fn parse(query: &Query) -> Result<Self, Status> {
        let revision = version(query)?;
        let limit = query
            .integer("limit")?
            .and_then(|n| usize::try_from(n).ok())
            .filter(|n| *n > 0);
        let mut errors = FieldErrors::default();
        let wanted = version_match(query, &mut errors);
        let token = query.some("continue");
        if query.get("sendInitialEvents").is_some() {
            errors.forbidden(
                "sendInitialEvents",
                "sendInitialEvents is forbidden for list",
            );
        }
        if wanted.is_some() {
            if token.is_some() {
                errors.forbidden(
                    "resourceVersionMatch",
                    "resourceVersionMatch is forbidden when continue is provided",
                );
            }
            if revision.is_none() {
                errors.forbidden(
                    "resourceVersionMatch",
                    "resourceVersionMatch is forbidden unless resourceVersion is provided",
                );
            }
            if wanted == Some(VersionMatch::Exact) && revision == Some(0) {
                errors.forbidden(
                    "resourceVersionMatch",
                    "resourceVersionMatch \"Exact\" is forbidden for resourceVersion \"0\"",
                );
            }
        }
        if !errors.is_empty() {
            return Err(invalid_list_options(&errors));
        }
        if token.is_some() && revision.is_some_and(|r| r > 0) {
            return Err(Status::bad_request(
                "specifying resource version is not allowed when using continue",
            ));
        }
        let freshness = match (revision, wanted) {
            (None, _) => Freshness::Latest,
            (Some(0), _) => Freshness::Any,
            (Some(r), Some(VersionMatch::Exact)) => Freshness::Exact(r),
            // Without a match rule, chunked lists have always been exact.
            (Some(r), None) if limit.is_some() => Freshness::Exact(r),
            (Some(r), _) => Freshness::NotOlderThan(r),
        };
        Ok(Self {
            freshness,
            limit,
            token: token.map(Token::decode).transpose()?,
        })
    }
}

/// A continue token.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Token {
    #[serde(rename = "v")]
    form: String,
    /// Revision of the first chunk; -1 when it is gone and the rest may be inconsistent.
    #[serde(rename = "rv")]
    pub revision: i64,
    /// First key of the next chunk, within the resource.
    pub start: String,
    /// Objects that are left from there on, if that is known: the revision's number of them does not change.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub left: Option<usize>,
}

impl Token {
    /// A token that goes on after `last`.
    #[must_use]
    pub fn after(revision: Option<u64>, last: &str) -> Self {
        let revision = revision.and_then(|r| i64::try_from(r).ok()).unwrap_or(-1);
        Self {
            form: "meta.k8s.io/v1".into(),
            revision,
            start: format!("{last}\0"),
            left: None,
        }
    }

    /// As clients hand it back.
    #[must_use]
    pub fn encode(&self) -> String {
        URL_SAFE_NO_PAD.encode(serde_json::to_vec(self).unwrap_or_default())
    }

    fn decode(text: &str) -> Result<Self, Status> {
        let token: Option<Self> = URL_SAFE_NO_PAD
            .decode(text)
            .ok()
            .and_then(|bytes| serde_json::from_slice(&bytes).ok());
        token
            .filter(|t| t.form == "meta.k8s.io/v1" && !t.start.is_empty())
            .ok_or_else(|| {
                Status::bad_request("continue key is not valid: it is none of this server's tokens")
            })
    }
}

/// Options of a watch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WatchOptions {
    /// Where it starts.
    pub start: Start,
    /// Client understands bookmarks.
    pub bookmarks: bool,
    /// Seconds after which it ends.
    pub timeout_seconds: Option<u64>,
}

/// How a watch starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Start {
    /// With the objects that are there, of this freshness; `closing` asks for a bookmark after them.
    State {
        /// Which state.
        freshness: Freshness,
        /// Ends the state with a bookmark that says so.
        closing: bool,
    },
    /// With the changes after a revision.
    After(u64),
    /// With the changes from now on.
    Now,
}

impl WatchOptions {
    /// From the query.
    ///
    /// # Errors
    /// 400 or 422 as upstream.
    pub fn parse(query: &Query) -> Result<Self, Status> {
        let revision = version(query)?;
        let mut errors = FieldErrors::default();
        let wanted = version_match(query, &mut errors);
        let initial = query.tristate("sendInitialEvents");
        match (initial, wanted) {
            (Some(_), None) if errors.is_empty() => errors.forbidden(
                "resourceVersionMatch",
                "sendInitialEvents requires setting resourceVersionMatch to NotOlderThan",
            ),
            (Some(_), Some(VersionMatch::Exact)) => {
                errors.not_supported("resourceVersionMatch", "Exact", &["NotOlderThan"]);
            }
            (None, Some(_)) => errors.forbidden(
                "resourceVersionMatch",
                "resourceVersionMatch is forbidden for watch unless sendInitialEvents is provided",
            ),
            _ => {}
        }
        if query.some("continue").is_some() {
            errors.forbidden("continue", "continue is forbidden for watch");
        }
        if !errors.is_empty() {
            return Err(invalid_list_options(&errors));
        }
        let freshness = match revision {
            None => Freshness::Latest,
            Some(0) => Freshness::Any,
            Some(r) => Freshness::NotOlderThan(r),
        };
        let start = match (initial, revision) {
            (Some(true), _) => Start::State {
                freshness,
                closing: true,
            },
            (Some(false), None | Some(0)) => Start::Now,
            (None, None | Some(0)) => Start::State {
                freshness,
                closing: false,
            },
            (_, Some(r)) => Start::After(r),
        };
        let timeout_seconds = query
            .integer("timeoutSeconds")?
            .and_then(|n| u64::try_from(n).ok())
            .filter(|n| *n > 0);
        Ok(Self {
            start,
            bookmarks: query.flag("allowWatchBookmarks"),
            timeout_seconds,
        })
    }
}

/// 410: a resourceVersion that is gone.
#[must_use]
pub fn expired(requested: u64, oldest: u64) -> Status {
    Status::new(
        410,
        "Expired",
        format!("too old resource version: {requested} ({oldest})"),
    )
}

/// 504: a resourceVersion that is not there yet.
#[must_use]
pub fn too_large(requested: u64, current: u64) -> Status {
    let mut status = Status::new(
        504,
        "Timeout",
        format!("Too large resource version: {requested}, current: {current}"),
    );
    status.details = Some(Details {
        causes: vec![Cause {
            reason: "ResourceVersionTooLarge".into(),
            message: "Too large resource version".into(),
            field: String::new(),
        }],
        retry_after_seconds: Some(1),
        ..Details::default()
    });
    status
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn list(query: &str) -> Result<ListOptions, Status> {
        ListOptions::parse(&Query::parse(query))
    }

    fn watch(query: &str) -> Result<WatchOptions, Status> {
        WatchOptions::parse(&Query::parse(query))
    }

    #[test]
    fn an_unset_version_means_latest_and_zero_means_any() {
        assert_eq!(list("").unwrap().freshness, Freshness::Latest);
        assert_eq!(list("resourceVersion=0").unwrap().freshness, Freshness::Any);
        assert_eq!(
            list("resourceVersion=7").unwrap().freshness,
            Freshness::NotOlderThan(7)
        );
        assert_eq!(
            list("resourceVersion=7&limit=2").unwrap().freshness,
            Freshness::Exact(7)
        );
        let exact = list("resourceVersion=7&resourceVersionMatch=Exact").unwrap();
        assert_eq!(exact.freshness, Freshness::Exact(7));
    }

    #[test]
    fn match_rules_need_a_version_they_fit() {
        assert_eq!(list("resourceVersionMatch=Exact").unwrap_err().code, 422);
        assert_eq!(
            list("resourceVersionMatch=Exact&resourceVersion=0")
                .unwrap_err()
                .code,
            422
        );
        assert_eq!(
            list("resourceVersionMatch=Nearly&resourceVersion=1")
                .unwrap_err()
                .code,
            422
        );
    }

    #[test]
    fn a_token_comes_back_as_it_went_and_forgeries_are_refused() {
        let token = Token::after(Some(9), "d/a");
        let options = list(&format!("continue={}", token.encode())).unwrap();
        assert_eq!(options.token.unwrap().start, "d/a\0");
        assert_eq!(list("continue=abc").unwrap_err().code, 400);
        assert_eq!(
            list(&format!("continue={}&resourceVersion=3", token.encode()))
                .unwrap_err()
                .code,
            400
        );
    }

    #[test]
    fn initial_events_need_the_match_rule() {
        assert_eq!(watch("sendInitialEvents=true").unwrap_err().code, 422);
        let options = watch("sendInitialEvents=true&resourceVersionMatch=NotOlderThan").unwrap();
        assert_eq!(
            options.start,
            Start::State {
                freshness: Freshness::Latest,
                closing: true
            }
        );
        assert_eq!(watch("resourceVersion=5").unwrap().start, Start::After(5));
        let state = Start::State {
            freshness: Freshness::Any,
            closing: false,
        };
        assert_eq!(watch("resourceVersion=0").unwrap().start, state);
    }
}
