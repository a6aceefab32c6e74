//! Pod templates: their hashes, whether two make the same pods, and shares of a number of pods. Pure.

use k8s_openapi::api::core::v1::PodTemplateSpec;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

/// Tells the pods of a Deployment's sets apart.
pub(crate) const HASH_LABEL: &str = "pod-template-hash";

/// Letters and digits that spell no words and are not mistaken for each other, as upstream.
const SAFE: &[u8; 27] = b"bcdfghjklmnpqrstvwxz2456789";

/// Hash of a pod template: FNV-1a over its JSON, whose keys are sorted, and the collision count.
pub(crate) fn template_hash(template: &PodTemplateSpec, collision_count: Option<i32>) -> String {
    let mut hash: u32 = 0x811c_9dc5;
    let json = serde_json::to_value(template)
        .map(|value| value.to_string())
        .unwrap_or_default();
    let collisions = collision_count
        .map(|count| count.to_le_bytes())
        .into_iter()
        .flatten();
    for byte in json.into_bytes().into_iter().chain(collisions) {
        hash = (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193);
    }
    let safe = |digit: u8| char::from(SAFE[usize::from(digit) % SAFE.len()]);
    hash.to_string().bytes().map(safe).collect()
}

/// True when two templates make the same pods; the hash label does not count.
pub(crate) fn same_template(a: &PodTemplateSpec, b: &PodTemplateSpec) -> bool {
    let bare = |template: &PodTemplateSpec| {
        let mut template = template.clone();
        let meta = template.metadata.get_or_insert_default();
        if let Some(labels) = &mut meta.labels {
            labels.remove(HASH_LABEL);
        }
        meta.labels = meta.labels.take().filter(|labels| !labels.is_empty());
        meta.annotations = meta
            .annotations
            .take()
            .filter(|annotations| !annotations.is_empty());
        template
    };
    bare(a) == bare(b)
}

/// A number, or a percentage of `of`, in pods; never negative.
pub(crate) fn share(value: &IntOrString, of: i32, up: bool) -> i32 {
    let percent: i32 = match value {
        IntOrString::Int(number) => return (*number).max(0),
        IntOrString::String(text) => text.trim_end_matches('%').parse().unwrap_or(0),
    };
    let hundredths = i64::from(percent.max(0)) * i64::from(of.max(0));
    let pods = if up {
        (hundredths + 99) / 100
    } else {
        hundredths / 100
    };
    i32::try_from(pods).unwrap_or(i32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentages_are_rounded_as_asked() {
        let half = IntOrString::String("50%".into());
        assert_eq!(share(&half, 3, true), 2);
        assert_eq!(share(&half, 3, false), 1);
        assert_eq!(share(&IntOrString::Int(7), 3, false), 7);
        assert_eq!(share(&IntOrString::Int(-1), 3, true), 0);
    }
}
