//! `EncryptionConfiguration` (apiserver.config.k8s.io/v1): which resources are encrypted in the store, and with what.

use std::path::Path;

use balsa_api::status::FieldErrors;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;

use super::seal::{Key, Method};

/// Why a file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// It cannot be read.
    #[error("the encryption configuration {path} cannot be read: {error}")]
    Read {
        /// Its path.
        path: String,
        /// Why.
        error: std::io::Error,
    },
    /// It is not what it should be.
    #[error("the encryption configuration {path} cannot be used: {why}")]
    Invalid {
        /// Its path.
        path: String,
        /// What is wrong; several problems are separated by semicolons.
        why: String,
    },
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct File {
    api_version: String,
    kind: String,
    #[serde(default)]
    resources: Vec<Entry>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    #[serde(default)]
    resources: Vec<String>,
    #[serde(default)]
    providers: Vec<ProviderEntry>,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
struct ProviderEntry {
    identity: Option<Empty>,
    aesgcm: Option<Keys>,
    aescbc: Option<Keys>,
    secretbox: Option<Keys>,
    kms: Option<serde_json::Value>,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields)]
struct Empty {}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Keys {
    #[serde(default)]
    keys: Vec<NamedKey>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct NamedKey {
    name: String,
    secret: String,
}

/// One way to write values.
pub(super) enum Provider {
    /// As they are.
    Identity,
    /// With keys of one method; the first writes.
    Keys(Vec<Key>),
}

/// Some resources and the ways to read and write them; the first way writes.
pub(super) struct Rule {
    patterns: Vec<Pattern>,
    pub providers: Vec<Provider>,
}

/// `secrets`, `deployments.apps`, `*.apps`, `*.`, `*.*`.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Pattern {
    plural: String,
    group: String,
}

impl Pattern {
    fn parse(text: &str) -> Option<Self> {
        let (plural, group) = text.split_once('.').unwrap_or((text, ""));
        let bare_star = plural == "*" && !text.contains('.');
        let partial = |part: &str| part.contains('*') && part != "*";
        // `*` alone says nothing of groups; upstream refuses it too.
        if plural.is_empty() || bare_star || partial(plural) || partial(group) {
            return None;
        }
        // All groups, but one resource of each: there is no such form.
        if group == "*" && plural != "*" {
            return None;
        }
        Some(Self {
            plural: plural.to_owned(),
            group: group.to_owned(),
        })
    }

    fn matches(&self, group: &str, plural: &str) -> bool {
        let fits = |pattern: &str, text: &str| pattern == "*" || pattern == text;
        fits(&self.group, group) && fits(&self.plural, plural)
    }

    /// The prefix in the store of all that it stands for.
    fn prefix(&self) -> String {
        let group = if self.group.is_empty() {
            "core"
        } else {
            &self.group
        };
        match (self.group.as_str(), self.plural.as_str()) {
            ("*", _) => "/registry/".to_owned(),
            (_, "*") => format!("/registry/{group}/"),
            (_, plural) => format!("/registry/{group}/{plural}/"),
        }
    }
}

impl Rule {
    pub(super) fn covers(&self, group: &str, plural: &str) -> bool {
        self.patterns.iter().any(|p| p.matches(group, plural))
    }

    pub(super) fn prefixes(&self) -> impl Iterator<Item = String> {
        self.patterns.iter().map(Pattern::prefix)
    }
}

/// Reads a file.
pub(super) fn load(path: &Path) -> Result<Vec<Rule>, ConfigError> {
    let shown = path.display().to_string();
    let text = std::fs::read_to_string(path).map_err(|error| ConfigError::Read {
        path: shown.clone(),
        error,
    })?;
    parse(&text).map_err(|why| ConfigError::Invalid { path: shown, why })
}

/// Reads a configuration; the error names all that is wrong.
pub(super) fn parse(text: &str) -> Result<Vec<Rule>, String> {
    let file: File = serde_saphyr::from_str(text).map_err(|e| e.to_string())?;
    let supported = ["apiserver.config.k8s.io/v1", "apiserver.k8s.io/v1"];
    if !supported.contains(&file.api_version.as_str()) || file.kind != "EncryptionConfiguration" {
        return Err(format!(
            "it is {} {}, not apiserver.config.k8s.io/v1 EncryptionConfiguration",
            file.api_version, file.kind
        ));
    }
    let mut errors = FieldErrors::default();
    if file.resources.is_empty() {
        errors.required("resources", "at least one resource must be specified");
    }
    let mut rules = Vec::new();
    for (i, entry) in file.resources.into_iter().enumerate() {
        let path = format!("resources[{i}]");
        rules.push(rule(entry, &path, &mut errors));
    }
    if errors.is_empty() {
        Ok(rules)
    } else {
        let texts: Vec<String> = errors.0.iter().map(|e| e.text()).collect();
        Err(texts.join("; "))
    }
}

fn rule(entry: Entry, path: &str, errors: &mut FieldErrors) -> Rule {
    let mut patterns = Vec::new();
    if entry.resources.is_empty() {
        errors.required(
            format!("{path}.resources"),
            "a list of resources is needed: secrets, deployments.apps, *.*",
        );
    }
    for (i, text) in entry.resources.iter().enumerate() {
        match Pattern::parse(text) {
            Some(pattern) => patterns.push(pattern),
            None => errors.invalid(
                format!("{path}.resources[{i}]"),
                text.as_str(),
                "must be a resource, resource.group, *.group or *.*",
            ),
        }
    }
    if entry.providers.is_empty() {
        errors.required(
            format!("{path}.providers"),
            "provider list must not be empty",
        );
    }
    let mut providers = Vec::new();
    for (i, provider) in entry.providers.into_iter().enumerate() {
        let path = format!("{path}.providers[{i}]");
        providers.extend(read_provider(provider, &path, errors));
    }
    Rule {
        patterns,
        providers,
    }
}

fn read_provider(entry: ProviderEntry, path: &str, errors: &mut FieldErrors) -> Option<Provider> {
    if entry.kms.is_some() {
        let why = "this provider is not supported; use secretbox, aesgcm or aescbc";
        errors.invalid(path, "kms", why);
        return None;
    }
    let given = [
        (Method::AesGcm, entry.aesgcm),
        (Method::AesCbc, entry.aescbc),
        (Method::SecretBox, entry.secretbox),
    ];
    let mut given = given.into_iter().filter_map(|(m, keys)| Some((m, keys?)));
    match (entry.identity, given.next(), given.next()) {
        (Some(_), None, _) => Some(Provider::Identity),
        (None, Some((method, keys)), None) => {
            Some(Provider::Keys(read_keys(method, keys, path, errors)))
        }
        _ => {
            errors.invalid(
                path,
                "",
                "every provider list item must have exactly one provider: secretbox, aesgcm, aescbc or identity",
            );
            None
        }
    }
}

fn read_keys(method: Method, given: Keys, path: &str, errors: &mut FieldErrors) -> Vec<Key> {
    let path = format!("{path}.{}.keys", method.name());
    if given.keys.is_empty() {
        errors.required(&path, "at least one key is needed");
    }
    let mut keys: Vec<Key> = Vec::new();
    for (i, key) in given.keys.into_iter().enumerate() {
        let path = format!("{path}[{i}]");
        if key.name.is_empty() || key.name.contains(':') {
            errors.invalid(
                format!("{path}.name"),
                key.name.as_str(),
                "must be a name without colons",
            );
            continue;
        }
        if keys.iter().any(|k| k.name() == key.name) {
            errors.duplicate(format!("{path}.name"), key.name.as_str());
            continue;
        }
        // The secret itself must not get into a log.
        let hidden = "REDACTED";
        let Ok(bytes) = STANDARD.decode(key.secret.trim()) else {
            errors.invalid(
                format!("{path}.secret"),
                hidden,
                "secrets must be base64 encoded",
            );
            continue;
        };
        match Key::new(method, &key.name, &bytes) {
            Some(key) => keys.push(key),
            None => errors.invalid(
                format!("{path}.secret"),
                hidden,
                format!(
                    "must be {} bytes long, not {}",
                    method.key_lengths(),
                    bytes.len()
                ),
            ),
        }
    }
    keys
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn config(resources: &str, providers: &str) -> String {
        format!(
            "apiVersion: apiserver.config.k8s.io/v1\nkind: EncryptionConfiguration\nresources:\n\
             - resources: [{resources}]\n  providers:\n{providers}"
        )
    }

    #[test]
    fn resources_are_named_with_their_group_or_wildcards() {
        let rules = parse(&config(
            "secrets, widgets.example.com, '*.apps'",
            "  - identity: {}\n",
        ));
        let rules = rules.unwrap();
        let covers = |group, plural| rules[0].covers(group, plural);
        assert!(covers("", "secrets") && covers("example.com", "widgets"));
        assert!(covers("apps", "deployments"));
        assert!(!covers("", "configmaps") && !covers("example.com", "secrets"));
        assert!(parse(&config("'*'", "  - identity: {}\n")).is_err());
        let prefixes: Vec<String> = rules[0].prefixes().collect();
        assert_eq!(prefixes[0], "/registry/core/secrets/");
        assert_eq!(prefixes[2], "/registry/apps/");
    }

    #[test]
    fn what_is_wrong_is_named_without_the_secret() {
        let bad = config(
            "secrets",
            "  - aesgcm: {keys: [{name: k, secret: c2hvcnQ=}]}\n  - aescbc: {keys: []}\n  - kms: {name: k}\n",
        );
        let why = parse(&bad).err().unwrap();
        assert!(
            why.contains("resources[0].providers[0].aesgcm.keys[0].secret"),
            "{why}"
        );
        assert!(
            why.contains("16 or 32 bytes")
                && why.contains("providers[1].aescbc.keys: Required")
                && why.contains("kms"),
            "{why}"
        );
        assert!(!why.contains("c2hvcnQ"), "{why}");
    }
}
