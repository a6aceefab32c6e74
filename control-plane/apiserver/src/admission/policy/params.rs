//! The parameters of a policy's binding.

use std::sync::Arc;

use balsa_api::kind::Scope as KindScope;
use balsa_api::object;
use serde_json::{Map, Value};

use super::config::{Binding, Common};
use crate::kinds::KindSet;
use crate::seam::ObjectReader;

/// The parameters that a policy is evaluated with, one evaluation for each; `None` stands for an evaluation
/// without parameters.
///
/// # Errors
/// What is wrong with the configuration.
pub fn collect(
    policy: &Common,
    binding: &Binding,
    namespace: &str,
    (kinds, reader): (&KindSet, &dyn ObjectReader),
) -> Result<Vec<Option<Arc<Value>>>, String> {
    let Some((api_version, kind)) = &policy.param_kind else {
        return Ok(vec![None]);
    };
    let Some(wanted) = &binding.params else {
        return Ok(vec![None]);
    };
    let (group, version) = object::split_api_version(api_version);
    let served = kinds
        .served()
        .find(|s| s.kind.group == group && s.kind.version == version && s.kind.kind == **kind)
        .ok_or_else(|| {
            format!("failed to find resource referenced by paramKind: '{api_version}, Kind={kind}'")
        })?;
    let namespaced = served.kind.scope == KindScope::Namespaced;
    let namespace = match (namespaced, wanted.namespace.as_str()) {
        (true, "") if namespace.is_empty() => {
            return Err("cannot use namespaced paramRef in policy binding that matches cluster-scoped resources".to_owned());
        }
        (true, "") => namespace,
        (true, own) => own,
        (false, "") => "",
        (false, _) => {
            return Err(
                "paramRef.namespace must not be provided for a cluster-scoped `paramKind`"
                    .to_owned(),
            );
        }
    };
    let plural = &served.kind.plural;
    let found: Vec<Arc<Value>> = match &wanted.selector {
        Some(selector) => {
            let place = namespaced.then_some(namespace);
            let none = Map::new();
            let mut all = reader.list(group, plural, place);
            all.retain(|o| selector.matches(object::labels(o).unwrap_or(&none)));
            all
        }
        None => reader
            .get(group, plural, namespace, &wanted.name)
            .into_iter()
            .collect(),
    };
    if found.is_empty() && wanted.deny_missing {
        return Err(
            "no params found for policy binding with `Deny` parameterNotFoundAction".to_owned(),
        );
    }
    Ok(found.into_iter().map(Some).collect())
}
