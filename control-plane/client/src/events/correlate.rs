//! Which reports become new Events, which raise a count, which are dropped. Follows the rules of client-go's
//! event correlator: spam filter, aggregation, deduplication.

use std::collections::{HashMap, VecDeque};

use jiff::{SignedDuration, Timestamp};

use super::{EventType, Report};

/// Objects and reports remembered; the oldest are forgotten.
const REMEMBERED: usize = 4096;
/// So many different messages of one reason about one object within the window are combined.
const SIMILAR_LIMIT: usize = 10;
const SIMILAR_WINDOW: SignedDuration = SignedDuration::from_mins(10);
const BURST: f64 = 25.0;
const REFILL_SECONDS: f64 = 300.0;

/// What makes reports equal.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Similar {
    object: Object,
    type_: EventType,
    reason: String,
    /// Empty for combined reports.
    message: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Object {
    kind: String,
    namespace: String,
    name: String,
    uid: String,
    field_path: String,
}

/// What to write.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Write {
    pub(super) key: Similar,
    /// Name of the Event to update; `None` for a new one.
    pub(super) existing: Option<String>,
    pub(super) count: i32,
    pub(super) message: String,
}

#[derive(Default)]
pub(super) struct Correlator {
    spam: Remembered<Object, Bucket>,
    similar: Remembered<Similar, Messages>,
    written: Remembered<Similar, Written>,
}

struct Bucket {
    tokens: f64,
    at: Timestamp,
}

struct Messages {
    seen: Vec<String>,
    last: Timestamp,
}

#[derive(Clone, Default)]
struct Written {
    name: Option<String>,
    count: i32,
}

impl Correlator {
    /// `None` when the report is to be dropped.
    pub(super) fn observe(&mut self, report: &Report) -> Option<Write> {
        let object = object(report);
        if !self.allowed(&object, report.at) {
            return None;
        }
        let (key, message) = self.combine(object, report);
        let written = self.written.entry(key.clone(), Written::default);
        written.count = written.count.saturating_add(1);
        Some(Write {
            key,
            existing: written.name.clone(),
            count: written.count,
            message,
        })
    }

    /// Remembers under which name an Event exists.
    pub(super) fn written(&mut self, key: Similar, name: String) {
        self.written.entry(key, Written::default).name = Some(name);
    }

    fn allowed(&mut self, object: &Object, now: Timestamp) -> bool {
        let bucket = self.spam.entry(object.clone(), || Bucket {
            tokens: BURST,
            at: now,
        });
        let elapsed = now.duration_since(bucket.at).as_secs_f64().max(0.0);
        bucket.tokens = (bucket.tokens + elapsed / REFILL_SECONDS).min(BURST);
        bucket.at = now;
        if bucket.tokens < 1.0 {
            return false;
        }
        bucket.tokens -= 1.0;
        true
    }

    fn combine(&mut self, object: Object, report: &Report) -> (Similar, String) {
        let mut key = Similar {
            object,
            type_: report.type_,
            reason: report.reason.clone(),
            message: String::new(),
        };
        let now = report.at;
        let messages = self.similar.entry(key.clone(), || Messages {
            seen: Vec::new(),
            last: now,
        });
        if now.duration_since(messages.last) > SIMILAR_WINDOW {
            messages.seen.clear();
        }
        messages.last = now;
        if !messages.seen.contains(&report.message) {
            if messages.seen.len() >= SIMILAR_LIMIT {
                return (
                    key,
                    format!("(combined from similar events): {}", report.message),
                );
            }
            messages.seen.push(report.message.clone());
        }
        key.message.clone_from(&report.message);
        (key, report.message.clone())
    }
}

fn object(report: &Report) -> Object {
    let about = &report.about;
    Object {
        kind: about.kind.clone().unwrap_or_default(),
        namespace: about.namespace.clone().unwrap_or_default(),
        name: about.name.clone().unwrap_or_default(),
        uid: about.uid.clone().unwrap_or_default(),
        field_path: about.field_path.clone().unwrap_or_default(),
    }
}

/// A map that forgets its oldest entries.
struct Remembered<K, V> {
    entries: HashMap<K, V>,
    order: VecDeque<K>,
}

impl<K, V> Default for Remembered<K, V> {
    fn default() -> Self {
        Self {
            entries: HashMap::new(),
            order: VecDeque::new(),
        }
    }
}

impl<K: Clone + Eq + std::hash::Hash, V> Remembered<K, V> {
    fn entry(&mut self, key: K, new: impl FnOnce() -> V) -> &mut V {
        if !self.entries.contains_key(&key) {
            self.order.push_back(key.clone());
            if self.order.len() > REMEMBERED
                && let Some(oldest) = self.order.pop_front()
            {
                self.entries.remove(&oldest);
            }
        }
        self.entries.entry(key).or_insert_with(new)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use k8s_openapi::api::core::v1::ObjectReference;

    use super::*;

    fn report(message: &str, second: i64) -> Report {
        Report {
            about: ObjectReference {
                name: Some("web".into()),
                ..ObjectReference::default()
            },
            type_: EventType::Normal,
            reason: "Created".into(),
            message: message.into(),
            action: None,
            related: None,
            at: Timestamp::from_second(second).unwrap(),
        }
    }

    #[test]
    fn an_equal_report_raises_the_count_of_the_first() {
        let mut correlator = Correlator::default();
        let first = correlator.observe(&report("a", 1)).unwrap();
        assert_eq!((first.existing, first.count), (None, 1));
        correlator.written(first.key, "web.1".into());
        let second = correlator.observe(&report("a", 2)).unwrap();
        assert_eq!(
            (second.existing.as_deref(), second.count),
            (Some("web.1"), 2)
        );
    }

    #[test]
    fn the_eleventh_message_of_one_reason_is_combined() {
        let mut correlator = Correlator::default();
        for i in 0..10 {
            assert_eq!(
                correlator
                    .observe(&report(&format!("m{i}"), 1))
                    .unwrap()
                    .message,
                format!("m{i}")
            );
        }
        let combined = correlator.observe(&report("m10", 1)).unwrap();
        assert_eq!(combined.message, "(combined from similar events): m10");
        correlator.written(combined.key, "web.c".into());
        let again = correlator.observe(&report("m11", 1)).unwrap();
        assert_eq!((again.existing.as_deref(), again.count), (Some("web.c"), 2));
    }

    #[test]
    fn a_noisy_object_is_slowed_down_to_one_in_five_minutes() {
        let mut correlator = Correlator::default();
        let passed = (0..40)
            .filter(|_| correlator.observe(&report("a", 1)).is_some())
            .count();
        assert_eq!(passed, 25);
        assert!(correlator.observe(&report("a", 200)).is_none());
        assert!(correlator.observe(&report("a", 302)).is_some());
    }
}
