//! PriorityLevelConfigurations: how many requests of a level run at once, and what happens to the others.

use std::sync::Arc;

use jiff::Timestamp;
use serde_json::{Value, json};

use super::{GROUP, validate_conditions};
use crate::kind::{Column, Kind, Strategy};
use crate::kinds::declare::{Declaration, with_status};
use crate::kinds::walk::{Walk, child, fill, fill_zero, get_mut};
use crate::status::FieldErrors;
use crate::table::{age, age_column, column, name, name_column};
use crate::validation::Path;

/// Most queues of a level.
const QUEUES_LIMIT: i64 = 10_000_000;
/// Bits of the hash by which shuffle sharding deals queues.
const HASH_BITS: u32 = 60;

pub(in crate::kinds) fn kind() -> Arc<Kind> {
    Declaration::cluster(
        GROUP,
        "v1",
        "PriorityLevelConfiguration",
        "prioritylevelconfigurations",
        Levels,
    )
    .status()
    .build()
}

struct Levels;

impl Strategy for Levels {
    fn default(&self, object: &mut Value) {
        let Some(spec) = child(object, "spec") else {
            return;
        };
        if spec["type"] == "Exempt"
            && let Some(exempt) = child(spec, "exempt")
        {
            fill(exempt, "nominalConcurrencyShares", 0);
            fill(exempt, "lendablePercent", 0);
        }
        let Some(limited) = get_mut(spec, "limited") else {
            return;
        };
        fill(limited, "nominalConcurrencyShares", 30);
        fill(limited, "lendablePercent", 0);
        if let Some(queuing) = get_mut(limited, "limitResponse").and_then(|r| get_mut(r, "queuing"))
        {
            fill_zero(queuing, "queues", 64);
            fill_zero(queuing, "handSize", 8);
            fill_zero(queuing, "queueLengthLimit", 50);
        }
    }

    with_status!();

    fn validate_create(&self, object: &Value) -> FieldErrors {
        let mut errors = validate_conditions(object);
        let (spec, path) = (&object["spec"], Path::new("spec"));
        let type_ = spec["type"].text();
        if (object["metadata"]["name"] == "exempt") != (type_ == "Exempt") {
            errors.invalid(
                path.child("type"),
                type_,
                "type must be 'Exempt' if and only if name is 'exempt'",
            );
        }
        match type_ {
            "Exempt" => {
                if spec["limited"].present() {
                    errors.forbidden(
                        path.child("limited"),
                        "must be nil if the type is not Limited",
                    );
                }
                validate_shares(&spec["exempt"], &path.child("exempt"), &mut errors);
            }
            "Limited" => {
                if spec["exempt"].present() {
                    errors.forbidden(path.child("exempt"), "must be nil if the type is Limited");
                }
                if spec["limited"].is_null() {
                    errors.required(
                        path.child("limited"),
                        "must not be empty when type is Limited",
                    );
                } else {
                    validate_limited(&spec["limited"], &path.child("limited"), &mut errors);
                }
            }
            _ => errors.not_supported(path.child("type"), type_, &["Exempt", "Limited"]),
        }
        errors
    }

    fn validate_update(&self, object: &Value, _old: &Value) -> FieldErrors {
        self.validate_create(object)
    }

    fn validate_status_update(&self, object: &Value, _old: &Value) -> FieldErrors {
        validate_conditions(object)
    }

    fn columns(&self) -> Vec<Column> {
        vec![
            name_column(),
            column("Type", "string", "Exempt or Limited."),
            column(
                "NominalConcurrencyShares",
                "string",
                "Share of the server's room.",
            ),
            column("Queues", "string", "Number of queues."),
            column("HandSize", "string", "Queues that a flow may use."),
            column("QueueLengthLimit", "string", "Most requests in a queue."),
            age_column(),
        ]
    }

    fn row(&self, object: &Value, now: Timestamp) -> Vec<Value> {
        let spec = &object["spec"];
        let limited = &spec["limited"];
        let shares = if limited.present() {
            limited
        } else {
            &spec["exempt"]
        };
        let shown = |value: &Value| value.int().map_or_else(|| json!("<none>"), Value::from);
        let queuing = &limited["limitResponse"]["queuing"];
        vec![
            name(object),
            spec["type"].text().into(),
            shown(&shares["nominalConcurrencyShares"]),
            shown(&queuing["queues"]),
            shown(&queuing["handSize"]),
            shown(&queuing["queueLengthLimit"]),
            age(object, now),
        ]
    }
}

fn validate_shares(level: &Value, path: &Path, errors: &mut FieldErrors) {
    if let Some(shares) = level["nominalConcurrencyShares"].int().filter(|n| *n < 0) {
        errors.invalid(
            path.child("nominalConcurrencyShares"),
            shares,
            "must be a non-negative integer",
        );
    }
    if let Some(percent) = level["lendablePercent"]
        .int()
        .filter(|n| !(0..=100).contains(n))
    {
        errors.invalid(
            path.child("lendablePercent"),
            percent,
            "must be between 0 and 100, inclusive",
        );
    }
}

fn validate_limited(limited: &Value, path: &Path, errors: &mut FieldErrors) {
    validate_shares(limited, path, errors);
    if let Some(percent) = limited["borrowingLimitPercent"].int().filter(|n| *n < 0) {
        errors.invalid(
            path.child("borrowingLimitPercent"),
            percent,
            "if specified, must be a non-negative integer",
        );
    }
    let (response, path) = (&limited["limitResponse"], path.child("limitResponse"));
    let (queuing, at) = (&response["queuing"], path.child("queuing"));
    match response["type"].text() {
        "Reject" => {
            if queuing.present() {
                errors.forbidden(
                    at,
                    "must be nil if limited.limitResponse.type is not Limited",
                );
            }
        }
        "Queue" => {
            if queuing.is_null() {
                errors.required(
                    at,
                    "must not be empty if limited.limitResponse.type is Limited",
                );
            } else {
                validate_queuing(queuing, &at, errors);
            }
        }
        other => errors.not_supported(path.child("type"), other, &["Queue", "Reject"]),
    }
}

fn validate_queuing(queuing: &Value, path: &Path, errors: &mut FieldErrors) {
    let number = |field: &str| queuing[field].int().unwrap_or_default();
    let (queues, hand) = (number("queues"), number("handSize"));
    for field in ["queueLengthLimit", "queues", "handSize"] {
        if number(field) <= 0 {
            errors.invalid(path.child(field), number(field), "must be positive");
        }
    }
    if queues > QUEUES_LIMIT {
        errors.invalid(
            path.child("queues"),
            queues,
            format!("must not be greater than {QUEUES_LIMIT}"),
        );
    }
    if queues <= 0 || hand <= 0 {
        return;
    }
    if hand > queues {
        errors.invalid(
            path.child("handSize"),
            hand,
            format!("should not be greater than queues ({queues})"),
        );
    } else if entropy_bits(queues, hand) > HASH_BITS {
        errors.invalid(
            path.child("handSize"),
            hand,
            format!("required entropy bits of deckSize {queues} and handSize {hand} should not be greater than {HASH_BITS}"),
        );
    }
}

/// Bits of a hash that deals a hand from a deck: those of the number of ordered hands.
fn entropy_bits(deck: i64, hand: i64) -> u32 {
    let mut bits = 0.0_f64;
    for taken in 0..hand {
        #[expect(clippy::cast_precision_loss, reason = "a deck has at most 10^7 cards")]
        let left = (deck - taken) as f64;
        bits += left.log2();
        if bits > f64::from(HASH_BITS) {
            return HASH_BITS + 1;
        }
    }
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "between 0 and 60"
    )]
    let bits = bits.ceil() as u32;
    bits
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limited_level_gets_queues() {
        let mut level = json!({"metadata": {"name": "low"}, "spec": {"type": "Limited", "limited": {"limitResponse": {"type": "Queue", "queuing": {}}}}});
        Levels.default(&mut level);
        assert!(Levels.validate_create(&level).is_empty());
        assert_eq!(level["spec"]["limited"]["nominalConcurrencyShares"], 30);
        level["spec"]["limited"]["limitResponse"]["queuing"]["handSize"] = json!(20);
        assert_eq!(
            Levels.validate_create(&level).0[0].text(),
            "spec.limited.limitResponse.queuing.handSize: Invalid value: 20: required entropy bits of deckSize 64 and handSize 20 should not be greater than 60"
        );
        let exempt = json!({"metadata": {"name": "low"}, "spec": {"type": "Exempt"}});
        assert_eq!(Levels.validate_create(&exempt).0[0].field, "spec.type");
    }
}
