//! Webhooks as their configurations describe them.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use serde_json::Value;

use super::GROUP;
use super::rules::Scope;
use crate::admission::policy::conditions::Conditions;
use crate::seam::ObjectReader;
use crate::webhook_client::ClientConfig;

/// A webhook.
pub struct Hook {
    /// Its configuration's name.
    pub configuration: String,
    /// Its name.
    pub name: String,
    /// How it is called; an error when its description makes no sense.
    pub client: Result<ClientConfig, String>,
    /// What it is asked about.
    pub scope: Scope,
    /// Further conditions.
    pub conditions: Conditions,
    /// Failures to call it are ignored.
    pub fail_open: bool,
    /// Time that it has.
    pub timeout: Duration,
    /// It may be asked when nothing will be written.
    pub dry_run: bool,
    /// `v1` or `v1beta1`.
    pub review_version: &'static str,
    /// It wants to be asked again when others changed the object after it.
    pub reinvoke: bool,
}

impl Hook {
    fn from_json(configuration: &str, hook: &Value) -> Result<Self, String> {
        let versions = hook["admissionReviewVersions"].as_array();
        let known = |v: &Value| match v.as_str() {
            Some("v1") => Some("v1"),
            Some("v1beta1") => Some("v1beta1"),
            _ => None,
        };
        let fail_open = hook["failurePolicy"] == "Ignore";
        Ok(Self {
            configuration: configuration.to_owned(),
            name: hook["name"].as_str().unwrap_or_default().to_owned(),
            client: ClientConfig::from_json(&hook["clientConfig"]).map_err(|e| e.to_string()),
            scope: Scope::of_webhook(hook)?,
            conditions: Conditions::compile_for_webhook(&hook["matchConditions"], fail_open),
            fail_open,
            timeout: Duration::from_secs(hook["timeoutSeconds"].as_u64().unwrap_or(10)),
            dry_run: matches!(hook["sideEffects"].as_str(), Some("None" | "NoneOnDryRun")),
            review_version: versions
                .into_iter()
                .flatten()
                .find_map(known)
                .unwrap_or("v1"),
            reinvoke: hook["reinvocationPolicy"] == "IfNeeded",
        })
    }
}

/// The webhooks of all configurations of one resource, made anew when one of them changes.
pub struct Source {
    resource: &'static str,
    reader: Arc<dyn ObjectReader>,
    made: Mutex<Option<(u64, Arc<Vec<Hook>>)>>,
}

impl Source {
    /// Of `mutatingwebhookconfigurations` or `validatingwebhookconfigurations`.
    #[must_use]
    pub fn new(resource: &'static str, reader: Arc<dyn ObjectReader>) -> Self {
        Self {
            resource,
            reader,
            made: Mutex::new(None),
        }
    }

    /// All, in the order of their configurations' names.
    #[must_use]
    pub fn hooks(&self) -> Arc<Vec<Hook>> {
        // Read before the objects: a change in between is seen by the next call.
        let generation = self.reader.generation(GROUP, self.resource);
        if let Some((made, hooks)) = &*self.made.lock()
            && *made == generation
        {
            return Arc::clone(hooks);
        }
        let mut configurations = self.reader.list(GROUP, self.resource, None);
        let name = |c: &Arc<Value>| balsa_api::object::name(c).to_owned();
        configurations.sort_by_key(name);
        let mut hooks = Vec::new();
        for configuration in &configurations {
            for hook in configuration["webhooks"].as_array().into_iter().flatten() {
                match Hook::from_json(&name(configuration), hook) {
                    Ok(hook) => hooks.push(hook),
                    // Validation refuses these; one from before must not stop all writes.
                    Err(error) => tracing::warn!(
                        configuration = name(configuration),
                        error,
                        "a webhook cannot be used"
                    ),
                }
            }
        }
        let hooks = Arc::new(hooks);
        *self.made.lock() = Some((generation, Arc::clone(&hooks)));
        hooks
    }
}
