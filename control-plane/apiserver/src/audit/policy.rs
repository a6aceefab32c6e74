//! Audit policies (audit.k8s.io/v1 `Policy`): what is recorded of which request.

use serde::Deserialize;

use crate::http::request_info::RequestInfo;
use crate::seam::User;

/// How much is recorded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Deserialize, Default)]
pub enum Level {
    /// Nothing.
    #[default]
    None,
    /// Who did what, when, and how it ended.
    Metadata,
    /// The request's object too.
    Request,
    /// The response's object too.
    RequestResponse,
}

impl Level {
    /// As in events.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::None => "None",
            Self::Metadata => "Metadata",
            Self::Request => "Request",
            Self::RequestResponse => "RequestResponse",
        }
    }
}

/// When an event is recorded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub enum Stage {
    /// As soon as it is known who asks.
    RequestReceived,
    /// The head of a response that lasts was sent: watches, streams.
    ResponseStarted,
    /// The response is complete.
    ResponseComplete,
    /// The handler failed unexpectedly.
    Panic,
}

impl Stage {
    /// As in events.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::RequestReceived => "RequestReceived",
            Self::ResponseStarted => "ResponseStarted",
            Self::ResponseComplete => "ResponseComplete",
            Self::Panic => "Panic",
        }
    }
}

/// See the module.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct Policy {
    api_version: String,
    kind: String,
    metadata: serde_json::Value,
    rules: Vec<Rule>,
    omit_stages: Vec<Stage>,
    omit_managed_fields: bool,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
struct Rule {
    level: Level,
    users: Vec<String>,
    user_groups: Vec<String>,
    verbs: Vec<String>,
    resources: Vec<GroupResources>,
    namespaces: Vec<String>,
    #[serde(rename = "nonResourceURLs")]
    non_resource_urls: Vec<String>,
    omit_stages: Vec<Stage>,
    omit_managed_fields: Option<bool>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
struct GroupResources {
    group: String,
    resources: Vec<String>,
    resource_names: Vec<String>,
}

/// Why a policy cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum PolicyError {
    /// It is no YAML, or has unknown fields or values.
    #[error("the audit policy cannot be read: {0}")]
    Syntax(String),
    /// It is something else.
    #[error("the audit policy must be of kind Policy in audit.k8s.io/v1, not {kind} in {version}")]
    Kind {
        /// What it says it is.
        kind: String,
        /// In which version.
        version: String,
    },
    /// It would record nothing.
    #[error("the audit policy has no rules")]
    Empty,
}

/// What is recorded of one request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verdict {
    /// How much.
    pub level: Level,
    omit: Vec<Stage>,
    /// `managedFields` is left out of objects.
    pub omit_managed_fields: bool,
}

impl Verdict {
    /// Is an event of this stage recorded?
    #[must_use]
    pub fn records(&self, stage: Stage) -> bool {
        self.level > Level::None && !self.omit.contains(&stage)
    }
}

impl Policy {
    /// From YAML or JSON.
    ///
    /// # Errors
    /// [`PolicyError`].
    pub fn parse(text: &str) -> Result<Self, PolicyError> {
        let policy: Self =
            serde_saphyr::from_str(text).map_err(|e| PolicyError::Syntax(e.to_string()))?;
        if policy.kind != "Policy" || policy.api_version != "audit.k8s.io/v1" {
            return Err(PolicyError::Kind {
                kind: policy.kind,
                version: policy.api_version,
            });
        }
        if policy.rules.is_empty() {
            return Err(PolicyError::Empty);
        }
        Ok(policy)
    }

    /// The first rule that matches decides; what none matches is not recorded.
    #[must_use]
    pub fn decide(&self, info: &RequestInfo, user: &User) -> Verdict {
        let rule = self.rules.iter().find(|r| r.matches(info, user));
        rule.map_or(
            Verdict {
                level: Level::None,
                omit: Vec::new(),
                omit_managed_fields: false,
            },
            |rule| Verdict {
                level: rule.level,
                omit: [self.omit_stages.as_slice(), &rule.omit_stages].concat(),
                omit_managed_fields: rule.omit_managed_fields.unwrap_or(self.omit_managed_fields),
            },
        )
    }
}

fn lists(list: &[String], wanted: &str) -> bool {
    list.is_empty() || list.iter().any(|item| item == wanted)
}

impl Rule {
    fn matches(&self, info: &RequestInfo, user: &User) -> bool {
        let groups =
            self.user_groups.is_empty() || self.user_groups.iter().any(|g| user.groups.contains(g));
        if !lists(&self.users, &user.name) || !groups || !lists(&self.verbs, info.verb) {
            return false;
        }
        if !self.namespaces.is_empty() || !self.resources.is_empty() {
            return info.is_resource
                && lists(&self.namespaces, &info.namespace)
                && (self.resources.is_empty() || self.resources.iter().any(|r| r.matches(info)));
        }
        if !self.non_resource_urls.is_empty() {
            return !info.is_resource
                && self.non_resource_urls.iter().any(|url| {
                    url == "*"
                        || *url == info.path
                        || url
                            .strip_suffix('*')
                            .is_some_and(|prefix| info.path.starts_with(prefix))
                });
        }
        true
    }
}

impl GroupResources {
    fn matches(&self, info: &RequestInfo) -> bool {
        let full = if info.subresource.is_empty() {
            info.resource.clone()
        } else {
            format!("{}/{}", info.resource, info.subresource)
        };
        let resource = |wanted: &String| {
            *wanted == full
                || wanted == "*"
                || wanted
                    .strip_prefix("*/")
                    .is_some_and(|s| s == info.subresource)
                || wanted
                    .strip_suffix("/*")
                    .is_some_and(|r| r == info.resource)
        };
        self.group == info.group
            && (self.resources.is_empty() || self.resources.iter().any(resource))
            && lists(&self.resource_names, &info.name)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const POLICY: &str = "
apiVersion: audit.k8s.io/v1
kind: Policy
omitStages: [RequestReceived]
rules:
- level: None
  users: [\"system:kube-proxy\"]
  verbs: [watch]
- level: Request
  resources:
  - group: \"\"
    resources: [\"pods/*\", secrets]
    resourceNames: []
  namespaces: [d]
  omitManagedFields: true
- level: None
  nonResourceURLs: [\"/healthz*\", /version]
- level: Metadata
";

    fn level(verb: &'static str, resource: &str, namespace: &str, path: &str) -> Level {
        let (resource, subresource) = resource.split_once('/').unwrap_or((resource, ""));
        let info = RequestInfo {
            is_resource: !resource.is_empty(),
            verb,
            resource: resource.into(),
            subresource: subresource.into(),
            namespace: namespace.into(),
            path: path.into(),
            ..RequestInfo::default()
        };
        let user = User {
            name: "ann".into(),
            ..User::default()
        };
        Policy::parse(POLICY).unwrap().decide(&info, &user).level
    }

    #[test]
    fn the_first_rule_that_matches_decides() {
        assert_eq!(level("create", "secrets", "d", ""), Level::Request);
        assert_eq!(level("create", "pods/exec", "d", ""), Level::Request);
        assert_eq!(level("create", "secrets", "e", ""), Level::Metadata);
        assert_eq!(level("get", "", "", "/healthz/ping"), Level::None);
        assert_eq!(level("get", "", "", "/metrics"), Level::Metadata);
    }

    #[test]
    fn a_policy_that_cannot_be_meant_is_refused() {
        assert!(matches!(
            Policy::parse("kind: Policy\napiVersion: audit.k8s.io/v1\n"),
            Err(PolicyError::Empty)
        ));
        assert!(matches!(
            Policy::parse("kind: Pod\napiVersion: v1\nmetadata: {}\n"),
            Err(PolicyError::Kind { .. })
        ));
        let misspelt = POLICY.replace("verbs", "verb");
        assert!(matches!(
            Policy::parse(&misspelt),
            Err(PolicyError::Syntax(_))
        ));
    }
}
