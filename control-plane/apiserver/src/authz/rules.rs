//! RBAC rules, compiled from their JSON form, and what they match.
//!
//! Source: `rbac.authorization.k8s.io/v1` PolicyRule and upstream's evaluation helpers.

use serde_json::Value;

use crate::seam::Attributes;

/// One compiled PolicyRule.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Rule {
    /// Verbs, or `*`.
    pub verbs: Vec<String>,
    /// API groups, or `*`.
    pub groups: Vec<String>,
    /// `pods`, `pods/log`, `*`, `*/scale`.
    pub resources: Vec<String>,
    /// Names; empty for all.
    pub names: Vec<String>,
    /// Paths of requests that are about no resource; `*` and a trailing `*` allowed.
    pub urls: Vec<String>,
}

fn strings(value: &Value) -> Vec<String> {
    value
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
        .map(str::to_owned)
        .collect()
}

fn has(list: &[String], value: &str) -> bool {
    list.iter().any(|x| x == "*" || x == value)
}

impl Rule {
    /// Reads one PolicyRule. Missing fields are empty and so match nothing.
    #[must_use]
    pub fn from_json(rule: &Value) -> Self {
        Self {
            verbs: strings(&rule["verbs"]),
            groups: strings(&rule["apiGroups"]),
            resources: strings(&rule["resources"]),
            names: strings(&rule["resourceNames"]),
            urls: strings(&rule["nonResourceURLs"]),
        }
    }

    /// Reads the rules of a Role or ClusterRole.
    #[must_use]
    pub fn all_of(role: &Value) -> Vec<Self> {
        role["rules"]
            .as_array()
            .into_iter()
            .flatten()
            .map(Self::from_json)
            .collect()
    }

    /// As JSON again, without empty fields.
    #[must_use]
    pub fn to_json(&self) -> Value {
        let mut map = serde_json::Map::new();
        for (key, list) in [
            ("verbs", &self.verbs),
            ("apiGroups", &self.groups),
            ("resources", &self.resources),
            ("resourceNames", &self.names),
            ("nonResourceURLs", &self.urls),
        ] {
            if !list.is_empty() || key == "verbs" {
                map.insert(key.to_owned(), Value::from(list.clone()));
            }
        }
        Value::Object(map)
    }

    /// Whether the rule allows a request.
    #[must_use]
    pub fn allows(&self, request: &Attributes) -> bool {
        if !has(&self.verbs, &request.verb) {
            return false;
        }
        if request.resource.is_empty() {
            return self.urls.iter().any(|u| url_matches(u, &request.path));
        }
        has(&self.groups, &request.group)
            && self
                .resources
                .iter()
                .any(|r| resource_matches(r, &request.resource, &request.subresource))
            && (self.names.is_empty() || self.names.contains(&request.name))
    }

    /// Takes the rule apart into rules of one verb, group, resource and name each, so that each can be
    /// looked for in what somebody may do.
    fn parts(&self) -> Vec<Self> {
        let mut parts = Vec::new();
        for verb in &self.verbs {
            for url in &self.urls {
                parts.push(Self {
                    verbs: vec![verb.clone()],
                    urls: vec![url.clone()],
                    ..Self::default()
                });
            }
            for group in &self.groups {
                for resource in &self.resources {
                    let base = Self {
                        verbs: vec![verb.clone()],
                        groups: vec![group.clone()],
                        resources: vec![resource.clone()],
                        ..Self::default()
                    };
                    if self.names.is_empty() {
                        parts.push(base);
                        continue;
                    }
                    parts.extend(self.names.iter().map(|n| Self {
                        names: vec![n.clone()],
                        ..base.clone()
                    }));
                }
            }
        }
        parts
    }

    /// Whether this rule alone allows all that a part (see [`Self::parts`]) does.
    fn covers_part(&self, part: &Self) -> bool {
        let subset = |own: &[String], wanted: &[String]| wanted.iter().all(|w| has(own, w));
        let resource = |wanted: &String| {
            let (resource, subresource) = wanted.split_once('/').unwrap_or((wanted, ""));
            self.resources.contains(wanted)
                || self
                    .resources
                    .iter()
                    .any(|r| resource_matches(r, resource, subresource))
        };
        let names = || {
            self.names.is_empty() || (!part.names.is_empty() && subset(&self.names, &part.names))
        };
        subset(&self.verbs, &part.verbs)
            && if part.urls.is_empty() {
                subset(&self.groups, &part.groups) && part.resources.iter().all(resource) && names()
            } else {
                part.urls
                    .iter()
                    .all(|w| self.urls.iter().any(|own| url_matches(own, w)))
            }
    }
}

/// What of `wanted` is not covered by `held`: empty when whoever holds `held` may hand `wanted` on.
#[must_use]
pub fn uncovered(held: &[Rule], wanted: &[Rule]) -> Vec<Rule> {
    wanted
        .iter()
        .flat_map(Rule::parts)
        .filter(|part| !held.iter().any(|rule| rule.covers_part(part)))
        .collect()
}

fn resource_matches(pattern: &str, resource: &str, subresource: &str) -> bool {
    if pattern == "*" {
        return true;
    }
    if subresource.is_empty() {
        return pattern == resource;
    }
    // `*/scale` is any resource's scale; `pods/*` is nothing special, as upstream.
    pattern
        .split_once('/')
        .is_some_and(|(r, s)| s == subresource && (r == resource || r == "*"))
}

fn url_matches(pattern: &str, path: &str) -> bool {
    match pattern.strip_suffix('*') {
        Some(prefix) => path.starts_with(prefix),
        None => pattern == path,
    }
}

/// A rule as upstream prints it in refusals: `{APIGroups:[""], Resources:["pods"], Verbs:["get"]}`.
#[must_use]
pub fn describe(rule: &Rule) -> String {
    let list = |l: &[String]| {
        let quoted: Vec<String> = l.iter().map(|s| format!("{s:?}")).collect();
        format!("[{}]", quoted.join(" "))
    };
    let mut parts = Vec::new();
    for (name, values) in [
        ("NonResourceURLs", &rule.urls),
        ("APIGroups", &rule.groups),
        ("Resources", &rule.resources),
        ("ResourceNames", &rule.names),
        ("Verbs", &rule.verbs),
    ] {
        if !values.is_empty() {
            parts.push(format!("{name}:{}", list(values)));
        }
    }
    format!("{{{}}}", parts.join(", "))
}
