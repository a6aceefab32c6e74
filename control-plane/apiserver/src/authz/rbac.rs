//! The RBAC authorizer: roles and bindings from the watch cache, compiled and indexed by subject.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use arc_swap::ArcSwapOption;
use balsa_api::selector::Selector;
use parking_lot::Mutex;
use serde_json::Value;

use super::rules::Rule;
use crate::seam::{Attributes, Decision, ObjectReader, User};

/// API group of roles and bindings.
pub const GROUP: &str = "rbac.authorization.k8s.io";
const RESOURCES: [&str; 4] = [
    "clusterroles",
    "roles",
    "clusterrolebindings",
    "rolebindings",
];

/// Somebody a binding may name.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Subject {
    User(String),
    Group(String),
}

/// The rules a binding gives a subject, and how upstream words that.
#[derive(Debug)]
struct Grant {
    rules: Arc<[Rule]>,
    /// `ClusterRoleBinding "b" of ClusterRole "r" to Group "g"`.
    reason: String,
}

type Grants = HashMap<Subject, Vec<Grant>>;

#[derive(Debug, Default)]
struct Compiled {
    generations: [u64; 4],
    cluster: Grants,
    namespaced: HashMap<String, Grants>,
}

/// Decides by roles and bindings.
pub struct Rbac {
    reader: Arc<dyn ObjectReader>,
    compiled: ArcSwapOption<Compiled>,
    /// Held while compiling, so that a change is compiled once and not by every request that sees it.
    compiling: Mutex<()>,
}

impl Rbac {
    /// Over the objects of a reader.
    #[must_use]
    pub fn new(reader: Arc<dyn ObjectReader>) -> Self {
        Self {
            reader,
            compiled: ArcSwapOption::empty(),
            compiling: Mutex::new(()),
        }
    }

    fn generations(&self) -> [u64; 4] {
        RESOURCES.map(|r| self.reader.generation(GROUP, r))
    }

    fn compiled(&self) -> Arc<Compiled> {
        let generations = self.generations();
        let fresh = |c: &Arc<Compiled>| c.generations == generations;
        if let Some(current) = self.compiled.load_full().filter(fresh) {
            return current;
        }
        let _guard = self.compiling.lock();
        if let Some(current) = self.compiled.load_full().filter(fresh) {
            return current;
        }
        // Read the generations before the objects: a change in between only means compiling once more.
        let generations = self.generations();
        let compiled = Arc::new(compile(&*self.reader, generations));
        self.compiled.store(Some(Arc::clone(&compiled)));
        compiled
    }

    /// Decides a request.
    #[must_use]
    pub fn decide(&self, request: &Attributes) -> Decision {
        let compiled = self.compiled();
        let namespaced = compiled.namespaced.get(&request.namespace);
        for grants in std::iter::once(&compiled.cluster).chain(namespaced) {
            for subject in subjects_of(&request.user) {
                let allowing = grants
                    .get(&subject)
                    .into_iter()
                    .flatten()
                    .find(|grant| grant.rules.iter().any(|rule| rule.allows(request)));
                if let Some(grant) = allowing {
                    return Decision::Allow(format!("RBAC: allowed by {}", grant.reason));
                }
            }
        }
        Decision::NoOpinion(String::new())
    }

    /// All rules a user has in a namespace (empty: cluster-wide only).
    #[must_use]
    pub fn rules_of(&self, user: &User, namespace: &str) -> Vec<Rule> {
        let compiled = self.compiled();
        let namespaced = compiled.namespaced.get(namespace);
        let mut rules = Vec::new();
        for grants in std::iter::once(&compiled.cluster).chain(namespaced) {
            for subject in subjects_of(user) {
                for grant in grants.get(&subject).into_iter().flatten() {
                    rules.extend(grant.rules.iter().cloned());
                }
            }
        }
        rules
    }

    /// The rules of a role as a binding would give them; `None` when there is no such role. `namespace` is
    /// only used for kind `Role`.
    #[must_use]
    pub fn rules_of_role(&self, kind: &str, namespace: &str, name: &str) -> Option<Vec<Rule>> {
        if kind == "ClusterRole" {
            return cluster_role_rules(&*self.reader, name, &mut BTreeSet::new());
        }
        self.reader
            .get(GROUP, "roles", namespace, name)
            .map(|role| Rule::all_of(&role))
    }
}

fn subjects_of(user: &User) -> impl Iterator<Item = Subject> + '_ {
    std::iter::once(Subject::User(user.name.clone()))
        .chain(user.groups.iter().map(|g| Subject::Group(g.clone())))
}

/// Own rules and those of the roles an aggregationRule selects. Upstream's controller writes the latter
/// into the object; here they count at once. `seen` ends cycles.
fn cluster_role_rules(
    reader: &dyn ObjectReader,
    name: &str,
    seen: &mut BTreeSet<String>,
) -> Option<Vec<Rule>> {
    let role = reader.get(GROUP, "clusterroles", "", name)?;
    if !seen.insert(name.to_owned()) {
        return Some(Vec::new());
    }
    let mut rules = Rule::all_of(&role);
    for selector in role["aggregationRule"]["clusterRoleSelectors"]
        .as_array()
        .into_iter()
        .flatten()
    {
        let Ok(selector) = Selector::from_label_selector(Some(selector)) else {
            continue;
        };
        for other in reader.list(GROUP, "clusterroles", None) {
            let name = other["metadata"]["name"].as_str().unwrap_or_default();
            let empty = serde_json::Map::new();
            let labels = other["metadata"]["labels"].as_object().unwrap_or(&empty);
            if selector.matches(labels) {
                rules.extend(cluster_role_rules(reader, name, seen).unwrap_or_default());
            }
        }
    }
    Some(rules)
}

fn compile(reader: &dyn ObjectReader, generations: [u64; 4]) -> Compiled {
    let mut roles: HashMap<String, Arc<[Rule]>> = HashMap::new();
    for role in reader.list(GROUP, "clusterroles", None) {
        let name = role["metadata"]["name"].as_str().unwrap_or_default();
        let rules = cluster_role_rules(reader, name, &mut BTreeSet::new()).unwrap_or_default();
        roles.insert(name.to_owned(), rules.into());
    }
    let mut compiled = Compiled {
        generations,
        ..Compiled::default()
    };
    for binding in reader.list(GROUP, "clusterrolebindings", None) {
        let role = binding["roleRef"]["name"].as_str().unwrap_or_default();
        if let Some(rules) = roles.get(role) {
            grant(&mut compiled.cluster, &binding, "ClusterRoleBinding", rules);
        }
    }
    for binding in reader.list(GROUP, "rolebindings", None) {
        let namespace = binding["metadata"]["namespace"]
            .as_str()
            .unwrap_or_default();
        let role = binding["roleRef"]["name"].as_str().unwrap_or_default();
        let rules = if binding["roleRef"]["kind"] == "ClusterRole" {
            roles.get(role).cloned()
        } else {
            reader
                .get(GROUP, "roles", namespace, role)
                .map(|r| Rule::all_of(&r).into())
        };
        if let Some(rules) = rules {
            let grants = compiled.namespaced.entry(namespace.to_owned()).or_default();
            grant(grants, &binding, "RoleBinding", &rules);
        }
    }
    compiled
}

/// Indexes a binding's role under each of its subjects.
fn grant(grants: &mut Grants, binding: &Value, kind: &str, rules: &Arc<[Rule]>) {
    let text = |v: &Value| v.as_str().unwrap_or_default().to_owned();
    let metadata = &binding["metadata"];
    let own_namespace = text(&metadata["namespace"]);
    let name = text(&metadata["name"]);
    let shown = if own_namespace.is_empty() {
        name
    } else {
        format!("{name}/{own_namespace}")
    };
    let role = format!(
        "{} {:?}",
        text(&binding["roleRef"]["kind"]),
        text(&binding["roleRef"]["name"])
    );
    for subject in binding["subjects"].as_array().into_iter().flatten() {
        let who = text(&subject["name"]);
        let (key, to) = match subject["kind"].as_str() {
            Some("User") => (Subject::User(who.clone()), format!("User {who:?}")),
            Some("Group") => (Subject::Group(who.clone()), format!("Group {who:?}")),
            Some("ServiceAccount") => {
                let given = text(&subject["namespace"]);
                let namespace = if given.is_empty() {
                    own_namespace.clone()
                } else {
                    given
                };
                let to = format!("ServiceAccount \"{who}/{namespace}\"");
                (
                    Subject::User(format!("system:serviceaccount:{namespace}:{who}")),
                    to,
                )
            }
            _ => continue,
        };
        let reason = format!("{kind} {shown:?} of {role} to {to}");
        grants.entry(key).or_default().push(Grant {
            rules: Arc::clone(rules),
            reason,
        });
    }
}
