//! Kinds that are served in a shape of their own and stored as another kind.

use serde_json::Value;

/// Turns objects of a served kind into the stored kind and back. Both directions keep everything.
pub trait Convert: Send + Sync {
    /// Group, version and kind of what is stored; that kind's objects are these objects.
    fn stored_as(&self) -> [&'static str; 3];

    /// From the served to the stored shape.
    fn to_stored(&self, object: Value) -> Value;

    /// From the stored to the served shape.
    #[expect(
        clippy::wrong_self_convention,
        reason = "a converter converts objects, not itself"
    )]
    fn from_stored(&self, object: Value) -> Value;

    /// The stored kind's name of a field that a field selector of the served kind names.
    fn stored_field<'a>(&self, field: &'a str) -> std::borrow::Cow<'a, str>;
}

/// How objects of a kind are stored, when not as they are.
#[must_use]
pub fn converter(group: &str, version: &str, kind: &str) -> Option<&'static dyn Convert> {
    match (group, version, kind) {
        ("events.k8s.io", "v1", "Event") => Some(&super::event::EventShapes),
        ("autoscaling", "v1", "HorizontalPodAutoscaler") => {
            Some(&super::horizontal_pod_autoscaler::v1::AutoscalerShapes)
        }
        _ => None,
    }
}
