//! What a request is about, from its method, path and query alone.
//!
//! Rules: apiserver `endpoints/request.RequestInfo`.

use std::borrow::Cow;

use http::Method;

use super::query::Query;

/// What a request is about.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct RequestInfo {
    /// True for API objects, false for `/healthz` and the like (and for discovery documents).
    pub is_resource: bool,
    /// `get`, `list`, `watch`, `create`, `update`, `patch`, `delete`, `deletecollection`; for other paths the
    /// lower-case method.
    pub verb: &'static str,
    /// Group, empty for core.
    pub group: String,
    /// Version.
    pub version: String,
    /// Namespace, empty for cluster-wide requests.
    pub namespace: String,
    /// Plural resource name.
    pub resource: String,
    /// Subresource or empty.
    pub subresource: String,
    /// Object name or empty.
    pub name: String,
    /// What follows `/proxy` in the path, with its leading slash.
    pub tail: String,
    /// The whole path.
    pub path: String,
}

/// Subresources of a namespace itself; everything else below `namespaces/x/` is a resource in it.
const NAMESPACE_SUBRESOURCES: [&str; 2] = ["status", "finalize"];

impl RequestInfo {
    /// Reads a request line.
    #[must_use]
    pub fn parse(method: &Method, path: &str, query: &Query) -> Self {
        let mut info = Self {
            verb: method_name(method),
            path: path.to_owned(),
            ..Self::default()
        };
        let mut parts = path.split('/').filter(|p| !p.is_empty());
        let (group, version) = match parts.next() {
            Some("api") => ("", parts.next()),
            Some("apis") => (parts.next().unwrap_or_default(), parts.next()),
            _ => return info,
        };
        // The longest that means something: namespaces, its name, resource, name, subresource.
        let mut rest = [const { Cow::Borrowed("") }; 5];
        let mut count = 0;
        for (place, part) in rest.iter_mut().zip(parts) {
            *place = percent_decode(part);
            count += 1;
        }
        let (Some(version), 1..) = (version, count) else {
            return info;
        };
        info.group = group.to_owned();
        info.version = version.to_owned();
        info.is_resource = true;
        let below = info.take_namespace(&rest[..count]);
        info.take_resource(below);
        if info.subresource == "proxy" {
            let before = if group.is_empty() { 2 } else { 3 } + (count - below.len()) + 3;
            // Raw, so that escapes in the path reach the backend unchanged.
            info.tail = after_parts(path, before).to_owned();
        }
        info.verb = resource_verb(method, &info, query);
        if matches!(info.verb, "list" | "watch" | "deletecollection") {
            info.name = name_of_field_selector(query).unwrap_or_default();
        }
        info
    }

    fn take_namespace<'r, 'p>(&mut self, rest: &'r [Cow<'p, str>]) -> &'r [Cow<'p, str>] {
        let [first, namespace, below @ ..] = rest else {
            return rest;
        };
        if first != "namespaces" {
            return rest;
        }
        self.namespace = namespace.clone().into_owned();
        match below.first() {
            Some(resource) if !NAMESPACE_SUBRESOURCES.contains(&resource.as_ref()) => below,
            _ => rest,
        }
    }

    fn take_resource(&mut self, rest: &[Cow<'_, str>]) {
        let mut rest = rest.iter().map(|part| part.as_ref().to_owned());
        self.resource = rest.next().unwrap_or_default();
        self.name = rest.next().unwrap_or_default();
        self.subresource = rest.next().unwrap_or_default();
    }

    /// True for requests that may last: watches and streams. They are outside deadlines and in-flight limits.
    #[must_use]
    pub fn is_long_running(&self) -> bool {
        self.verb == "watch"
            || matches!(
                self.subresource.as_str(),
                "exec" | "attach" | "portforward" | "log" | "proxy"
            )
    }

    /// True when nothing is changed.
    #[must_use]
    pub fn is_read_only(&self) -> bool {
        matches!(self.verb, "get" | "list" | "watch" | "head" | "options")
    }
}

/// What follows so many parts of a path, with its leading slash; slashes that follow each other part nothing.
fn after_parts(path: &str, parts: usize) -> &str {
    let mut rest = path;
    for _ in 0..parts {
        rest = rest.trim_start_matches('/');
        rest = rest.find('/').map_or("", |at| &rest[at..]);
    }
    rest
}

fn method_name(method: &Method) -> &'static str {
    match *method {
        Method::GET => "get",
        Method::POST => "post",
        Method::PUT => "put",
        Method::PATCH => "patch",
        Method::DELETE => "delete",
        Method::HEAD => "head",
        Method::OPTIONS => "options",
        _ => "",
    }
}

fn resource_verb(method: &Method, info: &RequestInfo, query: &Query) -> &'static str {
    match *method {
        Method::POST => "create",
        Method::PUT => "update",
        Method::PATCH => "patch",
        Method::DELETE if info.name.is_empty() => "deletecollection",
        Method::DELETE => "delete",
        Method::GET | Method::HEAD if info.name.is_empty() => {
            if query.flag("watch") {
                "watch"
            } else {
                "list"
            }
        }
        Method::GET | Method::HEAD => "get",
        _ => "",
    }
}

/// A list narrowed to one name by a field selector counts as being about that name for authorization.
fn name_of_field_selector(query: &Query) -> Option<String> {
    let selector = query.get("fieldSelector")?;
    selector.split(',').find_map(|term| {
        let value = term.strip_prefix("metadata.name=")?;
        Some(value.strip_prefix('=').unwrap_or(value).to_owned())
    })
}

fn percent_decode(text: &str) -> Cow<'_, str> {
    percent_encoding::percent_decode_str(text).decode_utf8_lossy()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn info(method: Method, uri: &str) -> RequestInfo {
        let (path, query) = uri.split_once('?').unwrap_or((uri, ""));
        RequestInfo::parse(&method, path, &Query::parse(query))
    }

    #[test]
    fn a_namespaced_object_has_namespace_resource_and_name() {
        let i = info(
            Method::GET,
            "/apis/apps/v1/namespaces/d/deployments/web/status",
        );
        assert_eq!(
            (i.group.as_str(), i.version.as_str(), i.namespace.as_str()),
            ("apps", "v1", "d")
        );
        assert_eq!(
            (i.resource.as_str(), i.name.as_str(), i.subresource.as_str()),
            ("deployments", "web", "status")
        );
        assert_eq!(i.verb, "get");
    }

    #[test]
    fn a_namespace_is_a_resource_of_its_own() {
        let i = info(Method::PUT, "/api/v1/namespaces/d/finalize");
        assert_eq!(
            (i.resource.as_str(), i.name.as_str(), i.subresource.as_str()),
            ("namespaces", "d", "finalize")
        );
        assert_eq!((i.namespace.as_str(), i.verb), ("d", "update"));
    }

    #[test]
    fn watch_and_list_differ_by_query() {
        assert_eq!(info(Method::GET, "/api/v1/pods?watch=true").verb, "watch");
        assert_eq!(info(Method::GET, "/api/v1/pods?watch=0").verb, "list");
        assert_eq!(
            info(Method::DELETE, "/api/v1/namespaces/d/pods").verb,
            "deletecollection"
        );
    }

    #[test]
    fn a_field_selector_on_the_name_names_the_object() {
        assert_eq!(
            info(Method::GET, "/api/v1/pods?fieldSelector=metadata.name%3Dx").name,
            "x"
        );
    }

    #[test]
    fn a_proxy_keeps_the_tail_as_it_came() {
        let i = info(
            Method::GET,
            "/api/v1/namespaces/d/services/web:80/proxy/a%20b/c",
        );
        assert_eq!(
            (i.name.as_str(), i.subresource.as_str(), i.tail.as_str()),
            ("web:80", "proxy", "/a%20b/c")
        );
        assert!(i.is_long_running());
    }

    #[test]
    fn a_namespace_and_a_service_may_be_called_proxy() {
        for (path, tail) in [
            ("/api/v1/namespaces/proxy/services/proxy/proxy/x", "/x"),
            ("/api/v1/namespaces/proxy/pods/p/proxy", ""),
            ("/api/v1/namespaces/d/services/proxy/proxy/", "/"),
            ("//api/v1//nodes/proxy/proxy/proxy/y", "/proxy/y"),
        ] {
            assert_eq!(info(Method::GET, path).tail, tail, "{path}");
        }
    }

    #[test]
    fn discovery_and_health_are_no_resources() {
        for path in [
            "/",
            "/api",
            "/api/v1",
            "/apis/apps/v1",
            "/healthz",
            "/version",
        ] {
            assert!(!info(Method::GET, path).is_resource, "{path}");
        }
    }
}
