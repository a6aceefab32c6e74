//! What a terminating namespace says of itself. Pure.

use std::collections::BTreeMap;

use balsa_client::time::time;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::NamespaceCondition;

use crate::error::Error;

/// What one round of emptying found.
#[derive(Default)]
pub(super) struct Found {
    /// API groups that could not be asked.
    pub(super) discovery_errors: Vec<String>,
    /// Kinds that could not be emptied.
    pub(super) content_errors: Vec<String>,
    pub(super) first_error: Option<Error>,
    /// Objects left, by `resource.group`.
    pub(super) remaining: BTreeMap<String, usize>,
    /// Objects left, by finalizer.
    pub(super) finalizers: BTreeMap<String, usize>,
    pub(super) pods_remain: bool,
}

impl Found {
    pub(super) fn all_gone(&self) -> bool {
        self.discovery_errors.is_empty()
            && self.content_errors.is_empty()
            && self.remaining.is_empty()
    }
}

/// The five conditions, keeping the times of those that did not change.
pub(super) fn conditions(
    old: &[NamespaceCondition],
    found: &Found,
    now: Timestamp,
) -> Vec<NamespaceCondition> {
    let mut all = vec![
        problem(
            "NamespaceDeletionDiscoveryFailure",
            &found.discovery_errors,
            "DiscoveryFailed",
            "Discovery failed for some groups",
            (
                "ResourcesDiscovered",
                "All resources successfully discovered",
            ),
        ),
        problem(
            "NamespaceDeletionGroupVersionParsingFailure",
            &[],
            "GroupVersionParsingFailed",
            "",
            (
                "ParsedGroupVersions",
                "All legacy kube types successfully parsed",
            ),
        ),
        problem(
            "NamespaceDeletionContentFailure",
            &found.content_errors,
            "ContentDeletionFailed",
            "Failed to delete all resource types",
            (
                "ContentDeleted",
                "All content successfully deleted, may be waiting on finalization",
            ),
        ),
        left(
            "NamespaceContentRemaining",
            &found.remaining,
            "SomeResourcesRemain",
            (
                "Some resources are remaining: ",
                " has ",
                " resource instances",
            ),
            ("ContentRemoved", "All content successfully removed"),
        ),
        left(
            "NamespaceFinalizersRemaining",
            &found.finalizers,
            "SomeFinalizersRemain",
            (
                "Some content in the namespace has finalizers remaining: ",
                " in ",
                " resource instances",
            ),
            (
                "ContentHasNoFinalizers",
                "All content-preserving finalizers finished",
            ),
        ),
    ];
    for condition in &mut all {
        let before = old
            .iter()
            .find(|old| old.type_ == condition.type_ && old.status == condition.status);
        condition.last_transition_time = before
            .and_then(|before| before.last_transition_time.clone())
            .or_else(|| Some(time(now)));
    }
    all
}

fn condition(type_: &str, status: bool, reason: &str, message: String) -> NamespaceCondition {
    NamespaceCondition {
        type_: type_.into(),
        status: if status { "True" } else { "False" }.into(),
        reason: Some(reason.into()),
        message: Some(message),
        last_transition_time: None,
    }
}

fn problem(
    type_: &str,
    errors: &[String],
    reason: &str,
    what: &str,
    fine: (&str, &str),
) -> NamespaceCondition {
    if errors.is_empty() {
        return condition(type_, false, fine.0, fine.1.into());
    }
    let message = format!("{what}, {} total: {}", errors.len(), errors.join("; "));
    condition(type_, true, reason, message)
}

fn left(
    type_: &str,
    left: &BTreeMap<String, usize>,
    reason: &str,
    words: (&str, &str, &str),
    fine: (&str, &str),
) -> NamespaceCondition {
    if left.is_empty() {
        return condition(type_, false, fine.0, fine.1.into());
    }
    let parts: Vec<String> = left
        .iter()
        .map(|(what, count)| format!("{what}{}{count}{}", words.1, words.2))
        .collect();
    condition(
        type_,
        true,
        reason,
        format!("{}{}", words.0, parts.join(", ")),
    )
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn what_remains_is_named_and_counted() {
        let found = Found {
            remaining: BTreeMap::from([("pods.".into(), 2)]),
            finalizers: BTreeMap::from([("example.com/hold".into(), 2)]),
            ..Found::default()
        };
        assert!(!found.all_gone());
        let all = conditions(&[], &found, Timestamp::from_second(5).unwrap());
        let message = |type_: &str| {
            let condition = all
                .iter()
                .find(|condition| condition.type_ == type_)
                .unwrap();
            (condition.status.clone(), condition.message.clone().unwrap())
        };
        assert_eq!(
            message("NamespaceContentRemaining"),
            (
                "True".into(),
                "Some resources are remaining: pods. has 2 resource instances".into()
            )
        );
        assert_eq!(message("NamespaceFinalizersRemaining").0, "True");
        assert_eq!(message("NamespaceDeletionContentFailure").0, "False");
    }

    #[test]
    fn a_condition_that_stays_keeps_its_time() {
        let first = conditions(&[], &Found::default(), Timestamp::from_second(5).unwrap());
        assert_eq!(
            conditions(
                &first,
                &Found::default(),
                Timestamp::from_second(9).unwrap()
            ),
            first
        );
    }
}
