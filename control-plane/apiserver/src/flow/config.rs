//! FlowSchemas and PriorityLevelConfigurations as this server follows them, and which request belongs to which.
//!
//! Rules: the flowcontrol.apiserver.k8s.io/v1 API and apiserver `util/flowcontrol`.

use std::sync::Arc;

use http::HeaderValue;
use serde::Deserialize;
use serde_json::Value;

use crate::http::request_info::RequestInfo;
use crate::seam::User;

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Metadata {
    name: String,
    uid: String,
}

/// A FlowSchema.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct FlowSchema {
    metadata: Metadata,
    spec: FlowSchemaSpec,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct FlowSchemaSpec {
    matching_precedence: i64,
    priority_level_configuration: Named,
    distinguisher_method: Option<Typed>,
    rules: Vec<Rule>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
struct Named {
    name: String,
    namespace: String,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
struct Typed {
    #[serde(rename = "type")]
    type_: String,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Rule {
    subjects: Vec<Subject>,
    resource_rules: Vec<ResourceRule>,
    non_resource_rules: Vec<NonResourceRule>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Subject {
    kind: String,
    user: Named,
    group: Named,
    service_account: Named,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct ResourceRule {
    verbs: Vec<String>,
    api_groups: Vec<String>,
    resources: Vec<String>,
    cluster_scope: bool,
    namespaces: Vec<String>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct NonResourceRule {
    verbs: Vec<String>,
    #[serde(rename = "nonResourceURLs")]
    non_resource_urls: Vec<String>,
}

/// A PriorityLevelConfiguration.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct PriorityLevel {
    metadata: Metadata,
    spec: PriorityLevelSpec,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct PriorityLevelSpec {
    #[serde(rename = "type")]
    type_: String,
    limited: Limited,
    exempt: Exempt,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Limited {
    nominal_concurrency_shares: u32,
    lendable_percent: u32,
    borrowing_limit_percent: Option<u32>,
    limit_response: LimitResponse,
}

impl Default for Limited {
    fn default() -> Self {
        Self {
            nominal_concurrency_shares: 30,
            lendable_percent: 0,
            borrowing_limit_percent: None,
            limit_response: LimitResponse::default(),
        }
    }
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Exempt {
    nominal_concurrency_shares: u32,
    lendable_percent: u32,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
struct LimitResponse {
    #[serde(rename = "type")]
    type_: String,
    queuing: Option<Queuing>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Queuing {
    queues: usize,
    hand_size: usize,
    queue_length_limit: usize,
}

impl Default for Queuing {
    fn default() -> Self {
        Self {
            queues: 64,
            hand_size: 8,
            queue_length_limit: 50,
        }
    }
}

/// How a level treats its requests; seats are requests of one unit of work at once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct LevelConfig {
    pub name: String,
    /// No limit.
    pub exempt: bool,
    /// Seats of its own.
    pub nominal: u32,
    /// How many of those others may use while it does not need them.
    pub lendable: u32,
    /// How many it may use of others'.
    pub borrowable: u32,
    /// 0: what finds no seat is refused at once.
    pub queues: usize,
    pub hand: usize,
    pub queue_length: usize,
}

/// Everything compiled for one state of the objects.
#[derive(Debug, Default)]
pub(super) struct Compiled {
    /// In the order in which they are tried, with where they lead.
    schemas: Vec<(FlowSchema, Arc<Place>)>,
    pub levels: Vec<LevelConfig>,
}

/// UIDs of a FlowSchema and of its level, as responses tell them; `None` for what is no header's value.
pub type Uids = [Option<HeaderValue>; 2];

/// A schema and its level.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Place {
    pub schema: String,
    pub level: Arc<str>,
    pub uids: Uids,
}

impl Place {
    fn of(schema: &FlowSchema, levels: &[PriorityLevel]) -> Option<Self> {
        let wanted = &schema.spec.priority_level_configuration.name;
        let level = levels.iter().find(|l| l.metadata.name == *wanted)?;
        let uid = |metadata: &Metadata| HeaderValue::from_str(&metadata.uid).ok();
        Some(Self {
            schema: schema.metadata.name.clone(),
            level: wanted.as_str().into(),
            uids: [uid(&schema.metadata), uid(&level.metadata)],
        })
    }
}

/// Where a request belongs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Class {
    pub place: Arc<Place>,
    /// Whose request it is among those of the schema.
    pub flow: String,
}

fn read<T: for<'a> Deserialize<'a>>(object: &Value) -> Option<T> {
    // Objects were validated when they were written; what is not as expected is left out.
    T::deserialize(object).ok()
}

impl Compiled {
    /// From objects; `total` seats are shared out among the levels.
    pub fn new<'a>(
        schemas: impl Iterator<Item = &'a Value>,
        levels: impl Iterator<Item = &'a Value>,
        total: u32,
    ) -> Self {
        let levels: Vec<PriorityLevel> = levels.filter_map(read).collect();
        let mut schemas: Vec<FlowSchema> = schemas.filter_map(read).collect();
        schemas.sort_by(|a, b| {
            (a.spec.matching_precedence, &a.metadata.name)
                .cmp(&(b.spec.matching_precedence, &b.metadata.name))
        });
        // A schema whose level is not there matches nothing.
        let placed = schemas.into_iter().filter_map(|schema| {
            let place = Place::of(&schema, &levels)?;
            Some((schema, Arc::new(place)))
        });
        let schemas = placed.collect();
        let shares: u64 = levels.iter().map(|l| u64::from(l.shares())).sum();
        Self {
            schemas,
            levels: levels.iter().map(|l| l.config(shares, total)).collect(),
        }
    }

    /// The first schema that matches. `None` only when even the catch-all is missing.
    pub fn classify(&self, info: &RequestInfo, user: &User) -> Option<Class> {
        let (schema, place) = self
            .schemas
            .iter()
            .find(|(s, _)| s.spec.rules.iter().any(|r| r.matches(info, user)))?;
        let flow = match &schema.spec.distinguisher_method {
            Some(by) if by.type_ == "ByUser" => user.name.clone(),
            Some(by) if by.type_ == "ByNamespace" => info.namespace.clone(),
            _ => String::new(),
        };
        let place = Arc::clone(place);
        Some(Class { place, flow })
    }
}

impl PriorityLevel {
    fn is_exempt(&self) -> bool {
        self.spec.type_ == "Exempt"
    }

    fn shares(&self) -> u32 {
        if self.is_exempt() {
            self.spec.exempt.nominal_concurrency_shares
        } else {
            self.spec.limited.nominal_concurrency_shares
        }
    }

    fn config(&self, shares: u64, total: u32) -> LevelConfig {
        let own = u64::from(self.shares()) * u64::from(total);
        let nominal = u32::try_from(own.div_ceil(shares.max(1))).unwrap_or(total);
        let limited = &self.spec.limited;
        let percent = |of: u32, percent: u32| {
            u32::try_from(u64::from(of) * u64::from(percent) / 100).unwrap_or(of)
        };
        let queuing = (limited.limit_response.type_ == "Queue")
            .then(|| limited.limit_response.queuing.clone().unwrap_or_default());
        let queuing = queuing.filter(|_| !self.is_exempt());
        let lendable = if self.is_exempt() {
            self.spec.exempt.lendable_percent
        } else {
            limited.lendable_percent
        };
        LevelConfig {
            name: self.metadata.name.clone(),
            exempt: self.is_exempt(),
            nominal,
            lendable: percent(nominal, lendable),
            borrowable: limited
                .borrowing_limit_percent
                .map_or(total, |p| percent(nominal, p)),
            // Bounded whatever the object says: queues are memory.
            queues: queuing.as_ref().map_or(0, |q| q.queues.clamp(1, 1024)),
            hand: queuing.as_ref().map_or(0, |q| q.hand_size.clamp(1, 64)),
            queue_length: queuing
                .as_ref()
                .map_or(0, |q| q.queue_length_limit.min(10_000)),
        }
    }
}

fn any(list: &[String], wanted: &str) -> bool {
    list.iter().any(|item| item == "*" || item == wanted)
}

impl Rule {
    fn matches(&self, info: &RequestInfo, user: &User) -> bool {
        self.subjects.iter().any(|s| s.matches(user))
            && if info.is_resource {
                self.resource_rules.iter().any(|r| r.matches(info))
            } else {
                self.non_resource_rules.iter().any(|r| r.matches(info))
            }
    }
}

impl Subject {
    fn matches(&self, user: &User) -> bool {
        match self.kind.as_str() {
            "User" => matches!(self.user.name.as_str(), "*") || self.user.name == user.name,
            "Group" => self.group.name == "*" || user.groups.contains(&self.group.name),
            "ServiceAccount" => user
                .name
                .strip_prefix("system:serviceaccount:")
                .and_then(|rest| rest.split_once(':'))
                .is_some_and(|(namespace, name)| {
                    namespace == self.service_account.namespace
                        && (self.service_account.name == "*" || self.service_account.name == name)
                }),
            _ => false,
        }
    }
}

impl ResourceRule {
    fn matches(&self, info: &RequestInfo) -> bool {
        let resource = if info.subresource.is_empty() {
            any(&self.resources, &info.resource)
        } else {
            any(
                &self.resources,
                &format!("{}/{}", info.resource, info.subresource),
            )
        };
        let place = if info.namespace.is_empty() {
            self.cluster_scope
        } else {
            any(&self.namespaces, &info.namespace)
        };
        resource && place && any(&self.verbs, info.verb) && any(&self.api_groups, &info.group)
    }
}

impl NonResourceRule {
    fn matches(&self, info: &RequestInfo) -> bool {
        any(&self.verbs, info.verb)
            && self.non_resource_urls.iter().any(|url| {
                url == "*"
                    || *url == info.path
                    || url.strip_suffix('*').is_some_and(|prefix| {
                        prefix.ends_with('/') && info.path.starts_with(prefix)
                    })
            })
    }
}
