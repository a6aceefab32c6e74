//! Where objects lie in the store: `/registry/<group>/<plural>/<namespace>/<name>`, the core group as
//! `core`, cluster-scoped objects without the namespace.

/// Prefix of all objects.
pub const REGISTRY: &str = "/registry/";

/// A group as keys name it.
#[must_use]
pub fn group_id(group: &str) -> &str {
    if group.is_empty() { "core" } else { group }
}

/// Prefix of all objects of a resource.
#[must_use]
pub fn resource_prefix(group: &str, plural: &str) -> String {
    [REGISTRY, group_id(group), "/", plural, "/"].concat()
}

/// Key of an object within its resource: `namespace/name` or `name`.
#[must_use]
pub fn object_key(namespace: &str, name: &str) -> String {
    if namespace.is_empty() {
        name.to_owned()
    } else {
        [namespace, "/", name].concat()
    }
}

/// Splits a store key into the resource's part (`core/pods`) and the object's key; `None` for keys that are not
/// objects.
#[must_use]
pub fn split(key: &[u8]) -> Option<(&str, &str)> {
    let rest = std::str::from_utf8(key).ok()?.strip_prefix(REGISTRY)?;
    let group_end = rest.find('/')?;
    let resource_end = group_end + 1 + rest[group_end + 1..].find('/')?;
    Some((&rest[..resource_end], &rest[resource_end + 1..]))
}

/// Namespace and name of an object key.
#[must_use]
pub fn split_object(key: &str) -> (&str, &str) {
    key.split_once('/').unwrap_or(("", key))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_key_splits_into_what_it_was_made_of() {
        let key = format!(
            "{}{}",
            resource_prefix("apps", "deployments"),
            object_key("d", "web")
        );
        assert_eq!(
            split(key.as_bytes()).unwrap(),
            ("apps/deployments", "d/web")
        );
        let node = format!("{}{}", resource_prefix("", "nodes"), object_key("", "a1"));
        assert_eq!(split(node.as_bytes()).unwrap(), ("core/nodes", "a1"));
        assert_eq!(split_object("d/web"), ("d", "web"));
        assert_eq!(split(b"/balsa/x"), None);
        assert_eq!(split(b"/registry/x"), None);
    }
}
