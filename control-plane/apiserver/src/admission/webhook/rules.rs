//! Which requests webhooks and policies are about: rules, selectors, and versions that mean the same.

use balsa_api::selector::Selector;
use balsa_api::status::Status;
use serde_json::{Map, Value, json};

use crate::kinds::{KindSet, Served};
use crate::seam::{AdmissionRequest, ObjectReader, Operation};

/// Group, version and resource.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Resource {
    /// API group; empty for core.
    pub group: String,
    /// API version.
    pub version: String,
    /// Plural.
    pub plural: String,
}

impl Resource {
    /// The request's own.
    #[must_use]
    pub fn of(request: &AdmissionRequest<'_>) -> Self {
        Self {
            group: request.kind.group.to_string(),
            version: request.kind.version.to_string(),
            plural: request.kind.plural.to_string(),
        }
    }
}

/// A rule (`RuleWithOperations`).
#[derive(Debug, Clone, Default)]
pub struct Rule {
    operations: Vec<String>,
    groups: Vec<String>,
    versions: Vec<String>,
    resources: Vec<String>,
    scope: String,
    names: Vec<String>,
}

fn texts(value: &Value) -> Vec<String> {
    let items = value.as_array().into_iter().flatten();
    items.filter_map(Value::as_str).map(str::to_owned).collect()
}

fn has(list: &[String], wanted: &str) -> bool {
    list.iter().any(|item| item == "*" || item == wanted)
}

impl Rule {
    /// Reads a rule.
    #[must_use]
    pub fn from_json(rule: &Value) -> Self {
        Self {
            operations: texts(&rule["operations"]),
            groups: texts(&rule["apiGroups"]),
            versions: texts(&rule["apiVersions"]),
            resources: texts(&rule["resources"]),
            scope: rule["scope"].as_str().unwrap_or("*").to_owned(),
            names: texts(&rule["resourceNames"]),
        }
    }

    /// Reads a list of rules.
    #[must_use]
    pub fn list(rules: &Value) -> Vec<Self> {
        let rules = rules.as_array().into_iter().flatten();
        rules.map(Self::from_json).collect()
    }

    /// Whether it is about a request, taken for one to `resource`.
    #[must_use]
    pub fn matches(&self, request: &AdmissionRequest<'_>, resource: &Resource) -> bool {
        let is_namespace = resource.group.is_empty() && resource.plural == "namespaces";
        let in_scope = match self.scope.as_str() {
            "Namespaced" => !request.namespace.is_empty() && !is_namespace,
            "Cluster" => request.namespace.is_empty() || is_namespace,
            _ => true,
        };
        in_scope
            && has(&self.operations, operation_name(request.operation))
            && has(&self.groups, &resource.group)
            && has(&self.versions, &resource.version)
            && self.matches_resource(&resource.plural, request.subresource)
            && (self.names.is_empty() || self.names.iter().any(|n| n == request.name))
    }

    fn matches_resource(&self, plural: &str, subresource: &str) -> bool {
        self.resources.iter().any(|wanted| {
            let (resource, sub) = wanted.split_once('/').unwrap_or((wanted, ""));
            (resource == "*" || resource == plural) && (sub == "*" || sub == subresource)
        })
    }

    /// Versions of resources that it names without wildcards: group, version, plural.
    pub fn named(&self) -> impl Iterator<Item = (&str, &str, &str)> {
        let plain = |list: &[String]| !list.iter().any(|item| item.contains('*'));
        let all = plain(&self.groups) && plain(&self.versions);
        let groups = self.groups.iter().filter(move |_| all);
        groups.flat_map(move |group| {
            self.versions.iter().flat_map(move |version| {
                let resources = self.resources.iter();
                let resources = resources.filter(|r| !r.contains('*') && !r.contains('/'));
                resources.map(move |r| (group.as_str(), version.as_str(), r.as_str()))
            })
        })
    }
}

/// `CREATE` and its like.
#[must_use]
pub fn operation_name(operation: Operation) -> &'static str {
    match operation {
        Operation::Create => "CREATE",
        Operation::Update => "UPDATE",
        Operation::Delete => "DELETE",
        Operation::Connect => "CONNECT",
    }
}

/// Rules and selectors together, of a webhook or of a policy's `matchConstraints`.
#[derive(Debug, Clone)]
pub struct Scope {
    rules: Vec<Rule>,
    excluded: Vec<Rule>,
    equivalent: bool,
    namespaces: Selector,
    objects: Selector,
    /// A binding without rules of its own takes those of its policy.
    any_resource: bool,
}

/// A selector whose absence selects everything.
fn selector(value: &Value) -> Result<Selector, String> {
    let everything = json!({});
    let value = if value.is_null() { &everything } else { value };
    Selector::from_label_selector(Some(value)).map_err(|e| e.to_string())
}

impl Scope {
    /// Reads those of a webhook.
    ///
    /// # Errors
    /// For selectors that do not parse.
    pub fn of_webhook(hook: &Value) -> Result<Self, String> {
        Ok(Self {
            rules: Rule::list(&hook["rules"]),
            excluded: Vec::new(),
            equivalent: hook["matchPolicy"] != "Exact",
            namespaces: selector(&hook["namespaceSelector"])?,
            objects: selector(&hook["objectSelector"])?,
            any_resource: false,
        })
    }

    /// Reads `matchConstraints` or `matchResources`; without rules they are about `any_resource` or none.
    ///
    /// # Errors
    /// For selectors that do not parse.
    pub fn of_match_resources(resources: &Value, any_resource: bool) -> Result<Self, String> {
        let rules = Rule::list(&resources["resourceRules"]);
        Ok(Self {
            any_resource: any_resource && rules.is_empty(),
            rules,
            excluded: Rule::list(&resources["excludeResourceRules"]),
            equivalent: resources["matchPolicy"] != "Exact",
            namespaces: selector(&resources["namespaceSelector"])?,
            objects: selector(&resources["objectSelector"])?,
        })
    }

    /// The rules.
    #[must_use]
    pub fn rules(&self) -> &[Rule] {
        &self.rules
    }

    /// Whether a request is meant, and as a request to which version of its resource.
    ///
    /// # Errors
    /// 404 when its namespace is not there.
    pub fn matches(
        &self,
        request: &AdmissionRequest<'_>,
        kinds: &KindSet,
        reader: &dyn ObjectReader,
    ) -> Result<Option<Resource>, Status> {
        let Some(resource) = self.resource(request, kinds) else {
            return Ok(None);
        };
        if !self.objects.is_everything() && !self.selects_object(request) {
            return Ok(None);
        }
        if self.namespaces.is_everything() || self.selects_namespace(request, reader)? {
            return Ok(Some(resource));
        }
        Ok(None)
    }

    fn resource(&self, request: &AdmissionRequest<'_>, kinds: &KindSet) -> Option<Resource> {
        let own = Resource::of(request);
        if self.finds(&self.excluded, request, kinds, &own).is_some() {
            return None;
        }
        if self.any_resource {
            return Some(own);
        }
        self.finds(&self.rules, request, kinds, &own)
    }

    fn finds(
        &self,
        rules: &[Rule],
        request: &AdmissionRequest<'_>,
        kinds: &KindSet,
        own: &Resource,
    ) -> Option<Resource> {
        if rules.iter().any(|rule| rule.matches(request, own)) {
            return Some(own.clone());
        }
        if !self.equivalent || rules.is_empty() {
            return None;
        }
        let others = equivalents(kinds, own);
        rules.iter().find_map(|rule| {
            let mut others = others.iter();
            others.find(|other| rule.matches(request, other)).cloned()
        })
    }

    fn selects_object(&self, request: &AdmissionRequest<'_>) -> bool {
        let selects = |object: &Value| {
            // What has no metadata (options of streams) has no labels that could be selected.
            object["metadata"].is_object() && self.objects.matches(labels(object))
        };
        request.object.as_deref().is_some_and(selects) || request.old.is_some_and(selects)
    }

    fn selects_namespace(
        &self,
        request: &AdmissionRequest<'_>,
        reader: &dyn ObjectReader,
    ) -> Result<bool, Status> {
        if request.kind.group.is_empty() && request.kind.plural == "namespaces" {
            let own = match request.operation {
                Operation::Create | Operation::Update if request.subresource.is_empty() => {
                    request.object.as_deref().or(request.old)
                }
                _ => request.old.or(request.object.as_deref()),
            };
            return Ok(own.is_some_and(|object| self.namespaces.matches(labels(object))));
        }
        if request.namespace.is_empty() {
            return Ok(true);
        }
        let namespace = reader
            .get("", "namespaces", "", request.namespace)
            .ok_or_else(|| Status::not_found("", "namespaces", request.namespace))?;
        Ok(self.namespaces.matches(labels(&namespace)))
    }
}

static NO_LABELS: std::sync::LazyLock<Map<String, Value>> = std::sync::LazyLock::new(Map::new);

fn labels(object: &Value) -> &Map<String, Value> {
    balsa_api::object::labels(object).unwrap_or(&NO_LABELS)
}

/// Resources of two groups that are the same objects.
const SHARED: [(&str, &str, &str); 1] = [("", "events.k8s.io", "events")];

/// The other versions that a resource's objects are served in.
fn equivalents(kinds: &KindSet, own: &Resource) -> Vec<Resource> {
    let mut groups = vec![own.group.as_str()];
    for (a, b, plural) in SHARED {
        if own.plural == plural && own.group == a {
            groups.push(b);
        } else if own.plural == plural && own.group == b {
            groups.push(a);
        }
    }
    let all = groups.into_iter().flat_map(|group| {
        kinds
            .versions(group, &own.plural)
            .iter()
            .map(|served| Resource {
                group: served.kind.group.to_string(),
                version: served.kind.version.to_string(),
                plural: served.kind.plural.to_string(),
            })
    });
    all.filter(|resource| resource != own).collect()
}

/// An object of one version as another version of the same resource shows it.
///
/// # Errors
/// 500 when it cannot be converted.
pub async fn convert(object: &Value, from: &Served, to: &Served) -> Result<Value, Status> {
    let (group, version) = (&to.kind.group, &to.kind.version);
    let api_version = balsa_api::object::join_api_version(group, version);
    let Some(custom) = &to.custom else {
        let stored = match from.convert {
            Some(convert) => convert.to_stored(object.clone()),
            None => object.clone(),
        };
        let mut shown = match to.convert {
            Some(convert) => convert.from_stored(stored),
            None => stored,
        };
        shown["apiVersion"] = api_version.into();
        shown["kind"] = to.kind.kind.as_ref().into();
        return Ok(shown);
    };
    let stored = match &from.custom {
        Some(from) => from.to_storage(object).await?,
        None => None,
    };
    let stored = stored.unwrap_or_else(|| object.clone());
    let raw = crate::cache::stored::encode_for_store(&stored);
    let lost = || Status::internal(format!("unable to convert to {api_version}"));
    let stored = crate::cache::Stored::new(&from.kind, "", &raw, 0).ok_or_else(lost)?;
    let shown = custom.present(vec![std::sync::Arc::new(stored)]).await?;
    let mut shown = shown.first().ok_or_else(lost)?.decode();
    let version = balsa_api::object::resource_version(object);
    if version.is_empty() {
        balsa_api::object::metadata_mut(&mut shown).remove("resourceVersion");
    } else {
        balsa_api::object::set_resource_version(&mut shown, version);
    }
    Ok(shown)
}
