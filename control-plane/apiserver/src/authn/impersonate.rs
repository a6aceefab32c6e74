//! `Impersonate-User`, `-Group`, `-Uid` and `-Extra-*`: acting as somebody else, if RBAC allows it.

use std::collections::BTreeMap;
use std::sync::Arc;

use balsa_api::status::Status;
use http::HeaderMap;

use super::token::{USER_PREFIX, service_account_user};
use super::{ANONYMOUS, AUTHENTICATED, UNAUTHENTICATED};
use crate::authz::forbidden;
use crate::seam::{Attributes, Authorizer, Decision, User};

const AUTHENTICATION_GROUP: &str = "authentication.k8s.io";
const EXTRA_PREFIX: &str = "impersonate-extra-";

/// Whom the headers ask for.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
struct Wanted {
    user: String,
    uid: String,
    groups: Vec<String>,
    extra: BTreeMap<String, Vec<String>>,
}

/// The user a request acts as: `user` itself without impersonation headers.
///
/// # Errors
/// 403 when `user` may not impersonate all that is asked for, 400 for headers without `Impersonate-User`.
pub async fn impersonate(
    headers: &HeaderMap,
    user: Arc<User>,
    authorizer: &dyn Authorizer,
) -> Result<Arc<User>, Status> {
    let Some(wanted) = parse(headers)? else {
        return Ok(user);
    };
    for attributes in requests(&user, &wanted) {
        if let Decision::NoOpinion(reason) = authorizer.authorize(&attributes).await {
            return Err(forbidden(&attributes, &reason));
        }
    }
    Ok(Arc::new(become_user(wanted)))
}

/// Whether a header belongs to impersonation, so that proxies do not pass it on.
#[must_use]
pub fn is_impersonation(header: &http::HeaderName) -> bool {
    header.as_str().starts_with("impersonate-")
}

fn parse(headers: &HeaderMap) -> Result<Option<Wanted>, Status> {
    let text = |v: &http::HeaderValue| v.to_str().unwrap_or_default().to_owned();
    let mut wanted = Wanted::default();
    for (name, value) in headers {
        match name.as_str() {
            "impersonate-user" => wanted.user = text(value),
            "impersonate-uid" => wanted.uid = text(value),
            "impersonate-group" => wanted.groups.push(text(value)),
            other => {
                if let Some(key) = other.strip_prefix(EXTRA_PREFIX) {
                    let key = percent_encoding::percent_decode_str(key)
                        .decode_utf8_lossy()
                        .into_owned();
                    wanted.extra.entry(key).or_default().push(text(value));
                }
            }
        }
    }
    if wanted.user.is_empty() {
        if wanted == Wanted::default() {
            return Ok(None);
        }
        return Err(Status::bad_request(
            "requested to impersonate groups, uid or extra without impersonating a user",
        ));
    }
    Ok(Some(wanted))
}

/// What has to be allowed, one request per attribute.
fn requests(user: &Arc<User>, wanted: &Wanted) -> Vec<Attributes> {
    let ask =
        |group: &str, resource: &str, subresource: &str, namespace: &str, name: &str| Attributes {
            user: Arc::clone(user),
            verb: "impersonate".into(),
            group: group.into(),
            version: "v1".into(),
            resource: resource.into(),
            subresource: subresource.into(),
            namespace: namespace.into(),
            name: name.into(),
            ..Attributes::default()
        };
    let mut all = Vec::new();
    match wanted
        .user
        .strip_prefix(USER_PREFIX)
        .and_then(|rest| rest.split_once(':'))
    {
        Some((namespace, name)) => all.push(ask("", "serviceaccounts", "", namespace, name)),
        None => all.push(ask("", "users", "", "", &wanted.user)),
    }
    all.extend(wanted.groups.iter().map(|g| ask("", "groups", "", "", g)));
    if !wanted.uid.is_empty() {
        all.push(ask(AUTHENTICATION_GROUP, "uids", "", "", &wanted.uid));
    }
    for (key, values) in &wanted.extra {
        all.extend(
            values
                .iter()
                .map(|v| ask(AUTHENTICATION_GROUP, "userextras", key, "", v)),
        );
    }
    all
}

fn become_user(wanted: Wanted) -> User {
    let mut groups = wanted.groups;
    if groups.is_empty()
        && let Some((namespace, name)) = wanted
            .user
            .strip_prefix(USER_PREFIX)
            .and_then(|r| r.split_once(':'))
    {
        groups = service_account_user(namespace, name, "").groups;
    }
    let implied = if wanted.user == ANONYMOUS {
        UNAUTHENTICATED
    } else {
        AUTHENTICATED
    };
    if !groups
        .iter()
        .any(|g| g == AUTHENTICATED || g == UNAUTHENTICATED)
    {
        groups.push(implied.to_owned());
    }
    User {
        name: wanted.user,
        uid: wanted.uid,
        groups,
        extra: wanted.extra,
    }
}
