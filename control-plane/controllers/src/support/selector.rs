//! Label selectors.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use kube::core::{Selector, SelectorExt};

use crate::error::{Error, Result};

/// A compiled selector that, unlike upstream's empty one, never selects everything by accident: controllers
/// treat an empty selector as selecting nothing.
pub(crate) struct Labels(Selector);

impl Labels {
    pub(crate) fn parse(selector: &LabelSelector) -> Result<Self> {
        Selector::try_from(selector.clone())
            .map(Self)
            .map_err(|error| Error::Invalid(format!("the label selector is not valid: {error}")))
    }

    pub(crate) fn matches(&self, labels: Option<&BTreeMap<String, String>>) -> bool {
        static NONE: BTreeMap<String, String> = BTreeMap::new();
        !self.0.selects_all() && self.0.matches(labels.unwrap_or(&NONE))
    }
}

/// True when every pair of a Service-like selector is among the labels; false for an empty selector.
pub(crate) fn map_matches(
    selector: &BTreeMap<String, String>,
    labels: Option<&BTreeMap<String, String>>,
) -> bool {
    !selector.is_empty()
        && labels.is_some_and(|labels| {
            selector
                .iter()
                .all(|(key, value)| labels.get(key) == Some(value))
        })
}
